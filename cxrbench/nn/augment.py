"""Random changes of training images, a whole batch at once, on whatever device it lies.

The distribution is that of `cxrbench.data.augment.RandomView`, image by image, with the same order of changes: crop, flips, one
affine movement (bilinear, black outside), brightness and contrast in a random order, 8 bits in between.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrbench.core.spec import Augment

# One uniform number in [0, 1) each.
DRAWS = (
    "top", "left", "horizontal", "vertical", "rotate", "shift_x", "shift_y", "scale", "shear_x", "shear_y",
    "brightness", "contrast", "order",
)  # fmt: skip


def augmented(image: Tensor, draws: Tensor, size: int, augment: Augment) -> Tensor:
    """uint8 [B, 1, L, L], with `draws` [B, 13] uniform in [0, 1), to uint8 [B, 1, S, S]; S <= L."""
    drawn = dict(zip(DRAWS, draws.to(image.device, torch.float32).unbind(1), strict=True))
    image = _cropped(image, drawn, size)
    image = torch.where(
        _column(drawn["horizontal"] < augment.horizontal_flip), image.flip(3), image
    )
    image = torch.where(_column(drawn["vertical"] < augment.vertical_flip), image.flip(2), image)
    if augment.rotate or augment.shift or augment.scale or augment.shear:
        grid = F.affine_grid(_theta(drawn, size, augment), list(image.shape), align_corners=False)
        image = _cut(F.grid_sample(image.float(), grid, align_corners=False).round())
    if augment.contrast or augment.brightness:
        image = _jittered(image, drawn, augment)
    return image


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _between(drawn: Tensor, most: float, centre: float = 0.0) -> Tensor:
    """Uniform in centre -+ most."""
    return centre + most * (2 * drawn - 1)


def _cut(image: Tensor) -> Tensor:
    return image.clamp(0, 255).byte()


def _cropped(image: Tensor, drawn: Mapping[str, Tensor], size: int) -> Tensor:
    """Windows [B, 1, S, S] whose corners are drawn, every place being as likely."""
    room = image.shape[-1] - size + 1
    if room == 1:
        return image
    along = torch.arange(size, device=image.device)
    rows, columns = ((drawn[n] * room).long().unsqueeze(1) + along for n in ("top", "left"))
    each = torch.arange(len(image), device=image.device).view(-1, 1, 1)
    return image[each, 0, rows.unsqueeze(2), columns.unsqueeze(1)].unsqueeze(1)


def _theta(drawn: Mapping[str, Tensor], size: int, augment: Augment) -> Tensor:
    """[B, 2, 3]: where each place of the result is taken from, in half sides from the centre.

    A point moves by shift + shear . rotation . scale about the centre; shifts are whole pixels.
    """
    angle = torch.deg2rad(_between(drawn["rotate"], augment.rotate))
    across, down = (torch.tan(torch.deg2rad(_between(drawn[n], augment.shear))) for n in ("shear_x", "shear_y"))  # fmt: skip
    cos, sin, one = angle.cos(), angle.sin(), torch.ones_like(angle)
    rotation = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2)
    shear = torch.stack([one, across, down, one], 1).view(-1, 2, 2)
    scale = _between(drawn["scale"], augment.scale, 1.0).view(-1, 1, 1)
    shift = torch.stack([_between(drawn[n], augment.shift * size).trunc() for n in ("shift_x", "shift_y")], 1)  # fmt: skip
    # `inv` would have the CPU wait for the GPU to say that it went well.
    back, _ = torch.linalg.inv_ex(shear @ rotation * scale)
    return torch.cat([back, -back @ (shift * 2 / size).unsqueeze(2)], 2)


def _jittered(image: Tensor, drawn: Mapping[str, Tensor], augment: Augment) -> Tensor:
    """Brightness and contrast, half of the images in the other order."""
    brightness = _column(_between(drawn["brightness"], augment.brightness, 1.0))
    contrast = _column(_between(drawn["contrast"], augment.contrast, 1.0))

    def brighter(one: Tensor) -> Tensor:
        return _cut(one * brightness)

    def steeper(one: Tensor) -> Tensor:
        mean = one.float().mean((1, 2, 3), keepdim=True)
        return _cut(one * contrast + mean * (1 - contrast))

    first = _column(drawn["order"] < 0.5)
    return torch.where(first, steeper(brighter(image)), brighter(steeper(image)))
