"""The phantom with chests that stand off the middle and are smaller than usual, so that no one window fits all."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cxrbench.core.seed import derive_seed
from cxrbench.data.base import CxrDataset
from cxrbench.data.index import Index
from cxrbench.data.phantom import Phantom


class MovedPhantom(Phantom, CxrDataset):  # named, since the registry reads classes as text
    """Drawn films, each shrunk by up to a third and shifted on black; the lungs move along."""

    name = "moved-phantom"

    @classmethod
    def read_image(cls, index: Index, row: int, size: int) -> npt.NDArray[np.uint8]:
        return moved(super().read_image(index, row, size), str(index.image_ids[row]))

    @classmethod
    def read_mask(cls, index: Index, row: int, size: int) -> npt.NDArray[np.uint8]:
        drawn = (super().truth(index, row, size).lungs * np.uint8(255)).astype(np.uint8)
        return np.where(moved(drawn, str(index.image_ids[row])) > 127, 255, 0).astype(np.uint8)

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        return root


def moved(film: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
    """A film [S, S] at 0.67 to 1 of its size, somewhere on a black film of the same side."""
    rng = np.random.default_rng(derive_seed(0, name))
    side = len(film)
    scale = rng.uniform(0.67, 1.0)
    # The lungs stay inside: they fill the middle of a film, up to about a tenth of its side.
    room = (1 - 0.8 * scale) / 2
    centre = 0.5 + rng.uniform(-room, room, 2)
    shift = (centre - scale / 2) * side
    move = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return np.asarray(cv2.warpAffine(film, move, (side, side), flags=cv2.INTER_AREA), np.uint8)
