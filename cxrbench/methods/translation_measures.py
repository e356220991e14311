"""What a translation between healthy and sick films changed, as numbers; pure functions.

Shapes: N films, S side, D features. Films are uint8 [N, S, S]; changes are [N, S, S] in shares of the grey
range; boxes are (x0, y0, x1, y1) in shares of the film.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from cxrbench.metrics.classification import Ranking
from cxrbench.metrics.frechet import fid, kid

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]
Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
# The findings of a film and their boxes.
Marks = Sequence[tuple[str, tuple[float, float, float, float]]]
# Std, in sides, of the Gaussian over a change before its highest place is looked for.
SMOOTHING = 0.03
HALVINGS = 10  # ways to halve the real films for the distances


def change(films: Pixels, made: Pixels) -> Plane:
    """|made - film| at every pixel."""
    return np.asarray(cv2.absdiff(films, made) / np.float32(255), dtype=np.float32)


def residual(changes: Plane) -> dict[str, float]:
    """The mean over films of each film's mean change and of its 95th percentile."""
    high = np.quantile(changes.reshape(len(changes), -1), 0.95, axis=1)
    return {"films": len(changes), "mean": float(changes.mean()), "p95": float(high.mean())}


def by_film(changes: Plane, lungs: Mask | None) -> dict[str, Numbers]:
    """Statistics [N] of each film's change: `mean`, `p95`, and with masks [N, S, S] the same inside the `lungs`.

    NaN inside the lungs of a film that shows none.
    """
    flat = changes.reshape(len(changes), -1)
    found = {"mean": flat.mean(1), "p95": np.quantile(flat, 0.95, axis=1)}
    if lungs is not None:
        inside = [one[here] for one, here in zip(changes, lungs, strict=True)]
        found["lungs"] = np.array([held.mean() if held.size else np.nan for held in inside])
        found["lungs_p95"] = np.array(
            [np.quantile(held, 0.95) if held.size else np.nan for held in inside]
        )
    return {name: values.astype(np.float64) for name, values in found.items()}


def separation(sick: Numbers, healthy: Numbers) -> dict[str, Any]:
    """How well a statistic tells sick films from healthy ones: AUC, PR-AUC, precision at 95 % recall (test threshold).

    `floor` is the sick films' share, which precision has by chance. Films without the statistic (NaN) are left out.
    """
    kept = {"sick": sick[np.isfinite(sick)], "healthy": healthy[np.isfinite(healthy)]}
    films = {domain: len(values) for domain, values in kept.items()}
    if not all(films.values()):
        return {"films": films}
    target = np.repeat([1, 0], list(films.values()))
    ranking = Ranking.of(target, np.concatenate(list(kept.values())))
    point = ranking.precision_at_recall(0.95)
    return {
        "films": films,
        "auc": ranking.roc_auc(),
        "pr_auc": ranking.average_precision(),
        "precision_at_95_recall": point.precision if point else None,
        "floor": films["sick"] / sum(films.values()),
    }


# --- where it changes


def box_mask(box: Sequence[float], side: int) -> Mask:
    """The pixels of a box [S, S]; at least one."""
    x0, y0, x1, y1 = box
    mask = np.zeros((side, side), dtype=np.bool_)
    left, top = (min(int(edge * side), side - 1) for edge in (x0, y0))
    mask[top : max(round(y1 * side), top + 1), left : max(round(x1 * side), left + 1)] = True
    return mask


def in_boxes(changes: Plane, marks: Sequence[Marks], tissue: Mask) -> dict[str, Any]:
    """The change inside boxes of findings against that outside all boxes in `tissue` [N, S, S].

    Films without a box, or with no tissue left outside, are left out. `ratio` is of the two means over films, and
    `more_inside` the share of films where the inside changed more.
    """
    inside, outside = [], []
    by_finding: dict[str, list[tuple[float, float]]] = {}
    for moved, found, here in zip(changes, marks, tissue, strict=True):
        masks = [(name, box_mask(box, moved.shape[-1])) for name, box in found]
        held = np.logical_or.reduce([mask for _, mask in masks]) if masks else ~here
        rest = here & ~held
        if not masks or not rest.any():
            continue
        inside.append(float(moved[held].mean()))
        outside.append(float(moved[rest].mean()))
        for name, mask in masks:
            by_finding.setdefault(name, []).append((float(moved[mask].mean()), outside[-1]))
    if not inside:
        return {"films": 0}
    more = np.array(inside) > np.array(outside)
    return {
        **_ratio(list(zip(inside, outside, strict=True))),
        "more_inside": float(more.mean()),
        "by_finding": {name: _ratio(pairs) for name, pairs in sorted(by_finding.items())},
    }


