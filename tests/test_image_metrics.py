"""Image scores by hand, against torchmetrics, and at the ends where they have no value."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, shift
from torchmetrics.functional.image import structural_similarity_index_measure

from cxrbench.metrics.images import (
    edge_mse,
    mean_defined,
    mean_image_sharpness,
    mse,
    ncc,
    psnr,
    psnr_of_mse,
    ssim,
)

Array = NDArray[np.float64]
PAIRS = [mse, psnr, ssim, ncc, edge_mse]


def smooth(count: int = 3, height: int = 32, width: int = 40, seed: int = 0) -> Array:
    noise = np.random.default_rng(seed).random((count, height, width))
    image = np.stack([gaussian_filter(one, 2) for one in noise])
    return (image - image.min()) / np.ptp(image)


# --- errors


def test_mse_and_psnr_by_hand() -> None:
    image = np.array([[[0.0, 0.5], [1.0, 1.0]], [[0.1, 0.1], [0.1, 0.1]]])
    reference = np.array([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert mse(image, reference).tolist() == pytest.approx([1.25 / 4, 0.01])
    assert psnr(image, reference).tolist() == pytest.approx([10 * math.log10(4 / 1.25), 20.0])


@pytest.mark.parametrize(("error", "decibels"), [(2.447e-5, 46.1), (1.1102e-4, 39.5)])
def test_psnr_of_the_deblurring_report_s_errors(error: float, decibels: float) -> None:
    assert round(float(psnr_of_mse(error)), 1) == decibels


def test_psnr_of_no_difference_is_infinite_and_of_no_error_refused() -> None:
    image = smooth()
    assert psnr(image, image).tolist() == [math.inf] * 3
    for wrong in (-1e-9, float("nan")):
        with pytest.raises(ValueError, match="mean squared errors"):
            psnr_of_mse([0.1, wrong])


def test_the_psnr_of_a_set_is_at_most_the_mean_psnr() -> None:
    errors = np.array([1e-3, 1e-5])
    assert psnr_of_mse(errors.mean()) < psnr_of_mse(errors).mean()


# --- structure


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ssim_is_that_of_torchmetrics(noise: float) -> None:
    reference = smooth()
    image = (reference + noise * np.random.default_rng(1).standard_normal(reference.shape)).clip(
        0, 1
    )
    _, every = structural_similarity_index_measure(
        torch.tensor(image)[:, None], torch.tensor(reference)[:, None], data_range=1.0,
        return_full_image=True,
    )  # fmt: skip
    inside = every[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # where no window meets its padding
    np.testing.assert_allclose(ssim(image, reference), inside.numpy(), rtol=0, atol=1e-7)


def test_ssim_of_one_window_by_hand() -> None:
    image, reference = smooth(1, 11, 11, seed=1)[0], smooth(1, 11, 11, seed=2)[0]
    line = np.exp(-(np.linspace(-5, 5, 11) ** 2) / 4.5)
    weight = np.outer(line, line) / line.sum() ** 2
    a, b = np.sum(weight * image), np.sum(weight * reference)
    va, vb = np.sum(weight * (image - a) ** 2), np.sum(weight * (reference - b) ** 2)
    cov = np.sum(weight * (image - a) * (reference - b))
    expected = (2 * a * b + 1e-4) * (2 * cov + 9e-4) / ((a**2 + b**2 + 1e-4) * (va + vb + 9e-4))
    assert ssim(image[None], reference[None])[0] == pytest.approx(expected, abs=1e-12)


def test_ssim_of_an_image_with_itself_and_of_two_flat_ones() -> None:
    image = smooth()
    assert ssim(image, image).tolist() == pytest.approx([1.0] * 3)
    flat = np.stack([np.full((16, 16), v) for v in (0.2, 0.6)])
    expected = (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert ssim(flat, flat[::-1]).tolist() == pytest.approx([expected] * 2)


def test_ssim_needs_a_window() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        ssim(np.zeros((1, 10, 20)), np.zeros((1, 10, 20)))


def test_ncc_sees_neither_brightness_nor_contrast() -> None:
    image, other = smooth(seed=1), smooth(seed=2)
    assert ncc(image, 0.3 * image + 0.2).tolist() == pytest.approx([1.0] * 3)
    assert ncc(image, 1 - image).tolist() == pytest.approx([-1.0] * 3)
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(image, other, strict=True)]
    assert ncc(image, other).tolist() == pytest.approx(expected)
    assert ncc(5 * other - 1, image).tolist() == pytest.approx(expected)


def test_ncc_with_a_constant_is_undefined_and_counted() -> None:
    image = smooth(2)
    flat = image.copy()
    flat[0] = 0.1
    for found in (ncc(flat, image), ncc(image, flat)):
        assert np.isnan(found[0])
        assert found[1] == pytest.approx(1.0)
        assert mean_defined(found) == (pytest.approx(1.0), 1)


def test_means_over_what_is_defined() -> None:
    assert mean_defined([1.0, math.nan, 3.0, math.inf]) == (2.0, 2)
    assert mean_defined([math.nan]) == (None, 1)
    assert mean_defined([]) == (None, 0)


# --- edges


def test_gradients_are_per_pixel() -> None:
    """A ramp of 0.1 a pixel along each axis against nothing: 0.1^2 + 0.1^2, the slope's square."""
    ramp = 0.1 * np.add.outer(np.arange(8.0), np.arange(6.0))[None]
    assert edge_mse(ramp, 0 * ramp)[0] == pytest.approx(0.02)
    assert edge_mse(ramp + 0.3, ramp)[0] == pytest.approx(0.0)
    assert edge_mse(ramp[:, ::-1], ramp)[0] == pytest.approx(0.04), "a turned edge is a lost one"


