"""What a trained pair of generators changed in films, in pictures as the paper has them and in numbers it has not.

Shapes: N films, S side, D features of the classifier.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from cxrbench.core.contract import Computation
from cxrbench.core.errors import DataError
from cxrbench.core.spec import Reading
from cxrbench.methods.base import weights_in
from cxrbench.methods.densenet121 import BackboneClassifier, BackboneParams
from cxrbench.methods.sheets import TILE, Cell, Shown, contact_sheet, is_of_many, write_gallery
from cxrbench.methods.translation import (
    AT_ONCE,
    NORMAL,
    Domain,
    FilmParams,
    Translators,
    domains,
    grey,
    load_translators,
    signed,
    to_pixels,
)
from cxrbench.methods.translation_measures import (
    Marks,
    Mask,
    Numbers,
    Pixels,
    Rows,
    Verdicts,
    balanced_threshold,
    by_film,
    change,
    distances,
    flips,
    in_boxes,
    mean_shift,
    pointing_game,
    residual,
    separation,
)
from cxrbench.metrics.classification import roc_auc
from cxrbench.metrics.spread import spread
from cxrbench.nn.backbones import load_whole

ENLARGED = (
    1024  # the side to which the paper enlarges films, bicubic, before it takes their difference
)
SHOWN = 3  # films a direction in the gallery
CLIP, GRID = 8.0, 8  # of the adaptive histogram equalisation: limit of the contrast, tiles a side
OTHER: dict[Domain, Domain] = {"healthy": "sick", "sick": "healthy"}


class TranslationReportParams(FilmParams):
    """The generators, the side at which films are read, and the classifier that looks at them, if any.

    `films` is the most of a domain that is measured, drawn by the stage's seed. The classifier is given the same
    films at its recipe's `size`.
    """

    classifier: BackboneParams | None = None
    films: int = Field(400, ge=2)


class Crossing(NamedTuple):
    """Films of a domain, their translations into the other, and these translated back; 8 bits [N, S, S]."""

    rows: Rows
    films: Pixels
    made: Pixels
    back: Pixels


class TranslationReport(Computation):
    """Where films change, whom the change deceives, how real it looks: a `compute` stage on test films.

    Inputs: `translators`, the training of the generators, and `classifier`, a training with the parameters
    `classifier`. Its facts:

    - `films`: how many of each domain were measured.
    - `residual`: |film - film made healthy| by domain; a translation that sees disease changes the sick more.
    - `scores`: each film's residual as a score of "sick": AUC, PR-AUC and precision at 95 % recall of its mean, its 95th
      percentile, and both inside the lungs (`lungs`, `lungs_p95`; `{"missing": why}` where nobody knows the lungs).
    - `boxes`: of sick films, that change inside the boxes of their findings against outside, within the lungs where
      these are known. `same_boxes_of_healthy_films` is the control: a place may change for what it always is.
    - `pointing`: how often the highest place of the change is in a box, beside chance.
    - `classifier`: its AUC here (near 0.5 nothing below means anything), mean probabilities and flips, by direction.
      With several labels the probability of "sick" is the largest of theirs.
    - `distance`: KID and FID in its features. A good translation is nearer to the real films than the untranslated
      are, and not further than the floor.
    """

    name = "translation-report"
    version = 3
    Params = TranslationReportParams
    params: TranslationReportParams

    def image_size(self) -> int:
        return self.params.size

    def reading(self) -> Reading:
        return self.params.reading

    @torch.inference_mode()
    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Leaves `gallery.png`, `sick.png`, `healthy.png`, `means.png` and `gallery.json`; DataError without both domains."""
        p = self.params
        translators = load_translators(p.generator, inputs["translators"], self.device)
        chosen = choose_domains(images, targets, p.films, seed)
        crossings = {
            domain: cross(translators, np.array(images[rows]), rows, domain)
            for domain, rows in chosen.items()
        }
        healthy = crossings["healthy"]
        again = to_pixels(_translated(translators.to_healthy, _signed(healthy.films, translators)))
        changes: dict[Domain, npt.NDArray[np.float32]] = {
            "sick": change(crossings["sick"].films, crossings["sick"].made),
            "healthy": change(healthy.films, again),
        }
        marks = finding_marks(images, chosen["sick"])
        facts: dict[str, Any] = {
            "films": {domain: len(rows) for domain, rows in chosen.items()},
            "residual": {domain: residual(moved) for domain, moved in changes.items()},
            "scores": _scores(changes, images, chosen),
        }
        if marks is not None:
            facts |= _located(changes, marks, {d: tissue_of(images, r) for d, r in chosen.items()})
        if p.classifier is not None:
            seen = Onlooker(p.classifier, inputs["classifier"], images.index.labels, self.device)
            facts |= _judged(seen, crossings, images.index.patient_ids, seed)
        self._draw(crossings, marks, out)
        return facts

    def _draw(
        self,
        crossings: Mapping[Domain, Crossing],
        marks: Sequence[Marks] | None,
        out: Path,
    ) -> None:
        few = {d: spread(len(c.films), SHOWN) for d, c in crossings.items()}
        if marks is not None and any(marks):
            boxed = np.flatnonzero([bool(found) for found in marks])
            few["sick"] = boxed[spread(len(boxed), SHOWN)]
        rows = {d: _triplets(c, d, few[d], marks) for d, c in crossings.items()}
        outlined = " Boxes of findings are outlined." if marks is not None else ""
        how = f"Differences of the films enlarged to {ENLARGED} px, yellow at the largest of each film"
        pictures = {
            "gallery.png": Shown(
                contact_sheet([*rows["sick"][::2], *rows["healthy"][::2]]),
                f"Test films, translated, and translated back. {how}.{outlined}",
                films=True,
            ),
            "means.png": Shown(
                contact_sheet([_means(c, d) for d, c in crossings.items()]),
                "Mean of the test films of each domain, of what they are made, and of how much each pixel changes",
                films=not all(is_of_many(c.films) for c in crossings.values()),
            ),
        }
        for domain, sheet in rows.items():
            caption = f"{domain.capitalize()} test films made {OTHER[domain]}, and the same after adaptive histogram equalisation (CLAHE)"  # fmt: skip
            pictures[f"{domain}.png"] = Shown(contact_sheet(sheet), caption, films=True)
        write_gallery(out, pictures)


