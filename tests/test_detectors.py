"""Detectors: sizes, boxes in shares both ways, weights whole or refused, and the square that is cut out."""

import importlib.machinery
import os
import re
import sys
import types
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import ConfigError, DataError, MissingInputError
from cxrbench.core.store import Store
from cxrbench.nn import detectors
from cxrbench.nn.backbones import Weights
from cxrbench.nn.detectors import NETWORKS, Detector, build_detector, square_crop

BOXES = torch.tensor([[0.1, 0.2, 0.8, 0.9], [0.25, 0.1, 0.75, 0.6]])


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(count: int = 2, side: int = 64) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))


# --- torchvision's networks


@pytest.mark.parametrize(
    ("name", "count"),
    [("ssdlite", 2_206_520), ("fasterrcnn", 18_954_629), ("retinanet", 36_352_630)],
)
def test_a_detector_learns_from_one_box_an_image(name: str, count: int) -> None:
    torch.manual_seed(0)
    net = build_detector(name, "none", 64)
    assert parameters(net) == count
    assert net.weights == Weights("none")
    with torch.inference_mode():  # a validation in between leaves nothing that has no gradient
        net.eval().best_box(images())
    found = net.train().losses(images(), BOXES)
    terms = [term for key, term in found.items() if key != "loss"]
    assert len(terms) >= 2
    assert found["loss"].item() == pytest.approx(sum(float(term) for term in terms))
    assert not any(term.requires_grad for term in terms)
    found["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("name", ["ssdlite", "fasterrcnn", "retinanet"])
def test_images_are_seen_at_the_detectors_side_and_resized_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net: Any = build_detector(name, "none", 96).eval()
    seen: list[tuple[int, ...]] = []
    net.net.backbone.register_forward_hook(lambda m, i, o: seen.append(tuple(i[0].shape)))
    net.best_box(images(1, 200))
    net.best_box(images(1, 96))
    assert seen == [(1, 3, 96, 96)] * 2


def test_the_usual_sides() -> None:
    assert {name: network.side for name, network in NETWORKS.items()} == dict.fromkeys(
        NETWORKS, 320
    )
    assert build_detector("ssdlite", "none").side == 320


@pytest.mark.parametrize("side", [32, 100, 0])
def test_other_sides_are_refused(side: int) -> None:
    if side:
        with pytest.raises(
            ConfigError, match=f"side {side}; must be a multiple of 32 and at least 64"
        ):
            build_detector("ssdlite", "none", side)
    with pytest.raises(ConfigError, match="multiple of 32"):
        Detector(side, Weights("none"))


def test_an_unknown_detector_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"params\.detector: unknown 'ssd_lite'.*ssdlite"):
        build_detector("ssd_lite", "none")


def test_running_statistics_follow_a_short_training() -> None:
    net = build_detector("ssdlite", "none", 64)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 50
    assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-3)}


