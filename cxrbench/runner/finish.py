"""Finished runs to records."""

import uuid
import warnings
from pathlib import Path
from typing import Any

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.provenance import collect_provenance, utc_now
from cxrbench.core.record import (
    RETRACTED,
    ExternalTest,
    Record,
    StageRecord,
    read_record,
    write_record,
)
from cxrbench.core.store import MISFITS, Store, read_json
from cxrbench.runner.plan import Plan, binding_key
from cxrbench.runner.unfold import PlannedRun

DROP = 0.02  # a validation AUC this far above the test AUC is worth a warning


def write_records(
    plan: Plan, store: Store, *, after: str | None = None, again: bool = False
) -> list[Path]:
    """A record for each finished run that has none; with `again` one more for those that have.

    `after` is the digest of the stage that was just built: only runs that it completes are meant, with
    all their analyses. Without it, at the end, a run whose analysis failed has its record, too.
    """
    written = []
    for run in plan.runs:
        last = {run.final, *run.analyses.values()}
        built = {digest for digest in last if store.has(plan.graph[digest].key)}
        if run.final not in built or (after is not None and (after not in last or built != last)):
            continue
        folder = store.root / "records"
        lock = store.lock(f"record-{run.final[:16]}")
        lock.acquire(wait=True)
        try:
            known = find_records(store, run)
            if again or not known or _has_more(run, built, known, plan):
                written.append(write_record(folder, _record(plan, run, store)))
        finally:
            lock.release()
    return written


def _has_more(run: PlannedRun, built: set[str], known: list[Path], plan: Plan) -> bool:
    """Whether an analysis is there that no record of the run has: it had failed before."""
    if not run.analyses:
        return False
    held = {key for path in known for key in read_record(path).analyses}
    return any(name not in held for name, digest in run.analyses.items() if digest in built)


def find_records(store: Store, run: PlannedRun) -> list[Path]:
    """The records of a run in this store; what was torn or edited there is passed over."""
    folder = store.root / "records" / run.dataset / run.method
    found = sorted(folder.glob(f"{run.final[:16]}-*.json"))
    kept = [path for path in found if not path.name.endswith(RETRACTED)]
    kept = [path for path in kept if not path.with_name(path.stem + RETRACTED).exists()]
    return [path for path in kept if _is_record(path)]


def _is_record(path: Path) -> bool:
    try:
        read_record(path)
    except (DataError, OSError) as error:
        warnings.warn(f"left out: {error}", stacklevel=2)
        return False
    return True


def _record(plan: Plan, run: PlannedRun, store: Store) -> Record:
    try:
        return _gathered(plan, run, store)
    except (ConfigError, *MISFITS) as error:
        keys = [stage.key for stage in plan.graph[run.final].ancestry().values()]
        raise DataError(
            f"{store.root / 'artefacts'}: what one of {', '.join(keys)} says of itself is not what cxrbench wrote "
            f"({type(error).__name__}: {error}); delete the one that was edited, and give the same command again"
        ) from None


def _gathered(plan: Plan, run: PlannedRun, store: Store) -> Record:
    final = plan.graph[run.final]
    # Of a test on another data set, the thresholds come from the data that was trained on.
    view = final.inputs.get("validation", final).data
    binding = plan.bindings[binding_key(view)]
    stages = [_stage_record(stage.key, store) for stage in final.ancestry().values()]
    analyses = {name: plan.graph[digest].key for name, digest in run.analyses.items()}
    scores = read_json(store.artefact(final.key) / "scores.json")
    fields = {
        "id": uuid.uuid4().hex[:12],
        "created": utc_now(),
        "benchmark": plan.name,
        "method": run.method,
        "method_version": run.version,
        "preset": run.preset,
        "params": run.params,
        "changed": run.changed,
        "paper": run.paper,
        "reported": run.reported,
        "dataset": view.dataset,
        "dataset_version": view.version,
        "dataset_params": dict(view.params),
        "revision": view.revision,
        "labels": list(final.data.labels),
        "split": view.split,
        "split_digest": view.split_digest,
        "folds": binding.folds,
        "fold": run.fold,
        "seed": run.seed,
        "train_images": run.train_images,
        "data_facts": binding.facts,
        "tested_on": run.tested_on,
        "views": run.views,
        "analyses": {
            name: _stage_record(key, store) for name, key in analyses.items() if store.has(key)
        },
        "final": run.final,
        "stages": stages,
        "scores": scores,
        "cost": _cost(stages),
        "warnings": _warnings(run, stages, scores, binding.facts),
        "provenance": collect_provenance(),
    }
    return Record.parse(fields, where=str(store.artefact(final.key)))


def _stage_record(key: str, store: Store) -> StageRecord:
    meta = store.meta(key)
    names = ("digest", "kind", "name", "version", "source", "facts", "cost", "provenance")
    fields = {"key": key, **{name: meta.get(name) for name in names}}
    return StageRecord.parse(fields, where=str(store.artefact(key) / "stage.json"))


