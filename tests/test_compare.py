"""Statistics of the leaderboard: tests against oracles and simulations, and what a table makes of them."""

import itertools
import math
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from cxrbench.core.columns import PROBABILITY, TARGET
from cxrbench.core.record import Record
from cxrbench.core.store import Store
from cxrbench.leaderboard import patients, predictions
from cxrbench.leaderboard.collect import Table, collect
from cxrbench.leaderboard.compare import Estimate, holm, judged
from cxrbench.leaderboard.folds import FoldEvidence
from cxrbench.leaderboard.judge import test_over_train as size_ratio
from cxrbench.leaderboard.patients import PatientEvidence
from cxrbench.leaderboard.predictions import Predictions, predictions_in
from cxrbench.leaderboard.published import published_ranges
from cxrbench.leaderboard.ranks import no_diagram, rank_intervals, tie_groups
from cxrbench.leaderboard.sentences import MARKS, ROPE
from cxrbench.leaderboard.students_t import quantile, two_sided_normal_p, two_sided_p
from cxrbench.metrics.classification import roc_auc

Make = Callable[..., Record]
Array = NDArray[Any]
COUNTS = {str(fold): {"images": 20, "patients": 12} for fold in range(5)}
FACTS = {"images": 100, "patients": 60, "phantom": False, "complete": True, "counts": COUNTS}


# --- distributions


@pytest.mark.parametrize("df", [1, 1.5, 2, 4, 7.3, 24, 1000])
def test_student_s_t_is_scipy_s(df: float) -> None:
    for t in (0.0, 0.01, 0.5, 1.0, 2.776, 12.0, 1e4):
        assert two_sided_p(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-9)
        assert two_sided_p(-t, df) == two_sided_p(t, df)
    for level in (0.5, 0.9, 0.95, 0.999):
        assert quantile(level, df) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-9)
    assert two_sided_p(math.inf, df) == 0.0
    assert two_sided_normal_p(-1.96) == pytest.approx(2 * stats.norm.sf(1.96), rel=1e-12)


def test_holm_by_hand() -> None:
    """R: p.adjust(c(.01, .04, .03, .005), "holm") is .03 .06 .06 .02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


# --- folds


def runs(*rows: list[float]) -> Array:
    return np.array(rows)


def test_one_seed_is_nadeau_and_bengio_s_test() -> None:
    """As scikit-learn's example writes it: variance times (1/n + test/train), n - 1 degrees of freedom."""
    a, b = [0.91, 0.88, 0.93, 0.90, 0.86], [0.89, 0.87, 0.90, 0.90, 0.83]
    found = FoldEvidence(runs(a, b), range(5), 1 / 3).difference(0, 1)
    d = np.subtract(a, b)
    error = math.sqrt(d.var(ddof=1) * (1 / 5 + 1 / 3))
    assert found.difference == pytest.approx(d.mean())
    assert found.p == pytest.approx(2 * stats.t.sf(d.mean() / error, 4))
    low, high = stats.t.interval(0.95, 4, d.mean(), error)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.effect == pytest.approx(d.mean() / d.std(ddof=1))
    assert "4 degrees of freedom" in found.how and "0.33" in found.how
    # A plain paired t-test would be surer of it.
    assert stats.ttest_rel(a, b).pvalue < 0.6 * found.p  # type: ignore[operator]


def test_seeds_add_their_own_variance_once() -> None:
    rng = np.random.default_rng(0)
    d = rng.normal(0.01, 0.02, size=(5, 3))
    auc = np.stack([0.8 + d.ravel(), np.full(15, 0.8)])
    found = FoldEvidence(auc, np.repeat(range(5), 3).tolist(), 0.25).difference(0, 1)
    between, within = d.mean(axis=1).var(ddof=1), d.var(axis=1, ddof=1).mean()
    first, second = (1 / 5 + 0.25) * between, 0.25 * (2 / 3) * within
    df = (first + second) ** 2 / (first**2 / 4 + second**2 / 10)
    error = math.sqrt(first + second)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / error, df))
    assert "3 seeds" in found.how
    # With fewer folds than five the seeds add no degree of freedom.
    two = FoldEvidence(auc[:, :6], [0, 0, 0, 1, 1, 1], 0.25).difference(0, 1)
    assert "with 1 degrees of freedom" in two.how
    # The order of the runs does not matter.
    order = rng.permutation(15)
    shuffled = FoldEvidence(auc[:, order], np.repeat(range(5), 3)[order].tolist(), 0.25)
    assert shuffled.difference(0, 1).p == pytest.approx(found.p)


