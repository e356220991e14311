"""Every registered method: its presets, its graph, its loss, and the numbers that it says a paper had."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.registry import Registry
from cxrbench.core.reported import Reported
from cxrbench.core.spec import MethodParams, Preset, Recipe
from cxrbench.core.stage import DataView, find_leaks, predict, score
from cxrbench.methods.aecnn import AECNN, AECNNParams, AutoencoderParams, PatchAutoencoder
from cxrbench.methods.base import mean_auc, merge
from cxrbench.methods.densenet121 import BackboneParams, DenseNet121
from cxrbench.methods.optimisers import build_optimiser
from cxrbench.methods.vgg16 import VGG16

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="r", split="cv5", split_digest="s", fold=0,
    labels=("Edema", "Mass"),
)  # fmt: skip
VIEW = replace(
    VIEW, externals={"lung-masks": replace(VIEW, dataset="lung_masks", labels=(), external=True)}
)
METHODS = sorted(Registry().entries("methods"))
CASES = [(name, preset) for name in METHODS for preset in Registry().entry("methods", name).presets]
# Recipes as a benchmark or a user may lay them over every stage.
OVERRIDES = [
    {},
    {"epochs": 3},
    {"batch_size": 8, "precision": "16-mixed", "augment": {"rotate": 1}},
    {"select": "val_auc", "size": 96, "load": 128},
]
TINY = {"size": 32, "load": 32, "channels_last": False}


def load(name: str) -> Any:
    return Registry().load("methods", name)


def recipes(params: Any) -> list[Recipe]:
    """All recipes in a tree of parameters."""
    found = []
    for value in vars(params).values():
        if isinstance(value, Recipe):
            found.append(value)
        elif isinstance(value, MethodParams):
            found += recipes(value)
    return found


# --- every method


@pytest.mark.parametrize("name", METHODS)
def test_the_entry_says_what_the_class_says(name: str) -> None:
    entry, cls = Registry().entry("methods", name), load(name)
    assert cls.name == name
    assert entry.presets == tuple(cls.presets)
    assert set(cls.presets) <= set(get_args(Preset))
    assert entry.summary == cls.__doc__.partition("\n")[0]
    assert isinstance(cls.version, int)
    assert "version" in vars(cls), "an inherited version does not change with the class"


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_presets_are_valid_and_their_graphs_do_not_leak(name: str, preset: Any) -> None:
    cls = load(name)
    params = cls.resolve(preset, {}, {}, where="test")
    assert isinstance(params, cls.Params)
    assert cls.Params.parse(params.model_dump(mode="json"), where="x") == params
    final = score(predict(cls.stages(VIEW, params), VIEW), replicates=0, seed=0)
    assert find_leaks(final) == []
    load_side, view_side = cls.image_size(params)
    assert view_side <= load_side


@pytest.mark.parametrize(("name", "preset"), CASES)
@pytest.mark.parametrize("recipe", OVERRIDES, ids=str)
def test_a_recipe_is_laid_over_every_stage(name: str, preset: Any, recipe: dict[str, Any]) -> None:
    cls = load(name)
    plain = recipes(cls.resolve(preset, {}, {}, where="test"))
    laid = recipes(cls.resolve(preset, {}, recipe, where="test"))
    assert len(plain) == len(laid) >= 1
    for before, after in zip(plain, laid, strict=True):
        assert after == Recipe.model_validate(merge(before.model_dump(), recipe))


@pytest.mark.parametrize("name", METHODS)
def test_params_win_over_the_laid_recipe_and_typos_are_named(name: str) -> None:
    cls = load(name)
    preset = next(iter(cls.presets))
    params = cls.resolve(preset, {"recipe": {"epochs": 7}}, {"epochs": 3}, where="x")
    assert params.recipe.epochs == 7
    with pytest.raises(ConfigError, match=r"x: unknown key 'recipe.epoch'; did you mean 'epochs'"):
        cls.resolve(preset, {"recipe": {"epoch": 7}}, {}, where="x")
    with pytest.raises(ConfigError, match="unknown key"):
        cls.resolve(preset, {}, {"learning_rat": 1}, where="x")
    with pytest.raises(ConfigError, match=f"{name} has no preset 'fast'; it has "):
        cls.resolve("fast", {}, {}, where="x")


@pytest.mark.parametrize("name", METHODS)
def test_reported_tables_add_up(name: str) -> None:
    for dataset, table in load(name).reported.items():
        assert set(Reported.parse(table, where=name).macro) == set(table["macro"]), dataset
        values = list(table["labels"].values())
        assert all(0 < value < 1 for value in [*values, *table["macro"].values()])
        if shares := [v for metric, v in table["macro"].items() if metric.endswith("_share")]:
            assert sum(shares) == pytest.approx(1, abs=1e-4)
        if values:
            assert sum(values) / len(values) == pytest.approx(table["macro"]["auc"], abs=1e-3)


def test_the_reported_labels_are_the_data_set_s() -> None:
    from cxrbench.data.painter import FINDINGS

    for name in ("densenet121", "aecnn"):
        assert set(load(name).reported["chestxray14"]["labels"]) == set(FINDINGS)


def golden_methods() -> dict[str, str]:
    """Digests of the scored models of every method; `quick` is for trials and may change."""
    return {
        f"{name}/{preset}": load(name)
        .stages(VIEW, load(name).resolve(preset, {}, {}, where="x"))
        .digest
        for name, preset in CASES
        if preset != "quick"
    }


def test_recipes_are_what_they_were() -> None:
    """A change here makes every finished run of that preset be trained again: is that meant?

    If it is, put the new digest, which the assertion shows, into golden.json.
    """
    found = golden_methods()
    assert {name: found[name] for name in GOLDEN["methods"]} == GOLDEN["methods"]


# --- baselines and papers


def test_the_paper_s_recipes() -> None:
    """METHOD_CARDS sections 2 and 3.4."""
    dense = DenseNet121.resolve("paper", {}, {}, where="x")
    assert (dense.backbone, dense.pretrained) == ("densenet121", "imagenet")
    r = dense.recipe
    assert (r.size, r.load, r.batch_size, r.epochs) == (224, 256, 16, 20)
    assert (r.optimizer, r.learning_rate, r.weight_decay) == ("adam", 1e-4, 1e-5)
    assert (r.schedule, r.plateau_factor, r.plateau_patience) == ("plateau", 0.1, 5)
    assert (r.train_view, r.test_view, r.select) == ("random_crop", "ten_crop", "val_loss")
    assert (r.augment.horizontal_flip, r.augment.rotate, r.augment.contrast) == (0.5, 5, 0.25)
    aecnn = AECNN.resolve("paper", {}, {}, where="x")
    assert AECNN.image_size(aecnn) == (1024, 896)
    assert (aecnn.bce_weight, aecnn.clip_code, aecnn.autoencoder.clip_code) == (0.9, True, False)
    assert (aecnn.recipe.augment.horizontal_flip, aecnn.recipe.augment.rotate) == (0.5, 5)
    assert aecnn.recipe.augment.contrast == 0
    assert PatchAutoencoder.image_size(aecnn.autoencoder) == (1024, 128)
    flips = aecnn.autoencoder.recipe.augment
    assert (flips.horizontal_flip, flips.vertical_flip, flips.rotate) == (0.5, 0.5, 0)
    vgg = VGG16.resolve("paper", {}, {}, where="x")
    assert (vgg.backbone, vgg.pretrained, vgg.recipe.size) == ("vgg16", "none", 512)


def test_no_method_of_today_mirrors_hearts_where_it_need_not() -> None:
    for name in METHODS:
        cls = load(name)
        for preset in {"tuned", "quick"} & set(cls.presets):
            params = cls.resolve(preset, {}, {}, where="x")
            assert params.recipe.augment.horizontal_flip == 0, (name, preset)


# --- AE-CNN


@pytest.mark.parametrize("preset", ["paper", "tuned", "quick"])
@pytest.mark.parametrize("recipe", OVERRIDES, ids=str)
def test_stage_1_of_aecnn_is_the_baseline(preset: Any, recipe: dict[str, Any]) -> None:
    final = AECNN.stages(VIEW, AECNN.resolve(preset, {}, recipe, where="x"))
    baseline = DenseNet121.stages(VIEW, DenseNet121.resolve(preset, {}, recipe, where="x"))
    assert final.inputs["classifier"].digest == baseline.digest
    assert {s.name for s in final.ancestry().values()} == {
        "densenet121", "patch-autoencoder", "aecnn",
    }  # fmt: skip


def test_stage_1_of_aecnn_follows_its_backbone() -> None:
    params = AECNN.resolve("quick", {"backbone": "resnet10t"}, {}, where="x")
    other = DenseNet121.resolve("quick", {"backbone": "resnet10t"}, {}, where="x")
    first = AECNN.stages(VIEW, params).inputs["classifier"]
    assert first.digest == DenseNet121.stages(VIEW, other).digest
    assert first.params["backbone"] == "resnet10t"


def tiny_aecnn(**change: Any) -> AECNN:
    params = AECNNParams(
        backbone="resnet10t",
        pretrained="none",
        classifier=MethodParams(recipe=Recipe(**TINY)),
        autoencoder=AutoencoderParams(patch=32, recipe=Recipe(**TINY)),
        recipe=Recipe(**TINY),
        **change,
    )
    torch.manual_seed(0)
    return AECNN(params, VIEW.labels)


def a_batch(side: int = 64) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (3, 1, side, side), generator=random, dtype=torch.uint8),
        "target": torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]),
        "known": torch.tensor([[True, True], [False, True], [True, False]]),
        "row": torch.arange(3),
    }


@pytest.mark.parametrize("weight", [0.9, 0.25, 1.0])
def test_the_loss_of_aecnn_by_hand(weight: float) -> None:
    module, batch = tiny_aecnn(bce_weight=weight).eval(), a_batch()
    with torch.inference_mode():
        found = module.losses(batch)
        image = batch["image"].double() / 255
        net = module.double()
        code = net.autoencoder.encoder(image).clamp(0, 1)
        back = net.autoencoder.decoder(code)
        logits = net.classifier.net(net.classifier.normalise(code))
    bce = F.binary_cross_entropy_with_logits(
        logits[batch["known"]], batch["target"].double()[batch["known"]]
    )
    mse = ((back - image) ** 2).mean()
    assert found["bce"].item() == pytest.approx(bce.item(), rel=1e-4)
    assert found["mse"].item() == pytest.approx(mse.item(), rel=1e-4)
    assert found["loss"].item() == pytest.approx(
        (weight * bce + (1 - weight) * mse).item(), rel=1e-4
    )


def test_aecnn_classifies_the_code() -> None:
    module, batch = tiny_aecnn().eval(), a_batch()
    with torch.inference_mode():
        image = batch["image"].float() / 255
        logits = module.classifier(module.autoencoder.encode(image))
        assert torch.equal(module(image), logits)
        torch.testing.assert_close(module.predict_step(batch, 0), torch.sigmoid(logits.double()))


def earlier_stages(module: AECNN, folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """The weights of stages 1 and 2, and the folders that hold them."""
    first = DenseNet121(AECNN.start(module.params), VIEW.labels)
    second = PatchAutoencoder(module.params.autoencoder, VIEW.labels)
    states = {"classifier": dict(first.state_dict()), "autoencoder": dict(second.state_dict())}
    return states, write_stages(states, folder)


def write_stages(states: dict[str, Any], folder: Path) -> dict[str, Path]:
    for name, state in states.items():
        (folder / name).mkdir(exist_ok=True)
        save_file(state, folder / name / "model.safetensors")
    return {name: folder / name for name in states}


def test_aecnn_receives_the_weights_of_both_stages(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = tiny_aecnn()
    inputs, folders = earlier_stages(module, tmp_path)
    module.receive(folders)
    for name, value in inputs["classifier"].items():
        assert torch.equal(module.state_dict()[f"classifier.{name}"], value)
    for name, value in inputs["autoencoder"].items():
        assert torch.equal(module.state_dict()[name], value)
    assert len(module.state_dict()) == len(inputs["classifier"]) + len(inputs["autoencoder"])


@pytest.mark.parametrize(("stage", "says"), [("classifier", "stage 1"), ("autoencoder", "stage 2")])
def test_aecnn_refuses_half_a_stage(stage: str, says: str, tmp_path: Path) -> None:
    module = tiny_aecnn()
    inputs, _ = earlier_stages(module, tmp_path)
    inputs[stage].popitem()
    with pytest.raises(DataError, match=says):
        module.receive(write_stages(inputs, tmp_path))


def test_a_method_that_takes_nothing_refuses_weights() -> None:
    module = DenseNet121(
        BackboneParams(backbone="resnet10t", pretrained="none", recipe=Recipe(**TINY)), VIEW.labels
    )
    module.receive({})
    with pytest.raises(NotImplementedError, match="densenet121"):
        module.receive({"x": Path("x")})


def test_a_stage_without_labels_chooses_by_its_loss() -> None:
    recipe = Recipe(**TINY, select="val_auc")
    assert PatchAutoencoder(AutoencoderParams(recipe=recipe), ()).monitor == "val_loss"
    assert tiny_aecnn().monitor == "val_loss"
    params = BackboneParams(backbone="resnet10t", pretrained="none", recipe=recipe)
    assert DenseNet121(params, VIEW.labels).monitor == "val_auc"


def test_stage_2_reconstructs_with_its_own_clipping() -> None:
    for clip in (False, True):
        module = PatchAutoencoder(AutoencoderParams(clip_code=clip, recipe=Recipe(**TINY)), ())
        assert module.autoencoder.clip_code is clip
    assert tiny_aecnn().autoencoder.clip_code is True


def test_ten_crops_are_averaged_as_logits() -> None:
    module, batch = tiny_aecnn().eval(), a_batch()
    crops = torch.stack([batch["image"].roll(n, -1) for n in range(10)], dim=1)
    with torch.inference_mode():
        each = torch.stack([module(crops[:, n].float() / 255) for n in range(10)])
        found = module.predict_step({**batch, "image": crops}, 0)
    torch.testing.assert_close(found, torch.sigmoid(each.mean(0).double()), rtol=1e-4, atol=1e-6)
    assert found.dtype == torch.float64


# --- shared parts of methods


def test_the_mean_auc_leaves_out_what_is_unknown_or_has_one_class() -> None:
    logits = torch.tensor([[3.0, 0.0, 1.0], [2.0, 1.0, 0.0], [1.0, 0.0, 2.0], [9.0, 1.0, 3.0]])
    target = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    known = torch.ones(4, 3, dtype=torch.bool)
    known[3, 0] = False
    assert mean_auc(logits, target, known) == pytest.approx((0.5 + 1.0) / 2)
    assert mean_auc(logits, target, torch.zeros_like(known)) is None
    assert mean_auc(logits * float("nan"), target, known) is None


def test_merge_is_deep_and_changes_neither() -> None:
    base, over = {"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "c": {"z": 1}}
    assert merge(base, over) == {"a": {"x": 1, "y": 3}, "b": 1, "c": {"z": 1}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 1}


def rates(recipe: Recipe, steps: int, per_epoch: int) -> list[float]:
    made = build_optimiser(torch.nn.Linear(1, 1), recipe, per_epoch)
    optimiser, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_cosine_warms_up_and_goes_down_to_nothing() -> None:
    recipe = Recipe(epochs=10, schedule="cosine", warmup_epochs=2, learning_rate=1.0)
    found = rates(recipe, 101, 10)
    assert found[:20] == pytest.approx([(n + 1) / 21 for n in range(20)])
    assert found[20] == 1.0
    assert found[60] == pytest.approx(0.5)
    assert found[100] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(found[20:]))


def test_linear_ends_at_a_hundredth() -> None:
    recipe = Recipe(epochs=10, schedule="linear", warmup_epochs=2, learning_rate=1.0)
    found = rates(recipe, 101, 10)
    assert found[:20] == pytest.approx([(n + 1) / 21 for n in range(20)])
    assert (found[20], found[60], found[100]) == pytest.approx((1, 0.505, 0.01))


def test_constant_is_constant_after_the_warm_up() -> None:
    recipe = Recipe(epochs=4, warmup_epochs=1, learning_rate=0.5)
    assert set(rates(recipe, 40, 10)[10:]) == {0.5}
    plain = build_optimiser(torch.nn.Linear(1, 1), Recipe(optimizer="sgd", weight_decay=0.1), 10)
    assert isinstance(plain, torch.optim.SGD)
    assert plain.defaults["momentum"] == 0.9
    assert plain.defaults["weight_decay"] == 0.1


def test_the_plateau_watches_the_validation_loss() -> None:
    made = build_optimiser(
        torch.nn.Linear(1, 1), Recipe(schedule="plateau", plateau_patience=1, learning_rate=1.0), 10
    )
    assert made["lr_scheduler"]["monitor"] == "val_loss"
    assert made["lr_scheduler"]["interval"] == "epoch"
    plateau = made["lr_scheduler"]["scheduler"]
    for loss in (1.0, 1.0, 1.0):
        plateau.step(loss)
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_warm_up_that_the_schedule_would_ignore_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_epochs"):
        Recipe.parse({"schedule": "plateau", "warmup_epochs": 1}, where="recipe")
