"""The U-Net that removes blur: as in Liu's report of 2020, and a residual one. Shapes: B batch, S side.

Ronneberger et al. (MICCAI 2015) in the widths that were run: 16-32-64-128-256, where the report's own
drawing shows 64 to 512. Sides are multiples of 16.
"""

import torch
from torch import Tensor, nn

LEVELS = 4  # halvings between the image and the deepest features
GROUPS = 8  # of channels that GroupNorm normalises together


class Norm(nn.GroupNorm):
    """GroupNorm whose statistics are float32, whatever the autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            return super().forward(x.float())


class Block(nn.Sequential):
    """[B, inputs, s, s] to [B, width, s, s]: two 3 x 3 convolutions, each with a ReLU."""

    def __init__(self, inputs: int, width: int, *, norm: bool) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, width):
            layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
            if norm:
                layers.append(Norm(GROUPS, width))
            layers.append(nn.ReLU())
        super().__init__(*layers)


class UNet(nn.Module):
    """Blurred image [B, 1, S, S] in [0, 1] to the sharp one, float32.

    As coded (`residual=False`): no normalisation, a ReLU behind the last layer, so values above 1 can
    come out; 2,158,417 parameters at width 16. `residual` learns what to add to the input, with
    GroupNorm; it begins as the identity, and is cut to [0, 1] outside training (in training a cut would
    stop the gradient of pixels beyond it).

    Raises ValueError for a width that GroupNorm cannot divide and for sides that are no multiples of 16.
    """

    def __init__(self, width: int = 16, *, residual: bool = False) -> None:
        super().__init__()
        if width < 1 or (residual and width % GROUPS):
            need = f"a multiple of {GROUPS}, the groups of GroupNorm" if residual else "at least 1"
            raise ValueError(f"width is {width}; it must be {need}")
        self.residual = residual
        widths = [width << level for level in range(LEVELS + 1)]
        above = [1, *widths[:-1]]
        self.down = nn.ModuleList(
            Block(i, o, norm=residual) for i, o in zip(above, widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[1:], widths[:-1], strict=True))  # (deeper, own) of every level
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(deep, own, 3, stride=2, padding=1, output_padding=1)
            for deep, own in pairs
        )
        self.merge = nn.ModuleList(Block(2 * own, own, norm=residual) for _, own in pairs)
        self.head = nn.Conv2d(width, 1, kernel_size=1)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Glorot's weights and no biases, which the notebook's library gives a layer unasked."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                assert layer.bias is not None
                nn.init.xavier_uniform_(layer.weight)
                layer.bias.zero_()
        assert self.head.bias is not None
        if self.residual:
            self.head.weight.zero_()
        else:
            # With 0, as coded, 2 of 40 seeds began with no pixel above 0, where the last ReLU has no
            # gradient and nothing ever trains (16 of 40 with torch's own initial weights).
            self.head.bias.fill_(0.5)

    def forward(self, image: Tensor) -> Tensor:
        _check_sides(image)
        features = self._features(image)
        # Half precision would round an image to 2^-9 of its values, an error like that of the network.
        with torch.autocast(device_type=image.device.type, enabled=False):
            found: Tensor = self.head(features.float())
            if not self.residual:
                return found.relu()
            sharp = image.float() + found
            return sharp if self.training else sharp.clamp(0, 1)

    def _features(self, image: Tensor) -> Tensor:
        """[B, 1, S, S] to the features [B, width, S, S] of the topmost level."""
        x, skipped = image, []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skipped.append(x)
        for level in reversed(range(LEVELS)):
            x = self.merge[level](torch.cat([skipped[level], self.up[level](x)], dim=1))
        return x


def _check_sides(image: Tensor) -> None:
    multiple = 1 << LEVELS
    if image.ndim != 4 or image.shape[1] != 1 or any(side % multiple for side in image.shape[2:]):
        raise ValueError(
            f"image: shape {list(image.shape)}; the U-Net needs [B, 1, H, W] with sides that are multiples "
            f"of {multiple}, such as 64 or 224; set recipe.size to one"
        )
