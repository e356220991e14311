"""What FMix, mixup and CutMix make of films: masks, mixed films and their shares. S: the films' side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from cxrbench.core.contract import Computation
from cxrbench.core.frozen import Frozen
from cxrbench.methods.sheets import Cell, Shown, contact_sheet, write_gallery
from cxrbench.metrics.spread import spread
from cxrbench.nn.backbones import to_unit
from cxrbench.nn.fmix import Mixed, cutmix, fmix, mixup

SHOWN = 6  # mixtures in the gallery
SIDE = 160  # pixels of a picture in the gallery

Mix = Literal["fmix", "mixup", "cutmix"]


class MixParams(Frozen):
    """How films are mixed."""

    mix: Mix = "fmix"
    alpha: float = Field(1.0, gt=0)  # lam ~ Beta(alpha, alpha)
    decay: float = Field(3.0, gt=0)  # of the mask's spectrum
    official_spectrum: bool = False  # the published code's quirk: see nn/fmix.py

    def apply(self, image: torch.Tensor, generator: torch.Generator | None = None) -> Mixed:
        """A batch [B, C, S, S] mixed; draws from torch's global generator without another."""
        if self.mix == "mixup":
            return mixup(image, alpha=self.alpha, generator=generator)
        if self.mix == "cutmix":
            return cutmix(image, alpha=self.alpha, generator=generator)
        return fmix(
            image,
            alpha=self.alpha,
            decay=self.decay,
            official_spectrum=self.official_spectrum,
            generator=generator,
        )


class MixedFilmsParams(MixParams):
    """Besides, the side at which films are read."""

    side: int = Field(224, ge=16)


class MixedFilms(Computation):
    """Pairs of films, masks and mixtures as the training makes them, of other films: `compute`.

    `lam`: the share of the first film in each pair shown.
    """

    name = "mixed-films"
    version = 1
    Params = MixedFilmsParams
    params: MixedFilmsParams

    def image_size(self) -> int:
        return self.params.side

    def compute(
        self, images: Any, targets: Any, inputs: Mapping[str, Path], out: Path, seed: int
    ) -> dict[str, Any]:
        """Leaves `gallery.png` and `gallery.json`."""
        rows = spread(len(images), 2 * SHOWN)
        films = to_unit(torch.from_numpy(np.array(images[rows]))).unsqueeze(1)
        generator = torch.Generator().manual_seed(seed)
        shown: list[list[Cell]] = []
        shares = []
        for pair in torch.split(films, 2):
            mixed = self._another(pair, generator)
            if mixed is None:
                continue
            shares.append(mixed.lam)
            row: list[Cell] = [(pair[n, 0].numpy(), f"film {n + 1}") for n in range(2)]
            if mixed.mask is not None:
                row.append(
                    (mixed.mask.float().numpy(), f"mask, mean {mixed.mask.float().mean():.2f}")
                )
            row.append((mixed.image[0, 0].numpy(), f"mixed, lambda {mixed.lam:.2f}"))
            shown.append(row)
        caption = f"{self.params.mix}: lambda is the share of the first film in the mixture and in the loss"
        pictures = {}
        if shown:
            sheet = contact_sheet(shown, side=SIDE)
            pictures["gallery.png"] = Shown(sheet, caption, films=True)
        write_gallery(out, pictures)
        return {"mix": self.params.mix, "lam": shares}

    def _another(self, pair: torch.Tensor, generator: torch.Generator) -> Mixed | None:
        """The first draw that mixes a film with the other, not with itself; None for a film without a partner."""
        while len(pair) == 2:
            mixed = self.params.apply(pair, generator)
            if mixed.permutation[0] == 1:
                return mixed
        return None
