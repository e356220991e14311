"""What a Ray task does on its node: it starts the worker of a chain, hands a stop on, and never leaves it behind.

`python -m cxrbench.runner.engines.ray_task JOB PID`: that worker, which the kernel ends with the Ray process PID.
A worker that outlived a lost node or a killed task would hold its stage's lock, for which the next try waits.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from cxrbench.core.errors import InterruptedRunError, MissingInputError
from cxrbench.runner.engines.base import GRACE, WORKER_VARIABLES
from cxrbench.runner.orphans import die_with_parent
from cxrbench.runner.worker import main

LOOK = 0.2  # seconds between looks at the worker
PATIENCE = 10.0  # seconds until a shared file system shows what another node has written

Ending = tuple[int, str]  # the worker's exit code, and what its log does not say


def run_chain(job: Path, log: Path, variables: Mapping[str, str], most: int) -> Ending:
    """Do a job on this node, for the `most`-th time at most; what it prints is added to its log.

    Ray calls this again on another node when this one is lost.
    """
    node = socket.gethostname()
    if not _appears(job):
        return MissingInputError.exit_code, (
            f"{job} is not there on node {node}: the store must be one folder that all nodes of the Ray cluster "
            f"see under the same path; set CXRBENCH_HOME to one"
        )
    if stop_path(job).exists():
        return InterruptedRunError.exit_code, "stopped before it began"
    count = _count_try(job, node)
    if count > most:
        return 1, (
            f"begun {most} times, and each time its Ray process was lost: nodes that went away, or Ray's memory "
            f"monitor ({tries_path(job)} has the nodes); the same command goes on from the last saved state"
        )
    with log.open("ab") as stream:
        stream.write(f"node {node}, try {count}\n".encode())
        stream.flush()
        worker = subprocess.Popen(
            [sys.executable, "-m", __name__, str(job), str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env=worker_environment(os.environ, variables), start_new_session=True,
        )  # fmt: skip
    return _wait(worker, stop_path(job)), ""


def stop_path(job: Path) -> Path:
    """Asks the task of a job to stop, where Ray's own way is lost."""
    return job.with_suffix(".stop")


def tries_path(job: Path) -> Path:
    """Where each try of a job notes its node."""
    return job.with_suffix(".tries")


def worker_environment(node: Mapping[str, str], handed: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: the node's without Ray's own (a token is among it), and what the command hands on."""
    kept = {name: value for name, value in node.items() if not name.startswith("RAY_")}
    return {**kept, **handed, **WORKER_VARIABLES}


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not path.is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK)
    return True


def _count_try(job: Path, node: str) -> int:
    with tries_path(job).open("a+", encoding="utf-8") as note:
        note.write(f"{node}\n")
        note.seek(0)
        return len(note.readlines())


def _wait(worker: "subprocess.Popen[bytes]", stop: Path) -> int:
    """The worker's exit code; when Ray cancels the task or the file is there, the worker saves first."""
    with contextlib.suppress(KeyboardInterrupt):  # so Ray tells a task that it is cancelled
        while not stop.exists():
            if (code := worker.poll()) is not None:
                return code
            time.sleep(LOOK)
    worker.terminate()
    deadline = time.monotonic() + GRACE
    while True:
        try:
            return worker.wait(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:  # told both ways
            continue
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            return worker.wait()


def _be_worker(words: list[str]) -> int:
    job, parent = words
    die_with_parent(ctypes.CDLL(None))
    if os.getppid() != int(parent):  # it was gone before the kernel knew of the wish
        return 1
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # Ray blocks SIGINT
    return main([job])


if __name__ == "__main__":
    sys.exit(_be_worker(sys.argv[1:]))
