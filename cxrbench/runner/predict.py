"""Predictions to disk: the only thing that scores are ever computed from."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cxrbench.core.columns import ATTRIBUTES, PROBABILITY, TARGET
from cxrbench.core.errors import DataError
from cxrbench.core.stage import Stage
from cxrbench.data.module import CxrDataModule
from cxrbench.methods.base import Method


def predict_parts(
    module: Method, data: CxrDataModule, path: Path, stage: Stage, device: str
) -> dict[str, Any]:
    """Write one row an image of the validation and test parts: ids, part, attributes, targets, probabilities.

    Labels are columns `target:<label>` (NaN where unknown) and `probability:<label>` (float64). Of
    another data set there is a test part only, and targets of the labels alone that it has, too.
    """
    module.eval().to(device)
    frames, images, started = [], 0, time.monotonic()
    for part in ("test",) if stage.data.external else ("val", "test"):
        rows, probabilities = predict_rows(module, data, part, device)
        frames.append(_frame(data, rows, probabilities, stage, part))
        images += len(rows)
    seconds = time.monotonic() - started
    table = pd.concat(frames, ignore_index=True)
    twice = table["image_id"][table["image_id"].duplicated()]
    if len(twice):
        raise DataError(f"{stage.key}: {len(twice)} images predicted twice: {list(twice[:3])}")
    table.to_parquet(path, index=False)
    return {
        "images": images,
        "seconds_predicting": seconds,
        "images_per_second": images / seconds if seconds else None,
        "test_view": module.params.recipe.test_view,
    }


def predict_rows(
    module: Method, data: CxrDataModule, part: str, device: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(rows of the index [N], probabilities [N, K]) of a part; `module` is on the device, in evaluation mode."""
    loader = data.evaluation_dataloader(part, module.params.recipe.test_view)
    rows, probabilities = [], []
    with torch.inference_mode(), _autocast(module.params.recipe.precision, device):
        for number, batch in enumerate(loader):
            batch["image"] = batch["image"].to(device, non_blocking=True)
            rows.append(batch["row"].numpy())
            # Copied at the end: reading them here would have the GPU wait for the next batch.
            probabilities.append(module.predict_step(batch, number))
    found = torch.cat(probabilities).cpu().numpy().astype(np.float64)
    if not np.isfinite(found).all():
        raise DataError(
            f"{module.name}: {(~np.isfinite(found)).sum()} probabilities are not finite"
        )
    return np.concatenate(rows), found


def _autocast(precision: str, device: str) -> torch.autocast:
    """The mixed precision of the training, or none."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device, dtype=dtype, enabled=precision.endswith("-mixed"))


def _frame(
    data: CxrDataModule,
    rows: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    stage: Stage,
    part: str,
) -> pd.DataFrame:
    index = data.index
    columns: dict[str, Any] = {
        "image_id": index.image_ids[rows],
        "patient_id": index.patient_ids[rows],
        "part": part,
        "fold": stage.data.fold,
    }
    for name in ATTRIBUTES:  # for scores of subgroups
        if name in index.frame:
            columns[name] = index.frame[name].to_numpy()[rows]
    names = dict(stage.data.label_map) or {label: label for label in stage.data.labels}
    for k, label in enumerate(stage.inputs["model"].data.labels):
        if label in names:
            theirs = index.labels.index(names[label])
            columns[TARGET + label] = index.targets[rows, theirs].astype(np.float64)
        columns[PROBABILITY + label] = probabilities[:, k]
    return pd.DataFrame(columns)
