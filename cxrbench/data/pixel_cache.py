"""Decoded images in memory-mapped caches: one decode for all sizes, memory for a few images, a kill costs a block.

Rows are written in order. After each block the files are flushed and `rows.json` says how many rows are
whole, so that the next try begins there, whatever ended this one.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrbench.core.digest import digest
from cxrbench.core.errors import CannotWriteError, DataError
from cxrbench.core.store import (
    MISFITS,
    Store,
    fsync_tree,
    read_json,
    unwritable,
    why_not,
    write_json,
)
from cxrbench.data.pixels import DECODER, Grey, UnreadableImageError

# One row at these sides, [S, S] each.
ReadRow = Callable[[int, Sequence[int]], Sequence[Grey]]
Progress = Callable[[int, int], None]
BLOCK = 256  # rows between two flushes: some seconds of decoding


@dataclass(frozen=True)
class PixelCache:
    """Decoded images [N, S, S], memory-mapped; `unreadable` maps rows to reasons."""

    images: npt.NDArray[np.uint8]
    unreadable: dict[int, str]
    folder: Path


def open_pixels(
    read: ReadRow,
    contents: list[str],
    identity: dict[str, Any],
    size: int,
    store: Store,
    progress: Progress | None = None,
    *,
    also: Collection[int] = (),
) -> PixelCache:
    """The cache of N images at a size, built when missing; sizes in `also` are made in the same pass.

    Keyed by content (`contents`: SHA-256 [N]) and by what decides the pixels besides (`identity`), so a
    replaced image or another resize is another cache. An unreadable image is a row of zeros, listed.
    """

    def name(side: int) -> str:
        key = digest({"decoder": DECODER, "size": side, "contents": digest(contents), **identity})
        return f"{side}-{key[:16]}"

    sides = [size, *sorted(set(also) - {size})]
    folders = {side: store.folder("pixels") / name(side) for side in sides}
    folder = folders[size]
    if not _done(folder):
        _build_missing(read, len(contents), folders, store, progress)
    try:
        facts = json.loads((folder / "done.json").read_text())
        unreadable = {int(row): str(why) for row, why in facts["unreadable"].items()}
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        if images.shape != (len(contents), size, size) or images.dtype != np.uint8:
            raise ValueError(f"it holds {images.dtype} {images.shape}")
    except (OSError, EOFError, *MISFITS) as error:
        raise DataError(
            f"{folder}: damaged pixel cache; delete the folder to build it again ({error})"
        ) from None
    return PixelCache(images, unreadable, folder)


def _done(folder: Path) -> bool:
    return (folder / "done.json").is_file()


def _build_missing(
    read: ReadRow, count: int, folders: dict[int, Path], store: Store, progress: Progress | None
) -> None:
    """Build the first size, and of the others those that are missing and that nobody else is building."""
    first, *others = folders
    with contextlib.ExitStack() as held:

        def lock(side: int, *, wait: bool) -> bool:
            found = store.lock(f"pixels-{folders[side].name}")
            held.callback(found.release)
            return found.acquire(wait=wait)

        lock(first, wait=True)
        if _done(folders[first]):
            return
        # Only the first is waited for, so two builders never wait for each other.
        more = [side for side in others if not _done(folders[side]) and lock(side, wait=False)]
        build(
            read,
            count,
            {
                side: (store.partial(f"pixels-{folders[side].name}"), folders[side])
                for side in (first, *more)
                if not _done(folders[side])
            },
            progress,
        )


class Unfinished:
    """A cache of N images at a side S on its way: `images.npy` uint8 [N, S, S] and `rows.json` beside it."""

    def __init__(self, work: Path, count: int, side: int) -> None:
        self.work, self.count, self.side = work, count, side
        self.images = work / "images.npy"
        self.rows, self.unreadable = self._left_before()
        if self.rows is None:
            shape = (count, side, side)
            made = np.lib.format.open_memmap(self.images, mode="w+", dtype=np.uint8, shape=shape)
            made.flush()
            self.rows, self.unreadable = 0, {}
        self._start = self.images.stat().st_size - count * side * side
        self._file = os.open(self.images, os.O_WRONLY)

    def _left_before(self) -> tuple[int | None, dict[int, str]]:
        """What a try that was cut off has left: whole rows and the unreadable ones among them."""
        try:
            images = np.load(self.images, mmap_mode="r", allow_pickle=False)
            if images.shape != (self.count, self.side, self.side) or images.dtype != np.uint8:
                return None, {}
            note = read_json(self.work / "rows.json")
            rows = int(note["rows"])
            unreadable = {int(row): str(why) for row, why in note["unreadable"].items()}
            return (rows, unreadable) if 0 <= rows <= self.count else (None, {})
        except (OSError, EOFError, DataError, *MISFITS):
            return None, {}  # begun anew: nothing else may be known of what lies there

    def need(self) -> int:
        """Bytes that are still to be written."""
        return (self.count - (self.rows or 0)) * self.side**2

    def put(self, row: int, image: Grey) -> None:
        """Write a row; threads may write different ones at once. A map would end the process on a full disk."""
        if image.shape != (self.side, self.side) or image.dtype != np.uint8:
            raise ValueError(
                f"row {row}: {image.dtype} {image.shape}; expected uint8 at {self.side} px"
            )
        data = memoryview(image.tobytes())
        place = self._start + row * image.size
        while data:
            written = os.pwrite(self._file, data, place)
            data, place = data[written:], place + written

    def keep(self, rows: int) -> None:
        """All rows before this one are whole, now on the disk too."""
        os.fsync(self._file)
        self.rows = rows
        why = {str(row): self.unreadable[row] for row in sorted(self.unreadable)}
        write_json(self.work / "rows.json", {"rows": rows, "unreadable": why})

    def publish(self, folder: Path) -> None:
        """Make it the cache that readers find."""
        why = {str(row): self.unreadable[row] for row in sorted(self.unreadable)}
        write_json(self.work / "done.json", {"unreadable": why})
        (self.work / "rows.json").unlink(missing_ok=True)
        fsync_tree(self.work)
        shutil.rmtree(folder, ignore_errors=True)
        self.work.rename(folder)

    def close(self) -> None:
        os.close(self._file)


def build(
    read: ReadRow, count: int, places: dict[int, tuple[Path, Path]], progress: Progress | None
) -> None:
    """Caches of N images at several sides; `places`: side -> (folder of unfinished work, final folder).

    CannotWriteError when the disk has no room; what `read` raises besides UnreadableImageError ends it.
    """
    with contextlib.ExitStack() as opened:
        try:
            sizes = [
                opened.enter_context(contextlib.closing(Unfinished(work, count, side)))
                for side, (work, _) in places.items()
            ]
            _require_room(sizes)
            _fill(read, count, sizes, progress)
            for size in sizes:
                size.publish(places[size.side][1])
        except OSError as error:
            if unwritable(error) is None:  # a reader's own
                raise
            where = next(iter(places.values()))[0]
            raise CannotWriteError(f"{where}: cannot write ({why_not(error, where)})") from error


def _require_room(sizes: list[Unfinished]) -> None:
    where, need = sizes[0].work, sum(size.need() for size in sizes)
    free = shutil.disk_usage(where).free
    if need > free:
        at = ", ".join(str(size.side) for size in sizes)
        raise CannotWriteError(
            f"{where}: {sizes[0].count:,} images at {at} px need {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB "
            f"are free; free some, or set CXRBENCH_HOME to another disk"
        )


def _fill(read: ReadRow, count: int, sizes: list[Unfinished], progress: Progress | None) -> None:
    def one(row: int) -> None:
        wanted = [size for size in sizes if (size.rows or 0) <= row]
        try:
            images = read(row, [size.side for size in wanted])
        except UnreadableImageError as error:
            images = [np.zeros((size.side, size.side), np.uint8) for size in wanted]
            for size in wanted:
                size.unreadable[row] = str(error)
        for size, image in zip(wanted, images, strict=True):
            size.put(row, image)

    # Pillow and OpenCV release the interpreter lock while they decode.
    with ThreadPoolExecutor(cores()) as pool:
        for block in _blocks(min(size.rows or 0 for size in sizes), count):
            for _ in pool.map(one, block):
                pass
            for size in sizes:
                size.keep(max(block.stop, size.rows or 0))
            if progress:
                progress(block.stop, count)


def _blocks(start: int, count: int) -> Iterator[range]:
    for first in range(start, count, BLOCK):
        yield range(first, min(first + BLOCK, count))


def cores() -> int:
    """Cores that this process may use, which a queue may have made fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
