"""Patient-clustered bootstrap of AUC, PR-AUC and precision at a recall.

N: images, K: labels, C: clusters (patients), R: replicates, B: replicates in a block. Images of one
patient are alike, so a bootstrap over images gives intervals that are too narrow; here whole
patients are drawn with replacement (Field & Welsh 2007).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from cxrbench.metrics.classification import RECALL_SLACK, check_recall

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
IndexArray = NDArray[np.intp]

Metric = Literal["auc", "pr_auc", "precision_at_recall"]
METRICS: tuple[Metric, ...] = get_args(Metric)

BLOCK = 16  # replicates at once: what they need of one label stays in a core's cache


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Replicates of every metric over the same resamples of clusters.

    values: metric -> [R, K]; NaN marks a replicate in which the metric is undefined. defined: [K],
    the labels with both classes in the full sample; the macro mean is over these. Replicate r is
    the same resample for every label, and for every method scored with the same seed and the same
    set of clusters: differences between their replicates are paired.
    """

    values: Mapping[Metric, FloatArray]
    defined: NDArray[np.bool_]
    clusters: int
    seed: int
    level: float

    def replicates(self, metric: Metric, label: int | None = None) -> FloatArray:
        """[R] of one label, or of the macro mean without a label; NaN where undefined."""
        values = self.values[metric]
        if label is not None:
            return values[:, label]
        if not self.defined.any():
            return np.full(values.shape[0], np.nan)
        return np.asarray(values[:, self.defined].mean(axis=1), dtype=np.float64)

    def dropped(self, metric: Metric, label: int | None = None) -> int:
        """How many replicates the interval leaves out because the metric is undefined in them.

        A macro replicate is left out as soon as one of its labels is undefined.
        """
        return int(np.isnan(self.replicates(metric, label)).sum())

    def interval(self, metric: Metric, label: int | None = None) -> tuple[float, float] | None:
        """The central `level` of the defined replicates; None where it would say nothing."""
        drawn = self.replicates(metric, label)
        values = drawn[~np.isnan(drawn)]
        # Every resample of a single cluster is the sample itself: no spread, so no interval.
        # And where most resamples lack a class, the rest are those that happen to hold one patient.
        if self.clusters < 2 or values.size <= drawn.size / 2:
            return None
        low, high = np.quantile(values, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low), float(high)


def clustered_bootstrap(
    target: ArrayLike,
    score: ArrayLike,
    known: ArrayLike,
    cluster: ArrayLike,
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    recall: float = 0.95,
) -> Bootstrap:
    """Resample clusters with replacement and score every label on each resample.

    target, score, known: [N, K]; cluster: [N]. Entries that are not known are in no resample of
    that label; the clusters are drawn from all of them. ValueError for a known target other than 0
    or 1, or a known score that is not finite.
    """
    if replicates < 0 or not 0 < level < 1:
        raise ValueError(f"replicates {replicates} must be >= 0, level {level} between 0 and 1")
    check_recall(recall)
    codes, clusters = cluster_codes(cluster)
    plans = _plans(np.asarray(target), np.asarray(score, dtype=np.float64), known, codes, clusters)
    values = np.full((len(METRICS), replicates, len(plans)), np.nan)
    generator = np.random.default_rng(seed)
    for start in range(0, replicates, BLOCK):
        rows = slice(start, min(start + BLOCK, replicates))
        drawn = resample_counts(generator, rows.stop - rows.start, clusters)
        count = np.ascontiguousarray(drawn.T, dtype=np.float64)  # [C, B]
        for label, plan in enumerate(plans):
            if plan.positive.nnz:
                values[:, rows, label] = _score_block(plan, count, recall)
    return Bootstrap(
        values=dict(zip(METRICS, values, strict=True)),
        defined=np.array([bool(p.positive.nnz and p.negative.nnz) for p in plans], dtype=bool),
        clusters=clusters,
        seed=seed,
        level=level,
    )


def resample_counts(generator: np.random.Generator, replicates: int, clusters: int) -> IntArray:
    """How often each cluster is drawn in each resample, [R, C]; every row sums to C.

    Draws one after the other, so blocks of any size yield the same resamples.
    """
    drawn = generator.integers(clusters, size=(replicates, clusters))
    drawn += np.arange(replicates)[:, None] * clusters
    count = np.bincount(drawn.ravel(), minlength=replicates * clusters)
    return count.reshape(replicates, clusters).astype(np.int64, copy=False)


def cluster_codes(cluster: ArrayLike) -> tuple[IndexArray, int]:
    """Each image's cluster as 0..C-1, and C.

    Numbered in the order of their text, so that the same patients give the same resamples whatever
    the order of the rows and whether ids were read as text or as integers. ValueError for an id
    that is neither (a missing one, say).
    """
    ids = np.asarray(cluster)
    if ids.ndim != 1:
        raise ValueError(f"cluster {ids.shape}: need [N]")
    if ids.dtype.kind in "iu" and ids.size and ids.min() >= 0 and ids.max() < 10**_DIGITS:
        return _numbered(_in_order_of_text(ids))
    if ids.dtype.kind == "O":
        bad = [i for i, name in enumerate(ids) if not isinstance(name, str | int | np.integer)]
    else:
        bad = [] if ids.dtype.kind in "iuU" else list(range(ids.size))
    text = ids.astype(str)
    bad = bad or [int(i) for i in np.flatnonzero(text == "")]
    if bad:
        raise ValueError(
            f"cluster: {len(bad)} ids are missing or neither text nor integer, the first at "
            f"{bad[0]}: {ids[bad[0]]!r}"
        )
    return _numbered(_as_numbers(text))


