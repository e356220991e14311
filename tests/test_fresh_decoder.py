"""Decoders that know no secret: they read less than a pair that hides, and no less than a pair that does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_steganography import Blurs, Hides, Reads, Sharpens, report_of
from torch import Tensor, nn

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.spec import Recipe
from cxrbench.core.stage import DataView, find_leaks, predict, score
from cxrbench.data.painter import paint_image, sample_cohort
from cxrbench.methods.cyclegan import CycleGAN
from cxrbench.methods.fresh_decoder import DecoderParams, FreshDecoder, load_decoders
from cxrbench.methods.steganography_tests import fresh_decoder
from cxrbench.methods.translation import FilmParams, GeneratorParams, Translators

SIDE = 32
STEPS = 120
LABELS = ("Edema",)
TINY = GeneratorParams(channels=1, width=4, blocks=1)
RECIPE = Recipe(size=SIDE, load=SIDE, batch_size=8, epochs=1, learning_rate=3e-3)
PARAMS = DecoderParams(films=FilmParams(generator=TINY, size=SIDE), width=8, recipe=RECIPE)
VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="r", split="cv5", split_digest="s", fold=0,
    labels=LABELS,
)  # fmt: skip


def drawn(seed: int, count: int) -> Tensor:
    cohort = sample_cohort(count, seed=seed, enrichment=3)
    return torch.from_numpy(np.stack([paint_image(study, SIDE) for study in cohort]))[:, None]


def a_batch(image: Tensor, sick: list[bool]) -> Any:
    return {
        "image": image,
        "target": torch.tensor([[float(s)] for s in sick]),
        "known": torch.ones(len(sick), 1, dtype=torch.bool),
        "row": torch.arange(len(sick)),
    }


def decoders_of(there: nn.Module) -> FreshDecoder:
    """Decoders trained by their own steps on drawn films that `there` translated, both ways."""
    torch.manual_seed(0)
    module = FreshDecoder(PARAMS, LABELS)
    module.translators = Translators(TINY, there, there)
    films = drawn(7, 64)
    adam = torch.optim.Adam(module.parameters(), lr=RECIPE.learning_rate)
    for step in range(STEPS):
        rows = torch.randperm(len(films), generator=torch.Generator().manual_seed(step))[:8]
        adam.zero_grad()
        module.training_step(a_batch(films[rows], [False] * 1 + [True] * 7), step).backward()
        adam.step()
    return module.eval()


PAIRS = {"hides": (Hides(8), Reads(8)), "honest": (Blurs(1.0), Sharpens(1.0))}


@pytest.fixture(scope="module")
def trained() -> dict[str, FreshDecoder]:
    return {name: decoders_of(there) for name, (there, _) in PAIRS.items()}


def gap(module: FreshDecoder, pair: tuple[nn.Module, nn.Module]) -> dict[str, Any]:
    films = drawn(8, 24) / 127.5 - 1
    with torch.no_grad():
        made = pair[0](films)
        shown = ((one + 1) / 2 for one in (made, pair[1](made), films))
        return fresh_decoder(module.of_sick, *shown)


def test_what_was_hidden_shows_as_a_gap_and_honesty_has_none(trained: Any) -> None:
    hiding, honest = (gap(trained[name], pair) for name, pair in PAIRS.items())
    assert hiding["error"] < 1e-4, "the pair reads its own films back"
    assert hiding["hidden"] > 0.02
    assert honest["hidden"] < 0.002
    print(hiding, honest)
