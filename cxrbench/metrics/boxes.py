"""Boxes in shares of an image: the box around a mask, and how far two boxes agree.

A box is (x0, y0, x1, y1): left, top, right and bottom edge, 0 at the image's left or top edge and 1
at its right or bottom edge. So a box holds at any size of the image.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def box_of_mask(mask: ArrayLike) -> FloatArray | None:
    """The smallest box [4] around everything in a mask [H, W] that is not 0; None when nothing is.

    Edges are those of whole pixels: a mask of ones is the box (0, 0, 1, 1).
    """
    inside = np.asarray(mask) != 0
    if inside.ndim != 2 or not inside.size:
        raise ValueError(f"mask: shape {inside.shape}; expected [H, W]")
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    if not len(rows):
        return None
    height, width = inside.shape
    edges = (
        columns[0] / width,
        rows[0] / height,
        (columns[-1] + 1) / width,
        (rows[-1] + 1) / height,
    )
    return np.asarray(edges, dtype=np.float64)


def iou(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Area that two boxes share over the area that they cover together, [...] from boxes [..., 4].

    Leading axes are broadcast: `iou(a[:, None], b)` is the table of all pairs. Boxes without an area
    agree with nothing: 0. ValueError for values that are not finite and for edges in the wrong order.
    """
    first, second = _boxes(a, "a"), _boxes(b, "b")
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=-1)
    together = _area(first) + _area(second) - shared
    some = together > 0
    return np.asarray(np.where(some, shared / np.where(some, together, 1.0), 0.0))


def _boxes(value: ArrayLike, name: str) -> FloatArray:
    boxes = np.asarray(value, dtype=np.float64)
    if not boxes.ndim or boxes.shape[-1] != 4:
        raise ValueError(f"boxes {name}: shape {boxes.shape}; expected [..., 4]")
    if not np.isfinite(boxes).all():
        raise ValueError(f"boxes {name}: not all edges are finite numbers")
    if (boxes[..., :2] > boxes[..., 2:]).any():
        raise ValueError(f"boxes {name}: an edge lies beyond its opposite; expected x0, y0, x1, y1")
    return boxes


def _area(boxes: FloatArray) -> FloatArray:
    return np.asarray(np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1))
