"""AUC by sex, age band and view position: the gap and the worst group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrbench.core.columns import ATTRIBUTES
from cxrbench.leaderboard.site.curves import FEWEST, auc_of
from cxrbench.leaderboard.site.predictions import Part

AGES = ((0, 18), (18, 40), (40, 60), (60, 80), (80, 200))  # years: from, to below


@dataclass(frozen=True)
class Group:
    """The images of one group, and the macro AUC on them."""

    name: str
    images: int
    patients: int
    auc: float


@dataclass(frozen=True)
class Split:
    """The groups of one attribute, on the labels that all of them have."""

    attribute: str
    groups: list[Group]
    labels: list[str]
    left_out: list[str]  # groups with too few images of any label

    @property
    def gap(self) -> float:
        """Largest AUC minus smallest."""
        values = [group.auc for group in self.groups]
        return max(values) - min(values)

    @property
    def worst(self) -> Group:
        """The group with the smallest AUC."""
        return min(self.groups, key=lambda group: group.auc)


def splits(folds: Sequence[Part]) -> list[Split]:
    """One entry an attribute that the predictions carry and that has at least two groups.

    An AUC is the mean over the folds in which the group has at least FEWEST images of each class; the macro mean
    is over the labels that every group has.
    """
    found = []
    for attribute in ATTRIBUTES:
        if all(attribute in fold.attributes for fold in folds):
            split = _split(folds, attribute)
            if split is not None:
                found.append(split)
    return found


def _split(folds: Sequence[Part], attribute: str) -> Split | None:
    members = [_members(fold.attributes[attribute], attribute) for fold in folds]
    names = sorted({name for groups in members for name in groups})
    scores = {name: _by_label(folds, members, name) for name in names}
    kept = [name for name in names if scores[name]]
    shared = [
        label for label in folds[0].labels if kept and all(label in scores[name] for name in kept)
    ]
    if len(kept) < 2 or not shared:
        return None
    groups = []
    for name in kept:
        rows = [groups.get(name) for groups in members]
        images = sum(int(each.sum()) for each in rows if each is not None)
        patients = sum(
            np.unique(fold.patient[each]).size
            for fold, each in zip(folds, rows, strict=True)
            if each is not None
        )
        auc = float(np.mean([scores[name][label] for label in shared]))
        groups.append(Group(name, images, patients, auc))
    return Split(attribute, groups, shared, [name for name in names if name not in kept])


def _members(values: npt.NDArray[np.object_], attribute: str) -> dict[str, npt.NDArray[np.bool_]]:
    """The images of each group; those of which nothing is known are in none."""
    if attribute == "age":
        years = np.array([_years(value) for value in values])
        bands = {f"{low:02d} to {high - 1}": (years >= low) & (years < high) for low, high in AGES}
        return {name: rows for name, rows in bands.items() if rows.any()}
    texts = np.array([value.strip() if isinstance(value, str) else "" for value in values], object)
    return {str(name): texts == name for name in set(texts) - {""}}


def _years(value: object) -> float:
    return float(value) if isinstance(value, int | float | np.number) else float("nan")


def _by_label(
    folds: Sequence[Part], members: list[dict[str, npt.NDArray[np.bool_]]], name: str
) -> dict[str, float]:
    scores = {}
    for k, label in enumerate(folds[0].labels):
        values = [
            auc_of(fold, groups[name], k, FEWEST)
            for fold, groups in zip(folds, members, strict=True)
            if name in groups
        ]
        present = [value for value in values if value is not None]
        if present:
            scores[label] = float(np.mean(present))
    return scores
