"""The drawn chest films: repeatable, shaped like a cohort, and true to what they say they show."""

import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from cxrbench.data.painter import (
    FINDINGS,
    PREVALENCE,
    Film,
    Study,
    paint,
    paint_image,
    sample_cohort,
)

IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
SIZE = 128
Grey = npt.NDArray[np.uint8]


def healthy(number: int, *, view: str = "PA", sex: str = "M") -> Study:
    patient = f"{number:08d}"
    return Study(f"{patient}_000.png", patient, 0, sex, 50, view, (), seed=11)


def sick(study: Study, **severities: float) -> Study:
    return replace(study, findings=tuple(severities.items()))


def aligned(study: Study, size: int = SIZE) -> Film:
    return paint(study, size, affine=IDENTITY)


def mean_change(study: Study, finding: str, severity: float) -> float:
    bare, ill = aligned(study), aligned(sick(study, **{finding: severity}))
    return float(np.abs(ill.image.astype(float) - bare.image).mean())


def boxed(film: Film, margin: float) -> npt.NDArray[np.bool_]:
    """The pixels [S, S] inside any box of a film, each widened by a margin."""
    size = len(film.image)
    inside = np.zeros((size, size), bool)
    for box in film.boxes:
        x, y = (
            np.array([box.x - margin, box.x + box.width + margin]),
            np.array([box.y - margin, box.y + box.height + margin]),
        )
        (left, right), (top, bottom) = (
            np.clip(np.rint(v * size), 0, size).astype(int) for v in (x, y)
        )
        inside[top:bottom, left:right] = True
    return inside


@pytest.fixture(scope="module")
def cohort() -> list[Study]:
    return sample_cohort(20_000, seed=3)


@pytest.fixture(scope="module")
def labels(cohort: list[Study]) -> npt.NDArray[np.bool_]:
    """Findings of the cohort [N, 14]."""
    return np.array([[name in dict(study.findings) for name in FINDINGS] for study in cohort])


def test_a_study_is_painted_alike_in_another_process() -> None:
    code = (
        "import hashlib; from cxrbench.data.painter import paint_image, sample_cohort\n"
        "for s in sample_cohort(4, seed=5, enrichment=4): "
        "print(hashlib.sha256(paint_image(s, 96).tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [
        hashlib.sha256(paint_image(study, 96).tobytes()).hexdigest()
        for study in sample_cohort(4, seed=5, enrichment=4)
    ]
    assert there.stdout.split() == here
    assert len(set(here)) == 4


@pytest.mark.parametrize("size", [64, 128, 200])
def test_the_scene_is_the_same_at_every_size(size: int) -> None:
    for study in sample_cohort(4, seed=6, enrichment=4):
        large = cv2.resize(paint_image(study, 512), (size, size), interpolation=cv2.INTER_AREA)
        same = np.corrcoef(large.ravel(), paint_image(study, size).ravel())[0, 1]
        assert same > 0.985


def test_paint_and_paint_image_draw_the_same_picture() -> None:
    for study in sample_cohort(5, seed=8, enrichment=6):
        film = paint(study, 100)
        assert film.image.dtype == np.uint8
        assert film.image.shape == film.lungs.shape == (100, 100)
        np.testing.assert_array_equal(film.image, paint_image(study, 100))


@pytest.mark.parametrize("enrichment", [1.0, 5.0])
def test_a_longer_cohort_starts_with_the_shorter_one(enrichment: float) -> None:
    long = sample_cohort(700, seed=1, enrichment=enrichment)
    for count in (0, 1, 37, 500):
        assert sample_cohort(count, seed=1, enrichment=enrichment) == long[:count]
    assert sample_cohort(37, seed=2, enrichment=enrichment) != long[:37]


def test_names_and_follow_ups_are_those_of_chestxray14(cohort: list[Study]) -> None:
    assert len({study.image_id for study in cohort}) == len(cohort)
    seen: Counter[str] = Counter()
    for study in cohort:
        assert study.follow_up == seen[study.patient_id]
        assert study.image_id == f"{study.patient_id}_{study.follow_up:03d}.png"
        assert len(study.patient_id) == 8
        assert all(0 < severity <= 1 for _, severity in study.findings)
        seen[study.patient_id] += 1
    images = list(seen.values())[:-1]
    assert np.mean([n == 1 for n in images]) == pytest.approx(0.57, abs=0.03)
    assert 3.0 < np.mean(images) < 4.3
    assert max(images) > 30


