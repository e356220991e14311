"""Methods over independent data sets: places side by side, mean ranks, and which methods cannot be told apart.

D: data sets, n: methods. From six data sets on every two methods are compared by Wilcoxon's signed ranks of
their AUCs, corrected by Holm, after Demšar (JMLR 2006). His test of mean ranks is not used: its verdict on two methods
depends on which others are in the pool (Benavoli et al., JMLR 2016).
"""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cxrbench.leaderboard.compare import holm
from cxrbench.leaderboard.ranks import better_and_equal, no_diagram
from cxrbench.leaderboard.rows import Row, Table
from cxrbench.leaderboard.sentences import ALPHA, OVER_DATA_SETS

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OverDataSets:
    """Methods that are ranked on every one of some data sets, the best mean rank first.

    tables: one a data set. auc, ranks: [D, n], ties share the mean of their ranks. groups: first and last
    method of each run of neighbours of which no two were told apart; None where nothing may be tested.
    """

    methods: list[str]
    tables: list[Table]
    auc: FloatArray
    ranks: FloatArray
    groups: list[tuple[int, int]] | None
    how: str

    @property
    def mean_ranks(self) -> FloatArray:
        """Of each method, [n]."""
        return np.asarray(self.ranks.mean(axis=0))


def over_data_sets(tables: Sequence[Table]) -> OverDataSets | None:
    """What several data sets say together; None with fewer than two of them or of methods on all.

    Of a data set with several tables that one counts which ranks the most methods. Drawn films and tests on another
    data set than the training's are no data sets of their own.
    """
    chosen = _one_a_data_set(tables)
    named = [{row.name: row for row in table.rows if row.rank} for table in chosen]
    methods = sorted(set.intersection(*map(set, named))) if named else []
    if len(chosen) < 2 or len(methods) < 2:
        return None
    auc = np.array([[_auc(rows[name]) for name in methods] for rows in named])
    ranks = _ranks(auc)
    order = np.argsort(ranks.mean(axis=0), kind="stable")
    auc, ranks, methods = auc[:, order], ranks[:, order], [methods[i] for i in order]
    why_not = no_diagram([table.dataset for table in chosen])
    groups = None if why_not else _groups(len(methods), _told_apart(auc))
    return OverDataSets(methods, chosen, auc, ranks, groups, why_not or OVER_DATA_SETS)


def _one_a_data_set(tables: Sequence[Table]) -> list[Table]:
    found: dict[str, list[Table]] = defaultdict(list)
    for table in tables:
        if table.tested_on is None and not table.facts.get("phantom"):
            found[table.dataset].append(table)
    most = [
        max(same, key=lambda table: (sum(row.rank is not None for row in table.rows), table.title))
        for same in found.values()
    ]
    return sorted(most, key=lambda table: table.title)


def _auc(row: Row) -> float:
    value = row.values["auc"]
    assert value is not None  # only rows with an AUC have a rank
    return value.mean


def _ranks(auc: FloatArray) -> FloatArray:
    """1 for the highest AUC of each data set."""
    better, equal = better_and_equal(auc)
    return np.asarray(better + (equal + 1) / 2)


def _told_apart(auc: FloatArray) -> set[tuple[int, int]]:
    from scipy.stats import wilcoxon  # a second of imports that few tables need

    pairs = list(combinations(range(auc.shape[1]), 2))
    p = []
    for i, j in pairs:
        difference = auc[:, i] - auc[:, j]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ties among few data sets: the sentence says it
            p.append(float(wilcoxon(difference).pvalue) if difference.any() else 1.0)
    return {pair for pair, adjusted in zip(pairs, holm(p), strict=True) if adjusted < ALPHA}


def _groups(count: int, apart: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest runs of neighbours in which no two were told apart."""
    runs: list[tuple[int, int]] = []
    for first in range(count):
        last = first
        while last + 1 < count and not any((i, last + 1) in apart for i in range(first, last + 1)):
            last += 1
        if last > first and not any(a <= first and last <= b for a, b in runs):
            runs.append((first, last))
    return runs
