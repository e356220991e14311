"""VGG16: the second baseline, and the classifier of the attention-STN and the deblurring papers."""

from collections.abc import Mapping
from typing import Any, ClassVar

from cxrbench.core.spec import Augment, Recipe
from cxrbench.methods.densenet121 import QUICK, TUNED, BackboneClassifier, BackboneParams

# Rocha et al. 2022 leave batch size and selection open; 1e-5 is their (misprinted) rate as read.
ROCHA = Recipe(
    epochs=20,
    batch_size=16,
    optimizer="adam",
    learning_rate=1e-5,
    size=512,
    load=512,
    augment=Augment(rotate=5, shear=3),
    sampler="balanced",
    train_view="resize",
    validation_view="whole",
    test_view="whole",
    select="val_loss",
)


class VGG16Params(BackboneParams):
    """VGG16 from random weights, as the paper's code starts it."""

    backbone: str = "vgg16"
    pretrained: str = "none"
    recipe: Recipe = ROCHA


class VGG16(BackboneClassifier):
    """VGG16 on whole images: the baseline of the attention-STN paper (Rocha et al., 2022)."""

    name = "vgg16"
    version = 1
    paper = "Simonyan & Zisserman, ICLR 2015; recipe: Rocha et al., CBMS 2022"
    Params = VGG16Params
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "tuned": {
            "pretrained": "imagenet",
            "recipe": {**TUNED.model_dump(), "learning_rate": 1e-4},
        },
        # 134 million parameters: a step takes a CPU five times as long as DenseNet121's.
        "quick": {"recipe": {**QUICK.model_dump(), "learning_rate": 1e-4, "epochs": 2}},
    }
    reported = {
        "chexpert": {
            "split": "cv5",
            "source": "Rocha et al. 2022, Table II, VGG16 baseline (normal/abnormal)",
            "params": {"task": "abnormal", "view": "pa", "policy": "u-ones"},
            "macro": {
                "auc": 0.8321, "pr_auc": 0.9478, "precision_at_95_recall": 0.8433,
                "tp_share": 0.7606, "fp_share": 0.1414, "tn_share": 0.0578, "fn_share": 0.0402,
            },
            "labels": {},
        },
    }  # fmt: skip
