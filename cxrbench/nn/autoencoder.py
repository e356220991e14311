"""The autoencoder of AE-CNN (Ranjan et al., ICVGIP 2018). Shapes: B batch, H and W multiples of 4."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALE = 4  # the code's side is a quarter of the image's
NOISE = 0.05  # share of torch's initial weights that keeps 32 equal filters from staying equal


class Encoder(nn.Module):
    """Image [B, 1, H, W] to code [B, 1, H/4, W/4]; 865 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(1, 32, kernel_size=5, stride=SCALE, padding=2)
        self.mix = nn.Conv2d(32, 1, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        code: Tensor = self.mix(F.elu(self.reduce(image)))
        return code


class Decoder(nn.Module):
    """Code [B, 1, h, w] to image [B, 1, 4h, 4w] in [0, 1]; 160 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(1, SCALE * SCALE, kernel_size=3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        return F.pixel_shuffle(self.expand(code), SCALE).clamp(0, 1)


class Autoencoder(nn.Module):
    """Encoder and decoder; `clip_code` cuts the code to [0, 1] before anyone reads it.

    With torch's own initial weights half of the code begins below 0, where a cut has no gradient, and it may
    end as the image's negative. `as_resizing` begins, but for a little noise, as plain resizing: the code
    is the mean of 5 x 5 pixels, and the decoder repeats it.
    """

    def __init__(self, *, clip_code: bool, as_resizing: bool = False) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.clip_code = clip_code
        if as_resizing:
            self._start_as_resizing()

    @torch.no_grad()
    def _start_as_resizing(self) -> None:
        reduce, mix, expand = self.encoder.reduce, self.encoder.mix, self.decoder.expand
        for layer in (reduce, mix, expand):
            layer.weight.mul_(NOISE)
            assert layer.bias is not None
            layer.bias.zero_()
        reduce.weight.add_(1 / reduce.weight[0].numel())
        mix.weight.add_(1 / mix.in_channels)
        expand.weight[:, 0, 1, 1] += 1

    def encode(self, image: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1] to the code [B, 1, H/4, W/4]."""
        code: Tensor = self.encoder(image)
        return code.clamp(0, 1) if self.clip_code else code

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encode(image)
        return code, self.decoder(code)


def reconstruction_mse(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Mean squared error in float32, whatever the autocast."""
    with torch.autocast(device_type=image.device.type, enabled=False):
        return F.mse_loss(reconstruction.float(), image.float())
