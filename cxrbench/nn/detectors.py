"""Detectors of one thing an image: the box around both lungs (Rocha et al., CBMS 2022).

torchvision's networks, or `yolov5` of the optional package ultralytics. Boxes are (x0, y0, x1, y1) in shares
of a square image, 0 left and top. Shapes: B batch, S side.
"""

import importlib.util
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import MobileNet_V3_Large_Weights, ResNet50_Weights
from torchvision.models import detection as torchvision_detection

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import ConfigError, MissingInputError
from cxrbench.core.nearest import nearest
from cxrbench.core.store import Store
from cxrbench.nn.backbones import State, Weights, load_whole, read_weights, stored_weights

STRIDE = 32  # of the coarsest map of a pyramid
LEAST_SIDE = 64
LEAST_CONFIDENCE = 1e-3  # below it nothing was found
THORAX = 1  # the class; 0 is the background


@dataclass(frozen=True)
class Network:
    """One of torchvision's detectors, and which of its layers depend on what it was trained for."""

    build: Callable[..., nn.Module]
    coco: Any
    backbone: Any  # ImageNet weights of its backbone; None where they do not fit it
    classes: tuple[str, ...]  # layers with an output a class
    above: tuple[str, ...]  # what stands on the backbone
    side: int = 320


NETWORKS = {
    "ssdlite": Network(
        # torchvision's momentum of 0.03 suits 600 epochs of COCO. On drawn boxes, after 120 steps from random
        # weights, the running statistics were still so far off that every image got one and the same box.
        partial(
            torchvision_detection.ssdlite320_mobilenet_v3_large,
            norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.1),
        ),
        torchvision_detection.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1,
        None,  # its last blocks are half as wide as those of the ImageNet network
        tuple(f"head.classification_head.module_list.{level}.1" for level in range(6)),
        (),
    ),
    "fasterrcnn": Network(
        torchvision_detection.fasterrcnn_mobilenet_v3_large_320_fpn,
        torchvision_detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
        MobileNet_V3_Large_Weights.IMAGENET1K_V1,
        ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
        ("backbone.fpn", "rpn", "roi_heads"),
    ),
    "retinanet": Network(
        torchvision_detection.retinanet_resnet50_fpn_v2,
        torchvision_detection.RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1,
        ResNet50_Weights.IMAGENET1K_V1,
        ("head.classification_head.cls_logits",),
        ("backbone.fpn", "head"),
    ),
}
YOLO = ("yolov5", "yolov5s")  # yolov5: the smallest, yolov5n


