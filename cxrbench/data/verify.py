"""`data verify` and `splits verify`: everything that is wrong with a data set, its files and its splits."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import CxrbenchError
from cxrbench.data.base import CxrDataset, Problem
from cxrbench.data.duplicates import SIDE, Images, Ints, identical, shrink
from cxrbench.data.index import Index
from cxrbench.data.splits import NONE, Split, describe
from cxrbench.data.thumbnails import (
    Alike,
    Thumbnails,
    find_alike,
    read_thumbnails,
    write_thumbnails,
)

Severity = Literal["error", "warning", "info"]
Progress = Callable[[int, int], None]
Value = TypeVar("Value")
THUMBNAIL = 2 * SIDE
KEEP_TOGETHER = "leave one out, or give their patients one group_id"
# What a look at an image or a mask can show, and how it is told.
UNUSABLE = {
    "missing": "files are missing",
    "unreadable": "images cannot be read",
    "constant": "images show nothing: all pixels are equal",
    "mask": "masks cannot be read",
    "empty mask": "masks are empty or cover the whole image",
}


@dataclass(frozen=True)
class _Finding:
    """What reading one image or mask showed; `wrong` is blank or a key of UNUSABLE."""

    content: str
    wrong: str = ""
    reason: str = ""


def verify_dataset(
    cls: type[CxrDataset],
    index: Index,
    *,
    progress: Progress | None = None,
    deep: bool = True,
    split: Split | None = None,
    contents: list[str] | None = None,
    memory: Path | None = None,
    fresh: bool = False,
) -> list[Problem]:
    """All problems found, the data set's own `check` last; empty when nothing is wrong.

    `deep` decodes every image and mask and compares images, otherwise files are only looked for. With a
    `split`, what it leaks and cannot score is told, too. `contents` are the images' hashes if they are
    known; images of which the `memory` (see `memory_of`) has a thumbnail are then not read again, unless
    `fresh`, which also compares the hashes.
    """
    known = read_thumbnails(memory) if memory and not fresh else Thumbnails.none()
    rows = np.arange(0 if index.root is None else len(index))
    if deep and contents and not fresh:
        rows = rows[known.find(contents)[rows] < 0]

    seen: dict[str, Images] = {}

    def look(row: int) -> _Finding:
        return _look(cls, index, row, deep, "" if fresh or not contents else contents[row], seen)

    findings: dict[int, _Finding] = {}
    try:
        findings.update(zip(rows.tolist(), _each(look, rows, progress), strict=True))
    finally:  # hours of decoding are not lost to an interruption
        known = known.joined(dict(seen))
        if memory and seen:
            write_thumbnails(memory, known)
        seen.clear()
    found = list(contents or [""] * len(index)) if deep else [""] * len(index)
    for row, finding in findings.items():
        found[row] = finding.content
    alike = find_alike(found, known, memory, anew=fresh)
    return [
        *_unusable(index, findings),
        *(_unusable(index, _masks(cls, index, findings, progress)) if deep else []),
        *(_changed(index, contents, findings) if contents and fresh else []),
        *(verify_parts(index, split, found, alike) if split else []),
        *_twins(index, found),
        *_likenesses(index, alike),
        *cls.check(index),
    ]


def _each(
    function: Callable[[int], Value], rows: Sequence[int] | Ints, progress: Progress | None
) -> Iterator[Value]:
    """The function's values of rows, worked out by threads; leaving early waits for no more of them."""
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        for done, value in enumerate(pool.map(function, map(int, rows)), start=1):
            yield value
            if progress and (done % 100 == 0 or done == len(rows)):
                progress(done, len(rows))
    finally:
        pool.shutdown(cancel_futures=True)


