"""The base of every data set: how its folder is read. A file of this package is one data set.

Readers import neither torch nor Lightning, so that planning, splitting and verifying are quick;
`CxrDataModule` (module.py) serves any of them to Lightning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cxrbench.core.errors import ConfigError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.core.spec import Reading
from cxrbench.data.index import Index
from cxrbench.data.pixels import decode, read_at, resize
from cxrbench.data.splits import Split, stratified_folds, stratified_parts


class DataParams(Frozen):
    """Base of every data set's `Params`; data sets without options use it as it is."""


@dataclass(frozen=True)
class Problem:
    """Something that `data verify` found, with the names concerned."""

    severity: Literal["error", "warning", "info"]
    what: str
    names: tuple[str, ...] = ()
    count: int = field(default=0)

    def __post_init__(self) -> None:
        if not self.count:
            object.__setattr__(self, "count", len(self.names))


# A finding and where it is: (x0, y0, x1, y1) in shares of the image.
FindingBox = tuple[str, tuple[float, float, float, float]]


class CxrDataset:
    """A data set: reads its folder into an Index, cuts its splits, reads its pixels."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Params: ClassVar[type[Frozen]] = DataParams
    splits: ClassVar[tuple[str, ...]] = ("official", "cv5")  # the first is the default
    needs_root: ClassVar[bool] = True
    home: ClassVar[str] = ""  # where to get it
    licence: ClassVar[str] = ""
    phantom: ClassVar[bool] = False  # drawn, not photographed: marked on every leaderboard
    variants: ClassVar[tuple[str, ...]] = (
        "",
    )  # layouts that `fake` can write, the usual one first
    overlaps: ClassVar[Mapping[str, str]] = {}  # data sets that share patients or images, and why
    has_masks: ClassVar[bool] = False  # `read_mask` gives the lungs

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        """All usable images below `root`.

        Raises DataError or MissingInputError that names file, field and repair.
        """
        raise NotImplementedError

    @classmethod
    def make_split(cls, name: str, index: Index) -> Split:
        """Cut a split by patient; deterministic. `cv5` works everywhere as it stands."""
        if name == "cv5":
            return stratified_folds(index, folds=5)
        if name == "holdout":
            fractions = {"train": 0.7, "val": 0.1, "test": 0.2}
            return stratified_parts(index, "holdout", fractions)
        raise MissingInputError(f"{cls.name}: no split {name!r}; it has {', '.join(cls.splits)}")

    @classmethod
    def read_image(cls, index: Index, row: int, size: int) -> npt.NDArray[np.uint8]:
        """One image as grey uint8 [size, size]."""
        return resize(cls.read_film(index, row), size)

    @classmethod
    def read_film(cls, index: Index, row: int) -> npt.NDArray[np.uint8]:
        """One image as it lies on the disk, grey uint8 [H, W]; `read_image` squeezes it."""
        return decode(index.path(row))

    @classmethod
    def one_film(cls) -> bool:
        """Whether an image at any size is `read_film` resized: so it is unless `read_image` is overridden."""
        return (
            getattr(cls.read_image, "__func__", None) is CxrDataset.__dict__["read_image"].__func__
        )

    @classmethod
    def read_images(
        cls, index: Index, row: int, sizes: Sequence[int], reading: Reading = "squeeze"
    ) -> list[npt.NDArray[np.uint8]]:
        """A film at several sizes, `read_image` unless `reading` says otherwise; decoded once for all where it can be."""
        if cls.squares(reading):
            return [cls.read_image(index, row, size) for size in sizes]
        film = cls.read_film(index, row)
        return [read_at(film, size, reading) for size in sizes]

    @classmethod
    def as_read(cls, reading: Reading) -> Reading:
        """The reading that gives the same films: `squeeze` for those that are squares. ConfigError as `squares`."""
        return "squeeze" if cls.squares(reading) else reading

    @classmethod
    def squares(cls, reading: Reading) -> bool:
        """Whether `read_image` gives the films in this reading: they are drawn as squares at any size.

        ConfigError where a reader squeezes films itself, so that nobody knows their shapes.
        """
        if reading != "squeeze" and not cls.one_film() and not cls.phantom:
            raise ConfigError(
                f"{cls.name}: reads images at a size itself, so it cannot keep their aspect ratio; let it override "
                f"read_film in place of read_image"
            )
        return not cls.one_film()

    @classmethod
    def read_mask(cls, index: Index, row: int, size: int) -> npt.NDArray[np.uint8]:
        """The lungs of an image as uint8 [size, size]: 255 inside, 0 outside."""
        raise NotImplementedError

    @classmethod
    def finding_boxes(cls, index: Index) -> list[list[FindingBox]] | None:
        """The boxes around findings of each image [N], none of most; None where nobody has drawn any."""
        return None

    @classmethod
    def check(cls, index: Index) -> list[Problem]:
        """What differs from the published counts and rules; content is checked for all alike."""
        return []

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """Write a miniature of the raw download in its exact layout; returns the folder to read.

        `variant` is one of `variants`; blank is the first. Between them the variants hold every trap
        of the real download that is no error.
        """
        raise NotImplementedError

    @classmethod
    def require_root(cls, root: Path | None) -> Path:
        """The data folder, or an error that says how to give it."""
        if root is None:
            where = f" (get the images at {cls.home})" if cls.home else ""
            raise MissingInputError(f"{cls.name}: no data folder; pass --data DIR{where}")
        if not root.is_dir():
            raise MissingInputError(f"{cls.name}: {root} is not a folder")
        return root
