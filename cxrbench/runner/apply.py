"""A trained model on any images: probabilities as a table, no labels needed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from cxrbench.core.columns import FILE, PROBABILITY
from cxrbench.core.errors import CannotWriteError, DataError, MissingInputError, UsageError
from cxrbench.core.record import read_records
from cxrbench.core.registry import Registry
from cxrbench.core.spec import Execution
from cxrbench.core.spreadsheet import inert
from cxrbench.core.stage import Stage, predict_elsewhere
from cxrbench.core.store import Store
from cxrbench.data.base import Problem
from cxrbench.data.csvfile import some
from cxrbench.data.external import EVERYTHING
from cxrbench.runner.bind import Progress, bind, open_dataset
from cxrbench.runner.graph import from_json, graph_of
from cxrbench.runner.plan import Plan, binding_key
from cxrbench.runner.schedule import Outcome, run_plan

# What joins a prediction to where its image came from, where a data set has it.
EXTRA = ("sop_instance",)


def stored_stage(store: Store, key: str) -> Stage:
    """The description of an artefact, with all that it was built from."""
    nodes = store.meta(key).get("nodes")
    if nodes is None:
        raise DataError(f"{key}: built by an older cxrbench, which did not note how; build it anew")
    return list(from_json(nodes).values())[-1]


def find_stage(store: Store, kind: str, name: str) -> Stage:
    """The artefact of a kind that a key or a record's id means; a beginning of either will do."""
    records, _ = read_records(store.root / "records")
    keys = {
        [stage.key for stage in record.stages if stage.kind == kind][-1]
        for record in records
        if record.id.startswith(name) and any(stage.kind == kind for stage in record.stages)
    }
    built = (path.name for path in store.folder("artefacts").glob(f"{kind}-*"))
    keys |= {key for key in built if key.startswith(name)}
    if not keys:
        raise MissingInputError(
            f"{store.root}: no {kind} artefact and no record with one begins with {name!r}; see "
            f"{store.root / 'artefacts'} and {store.root / 'records'}"
        )
    if len(keys) > 1:
        raise UsageError(f"{name!r} could be any of {', '.join(sorted(keys))}; say more of it")
    return stored_stage(store, keys.pop())


def predict_images(
    model: Stage,
    dataset: str,
    root: Path | None,
    params: dict[str, Any],
    *,
    store: Store,
    registry: Registry,
    execution: Execution,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
    **watch: Any,
) -> tuple[pd.DataFrame | None, list[str], Outcome]:
    """(image_id, patient_id and a probability a label of every image, remarks, how it ended).

    Remarks are the unreadable images left out and what the data set finds odd. The table is None when a
    stage failed. `watch` are the callbacks of `run_plan`.
    """
    binding = bind(registry, dataset, root, params, EVERYTHING, store, progress)
    view = binding.view(fold=0, seed=0, skip_unreadable=skip_unreadable)
    # Without labels: these are predictions, and scores are what `--test-on` gives.
    final = predict_elsewhere(model, replace(view, external=True, labels=()))
    plan = Plan(
        "predict", [], graph_of([final]), {binding_key(binding): binding}, {binding.dataset: root}
    )
    outcome = run_plan(plan, store, registry, execution, **watch)
    if not store.has(final.key):
        return None, [], outcome
    table = pd.read_parquet(store.artefact(final.key) / FILE)
    names = [column for column in table.columns if column.startswith(PROBABILITY)]
    skipped = store.meta(final.key)["facts"].get("skipped_images", [])
    cls = registry.load("datasets", dataset)
    index = open_dataset(cls, root, params, EVERYTHING, store, progress).index
    remarks = [f"left out, unreadable: {name}" for name in skipped]
    remarks += [_remark(problem) for problem in cls.check(index)]
    extra = [column for column in EXTRA if column in index.frame.columns]
    joined = table.merge(index.frame[["image_id", *extra]], on="image_id", validate="1:1")
    return joined[["image_id", "patient_id", *extra, *names]], remarks, outcome


def _remark(problem: Problem) -> str:
    names = f": {some(problem.names)}" if problem.names else ""
    return f"{problem.severity}: {problem.count:,} {problem.what}{names}"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """A `.csv` (text that a spreadsheet would run as a formula gets an apostrophe) or `.parquet`."""
    try:
        if path.suffix == ".parquet":
            table.to_parquet(path, index=False)
            return
        safe = table.copy()
        for column in safe.select_dtypes(exclude="number"):
            safe[column] = safe[column].map(inert)
        safe.to_csv(path, index=False)
    except OSError as error:
        raise CannotWriteError(f"{path}: cannot write ({error.strerror or error})") from None
