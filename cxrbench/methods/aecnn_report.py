"""What AE-CNN shows beside its scores: whole test films given back from a code of a sixteenth of the pixels.

The autoencoder of stage 2 ("alone") and of stage 3 ("trained on", with the classifier), against plain down-
and up-scaling at the same size. Measured on test films, so it is an analysis: no score descends from it.
Shapes: N films, S side.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cxrbench.core.contract import Computation
from cxrbench.core.frozen import Frozen
from cxrbench.methods.base import weights_in
from cxrbench.methods.sheets import Shown, contact_sheet, write_gallery
from cxrbench.metrics.images import mean_defined, mse, psnr, ssim
from cxrbench.metrics.spread import spread
from cxrbench.nn.autoencoder import SCALE, Autoencoder, Resizing, enlarge, shrink
from cxrbench.nn.backbones import load_whole, to_unit

FloatArray = npt.NDArray[np.float64]
Films = npt.NDArray[np.uint8]
RESIZINGS: tuple[Resizing, ...] = ("bicubic", "bilinear", "area")
BORDER = 2 * SCALE  # pixels that see the layers' zeros beyond the film's edge
SHOWN = 3  # films in the gallery
TILE = 176  # pixels of a picture in the gallery
DETAIL = 6  # the second row of a film is this much enlarged
ERROR_GAIN = 4  # residuals are too dark to see otherwise


class ReconstructionParams(Frozen):
    """The two autoencoders, and how many films they are tried on."""

    side: int = 1024  # a multiple of 4
    films: int = 64  # evenly spread over the part, at most
    clip_alone: bool = False  # of the code in stage 2
    clip_trained_on: bool = True  # and in stage 3
    as_resizing: bool = False
    code_channels: int = 1
    hidden: int = 0


class Way(NamedTuple):
    """Down and up again: a film [1, 1, S, S] to its code [1, C, S/4, S/4], and that back to a film."""

    down: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]


class Reconstruction(Computation):
    """PSNR and SSIM of films given back, range and entropy of their code, and its size: `compute`.

    Every number is a mean over films. `psnr_of_8_bits` is that of a code kept as uint8, which is what a
    size of a sixteenth supposes; `psnr_inside` leaves out a border of 8 px.
    """

    name = "reconstruction"
    version = 1
    Params = ReconstructionParams
    params: ReconstructionParams

    def image_size(self) -> int:
        return self.params.side

    @torch.inference_mode()
    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Reads the trainings `alone` and `trained_on`; leaves `gallery.png` and `gallery.json`."""
        ways = {"stage 2": self._trained(inputs["alone"], clip=self.params.clip_alone)}
        ways["stage 3"] = self._trained(inputs["trained_on"], clip=self.params.clip_trained_on)
        ways |= {by: plain(by) for by in RESIZINGS}
        chosen = spread(len(images), self.params.films)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for row in chosen:
            film = images[row : row + 1]
            for name, way in ways.items():
                found[name].append(_measure(film, way))
        facts = {
            "films": len(chosen),
            "side": self.params.side,
            "code_values_per_pixel": self.params.code_channels / SCALE**2,
            "ways": {name: _means(rows) for name, rows in found.items()},
            "gain_over_bicubic_db": {n: _gain(found[n], found["bicubic"]) for n in list(ways)[:2]},
        }
        few = chosen[spread(len(chosen), SHOWN)]
        caption = (
            f"Test films at {self.params.side} px, their code of a quarter of the side, and what the autoencoder "
            f"of stage 2, of stage 3, and bicubic resizing give back"
        )
        shown = {name: ways[name] for name in ("stage 2", "stage 3", "bicubic")}
        picture = draw(shown, images[few])
        write_gallery(out, {"gallery.png": Shown(picture, caption, films=True)})
        return facts

    def _trained(self, folder: Path, *, clip: bool) -> Way:
        p = self.params
        net = Autoencoder(
            clip_code=clip,
            as_resizing=p.as_resizing,
            code_channels=p.code_channels,
            hidden=p.hidden,
        ).eval()
        prefix = "autoencoder."
        own = {n.removeprefix(prefix): v for n, v in weights_in(folder).items() if prefix in n}
        load_whole(net, own, source=str(folder))
        return Way(net.encode, net.decoder)