def test_equal_runs_are_equal_and_a_constant_difference_is_no_proof() -> None:
    found = FoldEvidence(runs([0.8, 0.9], [0.8, 0.9], [0.7, 0.8]), [0, 1], 1 / 3)
    same = found.difference(0, 1)
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    constant = found.difference(0, 2)
    assert (constant.p, constant.low) == (None, None)
    assert "same in every fold" in constant.how
    with pytest.raises(ValueError, match="1 fold"):
        FoldEvidence(runs([0.8, 0.9]), [0, 0], 1 / 3)


def simulated(
    rng: np.random.Generator, folds: int, seeds: int, ratio: float, of_fold: float, trials: int
) -> Array:
    """[trials, K, T] differences of mean 0 with Nadeau and Bengio's correlation between any two folds."""
    rho = ratio / (1 + ratio)
    own = math.sqrt((1 - rho) * of_fold) * rng.normal(size=(trials, folds, 1))
    seed = math.sqrt((1 - rho) * (1 - of_fold)) * rng.normal(size=(trials, folds, seeds))
    return 0.01 * (math.sqrt(rho) * rng.normal(size=(trials, 1, 1)) + own + seed)


def false_alarms(differences: Array, ratio: float) -> tuple[float, float]:
    """Share of p below 0.05, and of intervals that hold 0, for differences [trials, K, T]."""
    trials, folds, seeds = differences.shape
    names = np.repeat(range(folds), seeds).tolist()
    low = held = 0
    for d in differences.reshape(trials, -1):
        found = FoldEvidence(np.stack([0.8 + d, np.full(d.size, 0.8)]), names, ratio).difference(
            0, 1
        )
        assert found.p is not None and found.low is not None and found.high is not None
        low += found.p < 0.05
        held += found.low <= 0 <= found.high
    return low / trials, held / trials


@pytest.mark.parametrize(
    ("folds", "seeds", "ratio", "of_fold"),
    [(5, 1, 1 / 3, 0), (2, 1, 1 / 3, 0), (5, 5, 1 / 4, 0), (5, 5, 1 / 4, 0.5), (5, 5, 1 / 4, 1)],
)
def test_chance_is_called_a_difference_in_at_most_one_of_twenty(
    folds: int, seeds: int, ratio: float, of_fold: float
) -> None:
    rng = np.random.default_rng(1)
    alarms, held = false_alarms(simulated(rng, folds, seeds, ratio, of_fold, 2000), ratio)
    assert 0.03 <= alarms <= 0.06
    assert held >= 0.94


def test_why_seeds_are_not_counted_as_runs_of_repeated_cross_validation() -> None:
    """That form is right where seeds differ as folds do, and wrong by far where a fold is hard for all seeds."""
    for of_fold, low, high in ((0.0, 0.03, 0.06), (1.0, 0.15, 0.30)):
        d = simulated(np.random.default_rng(2), 5, 5, 0.25, of_fold, 4000).reshape(4000, 25)
        t = np.abs(d.mean(axis=1)) / np.sqrt(d.var(axis=1, ddof=1) * (1 / 25 + 0.25))
        assert low < (2 * stats.t.sf(t, 24) < 0.05).mean() < high


def discriminant(x: Array, y: Array) -> Array:
    covariance = np.cov(x.T) + 0.1 * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(covariance, x[y].mean(axis=0) - x[~y].mean(axis=0)))


def test_equal_classifiers_that_were_really_trained_on_folds() -> None:
    """Linear discriminants on two equally good halves of the features; five folds, three of them to train on."""
    rng = np.random.default_rng(0)
    found, plain, trials = 0, 0, 800
    for _ in range(trials):
        y = rng.random(300) < 0.3
        x = rng.normal(size=(300, 12)) + 0.35 * y[:, None]
        fold = rng.permutation(300) % 5
        auc = np.zeros((2, 5))
        for k, half in itertools.product(range(5), (0, 1)):
            columns = slice(6 * half, 6 * half + 6)
            train, test = (fold != k) & (fold != (k + 1) % 5), fold == k
            score = x[test, columns] @ discriminant(x[train, columns], y[train])
            auc[half, k] = roc_auc(y[test], score)
        p = FoldEvidence(auc, range(5), 1 / 3).difference(0, 1).p
        found += p is not None and p < 0.05
        plain += stats.ttest_rel(auc[0], auc[1]).pvalue < 0.05
    assert found / trials <= 0.05
    assert plain / trials > 0.06