def _cost(stages: list[StageRecord]) -> dict[str, Any]:
    """What the run would cost alone: shared stages count in full."""
    fits = [s for s in stages if s.kind == "fit"]
    predicts = [s for s in stages if s.kind == "predict"]
    on_gpu = [
        s.facts.get("peak_gpu_memory_bytes") or s.cost.get("peak_gpu_memory_bytes") or 0
        for s in stages
    ]
    memory = on_gpu if any(on_gpu) else [s.cost.get("peak_memory_bytes") or 0 for s in stages]
    return {
        "device": fits[-1].cost.get("device") if fits else "cpu",
        "gpu": fits[-1].cost.get("gpu") if fits else None,
        "device_hours": sum(s.cost.get("device_seconds", 0.0) for s in stages) / 3600,
        "training_hours": sum(s.cost.get("seconds", 0.0) for s in fits) / 3600,
        "peak_memory_bytes": max(memory, default=0),
        "parameters": fits[-1].facts.get("parameters") if fits else None,
        "images_per_second_training": fits[-1].facts.get("images_per_second") if fits else None,
        "images_per_second_predicting": (
            predicts[-1].facts.get("images_per_second") if predicts else None
        ),
        "trainings": len(fits),
    }


def _warnings(
    run: PlannedRun, stages: list[StageRecord], scores: dict[str, Any], data: dict[str, Any]
) -> list[str]:
    """What a reader must know before believing the scores."""
    found = [str(text) for text in data.get("warnings", []) if _concerns(str(text), run)]
    found += _data_warnings(data)
    if run.tested_on:
        found += _test_warnings(run, run.tested_on, stages)
    skipped = {name for s in stages for name in s.facts.get("skipped_images", [])}
    if skipped:
        found.append(f"{len(skipped)} unreadable images left out: {', '.join(sorted(skipped)[:5])}")
    sources = {s.facts["weights"]["source"] for s in stages if s.facts.get("weights")} - {"none"}
    found.append(f"initial weights: {', '.join(sorted(sources)) or 'random'}")
    found += [_halved(stage) for stage in stages if stage.facts.get("halvings")]
    drop = scores.get("macro", {}).get("validation_minus_test_auc")
    if drop is not None and drop > DROP and not run.tested_on:
        found.append(
            f"fold {run.fold}: validation AUC is {drop:.3f} above test AUC, "
            f"as if the test part were another population"
        )
    if any((s.provenance.get("code") or {}).get("dirty") for s in stages):
        found.append("made by code with uncommitted changes")
    return found


def _halved(stage: StageRecord) -> str:
    """How often the micro-batches of a training were halved."""
    images = [entry["images"] for entry in stage.facts["halvings"]]
    times = {1: "once", 2: "twice"}.get(len(images), f"{len(images)} times")
    return (
        f"{stage.name}: out of memory, micro-batches halved {times}, to {images[-1]} images a device; the "
        f"images of a step stayed, but batch norm saw other batches"
    )


def _data_warnings(data: dict[str, Any]) -> list[str]:
    found = []
    if data.get("phantom"):
        found.append("phantom data: drawn images, no statement about patients")
    if not data.get("complete", True):
        have = data["coverage"]
        found.append(
            f"partial data: {have['present']:,} of {have['promised']:,} images; "
            f"not comparable with the full data set"
        )
    return found


def _test_warnings(run: PlannedRun, test: ExternalTest, stages: list[StageRecord]) -> list[str]:
    """What makes a test on another data set less external than it looks, or narrower."""
    found = [f"{test.dataset}: {text}" for text in _data_warnings(test.data_facts)]
    # A data set that only tests has no other parts to warn of.
    found += [
        f"{test.dataset}: {text}"
        for text in map(str, test.data_facts.get("warnings", []))
        if "test: " in text
    ]
    if test.overlap:
        found.append(f"OVERLAP: {test.dataset} and {run.dataset} share images: {test.overlap}")
    same = [name for s in stages for name in s.facts.get("images_of_training_data", [])]
    if same:
        found.append(
            f"OVERLAP: {len(same)} test images of {test.dataset} are files of {run.dataset}, too: "
            f"{', '.join(sorted(same)[:5])}"
        )
    if test.unmatched_model:
        found.append(f"not tested, {test.dataset} lacks them: {', '.join(test.unmatched_model)}")
    if test.unmatched_data:
        names = ", ".join(test.unmatched_data)
        found.append(f"not tested, {run.dataset} lacks them: {names}")
    return found


def _concerns(text: str, run: PlannedRun) -> bool:
    """Whether a warning of the split is about this run's fold, or about none in particular."""
    return not text.startswith("fold ") or text.startswith(f"fold {run.fold} ")
