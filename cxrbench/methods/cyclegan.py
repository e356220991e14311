"""How much a CycleGAN changes a film to make it healthy; after Clancy & Milanko's report of 2019.

The report translates films between healthy and pneumonia and has pictures, but no number. What puts the pair
of generators on the leaderboard is the residual: sick films should be changed more. The trainings, in
the fold alone: (1) the generators; (2) two numbers a label, which make a probability of the residual.
Shapes: B batch, S side, K labels.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cxrbench.core.errors import DataError
from cxrbench.core.frozen import unless_set
from cxrbench.core.spec import Augment, MethodParams, Reading, Recipe
from cxrbench.core.stage import DataView, Stage, compute, fit, transform
from cxrbench.methods.base import Batch, Classifier, weights_in
from cxrbench.methods.cyclegan_training import PAPER, REPORTED, CycleGANTraining, TrainingParams
from cxrbench.methods.densenet121 import QUICK as QUICK_CLASSIFIER
from cxrbench.methods.densenet121 import TUNED as TUNED_CLASSIFIER
from cxrbench.methods.densenet121 import BackboneParams, DenseNet121
from cxrbench.methods.fresh_decoder import DecoderParams, FreshDecoder
from cxrbench.methods.steganography import Steganography, SteganographyParams
from cxrbench.methods.translation import FilmParams, Translate, TranslateParams, grey, signed
from cxrbench.methods.translation_report import TranslationReport, TranslationReportParams
from cxrbench.nn.backbones import load_whole, to_unit

LEAST_RESIDUAL = 1e-6  # of the grey range: its logarithm is taken

# Adam's rate for eight films in place of two: twice, by the square root.
TUNED = PAPER.model_copy(
    update={
        "batch_size": 8,
        "learning_rate": 4e-4,
        "augment": Augment(rotate=5, shift=0.03),
        "ema_decay": 0.999,
        "precision": "auto",
    }
)
QUICK = TUNED.model_copy(
    update={
        "epochs": 9,
        "learning_rate": 2e-3,
        "augment": Augment(),
        "ema_decay": None,
        "size": 64,
        "load": 64,
    }
)
# Two numbers a label.
ALONE = Recipe(
    epochs=1,
    batch_size=16,
    learning_rate=0.05,
    size=256,
    load=256,
    train_view="resize",
    sampler="shuffle",
)


# The U-Nets that know no secret: as quick as they can learn.
DECODERS = Recipe(
    batch_size=8,
    learning_rate=1e-3,
    schedule="cosine",
    train_view="resize",
    sampler="balanced",
)


class CycleGANParams(MethodParams):
    """What of a film's change is its score, the training of the generators, and who judges them afterwards.

    The classifier that looks at translated films is the DenseNet121 baseline, one training with it. The
    independent decoders of the steganography report are a second training of the generators (`second_pair`), as long
    as the first, and U-Nets that learn for so many epochs (`fresh_decoder`), each made only where it is asked for.
    """

    # Over the pixels of |film - film made healthy|; `lungs` is the mean inside the lungs, of data sets with masks.
    statistic: Literal["mean", "p95", "lungs"] = "mean"
    translators: TrainingParams = TrainingParams()
    classifier: BackboneParams = BackboneParams()
    second_pair: bool = False
    fresh_decoder: int = Field(0, ge=0, exclude_if=unless_set)  # epochs; 0: none
    report_films: int = Field(400, ge=2)  # of a domain, at most
    hidden_films: int = Field(16, ge=2)  # of a domain, that are searched for hidden messages
    attack_steps: int = Field(10, ge=1)  # of a search for what steers a translation
    recipe: Recipe = ALONE

    def films_read(self) -> FilmParams:
        """How translated films are read: at the size of the generators' windows."""
        gan = self.translators
        return FilmParams(
            generator=gan.generator, size=gan.recipe.size, keep_aspect=gan.keep_aspect
        )

    def decoders(self, films: FilmParams) -> DecoderParams:
        """The training of `fresh_decoder` epochs on films that are read so; ConfigError for sides of no U-Net."""
        sides = {"size": films.size, "load": films.size, "epochs": self.fresh_decoder}
        precision = self.translators.recipe.precision
        recipe = DECODERS.model_copy(update={**sides, "precision": precision})
        given = {"films": films.model_dump(), "recipe": recipe.model_dump()}
        return DecoderParams.parse(given, where="params.fresh_decoder (0 for none)")


