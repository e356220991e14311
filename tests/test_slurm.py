"""`--engine slurm` on a real SLURM: the whole of a sweep, preemption, the time limit, failures."""

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import slurm_cluster

from cxrbench.core.cluster import Cluster, parse_time
from cxrbench.core.digest import digest_file
from cxrbench.core.record import Record, read_records
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, Execution
from cxrbench.core.store import Store
from cxrbench.runner.bench import plan_bench, run_bench
from cxrbench.runner.engines.slurm import Submission, submit_plan
from cxrbench.runner.plan import Plan
from cxrbench.runner.status import read_status

absent = slurm_cluster.missing()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(absent),
        reason=f"no {', '.join(absent)}: apt-get install slurm-wlm munge",
    ),
]
PLUGIN = Path(__file__).parent / "plugins" / "braked.py"
PATIENCE = 400  # seconds; a job alone takes some ten on a quiet core
FILMS = {"name": "phantom", "split": "cv5", "params": {"images": 60}}
ONE = {"methods": ["braked"], "datasets": [{**FILMS, "folds": [0]}]}
SWEEP = {"methods": ["braked", "braked-unmade"], "datasets": [{**FILMS, "folds": [0, 1]}]}


@dataclass
class Sweep:
    """A plan with its own store."""

    store: Store
    registry: Registry
    plan: Plan

    @classmethod
    def make(cls, folder: Path, spec: dict[str, Any]) -> "Sweep":
        store, registry = Store(folder), Registry([PLUGIN])
        parsed = BenchSpec.parse({"name": "queue", "preset": "quick", **spec}, where="test")
        return cls(store, registry, plan_bench(parsed, registry, store, "cpu"))

    def submit(self, **cluster: Any) -> Submission:
        asked = Cluster.parse({"gpus": 0, "cpus": 1, "mem": "1G", **cluster}, where="test")
        execution = Execution(engine="slurm", checkpoint_steps=1)
        return submit_plan(self.plan, self.store, self.registry, execution, asked)

    def key(self, kind: str, name: str = "braked", fold: int = 0) -> str:
        return next(
            s.key for s in self.plan.graph.values()
            if (s.kind, s.name, s.data.fold) == (kind, name, fold)
        )  # fmt: skip

    def weights(self) -> str:
        return digest_file(self.store.artefact(self.key("fit")) / "model.safetensors")

    def log(self) -> str:
        return "\n".join(p.read_text() for p in self.store.root.glob("jobs/slurm/*/0.log"))

    def out(self) -> str:
        return "\n".join(p.read_text() for p in self.store.root.glob("jobs/slurm/*/*.out"))

    def states(self) -> int:
        return len(list((self.store.root / "partial" / self.key("fit") / "states").glob("*.ckpt")))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.Cluster]:
    """A SLURM with one node of three CPUs; the programs find it while this module runs."""
    made = slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm"))
    with pytest.MonkeyPatch.context() as patch:
        try:
            made.start(cpus=3)
            for name, value in made.environment.items():
                patch.setenv(name, value)
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The same sweep by the local engine."""
    sweep = Sweep.make(tmp_path_factory.mktemp("local") / "store", SWEEP)
    run_bench(sweep.plan, sweep.registry, sweep.store, Execution(threads=1), "missing")
    return sweep


def wait(
    what: str, ready: Callable[[], Any], cluster: slurm_cluster.Cluster, *sweeps: Sweep
) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what}:\n{told(cluster, *sweeps)}")
        time.sleep(0.3)


def told(cluster: slurm_cluster.Cluster, *sweeps: Sweep) -> str:
    """The queue and every log, for a failure that nobody saw happen."""
    queue = cluster.run("squeue", "-r", "-t", "all", "-o", "%i|%j|%T|%r|%M|%l")
    said = "\n".join(s.out() + s.log() for s in sweeps)
    return f"{queue}\n{said}\n{cluster.logs()}"


def state(cluster: slurm_cluster.Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").strip()


def hurry(cluster: slurm_cluster.Cluster, job: str) -> None:
    """SLURM lets a job that comes back wait for two minutes; here for a few seconds.

    Not for none: a job that starts in the second in which it was put back fails, its credential being revoked.
    """
    words = cluster.run("squeue", "-h", "-j", job, "-O", "State,Reason,EligibleTime").split()
    if words[:2] != ["PENDING", "BeginTime"]:
        return
    if datetime.fromisoformat(words[2]) - datetime.now() > timedelta(seconds=10):
        cluster.run("scontrol", "update", f"jobid={job}", "StartTime=now+5")


def result(record: Record) -> tuple[Any, ...]:
    """What must not depend on the engine."""
    return record.final, [stage.digest for stage in record.stages], record.scores


def test_a_sweep_through_the_queue(
    tmp_path: Path, cluster: slurm_cluster.Cluster, local: Sweep
) -> None:
    sweep = Sweep.make(tmp_path / "store", SWEEP)
    first = sweep.submit()
    second = sweep.submit()
    assert second.jobs == {}
    assert len(second.waiting) == len(sweep.plan.missing(sweep.store)) > 0
    names = cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%j|%i").splitlines()
    ours = {p.name for p in sweep.store.root.glob("jobs/slurm/*") if p.is_dir()}
    assert sum(line.partition("|")[0].removeprefix("cxrbench-") in ours for line in names) == (
        len(first.jobs) + 1
    )
    # Two trainings and two statistics wait for nothing; what waits for a statistic goes by its number.
    assert first.calls == 4
    assert first.records_job is not None
    last = first.records_job
    wait("end of the last job", lambda: state(cluster, last) == "COMPLETED", cluster, sweep)

    records, excluded = read_records(sweep.store.root / "records")
    expected, _ = read_records(local.store.root / "records")
    assert excluded == []
    assert len(records) == 2
    assert sorted(map(result, records), key=str) == sorted(map(result, expected), key=str)

    status = read_status(sweep.store)
    assert {f["stage"] for f in status["failed"]} == {
        sweep.key("compute", "impossible", fold) for fold in (0, 1)
    }
    assert all("no such number" in f["error"] for f in status["failed"])
    rows = {row["stage"]: row for row in status["jobs"]}
    for fold in (0, 1):
        assert rows[sweep.key("compute", "impossible", fold)]["state"] == "FAILED"
        blocked = rows[sweep.key("fit", "braked-unmade", fold)]
        assert (blocked["state"], blocked["reason"]) == ("CANCELLED", "DependencyNeverSatisfied")
    assert "records" not in rows


def test_a_training_that_is_preempted_and_cut_off_by_its_time_limit_goes_on(
    tmp_path: Path,
    cluster: slurm_cluster.Cluster,
    local: Sweep,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brake = tmp_path / "brake"
    brake.touch()
    monkeypatch.setenv("CXRBENCH_TEST_BRAKE", str(brake))
    sweep = Sweep.make(tmp_path / "store", ONE)
    foreign = sweep.store.partial(sweep.key("fit")) / "hpc_ckpt_1.ckpt"
    foreign.write_bytes(b"another run's")
    submitted = sweep.submit(partition="low", time="60", save_seconds=90)
    (job,) = submitted.jobs
    wait("saved state", lambda: sweep.states() >= 1, cluster, sweep)
    # The whole node: there is no room for this one beside the training.
    other = subprocess.run(
        ["sbatch", "--parsable", "--partition=high", "--cpus-per-task=3", "--mem=100M", "--output=/dev/null"],
        input="#!/bin/sh\nsleep 300\n", text=True, capture_output=True, check=True,
    ).stdout.strip()  # fmt: skip
    wait("preemption", lambda: "stopped by SLURM" in sweep.out(), cluster, sweep)
    assert not sweep.store.has(sweep.key("fit"))
    cluster.run("scancel", other)

    def seen(text: str) -> bool:
        hurry(cluster, job)
        return text in sweep.log() + sweep.out()

    wait("going on", lambda: seen("resuming from state-"), cluster, sweep)
    # SLURM warns of the end when less than save_seconds and half a minute are left.
    ran = parse_time(cluster.run("squeue", "-h", "-j", job, "-o", "%M").strip())
    cluster.run("scontrol", "update", f"jobid={job}", f"TimeLimit={-(-ran // 60) + 1}")
    wait("time limit", lambda: seen("time limit 1: "), cluster, sweep)
    cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=60")
    assert not sweep.store.has(sweep.key("fit"))
    brake.unlink()
    last = str(submitted.records_job)

    def over() -> bool:
        hurry(cluster, job)
        return state(cluster, last) == "COMPLETED"

    wait("end of the last job", over, cluster, sweep)
    assert state(cluster, job) == "COMPLETED", told(cluster, sweep)
    assert sweep.log().count("resuming from state-") >= 2
    assert sweep.weights() == local.weights()
    assert read_status(sweep.store)["failed"] == []
    records, _ = read_records(sweep.store.root / "records")
    assert len(records) == 1
