"""Splits: which patients train, validate and test; files that are verified whenever they are read."""

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ValidationError

from cxrbench.core.digest import PACKAGE, digest, digest_file, digest_lines
from cxrbench.core.errors import ConfigError, DataError, MissingInputError, UsageError
from cxrbench.core.nearest import nearest
from cxrbench.core.store import Store, read_json, write_atomic, write_json
from cxrbench.data.index import Index
from cxrbench.data.stratify import hash_order, share_out, units_of

if TYPE_CHECKING:
    from cxrbench.data.base import CxrDataset

PARTS = ("train", "val", "test")
NONE = "none"  # the part of patients that the split leaves out
_NO_FOLD = -1  # the same among numbers of folds


@dataclass(frozen=True)
class Split:
    """A cut by patient.

    `assignment` has the columns `patient_id` (str, unique, sorted) and `part`: one of PARTS or NONE, or,
    for a k-fold split, the number of the fold in which the patient is tested (int, 0 to k-1; -1 for
    NONE). Images that a split leaves out are counted nowhere and are no part of its digest.
    """

    dataset: str
    name: str
    rule: str
    assignment: pd.DataFrame

    def __post_init__(self) -> None:
        patients = self.assignment["patient_id"]
        _check_assignment(self.assignment, f"split {self.name!r} of {self.dataset}")
        if not patients.is_monotonic_increasing:
            raise DataError(f"split {self.name!r} of {self.dataset}: patients are not sorted")

    @classmethod
    def of(cls, dataset: str, name: str, rule: str, parts: pd.Series) -> "Split":
        """From a series of parts indexed by patient, in any order."""
        frame = pd.DataFrame({"patient_id": parts.index.to_numpy(), "part": parts.to_numpy()})
        return cls(dataset, name, rule, frame.sort_values("patient_id", ignore_index=True))

    @property
    def folds(self) -> int:
        """1 for a split into train, val and test."""
        part = self.assignment["part"]
        return int(part.max()) + 1 if pd.api.types.is_integer_dtype(part) else 1

    def assigned(self, index: Index) -> npt.NDArray[np.object_]:
        """[N] of each image's entry in `assignment`; NONE for those that are left out."""
        known = pd.Series(self.assignment["part"].to_numpy(), index=self.assignment["patient_id"])
        rows = known.index.get_indexer(pd.Index(index.patient_ids))
        if (rows < 0).any():
            absent = sorted(set(index.patient_ids[rows < 0]))
            raise DataError(
                f"{self.dataset}: {len(absent)} patients are not in the split {self.name!r}: "
                f"{_some(absent)}; the split was made for other data"
            )
        found = known.to_numpy(dtype=object)[rows]
        found[found == _NO_FOLD] = NONE
        return found

    def takes_part(self, index: Index) -> npt.NDArray[np.bool_]:
        """[N], False for images that the split leaves out."""
        return np.asarray(self.assigned(index) != NONE, dtype=np.bool_)

    def parts(self, index: Index, fold: int) -> npt.NDArray[np.object_]:
        """[N] of "train", "val", "test", "none" in a fold; the next fold's test patients validate."""
        if fold not in range(self.folds):
            known = f"folds are 0-{self.folds - 1}" if self.folds > 1 else "its one fold is 0"
            raise ConfigError(f"split {self.name!r}: fold {fold} does not exist; {known}")
        assigned = self.assigned(index)
        if self.folds == 1:
            return assigned
        parts = np.where(assigned == NONE, NONE, "train").astype(object)
        parts[assigned == (fold + 1) % self.folds] = "val"
        parts[assigned == fold] = "test"
        return parts

    def digest(self, index: Index) -> str:
        """SHA-256 over "image_id<TAB>part" of the images present; a partial download has another."""
        pairs = zip(index.image_ids, self.assigned(index), strict=True)
        return digest_lines(sorted(f"{image}\t{part}" for image, part in pairs if part != NONE))


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _check_assignment(assignment: pd.DataFrame, where: str) -> None:
    """Raise DataError unless each patient stands once, in a part or fold that exists."""
    patients, part = assignment["patient_id"], assignment["part"]
    if assignment.empty:
        raise DataError(f"{where}: no patient")
    twice = patients[patients.duplicated()]
    if len(twice):
        raise DataError(
            f"{where}: {twice.nunique()} patients stand twice: {_some(sorted(set(twice)))}; a patient "
            "belongs to one part only: restore the file, or delete it to have it made again"
        )
    if pd.api.types.is_integer_dtype(part):
        found = sorted(set(part.unique().tolist()) - {_NO_FOLD})
        if found != list(range(len(found))) or len(found) < 3:
            raise DataError(f"{where}: folds {found}; expected three or more, from 0, without gaps")
    elif wrong := sorted(set(part) - {*PARTS, NONE}):
        raise DataError(f"{where}: unknown parts {_some([str(w) for w in wrong])}; use {PARTS}")


