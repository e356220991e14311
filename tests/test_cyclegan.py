"""CycleGAN: its step against the published one, what a lacking domain does, pools, schedule, and the score."""

import copy
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import cxrbench.methods.cyclegan_training as source
from cxrbench.core.digest import digest_file
from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, Execution, Recipe
from cxrbench.core.stage import DataView, find_leaks, fit, predict, score
from cxrbench.core.store import Store, write_json
from cxrbench.methods.cyclegan import CycleGAN, CycleGANParams
from cxrbench.methods.cyclegan_augmented import AugmentedParams, CycleGANAugmented
from cxrbench.methods.cyclegan_training import CycleGANTraining, TrainingParams, as_constant
from cxrbench.methods.densenet121 import BackboneClassifier, BackboneParams, DenseNet121
from cxrbench.methods.translation import (
    GeneratorParams,
    Translate,
    TranslateParams,
    Translators,
    domains,
    grey,
    load_translators,
    signed,
    to_pixels,
)
from cxrbench.nn.image_pool import ImagePool
from cxrbench.runner.bench import plan_bench
from cxrbench.runner.graph import to_json

LABELS = ("Edema", "Mass")
SIDE = 32
TINY = GeneratorParams(channels=1, width=4, blocks=1)
RECIPE = Recipe(size=SIDE, load=SIDE, batch_size=4, learning_rate=1e-2)
VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="r", split="cv5", split_digest="s", fold=0,
    labels=LABELS,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def training(**change: Any) -> CycleGANTraining:
    params = TrainingParams(
        **{"generator": TINY, "judge_width": 4, "pool": 0, "recipe": RECIPE, **change}
    )
    torch.manual_seed(0)
    return CycleGANTraining(params, LABELS)


def a_batch(sick: list[bool], seed: int = 0, known: bool = True) -> Any:
    random = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(
            0, 256, (len(sick), 1, SIDE, SIDE), generator=random, dtype=torch.uint8
        ),
        "target": torch.tensor([[0.0, float(s)] for s in sick]),
        "known": torch.full((len(sick), 2), known),
        "row": torch.arange(len(sick)),
    }


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


# --- which film is of which domain


def test_domains_by_what_is_known() -> None:
    labels = ("Edema", "Mass")
    cases = {  # (target, known) -> healthy, sick
        ((0, 0), (1, 1)): (True, False),
        ((0, 1), (1, 1)): (False, True),
        ((0, 0), (1, 0)): (True, False),
        ((1, 0), (0, 0)): (False, False),
        ((0.3, 0), (1, 1)): (False, False),
        ((0.3, 1), (1, 1)): (False, True),
    }
    for (target, known), wanted in cases.items():
        healthy, sick = domains(torch.tensor([target]), torch.tensor([known]), labels)
        assert (bool(healthy), bool(sick)) == wanted, (target, known)


def test_no_finding_says_healthy() -> None:
    target = torch.tensor([[1.0, 0], [0, 0], [1, 1], [0, 1]])
    known = torch.ones(4, 2)
    healthy, sick = domains(target, known, ("No Finding", "Edema"))
    assert healthy.tolist() == [True, False, False, False]
    assert sick.tolist() == [False, False, True, True]


# --- the step


def generator_loss(made: Tensor) -> Tensor:
    return (made - 1).square().mean()


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    return ((real - 1).square().mean() + made.square().mean()) / 2


def published_step(nets: CycleGANTraining, optimisers: Any, batch: Any) -> None:
    """As the published code goes: generators by their Adam, judges frozen; then the judges by theirs."""
    healthy, sick = (nets.films(batch)[d] for d in ("healthy", "sick"))
    judges = [*nets.judge_healthy.parameters(), *nets.judge_sick.parameters()]
    for p in judges:
        p.requires_grad_(False)
    made_healthy, made_sick = nets.to_healthy(sick), nets.to_sick(healthy)
    loss = generator_loss(nets.judge_healthy(made_healthy)) + generator_loss(
        nets.judge_sick(made_sick)
    )
    loss = loss + 10 * (nets.to_sick(made_healthy) - sick).abs().mean()
    loss = loss + 10 * (nets.to_healthy(made_sick) - healthy).abs().mean()
    loss = loss + 5 * (nets.to_healthy(healthy) - healthy).abs().mean()
    loss = loss + 5 * (nets.to_sick(sick) - sick).abs().mean()
    optimisers[0].zero_grad()
    loss.backward()
    optimisers[0].step()
    for p in judges:
        p.requires_grad_(True)
    optimisers[1].zero_grad()
    found = discriminator_loss(
        nets.judge_healthy(healthy), nets.judge_healthy(made_healthy.detach())
    )
    found = found + discriminator_loss(nets.judge_sick(sick), nets.judge_sick(made_sick.detach()))
    found.backward()
    optimisers[1].step()


