"""`data verify`: reads every image of a data set and tells everything that is wrong with it."""

import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import DataError
from cxrbench.data.base import CxrDataset, Problem
from cxrbench.data.index import Index
from cxrbench.data.splits import Split

Severity = Literal["error", "warning", "info"]
THUMBNAIL = 64


@dataclass(frozen=True)
class _Finding:
    """What reading one image showed; `wrong` is "", "missing", "unreadable" or "constant"."""

    content: str
    wrong: str = ""
    reason: str = ""


def verify_dataset(
    cls: type[CxrDataset],
    index: Index,
    *,
    progress: Callable[[int, int], None] | None = None,
    deep: bool = True,
    split: Split | None = None,
) -> list[Problem]:
    """All problems found, the data set's own `check` last; empty when nothing is wrong.

    `deep` decodes every image and compares contents, otherwise files are only looked for. With a
    `split`, identical images in two of its parts are errors.
    """
    findings: list[_Finding] = []
    if index.root is not None:

        def one(row: int) -> _Finding:
            return _look(cls, index, row, deep)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for finding in pool.map(one, range(len(index))):
                findings.append(finding)
                if progress and (len(findings) % 100 == 0 or len(findings) == len(index)):
                    progress(len(findings), len(index))
    return [
        *_unusable(index, findings),
        *_duplicates(index, [finding.content for finding in findings], split),
        *cls.check(index),
    ]


def _look(cls: type[CxrDataset], index: Index, row: int, deep: bool) -> _Finding:
    path = index.path(row)
    if not path.is_file():
        return _Finding("", "missing", "no such file")
    if not deep:
        return _Finding("")
    try:
        content = digest_file(path)
        image = cls.read_image(index, row, THUMBNAIL)
    except (DataError, OSError) as error:
        return _Finding("", "unreadable", str(error))
    if image.min() == image.max():
        return _Finding(content, "constant", f"every pixel is {int(image.min())}")
    return _Finding(content)


def _unusable(index: Index, findings: list[_Finding]) -> list[Problem]:
    what = {
        "missing": "files are missing",
        "unreadable": "images cannot be read",
        "constant": "images show nothing: all pixels are equal",
    }
    problems = []
    for wrong, text in what.items():
        names = [
            f"{image} ({finding.reason})"
            for image, finding in zip(index.image_ids, findings, strict=False)
            if finding.wrong == wrong
        ]
        if names:
            problems.append(Problem("error", text, tuple(names)))
    return problems


def _duplicates(index: Index, contents: list[str], split: Split | None) -> list[Problem]:
    """Groups of identical files: in two parts, with different labels, of two patients, of one."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, content in enumerate(contents):
        if content:
            rows_of[content].append(row)
    twins = [np.array(rows) for rows in rows_of.values() if len(rows) > 1]
    if not twins:
        return []
    part = split.assigned(index) if split else np.full(len(index), "", dtype=object)
    labels = np.where(np.isnan(index.targets), -1, index.targets)

    def name(rows: npt.NDArray[np.int64]) -> str:
        return " = ".join(
            f"{index.image_ids[row]} (patient {index.patient_ids[row]})" for row in rows
        )

    def differ(values: npt.NDArray[np.generic], rows: npt.NDArray[np.int64]) -> bool:
        return bool((values[rows] != values[rows[0]]).any())

    groups: tuple[tuple[Severity, str, list[npt.NDArray[np.int64]]], ...] = (
        (
            "error",
            "identical images in two parts of the split",
            [r for r in twins if differ(part, r)],
        ),
        (
            "error",
            "identical images with different labels",
            [r for r in twins if differ(labels, r)],
        ),
        (
            "warning",
            "identical images of different patients",
            [r for r in twins if differ(index.patient_ids, r)],
        ),
        (
            "info",
            "identical images of one patient",
            [r for r in twins if not differ(index.patient_ids, r)],
        ),
    )
    return [
        Problem(severity, what, tuple(name(rows) for rows in found))
        for severity, what, found in groups
        if found
    ]
