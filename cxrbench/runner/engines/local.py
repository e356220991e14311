"""The local engine: workers as processes of this machine, a slot per GPU group or per CPU share."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cxrbench.core.spec import Execution

GRACE = 90.0  # seconds that a worker has to save its state before it is killed


@dataclass
class Running:
    """A worker process and the slot that it holds."""

    process: subprocess.Popen[bytes]
    slot: int

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None


class LocalEngine:
    """Starts workers in process groups of their own, so that they can be ended as a whole."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.free = list(range(execution.slots))

    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self.free)

    def start(self, job: Path, log: Path) -> Running:
        """Run a job; what it prints is added to its log."""
        slot = self.free.pop(0)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
        if self.execution.accelerator == "gpu":
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus(slot))
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "cxrbench.runner.worker", str(job)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return Running(process, slot)

    def finished(self, running: Running) -> None:
        """Give a slot back."""
        self.free.append(running.slot)

    def stop(self, workers: list[Running], *, at_once: Callable[[], bool]) -> None:
        """Ask workers to save and end; kill what has not after the grace time, or when `at_once`."""
        for worker in workers:
            if not worker.ended():
                worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline and not at_once():
            if all(worker.ended() for worker in workers):
                return
            time.sleep(0.1)
        for worker in workers:
            if not worker.ended():
                os.killpg(worker.process.pid, signal.SIGKILL)
                worker.process.wait()

    def _gpus(self, slot: int) -> list[str]:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(64)]
        count = self.execution.devices
        return names[slot * count : (slot + 1) * count]