def test_one_optimiser_steps_as_the_published_two() -> None:
    ours = training()
    theirs = copy.deepcopy(ours)
    one = ours.configure_optimizers()["optimizer"]
    assert one.param_groups[0]["betas"] == (0.5, 0.999)
    generators = [*theirs.to_healthy.parameters(), *theirs.to_sick.parameters()]
    judges = [*theirs.judge_healthy.parameters(), *theirs.judge_sick.parameters()]
    options: Any = {"lr": RECIPE.learning_rate, "betas": (0.5, 0.999)}
    two = torch.optim.Adam(generators, **options), torch.optim.Adam(judges, **options)
    for seed in range(3):
        batch = a_batch([True, False, False, True], seed)
        one.zero_grad()
        ours.training_step(batch, 0)["loss"].backward()
        one.step()
        published_step(theirs, two, batch)
    start = dict(training().named_parameters())
    for name, p in ours.named_parameters():
        other = dict(theirs.named_parameters())[name]
        if not name.endswith("bias"):  # before a norm a bias has no gradient but rounding
            assert not torch.equal(p, start[name]), name
            torch.testing.assert_close(p, other, rtol=1e-3, atol=2e-4, msg=name)


class Times(nn.Module):
    """A generator, or a judge, that multiplies."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def by_hand(**change: Any) -> CycleGANTraining:
    module = training(**change)
    module.to_healthy, module.to_sick = Times(0.5), Times(0.8)
    module.judge_healthy, module.judge_sick = Times(2.0), Times(3.0)
    return module


def test_the_terms_of_a_domain_by_hand() -> None:
    module = by_hand()
    x = torch.linspace(-1, 1, 2 * SIDE * SIDE).view(2, 1, SIDE, SIDE)
    sick, healthy = module.terms("sick", x), module.terms("healthy", x)
    expected = {
        "adversarial": (2 * 0.5 * x - 1).square().mean(),
        "cycle": (0.8 * 0.5 * x - x).abs().mean(),
        "identity": (0.8 * x - x).abs().mean(),
        "judges": ((3 * x - 1).square().mean() + (2 * 0.5 * x).square().mean()) / 2,
    }
    for name, value in expected.items():
        torch.testing.assert_close(sick[name], value)
    torch.testing.assert_close(healthy["identity"], (0.5 * x - x).abs().mean())
    torch.testing.assert_close(healthy["adversarial"], (3 * 0.8 * x - 1).square().mean())
    sick["adversarial"].backward()
    assert module.judge_healthy.factor.grad is None, "the generators' loss trains a judge"
    assert module.to_healthy.factor.grad is not None
    module.zero_grad()
    sick["judges"].backward()
    assert module.to_healthy.factor.grad is None, "the judges' loss trains a generator"
    assert module.judge_healthy.factor.grad is not None
    assert module.judge_sick.factor.grad is not None


def test_the_weights_of_the_terms() -> None:
    batch = a_batch([True, False])
    found = by_hand(cycle_weight=7.0, identity_weight=0.25).training_step(batch, 0)
    expected = (
        found["adversarial"] + 7 * (found["cycle"] + 0.25 * found["identity"]) + found["judges"]
    )
    torch.testing.assert_close(found["loss"].detach(), expected)
    assert found["lacking"] == 0
    assert all(not v.requires_grad for n, v in found.items() if n != "loss")


@pytest.mark.parametrize("sick", [True, False])
def test_a_batch_without_a_domain_trains_all_networks_and_is_counted(sick: bool) -> None:
    module = training()
    found = module.training_step(a_batch([sick, sick]), 0)
    assert found["lacking"] == 1
    found["loss"].backward()
    assert all(p.grad is not None for p in module.parameters())
    moved = {n.partition(".")[0] for n, g in gradients(module).items() if g.abs().max() > 1e-6}
    assert moved == {"to_healthy", "to_sick", "judge_healthy", "judge_sick"}


def test_the_terms_of_a_lacking_domain_are_those_of_the_films_that_are_there() -> None:
    mixed, batch = training(), a_batch([True, False, False])
    only = {name: value[1:] for name, value in batch.items()}
    healthy = mixed.training_step(only, 0)
    sick = mixed.training_step({name: value[:1] for name, value in batch.items()}, 0)
    both = mixed.training_step(batch, 0)
    torch.testing.assert_close(both["loss"], healthy["loss"] + sick["loss"])


def test_a_batch_of_which_nothing_is_known_moves_nothing() -> None:
    module = training()
    found = module.training_step(a_batch([True, False], known=False), 0)
    found["loss"].backward()
    assert found["loss"] == 0
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("ranks", [([True, False], [False, False]), ([True, True], [False, True])])
def test_the_mean_over_ranks_is_the_step_of_the_global_batch(
    ranks: tuple[list[bool], list[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What DDP does, with the ranks one after the other; `slow` has the real thing."""
    module, batch = training(), a_batch([*ranks[0], *ranks[1]])
    whole = module.training_step(batch, 0)["loss"]
    whole.backward()
    wanted = gradients(module)
    module.zero_grad()
    total = torch.tensor([4.0 - sum(sum(r) for r in ranks), float(sum(sum(r) for r in ranks))])
    monkeypatch.setattr(source, "shares_of", lambda counts: (counts * 2 / total, total == 0))
    losses = []
    for half in (slice(0, 2), slice(2, 4)):
        loss = (
            module.training_step({name: value[half] for name, value in batch.items()}, 0)["loss"]
            / 2
        )
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(sum(losses), whole.detach())
    for name, gradient in gradients(module).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


