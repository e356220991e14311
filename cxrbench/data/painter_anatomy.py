"""The body of a drawn patient: its measures, and the curves of its organs.

Curves are in body coordinates: x to the right of the film, y down, one unit about 21 cm. `FRAME`
lays the body on the canonical film [-1, 1], and an image's affine moves the canonical film.
The patient's right side is on the film's left, as on every chest film.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from cxrbench.core.seed import derive_seed

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

RIBS = 10
FRAME = np.array([[1.13, 0.0, 0.0], [0.0, 1.13, 0.13]])
_SHIFT = 4  # fractional bits of the coordinates given to cv2's polygon routines

# fmt: off
# The right half of the inside of the thorax, from the apex down to the costophrenic angle.
_WALL = np.array(
    [
        (0.145, -0.775), (0.225, -0.845), (0.335, -0.820), (0.440, -0.700), (0.530, -0.520),
        (0.605, -0.280), (0.652, -0.020), (0.676, 0.250), (0.680, 0.545),
    ]
)
_MEDIAL = np.array([(0.08, 0.42), (0.075, 0.1), (0.085, -0.3), (0.10, -0.55), (0.12, -0.70)])
# Length and width of each generation of vessels.
_BRANCHES = ((0.10, 0.0150), (0.11, 0.0105), (0.11, 0.0075), (0.10, 0.0052), (0.09, 0.0036))
_MEDIASTINUM = np.array(
    [
        (-0.200, -1.10), (-0.165, -0.82), (-0.125, -0.68), (-0.120, -0.45), (-0.130, -0.25),
        (-0.150, -0.08), (-0.120, 0.20), (-0.100, 0.60), (0.100, 0.60), (0.150, 0.05),
        (0.190, -0.06), (0.188, -0.13), (0.150, -0.195), (0.172, -0.245), (0.178, -0.305),
        (0.145, -0.365), (0.105, -0.42), (0.100, -0.58), (0.125, -0.70), (0.160, -0.82),
        (0.200, -1.10),
    ]
)
_HEART = np.array(
    [
        (-0.060, -0.16), (-0.150, -0.06), (-0.208, 0.06), (-0.228, 0.19), (-0.205, 0.33),
        (-0.120, 0.45), (0.060, 0.52), (0.260, 0.53), (0.395, 0.49), (0.450, 0.41), (0.448, 0.29),
        (0.400, 0.15), (0.315, 0.02), (0.200, -0.07), (0.080, -0.15),
    ]
)
_BODY = np.array(
    [
        (0.21, -1.30), (0.215, -1.02), (0.27, -0.95), (0.50, -0.875), (0.78, -0.835),
        (0.98, -0.76), (1.12, -0.58), (1.22, -0.25), (1.30, 0.30), (1.12, 0.30), (0.985, -0.02),
        (0.895, -0.19), (0.835, -0.16), (0.805, 0.00), (0.795, 0.35), (0.800, 0.80), (0.83, 1.40),
    ]
)
_SCAPULA = np.array(
    [
        (0.645, -0.66), (0.80, -0.70), (0.93, -0.63), (0.90, -0.52), (0.83, -0.38),
        (0.755, -0.10), (0.70, 0.03), (0.665, 0.00), (0.645, -0.25), (0.630, -0.48),
    ]
)

# fmt: on
_VERTEBRA = np.array([(-0.07, -0.047), (0.07, -0.047), (0.065, 0), (0.07, 0.047), (-0.07, 0.047)])
_PEDICLE = np.array([(0.035, -0.012), (0.046, -0.029), (0.057, -0.012), (0.046, 0.005)])


def stream(seed: int, *names: object) -> np.random.Generator:
    """A random generator of its own for one named part of the picture."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, "painter", *names)))


@lru_cache(maxsize=64)
def _hermite(steps: int) -> Double:
    """Catmull-Rom weights of the four neighbouring points [steps, 4]."""
    t = np.arange(steps) / steps
    rows = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
    return np.stack(rows, axis=1) / 2


def spline(points: Double, steps: int = 6, *, closed: bool = False) -> Double:
    """A smooth curve through points [N, 2]."""
    ends = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    knots = np.concatenate([ends[0], points, ends[1]])
    windows = np.stack([knots[i : len(knots) - 3 + i] for i in range(4)], axis=1)  # [N-1, 4, 2]
    curve = np.matmul(_hermite(steps), windows).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