class Detector(nn.Module):
    """Grey images [B, 1, S, S] in [0, 1] to one box an image.

    Images are resized to `side` first. All is computed in float32 whatever the autocast: bfloat16 would
    place an edge to a pixel at best.
    """

    def __init__(self, side: int, weights: Weights) -> None:
        super().__init__()
        if side < LEAST_SIDE or side % STRIDE:
            raise ConfigError(
                f"detector: side {side}; must be a multiple of {STRIDE} and at least {LEAST_SIDE}"
            )
        self.side = side
        self.weights = weights

    def losses(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """`loss`, a mean over images, and its terms, of images and their one box each [B, 4] in shares.

        RuntimeError in evaluation mode: the normalisation layers would learn from it.
        """
        if not self.training:
            raise RuntimeError("losses need the detector in training mode; call .train() first")
        if boxes.shape != (len(images), 4):
            raise ValueError(f"boxes: {tuple(boxes.shape)}; expected one a row, [{len(images)}, 4]")
        whole = (boxes >= 0) & (boxes <= 1)
        if not bool(whole.all() & (boxes[:, :2] < boxes[:, 2:]).all()):
            raise ValueError("boxes: expected x0 < x1 and y0 < y1 in shares of the image, 0 to 1")
        with torch.autocast(device_type=images.device.type, enabled=False):
            terms = self._terms(self._sized(images), boxes.float())
        return {"loss": torch.stack(list(terms.values())).sum(), **_detached(terms)}

    @torch.no_grad()
    def best_box(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The most confident box of each image [B, 4] in shares, and its confidence [B] in [0, 1].

        Where nothing is found: the whole image with confidence 0. Such a row is no detection, so an average
        precision has to leave it out.
        """
        if self.training:
            raise RuntimeError("best_box needs the detector in evaluation mode; call .eval() first")
        with torch.autocast(device_type=images.device.type, enabled=False):
            boxes, confidence = self._best(self._sized(images))
        boxes = boxes.clamp(0, 1)
        found = (confidence >= LEAST_CONFIDENCE) & (boxes[:, :2] < boxes[:, 2:]).all(1)
        whole = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        return torch.where(found[:, None], boxes, whole), confidence * found

    def _sized(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
            raise ValueError(f"images: {tuple(images.shape)}; expected [B, 1, S, S]")
        images = images.float()
        if images.shape[-1] != self.side:
            size = (self.side, self.side)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return images.expand(-1, 3, -1, -1)

    def _terms(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Terms of the loss of [B, 3, side, side] and boxes in shares."""
        raise NotImplementedError

    def _best(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes in shares [B, 4] and confidences [B] of [B, 3, side, side]; confidence 0 for none."""
        raise NotImplementedError


class TorchvisionDetector(Detector):
    """A detector of torchvision, all of whose layers are trained."""

    def __init__(self, name: str, pretrained: str, side: int | None = None) -> None:
        network = NETWORKS[name]
        # One architecture whatever the weights, so that what is trained can be loaded without them.
        net = network.build(weights=None, weights_backbone=None, num_classes=2)
        super().__init__(side or network.side, _load(net, name, network, pretrained))
        transform: Any = net.transform
        transform.min_size, transform.max_size = (self.side,), self.side
        if transform.fixed_size is not None:
            transform.fixed_size = (self.side, self.side)
        self.name = name
        self.net = net

    def _terms(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        if self.name == "ssdlite" and len(images) == 1:
            raise ValueError(
                "images: a batch of one; ssdlite normalises a map of one pixel over the batch, so it "
                "trains on two or more: raise recipe.batch_size, or use fasterrcnn or retinanet"
            )
        label = torch.tensor([THORAX], device=boxes.device)
        targets = [{"boxes": box[None] * self.side, "labels": label} for box in boxes]
        terms: dict[str, Tensor] = self.net(list(images), targets)
        return terms

    def _best(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, confidences = [], []
        for found in self.net(list(images)):
            score = torch.where(found["labels"] == THORAX, found["scores"], 0.0)
            # A last, empty row, so that there is always a best one.
            score = torch.cat((score, score.new_zeros(1)))
            box = torch.cat((found["boxes"], found["boxes"].new_zeros(1, 4)))
            best = score.argmax()
            boxes.append(box[best] / self.side)
            confidences.append(score[best])
        return torch.stack(boxes), torch.stack(confidences)


class YoloDetector(Detector):
    """YOLOv5 as ultralytics maintains it: without anchors, so neither the paper's network nor its weights."""

    TERMS = ("box", "cls", "dfl")

    def __init__(self, name: str, pretrained: str, side: int | None = None) -> None:
        if pretrained in ("coco", "imagenet"):
            raise ConfigError(
                f"params.pretrained: {pretrained}; ultralytics publishes weights of {name} as pickles, which "
                f"run code when they are read; use none, or a .safetensors file of its tensors"
            )
        model, config = _ultralytics()
        size = "yolov5n" if name == "yolov5" else name
        net: nn.Module = model(f"{size}.yaml", ch=3, nc=1, verbose=False)
        net.args = config()  # the gains of its loss
        weights = Weights("none")
        if pretrained != "none":
            classes = tuple(n for n, _ in net.named_modules() if _is_yolo_class_layer(n))
            weights = _load_file(net, pretrained, classes)
        super().__init__(side or 640, weights)
        self.net = net

    def _terms(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        low, high = boxes[:, :2], boxes[:, 2:]
        batch = {
            "img": images,
            "batch_idx": torch.arange(len(boxes), device=boxes.device, dtype=torch.float32),
            "cls": boxes.new_zeros(len(boxes), 1),
            "bboxes": torch.cat(((low + high) / 2, high - low), 1),
        }
        # Its own training minimises the sum over images, not their mean.
        terms = self.net(batch)[0] / len(images)
        return dict(zip(self.TERMS, terms, strict=True))

    def _best(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.net(images)[0]  # [B, 5, N]: centre, width and height in pixels, confidence
        # The best of all boxes is also the first that a suppression of overlaps would keep.
        confidence, place = rows[:, 4].max(1)
        centre, size = rows[torch.arange(len(rows)), :4, place].split(2, dim=1)
        return torch.cat((centre - size / 2, centre + size / 2), 1) / self.side, confidence


def build_detector(name: str, pretrained: str, side: int | None = None) -> Detector:
    """`ssdlite`, `fasterrcnn`, `retinanet`, `yolov5` or `yolov5s`; at its usual side if none is given.

    `pretrained` is `coco` (all but the classes), `imagenet` (the backbone), `none`, or a file of weights.
    Raises MissingInputError when weights or the optional package are not there, ConfigError for an unknown
    name or weights that a network cannot take.
    """
    if name in NETWORKS:
        return TorchvisionDetector(name, pretrained, side)
    if name in YOLO:
        return YoloDetector(name, pretrained, side)
    raise ConfigError(f"params.detector: unknown {name!r}; {nearest(name, [*NETWORKS, *YOLO])}")


def square_crop(boxes: Tensor, confidence: Tensor, least: float = 0.9) -> tuple[Tensor, Tensor]:
    """The square to cut out of a square image [B, 4], and where it is the whole image for want of a box [B].

    The square has the box's longer side and its centre, so nothing is stretched, and is moved inside where
    it would stick out, so nothing is padded. Below the confidence `least` (the paper's 0.9) the box is not
    trusted: the square is the image, and the flag counts it.
    """
    low, high = boxes.float()[:, :2], boxes.float()[:, 2:]
    half = (high - low).amax(1, keepdim=True).clamp(max=1) / 2
    centre = ((low + high) / 2).clamp(min=half, max=1 - half)
    square = torch.cat((centre - half, centre + half), 1)
    doubted = confidence < least
    return torch.where(doubted[:, None], square.new_tensor([0.0, 0.0, 1.0, 1.0]), square), doubted


# --- weights

# The published Faster R-CNN predates a renaming of its layers.
_OLD_NAMES = (
    (re.compile(r"^(backbone\.fpn\.\w+_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)


def _load(net: nn.Module, name: str, network: Network, pretrained: str) -> Weights:
    if pretrained == "none":
        return Weights("none")
    if pretrained == "coco":
        state = _published(network.coco, f"COCO weights of {name}")
        return Weights(
            "coco", None, _load_detector(net, state, source="coco", classes=network.classes)
        )
    if pretrained != "imagenet":
        return _load_file(net, pretrained, network.classes)
    if network.backbone is None:
        raise ConfigError(
            f"params.pretrained: imagenet; the backbone of {name} is narrower than the ImageNet network; "
            f"use coco or none"
        )
    state = _published(network.backbone, f"ImageNet weights of the backbone of {name}")
    body = net.get_submodule("backbone.body")
    # The layers of a MobileNet are called by number in a detector.
    state = {n.removeprefix("features."): tensor for n, tensor in state.items()}
    load_whole(body, state, source="imagenet", replaceable=("fc", "classifier"))
    return Weights("imagenet", None, network.above)


def _load_file(net: nn.Module, pretrained: str, classes: tuple[str, ...]) -> Weights:
    path = stored_weights(pretrained) or Path(pretrained).expanduser()
    new = _load_detector(
        net, read_weights(path), source=f"pretrained={pretrained}", classes=classes
    )
    return Weights(path.name, digest_file(path), new)


def _load_detector(
    net: nn.Module, state: State, *, source: str, classes: tuple[str, ...]
) -> tuple[str, ...]:
    for old, new in _OLD_NAMES:
        state = {old.sub(new, name): tensor for name, tensor in state.items()}
    return load_whole(net, state, source=source, replaceable=classes)


def _published(weights: Any, what: str) -> State:
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        raise MissingInputError(
            f"params.pretrained: the {what} cannot be had here ({type(error).__name__}: {error}); pass "
            f"--set params.pretrained=none to start from random weights, or "
            f"--set params.pretrained=/path/to/weights.pth"
        ) from error


def _ultralytics() -> tuple[Any, Any]:
    """Its DetectionModel and its default configuration; only called when a YOLO is asked for."""
    if importlib.util.find_spec("ultralytics") is None:
        raise MissingInputError(
            f"params.detector: yolov5 needs the package ultralytics, which is licensed under AGPL-3.0 and "
            f"therefore no part of cxrbench: pip install 'cxrbench[yolo]', or choose {', '.join(NETWORKS)}"
        )
    # Its import writes a settings file, and looks for a connection unless told not to.
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_CONFIG_DIR", str(Store.default().folder("ultralytics")))
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    warnings.warn(
        "yolov5 is code of ultralytics, licensed under AGPL-3.0; what contains or serves it is bound by "
        "that licence",
        stacklevel=2,
    )
    return DetectionModel, get_cfg


def _is_yolo_class_layer(name: str) -> bool:
    """The last convolution of each level's class branch, `model.<n>.cv3.<level>.2`."""
    parts = name.split(".")
    return len(parts) == 5 and parts[2] == "cv3" and parts[4] == "2"


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in terms.items()}
