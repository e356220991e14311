"""VGG16 on the thorax alone: a detector of both lungs, a square cut around them (Rocha et al., 2022).

The detector learns from lung masks of other data, once for all folds; of each image it gives the most
confident box, and what is classified is the square with the box's longer side. Where no box is trusted, it
is the whole image: the shares of the paper's table say that no image was left out. Shapes: B batch, S side.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cxrbench.core.contract import Transformation
from cxrbench.core.errors import DataError
from cxrbench.core.frozen import Frozen
from cxrbench.core.spec import Augment, MethodParams, Recipe
from cxrbench.core.stage import DataView, Stage, compute, fit, transform
from cxrbench.methods.base import Method, once, weights_in
from cxrbench.methods.densenet121 import QUICK_SMALL, TUNED
from cxrbench.methods.thorax_report import (
    Numbers,
    Pixels,
    RoiReport,
    Rows,
    mean_box,
    overlap_of_one,
    recall_by_finding,
)
from cxrbench.methods.vgg16 import VGG16, VGG16Params
from cxrbench.metrics.boxes import iou
from cxrbench.metrics.detection import average_precision_at_iou
from cxrbench.nn.backbones import to_unit
from cxrbench.nn.detectors import build_detector, square_crop

WHOLE = {"train_view": "whole", "validation_view": "whole", "test_view": "whole"}
# The paper names rate and epochs; the rest are the defaults of its YOLOv5, but for mosaics and colours.
# Mirrored lungs are lungs.
YOLO = Recipe(
    epochs=150, batch_size=16, optimizer="sgd", learning_rate=1e-2, weight_decay=5e-4, size=640, load=640,
    schedule="linear", warmup_epochs=3, gradient_clip=10, select="val_loss",
    augment=Augment(horizontal_flip=0.5, shift=0.1, scale=0.5), **WHOLE,
)  # fmt: skip
TUNED_DETECTOR = Recipe(
    epochs=50, batch_size=16, optimizer="adamw", learning_rate=5e-4, weight_decay=1e-4, size=320, load=320,
    schedule="cosine", warmup_epochs=1, ema_decay=0.99, gradient_clip=10, select="val_loss",
    augment=Augment(rotate=10, shift=0.1, scale=0.2, contrast=0.3, brightness=0.2), **WHOLE,
)  # fmt: skip
QUICK_DETECTOR = Recipe(
    epochs=5, batch_size=16, optimizer="adamw", learning_rate=2e-3, size=64, load=64, schedule="cosine",
    warmup_epochs=0.5, gradient_clip=10, select="val_loss", augment=Augment(shift=0.05, scale=0.1), **WHOLE,
)  # fmt: skip


# --- the detector


class DetectorParams(MethodParams):
    """Which detector, the side in pixels at which it looks (None: its usual one), and its training."""

    detector: Literal["ssdlite", "fasterrcnn", "retinanet", "yolov5", "yolov5s"] = "ssdlite"
    pretrained: str = "coco"  # imagenet, none, or a file of weights
    side: int | None = None
    recipe: Recipe = YOLO


class ThoraxDetector(Method):
    """One box an image, around both lungs; fitted on images whose lungs are drawn in."""

    name = "thorax-detector"
    version = 2
    divisible = False  # detectors count boxes over the batch
    Params = DetectorParams
    params: DetectorParams
    needs_masks = True
    optimiser_options = {"sgd": {"momentum": 0.937, "nesterov": True}}  # YOLOv5's defaults

    def __init__(self, params: DetectorParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        self.detector = build_detector(params.detector, params.pretrained, params.side)

    @classmethod
    def without_weights(cls, params: DetectorParams) -> DetectorParams:
        return params.model_copy(update={"pretrained": "none"})

    @property
    def monitor(self) -> str:
        """It has no labels, so its boxes choose whatever the recipe of a whole sweep says."""
        return "val_loss"

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        known = batch["box_known"]
        if not known.any():
            raise DataError(
                "no image of a batch has a lung in view; are the masks those of the images?"
            )
        return self.detector.losses(to_unit(batch["image"][known]), batch["box"][known])

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """`val_loss` is 1 - overlap x confidence: a good box that is doubted is not cut out."""
        left = once(batch)
        if left is None or not left["box_known"].any():
            return
        batch, known = left, left["box_known"]
        boxes, confidence = self.detector.best_box(to_unit(batch["image"][known]))
        overlap = iou(boxes.cpu().numpy(), batch["box"][known].cpu().numpy())
        agreed = torch.from_numpy(overlap).to(confidence)
        found = {
            "val_loss": 1 - (agreed * confidence).mean(),
            "val_iou": agreed.mean(),
            "val_confidence": confidence.mean(),
        }
        self.log_dict(found, batch_size=int(known.sum()), sync_dist=True)

    def weights_source(self) -> dict[str, Any]:
        weights = self.detector.weights
        return {
            "source": weights.source,
            "sha256": weights.sha256,
            "new_layers": list(weights.new_layers),
        }


# --- the crop


class CropParams(Frozen):
    """How thoraxes are found and cut out."""

    detector: DetectorParams = DetectorParams()
    films: int = 640  # side in pixels at which images are read
    size: int = 512  # side of a crop
    confidence: float = 0.9  # below it the whole image is taken
    margin: float = 0.0  # by which a box is widened first, as a share of its sides


class Cropper:
    """A fitted detector and the rule by which its boxes are cut out."""

    def __init__(self, params: CropParams, folder: Path, device: str = "cpu") -> None:
        self.params, self.device = params, device
        self.module = ThoraxDetector(ThoraxDetector.without_weights(params.detector), ())
        self.module.load_state_dict(weights_in(folder), strict=True)
        self.module.eval().to(device)

    def find(self, films: Pixels) -> tuple[Tensor, Tensor]:
        """uint8 [B, S, S] to boxes [B, 4] and confidences [B]."""
        image = to_unit(torch.from_numpy(films).to(self.device)).unsqueeze(1)
        boxes, confidence = self.module.detector.best_box(image)
        return boxes.cpu(), confidence.cpu()

    def squares(self, boxes: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
        """What is cut out [B, 4], and where that is the whole image for want of a box [B]."""
        wider = (boxes[:, 2:] - boxes[:, :2]) * self.params.margin / 2
        boxes = torch.cat((boxes[:, :2] - wider, boxes[:, 2:] + wider), 1)
        return square_crop(boxes, confidence, self.params.confidence)


def cut(films: Pixels, squares: Tensor, size: int) -> Pixels:
    """Squares [B, 4], in shares, of films uint8 [B, S, S]: uint8 [B, size, size], averaged when shrunk."""
    side = films.shape[-1]
    crops = np.empty((len(films), size, size), np.uint8)
    for n, (film, square) in enumerate(zip(films, squares.tolist(), strict=True)):
        width = max(1, round((square[2] - square[0]) * side))
        x, y = (min(round(edge * side), side - width) for edge in square[:2])
        part = torch.from_numpy(film[y : y + width, x : x + width]).float()[None, None]
        part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
        crops[n] = part.round().clamp(0, 255).byte().numpy()[0, 0]
    return crops


class CropThorax(Transformation):
    """Every image cut to its thorax: a `transform` stage, which keeps the boxes as numbers, too."""

    name = "crop-thorax"
    version = 1
    Params = CropParams
    params: CropParams

    def image_size(self) -> int:
        return self.params.films

    def open(self, inputs: Mapping[str, Path], device: str) -> None:
        self.cropper = Cropper(self.params, inputs["detector"], device)
        self.found: list[Tensor] = []

    def __call__(self, images: Pixels) -> Pixels:
        boxes, confidence = self.cropper.find(images)
        squares, whole = self.cropper.squares(boxes, confidence)
        self.found.append(torch.cat((confidence[:, None], whole[:, None], boxes, squares), 1))
        return cut(images, squares, self.params.size)

    def leave(self, out: Path) -> dict[str, Any]:
        """`boxes.npy` float32 [N, 10]: confidence, whether the whole image is taken, box, square."""
        found = torch.cat(self.found).float().numpy()
        np.save(out / "boxes.npy", found)
        return {"whole_images": int(found[:, 1].sum()), "confidence": float(found[:, 0].mean())}


class ThoraxBoxes(RoiReport):
    """The boxes and squares of a part as numbers, and how good they are where lungs are known: `compute`.

    Regions are the squares, as the crop left them. `whole_images` counts those without a trusted box.
    """

    name = "thorax-boxes"
    version = 3
    Params = CropParams
    params: CropParams
    columns = ("confidence", "whole", "box_x0", "box_y0", "box_x1", "box_y1")
    picture = "the square that is cut out"

    def open(self, inputs: Mapping[str, Path]) -> None:
        self.found = np.load(inputs["crops"] / "boxes.npy").astype(np.float64)

    def look(self, films: Pixels, rows: Rows) -> tuple[Numbers, dict[str, Numbers]]:
        found = self.found[rows]
        return found[:, 6:], {name: found[:, k] for k, name in enumerate(self.columns)}

    def shown(self, films: Pixels, boxes: Numbers, columns: Mapping[str, Numbers]) -> Pixels:
        return cut(films, torch.from_numpy(boxes), self.params.size)

    def caption(self, columns: Mapping[str, float]) -> str:
        doubted = " (whole image)" if columns["whole"] else ""
        return f"confidence {columns['confidence']:.2f}{doubted}"

    def further(self, boxes: Numbers, columns: Mapping[str, Numbers], truth: Any) -> dict[str, Any]:
        """`whole_images`; average precision, and the overlap of trusted boxes with the true ones.

        `iou_of_one_box_for_all` is the floor: what the mean true box reaches on every image. Thoraxes are
        so much alike that it is high.
        """
        whole = columns["whole"] == 1
        facts: dict[str, Any] = {"whole_images": int(whole.sum())}
        if truth is None:
            return facts
        found = np.stack([columns[name] for name in self.columns[2:]], 1)
        sure = columns["confidence"]
        # A confidence of 0 is no box at all.
        facts["average_precision_at_iou_50"] = average_precision_at_iou(
            [[] if box is None else [box] for box in truth],
            [[box] if s > 0 else [] for box, s in zip(found, sure, strict=True)],
            [[s] if s > 0 else [] for s in sure],
        )
        pairs = [(f, t) for f, t, w in zip(found, truth, whole, strict=True) if t is not None and not w]  # fmt: skip
        overlap = iou(*map(np.stack, zip(*pairs, strict=True))) if pairs else np.array([])
        facts["iou_of_trusted_boxes"] = float(overlap.mean()) if len(overlap) else None
        facts["iou_of_one_box_for_all"] = overlap_of_one(mean_box(truth), truth)
        return facts


# --- the method


class ThoraxCropParams(VGG16Params):
    """The baseline's classifier, and how the thorax is found and cut out.

    `detector_data`: `lung-masks` is given with `--external lung-masks=DIR`; `home` is the training part of the
    run's own data, which must have masks; `either` takes the first where it is given, else the second.
    """

    detector_data: Literal["lung-masks", "home", "either"] = "lung-masks"
    confidence: float = Field(0.9, ge=0, le=1)
    margin: float = Field(0.0, ge=0, le=1)
    films: int = Field(640, ge=32)
    thorax: DetectorParams = DetectorParams()

    @property
    def crop(self) -> CropParams:
        """The crop's part."""
        shared = {"films": self.films, "confidence": self.confidence, "margin": self.margin}
        return CropParams(detector=self.thorax, size=self.recipe.load, **shared)

    @property
    def classifier(self) -> VGG16Params:
        """The classifier's part: the baseline's own parameters."""
        return VGG16Params(**{name: getattr(self, name) for name in VGG16Params.model_fields})


