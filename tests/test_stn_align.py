"""stn-align: the canonical chest, the aligner's losses and collapse, aligned views, the report, the graphs."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from cxrbench.core.errors import ConfigError
from cxrbench.core.spec import BenchSpec, Execution, MethodEntry, Recipe
from cxrbench.core.stage import DataView, find_leaks, predict, score
from cxrbench.core.store import Store
from cxrbench.methods import aligner as module_under_test
from cxrbench.methods.aligner import (
    Align,
    Aligner,
    AlignerParams,
    AlignParams,
    CollapsedPoseError,
    places,
    random_poses,
    refuse_collapse,
    turned,
    warped,
)
from cxrbench.methods.alignment_report import (
    AlignmentReport,
    ReportParams,
    _overlap,
    ends_of_lungs,
)
from cxrbench.methods.canonical_chest import (
    CanonicalChest,
    CanonicalFeatures,
    CanonicalParams,
    Crop,
    FeaturesParams,
    LossNetwork,
)
from cxrbench.methods.densenet121 import DenseNet121
from cxrbench.methods.stn_align import StnAlign, StnAlignJoint
from cxrbench.nn.perceptual import FeatureExtractor
from cxrbench.nn.spatial_transformer import theta_of_pose
from cxrbench.runner.bench import plan_bench, read_spec, run_bench

VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="r", split="cv5", split_digest="s", fold=0,
    labels=("Edema", "Mass"),
)  # fmt: skip
PAPER_TABLE = Path(__file__).parents[1] / "benchmarks" / "papers" / "stn-align.yaml"
SIDE = 32
TINY_POSE = {"backbone": "test_resnet", "pretrained": "none", "dropout": 0.0}
TINY_LOSS = {"network": "densenet121", "taps": ["relu0"], "pretrained": "none"}
TINY = {
    "pose": TINY_POSE,
    "loss": TINY_LOSS,
    "recipe": {"size": SIDE, "load": SIDE, "epochs": 3},
}


def blobs(count: int, side: int = SIDE, spread: float = 0.4, seed: int = 0) -> tuple[Any, Tensor]:
    """Films with one bright blob each: uint8 [N, S, S], and the blob's places (x, y) [N, 2]."""
    at = (torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * spread
    grid = (torch.arange(side) * 2 + 1) / side - 1
    far = (grid[None, None, :] - at[:, 0, None, None]) ** 2
    far = far + (grid[None, :, None] - at[:, 1, None, None]) ** 2
    return ((-far / 0.08).exp() * 250).round().byte().numpy(), at


class Films:
    """What a `compute` stage is given."""

    def __init__(self, pixels: Any, masks: Any = None, affines: Any = None) -> None:
        self.pixels, self._masks = pixels, masks
        self.has_masks = masks is not None
        self.index = SimpleNamespace(image_ids=np.array([f"film-{n}" for n in range(len(pixels))]))
        films = [SimpleNamespace(affine=a) for a in affines] if affines is not None else []
        self.dataset: Any = SimpleNamespace()
        if films:
            self.dataset.truth = lambda index, row, size: films[row]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, place: Any) -> Any:
        return self.pixels[place]

    def masks(self) -> Any:
        return self._masks


