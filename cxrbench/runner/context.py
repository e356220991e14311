"""What a worker knows: the store, the folders of the data, and the data sets that it has opened."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrbench.core.digest import digest
from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.registry import Registry
from cxrbench.core.spec import Execution
from cxrbench.core.stage import DataView, Stage
from cxrbench.core.store import Store
from cxrbench.data.pixels import open_pixels, resize
from cxrbench.data.splits import fewer_trained
from cxrbench.runner.bind import Opened, open_dataset

LISTED = 20  # unreadable images named in an error


@dataclass
class Material:
    """A view at a working size: rows, pixels and parts."""

    opened: Opened
    pixels: npt.NDArray[np.uint8]  # [N, L, L]
    parts: npt.NDArray[np.object_]  # [N]: train, val, test, none or unreadable
    skipped: list[str]


@dataclass
class Context:
    """Shared by the stages of one worker."""

    store: Store
    registry: Registry
    roots: dict[str, Path | None]
    execution: Execution
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

    def material(self, view: DataView, size: int) -> Material:
        """The pixels of a view at a size, with the parts of its fold."""
        opened = self.open(view)
        count = len(opened.index)
        read: Callable[[int], npt.NDArray[np.uint8]]
        if view.images is None:
            contents, identity = opened.contents, _drawn_by(view)

            def read(row: int) -> npt.NDArray[np.uint8]:
                image: npt.NDArray[np.uint8] = opened.cls.read_image(opened.index, row, size)
                return image
        else:
            images = np.load(self.artefact(view.images) / "images.npy", mmap_mode="r")
            contents, identity = [""] * count, {"images": view.images.digest}

            def read(row: int) -> npt.NDArray[np.uint8]:
                return resize(images[row], size)

        cache = open_pixels(read, contents, identity, size, self.store, _report)
        parts = opened.split.parts(opened.index, view.fold).copy()
        if cache.unreadable and not view.skip_unreadable:
            listed = "\n  ".join(list(cache.unreadable.values())[:LISTED])
            raise DataError(
                f"{view.dataset}: {len(cache.unreadable)} of {count} images cannot be read:\n  {listed}\n"
                f"repair them, or pass --skip-unreadable to leave them out and have that recorded"
            )
        skipped = list(cache.unreadable)
        parts[skipped] = "unreadable"
        if view.train_images is not None:
            parts = fewer_trained(parts, opened.index.image_ids, view.train_images)
        names = [str(opened.index.image_ids[row]) for row in skipped]
        return Material(opened, cache.images, parts, names)

    def masks(self, view: DataView, size: int) -> npt.NDArray[np.uint8]:
        """The lungs [N, L, L] of the raw images of a view: 255 inside, 0 outside."""
        opened = self.open(view)
        if view.images is not None:
            raise ConfigError(f"{view.dataset}: its masks fit the raw images, not rewritten ones")
        if not opened.cls.has_masks:
            raise ConfigError(f"{view.dataset}: has no lung masks; use a data set that has them")

        def read(row: int) -> npt.NDArray[np.uint8]:
            mask: npt.NDArray[np.uint8] = opened.cls.read_mask(opened.index, row, size)
            return mask

        # The revision, because the contents are those of the images alone.
        identity = {**_drawn_by(view), "of": "masks", "revision": view.revision}
        cache = open_pixels(read, opened.contents, identity, size, self.store, _report)
        if cache.unreadable:
            listed = "\n  ".join(list(cache.unreadable.values())[:LISTED])
            raise DataError(
                f"{view.dataset}: {len(cache.unreadable)} masks cannot be read:\n  {listed}"
            )
        return cache.images


def _drawn_by(view: DataView) -> dict[str, Any]:
    """What decides the pixels besides the files' content: the reader and its options."""
    return {"dataset": view.dataset, "version": view.version, "params": dict(view.params)}


def _report(done: int, of: int) -> None:
    print(f"decoding images {done}/{of}", flush=True)
