"""`--engine ray`: every chain of stages is a task of a Ray cluster, embedded in this process or joined by its address.

Ray finds a node with the cores and GPUs, sets CUDA_VISIBLE_DEVICES, and starts the task again elsewhere when the node or
its process is lost; the states in the store make that go on from where it stopped. A stage that fails is a task that
ended, so Ray does not try it again. Everything else is the sweep's (`schedule.py`).
"""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrbench.core.errors import CxrbenchError, MissingInputError, UsageError
from cxrbench.core.spec import Execution
from cxrbench.runner.engines.base import GRACE
from cxrbench.runner.engines.ray_task import Ending, run_chain, stop_path, tries_path
from cxrbench.runner.faults import how_it_ended

LOSSES = 20  # of nodes, or of Ray's own processes, that one chain survives
CONNECT_SECONDS = 5.0
CAPACITY_SECONDS = 5.0  # between looks at the cluster's nodes
HEARD_SECONDS = 5.0  # until tasks are asked to stop in another way
END_SECONDS = 15.0  # until killed tasks are told of
OBJECTS = 100 * 2**20  # bytes; tasks hand paths on and nothing else, Ray asks for 75 MiB at least
STOPPED = 75
HANDED = "CXRBENCH_"  # variables of the command that a worker gets on whichever node


def require_ray() -> None:
    """MissingInputError when the extra is not installed, UsageError where nothing could end its workers."""
    if sys.platform != "linux":
        raise UsageError(
            "--engine ray needs Linux: elsewhere no worker is ended with the Ray process that started it"
        )
    if importlib.util.find_spec("ray") is None:
        raise MissingInputError(
            "--engine ray needs the package ray: pip install 'cxrbench[ray]' (on every node of the cluster)"
        )


def _library() -> Any:
    """Ray, imported with what it reads from the environment at that moment."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Under `uv run` Ray would pack the working folder and send it to every node.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    # Tries to join: each takes up to 40 s where something else answers.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
    import ray

    return ray


def check_address(address: str) -> None:
    """UsageError when nothing answers where a Ray cluster should be; `auto` is the one that runs on this machine."""
    if address == "auto":
        return
    host, sign, port = address.rpartition(":")
    if not sign or "/" in host or not port.isdigit():
        raise UsageError(
            f"--ray-address {address}: expected HOST:PORT of the head's GCS (6379 unless `ray start --head` said "
            f"otherwise), or auto, on a node of the cluster; without the option a Ray is started here"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--ray-address {address}: nothing answers ({error}); does `ray status --address {address}` "
            f"find the cluster?"
        ) from None


def connect(address: str, execution: Execution) -> None:
    """Join the cluster at an address; where there is none, start one of this machine, for this process alone."""
    ray = _library()
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        cores = max(os.cpu_count() or 1, execution.slots * execution.cores)
        options |= {"include_dashboard": False, "object_store_memory": OBJECTS, "num_cpus": cores}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", **options)
    except Exception as error:  # Ray's own errors have no common base
        said = next(iter(str(error).splitlines()), type(error).__name__)
        if not address:
            raise CxrbenchError(f"no Ray can be started on this machine ({said})") from error
        raise UsageError(
            f"--ray-address {address}: cannot be joined ({said}); this machine must be a node of the cluster "
            f"(`ray start --address=HOST:PORT`) with the same versions of Python and Ray"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, terminate)  # Ray's own would end this process with code 15


def capacity(nodes: list[dict[str, Any]], wanted: Mapping[str, float]) -> int:
    """The tasks that fit beside each other on the nodes that are alive, when each wants so much of one node."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(has.get(k, 0) // v) for k, v in wanted.items() if v) for has in alive)


@dataclass
class Task:
    """A chain that was given to Ray: it waits, runs, or has ended."""

    reference: Any
    job: Path
    ending: Ending | None = None

    def ended(self) -> bool:
        """Whether Ray has its result, or has given it up."""
        if self.ending is None:
            ray = _library()
            if ray.wait([self.reference], timeout=0)[0]:
                self.ending = _ending(self.reference)
        return self.ending is not None

    @property
    def code(self) -> int:
        """The exit code of its worker."""
        assert self.ending is not None
        return self.ending[0]

    def why(self) -> str:
        """What Ray or the node says of its end, or the worker's exit code."""
        assert self.ending is not None
        return self.ending[1] or how_it_ended(self.code)