# --- options


def test_noise_goes_on_the_made_film_before_it_goes_back() -> None:
    x = torch.rand(1, 1, SIDE, SIDE)
    module = by_hand(noise=0.3)
    torch.manual_seed(1)
    noisy = module.terms("sick", x)
    torch.manual_seed(1)
    z = torch.randn(1, 1, SIDE, SIDE)
    torch.testing.assert_close(noisy["cycle"], (0.8 * (0.5 * x + 0.3 * z) - x).abs().mean())
    plain = by_hand().terms("sick", x)
    for name in ("adversarial", "identity", "judges"):
        torch.testing.assert_close(noisy[name], plain[name])


class First(nn.Module):
    """A guessing judge that shows what stood first in the pair."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, pair: Tensor) -> Tensor:
        return pair[:, :1] * self.factor


def test_the_guessing_judge_sees_pairs_in_random_order() -> None:
    module = by_hand(guess_weight=2.0)
    module.judge_cycle = First()
    film, again = torch.ones(64, 1, SIDE, SIDE), torch.zeros(64, 1, SIDE, SIDE, requires_grad=True)
    torch.manual_seed(0)
    found = module._guesses(film, again)
    assert found["told"] == 0, "1 where the film stands first, 0 where the reconstruction does"
    assert found["fooled"] == 1, "the generators want the other answer"
    torch.manual_seed(0)
    first = torch.rand(64) < 0.5
    assert 16 < int(first.sum()) < 48
    found["told"].backward()
    assert again.grad is None, "the judge's own loss trains the generators"
    module.zero_grad()
    found["fooled"].backward()
    assert again.grad is not None
    assert again.grad.any()
    assert module.judge_cycle.factor.grad is None


def test_the_guess_has_its_weight_for_the_generators_alone() -> None:
    found = training(guess_weight=2.0).training_step(a_batch([True, False]), 0)
    cycle = 10 * (found["cycle"] + 0.5 * found["identity"])
    expected = found["adversarial"] + cycle + found["judges"] + 2 * found["guess"]
    torch.testing.assert_close(found["loss"].detach(), expected)
    assert found["guess"] > 0


def test_sides_that_no_generator_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 4"):
        TrainingParams.parse({"recipe": {"size": 30}}, where="test")


# --- pools


def test_pools_travel_with_the_state_and_the_rest_is_the_same_to_the_bit() -> None:
    def go(module: CycleGANTraining, optimiser: Any, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            optimiser.zero_grad()
            module.training_step(a_batch([True, False, True, False], step), 0)["loss"].backward()
            optimiser.step()

    class Alone:
        world_size, global_rank = 1, 0

    whole, broken, resumed = (training(pool=3, noise=0.1) for _ in range(3))
    one, two, three = (m.configure_optimizers()["optimizer"] for m in (whole, broken, resumed))
    go(whole, one, range(6))
    go(broken, two, range(3))
    for module in (broken, resumed):
        module._trainer = Alone()
    checkpoint: dict[str, Any] = {}
    broken.on_save_checkpoint(checkpoint)
    assert [len(state) for state in checkpoint["pools"][0].values()] == [3, 3]
    resumed.load_state_dict(broken.state_dict())
    three.load_state_dict(two.state_dict())
    resumed.on_load_checkpoint(checkpoint)
    go(resumed, three, range(3, 6))
    for (name, p), q in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_each_rank_takes_its_own_pools_from_a_state() -> None:
    pools = [{d: torch.full((1, 1, 2, 2), float(r)) for d in ("healthy", "sick")} for r in range(2)]
    for rank, wanted in ((0, 0.0), (1, 1.0), (2, 0.0)):

        class Here:
            world_size, global_rank = 4, rank

        module = training(pool=2)
        module._trainer = Here()
        module.on_load_checkpoint({"pools": pools})
        assert module.pools["sick"].state().unique().tolist() == [wanted]


def test_made_films_are_exchanged_and_real_ones_are_not() -> None:
    module = by_hand(pool=5)
    x = torch.ones(2, 1, SIDE, SIDE)
    module.terms("sick", x)
    assert (len(module.pools["healthy"]), len(module.pools["sick"])) == (2, 0)
    assert module.pools["healthy"].state().unique().tolist() == [0.5]
    assert isinstance(module.pools["sick"], ImagePool)


# --- precision


def test_losses_are_finite_float32_under_bf16() -> None:
    module = training(pool=2, guess_weight=2.0)
    optimiser = module.configure_optimizers()["optimizer"]
    for step in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = module.training_step(a_batch([True, False], step), 0)
        assert {v.dtype for v in found.values()} == {torch.float32}
        optimiser.zero_grad()
        found["loss"].backward()
        optimiser.step()
        assert all(torch.isfinite(v) for v in found.values())
    assert all(torch.isfinite(p).all() for p in module.parameters())


# --- schedule and choice


def rates(module: CycleGANTraining, epochs: int) -> list[float]:
    found = module.configure_optimizers()
    optimiser, schedule = found["optimizer"], found["lr_scheduler"]
    assert schedule["interval"] == "epoch"
    seen = []
    for _ in range(epochs):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule["scheduler"].step()
    return seen


def test_the_rate_is_constant_and_then_falls_by_the_published_rule() -> None:
    recipe = RECIPE.model_copy(update={"epochs": 200, "learning_rate": 2e-4})
    seen = rates(training(recipe=recipe), 200)
    expected = [2e-4 * (1 - max(0, e + 1 - 100) / 101) for e in range(200)]
    assert seen == pytest.approx(expected, rel=1e-9)
    assert seen[99] == 2e-4 > seen[100] > seen[199] > 0
    level = rates(training(recipe=recipe, constant_share=1.0), 200)
    assert set(level) == {2e-4}


def test_another_schedule_of_the_recipe_is_that_of_every_method() -> None:
    module = training(recipe=RECIPE.model_copy(update={"schedule": "cosine"}))
    found = module.configure_optimizers()
    assert found["lr_scheduler"]["interval"] == "step"
    assert found["optimizer"].param_groups[0]["betas"] == (0.5, 0.999)
    sgd = training(recipe=RECIPE.model_copy(update={"optimizer": "sgd"})).configure_optimizers()
    assert "betas" not in sgd["optimizer"].param_groups[0]


def test_validation_gives_the_cycle_s_error_of_each_film_once_and_the_last_epoch_wins() -> None:
    module = by_hand()
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore

    class Here:
        world_size, global_rank, current_epoch = 1, 0, 7

    module._trainer = Here()
    batch, unknown = a_batch([True, False]), a_batch([True], seed=1, known=False)
    unknown["row"] = torch.tensor([9])
    for part in (batch, unknown, {name: value[:1] for name, value in batch.items()}):
        module.validation_step(part, 0)
    module.on_validation_epoch_end()
    film = signed(batch["image"])
    assert logged["val_loss"] == pytest.approx(float((0.4 * film - film).abs().mean()), rel=1e-5)
    assert logged["val_epoch"] == 7
    assert module.monitor == "val_epoch"
    module.validation_step(unknown, 0)
    with pytest.raises(DataError, match="known to be healthy or sick"):
        module.on_validation_epoch_end()


# --- what a trained pair does


def write_training(folder: Path, module: nn.Module) -> Path:
    save_file(
        {n: t.contiguous() for n, t in module.state_dict().items()}, folder / "model.safetensors"
    )
    return folder


def test_films_go_to_the_generators_and_come_back() -> None:
    film = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert signed(film, 3).shape == (1, 3, 16, 16)
    assert (float(signed(film).min()), float(signed(film).max())) == (-1, 1)
    torch.testing.assert_close(grey(signed(film, 3)), film / 255)
    np.testing.assert_array_equal(to_pixels(grey(signed(film, 3))), film[:, 0].numpy())
    with pytest.raises(DataError, match="no numbers"):
        to_pixels(torch.full((1, 1, 4, 4), torch.nan))


@pytest.mark.parametrize("adds", [False, True])
def test_the_generators_of_a_training_are_read_and_frozen(tmp_path: Path, adds: bool) -> None:
    params = TINY.model_copy(update={"adds": adds})
    module = training(generator=params)
    found = load_translators(params, write_training(tmp_path, module))
    x = torch.rand(1, 1, SIDE, SIDE) * 2 - 1
    torch.testing.assert_close(found.to_healthy(x), module.to_healthy(x))
    torch.testing.assert_close(found.to_sick(x), module.to_sick(x))
    assert not any(
        p.requires_grad for p in (*found.to_sick.parameters(), *found.to_healthy.parameters())
    )
    with pytest.raises(DataError, match="to_healthy"):
        load_translators(params.model_copy(update={"blocks": 2}), tmp_path)


def test_a_generator_that_adds_begins_with_the_film_itself() -> None:
    x = torch.rand(2, 1, SIDE, SIDE) * 2 - 1
    adds = TINY.model_copy(update={"adds": True}).build()
    torch.testing.assert_close(adds(x), x)
    adds(x).sum().backward()
    assert adds.net.layers[-2].weight.grad.any()
    assert not torch.allclose(TINY.build()(x), x)


def test_translate_makes_every_film_of_a_domain(tmp_path: Path) -> None:
    module = training()
    films = np.random.default_rng(0).integers(0, 256, (11, SIDE, SIDE), dtype=np.uint8)
    shown = {}
    for towards in ("healthy", "sick"):
        change = Translate(TranslateParams(generator=TINY, size=SIDE, towards=towards))
        assert change.image_size() == SIDE
        change.open({"translators": write_training(tmp_path, module)}, "cpu")
        with torch.inference_mode():
            shown[towards] = change(films)
            wanted = grey(module.generator(towards)(signed(torch.from_numpy(films)[:, None])))
        assert shown[towards].dtype == np.uint8
        np.testing.assert_array_equal(shown[towards], (wanted[:, 0] * 255).round().byte().numpy())
    assert (shown["healthy"] != shown["sick"]).any()


# --- the scored method


def method(**change: Any) -> CycleGAN:
    params = CycleGANParams(
        **{"translators": TrainingParams(generator=TINY, recipe=RECIPE), **change}
    )
    torch.manual_seed(0)
    return CycleGAN(params, LABELS)


@pytest.mark.parametrize("statistic", ["mean", "p95"])
def test_the_residual_by_hand(statistic: str) -> None:
    module = method(statistic=statistic)
    module.to_healthy = Times(0.5)
    film = torch.rand(3, 1, SIDE, SIDE)
    change = np.abs((2 * film.numpy() - 1) * 0.5 / 2).reshape(3, -1)
    wanted = change.mean(1) if statistic == "mean" else np.quantile(change, 0.95, axis=1)
    np.testing.assert_allclose(module.residual(film).numpy(), wanted, rtol=1e-4)
    module = method(statistic=statistic)
    wanted = module.residual(film).numpy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module.residual(film)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_more_change_is_more_probable_for_every_label_whatever_was_fitted() -> None:
    module = method()
    module.to_healthy = Times(0.0)  # the residual is the mean of |film - 1/2|
    with torch.no_grad():
        module.log_slope.copy_(torch.tensor([-2.0, 1.0]))
        module.offset.copy_(torch.tensor([4.0, -1.0]))
    levels = torch.linspace(0.5, 1, 9).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
    found = module.predict_step({"image": levels}, 0)
    assert found.dtype == torch.float64
    assert ((found >= 0) & (found <= 1)).all()
    assert (found.diff(dim=0) > 0).all()
    assert found[-1, 0].item() == pytest.approx(
        1 / (1 + np.exp(-(np.exp(-2) * np.log(0.5) + 4))), 1e-5
    )


def test_the_method_takes_the_generator_of_the_training_and_fits_two_numbers_a_label(
    tmp_path: Path,
) -> None:
    trained, module = training(), method()
    with torch.no_grad():
        for p in trained.to_healthy.parameters():
            p.add_(0.1)
    module.receive({"translators": write_training(tmp_path, trained)})
    for p, q in zip(module.to_healthy.parameters(), trained.to_healthy.parameters(), strict=True):
        assert torch.equal(p, q)
    assert {n for n, p in module.named_parameters() if p.requires_grad} == {"log_slope", "offset"}


@pytest.mark.parametrize("preset", ["paper", "code", "tuned", "quick"])
def test_the_view_and_the_score_share_one_training(preset: Any) -> None:
    params = CycleGAN.resolve(preset, {}, {}, where="x")
    model = CycleGAN.stages(VIEW, params)
    view = CycleGAN.view(VIEW, params)
    assert view.images is not None
    assert view.images.inputs["translators"].digest == model.inputs["translators"].digest
    assert view.images.params["size"] == params.translators.recipe.size
    other = CycleGAN.resolve(preset, {"statistic": "p95"}, {}, where="x")
    found = CycleGAN.stages(VIEW, other)
    assert found.digest != model.digest
    assert found.inputs["translators"].digest == model.inputs["translators"].digest
    below = fit(CycleGAN, view, params)
    assert find_leaks(score(predict(below, VIEW), replicates=0, seed=0)) == []
    assert find_leaks(score(predict(model, replace(VIEW, fold=1)), replicates=0, seed=0))


def test_the_paper_s_recipe() -> None:
    """METHOD_CARDS section 4."""
    paper = CycleGAN.resolve("paper", {}, {}, where="x").translators
    r, g = paper.recipe, paper.generator
    assert (g.channels, g.width, g.blocks, g.resize_conv, g.adds) == (3, 64, 9, False, False)
    assert (paper.judge_width, paper.pool, paper.cycle_weight, paper.identity_weight) == (
        64,
        50,
        10,
        0.5,
    )
    assert (paper.noise, paper.guess_weight, paper.constant_share) == (0, 0, 0.5)
    assert (r.epochs, r.batch_size, r.learning_rate, r.optimizer) == (200, 2, 2e-4, "adam")
    assert (r.size, r.load, r.train_view, r.augment.horizontal_flip) == (
        256,
        283,
        "random_crop",
        0.5,
    )
    assert paper.keep_aspect
    assert r.validation_view == "center_crop"
    assert (r.sampler, r.precision, r.ema_decay) == ("balanced", "32-true", None)
    code = CycleGAN.resolve("code", {}, {}, where="x").translators
    assert (code.recipe.load, code.keep_aspect) == (286, False)
    nets = CycleGANTraining(paper, LABELS)
    counts = [sum(p.numel() for p in net.parameters()) for net in (nets.to_sick, nets.judge_sick)]
    assert counts == [11_378_179, 2_764_737]


def test_the_paper_s_films_keep_their_shape_wherever_they_are_read() -> None:
    params = CycleGAN.resolve("paper", {}, {}, where="x")
    model = CycleGAN.stages(VIEW, params)
    trained = model.inputs["translators"]
    assert CycleGANTraining.reading(params.translators) == "short_side"
    assert CycleGAN.reading(params) == "centre"
    view = CycleGAN.view(VIEW, params)
    assert view.images is not None
    assert (
        Translate(TranslateParams.parse(dict(view.images.params), where="x")).reading() == "centre"
    )
    for stage in CycleGAN.analyses(VIEW, params, model).values():
        assert stage.params["keep_aspect"]
        assert stage.inputs["translators"].digest == trained.digest
    other = CycleGANAugmented.resolve("paper", {}, {}, where="x")
    assert CycleGANAugmented.stages(VIEW, other).inputs["translators"].digest == trained.digest
    squeezed = CycleGAN.resolve("code", {}, {}, where="x")
    assert CycleGANTraining.reading(squeezed.translators) == CycleGAN.reading(squeezed) == "squeeze"
    assert "keep_aspect" not in CycleGAN.stages(VIEW, squeezed).inputs["translators"].params
    with pytest.raises(ConfigError, match=r"train_view must be random_crop and recipe\.validation"):
        change = {"translators": {"keep_aspect": True}}
        CycleGAN.resolve("code", change, {}, where="x")


def test_the_residual_inside_the_lungs() -> None:
    module = method(statistic="lungs")
    module.to_healthy = Times(0.5)
    film = torch.rand(3, 1, SIDE, SIDE)
    mask = torch.zeros(3, 1, SIDE, SIDE, dtype=torch.uint8)
    mask[:, :, :, : SIDE // 2] = 255
    change = ((2 * film - 1) * 0.5 / 2).abs()[:, 0, :, : SIDE // 2].flatten(1).mean(1)
    torch.testing.assert_close(module.residual(film, mask), change)
    batch: Any = {"image": film, "mask": mask}
    whole = method()
    whole.to_healthy = Times(0.5)
    expected = torch.sigmoid(change.log()[:, None].expand(-1, 2).double())
    torch.testing.assert_close(module.predict_step(batch, 0), expected)
    assert not torch.allclose(whole.predict_step(batch, 0), expected)
    assert CycleGAN.reads_masks(module.params)
    assert not CycleGAN.reads_masks(whole.params)
    with pytest.raises(DataError, match="without masks of the lungs"):
        module.predict_step({"image": film}, 0)  # type: ignore[typeddict-item]
    mask[1] = 0
    with pytest.raises(DataError, match="shows no lung"):
        module.residual(film, mask)


def test_a_judge_as_a_constant_scores_the_same() -> None:
    module = training()
    x = torch.rand(1, 1, SIDE, SIDE, requires_grad=True)
    torch.testing.assert_close(as_constant(module.judge_sick, x), module.judge_sick(x))
    as_constant(module.judge_sick, x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in module.judge_sick.parameters())


# --- what is measured beside the score


@pytest.mark.parametrize("preset", ["paper", "tuned", "quick"])
def test_analyses_read_the_same_pair_and_the_baseline(preset: Any) -> None:
    params = CycleGAN.resolve(preset, {}, {"epochs": 3}, where="x")
    model = CycleGAN.stages(VIEW, params)
    found = CycleGAN.analyses(VIEW, params, model)
    assert set(found) == {"translation", "steganography"}
    for stage in found.values():
        assert stage.part == "test"
        assert stage.inputs["translators"].digest == model.inputs["translators"].digest
        assert stage.params["generator"] == params.translators.generator.model_dump()
        assert stage.params["size"] == params.translators.recipe.size
    baseline = DenseNet121.stages(VIEW, DenseNet121.resolve(preset, {}, {"epochs": 3}, where="x"))
    assert found["translation"].inputs["classifier"].digest == baseline.digest
    assert "other" not in found["steganography"].inputs


def test_the_independent_decoder_is_the_same_training_from_another_seed() -> None:
    params = CycleGAN.resolve("quick", {"second_pair": True}, {}, where="x")
    model = CycleGAN.stages(VIEW, params)
    pair = CycleGAN.analyses(VIEW, params, model)["steganography"].inputs
    assert pair["other"].seed != pair["translators"].seed
    assert (
        replace(pair["other"], seed=pair["translators"].seed).digest == pair["translators"].digest
    )


# --- a classifier trained with made films


class Constant(nn.Module):
    """A generator that makes the same grey of every film."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.level)


