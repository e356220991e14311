"""Classifiers on aligned chests (Galichin et al. 2023): aligned first, or aligned and classified at once.

Shapes: B batch, L side at which images are read, T side of a view, K labels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from pydantic import Field
from torch import Tensor

from cxrbench.core.spec import Augment, Recipe
from cxrbench.core.stage import DataView, Stage, compute, fit, transform
from cxrbench.methods.aligner import (
    PAPER,
    Align,
    Aligner,
    AlignerParams,
    AlignParams,
    warped,
)
from cxrbench.methods.alignment_report import AlignmentReport, ReportParams
from cxrbench.methods.base import Batch, Classifier, weights_in
from cxrbench.methods.canonical_chest import (
    CanonicalChest,
    CanonicalFeatures,
    CanonicalParams,
    FeaturesParams,
    shrunk,
)
from cxrbench.methods.densenet121 import (
    QUICK,
    TUNED,
    BackboneClassifier,
    BackboneParams,
    DenseNet121,
)
from cxrbench.nn.backbones import to_unit
from cxrbench.nn.losses import masked_bce
from cxrbench.nn.perceptual import DENSENET_PAPER
from cxrbench.nn.spatial_transformer import theta_of_pose

# The paper's classifiers: CheXNet's recipe at the aligner's side, since theirs was not published.
CHEXNET = Recipe(
    epochs=20,
    batch_size=64,
    optimizer="adam",
    learning_rate=1e-4,
    schedule="plateau",
    plateau_factor=0.1,
    size=320,
    load=320,
    augment=Augment(horizontal_flip=0.5),
    train_view="resize",
    validation_view="whole",
    test_view="resize",
    select="val_loss",
)
# Beyond the paper: held near the identity, black outside, correlation, and undoing known movements.
BETTER = {
    "outside": "black",
    "pixel_weight": 1.0,
    "ncc_weight": 1.0,
    "step_weight": 0.1,
    "recovery_weight": 10.0,
}
TUNED_ALIGNER = PAPER.model_copy(
    update={
        "learning_rate": 3e-4,
        "weight_decay": 1e-2,
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "precision": "auto",
    }
)
QUICK_ALIGNER = TUNED_ALIGNER.model_copy(
    update={"epochs": 8, "learning_rate": 2e-3, "size": 64, "load": 64}
)
QUICK_START = {
    **BETTER,
    "pose": {"backbone": "test_resnet", "pretrained": "none", "bounded": True, "dropout": 0.0},
    "loss": {"network": "densenet121", "taps": ["relu0"], "pretrained": "none"},
    "canonical_images": 300,
    "recipe": QUICK_ALIGNER.model_dump(),
}


class StnAlignParams(BackboneParams):
    """The classifier's own parameters, and those of the aligner before it."""

    recipe: Recipe = CHEXNET
    aligner: AlignerParams = AlignerParams()
    view: int | None = Field(None, ge=16, le=4096, description="side T; the classifier's load")


def chest_stages(data: DataView, params: StnAlignParams) -> tuple[Stage, Stage]:
    """The canonical chest and what the loss network sees in it: what an aligner is trained towards."""
    a = params.aligner
    size, crop = a.recipe.size, a.crop
    chest = compute(
        CanonicalChest, data, CanonicalParams(images=a.canonical_images, size=size, crop=crop)
    )
    features = FeaturesParams(
        loss=a.loss,
        target=a.target_features,
        images=a.canonical_images,
        size=size,
        width=a.width,
        crop=crop,
    )
    if not a.loss.trained_here:
        return chest, compute(CanonicalFeatures, data, features, chest=chest)
    classifier = fit(DenseNet121, data, baseline(params))
    return chest, compute(CanonicalFeatures, data, features, chest=chest, classifier=classifier)


def aligner_stage(data: DataView, params: StnAlignParams) -> Stage:
    """The training of the aligner."""
    chest, features = chest_stages(data, params)
    return fit(Aligner, data, params.aligner, chest=chest, features=features)


def baseline(params: StnAlignParams) -> BackboneParams:
    """The classifier's parameters alone: on raw images the same training as the DenseNet121 baseline."""
    return BackboneParams(
        backbone=params.backbone, pretrained=params.pretrained, recipe=params.recipe
    )


def align_params(params: StnAlignParams) -> AlignParams:
    """How images are rewritten."""
    a = params.aligner
    view = params.view or params.recipe.load
    return AlignParams(pose=a.pose, outside=a.outside, size=a.recipe.size, view=view)


