"""Tables as text: the cells that the terminal, Markdown and CSV share."""

import csv
import html
import io
import re
from pathlib import Path
from typing import Any

from cxrbench.core.store import write_atomic
from cxrbench.leaderboard.collect import BASELINES, METRICS, Row, Table, Value

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
HEADER = ("#", "method", "folds", "AUC", "PR-AUC", "P@95R", "P@95R val", "recall val",
          "Δ densenet121", "Δ vgg16", "val-test", "hours", "params", "paper AUC")  # fmt: skip
NOTES = (
    "AUC, PR-AUC (average precision) and P@95R (precision at 95 % recall) are macro means over the labels "
    "with both classes in the test part; ± is the standard deviation over folds, [ ] the 95 % interval "
    "of a patient-clustered bootstrap where there is one fold. P@95R picks its threshold on the test part, "
    "as papers do; P@95R val takes the validation part's, and recall val is the recall it then reached. "
    "Δ is the mean difference in AUC to a baseline on the same folds; no test of significance stands behind "
    "it here. val-test is the validation AUC minus the test AUC. hours are device hours of all stages."
)


def number(value: Value | None, *, signed: bool = False) -> str:
    """A metric as shown: mean ± sd, or mean [interval]."""
    if value is None:
        return "–"
    text = f"{value.mean:+.4f}" if signed else f"{value.mean:.4f}"
    if value.sd is not None:
        return f"{text} ± {value.sd:.4f}"
    if value.interval:
        return f"{text} [{value.interval[0]:.3f}, {value.interval[1]:.3f}]"
    return text


def cells(row: Row) -> list[str]:
    """A row's texts in the order of HEADER."""
    v, cost = row.values, [record.cost for record in row.records]
    hours = sum(c.get("device_hours") or 0.0 for c in cost)
    parameters = cost[0].get("parameters")
    reported = ((row.reported or {}).get("macro") or {}).get("auc")
    return [
        str(row.rank or "–"),
        row.name,
        f"{row.done}/{row.folds}",
        number(v["auc"]),
        number(v["pr_auc"]),
        number(v["precision_at_95_recall"]),
        number(v["precision_at_validation_threshold"]),
        number(v["recall_at_validation_threshold"]),
        *(number(row.against.get(name), signed=True) for name in BASELINES),
        number(v["validation_minus_test_auc"], signed=True),
        f"{hours:.2f} {(cost[0].get('device') or 'cpu').upper()}",
        f"{parameters / 1e6:.2f} M" if parameters else "–",
        f"{reported:.4f}" if reported else "–",
    ]


def floor_line(table: Table) -> str:
    """What a constant classifier reaches on the same images."""
    values = [table.floor.get(name) for name in ("auc", "pr_auc", "precision_at_95_recall")]
    auc, pr, precision = ("–" if v is None else f"{v:.4f}" for v in values)
    return f"A constant classifier reaches AUC {auc}, PR-AUC {pr}, P@95R {precision}."


def _escape(text: object) -> str:
    """One line of plain text: no HTML, no cell border, no code, no link and no image."""
    plain = html.escape(" ".join(str(text).splitlines()), quote=False)
    return re.sub(r"([\\|`]|(?<=\])[(:])", r"\\\1", plain)


def to_markdown(tables: list[Table], excluded: list[str]) -> str:
    """`LEADERBOARD.md`."""
    lines = ["# Leaderboard", ""]
    for table in tables:
        facts = table.test_facts
        lines += [f"## {_escape(table.title)}", ""]
        lines += [
            f"{_escape(facts.get('images', '?'))} images of "
            f"{_escape(facts.get('patients', '?'))} patients, "
            f"{len(table.labels)} label{'s' if len(table.labels) > 1 else ''}. {floor_line(table)}",
            "",
            "| " + " | ".join(HEADER) + " |",
            "|" + "---|" * len(HEADER),
        ]
        lines += ["| " + " | ".join(map(_escape, cells(row))) + " |" for row in table.rows]
        lines += ["", *(f"- {_escape(text)}" for text in table.warnings), ""]
    if excluded:
        lines += ["## Left out", "", *(f"- {_escape(text)}" for text in excluded), ""]
    return "\n".join([*lines, NOTES, ""])


def _safe(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula is made plain text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def to_csv(tables: list[Table]) -> str:
    """`leaderboard.csv`: one line a row, full precision."""
    columns = ["dataset", "split", "split_digest", "tested_on", "rank", "method", "preset", "changed", "folds_done",
               "folds", "complete"]  # fmt: skip
    columns += [f"{m}_{kind}" for m in METRICS for kind in ("mean", "sd")]
    columns += [f"auc_minus_{name}" for name in BASELINES]
    columns += ["device", "device_hours", "parameters", "paper_auc"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            writer.writerow({key: _safe(value) for key, value in _flat(table, row).items()})
    return text.getvalue()


def _flat(table: Table, row: Row) -> dict[str, Any]:
    cost = [record.cost for record in row.records]
    flat: dict[str, Any] = {
        "dataset": table.dataset,
        "split": table.split_name,
        "split_digest": table.split_digest,
        "tested_on": table.tested_on.dataset if table.tested_on else "",
        "rank": row.rank,
        "method": row.method,
        "preset": row.preset,
        "changed": " ".join(f"{k}={v}" for k, v in row.changed.items()),
        "folds_done": row.done,
        "folds": row.folds,
        "complete": row.complete,
        "device": cost[0].get("device"),
        "device_hours": sum(c.get("device_hours") or 0.0 for c in cost),
        "parameters": cost[0].get("parameters"),
        "paper_auc": ((row.reported or {}).get("macro") or {}).get("auc"),
    }
    for metric in METRICS:
        value = row.values[metric]
        flat[f"{metric}_mean"] = value.mean if value else None
        flat[f"{metric}_sd"] = value.sd if value else None
    for name in BASELINES:
        difference = row.against.get(name)
        flat[f"auc_minus_{name}"] = difference.mean if difference else None
    return flat


def write_tables(tables: list[Table], excluded: list[str], folder: Path) -> list[Path]:
    """Write `LEADERBOARD.md` and `leaderboard.csv` to a folder."""
    files = {"LEADERBOARD.md": to_markdown(tables, excluded), "leaderboard.csv": to_csv(tables)}
    for name, text in files.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in files]
