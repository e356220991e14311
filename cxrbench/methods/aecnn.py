"""AE-CNN: a classifier that reads an autoencoder's code instead of a resized image.

Ranjan et al., ICVGIP 2018, in Bagal's re-implementation. Three trainings: (1) the classifier on resized
images, the same as the DenseNet121 baseline and shared with it; (2) the autoencoder on small crops;
(3) both, end to end, on crops of the full image. Shapes: B batch, S side of the classifier's input.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from cxrbench.core.spec import Augment, MethodParams, Recipe
from cxrbench.core.stage import DataView, Stage, fit
from cxrbench.methods.base import Batch, Classifier, Method, weights_in
from cxrbench.methods.densenet121 import (
    BL5,
    QUICK,
    TUNED,
    BackboneClassifier,
    BackboneParams,
    DenseNet121,
)
from cxrbench.nn.autoencoder import SCALE, Autoencoder, reconstruction_mse
from cxrbench.nn.backbones import load_whole, to_unit
from cxrbench.nn.losses import masked_bce

FLIPS = Augment(horizontal_flip=0.5, vertical_flip=0.5)
# A thousand parameters want other steps than millions, and no decay.
ALONE = {
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
    "select": "val_loss",
    "augment": FLIPS.model_dump(),
}


class AutoencoderParams(MethodParams):
    """Stage 2: crops of `patch` pixels from the full image."""

    patch: int = Field(128, ge=16, multiple_of=SCALE)
    clip_code: bool = False  # as coded: the code is cut to [0, 1] only from stage 3 on
    as_resizing: bool = False  # as coded: torch's initial weights, not those of plain resizing
    recipe: Recipe = BL5.model_copy(update={"augment": FLIPS, "validation_view": "resize"})


class PatchAutoencoder(Method):
    """Stage 2: the autoencoder alone, on random crops of the full image, mean squared error."""

    name = "patch-autoencoder"
    version = 1
    Params = AutoencoderParams
    params: AutoencoderParams

    def __init__(self, params: AutoencoderParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        self.autoencoder = Autoencoder(clip_code=params.clip_code, as_resizing=params.as_resizing)

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
        image = to_unit(batch["image"])
        loss = reconstruction_mse(self.autoencoder(image)[1], image)
        # Padding under DDP repeats at most a few images here; the mean over images is weighted.
        self.log("val_loss", loss, batch_size=len(image), sync_dist=True)


class AECNNParams(MethodParams):
    """Stage 3, and the parameters of the two trainings that it starts from."""

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
            "autoencoder": {
                "clip_code": True,
                "as_resizing": True,
                "recipe": {**TUNED.model_dump(), **ALONE},
            },
            "recipe": TUNED.model_dump(),
        },
        "quick": {
            "pretrained": "none",
            "classifier": {"recipe": QUICK.model_dump()},
            "autoencoder": {
                "patch": 64,
                "clip_code": True,
                "as_resizing": True,
                "recipe": {**QUICK.model_dump(), **ALONE},
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
        self.autoencoder = Autoencoder(clip_code=params.clip_code)
        # Its weights come from stage 1, so nothing else is loaded here.
        start = BackboneClassifier.without_weights(self.start(params))
        self.classifier = BackboneClassifier(start, labels)

    @staticmethod
    def start(params: AECNNParams) -> BackboneParams:
        """The parameters of stage 1."""
        return BackboneParams(
            backbone=params.backbone,
            pretrained=params.pretrained,
            recipe=params.classifier.recipe,
        )

    @classmethod
    def stages(cls, data: DataView, params: AECNNParams) -> Stage:
        classifier = fit(DenseNet121, data, cls.start(params))  # the same digest as the baseline's
        autoencoder = fit(PatchAutoencoder, data, params.autoencoder)
        return fit(cls, data, params, classifier=classifier, autoencoder=autoencoder)

    @classmethod
    def image_size(cls, params: AECNNParams) -> tuple[int, int]:
        return SCALE * params.recipe.load, SCALE * params.recipe.size

    def receive(self, inputs: Mapping[str, Path]) -> None:
        load_whole(self.classifier, weights_in(inputs["classifier"]), source="stage 1")
        alone = weights_in(inputs["autoencoder"])
        code = {name.removeprefix("autoencoder."): tensor for name, tensor in alone.items()}
        load_whole(self.autoencoder, code, source="stage 2")

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 1, 4S, 4S] in [0, 1] to logits [B, K]."""
        logits: Tensor = self.classifier(self.autoencoder.encode(image))
        return logits

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image = to_unit(batch["image"])
        code, reconstruction = self.autoencoder(image)
        bce = masked_bce(self.classifier(code), batch["target"], batch["known"])
        mse = reconstruction_mse(reconstruction, image)
        share = self.params.bce_weight
        return {"loss": share * bce + (1 - share) * mse, "bce": bce.detach(), "mse": mse.detach()}