def augmented(labels: tuple[str, ...], **change: Any) -> CycleGANAugmented:
    fields = {"backbone": "resnet10t", "pretrained": "none", "share": 1.0, "recipe": RECIPE}
    gan = TrainingParams(generator=TINY, recipe=RECIPE)
    torch.manual_seed(0)
    module = CycleGANAugmented(AugmentedParams(**{**fields, "translators": gan, **change}), labels)
    module.translators = Translators(TINY, Constant(-1.0), Constant(1.0))  # healthy 0, sick 1
    return module


def mixed(target: list[list[float]], known: list[list[int]]) -> Any:
    image = torch.full((len(target), 1, SIDE, SIDE), 128, dtype=torch.uint8)
    return {"image": image, "target": torch.tensor(target), "known": torch.tensor(known).bool()}


def test_labels_follow_made_films_where_there_is_one() -> None:
    batch = mixed([[1.0], [0.0], [0.0]], [[1], [1], [0]])
    image, target, known, made = augmented(("Edema",)).augmented(batch)
    assert image.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.0, 1.0, 128 / 255])
    assert target[:, 0].tolist() == [0, 1, 0]
    assert known[:, 0].tolist() == [True, True, False]
    assert made.tolist() == [True, True, False]
    assert batch["target"].tolist() == [[1], [0], [0]], "the batch itself was changed"
    found = augmented(("No Finding",)).augmented(mixed([[1.0]], [[1]]))
    assert (float(found[0].mean()), float(found[1])) == (1, 0), "a healthy film made sick"


