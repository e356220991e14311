"""The adapter to Ray without Ray: what a task does on its node, how many are given, what the command refuses."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cxrbench.cli.cluster import Hardware, Place, settle
from cxrbench.core.errors import ConfigError, CxrbenchError, MissingInputError, UsageError
from cxrbench.core.spec import BenchSpec, Execution
from cxrbench.runner.engines import ray_engine, ray_task
from cxrbench.runner.engines.base import GRACE, attached
from cxrbench.runner.engines.ray_engine import RayEngine, capacity, check_address

SPEC = BenchSpec.parse({"datasets": [{"name": "phantom"}]}, where="test")
WAITING = "print(1, flush=True); time.sleep(60)"
STUBBORN = f"import signal, time; signal.signal(15, signal.SIG_IGN); {WAITING}"
POLITE = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); {WAITING}"


def wait(ready: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


# On a node


def test_a_job_that_the_node_does_not_see_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_task, "PATIENCE", 0.0)
    job = tmp_path / "jobs" / "a.json"
    code, why = ray_task.run_chain(job, job.with_suffix(".log"), {}, 3)
    assert code == 66
    assert all(word in why for word in (str(job), socket.gethostname(), "CXRBENCH_HOME"))
    assert not job.parent.exists()


def test_a_job_is_begun_so_often_and_not_again(tmp_path: Path) -> None:
    job = tmp_path / "a.json"
    job.write_text("no job")
    log = job.with_suffix(".log")
    first = ray_task.run_chain(job, log, {"CXRBENCH_SEEN": "1"}, 1)
    assert first[0] not in (0, None) and first[1] == ""
    assert "node " in log.read_text() and "a.json: not JSON" in log.read_text()
    code, why = ray_task.run_chain(job, log, {}, 1)
    assert code == 1 and "begun 1 times" in why and str(ray_task.tries_path(job)) in why
    assert ray_task.tries_path(job).read_text().split() == [socket.gethostname()] * 2


def test_a_cancelled_task_lets_its_worker_save(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cancelled(POLITE, 20.0, monkeypatch) == 75


def test_a_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cancelled(STUBBORN, 0.3, monkeypatch) == -signal.SIGKILL


def cancelled(program: str, grace: float, monkeypatch: pytest.MonkeyPatch) -> int:
    """How a worker ends whose task is cancelled while it waits."""
    worker = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True
    )
    assert worker.stdout and worker.stdout.readline() == b"1\n"

    def cancel(seconds: float) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(ray_task, "GRACE", grace)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_task.time, "sleep", cancel)
    try:
        return ray_task._wait(worker, Path("none.stop"))
    finally:
        worker.kill()
        worker.stdout.close()


def test_a_file_stops_a_task_that_ray_s_interrupt_does_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an interrupt that comes late does not end the worker's time to save."""
    stop = ray_task.stop_path(tmp_path / "a.json")
    worker = subprocess.Popen([sys.executable, "-c", POLITE], stdout=subprocess.PIPE)
    assert worker.stdout and worker.stdout.readline() == b"1\n"
    wait, times = worker.wait, iter([True])

    def interrupted(seconds: float = GRACE) -> int:
        if next(times, False):
            raise KeyboardInterrupt
        return wait(seconds)

    monkeypatch.setattr(worker, "wait", interrupted)
    monkeypatch.setattr(ray_task.time, "sleep", lambda seconds: stop.touch())
    try:
        assert ray_task._wait(worker, stop) == 75
    finally:
        worker.kill()
        worker.stdout.close()


def test_a_task_that_was_stopped_before_it_began_does_not_begin(tmp_path: Path) -> None:
    job = tmp_path / "a.json"
    job.touch()
    ray_task.stop_path(job).touch()
    code, why = ray_task.run_chain(job, tmp_path / "a.log", {}, 1)
    assert (code, why) == (75, "stopped before it began")
    assert not (tmp_path / "a.log").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux alone has it")
def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    os.mkfifo(job)  # a worker that reads it waits for ever
    words = [sys.executable, "-m", "cxrbench.runner.engines.ray_task", str(job)]
    program = (
        "import os, subprocess, sys, time\n"
        f"worker = subprocess.Popen({words!r} + [str(os.getpid())], start_new_session=True)\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout
    worker = int(parent.stdout.readline())
    stream = job.open("w")  # returns when the worker has opened the other end
    assert Path(f"/proc/{worker}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait(lambda: not Path(f"/proc/{worker}").exists() or "\nState:\tZ" in status(worker))
    stream.close()


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"


def test_a_worker_whose_parent_is_gone_already_does_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "cxrbench.runner.engines.ray_task"]
    ended = subprocess.run(
        [*words, str(tmp_path / "absent.json"), "1"], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")


def test_a_worker_sees_nothing_of_ray_and_what_the_command_hands_on() -> None:
    node = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "3",
        "RAY_AUTH_TOKEN": "secret",
        "CXRBENCH_X": "0",
    }
    seen = ray_task.worker_environment(node, {"CXRBENCH_X": "1"})
    assert seen.pop("PYTHONUNBUFFERED") == seen.pop("NO_ALBUMENTATIONS_UPDATE") == "1"
    assert seen == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "3", "CXRBENCH_X": "1"}


# The engine


class FakeRay:
    """A cluster in which nothing runs; tests say how tasks end."""

    class exceptions:
        class RayError(Exception):
            pass

        class TaskCancelledError(RayError):
            pass

        class RayTaskError(RayError):
            cause: Exception | None = None

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.told = [{"Alive": True, "Resources": node} for node in nodes]
        self.options: dict[str, Any] = {}
        self.given: list[tuple[Any, ...]] = []
        self.ends: dict[int, Any] = {}
        self.cancels: list[tuple[int, bool]] = []
        self.connected = False

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **options: Any) -> None:
        self.connected = True
        self.begun = options

    def shutdown(self) -> None:
        self.connected = False

    def nodes(self) -> list[dict[str, Any]]:
        return self.told

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.options = options

        def give(*words: Any) -> int:
            self.given.append(words)
            return len(self.given) - 1

        return lambda function: SimpleNamespace(remote=give)

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        ready = [r for r in references if r in self.ends]
        return ready, [r for r in references if r not in ready]

    def get(self, reference: int) -> Any:
        if isinstance(self.ends[reference], Exception):
            raise self.ends[reference]
        return self.ends[reference]

    def cancel(self, reference: int, *, force: bool = False) -> None:
        self.cancels.append((reference, force))
        if force:
            self.ends[reference] = self.exceptions.TaskCancelledError()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    fake = FakeRay({"CPU": 5, "GPU": 1}, {"CPU": 2})
    monkeypatch.setattr(ray_engine, "_library", lambda: fake)
    monkeypatch.setattr(ray_engine, "require_ray", lambda: None)
    monkeypatch.setattr(ray_engine, "check_address", lambda address: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield fake


def engine(**given: Any) -> RayEngine:
    return RayEngine(
        Execution(**{"engine": "ray", "ray_address": "head:6379", "slots": 0, **given})
    )


def test_tasks_that_fit_are_counted_by_node() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 9.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 7.0}},
        {"Alive": False, "Resources": {"CPU": 100.0, "GPU": 100.0}},
    ]
    assert capacity(nodes, {"CPU": 4.0, "GPU": 0.0}) == 3
    assert capacity(nodes, {"CPU": 4.0, "GPU": 1.0}) == 2
    assert capacity(nodes, {"CPU": 16.0, "GPU": 0.0}) == 0


def test_a_chain_is_one_task_that_only_lost_nodes_bring_back(ray: FakeRay, tmp_path: Path) -> None:
    made = engine(accelerator="gpu", devices=1, cores=4)
    assert ray.options == {"num_cpus": 4.0, "num_gpus": 1, "max_calls": 1,
                           "max_retries": ray_engine.LOSSES, "retry_exceptions": False}  # fmt: skip
    job = tmp_path / "a.json"
    ray_task.tries_path(job).write_text("of another command\n")
    made.start(job, job.with_suffix(".log"))
    assert ray.given[0][0] == job and ray.given[0][3] == ray_engine.LOSSES + 1
    assert not ray_task.tries_path(job).exists()


def test_as_many_tasks_as_nodes_have_room_for(ray: FakeRay, tmp_path: Path) -> None:
    made = engine(cores=2)
    given = []
    while made.has_room():
        given.append(made.start(tmp_path / "a.json", tmp_path / "a.log"))
    assert len(given) == 3
    made.finished(given[0])
    assert made.has_room()
    made.start(tmp_path / "a.json", tmp_path / "a.log")
    made.looked, ray.told = -1e9, []  # every node went away
    assert not made.has_room()
    for task in given:
        made.finished(task)
    assert made.has_room(), "one waits for a node, or the sweep would end without it"


def test_slots_limit_the_tasks_whatever_there_is(ray: FakeRay, tmp_path: Path) -> None:
    made = engine(cores=2, slots=1)
    made.start(tmp_path / "a.json", tmp_path / "a.log")
    assert not made.has_room()
    assert engine(cores=64, slots=2).has_room(), "they wait for a node that may come"


def test_a_request_that_no_node_can_meet_is_refused(ray: FakeRay) -> None:
    with pytest.raises(UsageError, match=r"2 CPU, 0 GPU.*--slots N") as refused:
        engine(accelerator="gpu", devices=2, cores=4)
    assert "5 CPU, 1 GPU" in str(refused.value) and "4 CPU and 2 GPU" in str(refused.value)
    assert not ray.connected


def test_how_tasks_end(ray: FakeRay, tmp_path: Path) -> None:
    made = engine(cores=1)
    tasks = [made.start(tmp_path / "a.json", tmp_path / "a.log") for _ in range(5)]
    assert not any(task.ended() for task in tasks)
    lost = ray.exceptions.RayError("the node died\nand more")
    failed = ray.exceptions.RayTaskError("a long traceback")
    failed.cause = ModuleNotFoundError("No module named 'cxrbench'")
    ray.ends = dict(enumerate([(0, ""), (66, "is not there"), lost, failed, (-9, "")]))
    assert all(task.ended() for task in tasks)
    assert [task.code for task in tasks] == [0, 66, 1, 1, -9]
    assert tasks[1].why() == "is not there"
    assert tasks[2].why().startswith("Ray gave it up (RayError: the node died); ")
    assert "ModuleNotFoundError: No module named 'cxrbench'" in tasks[3].why()
    assert "signal 9" in tasks[4].why()


def test_a_stop_asks_first_and_kills_then(ray: FakeRay, tmp_path: Path) -> None:
    made = engine(cores=1)
    tasks = [made.start(tmp_path / "a.json", tmp_path / "a.log") for _ in range(3)]
    ray.ends[1] = (0, "")
    calls = iter([False])

    def at_once() -> bool:
        asked = next(calls, True)
        ray.ends[0] = (75, "")  # it saved
        return asked

    made.stop(tasks, at_once=at_once)
    assert ray.cancels == [(0, False), (2, False), (2, True)]
    assert [task.code for task in tasks] == [75, 0, 75]
    assert (tmp_path / "a.stop").exists(), "they are asked in another way, too"
    made.start(tmp_path / "a.json", tmp_path / "a.log")
    assert not (tmp_path / "a.stop").exists(), "which is not for those that begin later"
    made.close()
    assert not ray.connected


def test_a_ray_that_was_there_is_left_as_it_was(ray: FakeRay) -> None:
    ray.connected = True
    engine(cores=1).close()
    assert ray.connected


def test_what_ray_prints_is_a_message(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    made = engine(cores=1)
    print("(raylet) Raylet is terminated.")
    made.close()
    print("a result")
    assert capsys.readouterr() == ("a result\n", "(raylet) Raylet is terminated.\n")


def test_an_embedded_ray_is_quiet_and_has_room_for_the_slots(ray: FakeRay) -> None:
    engine(ray_address="", slots=3, cores=50)
    assert ray.begun["address"] == "local" and ray.begun["num_cpus"] == 150
    assert ray.begun["include_dashboard"] is ray.begun["log_to_driver"] is False


def test_a_cluster_that_cannot_be_joined_is_named_and_sigterm_is_as_before(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def fail(**options: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does
        raise ConnectionError("another version\nand more")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(UsageError, match=r"--ray-address head:6379: .*\(another version\)"):
        engine(cores=1)
    with pytest.raises(CxrbenchError, match=r"no Ray can be started .*\(another version\)"):
        engine(cores=1, slots=1, ray_address="")
    assert signal.getsignal(signal.SIGTERM) is before


# The command


def place(**given: Any) -> Place:
    return Place(**{**dict.fromkeys(("partition", "account", "time", "mem", "cpus")), "engine": "ray", **given})  # fmt: skip


def settled(where: Place, **given: Any) -> Execution:
    return settle(where, SPEC, Hardware(**{"slots": 0, **given}), wandb="off").execution


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingInputError, match=r"pip install 'cxrbench\[ray\]'"):
        settled(place(), gpus=0)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "expected HOST:PORT"),
        ("head", "expected HOST:PORT"),
        ("127.0.0.1:x", "expected HOST:PORT"),
        ("127.0.0.1:99999", "nothing answers"),
    ],
)
def test_addresses_that_are_none(address: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_address(address)


def test_an_address_where_nothing_answers() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(UsageError, match="nothing answers"):
            check_address(f"127.0.0.1:{bound.getsockname()[1]}")
        bound.listen()
        check_address(f"127.0.0.1:{bound.getsockname()[1]}")


def test_options_become_what_a_task_asks_for(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    here = settled(place(), gpus=0)
    assert (here.ray_address, here.slots, here.cores, here.threads) == ("", 4, 2, 2)
    there = settled(place(ray_address="127.0.0.1:1", cpus=6), gpus=0, devices=None)
    assert (there.ray_address, there.slots, there.cores, there.threads) == ("127.0.0.1:1", 0, 6, 6)
    assert settled(place(ray_address="auto"), gpus=0, slots=7).slots == 7
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    assert settled(place(), gpus=0).ray_address == "127.0.0.1:2"
    assert settled(place(engine="local"), gpus=0).ray_address == ""


def test_options_that_do_not_fit_are_refused(ray: FakeRay) -> None:
    with pytest.raises(UsageError, match="--ray-address needs --engine ray"):
        settled(place(engine="local", ray_address="auto"))
    with pytest.raises(UsageError, match="--mem needs --engine slurm"):
        settled(place(mem="4G"))
    with pytest.raises(UsageError, match="--cpus needs --engine slurm or ray"):
        settled(place(engine="local", cpus=2))
    with pytest.raises(UsageError, match="pass --gpus N"):
        settled(place(ray_address="auto"))


def test_an_address_is_in_no_record_and_slots_are_counted_by_ray_alone() -> None:
    execution = Execution(engine="ray", slots=0, ray_address="10.0.0.7:6379")
    assert "10.0.0.7" not in json.dumps(execution.model_dump(mode="json"))
    with pytest.raises(ConfigError, match="slots 0 is for the engine ray"):
        Execution.parse({"slots": 0}, where="test")
    with pytest.raises(UsageError, match="runs no sweep"):
        attached(Execution(engine="slurm"))
