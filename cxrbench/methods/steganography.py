"""Seven tests of whether translated films hide what they were made from, with their curves.

The report suspects its CycleGAN of cheating and calls it unproven without pairs; none of these needs a pair.
Shapes: N films, S side.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from cxrbench.core.contract import Computation
from cxrbench.core.frozen import unless_set
from cxrbench.core.spec import Reading
from cxrbench.methods.fresh_decoder import DecoderParams, load_decoders
from cxrbench.methods.sheets import Cell, Shown, bars, beside, contact_sheet, plot, write_gallery
from cxrbench.methods.steganography_tests import (
    HIGH,
    Cycle,
    Trial,
    corruption_sweep,
    fresh_decoder,
    linear_decoder,
    locality,
    noise_curve,
    other_seed,
    run,
    spectrum,
    targeted,
)
from cxrbench.methods.translation import (
    Domain,
    FilmParams,
    Translators,
    grey,
    load_translators,
    signed,
    to_pixels,
)
from cxrbench.methods.translation_report import OTHER, choose_domains, clahe

SHOWN = 2  # films a direction in the gallery
DOMAINS: tuple[Domain, Domain] = ("sick", "healthy")
ZERO = {"jpeg": 100.0, "blur": 0.0, "shrink": 1.0}  # the strength of each family that does nothing
ACROSS = {
    "jpeg": "quality of the JPEG (100: none)",
    "blur": "std of the blur (pixels)",
    "shrink": "shrunk by",
}


class SteganographyParams(FilmParams):
    """The generators, the side at which films are read, and how much is spent.

    `films` is the most of a domain. Locality is tried with patches changed by up to `patch_level` grey levels, targeted attacks
    on `attacked` films with `attack_steps` a radius; a film gives in when no more than `tolerance` of the first error
    is left. `decoders` are those of the input of that name.
    """

    films: int = Field(16, ge=2)
    patch_level: float = Field(8.0, gt=0)
    attacked: int = Field(4, ge=1)
    attack_steps: int = Field(10, ge=1)
    tolerance: float = Field(0.5, gt=0, lt=1)
    decoders: DecoderParams | None = Field(None, exclude_if=unless_set)


class Found(NamedTuple):
    """The facts of a direction, and what is drawn of it."""

    facts: dict[str, Any]
    panels: list[list[Cell]]
    maps: list[Cell]
    spectra: dict[str, list[tuple[float, float]]]


class Steganography(Computation):
    """Whether a cycle hides films in their translations: a `compute` stage on test films.

    Inputs: `translators`, the training of the generators, and maybe `other`, that of another seed, and `decoders`, a
    training of `FreshDecoder`. Facts by the domain
    of the film that would be hidden ("sick": sick films made healthy and sick again), each beside the same of
    real films of the other domain, where nobody has written:

    1. CLAHE panels: pictures alone; they lift a signal out of flat regions.
    2. `noise`: how fast the reconstruction breaks under noise that no eye sees.
    3. `corruptions`: the same under JPEG, blur, rounding to 8 bits, and shrinking.
    4. `spectrum`: the share of a film's power above 0.25 cycles a pixel, and `excess`, the generated over the real.
    5. `locality`: the share of a patch's effect that is outside the patch, and far from it.
    6. `targeted`: the largest change in grey levels that a real film needs to be read as another given film.
    7. `other_seed`, `fresh_decoder` and `linear_decoder`: what decoders that know no secret read; `hidden` is how much less that is.
    """

    name = "steganography"
    version = 2
    Params = SteganographyParams
    params: SteganographyParams

    def image_size(self) -> int:
        return self.params.size

    def reading(self) -> Reading:
        return self.params.reading

    @torch.no_grad()  # no inference mode: the attack needs gradients
    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Leaves a sheet a test and `gallery.json`; DataError without both domains."""
        p = self.params
        pair = load_translators(p.generator, inputs["translators"], self.device)
        others: dict[str, Any] = {}
        if "other" in inputs:
            others["other"] = load_translators(p.generator, inputs["other"], self.device)
        if p.decoders is not None:
            others["decoders"] = load_decoders(p.decoders, inputs["decoders"], self.device)
        chosen = choose_domains(images, targets, p.films, seed)
        films = {d: self._signed(np.array(images[rows])) for d, rows in chosen.items()}
        found = {d: self._direction(pair, others, films, d, seed) for d in DOMAINS}
        self._draw(found, out)
        return {
            "films": {d: len(rows) for d, rows in chosen.items()},
            **{domain: one.facts for domain, one in found.items()},
        }

    def _signed(self, films: Any) -> Tensor:
        image = torch.from_numpy(films)[:, None].to(self.device)
        return signed(image, self.params.generator.channels).contiguous()

    def _direction(
        self,
        pair: Translators,
        others: Mapping[str, Any],
        films: Mapping[Domain, Tensor],
        domain: Domain,
        seed: int,
    ) -> Found:
        p, x, y = self.params, films[domain], films[OTHER[domain]]
        cycle = _cycle(pair, domain)
        trial = Trial(cycle, x, y)
        spectra, facts = _spectra(trial, domain)
        local = {"generated": trial.made, "real": y}
        seen = {
            name: locality(cycle.back, films_, level=p.patch_level, seed=seed)
            for name, films_ in local.items()
        }
        most = min(p.attacked, len(y))
        wanted = x[torch.arange(most) % len(x)]
        facts |= {
            "noise": noise_curve(trial, seed),
            "corruptions": corruption_sweep(trial),
            "locality": {name: shares for name, (shares, _) in seen.items()},
            "targeted": targeted(
                cycle.back, y[:most], wanted, steps=p.attack_steps, tolerance=p.tolerance
            ),
            "linear_decoder": linear_decoder(
                grey(trial.made), grey(trial.returned), grey(x), seed=seed
            ),
        }
        if "other" in others:
            facts["other_seed"] = other_seed(cycle, _cycle(others["other"], domain), x)
        if "decoders" in others:
            shown = grey(trial.made), grey(trial.returned), grey(x)
            facts["fresh_decoder"] = fresh_decoder(others["decoders"][domain], *shown)
        maps: list[Cell] = [_effect(map_, name, domain) for name, (_, map_) in seen.items()]
        return Found(facts, _panels(trial, domain), maps, spectra)

    def _draw(self, found: Mapping[Domain, Found], out: Path) -> None:
        panels = [row for one in found.values() for row in one.panels]
        noise = {
            _called(domain, name): _noise_line(one, name)
            for domain, one in found.items()
            for name in ("error", "control")
        }
        spectra = {name: line for one in found.values() for name, line in one.spectra.items()}
        left = {f"{d} films": _left(one) for d, one in found.items()}
        pictures = {
            "gallery.png": Shown(
                contact_sheet(panels),
                "Film, translation, back again and a real film of the other domain; below each after adaptive "
                "histogram equalisation (CLAHE), which lifts hidden signals out of flat regions",
                films=True,
            ),
            "noise.png": Shown(
                plot(noise, "std of the noise (grey levels)", "error of the reconstruction", from_zero=True),
                "Noise on translations: a hidden signal breaks at a few grey levels. Control: real films of the other "
                "domain, cycled with the same noise",
                films=False,
            ),
            "corruptions.png": Shown(
                beside([_family(found, family) for family in ACROSS]),
                "Error of the reconstruction by what was done to the translation; the control likewise",
                films=False,
            ),
            "spectrum.png": Shown(
                plot(spectra, "cycles a pixel", "log10 of the mean power"),
                f"Power of films by frequency; above {HIGH} a translation that hides something has more",
                films=False,
            ),
            "locality.png": Shown(
                contact_sheet([one.maps for one in found.values()]),
                "Where a change of one patch (rolled to the centre) changes what is read from a film; log scale",
                films=False,
            ),
            "targeted.png": Shown(
                plot(left, "largest change allowed (grey levels)", "share of the error that is left", from_zero=True),
                "Real films changed so that they are read as another film: how near that comes",
                films=False,
            ),
        }  # fmt: skip
        decoders = {
            name: row for d, one in found.items() for name, row in _decoders(one, d).items()
        }
        if decoders:
            pictures["decoders.png"] = Shown(
                bars(decoders, "error of what is read from translations"),
                "Decoders that know no secret: what they read worse than the pair's own generator was hidden for it",
                films=False,
            )
        write_gallery(out, pictures)