@dataclass(frozen=True)
class Measures:
    """The numbers that make one patient in one pose."""

    width: float = 1.0  # of the thorax
    height: float = 1.0
    heart: float = 1.0  # transverse size of the heart
    dome: float = 0.36  # y of the higher, right diaphragm
    dome_gap: float = 0.05  # how much lower the left one is
    flat: float = 0.0  # 1 is a flat diaphragm
    raised: tuple[float, float] = (0.0, 0.0)  # volume loss lifts the right, the left diaphragm
    shift: float = 0.0  # of heart and mediastinum to the film's right
    habitus: float = 1.0  # soft tissue around the thorax
    breast: float = 0.0
    breast_y: float = 0.30
    aorta: float = 1.0  # of the knob, grows with age
    scapula: float = 0.0  # 1 is fully over the lungs
    clavicle: float = 0.0  # tilt
    rotation: float = 0.0  # about the body's long axis
    rib_drop: float = 0.20


def measure(seed: int, patient_id: str, sex: str, age: int) -> Measures:
    """The anatomy that all images of a patient share."""
    rng = stream(seed, "anatomy", patient_id)
    n = rng.standard_normal(12)
    habitus = float(np.clip(1.0 + 0.11 * n[2], 0.82, 1.32))
    breast = float(np.clip(0.55 + 0.25 * n[3] + 0.8 * (habitus - 1), 0.15, 1.1))
    return Measures(
        width=float(np.clip(1.0 + 0.035 * n[0] - 0.03 * (sex == "F"), 0.88, 1.1)),
        height=float(np.clip(1.0 + 0.035 * n[1] - 0.02 * (sex == "F"), 0.88, 1.1)),
        heart=float(np.clip(1.0 + 0.055 * n[4] + 0.0012 * (age - 45), 0.86, 1.16)),
        dome=0.36 + 0.03 * float(n[5]),
        dome_gap=float(np.clip(0.045 + 0.015 * n[6], 0.01, 0.09)),
        habitus=habitus,
        breast=breast if sex == "F" else 0.0,
        breast_y=0.28 + 0.04 * float(n[7]) + 0.0012 * (age - 45),
        aorta=float(np.clip(1.0 + 0.12 * n[8] + 0.008 * (age - 50), 0.6, 1.7)),
        clavicle=0.02 * float(n[9]),
        rib_drop=0.20 + 0.025 * float(n[10]),
    )


def mirrored(points: Double, sign: float) -> Double:
    """Points of the right half [N, 2] on the side given by the sign of x."""
    return np.asarray(points * np.array([sign, 1.0]), np.float64)


