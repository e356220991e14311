"""A report and a saved view at Weights & Biases, by its own package: the run table set up as a leaderboard."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from cxrbench.core.errors import CannotWriteError, UsageError
from cxrbench.core.mirror_record import COLUMNS
from cxrbench.core.mirror_record import JOB as RECORD
from cxrbench.core.provenance import utc_now
from cxrbench.leaderboard.markdown import floor_line
from cxrbench.leaderboard.mirror.log import Logged, task_name
from cxrbench.leaderboard.rows import Table
from cxrbench.leaderboard.sentences import MARKS

PACKAGE = (
    "wandb_workspaces"  # imported by name: it exports in ways that type checkers do not follow
)
REPORTS, EXPRESSIONS = f"{PACKAGE}.reports.v2", f"{PACKAGE}.expr"
NAME = "Leaderboard"
# As the run table addresses them: the config's keys end in `.value`.
PINNED = (
    *(f"summary:{column}" for column in COLUMNS),
    *(f"config:{name}.value" for name in ("method", "preset", "dataset", "split", "fold", "seed", "task")),
    "summary:device hours", "summary:parameters", "summary:warning count", "run:group",
)  # fmt: skip
WIDTH = 24  # of a report's grid


def check_package() -> None:
    """UsageError when the package that makes reports is not installed."""
    if find_spec(PACKAGE) is None:
        raise UsageError(
            "--report needs the package wandb-workspaces: pip install 'cxrbench[reports]'"
        )


def save_report(tables: Sequence[Table], logged: Logged) -> list[str]:
    """Save a report and a view of the project in which a leaderboard was logged; their addresses.

    CannotWriteError when it was logged offline, or when the server refuses.
    """
    again = "`cxrbench leaderboard --wandb online --report` does it"
    if not logged.online:
        raise CannotWriteError(f"no report: the leaderboard was logged offline; later {again}")
    try:
        report = build_report(tables, logged).save()
        view = build_view(logged).save()
    except Exception as error:  # of a package that raises its server's errors as they come
        raise CannotWriteError(
            f"no report ({type(error).__name__}: {error}); all runs are logged, and later {again}"
        ) from error
    return [str(report.url), str(view.url)]


def build_report(tables: Sequence[Table], logged: Logged) -> Any:
    """A `wandb_workspaces.reports.v2.Report`: a section for each table, not yet saved."""
    reports = import_module(REPORTS)
    blocks: list[Any] = [reports.P(HOW), reports.TableOfContents()]
    for table in tables:
        blocks += _section(reports, table, logged)
    return reports.Report(
        entity=logged.entity,
        project=logged.project,
        title=f"{NAME} {utc_now()}",
        description=f"{len(tables)} tasks, made by cxrbench. Not for clinical use.",
        blocks=blocks,
        width="fluid",
    )


HOW = (
    "Each section is one set of images, one split and one set of labels; what is not comparable stands apart. The first panel "
    "is the leaderboard as it was computed: places, intervals and differences are its own. The run table below it shows "
    "single runs, grouped by method; its means are plain means over folds and say nothing about chance."
)


def _section(reports: Any, table: Table, logged: Logged) -> list[Any]:
    used = {mark for row in table.rows for mark in row.marks}
    remarks = [*table.warnings, *table.notes, *(text for mark, text in MARKS.items() if mark in used)]  # fmt: skip
    return [
        reports.H2(table.title),
        reports.P(floor_line(table)),
        *([reports.UnorderedList(items=remarks)] if remarks else []),
        _board_grid(reports, table, logged),
        _record_grid(reports, table, logged),
    ]


def _board_grid(reports: Any, table: Table, logged: Logged) -> Any:
    """The leaderboard's own table, of the run that was just logged."""
    expr = import_module(EXPRESSIONS)
    only = [expr.Metric("ID") == logged.run]
    runset = reports.Runset(
        entity=logged.entity, project=logged.project, name="leaderboard", filters=only
    )
    shown = reports.WeavePanelSummaryTable(
        table_name=f"{task_name(table)}/leaderboard", layout=reports.Layout(w=WIDTH, h=14)
    )
    return reports.PanelGrid(runsets=[runset], panels=[shown], hide_run_sets=True)


def _record_grid(reports: Any, table: Table, logged: Logged) -> Any:
    """The run table of this task's records, by method and by AUC, with two figures of them."""
    expr = import_module(EXPRESSIONS)
    task = table.rows[0].records[0].task[:16]
    runset = reports.Runset(
        entity=logged.entity,
        project=logged.project,
        name="records",
        filters=[expr.Metric("JobType") == RECORD, expr.Config("task") == task],
        groupby=["config.method", "config.preset"],
        order=[reports.OrderBy(reports.SummaryMetric("AUC"))],
        pinned_columns=["run:displayName", *PINNED],
        lock_columns=True,
    )
    half = {"w": WIDTH // 2, "h": 8}
    auc = reports.SummaryMetric("AUC")
    panels = [
        reports.BarPlot(title="AUC, mean and range over runs", metrics=[auc], groupby=reports.Config("method"),
                        groupby_aggfunc="mean", groupby_rangefunc="minmax", layout=reports.Layout(**half)),
        reports.ScatterPlot(title="AUC over device hours", x=reports.SummaryMetric("device hours"), y=auc,
                            layout=reports.Layout(x=WIDTH // 2, **half)),
    ]  # fmt: skip
    return reports.PanelGrid(runsets=[runset], panels=panels)


def build_view(logged: Logged) -> Any:
    """A `wandb_workspaces.workspaces.Workspace`: the project's run table as a leaderboard, not yet saved."""
    reports, workspaces, expr = (
        import_module(name) for name in (REPORTS, f"{PACKAGE}.workspaces", EXPRESSIONS)
    )
    shown = [
        reports.BarPlot(
            title=column,
            metrics=[reports.SummaryMetric(column)],
            groupby=reports.Config("method"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for column in ("AUC", "PR-AUC", "P@95R")
    ]
    return workspaces.Workspace(
        entity=logged.entity,
        project=logged.project,
        name=NAME,
        sections=[workspaces.Section(name="Scores", panels=shown, is_open=True)],
        runset_settings=workspaces.RunsetSettings(
            filters=[expr.Metric("JobType") == RECORD],
            # Only what has the same task may be compared.
            groupby=[expr.Config("task"), expr.Config("method"), expr.Config("preset")],
            order=[expr.Ordering(expr.Summary("AUC"), ascending=False)],
            pinned_columns=list(PINNED),
        ),
    )