# --- patients


def films(
    rng: np.random.Generator, people: int, each: int = 4, labels: int = 1, gap: float = 0.0
) -> list[Predictions]:
    """Two methods' predictions, correlation 0.7 within a patient; the first is better by `gap`."""

    def correlated() -> Array:
        shared, own = rng.normal(size=(people, 1, labels)), rng.normal(size=(people, each, labels))
        mixed = math.sqrt(0.7) * shared + math.sqrt(0.3) * own
        return np.asarray(mixed.reshape(-1, labels))

    target, shared = (correlated() > 1.0).astype(float), correlated()
    names = np.array([f"{i:05d}" for i in range(people * each)], dtype=object)
    owner = np.array([f"p{i}" for i in np.repeat(range(people), each)], dtype=object)
    scores = [
        (1 + shift) * target + math.sqrt(0.5) * (shared + correlated()) for shift in (gap, 0.0)
    ]
    return [Predictions(names, owner, target, 1 / (1 + np.exp(-score))) for score in scores]


def macro(run: Predictions) -> float:
    columns = zip(run.target.T, run.probability.T, strict=True)
    values = [roc_auc(t[~np.isnan(t)], p[~np.isnan(t)]) for t, p in columns]
    return float(np.mean([value for value in values if value is not None]))


def evidence(*rows: list[Predictions]) -> PatientEvidence:
    return PatientEvidence([float(np.mean([macro(run) for run in row])) for row in rows], rows)


def test_patients_tell_a_real_difference_and_agree_with_delong() -> None:
    one, other = films(np.random.default_rng(0), 150, labels=2, gap=0.8)
    found = evidence([one], [other]).difference(0, 1)
    assert found.difference == pytest.approx(macro(one) - macro(other))
    assert found.low is not None and found.high is not None and found.p is not None
    assert 0 < found.low < found.difference < found.high
    assert found.p < 0.01
    assert "150 test patients" in found.how and "p = 0.00" in found.how
    turned = evidence([one], [other]).difference(1, 0)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    same = evidence([one], [one]).difference(0, 1)
    assert (same.difference, same.p, same.low, same.high) == (0.0, 1.0, 0.0, 0.0)


def test_rare_findings_leave_fewer_degrees_of_freedom() -> None:
    rng = np.random.default_rng(5)
    many, few = (evidence(*[[run] for run in films(rng, n)]) for n in (200, 20))
    degrees = [float(e.difference(0, 1).how.split(", with ")[1].split()[0]) for e in (many, few)]
    assert degrees[0] > 25 > 8 > degrees[1] >= 1


def test_several_trainings_on_the_same_films_count_by_their_mean() -> None:
    first, second = (films(np.random.default_rng(seed), 40) for seed in (1, 2))
    for run in second:
        object.__setattr__(run, "target", first[0].target)
    found = evidence([first[0], second[0]], [first[1], second[1]]).difference(0, 1)
    by_hand = macro(first[0]) + macro(second[0]) - macro(first[1]) - macro(second[1])
    assert found.difference == pytest.approx(by_hand / 2)
    assert "means of 2 trainings" in found.how


def test_what_cannot_be_tested_says_why() -> None:
    one, other = films(np.random.default_rng(0), 20)
    moved = Predictions(other.image + "x", other.patient, other.target, other.probability)
    found = PatientEvidence([0.8, 0.7, 0.6], [[one], [moved], None])
    assert "different images" in found.difference(0, 1).how
    assert "no predictions" in found.difference(0, 2).how
    assert found.difference(0, 2).difference == pytest.approx(0.2)
    assert found.draws() is None
    assert found.interval(2) is None
    lone = Predictions(one.image, np.full(80, "p", dtype=object), one.target, one.probability)
    assert "too few patients" in evidence([lone], [lone]).difference(0, 1).how


