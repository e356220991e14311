"""Records to tables: a pure function; rows that cannot be compared never share a table.

Mean and standard deviation run over folds (and seeds). Rows are ranked that have the
same folds and seeds: those that most rows of the table have. A difference is paired: the mean over the folds
that both methods have of method minus baseline.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from cxrbench.core.digest import canonical_json
from cxrbench.core.record import Record
from cxrbench.leaderboard.honesty import marks, paper_flag
from cxrbench.leaderboard.judge import judge
from cxrbench.leaderboard.predictions import Reader
from cxrbench.leaderboard.published import published_flag
from cxrbench.leaderboard.rows import BASELINES, METRICS, Fold, Row, Spread, Table, Value
from cxrbench.leaderboard.withdrawn import paper_numbers

__all__ = ["BASELINES", "METRICS", "Fold", "Row", "Spread", "Table", "Value", "collect"]


def collect(records: Iterable[Record], predictions: Reader | None = None) -> list[Table]:
    """Tables, one for each set of comparable records, rows by rank.

    predictions: finds what lies behind a record (`predictions_in(store)`); tables of one test part have tests
    only with it.
    """
    newest: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: (r.created, r.id)):
        newest[record.final] = record  # a repeat of the same stages is the same result
    tables: dict[str, list[Record]] = defaultdict(list)
    for record in newest.values():
        tables[record.task].append(record)
    return sorted(
        (_table(group, predictions, identity) for identity, group in tables.items()),
        key=lambda table: (table.title, table.identity),
    )


def _table(records: list[Record], predictions: Reader | None, identity: str) -> Table:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        key: list[Any] = [record.method, record.method_version, record.preset]
        key.append(canonical_json(record.params))
        key += [canonical_json(record.views), record.train_images]
        groups[canonical_json(key)].append(record)
    rows = [_row(group) for group in groups.values()]
    baselines = {name: [_baseline(name, row, rows) for row in rows] for name in BASELINES}
    for i, row in enumerate(rows):
        row.against = {name: _against(row, found[i]) for name, found in baselines.items()}
    odd = _on_other_images(rows)
    ranked = _rank([row for row in rows if id(row) not in odd], _shared_runs(rows))
    rest = [row for row in rows if row.rank is None]
    pairwise, notes = judge(ranked, rows, baselines, predictions)
    first = records[0]
    floor = first.scores["macro"].get("floor") or {}
    for row in rows:
        row.marks = marks(row, floor.get("auc"), other_images=id(row) in odd)
        row.published = published_flag(row.records[0], _auc(row) if row.complete else None)
        row.paper = paper_flag(row)
    return Table(
        dataset=first.dataset,
        split=first.split,
        split_digest=first.split_digest,
        labels=first.labels,
        rows=ranked + sorted(rest, key=lambda row: row.name),
        facts=first.data_facts,
        floor=floor,
        warnings=sorted(_warnings(records) | _preliminary(ranked)),
        tested_on=first.tested_on,
        pairwise=pairwise,
        notes=notes,
        identity=identity,
    )


def _rank(rows: list[Row], shared: frozenset[Fold]) -> list[Row]:
    """The rows with the shared runs and an AUC, by AUC; they get their places."""
    fair = [row for row in rows if row.runs == shared and _auc(row) is not None]
    ranked = sorted(fair, key=lambda row: _auc(row) or 0.0, reverse=True)
    for place, row in enumerate(ranked, start=1):
        row.rank = place
    return ranked


def _preliminary(ranked: list[Row]) -> set[str]:
    """A warning where rows are ranked that have a part of the folds only."""
    if not ranked or ranked[0].complete:
        return set()
    folds = sorted({fold for fold, _ in ranked[0].runs})
    which = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
    return {f"preliminary: ranked on {which}; the split has {ranked[0].folds}"}


def _warnings(records: list[Record]) -> set[str]:
    """What the records warn of; with the method's name where not all say so."""
    said: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for text in (*record.warnings, *paper_numbers(record)[1]):
            said[text].add(record.method)
    methods = {record.method for record in records}
    return {
        text if who == methods else f"{', '.join(sorted(who))}: {text}"
        for text, who in said.items()
    }


def _shared_runs(rows: list[Row]) -> frozenset[Fold]:
    """The folds and seeds that most rows have; of complete rows where there are any."""
    whole = [row for row in rows if row.complete] or rows
    sets = [frozenset(row.runs) for row in whole]
    return max(sets, key=lambda runs: (sets.count(runs), len(runs), sorted(runs)))


def _on_other_images(rows: list[Row]) -> set[int]:
    """The ids of rows that were scored on other images or labels than most in any run."""
    scored: dict[Fold, list[str]] = defaultdict(list)
    found: dict[int, list[tuple[Fold, str]]] = defaultdict(list)
    for row in rows:
        for record in row.records:
            run = (record.fold, record.seed)
            what = [
                record.scores.get("images"),
                record.scores.get("patients"),
                record.scores["macro"].get("labels_defined"),
            ]
            scored[run].append(canonical_json(what))
            found[id(row)].append((run, scored[run][-1]))
    usual = {run: max(texts, key=lambda t: (texts.count(t), t)) for run, texts in scored.items()}
    return {row for row, runs in found.items() if any(usual[run] != what for run, what in runs)}


def _auc(row: Row) -> float | None:
    value = row.values["auc"]
    return value.mean if value else None


def _row(records: list[Record]) -> Row:
    first = records[0]
    row = Row(first.method, first.preset, first.changed, records, first.folds)
    for metric in METRICS:
        row.values[metric] = Value.over(_by_fold(row, metric), _interval(records, metric))
    return row


def _by_fold(row: Row, metric: str) -> dict[Fold, float]:
    found = {}
    for record in row.records:
        value = record.scores["macro"].get(metric)
        if value is not None:
            found[record.fold, record.seed] = float(value)
    return found


def _interval(records: list[Record], metric: str) -> tuple[float, float] | None:
    if len(records) > 1:
        return None
    found = records[0].scores["macro"].get(f"{metric}_interval")
    return (float(found[0]), float(found[1])) if found else None


def _baseline(name: str, row: Row, rows: list[Row]) -> Row | None:
    """The newest row of a baseline on the raw images with this row's preset and budget, or None."""
    same = [
        r for r in rows
        if (r.method, r.preset) == (name, row.preset)
        and _budget(r) == _budget(row)
        and not r.records[0].views
    ]  # fmt: skip
    return max(same, key=lambda r: r.records[-1].created, default=None)


def _budget(row: Row) -> dict[str, Any]:
    """What was changed for every method of a sweep alike, and the training images that there were."""
    laid = {key: value for key, value in row.changed.items() if key.startswith("recipe.")}
    return {**laid, "train_images": row.records[0].train_images}


def _against(row: Row, baseline: Row | None) -> Value | None:
    if baseline is None or baseline is row:
        return None
    ours, theirs = _by_fold(row, "auc"), _by_fold(baseline, "auc")
    return Value.over({fold: ours[fold] - theirs[fold] for fold in ours if fold in theirs})
