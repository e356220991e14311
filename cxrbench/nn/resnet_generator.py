"""CycleGAN's generator: an image to an image of the same size (Zhu et al., ICCV 2017; blocks of Johnson et al.).

Shapes: B batch, C channels, H and W multiples of 4. Images are in [-1, 1].
"""

import torch
from torch import Tensor, nn

from cxrbench.core.errors import ConfigError

SCALE = 4  # two halvings before the residual blocks
INIT_STD = 0.02


class InstanceNorm(nn.InstanceNorm2d):
    """Each channel of each image to mean 0 and variance 1, without weights; float32 whatever the autocast."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(device_type=input.device.type, enabled=False):
            return super().forward(input.float())


@torch.no_grad()
def start_gan(net: nn.Module) -> None:
    """CycleGAN's initial weights: N(0, 0.02) for every convolution, biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions whose result is added to what they read: [B, C, h, w] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            InstanceNorm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            InstanceNorm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


def _up(inputs: int, outputs: int, *, resize: bool) -> nn.Module:
    """[B, inputs, h, w] to [B, outputs, 2h, 2w]."""
    if not resize:
        return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect"),
    )


class ResnetGenerator(nn.Module):
    """Image [B, C, H, W] in [-1, 1] to image [B, C, H, W] in [-1, 1]; CycleGAN's ResNet-9.

    c7s1-64, d128, d256, nine residual blocks, u128, u64, c7s1-C, tanh. `resize_conv` enlarges by repeating
    pixels before a convolution, where the paper's transposed convolution leaves a checkerboard (Odena et
    al. 2016); the number of weights is the same.
    """

    def __init__(
        self, channels: int = 3, *, width: int = 64, blocks: int = 9, resize_conv: bool = False
    ) -> None:
        super().__init__()
        if min(channels, width) < 1 or blocks < 0:
            raise ConfigError(
                f"generator: {channels} channels, width {width} and {blocks} blocks; channels and width "
                f"are at least 1, blocks at least 0"
            )
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 7, padding=3, padding_mode="reflect"),
            InstanceNorm(width),
            nn.ReLU(),
        ]
        for inputs in (width, 2 * width):
            layers.append(nn.Conv2d(inputs, 2 * inputs, 3, stride=2, padding=1))
            layers += [InstanceNorm(2 * inputs), nn.ReLU()]
        layers += [ResidualBlock(SCALE * width) for _ in range(blocks)]
        for outputs in (2 * width, width):
            layers.append(_up(2 * outputs, outputs, resize=resize_conv))
            layers += [InstanceNorm(outputs), nn.ReLU()]
        layers += [nn.Conv2d(width, channels, 7, padding=3, padding_mode="reflect"), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        start_gan(self)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-1] % SCALE or image.shape[-2] % SCALE:
            raise ValueError(
                f"image: {tuple(image.shape)}; both sides must be multiples of {SCALE}"
            )
        translated: Tensor = self.layers(image)
        return translated
