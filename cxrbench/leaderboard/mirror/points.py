"""ROC and precision-recall curves as rows of points, from the predictions in a store."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cxrbench.core.store import Store
from cxrbench.leaderboard.predictions import predictions_in
from cxrbench.leaderboard.rows import BASELINES, Row, Table
from cxrbench.leaderboard.site import curves
from cxrbench.leaderboard.site.predictions import Part, read_part

MOST_ROWS = 6  # in one chart, as in the site's figures
Kind = Literal["ROC", "PR"]
AXES: dict[Kind, tuple[str, str]] = {
    "ROC": ("false positive rate", "true positive rate"),
    "PR": ("recall", "precision"),
}
ENDS = ("low", "high")


@dataclass(frozen=True)
class Chart:
    """One label's curves. columns: method, x, y, low, high; rows: a point each."""

    kind: Kind
    label: str
    columns: list[str]
    rows: list[list[Any]]


def charts(table: Table, store: Store) -> tuple[list[Chart], list[str]]:
    """(ROC and PR of each label, why rows are not in them); baselines first, then by rank."""
    drawn, left_out = _rows_with_predictions(table, store)
    return list(_charts(table, drawn)), left_out


def _rows_with_predictions(
    table: Table, store: Store
) -> tuple[list[tuple[str, list[Part]]], list[str]]:
    read = predictions_in(store)
    found: list[tuple[str, list[Part]]] = []
    left_out: list[str] = []
    for row in sorted(table.rows, key=lambda row: row.method not in BASELINES):
        if len(found) == MOST_ROWS:
            left_out.append(f"{row.name}: a chart has {MOST_ROWS} rows at most")
            continue
        parts = [read_part(record, store, read) for record in row.records]
        present = [part for part in parts if part is not None]
        if len(present) < len(parts):
            left_out.append(f"{row.name}: the store has predictions of {len(present)} of {len(parts)} runs")  # fmt: skip
        else:
            found.append((_unique(row, [name for name, _ in found]), present))
    return found, left_out


def _unique(row: Row, taken: list[str]) -> str:
    """A name for a line: two rows of one name differ in what names do not show."""
    same = sum(name == row.name or name.startswith(f"{row.name} #") for name in taken)
    return f"{row.name} #{same + 1}" if same else row.name


def _charts(table: Table, drawn: list[tuple[str, list[Part]]]) -> Iterator[Chart]:
    for k, label in enumerate(table.labels):
        lines = [(name, curves.label_curves(parts, k)) for name, parts in drawn]
        for kind, axes in AXES.items():
            rows = [
                [name, *point]
                for name, line in lines
                if line is not None
                for point in _points(line.roc if kind == "ROC" else line.pr)
            ]
            if rows:
                yield Chart(kind, label, ["method", *axes, *ENDS], rows)


def _points(band: curves.Band) -> Iterator[tuple[float | None, ...]]:
    for point in zip(curves.GRID, band.y, band.low, band.high, strict=True):
        yield tuple(float(v) if np.isfinite(v) else None for v in point)
