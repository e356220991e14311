"""What is known of a run's model on disturbed films: a file beside the records."""

from pathlib import Path
from typing import Any

from cxrbench.core.frozen import Frozen
from cxrbench.core.record import Record
from cxrbench.core.store import Store

PLAIN = "undisturbed"  # the kind under which films as they are stand, at level 0


class Level(Frozen):
    """Scores at one level: macro and by label; None where a label has one class only."""

    level: float
    auc: float | None
    pr_auc: float | None
    labels: dict[str, dict[str, float | None]]


class Robustness(Frozen):
    """Scores of one run on disturbed test films; `curves` by kind, levels in rising order."""

    schema_version: int = 1
    final: str  # digest of the run's score stage
    images: int
    units: dict[str, str]
    curves: dict[str, list[Level]]

    def has(self, kind: str, level: float) -> bool:
        """Whether a level is measured."""
        return any(point.level == level for point in self.curves.get(kind, []))

    def having(self, kind: str, level: float, scores: dict[str, Any]) -> "Robustness":
        """The same with one level more."""
        points = [*self.curves.get(kind, []), Level(level=level, **scores)]
        curves = {**self.curves, kind: sorted(points, key=lambda point: point.level)}
        return self.model_copy(update={"curves": curves})


def robustness_path(store: Store, record: Record) -> Path:
    """Where the file of a run lies in its store; digests in records may come from strangers."""
    name = "".join(c for c in record.final if c.isalnum())[:32]
    return store.root / "robustness" / f"{name}.json"
