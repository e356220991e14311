"""Thumbnails of images, and which of them are alike: remembered by content, so that both are found once."""

import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxrbench.core.digest import digest, digest_lines, source_digest
from cxrbench.core.store import Store, read_json_as, write_json
from cxrbench.data import duplicates
from cxrbench.data.duplicates import SIDE, Images, Ints, Near, near_duplicates
from cxrbench.data.pixels import DECODER

PIXELS = pa.binary(SIDE * SIDE)
MOST_REMEMBERED = 100_000  # pairs of near duplicates; more are searched for anew


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails [M, SIDE, SIDE] of images with the given content hashes [M]."""

    contents: list[str]
    images: Images

    @classmethod
    def none(cls) -> "Thumbnails":
        """No thumbnail."""
        return cls([], np.empty((0, SIDE, SIDE), dtype=np.uint8))

    @cached_property
    def _places(self) -> pd.Index:
        return pd.Index(self.contents, dtype=object)

    def find(self, contents: list[str]) -> Ints:
        """[N] where each content's thumbnail is, -1 where there is none."""
        return self._places.get_indexer(pd.Index(contents, dtype=object)).astype(np.int64)

    def joined(self, more: dict[str, Images]) -> "Thumbnails":
        """These and others by content."""
        new = {content: image for content, image in more.items() if content not in self._places}
        if not new:
            return self
        images = np.concatenate([self.images, np.stack(list(new.values()))])
        return Thumbnails([*self.contents, *new], images)


def memory_of(cls: Any, params: dict[str, Any], store: Store) -> Path:
    """Where the thumbnails of a data set with these parameters are remembered in the store.

    Whatever decides pixels decides the name; a class whose text changed begins anew.
    """
    identity = {
        "dataset": cls.name,
        "version": cls.version,
        "code": source_digest(cls),
        "params": params,
        "decoder": DECODER,
        "side": SIDE,
    }
    return store.root / "cache" / f"thumbnails-{digest(identity)[:16]}.parquet"


def read_thumbnails(path: Path) -> Thumbnails:
    """What is remembered; nothing when the file is absent or damaged, as it can be made again."""
    try:
        table = pq.read_table(path, columns=["sha256", "thumbnail"])
        pixels = table["thumbnail"].combine_chunks().cast(PIXELS)
        if pixels.null_count or pixels.offset:
            return Thumbnails.none()
        images = np.frombuffer(pixels.buffers()[1], dtype=np.uint8)
        return Thumbnails(table["sha256"].to_pylist(), images.reshape(len(pixels), SIDE, SIDE))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return Thumbnails.none()


def write_thumbnails(path: Path, thumbnails: Thumbnails) -> None:
    """Remember thumbnails in place of those before."""
    pixels = pa.py_buffer(np.ascontiguousarray(thumbnails.images))
    columns = {
        "sha256": pa.array(thumbnails.contents, pa.string()),
        "thumbnail": pa.Array.from_buffers(PIXELS, len(thumbnails.images), [None, pixels]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(pa.table(columns), temporary, compression="zstd")
    temporary.replace(path)


@dataclass(frozen=True)
class Alike:
    """Groups of rows that show nearly the same, with the lowest likeness within each.

    `compared` [N] is False for rows without a thumbnail, `flat` are rows that show too little. Where
    `complete` is False the search was ended, and there may be more.
    """

    groups: list[tuple[Ints, float]]
    compared: npt.NDArray[np.bool_]
    flat: Ints
    complete: bool


def find_alike(
    contents: list[str], thumbnails: Thumbnails, memory: Path | None = None, *, anew: bool = False
) -> Alike:
    """Near duplicates among images [N], given their content hashes and thumbnails.

    Rows of identical content stand for one image; groups have two contents or more. With a `memory` (see
    `memory_of`) the same images are searched only once, unless `anew`.
    """
    unique = sorted({c for c in contents if c} & set(thumbnails.contents))
    near = _remembered(unique, thumbnails, memory, anew)
    place = pd.Index(unique, dtype=object).get_indexer(pd.Index(contents, dtype=object))
    leader = _leaders(near.pairs, len(unique))
    involved = np.zeros(len(unique) + 1, dtype=np.bool_)
    involved[near.pairs.ravel()] = True  # the last is for rows of place -1
    rows = np.flatnonzero(involved[place])
    groups: dict[int, list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(int(leader[place[row]]), []).append(row)
    lowest: dict[int, float] = {}
    for first, value in zip(near.pairs[:, 0].tolist(), near.likeness.tolist(), strict=True):
        key = int(leader[first])
        lowest[key] = min(value, lowest.get(key, 1.0))
    found = [(np.array(members), lowest[key]) for key, members in groups.items()]
    flat = np.flatnonzero(np.isin(place, near.flat))
    return Alike(found, place >= 0, flat, near.complete)


def _leaders(pairs: Ints, count: int) -> Ints:
    """[count]: the smallest position that each is joined with by pairs [P, 2], itself included."""
    leader = np.arange(count)
    while True:
        lower = leader[pairs].min(axis=1)
        joined = leader.copy()
        for side in (0, 1):
            np.minimum.at(joined, pairs[:, side], lower)
        if (joined == leader).all():
            return leader
        leader = joined


def _near_of(known: Any, count: int) -> Near:
    """What was written of `count` thumbnails; ValueError for positions that are none of theirs."""
    pairs = np.array(known["pairs"], dtype=np.int64).reshape(-1, 2)
    flat = np.array(known["flat"], dtype=np.int64).reshape(-1)
    likeness = np.array(known["likeness"], dtype=np.float32).reshape(-1)
    if len(likeness) != len(pairs):
        raise ValueError(f"{len(pairs)} pairs, {len(likeness)} values of likeness")
    if any(len(each) and not 0 <= each.min() <= each.max() < count for each in (pairs, flat)):
        raise ValueError(f"a position that is none of {count}")
    return Near(pairs, likeness, flat, int(known["candidates"]), bool(known["complete"]))


def _remembered(unique: list[str], thumbnails: Thumbnails, memory: Path | None, anew: bool) -> Near:
    """Near duplicates among the thumbnails of contents, by position."""
    if not unique:
        return near_duplicates(Thumbnails.none().images)
    settings = [duplicates.DISTANCE, duplicates.LIKE, duplicates.BLUR, duplicates.FLAT]
    key = digest([settings, digest_lines(unique)])
    path = memory.with_suffix(".json") if memory else None

    def recall(known: Any) -> Near | None:
        return _near_of(known, len(unique)) if known["of"] == key else None

    if path and path.is_file() and not anew:
        near = read_json_as(path, recall, "pairs of alike films")
        if near:
            return near
    near = near_duplicates(thumbnails.images[thumbnails.find(unique)])
    if path and len(near.pairs) <= MOST_REMEMBERED:
        values = {name: np.asarray(value).tolist() for name, value in asdict(near).items()}
        write_json(path, {"of": key, **values})
    return near
