"""A leaderboard's table as columns and rows of plain numbers and texts: what `wandb.Table` shows and sorts."""

from statistics import mean
from typing import Any

from cxrbench.core.mirror_record import COLUMNS as SCORES
from cxrbench.leaderboard.compare import Comparison
from cxrbench.leaderboard.rows import BASELINES, Row, Table, Value

OF_A_COMPARISON = ("low", "high", "p_adjusted", "verdict")
GIB = 2**30


def table_cells(table: Table) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows) in the order of the leaderboard; what is not known is None."""
    rows = [_cells(row) for row in table.rows]
    columns = list(rows[0]) if rows else []
    return columns, [[row[column] for column in columns] for row in rows]


def _cells(row: Row) -> dict[str, Any]:
    first, last = row.tie or (row.rank, row.rank)
    low, high = row.rank_interval or (None, None)
    cells: dict[str, Any] = {
        "place": row.rank,
        "place first": first,
        "place last": last,
        "rank low": low,
        "rank high": high,
        "method": row.name,
        "folds done": row.done,
        "folds": row.folds,
    }
    for column, metric in SCORES.items():
        cells |= _metric(column, row.values.get(metric), row if metric == "auc" else None)
    for name in BASELINES:
        cells |= _difference(name, row.against.get(name), row.comparisons.get(name))
    return {**cells, **_cost(row), **_beside(row)}


def _metric(column: str, value: Value | None, row: Row | None) -> dict[str, Any]:
    """Mean, standard deviation over folds, and the interval; that of the AUC is the table's own."""
    interval = (value.interval if value else None) if row is None else row.auc_interval
    low, high = interval or (None, None)
    found = (value.mean, value.sd) if value else (None, None)
    return dict(zip((column, f"{column} sd", f"{column} low", f"{column} high"),
                    (*found, low, high), strict=True))  # fmt: skip


def _difference(name: str, value: Value | None, tested: Comparison | None) -> dict[str, Any]:
    cells: dict[str, Any] = {f"AUC minus {name}": value.mean if value else None}
    for what in OF_A_COMPARISON:
        cells[f"AUC minus {name} {what.replace('_', ' ')}"] = getattr(tested, what, None)
    return cells


def _cost(row: Row) -> dict[str, Any]:
    """As the site has it: hours of all folds, the mean speed, the largest memory."""
    cost = [record.cost for record in row.records]
    speeds = [c["images_per_second_training"] for c in cost if c.get("images_per_second_training")]
    memory = [c["peak_memory_bytes"] for c in cost if c.get("peak_memory_bytes")]
    return {
        "device hours": sum(c.get("device_hours") or 0.0 for c in cost),
        "device": cost[0].get("gpu") or cost[0].get("device"),
        "images/s": mean(speeds) if speeds else None,
        "parameters": cost[0].get("parameters"),
        "memory GiB": max(memory) / GIB if memory else None,
    }


def _beside(row: Row) -> dict[str, Any]:
    """What a reader must know besides: published numbers, marks, and the records behind the row."""
    return {
        "published": row.published.place if row.published else None,
        "paper AUC": row.paper.value if row.paper else None,
        "marks": ", ".join(row.marks),
        "benchmarks": ", ".join(sorted({record.benchmark for record in row.records})),
        "records": ", ".join(record.id for record in row.records),
    }
