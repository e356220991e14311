"""What the methods that look at a part of the image show of it: regions against lungs, and recall by finding.

A region of interest is a box (x0, y0, x1, y1) in shares of the image. Both are measured on test images, so
they are analyses: no score descends from them. N: images, S: their side, B: a block of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image, ImageDraw

from cxrbench.core.columns import FILE, PROBABILITY, TARGET
from cxrbench.core.contract import Computation
from cxrbench.core.frozen import Frozen
from cxrbench.core.spreadsheet import inert
from cxrbench.core.stage import DataView, Stage, compute, predict
from cxrbench.methods.sheets import (
    TILE,
    Cell,
    Shown,
    bars,
    contact_sheet,
    is_of_many,
    tile,
    write_gallery,
)
from cxrbench.metrics.boxes import box_of_mask, iou
from cxrbench.metrics.classification import OperatingPoint, Ranking
from cxrbench.metrics.spread import spread

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
CHUNK = 32  # images looked at at once
SHOWN = 6  # rows of the gallery, as many as the figure of Rocha et al. has
APEX = 0.25  # share of the lungs' height, from above, that is called their apices
RECALL = 0.95
PICKED = ("test", "validation")  # parts that thresholds are picked on
MARK = "finding:"  # + name: a column of the index with the mark of a finding that is no label here
REGION, TRUTH, OTHER = "#ff5b4a", "#58d68d", "#4aa3ff"
AVERAGED = 200  # films of the mean film, at most


# --- regions


class RoiReport(Computation):
    """The region of each image, and how much of the lungs it holds where these are known.

    Subclasses say `open`, `look` and `shown`, and the `columns` that describe a region besides its box.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    picture: ClassVar[str] = "the region"

    def image_size(self) -> int:
        side: int = self.params.films
        return side

    def open(self, inputs: Mapping[str, Path]) -> None:
        """Load what finds the regions."""
        raise NotImplementedError

    def look(self, films: Pixels, rows: Rows) -> tuple[Numbers, dict[str, Numbers]]:
        """uint8 [B, S, S], and their places [B] among all images, to boxes [B, 4] and `columns` [B]."""
        raise NotImplementedError

    def shown(self, films: Pixels, boxes: Numbers, columns: Mapping[str, Numbers]) -> Pixels:
        """The regions as the classifier gets them, uint8 [B, T, T]."""
        raise NotImplementedError

    def beside(self, rows: Rows) -> tuple[str, Pixels, Numbers] | None:
        """Another way of looking at the images at places [B] among all: what it is called, its own pictures
        uint8 [B, T, T] and its boxes [B, 4]; None where there is no other."""
        return None

    def caption(self, columns: Mapping[str, float]) -> str:
        """What is written under a region."""
        raise NotImplementedError

    def further(self, boxes: Numbers, columns: Mapping[str, Numbers], truth: Any) -> dict[str, Any]:
        """More facts; `truth` is a list of N boxes around the lungs, None where none are seen, or None."""
        return {}

    @torch.inference_mode()
    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Leaves `regions.csv` (one row an image), `gallery.png`, `means.png` and `gallery.json`."""
        self.open(inputs)
        blocks = [
            self.look(np.array(images[i : i + CHUNK]), images.rows[i : i + CHUNK])
            for i in range(0, len(images), CHUNK)
        ]
        boxes = np.concatenate([box for box, _ in blocks])
        columns = {n: np.concatenate([block[n] for _, block in blocks]) for n in self.columns}
        facts: dict[str, Any] = {
            "images": len(boxes),
            "area": float(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).mean()),
            **{name: _spread(values) for name, values in columns.items()},
        }
        truth, against = None, dict[str, Numbers]()
        if images.has_masks:
            masks = images.masks()
            truth = [box_of_mask(mask) for mask in masks]
            against = compare(boxes, masks, truth)
            facts["lungs"] = {name: _spread(values) for name, values in against.items()}
        facts |= self.further(boxes, columns, truth)
        names = [inert(name) for name in images.index.image_ids]
        table = {"image_id": names, **_edges(boxes), **columns, **against}
        pd.DataFrame(table).to_csv(out / "regions.csv", index=False)
        self._draw(images, boxes, columns, against, truth, out)
        return facts

    def _draw(
        self,
        images: Any,
        boxes: Numbers,
        columns: Mapping[str, Numbers],
        against: Mapping[str, Numbers],
        truth: Any,
        out: Path,
    ) -> None:
        rows = spread(len(boxes), SHOWN)
        films = np.array(images[rows])
        seen = self.shown(films, boxes[rows], {n: values[rows] for n, values in columns.items()})
        other = self.beside(images.rows[rows])
        pairs: list[list[Cell]] = []
        for place, row in enumerate(rows):
            outlines = [(boxes[row], REGION)]
            if truth is not None and truth[row] is not None:
                outlines.insert(0, (truth[row], TRUTH))
            if other is not None:
                outlines.insert(0, (other[2][place], OTHER))
            left = (_outlined(films[place], outlines), str(images.index.image_ids[row]))
            text = self.caption({n: float(values[row]) for n, values in columns.items()})
            if against and np.isfinite(against["covered"][row]):
                # First, since what does not fit is cut off.
                lungs, apices = against["covered"][row], against["apices"][row]
                text = f"lungs {lungs:.0%} apices {apices:.0%}  {text}"
            middle: list[Cell] = [] if other is None else [(other[1][place], other[0])]
            pairs.append([left, *middle, (_outlined(seen[place], []), text)])
        known = " The green box is around the true lungs." if truth is not None else ""
        if other is not None:
            known += f" Between them, and in blue, {other[0]}."
        caption = f"Test images with {self.picture} in red, and what the classifier sees.{known}"
        pictures = {"gallery.png": Shown(contact_sheet(pairs), caption, films=True)}
        write_gallery(out, pictures | {"means.png": self._means(images, boxes, columns)})

    def _means(self, images: Any, boxes: Numbers, columns: Mapping[str, Numbers]) -> Shown:
        """All regions on the mean film, and the mean of what the classifier sees."""
        rows = spread(len(boxes), AVERAGED)
        sums = []
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            films = np.array(images[some])
            seen = self.shown(
                films, boxes[some], {n: column[some] for n, column in columns.items()}
            )
            sums.append([films.sum(0, dtype=np.float64), seen.sum(0, dtype=np.float64)])
        film, mean_seen = (sum(parts) / len(rows) / 255 for parts in zip(*sums, strict=True))
        cells: list[Cell] = [
            (_outlined(film, [(boxes[row], REGION) for row in rows], width=1), f"mean of {len(rows)}"),
            (mean_seen, "mean of what is seen"),
        ]  # fmt: skip
        caption = f"Mean of the test images with {self.picture} of each, and mean of what the classifier sees."
        return Shown(contact_sheet([cells]), caption, films=not is_of_many(rows))


def compare(boxes: Numbers, masks: Pixels, truth: list[Numbers | None]) -> dict[str, Numbers]:
    """Regions [N, 4] against lungs [N, S, S]: values [N], NaN for images without lungs.

    `iou` with the box around both lungs (`truth`); `covered`, the share of the lungs' pixels that is inside;
    `apices`, the same of the upper quarter of the lungs' height.
    """
    values = {name: np.full(len(boxes), np.nan) for name in ("iou", "covered", "apices")}
    for n, (box, mask, around) in enumerate(zip(boxes, masks, truth, strict=True)):
        if around is None:
            continue
        lungs = mask != 0
        top, bottom = (around[[1, 3]] * len(mask)).round().astype(int)
        upper = lungs.copy()
        upper[top + max(1, round(APEX * (bottom - top))) :] = False
        values["iou"][n] = iou(box, around)
        values["covered"][n] = _share_inside(lungs, box)
        values["apices"][n] = _share_inside(upper, box)
    return values


def overlap_of_one(box: Numbers, truth: list[Numbers | None]) -> float | None:
    """The mean IoU of one box [4], laid on every image, with the true ones; None where there are none."""
    true = np.array([each for each in truth if each is not None]).reshape(-1, 4)
    return float(iou(box, true).mean()) if len(true) else None


def mean_box(truth: list[Numbers | None]) -> Numbers:
    """The mean [4] of the true boxes; the whole image where there are none."""
    true = [each for each in truth if each is not None]
    return np.asarray(np.mean(true, axis=0)) if true else np.array([0.0, 0, 1, 1])


def _share_inside(mask: npt.NDArray[np.bool_], box: Numbers) -> float:
    x0, y0, x1, y1 = (box * len(mask)).round().astype(int)
    return float(mask[y0:y1, x0:x1].sum() / mask.sum())


def _spread(values: Numbers) -> dict[str, float | None]:
    """Mean, standard deviation and the value that one in twenty is below, of what is defined."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return {"mean": None, "std": None, "p05": None}
    low = float(np.quantile(defined, 0.05))
    return {"mean": float(defined.mean()), "std": float(defined.std()), "p05": low}


