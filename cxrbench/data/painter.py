"""A generator of chest radiographs whose truth is known: cohorts, and the film of a study.

Every picture is a pure function of its study. Attenuation along the ray is summed organ by organ
and then developed like film, so that ribs show through lungs and fluid hides vessels.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from cxrbench.data.painter_anatomy import (
    Anatomy,
    Bytes,
    Double,
    Float,
    Measures,
    measure,
    stream,
    vessels,
)
from cxrbench.data.painter_canvas import Canvas, airways, noise, skeleton, spine, trunk
from cxrbench.data.painter_cohort import PREVALENCE, Study, sample_cohort
from cxrbench.data.painter_findings import (
    FINDINGS,
    PAINTERS,
    Box,
    Chest,
    place_stream,
    reshape,
)

__all__ = [
    "FINDINGS",
    "PREVALENCE",
    "Box",
    "Film",
    "Study",
    "paint",
    "paint_image",
    "sample_cohort",
]


@dataclass(frozen=True)
class Film:
    """A painted radiograph and the truth about it."""

    image: npt.NDArray[np.uint8]  # [S, S]
    lungs: npt.NDArray[np.bool_]  # [S, S], both, also under opacities
    boxes: tuple[Box, ...]
    affine: npt.NDArray[np.float64]  # [2, 3], canonical to image points, both in [-1, 1]
    blur_sigma: float  # of the Gaussian blur, as a fraction of the image's side


@dataclass(frozen=True)
class _Exposure:
    """How one image was taken: misalignment, technique, and what is written on the film."""

    affine: Double
    blur_sigma: float
    level: float  # attenuation shown as middle grey
    contrast: float
    gain: float  # of the local contrast enhancement
    noise: float  # grey levels at full size
    base: float  # grey of the unexposed background
    borders: tuple[float, float, float, float]  # left, top, right, bottom
    tilt: float  # of the collimator, radians
    label: tuple[str, float, float, float]  # text, x, y, height
    second: str


def _affine(rng: np.random.Generator, portable: bool) -> Double:
    n = np.clip(rng.standard_normal(5), -2.5, 2.5)
    wild = 1.7 if portable else 1.0
    scale = 1.0 + 0.035 * wild * n[0]
    angle = np.deg2rad(1.6 * wild * n[1])
    shift = np.array([0.025, 0.03]) * wild * n[2:4]
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def _expose(study: Study) -> _Exposure:
    rng = stream(study.seed, "exposure", study.patient_id, study.image_id)
    portable = study.view_position == "AP"
    affine = _affine(rng, portable)
    n = np.clip(rng.standard_normal(6), -2.2, 2.2)
    left = rng.random() < 0.6
    x = rng.uniform(0.86, 0.93) if left else rng.uniform(0.05, 0.12)
    texts = ("", "PORTABLE", "AP", "AP SUPINE", "SEMI-ERECT") if portable else ("", "", "PA")
    borders = np.where(rng.random(4) < 0.22, rng.uniform(0.005, 0.05, 4), 0.0)
    return _Exposure(
        affine=affine,
        blur_sigma=float(0.0007 * np.exp(0.3 * n[0])) * (1.25 if portable else 1.0),
        level=1.50 + 0.07 * n[1] + (0.03 if portable else 0.0),
        contrast=(1.95 if portable else 2.2) * float(np.exp(0.09 * n[2])),
        gain=float(np.clip(0.42 + 0.15 * n[3], 0.1, 0.8)),
        noise=2.6 * float(np.exp(0.3 * n[4])) * (1.3 if portable else 1.0),
        base=4.0 + 3.0 * abs(float(n[5])),
        borders=(float(borders[0]), float(borders[1]), float(borders[2]), float(borders[3])),
        tilt=float(rng.normal(0, 0.008)),
        label=("L" if left else "R", x, rng.uniform(0.05, 0.13), rng.uniform(0.028, 0.042)),
        second=texts[int(rng.integers(len(texts)))],
    )


def _pose(study: Study) -> Measures:
    """The patient's body as it stood or lay for this image, with its findings."""
    m = measure(study.seed, study.patient_id, study.sex, study.age)
    rng = stream(study.seed, "pose", study.patient_id, study.image_id)
    n = np.clip(rng.standard_normal(6), -2.2, 2.2)
    m = replace(m, dome=m.dome + 0.025 * n[0], rotation=0.010 * n[1])
    if study.view_position == "AP":
        m = replace(
            m,
            heart=m.heart * 1.10,
            dome=m.dome - 0.06 + 0.02 * n[2],
            scapula=float(np.clip(0.85 + 0.25 * n[3], 0.3, 1.3)),
            rotation=0.022 * n[1],
            clavicle=m.clavicle + 0.02 * n[4],
            aorta=m.aorta * 1.06,
            breast=0.7 * m.breast,
        )
    else:
        m = replace(m, scapula=float(np.clip(0.15 + 0.2 * n[3], 0.0, 0.7)))
    return reshape(m, dict(study.findings), study.seed, study.patient_id)


