"""The raster of a drawn film, and how a body's parts lie on it: trunk, spine, airways, bones.

Layers are [S, S]: bytes while shapes are filled, float in units of attenuation afterwards.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from cxrbench.data.painter_anatomy import FRAME, Anatomy, Bytes, Double, Float, stream, strip

_SHIFT = 4  # fractional bits of the coordinates given to cv2's polygon routines
_VERTEBRA = np.array([(-0.07, -0.047), (0.07, -0.047), (0.065, 0), (0.07, 0.047), (-0.07, 0.047)])
_PEDICLE = np.array([(0.035, -0.012), (0.046, -0.029), (0.057, -0.012), (0.046, 0.005)])


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
