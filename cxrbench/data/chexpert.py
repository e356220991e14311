"""CheXpert of Stanford (Irvin et al., 2019): 223,414 films to train with, 14 labels from reports, -1 for uncertain."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.data.base import CxrDataset, Problem
from cxrbench.data.chexpert_fake import VARIANTS, write_fake
from cxrbench.data.chexpert_files import SUBSETS, Layout, find_images, find_label_files, survey
from cxrbench.data.chexpert_labels import FINDINGS, LABELS, NO_FINDING, VIEWS, read_rows
from cxrbench.data.chexpert_tasks import (
    ABNORMAL,
    ChexpertParams,
    abnormal,
    abnormal_strata,
    all_strata,
    findings,
    in_view,
    neither,
)
from cxrbench.data.csvfile import some
from cxrbench.data.index import Index
from cxrbench.data.splits import NONE, Split, stratified_folds
from cxrbench.data.stratify import units_of
from cxrbench.data.uncertainty import UNCERTAIN

FINDING = "finding:"  # + label: a column with the mark of the label file: 1, 0, -1, NaN for blank
SALT = "cxrbench-chexpert-val-v1"
VAL_PERCENT = 10
ABSENT = "train/patient64540/study1/view1_frontal.jpg"  # the last row of train.csv
NAMED = 100  # missing images that are kept by name
FEW = 0.1  # a share of negatives below which a label that is ignored where blank says little
# Rows by subset; AP, PA, LL, RL are frontal views.
PUBLISHED: dict[str, dict[str, int]] = {
    "train": {
        **{"images": 223_414, "patients": 64_540, "frontal": 191_027},
        **{"AP": 161_590, "PA": 29_420, "LL": 16, "RL": 1},
    },
    "valid": {"images": 234, "patients": 200, "frontal": 202, "AP": 169, "PA": 33},
    "test": {"images": 668, "patients": 500},
}
# 1 and -1 in train.csv, in the order of LABELS.
POSITIVE = (
    *(22_381, 10_798, 27_000, 105_581, 9_186, 52_246, 14_783, 6_039, 33_376, 19_448, 86_187),
    *(3_523, 9_040, 116_001),
)
UNSURE = (
    *(0, 12_403, 8_087, 5_598, 1_488, 12_984, 27_742, 18_770, 33_739, 3_145, 11_628, 2_653),
    *(642, 1_079),
)
# PA rows of train.csv that the task `abnormal` takes; `certain` are abnormal without any -1.
PUBLISHED_PA = {
    **{"images": 27_648, "normal": 5_499, "abnormal": 22_149, "certain": 19_830},
    "patients": 19_292,
}
_TWINS = "Patients who share an image with one of a part that comes later take no part."
# By split: the subsets that it needs, the parts of subsets (train is cut by hash where it has none), the rule.
RULES: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "cv5": (
        ("train",),
        {},
        "The patients of train.csv, cut into 5 folds by iterative stratification over how often each label "
        "is 1, 0 and -1 in the rows of view and task, whatever the policy and whether the image is there; "
        "ties by SHA-256 of the patient's id. Fold i tests, fold i+1 validates, the others train; valid "
        "and test take no part.",
    ),
    "official": (
        ("train", "valid"),
        {"valid": "test", "test": NONE},
        "valid tests; of the patients of train those validate whose SHA-256 of "
        f"'{SALT}|' and the id is below {VAL_PERCENT} modulo 100; the others train. {_TWINS}",
    ),
    "radiologist": (
        SUBSETS,
        {"train": "train", "valid": "val", "test": "test"},
        f"train trains, valid validates, test tests. {_TWINS}",
    ),
}


class Chexpert(CxrDataset):
    """CheXpert: small, full, the AIMI batches, CheXlocalize, or any part of them."""

    name = "chexpert"
    Params = ChexpertParams
    splits = tuple(RULES)
    home = "https://stanfordmlgroup.github.io/competitions/chexpert/"
    licence = "Stanford's research use agreement: no redistribution, ids must not be published"
    variants = VARIANTS

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        """Images of the view and task that are present, by subset, in the label files' order.

        Extra columns: `subset`, and `finding:<label>` with the marks of the label file.
        """
        assert isinstance(params, ChexpertParams)
        root = cls.require_root(root)
        layout = survey(root)
        files = find_label_files(layout, {s: getattr(params, f"{s}_csv") for s in SUBSETS})
        rows, notes = _read_all(layout, files)
        seen = rows[in_view(rows, params)].reset_index(drop=True)
        untold = int((rows["view_position"] == "").sum()) if params.view in ("pa", "ap") else 0
        out = {"of_another_view": len(rows) - len(seen) - untold, "view_not_told": untold}
        if params.task == ABNORMAL:
            labels: tuple[str, ...] = (ABNORMAL,)
            columns, keep = abnormal(seen, params)
            strata, notes["abnormal"] = abnormal_strata(seen)
            lost = neither(seen)
            out |= {"neither_normal_nor_abnormal": int(lost.sum())}
            out |= {"only_uncertain": int((~keep & ~lost).sum())}
        else:
            labels, columns, strata = params.used(), findings(seen, params), all_strata(seen)
            keep = np.ones(len(seen), np.bool_)
        frame = pd.concat([_described(seen), columns], axis=1)[keep]
        frame, missing = _with_files(frame, layout, files)
        notes = {
            **{"task": params.task, "view": params.view},
            **{"policy": params.resolved(params.used()), "left_out": out},
            **_coverage(frame, missing, notes),
            **notes,
        }
        frame.attrs["missing"] = missing[:NAMED]
        return Index(cls.name, frame, labels, root, notes, tuple(files.values()), strata)

    @classmethod
    def make_split(cls, name: str, index: Index) -> Split:
        """`cv5` over train; `official`: valid tests; `radiologist`: valid validates, CheXlocalize's test tests.

        What a split does not use is left out of it. Ids must not be published, so no split comes with
        cxrbench: rule and label file rebuild it, the same one for every policy and partial download.
        """
        if name not in RULES:
            return super().make_split(name, index)
        needed, roles, rule = RULES[name]
        lacking = [s for s in needed if not (index.frame["subset"] == s).any()]
        if lacking:
            raise MissingInputError(_lacks(index, lacking[0]))
        subset_of = _subsets(index)
        parts = _folds(index, subset_of) if name == "cv5" else _parts(index, subset_of, roles)
        return Split.of(cls.name, name, rule, parts)

    @classmethod
    def check(cls, index: Index) -> list[Problem]:
        """Missing images, odd rows, labels with few negatives, and counts against the published ones."""
        notes = index.notes
        texts = {
            "repeated_rows": "rows of the label files repeat another row",
            "studies_without_image": "studies of a label file by study have no image",
            "patients_without_row": "folders of patients stand in no label file",
            "contradictions": "rows have No Finding and a finding; the finding counts",
        }
        problems = [
            Problem("warning", what, count=notes[k]) for k, what in texts.items() if notes[k]
        ]
        if missing := notes["coverage"]["promised"] - notes["coverage"]["present"]:
            names = tuple(index.frame.attrs.get("missing", ()))
            why = "some copies lack it" if names == (ABSENT,) else "a partial download"
            what = f"images of the label files are missing ({why})"
            problems.append(Problem("warning", what, names, missing))
        if links := notes["links_not_followed"]:
            what = "links that leave the data folder are not followed"
            problems.append(Problem("warning", what, tuple(links)))
        return [*problems, *_few_negatives(index), *_count_problems(notes)]

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """The layouts in miniature; between them they hold every trap of the real label files."""

        def validates(number: int) -> bool:
            return _hashed_part(f"patient{number:05d}") == "val"

        return write_fake(root, images, size, seed, variant, validates)


def _read_all(layout: Layout, files: dict[str, Path]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """All rows of all subsets, with `subset` and `line`; and facts about them."""
    tables = {s: read_rows(path, s, layout).assign(subset=s) for s, path in files.items()}
    rows = pd.concat(tables.values()).reset_index()  # with the column `line`
    owners = rows[["patient_id", "subset"]].drop_duplicates()
    if torn := sorted(set(owners["patient_id"][owners["patient_id"].duplicated()])):
        raise DataError(
            f"{layout.root}: {len(torn):,} patients stand in the label files of two subsets: {some(torn)}; "
            f"the subsets of CheXpert share none: check {some(p.name for p in files.values())}"
        )
    marked = (rows[list(FINDINGS)].abs() == 1).any(axis=1)
    facts = {subset: table.attrs for subset, table in tables.items()}
    notes = {
        "label_files": {subset: path.name for subset, path in files.items()},
        "label_release": _release(tables["train"]) if "train" in tables else "partial",
        "rows": {subset: _counts(table) for subset, table in tables.items()},
        "repeated_rows": sum(fact["repeated"] for fact in facts.values()),
        "studies_without_image": sum(fact["studies_without_image"] for fact in facts.values()),
        "patients_without_row": len(set(layout.holders) - set(owners["patient_id"])),
        "contradictions": int(((rows[NO_FINDING] == 1) & marked).sum()),
        "links_not_followed": layout.not_followed,
    }
    return rows, notes


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    """Rows, patients and views of a subset; views only where the label file tells them."""
    views = rows["view_position"].value_counts()
    found = {
        "images": len(rows),
        "patients": rows["patient_id"].nunique(),
        "frontal": int((~rows["lateral"]).sum()),
    }
    return found | {view: int(views[view]) for view in VIEWS if view in views}


def _release(rows: pd.DataFrame) -> str:
    """Whether train.csv has the published labels; there are others, such as CheXbert's."""
    if len(rows) != PUBLISHED["train"]["images"]:
        return "partial"
    marks = rows[list(LABELS)]
    found = tuple(tuple((marks == mark).sum().tolist()) for mark in (1, UNCERTAIN))
    return "v1.0" if found == (POSITIVE, UNSURE) else "unknown"


