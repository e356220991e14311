"""The NIH's text files of ChestX-ray14: labels in either release, official lists, boxes of findings."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxrbench.core.errors import DataError
from cxrbench.core.nearest import nearest
from cxrbench.data.csvfile import at, need_column, read_csv, read_names, some

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
NO_FINDING = "No Finding"
IMAGES, PATIENTS = 112_120, 30_805
# Rows without a finding tell the two releases of the labels apart.
RELEASES = {60_361: "v2020", 60_412: "2017"}
# Positive images by release; the 2017 release differs in 181 images.
POSITIVES = {
    release: dict(zip(LABELS, counts, strict=True))
    for release, counts in (
        (
            "v2020",
            (11559, 2776, 13317, 19894, 5782, 6331, 1431, 5302, 4667, 2303, 2516, 1686, 3385, 227),
        ),
        (
            "2017",
            (11535, 2772, 13307, 19870, 5746, 6323, 1353, 5298, 4667, 2303, 2516, 1686, 3385, 227),
        ),
    )
}
CSV_NAMES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = {"test": "test_list.txt", "train_val": "train_val_list.txt"}
LISTED = {"test": 25_596, "train_val": 86_524}
IMAGE_NAME = re.compile(r"(\d{8})_\d{3}\.png")
BOXES_NAME = "BBox_List_2017.csv"
BOX_SPACE = 1024  # boxes are in the pixels of films of this side
BOXES = {
    **{"Atelectasis": 180, "Cardiomegaly": 146, "Effusion": 153, "Infiltration": 123},
    **{"Mass": 85, "Nodule": 79, "Pneumonia": 120, "Pneumothorax": 98},
}
BOXED_IMAGES, BOXED_PATIENTS = 880, 726


def read_labels(path: Path) -> pd.DataFrame:
    """The label file as image_id, patient_id, 14 labels (1.0 or 0.0), sex, age, view_position.

    Copes with both releases and their repackagings. `attrs["repeated"]` counts the rows left out
    because they repeat another. DataError names the line.
    """
    raw = read_csv(path, split_brackets=True)
    columns = {
        "image_id": need_column(raw, path, "Image Index"),
        "findings": need_column(raw, path, "Finding Labels"),
        "patient": need_column(raw, path, "Patient ID"),
        "age": need_column(raw, path, "Patient Age"),
        "sex": need_column(raw, path, "Patient Gender", "Patient Sex"),
        "view_position": need_column(raw, path, "View Position"),
    }
    frame = raw[list(columns.values())].set_axis(list(columns), axis=1)
    table = {
        text: _marks(f"{path}: {at(frame, line)}", text)
        for line, text in frame["findings"].drop_duplicates().items()
    }
    marks = np.array([table[text] for text in frame["findings"]], dtype=np.float32)
    labels = pd.DataFrame(marks, columns=list(LABELS), index=frame.index)
    ids = frame[["image_id"]].assign(patient_id=_patient_ids(frame, path))
    out = pd.concat([ids, labels, frame[["sex"]]], axis=1)
    out = out.assign(age=_ages(frame, path), view_position=frame["view_position"])
    kept = _each_once(out, path).reset_index(drop=True)
    kept.attrs["repeated"] = len(out) - len(kept)
    return kept


def _each_once(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """One row an image; rows of one image that differ are an error."""
    twice = frame["image_id"].duplicated(keep=False)
    if not twice.any():
        return frame
    kept = frame.drop_duplicates()
    clash = kept[kept["image_id"].duplicated(keep=False)]
    if len(clash):
        name = clash["image_id"].iloc[0]
        lines = some([str(line) for line in clash.index[clash["image_id"] == name]])
        raise DataError(f"{path}: {name} stands twice with different contents, lines {lines}")
    return kept


def _patient_ids(frame: pd.DataFrame, path: Path) -> list[str]:
    """Eight digits from the file name, checked against the file's own number."""
    found = []
    for line, name, patient in zip(frame.index, frame["image_id"], frame["patient"], strict=True):
        match = IMAGE_NAME.fullmatch(name)
        number = patient.strip().removesuffix(".0").lstrip("0")
        if not match or match[1].lstrip("0") != number:
            raise DataError(
                f"{path}: {at(frame, line)}: image {name!r} of patient {patient!r}; expected a "
                "name like 00000001_000.png that begins with the patient's number"
            )
        found.append(match[1])
    return found


