"""The leaderboard as runs of Weights & Biases: one for its tables, curves and pages, and one for each record."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cxrbench import __version__
from cxrbench.core.digest import digest
from cxrbench.core.errors import CannotWriteError
from cxrbench.core.mirror import Mode, Tell, finish_run, open_run, project
from cxrbench.core.mirror_record import mirror_records
from cxrbench.core.provenance import utc_now
from cxrbench.core.store import Store
from cxrbench.leaderboard.mirror.points import AXES, Chart, charts
from cxrbench.leaderboard.mirror.tables import table_cells
from cxrbench.leaderboard.rows import Table
from cxrbench.leaderboard.site.standalone import standalone
from cxrbench.leaderboard.site.tasks import task_path

JOB = "leaderboard"
SITE = "leaderboard-site"  # name and type of the artefact


@dataclass(frozen=True)
class Logged:
    """What was logged.

    run: the leaderboard's id; folder: its files; entity, url: empty offline; records: runs of records written.
    """

    run: str
    online: bool
    entity: str
    project: str
    url: str
    folder: Path
    records: int


def log_leaderboard(
    tables: Sequence[Table], site: Path, mode: Mode, store: Store, tell: Tell
) -> Logged:
    """Log tables, their curves, the site in folder `site`, and each record that has no run yet.

    The records of the tables must be redacted (`core.mirror_record.redacted`), and the site made of them. Raises
    CannotWriteError when not even an offline run can be written.
    """
    import wandb

    run = open_run(wandb, mode, store.root, tell, measured=False, **_identity(tables))
    if run is None:
        raise CannotWriteError(f"{store.root / 'wandb'}: no run of W&B could be written there")
    for table in tables:
        _log_table(wandb, run, table, store)
    run.summary.update(_summary(tables))
    run.log({"pages/first": wandb.Html(standalone(site / "index.html"), inject=False)})
    artefact = wandb.Artifact(SITE, type=SITE, metadata={"tasks": [t.title for t in tables]})
    for path in sorted(path for path in site.rglob("*") if path.is_file()):
        artefact.add_file(str(path), name=path.relative_to(site).as_posix())
    run.log_artifact(artefact)
    online = not run.offline
    logged = Logged(
        run=run.id,
        online=online,
        entity=(run.entity or "") if online else "",
        project=project(),
        url=(run.url or "") if online else "",
        folder=Path(run.dir).parent,
        records=0,
    )
    finish_run(run, tell)
    records = [record for table in tables for row in table.rows for record in row.records]
    return replace(logged, records=mirror_records(wandb, records, mode, store, tell))


def task_name(table: Table) -> str:
    """The section of a table: the name of its page."""
    return task_path(table).removeprefix("tasks/").removesuffix(".html")


def _identity(tables: Sequence[Table]) -> dict[str, Any]:
    records = [record for table in tables for row in table.rows for record in row.records]
    datasets = sorted({record.dataset for record in records})
    return {
        # Another leaderboard is another run: what is shown depends on all records and on this code.
        "id": f"leaderboard-{uuid.uuid4().hex[:12]}",
        "name": f"leaderboard {utc_now()}",
        "group": JOB,
        "job_type": JOB,
        "tags": [JOB, *datasets, *sorted({record.split for record in records})],
        "config": {
            "cxrbench": __version__,
            "records": len(records),
            "records_digest": digest(sorted(record.id for record in records))[:16],
            "tasks": {
                task_name(table): {
                    "title": table.title,
                    "task": table.rows[0].records[0].task[:16],
                    "labels": table.labels,
                    "warnings": table.warnings,
                    "notes": table.notes,
                }
                for table in tables
            },
        },
    }


def _log_table(wandb: Any, run: Any, table: Table, store: Store) -> None:
    name = task_name(table)
    columns, rows = table_cells(table)
    run.log({f"{name}/leaderboard": _table(wandb, columns, rows)})
    drawn, left_out = charts(table, store)
    for chart in drawn:
        run.log({f"{name}/{chart.kind} {_safe(chart.label)}": _chart(wandb, chart)})
    run.summary[f"{name}/not in the curves"] = "\n".join(left_out)


def _table(wandb: Any, columns: list[str], rows: list[list[Any]]) -> Any:
    return wandb.Table(columns=columns, data=rows)


def _chart(wandb: Any, chart: Chart) -> Any:
    x, y = AXES[chart.kind]
    table = _table(wandb, chart.columns, chart.rows)
    return wandb.plot.line(
        table, x, y, stroke="method", title=f"{chart.kind} {chart.label}", split_table=True
    )


def _safe(label: str) -> str:
    """A label as a part of a key: a slash would begin a section."""
    return label.replace("/", "-")


def _summary(tables: Sequence[Table]) -> dict[str, Any]:
    found: dict[str, Any] = {"tasks": len(tables)}
    for table in tables:
        best, name = table.rows[0], task_name(table)
        found[f"{name}/methods"] = len(table.rows)
        found[f"{name}/complete"] = sum(row.complete for row in table.rows)
        if best.rank is not None and best.values["auc"] is not None:
            found |= {f"{name}/first place": best.name, f"{name}/AUC": best.values["auc"].mean}
    return found
