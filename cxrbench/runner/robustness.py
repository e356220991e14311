"""AUC of saved models on disturbed test films: `measure`.

What a run's images went through (aligned, cropped, restored) the disturbed ones go through as well, in memory, a chunk
at a time. Results lie beside the records, one file a run; what is there already is not computed again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cxrbench.core.contract import Transformation, reading_of
from cxrbench.core.errors import DataError
from cxrbench.core.record import Record
from cxrbench.core.registry import Registry
from cxrbench.core.robust import PLAIN, Robustness, robustness_path
from cxrbench.core.seed import derive_seed
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import Store, read_json, write_json
from cxrbench.data.disturb import DISTURBANCES, Grey
from cxrbench.data.module import CxrDataModule
from cxrbench.data.pixels import resize
from cxrbench.methods.base import Method
from cxrbench.metrics.report import score_predictions
from cxrbench.metrics.spread import spread
from cxrbench.runner.apply import stored_stage
from cxrbench.runner.context import Context, Material
from cxrbench.runner.execute import device_of, open_transformation
from cxrbench.runner.predict import predict_rows
from cxrbench.runner.training import load_module

CHUNK = 512  # films in memory at once
SAME = 1e-3  # AUC that undisturbed films may differ from the record's, on another device
METRICS = ("auc", "pr_auc")


@dataclass(frozen=True)
class Subject:
    """A saved model, and the test films that it is tried on."""

    record: Record
    module: Method  # on its device
    rows: npt.NDArray[np.int64]  # among all images
    material: Material  # raw films at the side that the first step reads
    steps: list[tuple[Transformation, int]]  # and the side of its input
    context: Context


def measure(
    record: Record,
    kinds: Sequence[str],
    *,
    store: Store,
    registry: Registry,
    roots: dict[str, Path | None],
    execution: Execution,
    images: int | None = None,
    tell: Callable[[str], None] = print,
) -> Path:
    """Add what is missing of the kinds' levels to a run's file, and give its path.

    images: so many test films at most, evenly spread. DataError where the store no longer holds the model, or
    where the undisturbed films do not give the record's AUC.
    """
    path = robustness_path(store, record)
    subject = _subject(record, Context(store, registry, roots, execution), images)
    found = _known(path, record, len(subject.rows))
    if PLAIN not in found.curves:
        plain = _scored(subject, None, 0.0)
        if images is None:
            _check(record, plain["auc"])
        found = found.having(PLAIN, 0.0, plain)
        write_json(path, found.model_dump(mode="json"))
    for kind in kinds:
        for level in DISTURBANCES[kind].levels:
            if not found.has(kind, level):
                found = found.having(kind, level, _scored(subject, kind, level))
                write_json(path, found.model_dump(mode="json"))
                tell(f"{record.method} fold {record.fold}: {kind} {level:g}")
    return path


def _known(path: Path, record: Record, images: int) -> Robustness:
    """What was measured before, on as many films."""
    if path.is_file():
        found = Robustness.parse(read_json(path), where=str(path))
        if found.final == record.final and found.images == images:
            return found
    units = {kind: disturbance.unit for kind, disturbance in DISTURBANCES.items()}
    return Robustness(final=record.final, images=images, units=units, curves={})


def _subject(record: Record, context: Context, images: int | None) -> Subject:
    keys = [stage.key for stage in record.stages if stage.kind == "predict"]
    if record.tested_on is not None or not keys:
        raise DataError(f"{record.id}: only a run's test on its own data set can be disturbed")
    predictions = stored_stage(context.store, keys[-1])
    model = predictions.inputs["model"]
    steps = list(_steps(predictions.data.images, context))
    module = load_module(model, context.artefact(model) / "model.safetensors", context.execution)
    module.eval().to(device_of(context))
    load, _ = module.image_size(module.params)
    if module.reads_masks(module.params):
        raise DataError(
            f"{record.id}: its score reads lung masks, which would not move with disturbed films"
        )
    raw = replace(predictions.data, images=None)
    if steps:
        material = context.material(raw, steps[0][1], reading_of(steps[0][0]))
    else:
        material = context.material(raw, load, module.reading(module.params))
    rows = np.flatnonzero(material.parts.astype(str) == "test")
    if images is not None:
        rows = rows[spread(len(rows), images)]
    return Subject(record, module, rows, material, steps, context)


def _steps(images: Stage | None, context: Context) -> Iterator[tuple[Transformation, int]]:
    """What rewrites the images, the first step first."""
    if images is None:
        return
    yield from _steps(images.data.images, context)
    step = open_transformation(images, context)
    yield step, step.image_size()


def _scored(subject: Subject, kind: str | None, level: float) -> dict[str, Any]:
    """Scores of the films under one disturbance: macro and by label."""
    module = subject.module
    index = subject.material.opened.index
    load, size = type(module).image_size(module.params)
    found = []
    for start in range(0, len(subject.rows), CHUNK):
        rows = subject.rows[start : start + CHUNK]
        films = _rewritten(subject, _disturbed(subject, rows, kind, level))
        data = CxrDataModule(
            index.select(np.isin(np.arange(len(index)), rows)),
            np.stack([resize(film, load) for film in films]),
            np.full(len(rows), "test", dtype=object),
            module.params.recipe,
            size=size,
            seed=0,
            workers=0,
        )
        order, probability = predict_rows(module, data, "test", device_of(subject.context))
        found.append(probability[np.argsort(order)])
    return _scores(subject, np.concatenate(found))


def _disturbed(
    subject: Subject, rows: npt.NDArray[np.int64], kind: str | None, level: float
) -> list[Grey]:
    films = subject.material.squares[rows]
    if kind is None:
        return list(films)
    change, names = DISTURBANCES[kind].change, subject.material.opened.index.image_ids
    return [
        change(film, level, np.random.default_rng(derive_seed(0, "disturb", kind, str(names[row]))))
        for film, row in zip(films, rows, strict=True)
    ]


@torch.inference_mode()
def _rewritten(subject: Subject, films: list[Grey]) -> list[Grey]:
    for step, side in subject.steps:
        films = list(np.asarray(step(np.stack([resize(film, side) for film in films]))))
    return films


def _scores(subject: Subject, probability: npt.NDArray[np.float64]) -> dict[str, Any]:
    index, labels = subject.material.opened.index, list(subject.module.labels)
    columns = [index.labels.index(label) for label in labels]
    scores = score_predictions(
        labels=labels,
        target=index.targets[np.ix_(subject.rows, columns)],
        probability=probability,
        patient_id=index.patient_ids[subject.rows],
        replicates=0,
    )
    by_label = {label: {m: each[m] for m in METRICS} for label, each in scores["labels"].items()}
    return {**{metric: scores["macro"][metric] for metric in METRICS}, "labels": by_label}


def _check(record: Record, auc: float | None) -> None:
    recorded = record.scores["macro"].get("auc")
    if auc is None or recorded is None or abs(auc - recorded) > SAME:
        raise DataError(
            f"{record.id}: the undisturbed test films give an AUC of {auc}, the record says {recorded}; the model, the "
            f"images or the code are not what they were: run it again with --mode force"
        )
