"""The progress of a sweep on stderr: one live view on a terminal, lines elsewhere."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cxrbench.cli.common import say

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from cxrbench.runner.estimate import Span
    from cxrbench.runner.progress import Running, State, Status

Counts = Mapping["State", int]
Show = Callable[["Status"], None]
Tell = Callable[[str], None]
PLAIN_SECONDS = 30.0  # between lines when the output is not a terminal, at least
PLAIN_SHARE = 0.05  # of the time that has gone, so that a day is not a thousand lines
PLAIN_MOST = 600.0
PLAIN_NAMED = 4  # running stages that a line names
NAME = 14  # characters of a name at least, however narrow the window
COLOURS = {"done": "green", "running": "cyan", "blocked": "yellow", "failed": "red"}


@contextmanager
def live() -> Iterator[tuple[Show, Tell]]:
    """(show a status, tell a line)."""
    # On a terminal that cannot move its cursor rich would show nothing at all.
    if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        with _view() as (show, tell):
            yield show, tell
    else:
        yield lines(), say


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:05, 3h04 or 2d03h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{hours}h{minute:02d}" if hours else f"{minute}:{second:02d}"


def left(span: "Span | None") -> str:
    """What is left: `?` where nothing is known, `over` before a lower bound."""
    if span is None:
        return "?"
    low, high = clock(span.low), clock(span.high)
    if span.open:
        return f"over {low}" if span.low >= 1 else "?"
    return low if low == high else f"{low} to {high}"


def percent(running: "Running") -> str:
    """The share of a training's steps that is done; empty for what tells none."""
    return f"{100 * running.done // running.of}%" if running.of else ""


def lines(now: Callable[[], float] = time.monotonic, out: Tell = say) -> Show:
    """Shows a line now and then: every 30 s at first, every ten minutes from 3h20 on."""
    last = now()

    def show(status: "Status") -> None:
        nonlocal last
        pause = min(PLAIN_MOST, max(PLAIN_SECONDS, PLAIN_SHARE * status.elapsed))
        if now() - last >= pause:
            last = now()
            out(line(status))

    return show


def line(status: "Status") -> str:
    """A status in one line."""
    words = [f"{status.count('done')}/{status.total} stages done"]
    words += [
        f"{status.count(state)} {state}"
        for state in ("failed", "blocked", "waiting")
        if status.count(state)
    ]
    named = [
        f"{each.key} {each.waits or percent(each)} ({left(each.left)} left)".replace("  ", " ")
        for each in status.running[:PLAIN_NAMED]
    ]
    more = len(status.running) - len(named)
    runs = ", ".join(named) + (f" and {more} more" if more else "")
    time_line = f"{clock(status.elapsed)} gone, {left(status.left)} left"
    return f"{', '.join(words)}; {time_line}" + (f"; running: {runs}" if runs else "")


@contextmanager
def _view() -> Iterator[tuple[Show, Tell]]:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(console=console, transient=True, auto_refresh=False) as window:

        def show(status: "Status") -> None:
            window.update(view(status, console.width, console.height), refresh=True)

        def tell(text: str) -> None:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

        yield show, tell


def view(status: "Status", width: int, height: int) -> "Group":
    """The whole graph in one picture that fits the window: a bar, kinds, names, what runs."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    room = max(4, height - 6)  # lines for the two tables' rows
    runs = status.running[: max(2, room // 2)]
    rows = _rows(status, room - len(runs))
    state = "stopping" if status.stopping else "running"
    head = f"{status.count('done')}/{status.total} stages  {clock(status.elapsed)} gone  "
    last = (
        "saving; Ctrl-C again to stop at once" if status.stopping else f"{left(status.left)} left"
    )
    done = ProgressBar(
        total=max(1, status.total), completed=status.count("done"), width=min(width, 78)
    )
    bar = Table.grid()
    bar.add_row(done)
    parts: list[Any] = [
        Text(head + last, style="bold", no_wrap=True, overflow="ellipsis"),
        bar,
        _stage_table(rows, width),
    ]
    if runs:
        parts.append(_running_table(runs, len(status.running) - len(runs), state, width))
    return Group(*parts)


def _rows(status: "Status", most: int) -> list[tuple[str, Counts]]:
    """A row a kind, then its names; when there is no room for all names, those that are done are left out first."""
    kinds: dict[str, Counter[State]] = {}
    for (kind, _), counts in status.counts.items():
        kinds.setdefault(kind, Counter()).update(counts)
    by_interest = sorted(status.counts, key=lambda at: _dullness(status.counts[at]))
    shown = set(by_interest[: max(0, most - len(kinds))])
    rows: list[tuple[str, Counts]] = []
    for kind, whole in kinds.items():
        rows.append((kind, whole))
        below = [
            (f"  {n}", c) for (k, n), c in status.counts.items() if k == kind and (k, n) in shown
        ]
        rows += below
    return rows


def _dullness(counts: Counts) -> int:
    """What fails is shown before what runs, then what is held up or waits; what is done comes last."""
    interest: tuple[State, ...] = ("failed", "running", "blocked", "waiting")
    return next((rank for rank, state in enumerate(interest) if counts.get(state)), len(interest))


def _stage_table(rows: list[tuple[str, Counts]], width: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    states: tuple[State, ...] = ("done", "running", "waiting", "blocked", "failed")
    table.add_column("stages", no_wrap=True, min_width=NAME, max_width=max(NAME, width - 42))
    for state in states:
        table.add_column(state, justify="right", no_wrap=True)
    for name, found in rows:
        cells = [Text(str(found.get(s) or ""), style=COLOURS.get(s, "")) for s in states]
        table.add_row(Text(name, style="" if name.startswith(" ") else "bold"), *cells)
    return table


def _running_table(runs: "list[Running]", more: int, state: str, width: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(state, no_wrap=True, min_width=NAME, max_width=max(NAME, width - 34))
    for name in ("done", "gone", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in runs:
        table.add_row(Text(each.key), percent(each), clock(each.elapsed), left(each.left))
        if each.waits:
            table.add_row(Text(f"  {each.waits}", style=COLOURS["blocked"]))
    if more:
        table.add_row(f"and {more} more")
    return table
