"""Blur against scipy's at every pixel, noise by its moments, deconvolution against plain NumPy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch import Tensor

from cxrbench.nn.blur import (
    add_noise,
    blur_matrix,
    gaussian_blur,
    gaussian_kernel,
    shift_variant_blur,
    sigma_map,
)
from cxrbench.nn.deconvolution import richardson_lucy, wiener

Array = NDArray[np.float64]


def random_images(count: int = 2, height: int = 40, width: int = 56) -> Tensor:
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(0))


def chests(side: int = 64) -> Tensor:
    """Two images [2, 1, S, S] with broad shades, sharp edges and fine lines, bright at the border."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    lungs = ((x.abs() - 0.45) ** 2 / 0.1 + y**2 / 0.5 < 1).float()
    ribs = (torch.sin(14 * y + 3 * x**2) > 0.6).float()
    image = 0.85 - 0.5 * lungs + 0.15 * ribs - 0.1 * y
    return torch.stack([image, image.flip(0)])[:, None].clamp(0, 1)


def reference(image: Tensor, sigma: float) -> Array:
    return np.stack([gaussian_filter(one.double().numpy(), sigma) for one in image[:, 0]])


def psnr(image: Tensor, truth: Tensor) -> Tensor:
    return -10 * (image - truth).square().mean(dim=(1, 2, 3)).log10()


# --- the Gaussian


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.3, 0.5, 1.0, 1.37, 2.0, 4.0, 12.0, 70.0])
def test_blur_is_that_of_scipy_at_the_borders_too(sigma: float) -> None:
    image = random_images()
    blurred = gaussian_blur(image, sigma)
    assert blurred.dtype == torch.float32
    assert blurred.shape == image.shape
    np.testing.assert_allclose(blurred[:, 0].numpy(), reference(image, sigma), rtol=0, atol=1e-7)


def test_every_image_can_have_its_own_sigma() -> None:
    image = random_images(4)
    sigmas = [0.0, 0.7, 2.0, 9.0]
    blurred = gaussian_blur(image, torch.tensor(sigmas))
    for row, sigma in enumerate(sigmas):
        expected = gaussian_blur(image[row : row + 1], sigma)[0]
        torch.testing.assert_close(blurred[row], expected, rtol=0, atol=1e-6)


