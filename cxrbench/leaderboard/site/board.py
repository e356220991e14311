"""The main table and the heat map as cells: what is shown, and what it is sorted by."""

import math
from dataclasses import dataclass
from statistics import mean
from typing import Any

from cxrbench.core.reported import MEANS
from cxrbench.leaderboard.collect import BASELINES, Row, Table, Value
from cxrbench.leaderboard.labels import label_scores, label_value
from cxrbench.leaderboard.paper import paper_values
from cxrbench.leaderboard.site.runs import run_path

SHADES = 20  # steps of the heat map's colours, from an AUC of 0.5 to 1


@dataclass(frozen=True)
class Column:
    """A column of the main table; what is `hidden` a reader can call in."""

    key: str
    title: str
    about: str
    hidden: bool = False


@dataclass(frozen=True)
class Cell:
    """A text, what it is sorted by, and where it is an interval, its place from 0 to 100."""

    text: str
    value: float | None = None
    small: str = ""
    bar: tuple[float, float, float] | None = None
    mark: str = ""  # a class of style.css
    about: str = ""


COLUMNS = (
    Column("rank", "#", "place by macro AUC; methods that cannot be told apart share a range of places"),
    Column("folds", "folds", "folds with a record, of the split's folds"),
    Column("auc", "AUC", "macro mean over labels: ± is the standard deviation over folds, [ ] a 95 % interval"),
    Column("ci", "AUC 95 %", "95 % interval of the mean AUC, over folds or patients", hidden=True),
    Column("pr_auc", "PR-AUC", "average precision, macro mean"),
    Column("p95", "P@95R", "precision at 95 % recall, threshold picked on the test part, as papers do"),
    Column("p95v", "P@95R val", "the same with the validation part's threshold", hidden=True),
    Column("rv", "recall val", "recall that the validation part's threshold reaches", hidden=True),
    *(Column(f"d-{name}", f"Δ {name}", f"AUC minus {name} on the same folds, 95 % interval") for name in BASELINES),
    Column("drop", "val−test", "validation AUC minus test AUC", hidden=True),
    Column("hours", "hours", "device hours of all stages of all folds"),
    Column("speed", "images/s", "images a second in training", hidden=True),
    Column("params", "params", "parameters of the last training, in millions"),
    Column("memory", "GiB", "largest memory of a stage", hidden=True),
    # All of them stand below the table, too.
    *(Column(f"paper-{name}", f"paper {title}", f"the {title} that the paper reports", hidden=name != "auc")
      for name, title in MEANS.items()),
)  # fmt: skip


def main_table(table: Table) -> dict[str, Any]:
    """Columns and rows of the main table; columns that say nothing are left out."""
    scale = _scale(table)
    cells = [_cells(row, scale) for row in table.rows]
    kept = [c for c in COLUMNS if any(each[c.key].text not in ("–", "") for each in cells)]
    rows = [
        {"row": row, "runs": _runs(row), "cells": each}
        for row, each in zip(table.rows, cells, strict=True)
    ]
    return {"columns": kept, "rows": rows}


def _runs(row: Row) -> list[tuple[str, str]]:
    """(text, path) of the page of every run."""
    seeds = len({record.seed for record in row.records}) > 1
    return [
        (f"{r.fold}/{r.seed}" if seeds else str(r.fold), run_path(r))
        for r in sorted(row.records, key=lambda r: (r.seed, r.fold))
    ]


def _scale(table: Table) -> tuple[float, float]:
    """The AUCs that the bars of a table run from and to."""
    ends = [end for row in table.rows if (end := _reach(row.values["auc"]))]
    low, high = min((e[0] for e in ends), default=0.0), max((e[1] for e in ends), default=1.0)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _reach(value: Value | None) -> tuple[float, float] | None:
    if value is None:
        return None
    return value.interval or (value.mean - (value.sd or 0.0), value.mean + (value.sd or 0.0))


def _cells(row: Row, scale: tuple[float, float]) -> dict[str, Cell]:
    v, cost = row.values, [record.cost for record in row.records]
    hours = sum(c.get("device_hours") or 0.0 for c in cost)
    memory = max((c.get("peak_memory_bytes") or 0 for c in cost), default=0)
    speeds = [c["images_per_second_training"] for c in cost if c.get("images_per_second_training")]
    return {
        "rank": _rank(row),
        "folds": Cell(f"{row.done}/{row.folds}", row.done, mark="" if row.complete else "warn"),
        "auc": _auc(v["auc"], scale),
        "ci": _interval(row),
        "pr_auc": _metric(v["pr_auc"]),
        "p95": _metric(v["precision_at_95_recall"]),
        "p95v": _metric(v["precision_at_validation_threshold"]),
        "rv": _metric(v["recall_at_validation_threshold"]),
        **{f"d-{name}": _difference(row, name) for name in BASELINES},
        "drop": _metric(v["validation_minus_test_auc"], signed=True),
        "hours": Cell(f"{hours:.2f}", hours, str(cost[0].get("device") or "").upper()),
        "speed": _plain(mean(speeds) if speeds else None, "{:.1f}"),
        "params": _plain(_scaled(cost[0].get("parameters"), 1e-6), "{:.2f} M"),
        "memory": _plain(_scaled(memory, 2**-30), "{:.1f}"),
        **_paper(row),
    }


