"""FMix (Harris et al., 2020) on DenseNet121: images of a batch mixed by low-frequency masks."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cxrbench.core.spec import Augment
from cxrbench.core.stage import DataView, Stage, compute
from cxrbench.methods.base import Batch, global_batch
from cxrbench.methods.densenet121 import BL5, QUICK, TUNED, BackboneClassifier, BackboneParams
from cxrbench.methods.fmix_report import MixedFilms, MixedFilmsParams, MixParams
from cxrbench.nn.backbones import to_unit
from cxrbench.nn.losses import masked_bce

# The whole 256-px image, neither cropped nor mirrored nor brightened; the rest as BL5.
WHOLE = BL5.model_copy(update={"train_view": "whole", "augment": Augment()})


class FMixParams(MixParams, BackboneParams):
    """How images are mixed, and how often: `probability` a batch."""

    probability: float = Field(1.0, ge=0, le=1)

    @property
    def how(self) -> MixParams:
        """How images are mixed alone."""
        return MixParams(**{name: getattr(self, name) for name in MixParams.model_fields})


class FMix(BackboneClassifier):
    """DenseNet121 on images mixed by FMix masks; mixup and CutMix by `params.mix`."""

    name = "fmix"
    version = 1
    divisible = False  # images are mixed with others of the batch
    paper = "Harris et al., 2020; recipe: Bagal's re-implementation of Ranjan et al., ICVGIP 2018"
    Params = FMixParams
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"recipe": WHOLE.model_dump()},
        "tuned": {
            "probability": 0.5,
            "recipe": TUNED.model_copy(update={"epochs": 40}).model_dump(),
        },
        "quick": {"pretrained": "none", "probability": 0.5, "recipe": QUICK.model_dump()},
    }
    reported = {
        "chestxray14": {
            "split": "official",
            "source": "Bagal's re-implementation of AE-CNN, Table 1, FMix",
            "macro": {"auc": 0.8131},
            "labels": {
                "Atelectasis": 0.7810, "Cardiomegaly": 0.8593, "Consolidation": 0.7481,
                "Edema": 0.8533, "Effusion": 0.8326, "Emphysema": 0.9229, "Fibrosis": 0.8283,
                "Hernia": 0.9220, "Infiltration": 0.7000, "Mass": 0.8164, "Nodule": 0.7671,
                "Pleural_Thickening": 0.7806, "Pneumonia": 0.7147, "Pneumothorax": 0.8570,
            },
        },
    }  # fmt: skip
    params: FMixParams

    @classmethod
    def analyses(cls, data: DataView, params: FMixParams, model: Stage) -> Mapping[str, Stage]:
        """What the films look like when they are mixed, and the surest calls."""
        how = MixedFilmsParams(side=params.recipe.load, **params.how.model_dump())
        mixed = {"mixed films": compute(MixedFilms, model.data, how, part="test")}
        return {**mixed, **super().analyses(data, params, model)}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """lam * BCE(y) + (1 - lam) * BCE(y of the image that was mixed in); all devices mix as one would."""
        draws = self.step_draws
        if torch.rand((), generator=draws) >= self.params.probability:
            return super().losses(batch)
        mine, (image, target, known) = global_batch(self, batch, "image", "target", "known")
        mixed = self.params.how.apply(to_unit(image), draws)
        logits = self(mixed.image[mine])
        partner = mixed.permutation[mine]
        own = masked_bce(logits, target[mine], known[mine])
        other = masked_bce(logits, target[partner], known[partner])
        return {"loss": mixed.lam * own + (1 - mixed.lam) * other}
