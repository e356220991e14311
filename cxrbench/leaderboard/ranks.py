"""Places that say what they do not know: tie groups, rank intervals, and when no diagram may be drawn."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cxrbench.leaderboard.sentences import DATA_SETS_FOR_A_DIAGRAM, LEVEL, NO_DIAGRAM

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def tie_groups(count: int, told_apart: Callable[[int, int], bool | None]) -> list[tuple[int, int]]:
    """First and last place (from 1) of the group of each of `count` rows, given in the order of their places.

    A group starts at the best row that is in none and ends before the first that is told apart from it. None
    from `told_apart`, no test, ends it too: what was never tested is no tie.
    """
    groups: list[tuple[int, int]] = []
    while len(groups) < count:
        first = last = len(groups)
        while last + 1 < count and told_apart(first, last + 1) is False:
            last += 1
        groups += [(first + 1, last + 1)] * (last - first + 1)
    return groups


def better_and_equal(auc: FloatArray) -> tuple[IntArray, IntArray]:
    """For each AUC of [R, n] how many of its line are higher, and how many are the same, itself included."""
    better = (auc[:, None, :] > auc[:, :, None]).sum(axis=2)
    return better, (auc[:, None, :] == auc[:, :, None]).sum(axis=2)


def rank_intervals(draws: FloatArray, level: float = LEVEL) -> list[tuple[int, int]]:
    """From AUCs on resamples [R, n], the places between which `level` of them put each row.

    A tie within a resample counts for both sides of it: the best place for the low end, the worst for the high.
    """
    better, equal = better_and_equal(draws)
    low = np.quantile(better + 1, (1 - level) / 2, axis=0, method="lower")
    high = np.quantile(better + equal, (1 + level) / 2, axis=0, method="higher")
    return [(int(a), int(b)) for a, b in zip(low, high, strict=True)]


def no_diagram(data_sets: Sequence[str]) -> str | None:
    """Why a critical-difference diagram cannot be drawn over these data sets; None where it can."""
    found = len(set(data_sets))
    if found >= DATA_SETS_FOR_A_DIAGRAM:
        return None
    are = "is" if found == 1 else "are"
    return NO_DIAGRAM.format(least=DATA_SETS_FOR_A_DIAGRAM, are=are, found=found)
