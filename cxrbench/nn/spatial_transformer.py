"""Spatial transformers: an affine map predicted from an image, and the warp that applies it.

Jaderberg et al., NeurIPS 2015, with the networks of Galichin et al. 2023 (five parameters, aligns a chest to
a mean chest) and of Rocha et al. 2022 (four parameters, frames the thorax).

A theta [B, 2, 3] takes a place in the *output* to the place in the *input* that is seen there. Places are
(x, y) with -1 at the outer edge of the first pixel and 1 at that of the last (`align_corners=False`). So a
scale below 1 enlarges. Shapes: B batch, C channels, H and W sides of the input, h and w of the output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbench.core.errors import ConfigError
from cxrbench.nn.backbones import Weights, build_backbone

Padding = Literal["zeros", "border"]
PAPER_START = (1.0, 0.1, 0.0, 0.0)  # sx, sy, tx, ty: shows the central tenth of the rows
IDENTITY = (1.0, 1.0, 0.0, 0.0)
LEAST_SIDE = 78  # four unpadded convolutions and poolings leave one pixel of it


# --- thetas


def theta_of_pose(pose: Tensor) -> Tensor:
    """(tx, ty, sx, sy, angle) [B, 5] to theta [B, 2, 3]; the angle in radians.

    Scaled first, then rotated: on a square input, axes that were perpendicular stay so. A positive angle
    turns what is seen counter-clockwise.
    """
    tx, ty, sx, sy, angle = pose.float().unbind(1)
    cos, sin = angle.cos(), angle.sin()
    rows = (torch.stack((sx * cos, -sy * sin, tx), 1), torch.stack((sx * sin, sy * cos, ty), 1))
    return torch.stack(rows, 1)


def theta_of_window(window: Tensor) -> Tensor:
    """(sx, sy, tx, ty) [B, 4] to theta [B, 2, 3]: an upright window of the image."""
    sx, sy, tx, ty = window.float().unbind(1)
    none = torch.zeros_like(sx)
    return torch.stack((torch.stack((sx, none, tx), 1), torch.stack((none, sy, ty), 1)), 1)


def invert(theta: Tensor) -> Tensor:
    """The theta [B, 2, 3] that undoes another: it takes a place in the input to its place in the output.

    Raises RuntimeError (torch.linalg.LinAlgError) when a scale is 0.
    """
    with torch.autocast(device_type=theta.device.type, enabled=False):
        theta = theta.float()
        inverse = torch.linalg.inv(theta[:, :, :2])
        return torch.cat((inverse, -(inverse * theta[:, None, :, 2]).sum(2, keepdim=True)), 2)


def sampled_box(theta: Tensor) -> Tensor:
    """The upright box (x0, y0, x1, y1) [B, 4] around all that a theta shows, cut at the image's edges.

    In shares of the input's sides, 0 left and top. A theta that looks past the image has a box without area.
    """
    with torch.autocast(device_type=theta.device.type, enabled=False):
        theta = theta.float()
        reach = theta[:, :, :2].abs().sum(2)  # of the four corners, along x and y
        centre = theta[:, :, 2]
        edges = torch.cat((centre - reach, centre + reach), 1)
        return ((edges + 1) / 2).clamp(0, 1)


# --- the warp


def sampling_grid(theta: Tensor, size: tuple[int, int]) -> Tensor:
    """Where in the input each output pixel looks: [B, h, w, 2], (x, y) in float32.

    torch's `affine_grid` multiplies matrices, which TF32 rounds to ten bits: a quarter of a pixel at 1024.
    """
    with torch.autocast(device_type=theta.device.type, enabled=False):
        h, w = size
        x = ((torch.arange(w, device=theta.device) * 2 + 1) / w - 1).view(1, 1, w, 1)
        y = ((torch.arange(h, device=theta.device) * 2 + 1) / h - 1).view(1, h, 1, 1)
        a, b, shift = theta.float()[:, None, None].unbind(-1)  # [B, 1, 1, 2]
        return a * x + b * y + shift


def warp(image: Tensor, theta: Tensor, size: tuple[int, int], padding: Padding = "zeros") -> Tensor:
    """Image [B, C, H, W] seen through theta [B, 2, 3]: [B, C, h, w] float32, whatever the autocast.

    Bilinear, so shrinking by more than two skips pixels. `padding` is what lies outside the image: zeros, or
    its border repeated. Zeros are black for an image in [0, 1], and the mean's grey for a normalised one.
    """
    with torch.autocast(device_type=image.device.type, enabled=False):
        return F.grid_sample(
            image.float(),
            sampling_grid(theta, size),
            mode="bilinear",
            padding_mode=padding,
            align_corners=False,
        )


def aspect_penalty(window: Tensor, limit: float = 1.25) -> Tensor:
    """STERN's ReLU(sx / sy - limit) [B] of windows (sx, sy, tx, ty) [B, 4] (Rocha et al. 2024).

    It holds against windows that cut the lungs' apices. As published it presses on no mirrored window
    (sy below 0) and is infinite at sy = 0; bounded windows have neither.
    """
    with torch.autocast(device_type=window.device.type, enabled=False):
        sx, sy = window.float()[:, :2].unbind(1)
        return F.relu(sx / sy - limit)


# --- known movements


def random_windows(
    count: int, device: torch.device, *, shift: float = 0.25, scale: float = 1.3
) -> Tensor:
    """Known movements [count, 4] as windows: shifts in half sides, scales from 1/`scale` to `scale`.

    Both axes are scaled nearly alike, as bodies are.
    """
    u = torch.rand(count, 4, device=device) * 2 - 1
    size = (u[:, :1] * math.log(scale)).exp()
    return torch.cat((size, size * (1 + 0.05 * u[:, 1:2]), shift * u[:, 2:]), 1)


def following_error(window: Tensor, moved: Tensor, known: Tensor) -> Tensor:
    """How far windows are from going along with known movements [B]: squared logs of sizes and half sides of shifts.

    `window` [B, 4] is of an image, `moved` of what `known` shows of it: both must frame the same part of it. All
    scales must be positive. In logs no size is better than another; plain differences made windows shrink.
    """
    with torch.autocast(device_type=window.device.type, enabled=False):
        window, moved, known = window.float(), moved.float(), known.float()
        scale = known[:, :2]
        size = (scale * moved[:, :2]).log() - window[:, :2].log()
        shift = scale * moved[:, 2:] + known[:, 2:] - window[:, 2:]
        return size.square().sum(1) + shift.square().sum(1)


# --- networks


@dataclass(frozen=True)
class PoseBounds:
    """How far a bounded pose goes: shifts and angle to either side of 0, scales 1/`scale` to `scale`."""

    shift: float = 0.5  # in half sides of the image
    scale: float = 1.5
    angle: float = math.pi / 6

    def __post_init__(self) -> None:
        if not (self.shift > 0 and self.scale > 1 and 0 < self.angle <= math.pi):
            raise ConfigError(
                f"bounds of the pose: shift {self.shift}, scale {self.scale}, angle {self.angle}; "
                f"needed are shift > 0, scale > 1 and angle in (0, pi] radians"
            )

    def apply(self, raw: Tensor) -> Tensor:
        """Any numbers [B, 5] to a pose (tx, ty, sx, sy, angle) within the bounds; 0 is the identity."""
        t = raw.tanh()
        shift, angle = t[:, :2] * self.shift, t[:, 4:] * self.angle
        return torch.cat((shift, (t[:, 2:4] * math.log(self.scale)).exp(), angle), 1)


class PoseNet(nn.Module):
    """Image to the pose that aligns it (Galichin et al. 2023): a ResNet18 and two linear layers.

    Normalised [B, 3, S, S] (the paper: S = 320) to (tx, ty, sx, sy, angle) [B, 5] float32; begins at the
    identity. Without `bounds` nothing holds a pose back. Only a square input is turned without shear.
    """

    # timm 0.6, which the paper used, meant torchvision's weights by "resnet18".
    BACKBONE = "resnet18.tv_in1k"
    START = (0.0, 0.0, 1.0, 1.0, 0.0)

    weights: Weights

    def __init__(
        self,
        pretrained: str = "imagenet",
        *,
        backbone: str = BACKBONE,
        bounds: PoseBounds | None = None,
        hidden: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone, self.weights = build_backbone(backbone, 0, pretrained)
        self.bounds = bounds
        last = nn.Linear(hidden, 5)
        _start(last, (0.0,) * 5 if bounds else self.START)
        features = int(getattr(self.backbone, "num_features", 0))
        if not features:
            raise ConfigError(
                f"params.backbone: {backbone} has no pooled features; use one of timm's"
            )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, hidden), nn.ReLU(), last)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-1] != image.shape[-2]:
            raise ValueError(f"image: {tuple(image.shape)}; a pose needs a square image")
        raw = _in_float32(self.head, self.backbone(image))
        return raw if self.bounds is None else self.bounds.apply(raw)


@dataclass(frozen=True)
class WindowBounds:
    """The range of a bounded window: scales from `least` to `most`, shifts to `shift` either side of 0."""

    least: float = 0.3
    most: float = 1.1
    shift: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.least < self.most and self.shift > 0):
            raise ConfigError(
                f"bounds of the window: scales {self.least} to {self.most}, shift {self.shift}; "
                f"needed are 0 < least < most and shift > 0"
            )

    def apply(self, raw: Tensor) -> Tensor:
        """Any numbers [B, 4] to a window (sx, sy, tx, ty) within the bounds."""
        scale = self.least + (self.most - self.least) * raw[:, :2].sigmoid()
        return torch.cat((scale, raw[:, 2:].tanh() * self.shift), 1)

    def undo(self, window: Sequence[float]) -> tuple[float, ...]:
        """What `apply` takes to a window; ConfigError for a window that is not inside the bounds."""
        scales, shifts = window[:2], window[2:]
        if not all(self.least < s < self.most for s in scales) or not all(
            abs(t) < self.shift for t in shifts
        ):
            raise ConfigError(
                f"start {tuple(window)}: bounded windows have scales between {self.least} and {self.most} "
                f"and shifts below {self.shift}; start at the identity {IDENTITY}, or drop the bounds"
            )
        shares = [(s - self.least) / (self.most - self.least) for s in scales]
        return (
            *(math.log(p / (1 - p)) for p in shares),
            *(math.atanh(t / self.shift) for t in shifts),
        )


class WindowNet(nn.Module):
    """Image to the window that frames the thorax (Rocha et al. 2022): their localisation net.

    [B, C, H, W] to (sx, sy, tx, ty) [B, 4] float32; begins at `start` for every image. The image is read at
    `side` pixels: the paper's layer sizes fit 256, though its images have 512.
    """

    def __init__(
        self,
        channels: int = 3,
        side: int = 256,
        *,
        start: Sequence[float] = PAPER_START,
        bounds: WindowBounds | None = None,
    ) -> None:
        super().__init__()
        if side < LEAST_SIDE:
            raise ConfigError(f"loc_size: {side}; the localisation net needs at least {LEAST_SIDE}")
        self.side = side
        self.bounds = bounds
        layers: list[nn.Module] = []
        widths = (channels, 16, 32, 64, 128)
        for inputs, outputs, kernel in zip(widths, widths[1:], (7, 5, 5, 5), strict=False):
            layers += [nn.Conv2d(inputs, outputs, kernel), nn.MaxPool2d(2), nn.ReLU()]
            side = (side - kernel + 1) // 2
        self.features = nn.Sequential(*layers, nn.Flatten())
        last = nn.Linear(32, 4)
        _start(last, bounds.undo(start) if bounds else start)
        self.head = nn.Sequential(nn.Linear(widths[-1] * side * side, 32), nn.ReLU(), last)

    def forward(self, image: Tensor) -> Tensor:
        size = (self.side, self.side)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        raw = _in_float32(self.head, self.features(image))
        return raw if self.bounds is None else self.bounds.apply(raw)


@torch.no_grad()
def _start(last: nn.Linear, at: Sequence[float]) -> None:
    """Makes a last layer give `at`, whatever it reads."""
    last.weight.zero_()
    last.bias.copy_(torch.tensor(at))


def _in_float32(head: nn.Module, features: Tensor) -> Tensor:
    # bfloat16 has no number between 1 and 1.0078: a scale would jump by a pixel at the edge of 320.
    with torch.autocast(device_type=features.device.type, enabled=False):
        numbers: Tensor = head(features.float())
        return numbers