def test_prevalences_are_those_of_chestxray14(labels: npt.NDArray[np.bool_]) -> None:
    for name, share in zip(FINDINGS, labels.mean(axis=0), strict=True):
        # Images of one patient hang together, so the sample holds fewer than 20,000.
        spread = 4 * np.sqrt(PREVALENCE[name] / 5000)
        assert share == pytest.approx(PREVALENCE[name], abs=spread), name
    assert np.mean(~labels.any(axis=1)) == pytest.approx(60_361 / 112_120, abs=0.03)


def test_findings_keep_company_as_in_patients(
    cohort: list[Study], labels: npt.NDArray[np.bool_]
) -> None:
    def lift(a: str, b: str) -> float:
        x, y = labels[:, FINDINGS.index(a)], labels[:, FINDINGS.index(b)]
        return float((x & y).mean() / (x.mean() * y.mean()))

    assert lift("Effusion", "Atelectasis") > 1.5
    assert lift("Effusion", "Consolidation") > 1.5
    assert lift("Edema", "Effusion") > 1.5
    assert lift("Fibrosis", "Pleural_Thickening") > 1.5
    assert lift("Effusion", "Atelectasis") > lift("Effusion", "Nodule")
    assert lift("Edema", "Cardiomegaly") > lift("Edema", "Emphysema")
    portable = np.array([study.view_position == "AP" for study in cohort])
    assert portable.mean() == pytest.approx(0.40, abs=0.03)
    assert labels[portable].sum(axis=1).mean() > 1.15 * labels[~portable].sum(axis=1).mean()


def test_findings_persist_between_images_of_a_patient(
    cohort: list[Study], labels: npt.NDArray[np.bool_]
) -> None:
    later = [i for i in range(1, len(cohort)) if cohort[i].follow_up]
    effusion = labels[:, FINDINGS.index("Effusion")]
    again = np.mean([effusion[i] for i in later if effusion[i - 1]])
    anew = np.mean([effusion[i] for i in later if not effusion[i - 1]])
    assert again > 4 * anew


def test_enrichment_gives_a_small_cohort_positives_of_everything() -> None:
    counts = Counter(
        name for s in sample_cohort(1500, seed=4, enrichment=8) for name, _ in s.findings
    )
    assert min(counts[name] for name in FINDINGS) >= 5
    assert max(counts.values()) / 1500 < 0.42


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_shows_inside_its_box_and_grows_with_severity(finding: str) -> None:
    ratios, weak, strong = [], 0.0, 0.0
    for number in range(1, 7):
        study = healthy(number)
        bare, ill = aligned(study), aligned(sick(study, **{finding: 0.9}))
        change = np.abs(ill.image.astype(float) - bare.image)
        inside = boxed(ill, 0.03)
        assert ill.boxes and {box.finding for box in ill.boxes} == {finding}
        ratios.append(change[inside].mean() / (change[~inside].mean() + 1e-3))
        weak += mean_change(study, finding, 0.3)
        strong += mean_change(study, finding, 0.9)
        assert change[inside].max() > 12
    assert np.median(ratios) > 4
    assert strong > 1.15 * weak > 0


def test_a_finding_leaves_the_others_alone() -> None:
    study = healthy(9)
    both = aligned(sick(study, Nodule=0.8, Mass=0.8))
    for finding in ("Nodule", "Mass"):
        alone = aligned(sick(study, **{finding: 0.8}))
        assert set(alone.boxes) <= set(both.boxes)


def test_boxes_lie_within_the_image() -> None:
    for study in sample_cohort(40, seed=12, enrichment=8):
        film = paint(study, 64)
        assert {box.finding for box in film.boxes} <= {name for name, _ in study.findings}
        for box in film.boxes:
            assert box.x >= 0 and box.y >= 0 and box.width > 0 and box.height > 0
            assert box.x + box.width <= 1 and box.y + box.height <= 1


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_lungs_are_two_and_darker_than_the_mediastinum(view: str) -> None:
    for number in range(1, 9):
        film = aligned(healthy(number, view=view, sex="FM"[number % 2]))
        assert 0.12 < film.lungs.mean() < 0.42
        parts, _, stats, _ = cv2.connectedComponentsWithStats(film.lungs.astype(np.uint8))
        assert (np.sort(stats[1:parts, cv2.CC_STAT_AREA])[-2:] > 0.04 * SIZE**2).all()
        middle = film.image[int(0.5 * SIZE) : int(0.75 * SIZE), int(0.48 * SIZE) : int(0.54 * SIZE)]
        assert film.image[film.lungs].mean() + 60 < middle.mean()


