"""What a leaderboard consists of: tables of rows of values."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from cxrbench.core.record import ExternalTest, Record
from cxrbench.leaderboard.compare import Comparison, Pair
from cxrbench.leaderboard.published import PaperFlag, PublishedFlag
from cxrbench.leaderboard.withdrawn import paper_numbers

BASELINES = ("densenet121", "vgg16")
METRICS = ("auc", "pr_auc", "precision_at_95_recall", "precision_at_validation_threshold",
           "recall_at_validation_threshold", "validation_minus_test_auc")  # fmt: skip
Fold = tuple[int, int]  # (fold, seed)


@dataclass(frozen=True)
class Value:
    """A metric over folds; `interval` is the bootstrap's where there is one fold only."""

    mean: float
    sd: float | None
    n: int
    interval: tuple[float, float] | None = None

    @classmethod
    def over(
        cls, runs: Mapping[Fold, float], interval: tuple[float, float] | None = None
    ) -> "Value | None":
        """Mean and standard deviation over runs; None where there are none."""
        if not runs:
            return None
        numbers = list(runs.values())
        sd = stdev(numbers) if len(numbers) > 1 else None
        return cls(mean(numbers), sd, len(numbers), interval)


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the AUC: over folds (of their means over seeds) and over seeds within a fold."""

    folds: float | None
    seeds: float | None


@dataclass
class Row:
    """One method with one setting on one table's data.

    rank: place by AUC. tie: first and last place of the group that it cannot be told apart from the
    best of. rank_interval: places that it takes in 95 % of resamples. auc_interval: 95 % interval of the
    mean AUC, over folds or patients. marks: keys of `sentences.MARKS`, what a reader must know at a glance.
    """

    method: str
    preset: str
    changed: dict[str, Any]
    records: list[Record]
    folds: int
    values: dict[str, Value | None] = field(default_factory=dict)
    against: dict[str, Value | None] = field(default_factory=dict)  # baseline -> AUC difference
    rank: int | None = None
    comparisons: dict[str, Comparison | None] = field(default_factory=dict)  # by baseline
    tie: tuple[int, int] | None = None
    rank_interval: tuple[int, int] | None = None
    auc_interval: tuple[float, float] | None = None
    published: PublishedFlag | None = None
    paper: PaperFlag | None = None
    spread: Spread = Spread(None, None)
    marks: list[str] = field(default_factory=list)

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
        if self.records[0].train_images is not None:
            extra.append(f"{self.records[0].train_images} training images")
        method = f"{self.method} on {over}" if over else self.method
        return f"{method} ({', '.join(extra)})"

    @property
    def place(self) -> str:
        """The place as shown: `1-2` for a tie, a dash where the row is not ranked."""
        if self.rank is None:
            return "–"
        first, last = self.tie or (self.rank, self.rank)
        return str(first) if first == last else f"{first}-{last}"

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
        """The paper's numbers for this row, less those that are withdrawn."""
        return paper_numbers(self.records[0])[0]


@dataclass
class Table:
    """Rows on the same images, labels and split.

    identity: digest of all that its records have in common; titles of two tables may be alike. pairwise: every two ranked rows. notes: how the table's statistics were computed and what they cannot say.
    """

    dataset: str
    split: str
    split_digest: str
    labels: list[str]
    rows: list[Row]
    facts: dict[str, Any]
    floor: dict[str, Any]
    warnings: list[str]
    tested_on: ExternalTest | None = None
    pairwise: list[Pair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    identity: str = ""

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
