"""Records: one JSON a finished run, never overwritten; everything a leaderboard is made from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cxrbench.core.digest import canonical_json, digest
from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.frozen import Frozen
from cxrbench.core.store import read_json, write_json

RETRACTED = ".retracted.json"
POINTS = ("precision_at_95_recall", "precision_at_validation_threshold")  # of a label's scores
REMARKS = {"data_facts", "overlap", "unmatched_data"}  # of a test set: no part of its identity
# What becomes a part of a path; records may come from strangers.
Name = Annotated[str, Field(pattern=r"^[^./\\\x00][^/\\\x00]*$")]


class StageRecord(Frozen):
    """A stage of a run as it was built."""

    key: str
    digest: str
    kind: str
    name: str
    version: int
    source: str | None = None
    facts: dict[str, Any] = {}
    cost: dict[str, Any] = {}
    provenance: dict[str, Any] = {}


class ExternalTest(Frozen):
    """The data set that a model was tested on, where it is not the one that it was trained on."""

    dataset: Name
    version: int
    params: dict[str, Any]
    revision: str
    split: str
    split_digest: str
    fold: int
    label_map: dict[str, str]  # the model's name of a label to the data set's
    unmatched_model: list[str]
    unmatched_data: list[str]
    overlap: str  # why some images are known to be in both data sets; empty when nothing is known
    data_facts: dict[str, Any]


class Record(Frozen):
    """What was run, on what, with what result, at what cost, by which code."""

    schema_version: Literal[1] = 1
    id: Name
    created: str
    benchmark: str
    method: Name
    method_version: int
    preset: str
    params: dict[str, Any]
    changed: dict[str, Any]
    paper: str
    reported: dict[str, Any] | None
    dataset: Name
    dataset_version: int
    dataset_params: dict[str, Any]
    revision: str
    labels: list[str]
    split: str
    split_digest: str
    folds: int
    fold: int
    seed: int
    train_images: int | None = None  # that the training part was cut to
    data_facts: dict[str, Any]
    tested_on: ExternalTest | None = None
    views: list[
        dict[str, Any]
    ] = []  # what rewrote the images, in order: name, version, preset, params
    analyses: dict[str, StageRecord] = {}  # pictures and measurements beside the scores
    final: Name
    stages: list[StageRecord]
    scores: dict[str, Any]
    cost: dict[str, Any]
    warnings: list[str]
    provenance: dict[str, Any]

    @property
    def task(self) -> str:
        """Digest of what records have in common that may share a table."""
        same = {
            "dataset": self.dataset,
            "version": self.dataset_version,  # the only trace of how drawn images look
            "params": self.dataset_params,
            "revision": self.revision,
            "split": self.split_digest,
            "labels": self.labels,
            "protocol": self.scores.get("protocol"),
            "tested_on": self.tested_on and self.tested_on.model_dump(exclude=REMARKS),
        }
        return digest(same)

    @field_validator("scores")
    @classmethod
    def _rankable(cls, scores: dict[str, Any]) -> dict[str, Any]:
        macro = scores.get("macro")
        auc = macro.get("auc", "absent") if isinstance(macro, dict) else "absent"
        if auc is not None and not (isinstance(auc, int | float) and 0 <= auc <= 1):
            raise ValueError("macro.auc must be a number from 0 to 1, or null")
        return scores

    @model_validator(mode="after")
    def _readable(self) -> "Record":
        """What tables and pages compute with is what it should be, whoever wrote the record."""
        for name, value in self.scores["macro"].items():
            if not _is_score(name, value):
                raise ValueError(f"scores.macro.{name}: {value!r} is no such score")
        labels = self.scores.get("labels") or {}
        if not isinstance(labels, dict) or not all(isinstance(s, dict) for s in labels.values()):
            raise ValueError("scores.labels must hold an object for each label")
        for label, score in labels.items():
            for name in POINTS:
                if not isinstance(score.get(name) or {}, dict):
                    raise ValueError(f"scores.labels.{label}.{name} must be an object")
        for name, value in self.cost.items():
            fits = isinstance(value, str) if name in ("device", "gpu") else _is_number(value)
            if value is not None and not fits:
                raise ValueError(f"cost.{name}: {value!r} is no such cost")
        if not isinstance(self.params.get("recipe", {}), dict):
            raise ValueError("params.recipe must be an object")
        return self


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_score(name: str, value: Any) -> bool:
    """Whether a value may stand under a name of `scores.macro`; null may everywhere."""
    if value is None:
        return True
    if name.endswith("_interval"):
        return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    if name.startswith("labels_"):
        return isinstance(value, list) and all(isinstance(label, str) for label in value)
    if name == "floor":
        return isinstance(value, dict) and all(v is None or _is_number(v) for v in value.values())
    return _is_number(value)


def write_record(folder: Path, record: Record) -> Path:
    """Add a record below `folder`; an existing file is never touched."""
    path = folder / record.dataset / record.method / f"{record.final[:16]}-{record.id}.json"
    if path.exists():
        raise DataError(f"{path}: exists; records are never overwritten")
    write_json(path, record.model_dump(mode="json"))
    return path


def read_record(path: Path) -> Record:
    """A record of any published schema; DataError names what is wrong with it."""
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema_version") != 1:
        raise DataError(f"{path}: not a record of schema 1")
    try:
        canonical_json(value).encode()
    except ValueError as error:  # half of a surrogate pair, NaN: nothing that has a digest
        raise DataError(f"{path}: {error}") from None
    try:
        return Record.parse(value, where=str(path))
    except ConfigError as error:
        raise DataError(str(error)) from None


def read_records(folder: Path) -> tuple[list[Record], list[str]]:
    """All records below a folder that are not retracted, and why others were left out."""
    records, excluded = [], []
    for path in _files(folder):
        if path.with_name(path.stem + RETRACTED).exists():
            excluded.append(f"{path}: retracted")
            continue
        try:
            records.append(read_record(path))
        except (DataError, OSError) as error:
            excluded.append(str(error))
    return records, excluded


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*/*/*.json")):
        if not path.name.endswith(RETRACTED) and not path.name.startswith("."):
            yield path
