"""How alike images are, and how sharp their mean is. N: images, H and W: sides; floats [N, H, W].

Every score is one number an image, float64 [N], so that it can be bootstrapped. Where an image leaves it
undefined (a correlation with a constant) it is NaN, where a difference is absent the PSNR is infinite:
`mean_defined` counts both and never averages them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# Wang et al. (2004): an 11 x 11 Gaussian window of std 1.5 and the two constants, for a data range of 1.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
RANGE_SLACK = 1e-6  # float32 rounding at the ends of [0, 1]


class DefinedMean(NamedTuple):
    """The mean over the finite entries (None if there are none), and how many entries were not."""

    mean: float | None
    undefined: int


class Sharpness(NamedTuple):
    """`gradient`: root mean square gradient of the mean image, per pixel. `kept`: the square of it over
    the mean of the images' own, in [0, 1]; None when no image varies."""

    gradient: float
    kept: float | None


def mean_defined(values: ArrayLike) -> DefinedMean:
    """The mean of scores [N] over those that are finite, and the count of the others."""
    scores = np.asarray(values, dtype=np.float64)
    finite = scores[np.isfinite(scores)]
    return DefinedMean(float(finite.mean()) if finite.size else None, scores.size - finite.size)


def mse(image: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Mean squared error of each image, [N]."""
    return _each(_mse, *_pair(image, reference))


def psnr(image: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Peak signal-to-noise ratio of each image in dB, [N], for a data range of 1; infinite if equal.

    ValueError where the reference leaves [0, 1].
    """
    return psnr_of_mse(_each(_mse, *_unit_pair(image, reference)))


def psnr_of_mse(error: ArrayLike) -> FloatArray:
    """Mean squared errors [...] as PSNR in dB for a data range of 1; infinite where the error is 0.

    Of the mean error over a set it is what papers print; it is at most the mean of the images' PSNR.
    ValueError for an error that is negative or NaN.
    """
    errors = np.asarray(error, dtype=np.float64)
    if not (errors >= 0).all():
        raise ValueError("error: negative or NaN entries; need mean squared errors")
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(errors))


def ssim(image: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Structural similarity of each image (Wang et al., 2004), [N] in [-1, 1], for a data range of 1.

    Gaussian window of 11 x 11 pixels and std 1.5; the mean is over the windows that lie wholly inside.
    ValueError where the reference leaves [0, 1] or a side is below 11.
    """
    first, second = _unit_pair(image, reference)
    if min(first.shape[1:]) < SSIM_WINDOW:
        raise ValueError(f"images: shape {first.shape}; SSIM needs sides of at least {SSIM_WINDOW}")
    return _each(_ssim, first, second)


def ncc(image: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Normalised cross-correlation of each image, [N] in [-1, 1]; NaN where one of the two is constant.

    It does not see brightness or contrast.
    """
    return _each(_ncc, *_pair(image, reference))


def edge_mse(image: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Mean squared length of the difference of gradients (Sobel, per pixel) of each image, [N].

    Over the pixels with a whole 3 x 3 neighbourhood; a lost, an invented and a moved edge all count.
    ValueError where a side is below 3.
    """
    first, second = _pair(image, reference)
    _check_sobel(first)
    return _each(lambda a, b: _gradient_energy(a - b), first, second)


def mean_image_sharpness(images: ArrayLike) -> Sharpness:
    """How sharp the mean of images is: aligned images keep the edges that they share.

    The two numbers are read together: more contrast raises `gradient` alone, blurring every image raises
    `kept` alone. With N images that share nothing `kept` is about 1/N, so compare only sets of equal
    N. Gradients are Sobel's, over the pixels with a whole 3 x 3 neighbourhood. ValueError where a side is
    below 3.
    """
    stack = _images(images, "images")
    _check_sobel(stack)
    mean, energy = np.zeros(stack.shape[1:]), 0.0
    for one in stack:  # image by image, so that a thousand need no copy in float64
        mean += one.astype(np.float64) / len(stack)
        energy += _gradient_energy(one.astype(np.float64)) / len(stack)
    of_mean = _gradient_energy(mean)
    return Sharpness(float(np.sqrt(of_mean)), of_mean / energy if energy else None)


def _mse(image: FloatArray, reference: FloatArray) -> float:
    return float(np.mean((image - reference) ** 2))


def _ncc(image: FloatArray, reference: FloatArray) -> float:
    if np.ptp(image) == 0 or np.ptp(reference) == 0:
        return float("nan")
    a, b = image - image.mean(), reference - reference.mean()
    return float(np.clip(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)), -1, 1))


def _ssim(image: FloatArray, reference: FloatArray) -> float:
    mean_a, mean_b = _window(image), _window(reference)
    var_a = _window(image**2) - mean_a**2
    var_b = _window(reference**2) - mean_b**2
    covariance = _window(image * reference) - mean_a * mean_b
    light = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (var_a + var_b + SSIM_C2)
    return float(np.mean(light * structure))


def _window(image: FloatArray) -> FloatArray:
    """Gaussian means over whole windows, [H - 10, W - 10]."""
    distance = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weight = np.exp(-(distance**2) / (2 * SSIM_SIGMA**2))
    weight /= weight.sum()
    height, width = image.shape[0] - SSIM_WINDOW + 1, image.shape[1] - SSIM_WINDOW + 1
    rows = sum(w * image[i : i + height] for i, w in enumerate(weight))
    return np.asarray(sum(w * rows[:, i : i + width] for i, w in enumerate(weight)))


def _gradient_energy(image: FloatArray) -> float:
    """Mean squared length of Sobel's gradient, scaled to be 1 on a ramp of 1 per pixel."""
    down = (image[2:] - image[:-2]) / 2
    right = (image[:, 2:] - image[:, :-2]) / 2
    dy = (down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]) / 4
    dx = (right[:-2] + 2 * right[1:-1] + right[2:]) / 4
    return float(np.mean(dx**2 + dy**2))


def _each(
    score: Callable[[FloatArray, FloatArray], float], image: NDArray, reference: NDArray
) -> FloatArray:
    """A score of every pair; float64 is made pair by pair, not for the whole set at once."""
    pairs = zip(image, reference, strict=True)
    return np.array([score(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs])


def _unit_pair(image: ArrayLike, reference: ArrayLike) -> tuple[NDArray, NDArray]:
    first, second = _pair(image, reference)
    low, high = second.min(), second.max()
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        raise ValueError(f"reference: values from {low:g} to {high:g}; scale both images to [0, 1]")
    return first, second


def _pair(image: ArrayLike, reference: ArrayLike) -> tuple[NDArray, NDArray]:
    first, second = _images(image, "image"), _images(reference, "reference")
    if first.shape != second.shape:
        raise ValueError(f"image {first.shape} and reference {second.shape}: need equal shapes")
    return first, second


def _images(value: ArrayLike, name: str) -> NDArray:
    images = np.asarray(value)
    if images.ndim != 3 or not images.size or images.dtype.kind != "f":
        raise ValueError(
            f"{name}: {images.dtype} {images.shape}; need floats [N, H, W] (divide uint8 by 255)"
        )
    if not np.isfinite(images).all():
        raise ValueError(f"{name}: NaN or infinite pixels")
    return images


def _check_sobel(images: NDArray) -> None:
    if min(images.shape[1:]) < 3:
        raise ValueError(f"images: shape {images.shape}; gradients need sides of at least 3")