def chance_on_patients(people: int, trials: int, labels: int) -> tuple[float, float]:
    """Share of p below 0.05 for equal methods, and of AUC intervals that hold the truth."""
    rng = np.random.default_rng(3)
    truth, alarms, held = 0.5 * (1 + math.erf(0.5)), 0, 0
    for _ in range(trials):
        one, other = films(rng, people, labels=labels)
        found = evidence([one], [other])
        p, interval = found.difference(0, 1).p, found.interval(0)
        assert p is not None and interval is not None
        alarms += p < 0.05
        held += interval[0] <= truth <= interval[1]
    return alarms / trials, held / trials


@pytest.mark.parametrize("people", [60])
def test_patients_call_chance_a_difference_rarely(
    people: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patients, "REPLICATES", 200)
    alarms, _ = chance_on_patients(people, 300, 1)
    assert alarms <= 0.06


@pytest.mark.slow
def test_patients_call_chance_a_difference_rarely_and_intervals_hold_the_truth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patients, "REPLICATES", 400)
    for people, labels in ((200, 1), (150, 4)):
        alarms, held = chance_on_patients(people, 1000, labels)
        assert 0.03 <= alarms <= 0.06
        assert held >= 0.92


# --- verdicts and places


def estimate(difference: float, low: float, high: float, p: float | None) -> Estimate:
    return Estimate(difference, low, high, p, None, "How.")


def test_verdicts() -> None:
    cases = [
        (estimate(0.03, 0.02, 0.04, 0.001), "better"),
        (estimate(-0.03, -0.04, -0.02, 0.001), "worse"),
        (estimate(0.002, -ROPE, ROPE, 0.001), "practically equal"),
        (estimate(0.002, -ROPE - 1e-6, ROPE, 0.4), "not told apart"),
        (Estimate(0.03, None, None, None, None, "Why not."), "not tested"),
    ]
    found = judged([("b", e) for e, _ in cases])
    assert [c.verdict for c in found] == [verdict for _, verdict in cases]
    assert [c.told_apart for c in found] == [True, True, False, False, False]
    assert found[0].p_adjusted == pytest.approx(0.004), "four were tested"
    assert "for the 4 comparisons" in found[0].how
    assert found[4].p_adjusted is None and found[4].how == "Why not."
    # What is clear by itself need not be among many.
    many = judged([("b", estimate(0.03, 0.01, 0.05, 0.02))] * 3)
    assert {c.verdict for c in many} == {"not told apart"}


def test_tie_groups_by_hand() -> None:
    apart = {(0, 2), (0, 3), (2, 4)}
    assert tie_groups(5, lambda a, b: (a, b) in apart) == [(1, 2), (1, 2), (3, 4), (3, 4), (5, 5)]
    # A row further down is no member when one before it was told apart.
    assert tie_groups(3, lambda a, b: (a, b) == (0, 1)) == [(1, 1), (2, 3), (2, 3)]
    assert tie_groups(2, lambda a, b: None) == [(1, 1), (2, 2)]
    assert tie_groups(0, lambda a, b: True) == []


def test_rank_intervals_by_hand() -> None:
    draws = np.array([[0.9, 0.8, 0.1]] * 50 + [[0.8, 0.9, 0.1]] * 50)
    assert rank_intervals(draws) == [(1, 2), (1, 2), (3, 3)]
    assert rank_intervals(np.array([[0.5, 0.5, 0.2]] * 10)) == [(1, 2), (1, 2), (3, 3)]
    rare = np.array([[0.9, 0.8]] * 99 + [[0.8, 0.9]])
    assert rank_intervals(rare) == [(1, 1), (2, 2)]


@pytest.mark.parametrize(("folds", "seeds"), [(20, 1), (4, 3)])
def test_draws_over_folds_have_the_spread_of_the_test(folds: int, seeds: int) -> None:
    auc = 0.8 + 0.001 * np.random.default_rng(0).normal(size=(2, folds * seeds))
    evidence = FoldEvidence(auc, np.repeat(range(folds), seeds).tolist(), 0.1)
    draws = evidence.draws(40000)
    low, high = np.quantile(draws[:, 0] - draws[:, 1], [0.025, 0.975])
    found = evidence.difference(0, 1)
    assert found.low is not None and found.high is not None
    assert high - low == pytest.approx(found.high - found.low, rel=0.04)
    assert (low + high) / 2 == pytest.approx(found.difference, abs=0.02 * (high - low))