def test_blur_is_float32_under_autocast() -> None:
    image = random_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blurred = gaussian_blur(image, 2.0)
    assert blurred.dtype == torch.float32
    assert torch.equal(blurred, gaussian_blur(image, 2.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_blur_on_a_gpu_does_not_round_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    image = random_images()
    blurred = gaussian_blur(image.cuda(), 2.0).cpu()[:, 0]
    np.testing.assert_allclose(blurred.numpy(), reference(image, 2.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.4, 2.0, 30.0])
def test_the_blur_of_an_axis_is_symmetric_and_keeps_the_mean(sigma: float) -> None:
    matrix = blur_matrix(sigma, 24)[0]
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-15)
    torch.testing.assert_close(matrix.sum(1), torch.ones(24).double(), rtol=0, atol=1e-14)
    expected = gaussian_filter1d(np.eye(24), sigma, axis=0)
    np.testing.assert_allclose(matrix.numpy(), expected, rtol=0, atol=1e-14)


def test_the_printed_formula_is_a_narrower_blur_that_halves_the_brightness() -> None:
    sigma, distance = 2.0, torch.arange(-32, 32).double()
    kernel = gaussian_kernel(sigma, 32, literal=True)[0].roll(
        32
    )  # as a row: distance 0 in the middle
    assert (kernel.sum() ** 2).item() == pytest.approx(0.5, abs=1e-6)
    variance = (kernel * distance**2).sum() / kernel.sum()
    assert variance.sqrt().item() == pytest.approx(sigma / math.sqrt(2), rel=1e-4)
    blurred = gaussian_blur(torch.full((1, 1, 32, 32), 0.8), sigma, literal=True)
    torch.testing.assert_close(blurred, torch.full_like(blurred, 0.4), rtol=0, atol=1e-6)
    assert gaussian_blur(torch.full((1, 1, 32, 32), 0.8), sigma).mean().item() == pytest.approx(0.8)


def test_the_gradient_of_a_blur_is_the_blurred_gradient() -> None:
    image, weight = random_images().requires_grad_(), random_images().flip(0)
    (gaussian_blur(image, 1.5) * weight).sum().backward()
    torch.testing.assert_close(image.grad, gaussian_blur(weight, 1.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf"), torch.ones(2, 2)])
def test_what_is_no_sigma_is_refused(sigma: float | Tensor) -> None:
    with pytest.raises(ValueError, match="sigma"):
        gaussian_blur(random_images(), sigma)
    with pytest.raises(ValueError, match="sigma"):
        gaussian_kernel(sigma, 8)


@pytest.mark.parametrize("blur", [gaussian_blur, wiener, richardson_lucy])
def test_images_and_sigmas_that_do_not_fit_are_refused(blur: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"shape \[3\] for 2 images"):
        blur(random_images(), torch.ones(3))
    with pytest.raises(ValueError, match="uint8"):
        blur(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 1.0)
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        blur(torch.zeros(8, 8), 1.0)


def test_the_printed_formula_has_no_sigma_of_zero() -> None:
    with pytest.raises(ValueError, match="sigma is 0"):
        gaussian_kernel(0.0, 8, literal=True)


# --- blur that changes over the image


def test_maps_of_sigma() -> None:
    radius = sigma_map(5, 9, 1.0, 3.0, "radius")
    assert radius[2, 4] == 1
    assert radius[0, 0] == radius[-1, -1] == 3
    assert radius[2, 8].item() == pytest.approx(1 + 2 * 4 / math.hypot(2, 4))
    down, right = sigma_map(5, 9, 1.0, 3.0, "down"), sigma_map(5, 9, 1.0, 3.0, "right")
    assert down[:, 3].tolist() == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0])
    assert right[2].tolist() == pytest.approx(np.linspace(1, 3, 9).tolist())
    assert torch.equal(down, down[:, :1].expand(5, 9))
    with pytest.raises(ValueError, match="law is 'up'"):
        sigma_map(5, 9, 1.0, 3.0, "up")


def test_an_even_map_is_the_plain_blur() -> None:
    image = random_images()
    found = shift_variant_blur(image, torch.full((40, 56), 1.5))
    assert torch.equal(found, gaussian_blur(image, 1.5))


@pytest.mark.parametrize("law", ["radius", "down", "right"])
def test_each_pixel_is_blurred_with_its_own_sigma(law: str) -> None:
    image, stds = chests(48), sigma_map(48, 48, 0.5, 3.0, law)
    found = shift_variant_blur(image, stds)
    pixels = [(0, 0), (24, 24), (47, 10), (13, 40), (30, 5)]
    for y, x in pixels:
        exact = gaussian_blur(image, float(stds[y, x]))[:, :, y, x]
        torch.testing.assert_close(found[:, :, y, x], exact, rtol=0, atol=0.01)
    plain = [gaussian_blur(image, s) for s in (0.5, 1.75, 3.0)]
    assert all((found - other).abs().max() > 0.05 for other in plain)


def test_the_blend_has_the_variance_that_was_asked_for() -> None:
    side, stds = 48, sigma_map(48, 48, 1.0, 3.0, "down")
    x = torch.arange(side).double().expand(1, 1, side, side)
    first, second = (shift_variant_blur(p.float(), stds, levels=3) for p in (x, x**2))
    middle = slice(16, 32)  # farther from the border than the widest kernel reaches
    variance = (second - first**2)[0, 0, :, middle].mean(dim=1).double()
    torch.testing.assert_close(variance, stds[:, 0] ** 2, rtol=3e-3, atol=0)


def test_what_does_not_vary_stays_as_it_is() -> None:
    image = torch.full((1, 1, 32, 32), 0.7)
    found = shift_variant_blur(image, sigma_map(32, 32, 0.0, 4.0))
    torch.testing.assert_close(found, image, rtol=0, atol=1e-6)


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need \[40, 56\]"):
        shift_variant_blur(random_images(), torch.ones(56, 40))
    with pytest.raises(ValueError, match="levels is 1"):
        shift_variant_blur(random_images(), sigma_map(40, 56, 1, 2), levels=1)
    with pytest.raises(ValueError, match="sigma"):
        shift_variant_blur(random_images(), sigma_map(40, 56, -1, 2))


# --- noise


@pytest.mark.parametrize("value", [0.2, 0.6])
def test_noise_has_the_variance_of_its_counts_and_its_electronics(value: float) -> None:
    image = torch.full((1, 1, 300, 300), value)
    seeds = [7]
    counted = add_noise(image, photons=500, seeds=seeds)
    electronic = add_noise(image, std=0.03, seeds=seeds)
    both = add_noise(image, photons=500, std=0.03, seeds=seeds)
    for noisy, variance in (
        (counted, value / 500),
        (electronic, 9e-4),
        (both, value / 500 + 9e-4),
    ):
        assert noisy.mean().item() == pytest.approx(value, abs=6 * math.sqrt(variance) / 300)
        assert noisy.var().item() == pytest.approx(variance, rel=0.03)
    assert torch.equal((counted * 500).round() / 500, counted), "whole counts"


def test_seeded_noise_depends_on_the_seed_alone() -> None:
    image = random_images(3)
    noisy = add_noise(image, photons=100, std=0.1, seeds=[5, 6, 7])
    again = add_noise(image.flip(0)[:2], photons=100, std=0.1, seeds=[7, 6])
    assert torch.equal(noisy[2], again[0])
    assert torch.equal(noisy[1], again[1])
    same = add_noise(image[:1].expand(2, -1, -1, -1), std=0.1, seeds=[1, 2])
    assert not torch.equal(same[0], same[1])


def test_noise_from_a_generator_or_from_the_seeds_of_the_step() -> None:
    image, options = random_images(), {"photons": 100.0, "std": 0.1}
    one, two = (
        add_noise(image, **options, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one, two)
    torch.manual_seed(3)
    three = add_noise(image, **options)
    assert torch.equal(one, three)
    assert not torch.equal(one, add_noise(image, **options))


def test_noisy_images_are_images() -> None:
    noisy = add_noise(random_images(), photons=3, std=0.5, seeds=[0, 1])
    assert noisy.min() == 0
    assert noisy.max() == 1
    assert torch.equal(add_noise(random_images()), random_images()), "none was asked for"


def test_noise_that_cannot_be_is_refused() -> None:
    image, generator = random_images(), torch.Generator()
    for wrong in ({"photons": 0.0}, {"photons": -1.0}, {"std": -0.1}, {"std": float("nan")}):
        with pytest.raises(ValueError, match="photons is"):
            add_noise(image, **wrong)
    with pytest.raises(ValueError, match="no generator"):
        add_noise(image, std=0.1, generator=generator, seeds=[0, 1])
    with pytest.raises(ValueError, match="2, one of each image"):
        add_noise(image, std=0.1, seeds=[0])


# --- deconvolution


@pytest.mark.parametrize("restore", [wiener, richardson_lucy])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_restoring_gains_inside_and_at_the_borders(
    restore: Callable[..., Tensor], sigma: float
) -> None:
    sharp = chests()
    blurred = gaussian_blur(sharp, sigma)
    restored = restore(blurred, sigma)
    assert restored.dtype == torch.float32
    assert (psnr(restored, sharp) > psnr(blurred, sharp) + 1).all()
    for edge in (
        np.s_[..., :6, :], np.s_[..., -6:, :], np.s_[..., :6], np.s_[..., -6:],
    ):  # fmt: skip
        assert (psnr(restored[edge], sharp[edge]) > psnr(blurred[edge], sharp[edge]) + 1).all()
    assert restored.min() >= 0
    assert restored.max() <= 1


def test_wiener_undoes_a_blur_without_noise() -> None:
    sharp = random_images()
    restored = wiener(gaussian_blur(sharp, 0.7), 0.7, noise_to_signal=1e-10)
    torch.testing.assert_close(restored, sharp, rtol=0, atol=2e-3)


@pytest.mark.parametrize("ratio", [1e-4, 1e-2, 1.0])
def test_wiener_is_the_filter_of_the_cosine_transform(ratio: float) -> None:
    """The cosine transform is what diagonalises a blur with mirrored borders; scipy gives both."""
    sigma, seen, probe = 1.5, random_images(1), random_images(1).flip(3)[0, 0].double().numpy()
    transfer = dctn(gaussian_filter(probe, sigma)) / dctn(probe)
    image = seen[0, 0].double().numpy()
    restored = idctn(dctn(image - image.mean()) * transfer / (transfer**2 + ratio)) + image.mean()
    found = wiener(seen, sigma, ratio)[0, 0].numpy()
    np.testing.assert_allclose(found, restored.clip(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ratio", [1e-4, 0.5])
def test_wiener_keeps_the_brightness(ratio: float) -> None:
    image = torch.full((1, 1, 16, 16), 0.6)
    torch.testing.assert_close(wiener(image, 2.0, ratio), image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("iterations", [1, 6])
def test_richardson_lucy_is_its_formula(flat: bool, iterations: int) -> None:
    seen = gaussian_blur(chests(32), 2.0)
    image = seen[0, 0].double().numpy()
    estimate = np.full_like(image, 0.5) if flat else image
    for _ in range(iterations):
        estimate = estimate * gaussian_filter(image / gaussian_filter(estimate, 2.0), 2.0)
    found = richardson_lucy(seen, 2.0, iterations, flat_start=flat)[0, 0].numpy()
    np.testing.assert_allclose(found, estimate.clip(0, 1), rtol=0, atol=1e-6)


def test_richardson_lucy_keeps_the_sum_and_stands_black() -> None:
    dim = 0.5 * chests()
    restored = richardson_lucy(gaussian_blur(dim, 2.0), 2.0)
    torch.testing.assert_close(restored.sum(dim=(2, 3)), dim.sum(dim=(2, 3)), rtol=1e-5, atol=0)
    assert torch.equal(richardson_lucy(torch.zeros(1, 1, 8, 8), 1.0), torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("restore", [wiener, richardson_lucy])
def test_restoring_takes_a_sigma_of_each_image(restore: Callable[..., Tensor]) -> None:
    image = chests()
    found = restore(image, torch.tensor([1.0, 2.5]))
    for row, sigma in enumerate((1.0, 2.5)):
        expected = restore(image[row : row + 1], sigma)[0]
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(restore(image, torch.tensor([1.0, 2.5])), found)


def test_what_cannot_be_restored_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_to_signal is 0"):
        wiener(chests(), 1.0, 0)
    with pytest.raises(ValueError, match="iterations is 0"):
        richardson_lucy(chests(), 1.0, 0)
