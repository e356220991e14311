"""thorax-crop: the detector's steps, the rule of the crop, its graph, and what is measured of its boxes."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.spec import Recipe
from cxrbench.core.stage import DataView, find_leaks, predict, score
from cxrbench.methods.thorax_crop import (
    CropParams,
    Cropper,
    CropThorax,
    DetectorParams,
    ThoraxBoxes,
    ThoraxCrop,
    ThoraxDetector,
    cut,
)
from cxrbench.methods.vgg16 import VGG16

MASKS = DataView(
    dataset="lung_masks", version=1, params={}, revision="m", split="cv5", split_digest="t", fold=0,
    labels=(), external=True,
)  # fmt: skip
VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="r", split="cv5", split_digest="s", fold=0,
    labels=("Edema", "Mass"), externals={"lung-masks": MASKS},
)  # fmt: skip
DETECTOR = DetectorParams(pretrained="none", side=64, recipe=Recipe(size=64, load=64))
BOX = (0.25, 0.125, 0.75, 0.875)


def detector() -> ThoraxDetector:
    torch.manual_seed(0)
    return ThoraxDetector(DETECTOR, ())


def a_batch() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (4, 1, 64, 64), generator=random, dtype=torch.uint8),
        "box": torch.tensor([BOX, (0.1, 0.2, 0.8, 0.9), (0, 0, 0, 0), BOX]),
        "box_known": torch.tensor([True, True, False, True]),
    }


class Told(nn.Module):
    """In place of a network: finds what it is told."""

    def __init__(self, boxes: Any, confidence: Any) -> None:
        super().__init__()
        self.boxes, self.confidence = torch.tensor(boxes), torch.tensor(confidence)

    def best_box(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.shape[1] == 1
        assert images.max() <= 1
        return self.boxes[: len(images)], self.confidence[: len(images)]


# --- the detector


def test_the_detector_learns_from_images_with_lungs_in_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, batch = detector(), a_batch()
    given: list[Tensor] = []
    own = module.detector.losses
    monkeypatch.setattr(module.detector, "losses", lambda i, b: given.extend((i, b)) or own(i, b))
    found = module.training_step(batch, 0)
    found["loss"].backward()
    assert len(found) == 3
    assert torch.equal(given[1], batch["box"][[0, 1, 3]])
    assert torch.equal(given[0], batch["image"][[0, 1, 3]].float() / 255)
    assert all(p.grad is not None for p in module.parameters())
    batch["box_known"] = torch.zeros(4, dtype=torch.bool)
    with pytest.raises(DataError, match="no image of a batch has a lung in view"):
        module.training_step(batch, 0)


def test_a_good_box_that_is_doubted_is_no_good() -> None:
    module, batch = detector(), a_batch()
    half = (0.25, 0.125, 0.75, 0.5)
    module.detector = Told([BOX, (0.1, 0.2, 0.8, 0.9), half], [1.0, 0.5, 1.0])  # type: ignore[assignment]
    logged: dict[str, Any] = {}
    module.log_dict = lambda values, **options: logged.update(values, **options)
    module.validation_step(batch, 0)
    assert logged["batch_size"] == 3
    assert float(logged["val_iou"]) == pytest.approx((1 + 1 + 0.5) / 3)
    assert float(logged["val_loss"]) == pytest.approx(1 - (1 + 0.5 + 0.5) / 3)
    assert module.monitor == "val_loss"


def test_the_detector_is_loaded_without_fetching_weights() -> None:
    coco = DetectorParams()
    assert coco.pretrained == "coco"
    assert ThoraxDetector.without_weights(coco).pretrained == "none"
    assert detector().weights_source() == {"source": "none", "sha256": None, "new_layers": []}


# --- the crop


def test_a_square_is_cut_out_whole() -> None:
    films = np.arange(2 * 40 * 40, dtype=np.int64).reshape(2, 40, 40).astype(np.uint8)
    squares = torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0]])
    found = cut(films, squares, 20)
    assert found.shape == (2, 20, 20)
    np.testing.assert_array_equal(found[0], films[0, 20:40, 10:30])
    assert cut(films, squares, 10)[1].std() < films[1].std()  # averaged, not picked
    edge = torch.tensor([[0.49, 0.49, 1.0, 1.0]])
    np.testing.assert_array_equal(cut(films[:1], edge, 20)[0], films[0, 20:, 20:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the detector's training left."""
    save_file(dict(detector().state_dict()), tmp_path / "model.safetensors")
    return tmp_path


