"""The miniature of the open COVID-19 image collection: drawn films under every odd name and mode."""

import csv
import itertools
import unicodedata
from dataclasses import replace
from pathlib import Path

from PIL import Image

from cxrbench.data.painter import Study, paint_image

# The miniature: files as (name, Pillow mode, format), views of some films, and what is to be left out.
FILES = (
    ("film 1.png", "RGBA", "PNG"),
    ("film-2.png", "P", "PNG"),
    ("film-3.jpg", "L", "PNG"),
    (unicodedata.normalize("NFD", "Röntgen Thorax 4.jpeg"), "RGB", "JPEG"),
    ("film-5.JPG", "L", "JPEG"),
)
VIEWS = {0: "AP Supine", 5: "AP Erect", 8: "APS"}
LEFT_OUT = {"side.png": "L", "slice.png": "Axial", "slice-2.png": "Coronal", "plain.png": ""}
COVID = {
    "repository": ("Pneumonia/Viral/COVID-19", "Pneumonia/Viral/COVID-19"),
    "manifest": ("COVID-19", "COVID-19, ARDS"),
}
OTHERS = {
    "repository": (
        *("No Finding", "Pneumonia/Bacterial/Streptococcus", "No Finding", "Pneumonia"),
        *("Tuberculosis", "Pneumonia/Viral/SARS", "todo", "Unknown"),
    ),
    "manifest": (
        *("No Finding", "Streptococcus", "No Finding", "Mycoplasma Bacterial Pneumonia"),
        *("Tuberculosis", "ARDS", "todo", "Unknown"),
    ),
}
COLUMNS = (
    *("patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "intubated"),
    *("intubation_present", "went_icu", "in_icu", "needed_supplemental_O2", "extubated"),
    *("temperature", "pO2_saturation", "leukocyte_count", "neutrophil_count", "lymphocyte_count"),
    *("view", "modality", "date", "location", "folder", "filename", "doi", "url", "license"),
    *("clinical_notes", "other_notes"),
)


def write_films(
    root: Path, patients: list[list[Study]], size: int, variant: str
) -> list[dict[str, str]]:
    """The usable films with every odd kind of file, and the rows that are left out, by our names."""
    rows: list[dict[str, str]] = []
    serial = itertools.count()
    for i, studies in enumerate(patients):
        others = OTHERS[variant]
        finding = others[i // 2 % len(others)] if i % 2 else COVID[variant][i // 2 % 2]
        for study in studies:
            n = next(serial)
            name, mode, form = FILES[n] if n < len(FILES) else (f"{n}.png", "L", "PNG")
            shown = (("Infiltration", 0.9),) if "COVID" in finding else ()
            _write_film(root / "images" / name, study, shown, size, mode, form)
            blank = n % 7 == 3
            rows.append({
                "patient_id": f"{i + 2}" if i != 3 else "5a",
                "offset_days": "" if blank else str(n % 9 - 2),
                "sex": "" if blank else study.sex,
                "age": "" if blank else str(study.age),
                "finding": finding,
                "view": VIEWS.get(n, study.view_position),
                "modality": "X-ray",
                "folder": "images",
                "file": unicodedata.normalize("NFC", name),
                "licence": ("CC BY-NC-SA", "", "CC BY 3.0")[n % 3],
                "url": f"https://example.org/case/{i}",
            })  # fmt: skip
    film = patients[0][0]
    for name, view in LEFT_OUT.items():
        ct = "CT" if view in ("Axial", "Coronal") else "X-ray"
        rows.append({**rows[0], "file": name, "view": view, "modality": ct})
        _write_film(root / "images" / name, film, (), size, "L", "PNG")
    # Another file of the same name, which a search by name alone would take for the film.
    rows.append({**rows[0], "folder": "volumes", "view": "Axial", "modality": "CT"})
    _write_film(root / "volumes" / rows[0]["file"], film, (), size, "L", "PNG")
    rows.append({**rows[-1], "file": "scan.nii.gz", "view": "Coronal"})
    (root / "volumes" / "scan.nii.gz").write_bytes(b"not a film")
    rows.append({**rows[0], "file": "never downloaded.jpg", "patient_id": "331b"})
    return [*rows, rows[1]]


def _write_film(
    path: Path, study: Study, shown: tuple[tuple[str, float], ...], size: int, mode: str, form: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    film = Image.fromarray(paint_image(replace(study, findings=shown), size))
    if form == "JPEG":  # real films are seldom square
        film = film.resize((size, max(size * 4 // 5, 16)))
    film.convert(mode).save(path, form)


def write_metadata(path: Path, rows: list[dict[str, str]]) -> None:
    """The repository's table: every row ends in a comma, notes run over lines."""
    names = {
        "patient_id": "patientid",
        "offset_days": "offset",
        "file": "filename",
        "licence": "license",
    }
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*COLUMNS, ""])
        for row in rows:
            known = {names.get(name, name): text for name, text in row.items()}
            known["clinical_notes"] = "Fever, cough;\n38.5 °C since Zürich"
            writer.writerow([*(known.get(column, "") for column in COLUMNS), ""])


def write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    """The sample's table, as a spreadsheet saves it: a byte order mark and Windows line ends."""
    columns = (
        *("file", "patient_id", "group", "labels", "licence", "finding", "view", "sex", "age"),
        *("offset_days", "licence_url", "doi"),
    )
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for row in rows:
            known = {
                **row,
                "file": f"{row['folder']}/{row['file']}",
                "group": f"covid:{row['patient_id']}",
                "labels": row["finding"],
                "licence_url": row["url"],
            }
            writer.writerow([known.get(column, "") for column in columns])