def plain(by: Resizing) -> Way:
    """Resizing down and up again."""
    return Way(lambda film: shrink(film, by), lambda code: enlarge(code, by).clamp(0, 1))


# --- numbers


def _measure(film: Films, way: Way) -> dict[str, float]:
    """One film [1, S, S], uint8."""
    image = to_unit(torch.from_numpy(film))[:, None]
    code = way.down(image)
    bytes_of_code = stored(code)
    sharp, back = _plane(image), _plane(way.up(code))
    again = _plane(way.up(to_unit(torch.from_numpy(bytes_of_code))[None]))
    inside = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    # What is most like a resized image: the sign of a code is the autoencoder's own choice.
    likeness = np.corrcoef(code.mean(dim=1).flatten(), shrink(image, "area").flatten())[0, 1]
    return {
        "mse": float(mse(back, sharp)[0]),
        "psnr": float(psnr(back, sharp)[0]),
        "psnr_inside": float(psnr(back[inside], sharp[inside])[0]),
        "psnr_of_8_bits": float(psnr(again, sharp)[0]),
        "ssim": float(ssim(back, sharp)[0]),
        "code_lowest": float(code.min()),
        "code_highest": float(code.max()),
        "code_outside_0_1": float(((code < 0) | (code > 1)).double().mean()),
        "code_like_resized": float(likeness),
        "code_entropy_bits": entropy(bytes_of_code),
        "film_entropy_bits": entropy(film),
        "png_bytes_of_code_per_film": sum(map(png_bytes, bytes_of_code)) / png_bytes(film[0]),
    }


def stored(code: Tensor) -> Films:
    """A code [1, C, h, w] as it would be kept: cut to [0, 1], 8 bits; [C, h, w]."""
    return np.asarray((code[0].clamp(0, 1) * 255).round().byte())


def entropy(values: Films) -> float:
    """Bits a value, each taken by itself: at most 8."""
    share = np.bincount(values.ravel(), minlength=256) / values.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def png_bytes(image: Films) -> int:
    """Size of a plane [H, W] as a PNG file, which keeps every bit."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.tell()


def _plane(image: Tensor) -> FloatArray:
    return np.asarray(image[:, 0].double())


def _means(rows: list[dict[str, float]]) -> dict[str, float | None]:
    return {key: mean_defined([row[key] for row in rows]).mean for key in rows[0]}


def _gain(rows: list[dict[str, float]], floor: list[dict[str, float]]) -> dict[str, Any]:
    """Decibels above bicubic resizing, film by film; a film that either gives back whole has none."""
    own, theirs = (np.array([row["psnr"] for row in each]) for each in (rows, floor))
    with np.errstate(invalid="ignore"):  # infinite on both sides
        gain = own - theirs
    gain = gain[np.isfinite(gain)]
    if not gain.size:
        return {"mean": None, "worst": None, "films_better": None}
    return {
        "mean": float(gain.mean()),
        "worst": float(gain.min()),
        "films_better": float((gain > 0).mean()),
    }


# --- drawing


def draw(ways: Mapping[str, Way], films: Films) -> Image.Image:
    """For each film [N, S, S] two rows, the whole and a part: film, code, reconstruction, residual."""
    rows: list[list[tuple[FloatArray, str]]] = []
    for film in films:
        image = to_unit(torch.from_numpy(film))[None, None]
        sharp = _plane(image)
        row, errors = [(sharp[0], "film")], []
        for name, way in ways.items():
            code = way.down(image)
            back = _plane(way.up(code))
            if name != "bicubic":
                small = np.asarray(code.mean(dim=1).clamp(0, 1).double())[0]
                row.append((small, f"code, {name}"))
            row.append((back[0], f"{name} {psnr(back, sharp)[0]:.1f} dB"))
            errors.append((np.abs(back - sharp)[0] * ERROR_GAIN, f"{name}: error x {ERROR_GAIN}"))
        rows.append(row + errors)
        rows.append([(_part(picture), f"{name}, a part") for picture, name in rows[-1]])
    return contact_sheet(rows, side=TILE)


def _part(picture: FloatArray) -> FloatArray:
    """A square of a lung's middle, in shares of the side: the same of a film and of its code."""
    side = len(picture)
    top, left, width = round(side * 0.4), round(side * 0.2), round(side / DETAIL)
    return picture[top : top + width, left : left + width]
