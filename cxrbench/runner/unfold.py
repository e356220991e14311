"""A specification and its data sets to runs: each method, view, fold and seed, and its graph of stages."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from cxrbench.core.errors import ConfigError
from cxrbench.core.frozen import Frozen
from cxrbench.core.nearest import nearest
from cxrbench.core.record import ExternalTest
from cxrbench.core.registry import Registry, normalise
from cxrbench.core.reported import Reported, ReportedRow
from cxrbench.core.spec import BenchSpec, DatasetEntry, MethodEntry, ViewEntry
from cxrbench.core.stage import DataView, Stage, predict, predict_elsewhere, score
from cxrbench.core.store import Store
from cxrbench.runner.bind import Binding
from cxrbench.runner.settle import Settled, settle

REPLICATES = 1000


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
    train_images: int | None = None
    views: list[dict[str, Any]] = []
    tested_on: ExternalTest | None = None
    final: str  # digest of the score stage
    analyses: dict[str, str] = {}  # name -> digest of what is measured or drawn besides


@dataclass(frozen=True)
class Setting:
    """A specification with its data sets read."""

    spec: BenchSpec
    registry: Registry
    store: Store
    precision: str
    homes: list[Binding]  # of spec.datasets
    tests: list[Binding]  # of spec.test_on
    externals: list[Binding]  # of spec.externals


@dataclass(frozen=True)
class _View:
    """What rewrites images: a method's class and its settled parameters."""

    cls: Any
    preset: str
    settled: Settled

    def described(self) -> dict[str, Any]:
        params = self.settled.params.model_dump(mode="json")
        facts = {"name": self.cls.name, "version": self.cls.version, "preset": self.preset}
        return {**facts, "changed": self.settled.changed, "params": params}


@dataclass(frozen=True)
class Unfolded:
    """A run and the last stages of its graph."""

    run: PlannedRun
    final: Stage
    analyses: dict[str, Stage] = field(default_factory=dict)


def unfold(setting: Setting, method: MethodEntry) -> Iterator[Unfolded]:
    """All runs of a method."""
    spec = setting.spec
    cls = setting.registry.load("methods", method.name)
    preset = method.preset or spec.preset
    settled = _settle(setting, cls, preset, method.params)
    views = [_view_of(setting, entry, preset) for entry in _view_entries(spec, method)]
    own = not views and _is_the_paper_s(settled)
    printed = _given(setting, method) if method.reported is not None else _of_class(cls, own=own)
    for binding, entry in zip(setting.homes, spec.datasets, strict=True):
        if not binding.labels:
            raise ConfigError(
                f"{binding.dataset}: no label here, so nothing to train {cls.name} for or to score; "
                f"`cxrbench predict` applies a trained model to such images"
            )
        tests = _tests_of(setting, binding)
        common = PlannedRun(
            method=cls.name,
            version=cls.version,
            preset=preset,
            params=settled.params.dumped(),
            changed=settled.changed,
            paper=cls.paper,
            reported=_reported(printed, binding, entry),
            dataset=binding.dataset,
            split=binding.split,
            fold=0,
            seed=0,
            train_images=entry.train_images,
            views=[view.described() for view in views],
            final="",
        )
        for fold, seed in _folds(spec, binding, entry):
            home = _home(setting, binding, fold, seed)
            home = replace(home, train_images=entry.train_images)
            data = home
            for view in views:
                data = view.cls.view(data, view.settled.params)
            model = cls.stages(data, settled.params)
            tested = cls.tested_on(data, settled.params, model)
            final = score(predict(model, home, tested), replicates=REPLICATES, seed=0)
            analyses = dict(cls.analyses(data, settled.params, model))
            cell = {
                "fold": fold,
                "seed": seed,
                "final": final.digest,
                "analyses": {name: stage.digest for name, stage in analyses.items()},
            }
            run = common.model_copy(update=cell)  # thousands of runs share what is common
            yield Unfolded(run, final, analyses)
            yield from _tested_elsewhere(run, final, tests)


def _is_the_paper_s(settled: Settled) -> bool:
    """Whether this is the paper's method: with another budget or other weights at most."""
    return all("recipe." in key or "pretrained" in key for key in settled.changed)


def _of_class(cls: Any, *, own: bool) -> list[ReportedRow]:
    """What a method's class says that its paper reports."""
    return [
        ReportedRow.parse({"dataset": name, **table}, where=f"method {cls.name}: reported: {name}")
        for name, table in cls.reported.items()
        if own
    ]


