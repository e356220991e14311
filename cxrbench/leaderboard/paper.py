"""The paper's own numbers beside ours: means over labels, accuracy, and shares of test images at 95 % recall."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cxrbench.core.record import Record
from cxrbench.core.reported import MEANS, SHARES
from cxrbench.leaderboard.labels import label_scores
from cxrbench.leaderboard.rows import METRICS, Row, Table, Value

# Where a record's scores by label hold the counts at a threshold, and who picked it.
THRESHOLDS = {
    "precision_at_95_recall": "test part",
    "precision_at_validation_threshold": "validation part",
}


@dataclass(frozen=True)
class Beside:
    """One metric of a row: as the paper reports it, and as it was measured here."""

    metric: str
    paper: float
    ours: Value | None


@dataclass(frozen=True)
class Shares:
    """TP, FP, TN and FN as shares of all test images, by the names of SHARES; they sum to 1.

    at: whose threshold it is, or where the paper printed them.
    """

    at: str
    values: dict[str, Value]


def paper_values(row: Row) -> dict[str, float]:
    """What the row's paper reports, by metric; records may come from strangers."""
    macro = (row.reported or {}).get("macro")
    given = macro.items() if isinstance(macro, dict) else ()
    return {
        name: float(value)
        for name, value in given
        if name in {*MEANS, *SHARES} and _is_share(value)
    }


def beside(row: Row) -> list[Beside]:
    """The metrics that the paper reports, shares aside."""
    return [
        Beside(MEANS[name], value, row.values.get(name) if name in METRICS else accuracy(row))
        for name, value in paper_values(row).items()
        if name in MEANS
    ]


def source(row: Row) -> str:
    """Where the paper's numbers stand."""
    return str((row.reported or {}).get("source", ""))


def accuracy(row: Row) -> Value | None:
    """Accuracy at a probability of one half: no score of every record, but `deblur` measures it."""
    return _over(row, _accuracy)


def _accuracy(record: Record) -> Any:
    curves = record.analyses.get("accuracy and curves")
    tested = curves and curves.facts.get(str(record.params.get("test_on")))
    mean = tested.get("mean") if isinstance(tested, dict) else None
    return mean.get("accuracy") if isinstance(mean, dict) else None


def shares(table: Table) -> dict[str, list[Shares]]:
    """Of a task with one label, by the rows' names: with either threshold, and the paper's own."""
    if len(table.labels) != 1:
        return {}
    found = {}
    for row in table.rows:
        ours = [each for point, at in THRESHOLDS.items() if (each := _measured(row, point, at))]
        if printed := {k: Value(v, None, 1) for k, v in paper_values(row).items() if k in SHARES}:
            ours.append(Shares(f"the paper's: {source(row)}", printed))
        if ours:
            found[row.name] = ours
    return found


def _measured(row: Row, point: str, at: str) -> Shares | None:
    label = row.records[0].labels[0]

    def reader(name: str) -> Callable[[Record], Any]:
        return lambda record: _confusion(record, label, point).get(name)

    means = {name: _over(row, reader(name)) for name in SHARES}
    known = {name: value for name, value in means.items() if value is not None}
    return Shares(at, known) if len(known) == len(SHARES) else None


def _confusion(record: Record, label: str, point: str) -> dict[str, Any]:
    scores = label_scores(record, label).get(point)
    found = scores.get("confusion") if isinstance(scores, dict) else None
    return found if isinstance(found, dict) else {}


def _over(row: Row, read: Callable[[Record], Any]) -> Value | None:
    """A share over a row's folds and seeds."""
    found = {(record.fold, record.seed): read(record) for record in row.records}
    return Value.over({run: float(value) for run, value in found.items() if _is_share(value)})


def _is_share(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= 1
