"""Films as other machines and hands make them: blurred, turned, shifted, cropped, noisy, lettered.

Levels are in shares of the side, degrees or shares of the grey range, so that they mean the same at every size. What is
random (directions, noise, corners) is a function of the image's name, so every model sees the same films.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from cxrbench.data.pixels import resize

Grey = npt.NDArray[np.uint8]
MARKERS = ("R", "L", "AP", "PORTABLE")
EDGE = 0.04  # of the side, between a letter and the border


class Disturbance(NamedTuple):
    """How a film [S, S] is changed at a level, and the levels that are tried, the mildest first."""

    change: Callable[[Grey, float, np.random.Generator], Grey]
    levels: tuple[float, ...]
    unit: str


def blur(image: Grey, level: float, random: np.random.Generator) -> Grey:
    """Gaussian, `level` its standard deviation as a share of the side."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), level * len(image)), dtype=np.uint8)


def rotate(image: Grey, level: float, random: np.random.Generator) -> Grey:
    """Turned by `level` degrees to either side; black beyond the film."""
    side = len(image)
    centre = ((side - 1) / 2, (side - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, level * random.choice((-1, 1)), 1.0)
    return _warp(image, np.asarray(matrix, dtype=np.float64))


def shift(image: Grey, level: float, random: np.random.Generator) -> Grey:
    """Moved by `level` of the side in any direction; black beyond the film."""
    angle = random.uniform(0, 2 * np.pi)
    x, y = level * len(image) * np.array([np.cos(angle), np.sin(angle)])
    return _warp(image, np.array([[1, 0, x], [0, 1, y]]))


def crop(image: Grey, level: float, random: np.random.Generator) -> Grey:
    """`level` of the side cut off at each border, the rest enlarged."""
    cut = round(level * len(image))
    return resize(image[cut : len(image) - cut, cut : len(image) - cut], len(image))


def noise(image: Grey, level: float, random: np.random.Generator) -> Grey:
    """Gaussian, independent from pixel to pixel; `level` its standard deviation as a share of the grey range."""
    noisy = image + 255 * level * random.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(noisy.round().clip(0, 255), dtype=np.uint8)


def letter(image: Grey, level: float, random: np.random.Generator) -> Grey:
    """A white marker near a border, `level` of the side high."""
    side, text = len(image), str(random.choice(MARKERS))
    font, height = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(level * side))
    (_, tall), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale, thick = height / tall, max(1, round(height / 8))
    (width, _), _ = cv2.getTextSize(text, font, scale, thick)
    free = max(0, side - width - round(2 * EDGE * side))
    left = round(EDGE * side) + round(free * random.uniform())
    bottom = round(EDGE * side) + height if random.uniform() < 0.5 else side - round(EDGE * side)
    return np.asarray(cv2.putText(image.copy(), text, (left, bottom), font, scale, 255, thick, cv2.LINE_AA))  # fmt: skip


def _warp(image: Grey, matrix: npt.NDArray[np.float64]) -> Grey:
    shape = image.shape[::-1]
    return np.asarray(cv2.warpAffine(image, matrix, shape, flags=cv2.INTER_LINEAR), dtype=np.uint8)


DISTURBANCES = {
    "blur": Disturbance(blur, (0.0025, 0.005, 0.01, 0.02), "standard deviation, share of the side"),
    "rotation": Disturbance(rotate, (5, 10, 20, 30), "degrees"),
    "shift": Disturbance(shift, (0.03, 0.06, 0.12, 0.2), "share of the side"),
    "crop": Disturbance(crop, (0.03, 0.06, 0.1, 0.15), "share of the side at each border"),
    "noise": Disturbance(noise, (0.02, 0.05, 0.1, 0.2), "standard deviation, share of the grey range"),
    "lettering": Disturbance(letter, (0.04, 0.08, 0.12, 0.16), "height, share of the side"),
}  # fmt: skip