def stratified_folds(index: Index, *, folds: int, name: str = "cv5", seed: int = 0) -> Split:
    """k folds with equal shares of images and of each label; no patient or group in two."""
    if folds < 3:
        raise ConfigError(f"split {name!r}: {folds} folds; train, val and test need three or more")
    parts = _cut(index, name, np.ones(folds) / folds, seed)
    rule = (
        f"Patients cut into {folds} folds by iterative stratification over {len(index.labels)} labels "
        f"(seed {seed}); fold i tests, fold i+1 validates, the others train."
    )
    return Split.of(index.dataset, name, rule, parts)


def stratified_parts(
    index: Index,
    name: str,
    fractions: dict[str, float],
    *,
    seed: int = 0,
    exact: dict[str, int] | None = None,
) -> Split:
    """Parts with given shares of images and of each label; no patient or group in two.

    `exact` gives some parts a number of images instead, reached exactly or a DataError; the other
    parts share the rest by their fractions.
    """
    exact = exact or {}
    total = len(index if index.strata is None else index.strata)
    names = list(fractions)
    if wrong := [part for part in (*names, *exact) if part not in PARTS]:
        raise ConfigError(f"split {name!r}: unknown parts {wrong}; use {PARTS}")
    free = sum(share for part, share in fractions.items() if part not in exact)
    rest = total - sum(exact.values())
    if min(fractions.values()) <= 0 or rest < 0 or set(exact) - set(names):
        raise ConfigError(f"split {name!r}: cannot cut {total} images into {fractions}, {exact}")
    sizes = np.array([exact.get(p, rest * fractions[p] / free if free else 0) for p in names])
    parts = _cut(index, name, sizes / total, seed).map(dict(enumerate(names)))
    asked = ", ".join(
        f"{p} {exact[p]:,} images" if p in exact else f"{p} {size / total:.0%}"
        for p, size in zip(names, sizes, strict=True)
    )
    rule = (
        f"Patients cut into {asked} by iterative stratification over {len(index.labels)} labels "
        f"(seed {seed})."
    )
    split = Split.of(index.dataset, name, rule, parts)
    got = pd.Series(split.assigned(index)).value_counts()
    if missed := {p: int(got.get(p, 0)) for p in exact if got.get(p, 0) != exact[p]}:
        raise DataError(f"{index.dataset}: split {name!r}: wanted {exact}, patients allow {missed}")
    return split


def _cut(index: Index, name: str, shares: npt.NDArray[np.float64], seed: int) -> pd.Series:
    """Part number by patient."""
    if index.strata is None:
        rows, held = index.frame, pd.DataFrame((index.targets == 1).astype(np.int64))
    else:
        rows, held = (
            index.strata,
            index.strata.drop(columns=["patient_id", "group_id"], errors="ignore"),
        )
    units = units_of(rows)
    unit = units.loc[list(rows["patient_id"])].to_numpy()
    held = held.reset_index(drop=True).assign(images=1).groupby(unit).sum()
    counts = held.to_numpy(dtype=np.int64)
    wanted = np.outer(shares, counts.sum(axis=0))
    part = share_out(counts, wanted, hash_order(held.index, seed, index.dataset, name))
    if len(set(part.tolist())) < len(shares):
        raise DataError(
            f"{index.dataset}: {len(held)} separate patients are too few for the {len(shares)} parts of "
            f"split {name!r}"
        )
    return units.map(dict(zip(held.index, part.tolist(), strict=True)))


