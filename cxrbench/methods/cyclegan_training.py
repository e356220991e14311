"""CycleGAN's training: generators between sick and healthy films, learned without pairs (Zhu et al., ICCV 2017).

`to_healthy` makes healthy films of sick ones, `to_sick` the reverse, and a judge of each domain learns to
tell real films from made ones. A film made and then translated back must be the film it came from, which
keeps what no disease has changed. Shapes: B batch, n films of a domain, S side, C channels.

The published code steps the generators and then the judges, each with an Adam of its own. The judges' loss
reads films that were made before the generators' step, and Adam treats every weight alone, so one step on
the sum of both losses is the same update, if the judges are constants where they judge for the generators.
Hence one optimiser, and nothing here that a classifier's training has not: DDP, mixed precision, clipping (of
the norm over all networks), averaged weights and resuming are the trainer's own.
"""

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, distributed, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from cxrbench.core.errors import DataError
from cxrbench.core.frozen import unless_set
from cxrbench.core.spec import Augment, MethodParams, Reading, Recipe
from cxrbench.methods.base import Batch, Method
from cxrbench.methods.optimisers import build_optimiser
from cxrbench.methods.translation import (
    Domain,
    GeneratorParams,
    note_domains,
    places_of,
    sent,
    signed,
)
from cxrbench.nn.image_pool import ImagePool
from cxrbench.nn.patchgan import PatchGAN, least_squares
from cxrbench.nn.resnet_generator import SCALE

BETAS = (0.5, 0.999)  # of Adam
OTHER: dict[Domain, Domain] = {"healthy": "sick", "sick": "healthy"}

# A batch of two is one film of each domain on average: see `CycleGANTraining`. 283 px is the side before the crop: the
# short one in the report, of a film that keeps its shape (`keep_aspect`, as in the preset `paper`), both elsewhere.
PAPER = Recipe(
    epochs=200,
    batch_size=2,
    learning_rate=2e-4,
    size=256,
    load=283,
    augment=Augment(horizontal_flip=0.5),
    sampler="balanced",
    precision="32-true",
)


class TrainingParams(MethodParams):
    """The networks, what the losses weigh, and two defences against hidden messages."""

    generator: GeneratorParams = GeneratorParams()
    judge_width: int = Field(64, ge=1)
    pool: int = Field(50, ge=0)  # made films that a judge may be shown again
    cycle_weight: float = Field(10.0, ge=0)  # lambda
    identity_weight: float = Field(0.5, ge=0)  # times lambda; on in the published code
    noise: float = Field(0.0, ge=0)  # std, in [-1, 1], of noise on a made film before it goes back
    guess_weight: float = Field(0.0, ge=0)  # of a judge that tells films from their reconstructions
    constant_share: float = Field(0.5, ge=0, le=1)  # of the epochs, before the rate falls to 0
    # `recipe.load` is the short side and windows lie anywhere in the film; else it is squeezed to a square.
    keep_aspect: bool = Field(False, exclude_if=unless_set)
    recipe: Recipe = PAPER

    @model_validator(mode="after")
    def _sides(self) -> "TrainingParams":
        if self.recipe.size % SCALE:
            raise ValueError(
                f"recipe.size {self.recipe.size}: generators need multiples of {SCALE}"
            )
        views = self.recipe.train_view, self.recipe.validation_view
        if self.keep_aspect and views != ("random_crop", "center_crop"):
            raise ValueError(
                f"keep_aspect: films are no squares, so recipe.train_view must be random_crop and "
                f"recipe.validation_view center_crop (now {' and '.join(views)})"
            )
        return self


# As the report has it: short side 283, a window of 256 anywhere.
REPORTED: dict[str, Any] = {
    "keep_aspect": True,
    "recipe": {**PAPER.model_dump(), "validation_view": "center_crop"},
}


