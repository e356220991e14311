"""The local engine: who shares which GPU, and Ctrl-C in a real terminal."""

import fcntl
import json
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cxrbench.cli import cluster
from cxrbench.core.errors import UsageError
from cxrbench.core.spec import BenchSpec, Execution
from cxrbench.runner import devices
from cxrbench.runner.engines import local
from cxrbench.runner.engines.local import LocalEngine

PLUGIN = Path(__file__).parent / "plugins" / "faulty.py"
SPEC = BenchSpec.parse({"datasets": [{"name": "phantom"}]}, where="test")
LOCAL = cluster.Place("local", None, None, None, None, None)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu_count", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("asked", "slots", "per_gpu", "workers"),
    [
        ({}, 2, 1, 8),
        ({"per_gpu": 1, "slots": 2}, 2, 1, 8),
        ({"per_gpu": 3}, 6, 3, 2),
        ({"per_gpu": 3, "slots": 4}, 4, 3, 2),
        ({"per_gpu": 2, "gpus": 1, "workers": 5}, 4, 2, 5),
    ],
)
def test_slots_of_shared_gpus(
    two_gpus: None, asked: dict[str, int], slots: int, per_gpu: int, workers: int
) -> None:
    found = devices.choose(**asked)  # type: ignore[arg-type]
    assert (found.accelerator, found.devices) == ("gpu", 1)
    assert (found.slots, found.per_gpu, found.workers) == (slots, per_gpu, workers)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"per_gpu": 2, "gpus": 2}, "--per-gpu 2: a training on 2 GPUs has them for itself"),
        ({"per_gpu": 2, "gpus": 0}, "--per-gpu 2: stages run on the CPU here; --slots"),
        ({"per_gpu": 2, "accelerator": "cpu"}, "--slots says how many"),
        ({"per_gpu": 2, "slots": 5}, "--slots 5 of 1 GPU each need more than the 2 GPUs here with 2 stages on each"),
        ({"slots": 3}, "--slots 3 of 1 GPU each need more than the 2 GPUs here$"),
    ],
)  # fmt: skip
def test_sharing_that_cannot_be_is_refused(
    two_gpus: None, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        devices.choose(**asked)


def test_a_machine_without_gpus_shares_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpu_count", lambda: 0)
    with pytest.raises(UsageError, match="--per-gpu 2: stages run on the CPU here"):
        devices.choose(per_gpu=2)


def settled(place: cluster.Place = LOCAL, per_gpu: int = 1, **options: Any) -> Execution:
    hardware = cluster.Hardware(gpus=0, slots=0, workers=0, per_gpu=per_gpu)
    return cluster.settle(place, SPEC, hardware, "off", **options).execution


def test_options_of_the_command_are_recorded() -> None:
    assert settled().rank_seconds == 300
    assert settled(rank_seconds=20.5).rank_seconds == 20.5
    assert settled(cluster.Place("slurm", *[None] * 5), rank_seconds=20).rank_seconds == 20
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="--rank-seconds"):
            settled(rank_seconds=wrong)
    with pytest.raises(UsageError, match="--per-gpu is for --engine local"):
        settled(cluster.Place("slurm", *[None] * 5), per_gpu=2)


