"""CheXpert in miniature: each layout, and between them every trap of the real label files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from cxrbench.data.chexpert_labels import FINDINGS, LABELS
from cxrbench.data.fakes import fake_patients, pick_variant, write_film
from cxrbench.data.painter import Study

# The usual one first; it has CheXlocalize's test images, so that every split can be cut.
VARIANTS = ("small", "full", "aimi", "chexlocalize", "studies")
HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)
# Patients' numbers by subset, as in the download.
FIRST = {"train": 1, "valid": 64_541, "test": 64_741}
MISSING = "patient64540"  # in train.csv, but in some copies without its image
# Rows as they are found in train.csv once or a few times.
ODD: dict[str, dict[str, str]] = {
    "patient33093": {"Sex": "Unknown", "No Finding": "1.0"},
    "patient40001": {"AP/PA": "LL", "No Finding": "1.0"},
    "patient40002": {},  # no label at all
    "patient64538": {"Age": "0", "No Finding": "1.0", "Support Devices": "1.0"},
    MISSING: {"Age": "0", "No Finding": "1.0"},
}
# What is seen of a drawn finding; Lung Opacity is seen of most.
SEEN_AS = {
    "Atelectasis": ("Atelectasis", "Lung Opacity"),
    "Cardiomegaly": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "Consolidation": ("Consolidation", "Lung Opacity"),
    "Edema": ("Edema", "Lung Opacity"),
    "Effusion": ("Pleural Effusion",),
    "Infiltration": ("Lung Opacity",),
    "Mass": ("Lung Lesion",),
    "Nodule": ("Lung Lesion",),
    "Pleural_Thickening": ("Pleural Other",),
    "Pneumonia": ("Pneumonia", "Lung Opacity"),
    "Pneumothorax": ("Pneumothorax",),
}
UNSURE_BELOW = 0.4  # severity at which a drawn finding is uncertain to the report


@dataclass(frozen=True)
class Film:
    """An image of the miniature: where it lies, what is drawn, and its row by column."""

    subset: str
    path: str  # patient00001/study1/view1_frontal.jpg
    study: Study
    row: dict[str, str]


def write_fake(
    root: Path, images: int, size: int, seed: int, variant: str, validates: Callable[[int], bool]
) -> Path:
    """Write a variant; returns the folder to read.

    `validates` says of a train patient's number whether `official` validates with it; numbers are chosen
    so that some do.
    """
    films = list(_films(images, seed, validates))
    write = {
        "small": _write_small,
        "full": _write_full,
        "aimi": _write_aimi,
        "chexlocalize": _write_chexlocalize,
        "studies": _write_studies,
    }
    return write[pick_variant(variant, VARIANTS)](root, films, size)


def _films(images: int, seed: int, validates: Callable[[int], bool]) -> Iterator[Film]:
    """Of five patients three train, one is of valid and one of test; then come the oddities of train."""
    numbers = {subset: count(first) for subset, first in FIRST.items()}
    patients = fake_patients(max(1, images - len(ODD)), seed)
    for i, studies in enumerate(patients):
        subset = ("train", "valid", "train", "test", "train")[i % 5]
        number = next(numbers[subset])
        while subset == "train" and validates(number) != (i % 10 == 2):
            number = next(numbers[subset])
        for n, study in enumerate(studies):
            # A patient's second image is the lateral view of the first study, with its labels.
            lateral, patient = n == 1, f"patient{number:05d}"
            where = f"{patient}/study{max(1, n)}/view{'2_lateral' if lateral else '1_frontal'}.jpg"
            ill = studies[0].findings if lateral else study.findings
            shown = replace(study, findings=() if i % 3 == 0 else ill)
            yield Film(subset, where, shown, _row(subset, shown, lateral=lateral))
    blank = {**dict.fromkeys(LABELS, ""), "Frontal/Lateral": "Frontal", "AP/PA": "AP", "Age": "61"}
    for n, (patient, cells) in enumerate(ODD.items()):
        drawn = replace(patients[0][0], findings=(), seed=seed + 1 + n)
        where = f"{patient}/study1/view1_frontal.jpg"
        yield Film("train", where, drawn, {**blank, "Sex": "Female", **cells})


def _row(subset: str, study: Study, *, lateral: bool) -> dict[str, str]:
    """The labels as a report (train) or a radiologist (valid, test) gives them."""
    reported = subset == "train"
    marks = dict.fromkeys(LABELS, "" if reported else "0.0")
    for finding, severity in study.findings:
        for label in SEEN_AS.get(finding, ()):
            sure = severity >= UNSURE_BELOW or not reported
            marks[label] = "1.0" if sure or marks[label] == "1.0" else "-1.0"
    if all(marks[label] in ("", "0.0") for label in FINDINGS):
        marks["No Finding"] = "1.0"
    if reported and marks["Pneumothorax"] == "":
        marks["Pneumothorax"] = "0.0"  # what reports deny most
    if study.age % 3 == 0:
        marks["Support Devices"] = "1.0"
    return {
        "Sex": {"M": "Male", "F": "Female"}[study.sex],
        "Age": str(study.age),
        "Frontal/Lateral": "Lateral" if lateral else "Frontal",
        "AP/PA": "" if lateral else study.view_position,
        **marks,
    }


def _draw(films: Sequence[Film], folder: Callable[[Film], Path], size: int) -> None:
    """The images of films but the missing one; the first is neither square nor grey."""
    for film in films:
        path = folder(film) / film.path
        if film is films[0]:
            write_film(film.study, path, size + 13, "RGB", height=size)
        elif MISSING not in film.path:
            write_film(film.study, path, size)


def _table(
    films: Sequence[Film],
    prefix: str,
    columns: Sequence[str] = HEADER,
    *,
    underscores: bool = False,
) -> list[str]:
    """The lines of a label file, without line ends."""
    names = [c.replace(" ", "_") if underscores and c in LABELS else c for c in columns]
    lines = [",".join(names)]
    for film in films:
        cells = {**film.row, "Path": f"{prefix}/{film.path}"}
        lines.append(",".join(cells[column] for column in columns))
    return lines


def _of(films: Sequence[Film], subset: str) -> list[Film]:
    return [film for film in films if film.subset == subset]


def _write(path: Path, lines: Sequence[str], *, end: str = "\n", mark: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((mark + end.join([*lines, ""])).encode())


def _write_small(root: Path, films: list[Film], size: int) -> Path:
    """The small version, and CheXlocalize's test images beside it."""
    name = "CheXpert-v1.0-small"
    first = [film for film in films if film.subset != "test"]
    _draw(first, lambda film: root / name / film.subset, size)
    for subset in ("train", "valid"):
        _write(root / name / f"{subset}.csv", _table(_of(films, subset), f"{name}/{subset}"))
    _write_test(root, films, size)
    return root


