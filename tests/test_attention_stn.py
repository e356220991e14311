"""Attention STN and STERN: the window, its loss and log, what the first training hands on, the analyses."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.gallery import read_gallery
from cxrbench.core.spec import BenchSpec, MethodParams, Recipe
from cxrbench.core.stage import DataView
from cxrbench.core.yamlfile import read_yaml
from cxrbench.methods.attention_stn import (
    STERN,
    AttentionParams,
    AttentionSTN,
    SternParams,
    Windows,
    WindowsParams,
)
from cxrbench.methods.sheets import BAR, GAP, TILE
from cxrbench.methods.thorax_crop import ThoraxCrop
from cxrbench.methods.thorax_report import FindingRecall, RecallParams, compare
from cxrbench.methods.vgg16 import VGG16
from cxrbench.metrics.boxes import box_of_mask
from cxrbench.nn.spatial_transformer import random_windows, theta_of_window, warp

VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="r", split="cv5", split_digest="s", fold=0,
    labels=("Edema", "Mass"),
)  # fmt: skip
TINY = Recipe(size=32, load=32, train_view="whole", schedule="cosine", warmup_epochs=1, epochs=4)
SMALL: dict[str, Any] = {"backbone": "resnet10t", "loc_size": 80, "recipe": TINY}


def stn(**change: Any) -> AttentionSTN:
    torch.manual_seed(0)
    return AttentionSTN(AttentionParams(**{**SMALL, **change}), VIEW.labels)


def stern(**change: Any) -> STERN:
    torch.manual_seed(0)
    params = SternParams(**{**SMALL, "attention": MethodParams(recipe=TINY), **change})
    return STERN(params, VIEW.labels)


def a_batch(side: int = 32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (3, 1, side, side), generator=random, dtype=torch.uint8),
        "target": torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]),
        "known": torch.tensor([[True, True], [False, True], [True, False]]),
        "row": torch.arange(3),
    }


# --- presets: METHOD_CARDS sections 2 and 6


def test_the_paper_s_recipe() -> None:
    params = AttentionSTN.resolve("paper", {}, {}, where="x")
    baseline = VGG16.resolve("paper", {}, {}, where="x")
    assert params.recipe == baseline.recipe
    r = params.recipe
    assert (r.optimizer, r.learning_rate, r.epochs, r.sampler) == ("adam", 1e-5, 20, "balanced")
    assert (r.augment.rotate, r.augment.shear, r.size) == (5, 3, 512)
    assert (params.pretrained, params.loc_size, params.start) == ("none", 256, (1, 0.1, 0, 0))
    assert not params.bounded
    assert params.window_rate == 1
    assert params.recovery_weight == params.step_weight == 0
    later = STERN.resolve("paper", {}, {}, where="x")
    assert (later.aspect_limit, later.recipe, later.attention.recipe) == (1.25, r, r)


def test_tuned_windows_are_bounded_follow_and_begin_nearly_whole() -> None:
    for cls in (AttentionSTN, STERN):
        params = cls.resolve("tuned", {}, {}, where="x")
        assert params.bounded
        # The classifier has learnt before, the localisation net has not.
        assert (params.window_rate, params.start) == (10, (0.8, 0.8, 0, 0))
        assert (params.recovery_weight, params.step_weight) == (10, 1)
        assert (params.pretrained, params.recipe.optimizer) == ("imagenet", "adamw")
        assert params.recipe.ema_decay
        assert params.recipe.train_view == "resize"


def test_the_localisation_net_has_the_paper_s_size() -> None:
    def count(loc_size: int | None, side: int) -> int:
        recipe = Recipe(size=side, load=side)
        module = stn(loc_size=loc_size, recipe=recipe)
        return sum(p.numel() for p in module.window.parameters())

    assert count(256, 512) == 861_380
    assert count(None, 512) == 3_482_820


@pytest.mark.parametrize("preset", ["paper", "tuned", "quick"])
def test_stern_begins_with_the_attention_stn_itself(preset: Any) -> None:
    laid = {"batch_size": 8}
    final = STERN.stages(VIEW, STERN.resolve(preset, {}, laid, where="x"))
    alone = AttentionSTN.stages(VIEW, AttentionSTN.resolve(preset, {}, laid, where="x"))
    assert final.inputs["attention"].digest == alone.digest
    assert {s.name for s in final.ancestry().values()} == {"attention-stn", "stern"}


# --- the module


@pytest.mark.parametrize("bounded", [False, True])
def test_what_is_classified_is_what_the_window_shows(bounded: bool) -> None:
    window = (0.5, 0.8, 0.1, -0.2)
    module = stn(start=window, bounded=bounded).eval()
    image = a_batch()["image"].float() / 255
    with torch.inference_mode():
        found = module.locate(image)
        torch.testing.assert_close(found, torch.tensor(window).expand(3, 4), rtol=1e-5, atol=1e-6)
        shown = warp(image, theta_of_window(found), (32, 32))
        assert torch.equal(module(image), module.net(module.normalise(shown)))
        assert not torch.allclose(module(image), module.net(module.normalise(image)))


def test_outside_the_image_is_black_not_grey() -> None:
    module = stn(start=(3.0, 3.0, 0, 0)).eval()
    seen: list[torch.Tensor] = []
    module.net.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    with torch.inference_mode():
        module(torch.ones(1, 1, 32, 32))
    black = module.normalise(torch.zeros(1, 1, 1, 1))
    torch.testing.assert_close(seen[0][:, :, :1, :1], black)


def test_the_window_learns_from_the_classification() -> None:
    module = stn(start=(0.8, 0.8, 0, 0)).eval()
    module.losses(a_batch())["loss"].backward()
    last = module.window.head[-1].bias.grad
    assert last is not None
    assert (last != 0).all()


def test_the_paper_s_window_learns_from_the_classification_alone() -> None:
    module, batch = stn().eval(), a_batch()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = module.losses(batch)
    assert set(found) == {"loss"}
    assert torch.equal(torch.get_rng_state(), before), "it moves films"
    logits, known = module(batch["image"].float() / 255), batch["known"]
    bce = F.binary_cross_entropy_with_logits(logits[known], batch["target"][known])
    assert found["loss"].item() == pytest.approx(bce.item(), rel=1e-5)


@pytest.mark.parametrize("make", [stn, stern])
def test_what_following_costs_by_hand(make: Any) -> None:
    """One window (s, t) for all films: of a film that is moved by (a, b) it is log a and (a - 1) t + b off."""
    start = (0.8, 0.7, 0.1, 0)
    shared: dict[str, Any] = {"bounded": True, "start": start}
    plain = make(**shared).eval()
    module = make(**shared, recovery_weight=10.0, step_weight=1.0).eval()
    batch = a_batch()
    torch.manual_seed(3)
    found = module.losses(batch)
    torch.manual_seed(3)
    known = random_windows(3, torch.device("cpu"))
    window = torch.tensor(start).expand(3, 4)
    shift = (known[:, :2] - 1) * window[:, 2:] + known[:, 2:]
    error = (known[:, :2].log().square() + shift.square()).sum(1).mean().item()
    assert error > 0.01
    assert found["recovery"].item() == pytest.approx(error, rel=1e-4)
    expected = (
        plain.losses(batch)["loss"].item() + 10 * error
    )  # and nothing for the way from the start
    assert found["loss"].item() == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        module.window.head[-1].bias.copy_(torch.zeros(4))
    away = torch.tensor([0.7, 0.7, 0, 0])
    torch.manual_seed(3)
    stepped = module.losses(batch)
    step = (away - torch.tensor(start)).square().sum().item()
    rest = stepped["loss"].item() - 10 * stepped["recovery"].item() - step
    with torch.no_grad():
        plain.window.head[-1].bias.copy_(torch.zeros(4))
    assert rest == pytest.approx(plain.losses(batch)["loss"].item(), rel=1e-3)


def test_windows_that_follow_are_bounded() -> None:
    with pytest.raises(ConfigError, match="recovery_weight needs bounded=true"):
        AttentionSTN.resolve("paper", {"recovery_weight": 1.0}, {}, where="x")


def test_the_localisation_net_is_slower_through_warm_up_and_cosine() -> None:
    module = stn(window_rate=0.1)
    module.steps_per_epoch = 5
    made = module.configure_optimizers()
    optimiser, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    plain = stn()
    plain.steps_per_epoch = 5
    expected = plain.configure_optimizers()
    slow = {id(p) for p in module.window.parameters()}
    groups = optimiser.param_groups
    assert {id(p) for p in groups[1]["params"]} == slow
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in module.parameters()} - slow
    for _ in range(20):
        rates = [group["lr"] for group in groups]
        assert rates[0] == pytest.approx(expected["optimizer"].param_groups[0]["lr"])
        assert rates[1] == pytest.approx(rates[0] / 10)
        for one in (optimiser, schedule, expected["optimizer"], expected["lr_scheduler"]["scheduler"]):  # fmt: skip
            one.step()


def test_a_slower_net_stays_slower_with_a_constant_rate_and_on_a_plateau() -> None:
    constant = TINY.model_copy(update={"schedule": "constant", "warmup_epochs": 0})
    made = stn(window_rate=0.5, recipe=constant).configure_optimizers()
    assert [g["lr"] for g in made.param_groups] == pytest.approx([1e-4, 5e-5])
    plateau = TINY.model_copy(update={"schedule": "plateau", "warmup_epochs": 0})
    made = stn(window_rate=0.5, recipe=plateau).configure_optimizers()
    for _ in range(TINY.plateau_patience + 2):
        made["lr_scheduler"]["scheduler"].step(1.0)
    assert [g["lr"] for g in made["optimizer"].param_groups] == pytest.approx([1e-5, 5e-6])


def logged(module: Any, batch: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    module.log_dict = lambda values, **options: found.update(
        {name: float(value) for name, value in values.items()}
    )
    with torch.inference_mode():
        module.eval().validation_step(batch, 0)
    return found


def test_the_mean_window_stands_in_the_log() -> None:
    module, batch = stn(start=(0.9, 0.7, 0.1, -0.2)), a_batch()
    assert logged(module, batch) == pytest.approx(
        {"val_sx": 0.9, "val_sy": 0.7, "val_tx": 0.1, "val_ty": -0.2}
    )
    [(row, logits, *_)] = module._validation
    assert torch.equal(row, batch["row"])
    torch.testing.assert_close(logits, module(batch["image"].float() / 255))


# --- STERN


@pytest.mark.parametrize(("start", "price"), [((1.0, 0.5, 0, 0), 0.75), ((0.8, 0.8, 0, 0), 0.0)])
def test_stern_s_loss_by_hand(start: Any, price: float) -> None:
    module, batch = stern(start=start).eval(), a_batch()
    found = module.losses(batch)
    logits, known = module(batch["image"].float() / 255), batch["known"]
    bce = F.binary_cross_entropy_with_logits(logits[known], batch["target"][known])
    assert found["bce"].item() == pytest.approx(bce.item(), rel=1e-5)
    assert found["aspect"].item() == pytest.approx(price, abs=1e-6)
    assert found["loss"].item() == pytest.approx(bce.item() + price, rel=1e-5)
    seen = logged(module, batch)
    assert seen["val_stern_loss"] == pytest.approx(found["loss"].item(), rel=1e-5)
    assert seen["val_sy"] == pytest.approx(start[1])


def test_stern_chooses_by_its_whole_loss_unless_told() -> None:
    assert stern().monitor == "val_stern_loss"
    assert stern(recipe=TINY.model_copy(update={"select": "val_auc"})).monitor == "val_auc"


def test_stern_receives_the_first_training_whole(tmp_path: Path) -> None:
    first = stn(start=(0.7, 0.6, 0.1, 0))
    state = dict(first.state_dict())
    save_file(state, tmp_path / "model.safetensors")
    torch.manual_seed(1)
    second = stern()
    second.receive({"attention": tmp_path})
    assert all(torch.equal(tensor, state[name]) for name, tensor in second.state_dict().items())
    state.pop("window.head.0.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"attention STN.*window\.head\.0\.weight"):
        second.receive({"attention": tmp_path})


# --- regions against lungs


def lungs(side: int = 40) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    mask[8:32, 6:16] = mask[8:32, 24:34] = 255
    return mask


def test_regions_are_held_against_lungs() -> None:
    masks = np.stack([lungs(), lungs(), np.zeros((40, 40), np.uint8)])
    whole, lower = [0.0, 0, 1, 1], [0.0, 0.5, 1, 1]
    truth = [box_of_mask(mask) for mask in masks]
    found = compare(np.array([whole, lower, whole]), masks, truth)
    np.testing.assert_allclose(found["covered"], [1, 12 / 24, np.nan])
    np.testing.assert_allclose(found["apices"], [1, 0, np.nan])
    box = (34 - 6) * (32 - 8)
    np.testing.assert_allclose(found["iou"], [box / 1600, (28 * 12) / (box + 800 - 28 * 12), np.nan])  # fmt: skip


class Films:
    """Images as a compute stage gets them."""

    def __init__(self, films: np.ndarray, masks: np.ndarray | None, frame: pd.DataFrame) -> None:
        self.films, self.has_masks = films, masks is not None
        self._masks = masks
        self.index = SimpleNamespace(frame=frame, image_ids=frame["image_id"].to_numpy())
        self.rows = np.arange(len(films))

    def masks(self) -> np.ndarray | None:
        return self._masks

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, place: Any) -> np.ndarray:
        return self.films[place]


@pytest.mark.parametrize("known", [True, False])
def test_the_windows_are_measured_listed_and_drawn(tmp_path: Path, known: bool) -> None:
    module = stn(start=(0.5, 0.5, 0.0, 0.5))
    save_file(dict(module.state_dict()), tmp_path / "model.safetensors")
    films = np.random.default_rng(0).integers(0, 256, (40, 40, 40)).astype(np.uint8)
    frame = pd.DataFrame({"image_id": [f"film-{n}" for n in range(40)]})
    masks = np.stack([lungs()] * 40) if known else None
    report = Windows(WindowsParams(films=40, size=32, loc_size=80))
    assert report.image_size() == 40
    found = report.compute(Films(films, masks, frame), None, {"model": tmp_path}, tmp_path, 0)
    json.dumps(found, allow_nan=False)
    assert found["images"] == 40
    assert found["area"] == pytest.approx(0.25)
    assert found["ty"]["mean"] == pytest.approx(0.5)
    table = pd.read_csv(tmp_path / "regions.csv")
    assert list(table["image_id"]) == list(frame["image_id"])
    np.testing.assert_allclose(table[["x0", "y0", "x1", "y1"]], [[0.25, 0.5, 0.75, 1]] * 40)
    assert ("lungs" in found) is known
    if known:
        assert found["lungs"]["covered"]["mean"] == pytest.approx(6 * 2 / 20 / 2)
        assert found["lungs"]["apices"]["mean"] == 0
    picture, means = json.loads((tmp_path / "gallery.json").read_text())
    assert (picture["films"], means["films"]) == (True, False)
    assert ("true lungs" in picture["caption"]) is known
    assert (tmp_path / picture["file"]).stat().st_size > 1000


def test_beside_a_detector_s_crops_there_are_three_columns(tmp_path: Path) -> None:
    """As in the paper's figure: original with both boxes, crop, window."""
    for name in ("model", "crops"):
        (tmp_path / name).mkdir()
    save_file(dict(stn().state_dict()), tmp_path / "model" / "model.safetensors")
    films = np.full((30, 40, 40), 40, np.uint8)
    # The artefact of the crops holds all images; the test images are those from 10 on.
    crops = np.repeat(np.arange(40, dtype=np.uint8) * 5, 32 * 32).reshape(40, 32, 32)
    np.save(tmp_path / "crops" / "images.npy", crops)
    boxes = np.zeros((40, 10), np.float32)
    boxes[:, 6:] = (0.25, 0.25, 0.5, 0.5)
    np.save(tmp_path / "crops" / "boxes.npy", boxes)
    images = Films(films, None, pd.DataFrame({"image_id": [f"film-{n}" for n in range(30)]}))
    images.rows = np.arange(10, 40)
    report = Windows(WindowsParams(films=40, size=32, loc_size=80))
    widths = []
    for inputs in ({}, {"crops": tmp_path / "crops"}):
        given = {"model": tmp_path / "model", **inputs}
        report.compute(images, None, given, tmp_path, 0)
        with Image.open(tmp_path / "gallery.png", formats=("PNG",)) as sheet:
            drawn = np.asarray(sheet.convert("RGB"))
        widths.append(drawn.shape[1])
    assert widths[1] * 2 == widths[0] * 3
    column = TILE + GAP
    assert drawn[100, column + 100].tolist() == [50] * 3, "not the crop of the first test image"
    last = drawn[5 * (TILE + BAR) + 100, column + 100]
    assert last.tolist() == [39 * 5] * 3
    assert drawn[TILE // 4, round(TILE * 0.4)].tolist() == [0x4A, 0xA3, 0xFF], "no blue box"
    assert "detector's crop" in json.loads((tmp_path / "gallery.json").read_text())[0]["caption"]


@pytest.mark.parametrize("preset", ["paper", "tuned", "quick"])
@pytest.mark.parametrize("laid", [{}, {"epochs": 2, "batch_size": 8}])
def test_windows_stand_beside_the_crops_of_thorax_crop_s_own_run(preset: Any, laid: Any) -> None:
    lungs_ = replace(VIEW, dataset="lung-masks", external=True, labels=())
    data = replace(VIEW, externals={"lung-masks": lungs_})
    machine = {"precision": "bf16-mixed", **laid}  # what `auto` became, and a sweep's own recipe
    crop = ThoraxCrop.view(data, ThoraxCrop.resolve(preset, {}, machine, where="x"))
    for cls in (AttentionSTN, STERN):
        params = cls.resolve(preset, {}, machine, where="x")
        windows = cls.analyses(data, params, cls.stages(data, params))["windows"]
        assert crop.images is not None
        assert windows.inputs["crops"].digest == crop.images.digest
        alone = cls.analyses(VIEW, params, cls.stages(VIEW, params))["windows"]
        assert set(alone.inputs) == {"model"}


@pytest.mark.parametrize("preset", ["paper", "quick"])
def test_how_windows_are_shown_decides_no_training(preset: Any) -> None:
    for cls in (AttentionSTN, STERN):
        without = cls.resolve(preset, {"crops": None}, {}, where="x")
        model = cls.stages(VIEW, cls.resolve(preset, {}, {}, where="x"))
        assert model.digest == cls.stages(VIEW, without).digest
        data = replace(VIEW, externals={"lung-masks": replace(VIEW, dataset="lung-masks")})
        assert set(cls.analyses(data, without, model)["windows"].inputs) == {"model"}


def test_the_picture_is_what_the_classifier_gets() -> None:
    report = Windows(WindowsParams(films=40, size=40))
    film = np.arange(1600, dtype=np.uint8).reshape(1, 40, 40)
    columns = {"sx": np.array([-1.0]), "sy": np.array([1.0]), "tx": np.zeros(1), "ty": np.zeros(1)}
    seen = report.shown(film, np.array([[0.0, 0, 1, 1]]), columns)
    np.testing.assert_array_equal(seen, film[:, :, ::-1])  # a window may mirror


# --- recall by finding


def test_recall_by_finding_at_both_thresholds(tmp_path: Path) -> None:
    count = 40
    rows = pd.DataFrame(
        {
            "image_id": [f"{part}-{n}" for part in ("val", "test") for n in range(count)],
            "part": ["val"] * count + ["test"] * count,
            "target:abnormal": ([1.0] * 20 + [0.0] * 20) * 2,
            "probability:abnormal": [
                *np.linspace(0.99, 0.6, 19), 0.05, *np.linspace(0.5, 0.1, 20),
                *np.linspace(0.99, 0.6, 18), 0.3, 0.05, *np.linspace(0.5, 0.1, 20),
            ],
        }
    )  # fmt: skip
    rows.to_parquet(tmp_path / "predictions.parquet")
    marks = np.full((count, 2), np.nan)
    marks[0, 0] = marks[18, 0] = 1  # caught with a margin, and between the thresholds
    marks[1, 0] = -1  # counts as in the paper
    marks[19, 1] = 1  # missed by both
    marks[2, 1] = 0  # is not there
    marks[30, 1] = 1  # of a film that is not positive
    columns = {f"finding:{name}": marks[:, k] for k, name in enumerate(("Edema", "Fracture"))}
    ids = [f"test-{n}" for n in range(count)]
    frame = pd.DataFrame({"image_id": ids, **columns}).iloc[::-1]
    images = Films(np.zeros((count, 8, 8), np.uint8), None, frame)
    report = FindingRecall(RecallParams(side=8))
    found = report.compute(images, None, {"predictions": tmp_path}, tmp_path, 0)
    assert (found["label"], found["positive_images"]) == ("abnormal", 20)
    test, validation = found["at_test_threshold"], found["at_validation_threshold"]
    assert test["threshold"] == pytest.approx(0.3)
    assert test["recall"] == pytest.approx(0.95)
    assert test["findings"] == {
        "Edema": {"images": 3, "recall": 1.0},
        "Fracture": {"images": 1, "recall": 0.0},
    }
    assert list(test["findings"]) == ["Edema", "Fracture"]
    assert validation["threshold"] == pytest.approx(0.6)
    assert validation["findings"]["Edema"]["recall"] == pytest.approx(2 / 3)
    [listed] = read_gallery(tmp_path)
    assert not listed.films
    assert (tmp_path / listed.file).stat().st_size > 1000
    frame = frame[["image_id"]]  # without findings there is nothing to draw
    images = Films(np.zeros((count, 8, 8), np.uint8), None, frame)
    found = report.compute(images, None, {"predictions": tmp_path}, tmp_path, 0)
    assert found["at_test_threshold"]["findings"] == {}
    assert read_gallery(tmp_path) == []


def test_recall_by_finding_is_asked_of_one_label_alone() -> None:
    params = AttentionSTN.resolve("quick", {}, {}, where="x")
    model = AttentionSTN.stages(VIEW, params)
    assert set(AttentionSTN.analyses(VIEW, params, model)) == {"windows"}
    one = replace(VIEW, labels=("abnormal",))
    found = AttentionSTN.analyses(one, params, AttentionSTN.stages(one, params))
    assert set(found) == {"windows", "recall by finding"}
    assert all(stage.part == "test" for stage in found.values())


# --- the paper's table as a benchmark


def test_the_paper_s_table_is_the_first_rows_of_a_benchmark() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "papers" / "attention-stn.yaml"
    spec = BenchSpec.parse(read_yaml(path), where=str(path))
    assert spec.methods[:4] == ["vgg16", "thorax-crop", "attention-stn", "stern"]
    assert spec.datasets[0].params == {"task": "abnormal"}
    assert spec.preset == "paper"
