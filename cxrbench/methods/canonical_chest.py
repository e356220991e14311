"""The mean chest that others are laid on, and what a network sees in it (Galichin et al. 2023).

`CanonicalChest` is the mean of training images, cropped around the lungs; `CanonicalFeatures` is what a frozen
network sees there. Shapes: N images, S side at which they are read, h and w sides of what the losses see.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from cxrbench.core.contract import Computation
from cxrbench.core.frozen import Frozen
from cxrbench.methods.base import weights_in
from cxrbench.nn.backbones import ImageNetInput, to_unit
from cxrbench.nn.perceptual import VGG_PAPER, FeatureExtractor
from cxrbench.nn.spatial_transformer import theta_of_pose, warp

BLOCK = 16  # images that a statistic is fed at once


class Crop(Frozen):
    """The part of the mean image that holds both lungs, in shares of its sides."""

    top: float = Field(0.05, ge=0, lt=1)
    bottom: float = Field(0.95, gt=0, le=1)
    left: float = Field(0.08, ge=0, lt=1)
    right: float = Field(0.92, gt=0, le=1)

    @model_validator(mode="after")
    def _has_area(self) -> "Crop":
        if self.top >= self.bottom or self.left >= self.right:
            raise ValueError("top must be above bottom, and left of right")
        return self

    def pose(self) -> Tensor:
        """The pose [1, 5] that shows the crop: where an aligned image begins."""
        shift = (self.left + self.right - 1, self.top + self.bottom - 1)
        return torch.tensor([[*shift, self.right - self.left, self.bottom - self.top, 0.0]])


class CanonicalParams(Frozen):
    """Of how many training images the chest is the mean."""

    images: int = Field(1000, ge=1)
    size: int = 320
    crop: Crop = Crop()


def chosen_blocks(images: Any, count: int, seed: int) -> Iterator[Tensor]:
    """At most `count` of the images [N, S, S], seeded, in [0, 1]: blocks [b, 1, S, S]."""
    rows = np.random.default_rng(seed).permutation(len(images))[:count]
    for start in range(0, len(rows), BLOCK):
        yield to_unit(torch.from_numpy(images[np.sort(rows[start : start + BLOCK])]))[:, None]


class CanonicalChest(Computation):
    """The mean of training images and its crop around the lungs: `mean.npy`, `canonical.npy` [S, S]."""

    name = "canonical-chest"
    version = 1
    Params = CanonicalParams
    params: CanonicalParams

    def image_size(self) -> int:
        return self.params.size

    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        side = self.params.size
        total, count = torch.zeros(1, 1, side, side, dtype=torch.float64), 0
        for block in chosen_blocks(images, self.params.images, seed):
            total += block.double().sum(0, keepdim=True)
            count += len(block)
        mean = (total / count).float()
        chest = warp(mean, theta_of_pose(self.params.crop.pose()), (side, side), "border")
        np.save(out / "mean.npy", mean[0, 0].numpy())
        np.save(out / "canonical.npy", chest[0, 0].numpy())
        return {"images": count, "grey": float(chest.mean()), "contrast": float(chest.std())}


class LossNetwork(Frozen):
    """The frozen network whose features are compared, and its layers `taps`."""

    network: Literal["vgg16", "densenet121"] = "vgg16"
    taps: tuple[str, ...] = VGG_PAPER
    pretrained: str = "imagenet"  # or "none", or the path of a file of weights
    # As in the authors' last configuration: the baseline classifier, trained on the same images.
    trained_here: bool = False


class FeaturesParams(Frozen):
    """`target`: the features of the canonical image, or the mean of the images' own (report, Eq. 4)."""

    loss: LossNetwork = LossNetwork()
    target: Literal["canonical", "mean"] = "mean"
    images: int = Field(1000, ge=1)
    size: int = 320
    width: float = Field(0.8, gt=0, le=1)
    crop: Crop = Crop()


def seen_size(side: int, width: float) -> tuple[int, int]:
    """(h, w) of what the losses see; of 320 px the paper's 320 x 256."""
    return side, round(width * side)


class CanonicalFeatures(Computation):
    """What the loss network sees in the canonical chest: `features.safetensors` [C, H, W] a tap.

    A mean of the images' features is taken over their crops, so that it shows the same part of the body as the
    canonical chest. (The authors' code took whole images, and so pulled the two terms apart.) The network
    is left beside, since a random one exists but once.
    """

    name = "canonical-features"
    version = 1
    Params = FeaturesParams
    params: FeaturesParams

    def image_size(self) -> int:
        return self.params.size

    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        p = self.params
        torch.manual_seed(seed)
        pretrained = "none" if p.loss.trained_here else p.loss.pretrained
        network = FeatureExtractor(p.loss.network, p.loss.taps, pretrained)
        if p.loss.trained_here:
            trained = weights_in(inputs["classifier"])
            state = {name.removeprefix("net."): tensor for name, tensor in trained.items()}
            network.load(state, source="the classifier trained on the same images")
        features, count = self._features(network, images, inputs["chest"], seed)
        save_file(dict(zip(p.loss.taps, features, strict=True)), out / "features.safetensors")
        save_file(network.state_dict(), out / "network.safetensors")
        return {"images": count, "source": network.weights.source, "sha256": network.weights.sha256}

    def _features(
        self, network: FeatureExtractor, images: Any, chest: Path, seed: int
    ) -> tuple[list[Tensor], int]:
        """The target of each tap, and the number of images that it is the mean of."""
        p, normalise = self.params, ImageNetInput()
        size = seen_size(p.size, p.width)
        with torch.inference_mode():
            if p.target == "canonical":
                image = shrunk(torch.from_numpy(np.load(chest / "canonical.npy"))[None, None], size)
                return [f[0].clone() for f in network(normalise(image))], 0
            sums, count = [torch.zeros(())] * len(p.loss.taps), 0
            theta = theta_of_pose(p.crop.pose())
            for block in chosen_blocks(images, p.images, seed):
                seen = warp(block, theta.expand(len(block), -1, -1), size)
                found = network(normalise(seen))
                sums = [a + f.double().sum(0) for a, f in zip(sums, found, strict=True)]
                count += len(block)
            return [(total / count).float() for total in sums], count


def shrunk(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [B, C, H, W] at another size: averaged over areas when shrinking, as the data's reader does."""
    if image.shape[-2:] == size:
        return image
    if image.shape[-2] * image.shape[-1] > size[0] * size[1]:
        return F.interpolate(image, size, mode="area")
    return F.interpolate(image, size, mode="bilinear")
