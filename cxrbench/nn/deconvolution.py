"""Deblurring without training, for a known Gaussian: Wiener's filter and Richardson-Lucy.

Both go by the blur of `blur.gaussian_blur`, borders included. Shapes: B batch, H and W sides.
"""

from functools import lru_cache

import torch
from torch import Tensor

from cxrbench.nn.blur import Sigma, check_blur, gaussian_kernel, matrix_on, multiply

TINY = 1e-12  # keeps 0/0 out of black regions, far below a grey level


def wiener(image: Tensor, sigma: Sigma, noise_to_signal: float = 1e-3) -> Tensor:
    """Blurred images [B, 1, H, W] in [0, 1] to restored ones, float32 in [0, 1] (Wiener, 1949).

    `sigma` is the blur's std in pixels, a number or [B]; `noise_to_signal` the ratio of the noise's
    power to the image's, taken as the same at every frequency. The image is followed by its mirror image
    on both axes: on that period the blur is a product of spectra, so the borders are restored like
    the inside. Raises ValueError for a ratio that is not above 0, a sigma that is no std
    and images that are not floats.
    """
    if not noise_to_signal > 0:
        raise ValueError(f"noise_to_signal is {noise_to_signal}; it must be above 0")
    check_blur(image, sigma)
    height, width = image.shape[2:]
    rows, columns = (_transfer_on(image.device, sigma, side) for side in (height, width))
    transfer = rows[:, None, :, None] * columns[:, None, None, : width + 1]
    seen = image.double()
    mean = seen.mean(dim=(2, 3), keepdim=True)
    varying = seen - mean  # the filter would darken what does not vary
    tall = torch.cat([varying, varying.flip(2)], dim=2)
    spectrum = torch.fft.rfft2(torch.cat([tall, tall.flip(3)], dim=3))
    spectrum = spectrum * transfer / (transfer.square() + noise_to_signal)
    restored: Tensor = torch.fft.irfft2(spectrum, s=(2 * height, 2 * width))
    return (restored[..., :height, :width] + mean).clamp(0, 1).float()


def richardson_lucy(
    image: Tensor, sigma: Sigma, iterations: int = 6, *, flat_start: bool = False
) -> Tensor:
    """Blurred images [B, 1, H, W] in [0, 1] to restored ones, float32 in [0, 1].

    Richardson (1972) and Lucy (1974): most likely under Poisson noise, never negative. The blur is its
    own adjoint here, so each step is estimate *= blur(image / blur(estimate)). It starts from the image;
    `flat_start` starts from grey as Richardson did, which spends the first step on blurring the image
    once more. `sigma` is the blur's std in pixels, a number or [B].

    Raises ValueError for fewer than 1 iteration, a sigma that is no std and images that are not floats.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1")
    check_blur(image, sigma)
    height, width = image.shape[2:]
    rows, columns = (matrix_on(image.device, sigma, side) for side in (height, width))
    seen = image.double().clamp(min=0)
    estimate = torch.full_like(seen, 0.5) if flat_start else seen
    for _ in range(iterations):
        ratio = seen / multiply(rows, estimate, columns).clamp(min=TINY)
        estimate = estimate * multiply(rows, ratio, columns)
    return estimate.clamp(0, 1).float()


def _transfer_on(device: torch.device, sigma: Sigma, side: int) -> Tensor:
    if isinstance(sigma, Tensor):
        return _transfer(sigma, side).to(device, non_blocking=True)
    return _kept_transfer(device, sigma, side)


@lru_cache(maxsize=32)
def _kept_transfer(device: torch.device, sigma: float, side: int) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():  # else no training could use it later
        return _transfer(sigma, side).to(device)


def _transfer(sigma: Sigma, side: int) -> Tensor:
    """What the blur leaves of each frequency of the period 2 `side`, float64 [1 or B, 2 side]."""
    spectrum: Tensor = torch.fft.fft(gaussian_kernel(sigma, side))
    return spectrum.real