def heart_width(film: Film) -> int:
    """Pixels between the lungs at the height of the heart."""
    row = film.lungs[int(0.62 * SIZE)]
    centre = int(0.51 * SIZE)
    left, right = np.flatnonzero(row[:centre]).max(), centre + np.flatnonzero(row[centre:]).min()
    return int(right - left)


def test_cardiomegaly_widens_the_heart() -> None:
    for number in range(1, 6):
        study = healthy(number)
        widths = [heart_width(aligned(study))]
        widths += [heart_width(aligned(sick(study, Cardiomegaly=s))) for s in (0.3, 0.6, 1.0)]
        assert widths == sorted(widths)
        assert widths[-1] > 1.2 * widths[0]
        assert heart_width(aligned(replace(study, view_position="AP"))) > widths[0]


def test_the_lungs_stay_whole_under_an_effusion() -> None:
    study = healthy(4)
    np.testing.assert_array_equal(aligned(study).lungs, aligned(sick(study, Effusion=1.0)).lungs)


def warped(mask: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """A mask moved by an affine of normalised coordinates."""
    half = len(mask) / 2
    matrix = affine.copy()
    centre = np.full(2, half - 0.5)
    matrix[:, 2] = affine[:, 2] * half + centre - affine[:, :2] @ centre
    moved = cv2.warpAffine(mask.astype(np.float32), matrix, mask.shape, flags=cv2.INTER_LINEAR)
    return np.asarray(moved > 0.5)


@pytest.mark.parametrize(
    ("scale", "degrees", "shift"),
    [
        (1.0, 0.0, (0.1, -0.05)),
        (0.85, 0.0, (0.0, 0.0)),
        (1.0, 12.0, (0.0, 0.0)),
        (0.9, -8.0, (-0.06, 0.04)),
    ],
)
def test_the_affine_says_where_the_patient_went(
    scale: float, degrees: float, shift: tuple[float, float]
) -> None:
    angle = np.deg2rad(degrees)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    affine = np.array([[c, -s, shift[0]], [s, c, shift[1]]])
    for number in (1, 2):
        study = healthy(number)
        film, straight = paint(study, SIZE, affine=affine), aligned(study)
        np.testing.assert_array_equal(film.affine, affine)
        expected = warped(straight.lungs, affine)
        overlap = (film.lungs & expected).sum() / (film.lungs | expected).sum()
        unmoved = (film.lungs & straight.lungs).sum() / (film.lungs | straight.lungs).sum()
        assert overlap > 0.95 > unmoved


def test_drawn_affines_are_told_and_portable_ones_are_wilder() -> None:
    def misfit(view: str) -> float:
        films = [paint(healthy(n, view=view), 64) for n in range(1, 25)]
        expected = [
            warped(aligned(healthy(n, view=view), 64).lungs, f.affine)
            for n, f in enumerate(films, 1)
        ]
        overlaps = [
            (f.lungs & e).sum() / (f.lungs | e).sum() for f, e in zip(films, expected, strict=True)
        ]
        assert min(overlaps) > 0.93
        return float(np.mean([np.abs(f.affine - IDENTITY).sum() for f in films]))

    assert misfit("AP") > 1.2 * misfit("PA")


def test_forced_blur_takes_sharpness() -> None:
    study = healthy(2)
    sharpness = []
    for sigma in (0.0, 0.004, 0.012, 0.03):
        film = paint(study, 256, blur_sigma=sigma)
        assert film.blur_sigma == sigma
        sharpness.append(float(cv2.Laplacian(film.image, cv2.CV_64F).var()))
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[1] < 0.8 * sharpness[0]


def test_images_of_a_patient_share_the_body_but_not_the_exposure() -> None:
    first = healthy(7)
    second = replace(first, image_id="00000007_001.png", follow_up=1)
    stranger = healthy(8)
    one, two, other = (aligned(study).image.astype(float) for study in (first, second, stranger))
    assert np.abs(one - two).mean() > 1
    edges = [
        cv2.Laplacian(cv2.GaussianBlur(image, (0, 0), 1), cv2.CV_64F).ravel()
        for image in (one, two, other)
    ]
    assert np.corrcoef(edges[0], edges[1])[0, 1] > np.corrcoef(edges[0], edges[2])[0, 1]