def _ages(frame: pd.DataFrame, path: Path) -> "pd.Series[float]":
    """Years; repackaged files also have 058Y, 011M and 013D."""
    years: dict[str, float] = {}
    for line, text in frame["age"].drop_duplicates().items():
        match = re.fullmatch(r"(\d{1,4})(?:\.0)?([YMD]?)", text)
        if not match and text:
            raise DataError(f"{path}: {at(frame, line)}: Patient Age {text!r} is no age")
        unit = {"Y": 1, "M": 12, "D": 365, "": 1}
        years[text] = float(int(match[1]) // unit[match[2]]) if match else np.nan
    return frame["age"].map(years).astype(float)


def _marks(where: str, text: str) -> list[float]:
    """14 marks of a text such as "Mass|Nodule"."""
    findings = text.split("|")
    for finding in findings:
        if finding not in LABELS and finding != NO_FINDING:
            hint = nearest(finding, (*LABELS, NO_FINDING))
            raise DataError(f"{where}: Finding Labels: unknown {finding!r}; {hint}")
    if NO_FINDING in findings and len(findings) > 1:
        raise DataError(f"{where}: Finding Labels: {NO_FINDING!r} with a finding: {text!r}")
    return [float(label in findings) for label in LABELS]


def label_facts(frame: pd.DataFrame) -> dict[str, Any]:
    """What a label file holds, whatever images are present: rows, patients, positives, release.

    `label_release` is "v2020", "2017", "unknown", or "partial" for fewer rows than were published.
    """
    marks = frame[list(LABELS)].to_numpy()
    healthy = int((marks == 0).all(axis=1).sum())
    release = "partial" if len(frame) < IMAGES else RELEASES.get(healthy, "unknown")
    return {
        "label_release": release,
        "label_rows": len(frame),
        "label_patients": int(frame["patient_id"].nunique()),
        "rows_without_finding": healthy,
        "label_positives": dict(zip(LABELS, marks.sum(axis=0).astype(int).tolist(), strict=True)),
    }


def read_boxes(path: Path) -> pd.DataFrame:
    """The NIH's boxes of findings: image_id, finding (one of LABELS), x, y, w, h (float).

    From the left top corner, in pixels of the 1024 x 1024 films (BOX_SPACE); a row a box. The list has 984
    boxes, of eight findings, all of them on images of the official test part. DataError names the line.
    """
    raw = read_csv(path, split_brackets=True)
    image, finding = (need_column(raw, path, name) for name in ("Image Index", "Finding Label"))
    sides = [str(name) for name in raw.columns if name not in (image, finding)][:4]
    if [re.sub(r"(?i)bbox|[\s\[\]]", "", name) for name in sides] != list("xywh"):
        raise DataError(f"{path}: columns {sides}; expected Bbox [x,y,w,h]")
    # The list alone writes Infiltrate for what the label file calls Infiltration.
    findings = raw[finding].replace({"Infiltrate": "Infiltration"})
    _refuse(
        raw[image],
        ~raw[image].map(lambda name: bool(IMAGE_NAME.fullmatch(name))),
        path,
        "is no image like 00000001_000.png",
    )
    unknown = raw[finding][~findings.isin(LABELS)]
    if len(unknown):
        hint = nearest(unknown.iloc[0], LABELS)
        raise DataError(
            f"{path}: {at(raw, unknown.index[0])}: unknown finding {unknown.iloc[0]!r}; {hint}"
        )
    boxes = pd.DataFrame({"image_id": raw[image], "finding": findings})
    for side, name in zip("xywh", sides, strict=True):
        boxes[side] = pd.to_numeric(raw[name], errors="coerce").astype(float)
        _refuse(raw[name], ~np.isfinite(boxes[side]), path, f"is no number ({side})")
    outside = (boxes[["x", "y"]] < 0).any(axis=1) | (boxes[["w", "h"]] <= 0).any(axis=1)
    for start, length in (("x", "w"), ("y", "h")):
        outside |= boxes[start] + boxes[length] > BOX_SPACE
    _refuse(raw[image], outside, path, f"has a box outside the film of {BOX_SPACE} px")
    return boxes.reset_index(drop=True)


def _refuse(cells: pd.Series, wrong: "pd.Series[bool]", path: Path, why: str) -> None:
    if wrong.any():
        line = cells.index[wrong.to_numpy()][0]
        raise DataError(
            f"{path}: line {line}: {cells[line]!r} {why} ({int(wrong.sum())} such rows)"
        )


def search(folder: Path, names: Iterable[str], depth: int) -> Path | None:
    """The first file with one of the names, packed or not; earlier names and shallower folders first."""
    variants = [variant for name in names for variant in (name, f"{name}.gz")]
    for name in variants:
        for level in range(depth + 1):
            if found := sorted(p for p in folder.glob("*/" * level + name) if p.is_file()):
                return found[0]
    return None


def read_lists(root: Path, depth: int) -> dict[str, list[str]]:
    """Image names by "test" and "train_val", as far as the lists are found below `root`."""
    found = {part: search(root, (name,), depth) for part, name in LISTS.items()}
    return {part: read_names(path) for part, path in found.items() if path}


def listed_parts(
    root: Path, lists: dict[str, list[str]], images: npt.NDArray[np.object_]
) -> npt.NDArray[np.object_]:
    """[N] of "test" or "train_val" of each image; DataError for lists that leave it open."""
    part_of = {name: part for part, names in lists.items() for name in names}
    if both := set(lists["test"]) & set(lists["train_val"]):
        raise DataError(f"{root}: in both of the NIH's lists: {some(sorted(both))}")
    if absent := [name for name in images if name not in part_of]:
        raise DataError(f"{root}: in neither of the NIH's lists: {some(absent)}")
    parts = np.array([part_of[name] for name in images], dtype=object)
    patients = np.array([name[:8] for name in images], dtype=object)
    torn = set(patients[parts == "test"]) & set(patients[parts == "train_val"])
    if torn:
        raise DataError(f"{root}: patients in both of the NIH's lists: {some(sorted(torn))}")
    return parts