def _described(rows: pd.DataFrame) -> pd.DataFrame:
    """What an index says of each image besides its labels."""
    who = rows[["line", "image_id", "patient_id", "subset", "sex", "age", "view_position"]]
    return pd.concat([who, rows[list(LABELS)].add_prefix(FINDING)], axis=1)


def _with_files(
    frame: pd.DataFrame, layout: Layout, files: dict[str, Path]
) -> tuple[pd.DataFrame, list[str]]:
    """The rows whose image is there, with `path`, and the ids of the others."""
    subsets = frame["subset"]
    paths: list[str] = []
    for subset, file in files.items():
        paths += find_images(layout, frame[subsets == subset], file)
    frame = frame.assign(path=paths)
    present = frame["path"] != ""
    if not present.any():
        first = some(frame["image_id"], 1) if len(frame) else "no row of this view and task"
        raise MissingInputError(
            f"{layout.root}: none of the {len(frame):,} images of {some(p.name for p in files.values())} "
            f"is here ({first}); expected folders train/, valid/, test/ or the AIMI batches that hold "
            f"patient00001/ and so on{_unfollowed(layout)}; get them at {Chexpert.home}"
        )
    missing = frame["image_id"][~present].tolist()
    return frame[present].drop(columns="line").reset_index(drop=True), missing