def test_of_several_labels_nobody_knows_which_a_film_made_sick_has() -> None:
    batch = mixed([[1.0, 0.0], [0.0, 0.0]], [[1, 0], [1, 1]])
    image, target, known, made = augmented(("Edema", "Mass")).augmented(batch)
    assert image.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.0, 128 / 255])
    assert target.tolist() == [[0, 0], [0, 0]]
    assert known.all()
    assert made.tolist() == [True, False]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_the_films_is_made(share: float) -> None:
    made = augmented(("Edema",), share=share).augmented(mixed([[1.0]] * 400, [[1]] * 400))[3]
    assert float(made.float().mean()) == pytest.approx(share, abs=0.08)


def test_the_classifier_alone_is_kept_and_begins_as_the_baseline() -> None:
    module = augmented(LABELS)
    torch.manual_seed(0)
    params = {name: getattr(module.params, name) for name in BackboneParams.model_fields}
    baseline = BackboneClassifier(BackboneParams(**params), LABELS)
    for (name, p), q in zip(
        module.state_dict().items(), baseline.state_dict().values(), strict=True
    ):
        assert torch.equal(p, q), name


def test_made_films_come_from_the_pair_of_the_same_fold() -> None:
    params = CycleGANAugmented.resolve("quick", {}, {}, where="x")
    model = CycleGANAugmented.stages(VIEW, params)
    scored = CycleGAN.stages(VIEW, CycleGAN.resolve("quick", {}, {}, where="x"))
    assert model.inputs["translators"].digest == scored.inputs["translators"].digest


