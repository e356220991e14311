"""The statistics of one table: which evidence there is, and what it says of every row and pair."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev, variance

import numpy as np

from cxrbench.core.record import Record
from cxrbench.leaderboard import ranks, sentences
from cxrbench.leaderboard.compare import Estimate, Evidence, Pair, judged
from cxrbench.leaderboard.folds import FoldEvidence
from cxrbench.leaderboard.patients import PatientEvidence
from cxrbench.leaderboard.predictions import Reader
from cxrbench.leaderboard.rows import Row, Spread


def judge(
    ranked: list[Row],
    rows: list[Row],
    baselines: Mapping[str, Sequence[Row | None]],
    read: Reader | None,
) -> tuple[list[Pair], list[str]]:
    """Fill in what the statistics say of `rows`, of which the `ranked` have the same runs; pairs and notes.

    baselines: by name, the baseline's row that belongs to each of `rows`, or None.
    """
    evidence = _evidence(ranked, read)
    place = {id(row): i for i, row in enumerate(ranked)}
    for name, theirs in baselines.items():
        _compare(rows, name, theirs, evidence, place)
    for row in rows:
        row.spread = _spread(row)
    for i, row in enumerate(ranked):
        value = row.values["auc"]
        row.auc_interval = (value and value.interval) or evidence.interval(i)
    pairs, how = _pairs(ranked, evidence)
    _place(ranked, pairs, evidence)
    return pairs, _notes(ranked, evidence, how)


def _evidence(ranked: list[Row], read: Reader | None) -> FoldEvidence | PatientEvidence:
    """Folds where there are several, each tested on other patients; else the patients of the one test part."""
    auc = [_auc_by_run(row) for row in ranked]
    # A fold whose test part defines no AUC says nothing of any row.
    runs = sorted(set.intersection(*map(set, auc))) if auc else []
    folds = [fold for fold, _ in runs]
    if len(set(folds)) > 1 and ranked[0].records[0].tested_on is None:
        values = np.array([[found[run] for run in runs] for found in auc])
        ratio, assumed = test_over_train(ranked[0].records[0], set(folds))
        return FoldEvidence(values, folds, ratio, assumed)
    found = [[read(record) if read else None for record in _in_order(row)] for row in ranked]
    predictions = [None if None in runs else [p for p in runs if p] for runs in found]
    means = [row.values["auc"] for row in ranked]
    return PatientEvidence([value.mean for value in means if value], predictions)


def test_over_train(record: Record, folds: set[int]) -> tuple[float, str]:
    """Images tested over images trained on, mean over folds, and a remark where the record does not say.

    Of K folds one tests, the next validates and the others train (data/splits.py).
    """
    images = [_images(record, fold) for fold in range(record.folds)]
    if record.folds > 2 and all(images):
        parts = [(images[fold], images[(fold + 1) % record.folds]) for fold in folds]
        return fmean(test / (sum(images) - test - val) for test, val in parts), ""
    return 1 / max(1, record.folds - 2), sentences.ASSUMED.format(folds=record.folds)


def _images(record: Record, fold: int) -> int:
    """Images of a fold as the record counts them; 0 where it does not."""
    counts = record.data_facts.get("counts")
    held = counts.get(str(fold)) if isinstance(counts, dict) else None
    count = held.get("images") if isinstance(held, dict) else None
    return count if isinstance(count, int) and count > 0 else 0


def _auc_by_run(row: Row) -> dict[tuple[int, int], float]:
    found = {(r.fold, r.seed): r.scores["macro"].get("auc") for r in row.records}
    return {run: float(value) for run, value in found.items() if value is not None}


def _in_order(row: Row) -> list[Record]:
    return sorted(row.records, key=lambda record: (record.fold, record.seed))


def _compare(
    rows: list[Row],
    name: str,
    baselines: Sequence[Row | None],
    evidence: Evidence,
    place: Mapping[int, int],
) -> None:
    """Every row against its row of one baseline: one family."""
    asked: list[tuple[Row, Estimate]] = []
    for row, baseline in zip(rows, baselines, strict=True):
        row.comparisons[name] = None
        difference = row.against.get(name)
        if difference is None or baseline is None:
            continue
        if id(row) in place and id(baseline) in place:
            found = evidence.difference(place[id(row)], place[id(baseline)])
        else:
            found = Estimate(difference.mean, None, None, None, None, sentences.OTHER_RUNS)
        asked.append((row, found))
    family = judged([(name, e) for _, e in asked], f"methods compared with {name} here")
    for (row, _), comparison in zip(asked, family, strict=True):
        row.comparisons[name] = comparison


def _pairs(ranked: list[Row], evidence: Evidence) -> tuple[list[Pair], list[str]]:
    """Every two ranked rows, one family; and how they were compared, each sentence once, tests first."""
    places = list(combinations(range(len(ranked)), 2))
    asked = [(ranked[j].name, evidence.difference(i, j)) for i, j in places]
    family = judged(asked, "pairs of this table")
    how = [e.how for _, e in sorted(asked, key=lambda pair: pair[1].p is None)]
    pairs = [Pair(i, j, found) for (i, j), found in zip(places, family, strict=True)]
    return pairs, list(dict.fromkeys(how))


def _place(ranked: list[Row], pairs: list[Pair], evidence: FoldEvidence | PatientEvidence) -> None:
    """Tie groups and rank intervals, where there is something to judge by."""
    found = {(pair.first, pair.second): pair.comparison for pair in pairs}
    if not any(comparison.tested for comparison in found.values()):
        return

    def told_apart(one: int, other: int) -> bool | None:
        comparison = found[one, other]
        return comparison.told_apart if comparison.tested else None

    for row, tie in zip(ranked, ranks.tie_groups(len(ranked), told_apart), strict=True):
        row.tie = tie
    draws = evidence.draws()
    if draws is not None:
        for row, interval in zip(ranked, ranks.rank_intervals(draws), strict=True):
            row.rank_interval = interval


def _spread(row: Row) -> Spread:
    """Over folds and over seeds, each by itself."""
    by_fold: dict[int, list[float]] = defaultdict(list)
    for (fold, _), value in _auc_by_run(row).items():
        by_fold[fold].append(value)
    means = [fmean(values) for values in by_fold.values()]
    several = [values for values in by_fold.values() if len(values) > 1]
    seeds = None
    if several:
        squares = sum((len(values) - 1) * variance(values) for values in several)
        seeds = math.sqrt(squares / sum(len(values) - 1 for values in several))
    return Spread(stdev(means) if len(means) > 1 else None, seeds)


def _notes(
    ranked: list[Row], evidence: FoldEvidence | PatientEvidence, how: list[str]
) -> list[str]:
    """What a reader of the table must know of its statistics."""
    notes = []
    tested = any(row.tie for row in ranked)
    by_folds = isinstance(evidence, FoldEvidence)
    if tested:
        # Degrees of freedom differ from pair to pair; the sentence of one stands for all.
        notes += [how[0], *([sentences.MEAN_OVER_FOLDS] if by_folds else [])]
        notes += [sentences.SUMMARY, sentences.TIES]
    elif how:
        notes += [*how, sentences.UNTESTED]
    if any(row.rank_interval for row in ranked):
        draws = sentences.OF_FOLDS if by_folds else sentences.OF_PATIENTS
        notes.append(sentences.RANK_INTERVALS.format(**draws))
    if isinstance(evidence, FoldEvidence) and tested and evidence.folds < sentences.FEW_FOLDS:
        notes.append(sentences.ONLY_FOLDS.format(folds=evidence.folds))
    if ranked:
        several = ranked[0].spread.seeds is not None
        notes.append(sentences.SEEDS if several else sentences.ONE_SEED)
    return notes
