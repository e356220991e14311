"""Exact binary scores of one label: AUC, average precision, precision at a recall, confusion.

N: images. Every function takes a binary target [N] and a finite score [N]; a higher score means
more likely positive. An undefined score is None, never NaN and never 0, so that a mean over labels
cannot swallow a label without positives.
"""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# Slack on "recall >= floor", relative to the positives: far above float64 rounding, and far below
# the recall that one image is worth in any data set.
RECALL_SLACK = 1e-12


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold (positive if score >= threshold) and what it reaches where it was picked."""

    threshold: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Confusion:
    """Counts of images at one threshold, as shares of all images and as rates.

    The shares sum to 1. The thorax-crop paper prints them under the names "TP rate" to "FN rate".
    """

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def images(self) -> int:
        return self.tp + self.fp + self.tn + self.fn

    @property
    def tp_share(self) -> float | None:
        return _ratio(self.tp, self.images)

    @property
    def fp_share(self) -> float | None:
        return _ratio(self.fp, self.images)

    @property
    def tn_share(self) -> float | None:
        return _ratio(self.tn, self.images)

    @property
    def fn_share(self) -> float | None:
        return _ratio(self.fn, self.images)

    @property
    def recall(self) -> float | None:
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float | None:
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def precision(self) -> float | None:
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def false_positive_rate(self) -> float | None:
        return _ratio(self.fp, self.tn + self.fp)

    @property
    def accuracy(self) -> float | None:
        return _ratio(self.tp + self.tn, self.images)

    def as_dict(self) -> dict[str, int | float | None]:
        return {
            **asdict(self),
            "tp_share": self.tp_share,
            "fp_share": self.fp_share,
            "tn_share": self.tn_share,
            "fn_share": self.fn_share,
            "recall": self.recall,
            "specificity": self.specificity,
            "precision": self.precision,
            "false_positive_rate": self.false_positive_rate,
            "accuracy": self.accuracy,
        }


@dataclass(frozen=True, eq=False)
class Ranking:
    """Images sorted once by score: what every distinct threshold catches, highest first.

    threshold, tp, fp: [G], one entry per distinct score; tp and fp are the weights (counts, if no
    weight was given) of the positives and negatives scored at or above it.
    """

    threshold: FloatArray
    tp: FloatArray
    fp: FloatArray

    @classmethod
    def of(cls, target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> "Ranking":
        sample = _check(target, score, weight)
        if sample.weight is None:
            return cls(*_counted(sample.score, sample.positive))
        # Not stable, and several times faster for it: the order within a tie decides nothing.
        order = np.argsort(-sample.score)
        ranked, positive, weights = (
            sample.score[order],
            sample.positive[order],
            sample.weight[order],
        )
        last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: ranked.size])
        tp = np.cumsum(weights * positive)[last_of_tie]
        fp = np.cumsum(weights * ~positive)[last_of_tie]
        return cls(ranked[last_of_tie], tp, fp)

    @property
    def positives(self) -> float:
        return float(self.tp[-1]) if self.tp.size else 0.0

    @property
    def negatives(self) -> float:
        return float(self.fp[-1]) if self.fp.size else 0.0

    @cached_property
    def precision(self) -> FloatArray:
        """[G]: positives among what is scored at or above each threshold."""
        return self.tp / (self.tp + self.fp)

    def roc_auc(self) -> float | None:
        """Area under the ROC curve, a tie counted half; None if one class is absent."""
        if self.positives == 0 or self.negatives == 0:
            return None
        # The first threshold has none above it; whole numbers add up exactly in any order.
        wins_twice = self.fp[0] * self.tp[0] + np.dot(
            self.fp[1:] - self.fp[:-1], self.tp[1:] + self.tp[:-1]
        )
        return float(wins_twice / (2 * self.positives * self.negatives))

    def average_precision(self) -> float | None:
        """Mean over positives of the precision at their score; None without positives.

        A step function: straight lines in precision-recall space are too optimistic (Davis &
        Goadrich 2006).
        """
        if self.positives == 0:
            return None
        gained = self.tp.copy()
        gained[1:] -= self.tp[:-1]
        return float(np.sum(gained * self.precision) / self.positives)

    def precision_at_recall(self, recall: float = 0.95) -> OperatingPoint | None:
        """The most precise threshold whose recall is at least `recall`; None without positives.

        Of equal precisions the one with the higher recall.
        """
        check_recall(recall)
        if self.positives == 0:
            return None
        first = int(np.argmax(self.tp >= (recall - RECALL_SLACK) * self.positives))
        precision = self.precision[first:]
        best = first + int(np.flatnonzero(precision == precision.max())[-1])
        return OperatingPoint(
            threshold=float(self.threshold[best]),
            precision=float(precision[best - first]),
            recall=float(self.tp[best] / self.positives),
        )


def roc_auc(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float | None:
    """Area under the ROC curve, a tie counted half; None if one class is absent."""
    return Ranking.of(target, score, weight).roc_auc()


def average_precision(
    target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None
) -> float | None:
    """Area under the precision-recall steps; None without positives, 1.0 without negatives."""
    return Ranking.of(target, score, weight).average_precision()


def precision_at_recall(
    target: ArrayLike, score: ArrayLike, recall: float = 0.95, weight: ArrayLike | None = None
) -> OperatingPoint | None:
    """The most precise threshold whose recall is at least `recall`; None without positives."""
    return Ranking.of(target, score, weight).precision_at_recall(recall)


def confusion_at(target: ArrayLike, score: ArrayLike, threshold: float) -> Confusion:
    """Counts of images when a score at or above `threshold` is called positive."""
    if math.isnan(threshold):
        raise ValueError("threshold is NaN")
    sample = _check(target, score, None)
    called = sample.score >= threshold
    return Confusion(
        tp=int(np.sum(called & sample.positive)),
        fp=int(np.sum(called & ~sample.positive)),
        tn=int(np.sum(~called & ~sample.positive)),
        fn=int(np.sum(~called & sample.positive)),
    )


def constant_floor(target: ArrayLike) -> dict[str, float | None]:
    """What a classifier that gives every image the same score reaches."""
    truth = np.asarray(target)
    floor = Ranking.of(truth, np.zeros(truth.shape))
    point = floor.precision_at_recall()
    return {
        "auc": floor.roc_auc(),
        "pr_auc": floor.average_precision(),
        "precision_at_95_recall": None if point is None else point.precision,
    }


def as_binary(target: ArrayLike) -> BoolArray:
    """`target` as booleans; ValueError unless every entry is 0 or 1."""
    truth = np.asarray(target, order="C")
    positive = np.asarray(truth == 1, dtype=np.bool_)
    binary = positive | (truth == 0)
    if not binary.all():
        wrong = np.flatnonzero(~binary)
        raise ValueError(f"target: {wrong.size} entries are not 0 or 1, the first at {wrong[0]}")
    return positive


def check_recall(recall: float) -> None:
    """ValueError unless `recall` is in (0, 1]."""
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}; it must be above 0 and at most 1")


class _Sample(NamedTuple):
    score: FloatArray  # [N]
    positive: BoolArray  # [N]
    weight: FloatArray | None  # [N], above 0; None: 1 each


def _check(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None) -> _Sample:
    # A column of a table is copied once, not walked in strides by every step.
    values = np.asarray(score, dtype=np.float64, order="C")
    positive = as_binary(target)
    if values.ndim != 1 or positive.shape != values.shape:
        raise ValueError(f"target {positive.shape} and score {values.shape}: need [N] and [N]")
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(f"score: {bad.size} entries are NaN or infinite, the first at {bad[0]}")
    if weight is None:
        return _Sample(values, positive, None)
    weights = np.asarray(weight, dtype=np.float64)
    if weights.shape != values.shape:
        raise ValueError(f"weight {weights.shape} and score {values.shape}: need [N] and [N]")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise ValueError(f"weight: {bad.size} entries are not >= 0, the first at {bad[0]}")
    kept = weights > 0  # an image of weight 0 is absent: its score is no threshold
    return _Sample(values[kept], positive[kept], weights[kept])


def _counted(score: FloatArray, positive: BoolArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Ranking's arrays without weights: scores alone sort faster than places, and positives are few."""
    ranked = np.sort(score)
    starts = np.ones(ranked.size, dtype=np.bool_)
    np.not_equal(ranked[1:], ranked[:-1], out=starts[1:])
    first_of_tie = np.flatnonzero(starts)
    ascending = ranked[first_of_tie]
    ties = np.searchsorted(ascending, np.sort(score[positive]))
    caught = np.bincount(ties, minlength=ascending.size)[::-1]
    # Whole numbers stay exact in float64 up to 2**53.
    tp = np.cumsum(caught, dtype=np.float64)
    return ascending[::-1], tp, (ranked.size - first_of_tie)[::-1] - tp


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