def told(monkeypatch: pytest.MonkeyPatch, boxes: Any, confidence: Any) -> None:
    def find(self: Cropper, films: Any) -> tuple[Tensor, Tensor]:
        return Told(boxes, confidence).best_box(torch.zeros(len(films), 1, 1, 1))

    monkeypatch.setattr(Cropper, "find", find)


def test_the_crop_uses_what_the_detector_learned(folder: Path) -> None:
    params = CropParams(detector=DETECTOR, films=64, size=32)
    films = a_batch()["image"][:, 0].numpy()
    with torch.inference_mode():
        found = Cropper(params, folder).find(films)
        expected = detector().eval().detector.best_box(a_batch()["image"].float() / 255)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_boxes_are_widened_squared_and_trusted_from_the_confidence_on(folder: Path) -> None:
    boxes, sure = torch.tensor([BOX, BOX]), torch.tensor([0.9, 0.89])
    plain = Cropper(CropParams(detector=DETECTOR), folder).squares(boxes, sure)
    torch.testing.assert_close(plain[0], torch.tensor([[0.125, 0.125, 0.875, 0.875], [0, 0, 1, 1]]))
    assert plain[1].tolist() == [False, True]
    wide = Cropper(CropParams(detector=DETECTOR, margin=0.2, confidence=0.5), folder)
    squares, whole = wide.squares(boxes, sure)
    torch.testing.assert_close(squares, torch.tensor([[0.05, 0.05, 0.95, 0.95]] * 2))
    assert not whole.any()


def test_every_image_is_cut_to_one_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, [BOX, BOX], [0.95, 0.1])
    change = CropThorax(CropParams(detector=DETECTOR, films=64, size=48))
    assert change.image_size() == 64
    change.open({"detector": folder}, "cpu")
    films = a_batch()["image"][:2, 0].numpy()
    found = change(films)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], films[0, 8:56, 8:56])
    assert found.shape == (2, 48, 48)


# --- what is measured


def lungs() -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[8:56, 16:28] = mask[8:56, 36:48] = 255  # inside BOX exactly
    return mask


class Films:
    """Images as a compute stage gets them."""

    def __init__(self, count: int, masks: np.ndarray | None) -> None:
        random = np.random.default_rng(0)
        self.films = random.integers(0, 256, (count, 64, 64)).astype(np.uint8)
        self.has_masks, self._masks = masks is not None, masks
        ids = np.array([f"film-{n}" for n in range(count)])
        self.index = SimpleNamespace(image_ids=ids)
        self.rows = np.arange(count) + 2  # two other images come before them

    def masks(self) -> np.ndarray | None:
        return self._masks

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, place: Any) -> np.ndarray:
        return self.films[place]