def _write_test(root: Path, films: list[Film], size: int) -> None:
    """CheXlocalize's test images; its table has no sex, age or view."""
    test = _of(films, "test")
    _draw(test, lambda film: root / "CheXpert" / "test", size)
    _write(root / "CheXpert" / "test_labels.csv", _table(test, "test", ("Path", *LABELS)))


def _write_full(root: Path, films: list[Film], size: int) -> Path:
    """The full version below a folder with blanks and accents; byte order mark, CRLF, trailing commas."""
    name = "CheXpert-v1.0"
    base = root / "données de l’étude 1" / name
    _draw(films, lambda film: base / film.subset, size)
    for subset in FIRST:
        lines = [f"{line}," for line in _table(_of(films, subset), f"{name}/{subset}")]
        _write(base / f"{subset}.csv", lines, end="\r\n", mark="\ufeff")
    junk = root / "__MACOSX" / "CheXpert-v1.0" / "train" / "patient00001" / "study1"
    junk.mkdir(parents=True)
    (junk / "._view1_frontal.jpg").write_bytes(b"junk")
    return root


def _write_aimi(root: Path, films: list[Film], size: int) -> Path:
    """The batches of the AIMI download: train patients lie in them directly; columns in another order."""
    base = root / "chexpertchestxrays-u20210408"
    first = base / "CheXpert-v1.0 batch 1 (validate & csv)"
    batches = ("batch 2 (train 1)", "batch 3 (train 2)", "batch 4 (train 3)")

    def folder(film: Film) -> Path:
        if film.subset == "valid":
            return first / "valid"
        return base / f"CheXpert-v1.0 {batches[int(film.path[7:12]) % 3]}"

    chosen = [film for film in films if film.subset != "test"]
    _draw(chosen, folder, size)
    columns = (*reversed(LABELS), *("AP/PA", "Frontal/Lateral", "Path", "Age", "Sex"))
    for subset in ("train", "valid"):
        lines = _table(_of(films, subset), f"CheXpert-v1.0/{subset}", columns)
        _write(first / f"{subset}.csv", lines)
    (base / "CHEXPERT DEMO.xlsx").write_bytes(b"PK\x03\x04 not a label file")
    return root


def _write_chexlocalize(root: Path, films: list[Film], size: int) -> Path:
    """CheXlocalize alone: val and test; names of labels with underscores."""
    valid = _of(films, "valid")
    _draw(valid, lambda film: root / "CheXpert" / "val", size)
    lines = _table(valid, "CheXpert-v1.0/valid", underscores=True)
    _write(root / "CheXpert" / "val_labels.csv", lines)
    _write_test(root, films, size)
    return root


def _write_studies(root: Path, films: list[Film], size: int) -> Path:
    """The small version, with the test labels by study."""
    _write_small(root, films, size)
    (root / "CheXpert" / "test_labels.csv").unlink()
    lines = _table(_of(films, "test"), "CheXpert-v1.0/test", ("Path", *LABELS))
    by_study = {line.split(",")[0].rpartition("/")[0]: line for line in lines[1:]}
    rows = [f"{study},{line.partition(',')[2]}" for study, line in by_study.items()]
    _write(root / "CheXpert" / "groundtruth.csv", [lines[0].replace("Path", "Study"), *rows])
    return root
