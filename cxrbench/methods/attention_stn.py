"""Attention by a spatial transformer: a network that frames the thorax before VGG16 looks (Rocha et al., 2022).

A localisation net reads the image at 256 px and gives a window (sx, sy, tx, ty); the full image is sampled
through it and classified. The window learns from the classification alone, and in the paper it ends on the
centre and the bases of the lungs, their apices cut off. STERN (Rocha et al., 2024) trains on from there
with a price on windows that are wider than high. Shapes: B batch, S side, K labels.

Beyond the papers (`tuned`, `quick`): classification hardly tells the localisation net about single films. Its
last layer begins at zero and reads activations that differ by 0.003 from film to film, and of the windows'
gradient a batch's mean is about as large as its noise, so one window serves all. What says where *this* thorax is
needs no label: a film that is moved must take its window along (`recovery_weight`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from cxrbench.core.frozen import Frozen
from cxrbench.core.spec import MethodParams
from cxrbench.core.stage import DataView, Stage, compute, fit
from cxrbench.methods.base import Batch, once, weights_in
from cxrbench.methods.densenet121 import QUICK_SMALL, TUNED, BackboneClassifier
from cxrbench.methods.optimisers import build_optimiser
from cxrbench.methods.thorax_crop import ThoraxCrop, ThoraxCropParams
from cxrbench.methods.thorax_report import (
    Numbers,
    Pixels,
    RoiReport,
    Rows,
    mean_box,
    overlap_of_one,
    recall_by_finding,
)
from cxrbench.methods.vgg16 import ROCHA, VGG16Params
from cxrbench.nn.backbones import ImageNetInput, load_whole, to_unit
from cxrbench.nn.losses import masked_bce
from cxrbench.nn.spatial_transformer import (
    PAPER_START,
    WindowBounds,
    WindowNet,
    aspect_penalty,
    following_error,
    random_windows,
    sampled_box,
    theta_of_window,
    warp,
)

WINDOW = ("sx", "sy", "tx", "ty")
NEARLY_WHOLE = (0.8, 0.8, 0.0, 0.0)
# Whole images, not crops of them: a window learnt on crops would be read from another frame. The rate is
# that of the tuned VGG16, which starts from ImageNet's weights; the localisation net starts from none.
TUNED_STN = TUNED.model_copy(update={"learning_rate": 1e-4, "train_view": "resize"})
QUICK_STN = QUICK_SMALL.model_copy(update={"sampler": "balanced", "train_view": "whole"})
FOLLOWING = {"bounded": True, "start": NEARLY_WHOLE, "recovery_weight": 10.0, "step_weight": 1.0}
BETTER = {**FOLLOWING, "window_rate": 10.0, "crops": ThoraxCrop.presets["tuned"]}
SMALL = {
    "pretrained": "none",
    "backbone": "resnet10t",
    "loc_size": 96,
    **FOLLOWING,
    "crops": ThoraxCrop.presets["quick"],
}


class AttentionParams(VGG16Params):
    """The window in front of the classifier; the paper's by default."""

    # The paper's layer sizes fit 256 px, its images have 512. None: read at the classifier's size.
    loc_size: int | None = 256
    start: tuple[float, float, float, float] = PAPER_START  # of every image: sx, sy, tx, ty
    bounded: bool = (
        False  # scales from 0.3 to 1.1 and shifts to 0.3, so that nothing flips or leaves
    )
    window_rate: float = Field(1.0, gt=0)  # the localisation net's share of the learning rate
    recovery_weight: float = Field(0.0, ge=0, description="on going along with a known movement")
    step_weight: float = Field(0.0, ge=0, description="on the squared way from the start")
    # No part of the training: it gets these parameters without them.
    crops: ThoraxCropParams | None = Field(
        None, description="how a detector cuts the films that windows are shown beside"
    )

    @model_validator(mode="after")
    def _can_follow(self) -> "AttentionParams":
        if self.recovery_weight and not self.bounded:
            raise ValueError(
                "recovery_weight needs bounded=true, whose windows have positive scales"
            )
        return self