class StnAlign(BackboneClassifier):
    """DenseNet121 on images that an unsupervised spatial transformer aligned (Galichin et al., 2023)."""

    name = "stn-align"
    version = 1
    paper = "Galichin et al. 2023, after Liu et al., ICCV 2019"
    Params = StnAlignParams
    params: StnAlignParams
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        # The last configuration of the authors' code; its loss network is the classifier of raw images.
        "code": {
            "aligner": {
                "loss": {
                    "network": "densenet121",
                    "taps": list(DENSENET_PAPER),
                    "trained_here": True,
                },
                "target_features": "canonical",
                "pixel_weight": 15.0,
                "reduction": "mean",
                "quarter_turns": 0.25,
                "recipe": PAPER.model_copy(
                    update={"epochs": 3, "schedule": "constant"}
                ).model_dump(),
            },
        },
        "tuned": {
            "aligner": {
                **BETTER,
                "pose": {"bounded": True},
                "recipe": TUNED_ALIGNER.model_dump(),
            },
            "recipe": TUNED.model_dump(),
        },
        "quick": {"pretrained": "none", "aligner": QUICK_START, "recipe": QUICK.model_dump()},
    }
    reported = {
        "chestxray14": {
            "split": "official",
            "source": "Galichin et al. 2023, DenseNet121 on aligned images (one run)",
            "macro": {"auc": 0.8153},
            "labels": {
                "Atelectasis": 0.7787, "Cardiomegaly": 0.8692, "Consolidation": 0.7501,
                "Edema": 0.8481, "Effusion": 0.8304, "Emphysema": 0.9231, "Fibrosis": 0.8371,
                "Hernia": 0.9064, "Infiltration": 0.6891, "Mass": 0.8347, "Nodule": 0.7712,
                "Pleural_Thickening": 0.7833, "Pneumonia": 0.7309, "Pneumothorax": 0.8619,
            },
        },
    }  # fmt: skip

    @classmethod
    def view(cls, data: DataView, params: StnAlignParams) -> DataView:
        return transform(Align, data, align_params(params), aligner=aligner_stage(data, params))

    @classmethod
    def stages(cls, data: DataView, params: StnAlignParams) -> Stage:
        return fit(DenseNet121, cls.view(data, params), baseline(params))

    @classmethod
    def analyses(cls, data: DataView, params: StnAlignParams, model: Stage) -> Mapping[str, Stage]:
        return {"alignment": report_stage(data, params, aligner_stage(data, params))}


def report_stage(data: DataView, params: StnAlignParams, aligner: Stage) -> Stage:
    """How well the test images are aligned by what a training left."""
    report = ReportParams(align=align_params(params), crop=params.aligner.crop)
    chest, _ = chest_stages(data, params)
    return compute(AlignmentReport, data, report, part="test", aligner=aligner, chest=chest)


class JointParams(StnAlignParams):
    """`align_weight`: gamma, the share of the alignment's loss in the sum."""

    align_weight: float = Field(0.1, ge=0)


class StnAlignJoint(Classifier):
    """An aligner and DenseNet121 trained end to end: BCE + gamma L_align, the paper's future work."""

    name = "stn-align-joint"
    version = 1
    paper = "future work of Galichin et al. 2023"
    Params = JointParams
    params: JointParams
    sketch_steps, sketched = Aligner.sketch_steps, Aligner.sketched
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tuned": StnAlign.presets["tuned"],
        "quick": StnAlign.presets["quick"],
    }

    def __init__(self, params: JointParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        # Posed by the weights of the alignment, which come first: none are fetched for it here.
        self.aligner = Aligner(Aligner.without_weights(params.aligner), ())
        self.classifier = BackboneClassifier(baseline(params), labels)

    @classmethod
    def stages(cls, data: DataView, params: JointParams) -> Stage:
        chest, features = chest_stages(data, params)
        aligner = aligner_stage(data, params)
        return fit(cls, data, params, chest=chest, features=features, aligner=aligner)

    @classmethod
    def analyses(cls, data: DataView, params: JointParams, model: Stage) -> Mapping[str, Stage]:
        return {"alignment": report_stage(data, params, model)}

    @classmethod
    def without_weights(cls, params: JointParams) -> JointParams:
        return params.model_copy(update={"pretrained": "none"})

    def receive(self, inputs: Mapping[str, Path]) -> None:
        self.aligner.receive(inputs)
        self.aligner.load_state_dict(weights_in(inputs["aligner"]))

    def on_fit_start(self) -> None:
        self.aligner.on_fit_start()

    def weights_source(self) -> dict[str, Any]:
        return self.classifier.weights_source()

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, 1, S, S] in [0, 1] to logits [B, K]."""
        logits: Tensor = self.classifier(self.aligned(image, self.pose(image)))
        return logits

    def pose(self, image: Tensor) -> Tensor:
        """Poses [B, 5] of images at any side."""
        pose: Tensor = self.aligner.pose(self.aligner.normalise(self.small(image)))
        return pose

    def small(self, image: Tensor) -> Tensor:
        """Images at the side that the aligner reads."""
        side = self.params.aligner.recipe.size
        return shrunk(image, (side, side))

    def aligned(self, image: Tensor, pose: Tensor) -> Tensor:
        """Images through their poses, at their own side."""
        size = (image.shape[-2], image.shape[-1])
        return warped(image, theta_of_pose(pose), size, self.params.aligner.outside)

    def sketch(self, batch: Batch) -> Image.Image:
        return self.aligner.drawn(self.small(to_unit(batch["image"])))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image = to_unit(batch["image"])
        terms = self.aligner.losses(self.small(image))
        logits = self.classifier(self.aligned(image, terms["pose"]))
        count = batch.get("known_count")
        bce = masked_bce(logits, batch["target"], batch["known"], count)
        loss = bce + self.params.align_weight * terms["loss"]
        return {"loss": loss, "bce": bce.detach(), "align": terms["loss"].detach()}