class CycleGAN(Classifier):
    """How much a CycleGAN changes a film to make it healthy, as a sign of disease (Clancy & Milanko, 2019).

    For each label logit p = a log(residual) + b with a > 0, where a and b are fitted on the training part:
    the same order of films for every label, so the fit makes probabilities and decides no AUC.
    """

    name = "cyclegan"
    version = 1
    paper = "Clancy & Milanko, 2019; Zhu et al., ICCV 2017"
    learns = False
    Params = CycleGANParams
    params: CycleGANParams
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"translators": REPORTED, "fresh_decoder": 20},
        "code": {"translators": {"recipe": {**PAPER.model_dump(), "load": 286}}},
        "tuned": {
            "translators": {
                "generator": {"channels": 1, "resize_conv": True},
                "noise": 0.1,
                "recipe": TUNED.model_dump(),
            },
            "classifier": {"recipe": TUNED_CLASSIFIER.model_dump()},
        },
        "quick": {
            "translators": {
                "generator": {
                    "channels": 1,
                    "width": 8,
                    "blocks": 2,
                    "resize_conv": True,
                    "adds": True,
                },
                "judge_width": 16,
                # At the paper's lambda of 10 such generators change nothing; at 1 with the paper's
                # identity of 1/2 they change healthy films as much as sick ones.
                "cycle_weight": 1.0,
                "identity_weight": 4.0,
                "recipe": QUICK.model_dump(),
            },
            "classifier": {"pretrained": "none", "recipe": QUICK_CLASSIFIER.model_dump()},
            "report_films": 60,
            "hidden_films": 4,
            "attack_steps": 5,
            "recipe": {**ALONE.model_dump(), "size": 64, "load": 64},
        },
    }

    def __init__(self, params: CycleGANParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        self.to_healthy = params.translators.generator.build().requires_grad_(False)
        self.log_slope = nn.Parameter(torch.zeros(len(labels)))
        self.offset = nn.Parameter(torch.zeros(len(labels)))

    @classmethod
    def stages(cls, data: DataView, params: CycleGANParams) -> Stage:
        trained = fit(CycleGANTraining, data, params.translators)
        return fit(cls, data, params, translators=trained)

    @classmethod
    def view(cls, data: DataView, params: CycleGANParams) -> DataView:
        """Every film as `to_healthy` makes it: without what the generator takes for disease."""
        gan = params.translators
        change = TranslateParams(**params.films_read().model_dump())
        return transform(Translate, data, change, translators=fit(CycleGANTraining, data, gan))

    @classmethod
    def analyses(cls, data: DataView, params: CycleGANParams, model: Stage) -> Mapping[str, Stage]:
        """What is changed, and whether the pair hides messages from itself, on the test films."""
        gan, trained = params.translators, model.inputs["translators"]
        films = params.films_read()
        read = films.model_dump()
        pair = {"translators": trained}
        others: dict[str, Stage] = {}
        if params.second_pair:
            another = replace(data, root_seed=data.root_seed + 1)
            others["other"] = fit(CycleGANTraining, another, gan)
        decoders = params.decoders(films) if params.fresh_decoder else None
        if decoders is not None:
            others["decoders"] = fit(FreshDecoder, data, decoders, translators=trained)
        report = TranslationReportParams(
            **read,
            classifier=params.classifier,
            films=params.report_films,
        )
        look = SteganographyParams(
            **read,
            films=params.hidden_films,
            attacked=max(1, params.hidden_films // 4),
            attack_steps=params.attack_steps,
            decoders=decoders,
        )
        classifier = fit(DenseNet121, data, params.classifier)
        return {
            "translation": compute(
                TranslationReport, data, report, part="test", classifier=classifier, **pair
            ),
            "steganography": compute(Steganography, data, look, part="test", **pair, **others),
        }

    @classmethod
    def reading(cls, params: CycleGANParams) -> Reading:
        return "centre" if params.translators.keep_aspect else "squeeze"

    @classmethod
    def reads_masks(cls, params: CycleGANParams) -> bool:
        return params.statistic == "lungs"

    def receive(self, inputs: Mapping[str, Path]) -> None:
        weights = weights_in(inputs["translators"])
        name = "to_healthy."
        own = {n.removeprefix(name): t for n, t in weights.items() if n.startswith(name)}
        load_whole(self.to_healthy, own, source="the CycleGAN's training")

    def residual(self, image: Tensor, lungs: Tensor | None = None) -> Tensor:
        """Films [B, 1, S, S] in [0, 1] to how much each is changed [B], a share of the grey range; float32.

        `lungs` [B, 1, S, S], above 0 inside, for the statistic of that name. DataError for a film without any.
        """
        with torch.no_grad(), torch.autocast(device_type=image.device.type, enabled=False):
            made = self.to_healthy(signed(image, self.params.translators.generator.channels))
            change = (image - grey(made)).abs().flatten(1)
            if self.params.statistic == "p95":
                return change.quantile(0.95, dim=1)
            if self.params.statistic == "mean":
                return change.mean(1)
            if lungs is None:
                raise DataError("statistic lungs: these films come without masks of the lungs")
            inside = (lungs > 0).flatten(1).float()
            if not inside.any(1).all():
                raise DataError("statistic lungs: a film shows no lung; choose mean or p95")
            return (change * inside).sum(1) / inside.sum(1)

    def logits(self, batch: Batch) -> Tensor:
        image = to_unit(batch["image"])
        return self._from_residual(self.residual(image, batch.get("mask")))

    def forward(self, image: Tensor) -> Tensor:
        return self._from_residual(self.residual(image))

    def _from_residual(self, residual: Tensor) -> Tensor:
        size = residual.clamp(min=LEAST_RESIDUAL).log()
        return self.log_slope.exp() * size[:, None] + self.offset
