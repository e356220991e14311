"""Does the focal spot's blur cost a diagnosis, and does removing it help? After Liu's report of 2020.

Films are blurred by a Gaussian at the working resolution, a U-Net learns to restore them, and one
linear layer on VGG16's frozen features classifies sharp, blurred or restored films, trained on any of the
three and tested on any. The U-Net is fitted on the training part of the fold alone. Shapes: B batch, S
side, K labels.

The original has no validation part: it watched the test films, and kept the last epoch. Here a tenth of
the training patients validates and chooses the epoch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbench.core.contract import Computation
from cxrbench.core.frozen import Frozen
from cxrbench.core.spec import Recipe
from cxrbench.core.stage import DataView, Stage, compute, fit, predict, score, transform
from cxrbench.core.store import read_json, write_json
from cxrbench.methods.base import Batch
from cxrbench.methods.deblur_images import (
    UNET,
    WHOLE,
    Blur,
    DeblurUNet,
    DeblurUNetParams,
    Degradation,
    Focus,
    Restore,
    Restorer,
    UNetParams,
    restore_params,
)
from cxrbench.methods.deblur_report import Curves, CurvesParams, Restoration, RestorationParams
from cxrbench.methods.densenet121 import QUICK_SMALL, TUNED, BackboneClassifier, BackboneParams
from cxrbench.nn.backbones import to_unit

Films = Literal["sharp", "blurred", "restored"]
FILMS: tuple[Films, ...] = ("sharp", "blurred", "restored")
# Of the bootstrap: as many as runs have, so that a run and another's analysis share their scores.
REPLICATES = 1000

LINEAR = Recipe(
    epochs=10, batch_size=32, optimizer="rmsprop", learning_rate=1e-5, size=224, load=224,
    precision="32-true", **WHOLE,
)  # fmt: skip
TUNED_UNET = UNET.model_copy(
    update={
        "optimizer": "adamw",
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "precision": "auto",
    }
)
QUICK_UNET = TUNED_UNET.model_copy(
    update={"epochs": 6, "batch_size": 16, "learning_rate": 3e-3, "size": 64, "load": 64}
)


# --- the classifier


class WeightsParams(Frozen):
    """`divisor` of the weight of label 1."""

    divisor: float = Field(1.1, gt=0)
    side: int = 224  # at which images are kept anyway; none is looked at


class ClassWeights(Computation):
    """What a film with and one without a label counts in the loss: `compute` of a training part.

    `balanced`: n / (2 n_c) for a class of n_c among the n films of which the label is known, that of label
    1 divided. 1 for a class without a film, which no film asks for.
    """

    name = "class-weights"
    version = 1
    Params = WeightsParams
    params: WeightsParams

    def image_size(self) -> int:
        return self.params.side

    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Leaves `weights.json`: [weight of 0, weight of 1] of each label."""
        counts = np.stack([(targets == 0).sum(axis=0), (targets == 1).sum(axis=0)], axis=1)
        known = counts.sum(axis=1, keepdims=True)
        weights = np.where(counts > 0, known / (2 * np.maximum(counts, 1)), 1.0)
        weights[:, 1] = np.where(counts[:, 1] > 0, weights[:, 1] / self.params.divisor, 1.0)
        write_json(out / "weights.json", weights.tolist())
        return {"class_weights": weights.tolist()}


class FlatVGG16(nn.Module):
    """VGG16's convolutions, flattened, and one linear layer: 14,739,777 parameters for one label.

    At 224 px the pooling to 7 x 7 changes nothing; it lets other sides through.
    """

    def __init__(self, vgg: Any, outputs: int, *, frozen: bool) -> None:
        super().__init__()
        self.features, self.pool = vgg.features, vgg.avgpool
        self.features.requires_grad_(not frozen)
        self.head = nn.Linear(512 * 7 * 7, outputs)
        nn.init.xavier_uniform_(self.head.weight)  # as Keras begins; torch's own is smaller
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.features(image)).flatten(1))
        return logits


