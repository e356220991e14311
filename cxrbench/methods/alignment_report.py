"""How well chests are aligned, in numbers and pictures; the paper only shows pairs.

Shapes: N images, S side of the aligner's input, P landmarks.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor

from cxrbench.core.contract import Computation
from cxrbench.core.frozen import Frozen
from cxrbench.core.spreadsheet import inert
from cxrbench.methods.aligner import (
    Align,
    AlignParams,
    landmarks,
    places,
    random_poses,
    warped,
)
from cxrbench.methods.canonical_chest import Crop
from cxrbench.methods.sheets import Cell, Shown, contact_sheet, is_of_many, write_gallery
from cxrbench.metrics.images import mean_defined, mean_image_sharpness, ncc, ssim
from cxrbench.metrics.spread import spread
from cxrbench.nn.backbones import to_unit
from cxrbench.nn.spatial_transformer import invert, theta_of_pose, warp

BLOCK = 64  # images posed at once
SHOWN = 6  # rows of pairs in the gallery
TILE = 160  # pixels of a picture in the gallery
BINS = 30
END = 0.25  # share of the lungs' box that is called an end of it
POSE = ("shift x", "shift y", "scale x", "scale y", "angle")
Plane = npt.NDArray[np.float32]


class ReportParams(Frozen):
    """Of how many test images, and how far these are moved: half sides, a relative size, degrees."""

    align: AlignParams = AlignParams()
    crop: Crop = Crop()
    images: int = Field(1000, ge=2)
    shift: float = 0.125
    scale: float = 0.1
    angle: float = 10.0


class AlignmentReport(Computation):
    """Recovery of known movements, likeness to the canonical chest, sharpness of the mean, overlap of lungs.

    "before" is the plain crop of each image, which is what an aligner must beat; a movement that is not undone
    at all has a landmark error of "before" as well. Places are counted in half sides of the image.
    """

    name = "alignment-report"
    version = 2
    Params = ReportParams

    def __init__(self, params: ReportParams) -> None:
        self.params = params
        self.side = params.align.size
        self.align = Align(params.align.model_copy(update={"view": self.side}))

    def image_size(self) -> int:
        return self.side

    @torch.inference_mode()
    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Leaves `poses.csv` and the gallery; the numbers are the facts."""
        self.align.open(inputs, "cpu")
        order = np.random.default_rng(seed).permutation(len(images))
        rows = np.sort(order[: self.params.images])
        image = to_unit(torch.from_numpy(images[rows]))[:, None]
        pose = self._poses(image)
        theta = theta_of_pose(pose)
        plain = theta_of_pose(self.params.crop.pose()).expand(len(image), -1, -1)
        chest = np.load(inputs["chest"] / "canonical.npy")
        both = {"before": self._seen(image, plain), "after": self._seen(image, theta)}
        facts: dict[str, Any] = {
            "images": len(rows),
            "known_movements": self._known(image, theta, seed),
            "canonical_chest": {when: _likeness(seen, chest) for when, seen in both.items()},
            "mean_image": {when: _sharpness(seen) for when, seen in both.items()},
            "poses": _poses_by_name(pose),
        }
        facts |= self._truth(images, rows, {"before": plain, "after": theta})
        _write_poses(images.index.image_ids[rows], pose, out / "poses.csv")
        _draw(image[:, 0].numpy(), both, chest, pose, out)
        return facts

    def _poses(self, image: Tensor) -> Tensor:
        return torch.cat([self.align.poses(block) for block in torch.split(image, BLOCK)])

    def _seen(self, image: Tensor, theta: Tensor) -> Plane:
        """Images through their thetas: [N, S, S] in [0, 1]."""
        seen = warped(image, theta, (self.side, self.side), self.params.align.outside)
        return seen[:, 0].clamp(0, 1).numpy()

    def _known(self, image: Tensor, theta: Tensor, seed: int) -> dict[str, Any]:
        """Moves the images and asks where the aligner thinks that their landmarks went.

        An image and its moved copy are posed apart; the two poses say which places correspond.
        """
        p = self.params
        torch.manual_seed(seed)
        reach = {"shift": p.shift, "scale": p.scale, "angle": p.angle}
        known = theta_of_pose(random_poses(len(image), image.device, **reach))
        moved = warped(image, known, (self.side, self.side), p.align.outside)
        again = theta_of_pose(self._poses(moved))
        start = landmarks(image.device)[None].expand(len(image), -1, -1)
        went = places(invert(known), start)
        found = places(again, places(invert(theta), start))
        return {
            "landmark_error": _halved(_distance(start, went), _distance(found, went)),
            "shift_error": _halved(*_shift_errors(start, found, went)),
            "scale_error": _halved(*(_log_size(f, went) for f in (start, found))),
            "angle_error_degrees": _halved(*(_turn(f, went) for f in (start, found))),
            "ncc_to_unmoved": {
                "before": _mean(ncc(moved[:, 0].numpy(), image[:, 0].numpy())),
                "after": _mean(ncc(self._seen(moved, again), self._seen(image, theta))),
            },
        }

    def _truth(
        self, images: Any, rows: npt.NDArray[np.int64], thetas: dict[str, Tensor]
    ) -> dict[str, Any]:
        """What only images whose lungs or movements are known tell."""
        facts: dict[str, Any] = {}
        if images.has_masks:
            lungs = to_unit(torch.from_numpy(images.masks()[rows]))[:, None]
            facts["lungs"] = {when: _overlap(lungs, theta) for when, theta in thetas.items()}
        truth = getattr(images.dataset, "truth", None)
        if truth is not None:
            drawn = [truth(images.index, int(row), self.side).affine for row in rows]
            facts["drawn_movements"] = _drawn(torch.tensor(np.stack(drawn)).float(), thetas)
        return facts