def chest_of(films: Any, folder: Path, **params: Any) -> tuple[Path, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    stage = CanonicalChest(CanonicalParams(size=SIDE, **params))
    return folder, stage.compute(Films(films), None, {}, folder, 7)


def features_of(films: Any, chest: Path, folder: Path, **params: Any) -> Path:
    folder.mkdir(exist_ok=True)
    params = {"loss": LossNetwork.parse(TINY_LOSS, where="x"), **params}
    stage = CanonicalFeatures(FeaturesParams(size=SIDE, **params))
    stage.compute(Films(films), None, {"chest": chest}, folder, 7)
    return folder


def an_aligner(**change: Any) -> Aligner:
    torch.manual_seed(0)
    return Aligner(AlignerParams.parse({**TINY, **change}, where="x"), ()).eval()


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What an aligner is trained towards, of forty blobs."""
    folder = tmp_path_factory.mktemp("received")
    films, _ = blobs(40)
    chest, _ = chest_of(films, folder / "chest", images=40)
    return {"chest": chest, "features": features_of(films, chest, folder / "features")}


# --- the canonical chest


def test_the_canonical_chest_is_the_crop_of_the_mean(tmp_path: Path) -> None:
    films, _ = blobs(21)
    crop = Crop(top=0.25, bottom=0.75, left=0.5, right=1.0)
    folder, facts = chest_of(films, tmp_path / "chest", images=1000, crop=crop)
    mean = films.mean(0) / 255
    np.testing.assert_allclose(np.load(folder / "mean.npy"), mean, atol=1e-6)
    expected = F.interpolate(
        torch.from_numpy(mean)[None, None, SIDE // 4 : 3 * SIDE // 4, SIDE // 2 :],
        (SIDE, SIDE), mode="bilinear", align_corners=False,
    )[0, 0]  # fmt: skip
    found = np.load(folder / "canonical.npy")
    np.testing.assert_allclose(found[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-5)
    assert facts["images"] == 21


def test_the_mean_is_of_n_images_that_the_seed_chooses(tmp_path: Path) -> None:
    films = (np.arange(50, dtype=np.uint8) * 5)[:, None, None] * np.ones((1, SIDE, SIDE), np.uint8)
    means = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = tmp_path / name
        folder.mkdir()
        stage = CanonicalChest(CanonicalParams(size=SIDE, images=10))
        assert stage.compute(Films(films), None, {}, folder, seed)["images"] == 10
        means.append(float(np.load(folder / "mean.npy").mean()) * 255)
    assert means[0] == means[1] != means[2]
    assert means[0] * 10 / 5 == pytest.approx(round(means[0] * 10 / 5), abs=1e-2), "not of ten"


def test_a_crop_without_area_is_refused() -> None:
    with pytest.raises(ConfigError, match="top must be above bottom"):
        Crop.parse({"top": 0.6, "bottom": 0.4}, where="x")
    pose = Crop(top=0.1, bottom=0.7, left=0.2, right=1.0).pose()[0]
    assert pose.tolist() == pytest.approx([0.2, -0.2, 0.8, 0.6, 0])


def loss_network(folder: Path) -> Any:
    extractor = FeatureExtractor("densenet121", ("relu0",), "none")
    extractor.load_state_dict(load_file(folder / "network.safetensors"))
    return extractor


def normalised(image: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (image.expand(-1, 3, -1, -1) - mean) / std


@pytest.mark.parametrize("target", ["canonical", "mean"])
def test_the_features_to_reach(target: Any, tmp_path: Path) -> None:
    films, _ = blobs(37)
    crop = Crop(left=0.3, right=0.9, top=0.1, bottom=0.9)
    chest, _ = chest_of(films, tmp_path / "chest", crop=crop)
    folder = features_of(
        films, chest, tmp_path / "features", target=target, crop=crop, width=1.0, images=1000
    )
    image = torch.from_numpy(films).float()[:, None] / 255
    if target == "canonical":
        image = image.mean(0, keepdim=True)
    window = torch.tensor([[0.6, 0.0, 0.2], [0.0, 0.8, 0.0]]).expand(len(image), -1, -1)
    grid = F.affine_grid(window, [len(image), 1, SIDE, SIDE], align_corners=False)
    with torch.inference_mode():
        seen = F.grid_sample(image, grid, align_corners=False)
        expected = loss_network(folder)(normalised(seen))[0].mean(0)
    found = load_file(folder / "features.safetensors")["relu0"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_loss_network_may_be_the_classifier_of_the_same_images(tmp_path: Path) -> None:
    films, _ = blobs(8)
    chest, _ = chest_of(films, tmp_path / "chest")
    params = DenseNet121.resolve("quick", {}, {}, where="x")
    torch.manual_seed(3)
    classifier = DenseNet121(params, VIEW.labels)
    (tmp_path / "classifier").mkdir()
    save_file(classifier.state_dict(), tmp_path / "classifier" / "model.safetensors")
    loss = LossNetwork(network="densenet121", taps=("transition2",), trained_here=True)
    stage = CanonicalFeatures(FeaturesParams(size=SIDE, loss=loss, target="canonical"))
    (tmp_path / "features").mkdir()
    inputs = {"chest": chest, "classifier": tmp_path / "classifier"}
    stage.compute(Films(films), None, inputs, tmp_path / "features", 0)
    kept = load_file(tmp_path / "features" / "network.safetensors")
    assert torch.equal(kept["features.conv0.weight"], classifier.net.features.conv0.weight)


# --- the aligner


@pytest.mark.parametrize(("reduction", "weight"), [("sum", 20.0), ("mean", 15.0)])
def test_the_loss_of_the_report_and_that_of_the_code(
    reduction: str, weight: float, received: dict[str, Path]
) -> None:
    module = an_aligner(reduction=reduction, pixel_weight=weight)
    module.receive(received)
    image = torch.from_numpy(blobs(3)[0]).float()[:, None] / 255
    with torch.inference_mode():
        found = module.losses(image)
        assert module.size == (32, 26)
        # A pose begins at the identity.
        seen = F.grid_sample(
            normalised(image),
            F.affine_grid(torch.eye(2, 3).expand(3, -1, -1), [3, 3, 32, 26], align_corners=False),
            align_corners=False,
        )
        chest = F.interpolate(
            torch.from_numpy(np.load(received["chest"] / "canonical.npy"))[None, None],
            (32, 26), mode="area",
        )  # fmt: skip
        pixels = ((seen - normalised(chest)) ** 2).mean()
        features = loss_network(received["features"])(seen)[0]
        target = load_file(received["features"] / "features.safetensors")["relu0"]
        feature = ((features - target) ** 2).mean()
    expected = feature + weight * pixels
    expected = expected / 2 if reduction == "mean" else expected
    assert found["pixels"].item() == pytest.approx(pixels.item(), rel=1e-4)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_correlation_and_small_steps_are_added(received: dict[str, Path]) -> None:
    image = torch.from_numpy(blobs(3)[0]).float()[:, None] / 255
    with torch.inference_mode():
        plain, more = an_aligner(), an_aligner(ncc_weight=2.0, step_weight=3.0)
        for module in (plain, more):
            module.receive(received)
        first, second = plain.losses(image), more.losses(image)
        # From the identity to the default crop: scales 0.84 and 0.9, no shift.
        step = (1 - 0.84) ** 2 + (1 - 0.9) ** 2
        added = 2 * (1 - first["ncc"]) + 3 * step
    assert second["loss"].item() - first["loss"].item() == pytest.approx(added.item(), rel=1e-4)


@pytest.mark.parametrize(("outside", "grey"), [("mean", None), ("black", 0.0), ("border", 1.0)])
def test_what_lies_outside_the_image(outside: Any, grey: float | None) -> None:
    module = an_aligner(outside=outside)
    white = torch.ones(1, 1, SIDE, SIDE)
    away = theta_of_pose(torch.tensor([[5.0, 0, 1, 1, 0]]))
    seen = module.look(white, away)
    expected = (
        torch.zeros(1, 3, 1, 1) if grey is None else normalised(torch.full((1, 1, 1, 1), grey))
    )
    torch.testing.assert_close(seen, expected.expand_as(seen), rtol=1e-4, atol=1e-5)
    view = warped(white, away, (4, 4), outside)
    assert view.unique().tolist() == pytest.approx([0.449 if grey is None else grey], abs=1e-3)


class Posed(torch.nn.Module):
    """A network with one answer."""

    def __init__(self, pose: list[float]) -> None:
        super().__init__()
        self.answer = torch.tensor([pose])

    def forward(self, image: Tensor) -> Tensor:
        return self.answer


def test_undoing_a_known_movement_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module, image = an_aligner(), torch.rand(1, 1, SIDE, SIDE)
    known = torch.tensor([[0.1, -0.2, 1.1, 1.1, 0.3]])
    monkeypatch.setattr(module_under_test, "random_poses", lambda count, device: known)

    own = torch.tensor([[0.2, -0.1, 0.8, 0.8, 0.1]])

    def posed(pose: list[float]) -> float:
        module.pose = Posed(pose)  # type: ignore[assignment]
        return float(module.recovery(image, own))

    # The known movement's inverse after the image's own pose.
    cos, sin, x, y = math.cos(0.3) / 1.1, math.sin(0.3) / 1.1, 0.2 - 0.1, -0.1 + 0.2
    undone = [cos * x + sin * y, -sin * x + cos * y, 0.8 / 1.1, 0.8 / 1.1, 0.1 - 0.3]
    assert posed(undone) == pytest.approx(0, abs=1e-10)
    itself = places(theta_of_pose(own))
    left = places(theta_of_pose(known), itself) - itself
    assert posed(own[0].tolist()) == pytest.approx(left.square().sum(-1).mean().item(), rel=1e-4)


def test_known_movements_stay_in_their_reach_and_fill_it() -> None:
    torch.manual_seed(0)
    poses = random_poses(2000, torch.device("cpu"), shift=0.2, scale=0.1, angle=20.0)
    assert poses[:, :2].abs().max() == pytest.approx(0.2, rel=0.01)
    assert torch.equal(poses[:, 2], poses[:, 3])
    assert poses[:, 2].min() == pytest.approx(0.9, abs=1e-3)
    assert poses[:, 2].max() == pytest.approx(1.1, abs=1e-3)
    assert poses[:, 4].abs().max() == pytest.approx(math.radians(20), rel=0.01)


def test_quarter_turns() -> None:
    image = torch.rand(64, 1, 8, 8)
    assert turned(image, 0.0) is image
    torch.manual_seed(0)
    all_turned = turned(image, 1.0)
    kinds = {k for a, b in zip(image, all_turned, strict=True) for k in range(4)
             if torch.equal(torch.rot90(a, k, (1, 2)), b)}  # fmt: skip
    assert kinds == {1, 2, 3}
    same = [torch.equal(a, b) for a, b in zip(image, turned(image, 0.25), strict=True)]
    assert 32 < sum(same) < 62


def test_a_collapse_is_an_error() -> None:
    good = torch.tensor([[0.0, 0, 0.9, 0.9, 0], [0.01, 0, 0.8, 0.9, 0.1], [0.2, 0, 0.9, 0.7, 0]])
    refuse_collapse(good, last=True)
    zoomed = good.clone()
    zoomed[1:, 3] = -0.2  # mirrored counts as small, too
    for last in (False, True):
        with pytest.raises(CollapsedPoseError, match=r"scale below 0\.20 .*learning_rate"):
            refuse_collapse(zoomed, last=last)
    one_wild = good.clone()
    one_wild[0, 2] = 0.1
    refuse_collapse(one_wild, last=True)
    equal = good[:1].expand(9, -1)
    refuse_collapse(equal, last=False)
    with pytest.raises(CollapsedPoseError, match=r"9 validation images have one pose, \[0\.0, 0"):
        refuse_collapse(equal, last=True)


def test_a_collapse_fails_the_validation(received: dict[str, Path]) -> None:
    module = an_aligner()
    module.receive(received)
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    module.all_gather = lambda poses: poses  # type: ignore[method-assign]
    batch: Any = {"image": torch.from_numpy(blobs(4)[0])[:, None]}
    for epoch in (0, 2):
        module._trainer = SimpleNamespace(current_epoch=epoch, world_size=1)  # type: ignore[assignment]
        with torch.inference_mode():
            module.validation_step(batch, 0)
        if epoch == 0:
            module.on_validation_epoch_end()
        else:
            with pytest.raises(CollapsedPoseError, match="4 validation images have one pose"):
                module.on_validation_epoch_end()


def test_steps_lower_the_loss_and_leave_the_loss_network_alone(received: dict[str, Path]) -> None:
    module = an_aligner(ncc_weight=1.0, pixel_weight=1.0)
    module.receive(received)
    before = {n: t.clone() for n, t in module.network.state_dict().items()}
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 2e-3)
    aside = np.roll(blobs(16, spread=0.1)[0], 5, axis=2)
    batch: Any = {"image": torch.from_numpy(aside)[:, None]}
    losses = []
    for step in range(15):
        optimiser.zero_grad()
        loss = module.training_step(batch, step)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], losses
    assert all(torch.equal(before[n], t) for n, t in module.network.state_dict().items())


def test_losses_are_float32_and_finite_under_autocast(received: dict[str, Path]) -> None:
    module = an_aligner(ncc_weight=1.0, recovery_weight=1.0, step_weight=1.0)
    module.receive(received)
    batch: Any = {"image": torch.from_numpy(blobs(4)[0])[:, None]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = module.training_step(batch, 0)
    assert {t.dtype for t in terms.values()} == {torch.float32}
    assert all(torch.isfinite(t) for t in terms.values())


def test_an_aligner_without_a_chest_does_not_train(received: dict[str, Path]) -> None:
    module = an_aligner()
    with pytest.raises(RuntimeError, match="received"):
        module.on_fit_start()
    module.receive(received)
    module.on_fit_start()
    assert not {"chest", "target0", "crop_pose"} & set(module.state_dict())
    assert an_aligner(recipe=Recipe(select="val_auc", size=SIDE, load=SIDE)).monitor == "val_loss"


# --- aligned views


def saved(folder: Path, module: Aligner) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    save_file(module.state_dict(), folder / "model.safetensors")
    return {"aligner": folder}


def align_with(module: Aligner, folder: Path, view: int = SIDE) -> Align:
    made = Align(
        AlignParams(pose=module.params.pose, outside=module.params.outside, size=SIDE, view=view)
    )
    made.open(saved(folder, module), "cpu")
    return made


@torch.inference_mode()
def test_an_untrained_aligner_changes_nothing(tmp_path: Path) -> None:
    films, _ = blobs(5)
    found = align_with(an_aligner(), tmp_path / "a")(films)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, films)


def scrambled(**change: Any) -> Aligner:
    """An aligner whose poses differ from image to image."""
    module = an_aligner(**change)
    torch.nn.init.normal_(module.pose.head[-1].weight, std=0.5)
    return module


@torch.inference_mode()
def test_a_view_is_what_the_trained_pose_shows_at_any_size(tmp_path: Path) -> None:
    films, _ = blobs(6, side=4 * SIDE)
    module = scrambled()
    align = align_with(module, tmp_path / "a", view=2 * SIDE)
    assert align.image_size() == 2 * SIDE
    image = torch.from_numpy(films).float()[:, None] / 255
    small = F.interpolate(image, (SIDE, SIDE), mode="area")
    pose = module.pose(normalised(small))
    assert float(pose.std(0).max()) > 0.003
    expected = warped(image, theta_of_pose(pose), (2 * SIDE, 2 * SIDE), "mean")[:, 0]
    found = align(films)
    assert found.shape == (6, 2 * SIDE, 2 * SIDE)
    np.testing.assert_allclose(found, (expected.clamp(0, 1) * 255).numpy(), atol=0.51)
    # What the losses look at is the same part of the image, in fewer columns.
    narrow = warped(image, theta_of_pose(pose), (2 * SIDE, SIDE), "mean")[:, 0]
    pairs = expected.view(6, 2 * SIDE, SIDE, 2).mean(-1)
    assert float((narrow - pairs).abs().mean()) < 0.01


@torch.inference_mode()
def test_the_aligner_inside_a_joint_classifier_is_measured_alike(tmp_path: Path) -> None:
    films, _ = blobs(5)
    module = scrambled()
    expected = align_with(module, tmp_path / "a")(films)
    inside = {f"aligner.{name}": tensor for name, tensor in module.state_dict().items()}
    save_file({**inside, "classifier.x": torch.zeros(1)}, tmp_path / "a" / "model.safetensors")
    align = Align(AlignParams(pose=module.params.pose, size=SIDE, view=SIDE))
    align.open({"aligner": tmp_path / "a"}, "cpu")
    np.testing.assert_array_equal(align(films), expected)


def test_a_view_refuses_half_an_aligner(tmp_path: Path) -> None:
    state = an_aligner().state_dict()
    state.pop("pose.head.3.bias")
    save_file(state, tmp_path / "model.safetensors")
    align = Align(AlignParams(pose=AlignerParams.parse(TINY, where="x").pose, size=SIDE, view=SIDE))
    with pytest.raises(RuntimeError, match=r"head\.3\.bias"):
        align.open({"aligner": tmp_path}, "cpu")


# --- the report


Posing = Callable[[Tensor], Tensor]


def by_centre(image: Tensor) -> Tensor:
    """The pose [B, 5] that brings the centre of brightness to the centre, and shows 0.8 of the sides."""
    side = image.shape[-1]
    grid = (torch.arange(side) * 2 + 1) / side - 1
    weight = image[:, 0] / image[:, 0].sum((1, 2), keepdim=True)
    at = torch.stack(((weight.sum(1) * grid).sum(1), (weight.sum(2) * grid).sum(1)), 1)
    rest = torch.tensor([[0.8, 0.8, 0.0]]).expand(len(image), -1)
    return torch.cat((at, rest), 1)


def against_centre(image: Tensor) -> Tensor:
    pose = by_centre(image)
    return torch.cat((-pose[:, :2], pose[:, 2:]), 1)


def report(folder: Path, posing: Posing | None, **params: Any) -> tuple[dict[str, Any], Path]:
    """The facts of forty blobs that move by shifts alone, and whose lungs are the blobs."""
    films, at = blobs(40, spread=0.2)
    chest, _ = chest_of(blobs(40, spread=0.0)[0], folder / "chest", crop=Crop(left=0.1, right=0.9, top=0.1, bottom=0.9))  # fmt: skip
    affines = np.tile(np.eye(2, 3), (40, 1, 1))
    affines[:, :, 2] = at
    pose = AlignerParams.parse(TINY, where="x").pose
    settings = ReportParams(
        align=AlignParams(pose=pose, outside="black", size=SIDE, view=8),
        crop=Crop(left=0.1, right=0.9, top=0.1, bottom=0.9), scale=0.0, angle=0.0, **params,
    )  # fmt: skip
    stage = AlignmentReport(settings)
    if posing:
        stage.align.poses = posing  # type: ignore[method-assign]
    inputs = {**saved(folder / "aligner", an_aligner()), "chest": chest}
    out = folder / "out"
    out.mkdir()
    masks = (films > 100).astype(np.uint8) * 255
    return stage.compute(Films(films, masks, affines), None, inputs, out, 1), out


def test_the_report_of_a_perfect_aligner(tmp_path: Path) -> None:
    facts, _ = report(tmp_path, by_centre)
    known = facts["known_movements"]
    assert known["landmark_error"]["before"] > 0.05
    assert known["landmark_error"]["left"] < 0.05
    assert known["shift_error"]["left"] < 0.05
    assert known["angle_error_degrees"]["after"] < 1e-3
    assert known["ncc_to_unmoved"]["after"] > 0.99 > known["ncc_to_unmoved"]["before"]
    assert facts["drawn_movements"]["left"] < 0.05
    for measure in ("ncc", "ssim"):
        values = facts["canonical_chest"]
        assert values["after"][measure] > values["before"][measure]
    assert facts["canonical_chest"]["after"]["ncc"] > 0.99
    assert facts["mean_image"]["after"]["kept"] > 0.95 > facts["mean_image"]["before"]["kept"]
    assert facts["lungs"]["after"]["iou"] > 0.9 > facts["lungs"]["before"]["iou"]
    assert facts["poses"]["scale x"] == pytest.approx({"mean": 0.8, "std": 0, "least": 0.8, "most": 0.8}, abs=1e-6)  # fmt: skip
    json.dumps(facts, allow_nan=False)


def test_the_report_of_an_aligner_that_does_nothing(tmp_path: Path) -> None:
    facts, _ = report(tmp_path, None)
    for name in ("landmark_error", "shift_error"):
        assert facts["known_movements"][name]["left"] == pytest.approx(1, abs=1e-5)
    assert facts["drawn_movements"]["left"] == pytest.approx(1, abs=1e-5)
    assert facts["poses"]["shift x"]["std"] == 0


def test_the_report_of_an_aligner_that_goes_the_wrong_way(tmp_path: Path) -> None:
    facts, _ = report(tmp_path, against_centre)
    assert facts["known_movements"]["landmark_error"]["left"] == pytest.approx(2, rel=0.05)
    assert facts["drawn_movements"]["left"] == pytest.approx(2, rel=0.05)


def test_zooming_in_does_not_look_like_aligning(tmp_path: Path) -> None:
    def zoom(image: Tensor) -> Tensor:
        return torch.tensor([[0.0, 0, 0.15, 0.15, 0]]).expand(len(image), -1)

    facts, _ = report(tmp_path, zoom)
    assert facts["known_movements"]["landmark_error"]["left"] == pytest.approx(1, abs=1e-4)
    assert facts["lungs"]["after"]["in_view"] < 0.5 < facts["lungs"]["before"]["in_view"]


def test_a_window_that_cuts_the_apices_or_the_angles_shows_it() -> None:
    lungs = torch.zeros(1, 1, 40, 40)
    lungs[..., 8:32, 6:16] = lungs[..., 8:32, 24:34] = 1
    apices, angles = ends_of_lungs(lungs)
    assert torch.equal(apices, lungs * (torch.arange(40) < 14)[:, None])
    outer = (torch.arange(40) < 13) | (torch.arange(40) >= 27)
    assert torch.equal(angles, lungs * (torch.arange(40) >= 26)[:, None] * outer)
    # A shift by half the side down shows the lower half alone, and the reverse; a scale of 0.6, the middle.
    found = {}
    for name, pose in {"down": (0.0, 0.5, 1.0, 0.5, 0), "up": (0.0, -0.5, 1.0, 0.5, 0)}.items():
        theta = theta_of_pose(torch.tensor([pose]))
        found[name] = _overlap(lungs, theta)
    for name, apex, angle in (("down", 0, 1), ("up", 1, 0)):
        assert found[name]["apices_in_view"] == pytest.approx(apex, abs=0.02)
        assert found[name]["costophrenic_angles_in_view"] == pytest.approx(angle, abs=0.02)
        assert found[name]["in_view"] == pytest.approx(0.5, abs=0.05)
    assert _overlap(torch.zeros(2, 1, 8, 8), theta.expand(2, -1, -1)) == {}


def test_turns_and_sizes_are_told_apart(tmp_path: Path) -> None:
    from cxrbench.methods.alignment_report import _log_size, _turn

    start = places(theta_of_pose(torch.tensor([[0.0, 0, 1, 1, 0]])))
    moved = places(theta_of_pose(torch.tensor([[0.3, 0.1, 1.2, 1.2, 0.2]])))
    assert _turn(moved, start).item() == pytest.approx(math.degrees(0.2), rel=1e-4)
    assert _log_size(moved, start).item() == pytest.approx(math.log(1.2), rel=1e-4)


def test_the_gallery_and_the_table_of_poses(tmp_path: Path) -> None:
    from PIL import Image

    facts, out = report(tmp_path, by_centre, images=25)
    listed = json.loads((out / "gallery.json").read_text())
    assert [entry["file"] for entry in listed] == ["gallery.png", "means.png", "poses.png"]
    for entry in listed:
        assert entry["caption"]
        with Image.open(out / entry["file"], formats=("PNG",)) as picture:
            assert np.asarray(picture).std() > 10
    lines = (out / "poses.csv").read_text().splitlines()
    assert lines[0] == "image_id,shift_x,shift_y,scale_x,scale_y,angle"
    assert facts["images"] == len(lines) - 1 == 25


# --- presets and graphs


def stages_of(preset: Any, cls: Any = StnAlign, **recipe: Any) -> Any:
    return cls.stages(VIEW, cls.resolve(preset, {}, recipe, where="x"))


def test_the_paper_s_aligner() -> None:
    """METHOD_CARDS sections 1.3 to 1.6."""
    a = StnAlign.resolve("paper", {}, {}, where="x").aligner
    r = a.recipe
    assert (r.optimizer, r.learning_rate, r.weight_decay) == ("adamw", 1e-4, 1e-4)
    assert (r.epochs, r.batch_size, r.size, r.load, r.precision) == (5, 16, 320, 320, "32-true")
    assert (r.augment.shift, r.augment.scale, r.augment.rotate) == (0.0625, 0.05, 10)
    assert (r.augment.brightness, r.augment.contrast) == (0.2, 0.2)
    assert (a.pixel_weight, a.reduction, a.target_features) == (20.0, "sum", "mean")
    assert (a.outside, a.quarter_turns, a.pose.bounded) == ("mean", 0.0, False)
    assert (a.loss.network, a.loss.taps, a.canonical_images) == ("vgg16", ("15",), 1000)
    assert (a.ncc_weight, a.step_weight, a.recovery_weight) == (0, 0, 0)
    assert (a.pose.backbone, a.pose.hidden, a.pose.dropout) == ("resnet18.tv_in1k", 256, 0.1)
    small = Aligner(
        a.model_copy(update={"pose": a.pose.model_copy(update={"pretrained": "none"})}), ()
    )
    assert small.size == (320, 256)
    assert small.targets[0].shape == (1, 256, 80, 64)
    code = StnAlign.resolve("code", {}, {}, where="x").aligner
    assert (code.pixel_weight, code.reduction, code.quarter_turns) == (15.0, "mean", 0.25)
    assert (code.loss.taps, code.loss.trained_here) == (("transition2",), True)


@pytest.mark.parametrize("preset", ["tuned", "quick"])
def test_the_classifier_is_the_baseline_on_other_images(preset: Any) -> None:
    final = stages_of(preset)
    plain = DenseNet121.stages(VIEW, DenseNet121.resolve(preset, {}, {}, where="x"))
    assert (final.name, final.params, final.seed) == (plain.name, plain.params, plain.seed)
    assert final.digest != plain.digest
    assert final.data.images is not None
    names = [stage.name for stage in final.ancestry().values()]
    assert names == ["canonical-chest", "canonical-features", "aligner", "align", "densenet121"]
    assert final.data.images.params["view"] == plain.params["recipe"]["load"]


def raw_row() -> dict[str, Any]:
    """The parameters of DenseNet121 on raw images in the paper's benchmark."""
    spec = read_spec(PAPER_TABLE)
    assert isinstance(spec, BenchSpec)
    [row] = [m for m in spec.methods if isinstance(m, MethodEntry) and m.name == "densenet121"]
    return row.params


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_the_paper_s_classifiers_have_chexnet_s_recipe_raw_and_aligned(preset: Any) -> None:
    """METHOD_CARDS 1.10: 320 px, batches of 64, Adam at 1e-4, divided by ten on a plateau."""
    final = stages_of(preset)
    plain = DenseNet121.stages(VIEW, DenseNet121.resolve("paper", raw_row(), {}, where="x"))
    assert (final.name, final.params, final.seed) == (plain.name, plain.params, plain.seed)
    r = Recipe(**final.params["recipe"])
    assert (r.size, r.load, r.batch_size) == (320, 320, 64)
    assert (r.optimizer, r.learning_rate, r.weight_decay) == ("adam", 1e-4, 0)
    assert (r.schedule, r.plateau_factor, r.select) == ("plateau", 0.1, "val_loss")
    assert final.data.images is not None
    assert final.data.images.params["view"] == 320


def test_the_code_s_loss_network_is_the_classifier_of_raw_images() -> None:
    final = stages_of("code")
    plain = DenseNet121.stages(VIEW, DenseNet121.resolve("paper", raw_row(), {}, where="x"))
    assert plain.digest in final.ancestry()


def test_an_aligner_of_another_fold_is_another() -> None:
    params = StnAlign.resolve("quick", {}, {}, where="x")
    first, second = (StnAlign.view(VIEW.at(fold=fold), params) for fold in (0, 1))
    assert first.images is not None and second.images is not None
    assert first.images.digest != second.images.digest
    leaking = predict(DenseNet121.stages(second, DenseNet121.Params()), VIEW)
    assert find_leaks(score(leaking, replicates=0, seed=0))


def test_analyses_see_test_images_and_no_score_sees_them() -> None:
    for cls in (StnAlign, StnAlignJoint):
        params = cls.resolve("quick", {}, {}, where="x")
        model = cls.stages(VIEW, params)
        (stage,) = cls.analyses(VIEW, params, model).values()
        assert (stage.kind, stage.part, stage.data) == ("compute", "test", VIEW)
        assert set(stage.inputs) == {"aligner", "chest"}
        assert (stage.inputs["aligner"] is model) == (cls is StnAlignJoint)
        assert {s.digest for s in stage.parents()} <= set(model.ancestry())
        assert all(s.part in ("train", "all") for s in model.ancestry().values())


def test_the_view_s_side_can_be_chosen() -> None:
    params = StnAlign.resolve("quick", {"view": 256}, {}, where="x")
    images = StnAlign.view(VIEW, params).images
    assert images is not None
    assert Align(AlignParams.parse(dict(images.params), where="x")).image_size() == 256


# --- end to end


def a_joint(weight: float) -> tuple[StnAlignJoint, Any]:
    small = {"size": SIDE, "load": SIDE}
    params = StnAlignJoint.resolve(
        "quick",
        {"align_weight": weight, "aligner": TINY, "backbone": "resnet10t"},
        small,
        where="x",
    )
    torch.manual_seed(0)
    batch = {
        "image": torch.from_numpy(blobs(3, side=2 * SIDE)[0])[:, None],
        "target": torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]),
        "known": torch.tensor([[True, True], [False, True], [True, False]]),
        "row": torch.arange(3),
    }
    return StnAlignJoint(params, VIEW.labels).eval(), batch