def test_a_diagram_over_few_data_sets_is_refused() -> None:
    assert "needs at least 6; there are 3" in str(no_diagram(["a", "b", "c", "a"]))
    assert no_diagram([*"abcdef"]) is None


# --- tables


def rows_of(make: Make, aucs: dict[str, list[float]], **fields: Any) -> list[Record]:
    """Records of five folds each."""
    given = {"folds": 5, "data_facts": FACTS, **fields}
    return [
        make(auc, method=method, fold=fold, **given)
        for method, values in aucs.items()
        for fold, auc in enumerate(values)
    ]


BASE = [0.80, 0.82, 0.79, 0.81, 0.78]
WOBBLE = [0.0, 0.002, -0.001, 0.001, -0.002]


def shifted(by: float) -> list[float]:
    return [b + by + w for b, w in zip(BASE, WOBBLE, strict=True)]


def only(tables: list[Table]) -> Table:
    assert len(tables) == 1
    return tables[0]


def test_a_table_has_ties_comparisons_and_pairs(make_record: Make) -> None:
    turned = [b + 0.051 - w for b, w in zip(BASE, WOBBLE, strict=True)]
    table = only(
        collect(
            rows_of(
                make_record,
                {"densenet121": BASE, "vgg16": shifted(-0.1), "a": shifted(0.05), "b": turned},
            )
        )
    )
    rows = {row.method: row for row in table.rows}
    assert [row.method for row in table.rows] == ["b", "a", "densenet121", "vgg16"]
    assert [row.place for row in table.rows] == ["1-2", "1-2", "3", "4"]
    assert [row.tie for row in table.rows] == [(1, 2), (1, 2), (3, 3), (4, 4)]
    found = rows["a"].comparisons["densenet121"]
    assert found is not None
    assert found.verdict == "better"
    assert found.difference == pytest.approx(rows["a"].against["densenet121"].mean)  # type: ignore[union-attr]
    assert found.p_adjusted is not None and found.p is not None and found.p_adjusted >= found.p
    assert "3 methods compared with densenet121" in found.how
    assert rows["densenet121"].comparisons["densenet121"] is None
    assert len(table.pairwise) == 6
    for pair in table.pairwise:
        ours, theirs = (table.rows[i].values["auc"] for i in (pair.first, pair.second))
        assert ours is not None and theirs is not None
        assert pair.comparison.difference == pytest.approx(ours.mean - theirs.mean)
        assert pair.comparison.baseline == table.rows[pair.second].name
    assert rows["vgg16"].rank_interval == (4, 4)
    assert all(
        row.auc_interval and row.auc_interval[0] < row.values["auc"].mean for row in table.rows
    )  # type: ignore[union-attr]
    assert any("Nadeau" in note for note in table.notes)


def test_methods_that_cannot_be_told_apart_share_a_place(make_record: Make) -> None:
    noisy = [0.84, 0.79, 0.80, 0.79, 0.80]
    table = only(collect(rows_of(make_record, {"a": noisy, "b": BASE, "c": shifted(-0.2)})))
    assert [row.place for row in table.rows] == ["1-2", "1-2", "3"]
    assert [row.rank for row in table.rows] == [1, 2, 3]
    assert table.rows[0].rank_interval == (1, 2)


def test_the_ratio_is_the_records_and_a_guess_is_said(make_record: Make) -> None:
    uneven = {**COUNTS, "0": {"images": 40}}
    record = make_record(folds=5, data_facts={**FACTS, "counts": uneven})
    expected = np.mean([40 / 60, 20 / 80, 20 / 80, 20 / 80, 20 / 60])
    assert size_ratio(record, {0, 1, 2, 3, 4}) == (pytest.approx(expected), "")
    ratio, remark = size_ratio(make_record(folds=5), {0, 1})
    assert ratio == pytest.approx(1 / 3)
    assert "5 folds" in remark
    for counts in ("01234", {"0": 3}, {**COUNTS, "4": {"images": "many"}}, [1]):
        strange = make_record(folds=5, data_facts={**FACTS, "counts": counts})
        assert size_ratio(strange, {0, 1}) == (ratio, remark)
    table = only(collect(rows_of(make_record, {"a": BASE, "b": shifted(0.01)}, data_facts={})))
    assert "do not count" in table.pairwise[0].comparison.how


