"""Scores of single labels over the runs of a row, as records hold them."""

from collections.abc import Mapping
from typing import Any

from cxrbench.core.record import Record
from cxrbench.leaderboard.rows import METRICS, Fold, Row, Value

# Where metrics/report.py puts the metrics and their intervals that do not stand under their own names.
VALUE = {
    "precision_at_95_recall": ("precision_at_95_recall", "precision"),
    "precision_at_validation_threshold": ("precision_at_validation_threshold", "precision"),
    "recall_at_validation_threshold": ("precision_at_validation_threshold", "recall"),
    "validation_recall": ("precision_at_validation_threshold", "validation_recall"),
}
INTERVAL = {"precision_at_95_recall": ("precision_at_95_recall", "interval")}


def label_values(row: Row, label: str) -> dict[str, Value | None]:
    """Every metric of one label: mean and deviation over runs; the interval where there is one run."""
    return {metric: label_value(row, label, metric) for metric in METRICS}


def label_value(row: Row, label: str, metric: str) -> Value | None:
    """One metric of one label."""
    runs: dict[Fold, float] = {}
    for record in row.records:
        value = _at(label_scores(record, label), VALUE.get(metric, (metric,)))
        if _is_number(value):
            runs[record.fold, record.seed] = float(value)
    return Value.over(runs, _interval(row, label, metric))


def label_counts(row: Row, label: str) -> tuple[int, int] | None:
    """(images, positives) of a label in the test parts of all folds, at one seed; None where not counted."""
    seed = min(record.seed for record in row.records)
    scores = [label_scores(record, label) for record in row.records if record.seed == seed]
    counts = [(score.get("images"), score.get("positives")) for score in scores]
    known = [(i, p) for i, p in counts if isinstance(i, int) and isinstance(p, int)]
    if not known or len(known) < len(counts):
        return None
    return sum(i for i, _ in known), sum(p for _, p in known)


def _interval(row: Row, label: str, metric: str) -> tuple[float, float] | None:
    if len(row.records) > 1:
        return None
    path = INTERVAL.get(metric, (f"{metric}_interval",))
    found = _at(label_scores(row.records[0], label), path)
    if isinstance(found, list) and len(found) == 2 and all(map(_is_number, found)):
        return float(found[0]), float(found[1])
    return None


def label_scores(record: Record, label: str) -> Mapping[str, Any]:
    """What a record says of a label; empty where it says nothing."""
    labels = record.scores.get("labels")
    found = labels.get(label) if isinstance(labels, dict) else None
    return found if isinstance(found, dict) else {}


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