def _look(
    cls: type[CxrDataset],
    index: Index,
    row: int,
    deep: bool,
    content: str,
    thumbnails: dict[str, Images],
) -> _Finding:
    """What a file shows; `content` is its hash if that is known. Adds to the thumbnails by content."""
    path = index.path(row)
    if not path.is_file():
        return _Finding("", "missing", "no such file")
    if not deep:
        return _Finding("")
    try:
        content = content or digest_file(path)
        image = cls.read_image(index, row, THUMBNAIL)
    except (CxrbenchError, OSError) as error:
        return _Finding("", "unreadable", str(error))
    if image.min() == image.max():
        return _Finding(content, "constant", f"every pixel is {int(image.min())}")
    thumbnails[content] = shrink(image)
    return _Finding(content)


def _masks(
    cls: type[CxrDataset],
    index: Index,
    findings: dict[int, _Finding],
    progress: Progress | None,
) -> dict[int, _Finding]:
    """What is wrong with masks of images that can be read."""
    if not cls.has_masks or index.root is None:
        return {}

    def look(row: int) -> _Finding:
        try:
            mask = cls.read_mask(index, row, THUMBNAIL)
        except (CxrbenchError, OSError) as error:
            return _Finding("", "mask", str(error))
        even = mask.min() == mask.max()
        return _Finding("", "empty mask" if even else "", f"every pixel is {int(mask.min())}")

    broken = {row for row, f in findings.items() if f.wrong in ("missing", "unreadable")}
    rows = [row for row in range(len(index)) if row not in broken]
    return dict(zip(rows, _each(look, rows, progress), strict=True))


def _unusable(index: Index, findings: dict[int, _Finding]) -> list[Problem]:
    names: dict[str, list[str]] = {wrong: [] for wrong in UNUSABLE}
    for row, finding in findings.items():
        if finding.wrong:
            names[finding.wrong].append(f"{index.image_ids[row]} ({finding.reason})")
    return [Problem("error", UNUSABLE[w], tuple(found)) for w, found in names.items() if found]


def _changed(index: Index, contents: list[str], findings: dict[int, _Finding]) -> list[Problem]:
    names = tuple(
        str(index.image_ids[row])
        for row, finding in findings.items()
        if finding.content and finding.content != contents[row]
    )
    what = (
        "files have other contents than when they were hashed, at the same size and time; copy them "
        "anew, and delete hashes-*.parquet in the store's cache/"
    )
    return [Problem("error", what, names)] if names else []


def verify_parts(index: Index, split: Split, contents: list[str], alike: Alike) -> list[Problem]:
    """Patients, groups and images that stand in two parts or folds, and labels that a part cannot score.

    Parts of a k-fold split are its folds: what is in two of them leaks in some fold.
    """
    part = split.assigned(index)
    used = part != NONE
    problems = []
    for column, what in (("patient_id", "patients"), ("group_id", "groups of patients (group_id)")):
        if column in index.frame.columns:
            pairs = pd.DataFrame({"of": index.frame[column], "part": part})[used].drop_duplicates()
            torn = pairs["of"][(pairs["of"] != "") & pairs["of"].notna() & pairs["of"].duplicated()]
            if len(torn):
                text = f"leak: {what} in two parts of the split; make the split anew"
                problems.append(Problem("error", text, tuple(sorted(set(torn)))))
    twins = [(rows, "") for rows in identical(contents)]
    likenesses = [(rows, f" ({value:.2f} alike)") for rows, value in alike.groups]
    for groups, word in ((twins, "identical"), (likenesses, "nearly identical")):
        leaks = tuple(
            _name(index, rows[used[rows]], " = " if word == "identical" else " ~ ", part) + how
            for rows, how in groups
            if len(set(part[rows[used[rows]]])) > 1
        )
        if leaks:
            text = f"leak: {word} images in two parts of the split; {KEEP_TOGETHER}"
            problems.append(Problem("error", text, leaks))
    if lacking := describe(split, index)["warnings"]:
        problems.append(
            Problem("warning", "labels that cannot be scored in a part", tuple(lacking))
        )
    return problems


