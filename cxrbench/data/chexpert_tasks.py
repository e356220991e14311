"""What CheXpert's label files are read for: the options, the tasks' labels, and what cv5 balances."""

from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import model_validator

from cxrbench.data.chexpert_labels import COMPETITION, FINDINGS, LABELS, NO_FINDING
from cxrbench.data.index import SOFT
from cxrbench.data.uncertainty import UNCERTAIN, Floats, UncertainLabels

Flags = npt.NDArray[np.bool_]
ABNORMAL = "abnormal"


class ChexpertParams(UncertainLabels):
    """Which labels, of which views, and what -1 and blanks mean.

    `findings` are all 14 labels or the five of the competition, by default of frontal views. `abnormal` is
    normal against abnormal by any of 12 findings (support devices do not count), by default of PA views
    (Rocha et al., CBMS 2022). LL and RL are frontal views that are neither AP nor PA.
    `*_csv` name label files that are not found by themselves.
    """

    names: ClassVar[tuple[str, ...]] = LABELS

    task: Literal["findings", "abnormal"] = "findings"
    labels: Literal["all", "competition"] | None = None
    view: Literal["frontal", "pa", "ap", "lateral", "all"] | None = None
    train_csv: str | None = None
    valid_csv: str | None = None
    test_csv: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        """Defaults that follow from the task are filled in, so that the record says them."""
        if not isinstance(given, dict):
            return given
        abnormal = given.get("task") == ABNORMAL
        filled = dict(given)
        if filled.get("view") is None:
            filled["view"] = "pa" if abnormal else "frontal"
        if filled.get("labels") is None and not abnormal:
            filled["labels"] = "all"
        return filled

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        if self.task == ABNORMAL and self.labels is not None:
            raise ValueError("labels: the task abnormal has one label; leave it out")
        if self.task == ABNORMAL and (self.blank != "zeros" or self.blanks):
            raise ValueError(
                "blank, blanks: a blank is no finding in the task abnormal; leave them out"
            )
        used = self.used()
        if idle := sorted({*self.uncertain, *self.blanks} - set(used)):
            raise ValueError(f"uncertain, blanks: {idle[0]!r} has no part in the task")
        return self

    def used(self) -> tuple[str, ...]:
        """The columns of the label file whose -1 and blanks the policy decides."""
        if self.task == ABNORMAL:
            return FINDINGS
        return COMPETITION if self.labels == "competition" else LABELS


def in_view(rows: pd.DataFrame, params: ChexpertParams) -> Flags:
    """Which rows are of the view; where the label file does not tell AP from PA, neither."""
    if params.view in ("pa", "ap"):
        return np.asarray(rows["view_position"] == params.view.upper(), dtype=np.bool_)
    lateral: Flags = rows["lateral"].to_numpy(dtype=np.bool_)
    if params.view == "all":
        return np.ones(len(rows), np.bool_)
    return lateral if params.view == "lateral" else ~lateral


def _marks(rows: pd.DataFrame, labels: tuple[str, ...]) -> Floats:
    """[N, K] of 1, 0, -1, NaN."""
    return rows[list(labels)].to_numpy(dtype=np.float32)


def neither(rows: pd.DataFrame) -> Flags:
    """Rows with neither No Finding nor a finding that is 1 or -1."""
    marked = (np.abs(_marks(rows, FINDINGS)) == 1).any(axis=1)
    return np.asarray(~marked & (rows[NO_FINDING] != 1), dtype=np.bool_)


def findings(rows: pd.DataFrame, params: ChexpertParams) -> pd.DataFrame:
    """A column each label, and one of soft values for those that are smoothed."""
    ids = rows["image_id"].to_numpy(dtype=object)
    columns: dict[str, Floats] = {}
    for label in params.used():
        target, soft = params.decide(label, rows[label].to_numpy(dtype=np.float32), ids)
        columns[label] = target
        if soft is not None:
            columns[SOFT + label] = soft
    return pd.DataFrame(columns, index=rows.index)


def abnormal(rows: pd.DataFrame, params: ChexpertParams) -> tuple[pd.DataFrame, Flags]:
    """The label, and which rows have one.

    Abnormal: a finding that is 1, or -1 where the policy makes ones of it. Normal: No Finding, and no
    finding that is 1 or -1. Rows with uncertain findings alone have a soft value where one of them is
    smoothed, else no label.
    """
    marks = _marks(rows, FINDINGS)
    sure, unsure = marks == 1, marks == UNCERTAIN
    treated = np.array([params.treatment(label) for label in FINDINGS])
    positive = (sure | (unsure & (treated == "ones"))).any(axis=1)
    smoothed = ~positive & (unsure & (treated == "smooth")).any(axis=1)
    normal = np.asarray(rows[NO_FINDING] == 1) & ~(sure | unsure).any(axis=1)
    target = np.where(positive, 1.0, np.where(normal, 0.0, np.nan)).astype(np.float32)
    columns = pd.DataFrame({ABNORMAL: target}, index=rows.index)
    if smoothed.any():
        ids = rows["image_id"].to_numpy(dtype=object)
        columns[SOFT + ABNORMAL] = params.draw(ABNORMAL, smoothed, ids)
    return columns, np.asarray(positive | normal | smoothed, dtype=np.bool_)


def all_strata(rows: pd.DataFrame) -> pd.DataFrame | None:
    """What cv5 balances: 1, 0 and -1 of each label in the rows of train; None without any.

    The zeros are there for policies that ignore blanks.
    """
    rows = rows[rows["subset"] == "train"]
    if rows.empty:
        return None
    columns = {
        f"{label} {mark}": (rows[label] == mark).to_numpy(dtype=np.int8)
        for label in LABELS
        for mark in (1, 0, int(UNCERTAIN))
    }
    return pd.DataFrame({"patient_id": rows["patient_id"].to_numpy(), **columns})


def abnormal_strata(rows: pd.DataFrame) -> tuple[pd.DataFrame | None, dict[str, int]]:
    """The same for `abnormal`, with both classes, and the counts of train to hold against the published."""
    rows = rows[(rows["subset"] == "train") & ~neither(rows)]
    strata = all_strata(rows)
    if strata is None:
        return None, {}
    marks = _marks(rows, FINDINGS)
    sure = (marks == 1).any(axis=1)
    ill = (np.abs(marks) == 1).any(axis=1)
    classes = {"normal": ~ill, "certain": sure, "uncertain": ill & ~sure}
    counts = {
        "images": len(rows),
        "normal": int((~ill).sum()),
        "abnormal": int(ill.sum()),
        "certain": int(sure.sum()),
        "patients": rows["patient_id"].nunique(),
    }
    return strata.assign(**{name: held.astype(np.int8) for name, held in classes.items()}), counts
