"""The body of a drawn patient: its measures, and the curves of its organs.

Curves are in body coordinates: x to the right of the film, y down, one unit about 21 cm. `FRAME`
lays the body on the canonical film [-1, 1], and an image's affine moves the canonical film.
The patient's right side is on the film's left, as on every chest film.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from cxrbench.core.seed import derive_seed

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

RIBS = 10
FRAME = np.array([[1.13, 0.0, 0.0], [0.0, 1.13, 0.13]])

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
