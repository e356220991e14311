"""leaderboard, report and publish."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cxrbench.cli import common
from cxrbench.cli.common import say
from cxrbench.core.store import Store

if TYPE_CHECKING:
    from cxrbench.core.mirror import Mode
    from cxrbench.core.record import Record
    from cxrbench.leaderboard.rows import Table

RESULTS = Path("benchmarks/results")
METHOD, FOLDED = 1, 32
MOST_PROCESSES, RUNS_A_PROCESS = 8, 20  # of drawing
WIDE = 240  # columns of text where no terminal sets a limit
# Left out first where the terminal is narrow; the files have every column.
EXPENDABLE = (
    "params",
    "recall val",
    "P@95R val",
    "hours",
    "Δ vgg16",
    "val-test",
    "P@95R",
    "PR-AUC",
)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(leaderboard)
    app.command()(report)
    app.command()(publish)


def leaderboard(
    folder: Annotated[
        Path | None, typer.Option("--records", help="Records to read. (default: the store's)")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the files go. (default: the store's leaderboard/)")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this data set.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write the pages to this folder: a site that opens from disk."),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Write the pages and show them on localhost.")
    ] = False,
    wandb: Annotated[
        str | None,
        typer.Option(help="Log tables, curves and pages to W&B: online or offline. (default: off)"),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="With --wandb online: a report and a saved view, too.")
    ] = False,
    films: Annotated[
        bool,
        typer.Option(
            "--films/--no-films",
            help="In the pages, pictures of single films: a data set's licence may forbid to hand them on.",
        ),
    ] = True,
    as_json: common.Json = False,
) -> None:
    """Rank the records.

    A table here; Markdown, CSV, LaTeX, Parquet and JSON on disk; pages on request.
    """
    from cxrbench.core.errors import MissingInputError, UsageError
    from cxrbench.core.record import read_records
    from cxrbench.leaderboard.files import write_tables

    mirror = common.wandb_mode(wandb or "off")
    if as_json and (html or serve or mirror != "off"):
        raise UsageError("--json prints; it goes with none of --html, --serve and --wandb")
    _check_report(report, mirror)
    store = Store.default()
    source = folder or store.root / "records"
    records, excluded = read_records(source)
    if mirror != "off":  # before they are ranked, so that tables, pages and runs say the same
        records, excluded = _without_paths(records, excluded)
    records = [r for r in records if dataset in (None, r.dataset)]
    if not records:
        for line in excluded:
            say(line)
        raise MissingInputError(
            f"{source}: no record; `cxrbench run` and `cxrbench bench` leave some"
        )
    tables = rank(records, store)
    if as_json:
        from cxrbench.leaderboard.export.document import to_json

        print(to_json(tables, excluded), end="")
        return
    files = write_tables(tables, excluded, out or store.root / "leaderboard")
    show_tables(tables, excluded, files)
    if html or serve or mirror != "off":
        folder = html or store.root / "leaderboard" / "site"
        first = write_pages(tables, records, excluded, folder, store, films=films)
        if mirror != "off":
            _log(tables, first.parent, mirror, store, report=report)
        if serve:
            from cxrbench.leaderboard.site.serve import serve as serve_site

            serve_site(first.parent, lambda address: say(f"{address} (stop with Ctrl-C)"))


def rank(records: "list[Record]", store: Store) -> "list[Table]":
    """The tables of some records; predictions of the store test what one fold alone cannot."""
    from cxrbench.leaderboard.collect import collect
    from cxrbench.leaderboard.predictions import predictions_in

    return collect(records, predictions_in(store))


def write_pages(
    tables: "list[Table]",
    records: "list[Record]",
    excluded: list[str],
    folder: Path,
    store: Store,
    *,
    films: bool = True,
) -> Path:
    """Write the pages of some tables, say where the first one is, and give its path."""
    from cxrbench.leaderboard.site.build import write_site

    processes = _processes(len(records))
    first = write_site(tables, records, excluded, folder, store, processes=processes, films=films)
    print(first)
    return first


def _processes(runs: int) -> int:
    """As many as draw faster together than their start takes."""
    return max(1, min(os.cpu_count() or 1, MOST_PROCESSES, runs // RUNS_A_PROCESS))


def _check_report(asked: bool, mirror: str) -> None:
    """Before anything is computed: a report lies on the server, and a package of its own makes it."""
    if not asked:
        return
    if mirror != "online":
        from cxrbench.core.errors import UsageError

        raise UsageError("--report lies on the server; it needs --wandb online")
    from cxrbench.leaderboard.mirror.report import check_package

    check_package()


def _without_paths(
    records: "list[Record]", excluded: list[str]
) -> "tuple[list[Record], list[str]]":
    """What may leave this machine."""
    from cxrbench.core.mirror_record import redacted
    from cxrbench.core.redact import redact

    return [redacted(record) for record in records], redact(excluded)


def _log(tables: "list[Table]", site: Path, mode: str, store: Store, *, report: bool) -> None:
    """Log the tables and the site in a folder to W&B, and say where they are."""
    from cxrbench.core.mirror import sync_command, waiting
    from cxrbench.leaderboard.mirror.log import log_leaderboard

    logged = log_leaderboard(tables, site, cast("Mode", mode), store, say)
    say(f"wandb: the leaderboard and {logged.records} new record runs, project {logged.project}"
        if logged.online else f"wandb offline: the leaderboard and {logged.records} new record runs")  # fmt: skip
    print(logged.url or logged.folder)
    if waiting(store.root):
        say(f"to upload what is logged: {sync_command(store.root)}")
    if report:
        from cxrbench.leaderboard.mirror.report import save_report

        for address in save_report(tables, logged):
            print(address)


def show_tables(tables: "list[Table]", excluded: list[str], files: list[Path]) -> None:
    """Print the tables, and where their files are."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from cxrbench.leaderboard.markdown import HEADER, cells, floor_line

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    for table in tables:
        shown = [[_printable(text) for text in cells(row)] for row in table.rows]
        columns = _columns_that_fit([list(HEADER), *shown], console.width)
        rich = RichTable(title=Text(_printable(table.title)), caption=Text(floor_line(table)))
        for i in columns:
            rich.add_column(HEADER[i], justify="left" if i == METHOD else "right", overflow="fold")
        for row in shown:
            rich.add_row(*(Text(row[i]) for i in columns))
        console.print(rich)
        for text in [*table.warnings, *table.notes]:
            console.print(f"  note: {_printable(text)}", markup=False, highlight=False)
    for line in excluded:
        say(f"left out: {_printable(line)}")
    for path in files:
        print(path)


