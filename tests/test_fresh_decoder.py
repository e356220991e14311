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
STEPS = 40
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
    for found in (hiding, honest):
        assert found["others_error"] < found["unchanged"], "both decoders have learned"


def test_each_domain_has_its_decoder_and_a_lacking_one_stays(trained: Any) -> None:
    torch.manual_seed(0)
    module = FreshDecoder(PARAMS, LABELS)
    module.translators = Translators(TINY, nn.Identity(), Blurs(2.0))
    batch = a_batch(drawn(3, 4), [False, True, True, True])
    pairs = module.pairs(batch)
    assert [len(film) for film, _ in pairs.values()] == [1, 3]
    film, made = pairs["sick"]
    torch.testing.assert_close(made, film)  # sick films go through what makes healthy ones
    assert (pairs["healthy"][1] - pairs["healthy"][0]).abs().mean() > 0.01
    module.training_step(a_batch(drawn(3, 4), [True] * 4), 0).backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name  # both take part in every step, as DDP needs
    assert module.of_healthy.head.weight.grad.abs().sum() == 0  # type: ignore[union-attr]
    assert module.of_sick.head.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_it_learns_under_noise_and_is_measured_without() -> None:
    module = FreshDecoder(PARAMS, LABELS)
    module.translators = Translators(TINY, nn.Identity(), nn.Identity())
    batch = a_batch(drawn(3, 8), [True] * 8)
    # A residual U-Net begins as the identity, so the loss is the mean size of the noise.
    loss = float(module.training_step(batch, 0).detach())
    assert loss == pytest.approx(PARAMS.noise / 255 * np.sqrt(2 / np.pi), rel=0.1)
    module.eval()
    module.validation_step(batch, 0)
    assert float(module._validation[0][:, 1].detach().abs().max()) < 1e-6
    unknown = batch | {"known": torch.zeros(8, 1, dtype=torch.bool)}
    module.validation_step(unknown, 0)
    assert module._validation[1][:, 1].isnan().all()


def test_decoders_are_loaded_or_refused(trained: Any, tmp_path: Path) -> None:
    module = trained["hides"]
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    loaded = load_decoders(PARAMS, tmp_path, "cpu")
    made = torch.rand(2, 1, SIDE, SIDE)
    for domain, net in loaded.items():
        torch.testing.assert_close(net(made), module.decoder(domain)(made))
    with pytest.raises(DataError, match="decoder of healthy films"):
        load_decoders(PARAMS.model_copy(update={"width": 16}), tmp_path, "cpu")
    save_file({"x": made}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="no decoder of healthy films"):
        load_decoders(PARAMS, tmp_path, "cpu")


def test_the_report_has_their_gap(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = drawn(1, 12)[:, 0].numpy()
    folder = tmp_path / "decoders"
    folder.mkdir()
    save_file(trained["hides"].state_dict(), folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)  # the report's inputs are named by themselves
    nets = {"translators": PAIRS["hides"], "decoders": PAIRS["hides"]}
    facts = report_of(pixels, nets, tmp_path / "out", monkeypatch, decoders=PARAMS)
    assert facts["sick"]["fresh_decoder"]["hidden"] > 0.02
    assert facts["sick"]["fresh_decoder"]["films"] == 6


def test_sides_that_the_generators_do_not_make_are_refused() -> None:
    for change in ({"size": 16}, {"size": 64, "load": 64}):
        with pytest.raises(ConfigError, match=r"must be films\.size 32, a multiple of 16"):
            DecoderParams.parse(PARAMS.model_dump() | {"recipe": RECIPE.model_dump() | change}, where="x")  # fmt: skip


def test_sides_of_no_u_net_name_the_option() -> None:
    change = {"fresh_decoder": 2, "translators": {"recipe": {"size": 36, "load": 36}}}
    params = CycleGAN.resolve("quick", change, {}, where="x")
    with pytest.raises(
        ConfigError, match=r"params.fresh_decoder \(0 for none\).*36.*multiple of 16"
    ):
        CycleGAN.analyses(VIEW, params, CycleGAN.stages(VIEW, params))


def test_it_is_made_where_it_is_asked_for() -> None:
    def inputs(preset: Any, **change: Any) -> Any:
        params = CycleGAN.resolve(preset, change, {}, where="x")
        model = CycleGAN.stages(VIEW, params)
        return CycleGAN.analyses(VIEW, params, model)["steganography"], model

    report, model = inputs("quick")
    assert "decoders" not in report.inputs
    report, model = inputs("quick", fresh_decoder=2)
    stage = report.inputs["decoders"]
    assert stage.part == "train"
    assert stage.params["recipe"]["epochs"] == 2
    assert stage.inputs["translators"].digest == model.inputs["translators"].digest
    assert report.params["decoders"] == stage.params
    assert find_leaks(score(predict(model, VIEW), replicates=0, seed=0)) == []
    paper = inputs("paper")[0].inputs["decoders"]
    assert paper.params["recipe"]["epochs"] == 20
    assert paper.params["films"]["keep_aspect"]
    assert FreshDecoder.reading(DecoderParams.parse(dict(paper.params), where="x")) == "centre"
