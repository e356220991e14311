"""Cutting patients into parts so that each part gets its share of images and of every label.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011) with whole patients instead of single
images: the label with the fewest patients left is shared out first, its largest patients first.
"""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxrbench.core.seed import derive_seed

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def share_out(counts: Ints, wanted: Floats, order: Ints) -> Ints:
    """The part [U] of each unit, given what units hold [U, C] and what parts want [P, C].

    The last column counts images and is shared out last; `order` [U] settles equal sizes.
    """
    images = counts.shape[1] - 1
    held = counts.tolist()
    remaining = wanted.tolist()
    part = np.full(len(counts), -1, dtype=np.int64)
    while (part < 0).any():
        left = (counts[part < 0] > 0).sum(axis=0)
        labels = [column for column in range(images) if left[column]]
        column = min(labels, key=lambda c: int(left[c])) if labels else images
        rows = np.flatnonzero((part < 0) & (counts[:, column] > 0))
        for row in rows[np.lexsort((order[rows], -counts[rows, column]))]:
            chosen = _neediest(remaining, wanted, column, held[row])
            part[row] = chosen
            for c, amount in enumerate(held[row]):
                remaining[chosen][c] -= amount
    return part


def _neediest(remaining: list[list[float]], wanted: Floats, column: int, unit: list[int]) -> int:
    """The part that lacks most of its share, among those into which the unit's images fit.

    Shares are compared relative to what a part wants, so that small parts, too, get large patients; a
    single image fits wherever anything is lacking, so that small parts, too, get rare labels.
    """

    def fits(part: int) -> bool:
        return all(math.ceil(remaining[part][c] - 1e-9) >= unit[c] for c in (column, -1))

    fitting = [part for part in range(len(remaining)) if fits(part)]

    def lack(part: int) -> tuple[float, float]:
        need = remaining[part][column]
        if fitting:
            need /= max(float(wanted[part, column]), 1e-9)
        return round(need, 9), round(remaining[part][-1], 9)

    return max(fitting or range(len(remaining)), key=lack)


def units_of(frame: pd.DataFrame) -> pd.Series:
    """The unit of each patient (indexed by sorted patient id): patients that share a `group_id` are one.

    A unit is named by its smallest patient id. Blank groups join nobody.
    """
    patients = sorted(frame["patient_id"].unique())
    parent = {patient: patient for patient in patients}

    def find(patient: str) -> str:
        while parent[patient] != patient:
            parent[patient] = parent[parent[patient]]
            patient = parent[patient]
        return patient

    if "group_id" in frame.columns:
        grouped = frame[frame["group_id"].notna() & (frame["group_id"] != "")]
        for _, members in grouped.groupby("group_id")["patient_id"]:
            roots = sorted({find(patient) for patient in members})
            for other in roots[1:]:
                parent[other] = roots[0]
    return pd.Series({patient: find(patient) for patient in patients}, dtype=object)


def hash_order(units: pd.Index, seed: int, *names: str) -> Ints:
    """A seeded order [U] of units that depends on nothing but their names."""
    return np.array([derive_seed(seed, *names, unit) for unit in units], dtype=np.int64)
