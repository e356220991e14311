"""A run's test part as the figures need it: predictions with patients as numbers, and attributes."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxrbench.core.columns import ATTRIBUTES, FILE
from cxrbench.core.record import Record
from cxrbench.core.store import Store
from cxrbench.leaderboard.predictions import Reader, is_key
from cxrbench.metrics.intervals import cluster_codes


@dataclass(frozen=True, eq=False)
class Part:
    """A model on its test part: N images, K labels, C patients."""

    fold: int
    labels: list[str]
    target: npt.NDArray[np.float64]  # [N, K]; NaN where unknown
    probability: npt.NDArray[np.float64]  # [N, K]
    patient: npt.NDArray[np.intp]  # [N], 0 to C - 1
    patients: int
    attributes: dict[str, npt.NDArray[np.object_]] = field(default_factory=dict)  # [N] each


def read_part(record: Record, store: Store, read: Reader) -> Part | None:
    """The test part that a record's scores were computed from; None where the store lacks it."""
    found = read(record)
    if found is None or not np.isfinite(found.probability).all():
        return None
    patient, patients = cluster_codes(found.patient)
    attributes = _attributes(record, store, [str(name) for name in found.image])
    return Part(
        record.fold, record.labels, found.target, found.probability, patient, patients, attributes
    )


def _attributes(
    record: Record, store: Store, images: list[str]
) -> dict[str, npt.NDArray[np.object_]]:
    """What the prediction's file says of these images besides; empty where it says nothing."""
    for stage in reversed(record.stages):
        path = store.artefact(stage.key) / FILE if is_key(stage.key) else None
        if stage.kind != "predict" or path is None or not path.is_file():
            continue
        try:
            names = [name for name in ATTRIBUTES if name in pq.read_schema(path).names]
            frame = pd.read_parquet(path, columns=["image_id", *names]).set_index("image_id")
        except (OSError, KeyError, pa.ArrowException):
            return {}
        if names and set(images) <= set(frame.index):
            return {name: frame.loc[images, name].to_numpy(object) for name in names}
    return {}
