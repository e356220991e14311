"""SIGKILL at random moments until a sweep is done: its results are those of a sweep that nothing disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxrbench.core.record import read_records

PLUGIN = Path(__file__).parents[1] / "plugins" / "faulty.py"
SEED = int(os.environ.get("CXRBENCH_KILL_SEED", "0"))
KILLS = int(os.environ.get("CXRBENCH_KILLS", "8"))
# Of two methods on two folds; a kill comes so many seconds at most after a stage is built or begun.
STAGES, MOST_SECONDS = 16, 0.6
SPEC = """
name: killed
preset: quick
methods: [chain, faulty]
datasets: [{name: phantom, split: cv5, folds: [0, 1], params: {images: 80}}]
"""


def begin(spec: Path, home: Path) -> "subprocess.Popen[bytes]":
    """The sweep; what it prints is added to a log."""
    environment = {**os.environ, "CXRBENCH_HOME": str(home), "OMP_NUM_THREADS": "1"}
    words = ["bench", str(spec), "--plugin", str(PLUGIN), "--gpus", "0", "--slots", "1"]
    with spec.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cxrbench", *words], env=environment, stdout=log, stderr=log
        )


def below(parent: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:
            continue
    found, ring = [], [parent]
    while ring:
        ring = [pid for pid, of in parents.items() if of in ring]
        found += ring
    return found


def built(home: Path) -> int:
    """Stages that are there."""
    return len(list(home.glob("artefacts/*/stage.json")))


def scores(home: Path) -> dict[tuple[str, int], object]:
    """The scores of every run; each has one record."""
    records, excluded = read_records(home / "records")
    assert not excluded
    found = {(record.method, record.fold): record.scores for record in records}
    assert len(found) == len(records) == 4, "a run has two records, or none"
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sweep_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    spec = tmp_path / "killed.yaml"
    spec.write_text(SPEC)
    assert begin(spec, tmp_path / "whole").wait(900) == 0, spec.with_suffix(".log").read_text()
    assert built(tmp_path / "whole") == STAGES
    draw, home, killed = random.Random(SEED), tmp_path / "killed", []
    while len(killed) < KILLS:
        sweep = begin(spec, home)
        wanted = min(STAGES - 1, built(home) + draw.randint(0, 2))
        while sweep.poll() is None and not (built(home) >= wanted and below(sweep.pid)):
            time.sleep(0.05)
        time.sleep(draw.uniform(0, MOST_SECONDS))
        if sweep.poll() is not None:
            break  # done before it could be killed
        others, victim = below(sweep.pid), draw.choice(["all", "all", "sweep", "other"])
        victims = {"all": [sweep.pid, *others], "sweep": [sweep.pid]}.get(victim)
        for pid in victims or draw.sample(others, min(1, len(others))):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        sweep.wait(900)  # one of whose workers was killed ends what it can
        killed.append((victim, built(home)))
    last = begin(spec, home)
    assert last.wait(900) == 0, spec.with_suffix(".log").read_text()
    print(f"seed {SEED}: killed {killed}")
    assert killed, "nothing was killed"
    assert scores(home) == scores(tmp_path / "whole")
    assert not list(home.glob("partial/*/states")), "work that nobody needs is left"
