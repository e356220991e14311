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
    finite = np.isfinite(values)
    if not finite.all() and not finite[mask].all():
        raise ValueError("score: known entries are NaN or infinite")
    labels, methods = values.shape[1:]
    # A label's values side by side: the arrays come image by image.
    values = np.ascontiguousarray(values.transpose(1, 2, 0))
    truth, mask = np.ascontiguousarray(truth.T), np.ascontiguousarray(mask.T)
    auc = np.full((labels, methods), np.nan)
    # Deviations summed over a cluster, of positives and of negatives; factors of these and of their product.
    moved, factor = np.full((2, labels, methods, clusters), np.nan), np.full((3, labels), np.nan)
    for k in range(labels):
        seen = slice(None) if mask[k].all() else mask[k]
        positive = as_binary(truth[k, seen])
        if positive.any() and not positive.all():
            auc[k], moved[:, k], factor[:, k] = _label(
                positive, values[k][:, seen], codes[seen], clusters
            )
    return DeLong(auc, _covariance(moved, factor), ~np.isnan(auc[:, 0]))


def _label(
    positive: BoolArray, score: FloatArray, codes: NDArray[np.intp], clusters: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """AUC [M], deviations [2, M, C] and factors [3] of one label; score: [M, images]."""
    placed = np.stack([_placements(positive, one) for one in score])  # [M, images]
    auc = placed[:, positive].mean(axis=1)
    # Clusters twice, of positives and then of negatives, so that one pass sums both classes.
    place = np.where(positive, codes, codes + clusters)
    total = [np.bincount(place, one, minlength=2 * clusters) for one in placed - auc[:, None]]
    moved = np.stack(total).reshape(-1, 2, clusters).swapaxes(0, 1)
    ups = np.count_nonzero(positive)
    size = np.array([ups, positive.size - ups])
    held = np.zeros(2 * clusters, dtype=np.bool_)
    held[place] = True
    return auc, moved / size[:, None, None], _factors(held.reshape(2, clusters))


def _factors(has: BoolArray) -> FloatArray:
    """c / (c - 1) of the clusters that have positives, negatives [2, C] or either; NaN where there is one."""
    held = [int(np.count_nonzero(seen)) for seen in (*has, has.any(axis=0))]
    return np.array([count / (count - 1) if count > 1 else math.nan for count in held])


def _placements(positive: BoolArray, score: FloatArray) -> FloatArray:
    """Of each image, the share of the other class that stands on the right side of it; a tie counts half."""
    order = np.argsort(score)  # not stable: the order within a tie decides nothing
    ranked, above = score[order], positive[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each group of ties
    ups = np.cumsum(above, dtype=np.intp)[last]  # positives up to the end of a group
    sizes, downs = np.diff(last, prepend=-1), last + 1 - ups
    placed = np.empty(score.shape)
    placed[order] = np.where(
        above,
        np.repeat(_share_below(downs), sizes),
        1 - np.repeat(_share_below(ups), sizes),
    )
    return placed


def _share_below(through: NDArray[np.intp]) -> FloatArray:
    """Of each group of ties, the share of a class below it and half of those in it, from counts up to its end."""
    below = np.append(0, through[:-1])
    return np.asarray((below + through) / (2 * through[-1]), dtype=np.float64)


def _covariance(moved: FloatArray, factor: FloatArray) -> FloatArray:
    """[K, M, K, M] from deviations [2, K, M, C]: positives, negatives, and the patients who have both."""
    labels, methods = moved.shape[1:3]
    flat = moved.reshape(2 * labels * methods, -1)
    products = (flat @ flat.T).reshape(2, labels, methods, 2, labels, methods)
    # Of one label its own factor; of two labels the geometric mean.
    weight = np.sqrt(factor[:, :, None] * factor[:, None, :])[:, :, None, :, None]
    crossed = products[0, :, :, 1]
    return np.asarray(
        weight[0] * products[0, :, :, 0]
        + weight[1] * products[1, :, :, 1]
        + weight[2] * (crossed + crossed.transpose(2, 3, 0, 1))
    )