def _canvases(size: int, affine: Double) -> tuple[Canvas, Canvas]:
    """Rasters for sharp and for soft things; small films are drawn larger and reduced."""
    fine = max(size, 256)
    soft = fine if 128 < size <= 384 else (fine + 1) // 2
    return Canvas(fine, affine), Canvas(soft, affine)


def _chest(study: Study, anatomy: Anatomy, soft: Canvas, want_boxes: bool) -> Chest:
    """The air of the lungs after all findings."""
    heart = soft.mask([anatomy.heart], soft=0.0055)
    chest = Chest(
        canvas=soft,
        anatomy=anatomy,
        halves=(
            soft.mask([anatomy.lung(-1)], soft=0.0048),
            soft.mask([anatomy.lung(1)], soft=0.0048),
        ),
        air=np.ones((soft.size, soft.size), np.float32),
        extra=np.zeros((soft.size, soft.size), np.float32),
        heart=heart,
        want_boxes=want_boxes,
    )
    for name, severity in study.findings:
        rng = place_stream(study.seed, study.patient_id, name)
        PAINTERS[name](chest, severity, rng)
    return chest


def _texture(study: Study, soft: Canvas) -> Float:
    """Uneven density of the tissue, the same for all images of a patient."""
    rng = stream(study.seed, "texture", study.patient_id)
    field = noise(rng, 256, 1.0) * np.float32(0.6) + noise(rng, 256, 8.0)
    return soft.spread(field, np.zeros(2), (1.0, 1.0))


def _hila(study: Study, chest: Chest) -> Float:
    """The roots of both lungs, where large vessels overlap."""
    roots = []
    for side in (-1, 1):
        rng = stream(study.seed, "hilum", study.patient_id, side)
        centre = chest.anatomy.hilum(side) + np.array([side * 0.02, 0.03])
        roots.append(chest.blob(centre, (0.075, 0.14), rng, rough=0.22, edge=1.3))
    return np.maximum(*roots)


def _stomach(study: Study, chest: Chest) -> Float:
    """The gas in the stomach below the left diaphragm; some images show little of it."""
    rng = stream(study.seed, "stomach", study.patient_id, study.image_id)
    m = chest.anatomy.m
    y = m.dome + m.dome_gap + 0.13 * m.flat - m.raised[1]
    radii = (rng.uniform(0.08, 0.14), rng.uniform(0.035, 0.055))
    centre = np.array([rng.uniform(0.30, 0.40), y + 0.035 + radii[1]])
    gas = chest.blob(centre, radii, rng, rough=0.10, edge=0.7, grain=6)
    return gas * np.float32(rng.uniform(0.0, 0.42))


def _tissue(
    study: Study, anatomy: Anatomy, soft: Canvas, chest: Chest
) -> tuple[Float, Float, Float]:
    """Attenuation of everything soft, the air left in the lungs, and how central a place is."""
    central = soft.mask([anatomy.mediastinum], soft=0.012)
    solid = 1 - (1 - np.float32(0.90) * central) * (1 - np.float32(0.84) * chest.heart)
    lungs = chest.both
    deep = soft.soften(lungs, 0.10)
    profile = lungs * np.minimum(np.float32(0.30) + np.float32(0.85) * deep, 1.05)
    texture = _texture(study, soft)
    profile *= 1 - np.float32(0.05) * texture
    air = profile * chest.air * (1 - solid)
    total = trunk(anatomy, soft)
    total *= 1 + np.float32(0.010) * texture
    total -= np.float32(1.12) * air
    total += np.float32(0.18) * soft.soften(chest.heart, 0.06) * chest.heart
    total += np.float32(0.22) * soft.soften(central, 0.03)
    total += np.float32(0.24) * spine(anatomy, soft)
    total -= np.float32(0.36) * airways(anatomy, soft)
    total += chest.extra
    total += np.float32(0.30) * _hila(study, chest) * lungs
    total -= _stomach(study, chest) * (1 - lungs)
    return total, air, deep


def _develop(study: Study, shot: _Exposure, density: Float, size: int, blur: float) -> Bytes:
    """Attenuation to grey levels [S, S]: tone, borders, lettering, blur and noise."""
    small = cv2.resize(density, (64, 64), interpolation=cv2.INTER_AREA)
    around = cv2.resize(cv2.GaussianBlur(small, (0, 0), 4.0), density.shape[::-1])
    density = density + np.float32(shot.gain) * (density - around)
    odds = cv2.exp((np.float32(shot.level) - density) * np.float32(shot.contrast))
    grey = np.asarray((248 - shot.base) / (odds + 1) + shot.base, np.float32)
    _letter(grey, shot)
    _collimate(grey, shot)
    sigma = blur * len(grey)
    if sigma > 0.2:
        grey = np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma), np.float32)
    if len(grey) != size:
        grey = np.asarray(cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA), np.float32)
    rng = stream(study.seed, "grain", study.patient_id, study.image_id)
    grain = rng.integers(-128, 128, (size, size), dtype=np.int8)
    grey += grain * np.float32(shot.noise / 74 * min(1.0, size / 700) ** 0.5)
    return np.asarray(np.clip(grey + np.float32(0.5), 0, 255), np.uint8)