def _ending(reference: Any) -> Ending:
    ray = _library()
    try:
        ending: Ending = ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        return STOPPED, "cancelled"
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        return 1, f"its Ray task failed ({type(cause).__name__}: {cause})"
    except ray.exceptions.RayError as error:
        said = next(iter(str(error).splitlines()), "")
        return 1, f"Ray gave it up ({type(error).__name__}: {said}); the same command goes on"
    return ending


class RayEngine:
    """Gives chains to Ray; as many at once as its nodes have room for, or as `slots` says."""

    def __init__(self, execution: Execution) -> None:
        require_ray()
        if execution.ray_address:
            check_address(execution.ray_address)
        ray = _library()
        self.execution = execution
        self.running = 0
        self.looked = -CAPACITY_SECONDS
        self.room = 0
        self.undone = contextlib.ExitStack()  # by `close`
        # Ray prints what it says of lost nodes, from a thread of its own: messages, and no results.
        self.undone.enter_context(contextlib.redirect_stdout(sys.stderr))
        gpus = execution.devices if execution.accelerator == "gpu" else 0
        self.wanted = {"CPU": float(execution.cores or execution.devices), "GPU": float(gpus)}
        # A process of Ray for each task: what it started cannot live on in one that serves another.
        self.remote = ray.remote(
            num_cpus=self.wanted["CPU"], num_gpus=gpus, max_calls=1,
            max_retries=LOSSES, retry_exceptions=False,
        )(run_chain)  # fmt: skip
        try:
            if not ray.is_initialized():
                self.undone.callback(ray.shutdown)
                connect(execution.ray_address, execution)
            self._check_room()
        except BaseException:
            self.close()
            raise

    def _capacity(self) -> int:
        ray = _library()
        if time.monotonic() - self.looked >= CAPACITY_SECONDS:  # nodes come and go
            self.room, self.looked = capacity(ray.nodes(), self.wanted), time.monotonic()
        return self.room

    def _check_room(self) -> None:
        if self.execution.slots or self._capacity():
            return
        ray = _library()
        has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        found = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in has)
        raise UsageError(
            f"no node of the Ray cluster has {self.wanted['CPU']:g} CPU and {self.wanted['GPU']:g} GPU for one "
            f"chain of stages (there are: {found}); pass --cpus and --gpus that one has, or --slots N, so that N "
            f"wait for nodes to come"
        )

    def has_room(self) -> bool:
        """Whether another chain would find a node, as far as this sweep knows; one may always wait for a node."""
        return self.running < max(1, self.execution.slots or self._capacity())

    def start(self, job: Path, log: Path) -> Task:
        """Give a job to Ray."""
        for left in (tries_path(job), stop_path(job)):
            left.unlink(missing_ok=True)
        handed = {name: value for name, value in os.environ.items() if name.startswith(HANDED)}
        self.running += 1
        return Task(self.remote.remote(job, log, handed, LOSSES + 1), job)

    def set_aside(self, running: Task) -> bool:
        """False: Ray says which GPUs a task gets, and this sweep cannot keep one from it."""
        return False

    def finished(self, running: Task) -> None:
        """The sweep has seen that a task ended."""
        self.running -= 1

    def stop(self, workers: list[Task], *, at_once: Callable[[], bool]) -> None:
        """Cancel tasks: their workers save and end; kill those that have not after the grace time, or when `at_once`."""
        ray = _library()
        for task in workers:
            if not task.ended():
                ray.cancel(task.reference)
        if _until_ended(workers, HEARD_SECONDS, at_once):
            return
        # Ray interrupts a task's process but does not see whether that was heard: once it was not.
        for task in workers:
            with contextlib.suppress(
                OSError
            ):  # a full disk: they are killed when the grace time is over
                stop_path(task.job).touch()
        # The node's own grace time comes first.
        if _until_ended(workers, GRACE + END_SECONDS, at_once):
            return
        for task in workers:
            if not task.ended():
                ray.cancel(task.reference, force=True)
        _until_ended(workers, END_SECONDS, lambda: False)

    def close(self) -> None:
        """Leave the cluster, which ends this sweep's tasks; an embedded one ends."""
        self.undone.close()


def _until_ended(tasks: list[Task], seconds: float, at_once: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not at_once():
        if all(task.ended() for task in tasks):
            return True
        time.sleep(0.1)
    return False
