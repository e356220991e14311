"""AE-CNN: a classifier that reads an autoencoder's code instead of a resized image.

Ranjan et al., ICVGIP 2018, in Bagal's re-implementation. Three trainings: (1) the classifier on resized
images, the same as the DenseNet121 baseline and shared with it; (2) the autoencoder on small crops;
(3) both, end to end, on crops of the full image. The paper's claim is that the code keeps what resizing loses:
`downscale` puts plain resizing in the autoencoder's place, everything else being equal.
Shapes: B batch, S side of the classifier's input.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from cxrbench.core.spec import Augment, MethodParams, Recipe
from cxrbench.core.stage import DataView, Stage, compute, fit
from cxrbench.methods.aecnn_report import Reconstruction, ReconstructionParams
from cxrbench.methods.base import Batch, Classifier, Method, once, weights_in
from cxrbench.methods.calls import surest_calls
from cxrbench.methods.densenet121 import (
    BL5,
    QUICK,
    TUNED,
    BackboneClassifier,
    BackboneParams,
    DenseNet121,
)
from cxrbench.methods.vgg16 import VGG16, VGG16Params
from cxrbench.nn.autoencoder import SCALE, Autoencoder, Resizing, reconstruction_mse, shrink
from cxrbench.nn.backbones import load_whole, to_unit
from cxrbench.nn.losses import masked_bce

FLIPS = Augment(horizontal_flip=0.5, vertical_flip=0.5)
# A few thousand parameters want other steps than millions, no decay, and no mean over a thousand steps. They
# are validated on crops at the scale at which they learn.
ALONE = {
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
    "ema_decay": None,
    "validation_view": "center_crop",
    "select": "val_loss",
    "augment": FLIPS.model_dump(),
}
# Beyond the paper, whose single layer of 3 x 3 behind a code cannot do much that bicubic weights do not.
BEYOND = {"clip_code": True, "as_resizing": True, "hidden": 32}


class AutoencoderParams(MethodParams):
    """Stage 2: crops of `patch` pixels from the full image."""

    patch: int = Field(128, ge=16, multiple_of=SCALE)
    clip_code: bool = False  # as coded: the code is cut to [0, 1] only from stage 3 on
    as_resizing: bool = False  # what is learned is added to bicubic resizing
    code_channels: Literal[1, 3] = 1  # 3: the classifier's three inputs are not one image thrice
    hidden: int = Field(0, ge=0)  # channels of a layer before the decoder's own
    # Float32: its errors (the original's mean square is 2.6e-4) are near what bf16 rounds away.
    recipe: Recipe = BL5.model_copy(
        update={"augment": FLIPS, "validation_view": "resize", "precision": "32-true"}
    )

    def build(self, *, clip_code: bool) -> Autoencoder:
        """The network; stage 3 has a clipping of its own."""
        return Autoencoder(
            clip_code=clip_code,
            as_resizing=self.as_resizing,
            code_channels=self.code_channels,
            hidden=self.hidden,
        )


class PatchAutoencoder(Method):
    """Stage 2: the autoencoder alone, on random crops of the full image, mean squared error."""

    name = "patch-autoencoder"
    version = 1
    Params = AutoencoderParams
    params: AutoencoderParams

    def __init__(self, params: AutoencoderParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        self.autoencoder = params.build(clip_code=params.clip_code)

    @classmethod
    def image_size(cls, params: AutoencoderParams) -> tuple[int, int]:
        return SCALE * params.recipe.load, params.patch

    @property
    def monitor(self) -> str:
        """It has no labels, so the loss chooses whatever the recipe of a whole sweep says."""
        return "val_loss"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image = to_unit(batch["image"])
        return reconstruction_mse(self.autoencoder(image)[1], image)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        left = once(batch)
        if left is None:
            return
        image = to_unit(left["image"])
        loss = reconstruction_mse(self.autoencoder(image)[1], image)
        self.log("val_loss", loss, batch_size=len(image), sync_dist=True)


class AECNNParams(MethodParams):
    """Stage 3, and the parameters of the two trainings that it starts from."""

    downscale: Literal["autoencoder"] | Resizing = "autoencoder"
    backbone: str = "densenet121"
    pretrained: str = "imagenet"  # what stage 1 starts from
    bce_weight: float = Field(0.9, ge=0, le=1)  # lambda; the reconstruction has 1 - lambda
    clip_code: bool = True
    classifier: MethodParams = MethodParams(recipe=BL5)
    autoencoder: AutoencoderParams = AutoencoderParams()
    recipe: Recipe = BL5.model_copy(
        update={
            "augment": Augment(horizontal_flip=0.5, rotate=5),
            "validation_view": "resize",
        }
    )


class AECNN(Classifier):
    """AE-CNN: a classifier that reads an autoencoder's code instead of a resized image (Ranjan et al., 2018)."""

    name = "aecnn"
    version = 1
    paper = "Ranjan et al., ICVGIP 2018; Bagal's re-implementation"
    Params = AECNNParams
    params: AECNNParams
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "tuned": {
            "classifier": {"recipe": TUNED.model_dump()},
            "autoencoder": {**BEYOND, "recipe": {**TUNED.model_dump(), **ALONE}},
            "recipe": TUNED.model_dump(),
        },
        "quick": {
            "pretrained": "none",
            "classifier": {"recipe": QUICK.model_dump()},
            "autoencoder": {
                **BEYOND,
                "patch": 64,
                "recipe": {**QUICK.model_dump(), **ALONE, "epochs": 20},
            },
            "recipe": {**QUICK.model_dump(), "learning_rate": 5e-4},
        },
    }
    reported = {
        "chestxray14": {
            "split": "official",
            "source": "Bagal's re-implementation of AE-CNN, Table 1, AECNN (R)",
            "macro": {"auc": 0.8221},
            "labels": {
                "Atelectasis": 0.7844, "Cardiomegaly": 0.9006, "Consolidation": 0.7514,
                "Edema": 0.8586, "Effusion": 0.8354, "Emphysema": 0.9206, "Fibrosis": 0.8458,
                "Hernia": 0.9105, "Infiltration": 0.7027, "Mass": 0.8305, "Nodule": 0.7787,
                "Pleural_Thickening": 0.7910, "Pneumonia": 0.7343, "Pneumothorax": 0.8647,
            },
        },
    }  # fmt: skip

    def __init__(self, params: AECNNParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        if params.downscale == "autoencoder":
            self.autoencoder = params.autoencoder.build(clip_code=params.clip_code)
        # Its weights come from stage 1, so nothing else is loaded here.
        start = BackboneClassifier.without_weights(self.start(params))
        self.classifier = BackboneClassifier(start, labels)

    @staticmethod
    def start(params: AECNNParams) -> BackboneParams:
        """The parameters of stage 1."""
        baseline = VGG16Params if params.backbone == "vgg16" else BackboneParams
        return baseline(
            backbone=params.backbone,
            pretrained=params.pretrained,
            recipe=params.classifier.recipe,
        )

    @classmethod
    def stages(cls, data: DataView, params: AECNNParams) -> Stage:
        baseline = VGG16 if params.backbone == "vgg16" else DenseNet121
        classifier = fit(baseline, data, cls.start(params))  # the same digest as the baseline's
        if params.downscale != "autoencoder":
            return fit(cls, data, params, classifier=classifier)
        autoencoder = fit(PatchAutoencoder, data, params.autoencoder)
        return fit(cls, data, params, classifier=classifier, autoencoder=autoencoder)

    @classmethod
    def analyses(cls, data: DataView, params: AECNNParams, model: Stage) -> Mapping[str, Stage]:
        """How well the autoencoder of stage 2, and that of stage 3, give whole test films back; without one, the
        surest calls."""
        if params.downscale != "autoencoder":
            return surest_calls(data, model, cls.image_size(params)[0])
        net = params.autoencoder
        report = ReconstructionParams(
            side=cls.image_size(params)[0],
            clip_alone=net.clip_code,
            clip_trained_on=params.clip_code,
            as_resizing=net.as_resizing,
            code_channels=net.code_channels,
            hidden=net.hidden,
        )
        nets = {"alone": model.inputs["autoencoder"], "trained_on": model}
        return {"reconstruction": compute(Reconstruction, model.data, report, part="test", **nets)}

    @classmethod
    def image_size(cls, params: AECNNParams) -> tuple[int, int]:
        return SCALE * params.recipe.load, SCALE * params.recipe.size

    def receive(self, inputs: Mapping[str, Path]) -> None:
        load_whole(self.classifier, weights_in(inputs["classifier"]), source="stage 1")
        if self.params.downscale == "autoencoder":
            alone = weights_in(inputs["autoencoder"])
            code = {name.removeprefix("autoencoder."): tensor for name, tensor in alone.items()}
            load_whole(self.autoencoder, code, source="stage 2")

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 1, 4S, 4S] in [0, 1] to logits [B, K]."""
        by = self.params.downscale
        small = self.autoencoder.encode(image) if by == "autoencoder" else shrink(image, by)
        logits: Tensor = self.classifier(small)
        return logits

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """lambda x cross-entropy + (1 - lambda) x MSE; where nothing is reconstructed the first term alone."""
        image, share = to_unit(batch["image"]), self.params.bce_weight
        labels = batch["target"], batch["known"], batch.get("known_count")
        if self.params.downscale != "autoencoder":
            return {"loss": share * masked_bce(self(image), *labels)}
        code, reconstruction = self.autoencoder(image)
        bce = masked_bce(self.classifier(code), *labels)
        mse = reconstruction_mse(reconstruction, image)
        return {"loss": share * bce + (1 - share) * mse, "bce": bce.detach(), "mse": mse.detach()}
