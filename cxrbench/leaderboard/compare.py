"""Comparisons of methods on the same test images: difference, interval, test, and the sentence that explains them.

What is compared are rows of a table by their macro AUC. `Evidence` (folds.py, patients.py) estimates single
differences; here they are adjusted for how many were asked and given a verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cxrbench.leaderboard.sentences import ALPHA, FAMILY, ROPE, VERDICTS

Verdict = Literal["better", "worse", "practically equal", "not told apart", "not tested"]


@dataclass(frozen=True)
class Estimate:
    """One difference in AUC by itself; `low` to `p` are None where nothing supports them."""

    difference: float
    low: float | None
    high: float | None
    p: float | None
    effect: float | None
    how: str


@dataclass(frozen=True)
class Comparison:
    """A method minus a baseline, in AUC.

    low, high: the 95 % interval of this difference alone. p: two-sided, of this difference alone;
    p_adjusted: corrected for the comparisons made beside it. effect: the difference in units of its standard
    deviation over folds (Cohen's d), where there are folds. how: sentences for a reader.
    """

    baseline: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    effect: float | None
    verdict: Verdict
    how: str

    @property
    def tested(self) -> bool:
        """Whether a test was possible at all."""
        return self.verdict != "not tested"

    @property
    def told_apart(self) -> bool:
        """Whether one of the two was shown to be better by an amount that matters."""
        return self.verdict in ("better", "worse")


@dataclass(frozen=True)
class Pair:
    """Two ranked rows, by their places in `Table.rows`; the comparison is first minus second."""

    first: int
    second: int
    comparison: Comparison


class Evidence(Protocol):
    """What tells the ranked rows of a table apart."""

    def difference(self, one: int, other: int) -> Estimate:
        """Row `one` minus row `other`."""


def judged(
    estimates: Sequence[tuple[str, Estimate]], what: str = "comparisons of this table"
) -> list[Comparison]:
    """Comparisons of (baseline, estimate)s that are one family; untested ones are no part of it."""
    tested = [estimate.p for _, estimate in estimates if estimate.p is not None]
    adjusted = iter(holm(tested))
    family = [FAMILY.format(n=len(tested), what=what)] if len(tested) > 1 else []
    return [
        _judge(name, estimate, None if estimate.p is None else next(adjusted), family)
        for name, estimate in estimates
    ]


def _judge(name: str, e: Estimate, adjusted: float | None, family: list[str]) -> Comparison:
    verdict = _verdict(e, adjusted)
    # Where nothing was tested, the estimate's own sentence says why.
    how = e.how if verdict == "not tested" else " ".join([e.how, *family, VERDICTS[verdict]])
    return Comparison(name, e.difference, e.low, e.high, e.p, adjusted, e.effect, verdict, how)


def _verdict(e: Estimate, adjusted: float | None) -> Verdict:
    if adjusted is None or e.low is None or e.high is None:
        return "not tested"
    if e.low >= -ROPE and e.high <= ROPE:
        return "practically equal"
    if adjusted < ALPHA:
        return "better" if e.difference > 0 else "worse"
    return "not told apart"


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p (1979), in the order given."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, highest = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = highest
    return adjusted