def verify_split_of(
    index: Index,
    split: Split,
    facts: dict[str, Any],
    contents: list[str],
    memory: Path,
) -> list[Problem]:
    """All that is wrong with a data set's split, without reading an image.

    `facts` are those of `find_split`; near duplicates are taken from the `memory` that a verification
    of the data has left.
    """
    problems = []
    if facts["differences"] and facts["coverage"]["present"] < facts["coverage"]["promised"]:
        problems.append(Problem("info", "a part of the whole", tuple(facts["differences"])))
    elif facts["differences"]:
        what = "not as the split's file promises; restore the file or the data, or delete the file"
        problems.append(Problem("error", what, tuple(facts["differences"])))
    alike = find_alike(contents, read_thumbnails(memory), memory)
    return [*problems, *verify_parts(index, split, contents, alike), *_unchecked(index, alike)]


def _unchecked(index: Index, alike: Alike) -> list[Problem]:
    if index.root is None or alike.compared.all():
        return []
    names = tuple(str(name) for name in index.image_ids[~alike.compared])
    if not alike.compared.any():
        what = "near duplicates not checked: run `cxrbench data verify` once"
        return [Problem("info", what, count=len(names))]
    what = "images not compared with others: unreadable, or new since `cxrbench data verify`"
    return [Problem("info", what, names)]


def _name(index: Index, rows: Ints, sign: str, part: npt.NDArray[np.object_] | None = None) -> str:
    """Images of a group with their patients, and their parts or folds."""
    where = [""] * len(rows) if part is None else [_part_name(part[row]) for row in rows]
    return sign.join(
        f"{index.image_ids[row]} (patient {index.patient_ids[row]}{place})"
        for row, place in zip(rows, where, strict=True)
    )


def _part_name(part: Any) -> str:
    return f", {part}" if isinstance(part, str) else f", fold {part}"


def _differ(values: npt.NDArray[Any], rows: Ints) -> bool:
    return bool((values[rows] != values[rows[0]]).any())


def _twins(index: Index, contents: list[str]) -> list[Problem]:
    """Groups of identical files: with different labels, of two patients, of one."""
    twins = identical(contents)
    labels = np.where(np.isnan(index.targets), -1, index.targets)
    groups: tuple[tuple[Severity, str, list[Ints]], ...] = (
        (
            "error",
            "identical images with different labels; correct or leave out all but one",
            [rows for rows in twins if _differ(labels, rows)],
        ),
        (
            "warning",
            "identical images of different patients",
            [rows for rows in twins if _differ(index.patient_ids, rows)],
        ),
        (
            "info",
            "identical images of one patient",
            [rows for rows in twins if not _differ(index.patient_ids, rows)],
        ),
    )
    return [
        Problem(severity, what, tuple(_name(index, rows, " = ") for rows in found))
        for severity, what, found in groups
        if found
    ]


def _likenesses(index: Index, alike: Alike) -> list[Problem]:
    """Groups of near duplicates of two patients or one, and what could not be compared."""
    strangers: list[str] = []
    follow_ups: list[str] = []
    for rows, value in alike.groups:
        name = f"{_name(index, rows, ' ~ ')} ({value:.2f} alike)"
        (strangers if _differ(index.patient_ids, rows) else follow_ups).append(name)
    problems = []
    if strangers:
        what = "nearly identical images of different patients"
        problems.append(Problem("warning", what, tuple(strangers)))
    if follow_ups:
        what = "nearly identical images of one patient"
        problems.append(Problem("info", what, tuple(follow_ups)))
    if len(alike.flat):
        names = tuple(str(name) for name in index.image_ids[alike.flat])
        problems.append(Problem("info", "images too even to be compared with others", names))
    if not alike.complete:
        what = "the search for near duplicates was ended: far too many images look alike"
        problems.append(Problem("warning", what, count=len(index)))
    return problems
