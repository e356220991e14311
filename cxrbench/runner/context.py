"""What a worker knows: the store, the folders of the data, and the data sets that it has opened."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cxrbench.core.digest import digest
from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.registry import Registry
from cxrbench.core.spec import Execution, Reading
from cxrbench.core.stage import DataView, Stage
from cxrbench.core.store import Store
from cxrbench.data.film_cache import Films, open_films
from cxrbench.data.pixel_cache import ReadRow, open_pixels
from cxrbench.data.pixels import Grey, centre_of, kept_shape, resize
from cxrbench.data.splits import fewer_trained
from cxrbench.runner.bind import Opened, open_dataset
from cxrbench.runner.sides import Sides, images_key

LISTED = 20  # unreadable images named in an error


@dataclass
class Material:
    """A view at a working size: rows, pixels and parts."""

    opened: Opened
    pixels: npt.NDArray[np.uint8] | Films  # [N, L, L]; Films where they keep their shapes
    parts: npt.NDArray[np.object_]  # [N]: train, val, test, none or unreadable
    skipped: list[str]

    @property
    def squares(self) -> npt.NDArray[np.uint8]:
        """The pixels of any reading but `short_side`."""
        assert not isinstance(self.pixels, Films)
        return self.pixels


@dataclass
class Context:
    """Shared by the stages of one worker."""

    store: Store
    registry: Registry
    roots: dict[str, Path | None]
    execution: Execution
    sides: Sides = field(default_factory=dict)  # at which the whole plan reads raw images
    _opened: dict[str, Opened] = field(default_factory=dict)

    def artefact(self, stage: Stage) -> Path:
        """The folder of a stage that must be built already."""
        if not self.store.has(stage.key):
            raise DataError(f"{stage.key}: not built; run the same command again")
        return self.store.artefact(stage.key)

    def open(self, view: DataView) -> Opened:
        """The data set of a view; refused when it is no longer what was planned with."""
        key = digest([view.dataset, view.revision, view.split, dict(view.params)])
        if key not in self._opened:
            cls = self.registry.load("datasets", view.dataset)
            root = self.roots.get(view.dataset)
            opened = open_dataset(cls, root, dict(view.params), view.split, self.store)
            now = (opened.revision, opened.split.digest(opened.index))
            if now != (view.revision, view.split_digest):
                raise DataError(
                    f"{view.dataset}: the images, labels or split in {root} have changed since the plan "
                    f"was made; run the same command again"
                )
            self._opened[key] = opened
        return self._opened[key]

    def material(self, view: DataView, size: int, reading: Reading = "squeeze") -> Material:
        """The pixels of a view at a size, with the parts of its fold.

        `reading` is of raw films that are no squares; what a transform made is square.
        """
        opened = self.open(view)
        count = len(opened.index)
        pixels, unreadable = self._pixels(view, size, reading)
        parts = opened.split.parts(opened.index, view.fold).copy()
        if unreadable and not view.skip_unreadable:
            listed = "\n  ".join(list(unreadable.values())[:LISTED])
            raise DataError(
                f"{view.dataset}: {len(unreadable)} of {count} images cannot be read:\n  {listed}\n"
                f"repair them, or pass --skip-unreadable to leave them out and have that recorded"
            )
        skipped = list(unreadable)
        parts[skipped] = "unreadable"
        if view.train_images is not None:
            parts = fewer_trained(parts, opened.index.image_ids, view.train_images)
        names = [str(opened.index.image_ids[row]) for row in skipped]
        return Material(opened, pixels, parts, names)

    def _pixels(
        self, view: DataView, size: int, reading: Reading
    ) -> tuple[npt.NDArray[np.uint8] | Films, dict[int, str]]:
        """The images of a view, from their cache, and why some of them could not be read."""
        opened = self.open(view)
        if view.images is not None:
            images = np.load(self.artefact(view.images) / "images.npy", mmap_mode="r")

            def made(row: int, sizes: Sequence[int]) -> Sequence[Grey]:
                return [resize(images[row], side) for side in sizes]

            contents, identity = [""] * len(opened.index), {"images": view.images.digest}
            cache = open_pixels(made, contents, identity, size, self.store, Told())
            return cache.images, cache.unreadable
        identity = _drawn_by(view)
        # Of drawn squares every reading is the same; for them nothing is saved by making other sizes now.
        how: Reading = opened.cls.as_read(reading)

        def read(row: int, sizes: Sequence[int]) -> Sequence[Grey]:
            found: list[Grey] = opened.cls.read_images(opened.index, row, sizes, how)
            return found

        if how == "short_side":
            films = partial(_one, read, size)
            return open_films(films, opened.contents, identity, size, self.store, Told())
        also: list[int] = []
        if how == "centre":
            identity = {**identity, "reading": how}
        elif opened.cls.one_film():
            also = self.sides.get(images_key(view), [])
        cache = open_pixels(read, opened.contents, identity, size, self.store, Told(), also=also)
        return cache.images, cache.unreadable

    def masks(
        self, view: DataView, size: int, reading: Reading = "squeeze"
    ) -> npt.NDArray[np.uint8]:
        """The lungs [N, L, L] of the raw images of a view: 255 inside, 0 outside; read as the films are.

        ConfigError for the reading `short_side`, which gives no squares.
        """
        opened = self.open(view)
        if view.images is not None:
            raise ConfigError(f"{view.dataset}: its masks fit the raw images, not rewritten ones")
        if not opened.cls.has_masks:
            raise ConfigError(f"{view.dataset}: has no lung masks; use a data set that has them")

        if reading == "short_side":
            raise ConfigError(f"{view.dataset}: masks are squares; read films as squares, too")
        how: Reading = opened.cls.as_read(reading)

        def read(row: int, sizes: Sequence[int]) -> Sequence[Grey]:
            if how == "squeeze":
                return [opened.cls.read_mask(opened.index, row, side) for side in sizes]
            shape = opened.cls.read_film(opened.index, row).shape
            return [_central(opened, row, kept_shape(shape, side), side) for side in sizes]

        # The revision, because the contents are those of the images alone.
        identity = {**_drawn_by(view), "of": "masks", "revision": view.revision}
        if how != "squeeze":
            identity["reading"] = how
        cache = open_pixels(read, opened.contents, identity, size, self.store, Told())
        if cache.unreadable:
            listed = "\n  ".join(list(cache.unreadable.values())[:LISTED])
            raise DataError(
                f"{view.dataset}: {len(cache.unreadable)} masks cannot be read:\n  {listed}"
            )
        return cache.images


def _one(read: ReadRow, side: int, row: int) -> Grey:
    return read(row, [side])[0]


def _central(opened: Opened, row: int, shape: tuple[int, int], side: int) -> Grey:
    """A mask with the middle of a film alone: read at the long side of `shape`, so that the short one shrinks."""
    whole = cv2.resize(opened.cls.read_mask(opened.index, row, max(shape)), shape[::-1])
    top, left = centre_of(shape, side)
    inside = np.asarray(whole)[top : top + side, left : left + side] > 127
    return np.where(inside, np.uint8(255), np.uint8(0))


def _drawn_by(view: DataView) -> dict[str, Any]:
    """What decides the pixels besides the files' content: the reader and its options."""
    return {"dataset": view.dataset, "version": view.version, "params": dict(view.params)}


class Told:
    """A line in the worker's log every few seconds: how far, how fast, how long still."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, every: float = 5.0) -> None:
        self.clock, self.every = clock, every
        self.last: float | None = None
        self.began = clock()
        self.before = 0  # rows at the first call, some of which an earlier try may have made

    def __call__(self, done: int, of: int) -> None:
        now = self.clock()
        if self.last is None:
            self.before, self.began = done, now
        elif now - self.last < self.every and done < of:
            return
        self.last = now
        print(f"decoding images {done}/{of}{self._rate(done, of, now)}", flush=True)

    def _rate(self, done: int, of: int, now: float) -> str:
        made, took = done - self.before, now - self.began
        if made <= 0 or took <= 0:
            return ""
        left = (of - done) * took / made
        return f", {made / took:.0f} a second" + (f", {left:.0f} s left" if done < of else "")