def _unfollowed(layout: Layout) -> str:
    return f" (not followed: {some(layout.not_followed)})" if layout.not_followed else ""


def _coverage(frame: pd.DataFrame, missing: list[str], notes: dict[str, Any]) -> dict[str, Any]:
    """Of the rows selected in the label files, those whose image is there; complete only if those are whole."""
    promised = len(frame) + len(missing) + notes["studies_without_image"]
    whole = all(found["images"] == PUBLISHED[s]["images"] for s, found in notes["rows"].items())
    complete = whole and len(frame) == promised
    return {"coverage": {"present": len(frame), "promised": promised, "complete": complete}}


def _subsets(index: Index) -> pd.Series:
    """The subset of each patient, of those of train also where no image is present."""
    frame = index.frame[["patient_id", "subset"]]
    if index.strata is not None:
        frame = pd.concat([index.strata[["patient_id"]].assign(subset="train"), frame])
    return frame.drop_duplicates("patient_id").set_index("patient_id")["subset"]


def _lacks(index: Index, subset: str) -> str:
    """Why an index has no image of a subset, and the repair."""
    file = index.notes["label_files"].get(subset)
    what = f"{index.root}: no image of the subset {subset}, which the split needs"
    if file is None:
        return f"{what}; add its label file, or say where it is: --set data.{subset}_csv=PATH"
    return (
        f"{what}; {file} has none of the view {index.notes['view']!r}, or its images are missing (a label "
        "file that does not tell AP from PA has rows of the views frontal, lateral and all)"
    )


