"""Records to tables: a pure function; rows that cannot be compared never share a table.

Mean and standard deviation run over folds (and seeds). Rows are ranked that have the
same folds and seeds: those that most rows of the table have. A difference is paired: the mean over the folds
that both methods have of method minus baseline.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from cxrbench.core.digest import canonical_json, digest
from cxrbench.core.record import ExternalTest, Record

BASELINES = ("densenet121", "vgg16")
METRICS = ("auc", "pr_auc", "precision_at_95_recall", "precision_at_validation_threshold",
           "recall_at_validation_threshold", "validation_minus_test_auc")  # fmt: skip
REMARKS = {"data_facts", "overlap", "unmatched_data"}  # of a test set: no part of its identity
Fold = tuple[int, int]  # (fold, seed)


@dataclass(frozen=True)
class Value:
    """A metric over folds; `interval` is the bootstrap's where there is one fold only."""

    mean: float
    sd: float | None
    n: int
    interval: tuple[float, float] | None = None


@dataclass
class Row:
    """One method with one setting on one table's data."""

    method: str
    preset: str
    changed: dict[str, Any]
    records: list[Record]
    folds: int
    values: dict[str, Value | None] = field(default_factory=dict)
    against: dict[str, Value | None] = field(default_factory=dict)  # baseline -> AUC difference
    rank: int | None = None

    @property
    def name(self) -> str:
        """The method, its preset, and what was changed besides."""
        shown = [
            f"{key.removeprefix('recipe.')}={value}"
            for key, value in self.changed.items()
            # A change laid over every stage is shown once.
            if not any(key.endswith(f".{other}") for other in self.changed)
        ]
        over = " on ".join(str(view["name"]) for view in reversed(self.records[0].views))
        precision = self.records[0].params.get("recipe", {}).get("precision", "32-true")
        extra = [self.preset, *shown, *([precision] if precision != "32-true" else [])]
        method = f"{self.method} on {over}" if over else self.method
        return f"{method} ({', '.join(extra)})"

    @property
    def done(self) -> int:
        """Folds with a record, at the seed that has the fewest."""
        per_seed: dict[int, set[int]] = defaultdict(set)
        for record in self.records:
            per_seed[record.seed].add(record.fold)
        return min(len(found) for found in per_seed.values())

    @property
    def runs(self) -> set[Fold]:
        """The folds and seeds that have a record."""
        return {(record.fold, record.seed) for record in self.records}

    @property
    def complete(self) -> bool:
        """Whether every fold is there."""
        return self.done == self.folds

    @property
    def reported(self) -> dict[str, Any] | None:
        """The paper's numbers for this data set."""
        return self.records[0].reported


@dataclass
class Table:
    """Rows on the same images, labels and split."""

    dataset: str
    split: str
    split_digest: str
    labels: list[str]
    rows: list[Row]
    facts: dict[str, Any]
    floor: dict[str, Any]
    warnings: list[str]
    tested_on: ExternalTest | None = None

    @property
    def title(self) -> str:
        """Data set, split as it may be called, and its digest."""
        home = f"{self.dataset} · {self.split_name} · {self.split_digest[:8]}"
        if self.tested_on is None:
            return home
        test = self.tested_on
        part = test.split if test.data_facts.get("complete", True) else f"part of {test.split}"
        return f"{home} → {test.dataset} · {part} · {test.split_digest[:8]}"

    @property
    def test_facts(self) -> dict[str, Any]:
        """Counts of the data set that is tested on."""
        return self.tested_on.data_facts if self.tested_on else self.facts

    @property
    def split_name(self) -> str:
        """The split; a part of the images is never called by the whole's name."""
        return self.split if self.facts.get("complete", True) else f"part of {self.split}"


def collect(records: Iterable[Record]) -> list[Table]:
    """Tables, one for each set of comparable records, rows by rank."""
    newest: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: (r.created, r.id)):
        newest[record.final] = record  # a repeat of the same stages is the same result
    tables: dict[str, list[Record]] = defaultdict(list)
    for record in newest.values():
        same = {
            "dataset": record.dataset,
            "version": record.dataset_version,  # the only trace of how drawn images look
            "params": record.dataset_params,
            "revision": record.revision,
            "split": record.split_digest,
            "labels": record.labels,
            "protocol": record.scores.get("protocol"),
            "tested_on": record.tested_on and record.tested_on.model_dump(exclude=REMARKS),
        }
        tables[digest(same)].append(record)
    return sorted((_table(group) for group in tables.values()), key=lambda table: table.title)


def _table(records: list[Record]) -> Table:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        key = [record.method, record.method_version, record.preset, canonical_json(record.params)]
        key.append(canonical_json(record.views))
        groups[canonical_json(key)].append(record)
    rows = [_row(group) for group in groups.values()]
    for row in rows:
        row.against = {name: _against(row, _baseline(name, row, rows)) for name in BASELINES}
    shared = _shared_runs(rows)
    fair = [row for row in rows if row.runs == shared and row.values["auc"]]
    ranked = sorted(fair, key=_auc, reverse=True)
    for place, row in enumerate(ranked, start=1):
        row.rank = place
    rest = [row for row in rows if row.rank is None]
    first = records[0]
    warnings = _warnings(records)
    if ranked and not ranked[0].complete:
        folds = sorted({fold for fold, _ in shared})
        which = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
        warnings.add(f"preliminary: ranked on {which}; the split has {first.folds}")
    return Table(
        dataset=first.dataset,
        split=first.split,
        split_digest=first.split_digest,
        labels=first.labels,
        rows=ranked + sorted(rest, key=lambda row: row.name),
        facts=first.data_facts,
        floor=first.scores["macro"].get("floor") or {},
        warnings=sorted(warnings),
        tested_on=first.tested_on,
    )


def _warnings(records: list[Record]) -> set[str]:
    """What the records warn of; with the method's name where not all say so."""
    said: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for text in record.warnings:
            said[text].add(record.method)
    methods = {record.method for record in records}
    return {
        text if who == methods else f"{', '.join(sorted(who))}: {text}"
        for text, who in said.items()
    }


def _shared_runs(rows: list[Row]) -> frozenset[Fold]:
    """The folds and seeds that most rows have; the larger set where two are equally common."""
    sets = [frozenset(row.runs) for row in rows]
    return max(sets, key=lambda runs: (sets.count(runs), len(runs), sorted(runs)))


def _auc(row: Row) -> float:
    value = row.values["auc"]
    return value.mean if value else 0.0


def _row(records: list[Record]) -> Row:
    first = records[0]
    row = Row(first.method, first.preset, first.changed, records, first.folds)
    for metric in METRICS:
        row.values[metric] = _value(_by_fold(row, metric), _interval(records, metric))
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


def _value(values: dict[Fold, float], interval: tuple[float, float] | None = None) -> Value | None:
    if not values:
        return None
    numbers = list(values.values())
    sd = stdev(numbers) if len(numbers) > 1 else None
    return Value(mean(numbers), sd, len(numbers), interval)


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
    """What was changed for every method of a sweep alike."""
    return {key: value for key, value in row.changed.items() if key.startswith("recipe.")}


def _against(row: Row, baseline: Row | None) -> Value | None:
    if baseline is None or baseline is row:
        return None
    ours, theirs = _by_fold(row, "auc"), _by_fold(baseline, "auc")
    return _value({fold: ours[fold] - theirs[fold] for fold in ours if fold in theirs})
