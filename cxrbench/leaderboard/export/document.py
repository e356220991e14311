"""`leaderboard.json`: the tables as one document whose schema is published and versioned.

`leaderboard.schema.json` beside this file is the schema as JSON Schema 2020-12, made from the models here
(`python -m cxrbench.leaderboard.export.document` writes it anew). Fields are added within a version; a
field that goes or changes its meaning raises `schema_version`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cxrbench.core.frozen import Frozen
from cxrbench.core.record import ExternalTest
from cxrbench.core.store import write_atomic
from cxrbench.leaderboard.labels import label_counts, label_values
from cxrbench.leaderboard.paper import paper_values
from cxrbench.leaderboard.rows import Row, Table, Value

SCHEMA = Path(__file__).with_name("leaderboard.schema.json")
Interval = tuple[float, float]
Places = tuple[int, int]


class Run(Frozen):
    """One record of a row."""

    record: str = Field(description="id of the record")
    fold: int
    seed: int


class Estimate(Frozen):
    """A metric over runs."""

    mean: float
    sd: float | None = Field(
        description="standard deviation over folds and seeds; null with one run"
    )
    n: int = Field(description="runs with this metric")
    interval: Interval | None = Field(
        description="95 % patient-clustered bootstrap interval, where there is one run"
    )


class Label(Frozen):
    """One label of a row."""

    images: int | None = Field(description="test images of all folds on which it is known")
    positives: int | None
    values: dict[str, Estimate | None]


class Difference(Frozen):
    """One row minus another in macro AUC; what no test supports is null."""

    baseline: str
    difference: float
    low: float | None = Field(description="95 % interval of this difference alone")
    high: float | None
    p: float | None = Field(description="two-sided, of this difference alone")
    p_adjusted: float | None = Field(description="Holm's correction for the comparisons beside it")
    effect: float | None = Field(description="difference in standard deviations over folds")
    verdict: Literal["better", "worse", "practically equal", "not told apart", "not tested"]
    how: str = Field(description="how it was computed, in sentences")


class Published(Frozen):
    """Where a row stands in the range of published results on its split."""

    place: Literal["below", "within", "suspiciously above"]
    low: float
    high: float
    source: str
    how: str


class Paper(Frozen):
    """What the method's paper reports."""

    value: float
    split: str | None
    tag: Literal["same split", "different split", "unknown split"]
    inside: bool | None = Field(description="whether it lies in our interval; null if not sayable")
    source: str
    how: str


class Spreads(Frozen):
    """Standard deviations of the AUC over folds, and over seeds within a fold."""

    folds: float | None
    seeds: float | None


class RowEntry(Frozen):
    """One method with one setting."""

    name: str
    method: str
    method_version: int
    preset: str
    changed: dict[str, Any] = Field(description="parameters that differ from the preset's")
    params: dict[str, Any]
    views: list[dict[str, Any]] = Field(description="what rewrote the images, in order")
    train_images: int | None = Field(description="what the training part was cut to")
    runs: list[Run]
    folds: int = Field(description="folds of the split")
    folds_done: int
    complete: bool
    rank: int | None = Field(description="place by macro AUC; null where not ranked")
    tie: Places | None = Field(description="first and last place that it shares; null if untested")
    rank_interval: Places | None = Field(description="its places in 95 % of resamples")
    values: dict[str, Estimate | None] = Field(description="macro means over labels, by metric")
    auc_interval: Interval | None = Field(description="95 %, over folds or patients")
    spread: Spreads
    labels: dict[str, Label]
    comparisons: dict[str, Difference | None] = Field(description="with each baseline")
    published: Published | None
    paper: Paper | None
    paper_values: dict[str, float] = Field({}, description="what the paper reports, by metric")
    device: str | None
    device_hours: float
    parameters: int | None
    marks: list[str] = Field(description="what a reader must know at a glance")


class PairEntry(Frozen):
    """Two ranked rows, by their positions in `rows`."""

    first: int
    second: int
    comparison: Difference


