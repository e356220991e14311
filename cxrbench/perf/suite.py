"""All topics in order, each measured in a folder of its own that is gone afterwards."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

from cxrbench.core.errors import UsageError
from cxrbench.perf.harness import Harness, Item, Row, failed

TOPICS = ("data", "statistics", "training", "sweep", "commands", "growth", "gpu")
GPU_SECONDS = 480.0


def items(topic: str, folder: Path, spec_file: Path | None) -> Iterator[Item]:
    """The comparisons of a topic, made one after the other."""
    make: Callable[..., Iterator[Item]] = import_module(f"cxrbench.perf.{topic}").comparisons
    return partial(make, spec_file=spec_file)(folder) if topic == "sweep" else make(folder)


def measure(
    topics: list[str], harness: Harness, *, spec_file: Path | None, tell: Callable[[Row], None]
) -> list[Row]:
    """Rows of these topics, or of all; `tell` hears of each at once."""
    unknown = sorted(set(topics) - set(TOPICS))
    if unknown:
        raise UsageError(f"--only {unknown[0]}: choose from {', '.join(TOPICS)}")
    rows = []
    for topic in [name for name in TOPICS if name in topics or not topics]:
        timed = replace(harness, budget=GPU_SECONDS) if topic == "gpu" else harness
        with tempfile.TemporaryDirectory(prefix="cxrbench-perf-") as folder:
            for row in _rows(topic, timed, Path(folder), spec_file):
                rows.append(row)
                tell(row)
    return rows


def _rows(topic: str, harness: Harness, folder: Path, spec_file: Path | None) -> Iterator[Row]:
    """A topic's rows; what ends its preparation is the last of them."""
    try:
        for item in items(topic, folder, spec_file):
            yield harness.measure(item)
    except Exception as error:
        yield failed(f"{topic}/*", "what is left of this topic: its preparation", error)