# --- films of both domains


def choose_domains(
    images: Any, targets: npt.NDArray[Any], most: int, seed: int
) -> dict[Domain, Rows]:
    """Rows of at most `most` sick and healthy images each; DataError when there are none of either."""
    known = np.isfinite(targets)
    held = torch.from_numpy(np.where(known, targets, 0)), torch.from_numpy(known)
    healthy, sick = (np.flatnonzero(mine) for mine in domains(*held, images.index.labels))
    if not len(healthy) or not len(sick):
        raise DataError(
            f"{len(healthy)} healthy and {len(sick)} sick films in this part; a translation between the two "
            f"is measured on both"
        )
    random = np.random.default_rng(seed)
    rows: dict[Domain, Rows] = {"sick": sick, "healthy": healthy}
    return {d: np.sort(random.permutation(found)[:most]) for d, found in rows.items()}


def cross(translators: Translators, films: Pixels, rows: Rows, domain: Domain) -> Crossing:
    """Films of a domain through both generators; what goes back was not rounded to 8 bits between."""
    made, back = [], []
    for start in range(0, len(films), AT_ONCE):
        there = translators.towards(OTHER[domain])(
            _signed(films[start : start + AT_ONCE], translators)
        )
        made.append(to_pixels(grey(there)))
        back.append(to_pixels(grey(translators.towards(domain)(there))))
    return Crossing(rows, films, np.concatenate(made), np.concatenate(back))


def _signed(films: Pixels, translators: Translators) -> torch.Tensor:
    device = next((p.device for p in translators.to_healthy.parameters()), torch.device("cpu"))
    return signed(torch.from_numpy(films)[:, None].to(device), translators.params.channels)


