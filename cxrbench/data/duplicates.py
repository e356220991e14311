"""Identical and nearly identical images, found without comparing every pair.

Near: thumbnails whose difference hashes are at most DISTANCE bits apart are candidates, and candidates
whose fine structure correlates with at least LIKE are near duplicates.

Why not the usual hash and plain correlation: from left to right all chest films are bright, dark, bright,
dark, bright. By the hash of horizontal differences 0.8 % (375 films of ChestX-ray14) and 2.2 % (3,501 of
Kermany) of all pairs of different films were candidates; by that of vertical differences 0.06 % and
0.002 %. Whole thumbnails of different patients correlated with up to 0.974; without their blurred copy with
up to 0.839 (6.2 million pairs), those of follow-ups of one patient with up to 0.831. In these and 156 films
of the COVID-19 collection nothing was found but copies of the same file.

Of 399 films that were altered were found: all with a letter, of half the size and as JPEG of quality 20; 97
to 100 % with other brightness, contrast or gamma; 92 % with 1 % cut off at each side, but 2 % with 2 %;
75 % with an equalised histogram, but 12 % with local contrast enhancement.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]
Images = npt.NDArray[np.uint8]
SIDE = 32  # of a thumbnail
DISTANCE = 4
LIKE = 0.92
BLUR = 2.0  # standard deviation, in pixels of a thumbnail
FLAT = 2.0  # thumbnails with a smaller standard deviation show too little to tell them apart
# Two hashes that differ in 4 bits agree in one of 5 bands whole. Neighbouring bits are alike, so that a
# band takes every fifth one.
BANDS = DISTANCE + 1
MASKS = tuple(np.uint64(sum(1 << bit for bit in range(band, 64, BANDS))) for band in range(BANDS))
# Far beyond what 112,120 films need; where tens of thousands look alike the search ends, and says so.
MOST_COMPARISONS = 1_000_000_000  # in a band
MOST_CANDIDATES = 20_000_000
SHORT, BLOCK = 64, 1 << 18  # sizes with which the search was quickest
CHUNK = 4096
FEW = 32  # dimensions in which most candidates already differ too much


def identical(contents: list[str]) -> list[Ints]:
    """Rows of each content that occurs more than once; a blank content is unknown."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, content in enumerate(contents):
        if content:
            rows_of[content].append(row)
    return [np.array(rows, dtype=np.int64) for rows in rows_of.values() if len(rows) > 1]


def shrink(image: Images) -> Images:
    """A square image [2 * SIDE, 2 * SIDE] as a thumbnail [SIDE, SIDE]."""
    means = image.reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3))
    return np.asarray(np.rint(means), dtype=np.uint8)


def difference_hashes(thumbnails: Images) -> Hashes:
    """64 bits [N] of thumbnails [N, SIDE, SIDE]: whether each of 8 x 8 areas is brighter than that above."""
    down, across = _areas(9), _areas(8).T
    hashes = np.empty(len(thumbnails), dtype=np.uint64)
    for start in range(0, len(thumbnails), CHUNK):
        part = thumbnails[start : start + CHUNK].astype(np.float32)
        means = down @ (part @ across)
        bits = (means[:, 1:] > means[:, :-1]).reshape(len(part), 64)
        hashes[start : start + CHUNK] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return hashes


def _areas(count: int) -> Floats:
    """[count, SIDE]: the weights with which pixels make the means of `count` equal areas."""
    edges = np.arange(count + 1)[:, None] * SIDE / count
    covered = np.clip(edges - np.arange(SIDE), 0, 1)
    return (np.diff(covered, axis=0) * count / SIDE).astype(np.float32)


