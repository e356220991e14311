"""How often each training image is drawn: findings as often as none, and pools of the same ages and sexes.

The latter because a translation between pools learns whatever differs between them; where the sick are older, it makes films older
(the report on the CycleGAN names this as its own flaw).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.data.index import Index

YEARS = 10  # of a bin of ages
OLDEST = 120  # ChestX-ray14's first label file has ages of 414 years: not known, that is
NORMAL = "No Finding"  # says the opposite of sick, where it is a label


def balanced_weights(index: Index, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Weights [rows] by which images with and without a positive label are drawn equally often."""
    positive = np.nan_to_num(index.targets[rows]).any(axis=1)
    share = np.where(positive, positive.mean(), 1 - positive.mean())
    return np.asarray(1 / share / (1 / share).sum(), dtype=np.float64)


def matched_weights(
    index: Index, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    """(weights [rows] with sum 1 by which films are drawn, counts for the record).

    Sick and healthy films are drawn equally often within each bin of ten years and each sex, and a bin as often as its
    smaller pool is large, so both pools drawn have one distribution of ages and sexes. Never drawn: films of unknown
    age, sex or label, and of bins where one pool is empty. ConfigError where a data set knows no ages or sexes,
    DataError where no bin has both pools.
    """
    absent = [name for name in ("age", "sex") if name not in index.frame]
    if absent:
        raise ConfigError(
            f"recipe.sampler matched: {index.dataset} knows no {' and no '.join(absent)}; choose balanced"
        )
    who = index.frame.iloc[rows]
    age, sex = who["age"].to_numpy(float, na_value=np.nan), who["sex"].astype(str).to_numpy()
    sick, healthy = _pools(index, rows)
    known = np.isfinite(age) & (age <= OLDEST) & np.isin(sex, ("M", "F", "Male", "Female"))
    decade = np.where(known, age, 0).astype(int) // YEARS
    weights = np.zeros(len(rows))
    used = 0
    for here in (known & (decade == d) & (sex == s) for d in set(decade) for s in set(sex)):
        pools = [np.flatnonzero(here & pool) for pool in (sick, healthy)]
        smaller = min(len(pool) for pool in pools)
        used += bool(smaller)
        for pool in pools if smaller else []:
            weights[pool] = smaller / len(pool)
    if not used:
        raise DataError(
            f"recipe.sampler matched: {index.dataset}: no bin of {YEARS} years and one sex has sick and healthy films"
        )
    drawn = weights > 0
    counts = {
        "bins": used,
        **{
            name: {
                "films": int(pool.sum()),
                "drawn_from": int((pool & drawn).sum()),
                "mean_age": _mean(age, pool & known),
                "mean_age_drawn": _mean(age, pool & drawn, weights),
            }
            for name, pool in (("sick", sick), ("healthy", healthy))
        },
        "age_or_sex_unknown": int((~known & (sick | healthy)).sum()),
    }
    return weights / weights.sum(), counts


def _pools(
    index: Index, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which films are sick (some label is 1) and healthy (some label is known, and none is above 0)."""
    target = index.targets[rows].astype(float)
    flipped = np.array([label == NORMAL for label in index.labels])
    found = np.where(flipped, 1 - target, target)
    sick = np.any((found == 1) & ~flipped, axis=1)
    known, marked = np.any(np.isfinite(found), axis=1), np.any(np.nan_to_num(found) > 0, axis=1)
    return np.asarray(sick, np.bool_), np.asarray(known & ~marked, np.bool_)


def _mean(
    age: npt.NDArray[np.float64],
    of: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float64] | None = None,
) -> float | None:
    if not of.any():
        return None
    return float(np.average(age[of], weights=None if weights is None else weights[of]))