def fewer_trained(
    parts: npt.NDArray[np.object_], image_ids: npt.NDArray[Any], count: int
) -> npt.NDArray[np.object_]:
    """The parts [N] with `count` training images, the others NONE; ConfigError where there are not as many.

    Taken in the order of the hashes of their ids: the fewer are always among the more.
    """
    trained = np.flatnonzero(parts == "train")
    if count > len(trained):
        raise ConfigError(f"train_images {count}: the training part has {len(trained)} images")
    order = np.argsort(hash_order(pd.Index(image_ids[trained]).astype(str), 0, "train_images"))
    kept = parts.copy()
    kept[trained[order[count:]]] = NONE
    return kept


def describe(split: Split, index: Index) -> dict[str, Any]:
    """Images, patients and positives of each part or fold, and `warnings` about what cannot be scored."""
    assigned = split.assigned(index)
    used = assigned != NONE
    counts: dict[str, Any] = {}
    for part in sorted(set(assigned[used])):
        rows = assigned == part
        positives = np.nansum(index.targets[rows], axis=0).astype(int).tolist()
        counts[str(part)] = {
            "images": int(rows.sum()),
            "patients": len(set(index.patient_ids[rows])),
            "positives": dict(zip(index.labels, positives, strict=True)),
        }
    images, patients = int(used.sum()), len(set(index.patient_ids[used]))
    facts = {"images": images, "patients": patients, "folds": split.folds, "counts": counts}
    return {**facts, "warnings": _warnings(split, index)}


def _warnings(split: Split, index: Index) -> list[str]:
    found = []
    for fold in range(split.folds):
        parts = split.parts(index, fold)
        where = f"fold {fold} " if split.folds > 1 else ""
        for part in PARTS:
            targets = index.targets[parts == part]
            if not len(targets):
                found.append(f"{where}{part}: no image")
                continue
            for value, word in ((1, "positive"), (0, "negative")):
                lacking = ~(targets == value).any(axis=0)
                found += [
                    f"{where}{part}: no {word} of {index.labels[k]}"
                    for k in np.flatnonzero(lacking)
                ]
    return found


class _PartCounts(BaseModel, strict=True):
    images: int
    patients: int
    positives: dict[str, int]


class _Promises(BaseModel, strict=True):
    """What must stand in a split's JSON; it holds more."""

    dataset: str
    name: str
    rule: str
    labels: list[str]
    digest: str
    file_sha256: str
    images: int
    folds: int
    counts: dict[str, _PartCounts]


def write_split(split: Split, index: Index, folder: Path) -> None:
    """Write `<name>.csv.gz` (the same bytes each time) and then `<name>.json` with what it promises."""
    text = split.assignment[["patient_id", "part"]].to_csv(index=False, lineterminator="\n")
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream:
        stream.write(text.encode())
    path = folder / f"{split.name}.csv.gz"
    write_atomic(path, packed.getvalue())
    facts = {
        "dataset": split.dataset,
        "name": split.name,
        "rule": split.rule,
        "labels": list(index.labels),
        "digest": split.digest(index),
        "file_sha256": digest_file(path),
        **describe(split, index),
    }
    write_json(folder / f"{split.name}.json", facts)


def read_split(folder: Path, name: str) -> tuple[Split, dict[str, Any]]:
    """The split and what it promises; DataError names the file and the repair when it was changed."""
    path, promises = folder / f"{name}.csv.gz", folder / f"{name}.json"
    if lacking := [p for p in (path, promises) if not p.is_file()]:
        raise MissingInputError(f"{lacking[0]}: no such split file")
    facts = read_json(promises)
    try:
        _Promises.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{promises}: not a split's record ({where}: {first['msg']}); restore it, or delete it and "
            f"{path.name}"
        ) from None
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: unreadable ({error}); restore it, or delete it") from None
    if list(frame.columns) != ["patient_id", "part"]:
        raise DataError(f"{path}: columns {list(frame.columns)}; expected patient_id, part")
    if frame["part"].str.fullmatch("-1|[0-9]+").all():
        frame["part"] = frame["part"].astype(np.int64)
    _check_assignment(frame, str(path))
    if digest_file(path) != facts["file_sha256"]:
        raise DataError(
            f"{path}: changed since it was written (its SHA-256 is not that in {promises.name}); "
            "restore both files, or delete both to have them made again"
        )
    return Split(facts["dataset"], facts["name"], facts["rule"], frame), facts