def test_the_joint_loss_by_hand(received: dict[str, Path], tmp_path: Path) -> None:
    module, batch = a_joint(0.25)
    trained = scrambled(**module.params.aligner.model_dump())
    trained.receive(received)
    module.receive({**received, **saved(tmp_path / "trained", trained)})
    image = batch["image"].float() / 255
    with torch.inference_mode():
        found = module.losses(batch)
        small = F.interpolate(image, (SIDE, SIDE), mode="area")
        terms = trained.losses(small)
        outside = module.params.aligner.outside
        seen = warped(image, theta_of_pose(terms["pose"]), (2 * SIDE, 2 * SIDE), outside)
        logits = module.classifier(seen)
        bce = F.binary_cross_entropy_with_logits(
            logits[batch["known"]], batch["target"][batch["known"]]
        )
        assert torch.equal(module(image), logits)
    assert float(terms["pose"].std(0).max()) > 0.003
    assert found["bce"].item() == pytest.approx(bce.item(), rel=1e-4)
    expected = bce + 0.25 * terms["loss"]
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_classifier_s_loss_moves_the_pose() -> None:
    module, batch = a_joint(0.0)
    torch.nn.init.normal_(module.aligner.pose.head[-1].weight, std=0.05)
    module.losses(batch)["loss"].backward()
    gradient = module.aligner.pose.head[-1].bias.grad
    assert gradient is not None and float(gradient.abs().max()) > 0