def _cycle(pair: Translators, domain: Domain) -> Cycle:
    return Cycle(pair.towards(OTHER[domain]), pair.towards(domain))


def _spectra(
    trial: Trial, domain: Domain
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, Any]]:
    sets = {
        f"real {domain}": trial.x,
        f"made {OTHER[domain]}": trial.made,
        f"real {OTHER[domain]}": trial.y,
    }
    lines, shares = {}, []
    for name, films in sets.items():
        frequency, power, share = spectrum(grey(films))
        log = np.log10(np.maximum(power, 1e-12)).tolist()
        lines[name] = list(zip(frequency, log, strict=True))[1:]
        shares.append(share)
    source, made, real = shares
    ratio = made / real if real else None
    found = {"source": source, "made": made, "real": real, "excess": made - real, "ratio": ratio}
    return lines, {"spectrum": found}


# --- pictures


def _panels(trial: Trial, domain: Domain) -> list[list[Cell]]:
    """Two rows a film: as it is, and after CLAHE."""
    back = run(trial.cycle.back, trial.made[:SHOWN])
    kinds = {
        f"real {domain}": trial.x,
        f"made {OTHER[domain]}": trial.made,
        f"{domain} again": back,
        f"real {OTHER[domain]}": trial.y,
    }
    pixels = {name: to_pixels(grey(films[:SHOWN])) for name, films in kinds.items()}
    rows: list[list[Cell]] = []
    for n in range(min(len(films) for films in pixels.values())):
        rows.append([(films[n], name) for name, films in pixels.items()])
        rows.append([(clahe(films[n]), "CLAHE") for films in pixels.values()])
    return rows