@dataclass(frozen=True)
class Anatomy:
    """The curves of a patient's organs, all [N, 2] in body coordinates."""

    m: Measures

    @cached_property
    def scale(self) -> Double:
        return np.array([self.m.width, self.m.height])

    @cached_property
    def wall(self) -> Double:
        """The inside of the chest wall on the positive side, apex to costophrenic angle."""
        points = _WALL * self.scale
        points[-1, 1] += 0.3 * (self.m.dome - 0.36) + 0.05 * self.m.flat
        return spline(points, 6)

    def dome(self, side: int) -> Double:
        """A hemidiaphragm from the costophrenic angle to the midline; side -1 is film left."""
        corner = self.wall[-1]
        x = np.linspace(corner[0], 0.07, 18)
        top = self.m.dome + (self.m.dome_gap if side > 0 else 0.0)
        top += 0.13 * self.m.flat - self.m.raised[0 if side < 0 else 1]
        peak = 0.40 * self.m.width
        lateral = np.clip((x - peak) / (corner[0] - peak), 0, 1) ** 2.1
        medial = np.clip((peak - x) / peak, 0, 1) ** 2
        y = top + (corner[1] - top) * lateral + 0.16 * (1 - 0.6 * self.m.flat) * medial
        return mirrored(np.stack([x, y], axis=1), side)

    def lung(self, side: int) -> Double:
        """The whole air space of one lung, the part behind the heart included."""
        medial = _MEDIAL * self.scale
        return np.concatenate(
            [mirrored(self.wall, side), self.dome(side), mirrored(spline(medial, 4), side)]
        )

    def wall_x(self, y: Double) -> Double:
        """Half the inner width of the thorax at a height (positive)."""
        keep = self.wall[:, 1].argmin()
        return np.interp(y, self.wall[keep:, 1], self.wall[keep:, 0])

    def inside(self, side: int, u: float, v: float) -> Double:
        """A place in a lung: u from the hilum 0 to the wall 1, v from the apex 0 to the base 1."""
        y = -0.80 * self.m.height + v * (self.m.dome + 0.80 * self.m.height)
        medial = 0.14 if side < 0 or y < 0 else 0.14 + 0.55 * y
        x = medial + u * (float(self.wall_x(np.array(y))) - medial)
        return np.array([side * x, y])

    def hilum(self, side: int) -> Double:
        """Where the vessels of a lung start."""
        y = (-0.10 if side < 0 else -0.145) * self.m.height
        return np.array([side * 0.16 + self.m.shift, y])

    @cached_property
    def mediastinum(self) -> Double:
        points = _MEDIASTINUM.copy()
        points[12:17, 0] += 0.06 * (self.m.aorta - 1.0)
        points[:, 1] *= self.m.height
        points[:, 0] += self.m.shift + 0.5 * self.m.rotation
        return spline(points, 6, closed=True)

    @cached_property
    def heart(self) -> Double:
        centre = np.array([0.04, 0.20])
        grown = np.array([self.m.heart, 0.55 + 0.45 * self.m.heart])
        points = (_HEART - centre) * grown + centre
        points[:, 1] += 0.6 * (self.m.dome - 0.36) + 0.05 * self.m.flat
        points[:, 0] += self.m.shift + self.m.rotation
        return spline(points, 6, closed=True)

    @cached_property
    def body(self) -> Double:
        """The skin, closed far below the film."""
        points = _BODY.copy()
        trunk = points[:, 0] * self.m.width + 0.35 * (self.m.habitus - 1.0)
        points[:, 0] = np.where(points[:, 0] > 0.3, trunk, points[:, 0] * self.m.habitus)
        half = spline(points, 5)
        return np.concatenate([half, mirrored(half[::-1], -1)])

    @cached_property
    def ribs(self) -> tuple[Double, Double]:
        """Centre lines of the posterior and the anterior ribs, each [20, T, 2]."""
        i = np.arange(RIBS)
        y0 = (-0.80 + 0.126 * i) * self.m.height
        drop = self.m.rib_drop * np.clip(0.35 + 0.16 * i, 0, 1.25)
        y1 = y0 + drop
        x1 = self.wall_x(y1) + 0.018
        rise = np.clip(0.02 + 0.012 * i, 0, 0.08)
        back = [
            np.stack([np.full(RIBS, 0.065), y0], axis=1),
            np.stack([0.40 * x1 + 0.02, y0 - rise], axis=1),
            np.stack([0.97 * x1, y0 - rise * 0.6], axis=1),
            np.stack([x1, y1], axis=1),
        ]
        reach = np.array([0.32, 0.30, 0.30, 0.33, 0.38, 0.46, 0.55, 0.65, 0.76, 0.85])
        fall = 0.08 + 0.02 * np.minimum(i, 6)
        front = [
            np.stack([x1, y1], axis=1),
            np.stack([x1 * 1.01, y1 + 0.10 + 0.008 * i], axis=1),
            np.stack([x1 * (0.35 + 0.65 * reach), y1 + 0.07 + fall], axis=1),
            np.stack([x1 * reach, y1 + 0.075 + fall], axis=1),
        ]
        return _both_sides(_bezier(back)), _both_sides(_bezier(front))

    def clavicle(self, side: int) -> Double:
        tilt = self.m.clavicle * side
        r = self.m.rotation
        points = np.array(
            [
                (0.065 + side * r, -0.625),
                (0.18, -0.645 + 0.4 * tilt),
                (0.34, -0.705 + 0.7 * tilt),
                (0.52, -0.785 + tilt),
                (0.70, -0.800 + tilt),
                (0.84, -0.765 + tilt),
            ]
        )
        return mirrored(spline(points * self.scale, 5), side)

    def scapula(self, side: int) -> Double:
        points = _SCAPULA * self.scale
        points[:, 0] -= 0.13 * self.m.scapula - 0.02
        return mirrored(spline(points, 4, closed=True), side)

    def humerus(self, side: int) -> list[Double]:
        """The head of the upper arm's bone and its shaft."""
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        x = 0.92 * self.m.width - 0.04 * self.m.scapula
        head = np.stack([x + 0.075 * np.cos(angle), -0.665 + 0.08 * np.sin(angle)], axis=1)
        shaft = np.array([(x - 0.03, -0.62), (x + 0.07, -0.62), (1.16, 0.1), (1.08, 0.1)])
        return [mirrored(head, side), mirrored(shaft, side)]

    def breast(self, side: int) -> Double:
        """The lower rim of a breast, closed over the axilla."""
        size = 0.20 + 0.11 * self.m.breast
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        lower = np.sin(angle) > 0
        x = 0.46 * self.m.width + size * 1.08 * np.cos(angle)
        y = self.m.breast_y + np.where(lower, 0.85, 1.7) * size * np.sin(angle)
        return mirrored(np.stack([x, y], axis=1), side)


