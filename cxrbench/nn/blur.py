"""Focal-spot blur of radiographs: Gaussian, the same everywhere or growing over the image, and noise.

Liu's report of 2020 blurs after resizing: sigma is in pixels of the working resolution. Beyond the image
its mirror image goes on (half-sample symmetric: d c b a | a b c d), which makes blurring along an axis a
symmetric matrix whose rows sum to 1. Shapes: B batch, H and W sides; images [B, C, H, W].
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

TRUNCATE = 4.0  # the kernel ends at this many sigmas
Sigma = float | Tensor
Law = Literal["radius", "down", "right"]


def gaussian_kernel(sigma: Sigma, side: int, *, literal: bool = False) -> Tensor:
    """The Gaussian of std `sigma` in pixels, cut at int(4 sigma + 0.5), folded to the period 2 `side`.

    `sigma` is a number or [B], 0 for no blur. Gives float64 [1 or B, 2 side] on sigma's device; entry n
    is the weight at distance n. The period is that of a row followed by its mirror image.

    `literal` is the report's printed formula, which lacks a 2: 1/(2 pi sigma^2) exp(-r^2/sigma^2). In
    two dimensions it sums to 0.5 and its std is sigma/sqrt(2). A curiosity: nobody ran it.

    Raises ValueError for a sigma that is no std.
    """
    std = _as_std(sigma)
    if literal and bool((std == 0).any()):
        raise ValueError("sigma is 0; the literal formula divides by it, so it must be above 0")
    reach = (TRUNCATE * std + 0.5).floor()
    period = 2 * side
    repeats = int(reach.max()) // period + 1
    distance = torch.arange(-repeats * period, repeats * period, device=std.device)
    square = distance.double().square()
    if literal:
        weight = torch.exp(-square / std.square()) / (math.sqrt(2 * math.pi) * std)
    else:
        # A tiny std instead of 0 makes the weights 1 at distance 0, and 0 beyond.
        weight = torch.exp(-square / (2 * std.clamp(min=1e-6).square()))
    weight = weight * (distance.abs() <= reach)
    if not literal:
        weight = weight / weight.sum(dim=1, keepdim=True)
    return weight.view(len(weight), 2 * repeats, period).sum(dim=1)


def blur_matrix(sigma: Sigma, side: int, *, literal: bool = False) -> Tensor:
    """Blurring along one axis as a symmetric float64 matrix [1 or B, side, side]; rows sum to 1.

    `sigma` is in pixels, a number or [B]; `literal` as in `gaussian_kernel`.
    """
    kernel = gaussian_kernel(sigma, side, literal=literal)
    place = torch.arange(side, device=kernel.device)
    direct = (
        place[:, None] - place
    )  # negative distances count from the period's end, as they should
    mirrored = place[:, None] + place + 1
    return kernel[:, direct] + kernel[:, mirrored]


def matrix_on(device: torch.device, sigma: Sigma, side: int, *, literal: bool = False) -> Tensor:
    """`blur_matrix` on a device that nobody waits for; that of a number is kept there."""
    if isinstance(sigma, Tensor):
        return blur_matrix(sigma, side, literal=literal).to(device, non_blocking=True)
    return _kept_matrix(device, sigma, side, literal)


@lru_cache(maxsize=32)
def _kept_matrix(device: torch.device, sigma: float, side: int, literal: bool) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():  # else no training could use it later
        return blur_matrix(sigma, side, literal=literal).to(device)


def gaussian_blur(image: Tensor, sigma: Sigma, *, literal: bool = False) -> Tensor:
    """Images [B, C, H, W] blurred with std `sigma` in pixels, float32 of the same shape.

    `sigma` is a number, or [B] for one of each image (best on the CPU: its largest value is read). Equal
    to scipy.ndimage.gaussian_filter with its defaults, at the borders too. `literal` as in
    `gaussian_kernel`. Raises ValueError for a sigma that is no std or of another length than B.
    """
    check_blur(image, sigma)
    height, width = image.shape[2:]
    rows = matrix_on(image.device, sigma, height, literal=literal)
    columns = matrix_on(image.device, sigma, width, literal=literal)
    return multiply(rows, image.double(), columns).float()


def check_blur(image: Tensor, sigma: Sigma) -> None:
    """ValueError unless images are floats [B, C, H, W] and `sigma` is a number or [B]."""
    _check_image(image)
    if isinstance(sigma, Tensor) and sigma.ndim and sigma.shape != image.shape[:1]:
        raise ValueError(
            f"sigma: shape {list(sigma.shape)} for {len(image)} images; give [B] or a number"
        )


def multiply(rows: Tensor, image: Tensor, columns: Tensor) -> Tensor:
    """Images float64 [B, C, H, W] under matrices [1 or B, H, H] and [1 or B, W, W].

    In float64, which autocast leaves alone, and so does the rounding of float32 products to ten bits
    (TF32) on a GPU.
    """
    return rows[:, None] @ image @ columns[:, None]


def sigma_map(height: int, width: int, start: float, end: float, law: Law = "radius") -> Tensor:
    """The std of the blur in pixels at every pixel, float64 [H, W].

    `radius`: it grows linearly from `start` in the centre to `end` in the corners. `down` and `right`:
    linearly from the first to the last row or column, as across the anode-cathode axis, where the focal
    spot looks smaller from the anode's side (`start`) than from the cathode's (`end`).
    """
    ys, xs = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (height, width))
    if law == "radius":
        y, x = ys * (height - 1), xs * (width - 1)  # in half pixels: the radius is Euclidean
        share = torch.hypot(y[:, None], x) / max(math.hypot(height - 1, width - 1), 1.0)
    elif law == "down":
        share = ((ys + 1) / 2)[:, None].expand(height, width)
    elif law == "right":
        share = ((xs + 1) / 2).expand(height, width)
    else:
        raise ValueError(f"law is {law!r}; it must be radius, down or right")
    return start + (end - start) * share


def shift_variant_blur(image: Tensor, sigma: Tensor, levels: int = 8) -> Tensor:
    """Images [B, C, H, W] blurred with another std at every pixel, `sigma` [H, W] in pixels; float32.

    Every pixel of the result is a mean of its surroundings, so a constant stays constant. It is a blend
    of two blurs out of `levels` evenly spaced stds, in shares that make the blend's variance exactly
    sigma^2. Raises ValueError for fewer than 2 levels or a map of another size.
    """
    _check_image(image)
    if sigma.shape != image.shape[2:]:
        raise ValueError(
            f"sigma: shape {list(sigma.shape)}; need {list(image.shape[2:])}, the image's"
        )
    if levels < 2:
        raise ValueError(f"levels is {levels}; it must be at least 2")
    std = _as_std(sigma.flatten()).view(sigma.shape)
    low, high = float(std.min()), float(std.max())
    if low == high:
        return gaussian_blur(image, low)
    bank = torch.linspace(low, high, levels, dtype=torch.float64)
    square, edges = std.square().to(image.device), bank.square().tolist()
    total = torch.zeros(image.shape, dtype=torch.float32, device=image.device)
    for level, level_std in enumerate(bank.tolist()):
        share = torch.ones_like(square)
        if level > 0:
            share = share.minimum((square - edges[level - 1]) / (edges[level] - edges[level - 1]))
        if level < levels - 1:
            share = share.minimum((edges[level + 1] - square) / (edges[level + 1] - edges[level]))
        total = total + share.clamp(min=0).float() * gaussian_blur(image, level_std)
    return total


def add_noise(
    image: Tensor,
    *,
    photons: float | None = None,
    std: float = 0.0,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Images [B, C, H, W] in [0, 1] with quantum and electronic noise, float32, cut to [0, 1].

    `photons` is the mean count of a pixel of value 1, counts being proportional to the value (None: no
    quantum noise); `std` is that of the Gaussian noise that follows. `seeds`, one for each image, make
    an image's noise independent of its batch and device; `generator` must be on the images' device; with
    neither, torch's global generator is drawn from. Raises ValueError for both at once.
    """
    _check_image(image)
    if (photons is not None and not photons > 0) or not std >= 0:
        raise ValueError(f"photons is {photons} and std {std}; they must be above 0 and at least 0")
    if seeds is None:
        return _noisy(image.float(), photons, std, generator)
    if generator is not None or len(seeds) != len(image):
        raise ValueError(
            f"seeds: need no generator beside them and {len(image)}, one of each image"
        )
    rows = [
        _noisy(row.float(), photons, std, torch.Generator().manual_seed(seed))
        for row, seed in zip(image.cpu(), seeds, strict=True)
    ]
    return torch.stack(rows).to(image.device)


def _noisy(
    image: Tensor, photons: float | None, std: float, generator: torch.Generator | None
) -> Tensor:
    if photons is not None:
        image = torch.poisson(image.clamp(min=0) * photons, generator=generator) / photons
    if std:
        normal = torch.randn(image.shape, generator=generator, device=image.device)
        image = image + std * normal
    return image.clamp(0, 1)


def _as_std(sigma: Sigma) -> Tensor:
    """`sigma` as float64 [1 or B, 1]."""
    std = torch.as_tensor(sigma, dtype=torch.float64)
    if std.ndim > 1 or not std.numel() or not bool((torch.isfinite(std) & (std >= 0)).all()):
        raise ValueError("sigma: need a number or [B], finite and at least 0, in pixels")
    return std.reshape(-1, 1)


def _check_image(image: Tensor) -> None:
    if image.ndim != 4 or not image.is_floating_point():
        raise ValueError(
            f"image: {image.dtype} {list(image.shape)}; need floats [B, C, H, W] (see backbones.to_unit)"
        )
