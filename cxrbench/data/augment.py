"""Views of a cached image: random ones for training, fixed ones for validation and test."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cxrbench.core.seed import derive_seed
from cxrbench.core.spec import Augment
from cxrbench.data.pixels import resize
from cxrbench.nn.augment import DRAWS

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its version

import albumentations as A

Grey = npt.NDArray[np.uint8]


class RandomView:
    """Crop and augment an image [L, L] to [S, S]; the randomness is a function of the seed given."""

    def __init__(self, size: int, *, crop: bool, augment: Augment) -> None:
        steps: list[A.BasicTransform] = [A.RandomCrop(size, size) if crop else A.Resize(
            size, size, interpolation=cv2.INTER_AREA
        )]  # fmt: skip
        if augment.horizontal_flip:
            steps.append(A.HorizontalFlip(p=augment.horizontal_flip))
        if augment.vertical_flip:
            steps.append(A.VerticalFlip(p=augment.vertical_flip))
        if augment.rotate or augment.shift or augment.scale or augment.shear:
            steps.append(
                A.Affine(
                    rotate=(-augment.rotate, augment.rotate),
                    translate_percent=(-augment.shift, augment.shift),
                    scale=(1 - augment.scale, 1 + augment.scale),
                    shear=(-augment.shear, augment.shear),
                    keep_ratio=True,
                    p=1.0,
                )
            )
        if augment.contrast or augment.brightness:
            steps.append(
                A.ColorJitter(
                    brightness=(1 - augment.brightness, 1 + augment.brightness),
                    contrast=(1 - augment.contrast, 1 + augment.contrast),
                    saturation=(1, 1),
                    hue=(0, 0),
                    p=1.0,
                )
            )
        self._compose = A.Compose(steps)
        self._unchanged = size if len(steps) == 1 else None

    def leaves(self, side: int) -> bool:
        """Whether images of this side stay as they are, whatever the seed."""
        return side == self._unchanged

    def __call__(self, image: Grey, seed: int) -> Grey:
        self._seed(seed)
        return np.asarray(self._compose(image=image)["image"], dtype=np.uint8)

    def with_mask(self, image: Grey, mask: Grey, seed: int) -> tuple[Grey, Grey]:
        """An image and its mask [L, L], moved alike; the mask stays 0 and 255."""
        self._seed(seed)
        both = self._compose(image=image, mask=mask)
        return np.asarray(both["image"], dtype=np.uint8), np.asarray(both["mask"], dtype=np.uint8)

    def _seed(self, seed: int) -> None:
        # set_random_seed would give every change the same numbers: where a film is cropped would say whether it is flipped.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))


class Draws:
    """The random numbers of `cxrbench.nn.augment` for the images of a data set, each a function of (seed, epoch, row)."""

    def __init__(self, seed: int, images: int) -> None:
        self.seed, self.images = seed, images
        self._epoch: int | None = None
        self._table = np.empty((0, len(DRAWS)), np.float32)

    def of(self, epoch: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Uniform numbers in [0, 1) [rows, 13]."""
        if epoch != self._epoch:
            random = np.random.default_rng(derive_seed(self.seed, "augment", epoch))
            self._table = random.random((self.images, len(DRAWS)), dtype=np.float32)
            self._epoch = epoch
        return self._table[rows]


@dataclass(frozen=True)
class FixedView:
    """The same change of every image [L, L], without chance; see `fixed_view`."""

    change: Callable[[Grey], Grey]
    side: int | None  # images of this side stay as they are; 0: of any side; None: of none

    def __call__(self, image: Grey) -> Grey:
        return self.change(image)

    def leaves(self, side: int) -> bool:
        """Whether images of this side stay as they are."""
        return self.side is not None and self.side in (0, side)


def fixed_view(name: str, size: int) -> FixedView:
    """`whole` leaves [L, L]; `resize` and `center_crop` give [S, S]; `ten_crop` gives [10, S, S]."""
    if name == "whole":
        return FixedView(lambda image: image, 0)
    if name == "resize":
        return FixedView(lambda image: resize(image, size), size)
    if name == "center_crop":
        return FixedView(lambda image: _window(image, size, 0.5, 0.5), size)
    if name == "ten_crop":
        return FixedView(lambda image: _ten_crop(image, size), None)
    raise ValueError(f"no view {name!r}")


def _window(image: Grey, size: int, down: float, right: float) -> Grey:
    top = round((image.shape[0] - size) * down)
    left = round((image.shape[1] - size) * right)
    return image[top : top + size, left : left + size]


def _ten_crop(image: Grey, size: int) -> Grey:
    """Four corners and the centre, and their mirror images, in torchvision's order: [10, S, S]."""
    corners = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)]
    plain = [_window(image, size, down, right) for down, right in corners]
    mirrored = image[:, ::-1]
    return np.stack(plain + [_window(mirrored, size, down, right) for down, right in corners])
