"""The index of a data set: one row an image, its patient, its labels, its file; no pixels."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxrbench.core.digest import digest_file, digest_lines
from cxrbench.core.errors import DataError
from cxrbench.core.treeprint import scan_files, tree_fingerprint  # noqa: F401
from cxrbench.data.stratify import units_of

COLUMNS = ("image_id", "patient_id", "path")
HASH_COLUMNS = ("path", "size", "mtime", "sha256")
SOFT = "soft:"  # + label: a column of what is trained on instead, from 0 to 1, where a label is unknown


@dataclass(frozen=True)
class Index:
    """Images [N] of a data set with labels [N, K].

    `frame` has the columns `image_id` (unique), `patient_id`, `path` (below `root`, with `/`; empty for
    images that are drawn), one column a label (1.0, 0.0, or NaN for unknown) and any of ATTRIBUTES.
    `notes` are facts for the record: coverage of a partial download, rows left out and why. `strata` are
    the rows that splits are cut by where these are more than the images at hand: `patient_id` and columns
    of counts to balance, so that a partial download has each patient in the same part as the whole.
    """

    dataset: str
    frame: pd.DataFrame
    labels: tuple[str, ...]
    root: Path | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()  # files that were read besides the images, wherever they lie
    strata: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        missing = [c for c in (*COLUMNS, *self.labels) if c not in self.frame.columns]
        if missing:
            raise DataError(f"{self.dataset}: the index lacks the columns {missing}")
        if self.frame.empty:
            raise DataError(
                f"{self.dataset}: no image is left; {self.notes or 'nothing was found'}"
            )
        twice = self.frame["image_id"][self.frame["image_id"].duplicated()]
        if len(twice):
            raise DataError(
                f"{self.dataset}: {len(twice)} image ids stand twice: {', '.join(twice.head(5))}"
            )
        self._check_values()

    def _check_values(self) -> None:
        for name in COLUMNS:
            column = self.frame[name]
            bad = ~column.map(lambda value: isinstance(value, str))
            if name != "path":
                bad |= column.map(lambda value: isinstance(value, str) and not value.strip())
            if bad.any():
                raise DataError(
                    f"{self.dataset}: column {name!r}: {int(bad.sum())} rows are blank or no text, "
                    f"the first is row {int(np.flatnonzero(bad)[0])}; read it as text"
                )
        for name in self.labels:
            soft = self.frame.get(SOFT + name)
            if soft is not None and (soft.notna() & ~soft.between(0, 1)).any():
                raise DataError(f"{self.dataset}: {SOFT}{name} has values outside 0 to 1")
            column = self.frame[name]
            bad = column.notna() & ~column.isin((0, 1))
            if bad.any():
                first = int(np.flatnonzero(bad)[0])
                raise DataError(
                    f"{self.dataset}: label {name!r}: {int(bad.sum())} rows have a value other than 1, 0 "
                    f"and unknown (NaN), the first {column.iloc[first]!r} in row {first}; the reader "
                    f"must decide what it means"
                )

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def image_ids(self) -> npt.NDArray[np.object_]:
        """[N] str."""
        return self.frame["image_id"].to_numpy(dtype=object)

    @cached_property
    def patient_ids(self) -> npt.NDArray[np.object_]:
        """[N] str."""
        return self.frame["patient_id"].to_numpy(dtype=object)

    @cached_property
    def targets(self) -> npt.NDArray[np.float32]:
        """[N, K] with 1, 0 and NaN where a label is unknown."""
        return self.frame[list(self.labels)].to_numpy(dtype=np.float32)

    @cached_property
    def training_targets(self) -> npt.NDArray[np.float32]:
        """[N, K] like `targets`, with the soft values of labels that are not known for certain."""
        values = self.targets.copy()
        for k, label in enumerate(self.labels):
            if SOFT + label in self.frame.columns:
                soft = self.frame[SOFT + label].to_numpy(dtype=np.float32)
                values[:, k] = np.where(np.isnan(values[:, k]), soft, values[:, k])
        return values

    def path(self, row: int) -> Path:
        """The file of an image; only for indexes with a root."""
        assert self.root is not None
        return self.root / str(self.frame["path"].iat[row])

    def select(self, keep: npt.NDArray[np.bool_], **notes: Any) -> "Index":
        """The rows that are kept, with further notes; splits of them are cut by themselves alone."""
        frame = self.frame[keep].reset_index(drop=True)
        return replace(self, frame=frame, notes={**self.notes, **notes}, strata=None)

    def revision(self, contents: list[str]) -> str:
        """SHA-256 over ids, patients, labels and the content hash of every image, in id order."""
        order = np.argsort(self.image_ids.astype(str), kind="stable")
        labels = np.where(np.isnan(self.targets), -1, self.targets).astype(np.int8)

        def lines() -> Iterator[str]:
            yield " ".join(self.labels)
            for i in order:
                marks = "".join("?01"[value + 1] for value in labels[i])
                yield f"{self.image_ids[i]}\t{self.patient_ids[i]}\t{marks}\t{contents[i]}"

        return digest_lines(lines())


def join_twins(index: Index, contents: list[str]) -> Index:
    """The index with patients that share an identical image in one group, so that no split parts them."""
    owners = pd.DataFrame({"patient_id": index.patient_ids, "group_id": contents})
    owners = owners[owners["group_id"] != ""].drop_duplicates()
    shared = owners[owners["group_id"].duplicated(keep=False)]
    if shared.empty:
        return index
    given = [f for f in (index.frame, index.strata) if f is not None and "group_id" in f.columns]
    patients = pd.Series(index.patient_ids if index.strata is None else index.strata["patient_id"])
    everyone = pd.DataFrame({"patient_id": patients.unique(), "group_id": ""})
    edges = pd.concat([everyone, *(f[["patient_id", "group_id"]] for f in given), shared])
    units = units_of(edges)
    sizes = units.map(units.value_counts())
    groups = units.where(sizes > 1, "")

    def grouped(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(group_id=frame["patient_id"].map(groups))

    strata = None if index.strata is None else grouped(index.strata)
    joined = shared["patient_id"].nunique()
    notes = {**index.notes, "patients_joined_by_identical_images": joined}
    return replace(index, frame=grouped(index.frame), strata=strata, notes=notes)


def content_hashes(
    index: Index, cache: Path, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """SHA-256 [N] of each image file; remembered by path, size and time, so computed once.

    Drawn images have the hash of nothing: their content follows from the data set's parameters.
    """
    if index.root is None:
        return [""] * len(index)
    known = _read_hashes(cache)
    paths: list[str] = index.frame["path"].tolist()
    top = f"{index.root}{os.sep}"
    infos = [_stat(top + path) for path in paths]
    keys = [(p, i.st_size, i.st_mtime_ns) for p, i in zip(paths, infos, strict=True)]
    todo = [i for i, key in enumerate(keys) if key not in known]
    done = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i, value in zip(
            todo, pool.map(lambda i: digest_file(index.path(i)), todo), strict=True
        ):
            known[keys[i]] = value
            done += 1
            if progress and (done % 200 == 0 or done == len(todo)):
                progress(done, len(todo))
    if todo:
        _write_hashes(cache, known)
    return [known[key] for key in keys]


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116 - a hundred thousand paths as objects take seconds
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _read_hashes(cache: Path) -> dict[tuple[str, int, int], str]:
    try:
        frame = pd.read_parquet(cache)
        columns = [frame[name].tolist() for name in HASH_COLUMNS]
        return dict(zip(zip(*columns[:3], strict=True), columns[3], strict=True))
    except Exception:  # absent or torn: it is only a memory of what can be computed again
        return {}


def _write_hashes(cache: Path, known: dict[tuple[str, int, int], str]) -> None:
    rows = ((*key, content) for key, content in known.items())
    frame = pd.DataFrame(rows, columns=list(HASH_COLUMNS))
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
    frame.to_parquet(temporary)
    temporary.replace(cache)