class TableEntry(Frozen):
    """Rows on the same images, labels and split, ranked ones first."""

    title: str
    identity: str = Field(description="digest of what the records of the table have in common")
    dataset: str
    split: str
    split_digest: str
    labels: list[str]
    tested_on: ExternalTest | None = Field(description="null: the data set that was trained on")
    facts: dict[str, Any] = Field(description="counts and coverage of the data set")
    floor: dict[str, Any] = Field(description="what a constant classifier reaches")
    rows: list[RowEntry]
    pairwise: list[PairEntry]
    warnings: list[str]
    notes: list[str] = Field(description="how the statistics were computed")


class Document(Frozen):
    """Leaderboards of cxrbench: one table for each set of comparable records."""

    schema_version: Literal[1] = 1
    tables: list[TableEntry]
    excluded: list[str] = Field(description="records that were left out, and why")


def to_document(tables: Sequence[Table], excluded: Sequence[str]) -> Document:
    """The tables as a document."""
    entries = [_table(table) for table in tables]
    return Document(tables=entries, excluded=list(excluded))


def to_json(tables: Sequence[Table], excluded: Sequence[str]) -> str:
    """The text of `leaderboard.json`."""
    value = to_document(tables, excluded).model_dump(mode="json")
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema of a document."""
    found = Document.model_json_schema(mode="serialization")
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {**dialect, "$id": "urn:cxrbench:leaderboard:1", **found}


def _table(table: Table) -> TableEntry:
    return TableEntry(
        title=table.title,
        identity=table.identity,
        dataset=table.dataset,
        split=table.split_name,
        split_digest=table.split_digest,
        labels=table.labels,
        tested_on=table.tested_on,
        facts=table.facts,
        floor=table.floor,
        rows=[_row(row, table.labels) for row in table.rows],
        pairwise=[PairEntry.model_validate(asdict(pair)) for pair in table.pairwise],
        warnings=table.warnings,
        notes=table.notes,
    )


def _row(row: Row, labels: Sequence[str]) -> RowEntry:
    first, cost = row.records[0], [record.cost for record in row.records]
    parameters = cost[0].get("parameters")
    compared = row.comparisons.items()
    return RowEntry(
        name=row.name,
        method=row.method,
        method_version=first.method_version,
        preset=row.preset,
        changed=row.changed,
        params=first.params,
        views=first.views,
        train_images=first.train_images,
        runs=sorted(
            (Run(record=r.id, fold=r.fold, seed=r.seed) for r in row.records),
            key=lambda run: (run.seed, run.fold, run.record),
        ),
        folds=row.folds,
        folds_done=row.done,
        complete=row.complete,
        rank=row.rank,
        tie=row.tie,
        rank_interval=row.rank_interval,
        values={metric: _estimate(value) for metric, value in row.values.items()},
        auc_interval=row.auc_interval,
        spread=Spreads(folds=row.spread.folds, seeds=row.spread.seeds),
        labels={label: _label(row, label) for label in labels},
        comparisons={
            name: Difference.model_validate(asdict(each)) if each else None
            for name, each in compared
        },
        published=Published.model_validate(asdict(row.published)) if row.published else None,
        paper=_paper(row),
        paper_values=paper_values(row),
        device=_text(cost[0].get("device")),
        device_hours=sum(each.get("device_hours") or 0.0 for each in cost),
        parameters=parameters if isinstance(parameters, int) else None,
        marks=row.marks,
    )


def _paper(row: Row) -> Paper | None:
    if row.paper is None:
        return None
    return Paper.model_validate({**asdict(row.paper), "split": _text(row.paper.split)})


def _text(value: object) -> str | None:
    """What a record, perhaps a stranger's, holds where a text should be."""
    return None if value is None else str(value)


def _label(row: Row, label: str) -> Label:
    images, positives = label_counts(row, label) or (None, None)
    values = {metric: _estimate(value) for metric, value in label_values(row, label).items()}
    return Label(images=images, positives=positives, values=values)


def _estimate(value: Value | None) -> Estimate | None:
    return Estimate.model_validate(asdict(value)) if value else None


if __name__ == "__main__":
    write_atomic(SCHEMA, (json.dumps(schema(), indent=1) + "\n").encode())
