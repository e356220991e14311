"""The loss that pulls an image towards a target by what a network sees in both (Johnson et al., ECCV 2016).

As Galichin et al. 2023 align chests with it. Shapes: B batch, C channels, H and W sides; a target may have
batch 1 and is then compared with every image.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cxrbench.core.errors import ConfigError
from cxrbench.nn.backbones import Weights, build_backbone, load_whole

VGG_PAPER = ("15",)  # relu3_3
# The authors' list of layers was the text "15", and "1" and "5" are in it: relu1_1 and conv2_1.
VGG_AS_CODED = ("1", "5")
DENSENET_PAPER = ("transition2",)
LEAST_SPREAD = (
    1e-8  # variance below which an image counts as flat; a grey level of 8 bits has 1.5e-5
)


class FeatureExtractor(nn.Module):
    """The first layers of a frozen classifier, up to the last of `taps`, which name its layers.

    Normalised [B, 3, H, W] to one map a tap; gradients reach the image and no weight. The network stays in
    evaluation mode whatever is asked. `vgg16` at "15" gives [B, 256, H/4, W/4], `densenet121` at
    "transition2" [B, 256, H/16, W/16].
    """

    weights: Weights

    def __init__(
        self, network: str = "vgg16", taps: Sequence[str] = VGG_PAPER, pretrained: str = "imagenet"
    ) -> None:
        super().__init__()
        if network not in ("vgg16", "densenet121"):
            raise ConfigError(f"loss network {network!r}: choose vgg16 or densenet121")
        whole, self.weights = build_backbone(network, 1, pretrained)
        features = whole.get_submodule("features")
        layers = dict(features.named_children())
        wrong = [tap for tap in taps if tap not in layers]
        if wrong or not taps:
            raise ConfigError(
                f"taps of {network}: {wrong or 'none'}; its layers are {', '.join(layers)}"
            )
        self.taps = tuple(taps)
        names = list(layers)
        kept = names[: max(map(names.index, taps)) + 1]
        self.features = nn.Sequential()
        for name in kept:
            self.features.add_module(name, layers[name])
        for module in self.features.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # it would overwrite the layer before it, which may be a tap
        self._cut = (*(f"features.{n}" for n in names if n not in kept), "classifier")
        self.requires_grad_(False).eval()

    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """Take the weights of a whole trained network of this kind; DataError when they do not fit."""
        load_whole(self, dict(state), source=source, replaceable=self._cut)

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Stays in evaluation mode: a target's features must not move with the batch."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        found = {}
        for name, layer in self.features.named_children():
            image = layer(image)
            if name in self.taps:
                found[name] = image
        return [found[tap] for tap in self.taps]


def squared_error(found: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference, in float32 whatever the autocast: of images or of feature maps."""
    with torch.autocast(device_type=found.device.type, enabled=False):
        if found.shape[1:] != target.shape[1:]:
            raise ValueError(f"found {tuple(found.shape)} and target {tuple(target.shape)} differ")
        return (found.float() - target.float()).square().mean()


def feature_errors(found: Sequence[Tensor], target: Sequence[Tensor]) -> list[Tensor]:
    """The squared error of each tap's map."""
    return [squared_error(a, b) for a, b in zip(found, target, strict=True)]


def alignment_loss(
    features: Sequence[Tensor],
    pixels: Tensor,
    *,
    pixel_weight: float = 20.0,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Feature errors and weighted pixel error as one number.

    The report adds them, with weight 20; the authors' code takes the mean over all terms, with weight 15.
    """
    terms = torch.stack([*features, pixel_weight * pixels])
    return terms.sum() if reduction == "sum" else terms.mean()


def ncc(found: Tensor, target: Tensor) -> Tensor:
    """Normalised cross-correlation [B] in [-1, 1] of images [B, C, H, W], float32.

    1 for images that differ by brightness and contrast alone; 0 where one of them is flat. As a loss: 1 - ncc.
    """
    with torch.autocast(device_type=found.device.type, enabled=False):
        a, b = found.float().flatten(1), target.float().flatten(1)
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        spread = (
            a.square().mean(1).clamp(min=LEAST_SPREAD),
            b.square().mean(1).clamp(min=LEAST_SPREAD),
        )
        return (a * b).mean(1) / (spread[0] * spread[1]).sqrt()
