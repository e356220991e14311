"""The open COVID-19 image collection (Cohen et al., 2020): films of case reports, each under its own licence."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from cxrbench.core.errors import ConfigError, DataError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.core.treeprint import scan_files
from cxrbench.data.base import CxrDataset, DataParams, Problem
from cxrbench.data.cells import has_control, unsafe
from cxrbench.data.covid_fakes import write_films, write_manifest, write_metadata
from cxrbench.data.covid_findings import is_unsaid, label_of
from cxrbench.data.csvfile import at, need_column, read_csv, some
from cxrbench.data.fakes import fake_patients
from cxrbench.data.index import Index
from cxrbench.data.pixels import SUFFIXES

# The label file of each layout, and the folder of a row that names none.
LAYOUTS = {"repository": ("metadata.csv", "images"), "manifest": ("manifest.csv", "")}
SEARCH_DEPTH = 2
# Names of each column in the layouts and over the collection's history, without regard to case.
COLUMNS = {
    "patient_id": ("patientid", "patient_id"),
    "finding": ("finding", "labels"),
    "view": ("view",),
    "file": ("filename", "file"),
}
OPTIONAL = {
    "folder": ("folder",),
    "modality": ("modality",),
    "group_id": ("group",),
    "sex": ("sex",),
    "age": ("age",),
    "offset_days": ("offset", "offset_days"),
    "licence": ("license", "licence"),
    "url": ("url", "licence_url"),
    "doi": ("doi",),
}
FILM = {"x-ray", "xray", "x ray", "cxr", "cr", "dx"}
TOMOGRAPHY = {"ct", "axial", "coronal", "sagittal"}
FRONTAL = re.compile(r"(pa|aps?)\b")
LATERAL = {"l", "ll", "rl", "lateral"}
SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
NO_LICENCE = "unknown"
BLANK = "(blank)"
LEFT_OUT = {
    "ct": "rows are slices or volumes of CT",
    "other_modality": "rows are neither films nor CT",
    "unknown_modality": "rows tell neither modality nor view",
    "unknown_view": "rows tell no view",
    "other_view": "rows show another view",
    "no_file_name": "rows name no file",
    "not_png_or_jpeg": "rows name a file that is neither PNG nor JPEG",
    "repeated": "rows repeat the image of another row",
}
FEW = 50  # ten a fold of cv5
EXAMPLES = 20
VALUES = {"positive": 1, "negative": 0}
SHARED_WITH = (
    *("COVIDx", "COVID-QU-Ex", "Kaggle's COVID-19 Radiography Database"),
    "mixtures of any of them with BIMCV-COVID19+",
)


class CovidParams(DataParams):
    """`covid` against the rest, or any `pneumonia` against none; in which views.

    `frontal` takes PA and every AP (lying, sitting, erect), `all` any film, never CT.
    """

    task: Literal["covid", "pneumonia"] = "covid"
    view: Literal["frontal", "pa", "all"] = "frontal"


class Covid(CxrDataset):
    """COVID-19 image data collection: COVID-19 against the rest, or any pneumonia against none.

    Many other collections contain these images, COVIDx, COVID-QU-Ex and Kaggle's COVID-19 Radiography
    Database among them: none of them is an external test of a model trained here, nor the reverse.
    """

    name = "covid"
    Params = CovidParams
    splits = ("cv5", "holdout")
    home = "https://github.com/ieee8023/covid-chestxray-dataset"
    licence = (
        "each image has its own, often non-commercial or unknown: column `licence` of the index"
    )
    variants = ("repository", "manifest")
    overlaps = {"lung_masks": "its covid part is films of this collection, with masks"}

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        """The films of the wanted view; findings that the table leaves open are unknown (NaN).

        Besides the usual columns the index has `finding`, `offset_days` (since symptoms or admission),
        `licence`, `url` and `doi`, as the table gives them.
        """
        assert isinstance(params, CovidParams)
        root = cls.require_root(root)
        layout, table = _find_table(root)
        every = _read_table(table, LAYOUTS[layout][1])
        rows, left_out = _select(every, table, params)
        rows, unreadable = _with_attributes(rows)
        files = _files(table.parent)
        paths = _located(rows, files, table)
        present = paths.notna()
        notes: dict[str, Any] = {
            "layout": layout,
            "labels_file": table.name,
            "rows": len(every),
            "left_out": left_out,
            "unreadable_cells": unreadable,
            "coverage": {
                "present": int(present.sum()),
                "promised": len(rows),
                "complete": bool(present.all()),
            },
            "missing": rows["image_id"][~present].head(EXAMPLES).tolist(),
            "images_without_row": _unnamed(files, set(every["image_id"])),
            "findings_unknown": _counts(rows["finding"][rows[params.task].isna() & present]),
            "licences": _counts(rows["licence"][present]),
        }
        prefix = "" if table.parent == root else f"{table.parent.relative_to(root).as_posix()}/"
        frame = rows.assign(path=prefix + paths)[present].reset_index(drop=True)
        strata = None if present.all() else _strata(rows, params.task)
        return Index(cls.name, frame, (params.task,), root, notes, (table,), strata)

    @classmethod
    def check(cls, index: Index) -> list[Problem]:
        """What is missing, left open or too rare, and where else these images are found."""
        notes = index.notes
        problems = [
            Problem("info", f"{what}: left out", count=notes["left_out"][reason])
            for reason, what in LEFT_OUT.items()
            if notes["left_out"].get(reason)
        ]
        if absent := notes["coverage"]["promised"] - notes["coverage"]["present"]:
            names = tuple(notes["missing"])
            problems.append(Problem("warning", "films of the table have no file", names, absent))
        if count := notes["images_without_row"]:
            problems.append(Problem("info", "images stand in no row: left out", count=count))
        for column, cells in notes["unreadable_cells"].items():
            what = f"cells of {column} are no number and count as unknown"
            problems.append(Problem("warning", what, tuple(cells)))
        problems += _finding_problems(index) + _rarities(index)
        unlicensed = index.frame["image_id"][index.frame["licence"] == NO_LICENCE]
        if len(unlicensed):
            what = "images have no known licence: ask before you publish or share them"
            problems.append(Problem("warning", what, tuple(unlicensed)))
        sexes = index.frame[index.frame["sex"] != ""].groupby("patient_id")["sex"].nunique()
        if torn := tuple(sexes.index[sexes > 1]):
            what = "patients have two sexes (an id given twice?) and stay in one part"
            problems.append(Problem("warning", what, torn))
        what = "other collections hold images of this one: no external tests of each other"
        return [*problems, Problem("info", what, SHARED_WITH)]

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """The repository in miniature, or a table of some of its films; `images` are usable ones.

        Among them are files of all modes and odd names; beside them CT, lateral views, a missing file.
        """
        variant = variant or cls.variants[0]
        if variant not in cls.variants:
            raise ConfigError(
                f"{cls.name}: no miniature {variant!r}; use {', '.join(cls.variants)}"
            )
        rows = write_films(root, fake_patients(images, seed), size, variant)
        write = write_metadata if variant == "repository" else write_manifest
        write(root / LAYOUTS[variant][0], rows)
        return root


def _find_table(root: Path) -> tuple[str, Path]:
    """The layout and its label file, the shallowest below `root`; two folders with one are an error."""
    for depth in range(SEARCH_DEPTH + 1):
        found = [
            (layout, path)
            for layout, (name, _) in LAYOUTS.items()
            for path in sorted(root.glob("*/" * depth + name))
            if path.is_file()
        ]
        if len({path.parent for _, path in found}) > 1:
            names = ", ".join(str(path) for _, path in found)
            raise DataError(f"{root}: {len(found)} label files: {names}; point --data at one")
        if found:
            return found[0]
    names = " or ".join(name for name, _ in LAYOUTS.values())
    raise MissingInputError(
        f"{root}: no {names} here or {SEARCH_DEPTH} folders deep; get it at {Covid.home}"
    )


def _read_table(path: Path, home: str) -> pd.DataFrame:
    """The rows as text by our names, with `image_id`: where the file lies beside the table."""
    raw = read_csv(path)
    raw.columns = pd.Index([str(name).casefold() for name in raw.columns])
    if twice := sorted(set(raw.columns[raw.columns.duplicated()])):
        raise DataError(f"{path}: the columns {twice} stand twice but for case; keep one of each")
    rows = pd.DataFrame({ours: raw[need_column(raw, path, *c)] for ours, c in COLUMNS.items()})
    for ours, names in OPTIONAL.items():
        found = next((name for name in names if name in raw.columns), None)
        rows[ours] = "" if found is None else raw[found]
    for column in rows.columns:
        rows[column] = rows[column].str.strip()
    folder = rows["folder"].where(rows["folder"] != "", home)
    joined = folder.where(folder == "", folder + "/") + rows["file"]
    rows["image_id"] = [unicodedata.normalize("NFC", name) for name in joined]
    top = path.parent.resolve()
    for line, name, patient in zip(rows.index, rows["image_id"], rows["patient_id"], strict=True):
        where = f"{path}: {at(rows, line)}"
        if has_control(name):
            raise DataError(f"{where}: file {name!r} holds control characters; rename it")
        if why := unsafe(name, top):
            raise DataError(f"{where}: file {name!r} {why}")
        if not patient or has_control(patient):
            raise DataError(
                f"{where}: patient {patient!r} is blank or holds control characters; give each an id"
            )
    return rows


def _why_not(row: Any, wanted: str) -> str:
    """The reason in LEFT_OUT why a row is not used; empty when it is."""
    view, modality, name = row.view.casefold(), row.modality.casefold(), row.image_id.lower()
    frontal = FRONTAL.match(view)
    volume = name.startswith("volumes/") or name.endswith((".nii", ".nii.gz"))
    if volume or modality in TOMOGRAPHY or view in TOMOGRAPHY:
        return "ct"
    if modality and modality not in FILM:
        return "other_modality"
    if not modality and not frontal and view not in LATERAL:
        return "unknown_modality"
    if wanted != "all" and not view:
        return "unknown_view"
    if wanted != "all" and not (frontal and wanted in ("frontal", frontal[1])):
        return "other_view"
    if not row.file:
        return "no_file_name"
    return "" if name.endswith(SUFFIXES) else "not_png_or_jpeg"


def _select(
    rows: pd.DataFrame, table: Path, params: CovidParams
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The films of the wanted view with the task's label, one row an image; the others by reason."""
    why = pd.Series([_why_not(row, params.view) for row in rows.itertuples()], rows.index)
    films = rows[why == ""]
    counts = Counter(why[why != ""])
    if films.empty:
        raise DataError(
            f"{table}: none of its {len(rows):,} rows is a film of the wanted view: {dict(counts)}; "
            f"data.view is {params.view!r}"
        )
    marks: dict[str, float] = {}
    for line, text in films["finding"].drop_duplicates().items():
        try:
            marks[text] = label_of(params.task, text)
        except ValueError as error:
            raise DataError(f"{table}: {at(rows, line)}: finding: {error}; keep one") from None
    films = films.assign(**{params.task: films["finding"].map(marks).astype(np.float32)})
    kept = films.drop_duplicates(["image_id", "patient_id", params.task])
    clash = kept[kept["image_id"].duplicated(keep=False)]
    if len(clash):
        name = clash["image_id"].iloc[0]
        lines = some([str(line) for line in clash.index[clash["image_id"] == name]])
        raise DataError(
            f"{table}: {clash['image_id'].nunique()} images stand twice with another patient or label, "
            f"such as {name} in lines {lines}; keep the row that is right"
        )
    counts["repeated"] = len(films) - len(kept)
    return kept, {reason: counts[reason] for reason in LEFT_OUT if counts[reason]}


