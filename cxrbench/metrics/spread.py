"""Which of many images are looked at."""

import numpy as np
from numpy.typing import NDArray


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of `count` places, evenly spread, in rising order."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
