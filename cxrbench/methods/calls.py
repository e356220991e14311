"""The films on which a classifier is surest and most mistaken, and how its probabilities part the classes.

Measured on test films, so an analysis: no score descends from it. By rank, so no threshold is needed: for rare
labels hardly any probability is above one half. N films, K labels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from cxrbench.core.columns import FILE, PROBABILITY, TARGET
from cxrbench.core.contract import Computation
from cxrbench.core.frozen import Frozen
from cxrbench.core.stage import DataView, Stage, compute, predict
from cxrbench.methods.sheets import Cell, Shown, contact_sheet, histograms, write_gallery

FloatArray = npt.NDArray[np.float64]
LABELS = 3  # in the gallery: the commonest that have both classes
FILMS = 3  # with and without the label, in a row of the gallery
SIDE = 160  # pixels of a picture in the gallery


class CallsParams(Frozen):
    """The side at which films are read for their pictures."""

    side: int = Field(224, ge=16)


class Known(NamedTuple):
    """The test films of which a label is known."""

    row: npt.NDArray[np.int64]  # places among the test films [N]
    target: npt.NDArray[np.bool_]  # [N]
    probability: FloatArray  # [N]


class Calls(Computation):
    """The surest and the most mistaken calls, and the probabilities by class: `compute`.

    Input: `predictions`. For each label the median probability of the films with and without it.
    """

    name = "calls"
    version = 1
    Params = CallsParams
    params: CallsParams

    def image_size(self) -> int:
        return self.params.side

    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Leaves `gallery.png`, `probabilities.png` and `gallery.json`; no picture without both classes."""
        table = pd.read_parquet(inputs["predictions"] / FILE)
        found = _known(table[table["part"] == "test"], list(images.index.image_ids))
        write_gallery(out, _pictures(images, found))
        medians = {
            label: {
                "films": len(known.row),
                "with": float(np.median(known.probability[known.target])),
                "without": float(np.median(known.probability[~known.target])),
            }
            for label, known in found.items()
        }
        return {"median_probability": medians}


def surest_calls(data: DataView, model: Stage, side: int) -> dict[str, Stage]:
    """The analysis of a model on the films that it is tested on; `side` is that at which it reads them."""
    predictions = predict(model, data)
    how = CallsParams(side=side)
    return {"calls": compute(Calls, model.data, how, part="test", predictions=predictions)}


def _known(test: pd.DataFrame, names: list[str]) -> dict[str, Known]:
    """By label, the commonest first; those alone that have both classes."""
    place = {name: n for n, name in enumerate(names)}
    rows = test["image_id"].map(place).to_numpy(dtype=np.int64)
    found = {}
    for column in (c for c in test.columns if c.startswith(TARGET)):
        label = column.removeprefix(TARGET)
        target = test[column].to_numpy(dtype=np.float64)
        known = ~np.isnan(target)
        probability = test[PROBABILITY + label].to_numpy(dtype=np.float64)
        one = Known(rows[known], target[known] == 1, probability[known])
        if one.target.any() and not one.target.all():
            found[label] = one
    return dict(sorted(found.items(), key=lambda item: -int(item[1].target.sum())))


def extremes(known: Known) -> tuple[list[int], list[int]]:
    """Places [2 x FILMS at most] of the surest right and of the most mistaken calls, the extreme first.

    Films with the label stand before those without. A class of few films is parted between both rows, so
    that none stands in both.
    """
    right, wrong = [], []
    for present in (True, False):
        places = np.flatnonzero(known.target == present)
        score = known.probability[places] if present else -known.probability[places]
        order = places[np.argsort(-score, kind="stable")].tolist()
        right += order[: min(FILMS, (len(order) + 1) // 2)]
        wrong += order[::-1][: min(FILMS, len(order) // 2)]
    return right, wrong


def _pictures(images: Any, found: Mapping[str, Known]) -> dict[str, Shown]:
    if not found:
        return {}
    rows: list[list[Cell]] = []
    for label, known in list(found.items())[:LABELS]:
        for places in extremes(known):
            films = list(images[known.row[places]]) if places else []
            rows.append([_cell(f, label, known, n) for f, n in zip(films, places, strict=True)])
    split = {
        label: {"with": known.probability[known.target], "without": known.probability[~known.target]}
        for label, known in found.items()
    }  # fmt: skip
    return {
        "gallery.png": Shown(
            contact_sheet([row for row in rows if row], side=SIDE),
            "Test films by label: the surest right calls (first row), and the most mistaken (second): with the label, "
            "then without it",
            films=True,
        ),
        "probabilities.png": Shown(
            histograms(split, "probability"),
            "Probabilities of the test films with and without each label, each class as shares of its own",
            films=False,
        ),
    }


def _cell(film: Any, label: str, known: Known, place: int) -> Cell:
    truth = label if known.target[place] else f"no {label}"
    return film, f"{known.probability[place]:.3f}  {truth}"
