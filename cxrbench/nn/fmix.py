"""Mixing the images of a batch: FMix (Harris et al., 2020), mixup and CutMix.

Each gives images, a permutation and lam, for lam * loss(y) + (1 - lam) * loss(y[permutation]): one lam
and one mask a batch. The draws are made on the CPU, so that they are the same for any device. Shapes:
B batch, images [B, C, H, W].
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Mixed(NamedTuple):
    """A mixed batch: each image is `lam` itself and 1 - `lam` the image that `permutation` names."""

    image: Tensor  # [B, C, H, W], of the input's type
    permutation: Tensor  # [B], int64, on the images' device
    lam: float  # share of the own image, in [0, 1]; exact for masks: the mean of the mask
    mask: Tensor | None = None  # [H, W] bool, where the own image is; None where all is blended


def fmix(
    image: Tensor,
    *,
    alpha: float = 1.0,
    decay: float = 3.0,
    official_spectrum: bool = False,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Paste the low-frequency regions of `fmix_mask` from another image; lam ~ Beta(alpha, alpha).

    `generator` is a CPU one; without it torch's global generator is drawn from. Raises ValueError for an
    alpha that is not above 0 and for images that are not floats.
    """
    rng = _start(image, alpha, generator)
    lam = float(rng.beta(alpha, alpha))
    height, width = image.shape[2:]
    mask = fmix_mask(height, width, lam, rng, decay=decay, official_spectrum=official_spectrum)
    return _paste(image, mask, rng)


def mixup(image: Tensor, *, alpha: float = 1.0, generator: torch.Generator | None = None) -> Mixed:
    """Blend every pixel with another image's (Zhang et al., 2018); arguments and errors as in `fmix`."""
    rng = _start(image, alpha, generator)
    lam = float(rng.beta(alpha, alpha))
    permutation = _permutation(image, rng)
    return Mixed(lam * image + (1 - lam) * image[permutation], permutation, lam)


def cutmix(image: Tensor, *, alpha: float = 1.0, generator: torch.Generator | None = None) -> Mixed:
    """Paste a box from another image (Yun et al., 2019); arguments and errors as in `fmix`.

    The box has the image's proportions and a share 1 - lam of its area before the border cuts it.
    """
    rng = _start(image, alpha, generator)
    lam = float(rng.beta(alpha, alpha))
    height, width = image.shape[2:]
    top, bottom = _span(height, lam, rng)
    left, right = _span(width, lam, rng)
    mask = np.ones((height, width), dtype=np.bool_)
    mask[top:bottom, left:right] = False
    return _paste(image, mask, rng)


def fmix_mask(
    height: int,
    width: int,
    lam: float,
    rng: np.random.Generator,
    *,
    decay: float = 3.0,
    official_spectrum: bool = False,
) -> NDArray[np.bool_]:
    """The brightest lam * N of the N pixels of a low-frequency image, as a mask [H, W].

    The image is white Gaussian noise whose spectrum is divided by f^decay, f being the frequency in cycles
    a pixel, at least 1/max(H, W): the paper's real part of transformed complex noise. (Complex noise in
    the half spectrum of a real transform would halve the power of what varies along y alone.) lam * N
    is rounded up or down by chance, so the mean over masks is lam.

    `official_spectrum` is a quirk of the published code, which takes the first two rows of the noise for
    its real and imaginary parts: its masks have at most one cycle from left to right.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lam is {lam}; it must be in [0, 1]")
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    scale = np.maximum(np.hypot(fy, fx), 1 / max(height, width)) ** -decay
    if official_spectrum:
        # The rows' entries become frequencies along y, and the two parts frequencies 0 and 1 along x.
        first, second = rng.standard_normal((2, scale.shape[1], 2))
        spectrum = scale[0, :, None] * first + 1j * scale[1, :, None] * second
    else:
        spectrum = scale * np.fft.rfft2(rng.standard_normal((height, width)))
    grey = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))  # fills up with zeros
    wanted = lam * grey.size
    count = int(np.floor(wanted)) + int(rng.random() < wanted % 1)
    mask = np.zeros(grey.size, dtype=np.bool_)
    mask[np.argsort(-grey, axis=None, kind="stable")[:count]] = True
    return mask.reshape(height, width)


def _start(image: Tensor, alpha: float, generator: torch.Generator | None) -> np.random.Generator:
    """NumPy's generator, seeded by one draw from torch's, which has no Beta of a given generator."""
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; it must be above 0")
    if image.ndim != 4 or not image.is_floating_point():
        raise ValueError(
            f"image: {image.dtype} {list(image.shape)}; need floats [B, C, H, W] (see backbones.to_unit)"
        )
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))


def _permutation(image: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.permutation(len(image))).to(image.device, non_blocking=True)


def _paste(image: Tensor, mask: NDArray[np.bool_], rng: np.random.Generator) -> Mixed:
    permutation = _permutation(image, rng)
    own = torch.from_numpy(mask).to(image.device, non_blocking=True)
    mixed = torch.where(own, image, image[permutation])
    return Mixed(mixed, permutation, float(mask.mean()), own)


def _span(side: int, lam: float, rng: np.random.Generator) -> tuple[int, int]:
    """Begin and end of the box on one axis: its centre is anywhere, its length sqrt(1 - lam)."""
    length = round(side * float(np.sqrt(1 - lam)))
    begin = int(rng.integers(side)) - length // 2
    return max(begin, 0), min(begin + length, side)