class Stub(nn.Module):
    """In place of a network of torchvision: keeps what it is given, finds what it is told."""

    def __init__(self, found: list[dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.found = found or []
        self.given: Any = None
        self.targets: Any = None

    def forward(self, given: list[Tensor], targets: Any = None) -> Any:
        self.given, self.targets = given, targets
        if targets is None:
            return [{k: torch.as_tensor(v) for k, v in row.items()} for row in self.found]
        return {"box": given[0].mean(), "class": given[0].mean() * 2}


def stubbed(found: list[dict[str, Any]] | None = None, side: int = 64) -> tuple[Any, Stub]:
    net: Any = build_detector("ssdlite", "none", side)
    net.net = Stub(found)
    return net, net.net


def test_a_network_is_given_grey_in_three_channels_and_boxes_in_pixels() -> None:
    net, stub = stubbed()
    given = images()
    found = net.losses(given, BOXES)
    torch.testing.assert_close(torch.stack(stub.given), given.expand(-1, 3, -1, -1))
    net.losses(images(2, 128), BOXES)
    small = F.interpolate(images(2, 128), (64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(torch.stack(stub.given), small.expand(-1, 3, -1, -1))
    for target, box in zip(stub.targets, BOXES, strict=True):
        torch.testing.assert_close(target["boxes"], box[None] * 64)
        assert target["labels"].tolist() == [1]
    torch.testing.assert_close(found["loss"], given[0].mean() * 3)


def test_the_most_confident_box_of_the_class_is_given_in_shares() -> None:
    found = [
        {
            "boxes": [[0.0, 0, 64, 64], [16, 8, 48, 56], [1, 1, 2, 2]],
            "scores": [0.4, 0.8, 0.95],
            "labels": [1, 1, 0],  # the last is background
        },
        {"boxes": [[-6.4, 0.0, 70.4, 32]], "scores": [0.7], "labels": [1]},
    ]
    net, _ = stubbed(found)
    boxes, confidence = net.eval().best_box(images())
    torch.testing.assert_close(boxes, torch.tensor([[0.25, 0.125, 0.75, 0.875], [0, 0, 1, 0.5]]))
    torch.testing.assert_close(confidence, torch.tensor([0.8, 0.7]))


@pytest.mark.parametrize(
    "row",
    [
        {"boxes": torch.zeros(0, 4), "scores": [], "labels": []},
        {"boxes": [[8.0, 8, 16, 16]], "scores": [0.9], "labels": [0]},
        {"boxes": [[8.0, 8, 16, 16]], "scores": [0.0009], "labels": [1]},
        {"boxes": [[8.0, 8, 8, 16]], "scores": [0.9], "labels": [1]},  # a line
        {"boxes": [[65.0, 8, 70, 16]], "scores": [0.9], "labels": [1]},  # outside
    ],
)
def test_where_nothing_is_found_the_box_is_the_image_with_confidence_0(row: dict[str, Any]) -> None:
    net, _ = stubbed([row])
    boxes, confidence = net.eval().best_box(images(1))
    assert boxes.tolist() == [[0, 0, 1, 1]]
    assert confidence.tolist() == [0]


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        (BOXES[:1], "expected one a row"),
        (BOXES[:, :3], "expected one a row"),
        (BOXES * 64, "in shares of the image"),
        (BOXES - 0.2, "in shares of the image"),
        (BOXES[:, [2, 1, 0, 3]], "expected x0 < x1"),
        (BOXES[:, [0, 3, 2, 1]], "expected x0 < x1"),
        (BOXES * float("nan"), "in shares of the image"),
    ],
)
def test_boxes_that_are_none_are_refused(boxes: Tensor, says: str) -> None:
    net, _ = stubbed()
    with pytest.raises(ValueError, match=says):
        net.losses(images(), boxes)


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 1, 64, 32), (1, 64, 64)])
def test_images_that_are_none_are_refused(shape: tuple[int, ...]) -> None:
    net, _ = stubbed()
    with pytest.raises(ValueError, match=r"expected \[B, 1, S, S\]"):
        net.eval().best_box(torch.rand(shape))


def test_the_mode_must_fit_the_call() -> None:
    net, _ = stubbed()
    with pytest.raises(RuntimeError, match=r"call \.eval\(\) first"):
        net.train().best_box(images())
    with pytest.raises(RuntimeError, match=r"call \.train\(\) first"):
        net.eval().losses(images(), BOXES)


def test_ssdlite_says_that_it_cannot_train_on_one_image() -> None:
    net = build_detector("ssdlite", "none", 64)
    with pytest.raises(ValueError, match=r"a batch of one; .*raise recipe\.batch_size"):
        net.losses(images(1), BOXES[:1])


