"""Average precision of a detector of one class (Everingham et al., IJCV 2015; all points, as from VOC 2010).

Boxes are (x0, y0, x1, y1), as in `boxes`. N: images.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cxrbench.metrics.boxes import iou


def average_precision_at_iou(
    truth: Sequence[ArrayLike],
    found: Sequence[ArrayLike],
    confidence: Sequence[ArrayLike],
    threshold: float = 0.5,
) -> float | None:
    """Area under the precision-recall curve, in [0, 1]; None without a true box.

    Per image: true boxes [T, 4], found ones [D, 4] and their confidences [D]; T and D may be 0. A found box
    is right when its overlap with the true box that it overlaps most is at least `threshold` and none as
    confident or more has claimed that box already. Precision is the best at this recall or a higher one.
    The order of images and of found boxes does not matter. ValueError for what is not such boxes.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be above 0 and at most 1")
    if not len(truth) == len(found) == len(confidence):
        raise ValueError(
            f"{len(truth)}, {len(found)} and {len(confidence)} images; need as many of each"
        )
    scores, claims, boxes = [], [], 0
    for image, rows in enumerate(zip(truth, found, confidence, strict=True)):
        true, guess = _boxes(rows[0], image), _boxes(rows[1], image)
        score = np.asarray(rows[2], dtype=np.float64)
        if score.shape != (len(guess),) or not np.isfinite(score).all():
            raise ValueError(f"image {image}: {len(guess)} boxes need as many finite confidences")
        scores.append(score)
        claims.append(_claims(true, guess, threshold, first=boxes))
        boxes += len(true)
    if boxes == 0:
        return None
    return _area(np.concatenate(scores), np.concatenate(claims), boxes)


def _boxes(value: ArrayLike, image: int) -> np.ndarray:
    boxes = np.asarray(value, dtype=np.float64)
    if not boxes.size:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"image {image}: boxes {boxes.shape}; expected [n, 4]")
    try:
        iou(boxes, boxes)  # it checks them
    except ValueError as error:
        raise ValueError(f"image {image}: {error}") from None
    return boxes


def _claims(true: np.ndarray, guess: np.ndarray, threshold: float, *, first: int) -> np.ndarray:
    """The number of the true box that each found box claims, counted from `first`; -1 for none."""
    if not len(true):
        return np.full(len(guess), -1)
    overlap = iou(guess[:, None], true)
    return np.where(overlap.max(1) >= threshold, first + overlap.argmax(1), -1)


def _area(score: np.ndarray, claim: np.ndarray, boxes: int) -> float:
    order = np.argsort(-score, kind="stable")
    score, claim = score[order], claim[order]
    right = np.zeros(len(claim), dtype=bool)
    _, firsts = np.unique(claim, return_index=True)  # the most confident claim of each true box
    right[firsts] = True
    right &= claim >= 0
    # One point a distinct confidence: what is equally confident is found together.
    last_of_tie = np.flatnonzero(np.append(score[1:] != score[:-1], True)[: score.size])
    hits = np.cumsum(right)[last_of_tie]
    precision = hits / (last_of_tie + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0) * best) / boxes)
