"""perf: ours against peers on this machine."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrbench.cli.common import say
from cxrbench.core.errors import UsageError
from cxrbench.core.store import Store

if TYPE_CHECKING:
    from cxrbench.perf.harness import Row

# Read when NumPy and PyTorch are imported: figures are those of one core.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(perf)


def perf(
    only: Annotated[
        list[str],
        typer.Option(help="Only data, statistics, training, sweep, commands, growth or gpu."),
    ] = [],  # noqa: B006 - typer copies it
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each comparison.")] = 7,
    spec: Annotated[
        Path, typer.Option(help="The benchmark whose shared trainings are counted.")
    ] = Path("benchmarks/main.yaml"),
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the JSON. (default: performance/ in the store)"),
    ] = None,
    note: Annotated[str, typer.Option(help="Anything that readers must know.")] = "",
    table: Annotated[
        list[Path], typer.Option(help="Print the tables of such JSONs and measure nothing.")
    ] = [],  # noqa: B006
    brief: Annotated[
        bool, typer.Option("--brief", help="With --table: only what has a goal, in three columns.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(help="With --table: put it between the perf marks of this document."),
    ] = None,
) -> None:
    """Time the suite against peers, in turns.

    A ratio is printed only where the results are equal.
    """
    if table:
        _show(table, into, brief=brief)
        return
    if into is not None or brief:
        raise UsageError(f"{'--into' if into else '--brief'} needs --table JSON")
    os.environ.update(dict.fromkeys(THREADS, "1"))
    # As Python does by itself: commands and processes that are timed must not compile their modules each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    import time

    import cv2
    import torch

    from cxrbench.perf.harness import Harness
    from cxrbench.perf.report import write_results
    from cxrbench.perf.suite import measure

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    started = time.monotonic()
    rows = measure(only, Harness(rounds), spec_file=spec, tell=_tell)
    folder = out or Store.default().root / "performance"
    stamp = time.strftime("%Y-%m-%d-%H%M%S", time.gmtime())
    path = folder / f"{stamp}.json"
    write_results(path, rows, rounds, note, time.monotonic() - started)
    _show([path], None)
    say(f"{path}")
    if broken := [row.name for row in rows if row.state == "failed"]:
        say(f"failed: {', '.join(broken)}")
        raise typer.Exit(1)


def _tell(row: "Row") -> None:
    from cxrbench.perf.report import cells

    if row.points:
        say(f"{row.name}: {row.axis} to the power of {row.exponent:.2f}")
        return
    _, _, measured, interval, goal, *_ = cells(row.as_json())
    spread = f" [{interval}]" if interval else ""
    say(f"{row.name}: {measured.replace('*', '')}{spread}  {goal}  {row.why}".rstrip())


def _show(paths: list[Path], into: Path | None, *, brief: bool = False) -> None:
    from cxrbench.core.store import write_atomic
    from cxrbench.perf import report

    text = report.brief(paths) if brief else report.tables(paths)
    if into is None:
        print(text, end="")
        return
    write_atomic(into, report.between(into.read_text(encoding="utf-8"), "perf", text).encode())
    say(f"{into}: the tables of {', '.join(path.name for path in paths)}")
