"""CycleGAN's discriminator, which judges patches of 70 x 70 pixels (Isola et al., CVPR 2017), and its loss.

Shapes: B batch, C channels, S side; images are in [-1, 1].
"""

import torch
from torch import Tensor, nn

from cxrbench.nn.resnet_generator import InstanceNorm, start_gan

LEAST_SIDE = 24  # the last convolutions leave one patch of it


class PatchGAN(nn.Module):
    """Image [B, C, S, S] to one score a patch [B, 1, S/8 - 2, S/8 - 2]: 1 for real, 0 for made.

    C64-C128-C256-C512-1, kernels 4, strides 2, 2, 2, 1, 1, no normalisation in the first; no sigmoid,
    because the losses are squares. A side of 256 has 30 x 30 patches, and below 70 a patch is the image.
    """

    def __init__(self, channels: int = 3, *, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for inputs, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
            layers.append(nn.Conv2d(inputs, 2 * inputs, 4, stride=stride, padding=1))
            layers += [InstanceNorm(2 * inputs), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(8 * width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        start_gan(self)

    def forward(self, image: Tensor) -> Tensor:
        if min(image.shape[-2:]) < LEAST_SIDE:
            raise ValueError(f"image: {tuple(image.shape)}; sides must be at least {LEAST_SIDE}")
        scores: Tensor = self.layers(image)
        return scores


def least_squares(scores: Tensor, wanted: Tensor | float) -> Tensor:
    """The mean of (D(film) - wanted)^2 over patches, in float32: 1 is real, 0 is made (Mao et al. 2017)."""
    with torch.autocast(device_type=scores.device.type, enabled=False):
        return (scores.float() - wanted).square().mean()