def test_edge_mse_rises_with_blur() -> None:
    image = (smooth() > 0.5).astype(float)
    errors = [
        edge_mse(np.stack([gaussian_filter(one, s) for one in image]), image) for s in (0.5, 1, 2)
    ]
    assert (errors[0] < errors[1]).all()
    assert (errors[1] < errors[2]).all()


def test_a_mean_of_equal_images_keeps_all_and_of_strangers_one_part_in_n() -> None:
    image = smooth(1)[0]
    found = mean_image_sharpness(np.stack([image] * 4))
    assert found.kept == pytest.approx(1.0)
    assert found.gradient**2 == pytest.approx(edge_mse(image[None], 0 * image[None])[0])
    strangers = mean_image_sharpness(np.random.default_rng(0).random((16, 64, 64)))
    assert strangers.kept == pytest.approx(1 / 16, rel=0.1)


def test_aligned_images_have_the_sharper_mean() -> None:
    image = smooth(1, 48, 48)[0]

    def spread(pixels: float) -> Array:
        moves = np.random.default_rng(0).normal(0, pixels, (12, 2))
        return np.stack([shift(image, move, mode="nearest") for move in moves])

    sharp, soft = mean_image_sharpness(spread(0.5)), mean_image_sharpness(spread(3.0))
    assert sharp.gradient > soft.gradient
    assert sharp.kept > soft.kept


def test_what_the_two_sharpnesses_do_not_see() -> None:
    images = smooth(8)
    plain, faint = mean_image_sharpness(images), mean_image_sharpness(images / 2)
    assert faint.kept == pytest.approx(plain.kept)
    assert faint.gradient == pytest.approx(plain.gradient / 2)
    assert mean_image_sharpness(np.full((3, 8, 8), 0.3)) == (0.0, None)


# --- what is refused


@pytest.mark.parametrize("score", PAIRS)
def test_float32_is_scored_in_float64(score: Callable[..., Array]) -> None:
    image, reference = (smooth(seed=s).astype(np.float32) for s in (1, 2))
    found = score(image, reference)
    assert found.dtype == np.float64
    assert found.shape == (3,)
    exact = score(image.astype(np.float64), reference.astype(np.float64))
    np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("score", PAIRS)
def test_images_that_are_no_pair_are_refused(score: Callable[..., Array]) -> None:
    image = smooth()
    for wrong, says in (
        ((image * 255).astype(np.uint8), "divide uint8 by 255"),
        (image[0], r"\[N, H, W\]"),
        (image[:0], r"\[N, H, W\]"),
        (np.where(image > 0.5, np.nan, image), "NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=f"image: .*{says}"):
            score(wrong, image)
        with pytest.raises(ValueError, match=f"reference: .*{says}"):
            score(image, wrong)
    with pytest.raises(ValueError, match="equal shapes"):
        score(image, image[:2])


@pytest.mark.parametrize("score", [psnr, ssim])
def test_scores_with_a_data_range_want_a_reference_within_it(score: Callable[..., Array]) -> None:
    image = smooth()
    for wrong in (2 * image - 1, 255 * image):
        with pytest.raises(ValueError, match=r"scale both images to \[0, 1\]"):
            score(image, wrong)
    assert np.isfinite(score(1.2 * image, image)).all(), "a network's values may lie above 1"


def test_gradients_need_a_neighbourhood() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        edge_mse(np.zeros((1, 2, 9)), np.zeros((1, 2, 9)))
    with pytest.raises(ValueError, match="at least 3"):
        mean_image_sharpness(np.zeros((1, 9, 2)))
