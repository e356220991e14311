"""Jobs as the scheduler hands them out, done in the test's own process: an import of torch for all."""

import json
from pathlib import Path
from typing import Any

from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import Store, write_json
from cxrbench.runner import worker
from cxrbench.runner.bench import plan_bench
from cxrbench.runner.failures import failure_path
from cxrbench.runner.graph import to_json
from cxrbench.runner.plan import Plan

PLUGIN = Path(__file__).parents[1] / "plugins" / "faulty.py"
DATA = [{"name": "phantom", "split": "holdout", "params": {"images": 80}}]


def planned(store: Store, method: str = "faulty", **params: Any) -> tuple[Plan, Registry]:
    """The plan of one small method on drawn films."""
    registry = Registry([PLUGIN])
    entry = {"name": method, "params": params}
    value = {"name": "faults", "preset": "quick", "methods": [entry], "datasets": DATA}
    return plan_bench(BenchSpec.parse(value, where="test"), registry, store, "cpu"), registry


def write_job(plan: Plan, registry: Registry, store: Store, **execution: Any) -> Path:
    """A job file with every stage of the plan."""
    path = store.folder("jobs") / "job.json"
    asked = Execution(**{"threads": 1, "checkpoint_seconds": 0, **execution})
    write_json(path, {
        "store": str(store.root),
        "todo": list(plan.graph),
        "nodes": to_json(plan.graph),
        "roots": {"phantom": None},
        "plugins": [str(p) for p in registry.plugins],
        "execution": asked.model_dump(mode="json"),
    })  # fmt: skip
    return path


def stage_of(plan: Plan, kind: str) -> Stage:
    """The one stage of a kind."""
    [stage] = [stage for stage in plan.graph.values() if stage.kind == kind]
    return stage


def build(store: Store, *, method: str = "faulty", execution: dict[str, Any] | None = None,
          **params: Any) -> tuple[int, Plan]:  # fmt: skip
    """(exit code, plan) of a worker that is asked for everything."""
    plan, registry = planned(store, method, **params)
    return worker.main([str(write_job(plan, registry, store, **(execution or {})))]), plan


def failure(store: Store, stage: Stage) -> dict[str, Any]:
    """What a failed stage left."""
    value: dict[str, Any] = json.loads(failure_path(store, stage).read_text())
    return value
