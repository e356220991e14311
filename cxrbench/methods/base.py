"""What every method is: a LightningModule that says everything about itself.

Shapes: B batch, S side, K labels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NotRequired, TypedDict

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor, distributed

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.spec import MethodParams, Preset, Reading
from cxrbench.core.stage import DataView, Stage, fit
from cxrbench.methods.optimisers import build_optimiser
from cxrbench.metrics.classification import roc_auc
from cxrbench.nn.backbones import read_weights, to_unit
from cxrbench.nn.losses import masked_bce


class Batch(TypedDict):
    """What the loaders give: uint8 `image` [B, 1, S, S] or ten crops [B, 10, 1, S, S], `target` and
    `known` [B, K], `row` [B]; of a part of a batch `known_count` [], for `masked_bce`; of methods
    that read masks `mask` uint8 [B, 1, S, S], 255 inside the lungs."""

    image: Tensor
    target: Tensor
    known: Tensor
    row: Tensor
    mask: NotRequired[Tensor]
    known_count: NotRequired[Tensor]


def weights_in(folder: Path) -> dict[str, Tensor]:
    """The tensors that a training left."""
    return read_weights(folder / "model.safetensors")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, nested dictionaries too."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


class Method(L.LightningModule):
    """Base of every trained part. A part with `presets` is a method that can be named and scored."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # data set -> a `core.reported.Reported`: {"split", "source", "params": {option of the data set: value},
    # "macro": {metric: value}, "labels": {label: auc}}
    reported: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    Params: ClassVar[type[MethodParams]] = MethodParams
    # False: what is scored is not fitted to the labels, so nothing promises that it beats chance.
    learns: ClassVar[bool] = True
    needs_masks: ClassVar[bool] = False  # batches carry lung masks and boxes, too
    # False: the loss of a batch is not the mean of its parts' losses (images are mixed with one another,
    # say), so the batch is not halved when memory is short.
    divisible: ClassVar[bool] = True
    # Optimiser -> its settings, where the paper's framework has other defaults than torch.
    optimiser_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # Steps between pictures of a training under way (see `sketch`); 0: it has none.
    sketch_steps: ClassVar[int] = 0
    sketched: ClassVar[str] = ""  # what they show
    params: MethodParams
    # Set before a training. Lightning's own estimate makes the loader before a resumed training
    # knows its epoch, and so starts it with another order.
    steps_per_epoch: int = 1
    # Set before each step, seeded alike on every device: for draws that hold for the global batch. None: torch's own.
    step_draws: torch.Generator | None = None

    def __init__(self, params: MethodParams, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.params = params
        self.labels = labels

    @classmethod
    def resolve(
        cls, preset: Preset, params: Mapping[str, Any], recipe: Mapping[str, Any], *, where: str
    ) -> MethodParams:
        """The preset with `params` laid over it, and `recipe` over the recipe of every stage."""
        if preset not in cls.presets:
            raise ConfigError(
                f"{where}: {cls.name} has no preset {preset!r}; it has {', '.join(cls.presets)}"
            )
        base = cls.Params.parse(cls.presets[preset], where=f"{cls.name}.presets[{preset!r}]")
        tree = _with_recipe(base.model_dump(), recipe)
        return cls.Params.parse(merge(tree, params), where=where)

    @classmethod
    def stages(cls, data: DataView, params: Any) -> Stage:
        """The graph of trainings that ends in the model to be scored."""
        return fit(cls, data, params)

    @classmethod
    def view(cls, data: DataView, params: Any) -> DataView:
        """The images as this method rewrites them, for any other method to read."""
        raise ConfigError(
            f"{cls.name} rewrites no images; a view is what aligns, crops or restores"
        )

    @classmethod
    def tested_on(cls, data: DataView, params: Any, model: Stage) -> DataView:
        """The images that the model is tested on: those that it was trained on, unless said."""
        return model.data

    @classmethod
    def analyses(cls, data: DataView, params: Any, model: Stage) -> Mapping[str, Stage]:
        """What is measured or drawn beside the scores: `compute` or `score` stages by name."""
        return {}

    @classmethod
    def image_size(cls, params: Any) -> tuple[int, int]:
        """(side at which images are read, side of a view of them) in pixels."""
        return params.recipe.load, params.recipe.size

    @classmethod
    def reading(cls, params: Any) -> Reading:
        """How films that are no squares are read at `image_size`; `short_side` needs views that are crops."""
        return "squeeze"

    @classmethod
    def reads_masks(cls, params: Any) -> bool:
        """Whether batches carry lung masks and boxes with these parameters."""
        return cls.needs_masks

    @classmethod
    def without_weights(cls, params: Any) -> Any:
        """The parameters of a module whose weights are loaded afterwards, so need not be fetched."""
        return params

    @property
    def monitor(self) -> str:
        """The validation metric that chooses the epoch."""
        return self.params.recipe.select

    def receive(self, inputs: Mapping[str, Path]) -> None:
        """Take what earlier stages left: their folders, by the names that `stages` gave them.

        A training left `model.safetensors` (see `weights_in`).
        """
        if inputs:
            raise NotImplementedError(f"{self.name} is given {list(inputs)} but takes nothing")

    def sketch(self, batch: Any) -> Image.Image:
        """A picture of how far the training is, from the batch that comes next; it must draw nothing at random."""
        raise NotImplementedError

    def weights_source(self) -> dict[str, Any]:
        """Where the initial weights came from, for the record."""
        return {}

    def configure_optimizers(self) -> Any:
        options = self.optimiser_options
        return build_optimiser(self, self.params.recipe, self.steps_per_epoch, options=options)


def once(batch: Any) -> Any | None:
    """A validation batch without the images that padding under DDP repeats; None where nothing is left."""
    if "repeated" not in batch:
        return batch
    kept = ~batch["repeated"]
    if not kept.any():
        return None
    places = kept.nonzero().flatten().tolist()
    return {
        name: values[kept] if isinstance(values, Tensor) else [values[i] for i in places]
        for name, values in batch.items()
    }


def _with_recipe(tree: dict[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """`recipe` laid over every recipe in a tree of parameters."""
    laid: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "recipe":
            laid[key] = merge(value, recipe)
        else:
            laid[key] = _with_recipe(value, recipe) if isinstance(value, dict) else value
    return laid


class Classifier(Method):
    """A method that gives a probability for each label; subclasses say `forward`, and `losses` if they must."""

    def __init__(self, params: MethodParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        self._validation: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 1, S, S] in [0, 1] to logits [B, K]."""
        raise NotImplementedError

    def logits(self, batch: Batch) -> Tensor:
        """Logits [B, K] of a batch; those of ten crops are averaged in float32."""
        image = to_unit(batch["image"])
        found: Tensor = self(image.flatten(0, 1) if image.ndim == 5 else image)
        if image.ndim == 5:
            found = found.float().view(image.shape[0], image.shape[1], -1).mean(dim=1)
        return found

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, which is minimised, and any terms of it that are worth a column in the log."""
        logits = self.logits(batch)
        count = batch.get("known_count")
        return {"loss": masked_bce(logits, batch["target"], batch["known"], count)}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self.losses(batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # A copy: in CUDA graphs (recipe.compile) the next batch is written over this one's result.
        logits = self.logits(batch).to(torch.float32, copy=True)
        self._validation.append((batch["row"], logits, batch["target"], batch["known"]))

    def on_validation_epoch_end(self) -> None:
        columns = [torch.cat(parts) for parts in zip(*self._validation, strict=True)]
        self._validation.clear()
        if self.trainer.world_size > 1:
            columns = [_gathered(self, column) for column in columns]
        row, logits, target, known = columns
        # Padding under DDP repeats images: each counts once, so devices do not change the number.
        _, first = np.unique(row.cpu().numpy(), return_index=True)
        kept = torch.from_numpy(first).to(row.device)
        logits, target, known = logits[kept], target[kept], known[kept].bool()
        self.log("val_loss", masked_bce(logits, target, known), rank_zero_only=False)
        auc = mean_auc(logits, target, known)
        if auc is not None:
            self.log("val_auc", auc)
        elif self.params.recipe.select == "val_auc":
            raise DataError(
                "recipe.select is val_auc, but no label has both classes in the validation part; "
                "use --set params.recipe.select=val_loss"
            )

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Probabilities [B, K] float64 on the module's device; ten crops are averaged as logits."""
        return torch.sigmoid(self.logits(batch).double())


def global_batch(module: Method, batch: Batch, *names: str) -> tuple[slice, list[Tensor]]:
    """Which rows of the global batch this device has, and `names` of the whole batch, in one device's order."""
    columns = [batch[name] for name in names]  # type: ignore[literal-required]
    if not distributed.is_initialized():
        return slice(None), columns
    # [devices, B, ...]; device r has rows r, r + devices, ...: `data.epoch_batches`.
    every = [_everywhere(module, column).transpose(0, 1).flatten(0, 1) for column in columns]
    return slice(distributed.get_rank(), None, distributed.get_world_size()), every


def _gathered(module: L.LightningModule, column: Tensor) -> Tensor:
    """[N, ...] of each device to [devices * N, ...] on all."""
    return _everywhere(module, column).flatten(0, 1)


def _everywhere(module: L.LightningModule, column: Tensor) -> Tensor:
    """[N, ...] of each device to [devices, N, ...] on all."""
    every = module.all_gather(column)
    assert isinstance(every, Tensor)
    return every


def mean_auc(logits: Tensor, target: Tensor, known: Tensor) -> float | None:
    """Macro AUC over the labels that have both classes; None when no label has."""
    scores = logits.double().cpu().numpy()
    truth, mask = target.cpu().numpy(), known.cpu().numpy()
    if not np.isfinite(scores).all():
        return None
    values = [
        value
        for k in range(scores.shape[1])
        if (value := roc_auc(truth[mask[:, k], k], scores[mask[:, k], k])) is not None
    ]
    return float(np.mean(values)) if values else None
