"""What the classes behind `compute` and `transform` stages must offer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from cxrbench.core.frozen import Frozen
from cxrbench.core.spec import Reading


def reading_of(reader: Any) -> Reading:
    """How a computation or a transformation reads films that are no squares; one that does not say has them squeezed."""
    found: Reading = reader.reading() if hasattr(reader, "reading") else "squeeze"
    return found


class Computation:
    """A statistic of a training part: a canonical chest, a mean feature, a noise level."""

    name: ClassVar[str]
    version: ClassVar[int]
    Params: ClassVar[type[Frozen]]
    params: Any
    device: str = "cpu"  # where it may compute; set before `compute`

    def __init__(self, params: Any) -> None:
        self.params = params

    def image_size(self) -> int:
        """The side in pixels at which it reads images."""
        raise NotImplementedError

    def reading(self) -> Reading:
        """How it reads films that are no squares: `squeeze` or `centre`."""
        return "squeeze"

    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Read uint8 `images` [N, S, S] and `targets` [N, K], write files to `out`, return facts.

        `images` has a length and gives arrays for slices; only what is sliced is read. Its `rows` are
        their places among all images, `index` says what is known of them besides, `masks()` gives their
        lungs where `has_masks`, `boxes()` the boxes around findings, and `dataset` is the data set's class.
        `inputs` are the folders of earlier artefacts.
        """
        raise NotImplementedError


class Transformation:
    """A rewriting of every image: aligned, cropped, blurred, restored."""

    name: ClassVar[str]
    version: ClassVar[int]
    Params: ClassVar[type[Frozen]]
    params: Any

    def __init__(self, params: Any) -> None:
        self.params = params

    def image_size(self) -> int:
        """The side S in pixels at which it reads images."""
        raise NotImplementedError

    def reading(self) -> Reading:
        """How it reads films that are no squares: `squeeze` or `centre`."""
        return "squeeze"

    def open(self, inputs: Mapping[str, Path], device: str) -> None:
        """Load what earlier stages left."""

    def __call__(self, images: Any) -> Any:
        """uint8 [B, S, S] to uint8 [B, T, T]; T is the same for every batch."""
        raise NotImplementedError

    def leave(self, out: Path) -> dict[str, Any]:
        """After the last image: write to `out` what was found on the way, such as boxes; facts."""
        return {}
