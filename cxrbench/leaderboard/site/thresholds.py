"""Whether a threshold picked on the validation part keeps its promise on the test part."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cxrbench.leaderboard.labels import label_value
from cxrbench.leaderboard.rows import Row

WANTED = 0.95  # recall that the threshold was picked for
POINT = (
    "recall_at_validation_threshold",
    "validation_recall",
    "precision_at_validation_threshold",
    "precision_at_95_recall",
)
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
    found = {}
    for label in row.records[0].labels:
        point = [label_value(row, label, metric) for metric in POINT]
        means = [value.mean for value in point if value is not None]
        if len(means) == len(POINT):
            found[label] = means
    if not found:
        return None
    return Transfer(
        recall={label: means[0] for label, means in found.items()},
        promised={label: means[1] for label, means in found.items()},
        precision=fmean(means[2] for means in found.values()),
        at_best=fmean(means[3] for means in found.values()),
    )
