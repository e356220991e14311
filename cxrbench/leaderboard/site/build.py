"""Tables to a folder that opens in a browser: `write_site`."""

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrbench.core.errors import CannotWriteError, UsageError
from cxrbench.core.provenance import utc_now
from cxrbench.core.record import Record
from cxrbench.core.store import Store
from cxrbench.leaderboard.collect import Table
from cxrbench.leaderboard.over_data_sets import over_data_sets
from cxrbench.leaderboard.site import figures
from cxrbench.leaderboard.site.output import Output
from cxrbench.leaderboard.site.runs import write_run
from cxrbench.leaderboard.site.tasks import write_task

MARKER = ".cxrbench-site"  # a folder with it may be replaced


def write_site(
    tables: Sequence[Table],
    records: Sequence[Record],
    excluded: Sequence[str],
    folder: Path,
    store: Store,
    *,
    processes: int = 1,
    films: bool = True,
) -> Path:
    """Write the site of some tables to a folder; the path of its first page.

    `records` are all that were read, `excluded` says which were not. Figures that need predictions, logs or
    pictures take them from `store`, and pages say what it lacks. Figures are drawn by so many `processes`; pictures
    that show single films are left out unless `films`. A site that is already there is replaced when the new one is
    whole; UsageError for a folder with anything else in it.
    """
    folder = folder.expanduser().resolve()
    _check(folder)
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        aside.mkdir(parents=True)
        (aside / MARKER).touch()
        out = Output(aside, store, _facts(tables, records, excluded), processes, films)
        _write(out, tables)
        _replace(aside, folder)
    except OSError as error:
        raise CannotWriteError(f"{folder}: cannot write ({error.strerror or error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder / "index.html"


def _check(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise UsageError(f"{folder}: has other files in it; give an empty folder or a new one")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give an empty folder or a new one")


def _replace(aside: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _facts(
    tables: Sequence[Table], records: Sequence[Record], excluded: Sequence[str]
) -> dict[str, Any]:
    """What every page can say of the whole."""
    shown = {record.id for table in tables for row in table.rows for record in row.records}
    return {
        "made": utc_now(),
        "excluded": list(excluded),
        "repeats": sorted(record.id for record in records if record.id not in shown),
        "runs": len(shown),
        "phantom": any(table.facts.get("phantom") for table in tables),
    }


def _write(out: Output, tables: Sequence[Table]) -> None:
    whole = False
    try:
        _write_pages(out, tables)
        whole = True
    finally:
        out.finish(whole=whole)


def _write_pages(out: Output, tables: Sequence[Table]) -> None:
    entries = []
    for table in tables:
        path = write_task(out, table)
        for row in table.rows:
            for record in row.records:
                write_run(out, table, row, record, path)
        entries.append((path, table))
    pictures = out.galleries
    over = over_data_sets(tables)
    drawable = over is not None and over.groups is not None
    out.page(
        "index.html",
        "index.html",
        title="Leaderboards",
        entries=entries,
        over=over,
        over_figure=out.figure("data-sets", figures.critical_difference, over) if drawable else "",
        without_full=pictures.without_full,
        without_thumb=pictures.without_thumb,
    )