class CycleGANTraining(Method):
    """Both generators and their judges, on films whose labels say which domain they are of.

    Each term of the loss is a mean over the films of one domain, so a batch without a domain still trains
    all four networks with the terms that it has: a sick film is made healthy, goes back, is kept by
    `to_sick`, is real to the judge of the sick and, translated, made to the judge of the healthy. The log
    counts such batches (`train_lacking`); half are of this kind at two films. Films of neither domain
    are left out. The last epoch is kept, as in the published code: no validation number says how good
    the translations are, and the cycle's error (`val_loss`) is least where nothing is translated.
    """

    name = "cyclegan-training"
    version = 1
    divisible = False  # each domain has a mean of its own
    Params = TrainingParams
    params: TrainingParams

    def __init__(self, params: TrainingParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        channels = params.generator.channels
        self.to_healthy, self.to_sick = params.generator.build(), params.generator.build()
        self.judge_healthy = PatchGAN(channels, width=params.judge_width)
        self.judge_sick = PatchGAN(channels, width=params.judge_width)
        if params.guess_weight:
            self.judge_cycle = PatchGAN(2 * channels, width=params.judge_width)
        # Each rank has its own; they travel in the training state.
        self.pools = {domain: ImagePool(params.pool) for domain in OTHER}
        self._validation: list[Tensor] = []  # of (row, error), [n, 2]

    @classmethod
    def reading(cls, params: TrainingParams) -> Reading:
        return "short_side" if params.keep_aspect else "squeeze"

    @property
    def monitor(self) -> str:
        """The number of the epoch, whatever the recipe selects by: the last is the best."""
        return "val_epoch"

    def generator(self, domain: Domain) -> nn.Module:
        """What makes films of a domain."""
        return self.to_healthy if domain == "healthy" else self.to_sick

    def judge(self, domain: Domain) -> nn.Module:
        """What knows films of a domain."""
        return self.judge_healthy if domain == "healthy" else self.judge_sick

    def films(self, batch: Batch) -> dict[Domain, Tensor]:
        """The films of each domain in a batch, [n, C, S, S] in [-1, 1]."""
        films = signed(batch["image"], self.params.generator.channels)
        places = places_of(batch, self.labels)
        return {domain: films[sent(places[domain], films.device)] for domain in OTHER}

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return note_domains(batch, self.labels)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        films = self.films(batch)
        counted = torch.tensor([float(len(film)) for film in films.values()])
        counts = counted.to(films["sick"].device, non_blocking=True)
        shares, lacking = shares_of(counts)
        nothing = counts.new_zeros(())
        if not counted.any():  # a rank takes part in the step all the same
            nothing = torch.stack([p.sum() for p in self.parameters()]).sum() * 0
        names = ("adversarial", "cycle", "identity", "judges", "guess")
        terms = dict.fromkeys(names, nothing)
        for share, (domain, film) in zip(shares, films.items(), strict=True):
            if len(film):
                for name, value in self.terms(domain, film).items():
                    terms[name] = terms[name] + share * value
        p = self.params
        cycle = p.cycle_weight * (terms["cycle"] + p.identity_weight * terms["identity"])
        loss = terms["adversarial"] + cycle + terms["judges"] + p.guess_weight * terms["guess"]
        shown = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, **shown, "lacking": lacking.any().float()}

    def terms(self, domain: Domain, film: Tensor) -> dict[str, Tensor]:
        """What films [n, C, S, S] of a domain say of all networks: the terms before their weights."""
        there, back = self.generator(OTHER[domain]), self.generator(domain)
        here_judge, there_judge = self.judge(domain), self.judge(OTHER[domain])
        made = there(film)
        noise = self.params.noise
        again = back(made + noise * torch.randn_like(made) if noise else made)
        shown = self.pools[OTHER[domain]].exchange(made)
        judges = least_squares(here_judge(film), 1) + least_squares(there_judge(shown), 0)
        terms = {
            "adversarial": least_squares(as_constant(there_judge, made), 1),
            "cycle": F.l1_loss(again.float(), film),
            "identity": F.l1_loss(back(film).float(), film),
            "judges": judges / 2,
        }
        if self.params.guess_weight:
            guesses = self._guesses(film, again)
            terms["guess"] = guesses["fooled"]
            # The judge's own loss has weight 1, whatever the generators' has.
            terms["judges"] = terms["judges"] + guesses["told"]
        return terms

    def _guesses(self, film: Tensor, again: Tensor) -> dict[str, Tensor]:
        """The pair of a film and its reconstruction in random order: which is first? (Bashkirova et al.)"""
        first = torch.rand(len(film)).to(film.device, non_blocking=True).view(-1, 1, 1, 1) < 0.5

        def pair(again: Tensor) -> Tensor:
            ordered = torch.cat([film, again], 1), torch.cat([again, film], 1)
            return torch.where(first, *ordered)

        truth = first.float()
        told = least_squares(self.judge_cycle(pair(again.detach())), truth)
        fooled = least_squares(as_constant(self.judge_cycle, pair(again)), 1 - truth)
        return {"told": told, "fooled": fooled}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        error = torch.full_like(batch["row"], torch.nan, dtype=torch.float64)
        films = signed(batch["image"], self.params.generator.channels)
        for domain, places in places_of(batch, self.labels).items():
            if places:
                mine = sent(places, films.device)
                film = films[mine]
                again = self.generator(domain)(self.generator(OTHER[domain])(film))
                error[mine] = (again.float() - film).abs().flatten(1).mean(1).double()
        self._validation.append(torch.stack([batch["row"].double(), error], dim=1))

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", mean_once(self, self._validation))
        self._validation.clear()
        self.log("val_epoch", float(self.current_epoch))

    def configure_optimizers(self) -> Any:
        """Adam with CycleGAN's betas; a constant rate falls to 0 over the last epochs.

        Another schedule of the recipe is that of every other method.
        """
        recipe = self.params.recipe
        found = build_optimiser(self, recipe, self.steps_per_epoch)
        optimiser = found["optimizer"] if isinstance(found, dict) else found
        for group in optimiser.param_groups:
            if "betas" in group:
                group["betas"] = BETAS
        if recipe.schedule != "constant" or recipe.warmup_epochs:
            return found
        constant = round(self.params.constant_share * recipe.epochs)

        def factor(epoch: int) -> float:
            return 1 - max(0, epoch + 1 - constant) / (recipe.epochs - constant + 1)

        schedule = {"scheduler": LambdaLR(optimiser, factor), "interval": "epoch"}
        return {"optimizer": optimiser, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Every rank's pools: all ranks come here, the first one writes."""
        mine = {domain: pool.state().cpu() for domain, pool in self.pools.items()}
        pools: list[Any] = [mine]
        if self.trainer.world_size > 1:
            pools = [None] * self.trainer.world_size
            distributed.all_gather_object(pools, mine)
        checkpoint["pools"] = pools

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Each rank its own; of a training on fewer devices, the first ones' again."""
        saved = checkpoint["pools"]
        mine = saved[self.trainer.global_rank % len(saved)]
        for domain, pool in self.pools.items():
            pool.restore(mine[domain])


def mean_once(module: Method, parts: list[Tensor]) -> Tensor:
    """The mean error of films by (row, error) [n, 2] of all ranks, NaN where it is not known; each film counts once.

    Padding under DDP repeats images. DataError when no film's error is known.
    """
    found = torch.cat(parts)
    if module.trainer.world_size > 1:
        every = module.all_gather(found)
        assert isinstance(every, Tensor)
        found = every.flatten(0, 1)
    once = {int(row): error for row, error in found.tolist() if error == error}
    if not once:
        raise DataError("no film of the validation part is known to be healthy or sick")
    return torch.tensor(list(once.values())).mean()


def shares_of(counts: Tensor) -> tuple[Tensor, Tensor]:
    """What the means over this rank's films of each domain count, and which domains no rank has, by `counts` [2].

    DDP takes the mean over ranks; with these weights that is the mean over the global batch.
    """
    if not distributed.is_initialized():
        return torch.ones_like(counts), counts == 0
    every = counts.clone()
    distributed.all_reduce(every)
    return counts * distributed.get_world_size() / every.clamp(min=1), every == 0


def as_constant(judge: nn.Module, film: Tensor) -> Tensor:
    """A judge's scores of made films, with a gradient for the films and none for the judge."""
    weights = {name: tensor.detach() for name, tensor in judge.named_parameters()}
    scores: Tensor = functional_call(judge, weights, (film,))
    return scores
