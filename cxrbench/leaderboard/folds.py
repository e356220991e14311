"""Evidence from folds: the corrected resampled t-test (Nadeau & Bengio 2003), with seeds.

n: rows, K: folds, T: seeds of a fold. The training parts of two folds overlap, so their results are
correlated and a plain t-test calls chance a difference far too often. The correction takes the correlation
between any two trainings on different folds as test / (train + test) of their variance. With seeds, the
variance of the mean is

    (1/K + test/train) B + test/train (1 - 1/T) W

B: variance of the folds' means, W: of the seeds within a fold. With one seed it is Nadeau and Bengio's; where
seeds of a fold differ as much as folds do, it expects what the form for repeated cross-validation (Bouckaert &
Frank 2004) expects. That form takes all K T runs for one sample; on folds that are the same for every seed, and
where seeds differ little, it calls chance a difference too often (tests/test_compare.py measures it).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cxrbench.leaderboard.compare import Estimate
from cxrbench.leaderboard.sentences import BY_FOLDS, LEVEL, NO_SPREAD_OF_FOLDS
from cxrbench.leaderboard.students_t import quantile, two_sided_p

FloatArray = NDArray[np.float64]
# Degrees of freedom that count the seeds, too. In 40,000 simulated tables it called chance a difference in at most
# 5.6 % with 5 folds, but in up to 10 % with 2: there the folds alone are counted.
SATTERTHWAITE_FROM = 5


class FoldEvidence:
    """Rows that were each tested on the same folds, every fold on other patients.

    auc: [n, R], a column a run; folds: [R], the fold of each column, at least two different ones.
    ratio: images tested over images trained on. assumed: a remark on the ratio, or empty.
    """

    def __init__(
        self, auc: FloatArray, folds: Sequence[int], ratio: float, assumed: str = ""
    ) -> None:
        names, fold = np.unique(folds, return_inverse=True)
        if names.size < 2:
            raise ValueError(f"{names.size} fold: a spread over folds needs two")
        self.folds, self.runs = int(names.size), len(folds)
        self.ratio, self.assumed = ratio, assumed
        count = np.bincount(fold)
        member = (fold == np.arange(names.size)[:, None]) / count[:, None]  # [K, R]
        self.means = auc @ member.T  # [n, K]
        self.within = auc - self.means[:, fold]  # [n, R]
        self.share = float(1 - np.mean(1 / count))  # 1 - 1/T

    def difference(self, one: int, other: int) -> Estimate:
        """Row `one` minus row `other`."""
        means = self.means[one] - self.means[other]
        found = self._estimate(means, self.within[one] - self.within[other])
        difference = float(means.mean())
        if found is None:
            return Estimate(difference, None, None, None, None, NO_SPREAD_OF_FOLDS)
        error, df, deviation = found
        if error == 0:  # equal in every run
            return Estimate(0.0, 0.0, 0.0, 1.0, 0.0, self._how(df))
        margin = quantile(LEVEL, df) * error
        return Estimate(
            difference,
            difference - margin,
            difference + margin,
            two_sided_p(difference / error, df),
            difference / deviation,
            self._how(df),
        )

    def interval(self, row: int) -> tuple[float, float] | None:
        """The 95 % interval of a row's mean AUC, cut at 0 and 1."""
        found = self._estimate(self.means[row], self.within[row])
        if found is None:
            return None
        error, df, _ = found
        mean, margin = float(self.means[row].mean()), quantile(LEVEL, df) * error
        return max(0.0, mean - margin), min(1.0, mean + margin)

    def draws(self, count: int = 2000, seed: int = 0) -> FloatArray:
        """[count, n] of what the rows' means might be: a multiplier bootstrap over folds and seeds.

        Weights of mean 0 on the folds' deviations keep how the rows move together; their spread is that of the
        test above. Drawing five folds with replacement would leave out both the correction and the few folds.
        """
        rng = np.random.default_rng(seed)
        df, free = self.folds - 1, self.runs - self.folds
        centred = self.means - self.means.mean(axis=1, keepdims=True)
        moved = rng.normal(size=(count, self.folds)) @ centred.T
        moved *= math.sqrt((1 / self.folds + self.ratio) / df)
        if free:
            seeds = rng.normal(size=(count, self.runs)) @ self.within.T
            moved += seeds * math.sqrt(self.ratio * self.share / free)
        scale = np.sqrt(df / rng.chisquare(df, size=(count, 1)))
        return np.asarray(self.means.mean(axis=1) + moved * scale)

    def _estimate(self, means: FloatArray, within: FloatArray) -> tuple[float, float, float] | None:
        """Standard error of the mean, degrees of freedom, deviation of a run."""
        free = self.runs - self.folds
        between = float(np.var(means, ddof=1))
        inner = float(np.sum(within**2)) / free if free else 0.0
        first = (1 / self.folds + self.ratio) * between
        second = self.ratio * self.share * inner
        if first + second < 1e-24:  # rounding of AUCs
            equal = abs(float(means.mean())) < 1e-12
            return (0.0, float(self.folds - 1), 0.0) if equal else None
        df = float(self.folds - 1)
        if free and self.folds >= SATTERTHWAITE_FROM:
            df = (first + second) ** 2 / (first**2 / df + second**2 / free)
        return math.sqrt(first + second), df, math.sqrt(between + self.share * inner)

    def _how(self, df: float) -> str:
        per_fold = self.runs / self.folds
        seeds = f" with {per_fold:.3g} seeds each" if per_fold > 1 else ""
        return BY_FOLDS.format(
            folds=self.folds, seeds=seeds, df=df, ratio=self.ratio, assumed=self.assumed
        )