def _effect(map_: Tensor, name: str, domain: Domain) -> Cell:
    """The effect of a patch, over four powers of ten below its largest value."""
    values = map_.double().cpu().numpy()
    top = max(float(values.max()), 1e-12)
    shade = 1 + np.log10(np.maximum(values / top, 1e-4)) / 4
    what = f"made {OTHER[domain]}" if name == "generated" else f"real {OTHER[domain]}"
    return shade, f"patch of a {what} film"


def _noise_line(found: Found, name: str) -> list[tuple[float, float]]:
    curve = found.facts["noise"]
    return list(zip(curve["levels"], curve[name], strict=True))


def _left(found: Found) -> list[tuple[float, float]]:
    attack = found.facts["targeted"]
    return [(0.0, 1.0), *zip(attack["radii"], attack["left"], strict=True)]


def _decoders(found: Found, domain: Domain) -> dict[str, dict[str, float]]:
    """Errors of a stranger and of the pair's own generator on the same films, by stranger."""
    named = {
        "a filter of 7 x 7 pixels": "linear_decoder",
        "a fresh U-Net": "fresh_decoder",
        "a pair of another seed": "other_seed",
    }
    rows = {f"{domain} films, {name}": found.facts.get(key, {}) for name, key in named.items()}
    return {
        name: {"own generator": row["error"], "stranger": row["others_error"]}
        for name, row in rows.items()
        if "others_error" in row
    }


def _family(found: Mapping[Domain, Found], family: str) -> Image.Image:
    lines = {}
    for domain, one in found.items():
        for name in ("error", "control"):
            start = (ZERO[family], one.facts["noise"][name][0])
            points = [(float(s), row[name]) for s, row in one.facts["corruptions"][family].items()]
            lines[_called(domain, name)] = [start, *points]
    return plot(lines, ACROSS[family], "error of the reconstruction", from_zero=True)


def _called(domain: Domain, name: str) -> str:
    """A line's name; the control of a direction is the other domain's real films."""
    return f"{domain} films" if name == "error" else f"control: {OTHER[domain]} films"
