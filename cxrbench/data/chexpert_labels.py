"""The rows of CheXpert's label files: by image or by study, columns in any order, names with _ or blanks."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxrbench.core.errors import DataError
from cxrbench.data.chexpert_files import Layout, images_of_study
from cxrbench.data.csvfile import need_column, read_csv, some
from cxrbench.data.uncertainty import UNCERTAIN

_T = TypeVar("_T")

NO_FINDING, SUPPORT_DEVICES = "No Finding", "Support Devices"
FINDINGS = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture"),
)
LABELS = (NO_FINDING, *FINDINGS, SUPPORT_DEVICES)
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
VIEWS = ("AP", "PA", "LL", "RL")
LATERAL = "lateral"
MARKS = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": UNCERTAIN, "-1.0": UNCERTAIN, "": np.nan}
SEXES = {"Male": "M", "Female": "F", "Unknown": "", "": ""}
FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
# Folders before that of the subset are a copy's own, and are not followed.
_PREFIX = r"(?![A-Za-z]:)(?:(?:[^/\\\x00-\x1f][^\\\x00-\x1f]*/)??(train|valid|val|test)/)?"
_STUDY = _PREFIX + r"(patient\d{5,})/(study\d+)"
_VIEW = r"(view\d+_(frontal|lateral)\.(?:jpe?g|png))"
STUDY, VIEW, IMAGE = re.compile(f"{_STUDY}/?"), re.compile(_VIEW), re.compile(f"{_STUDY}/{_VIEW}")


def read_rows(path: Path, subset: str, layout: Layout) -> pd.DataFrame:
    """The rows of a subset, indexed by line: one an image, in the file's order.

    Columns: `image_id` (`train/patient00001/study1/view1_frontal.jpg`, in every layout), `patient_id`,
    `lateral` (bool), `sex`, `age`, `view_position`, and LABELS as 1, 0, -1, NaN (float32). A file by
    study is laid over the images that the study's folder holds: the labels of a study are those of
    its images (the 187,641 studies of train.csv have no exception). `attrs` tells
    `studies_without_image` and `repeated` rows. DataError names file, line and repair.
    """
    raw = read_csv(path)
    column = need_column(raw, path, "Path", "Study")
    lacking = 0
    if column == "Path":
        parts = _images(raw["Path"], path, subset)
    else:
        parts, lacking = _studies(raw["Study"], path, subset, layout)
        raw = raw.loc[parts.index]
    lateral = parts["lateral"].to_numpy(dtype=bool)
    columns = {
        **{name: parts[name] for name in ("image_id", "patient_id", "lateral")},
        "sex": _sexes(raw, path),
        "age": _ages(raw, path),
        "view_position": _views(raw, lateral, path),
        **{label: _marks(raw, label, path) for label in LABELS},
    }
    rows = pd.DataFrame(columns)
    kept = _without_repeats(rows, path)
    kept.attrs = {"studies_without_image": lacking, "repeated": len(rows) - len(kept)}
    return kept


def _images(cells: pd.Series, path: Path, subset: str) -> pd.DataFrame:
    """patient_id, image_id and lateral of paths of images."""
    rows = [
        (patient, f"{subset}/{patient}/{study}/{name}", kind == LATERAL)
        for _, patient, study, name, kind in _matches(cells, IMAGE, path, subset)
    ]
    return pd.DataFrame(rows, columns=["patient_id", "image_id", "lateral"], index=cells.index)


def _studies(cells: pd.Series, path: Path, subset: str, layout: Layout) -> tuple[pd.DataFrame, int]:
    """As `_images`, of all images in the folders of studies, and how many studies have none."""
    rows, lines, lacking = [], [], 0
    matches = _matches(cells, STUDY, path, subset)
    for line, (_, patient, study) in zip(cells.index, matches, strict=True):
        study_id = f"{subset}/{patient}/{study}"
        views = [m for n in images_of_study(layout, study_id, path) if (m := VIEW.fullmatch(n))]
        lacking += not views
        lines += [line] * len(views)
        rows += [(patient, f"{study_id}/{view[1]}", view[2] == LATERAL) for view in views]
    index = pd.Index(lines, name=cells.index.name, dtype=cells.index.dtype)
    return pd.DataFrame(rows, columns=["patient_id", "image_id", "lateral"], index=index), lacking


def _matches(
    cells: pd.Series, pattern: re.Pattern[str], path: Path, subset: str
) -> list[tuple[str, ...]]:
    """The parts of each path; DataError for the first that is not followed, and why."""

    def fit(text: str) -> tuple[str, ...] | None:
        match = pattern.fullmatch(text)
        if match is None or ".." in text or FOLDERS.get(match[1], subset) != subset:
            return None
        return match.groups()

    found = [fit(text) for text in cells]
    wrong = [row for row, parts in enumerate(found) if parts is None]
    if wrong:
        text = str(cells.iloc[wrong[0]])
        raise DataError(
            f"{path}: line {cells.index[wrong[0]]}: {cells.name} {text!r} "
            f"{_why(text, pattern, subset)} ({len(wrong):,} such rows)"
        )
    return [parts for parts in found if parts is not None]


def _why(text: str, pattern: re.Pattern[str], subset: str) -> str:
    """Why a path of a label file is not followed, and the repair."""
    if "\\" in text:
        return "holds a backslash; write it with /"
    if text.startswith("/") or text[1:2] == ":":
        return "is absolute; begin it with CheXpert-v1.0/ or with the subset's folder"
    if ".." in text:
        return "holds '..'; write it relative to the data folder"
    if pattern.fullmatch(text):
        return f"is of another subset, but the file is that of {subset}; give it its own file"
    example = "patient00001/study1" + ("/view1_frontal.jpg" if pattern is IMAGE else "")
    return f"is not like {subset}/{example}"


def _marks(raw: pd.DataFrame, label: str, path: Path) -> npt.NDArray[np.float32]:
    """1, 0, -1 and NaN for blank [N]."""
    cells = raw[need_column(raw, path, label, label.replace(" ", "_"))]
    return np.array(_values(cells, path, MARKS, "1, 0, -1 or blank"), dtype=np.float32)


def _sexes(raw: pd.DataFrame, path: Path) -> pd.Series:
    """M, F, or blank where it is unknown or the file does not tell."""
    if "Sex" not in raw.columns:
        return pd.Series("", index=raw.index)
    texts = _values(raw["Sex"], path, SEXES, "Male, Female, Unknown or blank")
    return pd.Series(texts, index=raw.index, dtype=object)


def _ages(raw: pd.DataFrame, path: Path) -> pd.Series:
    """Years, NaN where the file does not tell."""
    if "Age" not in raw.columns:
        return pd.Series(np.nan, index=raw.index)
    years = {str(n): float(n) for n in range(121)} | {f"{n}.0": float(n) for n in range(121)}
    numbers = _values(raw["Age"], path, {**years, "": np.nan}, "an age in years")
    return pd.Series(numbers, index=raw.index, dtype=float)


def _views(raw: pd.DataFrame, lateral: npt.NDArray[np.bool_], path: Path) -> pd.Series:
    """AP, PA, LL, RL, "lateral", or blank where the file does not tell; checked against the file names."""
    if "Frontal/Lateral" in raw.columns:
        cells = raw["Frontal/Lateral"]
        kinds = {"Frontal": False, "Lateral": True}
        told = _values(cells, path, {**kinds, "": None}, "Frontal, Lateral or blank")
        pairs = zip(raw.index, told, lateral, strict=True)
        clash = [line for line, one, other in pairs if one is not None and one != other]
        if clash:
            raise DataError(
                f"{path}: line {clash[0]}: Frontal/Lateral contradicts the image's name "
                f"({len(clash):,} such rows)"
            )
    if "AP/PA" in raw.columns:
        known = {view: view for view in (*VIEWS, "")}
        views = _values(raw["AP/PA"], path, known, "AP, PA, LL or RL")
    else:
        views = [""] * len(raw)
    return pd.Series(np.where(lateral, LATERAL, np.array(views, object)), raw.index, dtype=object)


def _values(cells: pd.Series, path: Path, known: Mapping[str, _T], expected: str) -> list[_T]:
    """What the texts of a column stand for; DataError for one that is not known."""
    texts = cells.to_list()
    table = {text: known[text.strip()] for text in set(texts) if text.strip() in known}
    wrong = [row for row, text in enumerate(texts) if text not in table]
    if wrong:
        raise DataError(
            f"{path}: line {cells.index[wrong[0]]}: column {cells.name!r}: {texts[wrong[0]]!r} is not "
            f"{expected} ({len(wrong):,} such cells)"
        )
    return [table[text] for text in texts]


def _without_repeats(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Rows that repeat another are dropped; one image with two contents is an error."""
    if not rows["image_id"].duplicated().any():
        return rows
    kept = rows[~rows.duplicated()]
    clash = kept[kept["image_id"].duplicated(keep=False)]
    if len(clash):
        name = clash["image_id"].iloc[0]
        lines = some([str(line) for line in clash.index[clash["image_id"] == name]])
        raise DataError(f"{path}: {name} stands twice with different contents, lines {lines}")
    return kept