def test_the_augmented_classifier_takes_the_trained_pair(tmp_path: Path) -> None:
    module = augmented(LABELS)
    trained = training()
    module.receive({"translators": write_training(tmp_path, trained)})
    x = torch.rand(1, 1, SIDE, SIDE)
    torch.testing.assert_close(module.translators.to_sick(x), trained.to_sick(x))


# --- by real workers


def job_of(home: Path, **change: Any) -> tuple[Store, str, Callable[..., Path]]:
    """A tiny training on the phantom: its store, its key, and what writes a job of it for a worker."""
    store, registry = Store(home), Registry()
    gan = {
        "generator": {"width": 4, "blocks": 1},
        "judge_width": 4,
        # Slowly: rounding alone makes two trainings part after a dozen of Adam's larger steps.
        "recipe": {"epochs": 2, "batch_size": 8, "size": 32, "load": 32, "learning_rate": 2e-5},
        **change,
    }
    spec = {
        "name": "gan",
        "preset": "quick",
        "methods": [{"name": "cyclegan", "params": {"translators": gan}}],
        "datasets": [{"name": "phantom", "split": "holdout", "params": {"images": 80}}],
    }
    plan = plan_bench(BenchSpec.parse(spec, where="test"), registry, store, "cpu")
    stage = next(s for s in plan.graph.values() if s.name == "cyclegan-training")

    def write(**execution: Any) -> Path:
        path = store.folder("jobs") / "job.json"
        content = {
            "store": str(store.root),
            "todo": [stage.digest],
            "nodes": to_json(plan.graph),
            "roots": {"phantom": None},
            "plugins": [],
            "execution": Execution(threads=1, **execution).model_dump(mode="json"),
        }
        write_json(path, content)
        return path

    return store, stage.key, write


