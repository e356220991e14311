"""Boxes of masks and their overlap, by counting pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrbench.metrics.boxes import box_of_mask, iou

SIDE = 12


@st.composite
def boxes(draw) -> tuple[int, int, int, int]:
    """Edges in pixels of a raster of SIDE, with an area."""
    x0, y0 = draw(st.integers(0, SIDE - 1)), draw(st.integers(0, SIDE - 1))
    return x0, y0, draw(st.integers(x0 + 1, SIDE)), draw(st.integers(y0 + 1, SIDE))


def filled(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    return mask


def test_a_box_spans_whole_pixels_in_shares_of_each_side():
    mask = np.zeros((10, 20), np.uint8)
    mask[2, 5] = mask[7, 11] = 1
    assert box_of_mask(mask).tolist() == [5 / 20, 2 / 10, 12 / 20, 8 / 10]
    assert box_of_mask(np.ones((3, 7))).tolist() == [0, 0, 1, 1]


def test_an_empty_mask_has_no_box():
    assert box_of_mask(np.zeros((4, 4), bool)) is None


@pytest.mark.parametrize("shape", [(4,), (0, 3), (1, 4, 4), ()])
def test_what_is_no_mask_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[H, W\]"):
        box_of_mask(np.ones(shape))


@given(boxes(), st.integers(1, 4))
def test_a_box_does_not_depend_on_the_size_of_the_image(box, factor):
    mask = filled(box)
    np.testing.assert_allclose(box_of_mask(mask), np.array(box) / SIDE)
    large = np.kron(mask, np.ones((factor, factor), np.uint8))
    np.testing.assert_allclose(box_of_mask(large), box_of_mask(mask))


@given(boxes(), boxes())
def test_overlap_is_what_counting_pixels_gives(a, b):
    first, second = filled(a) > 0, filled(b) > 0
    expected = (first & second).sum() / (first | second).sum()
    found = iou(np.array(a) / SIDE, np.array(b) / SIDE)
    assert found == pytest.approx(expected)
    assert iou(b, a) == pytest.approx(float(iou(a, b)))
    assert iou(a, a) == 1


def test_every_pair_by_broadcasting():
    a = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1.0]])
    b = np.array([[0, 0, 1, 1], [0.5, 0, 1, 1], [0.25, 0, 0.75, 1]])
    np.testing.assert_allclose(iou(a[:, None], b), [[1, 0.5, 0.5], [0.5, 0, 1 / 3]])
    assert iou(a[0], b).shape == (3,)
    assert iou(np.zeros((0, 4)), b[:1]).shape == (0,)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((0, 0, 0.4, 1), (0.6, 0, 1, 1)),  # beside each other in x, equal in y
        ((0, 0, 0.4, 0.4), (0.6, 0.6, 1, 1)),  # apart in both: two negatives must not multiply
        ((0, 0, 0.5, 1), (0.5, 0, 1, 1)),  # touching
        ((0.2, 0.2, 0.2, 0.8), (0, 0, 1, 1)),  # a line
        ((0.2, 0.2, 0.2, 0.2), (0.2, 0.2, 0.2, 0.2)),  # a point, with itself
    ],
)
def test_boxes_that_share_no_area(a, b):
    assert iou(a, b) == 0


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((0, 0, 1), r"expected \[\.\.\., 4\]"),
        (1.0, r"expected \[\.\.\., 4\]"),
        ((0, 0, np.nan, 1), "finite"),
        ((0, 0, np.inf, 1), "finite"),
        ((0.5, 0, 0.4, 1), "beyond its opposite"),
        ((0, 0.5, 1, 0.4), "beyond its opposite"),
    ],
)
def test_what_is_no_box_is_refused_in_both_places(box, says):
    with pytest.raises(ValueError, match=f"boxes a: .*{says}"):
        iou(box, (0, 0, 1, 1))
    with pytest.raises(ValueError, match=f"boxes b: .*{says}"):
        iou((0, 0, 1, 1), box)