def verify_split(split: Split, facts: dict[str, Any], index: Index) -> list[str]:
    """How the data differ from what the split's file promises; empty when as promised.

    For a part of the data set it is one line with the coverage.
    """
    promised, present = int(facts["images"]), int(split.takes_part(index).sum())
    if present < promised:
        return [
            f"{present:,} of the {promised:,} images of {split.name!r} are present "
            f"({present / promised:.1%})"
        ]
    found = []
    if split.digest(index) != facts["digest"]:
        found.append(f"the images are not those that {split.name!r} was made for (another digest)")
    now, then = _flat(describe(split, index)["counts"]), _flat(facts["counts"])
    pairs = {key: (now.get(key, 0), then.get(key, 0)) for key in sorted(set(now) | set(then))}
    found += [f"{key}: {a:,}, promised {b:,}" for key, (a, b) in pairs.items() if a != b]
    return found


def _flat(counts: dict[str, Any]) -> dict[str, int]:
    flat: dict[str, int] = {}
    for part, count in counts.items():
        flat |= {f"part {part}, {what}": count[what] for what in ("images", "patients")}
        flat |= {f"part {part}, positives of {k}": n for k, n in count["positives"].items()}
    return flat


def committed_folder(dataset: str, name: str) -> Path | None:
    """Where a split that comes with cxrbench lies: in an installed wheel or in the checkout."""
    for base in (PACKAGE, PACKAGE.parent):
        folder = base / "data_splits" / dataset
        if (folder / f"{name}.csv.gz").is_file():
            return folder
    return None


def find_split(
    dataset_cls: "type[CxrDataset]", index: Index, name: str, revision: str, store: Store
) -> tuple[Split, dict[str, Any]]:
    """A data set's split and its facts: the committed one, else the store's, else made and stored.

    The facts are the file's promises with `coverage` ({"present", "promised"} images), `complete`
    (these are exactly the promised images) and `differences` (see `verify_split`).
    """
    name = name or dataset_cls.splits[0]
    if name not in dataset_cls.splits:
        hint = nearest(name, dataset_cls.splits)
        raise UsageError(f"{dataset_cls.name}: no split {name!r}; {hint}")
    folder = committed_folder(dataset_cls.name, name)
    if folder is None:
        folder = store.folder("splits", f"{dataset_cls.name}-{_split_key(index, revision)}")
        if not all((folder / f"{name}.{suffix}").is_file() for suffix in ("csv.gz", "json")):
            write_split(dataset_cls.make_split(name, index), index, folder)
    split, facts = read_split(folder, name)
    coverage = {
        "present": int(split.takes_part(index).sum()),
        "promised": int(facts["images"]),
    }
    complete = split.digest(index) == facts["digest"]
    differences = verify_split(split, facts, index)
    return split, {**facts, "coverage": coverage, "complete": complete, "differences": differences}


def _split_key(index: Index, revision: str) -> str:
    """The revision, and what decides splits but is no part of it."""
    extra = [c for c in ("group_id", "split") if c in index.frame.columns]
    if not extra and index.strata is None:
        return revision[:16]
    columns: dict[str, Any] = {
        c: index.frame.set_index("image_id")[c].astype(str).to_dict() for c in extra
    }
    if index.strata is not None:
        rows = pd.util.hash_pandas_object(index.strata, index=False).to_numpy()
        columns["strata"] = digest_lines([*index.strata.columns, *map(str, rows.tolist())])
    return digest([revision, columns])[:16]
