"""Scores of one label against scikit-learn, and the report of a whole prediction file."""

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as oracle

from cxrbench.metrics.classification import (
    Ranking,
    average_precision,
    confusion_at,
    constant_floor,
    precision_at_recall,
    roc_auc,
)
from cxrbench.metrics.report import score_predictions

EXACT = 1e-12
Array = NDArray[Any]


def _draw(case: int) -> tuple[Array, Array, Array | None]:
    """A random label: 1-60 images, from all distinct to all tied scores, any prevalence."""
    rng = np.random.default_rng(case)
    size = int(rng.integers(1, 61))
    target = rng.random(size) < rng.choice([0.0, 0.05, 0.5, 0.95, 1.0])
    score = rng.normal(size=size) + rng.choice([0.0, 1.0, 5.0]) * target
    score = np.round(score, int(rng.choice([0, 1, 16])))
    weight = [None, rng.integers(0, 4, size), rng.random(size)][case % 3]
    return target.astype([bool, int, float][case // 3 % 3]), score, weight


def _best_precision(
    target: Array, score: Array, floor: float, weight: Array | None
) -> tuple[float, float, float]:
    precision, recall, threshold = oracle.precision_recall_curve(
        target, score, sample_weight=weight
    )
    points = zip(precision[:-1], recall[:-1], threshold, strict=True)
    return max(point for point in points if point[1] >= floor - EXACT)


@pytest.mark.parametrize("block", range(6))
def test_equals_scikit_learn_on_random_labels(block: int) -> None:
    compared = 0
    for case in range(block * 100, block * 100 + 100):
        target, score, weight = _draw(case)
        mass = np.ones(target.size) if weight is None else weight
        positives, negatives = mass[target == 1].sum(), mass[target == 0].sum()
        ranking = Ranking.of(target, score, weight)

        auc, pr_auc = ranking.roc_auc(), ranking.average_precision()
        if positives and negatives:
            expected = oracle.roc_auc_score(target, score, sample_weight=weight)
            assert auc == pytest.approx(expected, abs=EXACT)
            compared += 1
        else:
            assert auc is None
        floor = float(np.random.default_rng(case).choice([0.5, 0.8, 0.95, 1.0]))
        point = ranking.precision_at_recall(floor)
        if not positives:
            assert pr_auc is None
            assert point is None
            continue
        expected = oracle.average_precision_score(target, score, sample_weight=weight)
        assert pr_auc == pytest.approx(expected, abs=EXACT)
        assert point is not None
        precision, recall, threshold = _best_precision(target, score, floor, weight)
        assert point.precision == pytest.approx(precision, abs=EXACT)
        if weight is None:  # rounded weights may break a tie of precisions either way
            assert (point.recall, point.threshold) == (recall, threshold)
    assert compared > 25


def test_functions_are_the_ranking() -> None:
    target, score, weight = _draw(2)
    ranking = Ranking.of(target, score, weight)
    assert roc_auc(target, score, weight) == ranking.roc_auc()
    assert average_precision(target, score, weight) == ranking.average_precision()
    assert precision_at_recall(target, score, 0.8, weight) == ranking.precision_at_recall(0.8)


def test_whole_weights_are_repeats() -> None:
    rng = np.random.default_rng(5)
    target, score = rng.random(80) < 0.3, np.round(rng.random(80), 1)
    weight = rng.integers(0, 4, 80)
    repeated = Ranking.of(np.repeat(target, weight), np.repeat(score, weight))
    weighted = Ranking.of(target, score, weight)
    assert weighted.roc_auc() == repeated.roc_auc()
    assert weighted.average_precision() == repeated.average_precision()
    assert weighted.precision_at_recall() == repeated.precision_at_recall()


@pytest.mark.parametrize("weight", [None, [0.0, 0.0, 1.0]])
def test_one_class_has_no_auc(weight: list[float] | None) -> None:
    score = [0.1, 0.5, 0.9]
    assert roc_auc([0, 0, 0], score, weight) is None
    assert roc_auc([1, 1, 1], score, weight) is None
    assert roc_auc([1, 1, 0], score, [0, 0, 1]) is None
    assert average_precision([0, 0, 0], score, weight) is None
    assert average_precision([1, 1, 1], score, weight) == 1.0
    assert precision_at_recall([0, 0, 0], score, weight=weight) is None


def test_constant_scores_are_the_floor() -> None:
    target = [1, 0, 0, 0]
    assert roc_auc(target, [0.3] * 4) == 0.5
    assert average_precision(target, [0.3] * 4) == 0.25
    point = precision_at_recall(target, [0.3] * 4)
    assert point is not None
    assert (point.threshold, point.precision, point.recall) == (0.3, 0.25, 1.0)
    floor = {"auc": 0.5, "pr_auc": 0.25, "precision_at_95_recall": 0.25}
    assert constant_floor(target) == floor
    assert constant_floor([1, 1]) == {"auc": None, "pr_auc": 1.0, "precision_at_95_recall": 1.0}
    assert constant_floor([0]) == {"auc": None, "pr_auc": None, "precision_at_95_recall": None}


def test_no_images_and_one_image() -> None:
    assert roc_auc([], []) is None
    assert average_precision([], []) is None
    assert precision_at_recall([], []) is None
    assert roc_auc([1], [0.4]) is None
    assert average_precision([1], [0.4]) == 1.0
    assert confusion_at([], [], 0.5).accuracy is None


@pytest.mark.parametrize("positives", [20, 40, 100, 2000])
def test_recall_floor_is_met_at_exactly_95_percent(positives: int) -> None:
    caught = positives * 19 // 20
    target = np.array([1] * caught + [0] * 7 + [1] * (positives - caught))
    point = precision_at_recall(target, -np.arange(target.size, dtype=float))
    assert point is not None
    assert point.precision == 1.0
    assert point.recall == caught / positives


def test_equal_precision_takes_the_higher_recall() -> None:
    point = precision_at_recall([0, 1, 0, 1], [4.0, 3.0, 2.0, 1.0], recall=0.5)
    assert point is not None
    assert (point.threshold, point.precision, point.recall) == (1.0, 0.5, 1.0)


@pytest.mark.slow
def test_agrees_with_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(0)
    target = rng.random(500) < 0.8
    score = np.round((rng.normal(size=500) + target).clip(-3, 4) / 7 + 0.43, 2)
    metric = classification.BinaryPrecisionAtFixedRecall(min_recall=0.95)
    precision, threshold = metric(torch.tensor(score), torch.tensor(target, dtype=torch.int))
    point = precision_at_recall(target, score)
    assert point is not None
    assert point.precision == pytest.approx(float(precision), abs=1e-6)
    assert point.threshold == pytest.approx(float(threshold), abs=1e-6)


def test_confusion_shares_and_rates() -> None:
    rng = np.random.default_rng(1)
    target, score = rng.random(200) < 0.4, np.round(rng.random(200), 1)
    confusion = confusion_at(target, score, 0.3)
    tn, fp, fn, tp = oracle.confusion_matrix(target, score >= 0.3).ravel()
    assert (confusion.tp, confusion.fp, confusion.tn, confusion.fn) == (tp, fp, tn, fn)
    found = confusion.as_dict()
    shares = [found[f"{cell}_share"] for cell in ("tp", "fp", "tn", "fn")]
    assert math.fsum(float(share or 0) for share in shares) == pytest.approx(1, abs=EXACT)
    assert found["recall"] == pytest.approx(oracle.recall_score(target, score >= 0.3))
    assert found["precision"] == pytest.approx(oracle.precision_score(target, score >= 0.3))
    assert found["specificity"] == pytest.approx(tn / (tn + fp))
    assert found["false_positive_rate"] == pytest.approx(fp / (tn + fp))
    assert found["accuracy"] == pytest.approx((tp + tn) / 200)


def test_confusion_leaves_undefined_rates_empty() -> None:
    nobody_called = confusion_at([0, 0], [0.1, 0.2], 0.5)
    assert nobody_called.precision is None
    assert nobody_called.recall is None
    assert nobody_called.specificity == 1.0
    assert confusion_at([1], [0.5], 0.5).false_positive_rate is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", [roc_auc, average_precision, precision_at_recall])
def test_scores_that_are_not_finite_are_refused(metric: Any, bad: float) -> None:
    with pytest.raises(ValueError, match="2 entries are NaN or infinite, the first at 1"):
        metric([0, 1, 1, 0], [0.1, bad, 0.3, bad])
    with pytest.raises(ValueError, match="the first at 1"):
        confusion_at([0, 1, 1, 0], [0.1, bad, 0.3, bad], 0.2)


@pytest.mark.parametrize(
    ("target", "score", "weight", "message"),
    [
        ([0, 2, 1], [1, 2, 3], None, "target: 1 entries are not 0 or 1, the first at 1"),
        ([0, 1, math.nan], [1, 2, 3], None, "the first at 2"),
        ([0, 1], [1, 2, 3], None, r"target \(2,\) and score \(3,\)"),
        ([[0, 1]], [[1, 2]], None, r"need \[N\]"),
        ([0, 1], [1, 2], [1], r"weight \(1,\)"),
        ([0, 1], [1, 2], [1, -1], "weight: 1 entries are not >= 0, the first at 1"),
        ([0, 1], [1, 2], [math.inf, 1], "weight: 1 entries"),
    ],
)
def test_bad_input_is_refused(target: Any, score: Any, weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roc_auc(target, score, weight)


@pytest.mark.parametrize("recall", [0.0, 1.01, math.nan])
def test_recall_outside_its_range_is_refused(recall: float) -> None:
    with pytest.raises(ValueError, match="recall is"):
        precision_at_recall([0, 1], [0.1, 0.2], recall)


def _predictions(images: int, labels: int, seed: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    target = (rng.random((images, labels)) < 0.3).astype(float)
    probability = np.round((rng.random((images, labels)) + 0.5 * target) / 1.5, 2)
    target[rng.random((images, labels)) < 0.1] = np.nan
    return target, probability, rng.integers(0, images // 3, images)


def _report(**changes: Any) -> dict[str, Any]:
    """Three labels; "Hernia" has no known positive in the test part, "Mass" none in validation."""
    target, probability, patient = _predictions(150, 3, 0)
    val_target, val_probability, _ = _predictions(90, 3, 1)
    target[target[:, 2] == 1, 2] = np.nan
    val_target[:, 1] = np.where(np.isnan(val_target[:, 1]), np.nan, 0)
    arguments: dict[str, Any] = {
        "labels": ["Edema", "Mass", "Hernia"],
        "target": target,
        "probability": probability,
        "patient_id": patient,
        "val_target": val_target,
        "val_probability": val_probability,
        "replicates": 50,
    }
    report = score_predictions(**{**arguments, **changes})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    return report


def test_report_of_a_defined_label() -> None:
    target, probability, patient = _predictions(150, 3, 0)
    val_target, val_probability, _ = _predictions(90, 3, 1)
    row = _report()["labels"]["Edema"]
    known = ~np.isnan(target[:, 0])
    truth, score = target[known, 0], probability[known, 0]
    assert row["images"] == known.sum() == row["positives"] + row["negatives"]
    assert row["unknown"] == 150 - row["images"]
    assert row["patients"] == len(set(patient[known]))
    assert row["positive_patients"] == len(set(patient[known][truth == 1]))
    assert row["auc"] == pytest.approx(oracle.roc_auc_score(truth, score), abs=EXACT)
    assert row["pr_auc"] == pytest.approx(oracle.average_precision_score(truth, score), abs=EXACT)
    assert row["auc_interval"][0] < row["auc"] < row["auc_interval"][1]
    assert row["floor"]["pr_auc"] == row["prevalence"]

    own = row["precision_at_95_recall"]
    assert own["recall"] >= 0.95
    assert own["confusion"]["precision"] == own["precision"]
    assert own["confusion"]["recall"] == own["recall"]

    val_known = ~np.isnan(val_target[:, 0])
    picked = precision_at_recall(val_target[val_known, 0], val_probability[val_known, 0])
    assert picked is not None
    honest = row["precision_at_validation_threshold"]
    assert honest["threshold"] == picked.threshold
    assert honest["validation_precision"] == picked.precision
    assert honest["validation_recall"] == picked.recall
    called = score >= picked.threshold
    assert honest["precision"] == pytest.approx(oracle.precision_score(truth, called))
    assert honest["recall"] == pytest.approx(oracle.recall_score(truth, called))
    assert row["validation_minus_test_auc"] == row["validation"]["auc"] - row["auc"]


def test_report_leaves_undefined_labels_out_of_the_macro_mean() -> None:
    report = _report()
    edema, mass, hernia = report["labels"].values()
    assert hernia["positives"] == 0
    for name in ("auc", "auc_interval", "pr_auc", "pr_auc_interval", "precision_at_95_recall"):
        assert hernia[name] is None
    assert hernia["precision_at_validation_threshold"] is None
    assert hernia["validation"]["auc"] is not None
    assert hernia["floor"]["pr_auc"] is None
    assert mass["validation"]["positives"] == 0
    assert mass["precision_at_validation_threshold"] is None
    assert mass["validation_minus_test_auc"] is None

    macro = report["macro"]
    assert macro["labels_defined"] == ["Edema", "Mass"]
    assert macro["labels_undefined"] == ["Hernia"]
    assert macro["auc"] == pytest.approx((edema["auc"] + mass["auc"]) / 2, abs=EXACT)
    assert macro["validation_auc"] == edema["validation"]["auc"]
    assert macro["validation_minus_test_auc"] == edema["validation_minus_test_auc"]
    honest = edema["precision_at_validation_threshold"]
    assert macro["precision_at_validation_threshold"] == honest["precision"]
    assert macro["recall_at_validation_threshold"] == honest["recall"]


def test_report_without_a_validation_part() -> None:
    report = _report(val_target=None, val_probability=None)
    for row in report["labels"].values():
        assert row["validation"] is None
        assert row["precision_at_validation_threshold"] is None
    assert report["macro"]["validation_auc"] is None
    assert report["macro"]["auc"] is not None


def test_macro_of_one_label_is_the_label() -> None:
    target, probability, patient = _predictions(150, 1, 0)
    report = score_predictions(
        labels=["Edema"],
        target=target,
        probability=probability,
        patient_id=patient.astype(str),
        val_target=target,
        val_probability=probability,
        replicates=30,
    )
    row, macro = report["labels"]["Edema"], report["macro"]
    for name in ("auc", "auc_interval", "pr_auc", "pr_auc_interval", "floor"):
        assert macro[name] == row[name]
    own, honest = row["precision_at_95_recall"], row["precision_at_validation_threshold"]
    assert macro["precision_at_95_recall"] == own["precision"]
    assert macro["precision_at_95_recall_interval"] == own["interval"]
    # With the validation part equal to the test part, both thresholds are one.
    assert honest["confusion"] == own["confusion"]
    assert macro["validation_minus_test_auc"] == 0


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_report_of_nothing_but_one_class_is_null(value: float) -> None:
    report = _report(target=np.full((150, 3), value))
    assert report["macro"]["auc"] is None
    assert report["macro"]["auc_interval"] is None
    assert report["macro"]["labels_defined"] == []
    assert report["labels"]["Mass"]["pr_auc"] == (1.0 if value == 1 else None)


def test_report_of_one_image() -> None:
    report = score_predictions(
        labels=["Edema"], target=[[1]], probability=[[0.4]], patient_id=["a"], replicates=5
    )
    assert report["labels"]["Edema"]["auc"] is None
    # A single patient cannot be resampled: no interval, rather than one of width 0.
    assert report["labels"]["Edema"]["pr_auc_interval"] is None
    json.dumps(report, allow_nan=False)


def test_report_needs_no_replicates() -> None:
    report = _report(replicates=0)
    assert report["macro"]["auc"] is not None
    assert report["macro"]["auc_interval"] is None


def test_threshold_that_calls_nobody_has_no_precision() -> None:
    report = score_predictions(
        labels=["Edema"],
        target=[[0], [1], [0], [1]],
        probability=[[0.1], [0.2], [0.1], [0.2]],
        patient_id=[1, 2, 3, 4],
        val_target=[[0], [1]],
        val_probability=[[0.8], [0.9]],
        replicates=5,
    )
    honest = report["labels"]["Edema"]["precision_at_validation_threshold"]
    assert (honest["precision"], honest["recall"]) == (None, 0.0)
    assert report["macro"]["precision_at_validation_threshold"] is None
    assert report["macro"]["recall_at_validation_threshold"] == 0.0


def _with(value: float) -> Array:
    probability = np.full((150, 3), 0.5)
    probability[[4, 9], 1] = value
    return probability


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probability": _with(math.nan)}, "probability of 'Mass': 2 values are .* in row 4"),
        ({"probability": _with(1.5)}, "probability of 'Mass': 2 values are not in"),
        ({"probability": _with(-math.inf)}, "probability of 'Mass'"),
        ({"val_probability": np.full((90, 3), 2.0)}, "val_probability of 'Edema': 90 values"),
        ({"target": _with(1)}, "target of 'Edema': 150 values are not 0, 1 or NaN"),
        ({"target": np.zeros((150, 2))}, r"target \(150, 2\)"),
        ({"val_target": None}, "give both or neither"),
        ({"labels": ["Edema", "Edema", "Mass"]}, "distinct"),
        ({"patient_id": [1, 2]}, "cluster has 2 entries for 150 images"),
        ({"target": np.zeros((0, 3)), "probability": np.zeros((0, 3))}, "no images"),
        ({"recall": 0.0}, "recall is 0.0"),
    ],
)
def test_report_refuses_bad_input(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _report(**changes)
