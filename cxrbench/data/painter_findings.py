"""The 14 findings of ChestX-ray14 as graded changes of a drawn chest.

A finding acts through physics: it reshapes the body (`reshape`) or it replaces air (`FINDING`),
and what is seen follows. Its places come from a random stream of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from cxrbench.data.painter_anatomy import (
    Anatomy,
    Double,
    Float,
    Measures,
    mirrored,
    spline,
    stream,
)
from cxrbench.data.painter_canvas import Canvas, noise


@dataclass(frozen=True)
class Box:
    """Where a finding is: fractions of the image's side, from the top left corner."""

    finding: str
    x: float
    y: float
    width: float
    height: float


@dataclass
class Chest:
    """A chest being painted: what findings may change."""

    canvas: Canvas
    anatomy: Anatomy
    halves: tuple[Float, Float]  # the air spaces, film left and film right, in [0, 1]
    air: Float  # how much air is left, 1 is a healthy lung
    extra: Float  # attenuation on top of everything
    heart: Float
    want_boxes: bool
    vessel_gain: float = 1.0
    vessel_gate: Float | None = None  # where vessels are seen at all
    boxes: list[Box] = field(default_factory=list)

    def half(self, side: int) -> Float:
        return self.halves[0] if side < 0 else self.halves[1]

    def gate(self, side: int) -> Float:
        """One lung with its soft rim kept whole, so that fluid leaves no rim of air."""
        return np.minimum(self.half(side) * 6, 1)

    @property
    def both(self) -> Float:
        return np.maximum(*self.halves)

    def fill_air(self, opacity: Float, finding: str | None = None) -> None:
        """Replace air by tissue or fluid; name the finding to mark its box."""
        self.air *= 1 - np.clip(opacity, 0, 0.97)
        if finding:
            self.mark(finding, opacity * self.both)

    def mark(self, finding: str, where: Float) -> None:
        """Add the box around a field's clearly positive part, cut at the film's edge."""
        if not self.want_boxes:
            return
        seen = where > max(0.25 * float(where.max()), 1e-3)
        columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
        if len(rows) and len(columns):
            size = self.canvas.size
            x, y = columns[0] / size, rows[0] / size
            width, height = (columns[-1] + 1) / size - x, (rows[-1] + 1) / size - y
            self.boxes.append(Box(finding, float(x), float(y), float(width), float(height)))

    def blob(
        self,
        centre: Double,
        radii: tuple[float, float],
        rng: np.random.Generator,
        *,
        angle: float = 0.0,
        rough: float = 0.0,
        edge: float = 0.5,
        grain: float = 3.5,
    ) -> Float:
        """A round field in [0, 1]; rough makes it irregular, edge is the width of its rim."""
        n, reach = 48, 1.5
        axis = np.linspace(-reach, reach, n, dtype=np.float32)
        radius: Float = np.hypot(axis[None, :], axis[:, None])
        if rough:
            radius = radius + np.float32(rough) * noise(rng, n, grain)
        inner = np.clip((1 + edge / 2 - radius) / edge, 0, 1)
        inner *= np.clip((reach - np.abs(axis)) * 8, 0, 1)[:, None]
        inner *= np.clip((reach - np.abs(axis)) * 8, 0, 1)
        shape = np.asarray(inner * inner * (3 - 2 * inner), np.float32)
        return self.canvas.spread(shape, centre, (reach * radii[0], reach * radii[1]), angle)


def place_stream(seed: int, patient_id: str, finding: str) -> np.random.Generator:
    """The stream of a patient's finding: in later images it is still in the same place."""
    return stream(seed, "finding", finding, patient_id)


def _side(rng: np.random.Generator) -> int:
    return -1 if rng.random() < 0.5 else 1


def reshape(measures: Measures, findings: dict[str, float], seed: int, patient_id: str) -> Measures:
    """The body as its findings deform it."""
    m = measures
    if severity := findings.get("Cardiomegaly"):
        m = replace(m, heart=m.heart * (1.07 + 0.30 * severity))
    if severity := findings.get("Emphysema"):
        m = replace(
            m,
            flat=0.35 + 0.65 * severity,
            dome=m.dome + 0.03 + 0.06 * severity,
            heart=m.heart * (1 - 0.13 * severity),
        )
    if severity := findings.get("Atelectasis"):
        side = _side(place_stream(seed, patient_id, "Atelectasis"))
        lift = 0.03 + 0.09 * severity
        m = replace(
            m,
            raised=(lift, 0.0) if side < 0 else (0.0, lift),
            shift=m.shift + 0.015 * severity * side,
        )
    return m


