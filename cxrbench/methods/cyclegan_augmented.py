"""A classifier trained with films that a CycleGAN made, which Clancy & Milanko's report of 2019 leaves to others.

The generators are fitted in the same fold, and are one training with the method `cyclegan`. Of each batch a share
of the sick films is made healthy and of the healthy films sick, and their labels follow. The baseline, the
same classifier and recipe without them, is `densenet121`. Shapes: B batch, S side, K labels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cxrbench.core.stage import DataView, Stage, fit
from cxrbench.methods.base import Batch
from cxrbench.methods.cyclegan import CycleGAN
from cxrbench.methods.cyclegan_training import REPORTED, CycleGANTraining, TrainingParams
from cxrbench.methods.densenet121 import QUICK, TUNED, BackboneClassifier, BackboneParams
from cxrbench.methods.translation import (
    NORMAL,
    Domain,
    Translators,
    load_translators,
    note_domains,
    places_of,
    sent,
)
from cxrbench.nn.backbones import to_unit
from cxrbench.nn.losses import masked_bce
from cxrbench.nn.resnet_generator import SCALE


class AugmentedParams(BackboneParams):
    """The baseline's parameters, how many films are translated, and the training of the generators."""

    share: float = Field(0.25, ge=0, le=1)  # of the films that have a translation
    translators: TrainingParams = TrainingParams()

    @model_validator(mode="after")
    def _sides(self) -> "AugmentedParams":
        if self.recipe.size % SCALE:
            raise ValueError(
                f"recipe.size {self.recipe.size}: generators need multiples of {SCALE}"
            )
        return self


class CycleGANAugmented(BackboneClassifier):
    """DenseNet121 trained with films that a CycleGAN made healthy or sick (after Clancy & Milanko, 2019).

    A film that was made healthy has none of the findings. One that was made sick has the finding where
    there is one label; of several nobody knows which, so there no film is made sick. Films are translated
    after they are augmented, at the classifier's side.
    """

    name = "cyclegan-augmented"
    version = 1
    paper = "Clancy & Milanko, 2019; Zhu et al., ICCV 2017"
    Params = AugmentedParams
    params: AugmentedParams
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"translators": REPORTED},
        "tuned": {
            "translators": CycleGAN.presets["tuned"]["translators"],
            "recipe": TUNED.model_dump(),
        },
        "quick": {
            "pretrained": "none",
            "translators": CycleGAN.presets["quick"]["translators"],
            "recipe": QUICK.model_dump(),
        },
    }

    def __init__(self, params: AugmentedParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        # No part of the classifier's weights: a trained one is loaded and predicts without them.
        build = params.translators.generator.build
        self.translators = Translators(params.translators.generator, build(), build())

    @classmethod
    def stages(cls, data: DataView, params: AugmentedParams) -> Stage:
        trained = fit(CycleGANTraining, data, params.translators)
        return fit(cls, data, params, translators=trained)

    def receive(self, inputs: Mapping[str, Path]) -> None:
        self.translators = load_translators(
            self.params.translators.generator, inputs["translators"]
        )

    def on_fit_start(self) -> None:
        self.translators.to(self.device)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image, target, known, made = self.augmented(batch)
        logits = self(image)
        return {"loss": masked_bce(logits, target, known), "made": made.float().mean()}

    @torch.no_grad()
    def augmented(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Films [B, 1, S, S] in [0, 1], `target` and `known` [B, K], and which films were made, bool [B]."""
        image, target, known = to_unit(batch["image"]), batch["target"].clone(), batch["known"]
        known = known.clone()
        drawn = (torch.rand(len(image)) < self.params.share).tolist()
        places = {d: [n for n in of if drawn[n]] for d, of in places_of(batch, self.labels).items()}
        # What a healthy film's labels are.
        normal = torch.tensor([float(label == NORMAL) for label in self.labels])
        normal = normal.to(target, non_blocking=True)
        changes: list[tuple[Domain, Domain, Tensor]] = [("sick", "healthy", normal)]
        if len(self.labels) == 1:
            changes.append(("healthy", "sick", 1 - normal))
        made = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        for domain, wanted, labels in changes:
            if places[domain]:
                chosen = sent(places[domain], image.device)
                image = image.clone()
                translated = self.translators.translate(image[chosen], wanted)
                image[chosen] = translated.to(image.dtype)
                target[chosen], known[chosen], made[chosen] = labels, True, True
        return image, target, known, made

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return note_domains(batch, self.labels)
