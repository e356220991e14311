"""A page for each run: what it was, what it gave, how to do it again."""

import csv
import io
import math
from typing import Any

from cxrbench.core.digest import digest
from cxrbench.core.record import Record, StageRecord
from cxrbench.leaderboard.collect import Row, Table
from cxrbench.leaderboard.predictions import is_key
from cxrbench.leaderboard.site import figures
from cxrbench.leaderboard.site.command import nodes_of, reproduction
from cxrbench.leaderboard.site.facts import fact_tables, show
from cxrbench.leaderboard.site.output import Output

LARGEST_LOG = 5_000_000  # bytes
SCORES = (
    ("auc", "AUC"),
    ("pr_auc", "PR-AUC"),
    ("precision_at_95_recall", "P@95R"),
    ("precision_at_validation_threshold", "P@95R, validation's threshold"),
    ("recall_at_validation_threshold", "recall, validation's threshold"),
    ("validation_minus_test_auc", "validation AUC minus test AUC"),
)


def run_path(record: Record) -> str:
    """Where a run's page lies below the site; ids may come from strangers."""
    return f"runs/{digest([record.final, record.id])[:16]}.html"


def write_run(out: Output, table: Table, row: Row, record: Record, task: str) -> None:
    """Write a run's page; `task` is the path of its task's page."""
    nodes = nodes_of(out.store, record)
    out.page(
        run_path(record),
        "run.html",
        title=f"{row.name}, fold {record.fold}, seed {record.seed}",
        table=table,
        row=row,
        record=record,
        task=task,
        scores=_scores(record),
        label_header=LABEL_HEADER,
        label_rows=_label_rows(record),
        again=reproduction(record, nodes),
        asked=" ".join(map(str, record.provenance.get("command") or [])),
        changed=[(key, show(value)) for key, value in sorted(record.changed.items())],
        params=_flat(record.params),
        data_params=_flat(record.dataset_params),
        data_tables=fact_tables({k: v for k, v in record.data_facts.items() if k != "warnings"}),
        cost=[(key.replace("_", " "), show(value)) for key, value in record.cost.items()],
        stages=[_stage(stage) for stage in record.stages],
        trainings=[_training(out, stage) for stage in record.stages if stage.kind == "fit"],
        analyses=[
            {
                "name": name,
                "anchor": f"analysis-{number}",
                "gallery": out.galleries.of(stage.key),
                "tables": fact_tables(stage.facts),
            }
            for number, (name, stage) in enumerate(record.analyses.items())
        ],
        provenance=_flat(_shown_provenance(record)),
    )


def _scores(record: Record) -> list[tuple[str, str, str]]:
    """(name, value, interval) of every macro score."""
    macro = record.scores["macro"]
    return [
        (title, _number(macro.get(name)), _interval(macro.get(f"{name}_interval")))
        for name, title in SCORES
    ]


LABEL_HEADER = ("label", "images", "positives", "AUC", "95 % interval", "PR-AUC", "P@95R")


def _label_rows(record: Record) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for label, score in (record.scores.get("labels") or {}).items():
        at = score.get("precision_at_95_recall") or {}
        rows.append((
            label, show(score.get("images")), show(score.get("positives")), _number(score.get("auc")),
            _interval(score.get("auc_interval")), _number(score.get("pr_auc")), _number(at.get("precision")),
        ))  # fmt: skip
    return rows


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"


def _interval(value: Any) -> str:
    return (
        f"{value[0]:.3f} to {value[1]:.3f}" if isinstance(value, list) and len(value) == 2 else ""
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, show(value)))
    return rows


def _stage(stage: StageRecord) -> dict[str, str]:
    code = stage.provenance.get("code") or {}
    seconds = stage.cost.get("seconds")
    commit = str(code.get("commit") or "unknown")[:12]
    return {
        "kind": stage.kind,
        "name": f"{stage.name} (version {stage.version})",
        "digest": stage.digest[:16],
        "seconds": f"{seconds:,.1f}" if isinstance(seconds, int | float) else "–",
        "device": str(stage.cost.get("gpu") or stage.cost.get("device") or "–"),
        "commit": f"{commit} + changes" if code.get("dirty") else commit,
        "built": str(stage.provenance.get("time") or "–"),
    }


def _shown_provenance(record: Record) -> dict[str, Any]:
    return {key: value for key, value in record.provenance.items() if key != "command"}


def _training(out: Output, stage: StageRecord) -> dict[str, Any]:
    """A training's facts and curves; drawn once where several runs share it."""
    panels, why = [], "its log is not in the store"
    path = out.store.artefact(stage.key) / "log.csv" if is_key(stage.key) else None
    if path is not None and path.is_file() and path.stat().st_size <= LARGEST_LOG:
        text = path.read_text(encoding="utf-8", errors="replace")
        panels, why = _panels(out, stage.key, text), "its log has no finished epoch"
    facts = [
        (name.replace("_", " "), show(stage.facts[name]))
        for name in ("epochs", "best_epoch", "monitor", "best_value", "parameters", "precision")
        if name in stage.facts
    ]
    gallery = out.galleries.of(stage.key)
    return {"name": stage.name, "facts": facts, "panels": panels, "why": why, "gallery": gallery}


def _panels(out: Output, key: str, text: str) -> list[tuple[str, str]]:
    """(figure, what it shows) of a log: its losses, and what else was measured on the validation part."""
    epochs, columns = read_log(text)
    if not epochs:
        return []
    losses = {name: values for name, values in columns.items() if "loss" in name}
    others = {
        name: values
        for name, values in columns.items()
        if name not in losses and name not in ("epoch", "step") and not name.startswith("lr")
    }
    return [
        (
            out.figure(f"{key}-{kind}", figures.learning_curves, epochs, lines),
            kind,
        )
        for kind, lines in (("losses", losses), ("measures", others))
        if any(not math.isnan(value) for values in lines.values() for value in values)
    ]


def read_log(text: str) -> tuple[list[float], dict[str, list[float]]]:
    """(epochs, columns) of a log.csv; what is no finite number is NaN."""
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [name for name in (rows[0] if rows else {}) if name]
    columns = {name: [_finite(row.get(name)) for row in rows] for name in names}
    epochs = columns.get("epoch", [float(number) for number in range(len(rows))])
    return epochs, columns


def _finite(text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan
