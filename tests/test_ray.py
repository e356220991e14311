"""`--engine ray` on a real Ray: SIGTERM to an embedded one, and a node of two that is killed in mid-training."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cxrbench.core.digest import digest_file
from cxrbench.core.record import Record, read_records
from cxrbench.core.store import Store

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="no ray: pip install 'cxrbench[ray]'"
    ),
]
PLUGIN = Path(__file__).parent / "plugins" / "braked.py"
PATIENCE = 300  # seconds; what is waited for takes some ten on two quiet cores
# Sixty steps a training, of which the brake holds all but four for three seconds each.
SWEEP = """
name: tasks
preset: quick
methods: [braked, braked-unmade]
recipe: {batch_size: 16, epochs: 20}
datasets: [{name: phantom, split: cv5, folds: [0, 1], params: {images: 60}}]
"""
# The command, but for a state that is saved after every step.
COMMAND = """
from dataclasses import replace
from cxrbench.cli import cluster, main

settle = cluster.settle


def often(*words, **named):
    where = settle(*words, **named)
    return replace(where, execution=where.execution.model_copy(update={"checkpoint_steps": 1}))


cluster.settle = often
main()
"""


class Command:
    """`cxrbench bench` in a process of its own, with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.spec, self.store = folder / "tasks.yaml", Store(folder / "store")
        self.output, self.messages = folder / "stdout", folder / "stderr"
        self.spec.write_text(SWEEP)

    def begin(self, *words: str) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "CXRBENCH_HOME": str(self.store.root)}
        command = [sys.executable, "-c", COMMAND, "bench", str(self.spec), "--json"]
        command += ["--plugin", str(PLUGIN), "--gpus", "0", *words]
        with self.output.open("wb") as out, self.messages.open("ab") as err:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=err)

    def said(self) -> str:
        logs = sorted(self.store.root.glob("jobs/*.log"))
        return "\n".join(path.read_text() for path in (self.messages, *logs) if path.is_file())

    def log(self, key: str) -> str:
        return (self.store.root / "jobs" / f"{key[-16:]}.log").read_text()

    def trainings(self) -> list[str]:
        """The keys of the trainings that have begun and saved a state."""
        found = self.store.root.glob("partial/fit-braked-*/states/*.ckpt")
        return sorted({path.parents[1].name for path in found})

    def weights(self) -> dict[str, str]:
        """Digests by stage."""
        found = self.store.root.glob("artefacts/fit-*/model.safetensors")
        return {path.parent.name: digest_file(path) for path in found}

    def results(self) -> list[tuple[Any, ...]]:
        """What must not depend on the engine."""
        records, excluded = read_records(self.store.root / "records")
        assert excluded == []
        return sorted(map(result, records), key=str)

    def workers(self) -> list[int]:
        """Processes that work for this store."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes()
            except OSError:
                continue
            if b"ray_task" in words and bytes(self.store.root) in words:
                found.append(int(path.parent.name))
        return found


def result(record: Record) -> tuple[Any, ...]:
    return record.final, [stage.digest for stage in record.stages], record.scores


def wait(what: str, ready: Callable[[], Any], command: Command, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"no {what}:\n{command.said()}"
        time.sleep(0.2)


@pytest.fixture(scope="module", autouse=True)
def apart() -> Iterator[None]:
    """Ray's files, its token and its cluster are this module's alone."""
    folder = tempfile.mkdtemp(prefix="ray-")  # the paths of sockets are short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_TOKEN", os.urandom(16).hex())
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("RAY_ADDRESS", "CXRBENCH_TEST_BRAKE"):
            patch.delenv(name, raising=False)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The same sweep by the local engine."""
    command = Command(tmp_path_factory.mktemp("local"))
    assert command.begin("--slots", "2").wait(PATIENCE) == 4, command.said()
    assert len(command.results()) == len(command.weights()) == 2
    return command


def brake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "brake"
    path.touch()
    monkeypatch.setenv("CXRBENCH_TEST_BRAKE", str(path))
    return path


def assert_equal(command: Command, local: Command) -> None:
    """One record a run, the same scores, digests and weights, and failures that block only what needs them."""
    assert command.results() == local.results()
    assert command.weights() == local.weights()
    messages = command.messages.read_text()
    assert messages.count("FAILED compute-impossible-") == 2
    assert messages.count("ValueError: there is no such number") == 4
    assert "2 of 4 runs are not finished" in messages
    assert command.output.read_text().lstrip().startswith("["), "Ray wrote to stdout"
    assert command.workers() == []


def test_sigterm_saves_and_the_same_command_ends_as_the_local_engine_does(
    tmp_path: Path, local: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = brake(tmp_path, monkeypatch)
    command = Command(tmp_path)
    first = command.begin("--engine", "ray", "--slots", "2")
    wait("states of both trainings", lambda: len(command.trainings()) == 2, command)
    assert len(command.workers()) == 2
    states = command.trainings()
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 75, command.said()
    assert "the same command goes on from here" in command.messages.read_text()
    assert command.workers() == []
    assert command.trainings() == states
    assert command.said().count("asked to stop; the training state is saved") == 2
    slow.unlink()
    again = command.begin("--engine", "ray", "--slots", "2")
    assert again.wait(PATIENCE) == 4, command.said()
    assert all("resuming from state-" in command.log(key) for key in states)
    assert_equal(command, local)


@pytest.fixture
def cluster(apart: None) -> Iterator[Any]:
    """A Ray whose head has one CPU; that a node is gone is known within two seconds."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
             "health_check_failure_threshold": 4}  # fmt: skip
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick},
    )
    try:
        yield made
    finally:
        made.shutdown()


def test_a_node_is_killed_in_mid_training_and_another_goes_on(
    tmp_path: Path, cluster: Any, local: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = brake(tmp_path, monkeypatch)
    command = Command(tmp_path)
    other = cluster.add_node(num_cpus=1)
    sweep = command.begin("--engine", "ray", "--ray-address", cluster.address, "--cpus", "1")
    wait("states of both trainings", lambda: len(command.trainings()) == 2, command)
    before = set(command.workers())
    assert len(before) == 2, "one on each node"
    raylet = other.all_processes["raylet"][0].process
    raylet.kill()
    raylet.wait()  # its processes take a raylet that nobody waited for to be alive
    wait("end of the lost node's worker", lambda: before - set(command.workers()), command, 30)
    wait("node that is known to be lost", lambda: len(alive(cluster)) == 1, command)
    slow.unlink()
    assert sweep.wait(PATIENCE) == 4, command.said()
    tries = [path.read_text().count("\n") for path in command.store.root.glob("jobs/*.tries")]
    assert sorted(tries) == [1, 1, 1, 2], command.said()
    [(lost, log)] = [(k, command.log(k)) for k in command.weights() if "try 2" in command.log(k)]
    assert "resuming from state-" in log.partition("try 2")[2], lost
    assert_equal(command, local)


def alive(cluster: Any) -> list[Any]:
    return [node for node in cluster.global_state.node_table() if node["Alive"]]