def _edges(boxes: Numbers) -> dict[str, Numbers]:
    return {name: boxes[:, k] for k, name in enumerate(("x0", "y0", "x1", "y1"))}


# --- recall by finding


class RecallParams(Frozen):
    """`side` at which images are kept anyway, since none is looked at."""

    side: int = 512


class FindingRecall(Computation):
    """Which findings the images have that are called positive, and which are missed: a `compute` stage.

    For data sets with one label and, in columns `finding:<name>`, the findings behind it. Thresholds are those
    of 95 % recall: picked on the test part, as the paper's shares show that it did, and on the validation
    part. Of the positive images, one counts for each finding that it has, surely (1) or maybe (-1).
    """

    name = "finding-recall"
    version = 2
    Params = RecallParams
    params: RecallParams

    def image_size(self) -> int:
        return self.params.side

    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Leaves `gallery.png` and `gallery.json`; without such columns no picture and no finding."""
        table = pd.read_parquet(inputs["predictions"] / FILE)
        [label] = [c.removeprefix(TARGET) for c in table.columns if c.startswith(TARGET)]
        parts = {part: table[table["part"] == part].set_index("image_id") for part in ("val", "test")}  # fmt: skip
        frame = images.index.frame.set_index("image_id")
        marks = frame[[c for c in frame.columns if str(c).startswith(MARK)]]
        test = parts["test"]
        positive = test[test[TARGET + label] == 1]
        probability, marks = positive[PROBABILITY + label], marks.loc[positive.index]
        facts: dict[str, Any] = {"label": label, "positive_images": len(positive)}
        for name, part in zip(PICKED, (test, parts["val"]), strict=True):
            point = _point(part, label)
            if point is not None:
                called = probability >= point.threshold
                facts[f"at_{name}_threshold"] = _by_finding(called, marks, point.threshold)
        write_gallery(out, _recalls(facts))
        return facts


def recall_by_finding(data: DataView, model: Stage, side: int) -> dict[str, Stage]:
    """The analysis of a model with one label; nothing where there are several. `side` is read anyway."""
    if len(data.labels) != 1:
        return {}
    how = RecallParams(side=side)
    predictions = predict(model, data)
    return {"recall by finding": compute(FindingRecall, data, how, part="test", predictions=predictions)}  # fmt: skip


def _point(table: pd.DataFrame, label: str) -> OperatingPoint | None:
    known = table[table[TARGET + label].notna()]
    ranking = Ranking.of(known[TARGET + label], known[PROBABILITY + label])
    return ranking.precision_at_recall(RECALL)


def _by_finding(called: "pd.Series[bool]", marks: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Recall of each finding, the best first."""
    rows = {}
    for column in marks.columns:
        has = marks[column].abs() == 1
        if has.any():
            row = {"images": int(has.sum()), "recall": float(called[has].mean())}
            rows[str(column).removeprefix(MARK)] = row
    ordered = dict(sorted(rows.items(), key=lambda item: -float(item[1]["recall"])))
    overall = float(called.mean()) if len(called) else None
    return {"threshold": threshold, "recall": overall, "findings": ordered}


def _recalls(facts: Mapping[str, Any]) -> dict[str, Shown]:
    """Bars of each finding's recall, the best first, by threshold."""
    points = {f"threshold of the {name} part": facts.get(f"at_{name}_threshold") for name in PICKED}
    rows: dict[str, dict[str, float]] = {}
    for series, point in points.items():
        for finding, row in (point or {"findings": {}})["findings"].items():
            rows.setdefault(f"{finding} ({row['images']})", {})[series] = row["recall"]
    if not rows:
        return {}
    caption = "Recall by finding at 95 % recall of all, with the number of positive test films that have it"
    return {"gallery.png": Shown(bars(rows, "recall"), caption, films=False)}


# --- drawing


def _outlined(film: Pixels, outlines: list[tuple[Numbers, str]], *, width: int = 2) -> Image.Image:
    """A film [S, S] with boxes drawn on it."""
    picture = tile(film).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for box, colour in outlines:
        x0, y0, x1, y1 = np.clip(box * TILE, 0, TILE - 1)
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)
    return picture
