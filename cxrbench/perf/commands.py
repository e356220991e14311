"""What the command line takes to answer, each time in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from cxrbench.core.store import HOME_VARIABLE, Store
from cxrbench.perf.harness import Comparison, Goal, Item
from cxrbench.perf.sweep import fill_store

ANSWERS = (["--help"], ["list"], ["plan", "--help"], ["bench", "--help"])


def _call(words: list[str], environment: dict[str, str]) -> Callable[[], int]:
    def run() -> int:
        done = subprocess.run(words, env=environment, capture_output=True, check=False)
        return done.returncode

    return run


def _succeeded(ours: int, peer: int) -> str:
    return "" if ours == peer == 0 else f"exit codes {ours} and {peer}"


def comparisons(folder: Path, *, records: int = 1000) -> Iterator[Item]:
    """All of this topic; the peer is the bare interpreter, which no command can beat."""
    store = fill_store(Store(folder / "some-records"), records)
    environment = {**os.environ, HOME_VARIABLE: str(store.root)}
    bare = _call([sys.executable, "-c", "pass"], environment)
    timed = [(words, f"cxrbench {' '.join(words)}", 0.3) for words in ANSWERS]
    timed.append((["status"], f"cxrbench status of {records:,} records", 1.0))
    for words, what, most in timed:
        command = [sys.executable, "-m", "cxrbench", *words]
        _call(command, environment)()  # where bytecode is missing, it is made
        yield Comparison(
            f"command/{'-'.join(words).replace('--', '')}",
            f"{what} / python -c pass",
            ours=_call(command, environment),
            peer=bare,
            equal=_succeeded,
            goal=Goal("seconds", most),
            note="Start of Python included.",
        )
