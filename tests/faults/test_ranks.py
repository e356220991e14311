"""Two processes of one training, of which one dies, fails or says nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxrbench.core.spec import Execution
from cxrbench.core.store import Store
from cxrbench.runner import ranks

from jobs import failure, planned, stage_of, write_job  # isort: skip


@pytest.mark.parametrize(
    ("left", "says"),
    [
        ({0: ("gone", True), 1: ("the cause", False)}, "rank 1: the cause"),
        ({0: ("gone", True)}, "rank 1 of 2 ended without a word: .*; rank 0 says: gone"),
        ({}, "ranks 0, 1 of 2 ended without a word"),
    ],
)
def test_a_rank_that_misses_another_is_not_the_cause(
    tmp_path: Path, left: dict[int, tuple[str, bool]], says: str
) -> None:
    for rank, (error, lost) in left.items():
        value = {"rank": str(rank), "error": error, "exit_code": 1, "lost": lost, "type": "X"}
        (tmp_path / f"rank-{rank}.failure.json").write_text(json.dumps(value))
    error = ranks.first_failure(tmp_path, Execution(devices=2))
    assert re.match(says, str(error))
    assert not list(tmp_path.iterdir()), "the next try begins without them"


def processes_of(job: Path) -> list[int]:
    """Processes, of any session, that were started for a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(job).encode() in words:
            found.append(int(folder.name))
    return found


def run(store: Store, seconds: float, **params: Any) -> tuple[str, float, int]:
    """(what the stage left as its error, seconds it took, exit code) with rank 1 at fault."""
    plan, registry = planned(store, rank=1, **params)
    job = write_job(plan, registry, store, devices=2, rank_seconds=seconds)
    started = time.monotonic()
    command = [sys.executable, "-m", "cxrbench.runner.worker", str(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert not processes_of(job), "a rank outlived the training"
    fit = stage_of(plan, "fit")
    assert not store.has(fit.key)
    return failure(store, fit)["error"], time.monotonic() - started, done.returncode


@pytest.mark.slow
def test_the_death_of_a_rank_is_the_cause_and_not_what_the_others_say(store: Store) -> None:
    error, _, code = run(store, 300, fault="kill")
    assert error.startswith("rank 1 of 2 ended without a word: killed"), error
    assert code == 1


@pytest.mark.slow
def test_the_error_of_a_rank_is_the_cause(store: Store) -> None:
    error, _, _ = run(store, 300, fault="raise")
    assert error == "rank 1: ArithmeticError: the real cause"


@pytest.mark.slow
def test_a_silent_rank_is_given_up(store: Store) -> None:
    """torch gives the ranks 30 s between asking them to end and ending them."""
    error, seconds, _ = run(store, 20, fault="hang")
    assert error.startswith("rank 1 of 2 ended without a word"), error
    assert "silent for 20 s" in error
    assert seconds < 240


@pytest.mark.slow
def test_a_training_on_several_devices_ends_with_its_killed_worker(store: Store) -> None:
    """Elsewhere it may be begun again by then: it must not hold the stage's lock."""
    plan, registry = planned(store, rank=1, fault="hang")
    job = write_job(plan, registry, store, devices=2, rank_seconds=300)
    command = [sys.executable, "-m", "cxrbench.runner.worker", str(job)]
    alone = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    try:
        begun = store.root / "partial" / stage_of(plan, "fit").key / "progress.json"
        wait_for(begun.is_file, 300)
        assert len(processes_of(job)) >= 4, "a worker, a launcher and two ranks"
        alone.kill()
        alone.wait()
        wait_for(lambda: not processes_of(job), 30)
    finally:
        for pid in processes_of(job):
            os.kill(pid, signal.SIGKILL)


def wait_for(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.1)
