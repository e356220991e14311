"""What a report is about: a row of a leaderboard, with all that stands behind it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cxrbench.core.digest import digest
from cxrbench.core.errors import CxrbenchError
from cxrbench.core.record import Record, StageRecord
from cxrbench.core.registry import Registry
from cxrbench.core.store import Store
from cxrbench.leaderboard.predictions import predictions_in
from cxrbench.leaderboard.rows import Row, Table
from cxrbench.leaderboard.site import curves, subgroups
from cxrbench.leaderboard.site.predictions import Part, read_part


@dataclass
class Subject:
    """A method with one setting on one task.

    elsewhere: the same method and preset in the tables of other test data. What needs predictions takes them from
    `store` and is empty where one run's are not there.
    """

    table: Table
    row: Row
    store: Store
    elsewhere: Sequence[tuple[Table, Row]] = ()
    registry: Registry = field(default_factory=Registry)

    @property
    def first(self) -> Record:
        """The record that stands for what all of the row have in common."""
        return self.row.records[0]

    @property
    def identity(self) -> str:
        """Digest of the task and of the setting; runs that are added do not change it."""
        record = self.first
        setting = [record.method, record.method_version, record.preset, record.params, record.views]
        return digest([self.table.identity, *setting, record.train_images])

    @cached_property
    def parts(self) -> list[Part]:
        """The test part of every run; empty where one is not in the store."""
        read = predictions_in(self.store)
        found = [read_part(record, self.store, read) for record in self.row.records]
        present = [part for part in found if part is not None]
        return present if len(present) == len(found) else []

    @cached_property
    def splits(self) -> list[subgroups.Split]:
        """Macro AUC by sex, age and view position, where predictions say them."""
        return subgroups.splits(self.parts) if self.parts else []

    @cached_property
    def calibration(self) -> tuple[float, float, float] | None:
        """(expected calibration error, Brier score, Brier score of the prevalence), means over labels."""
        if not self.parts:
            return None
        found = [curves.reliability(self.parts, k) for k in range(len(self.table.labels))]
        return curves.mean_calibration(found)

    @cached_property
    def summary(self) -> str:
        """What the code says the method is; empty for a method that is not installed."""
        try:
            return self.registry.entry("methods", self.first.method).summary
        except CxrbenchError:
            return ""

    def home(self, dataset: str, version: int) -> tuple[str, str]:
        """(address, licence) of a data set as its reader of this version knows them; empty if unknown."""
        try:
            cls = self.registry.load("datasets", dataset)
        except CxrbenchError:
            return "", ""
        return (cls.home, cls.licence) if cls.version == version else ("", "")

    @property
    def fits(self) -> list[StageRecord]:
        """The trainings of the first run."""
        return [stage for stage in self.first.stages if stage.kind == "fit"]

    @property
    def stages(self) -> Iterator[StageRecord]:
        """The stages of all runs."""
        for record in self.row.records:
            yield from record.stages

    @property
    def recipes(self) -> list[tuple[str, dict[str, Any]]]:
        """(where, recipe) of every training that the parameters describe; the method's own is ''."""
        return list(_recipes(self.first.params))


def at(tree: Any, *path: str) -> Any:
    """A value deep in a record, or None: records may come from strangers."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def mapping(value: Any) -> dict[str, Any]:
    """A record's free part, or nothing."""
    return value if isinstance(value, dict) else {}


def _recipes(tree: dict[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in tree.items():
        if key == "recipe" and isinstance(value, dict):
            yield where, value
        elif isinstance(value, dict):
            yield from _recipes(value, f"{where}.{key}".lstrip("."))
