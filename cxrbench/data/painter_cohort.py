"""Cohorts of drawn patients: who they are, what they have, how often they were imaged.

Prevalences are ChestX-ray14's; findings, view and age are correlated by a latent Gaussian.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from cxrbench.data.painter_anatomy import Double, stream
from cxrbench.data.painter_findings import FINDINGS

_IMAGES = 112_120
_COUNTS = {
    "Atelectasis": 11_559,
    "Cardiomegaly": 2_776,
    "Effusion": 13_317,
    "Infiltration": 19_894,
    "Mass": 5_782,
    "Nodule": 6_331,
    "Pneumonia": 1_431,
    "Pneumothorax": 5_302,
    "Consolidation": 4_667,
    "Edema": 2_303,
    "Emphysema": 2_516,
    "Fibrosis": 1_686,
    "Pleural_Thickening": 3_385,
    "Hernia": 227,
}
PREVALENCE: dict[str, float] = {name: _COUNTS[name] / _IMAGES for name in FINDINGS}
_CAP = 0.35
_AP_SHARE = 0.40
_MOST_IMAGES = 60
# How much of a finding a patient keeps from image to image.
_PERSISTENCE = 0.75
# Correlations of the latent illness, beyond what all findings share; view is "the patient lies".
_COMMON = 0.10
_PAIRS = {
    ("Effusion", "Atelectasis"): 0.38,
    ("Effusion", "Infiltration"): 0.25,
    ("Effusion", "Consolidation"): 0.36,
    ("Effusion", "Edema"): 0.34,
    ("Effusion", "Cardiomegaly"): 0.32,
    ("Effusion", "Pleural_Thickening"): 0.22,
    ("Effusion", "Pneumothorax"): 0.14,
    ("Atelectasis", "Infiltration"): 0.20,
    ("Atelectasis", "Consolidation"): 0.26,
    ("Infiltration", "Edema"): 0.30,
    ("Infiltration", "Pneumonia"): 0.34,
    ("Infiltration", "Consolidation"): 0.18,
    ("Consolidation", "Pneumonia"): 0.26,
    ("Edema", "Pneumonia"): 0.36,
    ("Edema", "Consolidation"): 0.24,
    ("Edema", "Cardiomegaly"): 0.30,
    ("Mass", "Nodule"): 0.30,
    ("Fibrosis", "Pleural_Thickening"): 0.34,
    ("Emphysema", "Pneumothorax"): 0.40,
    ("view", "Effusion"): 0.22,
    ("view", "Edema"): 0.45,
    ("view", "Consolidation"): 0.30,
    ("view", "Atelectasis"): 0.18,
    ("view", "Infiltration"): 0.24,
    ("view", "Pneumonia"): 0.25,
    ("view", "Fibrosis"): -0.15,
    ("view", "Hernia"): -0.20,
    ("age", "Fibrosis"): 0.25,
    ("age", "Hernia"): 0.40,
    ("age", "Emphysema"): 0.20,
    ("age", "Effusion"): 0.12,
}


@dataclass(frozen=True)
class Study:
    """One image of a cohort; with the seed it fixes every pixel."""

    image_id: str
    patient_id: str
    follow_up: int
    sex: str
    age: int
    view_position: str
    findings: tuple[tuple[str, float], ...]  # name and severity in (0, 1]
    seed: int


@lru_cache(maxsize=1)
def _mixing() -> Double:
    """Factor of the latent correlation [16, 16] of the findings, the view and the age."""
    names = [*FINDINGS, "view", "age"]
    matrix = np.full((len(names), len(names)), _COMMON)
    matrix[-1, :] = matrix[:, -1] = 0.0
    for (a, b), value in _PAIRS.items():
        i, j = names.index(a), names.index(b)
        matrix[i, j] = matrix[j, i] = value
    np.fill_diagonal(matrix, 1.0)
    values, vectors = np.linalg.eigh(matrix)
    factor = vectors * np.sqrt(np.maximum(values, 1e-6))
    # Rows of unit length keep every marginal standard normal, so prevalences are exact.
    return np.asarray(factor / np.linalg.norm(factor, axis=1, keepdims=True), np.float64)


def _patient(number: int, seed: int, cuts: Double) -> Iterator[Study]:
    """All images of one patient."""
    rng = stream(seed, "patient", number)
    patient_id = f"{number:08d}"
    count = 1 if rng.random() < 0.57 else 2 + int(np.exp(rng.normal(0.88, 1.3)))
    count = min(count, _MOST_IMAGES)
    sex = "M" if rng.random() < 0.565 else "F"
    own = rng.standard_normal(16)
    now = rng.standard_normal((count, 16))
    mixing = _mixing()
    latent = (np.sqrt(_PERSISTENCE) * own + np.sqrt(1 - _PERSISTENCE) * now) @ mixing.T
    age = int(np.clip(round(47 + 16.5 * float(mixing[-1] @ own)), 5, 92))
    normal = NormalDist()
    for i in range(count):
        over = np.flatnonzero(latent[i, :14] > cuts[:14])
        findings = []
        for k in over:
            tail = 1 - normal.cdf(float(cuts[k]))
            rank = 1 - (1 - normal.cdf(float(latent[i, k]))) / tail
            findings.append((FINDINGS[k], round(float(np.clip(0.2 + 0.8 * rank, 0.2, 1.0)), 4)))
        yield Study(
            image_id=f"{patient_id}_{i:03d}.png",
            patient_id=patient_id,
            follow_up=i,
            sex=sex,
            age=age + i // 12,
            view_position="AP" if latent[i, 14] > cuts[14] else "PA",
            findings=tuple(findings),
            seed=seed,
        )


def sample_cohort(images: int, *, seed: int, enrichment: float = 1.0) -> list[Study]:
    """Draw exactly so many studies; a longer cohort starts with the shorter one."""
    shares = [min(max(_CAP, p), p * enrichment) for p in PREVALENCE.values()] + [_AP_SHARE]
    cuts = np.array([NormalDist().inv_cdf(1 - share) for share in shares])
    cohort: list[Study] = []
    number = 0
    while len(cohort) < images:
        number += 1
        cohort.extend(_patient(number, seed, cuts))
    return cohort[:images]
