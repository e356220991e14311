"""Saved predictions of one model on one test part -> every score of its record.

N: test images, M: validation images, K: labels. A target of NaN is unknown: the image is left out
of that label alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxrbench.metrics.classification import (
    Confusion,
    OperatingPoint,
    Ranking,
    confusion_at,
    constant_floor,
)
from cxrbench.metrics.intervals import Bootstrap, Metric, cluster_codes, clustered_bootstrap

FloatArray = NDArray[np.float64]

PROTOCOL = "cxrbench-scores-1"
LEVEL = 0.95


def score_predictions(
    *,
    labels: list[str],
    target: ArrayLike,
    probability: ArrayLike,
    patient_id: ArrayLike,
    val_target: ArrayLike | None = None,
    val_probability: ArrayLike | None = None,
    recall: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of every label and their macro mean, as JSON (undefined: None; floats finite).

    target, probability: [N, K]; patient_id: [N]; val_target, val_probability: [M, K] or neither.
    The macro mean is over the labels that have positives and negatives in the test part, the
    same labels for every metric (`labels_defined`); what needs a validation part is averaged over
    those of them that have both classes there too. Each image is expected once. ValueError for
    shapes that do not agree, a probability that is not in [0, 1] and a target that is not 0, 1 or
    NaN.
    """
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"labels must be distinct and at least one: {labels}")
    test = _checked_part("", labels, target, probability)
    if not len(test.target):
        raise ValueError("target: no images")
    if (val_target is None) != (val_probability is None):
        raise ValueError("val_target and val_probability: give both or neither")
    validation = None
    if val_target is not None and val_probability is not None:
        validation = _checked_part("val_", labels, val_target, val_probability)
    patient, patients = cluster_codes(patient_id)
    bootstrap = clustered_bootstrap(
        test.target,
        test.probability,
        ~np.isnan(test.target),
        patient_id,
        replicates=replicates,
        seed=seed,
        level=LEVEL,
        recall=recall,
    )
    rows = {}
    for k, label in enumerate(labels):
        seen = None if validation is None else validation.label(k)
        rows[label] = _label_scores(test.label(k), patient, seen, recall, bootstrap, k)
    return {
        "protocol": PROTOCOL,
        "images": len(test.target),
        "patients": patients,
        "recall_floor": float(recall),
        "replicates": int(replicates),
        "level": LEVEL,
        "labels": rows,
        "macro": _macro_scores(rows, bootstrap),
    }


@dataclass(frozen=True, eq=False)
class _Label:
    known: NDArray[np.bool_]  # [N]
    positive: NDArray[np.bool_]  # [known images]
    probability: FloatArray  # [known images]
    ranking: Ranking


@dataclass(frozen=True, eq=False)
class _Part:
    target: FloatArray  # [N, K]
    probability: FloatArray  # [N, K]

    def label(self, k: int) -> _Label:
        known = ~np.isnan(self.target[:, k])
        positive = self.target[known, k] == 1
        probability = self.probability[known, k]
        return _Label(known, positive, probability, Ranking.of(positive, probability))