def _bezier(points: Sequence[Double], steps: int = 16) -> Double:
    """Cubic curves [N, steps, 2] of four arrays of control points [N, 2]."""
    t = np.linspace(0, 1, steps)
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return np.asarray(np.einsum("kt,knc->ntc", weights, np.stack(points)), np.float64)


def _both_sides(curves: Double) -> Double:
    return np.concatenate([curves * np.array([-1.0, 1.0]), curves])


def strip(curves: Double, width: Double | float) -> Double:
    """Bands around centre lines [N, T, 2] as closed outlines [N, 2T, 2]; width is the half."""
    before = np.concatenate([curves[:, :1], curves[:, :-1]], axis=1)
    after = np.concatenate([curves[:, 1:], curves[:, -1:]], axis=1)
    along = after - before
    reach = np.asarray(width) / np.hypot(along[..., 0], along[..., 1])
    offset = along[..., ::-1] * (reach[..., None] * np.array([-1.0, 1.0]))
    return np.concatenate([curves + offset, (curves - offset)[:, ::-1]], axis=1)


def vessels(anatomy: Anatomy, rng: np.random.Generator) -> list[tuple[float, Double]]:
    """The vascular trees of both lungs: pairs of a width and the curves [N, T, 2] that have it."""
    fan = np.linspace(-1.45, 1.42, 9)
    side = np.repeat(np.array([-1.0, 1.0]), len(fan))
    heading = np.tile(fan, 2) + rng.normal(0, 0.15, len(side))
    roots = np.repeat(np.stack([anatomy.hilum(-1), anatomy.hilum(1)]), len(fan), axis=0)
    tips = roots + np.stack([0.0 * heading, 0.05 * heading + 0.02], axis=1)  # [18, 2]
    # Lower vessels are wider than upper ones in an upright patient.
    calibre = 1.0 + 0.25 * np.sin(heading) + rng.normal(0, 0.15, len(side))
    out = []
    t = np.linspace(0, 1, 5)[:, None]
    for length, width in _BRANCHES:
        reach = length * np.exp(0.28 * rng.standard_normal(len(side)))
        bend = rng.normal(0, 0.16, len(side))
        angle = heading - side * bend
        step = np.stack([side * np.cos(angle), np.sin(angle)], axis=1) * reach[:, None]
        normal = np.stack([-step[:, 1], step[:, 0]], axis=1) * bend[:, None]
        curves = tips[:, None] + step[:, None] * t + normal[:, None] * (t * (1 - t))
        wide = calibre > 1.0
        out += [(width * 1.2, curves[wide]), (width * 0.8, curves[~wide])]
        tips = np.repeat(curves[:, -1], 2, axis=0)
        turn = np.sign(rng.random(len(side)) - 0.5)[:, None] * np.array([-0.12, 0.55])
        heading = ((angle - side * bend)[:, None] + turn).ravel()
        heading += rng.normal(0, 0.12, len(heading))
        side, calibre = np.repeat(side, 2), np.repeat(calibre, 2)
    return out


