"""Decoders that share no secret with a pair of generators: U-Nets that learn, under noise, to undo its translations.

A CycleGAN's two generators learn together and may agree on a faint signal (Chu et al. 2017). A network that learns
afterwards, from translations with noise on them, can read what a translation shows and no such signal; how much better the
pair's own generator reads is what was hidden. Shapes: B batch, n films of a domain, S side, a multiple of 16.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbench.core.errors import DataError
from cxrbench.core.spec import MethodParams, Reading, Recipe
from cxrbench.methods.base import Batch, Method, weights_in
from cxrbench.methods.cyclegan_training import OTHER, mean_once, shares_of
from cxrbench.methods.translation import Domain, FilmParams, Translators, domains, load_translators
from cxrbench.nn.backbones import load_whole, to_unit
from cxrbench.nn.unet import LEVELS, UNet


class DecoderParams(MethodParams):
    """How films are read, the U-Nets' width, and the std in grey levels of the noise that they learn under."""

    films: FilmParams = FilmParams()
    width: int = Field(16, ge=8, multiple_of=8)
    noise: float = Field(8.0, gt=0)
    recipe: Recipe

    @model_validator(mode="after")
    def _sides(self) -> "DecoderParams":
        r, multiple = self.recipe, 1 << LEVELS
        if r.size != self.films.size or r.load != self.films.size or r.size % multiple:
            raise ValueError(
                f"recipe.size {r.size} and recipe.load {r.load} must be films.size {self.films.size}, a multiple of "
                f"{multiple}: the decoders read what the generators make"
            )
        return self


class FreshDecoder(Method):
    """A U-Net for each domain, from translations to the films that they were made from; grey, in [0, 1].

    What the generators put into differences between their channels counts as hidden: no grey film shows it.
    """

    name = "fresh-decoder"
    version = 1
    divisible = False  # each domain has a mean of its own
    Params = DecoderParams
    params: DecoderParams

    def __init__(self, params: DecoderParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        self.of_healthy = UNet(params.width, residual=True)
        self.of_sick = UNet(params.width, residual=True)
        # No part of the decoders' weights.
        build = params.films.generator.build
        self.translators = Translators(params.films.generator, build(), build())
        self._validation: list[Tensor] = []  # of (row, error), [n, 2]

    @classmethod
    def reading(cls, params: DecoderParams) -> Reading:
        return params.films.reading

    def receive(self, inputs: Mapping[str, Path]) -> None:
        generator = self.params.films.generator
        self.translators = load_translators(generator, inputs["translators"])

    def on_fit_start(self) -> None:
        self.translators.to(self.device)

    def decoder(self, domain: Domain) -> nn.Module:
        """What reads films of a domain from their translations."""
        return self.of_healthy if domain == "healthy" else self.of_sick

    def pairs(self, batch: Batch) -> dict[Domain, tuple[Tensor, Tensor]]:
        """The films of each domain in a batch and their translations, [n, 1, S, S] in [0, 1] each."""
        image = to_unit(batch["image"])
        found: dict[Domain, tuple[Tensor, Tensor]] = {}
        masks = domains(batch["target"], batch["known"], self.labels)
        for domain, mine in zip(OTHER, masks, strict=True):
            film = image[mine]
            with torch.no_grad():
                made = self.translators.translate(film, OTHER[domain]) if len(film) else film
            found[domain] = film, made
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        pairs = self.pairs(batch)
        counts = batch["image"].new_tensor([len(film) for film, _ in pairs.values()]).float()
        shares, _ = shares_of(counts)
        loss = counts.new_zeros(())
        for share, (domain, (film, made)) in zip(shares, pairs.items(), strict=True):
            net = self.decoder(domain)
            if not len(film):  # every rank takes part in the step of both
                loss = loss + torch.stack([p.sum() for p in net.parameters()]).sum() * 0
                continue
            noisy = made + self.params.noise / 255 * torch.randn_like(made)
            loss = loss + share * F.l1_loss(net(noisy), film)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The error of translations without noise, as the report measures it."""
        error = torch.full_like(batch["row"], torch.nan, dtype=torch.float64)
        masks = domains(batch["target"], batch["known"], self.labels)
        pairs = self.pairs(batch)
        for domain, mine in zip(OTHER, masks, strict=True):
            film, made = pairs[domain]
            if len(film):
                read = self.decoder(domain)(made)
                error[mine] = (read - film).abs().flatten(1).mean(1).double()
        self._validation.append(torch.stack([batch["row"].double(), error], dim=1))

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", mean_once(self, self._validation))
        self._validation.clear()


def load_decoders(params: DecoderParams, folder: Path, device: str) -> dict[Domain, nn.Module]:
    """The decoders of a training's artefact, frozen; DataError when they are others than `params` says."""
    weights: dict[str, Any] = weights_in(folder)
    found: dict[Domain, nn.Module] = {}
    for domain in OTHER:
        name = f"of_{domain}."
        state = {n.removeprefix(name): t for n, t in weights.items() if n.startswith(name)}
        if not state:
            raise DataError(f"{folder}: no decoder of {domain} films")
        net = UNet(params.width, residual=True).eval().requires_grad_(False)
        load_whole(net, state, source=f"decoder of {domain} films of {folder}")
        found[domain] = net.to(device)
    return found