class LinearVGGParams(BackboneParams):
    """The classifier of the report: only its last layer learns, and pixels stay in [0, 1]."""

    backbone: str = "vgg16"
    frozen: bool = True
    imagenet_input: bool = False  # normalise as the weights were trained
    class_weights: Literal["balanced", "none"] = "balanced"
    weight_divisor: float = Field(1.1, gt=0)  # of label 1
    recipe: Recipe = LINEAR

    @model_validator(mode="after")
    def _freezes_what_it_can(self) -> "LinearVGGParams":
        if self.frozen and self.backbone != "vgg16":
            raise ValueError(f"frozen needs the backbone vgg16, not {self.backbone}")
        return self


class LinearVGG(BackboneClassifier):
    """VGG16's frozen features under one linear layer, with weighted classes."""

    name = "linear-vgg16"
    version = 2
    Params = LinearVGGParams
    params: LinearVGGParams
    # Keras' defaults; torch's are 0.99 and 1e-8.
    optimiser_options = {"rmsprop": {"alpha": 0.9, "eps": 1e-7}}
    weights: Tensor  # [K, 2]

    def __init__(self, params: LinearVGGParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        if params.backbone == "vgg16":
            self.net = FlatVGG16(self.net, len(labels), frozen=params.frozen)
        self.register_buffer("weights", torch.ones(len(labels), 2), persistent=False)

    def receive(self, inputs: Mapping[str, Path]) -> None:
        if inputs:
            found = read_json(inputs["class_weights"] / "weights.json")
            self.weights = torch.tensor(found, dtype=torch.float32)

    def forward(self, image: Tensor) -> Tensor:
        shown = self.normalise(image) if self.params.imagenet_input else image.expand(-1, 3, -1, -1)
        logits: Tensor = self.net(shown)
        return logits

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        logits = self(to_unit(batch["image"]))
        count = batch.get("known_count")
        loss = weighted_bce(logits, batch["target"], batch["known"], self.weights, count)
        return {"loss": loss}


def weighted_bce(
    logits: Tensor, target: Tensor, known: Tensor, weights: Tensor, count: Tensor | None = None
) -> Tensor:
    """Mean over the known entries of [B, K] of weight x cross-entropy; `weights` [K, 2] of labels 0, 1.

    As Keras counts: the sum is divided by the number of entries, not by the sum of their weights; by
    `count`, float [], where this is a part of a batch.
    """
    with torch.autocast(device_type=logits.device.type, enabled=False):
        target = target.float()
        each = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        weight = torch.lerp(weights[:, 0], weights[:, 1], target) * known
        return (each * weight).sum() / (known.sum().clamp(min=1) if count is None else count)


# --- the method


class DeblurParams(LinearVGGParams, Degradation):
    """The blur, how it is removed, and which films the classifier is trained and tested on.

    `unet.recipe.load` is the working resolution: the side in whose pixels `sigma` is.
    """

    sigma: float = Field(2.0, ge=0)
    train_on: Films = "sharp"
    test_on: Films = "restored"
    restore: Restorer = "unet"
    noise_to_signal: float = Field(1e-3, gt=0)  # of Wiener's filter
    iterations: int = Field(6, ge=1)  # of Richardson-Lucy
    unet: UNetParams = UNetParams()
    report_images: int = Field(1000, ge=1)  # test films whose restoration is measured, at most
    sweep: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 4.0)  # stds that a part of them is measured at

    @property
    def focus(self) -> Focus:
        """The blur at its working resolution."""
        shared = {name: getattr(self, name) for name in Degradation.model_fields}
        return Focus(sigma=self.sigma, side=self.unet.recipe.load, **shared)

    @property
    def classifier(self) -> LinearVGGParams:
        """The classifier's part: the same training whatever it is tested on."""
        return LinearVGGParams(**{n: getattr(self, n) for n in LinearVGGParams.model_fields})

    @property
    def deblurrer(self) -> DeblurUNetParams:
        """The U-Net's part."""
        own = {name: getattr(self.unet, name) for name in UNetParams.model_fields}
        shared = {name: getattr(self, name) for name in Degradation.model_fields}
        known = {"noise_to_signal": self.noise_to_signal} if self.unet.first == "wiener" else {}
        sigma = None if self.unet.blind else self.sigma
        return DeblurUNetParams(**own, **shared, **known, sigma=sigma)