def test_a_detector_computes_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    net = build_detector("ssdlite", "none", 64)
    state = {n: t.clone() for n, t in net.state_dict().items()}
    plain = net.losses(images(), BOXES)["loss"]
    net.load_state_dict(state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net.losses(images(), BOXES)["loss"], plain)
    net.eval()
    expected = net.best_box(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net.best_box(images())
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_detector_begins_to_see_a_box() -> None:
    """A few steps on one pair of drawn boxes lower the loss by half."""
    torch.manual_seed(0)
    net = build_detector("ssdlite", "none", 64)
    drawn = torch.full((2, 1, 64, 64), 0.7)
    for image, box in zip(drawn, (BOXES * 64).round().int().tolist(), strict=True):
        image[:, box[1] : box[3], box[0] : box[2]] = 0.2
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    losses = []
    for _ in range(10):
        loss = net.losses(drawn, BOXES)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# --- weights


def published(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights of 91 classes under the names of the published file, given in place of a download."""
    donor = NETWORKS[name].build(weights=None, weights_backbone=None, num_classes=91)
    state = {n: t for n, t in donor.state_dict().items() if not n.endswith("num_batches_tracked")}
    if name == "fasterrcnn":
        state = {re.sub(r"(_blocks\.\d)\.0", r"\1", n): t for n, t in state.items()}
        state = {n.replace("rpn.head.conv.0.0", "rpn.head.conv"): t for n, t in state.items()}
        assert {"backbone.fpn.inner_blocks.0.weight", "rpn.head.conv.bias"} <= state.keys()
        donor.load_state_dict(state)  # torchvision's own reading of the old names
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *a, **o: state)
    return donor.state_dict()


@pytest.mark.parametrize("name", ["ssdlite", "fasterrcnn", "retinanet"])
def test_coco_weights_are_taken_whole_but_for_the_classes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = published(name, monkeypatch)
    net: Any = build_detector(name, "coco", 64)
    classes = NETWORKS[name].classes
    assert net.weights == Weights("coco", None, tuple(sorted(classes)))
    for key, tensor in net.net.state_dict().items():
        if not key.startswith(classes) and not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize(
    ("name", "backbone"), [("fasterrcnn", "mobilenet_v3_large"), ("retinanet", "resnet50")]
)
def test_imagenet_weights_are_those_of_the_backbone(
    name: str, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor = torchvision.models.get_model(backbone, weights=None)
    state = donor.state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *a, **o: state)
    net: Any = build_detector(name, "imagenet", 64)
    assert net.weights.source == "imagenet"
    body = net.net.backbone.body.state_dict()
    prefix = "features." if name == "fasterrcnn" else ""
    assert all(torch.equal(tensor, state[prefix + key]) for key, tensor in body.items())
    heads = {n for n, _ in net.net.named_parameters() if not n.startswith("backbone.body")}
    assert all(n.startswith(net.weights.new_layers) for n in heads)


def test_ssdlite_has_no_imagenet_weights() -> None:
    with pytest.raises(ConfigError, match=r"params\.pretrained: imagenet; .*use coco or none"):
        build_detector("ssdlite", "imagenet")


@pytest.mark.parametrize(("name", "kind"), [("ssdlite", "coco"), ("fasterrcnn", "imagenet")])
def test_weights_that_cannot_be_had_stop_the_run(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(MissingInputError) as error:
        build_detector(name, kind)
    text = str(error.value)
    assert re.search(rf"{kind} weights of .*{name} cannot be had here", text, re.IGNORECASE)
    assert "Name or service not known" in text
    assert "--set params.pretrained=none" in text
    assert "--set params.pretrained=/path/to/weights.pth" in text


def test_a_file_of_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    donor: Any = build_detector("ssdlite", "none", 64)
    path = tmp_path / "w.pth"
    torch.save(donor.net.state_dict(), path)
    net: Any = build_detector("ssdlite", str(path), 64)
    assert net.weights == Weights("w.pth", digest_file(path), ())
    found, expected = net.eval().best_box(images()), donor.eval().best_box(images())
    assert torch.equal(found[0], expected[0])
    state = donor.net.state_dict()
    state.pop("backbone.features.0.0.0.weight")
    torch.save(state, path)
    with pytest.raises(DataError, match=r"backbone\.features\.0\.0\.0\.weight"):
        build_detector("ssdlite", str(path))
    with pytest.raises(MissingInputError, match="no such file of weights"):
        build_detector("ssdlite", str(tmp_path / "absent.pth"))


# --- yolov5


class FakeYolo(nn.Module):
    """What is used of ultralytics' DetectionModel."""

    def __init__(self, config: str, ch: int, nc: int, verbose: bool) -> None:
        super().__init__()
        self.config = (config, ch, nc, verbose)
        self.weight = nn.Parameter(torch.ones(1))
        self.batch: Any = None
        self.rows = torch.zeros(0)

    def forward(self, given: Any) -> Any:
        if isinstance(given, dict):
            self.batch = given
            return self.weight * torch.tensor([6.0, 4.0, 2.0]), {"box_loss": torch.tensor(3.0)}
        return self.rows, {}


@pytest.fixture
def fake_ultralytics(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """The optional package, as far as it is used."""
    for variable in ("YOLO_OFFLINE", "YOLO_CONFIG_DIR"):
        monkeypatch.setenv(variable, "")  # so that what the code sets is taken away again
        monkeypatch.delenv(variable)
    contents: dict[str, dict[str, Any]] = {
        "ultralytics": {"__path__": []},
        "ultralytics.cfg": {"get_cfg": lambda: "gains"},
        "ultralytics.nn": {"__path__": []},
        "ultralytics.nn.tasks": {"DetectionModel": FakeYolo},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)


def test_yolo_without_its_package_is_told_with_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingInputError) as error:
        build_detector("yolov5", "none")
    assert "pip install 'cxrbench[yolo]'" in str(error.value)
    assert "AGPL-3.0" in str(error.value)


def test_no_other_detector_imports_ultralytics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics", None)  # an import of it would fail
    build_detector("ssdlite", "none")


@pytest.mark.usefixtures("fake_ultralytics")
@pytest.mark.parametrize(("name", "config"), [("yolov5", "yolov5n"), ("yolov5s", "yolov5s")])
def test_yolo_is_built_offline_and_says_its_licence(name: str, config: str, store: Store) -> None:
    with pytest.warns(UserWarning, match=r"AGPL-3\.0"):
        net: Any = build_detector(name, "none")
    assert net.side == 640
    assert net.net.config == (f"{config}.yaml", 3, 1, False)
    assert net.net.args == "gains"
    assert os.environ["YOLO_OFFLINE"] == "true"
    assert os.environ["YOLO_CONFIG_DIR"] == str(store.root / "ultralytics")


@pytest.mark.usefixtures("fake_ultralytics")
@pytest.mark.filterwarnings("ignore:yolov5")
def test_yolo_learns_from_centres_and_sizes_and_takes_the_mean() -> None:
    net: Any = build_detector("yolov5", "none", 64)
    found = net.losses(images(), BOXES)
    batch = net.net.batch
    assert batch["img"].shape == (2, 3, 64, 64)
    assert batch["batch_idx"].tolist() == [0, 1]
    assert batch["cls"].tolist() == [[0], [0]]
    expected = torch.tensor([[0.45, 0.55, 0.7, 0.7], [0.5, 0.35, 0.5, 0.5]])
    torch.testing.assert_close(batch["bboxes"], expected)
    assert {k: v.item() for k, v in found.items()} == {"loss": 6, "box": 3, "cls": 2, "dfl": 1}


@pytest.mark.usefixtures("fake_ultralytics")
@pytest.mark.filterwarnings("ignore:yolov5")
def test_yolo_gives_its_most_confident_box() -> None:
    net: Any = build_detector("yolov5", "none", 64).eval()
    first = [[32.0, 32, 16, 32, 0.2], [32, 24, 32, 48, 0.9]]
    second = [[32.0, 32, 16, 32, 0.0001], [32, 24, 32, 48, 0.0002]]
    net.net.rows = torch.tensor([first, second]).transpose(1, 2)
    boxes, confidence = net.best_box(images())
    torch.testing.assert_close(boxes, torch.tensor([[0.25, 0, 0.75, 0.75], [0, 0, 1, 1]]))
    torch.testing.assert_close(confidence, torch.tensor([0.9, 0]))


@pytest.mark.parametrize("kind", ["coco", "imagenet"])
def test_yolo_reads_no_pickles(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"params\.pretrained: {kind}; .*pickles"):
        build_detector("yolov5", kind)


@pytest.mark.filterwarnings("ignore:yolov5")
@pytest.mark.parametrize(("name", "count"), [("yolov5", 2_508_659), ("yolov5s", 9_122_579)])
def test_the_real_yolo(name: str, count: int, store: Store, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    net: Any = build_detector(name, "none", 64)
    assert parameters(net) == count
    with torch.inference_mode():
        net.eval().best_box(images())
    found = net.train().losses(images(), BOXES)
    found["loss"].backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    torch.save(net.net.state_dict(), tmp_path / "w.pth")
    again: Any = build_detector(name, str(tmp_path / "w.pth"), 64)
    assert again.weights.new_layers == ()
    boxes, confidence = net.eval().best_box(images())
    other, _ = again.eval().best_box(images())
    assert torch.equal(boxes, other)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert ((confidence > 0) & (confidence < 1)).all()


# --- the square


@pytest.mark.parametrize(
    ("box", "square"),
    [
        ((0.2, 0.3, 0.8, 0.7), (0.2, 0.2, 0.8, 0.8)),  # wide: grows up and down alike
        ((0.4, 0.2, 0.6, 0.8), (0.2, 0.2, 0.8, 0.8)),  # tall
        ((0.3, 0.4, 0.5, 0.6), (0.3, 0.4, 0.5, 0.6)),  # square already
        ((0.1, 0.0, 0.9, 0.4), (0.1, 0.0, 0.9, 0.8)),  # would stick out above: moved down
        ((0.8, 0.1, 1.0, 0.9), (0.2, 0.1, 1.0, 0.9)),  # at the right
        ((0.0, 0.2, 0.1, 0.9), (0.0, 0.2, 0.7, 0.9)),  # at the left
        ((0.0, 0.3, 1.0, 0.5), (0.0, 0.0, 1.0, 1.0)),
        ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)),
    ],
)
def test_the_square_by_hand(box: tuple[float, ...], square: tuple[float, ...]) -> None:
    found, whole = square_crop(torch.tensor([box]), torch.tensor([0.95]))
    torch.testing.assert_close(found, torch.tensor([square]))
    assert not whole.any()


def test_a_square_holds_its_box_and_lies_in_the_image() -> None:
    pairs = torch.rand(2, 500, 2, generator=torch.Generator().manual_seed(0)).sort(0).values
    box = torch.cat((pairs[0], pairs[1]), 1)
    square, _ = square_crop(box, torch.ones(500))
    width, height = (square[:, 2:] - square[:, :2]).unbind(1)
    torch.testing.assert_close(width, height)
    torch.testing.assert_close(width, (box[:, 2:] - box[:, :2]).amax(1))
    slack = 1e-6
    assert (square >= -slack).all() and (square <= 1 + slack).all()
    assert (square[:, :2] <= box[:, :2] + slack).all() and (
        square[:, 2:] >= box[:, 2:] - slack
    ).all()


def test_doubted_boxes_are_the_whole_image_and_counted() -> None:
    boxes = torch.tensor([[0.2, 0.3, 0.8, 0.7]] * 3)
    square, whole = square_crop(boxes, torch.tensor([0.9, 0.8999, 0.0]))
    assert whole.tolist() == [False, True, True]
    torch.testing.assert_close(square[1:], torch.tensor([[0.0, 0, 1, 1]] * 2))
    square, whole = square_crop(boxes, torch.tensor([0.9, 0.8999, 0.0]), least=0.5)
    assert whole.tolist() == [False, False, True]
