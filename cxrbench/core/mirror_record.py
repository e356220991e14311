"""A record as a run of Weights & Biases: its row in the run table, by which the table is a leaderboard."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrbench.core.digest import digest
from cxrbench.core.mirror import (
    Mode,
    Tell,
    effective,
    finish_run,
    flat,
    is_uploaded,
    open_run,
    project,
)
from cxrbench.core.record import Record
from cxrbench.core.redact import redact
from cxrbench.core.store import Store, read_note, write_json

JOB = "record"
# A column of the run table, and the macro score that it holds; leaderboard/markdown.py calls them the same.
COLUMNS = {
    "AUC": "auc",
    "PR-AUC": "pr_auc",
    "P@95R": "precision_at_95_recall",
    "P@95R val": "precision_at_validation_threshold",
    "recall val": "recall_at_validation_threshold",
    "val-test": "validation_minus_test_auc",
}
COSTS = {
    "device hours": "device_hours",
    "training hours": "training_hours",
    "parameters": "parameters",
    "images/s": "images_per_second_training",
    "memory bytes": "peak_memory_bytes",
}


def run_id(record: Record) -> str:
    """A record's id at W&B: the same from every machine; records may come from strangers."""
    return f"record-{digest([record.final, record.id])[:16]}"


def identity(record: Record) -> dict[str, Any]:
    """How a record's run is named, found, filtered and configured."""
    test = record.tested_on
    where = record.dataset if test is None else f"{record.dataset}→{test.dataset}"
    tags = [record.method, record.dataset, record.split, f"fold-{record.fold}", f"seed-{record.seed}",
            record.preset, *(f"view-{view.get('name')}" for view in record.views)]  # fmt: skip
    tags += [f"tested-on-{test.dataset}"] if test else []
    tags += ["phantom"] if record.data_facts.get("phantom") else []
    return {
        "id": run_id(record),
        "name": f"{record.method}/{where}/fold-{record.fold}/seed-{record.seed}",
        "group": record.benchmark,
        "job_type": JOB,
        "tags": tags,
        "config": _config(record),
    }


def _config(record: Record) -> dict[str, Any]:
    names = ("method", "method_version", "preset", "dataset", "dataset_version", "split", "split_digest",
             "revision", "fold", "folds", "seed", "train_images", "labels", "benchmark", "created")  # fmt: skip
    value = record.model_dump(mode="json")
    test = record.tested_on
    return {
        **{name: value[name] for name in names},
        "record": record.id,
        "task": record.task[:16],  # equal for those that may be compared
        "tested_on": test.dataset if test else None,
        "views": " on ".join(str(view.get("name")) for view in record.views),
        "changed": " ".join(f"{key}={item}" for key, item in sorted(record.changed.items())),
        "device": record.cost.get("gpu") or record.cost.get("device"),
        "commit": (record.provenance.get("code") or {}).get("commit"),
        **flat({"params": value["params"], "data": value["dataset_params"]}),
    }


def summary(record: Record) -> dict[str, float | str]:
    """The columns of the run table: macro scores with intervals, each label's, cost and warnings."""
    macro = record.scores["macro"]
    found = {column: macro.get(name) for column, name in COLUMNS.items()}
    for column, name in COLUMNS.items():
        found |= _ends(column, macro.get(f"{name}_interval"))
    for label, score in (record.scores.get("labels") or {}).items():
        at = score.get("precision_at_95_recall") or {}
        found |= {
            f"label/{label}/AUC": score.get("auc"),
            **_ends(f"label/{label}/AUC", score.get("auc_interval")),
            f"label/{label}/PR-AUC": score.get("pr_auc"),
            f"label/{label}/P@95R": at.get("precision"),
            f"label/{label}/positives": score.get("positives"),
        }
    found |= {column: record.cost.get(name) for column, name in COSTS.items()}
    found["floor AUC"] = (macro.get("floor") or {}).get("auc")
    numbers: dict[str, float | str] = {
        k: v for k, v in found.items() if isinstance(v, int | float) and math.isfinite(v)
    }
    return {**numbers, "warnings": "\n".join(record.warnings), "warning count": len(record.warnings)}  # fmt: skip


def _ends(column: str, interval: Any) -> dict[str, Any]:
    if not isinstance(interval, list) or len(interval) != 2:
        return {}
    return {f"{column} low": interval[0], f"{column} high": interval[1]}


def redacted(record: Record) -> Record:
    """The record without paths of the machine that made it."""
    value = redact(record.model_dump(mode="json"))
    value["labels"] = record.labels  # scores and predictions are looked up by them
    return Record.parse(value, where=record.id)


def unmirrored(records: Sequence[Record], mode: Mode, store: Store) -> list[Record]:
    """The records that have no run yet in this project, redacted.

    A note beside the runs says which have. Offline ones are missing when their folder is gone, or when they are
    asked for online and were not uploaded.
    """
    clean = map(redacted, records)
    return [record for record in clean if not _is_there(_note(store, record), mode)]


def mirror_records(
    wandb: Any, records: Sequence[Record], mode: Mode, store: Store, tell: Tell
) -> int:
    """A run for each record that has none yet in this project; how many were written.

    With the same id the server has each only once, whoever logs it and how often.
    """
    written = 0
    for record in unmirrored(records, mode, store):
        note = _note(store, record)
        if _is_there(note, effective(mode)):
            continue  # the server was given up meanwhile, and its offline run is there
        run = open_run(wandb, mode, store.root, tell, measured=False, **identity(record))
        if run is None:
            break  # the next would fail as well, and it has been said
        run.summary.update(summary(record))
        kind = "offline" if run.offline else "online"
        finish_run(run, tell)
        write_json(note, {"mode": kind, "folder": Path(run.dir).parent.name})
        written += 1
    return written


def _note(store: Store, record: Record) -> Path:
    return store.root / "wandb" / "mirrored" / digest([project()])[:8] / f"{run_id(record)}.json"


def _is_there(note: Path, mode: Mode) -> bool:
    def there(value: Any) -> bool:
        if value["mode"] == "online":
            return True
        run = note.parents[2] / Path(str(value["folder"])).name
        return run.is_dir() and (mode == "offline" or is_uploaded(run))

    # What says nothing of a run is as no note: with the same id a second run takes the first one's place.
    return read_note(note, there) or False