class AttentionSTN(BackboneClassifier):
    """Attention STN: a spatial transformer frames the thorax, VGG16 classifies what it shows (Rocha et al., 2022)."""

    name = "attention-stn"
    version = 1
    paper = "Rocha et al., CBMS 2022, doi 10.1109/CBMS55023.2022.00051"
    Params = AttentionParams
    params: AttentionParams
    start: Tensor
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"crops": ThoraxCrop.presets["paper"]},
        "tuned": {"pretrained": "imagenet", **BETTER, "recipe": TUNED_STN.model_dump()},
        "quick": {**SMALL, "recipe": QUICK_STN.model_dump()},
    }
    reported = {
        "chexpert": {
            "split": "cv5",
            "source": "Rocha et al. 2022, Table II, VGG16 + ST module (normal/abnormal)",
            "params": {"task": "abnormal", "view": "pa", "policy": "u-ones"},
            "macro": {
                "auc": 0.8422, "pr_auc": 0.9523, "precision_at_95_recall": 0.8525,
                "tp_share": 0.7608, "fp_share": 0.1317, "tn_share": 0.0674, "fn_share": 0.0401,
            },
            "labels": {},
        },
    }  # fmt: skip

    def __init__(self, params: AttentionParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        bounds = WindowBounds() if params.bounded else None
        side = params.loc_size or params.recipe.size
        self.window = WindowNet(3, side, start=params.start, bounds=bounds)
        self.register_buffer("start", torch.tensor(params.start), persistent=False)

    @classmethod
    def stages(cls, data: DataView, params: Any) -> Stage:
        return fit(cls, data, params.model_copy(update={"crops": None}))

    def locate(self, image: Tensor) -> Tensor:
        """Images [B, 1, S, S] in [0, 1] to windows [B, 4]."""
        window: Tensor = self.window(self.normalise(image))
        return window

    def classify(self, image: Tensor, window: Tensor) -> Tensor:
        """What a window shows, at the image's own size, to logits [B, K]; black lies outside the image."""
        shown = warp(image, theta_of_window(window), (image.shape[-2], image.shape[-1]))
        return super().forward(shown)

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 1, S, S] in [0, 1] to logits [B, K]."""
        return self.classify(image, self.locate(image))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The classification's loss, and what else the windows cost."""
        image = to_unit(batch["image"])
        window = self.locate(image)
        terms = self.terms(window, self.classify(image, window), batch)
        p = self.params
        if p.step_weight:
            step = (window - self.start).square().sum(1).mean()
            terms["loss"] = terms["loss"] + p.step_weight * step
        if p.recovery_weight:
            error = self.recovery(image, window)
            terms["loss"] = terms["loss"] + p.recovery_weight * error
            terms["recovery"] = error.detach()
        return terms

    def terms(self, window: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The paper's loss of windows [B, 4] and logits [B, K], and its terms."""
        count = batch.get("known_count")
        return {"loss": masked_bce(logits, batch["target"], batch["known"], count)}

    def recovery(self, image: Tensor, window: Tensor) -> Tensor:
        """How far the windows of moved images are from those of the images, moved."""
        known = random_windows(len(image), image.device)
        moved = warp(image, theta_of_window(known), (image.shape[-2], image.shape[-1]))
        return following_error(window, self.locate(moved), known).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Besides the scores, the mean window: whoever reads the log sees where attention goes."""
        own = once(batch)
        if own is None:
            return
        image = to_unit(own["image"])
        window = self.locate(image)
        logits = self.classify(image, window).to(torch.float32, copy=True)  # of a CUDA graph
        self._validation.append((own["row"], logits, own["target"], own["known"]))
        self.log_dict(self.observe(window, logits, own), batch_size=len(image), sync_dist=True)

    def observe(self, window: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Means over a validation batch that are worth a column in the log."""
        means = window.mean(0)
        return {f"val_{name}": means[n] for n, name in enumerate(WINDOW)}

    def configure_optimizers(self) -> Any:
        rate = self.params.window_rate
        rates = {} if rate == 1 else {"window": rate}
        options = self.optimiser_options
        return build_optimiser(self, self.params.recipe, self.steps_per_epoch, rates, options)

    @classmethod
    def analyses(cls, data: DataView, params: AttentionParams, model: Stage) -> Mapping[str, Stage]:
        """The windows of the test images, against their lungs where these are known; recall by finding."""
        recipe = params.recipe
        shown = WindowsParams(
            films=recipe.load,
            size=recipe.size,
            loc_size=params.loc_size or recipe.size,
            bounded=params.bounded,
            start=params.start,
        )
        inputs = {"model": model, **detector_crops(model.data, params)}
        found = {"windows": compute(Windows, model.data, shown, part="test", **inputs)}
        return found | recall_by_finding(data, model, recipe.load)


def detector_crops(films: DataView, params: AttentionParams) -> dict[str, Stage]:
    """The stage of `thorax-crop` that the windows are shown beside; none without lung masks of other data.

    Its parameters stand among this method's, so whatever a sweep lays over every recipe is laid over both
    methods' detectors, and one serves both.
    """
    if "lung-masks" not in films.externals or params.crops is None:
        return {}
    images = ThoraxCrop.view(films, params.crops).images
    return {} if images is None else {"crops": images}


# --- STERN


class SternParams(AttentionParams):
    """The second training, and the recipe of the first, which is the attention STN itself."""

    aspect_limit: float = Field(1.25, gt=0)  # of sx / sy: what is wider than that costs
    attention: MethodParams = MethodParams(recipe=ROCHA)

    @property
    def first(self) -> AttentionParams:
        """The parameters of the first training."""
        shared = {name: getattr(self, name) for name in AttentionParams.model_fields}
        return AttentionParams(**{**shared, "recipe": self.attention.recipe})


class STERN(AttentionSTN):
    """STERN: the attention STN trained on with a price on windows that cut the apices (Rocha et al., 2024)."""

    name = "stern"
    version = 1
    paper = "Rocha et al., Artif Intell Med 147:102737 (2024)"
    Params = SternParams
    params: SternParams
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"crops": ThoraxCrop.presets["paper"]},
        "tuned": {
            "pretrained": "imagenet",
            **BETTER,
            "attention": {"recipe": TUNED_STN.model_dump()},
            "recipe": TUNED_STN.model_dump(),
        },
        "quick": {
            **SMALL,
            "attention": {"recipe": QUICK_STN.model_dump()},
            "recipe": {**QUICK_STN.model_dump(), "epochs": 3},
        },
    }
    reported = {}

    def __init__(self, params: SternParams, labels: tuple[str, ...]) -> None:
        # Its weights come from the first training, so nothing else is loaded here.
        super().__init__(self.without_weights(params), labels)

    @property
    def monitor(self) -> str:
        """The whole loss: the classification's alone may like the windows that this training is against."""
        select = self.params.recipe.select
        return "val_stern_loss" if select == "val_loss" else select

    @classmethod
    def stages(cls, data: DataView, params: SternParams) -> Stage:
        attention = AttentionSTN.stages(data, params.first)  # the same digest as that method's
        return fit(cls, data, params.model_copy(update={"crops": None}), attention=attention)

    def receive(self, inputs: Mapping[str, Path]) -> None:
        load_whole(self, weights_in(inputs["attention"]), source="the attention STN")

    def observe(self, window: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms = self.terms(window, logits, batch)
        seen = super().observe(window, logits, batch)
        return {**seen, "val_aspect": terms["aspect"], "val_stern_loss": terms["loss"]}

    def terms(self, window: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """mean(BCE + ReLU(sx / sy - limit))."""
        count = batch.get("known_count")
        bce = masked_bce(logits, batch["target"], batch["known"], count)
        aspect = aspect_penalty(window, self.params.aspect_limit).mean()
        return {"loss": bce + aspect, "bce": bce.detach(), "aspect": aspect.detach()}


# --- what the windows show


class WindowsParams(Frozen):
    """How the localisation net reads images: from `films` px, as the classifier gets them at `size`."""

    films: int = 512
    size: int = 512
    loc_size: int = 256
    bounded: bool = False
    start: tuple[float, float, float, float] = PAPER_START


class Windows(RoiReport):
    """The window of each image, and how much of the lungs it shows: a `compute` stage.

    With the input `crops`, what a detector cuts out of the same images, its gallery has the paper's three
    columns: original, crop, window.
    """

    name = "windows"
    version = 4
    Params = WindowsParams
    params: WindowsParams
    columns = WINDOW
    picture = "the window"

    def open(self, inputs: Mapping[str, Path]) -> None:
        p = self.params
        self.normalise = ImageNetInput()
        bounds = WindowBounds() if p.bounded else None
        self.net = WindowNet(3, p.loc_size, bounds=bounds, start=p.start)
        state = weights_in(inputs["model"])
        own = {n.removeprefix("window."): t for n, t in state.items() if n.startswith("window.")}
        load_whole(self.net, own, source="the localisation net")
        self.net.eval()
        self.crops = inputs.get("crops")

    def look(self, films: Pixels, rows: Rows) -> tuple[Numbers, dict[str, Numbers]]:
        window = self.net(self.normalise(self._sized(films)))
        boxes = sampled_box(theta_of_window(window)).double().numpy()
        return boxes, {n: window[:, k].double().numpy() for k, n in enumerate(WINDOW)}

    def shown(self, films: Pixels, boxes: Numbers, columns: Mapping[str, Numbers]) -> Pixels:
        window = torch.from_numpy(np.stack([columns[name] for name in WINDOW], 1))
        seen = warp(self._sized(films), theta_of_window(window), (self.params.size,) * 2)
        return np.asarray((seen[:, 0] * 255).round().byte().numpy())

    def beside(self, rows: Rows) -> tuple[str, Pixels, Numbers] | None:
        if self.crops is None:
            return None
        crops = np.load(self.crops / "images.npy", mmap_mode="r")[rows]
        squares = np.load(self.crops / "boxes.npy")[rows, 6:].astype(np.float64)
        return "the detector's crop", crops, squares

    def further(self, boxes: Numbers, columns: Mapping[str, Numbers], truth: Any) -> dict[str, Any]:
        """Two floors of the IoU, where lungs are known: the start's window and the mean true box, on every film.

        What does not beat them has not learnt where this film's thorax is.
        """
        if truth is None:
            return {}
        start = sampled_box(theta_of_window(torch.tensor([self.params.start])))[0]
        return {
            "iou_of_the_start": overlap_of_one(start.double().numpy(), truth),
            "iou_of_one_box_for_all": overlap_of_one(mean_box(truth), truth),
        }

    def caption(self, columns: Mapping[str, float]) -> str:
        return "  ".join(f"{name} {columns[name]:.2f}" for name in WINDOW)

    def _sized(self, films: Pixels) -> Tensor:
        image = to_unit(torch.from_numpy(films)).unsqueeze(1)
        size = (self.params.size,) * 2
        if image.shape[-2:] == size:
            return image
        return F.interpolate(image, size, mode="bilinear", antialias=True)
