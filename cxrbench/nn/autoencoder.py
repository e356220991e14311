"""The autoencoder of AE-CNN (Ranjan et al., ICVGIP 2018), and the plain resizing that it is held against.

Shapes: B batch, C channels of the code (1 as published), H and W multiples of 4.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALE = 4  # the code's side is a quarter of the image's
# Share of torch's initial weights that keeps equal channels of a code from staying equal.
NOISE = 0.01
Resizing = Literal["bilinear", "bicubic", "area"]


def shrink(image: Tensor, by: Resizing) -> Tensor:
    """[B, 1, H, W] in [0, 1] to a quarter of each side, in [0, 1].

    Bilinear and bicubic weights reach over four times as many pixels as in enlarging, as Pillow's do:
    without that they would skip most pixels, and be no opponent.
    """
    height, width = image.shape[-2] // SCALE, image.shape[-1] // SCALE
    if by == "area":
        return F.avg_pool2d(image, SCALE)
    return F.interpolate(image, (height, width), mode=by, antialias=True).clamp(0, 1)


def enlarge(small: Tensor, by: Resizing) -> Tensor:
    """[B, 1, h, w] to four times each side, not cut to [0, 1]; what `area` averaged it repeats."""
    return F.interpolate(small, scale_factor=SCALE, mode="nearest" if by == "area" else by)


class Encoder(nn.Module):
    """Image [B, 1, H, W] to code [B, C, H/4, W/4]; 865 parameters as published."""

    def __init__(self, channels: int = 1, *, as_resizing: bool = False) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(1, 32, kernel_size=5, stride=SCALE, padding=2)
        self.mix = nn.Conv2d(32, channels, kernel_size=1)
        self.as_resizing = as_resizing
        if as_resizing:
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        code: Tensor = self.mix(F.elu(self.reduce(image)))
        return shrink(image, "bicubic") + code if self.as_resizing else code


class Decoder(nn.Module):
    """Code [B, C, h, w] to image [B, 1, 4h, 4w] in [0, 1]; 160 parameters as published.

    `hidden` channels stand in a layer of their own before the published one; 0 is none.
    """

    def __init__(self, channels: int = 1, *, hidden: int = 0, as_resizing: bool = False) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, hidden, kernel_size=3, padding=1) if hidden else None
        self.expand = nn.Conv2d(hidden or channels, SCALE * SCALE, kernel_size=3, padding=1)
        self.as_resizing = as_resizing
        if as_resizing:
            with torch.no_grad():
                self.expand.weight.mul_(NOISE)
            nn.init.zeros_(self.expand.bias)  # type: ignore[arg-type]

    def forward(self, code: Tensor) -> Tensor:
        features = code if self.widen is None else F.elu(self.widen(code))
        image = F.pixel_shuffle(self.expand(features), SCALE)
        if self.as_resizing:
            image = image + enlarge(code.mean(dim=1, keepdim=True), "bicubic")
        return image.clamp(0, 1)


class Autoencoder(nn.Module):
    """Encoder and decoder; `clip_code` cuts the code to [0, 1] before anyone reads it.

    With torch's own initial weights half of the code begins below 0, where a cut has no gradient, and it may
    end as the image's negative. `as_resizing`: what is learned is added to bicubic down- and up-scaling,
    so the code begins as the resized image, and the reconstruction, but for a little noise, as that enlarged.
    """

    def __init__(
        self,
        *,
        clip_code: bool,
        as_resizing: bool = False,
        code_channels: int = 1,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(code_channels, as_resizing=as_resizing)
        self.decoder = Decoder(code_channels, hidden=hidden, as_resizing=as_resizing)
        self.clip_code = clip_code

    def encode(self, image: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] to the code [B, C, H/4, W/4]."""
        code: Tensor = self.encoder(image)
        return code.clamp(0, 1) if self.clip_code else code

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encode(image)
        return code, self.decoder(code)


def reconstruction_mse(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Mean squared error in float32, whatever the autocast."""
    with torch.autocast(device_type=image.device.type, enabled=False):
        return F.mse_loss(reconstruction.float(), image.float())