class Canvas:
    """A square raster on which bodies are drawn, under an image's affine."""

    def __init__(self, size: int, affine: Double) -> None:
        self.size = size
        half = size / 2
        linear = affine[:, :2] @ FRAME[:, :2]
        self._matrix = linear.T * half
        self._offset = (affine[:, :2] @ FRAME[:, 2] + affine[:, 2]) * half + half - 0.5
        self.unit = half * float(np.sqrt(abs(np.linalg.det(linear))))  # pixels per body unit

    def pixels(self, points: Double) -> Double:
        """Body points [..., 2] in pixels."""
        return np.asarray(points @ self._matrix + self._offset, np.float64)

    def fixed(self, points: Double) -> npt.NDArray[np.int32]:
        scaled: npt.NDArray[np.int32] = np.rint(self.pixels(points) * (1 << _SHIFT)).astype(
            np.int32
        )
        return scaled

    def blank(self) -> Bytes:
        return np.zeros((self.size, self.size), np.uint8)

    def fill(self, layer: Bytes, outlines: Sequence[Double] | Double, value: int = 255) -> Bytes:
        """Fill outlines one by one, so that crossing ones do not cancel."""
        if isinstance(outlines, np.ndarray):
            pixels = list(self.fixed(outlines))
        else:
            pixels = [self.fixed(outline) for outline in outlines]
        for outline in pixels:
            cv2.fillPoly(layer, [outline], value, cv2.LINE_AA, _SHIFT)
        return layer

    def lines(self, layer: Bytes, curves: Double, half_width: float, value: int) -> Bytes:
        """Draw open curves [N, T, 2]; what is thinner than a pixel is drawn fainter instead."""
        wanted = 2 * half_width * self.unit
        thickness = max(1, round(wanted))
        value = max(1, round(value * min(1.0, wanted / thickness)))
        cv2.polylines(layer, list(self.fixed(curves)), False, value, thickness, cv2.LINE_AA, _SHIFT)
        return layer

    def mask(self, outlines: Sequence[Double] | Double, soft: float = 0.0) -> Float:
        """Filled outlines as float [S, S] in [0, 1], the edge softened by a width."""
        layer = self.fill(self.blank(), outlines).astype(np.float32) * np.float32(1 / 255)
        return self.soften(layer, soft) if soft else layer

    def soften(self, layer: Float, width: float) -> Float:
        """Gaussian blur of a given width; wide ones on a shrunk copy."""
        sigma = width * self.unit
        if sigma < 0.3:
            return layer
        shrink = 1
        while sigma / shrink > 2.5 and self.size // (2 * shrink) >= 16:
            shrink *= 2
        if shrink == 1:
            return np.asarray(cv2.GaussianBlur(layer, (0, 0), sigma), np.float32)
        side = self.size // shrink
        small = cv2.resize(layer, (side, side), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / shrink)
        return np.asarray(cv2.resize(small, (self.size, self.size)), np.float32)

    def spread(
        self, field: Float, centre: Double, reach: tuple[float, float], angle: float = 0.0
    ) -> Float:
        """Lay a low-resolution field over a box, given by its centre and half its sides."""
        rows, columns = field.shape
        c, s = np.cos(angle), np.sin(angle)
        turn = np.array([[c, -s], [s, c]])
        cell = turn * np.array([2 * reach[0] / columns, 2 * reach[1] / rows])
        first = centre - cell @ np.array([(columns - 1) / 2, (rows - 1) / 2])
        matrix = np.concatenate([self._matrix.T @ cell, self.pixels(first)[:, None]], axis=1)
        shape = (self.size, self.size)
        return np.asarray(cv2.warpAffine(field, matrix, shape, flags=cv2.INTER_LINEAR), np.float32)


@lru_cache(maxsize=16)
def _clouds(sigma: float) -> Float:
    """A sheet of smooth noise of unit deviation, from which `noise` cuts its windows."""
    field = stream(0, "clouds").standard_normal((512, 512), dtype=np.float32)
    field = np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), np.float32)
    field /= field.std()
    field.flags.writeable = False
    return field