def _translated(generator: nn.Module, films: torch.Tensor) -> torch.Tensor:
    return torch.cat([grey(generator(block)) for block in torch.split(films, AT_ONCE)])


def finding_marks(images: Any, rows: Rows) -> list[Marks] | None:
    """The findings' boxes of some of the images; None where none is known."""
    every = images.boxes()
    if every is None or not any(every[row] for row in rows):
        return None
    return [every[row] for row in rows]


def lungs_of(images: Any, rows: Rows) -> Mask | None:
    """The lungs [N, S, S] of some of the images; None where nobody knows them."""
    return np.asarray(images.masks()[rows] > 127) if images.has_masks else None


def tissue_of(images: Any, rows: Rows) -> Mask:
    """The lungs [N, S, S] of some of the images; without masks, all of each film."""
    lungs = lungs_of(images, rows)
    if lungs is not None:
        return lungs
    side = images[rows[:1]].shape[-1]
    return np.ones((len(rows), side, side), dtype=np.bool_)


def _scores(
    changes: Mapping[Domain, npt.NDArray[np.float32]], images: Any, chosen: Mapping[Domain, Rows]
) -> dict[str, Any]:
    """How well each statistic of the residual tells sick films from healthy ones."""
    sick, healthy = (by_film(changes[d], lungs_of(images, chosen[d])) for d in ("sick", "healthy"))
    found = {name: separation(values, healthy[name]) for name, values in sick.items()}
    if not images.has_masks:
        missing = {"missing": "lung masks, which this data set or view of it does not have"}
        found |= {"lungs": missing, "lungs_p95": missing}
    return found


def _located(
    changes: Mapping[Domain, npt.NDArray[np.float32]],
    marks: Sequence[Marks],
    tissue: Mapping[Domain, Mask],
) -> dict[str, Any]:
    lent = np.arange(len(marks)) % len(changes["healthy"])
    control = in_boxes(changes["healthy"][lent], marks, tissue["healthy"][lent])
    control.pop("by_finding", None)
    return {
        "boxes": {
            **in_boxes(changes["sick"], marks, tissue["sick"]),
            "same_boxes_of_healthy_films": control,
        },
        "pointing": pointing_game(changes["sick"], marks, tissue["sick"]),
    }


# --- the classifier


class Onlooker:
    """A trained classifier that looks at films: probabilities of "sick", and the features before its last layer."""

    def __init__(
        self, params: BackboneParams, folder: Path, labels: tuple[str, ...], device: str
    ) -> None:
        start = BackboneClassifier.without_weights(params)
        self.module = BackboneClassifier(start, labels).eval()
        load_whole(self.module, weights_in(folder), source=f"classifier {folder}")
        self.module.to(device)
        self.side, self.device = params.recipe.size, device
        self.normal = torch.tensor([label == NORMAL for label in labels], device=device)
        self._features: torch.Tensor | None = None
        last = [m for m in self.module.net.modules() if isinstance(m, nn.Linear)][-1]
        last.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self._features = given[0]

    def __call__(self, films: Pixels) -> tuple[Numbers, Numbers]:
        """uint8 [N, S, S] to the largest probability of a finding [N], and features [N, D]."""
        probabilities, features = [], []
        for start in range(0, len(films), AT_ONCE):
            image = torch.from_numpy(films[start : start + AT_ONCE])[:, None].to(self.device) / 255
            if image.shape[-1] != self.side:
                size = (self.side, self.side)
                image = F.interpolate(image, size, mode="bilinear", antialias=True)
            found = torch.sigmoid(self.module(image).double())
            probabilities.append(torch.where(self.normal, 1 - found, found).amax(dim=1))
            assert self._features is not None
            features.append(self._features.double().flatten(1))
        return torch.cat(probabilities).cpu().numpy(), torch.cat(features).cpu().numpy()