def _atelectasis(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    side = _side(rng)
    field = np.zeros_like(chest.air)
    for _ in range(1 + int(rng.random() < severity) + int(rng.random() < severity)):
        centre = chest.anatomy.inside(side, rng.uniform(0.35, 0.72), rng.uniform(0.66, 0.92))
        centre[1] -= chest.anatomy.m.raised[0 if side < 0 else 1]
        radii = (rng.uniform(0.13, 0.22), rng.uniform(0.012, 0.016) + 0.016 * severity)
        plate = chest.blob(
            centre, radii, rng, angle=side * rng.uniform(-0.35, 0.25), rough=0.12, edge=0.7
        )
        field = np.maximum(field, plate)
    haze = chest.blob(
        chest.anatomy.inside(side, 0.35, 1.0), (0.26, 0.13), rng, rough=0.15, edge=1.1
    )
    field = np.maximum(field * (0.35 + 0.5 * severity), haze * (0.10 + 0.55 * severity))
    chest.fill_air(field * chest.gate(side), "Atelectasis")


def _cardiomegaly(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    chest.mark("Cardiomegaly", chest.heart)


def _effusion(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    side = _side(rng)
    sides = [(side, 1.0)] + ([(-side, rng.uniform(0.4, 0.9))] if rng.random() < 0.35 else [])
    medial = rng.uniform(0.40, 0.52)
    for where, share in sides:
        height = (0.10 + 0.62 * severity**1.3) * share
        base = float(chest.anatomy.wall[-1, 1])
        u = np.linspace(0, 1, 16)
        x = 0.05 + u * (0.66 * chest.anatomy.m.width)
        y = base - height * (medial + (1 - medial) * u**2.6)
        low = np.array([(0.9, base - height), (0.9, 1.1), (0.05, 1.1)])
        outline = mirrored(np.concatenate([np.stack([x, y], axis=1), low]), where)
        fluid = chest.canvas.mask([outline], soft=0.012)
        chest.fill_air(fluid * chest.gate(where) * np.float32(0.94), "Effusion")


def _infiltration(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    side = _side(rng)
    field = np.zeros_like(chest.air)
    for _ in range(2 + int(rng.random() < severity) + int(rng.random() < 0.4)):
        if rng.random() < 0.3:
            side = -side
        centre = chest.anatomy.inside(side, rng.uniform(0.15, 0.7), rng.uniform(0.3, 0.92))
        radii = (rng.uniform(0.12, 0.19), rng.uniform(0.13, 0.22))
        patch = chest.blob(centre, radii, rng, rough=0.42, edge=1.1, grain=2.4)
        field = np.maximum(field, patch)
    chest.fill_air(field * np.float32(0.14 + 0.42 * severity), "Infiltration")


def _round(
    chest: Chest,
    finding: str,
    radius: float,
    dense: float,
    rng: np.random.Generator,
    rough: float,
) -> None:
    side = _side(rng)
    centre = chest.anatomy.inside(side, rng.uniform(0.25, 0.78), rng.uniform(0.18, 0.85))
    radii = (radius, radius * rng.uniform(0.82, 1.15))
    ball = chest.blob(centre, radii, rng, angle=rng.uniform(0, 3), rough=rough, edge=0.45, grain=6)
    chest.fill_air(ball * np.float32(dense), finding)
    chest.extra += ball * np.float32(0.16 * dense)


def _mass(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    radius = 0.075 + 0.085 * severity
    _round(chest, "Mass", radius, 0.50 + 0.42 * severity, rng, rough=0.09)


def _nodule(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    for _ in range(1 + int(rng.random() < 0.35)):
        radius = (0.026 + 0.030 * severity) * rng.uniform(0.85, 1.1)
        _round(chest, "Nodule", radius, 0.34 + 0.42 * severity, rng, rough=0.04)


def _pneumonia(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    side = _side(rng)
    v = rng.uniform(0.45, 0.9)
    centre = chest.anatomy.inside(side, rng.uniform(0.3, 0.65), v)
    radii = (rng.uniform(0.19, 0.27), rng.uniform(0.15, 0.21))
    fuzzy = chest.blob(centre, radii, rng, rough=0.22, edge=0.9, grain=3)
    mottle = chest.blob(centre, radii, rng, rough=0.6, edge=1.2, grain=1.6)
    # A lobe ends at its fissure, so one border is straight.
    cut = float(centre[1]) - 0.35 * radii[1]
    tilt = rng.uniform(-0.08, 0.05)
    lobe = np.array([(0.02, cut - tilt), (0.8, cut + tilt), (0.8, 1.2), (0.02, 1.2)])
    below = chest.canvas.mask([mirrored(lobe, side)], soft=0.018)
    field = fuzzy * (np.float32(0.62) + np.float32(0.38) * mottle)
    field *= np.float32(0.25) + np.float32(0.75) * below
    chest.fill_air(field * chest.gate(side) * np.float32(0.30 + 0.48 * severity), "Pneumonia")


def _pneumothorax(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    side = _side(rng)
    hilum = chest.anatomy.hilum(side) + np.array([0.0, 0.25])
    wall = mirrored(chest.anatomy.wall, side)
    v = np.clip((wall[:, 1] + 0.8) / 1.3, 0, 1)
    shrink = (0.10 + 0.45 * severity) * (1.0 - 0.55 * v)
    edge = wall + (hilum - wall) * shrink[:, None]
    lung = np.concatenate([edge, mirrored(np.array([(0.7, 1.2), (-0.1, 1.2), (-0.1, -0.6)]), side)])
    inside = chest.canvas.mask([lung], soft=0.004)
    free = chest.half(side) * (1 - inside)
    chest.air *= 1 + free * np.float32(0.22 + 0.10 * severity)
    chest.fill_air(inside * chest.half(side) * np.float32(0.03 + 0.22 * severity))
    gate = 1 - free
    chest.vessel_gate = gate if chest.vessel_gate is None else chest.vessel_gate * gate
    line = chest.canvas.lines(chest.canvas.blank(), edge[None], 0.0045, 255)
    pleura = chest.canvas.soften(line.astype(np.float32) * np.float32(1 / 255), 0.0025)
    chest.extra += pleura * chest.half(side) * np.float32(0.22 + 0.12 * severity)
    chest.mark("Pneumothorax", free)


def _consolidation(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    side = _side(rng)
    centre = chest.anatomy.inside(side, rng.uniform(0.2, 0.6), rng.uniform(0.25, 0.92))
    radii = (rng.uniform(0.13, 0.17) + 0.07 * severity, rng.uniform(0.14, 0.18) + 0.07 * severity)
    field = chest.blob(centre, radii, rng, rough=0.13, edge=0.45, grain=5)
    hilum = chest.anatomy.hilum(side)
    layer = chest.canvas.blank()
    for _ in range(4):
        end = centre + rng.uniform(-1, 1, 2) * np.array(radii)
        bronchus = spline(np.stack([hilum, (hilum + end) / 2 + rng.normal(0, 0.02, 2), end]), 6)
        chest.canvas.lines(layer, bronchus[None], 0.006, 255)
    open_air = chest.canvas.soften(layer.astype(np.float32) * np.float32(1 / 255), 0.004)
    field *= np.float32(0.55 + 0.42 * severity) * (1 - np.float32(0.30) * open_air)
    chest.fill_air(field * chest.gate(side), "Consolidation")


def _edema(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    field = np.zeros_like(chest.air)
    for side in (-1, 1):
        centre = chest.anatomy.hilum(side) + np.array([0.11 * side, 0.07])
        radii = (0.22 + 0.09 * severity, 0.32 + 0.08 * severity)
        wing = chest.blob(centre, radii, rng, rough=0.20, edge=1.5, grain=2.2)
        field = np.maximum(field, wing)
        y = rng.uniform(0.15, 0.42, 9)
        x = chest.anatomy.wall_x(y) - 0.012
        short = np.stack(
            [
                np.stack([x, y], axis=1),
                np.stack([x - rng.uniform(0.05, 0.09, 9), y + 0.006], axis=1),
            ],
            axis=1,
        )
        layer = chest.canvas.lines(chest.canvas.blank(), short * np.array([side, 1.0]), 0.003, 255)
        kerley = chest.canvas.soften(layer.astype(np.float32) * np.float32(1 / 255), 0.002)
        chest.extra += kerley * chest.half(side) * np.float32(0.16 * severity)
    chest.vessel_gain *= 1.25 + 0.75 * severity
    chest.fill_air(field * np.float32(0.22 + 0.48 * severity), "Edema")


def _emphysema(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    chest.air *= 1 + np.float32(0.06 + 0.16 * severity) * chest.both
    chest.vessel_gain *= 1 - 0.55 * severity
    for side in (-1, 1):
        centre = chest.anatomy.inside(side, rng.uniform(0.4, 0.7), rng.uniform(0.1, 0.3))
        bulla = chest.blob(centre, (0.14, 0.12), rng, rough=0.15, edge=0.5)
        chest.air *= 1 + bulla * np.float32(0.14 * severity)
    chest.mark("Emphysema", chest.both)


def _fibrosis(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    n = 224
    fine = noise(rng, n, 1.15)
    ridges = np.exp(-np.abs(fine) * np.float32(2.2)) + np.float32(0.25) * noise(rng, n, 3.0)
    net = chest.canvas.spread(np.asarray(ridges, np.float32), np.array([0.0, -0.05]), (0.8, 0.85))
    field = np.zeros_like(chest.air)
    for side in (-1, 1):
        centre = chest.anatomy.inside(side, 0.78, 0.86)
        zone = chest.blob(centre, (0.24, 0.36), rng, rough=0.18, edge=1.2)
        field = np.maximum(field, zone)
    net = np.clip(net, 0, 1) * field
    chest.fill_air(
        (net * np.float32(0.50) + field * np.float32(0.22)) * np.float32(0.35 + 0.75 * severity),
        "Fibrosis",
    )
    chest.extra += net * chest.both * np.float32(0.10 * severity)


def _thickening(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    side = _side(rng)
    wall = chest.anatomy.wall
    height = (wall[:, 1] + 0.80) / 1.3
    if rng.random() < 0.4:  # an apical cap, else a lateral plaque
        middle, length = 0.0, 0.24
    else:
        middle, length = rng.uniform(0.5, 0.75), rng.uniform(0.28, 0.40)
    bump = 1 - ((height - middle) / length) ** 2
    waves = 1 + 0.20 * np.sin(rng.uniform(0, 6) + rng.uniform(18, 30) * height)
    depth = (0.024 + 0.060 * severity) * np.sqrt(np.clip(bump, 0, 1)) * waves
    inward = np.array([0.30, 0.0]) - wall
    inward /= np.linalg.norm(inward, axis=1, keepdims=True)
    kept = bump > 0
    inner, outer = (wall + inward * depth[:, None])[kept], (wall - 0.06 * inward)[kept]
    band = mirrored(np.concatenate([inner, outer[::-1]]), side)
    field = chest.canvas.mask([band], soft=0.006) * chest.half(side)
    full = np.minimum(field * 2, 1)
    chest.fill_air(full * np.float32(0.62 + 0.33 * severity))
    chest.extra += field * np.float32(0.06 + 0.08 * severity)
    chest.mark("Pleural_Thickening", field)


def _hernia(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    centre = np.array([rng.uniform(0.0, 0.12), rng.uniform(0.24, 0.32)])
    radius = 0.11 + 0.08 * severity
    ball = chest.blob(centre, (radius, radius * 0.9), rng, rough=0.05, edge=0.22, grain=7)
    level = float(centre[1]) + rng.uniform(-0.2, 0.1) * radius
    gas = np.array([(-1.0, level), (1.0, level), (1.0, -1.0), (-1.0, -1.0)])
    core = chest.blob(centre, (radius * 0.86, radius * 0.76), rng, rough=0.05, edge=0.22, grain=7)
    lucent = core * chest.canvas.mask([gas], soft=0.003)
    chest.extra += (np.float32(0.30) * ball - np.float32(0.72) * lucent) * np.float32(
        0.45 + 0.55 * severity
    )
    chest.fill_air(ball * np.float32(0.55))
    chest.mark("Hernia", ball)


PAINTERS: dict[str, Callable[[Chest, float, np.random.Generator], None]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _cardiomegaly,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Emphysema": _emphysema,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _thickening,
    "Hernia": _hernia,
}
FINDINGS: tuple[str, ...] = tuple(PAINTERS)