def _given(setting: Setting, method: MethodEntry) -> list[ReportedRow]:
    """What a benchmark says of a row; ConfigError where a name can be that of no data set of the benchmark."""
    for row in method.reported or []:
        where = f"{setting.spec.name}: {method.name}: reported"
        homes = [b for b in setting.homes if normalise(b.dataset) == normalise(row.dataset)]
        if not homes:
            known = ", ".join(dict.fromkeys(b.dataset for b in setting.homes))
            raise ConfigError(
                f"{where}: dataset {row.dataset!r} is not in this benchmark; it has {known}"
            )
        for key in row.params:
            if key not in homes[0].params:
                raise ConfigError(
                    f"{where}: params: {row.dataset} has no option {key!r}; {nearest(key, homes[0].params)}"
                )
    return list(method.reported or [])


def _reported(
    printed: list[ReportedRow], binding: Binding, entry: DatasetEntry
) -> dict[str, Any] | None:
    """The paper's numbers, where they are of these images and this task."""
    if entry.train_images is not None:
        return None
    for row in printed:
        if normalise(row.dataset) == normalise(binding.dataset) and row.is_of(binding.params):
            return row.model_dump(mode="json", include=set(Reported.model_fields))
    return None


def _settle(setting: Setting, cls: Any, preset: Any, params: dict[str, Any]) -> Settled:
    recipe, precision = setting.spec.recipe, setting.precision
    return settle(cls, preset, params, recipe, precision=precision, store=setting.store)


def _view_entries(spec: BenchSpec, method: MethodEntry) -> list[ViewEntry]:
    chosen = spec.views if method.views is None else method.views
    return [ViewEntry(name=entry) if isinstance(entry, str) else entry for entry in chosen]


def _view_of(setting: Setting, entry: ViewEntry, preset: str) -> _View:
    cls = setting.registry.load("methods", entry.name)
    chosen = entry.preset or preset
    return _View(cls, chosen, _settle(setting, cls, chosen, entry.params))


def _folds(spec: BenchSpec, binding: Binding, entry: DatasetEntry) -> Iterator[tuple[int, int]]:
    for fold in entry.folds if entry.folds is not None else range(binding.folds):
        for seed in spec.seeds:
            yield fold, seed


def _home(setting: Setting, binding: Binding, fold: int, seed: int) -> DataView:
    """The data that a run is about, with the other data sets that its parts may be fitted on."""
    skip = setting.spec.skip_unreadable
    externals = {
        # One fit serves every fold.
        normalise(other.dataset): replace(
            other.view(fold=0, seed=seed, skip_unreadable=skip), external=True
        )
        for other in setting.externals
    }
    return replace(binding.view(fold=fold, seed=seed, skip_unreadable=skip), externals=externals)


def _tests_of(setting: Setting, home: Binding) -> list[tuple[ExternalTest, DataView]]:
    """What models trained on `home` are tested on besides, with labels matched by name."""
    from cxrbench.data.external import known_overlap, match_labels

    tests = []
    for binding, entry in zip(setting.tests, setting.spec.test_on, strict=True):
        match = match_labels(home.labels, binding.labels, entry.label_map)
        if not match.pairs:
            raise ConfigError(
                f"test_on {binding.dataset}: none of its labels ({', '.join(binding.labels)}) is known to be "
                f"one of {home.dataset} ({', '.join(home.labels)}); pair them in label_map"
            )
        view = binding.view(fold=entry.fold, seed=0, skip_unreadable=setting.spec.skip_unreadable)
        view = replace(
            view,
            external=True,
            labels=tuple(label for label, _ in match.pairs),
            label_map=match.pairs,
        )
        classes = [
            setting.registry.load("datasets", name) for name in (home.dataset, binding.dataset)
        ]
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


def _tested_elsewhere(
    run: PlannedRun, final: Stage, tests: list[tuple[ExternalTest, DataView]]
) -> Iterator[Unfolded]:
    """The same model on every other data set that it is tested on."""
    predictions = final.inputs["predictions"]
    for test, view in tests:
        elsewhere = predict_elsewhere(predictions.inputs["model"], view)
        scored = score(elsewhere, replicates=REPLICATES, seed=0, validation=predictions)
        update: dict[str, Any] = {
            "tested_on": test,
            "reported": None,
            "final": scored.digest,
            "analyses": {},
        }
        yield Unfolded(run.model_copy(update=update), scored)