def _judged(
    seen: Onlooker, crossings: Mapping[Domain, Crossing], patients: npt.NDArray[Any], seed: int
) -> dict[str, Any]:
    looks = {d: [seen(films) for films in (c.films, c.made, c.back)] for d, c in crossings.items()}
    verdicts = {d: Verdicts(*(probability for probability, _ in look)) for d, look in looks.items()}
    healthy, sick = verdicts["healthy"].before, verdicts["sick"].before
    target = np.repeat([0, 1], [len(healthy), len(sick)])
    thresholds = {"at_half": 0.5, "at_balanced": balanced_threshold(healthy, sick)}
    facts: dict[str, Any] = {"auc": roc_auc(target, np.concatenate((healthy, sick)))}
    apart: dict[str, Any] = {"features": looks["sick"][0][1].shape[1]}
    for domain, verdict in verdicts.items():
        was_sick, other = domain == "sick", OTHER[domain]
        facts[f"made_{other}"] = {
            "probability": mean_shift(verdict),
            **{n: flips(verdict, t, was_sick=was_sick) for n, t in thresholds.items()},
        }
        (_, source), (_, made), _ = looks[domain]
        real, own = looks[other][0][1], patients[crossings[other].rows]
        apart[f"made_{other}"] = distances(real, own, source, made, seed)
    return {"classifier": facts, "distance": apart}


# --- pictures


def clahe(film: Pixels) -> Pixels:
    """A film [S, S] after contrast-limited adaptive histogram equalisation."""
    return np.asarray(cv2.createCLAHE(CLIP, (GRID, GRID)).apply(film))


def difference_map(film: Pixels, made: Pixels) -> Pixels:
    """|made - film| of the enlarged films, uint8 [1024, 1024, 3] from dark blue to yellow at its largest value."""
    large = [
        cv2.resize(one.astype(np.float32), (ENLARGED, ENLARGED), interpolation=cv2.INTER_CUBIC)
        for one in (film, made)
    ]
    return _coloured(np.abs(large[1] - large[0]))


def _coloured(moved: npt.NDArray[np.floating[Any]]) -> Pixels:
    """Changes [S, S] as a picture [S, S, 3], yellow at the largest."""
    shade = (moved * (255 / max(float(moved.max()), 1e-6))).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(shade, cv2.COLORMAP_PLASMA)[..., ::-1])


def outlined(picture: Pixels, found: Marks) -> Image.Image:
    """A picture [S, S, 3] at tile size, with boxes drawn on it."""
    tile = Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BOX)
    pen = ImageDraw.Draw(tile)
    for _, box in found:
        pen.rectangle([min(edge * TILE, TILE - 1) for edge in box], outline="#58d68d")
    return tile


def _means(crossing: Crossing, domain: Domain) -> list[Cell]:
    """The mean film, the mean of the translations, and the mean of what changes."""
    moved = change(crossing.films, crossing.made).mean(0)
    return [
        (crossing.films.mean(0) / 255, f"mean of {len(crossing.films)} {domain}"),
        (crossing.made.mean(0) / 255, f"mean made {OTHER[domain]}"),
        (_coloured(moved), f"mean change, at most {moved.max():.3f}"),
    ]


def _triplets(
    crossing: Crossing, domain: Domain, few: Rows, marks: Sequence[Marks] | None
) -> list[list[Cell]]:
    """Two rows a film: it, translated, back, the difference; and the first three after CLAHE."""
    rows: list[list[Cell]] = []
    for n in few:
        film, made, back = crossing.films[n], crossing.made[n], crossing.back[n]
        found = marks[n] if marks is not None and domain == "sick" else ()
        names = ", ".join(sorted({name for name, _ in found}))
        mean, most = change(film, made).mean(), change(film, made).max()
        map_ = outlined(difference_map(film, made), found)
        rows.append(
            [
                (film, f"{domain}: {names}" if names else domain),
                (made, f"made {OTHER[domain]}"),
                (back, f"back: error {change(film, back).mean():.3f}"),
                (map_, f"difference: mean {mean:.3f}, largest {most:.2f}"),
            ]
        )
        rows.append([(clahe(one), "CLAHE") for one in (film, made, back)])
    return rows