class ThoraxCrop(VGG16):
    """VGG16 on squares cut around the thorax by a detector (Rocha et al., 2022)."""

    name = "thorax-crop"
    version = 1
    paper = "Rocha et al., CBMS 2022, doi 10.1109/CBMS55023.2022.00051"
    Params = ThoraxCropParams
    params: ThoraxCropParams
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "tuned": {
            "pretrained": "imagenet",
            "films": 320,
            "margin": 0.05,
            "thorax": {"recipe": TUNED_DETECTOR.model_dump()},
            # Whole crops: a crop of the crop would lose what was just framed.
            "recipe": {**TUNED.model_dump(), "learning_rate": 1e-4, "train_view": "resize"},
        },
        "quick": {
            "detector_data": "either",
            "films": 64,
            "margin": 0.05,
            "thorax": {"pretrained": "none", "side": 64, "recipe": QUICK_DETECTOR.model_dump()},
            "backbone": "resnet10t",  # the detector takes the time that VGG16 would
            "recipe": QUICK_SMALL.model_dump(),
        },
    }
    reported = {
        "chexpert": {
            "split": "cv5",
            "source": "Rocha et al. 2022, Table II, VGG16 + thorax detection (normal/abnormal)",
            "params": {"task": "abnormal", "view": "pa", "policy": "u-ones"},
            "macro": {
                "auc": 0.8398, "pr_auc": 0.9512, "precision_at_95_recall": 0.8500,
                "tp_share": 0.7605, "fp_share": 0.1343, "tn_share": 0.0649, "fn_share": 0.0403,
            },
            "labels": {},
        },
    }  # fmt: skip

    @classmethod
    def detector(cls, data: DataView, params: ThoraxCropParams) -> Stage:
        """The detector's training: on other data, so one for all folds, or on raw images of this fold."""
        given = params.detector_data == "lung-masks" or "lung-masks" in data.externals
        home = params.detector_data == "home" or not given
        source = replace(data, images=None) if home else data.beside("lung-masks")
        return fit(ThoraxDetector, source, params.thorax)

    @classmethod
    def view(cls, data: DataView, params: ThoraxCropParams) -> DataView:
        return cls.cropped(data, cls.detector(data, params), params)

    @classmethod
    def cropped(cls, films: DataView, detector: Stage, params: ThoraxCropParams) -> DataView:
        """What a detector cuts out of any data's films."""
        return transform(CropThorax, films, params.crop, detector=detector)

    @classmethod
    def stages(cls, data: DataView, params: ThoraxCropParams) -> Stage:
        return fit(VGG16, cls.view(data, params), params.classifier)

    @classmethod
    def analyses(
        cls, data: DataView, params: ThoraxCropParams, model: Stage
    ) -> Mapping[str, Stage]:
        """The test images' boxes, the detector on its own test part, and recall by finding."""
        detector = cls.detector(data, params)
        found = {"thorax boxes": cls._boxes(data, detector, params)}
        if detector.data != data:
            found["detector"] = cls._boxes(detector.data, detector, params)
        return found | recall_by_finding(data, model, params.films)

    @classmethod
    def _boxes(cls, films: DataView, detector: Stage, params: ThoraxCropParams) -> Stage:
        crops = cls.cropped(films, detector, params).images
        assert crops is not None
        return compute(ThoraxBoxes, films, params.crop, part="test", crops=crops)