def _with_attributes(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The rows with numbers for age and offset, and the cells that are none, by column."""
    unreadable: dict[str, list[str]] = {}
    out = rows.rename(columns={"view": "view_position"})
    for column in ("age", "offset_days"):
        numbers = pd.to_numeric(rows[column], errors="coerce").astype(float)
        out[column] = numbers.where(np.isfinite(numbers))
        if odd := sorted(set(rows[column][out[column].isna() & (rows[column] != "")])):
            unreadable[column] = odd[:EXAMPLES]
    out["sex"] = [SEXES.get(text.casefold(), "") for text in rows["sex"]]
    out["licence"] = rows["licence"].where(rows["licence"] != "", NO_LICENCE)
    unused = ["file", "folder", "modality", *(["group_id"] if not any(rows["group_id"]) else [])]
    return out.drop(columns=unused), unreadable


def _files(base: Path) -> dict[str, str]:
    """The image files below a folder by their names in composed unicode."""
    files: dict[str, str] = {}
    for path, _ in scan_files(base, SUFFIXES):
        first = files.setdefault(unicodedata.normalize("NFC", path), path)
        if first != path:
            raise DataError(f"{base}: {first!r} and {path!r} are one name in unicode; keep one")
    return files


def _located(rows: pd.DataFrame, files: dict[str, str], table: Path) -> pd.Series:
    """Each film's path beside the table, NaN where it is missing."""
    base = table.parent
    paths = rows["image_id"].map(files)
    if paths.isna().all():
        raise MissingInputError(
            f"{table}: none of its {len(rows):,} films lies below {base}, such as "
            f"{some(rows['image_id'], 2)}; get the images at {Covid.home}"
        )
    top = base.resolve()
    for path in paths.dropna():  # of another spelling in unicode than the name that was checked
        if why := unsafe(path, top):
            raise DataError(f"{table}: file {path!r} {why}")
    return paths


def _unnamed(files: Iterable[str], named: set[str]) -> int:
    """Files in the folders that the table names, without a row."""
    folders = {name.rpartition("/")[0] for name in named}
    return sum(f not in named and f.rpartition("/")[0] in folders for f in files)


def _counts(words: pd.Series) -> dict[str, int]:
    return {str(word) or BLANK: int(n) for word, n in words.value_counts().sort_index().items()}


def _strata(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    columns = [c for c in ("patient_id", "group_id") if c in rows.columns]
    return rows[columns].assign(**{task: (rows[task] == 1).astype(np.int64)}).reset_index(drop=True)


def _finding_problems(index: Index) -> list[Problem]:
    """Findings without a label: those that leave it open, and those that are not known here."""
    problems = []
    unknown: dict[str, int] = index.notes["findings_unknown"]
    open_ = {text: n for text, n in unknown.items() if is_unsaid(text.removesuffix(BLANK))}
    if open_:
        what = "films whose finding leaves the label open are unknown"
        problems.append(Problem("info", what, _tell(open_), sum(open_.values())))
    if strange := {text: n for text, n in unknown.items() if text not in open_}:
        what = "films of a finding that is not known here are unknown"
        problems.append(Problem("warning", what, _tell(strange), sum(strange.values())))
    return problems


def _tell(counts: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"{word}: {count:,}" for word, count in counts.items())


def _rarities(index: Index) -> list[Problem]:
    counts = {word: int((index.targets == value).sum()) for word, value in VALUES.items()}
    what = f"films of {index.labels[0]}: fewer than {FEW}, so scores are coarse"
    return [Problem("warning", f"{word} {what}", count=n) for word, n in counts.items() if n < FEW]
