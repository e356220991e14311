"""The local engine: workers as processes of this machine, a slot per GPU, group of GPUs, share of one, or share of the CPU.

Importing torch and Lightning takes seconds, more than many a stage. On Linux a server process imports them once
and every worker is forked from it; it runs nothing itself, so neither threads nor a GPU are inherited.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

from cxrbench.core.errors import CxrbenchError
from cxrbench.core.spec import Execution
from cxrbench.runner.engines.base import GRACE, WORKER_VARIABLES
from cxrbench.runner.faults import how_it_ended
from cxrbench.runner.worker import run_apart

PRELOADED = ["cxrbench.runner.execute", "cxrbench.runner.score"]
TRIES = 3
QUICKLY = 0.1  # seconds in which a server that has its imports answers


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

    def why(self) -> str:
        """What its exit code says."""
        return how_it_ended(self.code)


class LocalEngine:
    """Starts workers in process groups of their own, so that they can be ended as a whole."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.free = list(range(execution.slots))
        self.on_gpu = Counter[int]()  # workers, by the place of their GPU
        self.broken: set[str] = set()  # GPUs that failed in this sweep
        self.processes = _processes()
        _serve(self.processes)
        # In a thread, so that the sweep can be seen and stopped while the server imports.
        self._warming = threading.Thread(target=_warm_up, args=(self.processes,), daemon=True)
        self._warming.start()
        self._warming.join(QUICKLY)

    def has_room(self) -> bool:
        """Whether a slot is free, and the server that forks workers has its imports."""
        return bool(self.free) and not self._warming.is_alive()

    def start(self, job: Path, log: Path) -> Running:
        """Run a job; what it prints is added to its log."""
        slot = self._take()
        environment = {**os.environ, **WORKER_VARIABLES}
        if self.execution.accelerator == "gpu":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus(slot))
        return Running(self._started(job, log, environment), slot)

    def _started(
        self, job: Path, log: Path, environment: dict[str, str]
    ) -> multiprocessing.process.BaseProcess:
        """A worker's process. The server that forks it may be killed under it; then there is a new one."""
        for _ in range(TRIES):
            _serve(self.processes)
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
        self.on_gpu[self._place(running.slot)] -= 1
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

    def close(self) -> None:
        """Nothing is left: every worker has ended, and the server of workers goes with this process."""

    def _take(self) -> int:
        """A free slot, of those that share GPUs one whose GPU has the fewest workers."""
        slot = min(self.free, key=lambda free: self.on_gpu[self._place(free)])
        self.free.remove(slot)
        self.on_gpu[self._place(slot)] += 1
        return slot

    def _place(self, slot: int) -> int:
        """The place of a slot's GPU, or of its group of GPUs, among those of the sweep."""
        return slot // self.execution.per_gpu

    def _gpus(self, slot: int) -> list[str]:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(64)]
        count, place = self.execution.devices, self._place(slot)
        return names[place * count : (place + 1) * count]


def _processes() -> ForkServerContext | SpawnContext:
    if (
        sys.platform != "linux"
    ):  # elsewhere system libraries do not survive a fork, or there is none
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _serve(processes: ForkServerContext | SpawnContext) -> None:
    """See that the server runs, deaf to Ctrl-C: a terminal sends that to the server, too, which would die of it."""
    if not isinstance(processes, ForkServerContext):
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a new process begins with
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _warm_up(processes: ForkServerContext | SpawnContext) -> None:
    """Wait until the server has its imports: until it has forked a process that does nothing."""
    if isinstance(processes, ForkServerContext):
        nothing = processes.Process(target=time.sleep, args=(0,))
        with contextlib.suppress(EOFError, ConnectionError):  # killed; `start` sees to it
            nothing.start()
            nothing.join()
