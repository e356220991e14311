"""Deblurring: the blur's arithmetic, the pairs, the graph of the nine cells, and what is reported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from sklearn.utils.class_weight import compute_class_weight

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, Execution, Recipe
from cxrbench.core.stage import DataView, Stage, find_leaks, predict, score
from cxrbench.core.store import Store, read_json
from cxrbench.data.painter import paint_image, sample_cohort
from cxrbench.methods.deblur import (
    FILMS,
    REPLICATES,
    ClassWeights,
    Deblur,
    DeblurParams,
    WeightsParams,
    weighted_bce,
)
from cxrbench.methods.deblur_images import (
    SSIM_SHARE,
    Blur,
    DeblurUNet,
    DeblurUNetParams,
    Focus,
    Restore,
    UNetParams,
    l1_ssim,
    restore_params,
    unit_images,
)
from cxrbench.methods.deblur_report import (
    SWEPT,
    Curves,
    CurvesParams,
    Restoration,
    RestorationParams,
)
from cxrbench.metrics.images import psnr_of_mse, ssim
from cxrbench.nn.blur import gaussian_blur
from cxrbench.nn.deconvolution import richardson_lucy, wiener
from cxrbench.runner.bench import plan_bench, read_spec, run_bench

VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="r", split="cv5", split_digest="s", fold=0,
    labels=("Edema", "Mass"),
)  # fmt: skip
TINY = Recipe(size=32, load=32)
YAML = Path(__file__).parents[1] / "benchmarks" / "papers" / "deblur.yaml"


@pytest.fixture(scope="module")
def films() -> Any:
    """Six drawn films, uint8 [6, 32, 32]."""
    return np.stack([paint_image(s, 32) for s in sample_cohort(6, seed=1, enrichment=3)])


def params_of(preset: Any = "quick", **change: Any) -> DeblurParams:
    found = Deblur.resolve(preset, change, {}, where="x")
    assert isinstance(found, DeblurParams)
    return found


def tiny_unet(**change: Any) -> DeblurUNet:
    torch.manual_seed(0)
    return DeblurUNet(DeblurUNetParams(**{"width": 8, "recipe": TINY, **change}), ())


def batch_of(films: Any) -> Any:
    count = len(films)
    return {
        "image": torch.from_numpy(films).unsqueeze(1),
        "target": torch.zeros(count, 2),
        "known": torch.ones(count, 2, dtype=torch.bool),
        "row": torch.arange(100, 100 + count),
    }


# --- the paper


def test_one_method_is_registered() -> None:
    entries = Registry().entries("methods")
    assert [n for n, e in entries.items() if e.path and "deblur" in e.path.name] == ["deblur"]


def test_the_paper_s_networks_and_recipes() -> None:
    """METHOD_CARDS 0, 5.3, 5.4."""
    paper = params_of("paper")
    assert (paper.sigma, paper.train_on, paper.test_on, paper.restore) == (
        2.0, "sharp", "restored", "unet",
    )  # fmt: skip
    module = Deblur(params_of("paper", pretrained="none"), ("pneumonia",))
    learning = {n for n, p in module.named_parameters() if p.requires_grad}
    assert learning == {"net.head.weight", "net.head.bias"}
    assert sum(p.numel() for p in module.parameters()) == 14_739_777
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == 25_089
    r = paper.recipe
    assert (r.optimizer, r.learning_rate, r.batch_size, r.epochs) == ("rmsprop", 1e-5, 32, 10)
    assert (r.load, r.size, r.train_view, r.test_view) == (224, 224, "whole", "whole")
    u = paper.unet.recipe
    assert (u.optimizer, u.learning_rate, u.batch_size, u.epochs) == ("adam", 1e-3, 32, 30)
    assert (paper.pretrained, paper.frozen, paper.imagenet_input) == ("imagenet", True, False)
    assert (paper.class_weights, paper.weight_divisor) == ("balanced", 1.1)
    unet = DeblurUNet(paper.deblurrer, ())
    assert sum(p.numel() for p in unet.parameters()) == 2_158_417
    assert (paper.unet.residual, paper.unet.loss, paper.unet.first) == (False, "mse", "none")


def test_tuned_learns_all_of_it() -> None:
    tuned = params_of("tuned")
    assert (tuned.frozen, tuned.imagenet_input, tuned.recipe.optimizer) == (False, True, "adamw")
    assert (tuned.unet.residual, tuned.unet.width, tuned.unet.loss) == (True, 32, "l1+ssim")
    assert tuned.unet.recipe.load == tuned.recipe.load == 224


def test_pixels_reach_the_paper_s_network_as_they_are() -> None:
    seen: list[torch.Tensor] = []
    for normalised in (False, True):
        change = {"backbone": "resnet10t", "imagenet_input": normalised}
        module = Deblur(params_of(**change), ("a",)).eval()
        module.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        module(torch.full((1, 1, 32, 32), 0.5))
    assert torch.equal(seen[0], torch.full((1, 3, 32, 32), 0.5))
    assert seen[1].unique().numel() == 3


def test_only_vgg16_is_frozen() -> None:
    with pytest.raises(ConfigError, match="frozen needs the backbone vgg16"):
        params_of(frozen=True)


# --- class weights


def test_class_weights_are_balanced_and_the_first_divided(tmp_path: Path) -> None:
    targets = np.array([[1, 0, 1], [1, np.nan, 1], [0, np.nan, 1], [1, 1, 1], [1, 0, 1]])
    computation = ClassWeights(WeightsParams(divisor=1.1))
    facts = computation.compute(np.zeros((5, 8, 8)), targets, {}, tmp_path, 0)
    assert json.loads((tmp_path / "weights.json").read_text()) == facts["class_weights"]
    zero, one = compute_class_weight("balanced", classes=np.array([0, 1]), y=targets[:, 0])
    assert facts["class_weights"][0] == pytest.approx([zero, one / 1.1])
    assert facts["class_weights"][1] == pytest.approx([3 / 4, 3 / 2 / 1.1])
    assert facts["class_weights"][2] == pytest.approx([1.0, 0.5 / 1.1])  # a class without a film


def test_the_loss_weighs_as_keras_does(tmp_path: Path) -> None:
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 0.1]])
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    known = torch.tensor([[True, True], [True, False], [True, True]])
    weights = torch.tensor([[0.5, 2.0], [3.0, 0.25]])
    p = torch.sigmoid(logits.double()).numpy()
    by_hand = (
        -2 * np.log(p[0, 0]) - 0.5 * np.log(1 - p[1, 0]) - 2 * np.log(p[2, 0])
        - 3 * np.log(1 - p[0, 1]) - 0.25 * np.log(p[2, 1])
    ) / 5  # fmt: skip
    assert float(weighted_bce(logits, target, known, weights)) == pytest.approx(by_hand, rel=1e-6)
    assert float(weighted_bce(logits, target, known & False, weights)) == 0

    (tmp_path / "weights.json").write_text(json.dumps(weights.tolist()))
    module = Deblur(params_of(), ("a", "b"))
    before = set(module.state_dict())
    module.receive({"class_weights": tmp_path})
    assert torch.equal(module.weights, weights)
    assert set(module.state_dict()) == before == {n for n in before if n.startswith("net.")}
    module.forward = lambda image: logits  # type: ignore[method-assign]
    batch = {"image": torch.zeros(3, 1, 8, 8), "target": target, "known": known}
    assert float(module.losses(batch)["loss"]) == pytest.approx(by_hand, rel=1e-6)  # type: ignore[arg-type]


# --- the blur


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_blurred_films_are_scipy_s_rounded(films: Any, sigma: float) -> None:
    found = Blur(Focus(sigma=sigma, side=32))(films)
    exact = np.stack([gaussian_filter(f / 255.0, sigma) for f in films]) * 255
    assert found.dtype == np.uint8
    assert found.shape == films.shape
    assert np.abs(found - exact).max() < 0.5001


def test_noise_follows_from_the_film_alone(films: Any) -> None:
    noisy = Blur(Focus(sigma=1.0, side=32, photons=200, noise=0.02))
    together = noisy(films)
    torch.manual_seed(7)
    alone = np.concatenate([noisy(film[None]) for film in films])
    assert np.array_equal(together, alone)
    twice = noisy(np.stack([films[0], films[0], films[1]])).astype(int)
    assert np.array_equal(twice[0], twice[1])
    plain = Blur(Focus(sigma=1.0, side=32))(films).astype(int)
    rest = np.stack([together[0] - plain[0], together[1] - plain[1]]).reshape(2, -1)
    assert abs(np.corrcoef(rest)[0, 1]) < 0.2, "two films share their noise"
    assert 2 < rest.std() < 30


def test_a_blur_that_grows_spares_the_centre(films: Any) -> None:
    def lost(**how: Any) -> Any:
        focus = Focus(sigma=0.7, side=32, **how)
        return np.abs(focus.of_stored(films)[:, 0].numpy() - films / 255.0).mean(axis=0)

    same, grown, down = lost(), lost(growth=4.0), lost(growth=4.0, law="down")
    inside = (slice(13, 19), slice(13, 19))
    assert grown.mean() > 1.5 * same.mean()
    assert grown[inside].mean() / grown.mean() < 0.7 * same[inside].mean() / same.mean()
    assert np.abs(down[:2] - same[:2]).max() < 0.02
    assert down[-8:].mean() > 1.5 * same[-8:].mean()
    assert Focus(sigma=2.0, side=32).known == 2.0
    assert 1.4 < Focus(sigma=1.0, side=32, growth=2.0).known < 2.0


# --- the U-Net's training


def test_pairs_are_made_in_the_step(films: Any) -> None:
    module = tiny_unet(sigma=1.5)
    sharp = unit_images(films)
    expected = ((module(gaussian_blur(sharp, 1.5)) - sharp) ** 2).mean()
    assert module.training_step(batch_of(films), 0).item() == pytest.approx(expected.item())
    rounded = tiny_unet(sigma=1.5, rounded=True)
    blurred = (gaussian_blur(sharp, 1.5) * 255).round() / 255
    expected = ((rounded(blurred) - sharp) ** 2).mean()
    assert rounded.training_step(batch_of(films), 0).item() == pytest.approx(expected.item())
    assert module.monitor == "val_loss"
    other = tiny_unet(sigma=1.5, loss="l1+ssim")
    expected = l1_ssim(other(gaussian_blur(sharp, 1.5)), sharp)
    assert other.training_step(batch_of(films), 0).item() == pytest.approx(expected.item())


def test_the_validation_loss_is_the_squared_error(films: Any) -> None:
    logged = {}
    module = tiny_unet(sigma=2.0, residual=True, loss="l1+ssim").eval()
    module.log = lambda name, value, **_: logged.update({name: value.item()})  # type: ignore[method-assign]
    module.validation_step(batch_of(films), 0)
    sharp = unit_images(films)  # a residual U-Net begins as the identity
    identity = ((gaussian_blur(sharp, 2.0) - sharp) ** 2).mean()
    assert logged == {"val_loss": pytest.approx(float(identity), rel=1e-5)}


def test_l1_and_ssim(films: Any) -> None:
    sharp = unit_images(films)
    blurred = gaussian_blur(sharp, 1.0)
    own = ssim(blurred[:, 0].numpy(), sharp[:, 0].numpy()).mean()
    expected = float((blurred - sharp).abs().mean()) + SSIM_SHARE * (1 - own)
    # Ours is over whole windows, theirs pads: close on a film of 32 px, no more.
    assert float(l1_ssim(blurred, sharp)) == pytest.approx(expected, rel=0.2)
    assert float(l1_ssim(sharp, sharp)) == pytest.approx(0, abs=1e-6)


def test_blind_stds_follow_from_epoch_and_row(films: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_unet(blind=(0.5, 3.0), sigma=None)
    drawn: list[torch.Tensor] = []

    def spy(image: torch.Tensor, sigma: Any) -> torch.Tensor:
        drawn.append(sigma)
        return gaussian_blur(image, sigma)

    monkeypatch.setattr("cxrbench.methods.deblur_images.gaussian_blur", spy)
    batch = batch_of(np.concatenate([films] * 10))
    module.training_step(batch, 0)
    half = {name: value[::2] for name, value in batch.items()}  # as another rank sees it
    module.training_step(half, 0)
    assert torch.equal(drawn[0][::2], drawn[1])
    assert 0.5 <= drawn[0].min() < 0.9
    assert 2.6 < drawn[0].max() <= 3.0
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    module.eval().validation_step(batch, 0)
    assert 0.5 <= drawn[2].min() < 0.7
    assert 2.8 < drawn[2].max() <= 3.0
    assert not torch.equal(drawn[0], drawn[2])


def test_behind_wiener_the_u_net_begins_as_wiener(films: Any) -> None:
    module = tiny_unet(sigma=2.0, residual=True, first="wiener", noise_to_signal=0.01).eval()
    blurred = gaussian_blur(unit_images(films), 2.0)
    with torch.inference_mode():
        torch.testing.assert_close(module(blurred), wiener(blurred, 2.0, 0.01))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": {"load": 40, "size": 40}}, "recipe.load 40 is no multiple of 16"),
        ({"blind": [3, 1]}, "smaller std first"),
        ({"blind": [1, 3], "first": "wiener"}, "known std"),
        ({"widht": 8}, "did you mean 'width'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before(change: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        UNetParams.parse(change, where="x")


@pytest.mark.parametrize("loss", ["mse", "l1+ssim"])
@pytest.mark.parametrize("residual", [False, True])
def test_half_precision_stays_finite_and_learns(films: Any, residual: bool, loss: str) -> None:
    module = tiny_unet(residual=residual, loss=loss, sigma=1.0)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    found = []
    for _ in range(12):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = module.training_step(batch_of(films), 0)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        found.append(value.item())
    assert np.isfinite(found).all()
    assert found[-1] < 0.97 * found[0]


# --- restoring


def test_films_are_restored_by_each(films: Any, tmp_path: Path) -> None:
    focus = Focus(sigma=1.0, side=32)
    blurred = Blur(focus)(films)
    floats = unit_images(blurred)
    module = tiny_unet(sigma=1.0).eval()
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    with torch.inference_mode():
        expected = {
            "wiener": wiener(floats, 1.0, 0.003),
            "richardson-lucy": richardson_lucy(floats, 1.0, 9),
            "unet": module(floats),
        }
    for by, image in expected.items():
        how = restore_params(focus, by, noise_to_signal=0.003, iterations=9, unet=module.params)  # type: ignore[arg-type]
        change = Restore(how)
        change.open({"unet": tmp_path}, "cpu")
        with torch.inference_mode():
            found = change(blurred)
        exact = image[:, 0].clamp(0, 1).numpy() * 255
        assert found.dtype == np.uint8
        assert np.abs(found - exact).max() < 0.51, by
    save_file({"net.head.bias": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="deblurring U-Net"):
        change.open({"unet": tmp_path}, "cpu")


# --- the graph


def cell(train_on: str, test_on: str, data: DataView = VIEW, **change: Any) -> tuple[Stage, Any]:
    """The final stage of a cell of the matrix, and its analyses."""
    params = params_of("paper", train_on=train_on, test_on=test_on, **change)
    model = Deblur.stages(data, params)
    final = score(
        predict(model, data, Deblur.tested_on(data, params, model)), replicates=REPLICATES, seed=0
    )
    return final, Deblur.analyses(data, params, model)


def everything(*stages: Stage) -> list[Stage]:
    found: dict[str, Stage] = {}
    for stage in stages:
        found.update(stage.ancestry())
    return list(found.values())


def test_nine_cells_are_four_trainings() -> None:
    finals, last = {}, []
    for train_on in FILMS:
        for test_on in FILMS:
            finals[train_on, test_on], found = cell(train_on, test_on)
            last += [finals[train_on, test_on], *found.values()]
    assert not [leak for final in finals.values() for leak in find_leaks(final)]
    assert len({final.digest for final in finals.values()}) == 9
    kinds = [(s.kind, s.name) for s in everything(*last)]
    assert kinds.count(("fit", "linear-vgg16")) == 3
    assert kinds.count(("fit", "deblur-unet")) == 1
    assert kinds.count(("predict", "linear-vgg16")) == 9
    assert kinds.count(("score", "linear-vgg16")) == 9, "an analysis scores what no cell does"
    assert kinds.count(("compute", "restoration")) == 1
    assert kinds.count(("compute", "curves")) == 3
    assert kinds.count(("compute", "class-weights")) == 1
    images = {final.data.images and final.data.images.name for final in finals.values()}
    assert images == {None, "focal-blur", "restore"}


def test_a_run_scores_the_other_films_beside() -> None:
    _, found = cell("blurred", "sharp")
    assert set(found) == {
        "tested on blurred films", "tested on restored films", "accuracy and curves", "restoration",
    }  # fmt: skip
    for which in ("blurred", "restored"):
        own, _ = cell("blurred", which)
        assert found[f"tested on {which} films"].digest == own.digest
    assert set(found["accuracy and curves"].inputs) == set(FILMS)
    assert {found[name].part for name in ("restoration", "accuracy and curves")} == {"test"}


def test_what_is_shared_among_settings() -> None:
    def parts(**change: Any) -> dict[str, set[str]]:
        final, found = cell("sharp", "restored", **change)
        by_name: dict[str, set[str]] = {}
        for stage in everything(final, *found.values()):
            by_name.setdefault(stage.name, set()).add(stage.digest)
        return by_name

    plain, other = parts(), parts(sigma=1.0)
    assert plain["deblur-unet"] != other["deblur-unet"]
    assert plain["class-weights"] == other["class-weights"]
    assert len(parts(restore="wiener")["restore"]) == 1
    assert "deblur-unet" not in parts(restore="wiener") | parts(restore="richardson-lucy")
    assert plain["deblur-unet"] == parts(iterations=20, noise_to_signal=0.1)["deblur-unet"]
    blind = {"unet": {"blind": [0.5, 4]}}
    assert parts(**blind)["deblur-unet"] == parts(**blind, sigma=3.0)["deblur-unet"]
    model = Deblur.stages(VIEW, params_of("paper")).digest
    assert model == Deblur.stages(VIEW, params_of("paper", sigma=1.0, restore="wiener")).digest


def test_each_fold_has_its_own_u_net_and_shares_the_blurred_films() -> None:
    first, _ = cell("sharp", "restored")
    second, _ = cell("sharp", "restored", data=VIEW.at(fold=1))
    shared = {s.digest for s in everything(first)} & {s.digest for s in everything(second)}
    assert {s.name for s in everything(first) if s.digest in shared} == {"focal-blur"}
    assert not find_leaks(second)


def test_any_method_reads_restored_films() -> None:
    view = Deblur.view(VIEW, params_of("quick"))
    assert view.images is not None
    assert [s.name for s in view.images.ancestry().values()] == [
        "deblur-unet", "focal-blur", "restore",
    ]  # fmt: skip


def test_sigma_is_in_pixels_of_the_side_that_images_are_read_at() -> None:
    changed = Deblur.resolve("tuned", {}, {"load": 256, "size": 224}, where="x")
    assert isinstance(changed, DeblurParams)
    assert changed.focus.side == 256
    assert DeblurUNet.image_size(changed.deblurrer) == (256, 256)


# --- what is reported


def test_the_restoration_s_numbers(films: Any, tmp_path: Path) -> None:
    focus = Focus(sigma=1.0, side=32)
    module = tiny_unet(sigma=1.0, residual=True).eval()  # the identity
    (tmp_path / "net").mkdir()
    save_file(module.state_dict(), tmp_path / "net" / "model.safetensors")
    report = Restoration(RestorationParams(focus=focus, unet=module.params, sweep=(0.5, 2.0)))
    facts = report.compute(films, None, {"unet": tmp_path / "net"}, tmp_path, 0)
    json.dumps(facts, allow_nan=False)
    rows = facts["restored"]
    assert list(rows) == ["blurred", "unet", "wiener", "richardson-lucy"]
    blurred = Blur(focus)(films) / 255.0
    error = ((blurred - films / 255.0) ** 2).mean()
    assert rows["blurred"]["mse"] == pytest.approx(error, rel=1e-6)
    assert rows["blurred"]["psnr"] == pytest.approx(float(psnr_of_mse(error)), rel=1e-6)
    assert rows["unet"] == pytest.approx(rows["blurred"], rel=1e-5)
    assert facts["gain_db"]["unet"] == pytest.approx(0, abs=1e-4)
    assert facts["gain_db"]["wiener"] > facts["gain_db"]["richardson-lucy"] > 0.5
    for name in ("wiener", "richardson-lucy"):
        assert facts["strongest_filters"][name]["psnr"] >= rows[name]["psnr"] - 1e-6
    assert list(facts["psnr_by_sigma"]) == ["0.5", "1", "2"]
    falling = [row["blurred"] for row in facts["psnr_by_sigma"].values()]
    assert falling[1] == pytest.approx(rows["blurred"]["psnr"], rel=1e-6)
    assert falling[0] > falling[1] + 1 > falling[2] + 2
    for name in ("mse", "ssim"):
        at_one = facts[f"{name}_by_sigma"]["1"]
        assert at_one["wiener"] == pytest.approx(rows["wiener"][name], rel=1e-6)
        assert len({row["blurred"] for row in facts[f"{name}_by_sigma"].values()}) == 3
    floats = np.stack([gaussian_filter(f / 255.0, 1.0) for f in films])
    exact = ((floats - films / 255.0) ** 2).mean()
    assert facts["unet_mse_of_floats"] == pytest.approx(exact, rel=1e-4)
    for picture in json.loads((tmp_path / "gallery.json").read_text()):
        assert (tmp_path / picture["file"]).read_bytes().startswith(b"\x89PNG")
        assert picture["caption"]


def test_the_report_s_mse_is_that_of_all_films(tmp_path: Path) -> None:
    """Not of those alone that the sweep is made on."""
    rng = np.random.default_rng(3)
    drawn = rng.integers(0, 256, (SWEPT + 20, 16, 16)).astype(np.uint8)
    drawn[1::2] = 90  # as good as untouched by a blur: any other choice of films has another mean
    module = tiny_unet(sigma=1.0, residual=True).eval()
    (tmp_path / "net").mkdir()
    save_file(module.state_dict(), tmp_path / "net" / "model.safetensors")
    focus = Focus(sigma=1.0, side=16)
    report = Restoration(RestorationParams(focus=focus, unet=module.params, sweep=()))
    facts = report.compute(drawn, None, {"unet": tmp_path / "net"}, tmp_path, 0)
    floats = np.stack([gaussian_filter(f / 255.0, 1.0) for f in drawn])
    exact = ((floats - drawn / 255.0) ** 2).mean()
    assert facts["unet_mse_of_floats"] == pytest.approx(exact, rel=1e-4)


def test_keras_rmsprop_forgets_a_tenth_a_step() -> None:
    """Its two first steps by hand: v = 0.9 v + 0.1 g^2, w -= rate g / (sqrt(v) + 1e-7)."""
    module = Deblur(
        params_of("paper", backbone="resnet10t", frozen=False, pretrained="none"), ("a",)
    )
    optimiser = module.configure_optimizers()
    weight = next(module.parameters())
    expected, square = weight.detach().double().clone(), 0.0
    for gradient in (0.5, 0.125):
        weight.grad = torch.full_like(weight, gradient)
        optimiser.step()
        square = 0.9 * square + 0.1 * gradient**2
        expected -= 1e-5 * gradient / (square**0.5 + 1e-7)
    assert torch.allclose(weight.detach().double(), expected, atol=1e-6, rtol=0)


def test_the_paper_s_parts_are_float32_and_later_ones_as_the_machine_likes() -> None:
    for preset, precision in (("paper", "32-true"), ("tuned", "auto"), ("quick", "auto")):
        params = params_of(preset)
        assert {params.recipe.precision, params.unet.recipe.precision} == {precision}, preset


def test_a_report_without_a_u_net_has_the_filters(films: Any, tmp_path: Path) -> None:
    report = Restoration(RestorationParams(focus=Focus(side=32), images=4, sweep=()))
    facts = report.compute(films, None, {}, tmp_path, 0)
    assert facts["films"] == 4
    assert list(facts["gain_db"]) == ["wiener", "richardson-lucy"]
    assert "unet_mse_of_floats" not in facts


def predictions(folder: Path, probability: list[float], target: list[float]) -> Path:
    folder.mkdir()
    part = ["test"] * (len(target) - 1) + ["val"]
    columns = {"part": part, "target:a": target, "probability:a": probability}
    table = pd.DataFrame({**columns, "target:b": 0.0, "probability:b": 0.2})
    table.to_parquet(folder / "predictions.parquet")
    return folder


def test_accuracy_is_counted_on_the_test_part_at_one_half(tmp_path: Path) -> None:
    target = [1.0, 1.0, 0.0, 0.0, np.nan, 1.0]
    inputs = {
        "sharp": predictions(tmp_path / "s", [0.9, 0.5, 0.1, 0.6, 0.9, 0.0], target),
        "blurred": predictions(tmp_path / "b", [0.4, 0.3, 0.2, 0.1, 0.9, 0.0], target),
    }
    facts = Curves(CurvesParams()).compute(None, None, inputs, tmp_path, 0)
    json.dumps(facts, allow_nan=False)
    assert facts["sharp"]["labels"]["a"] == {
        "films": 4, "accuracy": 0.75, "constant_accuracy": 0.5, "auc": 0.75,
    }  # fmt: skip
    assert facts["blurred"]["labels"]["a"]["accuracy"] == 0.5
    assert facts["blurred"]["labels"]["a"]["auc"] == 1.0
    assert facts["sharp"]["labels"]["b"]["auc"] is None
    assert facts["sharp"]["mean"]["accuracy"] == 0.75, "a label of one class is in the mean"
    assert (tmp_path / "gallery.png").is_file()
    assert len(json.loads((tmp_path / "gallery.json").read_text())) == 1


# --- the benchmark


def test_the_paper_s_benchmark_plans_both_tasks(store: Store, tmp_path: Path) -> None:
    registry = Registry()
    root = registry.load("datasets", "kermany").fake(tmp_path, images=60, size=32)
    spec = read_spec(YAML)
    assert isinstance(spec, BenchSpec)
    datasets = [entry.model_copy(update={"path": root}) for entry in spec.datasets]
    plan = plan_bench(
        spec.model_copy(update={"datasets": datasets, "seeds": [0]}), registry, store, "cpu"
    )
    assert plan.leaks == []
    cells = {(r.params["sigma"], r.params["train_on"], r.params["test_on"]) for r in plan.runs}
    assert cells >= {(2.0, train, test) for train in FILMS for test in FILMS}
    assert (1.0, "sharp", "restored") in cells
    restorers = [r.params["restore"] for r in plan.runs]
    assert [restorers.count(r) for r in ("unet", "wiener", "richardson-lucy")] == [20, 2, 2]
    fits = [s.name for s in plan.graph.values() if s.kind == "fit"]
    assert (fits.count("deblur-unet"), fits.count("linear-vgg16")) == (4, 6)  # two stds, two tasks


@pytest.mark.slow
def test_the_u_net_gains_four_decibels_and_beats_both_filters(store: Store) -> None:
    spec = {
        "preset": "quick",
        # Balanced weights besides, which `quick` goes without.
        "methods": [{"name": "deblur", "params": {"class_weights": "balanced"}}],
        "datasets": [{"name": "phantom", "split": "holdout", "params": {"images": 400, "seed": 5}}],
    }
    registry = Registry()
    plan = plan_bench(BenchSpec.parse(spec, where="x"), registry, store, "cpu")
    result = run_bench(plan, registry, store, Execution(threads=2), "missing")
    assert not result.outcome.failed
    record = read_json(result.records[0])
    facts = record["analyses"]["restoration"]["facts"]
    assert facts["gain_db"]["unet"] > 4
    few = facts["psnr_by_sigma"]["2"]
    for name in ("wiener", "richardson-lucy"):
        assert facts["gain_db"]["unet"] > facts["gain_db"][name] + 0.5
        assert few["unet"] > facts["strongest_filters"][name]["psnr"] + 0.5