def test_rows_with_other_folds_are_not_tested(make_record: Make) -> None:
    records = rows_of(make_record, {"densenet121": BASE, "a": shifted(0.05), "b": BASE})
    table = only(collect([r for r in records if r.method != "a" or r.fold < 3]))
    row = next(row for row in table.rows if row.method == "a")
    found = row.comparisons["densenet121"]
    assert found is not None and found.verdict == "not tested"
    assert found.difference == pytest.approx(np.mean([0.05, 0.052, 0.049]))
    assert "same folds" in found.how
    assert (row.rank, row.tie, row.rank_interval, row.place) == (None, None, None, "–")
    assert "incomplete" in row.marks
    assert len(table.pairwise) == 1


def test_a_complete_row_is_ranked_before_any_number_of_incomplete_ones(make_record: Make) -> None:
    records = rows_of(make_record, {"whole": BASE, "a": shifted(0.1), "b": shifted(0.1)})
    table = only(collect([r for r in records if r.method == "whole" or r.fold < 3]))
    assert {row.method: row.rank for row in table.rows} == {"whole": 1, "a": None, "b": None}


def test_rows_scored_on_other_images_are_not_ranked(make_record: Make) -> None:
    records = rows_of(make_record, {"a": BASE, "b": BASE, "c": shifted(0.1)})
    odd = records[-1]
    scores = {**odd.scores, "images": 19}
    table = only(collect([*records[:-1], odd.model_copy(update={"scores": scores})]))
    assert {row.method: row.rank for row in table.rows}["c"] is None
    assert "other images" in next(row for row in table.rows if row.method == "c").marks


def test_rows_defined_in_no_common_fold_are_not_tested(make_record: Make) -> None:
    records = [
        make_record(auc, method=method, fold=fold)
        for method, aucs in (("a", [0.8, None]), ("b", [None, 0.7]))
        for fold, auc in enumerate(aucs)
    ]
    table = only(collect(records))
    assert [pair.comparison.verdict for pair in table.pairwise] == ["not tested"]


def test_seeds_and_folds_spread_apart(make_record: Make) -> None:
    one = rows_of(make_record, {"a": BASE})
    two = rows_of(make_record, {"a": [auc + 0.02 for auc in BASE]}, seed=1)
    row = only(collect([*one, *two])).rows[0]
    assert row.spread.folds == pytest.approx(np.std(BASE, ddof=1))
    assert row.spread.seeds == pytest.approx(0.02 / math.sqrt(2))
    assert only(collect(one)).rows[0].spread.seeds is None
    three = rows_of(make_record, {"a": [auc - 0.01 for auc in BASE]}, seed=2)
    row = only(collect([*one, *two, *three])).rows[0]
    assert row.spread.seeds == pytest.approx(np.std([0.0, 0.02, -0.01], ddof=1))


ELSEWHERE: dict[str, Any] = {
    "dataset": "covid", "version": 1, "params": {}, "revision": "r", "split": "all",
    "split_digest": "8" * 64, "fold": 0, "label_map": {}, "unmatched_model": [],
    "unmatched_data": [], "overlap": "", "data_facts": {},
}  # fmt: skip


def test_an_external_test_is_no_test_on_five_folds(make_record: Make) -> None:
    """All folds are tested on the same films: their spread says nothing of other patients."""
    aucs = {"densenet121": BASE, "a": shifted(0.05)}
    table = only(collect(rows_of(make_record, aucs, tested_on=ELSEWHERE)))
    assert {pair.comparison.verdict for pair in table.pairwise} == {"not tested"}
    assert any("no predictions" in note for note in table.notes)
    assert [row.place for row in table.rows] == ["1", "2"]


def test_the_tables_of_a_thousand_records_take_under_three_seconds(make_record: Make) -> None:
    rng = np.random.default_rng(0)
    records = [
        record
        for t in range(100)
        for record in rows_of(
            make_record,
            {"densenet121": BASE, "a": (np.array(BASE) + 0.01 * rng.normal(size=5)).tolist()},
            dataset=f"d{t}",
        )
    ]
    started = time.process_time()
    assert len(collect(records)) == 100
    assert time.process_time() - started < 3


