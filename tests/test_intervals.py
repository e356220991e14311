"""The clustered bootstrap against scikit-learn on the same resamples, and its coverage."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as oracle

from cxrbench.metrics import intervals
from cxrbench.metrics.intervals import (
    METRICS,
    Bootstrap,
    cluster_codes,
    clustered_bootstrap,
    resample_counts,
)

EXACT = 1e-12
Array = NDArray[Any]


def _sample(seed: int, images: int = 60, patients: int = 17) -> tuple[Array, Array, Array, Array]:
    """Tied scores; labels: common, rare, never positive, always positive, never known."""
    rng = np.random.default_rng(seed)
    target = (rng.random((images, 5)) < [0.4, 0.05, 0.0, 1.0, 0.5]).astype(float)
    target[0, 1] = 1
    score = np.round(rng.normal(size=(images, 5)) + target, rng.integers(0, 3))
    known = rng.random((images, 5)) < [0.9, 1, 1, 1, 0]
    target[~known] = np.nan
    return target, score, known, rng.integers(0, patients, images)


def _oracle(target: Array, score: Array) -> tuple[float, float, float]:
    if not target.any():
        return math.nan, math.nan, math.nan
    precision, recall, _ = oracle.precision_recall_curve(target, score)
    auc = math.nan if target.all() else oracle.roc_auc_score(target, score)
    best = precision[:-1][recall[:-1] >= 0.95].max()
    return auc, oracle.average_precision_score(target, score), best


@pytest.mark.parametrize("seed", range(6))
def test_replicates_equal_scikit_learn_on_the_repeated_images(seed: int) -> None:
    target, score, known, patient = _sample(seed)
    found = clustered_bootstrap(target, score, known, patient, replicates=60, seed=seed)
    codes, clusters = cluster_codes(patient)
    counts = resample_counts(np.random.default_rng(seed), 60, clusters)
    for replicate, count in enumerate(counts):
        for label in range(target.shape[1]):
            repeats = np.repeat(np.arange(len(patient)), count[codes] * known[:, label])
            expected = _oracle(target[repeats, label] == 1, score[repeats, label])
            got = [found.values[metric][replicate, label] for metric in METRICS]
            np.testing.assert_allclose(got, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    "ids",
    [
        [3, 11, 2, 11, -4, 100], [0, 10, 100, 1, 2, 19, 2, 999_999_999_999, 99], [10**12, 1, 2, 10], ["a\x80", "a"], ["aĀ", "a"], ["b", "a", "ab"], ["p10", "p9", "p1", "p1"], ["é", "z", "e", "zz"],
        ["Ω", "z", "ω", "z"], ["patient00002", "patient00001", "p"], ["12345678", "1234567", "123456789"],
        ["a\0b", "ab", "a", "a\0a"], [],
    ],
    ids=str,
)  # fmt: skip
def test_clusters_are_numbered_in_the_order_of_their_text(ids: list[Any]) -> None:
    codes, clusters = cluster_codes(np.asarray(ids if ids else np.empty(0, int)))
    names = sorted({str(name) for name in ids})
    assert codes.tolist() == [names.index(str(name)) for name in ids]
    assert clusters == len(names)


def test_undefined_replicates_are_dropped_and_counted() -> None:
    target, score, known, patient = _sample(1)
    target[:, 1] = np.where(patient == patient[0], 1.0, 0.0)  # every positive in one patient
    found = clustered_bootstrap(target, score, known, patient, replicates=200)
    assert found.defined.tolist() == [True, True, False, False, False]
    missing = found.dropped("auc", 1)
    assert 200 * 0.2 < missing < 200 * 0.5  # a patient is absent from about 1/e of the resamples
    assert found.dropped("auc", 0) == 0
    assert found.dropped("auc") == missing
    assert found.interval("auc", 1) is not None
    for undefined in (2, 3, 4):
        assert found.dropped("auc", undefined) == 200
        assert found.interval("auc", undefined) is None
    assert found.interval("pr_auc", 3) == (1.0, 1.0)


def test_macro_is_the_mean_over_labels_defined_in_the_full_sample() -> None:
    target, score, known, patient = _sample(2)
    found = clustered_bootstrap(target, score, known, patient, replicates=80)
    for metric in METRICS:
        macro = found.replicates(metric)
        by_hand = (found.replicates(metric, 0) + found.replicates(metric, 1)) / 2
        np.testing.assert_allclose(macro, by_hand, rtol=0, atol=EXACT)
        kept = macro[~np.isnan(macro)]
        assert found.interval(metric) == pytest.approx(np.quantile(kept, [0.025, 0.975]))


def test_without_a_defined_label_there_is_no_macro_interval() -> None:
    target, score, known, patient = _sample(0)
    found = clustered_bootstrap(target[:, 2:], score[:, 2:], known[:, 2:], patient, replicates=9)
    assert found.interval("auc") is None
    assert found.dropped("pr_auc") == 9


def _same(one: Bootstrap, other: Bootstrap) -> None:
    for metric in METRICS:
        np.testing.assert_array_equal(one.values[metric], other.values[metric])


def test_methods_share_their_resamples() -> None:
    target, score, known, patient = _sample(3)
    one = clustered_bootstrap(target, score, known, patient, replicates=40, seed=7)
    # A method of the same ranking, its rows in another order, its ids read as text.
    order = np.random.default_rng(0).permutation(len(patient))
    other = clustered_bootstrap(
        target[order],
        10 * score[order] - 3,
        known[order],
        patient[order].astype(str),
        replicates=40,
        seed=7,
    )
    _same(one, other)
    # A label's replicates do not depend on the labels beside it.
    alone = clustered_bootstrap(
        target[:, :1], score[:, :1], known[:, :1], patient, replicates=40, seed=7
    )
    np.testing.assert_array_equal(alone.values["auc"][:, 0], one.values["auc"][:, 0])
    reseeded = clustered_bootstrap(target, score, known, patient, replicates=40, seed=8)
    assert (reseeded.values["auc"][:, 0] != one.values["auc"][:, 0]).any()


def test_blocks_and_more_replicates_do_not_change_a_replicate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, score, known, patient = _sample(4)
    one = clustered_bootstrap(target, score, known, patient, replicates=40)
    monkeypatch.setattr(intervals, "BLOCK", 7)
    _same(one, clustered_bootstrap(target, score, known, patient, replicates=40))
    longer = clustered_bootstrap(target, score, known, patient, replicates=55)
    np.testing.assert_array_equal(longer.values["auc"][:40], one.values["auc"])


def test_resamples_draw_as_many_clusters_as_there_are() -> None:
    counts = resample_counts(np.random.default_rng(0), 2000, 30)
    assert (counts.sum(axis=1) == 30).all()
    # A multinomial count has mean 1 and variance 1 - 1/C; 5 standard errors of room.
    assert np.abs(counts.mean(axis=0) - 1).max() < 5 / math.sqrt(2000)
    assert counts.var() == pytest.approx(1 - 1 / 30, abs=0.03)


def test_target_of_an_unknown_image_does_not_matter() -> None:
    target, score, known, patient = _sample(5)
    one = clustered_bootstrap(target, score, known, patient, replicates=20)
    score[~known] = np.nan
    target[~known] = 5
    _same(one, clustered_bootstrap(target, score, known, patient, replicates=20))


def test_one_cluster_has_no_interval() -> None:
    found = clustered_bootstrap(
        [[0], [1], [1]], [[0.1], [0.2], [0.3]], [[True]] * 3, ["p"] * 3, replicates=10
    )
    assert found.replicates("auc", 0).tolist() == [1.0] * 10
    assert found.interval("auc", 0) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": [[0.1], [math.nan]]}, "score: 1 known entries are NaN .* row 1, label 0"),
        ({"target": [[0], [2]]}, "target: 1 known entries are not 0 or 1, the first at row 1"),
        ({"target": [[0], [math.nan]]}, "target: 1 known entries"),
        ({"target": [0, 1]}, r"need \[N, K\] each"),
        ({"cluster": ["a"]}, "cluster has 1 entries for 2 images"),
        ({"cluster": ["a", ""]}, "cluster: 1 ids are missing .* the first at 1"),
        ({"cluster": np.array(["a", None], dtype=object)}, "cluster: 1 ids .* at 1: None"),
        ({"cluster": [1.0, math.nan]}, "cluster: 2 ids"),
        ({"level": 1.0}, "level 1.0"),
        ({"replicates": -1}, "replicates -1"),
        ({"recall": 2.0}, "recall is 2.0"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "target": [[0], [1]],
        "score": [[0.1], [0.2]],
        "known": [[True], [True]],
        "cluster": ["a", "b"],
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        clustered_bootstrap(**arguments)


@pytest.mark.slow
def test_patient_resampling_covers_the_truth_and_image_resampling_does_not() -> None:
    """400 patients of 4 images, prevalence 5 %, correlation 0.7 within a patient."""
    rng = np.random.default_rng(0)
    patients, each, correlation, trials, shift = 400, 4, 0.7, 300, 1.0

    def correlated() -> Array:
        shared, own = rng.normal(size=(patients, 1)), rng.normal(size=(patients, each))
        mixed = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
        return np.asarray(mixed.reshape(-1, 1))

    truth = 0.5 * (1 + math.erf(shift / 2))  # Phi(shift / sqrt(2)): two normals `shift` apart
    by_image, by_patient = np.arange(patients * each), np.repeat(np.arange(patients), each)
    covered = {"image": 0, "patient": 0}
    for _ in range(trials):
        target = correlated() > 1.6449  # the upper 5 % of a standard normal
        score = correlated() + shift * target
        for name, cluster in (("image", by_image), ("patient", by_patient)):
            known = np.ones(target.shape, dtype=bool)
            found = clustered_bootstrap(target, score, known, cluster, replicates=300)
            interval = found.interval("auc", 0)
            assert interval is not None
            covered[name] += interval[0] <= truth <= interval[1]
    assert covered["patient"] / trials >= 0.90
    assert covered["image"] / trials < 0.88
