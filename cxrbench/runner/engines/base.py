"""What a sweep asks of an attached engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cxrbench.core.errors import UsageError
from cxrbench.core.spec import Execution

GRACE = 90.0  # seconds that a worker has to save its state before it is killed
# Its log is read while it runs; albumentations would ask the network for its version.
WORKER_VARIABLES = {"PYTHONUNBUFFERED": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


class Worker(Protocol):
    """A worker that an engine has started."""

    def ended(self) -> bool:
        """Whether it is gone; what it published counts, not how it went."""

    @property
    def code(self) -> int:
        """The exit code of one that is gone; -N where signal N killed it."""

    def why(self) -> str:
        """How one ended that left no word of its own."""


W = TypeVar("W", bound=Worker)


class Engine(Protocol[W]):
    """Starts workers somewhere; the order, the failures and the records are the sweep's."""

    def has_room(self) -> bool:
        """Whether one more worker can be started now."""

    def start(self, job: Path, log: Path) -> W:
        """Run `worker job`; what it prints is added to its log."""

    def finished(self, running: W) -> None:
        """The sweep has seen that a worker ended."""

    def set_aside(self, running: W) -> bool:
        """Give no more work to the device that failed under a worker; False where no other is left."""

    def stop(self, workers: list[W], *, at_once: Callable[[], bool]) -> None:
        """Ask workers to save and end (SIGTERM); kill them when `at_once`, or after a grace time."""

    def close(self) -> None:
        """The sweep is over; nothing of the engine is left."""


def attached(execution: Execution) -> Engine[Any]:
    """The attached engine that an execution names."""
    if execution.engine == "local":
        from cxrbench.runner.engines.local import LocalEngine

        return LocalEngine(execution)
    if execution.engine == "ray":
        from cxrbench.runner.engines.ray_engine import RayEngine

        return RayEngine(execution)
    raise UsageError(f"--engine {execution.engine} runs no sweep of this process")
