"""What a trained pair of generators does to films: sick ones made healthy, healthy ones made sick.

The pair is what `cyclegan` trains. Shapes: B batch, C channels of the generators (films are grey and
repeated, their translations averaged), S side, a multiple of 4.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from cxrbench.core.contract import Transformation
from cxrbench.core.errors import DataError
from cxrbench.core.frozen import Frozen, unless_set
from cxrbench.core.spec import Reading
from cxrbench.methods.base import weights_in
from cxrbench.nn.backbones import load_whole, to_unit
from cxrbench.nn.resnet_generator import SCALE, ResnetGenerator

Pixels = npt.NDArray[np.uint8]
Domain = Literal["healthy", "sick"]
NORMAL = "No Finding"  # the one label that, where a data set has it, says that a film is healthy
AT_ONCE = 8  # films translated together: at 256 px the paper's generator needs some 0.1 GB for each


class AddingGenerator(nn.Module):
    """A generator that gives what is added to a film; at first nothing. [B, C, H, W] in [-1, 1] to the same.

    So what no judge asks for is not drawn anew, and a short training has no film to learn to copy.
    """

    def __init__(self, net: ResnetGenerator) -> None:
        super().__init__()
        self.net = net
        last = net.layers[-2]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)

    def forward(self, film: Tensor) -> Tensor:
        changed: Tensor = film + self.net(film)
        return changed.clamp(-1, 1)


class GeneratorParams(Frozen):
    """The networks of both directions."""

    channels: int = Field(3, ge=1)
    width: int = Field(64, ge=1)
    blocks: int = Field(9, ge=0)
    resize_conv: bool = False  # repeat pixels and convolve, where the paper convolves transposed

    adds: bool = False  # the network gives what is added to a film, where the paper's draws it anew

    def build(self) -> nn.Module:
        """A generator with CycleGAN's random initial weights, [B, C, S, S] in [-1, 1] to the same."""
        net = ResnetGenerator(
            self.channels, width=self.width, blocks=self.blocks, resize_conv=self.resize_conv
        )
        return AddingGenerator(net) if self.adds else net