def _letter(grey: Float, shot: _Exposure) -> None:
    """Burn the side marker and the view's name into the film."""
    size = len(grey)
    text, x, y, height = shot.label
    top, bottom = round((y - height) * size), round((y + 3 * height) * size)
    layer = np.zeros((bottom - top, size), np.uint8)
    scale, thick = height * size / 22, max(1, round(size * 0.006))
    font = cv2.FONT_HERSHEY_SIMPLEX
    at = (round(x * size), round(2 * height * size))
    cv2.putText(layer, text, at, font, scale, 246, thick, cv2.LINE_AA)
    at = (round((x if x < 0.5 else x - 0.14) * size), round(3.1 * height * size))
    cv2.putText(layer, shot.second, at, font, scale / 2, 225, max(1, thick // 2), cv2.LINE_AA)
    part = grey[top:bottom]
    np.maximum(part, layer, out=part)


def _collimate(grey: Float, shot: _Exposure) -> None:
    """Black out what the collimator's leaves covered."""
    size = len(grey)
    left, top, right, bottom = (b * size for b in shot.borders)
    t, far = np.tan(shot.tilt) * size, 2 * size
    leaves = (
        (left, [(-far, 0), (left, 0), (left + t, size), (-far, size)]),
        (top, [(0, -far), (size, -far), (size, top - t), (0, top)]),
        (right, [(far, 0), (size - right, 0), (size - right + t, size), (far, size)]),
        (bottom, [(0, far), (size, far), (size, size - bottom - t), (0, size - bottom)]),
    )
    for width, outline in leaves:
        if width:
            cv2.fillPoly(grey, [np.rint(np.array(outline)).astype(np.int32)], shot.base)


def _tree(study: Study, anatomy: Anatomy, fine: Canvas, gain: float) -> Float:
    """The vessels of both lungs in [0, 1], thick ones over thin ones."""
    layer = fine.blank()
    rng = stream(study.seed, "vessels", study.patient_id)
    for width, curves in reversed(vessels(anatomy, rng)):
        grey = 45 + 190 * min(1.0, width / 0.015)
        fine.lines(layer, curves, 0.55 * width * gain**0.5, round(grey))
    return fine.soften(layer.astype(np.float32) * np.float32(1 / 255), 0.0016)


def _density(study: Study, anatomy: Anatomy, fine: Canvas, chest: Chest) -> Float:
    """Attenuation of the whole scene [F, F]."""
    soft = chest.canvas
    total, air, deep = _tissue(study, anatomy, soft, chest)
    seen = air * deep * np.float32(0.50 * chest.vessel_gain**0.5)
    if chest.vessel_gate is not None:
        seen *= chest.vessel_gate
    # Scatter in thick parts hides bones, which are seen best against air.
    clear = np.float32(0.30) + np.float32(0.70) * np.minimum(air, 1)
    if fine.size != soft.size:
        shape = (fine.size, fine.size)
        total = np.asarray(cv2.resize(total, shape, interpolation=cv2.INTER_CUBIC), np.float32)
        seen = np.asarray(cv2.resize(seen, shape), np.float32)
        clear = np.asarray(cv2.resize(clear, shape), np.float32)
    bones = skeleton(anatomy, fine).astype(np.float32) * np.float32(1 / 255)
    total += fine.soften(bones, 0.0018) * clear
    total += _tree(study, anatomy, fine, chest.vessel_gain) * seen
    return total


def _lungs(anatomy: Anatomy, canvas: Canvas) -> npt.NDArray[np.bool_]:
    layer = canvas.fill(canvas.blank(), [anatomy.lung(-1), anatomy.lung(1)])
    canvas.fill(layer, [anatomy.mediastinum, anatomy.heart], 0)
    return layer > 127


def paint(
    study: Study, size: int, *, affine: Double | None = None, blur_sigma: float | None = None
) -> Film:
    """The film of a study with its truth; misalignment and blur may be forced."""
    shot = _expose(study)
    matrix = shot.affine if affine is None else np.asarray(affine, np.float64)
    blur = shot.blur_sigma if blur_sigma is None else blur_sigma
    anatomy = Anatomy(_pose(study))
    fine, soft = _canvases(size, matrix)
    chest = _chest(study, anatomy, soft, want_boxes=True)
    image = _develop(study, shot, _density(study, anatomy, fine, chest), size, blur)
    lungs = _lungs(anatomy, Canvas(size, matrix))
    return Film(image, lungs, tuple(chest.boxes), matrix, blur)


def paint_image(study: Study, size: int) -> npt.NDArray[np.uint8]:
    """Only the picture of a study, uint8 [S, S]."""
    shot = _expose(study)
    anatomy = Anatomy(_pose(study))
    fine, soft = _canvases(size, shot.affine)
    chest = _chest(study, anatomy, soft, want_boxes=False)
    return _develop(study, shot, _density(study, anatomy, fine, chest), size, shot.blur_sigma)
