"""What a reader must know at a glance: marks on rows, and the paper's own number beside ours."""

import math
from typing import Any

from cxrbench.core.record import Record
from cxrbench.leaderboard.published import PaperFlag, SplitTag
from cxrbench.leaderboard.rows import Row
from cxrbench.leaderboard.sentences import MARKS, REPRODUCED

# The splits whose patients are published; a paper's own five folds are not ours, whatever they are called.
PUBLISHED_SPLITS = {"official", "radiologist"}
KNOWN_WEIGHTS = {"none", "imagenet", "coco"}


def marks(row: Row, floor: Any, *, other_images: bool) -> list[str]:
    """The keys of MARKS that hold for a row; `floor` is a constant classifier's AUC."""
    first, test = row.records[0], row.records[0].tested_on
    facts = [first.data_facts, *([test.data_facts] if test else [])]
    value = row.values.get("auc")
    lowest = row.auc_interval or ((value.mean,) if value else (math.inf,))
    found = {
        "incomplete": not row.complete,
        "other images": other_images,
        "dirty": any(_dirty(record) for record in row.records),
        "open recipe": bool(row.changed),
        "phantom": any(fact.get("phantom") for fact in facts),
        "partial data": any(not fact.get("complete", True) for fact in facts),
        "pretraining unknown": any(_weights(record) - KNOWN_WEIGHTS for record in row.records),
        "halved": any(s.facts.get("halvings") for r in row.records for s in r.stages),
        "overlap": any(t.startswith("OVERLAP") for r in row.records for t in r.warnings),
        "at the floor": isinstance(floor, int | float) and lowest[0] <= floor,
    }
    return [name for name in MARKS if found[name]]


def _dirty(record: Record) -> bool:
    """Whether any part was made by code that no commit names."""
    states = [record.provenance, *(stage.provenance for stage in record.stages)]
    return any(_mapping(state.get("code")).get("dirty") is not False for state in states)


def _weights(record: Record) -> set[str]:
    """Where initial weights came from."""
    given = [_mapping(stage.facts.get("weights")) for stage in record.stages]
    return {str(weights.get("source", "none")) for weights in given}


def _mapping(value: Any) -> dict[str, Any]:
    """A record's free part, or nothing: records may come from strangers."""
    return value if isinstance(value, dict) else {}


def paper_flag(row: Row) -> PaperFlag | None:
    """The paper's macro AUC beside ours; None where the paper gives none for this data set."""
    reported = _mapping(row.reported)
    value, ours = _mapping(reported.get("macro")).get("auc"), row.values.get("auc")
    if not isinstance(value, int | float):
        return None
    split, source = reported.get("split"), str(reported.get("source", ""))
    tag = _split_tag(row.records[0], split)
    inside = None
    if tag == "same split" and row.auc_interval and row.complete:
        inside = row.auc_interval[0] <= value <= row.auc_interval[1]
    on = f"on split {split!r}" if split else "without naming the split"
    mean = f"{ours.mean:.4f}" if ours else "undefined"
    how = f"The paper reports {value:.4f} {on}: {tag}. Ours: {mean}. {REPRODUCED[inside]} Source: {source}."
    return PaperFlag(float(value), split, tag, inside, source, how)


def _split_tag(record: Record, split: str | None) -> SplitTag:
    if not split:
        return "unknown split"
    same = split == record.split and split in PUBLISHED_SPLITS
    whole = record.data_facts.get("complete", True) and record.tested_on is None
    return "same split" if same and whole else "different split"
