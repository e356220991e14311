"""What happens to images in the deblurring method: blurred by the focal spot, and restored.

Sigma is in pixels of the side at which images are read (224 in Liu's report of 2020), so nothing here
rescales or crops. Blurred images are stored in 8 bits before anything restores or classifies them: in
floats without noise an inverse filter would restore nearly all of a blur that no detector lets one undo.
Shapes: B batch, S side.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from cxrbench.core.contract import Transformation
from cxrbench.core.frozen import Frozen
from cxrbench.core.seed import derive_seed
from cxrbench.core.spec import MethodParams, Recipe
from cxrbench.methods.base import Batch, Method, once, weights_in
from cxrbench.nn.backbones import load_whole, to_unit
from cxrbench.nn.blur import (
    Law,
    Sigma,
    add_noise,
    gaussian_blur,
    shift_variant_blur,
    sigma_map,
)
from cxrbench.nn.deconvolution import richardson_lucy, wiener
from cxrbench.nn.unet import LEVELS, UNet

Pixels = npt.NDArray[np.uint8]
SIDE_STEP = 1 << LEVELS  # the U-Net's sides are multiples of it
SSIM_SHARE = 0.1  # of 1 - SSIM in the loss l1+ssim, so that both terms are of one size
GOLDEN = (math.sqrt(5) - 1) / 2

WHOLE = {"train_view": "whole", "validation_view": "whole", "test_view": "whole"}
# Keras' defaults, which the notebook runs with. Float32: bf16 has steps of 0.004 below white, and the report's
# errors are of that size (a mean square of 2.4e-5 is 0.005).
UNET = Recipe(
    epochs=30, batch_size=32, optimizer="adam", learning_rate=1e-3, size=224, load=224,
    precision="32-true", **WHOLE,
)  # fmt: skip


class Degradation(Frozen):
    """What is done to a sharp image besides the blur's std; the paper's blur is the same everywhere."""

    growth: float = Field(1.0, ge=1, description="largest std over the smallest in an image")
    law: Law = "radius"  # how the std grows: to the corners, down, or to the right
    photons: float | None = Field(None, gt=0, description="mean count of a white pixel")
    noise: float = Field(0.0, ge=0, description="std of the detector's noise, white being 1")


def degrade(
    image: Tensor, sigma: Sigma, how: Degradation, *, seeds: Sequence[int] | None = None
) -> Tensor:
    """Sharp images [B, 1, S, S] in [0, 1] to blurred ones, float32, with noise if asked.

    `sigma` is a number or [B]. Noise is drawn from torch's global generator, or from `seeds`, one an image.
    """
    if how.growth == 1:
        blurred = gaussian_blur(image, sigma)
    else:
        stds = torch.as_tensor(sigma, dtype=torch.float64).expand(len(image)).tolist()
        maps = (_map_of(image.shape[-1], std, how) for std in stds)
        pairs = zip(image, maps, strict=True)
        blurred = torch.cat([shift_variant_blur(one[None], std) for one, std in pairs])
    if how.photons is None and not how.noise:
        return blurred
    return add_noise(blurred, photons=how.photons, std=how.noise, seeds=seeds)


def stored(image: Tensor) -> Tensor:
    """Images in [0, 1] as 8 bits keep them."""
    return (image.clamp(0, 1) * 255).round() / 255


def typical_sigma(sigma: float, side: int, how: Degradation) -> float:
    """The one std that filters for a known kernel are told: the root mean square over the image."""
    if how.growth == 1:
        return sigma
    return float(_map_of(side, sigma, how).square().mean().sqrt())


def _map_of(side: int, sigma: float, how: Degradation) -> Tensor:
    return sigma_map(side, side, sigma, sigma * how.growth, how.law)


class Focus(Degradation):
    """A degradation at a side in pixels, with the std of its blur in those pixels."""

    sigma: float = Field(2.0, ge=0)
    side: int = Field(224, ge=16)

    def of_stored(self, images: Pixels, device: str = "cpu") -> Tensor:
        """uint8 [B, S, S] to blurred images [B, 1, S, S] of 8 bits, as floats in [0, 1].

        An image's noise follows from its pixels, so from nothing else that is in the batch.
        """
        noisy = self.photons is not None or self.noise > 0
        seeds = [_seed_of(one) for one in images if noisy]
        image = unit_images(images, device)
        return stored(degrade(image, self.sigma, self, seeds=seeds if noisy else None))

    @property
    def known(self) -> float:
        """The std that a filter is told."""
        return typical_sigma(self.sigma, self.side, self)


def _seed_of(image: Pixels) -> int:
    return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:7], "big")


def unit_images(images: Pixels, device: str = "cpu") -> Tensor:
    """uint8 [B, S, S] to float [B, 1, S, S] in [0, 1]."""
    return to_unit(torch.from_numpy(images)).unsqueeze(1).to(device)


def to_pixels(image: Tensor) -> Pixels:
    """Floats [B, 1, S, S] in [0, 1] to uint8 [B, S, S]."""
    return np.asarray((image[:, 0].clamp(0, 1) * 255).round().byte().cpu().numpy())


class Blur(Transformation):
    """Every image blurred: a `transform` stage."""

    name = "focal-blur"
    version = 1
    Params = Focus
    params: Focus

    def __init__(self, params: Focus) -> None:
        self.params = params
        self.device = "cpu"

    def image_size(self) -> int:
        return self.params.side

    def open(self, inputs: Mapping[str, Path], device: str) -> None:
        self.device = device

    def __call__(self, images: Pixels) -> Pixels:
        return to_pixels(self.params.of_stored(images, self.device))


# --- the U-Net


class UNetParams(MethodParams):
    """The U-Net and its training; the paper's by default."""

    width: int = Field(16, ge=1)
    residual: bool = False
    loss: Literal["mse", "l1+ssim"] = "mse"
    # What the network gets: the blurred image, or Wiener's restoration of it, which it then only mends.
    first: Literal["none", "wiener"] = "none"
    rounded: bool = False  # train on blurred images of 8 bits, as those are that it will restore
    # Stds between which each training image draws its own; None: the one that will be restored.
    blind: tuple[float, float] | None = None
    recipe: Recipe = UNET

    @model_validator(mode="after")
    def _fits(self) -> "UNetParams":
        if self.recipe.load % SIDE_STEP:
            raise ValueError(f"recipe.load {self.recipe.load} is no multiple of {SIDE_STEP}")
        if self.blind and not 0 <= self.blind[0] <= self.blind[1]:
            raise ValueError(f"blind {list(self.blind)}: give the smaller std first, from 0 up")
        if self.blind and self.first == "wiener":
            raise ValueError("Wiener's filter needs a known std; blind goes with first: none")
        return self