@pytest.mark.parametrize("known", [True, False])
def test_boxes_are_counted_scored_and_kept_as_numbers(
    folder: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right and sure, wrong and sure, right and doubted, nothing found; and a film without lungs."""
    boxes = [BOX, (0.0, 0.0, 0.25, 0.25), BOX, (0.0, 0.0, 1.0, 1.0), BOX]
    sure = [0.99, 0.95, 0.5, 0.0, 0.1]
    taller = lungs()
    taller[:, 16:18] = 255  # a film whose box is as high as the image
    masks = (
        np.stack([lungs(), lungs(), lungs(), taller, np.zeros((64, 64), np.uint8)])
        if known
        else None
    )
    params, films = CropParams(detector=DETECTOR, films=64, size=64), Films(5, masks)
    change = CropThorax(params)
    change.open({"detector": folder}, "cpu")
    told(monkeypatch, [BOX, BOX], [0.3, 0.3])
    change(films.films[:2])
    told(monkeypatch, boxes, sure)
    change(films.films)
    assert change.leave(folder)["whole_images"] == 5
    found = ThoraxBoxes(params).compute(films, None, {"crops": folder}, folder, 0)
    json.dumps(found, allow_nan=False)
    assert found["whole_images"] == 3
    table = pd.read_csv(folder / "regions.csv")
    np.testing.assert_allclose(table[["box_x0", "box_y0", "box_x1", "box_y1"]], boxes)
    assert table["x0"].tolist() == [0.125, 0, 0, 0, 0]
    assert table["whole"].tolist() == [0, 0, 1, 1, 1]
    assert (folder / "gallery.png").is_file()
    if not known:
        assert "average_precision_at_iou_50" not in found
        return
    # Ranked: right (1/1), wrong (1/2), right (2/3); four true boxes, of which two are found.
    assert found["average_precision_at_iou_50"] == pytest.approx((1 + 2 / 3) / 4)
    assert found["iou_of_trusted_boxes"] == pytest.approx(0.5)
    np.testing.assert_allclose(table["covered"], [1, 0, 1, 1, np.nan])
    # The mean box is 1/32 of the side higher above and below than the three, 3/32 lower than the fourth.
    floor = (3 * 0.75 / (0.75 + 2 / 32) + (0.75 + 2 / 32) / 1) / 4
    assert found["iou_of_one_box_for_all"] == pytest.approx(floor)


# --- the graph


def test_the_paper_s_detector_and_rule() -> None:
    params = ThoraxCrop.resolve("paper", {}, {}, where="x")
    r = params.thorax.recipe
    assert (r.optimizer, r.learning_rate, r.epochs, r.batch_size) == ("sgd", 1e-2, 150, 16)
    module = ThoraxDetector(params.thorax.model_copy(update={"pretrained": "none"}), ())
    group = module.configure_optimizers()["optimizer"].param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.937, True)
    assert group["weight_decay"] == 5e-4
    assert (params.confidence, params.margin, params.detector_data) == (0.9, 0, "lung-masks")
    assert (params.thorax.pretrained, params.thorax.detector) == ("coco", "ssdlite")
    assert params.classifier == VGG16.resolve("paper", {}, {}, where="x")
    assert params.crop.size == params.recipe.load == 512
    tuned = ThoraxCrop.resolve("tuned", {}, {}, where="x").thorax.recipe
    assert (tuned.epochs, tuned.schedule, tuned.ema_decay is not None) == (50, "cosine", True)


@pytest.mark.parametrize("preset", ["paper", "tuned", "quick"])
def test_what_is_trained_is_the_baseline_on_crops(preset: Any) -> None:
    params = ThoraxCrop.resolve(preset, {}, {}, where="x")
    model = ThoraxCrop.stages(VIEW, params)
    assert (model.name, model.data.images.name) == ("vgg16", "crop-thorax")
    baseline = VGG16.stages(VIEW, params.classifier)
    assert model.params == baseline.params
    assert find_leaks(score(predict(model, VIEW), replicates=0, seed=0)) == []
    analyses = ThoraxCrop.analyses(VIEW, params, model)
    assert all(stage.part == "test" for stage in analyses.values())
    assert "detector" in analyses, "it is fitted on other data"


def test_quick_fits_its_detector_at_home_where_no_lung_masks_are_given() -> None:
    params = ThoraxCrop.resolve("quick", {}, {}, where="x")
    alone = replace(VIEW, externals={})
    assert ThoraxCrop.detector(VIEW, params).data == MASKS
    assert ThoraxCrop.detector(alone, params).data == alone
    home = ThoraxCrop.resolve("quick", {"detector_data": "home"}, {}, where="x")
    assert ThoraxCrop.detector(VIEW, home).data == VIEW
    model = ThoraxCrop.stages(alone, params)
    assert "detector" not in ThoraxCrop.analyses(alone, params, model)


def test_a_detector_of_other_data_is_one_for_all_folds() -> None:
    params = ThoraxCrop.resolve("paper", {}, {}, where="x")
    first = ThoraxCrop.view(VIEW, params)
    second = ThoraxCrop.view(VIEW.at(fold=3), params)
    assert first.images is not None
    assert second.images is not None
    assert first.images.digest == second.images.digest
    with pytest.raises(ConfigError, match="--external lung-masks=DIR"):
        ThoraxCrop.view(replace(VIEW, externals={}), params)


def test_a_detector_of_the_home_data_is_each_fold_s_own_and_of_raw_images() -> None:
    params = ThoraxCrop.resolve("quick", {}, {}, where="x")
    view = ThoraxCrop.view(VIEW, params)
    again = ThoraxCrop.view(view, params)  # on images that another method has rewritten
    assert view.images is not None
    assert again.images is not None
    assert again.images.inputs["detector"].digest == view.images.inputs["detector"].digest
    other = ThoraxCrop.stages(VIEW.at(fold=1), params)
    assert "fold 1" in " ".join(find_leaks(score(predict(other, VIEW), replicates=0, seed=0)))
