"""The predictions behind a record, where the store that made it is at hand."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrbench.core.columns import FILE, PROBABILITY, TARGET
from cxrbench.core.record import Record
from cxrbench.core.store import Store
from cxrbench.metrics.classification import roc_auc

EXACT = 1e-9
# A record may come from a stranger: an artefact's key is one plain name below the store, and no path.
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def is_key(text: str) -> bool:
    """Whether a text can be an artefact's key: one plain name, no path."""
    return bool(KEY.fullmatch(text))


@dataclass(frozen=True, eq=False)
class Predictions:
    """The test part of one run, sorted by image. image, patient: [N] text; target, probability: [N, K]."""

    image: NDArray[np.object_]
    patient: NDArray[np.object_]
    target: NDArray[np.float64]
    probability: NDArray[np.float64]


Reader = Callable[[Record], Predictions | None]


def predictions_in(store: Store) -> Reader:
    """Reads the predictions of records from a store; None for those that it does not hold.

    A file counts only when it gives the very AUC that the record holds, so a table never rests on predictions of
    another run.
    """

    def read(record: Record) -> Predictions | None:
        for stage in reversed(record.stages):
            if stage.kind == "predict" and is_key(stage.key):
                path = store.artefact(stage.key) / FILE
                found = _read(path, record.labels) if path.is_file() else None
                if found is not None and _is_of(found, record):
                    return found
        return None

    return read


def _read(path: Path, labels: list[str]) -> Predictions | None:
    """The test part of a file; None where it is torn, has other labels or what no run writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [prefix + label for prefix in (TARGET, PROBABILITY) for label in labels]
    try:
        if not set(pq.read_schema(path).names).issuperset(columns):
            return None
        table: Any = pq.read_table(
            path, columns=["image_id", "patient_id", *columns], filters=[("part", "=", "test")]
        ).sort_by("image_id")
        target, probability = (
            np.stack([table[p + label].to_numpy().astype(np.float64) for label in labels], axis=1)
            for p in (TARGET, PROBABILITY)
        )
        image, patient = (
            np.array([str(name) for name in table[key].to_pylist()], dtype=object)
            for key in ("image_id", "patient_id")
        )
    except (OSError, ValueError, TypeError, pa.ArrowException):
        return None
    binary = np.isnan(target) | (target == 0) | (target == 1)
    whole = np.unique(image).size == image.size and binary.all() and np.isfinite(probability).all()
    return Predictions(image, patient, target, probability) if whole and image.size else None


def _is_of(found: Predictions, record: Record) -> bool:
    """Whether the predictions give the record's AUC."""
    values = []
    for truth, score in zip(found.target.T, found.probability.T, strict=True):
        known = ~np.isnan(truth)
        value = roc_auc(truth[known], score[known])
        values += [] if value is None else [value]
    recorded = record.scores["macro"].get("auc")
    return bool(values) and recorded is not None and abs(np.mean(values) - recorded) < EXACT
