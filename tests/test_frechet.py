"""FID and KID against values worked out by hand, and against the textbook forms."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.linalg import sqrtm

from cxrbench.metrics.frechet import fid, kid


def normal(count: int, width: int, seed: int, shift: float = 0.0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, width)) + shift


def test_fid_of_one_feature_by_hand() -> None:
    # Means 1 and 5, variances 2 and 8: 16 + 2 + 8 - 2 * sqrt(16) = 18.
    assert fid([[0.0], [2.0]], [[3.0], [7.0]]) == pytest.approx(18.0)


def test_fid_is_the_textbook_s() -> None:
    a, b = normal(60, 5, 0) @ normal(5, 5, 1), normal(40, 5, 2, 0.7)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert fid(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert fid(a, b) == pytest.approx(fid(b, a))


def test_fid_of_fewer_images_than_features() -> None:
    a = normal(6, 50, 0)
    assert fid(a, a) == pytest.approx(0, abs=1e-9)
    assert fid(a, a + 2.0) == pytest.approx(4.0 * 50)


def test_kid_by_hand() -> None:
    # One feature, k = (xy + 1)^3. a = 0, 1: k(0, 1) = 1. b = 1, 2: k(1, 2) = 27. Across: 1, 1, 8, 27.
    assert kid([[0.0], [1.0]], [[1.0], [2.0]]) == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_kid_divides_by_the_features() -> None:
    a, b = normal(7, 3, 0), normal(5, 3, 1, 0.3)

    def mean(pairs: Any) -> float:
        return float(np.mean([(x @ y / 3 + 1) ** 3 for x, y in pairs]))

    expected = mean(permutations(a, 2)) + mean(permutations(b, 2))
    expected -= 2 * mean((x, y) for x in a for y in b)
    assert kid(a, b) == pytest.approx(expected)


def test_kid_is_unbiased_and_fid_is_not() -> None:
    pairs = [(normal(8, 4, 2 * n), normal(8, 4, 2 * n + 1)) for n in range(400)]
    found = np.array([kid(a, b) for a, b in pairs])
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean()) < 3 * error
    assert (found < 0).any()
    assert np.mean([fid(a, b) for a, b in pairs]) > 1
    apart = np.array([kid(a, b + 0.5) for a, b in pairs])
    assert apart.mean() > 10 * error


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ([[1.0, 2.0]], "at least two images"),
        ([1.0, 2.0], "need \\[N, D\\]"),
        ([[1.0], [np.nan]], "NaN"),
        ([[1.0], [2.0]], "equal widths"),
    ],
)
@pytest.mark.parametrize("distance", [fid, kid])
def test_what_is_no_features_is_refused(distance: Any, features: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        distance(features, [[1.0, 2.0], [3.0, 4.0]])
