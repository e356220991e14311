"""A page for each task: the table, and everything that explains it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxrbench.core.reported import SHARES
from cxrbench.leaderboard.collect import BASELINES, Row, Table
from cxrbench.leaderboard.markdown import floor_line
from cxrbench.leaderboard.paper import beside, shares, source
from cxrbench.leaderboard.predictions import predictions_in
from cxrbench.leaderboard.sentences import MARKS
from cxrbench.leaderboard.site import curves, figures, subgroups
from cxrbench.leaderboard.site.board import heat_map, main_table
from cxrbench.leaderboard.site.disturbed import disturbed
from cxrbench.leaderboard.site.galleries import Picture
from cxrbench.leaderboard.site.output import Output
from cxrbench.leaderboard.site.predictions import Part, read_part
from cxrbench.leaderboard.site.runs import run_path
from cxrbench.leaderboard.site.thresholds import transfers

# What a record's cost says, what the axis is called, and the value on it: smaller is cheaper.
COSTS: dict[str, tuple[str, Callable[[float], float]]] = {
    "device_hours": ("device hours of one fold", lambda hours: hours),
    "parameters": ("million parameters", lambda count: count / 1e6),
    "images_per_second_training": ("seconds a 1,000 training images", lambda speed: 1000 / speed),
    "peak_memory_bytes": ("GiB of memory at most", lambda count: count / 2**30),
}
MOST_CURVES = 6  # rows in a figure of curves: more cannot be told apart by eye


@dataclass(frozen=True)
class Drawn:
    """The rows whose predictions are at hand, as a page shows them."""

    parts: dict[str, list[Part]]  # by the row's name
    missing: list[str]  # rows of which some or all predictions are not in the store
    left_out: int  # rows beyond MOST_CURVES
    _calibrated: dict[tuple[str, int], curves.Reliability | None] = field(default_factory=dict)

    def reliability(self, name: str, label: int) -> curves.Reliability | None:
        """Calibration of a row's label, computed once for figure and table."""
        key = name, label
        if key not in self._calibrated:
            self._calibrated[key] = curves.reliability(self.parts[name], label)
        return self._calibrated[key]


def task_path(table: Table) -> str:
    """Where a task's page lies below the site: readable, and its own for each table."""
    words = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")[:60]
    return f"tasks/{words}-{table.identity[:8]}.html"


def write_task(out: Output, table: Table) -> str:
    """Write a task's page and its figures; its path."""
    path = task_path(table)
    stem = path.removeprefix("tasks/").removesuffix(".html")
    drawn = _drawn(out, table)
    transferred = transfers(table.rows)
    reached = {name: list(each.recall.values()) for name, each in transferred.items()}
    out.page(
        path,
        "task.html",
        title=table.title,
        table=table,
        floor=floor_line(table),
        main=main_table(table),
        marks=MARKS,
        heat=heat_map(table),
        folds=_fold_figure(out, table, stem),
        labels=_label_figures(out, table, drawn, stem),
        drawn=drawn,
        most_curves=MOST_CURVES,
        replicates=curves.REPLICATES,
        calibration=_calibration(table, drawn),
        papers=_papers(table),
        shares=shares(table),
        share_names=SHARES,
        transfers=transferred,
        transfer_figure=out.figure(f"{stem}-thresholds", figures.recall_reached, reached) if reached else "",
        subgroups={name: found for name, parts in drawn.parts.items() if (found := subgroups.splits(parts))},
        **_robustness(out, table, stem),
        costs=_cost_figures(out, table, stem),
        galleries=_galleries(out, table),
        pairs=_pairs(table),
    )  # fmt: skip
    return path


def _drawn(out: Output, table: Table) -> Drawn:
    """Baselines first, then by rank."""
    read = predictions_in(out.store)
    parts: dict[str, list[Part]] = {}
    missing, left_out = [], 0
    for row in _baselines_first(table):
        if len(parts) == MOST_CURVES:
            left_out += 1
            continue
        found = [read_part(record, out.store, read) for record in row.records]
        present = [part for part in found if part is not None]
        if len(present) == len(found):
            parts[_unique(row.name, parts)] = present
        else:
            missing.append(f"{row.name} ({len(present)} of {len(found)} runs)")
    return Drawn(parts, missing, left_out)


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free


