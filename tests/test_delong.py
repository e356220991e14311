"""Clustered DeLong against sums over all pairs, values by hand, the bootstrap, and its error rate."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cxrbench.metrics.delong import clustered_delong
from cxrbench.metrics.intervals import clustered_bootstrap

Array = NDArray[Any]


def sample(seed: int, images: int = 70, labels: int = 3) -> tuple[Array, Array, Array, Array]:
    """Two methods of tied scores, unknown targets; patients of 1 to 8 images."""
    rng = np.random.default_rng(seed)
    target = (rng.random((images, labels)) < 0.3).astype(float)
    score = np.round(rng.normal(size=(images, labels, 2)) + target[:, :, None], 1)
    known = rng.random((images, labels)) < 0.9
    target[~known] = np.nan
    score[~known] = np.nan
    return target, score, known, rng.integers(0, 25, images)


def obuchowski(positive: Array, score: Array, patient: Array) -> tuple[Array, Array]:
    """AUCs and covariance of one label from the formulas of the paper, pair by pair."""
    methods, (m, n) = score.shape[1], (int(positive.sum()), int((~positive).sum()))
    wins = np.zeros((methods, m, n))
    for r in range(methods):
        for i, x in enumerate(score[positive, r]):
            for j, y in enumerate(score[~positive, r]):
                wins[r, i, j] = 1.0 if x > y else 0.5 if x == y else 0.0
    auc = wins.mean(axis=(1, 2))
    v10, v01 = wins.mean(axis=2), wins.mean(axis=1)
    names = sorted(set(patient))
    of10, of01 = patient[positive], patient[~positive]
    covariance = np.zeros((methods, methods))
    i10, i01, both = len(set(of10)), len(set(of01)), len(names)
    for r in range(methods):
        for s in range(methods):
            s10 = s01 = s11 = s11_turned = 0.0
            for name in names:
                a = [float((v10[q, of10 == name] - auc[q]).sum()) for q in (r, s)]
                b = [float((v01[q, of01 == name] - auc[q]).sum()) for q in (r, s)]
                s10, s01 = s10 + a[0] * a[1], s01 + b[0] * b[1]
                s11, s11_turned = s11 + a[0] * b[1], s11_turned + a[1] * b[0]
            covariance[r, s] = (
                i10 / ((i10 - 1) * m) * s10 / m
                + i01 / ((i01 - 1) * n) * s01 / n
                + both / (both - 1) * (s11 + s11_turned) / (m * n)
            )
    return auc, covariance


@pytest.mark.parametrize("seed", range(4))
def test_one_label_equals_the_sums_over_all_pairs(seed: int) -> None:
    target, score, known, patient = sample(seed)
    found = clustered_delong(target, score, known, patient)
    for k in range(target.shape[1]):
        seen = known[:, k]
        positive = target[seen, k] == 1
        auc, covariance = obuchowski(positive, score[seen, k], patient[seen])
        np.testing.assert_allclose(found.auc[k], auc, atol=1e-13)
        np.testing.assert_allclose(found.covariance[k, :, k], covariance, atol=1e-15)


def test_delong_by_hand() -> None:
    """Positives 1 and 3, negatives 2 and 0: placements 1/2 and 1 on both sides."""
    target = np.array([[1], [1], [0], [0]])
    score = np.array([1.0, 3.0, 2.0, 0.0]).reshape(4, 1, 1)
    found = clustered_delong(target, score, np.ones((4, 1), bool), list("abcd"))
    assert found.auc[0, 0] == 0.75
    one_side = Fraction(1, 16) * 2 / 1  # the variance of 1/2 and 1 with n - 1
    assert found.covariance[0, 0, 0, 0] == pytest.approx(float(one_side / 2 + one_side / 2))


def test_one_image_a_patient_is_plain_delong() -> None:
    target, score, _, _ = sample(7, labels=1)
    target, score = np.nan_to_num(target), np.nan_to_num(score)
    positive = target[:, 0] == 1
    found = clustered_delong(target, score, np.ones(target.shape, bool), np.arange(len(target)))
    wins = [
        (x[positive][:, None] > x[~positive]) + 0.5 * (x[positive][:, None] == x[~positive])
        for x in score[:, 0].T
    ]
    v10, v01 = np.array([w.mean(axis=1) for w in wins]), np.array([w.mean(axis=0) for w in wins])
    plain = np.cov(v10) / positive.sum() + np.cov(v01) / (~positive).sum()
    np.testing.assert_allclose(found.covariance[0, :, 0], plain, rtol=1e-12)
    assert found.auc[0, 0] == pytest.approx(roc_auc_score(positive, score[:, 0, 0]))


def test_the_macro_mean_and_its_error_agree_with_the_bootstrap() -> None:
    rng = np.random.default_rng(3)
    patient = rng.integers(0, 300, 900)
    target = (rng.random((900, 4)) + 0.3 * rng.random(300)[patient, None] > 1.0).astype(float)
    score = rng.normal(size=(900, 4, 2)) + target[:, :, None] + rng.normal(size=300)[patient, None, None]  # fmt: skip
    known = np.ones(target.shape, bool)
    found = clustered_delong(target, score, known, patient)
    draws = [
        clustered_bootstrap(target, score[:, :, m], known, patient).replicates("auc")
        for m in (0, 1)
    ]
    difference, error = found.difference(0, 1)
    assert difference == pytest.approx(found.auc[:, 0].mean() - found.auc[:, 1].mean())
    assert error == pytest.approx(np.std(draws[0] - draws[1]), rel=0.1)
    _, covariance = found.macro()
    assert math.sqrt(covariance[0, 0]) == pytest.approx(np.std(draws[0]), rel=0.1)
    # As if every image were a patient of its own: too sure of the AUC.
    alone = clustered_delong(target, score, known, np.arange(900))
    assert math.sqrt(alone.macro()[1][0, 0]) < 0.93 * math.sqrt(covariance[0, 0])


def test_what_is_undefined_is_nan_and_out_of_the_mean() -> None:
    target, score, known, patient = sample(1)
    target[:, 2] = 0.0
    known[:, 2] = True
    score[:, 2] = 0.5
    found = clustered_delong(target, score, known, patient)
    assert found.defined.tolist() == [True, True, False]
    assert np.isnan(found.auc[2]).all()
    assert found.macro()[0][0] == pytest.approx(found.auc[:2, 0].mean())
    one = clustered_delong(target[:, 2:], score[:, 2:], known[:, 2:], patient)
    assert math.isnan(one.difference(0, 1)[1])
    single = clustered_delong(target[:, :2], score[:, :2], known[:, :2], ["p"] * len(target))
    assert math.isnan(single.difference(0, 1, 0)[1]), "one patient has no spread"
    assert not math.isnan(single.difference(0, 1, 0)[0])


def test_a_method_does_not_differ_from_itself() -> None:
    target, score, known, patient = sample(2)
    found = clustered_delong(target, np.repeat(score[:, :, :1], 2, axis=2), known, patient)
    assert found.difference(0, 1) == (0.0, pytest.approx(0.0, abs=1e-9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": np.zeros((2, 1))}, r"need \[N, K\]"),
        ({"score": np.full((2, 1, 1), np.nan)}, "NaN or infinite"),
        ({"target": [[0], [2]]}, "not 0 or 1"),
        ({"cluster": ["a"]}, "1 entries for 2 images"),
        ({"cluster": ["a", ""]}, "missing"),
    ],
    ids=str,
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "target": [[0], [1]],
        "score": np.zeros((2, 1, 1)),
        "known": [[True], [True]],
        "cluster": ["a", "b"],
    }
    with pytest.raises(ValueError, match=message):
        clustered_delong(**{**given, **changes})


@pytest.mark.slow
def test_equal_methods_are_told_apart_in_one_of_twenty_and_not_in_one_of_five() -> None:
    """200 patients of 4 images, correlation 0.7 within a patient, methods that share half of their noise."""
    rng = np.random.default_rng(0)
    trials, false = 1500, {"patient": 0, "image": 0}
    clusters = {"patient": np.repeat(np.arange(200), 4), "image": np.arange(800)}

    def correlated() -> Array:
        mixed = math.sqrt(0.7) * rng.normal(size=(200, 1)) + math.sqrt(0.3) * rng.normal(
            size=(200, 4)
        )
        return np.asarray(mixed.reshape(-1, 1))

    for _ in range(trials):
        target = (correlated() > 1.0).astype(float)
        shared = correlated()
        scores = [target + math.sqrt(0.5) * (shared + correlated()) for _ in (0, 1)]
        for name, cluster in clusters.items():
            found = clustered_delong(
                target, np.stack(scores, axis=2), np.ones(target.shape, bool), cluster
            )
            difference, error = found.difference(0, 1)
            false[name] += abs(difference) > 1.96 * error
    assert 0.03 < false["patient"] / trials <= 0.07
    assert false["image"] / trials > 0.12
