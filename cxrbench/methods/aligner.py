"""Chests laid on the canonical chest without labels (Galichin et al. 2023, after Liu et al., ICCV 2019).

`Aligner` learns to pose an image so that it looks like the canonical chest; `Align` rewrites images by their
poses. Shapes: B batch, S side of the aligner's input, h and w sides of what the losses see, T side of a view.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from cxrbench.core.contract import Transformation
from cxrbench.core.errors import CxrbenchError
from cxrbench.core.frozen import Frozen
from cxrbench.core.spec import Augment, MethodParams, Recipe
from cxrbench.methods.base import Batch, Method, once, weights_in
from cxrbench.methods.canonical_chest import Crop, LossNetwork, seen_size, shrunk
from cxrbench.methods.sheets import contact_sheet
from cxrbench.nn.backbones import IMAGENET_MEAN, ImageNetInput, to_unit
from cxrbench.nn.perceptual import (
    FeatureExtractor,
    alignment_loss,
    feature_errors,
    ncc,
    squared_error,
)
from cxrbench.nn.spatial_transformer import PoseBounds, PoseNet, theta_of_pose, warp

# "mean": zeros after the ImageNet normalisation, as published, which is a grey; "black"; or the border.
Outside = Literal["mean", "black", "border"]
GREY = sum(IMAGENET_MEAN) / 3
LEAST_SCALE = 0.3  # below it a pose shows a detail, not a chest
SKETCHED = 4  # images of a batch in a picture of the training
TILE = 160  # pixels of an image in it
LEAST_SPREAD = 1e-4  # in half sides: a sixtieth of a pixel at 320


class CollapsedPoseError(CxrbenchError):
    """An aligner that zooms into a detail, or that gives every image the same pose."""


# --- the aligner

# Galichin et al.; the rate ends at 1e-6.
PAPER = Recipe(
    epochs=5,
    batch_size=16,
    optimizer="adamw",
    learning_rate=1e-4,
    weight_decay=1e-4,
    schedule="linear",
    size=320,
    load=320,
    augment=Augment(rotate=10, shift=0.0625, scale=0.05, contrast=0.2, brightness=0.2),
    train_view="resize",
    select="val_loss",
    precision="32-true",
)


class PoseParams(Frozen):
    """The network that poses an image; `bounded` holds it near the identity."""

    backbone: str = PoseNet.BACKBONE
    pretrained: str = "imagenet"
    hidden: int = Field(256, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    bounded: bool = False
    most_shift: float = Field(0.3, gt=0, description="half sides")
    most_scale: float = Field(1.5, gt=1, description="and its inverse")
    most_angle: float = Field(30.0, gt=0, le=180, description="degrees")

    def build(self, *, weights: bool = True) -> PoseNet:
        """The network; without its initial `weights` where trained ones are loaded afterwards."""
        bounds = PoseBounds(self.most_shift, self.most_scale, math.radians(self.most_angle))
        return PoseNet(
            self.pretrained if weights else "none",
            backbone=self.backbone,
            bounds=bounds if self.bounded else None,
            hidden=self.hidden,
            dropout=self.dropout,
        )


class AlignerParams(MethodParams):
    """The report's loss is MSE of features + 20 MSE of normalised pixels; the code's their mean, with 15."""

    pose: PoseParams = PoseParams()
    loss: LossNetwork = LossNetwork()
    canonical_images: int = Field(1000, ge=1)
    crop: Crop = Crop()
    target_features: Literal["canonical", "mean"] = "mean"
    pixel_weight: float = Field(20.0, ge=0)
    reduction: Literal["sum", "mean"] = "sum"
    ncc_weight: float = Field(0.0, ge=0)
    step_weight: float = Field(0.0, ge=0, description="on the squared way from the plain crop")
    recovery_weight: float = Field(0.0, ge=0, description="on undoing a known movement")
    outside: Outside = "mean"
    width: float = Field(0.8, gt=0, le=1, description="of what the losses see, as a share of S")
    quarter_turns: float = Field(
        0.0, ge=0, le=1, description="probability; in the code, not the report"
    )
    recipe: Recipe = PAPER


class Aligner(Method):
    """Image to the pose in which it looks like the canonical chest; learns from no label."""

    name = "aligner"
    version = 1
    paper = "Galichin et al. 2023, after Liu et al., ICCV 2019"
    Params = AlignerParams
    params: AlignerParams
    sketch_steps = 100  # as in the report
    sketched = "films of a training batch, as they are posed, and the canonical chest"
    chest: Tensor
    crop_pose: Tensor

    def __init__(self, params: AlignerParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        self.size = seen_size(params.recipe.size, params.width)
        self.normalise = ImageNetInput()
        self.pose = params.pose.build()
        self.network = FeatureExtractor(params.loss.network, params.loss.taps, "none")
        # Nothing until they are received; they stay out of the saved weights.
        self.register_buffer("chest", torch.zeros(1, 3, *self.size), persistent=False)
        for number, features in enumerate(self.network(self.chest)):
            self.register_buffer(f"target{number}", torch.zeros_like(features), persistent=False)
        self.register_buffer("crop_pose", params.crop.pose(), persistent=False)
        self._received = False
        self._poses: list[Tensor] = []

    @classmethod
    def without_weights(cls, params: AlignerParams) -> AlignerParams:
        pose = params.pose.model_copy(update={"pretrained": "none"})
        return params.model_copy(update={"pose": pose})

    @property
    def monitor(self) -> str:
        """It has no labels, so the loss chooses whatever the recipe of a whole sweep says."""
        return "val_loss"

    @property
    def targets(self) -> list[Tensor]:
        """The features [1, C, H, W] of each tap that an aligned image should have."""
        return [self.get_buffer(f"target{n}") for n in range(len(self.network.taps))]

    def weights_source(self) -> dict[str, Any]:
        weights = self.pose.weights
        return {"source": weights.source, "sha256": weights.sha256}

    def receive(self, inputs: Mapping[str, Path]) -> None:
        chest = torch.from_numpy(np.load(inputs["chest"] / "canonical.npy"))[None, None]
        self.chest.copy_(self.normalise(shrunk(chest, self.size)))
        self.network.load_state_dict(load_file(inputs["features"] / "network.safetensors"))
        features = load_file(inputs["features"] / "features.safetensors")
        for tap, target in zip(self.network.taps, self.targets, strict=True):
            target.copy_(features[tap])
        self._received = True

    def on_fit_start(self) -> None:
        if not self._received:
            raise RuntimeError("an aligner is trained towards a chest that it has received")

    def losses(self, image: Tensor) -> dict[str, Tensor]:
        """The loss of images [B, 1, S, S] in [0, 1], and its terms."""
        p = self.params
        pose = self.pose(self.normalise(image))
        seen = self.look(image, theta_of_pose(pose))
        pixels = squared_error(seen, self.chest)
        features = feature_errors(self.network(seen), self.targets)
        loss = alignment_loss(features, pixels, pixel_weight=p.pixel_weight, reduction=p.reduction)
        likeness = ncc(seen, self.chest).mean()
        loss = loss + p.ncc_weight * (1 - likeness)
        loss = loss + p.step_weight * (pose - self.crop_pose).square().sum(1).mean()
        return {"loss": loss, "pixels": pixels.detach(), "ncc": likeness.detach(), "pose": pose}

    def look(self, image: Tensor, theta: Tensor) -> Tensor:
        """Images [B, 1, S, S] in [0, 1] through their thetas, normalised: [B, 3, h, w]."""
        if self.params.outside == "mean":
            return warp(self.normalise(image), theta, self.size)
        seen: Tensor = self.normalise(warped(image, theta, self.size, self.params.outside))
        return seen

    def recovery(self, image: Tensor, pose: Tensor) -> Tensor:
        """How far a known movement of the image is from being undone by its pose: squared half sides.

        A moved image posed anew must show what the image itself shows: A(theta'(o)) = theta(o).
        """
        known = theta_of_pose(random_poses(len(image), image.device))
        moved = warped(image, known, self.size[:1] * 2, self.params.outside)
        again = theta_of_pose(self.pose(self.normalise(moved)))
        apart: Tensor = places(known, places(again)) - places(theta_of_pose(pose))
        return apart.square().sum(-1).mean()

    @torch.no_grad()
    def drawn(self, image: Tensor) -> Image.Image:
        """Input, warped and canonical of the first images [B, 1, S, S] in [0, 1], posed as if not in training."""
        image = image[:SKETCHED]
        training = self.pose.training
        self.pose.eval()
        theta = theta_of_pose(self.pose(self.normalise(image)))
        self.pose.train(training)
        side = (image.shape[-1],) * 2
        seen = warped(image, theta, side, self.params.outside).clamp(0, 1)
        chest = shrunk(self.chest * self.normalise.std + self.normalise.mean, side)[0, 0]
        names = ("input", "warped", "canonical")
        rows = [(one[0], posed[0], chest) for one, posed in zip(image, seen, strict=True)]
        return contact_sheet(
            [[(each.float().cpu().numpy(), n) for each, n in zip(row, names, strict=True)] for row in rows],
            side=TILE,
        )  # fmt: skip

    def sketch(self, batch: Batch) -> Image.Image:
        return self.drawn(to_unit(batch["image"]))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        image = turned(to_unit(batch["image"]), self.params.quarter_turns)
        terms = self.losses(image)
        pose = terms.pop("pose")
        if self.params.recovery_weight:
            error = self.recovery(image, pose)
            terms["loss"] = terms["loss"] + self.params.recovery_weight * error
            terms["recovery"] = error.detach()
        return terms

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        terms = self.losses(to_unit(batch["image"]))
        self._poses.append(terms["pose"])  # of as many images on every device
        left = once(batch)
        if left is None:
            return
        if left is not batch:
            terms = self.losses(to_unit(left["image"]))
        count = len(left["image"])
        self.log("val_loss", terms["loss"], batch_size=count, sync_dist=True)
        self.log("val_ncc", terms["ncc"], batch_size=count, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        poses = self.all_gather(torch.cat(self._poses))
        self._poses.clear()
        last = self.trainer.current_epoch + 1 == self.params.recipe.epochs
        assert isinstance(poses, Tensor)
        refuse_collapse(poses.reshape(-1, 5), last=last)


def refuse_collapse(poses: Tensor, *, last: bool) -> None:
    """Raise CollapsedPoseError for poses [N, 5] that align nothing.

    Poses begin equal, so only those of the `last` epoch must differ from image to image.
    """
    scale = float(poses[:, 2:4].abs().median(0).values.min())
    if scale < LEAST_SCALE:
        raise CollapsedPoseError(
            f"the aligner collapsed: half of the validation images are shown at a scale below {scale:.2f} "
            f"(at least {LEAST_SCALE}); lower aligner.recipe.learning_rate or set aligner.pose.bounded=true"
        )
    if last and len(poses) > 1 and float(poses.std(0).max()) < LEAST_SPREAD:
        raise CollapsedPoseError(
            f"the aligner collapsed: {len(poses)} validation images have one pose, "
            f"{[round(v, 4) for v in poses.mean(0).tolist()]}; train it longer "
            f"(aligner.recipe.epochs, aligner.recipe.learning_rate)"
        )


def random_poses(
    count: int,
    device: torch.device,
    *,
    shift: float = 0.125,
    scale: float = 0.1,
    angle: float = 10.0,
) -> Tensor:
    """Known movements [count, 5]: shifts in half sides, a relative change of size, an angle in degrees."""
    u = torch.rand(count, 4, device=device) * 2 - 1
    size = 1 + scale * u[:, 2:3]
    return torch.cat((shift * u[:, :2], size, size, math.radians(angle) * u[:, 3:]), 1)


def landmarks(device: torch.device) -> Tensor:
    """Fixed places (x, y) [9, 2] over the thorax, in half sides."""
    steps = (torch.arange(3, device=device) - 1) * 0.6
    return torch.cartesian_prod(steps, steps)


def places(theta: Tensor, points: Tensor | None = None) -> Tensor:
    """Where a theta [B, 2, 3] takes points [B or 1, P, 2], the landmarks unless given: [B, P, 2]."""
    points = landmarks(theta.device)[None] if points is None else points
    with torch.autocast(device_type=theta.device.type, enabled=False):
        taken: Tensor = (theta[:, None, :, :2] * points[:, :, None]).sum(-1) + theta[:, None, :, 2]
        return taken


def turned(image: Tensor, probability: float) -> Tensor:
    """Images [B, 1, S, S], each turned by quarters with some probability."""
    if not probability:
        return image
    quarters = torch.randint(1, 4, (len(image),)) * (torch.rand(len(image)) < probability)
    pairs = zip(image, quarters.tolist(), strict=True)
    return torch.stack([torch.rot90(one, k, (1, 2)) for one, k in pairs])


def warped(image: Tensor, theta: Tensor, size: tuple[int, int], outside: Outside) -> Tensor:
    """Images [B, 1, S, S] in [0, 1] through their thetas: [B, 1, h, w] in [0, 1]."""
    if outside == "mean":
        return warp(image - GREY, theta, size) + GREY
    return warp(image, theta, size, "border" if outside == "border" else "zeros")


# --- the aligned images


class AlignParams(Frozen):
    """An aligner's network, its input's side `size`, and the side `view` of the images that are made."""

    pose: PoseParams = PoseParams()
    outside: Outside = "mean"
    size: int = 320
    view: int = 320


class Align(Transformation):
    """Every image through its pose, as a square of `view` pixels.

    The aligner learns on an output of 320 x 256, but its theta is counted in half sides: h and w say how densely
    the losses look, not where. So the view shows the same part of the image at T x T, with more columns
    and no other content; its aspect is that of the crop.
    """

    name = "align"
    version = 1
    Params = AlignParams
    params: AlignParams

    def __init__(self, params: AlignParams) -> None:
        self.params = params
        self.pose = params.pose.build(weights=False).eval()
        self.normalise = ImageNetInput()
        self.device = torch.device("cpu")

    def image_size(self) -> int:
        return max(self.params.size, self.params.view)

    def open(self, inputs: Mapping[str, Path], device: str) -> None:
        # Of an aligner, or of a classifier that was trained with one inside.
        found = {n.removeprefix("aligner."): t for n, t in weights_in(inputs["aligner"]).items()}
        own = {n.removeprefix("pose."): t for n, t in found.items() if n.startswith("pose.")}
        self.pose.load_state_dict(own)
        self.device = torch.device(device)
        self.pose.to(self.device)
        self.normalise.to(self.device)

    def poses(self, image: Tensor) -> Tensor:
        """Images [B, 1, L, L] in [0, 1] to poses [B, 5]."""
        size = self.params.size
        found: Tensor = self.pose(self.normalise(shrunk(image, (size, size))))
        return found

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """uint8 [B, L, L] to uint8 [B, T, T]."""
        image = to_unit(torch.from_numpy(images))[:, None].to(self.device)
        theta = theta_of_pose(self.poses(image))
        seen = warped(image, theta, (self.params.view,) * 2, self.params.outside)
        return (seen[:, 0].clamp(0, 1) * 255).round().byte().cpu().numpy()
