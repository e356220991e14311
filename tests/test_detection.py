"""Average precision of a detector: by hand, and against a slow count over all thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrbench.metrics.boxes import iou
from cxrbench.metrics.detection import average_precision_at_iou

WHOLE = [0.0, 0.0, 1.0, 1.0]
LEFT = [0.0, 0.0, 0.5, 1.0]  # half of WHOLE: an overlap of exactly 0.5
RIGHT = [0.5, 0.0, 1.0, 1.0]
CORNER = [0.0, 0.0, 0.1, 0.1]


def one_each(rows) -> float | None:
    """Images with the true box LEFT and one found box: right or wrong, with a confidence."""
    found = [[LEFT if right else CORNER] for right, _ in rows]
    return average_precision_at_iou([[LEFT]] * len(rows), found, [[c] for _, c in rows])


def test_all_right_is_one_and_all_wrong_is_zero():
    assert one_each([(True, 0.9), (True, 0.2)]) == 1
    assert one_each([(False, 0.9), (False, 0.2)]) == 0


def test_by_hand():
    # precision 1, 1/2, 2/3, 2/4, 3/5 at recall 1/5, 1/5, 2/5, 2/5, 3/5; best to the right: 1, 2/3, 3/5
    rows = [(True, 0.9), (False, 0.8), (True, 0.7), (False, 0.6), (True, 0.5)]
    assert one_each(rows) == pytest.approx((1 + 2 / 3 + 3 / 5) / 5)


def test_precision_is_the_best_at_this_recall_or_a_higher_one():
    # precision 0, 1/2, 2/3 at recall 0, 1/3, 2/3: the second hit counts 2/3 for the first as well
    assert one_each([(False, 0.9), (True, 0.8), (True, 0.7)]) == pytest.approx(2 * (2 / 3) / 3)


def test_equal_confidences_are_found_together():
    # precision 1/2 at recall 1/2, whichever comes first
    for rows in ([(True, 0.9), (False, 0.9)], [(False, 0.9), (True, 0.9)]):
        assert one_each(rows) == pytest.approx(0.5 * 0.5)


def test_what_is_missed_lowers_the_recall():
    assert average_precision_at_iou([[LEFT], [LEFT]], [[LEFT], []], [[0.9], []]) == 0.5
    assert average_precision_at_iou([[LEFT]], [[]], [[]]) == 0


def test_without_a_true_box_there_is_no_value():
    assert average_precision_at_iou([[], []], [[LEFT], []], [[0.9], []]) is None
    assert average_precision_at_iou([], [], []) is None


def test_a_box_where_none_is_is_wrong():
    found = average_precision_at_iou([[], [LEFT]], [[LEFT], [LEFT]], [[0.9], [0.8]])
    assert found == 0.5


def test_the_overlap_must_reach_the_threshold():
    assert average_precision_at_iou([[WHOLE]], [[LEFT]], [[1.0]]) == 1
    assert average_precision_at_iou([[WHOLE]], [[LEFT]], [[1.0]], 0.5 + 1e-9) == 0
    assert average_precision_at_iou([[WHOLE]], [[LEFT]], [[1.0]], 0.3) == 1


def test_a_second_box_on_the_same_thing_is_wrong():
    # LEFT once more, more confident than RIGHT: precision 1, 1/2, 2/3
    found = average_precision_at_iou([[LEFT, RIGHT]], [[LEFT, LEFT, RIGHT]], [[0.9, 0.8, 0.7]])
    assert found == pytest.approx((1 + 2 / 3) / 2)


def test_things_of_different_images_are_different_things():
    found = average_precision_at_iou([[LEFT], [RIGHT]], [[LEFT], [LEFT]], [[0.9], [0.8]])
    assert found == 0.5


edges = st.tuples(*[st.integers(0, 3)] * 2, *[st.integers(4, 7)] * 2)
boxes = st.lists(edges, max_size=3)
found_boxes = st.lists(st.tuples(edges, st.integers(1, 4)), max_size=4)


def slow(truth, found, confidence, threshold) -> float | None:
    """The definition: for every confidence, who is found; for every recall, the best precision."""
    whole = sum(map(len, truth))
    if not whole:
        return None
    points = []
    for least in {c for row in confidence for c in row}:
        right = count = 0
        for true, guesses, scores in zip(truth, found, confidence, strict=True):
            kept = [g for g, c in zip(guesses, scores, strict=True) if c >= least]
            count += len(kept)
            claimed = set()
            for guess in kept:
                overlaps = [float(iou(guess, t)) for t in true]
                if overlaps and max(overlaps) >= threshold:
                    claimed.add(overlaps.index(max(overlaps)))
            right += len(claimed)
        points.append((right, right / count))
    return sum(max([p for r, p in points if r > n], default=0.0) for n in range(whole)) / whole


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(boxes, found_boxes), max_size=4), st.sampled_from([0.2, 0.5, 0.8]))
def test_against_the_definition_in_any_order(images, threshold):
    truth = [true for true, _ in images]
    found = [[box for box, _ in rows] for _, rows in images]
    confidence = [[score / 4 for _, score in rows] for _, rows in images]
    value = average_precision_at_iou(truth, found, confidence, threshold)
    assert value == pytest.approx(slow(truth, found, confidence, threshold))
    turned = average_precision_at_iou(
        truth[::-1],
        [row[::-1] for row in found[::-1]],
        [row[::-1] for row in confidence[::-1]],
        threshold,
    )
    assert value == pytest.approx(turned)


@pytest.mark.parametrize(
    ("truth", "found", "confidence", "says"),
    [
        ([[LEFT]], [], [], "1, 0 and 0 images"),
        ([[LEFT]], [[LEFT]], [[]], "image 0: 1 boxes need as many finite confidences"),
        ([[LEFT]], [[LEFT]], [[np.nan]], "image 0: 1 boxes need as many finite confidences"),
        ([[LEFT], [LEFT[:3]]], [[], []], [[], []], r"image 1: boxes \(1, 3\); expected \[n, 4\]"),
        ([LEFT], [[]], [[]], r"image 0: boxes \(4,\)"),
        ([[LEFT]], [[[0.5, 0, 0.4, 1]]], [[0.9]], "image 0: .*beyond its opposite"),
        ([[]], [[[0.5, 0, np.inf, 1]]], [[0.9]], "image 0: .*finite"),
    ],
)
def test_what_is_no_detection_is_refused(truth, found, confidence, says):
    with pytest.raises(ValueError, match=says):
        average_precision_at_iou(truth, found, confidence)


@pytest.mark.parametrize("threshold", [0, -1, 1.1, float("nan")])
def test_thresholds_that_are_none_are_refused(threshold):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        average_precision_at_iou([[LEFT]], [[LEFT]], [[1.0]], threshold)
