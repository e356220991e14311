"""What the figures show of predictions: curves with bands, calibration, subgroups.

R: replicates, C: patients, G: points of a curve. Curves of several folds are averaged point by point
and never pooled: scores of two models have no common scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrbench.leaderboard.site.predictions import Part
from cxrbench.metrics.classification import Ranking, precision_at_recall
from cxrbench.metrics.intervals import resample_counts

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]

GRID: FloatArray = np.linspace(0.0, 1.0, 101)
REPLICATES = 200
LEVEL = 0.95
BINS = 10
BLOCK = 2**20  # image weights held at once
FULL_BIN = 30  # images that a bin has at least, where there are as many
FEWEST = 10  # positives, and negatives, in a subgroup


@dataclass(frozen=True, eq=False)
class Band:
    """A curve over GRID and its interval, point by point; [G] each."""

    y: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, eq=False)
class LabelCurves:
    """One label of one row: mean curves over its folds."""

    roc: Band  # true positive rate over false positive rate
    pr: Band  # precision over recall
    precision_at_95: float
    prevalence: float
    folds: int


@dataclass(frozen=True, eq=False)
class Reliability:
    """Mean probability against the share that is positive, in bins of equally many images; [B] each."""

    probability: FloatArray
    share: FloatArray
    low: FloatArray
    high: FloatArray
    images: npt.NDArray[np.int64]
    ece: float
    brier: float
    brier_of_prevalence: float


def label_curves(folds: Sequence[Part], label: int) -> LabelCurves | None:
    """ROC and PR curves of a label; None where no fold has both classes.

    Bands are the central 95 % of resamples of patients, drawn within each fold.
    """
    roc, pr, points, shares = [], [], [], []
    for fold in folds:
        known = ~np.isnan(fold.target[:, label])
        positive, score = fold.target[known, label] == 1, fold.probability[known, label]
        if positive.all() or not positive.any():
            continue
        tpr, precision = _resampled(positive, score, fold.patient[known], fold.patients, fold.fold)
        roc.append(tpr)
        pr.append(precision)
        point = precision_at_recall(positive, score)
        points.append(point.precision if point else np.nan)
        shares.append(positive.mean())
    if not roc:
        return None
    return LabelCurves(
        _band(roc), _band(pr), float(np.mean(points)), float(np.mean(shares)), len(roc)
    )


def _band(folds: list[FloatArray]) -> Band:
    """The mean over folds of [1 + R, G]: the sample itself first, then its resamples."""
    mean = np.mean(folds, axis=0)
    drawn = mean[1:]
    drawn = drawn[~np.isnan(drawn).any(axis=1)]  # resamples without one of the classes
    if len(drawn) <= REPLICATES / 2:
        unknown = np.full(GRID.size, np.nan)
        return Band(mean[0], unknown, unknown)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Band(mean[0], low, high)


def _resampled(
    positive: npt.NDArray[np.bool_],
    score: FloatArray,
    patient: npt.NDArray[np.intp],
    patients: int,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    """True positive rate and precision over GRID, [1 + R, G] each; row 0 is the sample itself."""
    order = np.argsort(-score, kind="stable")
    positive, patient, score = positive[order], patient[order], score[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # ties are one threshold
    # Between two positives a curve is straight, in every resample: only the ends of such a stretch count.
    finds = np.diff(np.cumsum(positive)[last], prepend=0) > 0
    last = last[finds | np.append(finds[1:], True)]
    count = np.concatenate([np.ones((1, patients), np.int64), _resamples(seed, patients)])
    tpr, precision = np.full((2, len(count), GRID.size), np.nan)
    block = max(1, BLOCK // score.size)
    for first in range(0, len(count), block):
        weight = count[first : first + block, patient].astype(np.int32)
        true = np.cumsum(weight * positive, axis=1)[:, last]
        false = np.cumsum(weight * ~positive, axis=1)[:, last]
        both = (true[:, -1] > 0) & (false[:, -1] > 0)
        rows = first + np.flatnonzero(both)
        tpr[rows] = _across(false[both], true[both])
        precision[rows] = _precision(true[both], false[both])
    return tpr, precision


@lru_cache(maxsize=16)  # every label and row of a table resamples the same patients
def _resamples(seed: int, patients: int) -> IntArray:
    """How often each patient is drawn in each resample, [R, C]."""
    return resample_counts(np.random.default_rng(seed), REPLICATES, patients)


def _across(false: IntArray, true: IntArray) -> FloatArray:
    """True positive rate at each false positive rate of GRID, [B, G]; straight between thresholds."""
    x, y = (np.pad(each / each[:, -1:], ((0, 0), (1, 0))) for each in (false, true))
    at = _last_up_to(x, np.broadcast_to(GRID, (len(x), GRID.size)), 2.0)
    after = np.minimum(at + 1, x.shape[1] - 1)
    x0, x1, y0, y1 = (np.take_along_axis(v, i, axis=1) for v in (x, y) for i in (at, after))
    step = np.where(x1 > x0, x1 - x0, 1.0)
    return np.asarray(y0 + (y1 - y0) * (GRID - x0) / step, dtype=np.float64)


def _precision(tp: IntArray, fp: IntArray) -> FloatArray:
    """Precision at the first threshold that reaches each recall, [B, G]; steps, never straight lines."""
    # A recall of 0 is reached by the first threshold that finds a positive.
    needed = np.maximum(np.ceil(GRID * tp[:, -1:] - 1e-9), 1).astype(np.int64)
    at = _last_up_to(tp, needed - 1, int(tp.max(initial=0)) + 1) + 1
    hits, misses = (np.take_along_axis(each, at, axis=1) for each in (tp, fp))
    return np.asarray(hits / (hits + misses), dtype=np.float64)


def _last_up_to(rows: Any, values: Any, apart: float) -> npt.NDArray[np.intp]:
    """In each row, which never falls, the last place with at most each value; -1 where there is none.

    One search for all rows: each is lifted `apart`, more than it spans, above the one before.
    """
    lift = apart * np.arange(len(rows))[:, None]
    found = np.searchsorted((rows + lift).ravel(), (values + lift).ravel(), side="right")
    first = rows.shape[1] * np.arange(len(rows))[:, None]
    return np.asarray(found.reshape(values.shape) - 1 - first, dtype=np.intp)


def reliability(folds: Sequence[Part], label: int) -> Reliability | None:
    """Calibration of a label over the test images of all folds; None where no image is known.

    The expected calibration error weighs |mean probability - share of positives| of each bin by
    its images. Intervals of the shares are over resamples of patients, the bins held.
    """
    target, probability, patient, patients = _pooled(folds, label)
    if not target.size:
        return None
    bins = max(1, min(BINS, target.size // FULL_BIN))
    order = np.argsort(probability, kind="stable")
    place = np.empty(target.size, np.intp)
    place[order] = np.arange(target.size) * bins // target.size
    images = np.bincount(place, minlength=bins)
    mean = np.bincount(place, probability, bins) / images
    share = np.bincount(place, target, bins) / images
    low, high = _share_interval(place * patients + patient, target, bins, patients)
    prevalence = float(target.mean())
    return Reliability(
        mean, share, low, high, images,
        ece=float(np.sum(images * np.abs(mean - share)) / target.size),
        brier=float(np.mean((probability - target) ** 2)),
        brier_of_prevalence=prevalence * (1 - prevalence),
    )  # fmt: skip


def mean_calibration(found: Sequence[Reliability | None]) -> tuple[float, float, float] | None:
    """(expected calibration error, Brier score, the prevalence's Brier score), means over labels."""
    known = [(each.ece, each.brier, each.brier_of_prevalence) for each in found if each]
    if not known:
        return None
    ece, brier, of_prevalence = np.mean(known, axis=0)
    return float(ece), float(brier), float(of_prevalence)


def _pooled(
    folds: Sequence[Part], label: int
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.intp], int]:
    """(target, probability, patient) of the known images of all folds, and the number of patients."""
    parts, patients = [], 0
    for fold in folds:
        known = ~np.isnan(fold.target[:, label])
        codes = fold.patient[known] + patients
        parts.append((fold.target[known, label], fold.probability[known, label], codes))
        patients += fold.patients
    target, probability, patient = (np.concatenate(column) for column in zip(*parts, strict=True))
    return target, probability, patient, patients


def _share_interval(
    cell: npt.NDArray[np.intp], target: FloatArray, bins: int, patients: int
) -> tuple[FloatArray, FloatArray]:
    """Interval of the share of positives of each bin; `cell` is bin x patient."""
    images = np.bincount(cell, minlength=bins * patients).reshape(bins, patients)
    positives = np.bincount(cell, target, bins * patients).reshape(bins, patients)
    count = _resamples(0, patients).astype(
        np.float64
    )  # whole numbers, but whole ones multiply slowly
    with np.errstate(invalid="ignore"):
        share = (count @ positives.T) / (count @ images.T)  # [R, B]
    low, high = np.nanquantile(share, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def auc_of(fold: Part, rows: npt.NDArray[np.bool_], label: int, fewest: int = 1) -> float | None:
    """AUC of a label on some of a fold's images; None with fewer than `fewest` of either class."""
    rows = rows & ~np.isnan(fold.target[:, label])
    positive = fold.target[rows, label] == 1
    if min(positive.sum(), (~positive).sum()) < fewest:
        return None
    return Ranking.of(positive, fold.probability[rows, label]).roc_auc()
