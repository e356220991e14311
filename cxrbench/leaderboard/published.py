"""Our results beside published ones: does a row land in the range of what others report on the same split?"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cxrbench.core.frozen import Frozen
from cxrbench.core.record import Record
from cxrbench.core.yamlfile import read_yaml
from cxrbench.leaderboard.sentences import PLACES

FILE = Path(__file__).with_name("published.yaml")

Place = Literal["below", "within", "suspiciously above"]
SplitTag = Literal["same split", "different split", "unknown split"]


@dataclass(frozen=True)
class PublishedFlag:
    """Where a row's macro AUC stands beside the range of published results on the same split."""

    place: Place
    low: float
    high: float
    source: str
    how: str


@dataclass(frozen=True)
class PaperFlag:
    """The paper's own macro AUC; `inside` says whether it lies in our interval, None where it cannot be said."""

    value: float
    split: str | None
    tag: SplitTag
    inside: bool | None
    source: str
    how: str


class Range(Frozen):
    """Published macro AUCs of one data set, split and number of labels."""

    dataset: str
    split: str
    labels: int | None = None
    params: dict[str, Any] = {}
    methods: list[str] = []
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    about: float = Field(0.0, ge=0, description="our allowance on both sides")
    source: str

    def fits(self, record: Record) -> bool:
        """Whether the record is on the same whole data, split and labels."""
        given = record.dataset_params
        return (
            (record.dataset, record.split) == (self.dataset, self.split)
            and self.labels in (None, len(record.labels))
            and all(given.get(key) == value for key, value in self.params.items())
            and (not self.methods or record.method in self.methods)
        )


@lru_cache(maxsize=1)
def published_ranges() -> tuple[Range, ...]:
    """The entries of `published.yaml`."""
    entries = enumerate(read_yaml(FILE))
    return tuple(Range.parse(entry, where=f"{FILE}: entry {i}") for i, entry in entries)


def published_flag(record: Record, auc: float | None) -> PublishedFlag | None:
    """Where `auc`, the mean over all folds, stands; None where nothing comparable is published.

    A part of a data set, other test images and drawn films have no published range.
    """
    whole = record.data_facts.get("complete", True) and not record.data_facts.get("phantom")
    if auc is None or not whole or record.tested_on is not None:
        return None
    found = next((entry for entry in published_ranges() if entry.fits(record)), None)
    if found is None:
        return None
    low, high = found.low - found.about, found.high + found.about
    place: Place = "below" if auc < low else "suspiciously above" if auc > high else "within"
    allowance = f" ± {found.about:g} of our own" if found.about else ""
    span = f"{found.low:.3f}" if found.low == found.high else f"{found.low:.3f} to {found.high:.3f}"
    how = f"Published: {span}{allowance} ({found.source}). Ours: {auc:.4f}. {PLACES[place]}"
    return PublishedFlag(place, low, high, found.source, how)
