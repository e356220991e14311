"""An interrupted training goes on as if it had not been interrupted: bit for bit on a CPU."""

import signal
import time
from pathlib import Path

import pytest

from cxrbench.core.digest import digest_file
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, Execution
from cxrbench.core.store import Store, write_json
from cxrbench.runner.bench import plan_bench
from cxrbench.runner.engines.local import LocalEngine, Running
from cxrbench.runner.graph import to_json
from cxrbench.runner.plan import Plan

PLUGIN = Path(__file__).parent / "plugins" / "small.py"


def small_plan(store: Store) -> tuple[Plan, Registry]:
    registry = Registry([PLUGIN])
    spec = BenchSpec.parse(
        {
            "name": "resume",
            "preset": "quick",
            "methods": ["small"],
            "datasets": [{"name": "phantom", "split": "holdout", "params": {"images": 150}}],
        },
        where="test",
    )
    return plan_bench(spec, registry, store, "cpu"), registry


def write_job(plan: Plan, registry: Registry, store: Store, **execution: object) -> Path:
    execution = {"threads": 1, "checkpoint_seconds": 0, **execution}
    path = store.folder("jobs") / "job.json"
    write_json(
        path,
        {
            "store": str(store.root),
            "todo": list(plan.graph),
            "nodes": to_json(plan.graph),
            "roots": {"phantom": None},
            "plugins": [str(p) for p in registry.plugins],
            "execution": Execution(**execution).model_dump(mode="json"),
        },
    )
    return path


def start(job: Path) -> Running:
    """As the local engine does it."""
    return LocalEngine(Execution()).start(job, job.with_suffix(".log"))


def end(worker: Running, seconds: float = 300) -> int:
    """The exit code of a worker that ends by itself."""
    worker.process.join(seconds)
    assert worker.ended(), f"still running after {seconds} s"
    return worker.code


def fit_key(plan: Plan) -> str:
    return next(stage.key for stage in plan.graph.values() if stage.kind == "fit")


def wait_for_state(store: Store, key: str, worker: Running, states: int) -> None:
    """Until the training has saved this many states and is in the middle of the next stretch."""
    folder = store.root / "partial" / key / "states"
    seen: set[str] = set()
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not worker.ended():
        seen |= {path.name for path in folder.glob("state-*.ckpt")}
        if len(seen) >= states:
            return
        time.sleep(0.005)
    raise AssertionError(
        f"no {states} states were saved; the worker ended with {worker.process.exitcode}"
    )


def weights(store: Store, plan: Plan) -> str:
    return digest_file(store.artefact(fit_key(plan)) / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """SHA-256 of the weights and of the log of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    store = Store(folder / "store")
    plan, registry = small_plan(store)
    job = write_job(plan, registry, store)
    assert end(start(job)) == 0, job.with_suffix(".log").read_text()
    return weights(store, plan), digest_file(store.artefact(fit_key(plan)) / "log.csv")


@pytest.mark.parametrize(("steps", "workers", "states"), [(4, 0, 2), (4, 2, 5), (0, 2, 2)])
def test_killed_in_mid_training_goes_on_bit_identically(
    tmp_path: Path, uninterrupted: tuple[str, str], steps: int, workers: int, states: int
) -> None:
    store = Store(tmp_path / "store")
    plan, registry = small_plan(store)
    job = write_job(plan, registry, store, checkpoint_steps=steps, workers=workers)
    killed = start(job)
    wait_for_state(store, fit_key(plan), killed, states)
    killed.process.kill()
    assert end(killed) == -signal.SIGKILL
    assert not store.has(fit_key(plan))
    assert end(start(job)) == 0, job.with_suffix(".log").read_text()
    assert "resuming from state-" in job.with_suffix(".log").read_text()
    log = store.artefact(fit_key(plan)) / "log.csv"
    assert (weights(store, plan), digest_file(log)) == uninterrupted
    assert not (store.root / "partial" / fit_key(plan)).exists()


def test_sigterm_saves_and_exits_75(tmp_path: Path, uninterrupted: tuple[str, str]) -> None:
    store = Store(tmp_path / "store")
    plan, registry = small_plan(store)
    job = write_job(plan, registry, store)
    asked = start(job)
    wait_for_state(store, fit_key(plan), asked, 1)
    asked.process.terminate()
    assert end(asked, 60) == 75, job.with_suffix(".log").read_text()
    assert not store.has(fit_key(plan))
    assert end(start(job)) == 0
    assert weights(store, plan) == uninterrupted[0]
    finished = store.meta(fit_key(plan))["provenance"]["time"]
    assert end(start(job)) == 0
    assert store.meta(fit_key(plan))["provenance"]["time"] == finished, "a finished stage ran again"
