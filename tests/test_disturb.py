"""Disturbed films: what each kind does, and that every model sees the same ones."""

import cv2
import numpy as np
import pytest

from cxrbench.data.disturb import DISTURBANCES, MARKERS
from cxrbench.data.painter import paint_image
from cxrbench.data.painter_cohort import sample_cohort

FILM = paint_image(sample_cohort(1, seed=3)[0], 128)


def changed(kind: str, level: float, seed: int = 0, film: np.ndarray = FILM) -> np.ndarray:
    return DISTURBANCES[kind].change(film, level, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", DISTURBANCES)
def test_a_film_stays_a_film_and_levels_grow(kind: str) -> None:
    before = FILM.copy()
    strengths = []
    for level in DISTURBANCES[kind].levels:
        found = changed(kind, level)
        assert (found.shape, found.dtype) == (FILM.shape, np.uint8)
        np.testing.assert_array_equal(found, changed(kind, level), "same seed, same film")
        strengths.append(np.abs(found.astype(float) - FILM).mean())
    np.testing.assert_array_equal(FILM, before, "the film itself is left alone")
    assert strengths[0] > 0
    assert strengths == sorted(strengths)


@pytest.mark.parametrize("kind", ["rotation", "shift", "noise", "lettering"])
def test_what_is_random_differs_between_images(kind: str) -> None:
    level = DISTURBANCES[kind].levels[-1]
    assert any((changed(kind, level, s) != changed(kind, level, 0)).any() for s in range(1, 6))


def test_levels_mean_the_same_at_every_size() -> None:
    """Half the size, then disturbed, is disturbed, then half the size."""
    half = cv2.resize(FILM, (64, 64), interpolation=cv2.INTER_AREA)
    for kind, level in (("blur", 0.02), ("crop", 0.125), ("rotation", 20), ("shift", 0.125)):
        large = cv2.resize(changed(kind, level), (64, 64), interpolation=cv2.INTER_AREA)
        apart = np.abs(large.astype(float) - changed(kind, level, film=half)).mean()
        whole = np.abs(large.astype(float) - half).mean()
        assert apart < whole / 3, kind


def test_by_hand() -> None:
    point = np.zeros((101, 101), np.uint8)
    point[50, 70] = 255
    turned = changed("rotation", 30, film=point)
    y, x = np.unravel_index(turned.argmax(), turned.shape)
    assert abs(np.hypot(y - 50, x - 50) - 20) < 1
    assert abs(abs(np.degrees(np.arctan2(y - 50, x - 50))) - 30) < 4
    moved = changed("shift", 0.2, film=point)
    y, x = np.unravel_index(moved.argmax(), moved.shape)
    assert abs(np.hypot(y - 50, x - 70) - 20.2) < 1.5
    flat = np.full((200, 200), 100, np.uint8)
    assert changed("noise", 0.1, film=flat).std() == pytest.approx(25.5, rel=0.03)
    frame = np.zeros((100, 100), np.uint8)
    frame[10:90, 10:90] = 200
    assert (changed("crop", 0.1, film=frame) == 200).all()


def test_letters_stand_near_a_border_and_are_as_high_as_asked() -> None:
    dark = np.zeros((200, 200), np.uint8)
    for seed in range(20):
        rows = np.flatnonzero((changed("lettering", 0.12, seed, dark) > 128).any(axis=1))
        assert rows.size
        assert 18 <= rows[-1] - rows[0] + 1 <= 32
        assert rows[-1] < 50 or rows[0] > 150
    assert len(MARKERS) > 1
