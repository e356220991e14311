"""The local engine: workers as processes of this machine, a slot per GPU group or per CPU share.

Importing torch and Lightning takes seconds, more than many a stage. On Linux a server process imports them once
and every worker is forked from it; it runs nothing itself, so neither threads nor a GPU are inherited.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

from cxrbench.core.errors import CxrbenchError
from cxrbench.core.spec import Execution
from cxrbench.runner.worker import run_apart

PRELOADED = ["cxrbench.runner.execute", "cxrbench.runner.score"]
TRIES = 3
GRACE = 90.0  # seconds that a worker has to save its state before it is killed


@dataclass
class Running:
    """A worker process and the slot that it holds."""

    process: multiprocessing.process.BaseProcess
    slot: int

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.exitcode is not None

    @property
    def code(self) -> int:
        """The exit code of a process that is gone; -N where signal N killed it."""
        code = self.process.exitcode
        assert code is not None
        return code


class LocalEngine:
    """Starts workers in process groups of their own, so that they can be ended as a whole."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.free = list(range(execution.slots))
        self.broken: set[str] = set()  # GPUs that failed in this sweep
        self.processes = _processes()

    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self.free)

    def start(self, job: Path, log: Path) -> Running:
        """Run a job; what it prints is added to its log."""
        slot = self.free.pop(0)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
        if self.execution.accelerator == "gpu":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus(slot))
        return Running(self._started(job, log, environment), slot)

    def _started(
        self, job: Path, log: Path, environment: dict[str, str]
    ) -> multiprocessing.process.BaseProcess:
        """A worker's process. The server that forks it may be killed under it; then there is a new one."""
        for _ in range(TRIES):
            process = self.processes.Process(target=run_apart, args=(job, log, environment))
            try:
                process.start()
            except (EOFError, ConnectionError) as error:
                lost = error
            else:
                return process
        raise CxrbenchError(
            f"{job}: no worker can be started, the process that forks them was killed {TRIES} times "
            f"({type(lost).__name__}), perhaps for want of memory; run the same command again"
        )

    def finished(self, running: Running) -> None:
        """Give a slot back, unless its GPU failed."""
        if not self._is_broken(running.slot):
            self.free.append(running.slot)

    def set_aside(self, running: Running) -> bool:
        """Use the GPUs of a worker no more; False, and nothing changes, where there is no other."""
        if self.execution.accelerator != "gpu":
            return False
        names = set(self._gpus(running.slot))
        others = [s for s in range(self.execution.slots) if not names & set(self._gpus(s))]
        if all(self._is_broken(slot) for slot in others):
            return False
        self.broken |= names
        self.free = [slot for slot in self.free if not self._is_broken(slot)]
        return True

    def _is_broken(self, slot: int) -> bool:
        return bool(self.broken) and not self.broken.isdisjoint(self._gpus(slot))

    def stop(self, workers: list[Running], *, at_once: Callable[[], bool]) -> None:
        """Ask workers to save and end; kill what has not after the grace time, or when `at_once`."""
        for worker in workers:
            if not worker.ended():
                worker.process.terminate()
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and not at_once():
            if all(worker.ended() for worker in workers):
                return
            time.sleep(0.1)
        for worker in workers:
            if not worker.ended():
                assert worker.process.pid is not None
                with contextlib.suppress(ProcessLookupError):  # not yet a group of its own
                    os.killpg(worker.process.pid, signal.SIGKILL)
                worker.process.kill()
                worker.process.join()

    def _gpus(self, slot: int) -> list[str]:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(64)]
        count = self.execution.devices
        return names[slot * count : (slot + 1) * count]


def _processes() -> ForkServerContext | SpawnContext:
    if (
        sys.platform != "linux"
    ):  # elsewhere system libraries do not survive a fork, or there is none
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