# --- one test part: predictions of the store


def stored(store: Store, make: Make, runs: dict[str, Predictions], **fields: Any) -> list[Record]:
    """Records of one fold with their predictions in the store."""
    records = []
    for method, run in runs.items():
        key = f"predict-{method}-0123456789abcdef"
        columns = {"image_id": run.image, "patient_id": run.patient, "part": "test", "fold": 0}
        frame = pd.DataFrame(columns)
        frame[TARGET + "pneumonia"], frame[PROBABILITY + "pneumonia"] = run.target, run.probability
        other = frame.assign(part="val", image_id="v" + frame["image_id"])
        frame = pd.concat([other, frame.sample(frac=1, random_state=0)])
        store.artefact(key).mkdir(parents=True)
        frame.to_parquet(store.artefact(key) / predictions.FILE, index=False)
        stage = {"key": key, "digest": "d", "kind": "predict", "name": method, "version": 1}
        records.append(
            make(
                macro(run),
                method=method,
                folds=1,
                **{"stages": [stage], "data_facts": FACTS, **fields},
            )
        )
    return records


def test_one_fold_is_tested_with_the_store_s_predictions_alone(
    store: Store, make_record: Make
) -> None:
    good, plain = films(np.random.default_rng(0), 150, gap=1.5)
    records = stored(store, make_record, {"a": good, "densenet121": plain})
    untested = only(collect(records))
    assert untested.pairwise[0].comparison.verdict == "not tested"
    assert any("one test part and no predictions" in note for note in untested.notes)
    table = only(collect(records, predictions_in(store)))
    found = table.rows[0].comparisons["densenet121"]
    assert found is not None and found.verdict == "better"
    assert found.difference == pytest.approx(macro(good) - macro(plain))
    assert "DeLong" in found.how
    assert [row.place for row in table.rows] == ["1", "2"]
    assert table.rows[0].rank_interval == (1, 1)


def test_predictions_of_another_run_or_of_no_one_are_not_used(
    store: Store, make_record: Make
) -> None:
    run, _ = films(np.random.default_rng(0), 30)
    (record,) = stored(store, make_record, {"a": run})
    read = predictions_in(store)
    found = read(record)
    assert found is not None
    np.testing.assert_array_equal(found.target, run.target)
    np.testing.assert_array_equal(found.image, run.image)
    scores = {"macro": {"auc": macro(run) + 1e-6}}
    assert read(record.model_copy(update={"scores": scores})) is None
    assert read(record.model_copy(update={"labels": ["other"]})) is None
    outside = store.root / "outside"
    outside.mkdir()
    shutil.copy(store.artefact(record.stages[0].key) / predictions.FILE, outside)
    for key in ("../outside", str(outside), "..", "", "a\0b", "gone"):
        stage = record.stages[0].model_copy(update={"key": key})
        assert read(record.model_copy(update={"stages": [stage]})) is None, key
    path = store.artefact(record.stages[0].key) / predictions.FILE
    twice = pd.read_parquet(path).assign(image_id="same")
    twice.to_parquet(path)
    assert read(record) is None
    path.write_bytes(b"PAR1")
    assert read(record) is None


def test_the_columns_are_those_that_the_runner_writes() -> None:
    assert (predictions.TARGET, predictions.PROBABILITY) == (TARGET, PROBABILITY)


# --- published numbers and marks


NIH = {"dataset": "chestxray14", "dataset_params": {}, "split": "official", "folds": 1}
LABELS = [f"l{i}" for i in range(14)]


