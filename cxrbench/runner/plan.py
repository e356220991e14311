"""A specification to a graph of stages: what would run, what is shared, what leaks.

Planning imports torch only to ask the methods for their graphs; a plan is remembered until the
specification, the code or the data change, so that asking again is quick.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cxrbench.core.digest import digest, digest_file, package_digest
from cxrbench.core.errors import ConfigError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.core.record import ExternalTest
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, DatasetEntry, MethodEntry, TestEntry
from cxrbench.core.stage import DataView, Stage, find_leaks, predict, predict_elsewhere, score
from cxrbench.core.store import Store, read_json, write_atomic, write_json
from cxrbench.runner.bind import Binding, Progress, bind
from cxrbench.runner.graph import Graph, from_json, graph_of, to_json

REPLICATES = 1000
# Where data lie is no part of a plan's identity.
NOT_IDENTITY: Any = {"datasets": {"__all__": {"path"}}, "test_on": {"__all__": {"path"}}}


class PlannedRun(Frozen):
    """One method on one fold with one seed: a future record."""

    method: str
    version: int
    preset: str
    params: dict[str, Any]
    changed: dict[str, Any]  # what differs from the preset
    paper: str
    reported: dict[str, Any] | None
    dataset: str
    split: str
    fold: int
    seed: int
    tested_on: ExternalTest | None = None
    final: str  # digest of the score stage


@dataclass(frozen=True)
class Plan:
    """Runs, the stages they need (each once), and where the data lie."""

    name: str
    runs: list[PlannedRun]
    graph: Graph
    bindings: dict[str, Binding]
    roots: dict[str, Path | None]
    leaks: list[str] = field(default_factory=list)

    def stages_of(self, run: PlannedRun) -> Graph:
        """The stages of one run, parents first."""
        return self.graph[run.final].ancestry()

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
    bindings = [_bind(entry, registry, store, progress) for entry in spec.datasets]
    outside = [_bind(entry, registry, store, progress) for entry in spec.test_on]
    methods = method_entries(spec, registry)
    for method in methods:
        registry.entry("methods", method.name)  # an unknown name fails before the slow part
    roots: dict[str, Path | None] = {}
    everywhere = [*bindings, *outside]
    entries: list[DatasetEntry | TestEntry] = [*spec.datasets, *spec.test_on]
    for binding, entry in zip(everywhere, entries, strict=True):
        if roots.setdefault(binding.dataset, entry.path) != entry.path:
            raise ConfigError(
                f"{spec.name}: {binding.dataset} lies in two folders, {roots[binding.dataset]} and "
                f"{entry.path}; make a benchmark for each"
            )
    key = digest(
        {
            "code": package_digest(),
            "plugins": registry.fingerprint(),
            "spec": spec.model_dump(mode="json", exclude=NOT_IDENTITY),
            "bindings": [b.model_dump(mode="json") for b in everywhere],
            "precision": precision,
        }
    )
    cached = store.root / "cache" / f"plan-{key[:16]}.json"
    if cached.is_file():
        return _read_plan(cached, spec, everywhere, roots)
    runs: list[PlannedRun] = []
    finals: list[Stage] = []
    leaks: list[str] = []
    for method in methods:
        cls = registry.load("methods", method.name)
        for binding, entry in zip(bindings, spec.datasets, strict=True):
            planned = _runs_of(cls, method, spec, binding, entry, precision, store)
            tests = _tests_of(registry, spec, binding, outside)
            for run, stage in _with_tests(planned, tests):
                runs.append(run)
                finals.append(stage)
                leaks += [f"{run.method} fold {run.fold}: {leak}" for leak in find_leaks(stage)]
    if not runs:
        raise ConfigError(f"{spec.name}: no run; no method has the preset {spec.preset!r}")
    plan = Plan(spec.name, runs, graph_of(finals), _by_name(everywhere), roots, leaks)
    write_json(cached, {
        "runs": [run.model_dump(mode="json") for run in runs],
        "nodes": to_json(plan.graph),
        "leaks": leaks,
    })  # fmt: skip
    return plan


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
    value = read_json(path)
    runs = [PlannedRun.parse(run, where=str(path)) for run in value["runs"]]
    graph = from_json(value["nodes"])
    return Plan(spec.name, runs, graph, _by_name(bindings), roots, value["leaks"])


def _bind(
    entry: DatasetEntry | TestEntry, registry: Registry, store: Store, progress: Progress | None
) -> Binding:
    return bind(registry, entry.name, entry.path, entry.params, entry.split, store, progress)


def _runs_of(
    cls: Any,
    method: MethodEntry,
    spec: BenchSpec,
    binding: Binding,
    entry: DatasetEntry,
    precision: str,
    store: Store,
) -> Iterator[tuple[PlannedRun, Stage]]:
    if not binding.labels:
        raise ConfigError(
            f"{binding.dataset}: no label here, so nothing to train {cls.name} for or to score; "
            f"`cxrbench predict` applies a trained model to such images"
        )
    preset = method.preset or spec.preset
    where = f"method {cls.name}"
    asked = cls.resolve(preset, method.params, spec.recipe, where=where)
    plain = cls.resolve(preset, {}, {}, where=where)
    tree = _with_stored_weights(_with_precision(asked.model_dump(), precision), store, where)
    params = cls.Params.parse(tree, where=where)
    for fold in entry.folds if entry.folds is not None else range(binding.folds):
        for seed in spec.seeds:
            view = binding.view(fold=fold, seed=seed, skip_unreadable=spec.skip_unreadable)
            stage = predict(cls.stages(view, params), view)
            final = score(stage, replicates=REPLICATES, seed=0)
            yield (
                PlannedRun(
                    method=cls.name,
                    version=cls.version,
                    preset=preset,
                    params=params.model_dump(mode="json"),
                    changed=difference(
                        plain.model_dump(mode="json"), asked.model_dump(mode="json")
                    ),
                    paper=cls.paper,
                    reported=cls.reported.get(binding.dataset),
                    dataset=binding.dataset,
                    split=binding.split,
                    fold=fold,
                    seed=seed,
                    final=final.digest,
                ),
                final,
            )


def _tests_of(
    registry: Registry, spec: BenchSpec, home: Binding, outside: list[Binding]
) -> list[tuple[ExternalTest, DataView]]:
    """What models trained on `home` are tested on besides, with labels matched by name."""
    from cxrbench.data.external import known_overlap, match_labels

    tests = []
    for binding, entry in zip(outside, spec.test_on, strict=True):
        match = match_labels(home.labels, binding.labels, entry.label_map)
        if not match.pairs:
            raise ConfigError(
                f"test_on {binding.dataset}: none of its labels ({', '.join(binding.labels)}) is known to be "
                f"one of {home.dataset} ({', '.join(home.labels)}); pair them in label_map"
            )
        view = binding.view(fold=entry.fold, seed=0, skip_unreadable=spec.skip_unreadable)
        view = replace(
            view,
            external=True,
            labels=tuple(label for label, _ in match.pairs),
            label_map=match.pairs,
        )
        classes = [registry.load("datasets", name) for name in (home.dataset, binding.dataset)]
        test = ExternalTest(
            dataset=binding.dataset,
            version=binding.version,
            params=binding.params,
            revision=binding.revision,
            split=binding.split,
            split_digest=binding.split_digest,
            fold=entry.fold,
            label_map=dict(match.pairs),
            unmatched_model=list(match.unmatched_model),
            unmatched_data=list(match.unmatched_data),
            overlap=known_overlap(*classes),
            data_facts=binding.facts,
        )
        tests.append((test, view))
    return tests


def _with_tests(
    planned: Iterator[tuple[PlannedRun, Stage]], tests: list[tuple[ExternalTest, DataView]]
) -> Iterator[tuple[PlannedRun, Stage]]:
    """Each run on its own data, and then on every other that its model is tested on."""
    for run, final in planned:
        yield run, final
        predictions = final.inputs["predictions"]
        for test, view in tests:
            elsewhere = predict_elsewhere(predictions.inputs["model"], view)
            scored = score(elsewhere, replicates=REPLICATES, seed=0, validation=predictions)
            yield (
                run.model_copy(
                    update={"tested_on": test, "reported": None, "final": scored.digest}
                ),
                scored,
            )


def _with_precision(tree: dict[str, Any], precision: str) -> dict[str, Any]:
    """`auto` resolved everywhere: what is computed with decides the artefact."""
    resolved: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            resolved[key] = _with_precision(value, precision)
        else:
            resolved[key] = precision if key == "precision" and value == "auto" else value
    return resolved


def _with_stored_weights(tree: dict[str, Any], store: Store, where: str) -> dict[str, Any]:
    """Files of initial weights named by their content, and kept in the store under that name.

    So the identity of a training holds what it starts from, not where that lay.
    """
    stored: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            stored[key] = _with_stored_weights(value, store, where)
        elif key == "pretrained" and isinstance(value, str) and _is_file_name(value):
            stored[key] = _keep_weights(Path(value).expanduser(), store, where)
        else:
            stored[key] = value
    return stored


def _is_file_name(value: str) -> bool:
    return value not in ("imagenet", "none") and not value.startswith("sha256:")


def _keep_weights(path: Path, store: Store, where: str) -> str:
    if not path.is_file():
        raise MissingInputError(
            f"{where}: pretrained: {path} is no file; give imagenet, none or a file of weights"
        )
    name = f"{digest_file(path)}{path.suffix}"
    kept = store.folder("weights") / name
    if not kept.is_file():
        write_atomic(kept, path.read_bytes())
    return f"sha256:{name}"


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of `new` that differ from `old`, by dotted path."""
    changed: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            changed.update(difference(before, value, f"{prefix}{key}."))
        elif value != before:
            changed[prefix + key] = value
    return changed
