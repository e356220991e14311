"""DenseNet121 with the BL5 recipe: the baseline of ChestX-ray14 work."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from cxrbench.core.spec import Augment, MethodParams, Recipe
from cxrbench.core.stage import DataView, Stage
from cxrbench.methods.base import Classifier
from cxrbench.methods.calls import surest_calls
from cxrbench.nn.backbones import ImageNetInput, build_backbone

# "BL5": the five preprocessing steps of the AE-CNN re-implementation, stage 1 (Bagal).
BL5 = Recipe(
    epochs=20,
    batch_size=16,
    optimizer="adam",
    learning_rate=1e-4,
    weight_decay=1e-5,
    schedule="plateau",
    plateau_factor=0.1,
    plateau_patience=5,
    size=224,
    load=256,
    augment=Augment(horizontal_flip=0.5, rotate=5, contrast=0.25),
    validation_view="whole",
    test_view="ten_crop",
    select="val_loss",
)
# No mirroring: it would put the heart on the right.
TUNED = Recipe(
    epochs=20,
    batch_size=64,
    optimizer="adamw",
    learning_rate=3e-4,
    weight_decay=1e-2,
    schedule="cosine",
    warmup_epochs=1,
    ema_decay=0.999,
    augment=Augment(rotate=10, shift=0.05, scale=0.1, contrast=0.25, brightness=0.1),
    select="val_auc",
)
QUICK = Recipe(
    epochs=5,
    batch_size=32,
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=1e-2,
    schedule="cosine",
    warmup_epochs=0.5,
    size=64,
    load=64,
    augment=Augment(rotate=5, shift=0.03),
    select="val_auc",
)
# Of a small network in a large one's place: its steps cost little, but it needs more of them.
QUICK_SMALL = QUICK.model_copy(update={"epochs": 20, "learning_rate": 3e-3})


class BackboneParams(MethodParams):
    """A network by name and the weights that it starts from."""

    backbone: str = "densenet121"
    pretrained: str = "imagenet"  # or "none", or the path of a file of weights
    recipe: Recipe = BL5


class BackboneClassifier(Classifier):
    """A network from the shelf behind the ImageNet normalisation."""

    params: BackboneParams

    def __init__(self, params: BackboneParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        self.normalise = ImageNetInput()
        self.net, self._weights = build_backbone(params.backbone, len(labels), params.pretrained)

    @classmethod
    def without_weights(cls, params: Any) -> Any:
        return params.model_copy(update={"pretrained": "none"})

    @classmethod
    def analyses(cls, data: DataView, params: Any, model: Stage) -> Mapping[str, Stage]:
        """The calls that are surest, right and wrong."""
        return surest_calls(data, model, cls.image_size(params)[0])

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalise(image))
        return logits

    def weights_source(self) -> dict[str, Any]:
        return {
            "source": self._weights.source,
            "sha256": self._weights.sha256,
            "new_layers": list(self._weights.new_layers),
        }


class DenseNet121(BackboneClassifier):
    """DenseNet121 on images resized to 256 px (BL5 recipe): the baseline every method is held against."""

    name = "densenet121"
    version = 1
    paper = (
        "Huang et al., CVPR 2017; recipe: Bagal's re-implementation of Ranjan et al., ICVGIP 2018"
    )
    Params = BackboneParams
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "tuned": {"recipe": TUNED.model_dump()},
        "quick": {"pretrained": "none", "recipe": QUICK.model_dump()},
    }
    reported = {
        "chestxray14": {
            "split": "official",
            "source": "Bagal's re-implementation of AE-CNN, Table 1, D121 (R)",
            "macro": {"auc": 0.8216},
            "labels": {
                "Atelectasis": 0.786, "Cardiomegaly": 0.8811, "Consolidation": 0.7545,
                "Edema": 0.8583, "Effusion": 0.8387, "Emphysema": 0.9242, "Fibrosis": 0.8314,
                "Hernia": 0.9055, "Infiltration": 0.7064, "Mass": 0.8358, "Nodule": 0.7772,
                "Pleural_Thickening": 0.7895, "Pneumonia": 0.7381, "Pneumothorax": 0.8750,
            },
        },
    }  # fmt: skip