@pytest.mark.parametrize(
    ("auc", "method", "place"),
    [
        (0.80, "densenet121", "below"), (0.81, "densenet121", "within"),
        (0.83, "densenet121", "suspiciously above"), (0.80, "aecnn", "within"),
        (0.84, "aecnn", "suspiciously above"), (0.70, "aecnn", "below"),
    ],
)  # fmt: skip
def test_the_published_range(make_record: Make, auc: float, method: str, place: str) -> None:
    row = only(collect([make_record(auc, method=method, labels=LABELS, **NIH)])).rows[0]
    assert row.published is not None
    assert row.published.place == place
    assert f"Ours: {auc:.4f}" in row.published.how


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["a"]}, {"dataset": "other"}, {"split": "other"},
        {"data_facts": {"complete": False, "coverage": {"present": 1, "promised": 2}}},
        {"data_facts": {"phantom": True}}, {"folds": 2}, {"tested_on": ELSEWHERE},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_comparable_has_no_range(make_record: Make, change: dict[str, Any]) -> None:
    fields = {**NIH, "labels": LABELS, **change}
    assert only(collect([make_record(0.8, **fields)])).rows[0].published is None


def test_the_file_of_ranges_is_sound() -> None:
    entries = published_ranges()
    assert len(entries) >= 8
    for entry in entries:
        assert 0.5 < entry.low <= entry.high < 1, entry
        assert (entry.low == entry.high) == (entry.about > 0), entry


def test_the_paper_s_number_is_judged_on_its_own_split_alone(make_record: Make) -> None:
    def flag(reported: dict[str, Any], **fields: Any) -> tuple[str, bool | None]:
        given = {**NIH, "macro": {"auc_interval": [0.79, 0.81]}, "reported": reported, **fields}
        found = only(collect([make_record(0.8, **given)])).rows[0].paper
        assert found is not None
        return found.tag, found.inside

    def report(auc: float, **more: str) -> dict[str, Any]:
        return {"source": "x", "macro": {"auc": auc}, "labels": {}, **more}

    assert flag(report(0.805, split="official")) == ("same split", True)
    assert flag(report(0.82, split="official")) == ("same split", False)
    assert flag(report(0.82, split="random")) == ("different split", None)
    assert flag(report(0.82)) == ("unknown split", None)
    part = {"complete": False}
    assert flag(report(0.82, split="official"), data_facts=part) == ("different split", None)
    # A paper's own five folds are not ours, whatever both are called.
    assert flag(report(0.8, split="cv5"), split="cv5") == ("different split", None)
    row = only(collect([make_record(0.8, reported={"split": "official", "macro": {}})])).rows[0]
    assert row.paper is None


def stage(**facts: Any) -> dict[str, Any]:
    code = {"commit": "c", "dirty": False}
    return {
        "key": "k", "digest": "d", "kind": "fit", "name": "n", "version": 1, "facts": facts,
        "provenance": {"code": code},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "mark"),
    [
        ({"folds": 2}, "incomplete"),
        ({"provenance": {"code": {"commit": "c", "dirty": True}}}, "dirty"),
        ({"provenance": {}}, "dirty"),
        ({"stages": [{**stage(), "provenance": {"code": {"dirty": True}}}]}, "dirty"),
        ({"changed": {"recipe.epochs": 3}}, "open recipe"),
        ({"data_facts": {"phantom": True}}, "phantom"),
        ({"data_facts": {"complete": False}}, "partial data"),
        ({"stages": [stage(weights={"source": "mine.pth"})]}, "pretraining unknown"),
        ({"stages": [stage(halvings=[{"images": 4}])]}, "halved"),
        ({"warnings": ["OVERLAP: a and b share images"]}, "overlap"),
        ({"macro": {"auc_interval": [0.49, 0.9]}}, "at the floor"),
    ],
    ids=str,
)
def test_marks(make_record: Make, fields: dict[str, Any], mark: str) -> None:
    given = {"folds": 1, **fields}
    assert only(collect([make_record(0.8, **given)])).rows[0].marks == [mark]
    assert mark in MARKS


def test_records_of_strangers_break_nothing(make_record: Make) -> None:
    odd: dict[str, Any] = {
        "provenance": {"code": "x"}, "reported": {"macro": ["x"], "split": 3},
        "stages": [stage(weights="x")], "data_facts": {"counts": "x"},
    }  # fmt: skip
    row = only(collect([make_record(0.8, folds=1, **odd)])).rows[0]
    assert (row.paper, row.marks) == (None, ["dirty"])


def test_a_clean_row_has_no_mark(make_record: Make) -> None:
    known = stage(weights={"source": "imagenet"})
    assert only(collect([make_record(0.8, folds=1, stages=[known])])).rows[0].marks == []