def domains(target: Tensor, known: Tensor, labels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Which films are healthy and which are sick, bool [B] each, by `target` and `known` [B, K].

    Sick: some label is 1. Healthy: some label is known, and all that are known are 0. Neither: nothing is
    known, or a label policy of training gave a share (0.3). "No Finding" counts the other way round.
    """
    known = known.bool()
    normal = torch.tensor([label == NORMAL for label in labels])
    flipped = normal.to(target.device, non_blocking=True)
    found = torch.where(flipped, 1 - target, target) * known
    sick = ((found == 1) & ~flipped).any(dim=1)
    return known.any(dim=1) & ~(found > 0).any(dim=1), sick


def note_domains(batch: dict[str, Any], labels: tuple[str, ...]) -> dict[str, Any]:
    """A batch that is still on the CPU with the places of the films of each domain: `domains`, lists of numbers.

    On a GPU how many there are would have to be waited for in every step.
    """
    healthy, sick = domains(batch["target"], batch["known"], labels)
    places = {"healthy": healthy, "sick": sick}
    return {
        **batch,
        "domains": {n: mine.nonzero().flatten().tolist() for n, mine in places.items()},
    }


def places_of(batch: Mapping[str, Any], labels: tuple[str, ...]) -> dict[Domain, list[int]]:
    """Where in a batch the films of each domain are, as noted or looked up now."""
    noted = batch if "domains" in batch else note_domains(dict(batch), labels)
    found: dict[Domain, list[int]] = noted["domains"]
    return found


def sent(places: list[int], device: torch.device) -> Tensor:
    """Places as int64 [n] on a device that nobody waits for."""
    return torch.tensor(places, dtype=torch.int64).to(device, non_blocking=True)


def signed(image: Tensor, channels: int = 1) -> Tensor:
    """Films [B, 1, S, S], uint8 or in [0, 1], as generators read them: [B, C, S, S] in [-1, 1]."""
    return (to_unit(image) * 2 - 1).expand(-1, channels, -1, -1)


def grey(image: Tensor) -> Tensor:
    """What generators make, [B, C, S, S] in [-1, 1], as films [B, 1, S, S] in [0, 1]; float32."""
    return (image.float().mean(dim=1, keepdim=True) + 1) / 2


class Translators:
    """Two frozen generators, [B, C, S, S] in [-1, 1] to the same."""

    def __init__(self, params: GeneratorParams, to_healthy: nn.Module, to_sick: nn.Module) -> None:
        self.params = params
        self.to_healthy = to_healthy.eval().requires_grad_(False)
        self.to_sick = to_sick.eval().requires_grad_(False)

    def to(self, device: str | torch.device) -> "Translators":
        """Both generators on a device."""
        self.to_healthy.to(device)
        self.to_sick.to(device)
        return self

    def towards(self, domain: Domain) -> nn.Module:
        """The generator of films of a domain."""
        return self.to_healthy if domain == "healthy" else self.to_sick

    def translate(self, image: Tensor, domain: Domain) -> Tensor:
        """Films [B, 1, S, S], uint8 or in [0, 1], as films of a domain [B, 1, S, S] in [0, 1]."""
        made: Tensor = self.towards(domain)(signed(image, self.params.channels))
        return grey(made)


def load_translators(params: GeneratorParams, folder: Path, device: str = "cpu") -> Translators:
    """The generators of a training's artefact; DataError when they are others than `params` says."""
    weights = weights_in(folder)
    nets = []
    for name in ("to_healthy", "to_sick"):
        state = {
            n.removeprefix(f"{name}."): t for n, t in weights.items() if n.startswith(f"{name}.")
        }
        net = params.build()
        load_whole(net, state, source=f"generator {name} of {folder}")
        nets.append(net)
    return Translators(params, *nets).to(device)


class FilmParams(Frozen):
    """Which generators, and how films are read for them: squeezed to a square of a side, or the middle of each.

    The middle is the square in the middle of a film whose short side is `size`, for generators that were trained on
    films that kept their shapes.
    """

    generator: GeneratorParams = GeneratorParams()
    size: int = Field(256, ge=SCALE, multiple_of=SCALE)
    keep_aspect: bool = Field(False, exclude_if=unless_set)

    @property
    def reading(self) -> Reading:
        """As data sets know it."""
        return "centre" if self.keep_aspect else "squeeze"


class TranslateParams(FilmParams):
    """And of which domain films are made."""

    towards: Domain = "healthy"


class Translate(Transformation):
    """Every film made healthy (or sick): a `transform` stage with the input `translators`.

    Every film, the healthy too, because a transform knows no labels.
    """

    name = "translate"
    version = 1
    Params = TranslateParams
    params: TranslateParams

    def __init__(self, params: TranslateParams) -> None:
        self.params = params
        self.device = "cpu"
        self.translators: Translators | None = None

    def image_size(self) -> int:
        return self.params.size

    def reading(self) -> Reading:
        return self.params.reading

    def open(self, inputs: Mapping[str, Path], device: str) -> None:
        self.device = device
        self.translators = load_translators(self.params.generator, inputs["translators"], device)

    def __call__(self, images: Pixels) -> Pixels:
        assert self.translators is not None
        made = []
        for start in range(0, len(images), AT_ONCE):
            block = torch.from_numpy(images[start : start + AT_ONCE]).unsqueeze(1)
            made.append(self.translators.translate(block.to(self.device), self.params.towards))
        return to_pixels(torch.cat(made))


def to_pixels(film: Tensor) -> Pixels:
    """Films [B, 1, S, S] in [0, 1] to uint8 [B, S, S]; DataError when a generator made no number."""
    if not bool(torch.isfinite(film).all()):
        raise DataError("a generator made pixels that are no numbers")
    rounded: Any = film.squeeze(1).mul(255).round().clamp(0, 255).byte().cpu().numpy()
    return np.asarray(rounded, dtype=np.uint8)