def _printable(text: str) -> str:
    """Text without the control characters that a terminal obeys; records may come from strangers."""
    return "".join(c if c.isprintable() else " " for c in text)


def _columns_that_fit(rows: list[list[str]], width: int) -> list[int]:
    """Columns that say something, without the least important ones where the terminal is narrow."""
    header = rows[0]
    kept = [i for i in range(len(header)) if any(row[i] != "–" for row in rows[1:])]
    for name in EXPENDABLE:
        widest = {i: max(len(row[i]) for row in rows) for i in kept}
        widest[METHOD] = min(widest[METHOD], FOLDED)  # long names are folded
        need = sum(widest[i] + 3 for i in kept) + 1
        if need <= width:
            break
        kept = [i for i in kept if header[i] != name]
    return kept


def report(
    folder: Annotated[
        Path | None, typer.Option("--records", help="Records to read. (default: the store's)")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the files go. (default: the store's report/)")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Only this method.")] = None,
) -> None:
    """Write model cards and reporting checklists.

    A card a method, and CLAIM 2024 and TRIPOD+AI checklists, filled from the records.
    """
    from cxrbench.core.errors import MissingInputError
    from cxrbench.core.record import read_records
    from cxrbench.leaderboard.report.write import write_report

    store = Store.default()
    source = folder or store.root / "records"
    records, excluded = read_records(source)
    if not records:
        raise MissingInputError(
            f"{source}: no record; `cxrbench run` and `cxrbench bench` leave some"
        )
    for path in write_report(
        rank(records, store), excluded, out or store.root / "report", store, method
    ):
        print(path)


def publish(
    dataset: Annotated[str, typer.Option(help="The data set whose records are published.")],
    method: Annotated[list[str], typer.Option(help="Only these methods.")] = [],  # noqa: B006
    to: Annotated[Path, typer.Option(help="The folder of published results.")] = RESULTS,
) -> None:
    """Copy clean and complete records to be committed.

    They lie below benchmarks/results/ then, ranked.
    """
    from cxrbench.core.record import read_records
    from cxrbench.leaderboard.files import write_tables
    from cxrbench.runner.publish import publish as publish_records

    for path in publish_records(Store.default(), to, dataset=dataset, methods=method):
        print(path)
    records, excluded = read_records(to)
    tables = rank([r for r in records if r.dataset == dataset], Store.default())
    show_tables(tables, excluded, write_tables(tables, excluded, to / dataset))
