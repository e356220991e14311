"""Scores and their intervals against scikit-learn and `confidenceinterval`.

N: images, K: labels. Made-up scores of the size of the published test part of ChestX-ray14: 25,596 images,
14 labels with its prevalences between 0.2 and 18 %, patients with 1 to about 40 films, scores with ties.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrbench.metrics.classification import Ranking
from cxrbench.metrics.delong import clustered_delong
from cxrbench.metrics.intervals import (
    METRICS,
    cluster_codes,
    clustered_bootstrap,
    resample_counts,
)
from cxrbench.perf.harness import Absent, Comparison, Goal, Item, close_arrays

FloatArray = npt.NDArray[np.float64]
RECALL = 0.95
CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959963984540054  # of (1 + CONFIDENCE) / 2


@dataclass(frozen=True)
class Cohort:
    """target [N, K] of 0 and 1, score [N, K] in [0, 1], patient [N]."""

    target: npt.NDArray[np.int64]
    score: FloatArray
    patient: npt.NDArray[np.str_]


def draw_cohort(images: int, labels: int, seed: int = 0) -> Cohort:
    """Patients, targets and scores from a generator; scores have five decimals, so some are tied."""
    random = np.random.default_rng(seed)
    patients = max(2, images // 9)
    share = random.exponential(size=patients)
    patient = random.choice(patients, size=images, p=share / share.sum())
    prevalence = np.geomspace(0.002, 0.18, labels)
    target = (random.random((images, labels)) < prevalence).astype(np.int64)
    target[0], target[1] = 1, 0  # both classes, however few the images
    logit = random.normal(size=(images, labels)) + 1.2 * target - 2
    return Cohort(
        target, np.round(1 / (1 + np.exp(-logit)), 5), np.char.add("p", patient.astype(str))
    )


def sorted_once(cohort: Cohort) -> FloatArray:
    """AUC, average precision and precision at the recall of every label [K, 3], by one sort each."""
    found = []
    for target, score in zip(cohort.target.T, cohort.score.T, strict=True):
        ranking = Ranking.of(target, score)
        point = ranking.precision_at_recall(RECALL)
        values = (ranking.roc_auc(), ranking.average_precision(), point and point.precision)
        found.append([np.nan if value is None else value for value in values])
    return np.asarray(found, dtype=np.float64)


def by_scikit_learn(target: npt.NDArray[Any], score: FloatArray) -> FloatArray:
    """The same [K, 3] as one writes it with scikit-learn: a call a metric and label."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels without positives
        for truth, values in zip(target.T, score.T, strict=True):
            if truth.min() == truth.max():  # scikit-learn gives 0 or refuses; ours are undefined
                found.append(
                    [np.nan, 1.0 if truth.any() else np.nan, 1.0 if truth.any() else np.nan]
                )
                continue
            precision, recall, _ = precision_recall_curve(truth, values)
            best = precision[recall >= RECALL - 1e-12].max()
            found.append(
                [roc_auc_score(truth, values), average_precision_score(truth, values), best]
            )
    return np.asarray(found, dtype=np.float64)


def replicates(cohort: Cohort, count: int) -> FloatArray:
    """Ours: [count, K, 3]."""
    drawn = clustered_bootstrap(
        cohort.target, cohort.score, np.ones(cohort.target.shape, bool), cohort.patient,
        replicates=count, seed=0, recall=RECALL,
    )  # fmt: skip
    return np.stack([drawn.values[metric] for metric in METRICS], axis=-1)


def looped_replicates(cohort: Cohort, count: int) -> FloatArray:
    """scikit-learn on the rows of the first `count` of the same resamples of patients [count, K, 3]."""
    codes, clusters = cluster_codes(cohort.patient)
    drawn = resample_counts(np.random.default_rng(0), count, clusters)
    found = []
    for times in drawn:
        rows = np.repeat(np.arange(codes.size), times[codes])
        found.append(by_scikit_learn(cohort.target[rows], cohort.score[rows]))
    return np.stack(found)


def delong_intervals(cohort: Cohort) -> FloatArray:
    """Ours, each image its own patient: AUC and its interval of every label [K, 3]."""
    images = len(cohort.target)
    known = np.ones(cohort.target.shape, bool)
    found = clustered_delong(cohort.target, cohort.score[..., None], known, np.arange(images))
    auc = found.auc[:, 0]
    reach = NORMAL_QUANTILE * np.sqrt(np.einsum("kmkm->k", found.covariance))
    return np.stack([auc, auc - reach, auc + reach], axis=1)


def comparisons(
    folder: Path, *, images: int = 25_596, labels: int = 14, count: int = 1000, looped: int = 1
) -> Iterator[Item]:
    """All of this topic; the scikit-learn loop runs `looped` of the `count` resamples."""
    cohort = draw_cohort(images, labels)
    size = f"{images:,} images x {labels} labels"
    yield Comparison(
        "statistics/scores",
        f"AUC, AP and P@95R of {size}: one sort a label / scikit-learn",
        ours=lambda: sorted_once(cohort),
        peer=lambda: by_scikit_learn(cohort.target, cohort.score),
        equal=close_arrays,
        goal=Goal("ratio", 20, least=True),
    )
    yield Comparison(
        "statistics/bootstrap",
        f"{count:,} patient-clustered replicates of all three / the scikit-learn loop",
        ours=lambda: replicates(cohort, count),
        peer=lambda: looped_replicates(cohort, looped),
        equal=lambda ours, peer: close_arrays(ours[:looped], peer),
        goal=Goal("ratio", 400, least=True),
        units=(count, looped),
        unit="replicate",
        note=f"The loop ran {looped} of the {count:,} resamples a round and is scaled; it is linear in them.",
    )
    yield Comparison(
        "statistics/bootstrap-time",
        f"{count:,} replicates of {size}, one core",
        ours=lambda: replicates(cohort, count),
        goal=Goal("seconds", 2),
    )
    yield _delong(cohort)


def _delong(cohort: Cohort) -> Item:
    name, what = "statistics/delong", "DeLong's AUC intervals / confidenceinterval"
    try:
        package = import_module("confidenceinterval")
    except ImportError as error:
        return Absent(name, what, f"pip install confidenceinterval ({error})")

    def peer() -> FloatArray:
        found = []
        for truth, values in zip(cohort.target.T, cohort.score.T, strict=True):
            auc, (low, high) = package.roc_auc_score(truth, values, confidence_level=CONFIDENCE)
            found.append([float(auc), float(low), float(high)])
        return np.asarray(found)

    return Comparison(
        name,
        what,
        ours=lambda: delong_intervals(cohort),
        peer=peer,
        equal=lambda ours, peer: close_arrays(ours, peer, 1e-6),
        goal=Goal("ratio", 10, least=True),
        note="Equal to 1e-6, since the peer ranks in float32; each image its own patient.",
    )
