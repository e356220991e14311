"""DeLong's covariance of AUCs with images clustered in patients (Obuchowski 1997), without resampling.

N: images, K: labels, M: methods, C: clusters (patients). An AUC is the mean of placements: of each positive, the
share of negatives scored below it (a tie counts half), and of each negative the share of positives
above it. Images of one patient are alike, so deviations are summed over a patient before they are
squared. With one image a patient this is DeLong, DeLong & Clarke-Pearson 1988.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxrbench.metrics.classification import as_binary
from cxrbench.metrics.intervals import cluster_codes

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DeLong:
    """AUCs and their covariance. auc: [K, M]; covariance: [K, M, K, M], NaN where undefined.

    A label is defined when it has both classes; a covariance needs two clusters of each class.
    """

    auc: FloatArray
    covariance: FloatArray
    defined: BoolArray  # [K]

    def macro(self) -> tuple[FloatArray, FloatArray]:
        """Mean AUC over the defined labels [M], and its covariance [M, M]; NaN without such a label."""
        if not self.defined.any():
            methods = self.auc.shape[1]
            return np.full(methods, np.nan), np.full((methods, methods), np.nan)
        kept = self.covariance[self.defined][:, :, self.defined]
        return self.auc[self.defined].mean(axis=0), kept.mean(axis=(0, 2))

    def difference(self, one: int, other: int, label: int | None = None) -> tuple[float, float]:
        """Method `one` minus `other` and its standard error (or NaN), of one label or of the macro mean."""
        if label is None:
            auc, covariance = self.macro()
        else:
            auc, covariance = self.auc[label], self.covariance[label, :, label]
        variance = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
        error = math.nan if np.isnan(variance) else math.sqrt(max(0.0, float(variance)))
        return float(auc[one] - auc[other]), error


def clustered_delong(
    target: ArrayLike, score: ArrayLike, known: ArrayLike, cluster: ArrayLike
) -> DeLong:
    """AUCs of M methods on the same images, and how they vary together.

    target, known: [N, K]; score: [N, K, M]; cluster: [N]. Entries that are not known count for nothing.
    Within a label the covariance is Obuchowski's; between labels, which she does not treat, it is the same sum
    over patients. ValueError for shapes that do not agree, a known target other than 0 or 1, or a known score
    that is not finite.
    """
    truth, values = np.asarray(target), np.asarray(score, dtype=np.float64)
    mask = np.asarray(known, dtype=np.bool_)
    codes, clusters = cluster_codes(cluster)
    if values.ndim != 3 or not truth.shape == mask.shape == values.shape[:2]:
        raise ValueError(
            f"target {truth.shape}, known {mask.shape}, score {values.shape}: need [N, K], [N, K], [N, K, M]"
        )
    if codes.size != truth.shape[0]:
        raise ValueError(f"cluster has {codes.size} entries for {truth.shape[0]} images")
    if not np.isfinite(values[mask]).all():
        raise ValueError("score: known entries are NaN or infinite")
    labels, methods = values.shape[1:]
    auc = np.full((labels, methods), np.nan)
    # Deviations summed over a cluster, of positives and of negatives; factors of these and of their product.
    moved, factor = np.full((2, labels, methods, clusters), np.nan), np.full((3, labels), np.nan)
    for k in range(labels):
        seen = mask[:, k]
        positive = as_binary(truth[seen, k])
        if positive.any() and not positive.all():
            auc[k], moved[:, k], factor[:, k] = _label(
                positive, values[seen, k], codes[seen], clusters
            )
    return DeLong(auc, _covariance(moved, factor), ~np.isnan(auc[:, 0]))


def _label(
    positive: BoolArray, score: FloatArray, codes: NDArray[np.intp], clusters: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """AUC [M], deviations [2, M, C] and factors [3] of one label."""
    placed = np.stack([_placements(positive, column) for column in score.T])  # [M, images]
    auc = placed[:, positive].mean(axis=1)
    moved = []
    for of_class in (positive, ~positive):
        deviations = placed[:, of_class] - auc[:, None]
        total = [np.bincount(codes[of_class], d, minlength=clusters) for d in deviations]
        moved.append(np.stack(total) / of_class.sum())
    return auc, np.stack(moved), _factors(codes[positive], codes[~positive])


def _factors(up: NDArray[np.intp], down: NDArray[np.intp]) -> FloatArray:
    """c / (c - 1) of the clusters of positives, of negatives, and of either; NaN where there is one."""
    size = int(max(up.max(), down.max())) + 1
    ups, downs = (np.bincount(codes, minlength=size) > 0 for codes in (up, down))
    held = [int(np.count_nonzero(seen)) for seen in (ups, downs, ups | downs)]
    return np.array([count / (count - 1) if count > 1 else math.nan for count in held])


def _placements(positive: BoolArray, score: FloatArray) -> FloatArray:
    """Of each image, the share of the other class that stands on the right side of it; a tie counts half."""
    order = np.argsort(score)
    # In order of their scores, images find their places several times faster than in any other.
    ranked, above = score[order], positive[order]
    up, down = ranked[above], ranked[~above]
    placed = np.empty(score.shape)
    placed[order[above]] = _share_below(down, up)
    placed[order[~above]] = 1 - _share_below(up, down)
    return placed


def _share_below(ordered: FloatArray, score: FloatArray) -> FloatArray:
    below = np.searchsorted(ordered, score, side="left")
    through = np.searchsorted(ordered, score, side="right")
    return np.asarray((below + through) / (2 * ordered.size), dtype=np.float64)


def _covariance(moved: FloatArray, factor: FloatArray) -> FloatArray:
    """[K, M, K, M] from deviations [2, K, M, C]: positives, negatives, and the patients who have both."""
    of_positives, of_negatives = moved

    def product(one: FloatArray, other: FloatArray) -> FloatArray:
        return np.asarray(np.einsum("kmc,lnc->kmln", one, other, optimize=True))

    # Of one label its own factor; of two labels the geometric mean.
    weight = np.sqrt(factor[:, :, None] * factor[:, None, :])[:, :, None, :, None]
    crossed = product(of_positives, of_negatives)
    return np.asarray(
        weight[0] * product(of_positives, of_positives)
        + weight[1] * product(of_negatives, of_negatives)
        + weight[2] * (crossed + crossed.transpose(2, 3, 0, 1))
    )