def noise(rng: np.random.Generator, side: int, sigma: float) -> Float:
    """Smooth noise [side, side] of zero mean: a random window, since drawing it anew is slow."""
    x, y, mirror, flip = rng.integers(0, (512 - side, 512 - side, 2, 2))
    window = _clouds(sigma)[y : y + side, x : x + side]
    window = window[:: 1 - 2 * mirror, :: 1 - 2 * flip]
    return np.asarray(window - window.mean(), np.float32)


def trunk(anatomy: Anatomy, soft: Canvas) -> Float:
    """Attenuation of the body without its lungs and bones."""
    m = anatomy.m
    skin = soft.mask([anatomy.body], soft=0.004)
    depth = np.clip(soft.soften(skin, 0.26) * 1.8 - 0.8, 0, 1)
    total: Float = skin * (np.sqrt(depth) * np.float32(1.66 * m.habitus**0.5) + np.float32(0.25))
    belly = np.array([(-1.2, 0.46), (1.2, 0.46), (1.2, 2.0), (-1.2, 2.0)])
    total += soft.soften(soft.mask([belly]), 0.10) * np.float32(0.28) * skin
    if m.breast:
        rims = [anatomy.breast(-1), anatomy.breast(1)]
        disc = soft.mask(rims, soft=0.010)
        thick = np.clip(soft.soften(disc, 0.10), 0, 1)
        total += disc * thick * np.float32(0.26 + 0.36 * m.breast)
    return total


def spine(anatomy: Anatomy, soft: Canvas) -> Float:
    """The column of vertebrae with its discs and pedicles."""
    y = np.arange(-1.05, 1.1, 0.118) * anatomy.m.height
    at = np.stack([np.zeros_like(y), y], axis=1)[:, None]  # [N, 1, 2]
    layer = soft.fill(soft.blank(), _VERTEBRA + at, 150)
    for side in (-1, 1):
        soft.fill(layer, _PEDICLE * (side, 1.0) + at, 235)
    return soft.soften(layer.astype(np.float32) * np.float32(1 / 255), 0.009)


def airways(anatomy: Anatomy, soft: Canvas) -> Float:
    """Trachea and main bronchi."""
    h, dx = anatomy.m.height, anatomy.m.shift + anatomy.m.rotation
    pipes = (
        ([(0.0, -1.3), (0.0, -0.9), (-0.006 + dx, -0.6), (-0.014 + dx, -0.27)], 0.037),
        ([(-0.018 + dx, -0.29), (-0.06 + dx, -0.21), (-0.12 + dx, -0.12)], 0.024),
        ([(-0.004 + dx, -0.29), (0.06 + dx, -0.215), (0.14 + dx, -0.165)], 0.021),
    )
    outlines = [strip(np.array([p]) * (1.0, h), w)[0] for p, w in pipes]
    return soft.mask(outlines, soft=0.010)


def skeleton(anatomy: Anatomy, fine: Canvas) -> Bytes:
    """Ribs, clavicles, shoulder blades and arms, as attenuation in units of 1/255."""
    back, front = anatomy.ribs
    layer = fine.fill(fine.blank(), strip(front, np.linspace(0.025, 0.031, front.shape[1])), 42)
    rear = fine.fill(fine.blank(), strip(back, 0.025), 78)
    half = back.shape[1]
    rims = strip(back, 0.0225)
    fine.lines(rear, np.concatenate([rims[:, :half], rims[:, half:]]), 0.0028, 104)
    cv2.add(layer, rear, dst=layer)
    other = fine.blank()
    for side in (-1, 1):
        blade = anatomy.scapula(side)
        fine.fill(other, [blade], 34)
        fine.lines(other, np.concatenate([blade, blade[:1]])[None], 0.007, 66)
        fine.fill(other, anatomy.humerus(side), 70)
    cv2.add(layer, other, dst=layer)
    collar = fine.blank()
    for side in (-1, 1):
        bone = anatomy.clavicle(side)[None]
        band = strip(bone, np.linspace(0.031, 0.019, bone.shape[1]))
        fine.fill(collar, band, 78)
        fine.lines(collar, band, 0.0035, 112)
    cv2.add(layer, collar, dst=layer)
    return layer
