"""A specification to a graph of stages: what would run, what is shared, what leaks.

Planning imports torch only to ask the methods for their graphs; a plan is remembered until the
specification, the code or the data change, so that asking again is quick.
"""

import contextlib
import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxrbench.core.digest import canonical_json, digest, package_digest
from cxrbench.core.errors import ConfigError
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, DatasetEntry, ExternalEntry, MethodEntry, TestEntry
from cxrbench.core.stage import DataView, Stage, find_leaks
from cxrbench.core.store import Store, read_json_as, write_atomic
from cxrbench.runner.bind import Binding, Progress, bind
from cxrbench.runner.graph import Graph, Table, from_json, graph_of, pack, to_json, unpack
from cxrbench.runner.sides import Sides, sides_of
from cxrbench.runner.unfold import PlannedRun, Setting, unfold

# Where data lie is no part of a plan's identity, nor is what a cluster is asked for.
NOT_IDENTITY: Any = {kind: {"__all__": {"path"}} for kind in ("datasets", "test_on", "externals")}
NOT_IDENTITY["cluster"] = True


@dataclass(frozen=True)
class Plan:
    """Runs, the stages they need (each once), and where the data lie."""

    name: str
    runs: list[PlannedRun]
    graph: Graph
    bindings: dict[str, Binding]
    roots: dict[str, Path | None]
    leaks: list[str] = field(default_factory=list)
    sides: Sides = field(default_factory=dict)  # at which raw images are read

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON, for jobs that leave its records."""
        return {
            "name": self.name,
            "runs": [run.model_dump(mode="json") for run in self.runs],
            "nodes": to_json(self.graph),
            "bindings": [b.model_dump(mode="json") for b in self.bindings.values()],
            "sides": self.sides,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], *, where: str) -> "Plan":
        """The plan of `to_json`, without the folders of its data."""
        runs = [PlannedRun.parse(run, where=where) for run in value["runs"]]
        bindings = [Binding.parse(each, where=where) for each in value["bindings"]]
        graph, sides = from_json(value["nodes"]), value.get("sides", {})
        return cls(value["name"], runs, graph, _by_name(bindings), {}, sides=sides)

    def stages_of(self, run: PlannedRun) -> Graph:
        """The stages of one run, parents first."""
        found = dict(self.graph[run.final].ancestry())
        for digest_ in run.analyses.values():
            found.update(self.graph[digest_].ancestry())
        return found

    def missing(self, store: Store) -> Graph:
        """The stages without an artefact that the last ones still need."""
        needed: Graph = {}
        used = {parent.digest for stage in self.graph.values() for parent in stage.parents()}
        for final in self.graph.keys() - used:
            for stage in _missing(self.graph[final], store):
                needed[stage.digest] = stage
        return {d: s for d, s in self.graph.items() if d in needed}

    def demand(self) -> tuple[int, int]:
        """(trainings in this plan, trainings that the runs would need one by one)."""
        fits = sum(stage.kind == "fit" for stage in self.graph.values())
        alone = sum(s.kind == "fit" for run in self.runs for s in self.stages_of(run).values())
        return fits, alone


def _missing(stage: Stage, store: Store) -> Iterator[Stage]:
    if store.has(stage.key):
        return
    for parent in stage.parents():
        yield from _missing(parent, store)
    yield stage


def method_entries(spec: BenchSpec, registry: Registry) -> list[MethodEntry]:
    """The methods of a specification; `all` takes those that have the preset."""
    if spec.methods == "all":
        entries = registry.entries("methods").values()
        return [MethodEntry(name=e.name) for e in entries if spec.preset in e.presets]
    return [MethodEntry(name=m) if isinstance(m, str) else m for m in spec.methods]


def make_plan(
    spec: BenchSpec,
    registry: Registry,
    store: Store,
    *,
    precision: str = "32-true",
    progress: Progress | None = None,
) -> Plan:
    """The plan of a specification on this machine; `precision` is what `auto` stands for here."""
    methods = method_entries(spec, registry)
    for name in (*(m.name for m in methods), *_views_named(spec, methods)):
        registry.entry("methods", name)  # an unknown name fails before the slow part

    def bound(entries: Iterable[DatasetEntry | TestEntry | ExternalEntry]) -> list[Binding]:
        return [bind(registry, e.name, e.path, e.params, e.split, store, progress) for e in entries]

    setting = Setting(
        spec,
        registry,
        store,
        precision,
        homes=bound(spec.datasets),
        tests=bound(spec.test_on),
        externals=bound(spec.externals),
    )
    bindings = [*setting.homes, *setting.tests, *setting.externals]
    roots = _roots(spec, bindings)
    key = digest(
        {
            "code": package_digest(),
            "plugins": registry.fingerprint(),
            "spec": spec.model_dump(mode="json", exclude=NOT_IDENTITY),
            "bindings": [b.model_dump(mode="json") for b in bindings],
            "precision": precision,
        }
    )
    cached = store.root / "cache" / f"plan-{key[:16]}.json"
    with _no_collections():
        if cached.is_file():
            return _read_plan(cached, spec, bindings, roots)
        plan = _unfold_all(setting, methods, bindings, roots)
        # Without indents, which Python's encoder takes ten times as long for.
        write_atomic(cached, canonical_json(_pack(plan)).encode())
    return plan


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """All that a plan makes stays: searching it for garbage again and again was a third of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _unfold_all(
    setting: Setting,
    methods: list[MethodEntry],
    bindings: list[Binding],
    roots: dict[str, Path | None],
) -> Plan:
    spec = setting.spec
    unfolded = [each for method in methods for each in unfold(setting, method)]
    if not unfolded:
        raise ConfigError(f"{spec.name}: no run; no method has the preset {spec.preset!r}")
    runs = [each.run for each in unfolded]
    leaks = [
        f"{each.run.method} fold {each.run.fold}: {leak}"
        for each in unfolded
        for leak in find_leaks(each.final)
    ]
    last = [stage for each in unfolded for stage in (each.final, *each.analyses.values())]
    graph = graph_of(last)
    return Plan(spec.name, runs, graph, _by_name(bindings), roots, leaks, sides_of(graph.values()))


