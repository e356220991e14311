"""Robustness curves of a table's rows, where `cxrbench robustness` has measured them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from cxrbench.core.errors import CxrbenchError
from cxrbench.core.record import Record
from cxrbench.core.robust import PLAIN, Robustness, robustness_path
from cxrbench.core.store import Store, read_json
from cxrbench.leaderboard.rows import Row

Line = list[tuple[float, float]]  # (level, macro AUC), the undisturbed films at level 0


@dataclass(frozen=True)
class Disturbed:
    """Of each kind of disturbance its unit and a line a row; rows of which some or all runs lack it."""

    units: dict[str, str] = field(default_factory=dict)
    lines: dict[str, dict[str, Line]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)  # by row, films of a run at most

    def drop(self, kind: str, name: str) -> float:
        """AUC that a row loses at the strongest level."""
        line = self.lines[kind][name]
        return line[0][1] - line[-1][1]


def disturbed(rows: Sequence[Row], store: Store) -> Disturbed:
    """What the store knows of these rows; means over their runs, at levels that all of them have."""
    found = Disturbed()
    for row in rows:
        runs = [_read(record, store) for record in row.records]
        known = [run for run in runs if run is not None]
        if len(known) < len(runs):
            if known:
                found.missing.append(f"{row.name} ({len(known)} of {len(runs)} runs)")
            continue
        for kind, line in _lines(known).items():
            found.units[kind] = known[0].units.get(kind, "")
            found.lines.setdefault(kind, {})[row.name] = line
        found.images[row.name] = max(run.images for run in known)
    return found


def _read(record: Record, store: Store) -> Robustness | None:
    path = robustness_path(store, record)
    if not path.is_file():
        return None
    try:
        found = Robustness.parse(read_json(path), where=str(path))
    except CxrbenchError:
        return None  # torn: it counts as not measured, and the page says so
    return found if found.final == record.final and found.has(PLAIN, 0.0) else None


def _lines(runs: Sequence[Robustness]) -> dict[str, Line]:
    values: dict[tuple[str, float], list[float]] = defaultdict(list)
    for run in runs:
        for kind, points in run.curves.items():
            for point in points:
                if point.auc is not None:
                    values[kind, point.level].append(point.auc)
    whole = {key: fmean(found) for key, found in values.items() if len(found) == len(runs)}
    plain = whole.pop((PLAIN, 0.0), None)
    lines: dict[str, Line] = {}
    for (kind, level), auc in sorted(whole.items()):
        if plain is not None:
            lines.setdefault(kind, [(0.0, plain)]).append((level, auc))
    return lines