class DeblurUNetParams(UNetParams, Degradation):
    """The U-Net's own parameters and what the images are that it is trained to restore."""

    sigma: float | None = Field(2.0, ge=0)  # None when blind, so that one U-Net serves any std
    noise_to_signal: float = Field(1e-3, gt=0)


class DeblurUNet(Method):
    """Trained on pairs that are made in the step: an image, and the same image blurred."""

    name = "deblur-unet"
    version = 1
    Params = DeblurUNetParams
    params: DeblurUNetParams

    def __init__(self, params: DeblurUNetParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        self.net = UNet(params.width, residual=params.residual)

    @classmethod
    def image_size(cls, params: DeblurUNetParams) -> tuple[int, int]:
        """The whole image whatever the view: a std in pixels survives no rescaling."""
        return params.recipe.load, params.recipe.load

    @property
    def monitor(self) -> str:
        return "val_loss"

    def forward(self, blurred: Tensor) -> Tensor:
        """Blurred images [B, 1, S, S] in [0, 1] to sharp ones, float32."""
        p = self.params
        if p.first == "wiener" and p.sigma is not None:
            known = typical_sigma(p.sigma, blurred.shape[-1], p)
            blurred = wiener(blurred, known, p.noise_to_signal)
        sharp: Tensor = self.net(blurred)
        return sharp

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        sharp = to_unit(batch["image"])
        restored = self(self._blurred(sharp, self._places(batch["row"])))
        if self.params.loss == "mse":
            return F.mse_loss(restored, sharp)
        return l1_ssim(restored, sharp)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """`val_loss` is the mean squared error whatever is trained with, as the paper's curve."""
        left = once(batch)
        if left is None:
            return
        sharp, rows = to_unit(left["image"]), left["row"].tolist()
        # Stds spread evenly over the range and noise, both functions of the row alone.
        blurred = self._blurred(sharp, torch.tensor([row * GOLDEN % 1 for row in rows]), rows)
        loss = F.mse_loss(self(blurred), sharp)
        self.log("val_loss", loss, batch_size=len(sharp), sync_dist=True)

    def _places(self, row: Tensor) -> Tensor:
        """Where in the blind range each image's std is [B]; nothing is read where all have the same."""
        if not self.params.blind:
            return torch.empty(0)
        # By epoch and row, so that neither devices nor an interruption change the pairs.
        seeds = [derive_seed(0, "sigma", self.current_epoch, each) for each in row.tolist()]
        return torch.tensor([seed / 2**63 for seed in seeds])

    def _blurred(self, sharp: Tensor, place: Tensor, seeds: list[int] | None = None) -> Tensor:
        """The other half of the pair; `place` [B] in [0, 1] is where in the blind range."""
        p = self.params
        sigma: Sigma
        if p.blind:
            low, high = p.blind
            sigma = low + (high - low) * place
        else:
            assert p.sigma is not None
            sigma = p.sigma
        blurred = degrade(sharp, sigma, p, seeds=seeds)
        return stored(blurred) if p.rounded else blurred


def l1_ssim(restored: Tensor, sharp: Tensor) -> Tensor:
    """Mean absolute error + SSIM_SHARE (1 - SSIM), in float32."""
    with torch.autocast(device_type=sharp.device.type, enabled=False):
        restored = restored.float()
        likeness = structural_similarity_index_measure(restored, sharp, data_range=1.0)
        assert isinstance(likeness, Tensor)
        return F.l1_loss(restored, sharp) + SSIM_SHARE * (1 - likeness)


# --- restoring

Restorer = Literal["unet", "wiener", "richardson-lucy"]


class RestoreParams(Focus):
    """How blurred images are restored; the degradation is what the filters know of them."""

    by: Restorer = "unet"
    noise_to_signal: float = Field(1e-3, gt=0)
    iterations: int = Field(6, ge=1)  # of Richardson-Lucy, as in the notebook
    unet: DeblurUNetParams | None = None


class Restoring(Protocol):
    """Blurred images [B, 1, S, S] in [0, 1] to restored ones."""

    def __call__(self, blurred: Tensor) -> Tensor: ...


def restorer(params: RestoreParams, inputs: Mapping[str, Path], device: str = "cpu") -> Restoring:
    """The function behind `params.by`; the U-Net's weights come from the input `unet`."""
    if params.by == "wiener":
        return lambda blurred: wiener(blurred, params.known, params.noise_to_signal)
    if params.by == "richardson-lucy":
        return lambda blurred: richardson_lucy(blurred, params.known, params.iterations)
    assert params.unet is not None
    module = DeblurUNet(params.unet, ())
    load_whole(module, weights_in(inputs["unet"]), source="the deblurring U-Net")
    module.eval().to(device)
    return lambda blurred: module(blurred)


class Restore(Transformation):
    """Every blurred image restored: a `transform` stage."""

    name = "restore"
    version = 1
    Params = RestoreParams
    params: RestoreParams

    def __init__(self, params: RestoreParams) -> None:
        self.params = params
        self.device = "cpu"
        self.restore: Restoring | None = None

    def image_size(self) -> int:
        return self.params.side

    def open(self, inputs: Mapping[str, Path], device: str) -> None:
        self.device = device
        self.restore = restorer(self.params, inputs, device)

    def __call__(self, images: Pixels) -> Pixels:
        assert self.restore is not None
        return to_pixels(self.restore(unit_images(images, self.device)))


def restore_params(focus: Focus, by: Restorer, **others: Any) -> RestoreParams:
    """The parameters of one restorer of what `focus` blurs."""
    return RestoreParams(by=by, **focus.model_dump(), **others)