def _pack(plan: Plan) -> dict[str, Any]:
    """A plan as JSON in which what many runs share is written once."""
    params = Table()
    runs = [
        {**run.model_dump(mode="json", exclude={"params"}), "params": params.number(run.params)}
        for run in plan.runs
    ]
    graph = pack(to_json(plan.graph))
    return {
        "runs": runs,
        "params": params.rows,
        "graph": graph,
        "leaks": plan.leaks,
        "sides": plan.sides,
    }


def _views_named(spec: BenchSpec, methods: list[MethodEntry]) -> set[str]:
    entries = [*spec.views, *(view for method in methods for view in method.views or [])]
    return {entry if isinstance(entry, str) else entry.name for entry in entries}


def _roots(spec: BenchSpec, bindings: list[Binding]) -> dict[str, Path | None]:
    """Where each data set lies."""
    roots: dict[str, Path | None] = {}
    entries: list[DatasetEntry | TestEntry | ExternalEntry] = [
        *spec.datasets,
        *spec.test_on,
        *spec.externals,
    ]
    for binding, entry in zip(bindings, entries, strict=True):
        if roots.setdefault(binding.dataset, entry.path) != entry.path:
            raise ConfigError(
                f"{spec.name}: {binding.dataset} lies in two folders, {roots[binding.dataset]} and "
                f"{entry.path}; make a benchmark for each"
            )
    return roots


def _by_name(bindings: list[Binding]) -> dict[str, Binding]:
    return {binding_key(binding): binding for binding in bindings}


def binding_key(source: Binding | DataView) -> str:
    """What tells two data sets of a plan apart."""
    return (
        f"{source.dataset}/{source.split}/{source.split_digest}/{digest(dict(source.params))[:16]}"
    )


def _read_plan(
    path: Path, spec: BenchSpec, bindings: list[Binding], roots: dict[str, Path | None]
) -> Plan:
    def plan(value: Any) -> Plan:
        runs = [
            PlannedRun.parse({**run, "params": value["params"][run["params"]]}, where=str(path))
            for run in value["runs"]
        ]
        graph, leaks = from_json(unpack(value["graph"])), [str(leak) for leak in value["leaks"]]
        if lost := [run.final for run in runs if run.final not in graph]:
            raise KeyError(lost[0])
        sides = {str(key): [int(side) for side in of] for key, of in value["sides"].items()}
        return Plan(spec.name, runs, graph, _by_name(bindings), roots, leaks, sides)

    return read_json_as(path, plan, "a plan")
