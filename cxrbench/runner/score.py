"""Scores from saved predictions: one process, float64, no torch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxrbench.core.columns import PROBABILITY, TARGET
from cxrbench.core.errors import DataError
from cxrbench.core.stage import Stage
from cxrbench.core.store import write_json
from cxrbench.metrics.report import score_predictions


def score(stage: Stage, predictions: Path, validation: Path, out: Path) -> dict[str, Any]:
    """Write `scores.json` for a file of predictions; `validation` is the one whose validation part
    thresholds are picked on, the same one unless the test images are of another data set."""
    table = read_predictions(predictions)
    labels = [c.removeprefix(TARGET) for c in table.columns if c.startswith(TARGET)]
    if labels != list(stage.data.labels):
        raise DataError(f"{predictions}: has the labels {labels}; expected {stage.data.labels}")
    chosen = table if validation == predictions else read_predictions(validation)
    try:
        if table["image_id"].duplicated().any():
            raise ValueError("an image stands twice")
        scores = _scores(stage, labels, table, chosen)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{predictions}: {error}; no run writes that: delete {predictions.parent} and run again"
        ) from error
    write_json(out / "scores.json", scores)
    return {"images": int((table["part"] == "test").sum()), "macro": scores["macro"]}


def _scores(
    stage: Stage, labels: list[str], table: pd.DataFrame, chosen: pd.DataFrame
) -> dict[str, Any]:
    """The scores of the test part of a table, with thresholds of the validation part of `chosen`."""
    test, val = table[table["part"] == "test"], chosen[chosen["part"] == "val"]
    return score_predictions(
        labels=labels,
        target=_columns(test, TARGET, labels),
        probability=_columns(test, PROBABILITY, labels),
        patient_id=test["patient_id"].to_numpy(dtype=object),
        val_target=_columns(val, TARGET, labels),
        val_probability=_columns(val, PROBABILITY, labels),
        replicates=int(stage.params["replicates"]),
        seed=stage.seed,
    )


def read_predictions(path: Path) -> pd.DataFrame:
    """The table of a predict stage; DataError names a file that is torn or none of ours."""
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: not a Parquet table ({error}); delete {path.parent} and run again"
        ) from None
    if lacking := [c for c in ("image_id", "patient_id", "part") if c not in table.columns]:
        raise DataError(f"{path}: lacks the columns {lacking}; delete {path.parent} and run again")
    return table


def _columns(table: pd.DataFrame, prefix: str, labels: list[str]) -> npt.NDArray[np.float64]:
    return table[[prefix + label for label in labels]].to_numpy(dtype=np.float64)
