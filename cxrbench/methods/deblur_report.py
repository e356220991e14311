"""What the deblurring method shows beside its scores: how well films are restored, and ROC curves.

Both are measured on test films, so they are analyses: no score descends from them. Shapes: N films, S side.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from cxrbench.core.columns import FILE, PROBABILITY, TARGET
from cxrbench.core.contract import Computation
from cxrbench.core.frozen import Frozen
from cxrbench.methods.deblur_images import (
    DeblurUNetParams,
    Focus,
    Restorer,
    degrade,
    restore_params,
    restorer,
    unit_images,
)
from cxrbench.methods.sheets import Cell, Points, Shown, beside, contact_sheet, plot, write_gallery
from cxrbench.metrics.classification import Ranking, confusion_at
from cxrbench.metrics.images import edge_mse, mean_defined, mse, psnr, psnr_of_mse, ssim
from cxrbench.metrics.spread import spread

FloatArray = npt.NDArray[np.float64]
CHUNK = 16  # films restored at once
SWEPT = 64  # films that stds and the filters' strengths are tried on
SHOWN = 3  # films in the gallery
ERROR_GAIN = 8  # error maps are too dark to see otherwise
# Strengths that the filters are tried with, so that a poor default does not flatter the U-Net.
RATIOS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
ITERATIONS = (6, 20, 50)
SWEEP = ("psnr", "mse", "ssim")  # what is measured at each std
NAMES = {"blurred": "blurred", "unet": "U-Net", "wiener": "Wiener", "richardson-lucy": "R.-Lucy"}


# --- restoration


class RestorationParams(Frozen):
    """The blur, and the restorers that undo it; without `unet` the filters alone."""

    focus: Focus = Focus()
    unet: DeblurUNetParams | None = None
    noise_to_signal: float = 1e-3
    iterations: int = 6
    images: int = 1000  # evenly spread over the part, at most
    sweep: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 4.0)


class Restoration(Computation):
    """MSE, PSNR, SSIM and error of edges of blurred and restored films against the sharp: `compute`.

    Blurred films have 8 bits. `psnr` is that of the mean MSE, as papers print it. "blurred" is the
    floor: what doing nothing costs.
    """

    name = "restoration"
    version = 2
    Params = RestorationParams
    params: RestorationParams

    def image_size(self) -> int:
        return self.params.focus.side

    @torch.inference_mode()
    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Leaves `gallery.png`, `sweep.png` and `gallery.json`; the numbers are the facts."""
        p = self.params
        chosen = spread(len(images), p.images)
        found: dict[str, list[dict[str, FloatArray]]] = {}
        for block, films in self._blocks(images, chosen):
            for name, restored in self._all(p.focus, inputs, films).items():
                found.setdefault(name, []).append(_measure(restored, block))
        facts: dict[str, Any] = {
            "films": len(chosen),
            "side": p.focus.side,
            "sigma": p.focus.sigma,
            "restored": {name: _summary(parts) for name, parts in found.items()},
        }
        facts["gain_db"] = {
            name: row["psnr"] - facts["restored"]["blurred"]["psnr"]
            for name, row in facts["restored"].items()
            if name != "blurred"
        }
        few = np.array(images[chosen[spread(len(chosen), SWEPT)]])
        facts["strongest_filters"] = self._strongest(few)
        facts |= self._sweep(few, inputs)
        if p.unet is not None:
            facts["unet_mse_of_floats"] = self._as_reported(images, chosen, inputs)
        self._draw(images[chosen[spread(len(chosen), SHOWN)]], inputs, facts, out)
        return facts

    def _blocks(self, images: Any, rows: Any) -> Iterator[tuple[FloatArray, npt.NDArray[np.uint8]]]:
        """Sharp films [CHUNK, S, S], as floats and as they are."""
        for start in range(0, len(rows), CHUNK):
            films = np.array(images[rows[start : start + CHUNK]])
            yield films / 255.0, films

    def _restorers(
        self, focus: Focus, inputs: Mapping[str, Path]
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        p = self.params
        strength = {"noise_to_signal": p.noise_to_signal, "iterations": p.iterations}
        names: list[Restorer] = ["wiener", "richardson-lucy"]
        if p.unet is not None:
            names.insert(0, "unet")
        settings = {n: restore_params(focus, n, unet=p.unet, **strength) for n in names}
        return {n: restorer(setting, inputs) for n, setting in settings.items()}

    def _all(
        self, focus: Focus, inputs: Mapping[str, Path], films: npt.NDArray[np.uint8]
    ) -> dict[str, FloatArray]:
        """Blurred and restored films [N, S, S] by name."""
        blurred = focus.of_stored(films)
        restored = {n: undo(blurred) for n, undo in self._restorers(focus, inputs).items()}
        return {n: _plain(image) for n, image in {"blurred": blurred, **restored}.items()}

    def _strongest(self, films: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """The filters at the strength that is best on these very films: more than they deserve."""
        focus, sharp = self.params.focus, films / 255.0
        blurred = focus.of_stored(films)

        def tried(by: Restorer, strengths: Sequence[float], name: str) -> dict[str, Any]:
            values = {}
            for strength in strengths:
                undo = restorer(restore_params(focus, by, **{name: strength}), {})
                values[strength] = _psnr(_plain(undo(blurred)), sharp)
            best = max(values, key=lambda strength: values[strength])
            return {name: best, "psnr": values[best]}

        return {
            "films": len(films),
            "wiener": tried("wiener", RATIOS, "noise_to_signal"),
            "richardson-lucy": tried("richardson-lucy", ITERATIONS, "iterations"),
        }

    def _sweep(
        self, films: npt.NDArray[np.uint8], inputs: Mapping[str, Path]
    ) -> dict[str, dict[str, dict[str, float | None]]]:
        """PSNR, MSE and SSIM by std: the filters are told it, the U-Net stays as it was trained."""
        found: dict[str, dict[str, dict[str, float | None]]] = {f"{n}_by_sigma": {} for n in SWEEP}
        for sigma in sorted({*self.params.sweep, self.params.focus.sigma}):
            focus = self.params.focus.model_copy(update={"sigma": sigma})
            restored = self._all(focus, inputs, films)
            measured = {n: _summary([_measure(im, films / 255.0)]) for n, im in restored.items()}
            for name in SWEEP:
                row = {n: values[name] for n, values in measured.items()}
                found[f"{name}_by_sigma"][f"{sigma:g}"] = row
        return found

    def _as_reported(self, images: Any, rows: Any, inputs: Mapping[str, Path]) -> float:
        """The U-Net's MSE on blurred films that were not rounded to 8 bits, as the report has it."""
        focus = self.params.focus
        undo = self._restorers(focus, inputs)["unet"]
        total, first = 0.0, 0
        for _, films in self._blocks(images, rows):
            sharp = unit_images(films)
            seeds = list(range(first, first + len(films)))
            error = undo(degrade(sharp, focus.sigma, focus, seeds=seeds)) - sharp
            total += float(error.double().square().mean((1, 2, 3)).sum())
            first += len(films)
        return total / len(rows)

    def _draw(
        self, films: Any, inputs: Mapping[str, Path], facts: dict[str, Any], out: Path
    ) -> None:
        films = np.array(films)
        sharp, restored = films / 255.0, self._all(self.params.focus, inputs, films)
        rows: list[list[Cell]] = []
        for n, film in enumerate(sharp):
            columns = {name: image[n] for name, image in restored.items()}
            rows.append([(film, "sharp")])
            rows.append([None])
            for name, image in columns.items():
                own = float(psnr(image[None], film[None])[0])
                label = f"{NAMES[name]} {own:.1f} dB" if np.isfinite(own) else NAMES[name]
                rows[-2].append((image, label))
                rows[-1].append((np.abs(image - film) * ERROR_GAIN, f"error x {ERROR_GAIN}"))
        sigma, side = self.params.focus.sigma, self.params.focus.side
        trained = "" if self.params.unet is None else "; the U-Net stays as it was trained"
        swept = facts["strongest_filters"]["films"]
        pictures = {
            "gallery.png": Shown(
                contact_sheet(rows),
                f"Test films at {side} px, blurred with std {sigma:g} px, and restored",
                films=True,
            ),
            "sweep.png": Shown(
                beside([_by_std(facts, name, restored) for name in ("psnr", "ssim")]),
                f"PSNR and SSIM by the blur's std on {swept} test films{trained}",
                films=False,
            ),
        }
        write_gallery(out, pictures)


def _by_std(facts: Mapping[str, Any], measure: str, names: Iterable[str]) -> Image.Image:
    """A measure against the blur's std, a line for each of `names`."""
    rows = facts[f"{measure}_by_sigma"]
    lines = {
        NAMES[name]: [(float(s), row[name]) for s, row in rows.items() if row[name] is not None]
        for name in names
    }
    up = "PSNR (dB)" if measure == "psnr" else measure.upper()
    return plot(lines, "std of the blur (pixels)", up)


def _plain(image: Tensor) -> FloatArray:
    """Floats [N, 1, S, S] to [N, S, S]; cut to [0, 1] as a stored film is."""
    return np.asarray(image[:, 0].clamp(0, 1).double().cpu().numpy())


def _measure(restored: FloatArray, sharp: FloatArray) -> dict[str, FloatArray]:
    return {
        "mse": mse(restored, sharp),
        "ssim": ssim(restored, sharp),
        "edge_mse": edge_mse(restored, sharp),
    }


def _summary(parts: list[dict[str, FloatArray]]) -> dict[str, float | None]:
    means = {key: mean_defined(np.concatenate([p[key] for p in parts])).mean for key in parts[0]}
    return {**means, "psnr": float(psnr_of_mse(means["mse"] or 0.0))}


def _psnr(restored: FloatArray, sharp: FloatArray) -> float:
    return float(psnr_of_mse(mse(restored, sharp).mean()))


# --- accuracy and curves


class CurvesParams(Frozen):
    """`trained_on` which films; `side` at which they are kept anyway, since none is looked at."""

    side: int = 224
    trained_on: str = "sharp"


class Curves(Computation):
    """Accuracy at a probability of one half, AUC and the ROC curve by tested films: `compute`.

    Its inputs are predictions, by the films that they were made from.
    """

    name = "curves"
    version = 1
    Params = CurvesParams
    params: CurvesParams

    def image_size(self) -> int:
        return self.params.side

    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Leaves `gallery.png` (the first label that has both classes) and `gallery.json`."""
        tables = {name: _test_part(folder) for name, folder in inputs.items()}
        facts = {name: _verdicts(table) for name, table in tables.items()}
        labels = [n for n, row in next(iter(facts.values()))["labels"].items() if row["auc"]]
        pictures = {}
        if labels:
            lines = {}
            for name, table in tables.items():
                auc = facts[name]["labels"][labels[0]]["auc"]
                lines[f"{name} {auc:.4f}"] = _curve(*_column(table, labels[0]))
            caption = (
                f"{labels[0]}: trained on {self.params.trained_on} films, tested on three; AUC"
            )
            roc = plot(lines, "1 - specificity", "sensitivity")
            pictures["gallery.png"] = Shown(roc, caption, films=False)
        write_gallery(out, pictures)
        return facts


def _test_part(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / FILE)
    return table[table["part"] == "test"]


def _column(table: pd.DataFrame, label: str) -> tuple[FloatArray, FloatArray]:
    """Target and probability of the films whose target is known."""
    target = table[TARGET + label].to_numpy(dtype=np.float64)
    known = ~np.isnan(target)
    return target[known], table[PROBABILITY + label].to_numpy(dtype=np.float64)[known]


def _verdicts(table: pd.DataFrame) -> dict[str, Any]:
    """By label: films, accuracy at one half, the share of the commoner class, and AUC; and means."""
    labels = {}
    for name in table.columns:
        if not name.startswith(TARGET):
            continue
        target, probability = _column(table, label := name.removeprefix(TARGET))
        share = float(target.mean()) if len(target) else None
        labels[label] = {
            "films": len(target),
            "accuracy": confusion_at(target, probability, 0.5).accuracy,
            "constant_accuracy": None if share is None else max(share, 1 - share),
            "auc": Ranking.of(target, probability).roc_auc(),
        }
    keys = ("accuracy", "constant_accuracy", "auc")
    defined = [row for row in labels.values() if row["auc"] is not None]
    means = {k: float(np.mean([row[k] for row in defined])) if defined else None for k in keys}
    return {"mean": means, "labels": labels}


def _curve(target: FloatArray, probability: FloatArray) -> Points:
    ranking = Ranking.of(target, probability)
    right, up = ranking.fp / ranking.negatives, ranking.tp / ranking.positives
    return [(0.0, 0.0), *zip(right.tolist(), up.tolist(), strict=True)]
