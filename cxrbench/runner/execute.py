"""What each kind of stage does: material in, files out. One function a kind."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cxrbench.core.columns import FILE
from cxrbench.core.contract import Computation, Transformation, reading_of
from cxrbench.core.registry import load_target
from cxrbench.core.spec import Reading
from cxrbench.core.stage import DataView, Stage
from cxrbench.data.base import FindingBox
from cxrbench.data.module import CxrDataModule
from cxrbench.data.pixels import centre_of, kept_shape
from cxrbench.data.splits import PARTS
from cxrbench.methods.base import Method
from cxrbench.runner.context import Context, Material
from cxrbench.runner.numerics import set_numerics
from cxrbench.runner.predict import predict_parts
from cxrbench.runner.training import load_module, train

CHUNK = 64  # images that a transform is given at once


class ChosenImages:
    """Rows of a memory map as uint8 [N, S, S]: a slice reads only its own images.

    `rows` [N] are their places among all images. `index` [N] and `dataset` say what is known of them
    besides, such as the truth of drawn films (`dataset.truth(index, row, size)`).
    """

    def __init__(
        self,
        material: Material,
        rows: npt.NDArray[np.int64],
        view: DataView,
        context: Context,
        reading: Reading = "squeeze",
    ) -> None:
        self._pixels, self.rows = material.squares, rows
        self._view, self._context, self._reading = view, context, reading
        self.dataset = material.opened.cls
        self.index = material.opened.index.select(np.isin(np.arange(len(material.parts)), rows))
        self.has_masks = bool(self.dataset.has_masks) and view.images is None

    def masks(self) -> npt.NDArray[np.uint8]:
        """The lungs of the images [N, S, S]: 255 inside. Raw images of data sets with masks only."""
        side = self._pixels.shape[-1]
        return np.asarray(self._context.masks(self._view, side, self._reading)[self.rows])

    def boxes(self) -> list[list[FindingBox]] | None:
        """The boxes around findings of the images; None where there are none, or no raw images."""
        found: list[list[FindingBox]] | None = self.dataset.finding_boxes(self.index)
        if self._view.images or found is None:
            return None
        if self.dataset.as_read(self._reading) == "squeeze":
            return found
        return [self._in_the_middle(row, boxes) for row, boxes in enumerate(found)]

    def _in_the_middle(self, row: int, boxes: list[FindingBox]) -> list[FindingBox]:
        """Boxes in shares of the square in the middle of a film; those that are wholly beside it are left out."""
        if not boxes:
            return []
        side = self._pixels.shape[-1]
        height, width = kept_shape(self.dataset.read_film(self.index, row).shape, side)
        top, left = centre_of((height, width), side)
        kept = []
        for name, (x0, y0, x1, y1) in boxes:
            edges = [x0 * width - left, y0 * height - top, x1 * width - left, y1 * height - top]
            a, b, c, d = (min(max(edge / side, 0.0), 1.0) for edge in edges)
            if a < c and b < d:
                kept.append((name, (a, b, c, d)))
        return kept

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> npt.NDArray[np.uint8]:
        return np.asarray(self._pixels[self.rows[place]])


def device_of(context: Context) -> str:
    """The device of single-device work."""
    return "cuda" if context.execution.accelerator == "gpu" else "cpu"


def data_module(stage: Stage, context: Context) -> tuple[CxrDataModule, list[str]]:
    """The loaders that a fit or predict stage reads, and the images it leaves out."""
    cls: type[Method] = load_target(stage.target)
    params = cls.Params.parse(dict(stage.params), where=stage.key)
    load, size = cls.image_size(params)
    material = context.material(stage.data, load, cls.reading(params))
    masks = None
    if cls.reads_masks(params):
        masks = context.masks(stage.data, load, cls.reading(params))
    data = CxrDataModule(
        material.opened.index,
        material.pixels,
        material.parts,
        params.recipe,
        size=size,
        seed=stage.seed,
        workers=context.execution.workers,
        pin=context.execution.accelerator == "gpu",
        resident=context.execution.resident,
        fit_part=stage.part,
        masks=masks,
    )
    return data, material.skipped


def run_fit(stage: Stage, context: Context, work: Path) -> None:
    """Train; in a process group every rank runs this."""
    data, _ = data_module(stage, context)
    inputs = {name: context.artefact(parent) for name, parent in stage.inputs.items()}
    train(stage, data, inputs, work, context.execution, context.store.root)


def run_predict(stage: Stage, context: Context, out: Path) -> dict[str, Any]:
    """Probabilities of the validation and test images, each once."""
    model = stage.inputs["model"]
    data, skipped = data_module(stage, context)
    halvings = context.store.meta(model.key)["facts"].get("halvings")
    if halvings:  # what did not fit there need not be tried here
        data.most = int(halvings[-1]["images"])
    module = load_module(model, context.artefact(model) / "model.safetensors", context.execution)
    set_numerics(context.execution, module.params.recipe.precision)
    facts = predict_parts(module, data, out / FILE, stage, device_of(context))
    if stage.data.label_map:
        facts["images_of_training_data"] = _shared_images(stage, context)
    return {**facts, "skipped_images": skipped}


def _shared_images(stage: Stage, context: Context) -> list[str]:
    """The test images whose file is one of the data set that the model was trained on, too."""
    there = set(context.open(stage.inputs["model"].data).contents) - {""}
    test = context.open(stage.data)
    parts = test.split.parts(test.index, stage.data.fold)
    return [
        str(name)
        for name, content, part in zip(test.index.image_ids, test.contents, parts, strict=True)
        if part == "test" and content in there
    ]


def run_compute(stage: Stage, context: Context, out: Path) -> dict[str, Any]:
    """A statistic of the training part, or an analysis of another."""
    cls = load_target(stage.target)
    computation: Computation = cls(cls.Params.parse(dict(stage.params), where=stage.key))
    computation.device = device_of(context)
    reading = reading_of(computation)
    material = context.material(stage.data, computation.image_size(), reading)
    wanted = PARTS if stage.part == "all" else (stage.part,)
    rows = np.flatnonzero(np.isin(material.parts.astype(str), wanted))
    inputs = {name: context.artefact(parent) for name, parent in stage.inputs.items()}
    targets = material.opened.index.targets[rows]
    chosen = ChosenImages(material, rows, stage.data, context, reading)
    return computation.compute(chosen, targets, inputs, out, stage.seed)


def open_transformation(stage: Stage, context: Context) -> Transformation:
    """What a transform stage rewrites images with, with all that it was fitted on loaded."""
    cls = load_target(stage.target)
    change: Transformation = cls(cls.Params.parse(dict(stage.params), where=stage.key))
    change.open({n: context.artefact(p) for n, p in stage.inputs.items()}, device_of(context))
    return change


def run_transform(stage: Stage, context: Context, out: Path) -> dict[str, Any]:
    """Every image rewritten: `images.npy` uint8 [N, T, T]."""
    change = open_transformation(stage, context)
    pixels = context.material(stage.data, change.image_size(), reading_of(change)).squares
    count = len(pixels)
    images = None
    for start in range(0, count, CHUNK):
        with torch.inference_mode():
            block = np.asarray(change(np.array(pixels[start : start + CHUNK])))
        if block.dtype != np.uint8 or block.ndim != 3:
            raise TypeError(
                f"{stage.name}: gave {block.dtype} {block.shape}; expected uint8 [B, T, T]"
            )
        if images is None:
            images = np.lib.format.open_memmap(
                out / "images.npy", mode="w+", dtype=np.uint8, shape=(count, *block.shape[1:])
            )
        images[start : start + len(block)] = block
    assert images is not None
    images.flush()
    return {"images": count, "size": int(images.shape[1]), **change.leave(out)}