def _folds(index: Index, subset_of: pd.Series) -> pd.Series:
    """The fold of each patient of train; -1 of the others."""
    cut = stratified_folds(index, folds=5).assignment.set_index("patient_id")["part"]
    others = pd.Series(-1, index=subset_of.index.difference(cut.index))
    folds: pd.Series = pd.concat([cut, others])
    return folds


def _parts(index: Index, subset_of: pd.Series, roles: dict[str, str]) -> pd.Series:
    """The part of each patient; train is cut by hash where it has no role."""
    units = units_of(index.frame).reindex(subset_of.index)
    units = units.where(units.notna(), subset_of.index.to_series())
    parts = subset_of.map(roles)
    parts = parts.where(parts.notna(), units.map(_hashed_part))
    # Joined by an identical image: the part that must stay clean keeps its patients.
    rank = parts.map({NONE: 0, "train": 0, "val": 1, "test": 2})
    return parts.where(rank == rank.groupby(units).transform("max"), NONE)


def _hashed_part(patient: str) -> str:
    number = int.from_bytes(hashlib.sha256(f"{SALT}|{patient}".encode()).digest(), "big")
    return "val" if number % 100 < VAL_PERCENT else "train"


def _few_negatives(index: Index) -> list[Problem]:
    """Labels whose known values are nearly all positive because blanks are ignored."""
    names = []
    for k, label in enumerate(index.labels):
        known = index.targets[:, k][~np.isnan(index.targets[:, k])]
        negatives = int((known == 0).sum())
        ignored = index.notes["policy"]["blank"].get(label) == "ignore"
        if ignored and negatives < FEW * len(known):
            names.append(f"{label} ({negatives:,} of {len(known):,} known)")
    what = "labels have few negatives, since blanks are ignored (data.blank, data.blanks)"
    return [Problem("warning", what, tuple(names))] if names else []


def _count_problems(notes: dict[str, Any]) -> list[Problem]:
    """Rows of the label files against the published ones: fewer are a part, more are another file."""
    problems: list[Problem] = []
    for subset, found in notes["rows"].items():
        published, file = PUBLISHED[subset], notes["label_files"][subset]
        more = found["images"] - published["images"]
        if more:
            text = f"{found['images']:,} rows in {file}, published {published['images']:,}"
            problems.append(Problem("error" if more > 0 else "warning", text, count=abs(more)))
            continue
        for what, want in published.items():
            # CheXlocalize's files do not tell AP from PA.
            have = found.get(what, want)
            if have != want:
                text = f"{have:,} {what} in {file}, published {want:,}"
                problems.append(Problem("error", text, count=abs(have - want)))
    if notes["label_release"] == "unknown":
        what = "the labels of train.csv are not the published ones (another labeller's?)"
        problems.append(Problem("error", what, count=1))
    elif notes["label_release"] == "v1.0" and notes["task"] == ABNORMAL and notes["view"] == "pa":
        found = notes["abnormal"]
        problems += [
            Problem("error", f"{found[what]:,} {what} of the task, expected {want:,}", count=1)
            for what, want in PUBLISHED_PA.items()
            if found[what] != want
        ]
        what = (
            "the paper has 27,654 images (5,508 normal): another version of the file, by 6 images"
        )
        problems.append(Problem("info", what, count=6))
    return problems