def _rank(row: Row) -> Cell:
    if row.rank is None:
        return Cell(
            "–", None, mark="warn", about="not ranked: other folds than most rows, or no AUC"
        )
    return Cell(row.place, row.rank, _range(row.rank_interval), about=RANK)


RANK = "small: the places that it takes in 95 % of resamples"


def _range(places: tuple[int, int] | None) -> str:
    return f"{places[0]}…{places[1]}" if places else ""


def _auc(value: Value | None, scale: tuple[float, float]) -> Cell:
    cell, reach = _metric(value), _reach(value)
    if value is None or reach is None:
        return cell
    low, middle, high = (
        100 * (point - scale[0]) / (scale[1] - scale[0])
        for point in (reach[0], value.mean, reach[1])
    )
    return Cell(cell.text, cell.value, cell.small, (low, middle, high))


def _interval(row: Row) -> Cell:
    if row.auc_interval is None:
        return Cell("–")
    low, high = row.auc_interval
    return Cell(f"{low:.3f} to {high:.3f}", low)


def _metric(value: Value | None, *, signed: bool = False) -> Cell:
    if value is None:
        return Cell("–")
    text = f"{value.mean:+.4f}" if signed else f"{value.mean:.4f}"
    if value.sd is not None:
        return Cell(text, value.mean, f"± {value.sd:.4f}")
    if value.interval:
        return Cell(text, value.mean, f"[{value.interval[0]:.3f}, {value.interval[1]:.3f}]")
    return Cell(text, value.mean)


def _difference(row: Row, baseline: str) -> Cell:
    """The paired difference: the interval and the verdict of a test where there is one."""
    value, tested = row.against.get(baseline), row.comparisons.get(baseline)
    if tested is None:
        return _metric(value, signed=True)
    text = f"{tested.difference:+.4f}"
    small: str = tested.verdict
    if tested.low is not None and tested.high is not None:
        small = f"[{tested.low:+.3f}, {tested.high:+.3f}]\n{tested.verdict}"
    mark = tested.verdict if tested.told_apart else ""
    return Cell(text, tested.difference, small, mark=mark, about=tested.how)


def _paper(row: Row) -> dict[str, Cell]:
    """By columns: the paper's AUC with a word on its split, and the other means that it reports."""
    values, flag = paper_values(row), row.paper
    found = {f"paper-{name}": _plain(values.get(name), "{:.4f}") for name in MEANS}
    if flag is not None:
        found["paper-auc"] = Cell(f"{flag.value:.4f}", flag.value, flag.tag, about=flag.how)
    return found


def _plain(value: Any, form: str) -> Cell:
    if not isinstance(value, int | float) or not math.isfinite(value) or not value:
        return Cell("–")
    return Cell(form.format(value), float(value))


def _scaled(value: Any, by: float) -> float | None:
    return value * by if isinstance(value, int | float) else None


def heat_map(table: Table) -> dict[str, Any]:
    """AUC of every label and row, the mean over folds, with the number of positives of a label."""
    cells = [[_heat(row, label) for label in table.labels] for row in table.rows]
    return {
        "labels": [(label, _positives(table, label)) for label in table.labels],
        "rows": [
            {"row": row, "cells": each}
            for row, each in zip(table.rows, cells, strict=True)
            if any(cell.value is not None for cell in each)
        ],
    }


def _heat(row: Row, label: str) -> Cell:
    value = label_value(row, label, "auc")
    if value is None:
        return Cell("–")
    shade = round(min(max((value.mean - 0.5) * 2, 0.0), 1.0) * SHADES)
    about = f"mean of {value.n} folds"
    return Cell(f"{value.mean:.3f}", value.mean, mark=f"v{shade}", about=about)


def _positives(table: Table, label: str) -> str:
    """Positives in the test parts of all folds, at one seed of the row with the most folds."""
    row = max(table.rows, key=lambda row: row.done)
    seed = min(record.seed for record in row.records)
    counts = [
        label_scores(record, label).get("positives")
        for record in row.records
        if record.seed == seed
    ]
    known = [count for count in counts if isinstance(count, int)]
    return f"{sum(known):,}" if known else "–"
