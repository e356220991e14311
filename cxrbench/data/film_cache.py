"""Decoded films that keep their shapes: a memory map of all films behind one another, each with one short side.

Shapes differ from film to film, so where one lies is known when all before it are decoded: blocks are decoded by
several threads and written in order by one. As in pixel_cache.py, a killed build goes on behind its last block.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cxrbench.core.digest import digest
from cxrbench.core.errors import CannotWriteError, ConfigError, DataError
from cxrbench.core.spec import Recipe
from cxrbench.core.store import Store, fsync_tree, read_json, unwritable, why_not, write_json
from cxrbench.data.pixel_cache import Progress, blocks, cores
from cxrbench.data.pixels import DECODER, Grey, UnreadableImageError

ReadFilm = Callable[[int], Grey]  # one row, [h, w]
FILMS, SHAPES = "films.u8", "shapes.i32"


class Films:
    """Films uint8 [h, w] whose shorter side is `side`, in the memory map of a folder; `len` is N.

    An integer gives a film, an array of rows a list of them; a film is a view of the map and cannot be written.
    """

    def __init__(self, folder: Path, side: int) -> None:
        self.folder, self.side = folder, side
        self.shapes = np.fromfile(folder / SHAPES, np.int32).reshape(-1, 2)  # [N, 2]: h, w
        self._ends = np.cumsum(self.shapes.astype(np.int64).prod(axis=1))
        self._map = np.memmap(folder / FILMS, np.uint8, mode="r")
        if (self.shapes.min(axis=1) != side).any() or len(self._map) != self._ends[-1]:
            raise ValueError(f"{len(self._map):,} bytes do not fit the shapes of {len(self)} films")

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, np.ndarray):
            return [self[int(one)] for one in row]
        height, width = self.shapes[row]
        end = self._ends[row]
        return np.asarray(self._map[end - height * width : end]).reshape(height, width)

    def __reduce__(self) -> Any:
        # A pickled memory map would travel as a copy of every pixel.
        return type(self), (self.folder, self.side)


def gather(pixels: npt.NDArray[np.uint8] | Films, rows: npt.NDArray[np.int64]) -> Any:
    """Some of the images, [B, L, L] in one read of the map; a list of [h, w] where films keep their shapes."""
    return pixels[rows] if isinstance(pixels, Films) else np.asarray(pixels)[rows]


def require_crops(recipe: Recipe) -> None:
    """ConfigError unless the views of films that keep their shapes are windows of them."""
    views = recipe.train_view, recipe.validation_view, recipe.augment.on
    if views != ("random_crop", "center_crop", "loader"):
        raise ConfigError(
            f"recipe: films that keep their shapes are cropped in loader processes; choose train_view random_crop, "
            f"validation_view center_crop and augment.on loader (now {', '.join(views)})"
        )


def open_films(
    read: ReadFilm,
    contents: list[str],
    identity: dict[str, Any],
    side: int,
    store: Store,
    progress: Progress | None = None,
) -> tuple[Films, dict[int, str]]:
    """N films at a short side, and why some could not be read; built when missing, keyed as `open_pixels` is.

    An unreadable film is a square of zeros, listed.
    """
    told = {"decoder": DECODER, "short_side": side, "contents": digest(contents), **identity}
    folder = store.folder("pixels") / f"{side}s-{digest(told)[:16]}"
    if not (folder / "done.json").is_file():
        lock = store.lock(f"pixels-{folder.name}")
        lock.acquire(wait=True)
        try:
            if not (folder / "done.json").is_file():
                work = store.partial(f"pixels-{folder.name}")
                _build(read, len(contents), side, work, folder, progress)
        finally:
            lock.release()
    try:
        facts = json.loads((folder / "done.json").read_text())
        unreadable = {int(row): str(why) for row, why in facts["unreadable"].items()}
        films = Films(folder, side)
        if len(films) != len(contents):
            raise ValueError(f"it holds {len(films)} films")
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"{folder}: damaged cache of films; delete the folder to build it again ({error})"
        ) from None
    return films, unreadable


def _build(
    read: ReadFilm, count: int, side: int, work: Path, folder: Path, progress: Progress | None
) -> None:
    """CannotWriteError when the disk is full; what `read` raises besides UnreadableImageError ends it."""
    rows, unreadable = _left_before(work)
    one = partial(_film, read, side)
    try:
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context((work / name).open("ab")) for name in (FILMS, SHAPES)]
            pool = opened.enter_context(ThreadPoolExecutor(cores()))
            for block in blocks(rows, count):
                films, why = zip(*pool.map(one, block), strict=True)
                files[0].writelines(film.tobytes() for film in films)
                files[1].write(np.array([film.shape for film in films], np.int32).tobytes())
                unreadable |= {str(row): said for row, said in zip(block, why, strict=True) if said}
                _keep(files)
                write_json(work / "rows.json", {"rows": block.stop, "unreadable": unreadable})
                if progress:
                    progress(block.stop, count)
        write_json(work / "done.json", {"unreadable": unreadable})
        (work / "rows.json").unlink(missing_ok=True)
        fsync_tree(work)
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    except OSError as error:
        if unwritable(error) is None:  # a reader's own
            raise
        raise CannotWriteError(f"{work}: cannot write ({why_not(error, work)})") from error


def _film(read: ReadFilm, side: int, row: int) -> tuple[Grey, str]:
    """A film, or a square of zeros and why."""
    try:
        film = read(row)
    except UnreadableImageError as error:
        return np.zeros((side, side), np.uint8), str(error)
    if film.ndim != 2 or film.dtype != np.uint8 or min(film.shape) != side:
        raise ValueError(
            f"row {row}: {film.dtype} {film.shape}; expected uint8 with a short side of {side} px"
        )
    return film, ""


def _keep(files: Sequence[IO[bytes]]) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def _left_before(work: Path) -> tuple[int, dict[str, str]]:
    """Rows that a try that was cut off has left whole, the files cut back to them; 0 where that is not known."""
    rows, unreadable, size = 0, {}, 0
    try:
        note = read_json(work / "rows.json")
        shapes = np.fromfile(work / SHAPES, np.int32)[: 2 * int(note["rows"])]
        size = int(shapes.reshape(-1, 2).astype(np.int64).prod(axis=1).sum())
        if len(shapes) == 2 * note["rows"] and (work / FILMS).stat().st_size >= size:
            rows, unreadable = int(note["rows"]), dict(note["unreadable"])
    except (OSError, ValueError, KeyError, TypeError, DataError):
        pass  # begun anew: nothing else may be known of what lies there
    for name, length in ((FILMS, size if rows else 0), (SHAPES, 8 * rows)):
        with (work / name).open("ab") as file:
            file.truncate(length)
    return rows, unreadable
