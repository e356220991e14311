"""A benchmark from specification to records."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cxrbench.core.errors import ConfigError, UsageError
from cxrbench.core.nearest import nearest
from cxrbench.core.registry import Registry, normalise
from cxrbench.core.spec import BenchSpec, Execution, MethodEntry
from cxrbench.core.stage import Stage
from cxrbench.core.store import Store
from cxrbench.core.yamlfile import read_yaml
from cxrbench.runner.bind import Progress
from cxrbench.runner.devices import auto_precision
from cxrbench.runner.finish import write_records
from cxrbench.runner.plan import Plan, make_plan, method_entries
from cxrbench.runner.progress import Status
from cxrbench.runner.schedule import Outcome, run_plan

Mode = Literal["missing", "force", "collect"]


@dataclass
class Result:
    """What a benchmark did."""

    plan: Plan
    outcome: Outcome
    records: list[Path]

    @property
    def complete(self) -> bool:
        """Whether every run has its scores."""
        return not self.outcome.failed and not self.outcome.interrupted


def read_spec(path: Path) -> BenchSpec:
    """A benchmark's YAML file; relative data folders are relative to the file."""
    spec = BenchSpec.parse(read_yaml(path) or {}, where=str(path))

    def beside(entry: Any) -> Any:
        folder = entry.path and path.parent / entry.path.expanduser()
        return entry.model_copy(update={"path": folder})

    return spec.model_copy(
        update={
            "datasets": [beside(entry) for entry in spec.datasets],
            "test_on": [beside(entry) for entry in spec.test_on],
            "externals": [beside(entry) for entry in spec.externals],
        }
    )


def narrow(spec: BenchSpec, registry: Registry, only: list[str]) -> BenchSpec:
    """The specification with the named methods alone."""
    if not only:
        return spec
    asked = {normalise(name) for word in only for name in word.split(",")}
    entries = method_entries(spec, registry)
    names = {normalise(entry.name) for entry in entries}
    for name in asked - names:
        raise UsageError(f"--only {name}: not in {spec.name}; {nearest(name, names)}")
    kept: list[str | MethodEntry] = [e for e in entries if normalise(e.name) in asked]
    return spec.model_copy(update={"methods": kept})


def plan_bench(
    spec: BenchSpec,
    registry: Registry,
    store: Store,
    accelerator: str,
    progress: Progress | None = None,
    *,
    precision: str | None = None,
) -> Plan:
    """The plan; ConfigError when any run would see its own test patients.

    `precision` is what `auto` stands for, where that is not for this machine to say.
    """
    store.check_writable()
    precision = precision or auto_precision(accelerator)
    plan = make_plan(spec, registry, store, precision=precision, progress=progress)
    if accelerator == "cpu" and any(_precision(s) == "16-mixed" for s in plan.graph.values()):
        raise UsageError("precision 16-mixed needs a GPU; use 32-true, or bf16-mixed to try it out")
    if plan.leaks:
        raise ConfigError("the plan leaks test patients into training; nothing was run:\n  "
                          + "\n  ".join(plan.leaks))  # fmt: skip
    return plan


def _precision(stage: Stage) -> str | None:
    recipe = stage.params.get("recipe")
    return recipe.get("precision") if isinstance(recipe, dict) else None


def run_bench(
    plan: Plan,
    registry: Registry,
    store: Store,
    execution: Execution,
    mode: Mode,
    *,
    show: Callable[[Status], None] = lambda status: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Result:
    """Build what is missing; every finished run leaves a record as soon as it is scored."""
    outcome, records = Outcome(), []
    again = mode == "force"
    if again:
        for stage in plan.graph.values():
            store.discard(stage.key)
            store.clear_partial(stage.key)

    def built(digest: str) -> None:
        # At once: what a later fault interrupts has its record already.
        records.extend(write_records(plan, store, after=digest, again=again))

    if mode != "collect" and plan.missing(store):
        outcome = run_plan(plan, store, registry, execution, show=show, tell=tell, built=built)
    return Result(plan, outcome, records + write_records(plan, store))