class Deblur(LinearVGG):
    """Films blurred by the focal spot and restored by a U-Net, under a linear layer on VGG16 (Liu, 2020)."""

    name = "deblur"
    version = 1
    paper = "Liu, 2020: focal-spot blur, VGG16 and U-Net deblurring; data of Kermany et al., 2018"
    Params = DeblurParams
    params: DeblurParams
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "tuned": {
            "frozen": False,
            "imagenet_input": True,
            "recipe": {**TUNED.model_dump(), "learning_rate": 1e-4, "load": 224},
            "unet": {
                "width": 32,
                "residual": True,
                "loss": "l1+ssim",
                "first": "wiener",
                "rounded": True,
                "recipe": TUNED_UNET.model_dump(),
            },
        },
        "quick": {
            "backbone": "resnet10t",
            "pretrained": "none",
            "frozen": False,
            "class_weights": "none",
            "recipe": QUICK_SMALL.model_dump(),
            "unet": {
                "width": 8,
                "residual": True,
                "first": "wiener",
                "rounded": True,
                "recipe": QUICK_UNET.model_dump(),
            },
            "report_images": 100,
            "sweep": [1.0, 2.0, 3.0],
        },
    }
    reported = {
        "kermany": {
            "split": "official",
            "source": "Liu 2020, normal/pneumonia, trained on sharp films and tested on deblurred ones, sigma 2",
            "params": {"task": "pneumonia"},
            "macro": {"accuracy": 0.8670},
            "labels": {},
        },
    }

    @classmethod
    def films(cls, data: DataView, params: DeblurParams, which: Films) -> DataView:
        """The data's images: as they are, blurred, or blurred and restored."""
        if which == "sharp":
            return data
        blurred = transform(Blur, data, params.focus)
        if which == "blurred":
            return blurred
        if params.restore == "unet":
            how = restore_params(params.focus, "unet", unet=params.deblurrer)
            return transform(Restore, blurred, how, unet=fit(DeblurUNet, data, params.deblurrer))
        strength = {"noise_to_signal": params.noise_to_signal, "iterations": params.iterations}
        return transform(Restore, blurred, restore_params(params.focus, params.restore, **strength))

    @classmethod
    def view(cls, data: DataView, params: DeblurParams) -> DataView:
        return cls.films(data, params, "restored")

    @classmethod
    def stages(cls, data: DataView, params: DeblurParams) -> Stage:
        films = cls.films(data, params, params.train_on)
        if params.class_weights == "none":
            return fit(LinearVGG, films, params.classifier)
        how = WeightsParams(divisor=params.weight_divisor, side=params.recipe.load)
        weights = compute(ClassWeights, data, how)
        return fit(LinearVGG, films, params.classifier, class_weights=weights)

    @classmethod
    def tested_on(cls, data: DataView, params: DeblurParams, model: Stage) -> DataView:
        return cls.films(data, params, params.test_on)

    @classmethod
    def analyses(cls, data: DataView, params: DeblurParams, model: Stage) -> Mapping[str, Stage]:
        """The scores on the other films, accuracy and ROC curves on all three, and the restoration."""
        tested = {which: predict(model, data, cls.films(data, params, which)) for which in FILMS}
        found = {
            f"tested on {which} films": score(predictions, replicates=REPLICATES, seed=0)
            for which, predictions in tested.items()
            if which != params.test_on
        }
        side = params.focus.side
        trained = CurvesParams(side=side, trained_on=params.train_on)
        found["accuracy and curves"] = compute(Curves, data, trained, part="test", **tested)
        report = RestorationParams(
            focus=params.focus,
            unet=params.deblurrer if params.restore == "unet" else None,
            noise_to_signal=params.noise_to_signal,
            iterations=params.iterations,
            images=params.report_images,
            sweep=params.sweep,
        )
        nets = {} if report.unet is None else {"unet": fit(DeblurUNet, data, report.unet)}
        found["restoration"] = compute(Restoration, data, report, part="test", **nets)
        return found