# --- measures


def _mean(values: npt.ArrayLike) -> float | None:
    return mean_defined(values).mean


def _distance(found: Tensor, truth: Tensor) -> Tensor:
    """Mean distance [N] of landmarks [N, P, 2]."""
    apart: Tensor = torch.linalg.vector_norm(found - truth, dim=-1)
    return apart.mean(1)


def _halved(before: Tensor, after: Tensor) -> dict[str, float | None]:
    """The means of two errors [N], and what is left of the first: 0.5 is halved."""
    first, second = float(before.mean()), float(after.mean())
    return {"before": first, "after": second, "left": second / first if first else None}


def _shift_errors(start: Tensor, found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    centres = [points.mean(1) for points in (start, found, truth)]
    return (centres[0] - centres[2]).norm(dim=-1), (centres[1] - centres[2]).norm(dim=-1)


def _complex(points: Tensor) -> Tensor:
    centred = points - points.mean(1, keepdim=True)
    return torch.complex(centred[..., 0], centred[..., 1])


def _ratio(found: Tensor, truth: Tensor) -> Tensor:
    """The complex number [N] that turns and scales the true landmarks to the found ones best."""
    a, b = _complex(found), _complex(truth)
    return (a * b.conj()).sum(1) / (b.abs() ** 2).sum(1)


def _log_size(found: Tensor, truth: Tensor) -> Tensor:
    return _ratio(found, truth).abs().log().abs()


def _turn(found: Tensor, truth: Tensor) -> Tensor:
    return _ratio(found, truth).angle().abs() * (180 / math.pi)


def _likeness(seen: Plane, chest: Plane) -> dict[str, Any]:
    target = np.broadcast_to(chest, seen.shape)
    return {"ncc": _mean(ncc(seen, target)), "ssim": _mean(ssim(seen, target))}


def _sharpness(seen: Plane) -> dict[str, Any]:
    found = mean_image_sharpness(seen)
    variance = float(seen.var(0).mean())
    return {"gradient": found.gradient, "kept": found.kept, "pixel_variance": variance}


def _poses_by_name(pose: Tensor) -> dict[str, dict[str, float]]:
    columns = zip(POSE, _in_degrees(pose).T, strict=True)
    return {
        name: {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "least": float(values.min()),
            "most": float(values.max()),
        }
        for name, values in columns
    }


def _in_degrees(pose: Tensor) -> npt.NDArray[np.float64]:
    return np.asarray(pose.double().numpy() * np.array([1, 1, 1, 1, 180 / math.pi]))


def _overlap(lungs: Tensor, theta: Tensor) -> dict[str, float]:
    """IoU of each image's lungs [N, 1, S, S] with the mean lungs, and the share of them that is still in view.

    The same share of their apices and their costophrenic angles alone: what a window cuts off first.
    """
    held = lungs.flatten(1).amax(1) > 0.5
    if not held.any():
        return {}
    lungs, theta = lungs[held], theta[held]
    seen = warp(lungs, theta, (lungs.shape[-2], lungs.shape[-1])) > 0.5
    mean = seen.float().mean(0, keepdim=True) > 0.5
    shared, either = (seen & mean).flatten(1).sum(1), (seen | mean).flatten(1).sum(1)
    kept = _in_view(lungs, theta)
    apices, angles = ends_of_lungs(lungs)
    return {
        "iou": float((shared / either.clamp(min=1)).mean()),
        "in_view": float(kept.mean()),
        "least_in_view": float(kept.min()),
        "apices_in_view": float(_in_view(apices, theta).mean()),
        "costophrenic_angles_in_view": float(_in_view(angles, theta).mean()),
    }


def _in_view(region: Tensor, theta: Tensor) -> Tensor:
    """The share [N] of regions [N, 1, S, S] that their thetas show."""
    seen = warp(region, theta, (region.shape[-2], region.shape[-1])) > 0.5
    # An area in view counts for as much of the image as one pixel of it shows.
    area = (theta[:, 0, 0] * theta[:, 1, 1] - theta[:, 0, 1] * theta[:, 1, 0]).abs()
    whole = (region > 0.5).flatten(1).sum(1)
    return (seen.flatten(1).sum(1) * area / whole.clamp(min=1)).clamp(max=1)


def ends_of_lungs(lungs: Tensor) -> tuple[Tensor, Tensor]:
    """Apices and costophrenic angles of lungs [N, 1, S, S] in [0, 1], none of which is empty.

    Of the box around both lungs, the upper quarter, and the outer quarters of the lower quarter.
    """
    apices, angles = torch.zeros_like(lungs), torch.zeros_like(lungs)
    for n, (lung,) in enumerate(lungs):
        rows, columns = (lung > 0.5).nonzero(as_tuple=True)
        top, left = int(rows.min()), int(columns.min())
        bottom, right = int(rows.max()) + 1, int(columns.max()) + 1
        high, wide = (max(1, round(END * (b - a))) for a, b in ((top, bottom), (left, right)))
        apices[n, 0, : top + high] = lung[: top + high]
        angles[n, 0, bottom - high :] = lung[bottom - high :]
        angles[n, 0, :, left + wide : right - wide] = 0
    return apices, angles


def _drawn(affine: Tensor, thetas: dict[str, Tensor]) -> dict[str, float | None]:
    """Landmark errors between neighbouring films, each drawn with a movement of its own.

    Their bodies differ, too, and an aligner sees bodies: no aligner can bring this to 0.
    """
    points = places(affine, landmarks(affine.device)[None])
    other = points.roll(1, 0)
    found = {
        when: places(theta.roll(1, 0), places(invert(theta), points))
        for when, theta in thetas.items()
    }
    return _halved(_distance(found["before"], other), _distance(found["after"], other))


# --- pictures


def _write_poses(names: Sequence[str], pose: Tensor, path: Path) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", *(name.replace(" ", "_") for name in POSE)])
        for name, row in zip(names, _in_degrees(pose), strict=True):
            writer.writerow([inert(name), *(f"{value:.6f}" for value in row)])


def _draw(image: Plane, both: dict[str, Plane], chest: Plane, pose: Tensor, out: Path) -> None:
    """Pairs, means and histograms, with the list that captions them."""
    few = spread(len(image), SHOWN)
    pairs: list[list[Cell]] = [
        [(image[n], "input"), (both["after"][n], "aligned"), (chest, "canonical")] for n in few
    ]
    means: list[list[Cell]] = [
        [*((seen.mean(0), f"mean {when}") for when, seen in both.items()), (chest, "canonical")],
        [(seen.std(0) * 2, f"2 x std {when}") for when, seen in both.items()],
    ]
    pictures = {
        "gallery.png": Shown(
            contact_sheet(pairs, side=TILE),
            "Test images as they are and aligned, beside the canonical chest",
            films=True,
        ),
        "means.png": Shown(
            contact_sheet(means, side=TILE),
            "Mean and spread of the test images: plainly cropped, and aligned",
            films=not is_of_many(image),
        ),
        "poses.png": Shown(
            _histograms(_in_degrees(pose)),
            "Poses of the test images (shifts in half sides, angle in degrees)",
            films=False,
        ),
    }
    write_gallery(out, pictures)


def _histograms(poses: npt.NDArray[np.float64]) -> Image.Image:
    """One histogram for each number of the poses [N, 5]."""
    wide, high, line = 180, 110, 30
    sheet = Image.new("L", (len(POSE) * (wide + 10) + 10, high + line + 24), 255)
    pen = ImageDraw.Draw(sheet)
    for number, (name, values) in enumerate(zip(POSE, poses.T, strict=True)):
        counts, edges = np.histogram(values, BINS)
        x, base = 10 + number * (wide + 10), high + line
        pen.text((x, 6), f"{name}  {values.mean():.3f} +- {values.std():.3f}", fill=0)
        pen.line((x, base, x + wide, base), fill=0)
        for place, count in enumerate(counts):
            left = x + place * wide / BINS
            top = base - high * count / counts.max()
            if count:
                pen.rectangle((left, top, left + wide / BINS - 1, base - 1), fill=90)
        pen.text((x, base + 6), f"{edges[0]:.2f}", fill=0)
        pen.text((x + wide - 34, base + 6), f"{edges[-1]:.2f}", fill=0)
    return sheet