def _label_figures(out: Output, table: Table, drawn: Drawn, stem: str) -> list[dict[str, Any]]:
    """For each label that has curves: its ROC, precision-recall and reliability figures."""
    entries = []
    for k, label in enumerate(table.labels):
        lines = {
            name: curve
            for name, parts in drawn.parts.items()
            if (curve := curves.label_curves(parts, k)) is not None
        }
        if not lines:
            continue
        found = {name: each for name in lines if (each := drawn.reliability(name, k))}
        entry = {
            "label": label,
            "anchor": f"label-{k}",
            "roc": out.figure(f"{stem}-{k}-roc", figures.roc, lines),
            "pr": out.figure(f"{stem}-{k}-pr", figures.precision_recall, lines),
            "reliability": out.figure(f"{stem}-{k}-reliability", figures.calibration, found)
            if found
            else "",
            "points": [(name, f"{line.precision_at_95:.4f}") for name, line in lines.items()],
        }
        entries.append(entry)
    return entries


def _calibration(table: Table, drawn: Drawn) -> list[tuple[str, ...]]:
    """(row, expected calibration error, Brier score, the prevalence's Brier score), means over labels."""
    labels = range(len(table.labels))
    found = {
        name: curves.mean_calibration([drawn.reliability(name, k) for k in labels])
        for name in drawn.parts
    }
    return [(name, *(f"{value:.4f}" for value in each)) for name, each in found.items() if each]


def _fold_figure(out: Output, table: Table, stem: str) -> str:
    rows = [row for row in table.rows if row.values["auc"] is not None]
    return out.figure(f"{stem}-folds", figures.fold_scatter, rows) if rows else ""


def _robustness(out: Output, table: Table, stem: str) -> dict[str, Any]:
    """Curves of the baselines and the best rows, and what all rows lose."""
    found = disturbed([] if table.tested_on else table.rows, out.store)
    shown = [row.name for row in _baselines_first(table) if row.name in found.images][:MOST_CURVES]
    made = {}
    for kind, lines in found.lines.items():
        drawn = {name: lines[name] for name in shown if name in lines}
        path = f"{stem}-{kind}"
        made[kind] = out.figure(path, figures.robustness, drawn, found.units[kind])
    left_out = len(found.images) - len(shown)
    return {"robust": found, "robust_figures": made, "robust_left_out": left_out}


def _baselines_first(table: Table) -> list[Row]:
    return sorted(table.rows, key=lambda row: row.method not in BASELINES)


def _cost_figures(out: Output, table: Table, stem: str) -> list[tuple[str, str]]:
    """(figure, text) of AUC over each cost, where two rows know theirs."""
    made = []
    for key, (title, cost) in COSTS.items():
        points = [point for row in table.rows if (point := _point(row, key, cost))]
        if len(points) > 1:
            path = out.figure(f"{stem}-{key}", figures.pareto, points, title)
            best = ", ".join(points[i][0] for i in sorted(figures.frontier(points)))
            made.append((path, f"AUC over {title}. Not beaten at their cost: {best}."))
    return made


def _point(row: Row, key: str, cost: Callable[[float], float]) -> tuple[str, float, float] | None:
    value = row.values["auc"]
    spent = [record.cost.get(key) for record in row.records]
    known = [each for each in spent if isinstance(each, int | float) and each > 0]
    if value is None or not known:
        return None
    return row.name, cost(float(np.mean(known))), value.mean


def _galleries(out: Output, table: Table) -> list[dict[str, Any]]:
    """The pictures of each row's first run that has any, by analysis."""
    found = []
    for row in table.rows:
        for record in row.records:
            shown: dict[str, list[Picture]] = {
                name: gallery.pictures
                for name, stage in record.analyses.items()
                if (gallery := out.galleries.of(stage.key)).pictures
            }
            if shown:
                found.append(
                    {"row": row, "fold": record.fold, "path": run_path(record), "shown": shown}
                )
                break
    return found


def _papers(table: Table) -> list[dict[str, Any]]:
    """What each row's paper reports, beside ours; shares stand elsewhere."""
    return [
        {"name": row.name, "metric": each.metric, "paper": each.paper, "ours": each.ours, "source": source(row)}
        for row in table.rows
        for each in beside(row)
    ]  # fmt: skip


def _pairs(table: Table) -> list[dict[str, Any]]:
    """Every two rows that were compared, for the pairwise table."""
    return [
        {
            "first": table.rows[pair.first].name,
            "second": table.rows[pair.second].name,
            "comparison": pair.comparison,
        }
        for pair in table.pairwise
    ]