def close_hashes(hashes: Hashes, passed_over: list[int] | None = None) -> Iterator[Ints]:
    """Pairs [P, 2] of positions whose hashes differ in DISTANCE bits or fewer, each pair once, i < j.

    Compares only hashes that agree in one of BANDS bands. The longest runs of such hashes are passed over
    where a band would need more than MOST_COMPARISONS; their lengths are added to `passed_over`.
    """
    for band, mask in enumerate(MASKS):
        order = np.argsort(hashes & mask, kind="stable")
        ordered = hashes[order]
        starts = np.flatnonzero(np.diff(ordered & mask, prepend=~ordered[:1] & mask))
        sizes = np.diff(starts, append=len(ordered))
        shortest = np.argsort(sizes, kind="stable")
        fits = np.cumsum((sizes * (sizes - 1) // 2)[shortest]) <= MOST_COMPARISONS
        if passed_over is not None:
            passed_over += sizes[shortest[~fits]].tolist()
        used = shortest[fits]
        for first, second in _within(ordered, starts[used], sizes[used]):
            apart = ordered[first] ^ ordered[second]
            new = np.ones(len(first), dtype=np.bool_)
            for earlier in MASKS[:band]:  # an earlier band has found these
                new &= (apart & earlier) != 0
            if new.any():
                pairs = np.stack([order[first[new]], order[second[new]]], axis=1)
                yield np.sort(pairs, axis=1)


def _within(ordered: Hashes, starts: Ints, sizes: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Positions of close hashes within each run of `ordered`; `starts` and `sizes` of runs by size.

    Short runs all at once, every hash with that `step` places on; long ones as blocks of a square.
    """
    count = int(np.searchsorted(sizes, SHORT, side="right"))
    short = sizes[:count]
    place = np.arange(short.sum()) - np.repeat(np.cumsum(short) - short, short)
    active = np.repeat(starts[:count], short) + place
    follow = np.repeat(short, short) - 1 - place  # hashes of the same run
    for step in range(1, SHORT):
        active, follow = active[follow >= step], follow[follow >= step]
        near = np.bitwise_count(ordered[active] ^ ordered[active + step]) <= DISTANCE
        yield active[near], active[near] + step
    for start, size in zip(starts[count:].tolist(), sizes[count:].tolist(), strict=True):
        run = ordered[start : start + size]
        rows = max(1, BLOCK // size)
        for top in range(0, size, rows):
            near = np.bitwise_count(run[top : top + rows, None] ^ run[None, top:]) <= DISTANCE
            first, second = np.nonzero(near)
            above = second > first
            yield first[above] + (start + top), second[above] + (start + top)


@dataclass(frozen=True)
class Near:
    """Near duplicates [P, 2] among thumbnails, by position, and their likeness [P].

    `flat` are positions that were not compared. Where `complete` is False there may be more.
    """

    pairs: Ints
    likeness: Floats
    flat: Ints
    candidates: int
    complete: bool


def near_duplicates(thumbnails: Images) -> Near:
    """All near duplicates among thumbnails [N, SIDE, SIDE] of different contents."""
    spread = np.concatenate([np.empty(0), *(c.std(axis=(1, 2)) for c in _chunks(thumbnails))])
    rows = np.flatnonzero(spread >= FLAT)
    compared = thumbnails if len(rows) == len(thumbnails) else thumbnails[rows]
    outlines = _outlines(compared)
    found = [(np.empty((0, 2), np.int64), np.empty(0, np.float32))]
    passed_over: list[int] = []
    candidates = 0
    for pairs in _batches(close_hashes(difference_hashes(compared), passed_over)):
        if candidates + len(pairs) > MOST_CANDIDATES:
            passed_over.append(len(pairs))
            break
        candidates += len(pairs)
        found.append(_confirmed(pairs, compared, outlines))
    pairs = rows[np.concatenate([pairs for pairs, _ in found])]
    likeness = np.concatenate([values for _, values in found])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    flat = np.flatnonzero(spread < FLAT)
    return Near(pairs[order], likeness[order], flat, candidates, not passed_over)


def _batches(pairs: Iterator[Ints]) -> Iterator[Ints]:
    """The same pairs in fewer and larger arrays."""
    waiting: list[Ints] = []
    held = 0
    for some in pairs:
        waiting.append(some)
        if (held := held + len(some)) >= 16 * CHUNK:
            yield np.concatenate(waiting)
            waiting, held = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _details(thumbnails: Images) -> Floats:
    """Thumbnails [N, SIDE, SIDE] without their blurred copy, as vectors [N, SIDE * SIDE] of length 1."""
    details = thumbnails.astype(np.float32)
    for image in details:
        image -= cv2.GaussianBlur(image, (0, 0), BLUR, borderType=cv2.BORDER_REPLICATE)
    vectors = details.reshape(len(details), -1)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def _outlines(thumbnails: Images) -> Floats:
    """The details [N, SIDE * SIDE] in a quarter of their dimensions, those that differ most coming first.

    A projection never moves two points apart: what differs too much in some of these dimensions does so
    in all.
    """
    half = SIDE // 2
    coarse = np.empty((len(thumbnails), half * half), dtype=np.float32)
    for start in range(0, len(thumbnails), CHUNK):
        details = _details(thumbnails[start : start + CHUNK]).reshape(-1, half, 2, half, 2)
        coarse[start : start + CHUNK] = details.sum(axis=(2, 4)).reshape(len(details), -1) / 2
    if len(coarse) <= CHUNK:  # few candidates: which dimensions come first does not matter
        return coarse
    some = coarse[:: len(coarse) // CHUNK]
    return np.asarray(coarse @ np.linalg.eigh(some.T @ some)[1][:, ::-1])


def _confirmed(pairs: Ints, thumbnails: Images, outlines: Floats) -> tuple[Ints, Floats]:
    """The pairs [P, 2] whose details correlate with LIKE or more, and how much."""
    farthest = 2 - 2 * LIKE + 1e-4  # the squared distance of vectors of length 1
    close = pairs
    for width in (FEW, outlines.shape[1]):
        some = outlines[:, :width]
        apart = [np.square(some[p[:, 0]] - some[p[:, 1]]).sum(axis=1) for p in _chunks(close)]
        close = close[np.concatenate(apart) <= farthest] if len(close) else close
    likeness = np.empty(len(close), dtype=np.float32)
    for start in range(0, len(close), CHUNK):
        first, second = close[start : start + CHUNK].T
        products = _details(thumbnails[first]) * _details(thumbnails[second])
        likeness[start : start + CHUNK] = products.sum(axis=1)
    return close[likeness >= LIKE], likeness[likeness >= LIKE]


def _chunks(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