def begin(job: Path) -> "subprocess.Popen[bytes]":
    with job.with_suffix(".log").open("ab") as log:
        command = [sys.executable, "-m", "cxrbench.runner.worker", str(job)]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def curves(store: Store, key: str) -> dict[str, list[float]]:
    with (store.artefact(key) / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    found = []
    for devices in (1, 2):
        store, key, write = job_of(tmp_path / str(devices), pool=0)
        job = write(devices=devices)
        assert begin(job).wait(500) == 0, job.with_suffix(".log").read_text()
        found.append(curves(store, key))
    one, two = found
    assert one["train_lacking"] == two["train_lacking"]
    terms = ("loss", "adversarial", "cycle", "identity", "judges")
    for name in (*(f"train_{term}" for term in terms), "val_loss"):
        assert two[name] == pytest.approx(one[name], rel=3e-4), name
        assert len(set(one[name])) == 2, f"{name} does not move"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_interrupted_in_mid_training_goes_on_bit_identically(tmp_path: Path, devices: int) -> None:
    options = {"pool": 6, "noise": 0.1}
    whole, key, write = job_of(tmp_path / "whole", **options)
    assert begin(write(devices=devices)).wait(500) == 0
    store, _, write = job_of(tmp_path / "killed", **options)
    job = write(devices=devices, checkpoint_steps=2, checkpoint_seconds=0)
    killed, states = begin(job), store.root / "partial" / key / "states"
    seen: set[str] = set()
    deadline = time.monotonic() + 300
    while len(seen) < 3 and time.monotonic() < deadline and killed.poll() is None:
        seen |= {path.name for path in states.glob("state-*.ckpt")}
        time.sleep(0.005)
    # The ranks of a killed launcher end their training all the same, so those are asked to stop.
    os.kill(killed.pid, signal.SIGKILL if devices == 1 else signal.SIGTERM)
    assert killed.wait(120) == (-signal.SIGKILL if devices == 1 else 75)
    assert not store.has(key)
    assert begin(job).wait(500) == 0, job.with_suffix(".log").read_text()
    assert "resuming from state-" in job.with_suffix(".log").read_text()
    for name in ("model.safetensors", "log.csv"):
        files = (s.artefact(key) / name for s in (whole, store))
        assert len({digest_file(file) for file in files}) == 1, name
