"""Whether a threshold picked on the validation part keeps its promise on the test part."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cxrbench.leaderboard.rows import Row

WANTED = 0.95  # recall that the threshold was picked for
NEAR = 0.02  # a recall this near to it counts as kept


@dataclass(frozen=True)
class Transfer:
    """One row: of each label, means over its folds of what validation's threshold does on the test part.

    recall: reached there. promised: recall on the validation part itself, which may lie above what was asked
    for. precision, at_best: with this threshold, and with one picked on the test part.
    """

    recall: dict[str, float]
    promised: dict[str, float]
    precision: float
    at_best: float

    @property
    def kept(self) -> int:
        """Labels whose recall is at least nearly what was asked for."""
        return sum(value >= WANTED - NEAR for value in self.recall.values())

    @property
    def worst(self) -> str:
        """The label that falls shortest."""
        return min(self.recall, key=self.recall.__getitem__)


def transfers(rows: Sequence[Row]) -> dict[str, Transfer]:
    """By the rows' names, those that have a threshold from a validation part."""
    return {row.name: found for row in rows if (found := _transfer(row)) is not None}


def _transfer(row: Row) -> Transfer | None:
    found: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for record in row.records:
        for label, score in (record.scores.get("labels") or {}).items():
            there = score.get("precision_at_validation_threshold") or {}
            best = score.get("precision_at_95_recall") or {}
            point = [there.get("recall"), there.get("validation_recall"), there.get("precision"), best.get("precision")]  # fmt: skip
            numbers = [float(value) for value in point if isinstance(value, int | float)]
            if len(numbers) == len(point):
                found[label].append((numbers[0], numbers[1], numbers[2], numbers[3]))
    if not found:
        return None
    means = {label: [fmean(column) for column in zip(*points, strict=True)] for label, points in found.items()}  # fmt: skip
    return Transfer(
        recall={label: values[0] for label, values in means.items()},
        promised={label: values[1] for label, values in means.items()},
        precision=fmean(values[2] for values in means.values()),
        at_best=fmean(values[3] for values in means.values()),
    )