def _numbered(keys: NDArray[Any]) -> tuple[IndexArray, int]:
    names, codes = np.unique(keys, return_inverse=True)
    return codes.astype(np.intp, copy=False), int(names.size)


_DIGITS = 12


def _in_order_of_text(ids: NDArray[np.integer]) -> IntArray:
    """Whole numbers of few digits as keys that sort like their text: digits to the left, then how many."""
    values = ids.astype(np.int64)
    powers = 10 ** np.arange(_DIGITS + 1, dtype=np.int64)
    digits = np.searchsorted(powers[1:], values, side="right") + 1
    return np.asarray((values * powers[_DIGITS - digits]) * 16 + digits, dtype=np.int64)


def _as_numbers(text: NDArray[np.str_]) -> NDArray[np.str_] | NDArray[np.uint64]:
    """Up to eight letters of one byte as whole numbers of the same order, which are sorted much faster."""
    if text.size == 0:
        return text
    letters = np.ascontiguousarray(text).view(np.uint32).reshape(text.size, -1)  # [N, longest]
    used = letters[:, letters.any(axis=0)]  # blanks stand behind alone
    if used.shape[1] > 8 or used.max() > 255:
        return text
    numbers = np.zeros(text.size, np.uint64)
    for column in used.T:
        numbers = (numbers << np.uint64(8)) | column
    return numbers


@dataclass(frozen=True, eq=False)
class _Plan:
    """One label's images by descending score, as far as resampling needs it.

    Precision falls between two positives, so only the distinct scores of positives (G levels) can
    matter to any of the metrics. Each matrix says how many images of a cluster stand where, so that its
    product with the clusters' counts weighs them.
    """

    positive: csr_array  # [G, C] positives at each level
    # [2 G + 1, C] negatives: between the level before and this one, at this level; last, below all.
    negative: csr_array


def _plans(
    target: NDArray[np.generic],
    score: FloatArray,
    known: ArrayLike,
    codes: IndexArray,
    clusters: int,
) -> list[_Plan]:
    mask = np.asarray(known, dtype=np.bool_)
    if score.ndim != 2 or not target.shape == mask.shape == score.shape:
        raise ValueError(
            f"target {target.shape}, score {score.shape}, known {mask.shape}: need [N, K] each"
        )
    if codes.size != score.shape[0]:
        raise ValueError(f"cluster has {codes.size} entries for {score.shape[0]} images")
    positive = target == 1
    for name, fault, wrong in (
        ("score", "NaN or infinite", ~np.isfinite(score)),
        ("target", "not 0 or 1", ~(positive | (target == 0))),
    ):
        bad = np.argwhere(mask & wrong)
        if bad.size:
            raise ValueError(
                f"{name}: {len(bad)} known entries are {fault}, the first at row {bad[0][0]}, "
                f"label {bad[0][1]}"
            )
    columns = zip(positive.T, score.T, mask.T, strict=True)
    return [_plan(p[m], s[m], codes[m], clusters) for p, s, m in columns]


def _plan(
    positive: NDArray[np.bool_], score: FloatArray, codes: IndexArray, clusters: int
) -> _Plan:
    levels, at = np.unique(-score[positive], return_inverse=True)
    negatives = -score[~positive]
    # 2 g: above level g; 2 g + 1: at it; 2 G: below all.
    place = np.searchsorted(levels, negatives, side="left")
    place += np.searchsorted(levels, negatives, side="right")
    return _Plan(
        positive=_tally(at, codes[positive], (levels.size, clusters)),
        negative=_tally(place, codes[~positive], (2 * levels.size + 1, clusters)),
    )


def _tally(place: IndexArray, codes: IndexArray, shape: tuple[int, int]) -> csr_array:
    """How many images of each cluster stand at each place."""
    return csr_array((np.ones(place.size), (place, codes)), shape=shape)  # adds up equal entries


def _score_block(plan: _Plan, count: FloatArray, recall: float) -> FloatArray:
    """The metrics of one label on a block of resamples [C, B] -> [3, B] in the order of METRICS."""
    gained = plan.positive @ count  # [G, B]; whole numbers are exact in float64
    tp = np.cumsum(gained, axis=0)
    fp = np.cumsum(plan.negative @ count, axis=0)
    positives, negatives = tp[-1], fp[-1]
    above, through = fp[:-1:2], fp[1::2]

    values = np.full((len(METRICS), count.shape[1]), np.nan)
    pairs = positives * negatives
    wins_twice = 2 * pairs - np.einsum("gb,gb->b", gained, above + through)
    np.divide(wins_twice, 2 * pairs, out=values[0], where=pairs > 0)

    # An empty prefix has tp = 0: dividing by 1 gives it the precision 0, which nothing picks.
    precision = tp / np.maximum(tp + through, 1)
    np.divide(
        np.einsum("gb,gb->b", gained, precision), positives, out=values[1], where=positives > 0
    )
    floor = (recall - RECALL_SLACK) * positives
    best = np.max(precision, axis=0, where=tp >= floor, initial=0.0)
    np.copyto(values[2], best, where=positives > 0)
    return values