class Started:
    """An engine whose workers are notes of the GPUs that they were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **execution: Any) -> None:
        monkeypatch.setattr(local, "_serve", lambda processes: None)
        monkeypatch.setattr(local, "_warm_up", lambda processes: None)
        self.given: list[str] = []

        def started(engine: Any, job: Path, log: Path, environment: dict[str, str]) -> Any:
            self.given.append(environment["CUDA_VISIBLE_DEVICES"])

        monkeypatch.setattr(LocalEngine, "_started", started)
        self.engine = LocalEngine(Execution(accelerator="gpu", **execution))

    def start(self) -> local.Running:
        return self.engine.start(Path("job.json"), Path("log"))


@pytest.mark.parametrize(
    ("execution", "visible", "gpus"),
    [
        ({"slots": 2}, None, ["0", "1"]),
        ({"slots": 2, "devices": 2}, None, ["0,1", "2,3"]),
        ({"slots": 2, "devices": 2}, "4,5,6,7", ["4,5", "6,7"]),
        # Different GPUs first, then a second stage on each.
        ({"slots": 4, "per_gpu": 2}, None, ["0", "1", "0", "1"]),
        ({"slots": 5, "per_gpu": 3}, "GPU-a,GPU-b", ["GPU-a", "GPU-b", "GPU-a", "GPU-b", "GPU-a"]),
        ({"slots": 2, "per_gpu": 2}, None, ["0", "0"]),
    ],
)  # fmt: skip
def test_each_slot_has_its_gpu(
    monkeypatch: pytest.MonkeyPatch, execution: dict[str, Any], visible: str | None, gpus: list[str]
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with_notes = Started(monkeypatch, **execution)
    while with_notes.engine.has_room():
        with_notes.start()
    assert with_notes.given == gpus


def test_the_next_stage_goes_to_the_gpu_with_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with_notes = Started(monkeypatch, slots=6, per_gpu=2)
    workers = [with_notes.start() for _ in range(6)]
    for place in (1, 0, 3):  # GPU 1, then GPU 0 twice
        with_notes.engine.finished(workers[place])
    for _ in range(3):
        with_notes.start()
    assert with_notes.given[6] == "0" and Counter(with_notes.given[6:]) == {"0": 2, "1": 1}
    assert not with_notes.engine.has_room()


class Terminal:
    """A command whose stderr is a terminal of 60 columns that it is the foreground of; stdout goes to a file."""

    def __init__(self, words: list[str], environment: dict[str, str], out: Path) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 60, 0, 0))
        with out.open("wb") as stdout:
            self.process = subprocess.Popen(
                words, stdin=slave, stdout=stdout, stderr=slave, env=environment,
                start_new_session=True, preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
            )  # fmt: skip
        os.close(slave)
        self.text = ""

    def read(self, until: str = "", seconds: float = 200) -> None:
        """Until the terminal shows something new, or the command has ended."""
        deadline, before = time.monotonic() + seconds, len(self.text)
        while time.monotonic() < deadline:
            if not select.select([self.master], [], [], 0.5)[0]:
                continue
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the terminal is closed: the last process has ended
                return
            self.text += data.decode(errors="replace")
            if until and until in self.text[before:]:
                return
        raise AssertionError(f"no {until!r} in {seconds} s:\n{self.text}")

    def ctrl_c(self) -> None:
        """As the key does it: the terminal sends SIGINT to all of its foreground group."""
        os.write(self.master, b"\x03")

    def shown(self) -> str:
        """What stands there at the end, without control sequences and line ends."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]", "", self.text)


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Any]:
    """Begins a sweep whose only training hangs in its third step, deaf to SIGTERM."""
    spec = tmp_path / "hangs.yaml"
    method = {"name": "faulty", "params": {"fault": "hang", "step": 2}}
    data = {"name": "phantom", "split": "holdout", "params": {"images": 80}}
    value = {"name": "hangs", "preset": "quick", "methods": [method], "datasets": [data]}
    spec.write_text(json.dumps(value))  # JSON is YAML
    words = ["bench", str(spec), "--plugin", str(PLUGIN), "--gpus", "0", "--slots", "1"]
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1",
                   "CXRBENCH_HOME": str(tmp_path / "store")}  # fmt: skip
    begun: list[Terminal] = []

    def begin() -> Terminal:
        command = [sys.executable, "-m", "cxrbench", *words]
        begun.append(Terminal(command, environment, tmp_path / "out"))
        return begun[-1]

    yield begin
    for terminal in begun:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


def check_end(terminal: Terminal, out: Path) -> None:
    """It says how to go on, and nothing on stdout."""
    terminal.read()
    assert terminal.process.wait(60) == 130, terminal.text
    shown = terminal.shown()
    assert "the same command goes on from here:" in shown and "cxrbench bench" in shown
    assert "Traceback" not in shown and "FAILED" not in shown and out.read_bytes() == b""


def test_ctrl_c_in_a_terminal_stops_and_a_second_one_ends_at_once(
    sweep: Any, tmp_path: Path
) -> None:
    # While the server that forks workers still imports: the key's signal goes to it, too.
    terminal = sweep()
    terminal.read("0/3 stages")
    terminal.ctrl_c()
    check_end(terminal, tmp_path / "out")
    # In a training that does not answer: the first asks it to save, the second does not wait for it.
    terminal = sweep()
    terminal.read("%")
    terminal.ctrl_c()
    terminal.read("again to stop")
    assert terminal.process.poll() is None
    pressed = time.monotonic()
    terminal.ctrl_c()
    check_end(terminal, tmp_path / "out")
    assert time.monotonic() - pressed < local.GRACE / 3
    assert "stopped fit-faulty" in terminal.shown()
    store = tmp_path / "store"
    assert not list(store.glob("sweeps/*")) and not list(store.glob("jobs/*.failure.json"))
    [work] = store.glob("partial/fit-faulty-*/progress.json")
    pulse = json.loads(work.read_text())
    time.sleep(1)
    assert json.loads(work.read_text()) == pulse, "the training goes on unseen"