def _checked_part(
    prefix: str, labels: Sequence[str], target: ArrayLike, probability: ArrayLike
) -> _Part:
    truth = np.asarray(target, dtype=np.float64)
    values = np.asarray(probability, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != values.shape or truth.shape[1] != len(labels):
        raise ValueError(
            f"{prefix}target {truth.shape} and {prefix}probability {values.shape}: "
            f"need [N, {len(labels)}] each"
        )
    in_range = (values >= 0) & (values <= 1)  # False for NaN
    _refuse(f"{prefix}probability", "not in [0, 1]", ~in_range, labels)
    binary = np.isnan(truth) | (truth == 0) | (truth == 1)
    _refuse(f"{prefix}target", "not 0, 1 or NaN", ~binary, labels)
    return _Part(truth, values)


def _refuse(name: str, fault: str, wrong: NDArray[np.bool_], labels: Sequence[str]) -> None:
    for label, column in zip(labels, wrong.T, strict=True):
        rows = np.flatnonzero(column)
        if rows.size:
            raise ValueError(
                f"{name} of {label!r}: {rows.size} values are {fault}, the first in row {rows[0]}"
            )


def _label_scores(
    test: _Label,
    patient: NDArray[np.intp],
    validation: _Label | None,
    recall: float,
    bootstrap: Bootstrap,
    k: int,
) -> dict[str, Any]:
    images, positives = test.positive.size, int(test.positive.sum())
    patient = patient[test.known]
    auc = test.ranking.roc_auc()
    validation_auc = None if validation is None else validation.ranking.roc_auc()
    return {
        "images": images,
        "positives": positives,
        "negatives": images - positives,
        "unknown": test.known.size - images,
        "patients": int(np.unique(patient).size),
        "positive_patients": int(np.unique(patient[test.positive]).size),
        "prevalence": positives / images if images else None,
        "auc": auc,
        "auc_interval": _interval(bootstrap, "auc", k),
        "pr_auc": test.ranking.average_precision(),
        "pr_auc_interval": _interval(bootstrap, "pr_auc", k),
        "precision_at_95_recall": _at_test_threshold(test, recall, bootstrap, k),
        "precision_at_validation_threshold": _at_validation_threshold(test, validation, recall),
        "validation": None
        if validation is None
        else {
            "images": validation.positive.size,
            "positives": int(validation.positive.sum()),
            "auc": validation_auc,
            "pr_auc": validation.ranking.average_precision(),
        },
        "validation_minus_test_auc": None
        if auc is None or validation_auc is None
        else validation_auc - auc,
        "floor": constant_floor(test.positive),
    }


def _at_test_threshold(
    test: _Label, recall: float, bootstrap: Bootstrap, k: int
) -> dict[str, Any] | None:
    """The threshold picked on the test part itself, as papers do: comparable, and optimistic."""
    point = test.ranking.precision_at_recall(recall)
    if point is None:
        return None
    return {
        **asdict(point),
        "interval": _interval(bootstrap, "precision_at_recall", k),
        "confusion": _confusion(test, point).as_dict(),
    }


def _at_validation_threshold(
    test: _Label, validation: _Label | None, recall: float
) -> dict[str, Any] | None:
    """The threshold picked on the validation part, and what the test part makes of it.

    None if either part has no positives: a precision of 0 for want of positives says nothing.
    """
    point = None if validation is None else validation.ranking.precision_at_recall(recall)
    if point is None or not test.positive.any():
        return None
    confusion = _confusion(test, point)
    return {
        "threshold": point.threshold,
        "precision": confusion.precision,
        "recall": confusion.recall,
        "validation_precision": point.precision,
        "validation_recall": point.recall,
        "confusion": confusion.as_dict(),
    }


def _confusion(test: _Label, point: OperatingPoint) -> Confusion:
    return confusion_at(test.positive, test.probability, point.threshold)


def _macro_scores(rows: dict[str, dict[str, Any]], bootstrap: Bootstrap) -> dict[str, Any]:
    defined = [label for label, row in rows.items() if row["auc"] is not None]
    scored = [rows[label] for label in defined]
    both = [row for row in scored if row["validation_minus_test_auc"] is not None]
    honest = [row["precision_at_validation_threshold"] for row in both]
    return {
        "auc": _mean(row["auc"] for row in scored),
        "auc_interval": _interval(bootstrap, "auc"),
        "pr_auc": _mean(row["pr_auc"] for row in scored),
        "pr_auc_interval": _interval(bootstrap, "pr_auc"),
        "precision_at_95_recall": _mean(
            row["precision_at_95_recall"]["precision"] for row in scored
        ),
        "precision_at_95_recall_interval": _interval(bootstrap, "precision_at_recall"),
        "precision_at_validation_threshold": _mean(point["precision"] for point in honest),
        "recall_at_validation_threshold": _mean(point["recall"] for point in honest),
        "labels_defined": defined,
        "labels_undefined": [label for label in rows if label not in defined],
        "validation_auc": _mean(row["validation"]["auc"] for row in both),
        "validation_pr_auc": _mean(row["validation"]["pr_auc"] for row in both),
        "validation_minus_test_auc": _mean(row["validation_minus_test_auc"] for row in both),
        "floor": {
            name: _mean(row["floor"][name] for row in scored)
            for name in ("auc", "pr_auc", "precision_at_95_recall")
        },
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean over what is defined; None if nothing is."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _interval(bootstrap: Bootstrap, metric: Metric, label: int | None = None) -> list[float] | None:
    interval = bootstrap.interval(metric, label)
    return None if interval is None else list(interval)