def _ratio(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    inside, outside = np.array(pairs).mean(axis=0).tolist()
    ratio = inside / outside if outside else None
    return {"films": len(pairs), "inside": inside, "outside": outside, "ratio": ratio}


def pointing_game(changes: Plane, marks: Sequence[Marks], tissue: Mask) -> dict[str, Any]:
    """How often the highest place of the smoothed change is in a box (Zhang et al., 2016).

    `chance` is the boxes' share of the film's area: what pointing anywhere would hit. `in_tissue`: the same with
    places in `tissue` [N, S, S] alone.
    """
    found: dict[str, list[float]] = {"hit": [], "chance": [], "hit_in": [], "chance_in": []}
    for moved, boxes, here in zip(changes, marks, tissue, strict=True):
        if not boxes or not here.any():
            continue
        held = np.logical_or.reduce([box_mask(box, moved.shape[-1]) for _, box in boxes])
        smooth = cv2.GaussianBlur(moved, (0, 0), SMOOTHING * moved.shape[-1])
        found["hit"].append(bool(held.flat[smooth.argmax()]))
        found["chance"].append(float(held.mean()))
        found["hit_in"].append(bool(held.flat[np.where(here, smooth, -1).argmax()]))
        found["chance_in"].append(float(held[here].mean()))
    if not found["hit"]:
        return {"films": 0}
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    return {
        "films": len(found["hit"]),
        "hits": mean["hit"],
        "chance": mean["chance"],
        "in_tissue": {"hits": mean["hit_in"], "chance": mean["chance_in"]},
    }


# --- what another network makes of it


class Verdicts(NamedTuple):
    """Probabilities of "sick" [N] of films, of their translations, and of these translated back."""

    before: Numbers
    after: Numbers
    back: Numbers


def balanced_threshold(healthy: Numbers, sick: Numbers) -> float:
    """The probability at which sensitivity and specificity are closest to each other."""
    tried = np.unique(np.concatenate((healthy, sick)))
    recall = (sick >= tried[:, None]).mean(axis=1)
    specificity = (healthy < tried[:, None]).mean(axis=1)
    return float(tried[np.abs(recall - specificity).argmin()])


def flips(seen: Verdicts, threshold: float, *, was_sick: bool) -> dict[str, Any]:
    """Of the films that are called what they are, the share that is called otherwise once translated.

    `control` is that share once they are translated back, where nothing should flip. None without such films.
    """

    def sick(probability: Numbers) -> Mask:
        return np.asarray(probability >= threshold)

    called = sick(seen.before) == was_sick

    def flipped(probability: Numbers) -> float | None:
        return float((sick(probability) != was_sick)[called].mean()) if called.any() else None

    return {
        "threshold": threshold,
        "films": int(called.sum()),
        "flipped": flipped(seen.after),
        "control": flipped(seen.back),
    }


def mean_shift(seen: Verdicts) -> dict[str, float]:
    """How far the mean probability of "sick" moved by translating, and by translating there and back."""
    return {
        "before": float(seen.before.mean()),
        "change": float((seen.after - seen.before).mean()),
        "control": float((seen.back - seen.before).mean()),
    }


def halves(patients: npt.NDArray[Any], seed: int) -> tuple[Rows, Rows]:
    """Rows [N] of two halves that share no patient, as equal as whole patients allow."""
    names, number = np.unique(patients.astype(str), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    held = np.cumsum(np.bincount(number, minlength=len(names))[order])
    first = order[: np.abs(held - len(patients) / 2).argmin() + 1]
    inside = np.isin(number, first)
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def distances(
    real: Numbers, patients: npt.NDArray[Any], source: Numbers, made: Numbers, seed: int
) -> dict[str, Any]:
    """KID and FID from one half of the real films [N, D] of a domain, to three sets of as many films each.

    `translated` are films `made` into that domain, `untranslated` the `source` films that they were made of, `floor`
    the other half of the real films, of other patients. Means over ten ways to halve, and KID's std over them. All
    sets have the same number of films, so that FID's bias is the same. KID is the one to read when there are few.
    """
    found: dict[str, list[list[float]]] = {"kid": [], "fid": []}
    ways = [halves(patients, seed + way) for way in range(HALVINGS)]
    count = min(len(source), *(len(half) for way in ways for half in way))
    if count < 2:
        return {"films": count}
    random = np.random.default_rng(seed)
    for reference, floor in ways:
        order = random.permutation(len(source))
        sets = (made[order], source[order], real[floor])
        against = real[reference][:count]
        for name, distance in (("kid", kid), ("fid", fid)):
            found[name].append([distance(features[:count], against) for features in sets])
    names = ("translated", "untranslated", "floor")
    means = {
        n: dict(zip(names, np.mean(v, axis=0).tolist(), strict=True)) for n, v in found.items()
    }
    spread = np.std(found["kid"], axis=0).tolist()
    return {"films": count, **means, "kid_std": dict(zip(names, spread, strict=True))}
