"""How far two sets of images lie apart in a network's features: FID and KID. N, M: images, D: features.

Heusel et al. (2017) and Binkowski et al. (2018). Which network gave the features is the caller's to say: only
distances in the same features compare, and FID only among sets of equal size besides, since it is biased
upwards, the more so the fewer images there are. KID is unbiased, so that it may be below 0.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
DEGREE = 3  # of KID's polynomial kernel


def fid(features: ArrayLike, reference: ArrayLike) -> float:
    """Frechet distance of the Gaussians fitted to features [N, D] and [M, D]; N and M at least 2.

    |m - m'|^2 + tr(S + S' - 2 (S S')^1/2) with covariances over N - 1 and M - 1. The root's trace is the sum of
    the singular values of A A'^T with S = A^T A and S' = A'^T A': no root of a D x D matrix, which fewer images than
    features would leave singular, is taken.
    """
    first, second = _pair(features, reference)
    a, b = _centred(first), _centred(second)
    apart = float(np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2))
    shared = float(np.linalg.svd(a @ b.T, compute_uv=False).sum())
    spread = float(np.sum(a**2) + np.sum(b**2))
    return max(apart + spread - 2 * shared, 0.0)


def kid(features: ArrayLike, reference: ArrayLike) -> float:
    """The unbiased squared MMD of features [N, D] and [M, D] under (x.y / D + 1)^3; N and M at least 2.

    Pairs of an image with itself are left out, so two samples of one distribution give 0 on average.
    """
    first, second = _pair(features, reference)
    return (
        _others(_kernel(first, first))
        + _others(_kernel(second, second))
        - 2 * float(_kernel(first, second).mean())
    )


def _kernel(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray((a @ b.T / a.shape[1] + 1.0) ** DEGREE)


def _others(kernel: FloatArray) -> float:
    """The mean of a kernel [N, N] over pairs of different images."""
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def _centred(features: FloatArray) -> FloatArray:
    return np.asarray((features - features.mean(axis=0)) / np.sqrt(len(features) - 1))


def _pair(features: ArrayLike, reference: ArrayLike) -> tuple[FloatArray, FloatArray]:
    both = []
    for name, value in (("features", features), ("reference", reference)):
        one = np.asarray(value, dtype=np.float64)
        if one.ndim != 2 or len(one) < 2 or not one.shape[1]:
            raise ValueError(f"{name}: shape {one.shape}; need [N, D] with at least two images")
        if not np.isfinite(one).all():
            raise ValueError(f"{name}: NaN or infinite entries")
        both.append(one)
    first, second = both
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features {first.shape} and reference {second.shape}: need equal widths")
    return first, second