def test_both_ways_share_the_aligner() -> None:
    apart, joint = stages_of("quick"), stages_of("quick", StnAlignJoint)
    assert joint.inputs["aligner"].digest in apart.ancestry()
    assert joint.data.images is None


# --- by real workers


@pytest.mark.slow
def test_known_movements_of_phantom_films_are_at_least_halved(tmp_path: Path) -> None:
    from cxrbench.core.record import read_records
    from cxrbench.core.registry import Registry

    spec = BenchSpec.parse(
        {
            "name": "test", "preset": "quick", "methods": ["stn-align"], "seeds": [11],
            "datasets": [
                {"name": "phantom", "split": "holdout", "params": {"images": 600, "seed": 5}}
            ],
        },
        where="test",
    )  # fmt: skip
    store, registry = Store(tmp_path), Registry()
    plan = plan_bench(spec, registry, store, "cpu")
    result = run_bench(plan, registry, store, Execution(), "missing")
    assert result.complete, result.outcome.failed
    facts = read_records(store.root / "records")[0][0].analyses["alignment"].facts
    assert facts["known_movements"]["landmark_error"]["left"] < 0.5
    values = facts["canonical_chest"]
    assert values["after"]["ncc"] > values["before"]["ncc"] + 0.02
    assert facts["lungs"]["after"]["iou"] > facts["lungs"]["before"]["iou"]
    assert facts["mean_image"]["after"]["kept"] > facts["mean_image"]["before"]["kept"]
