"""The built-in data set: drawn chest films that know their own truth; no download, no patient."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from cxrbench.core.frozen import Frozen
from cxrbench.data.base import CxrDataset, FindingBox
from cxrbench.data.index import Index
from cxrbench.data.painter import FINDINGS, Film, Study, paint, paint_image, sample_cohort

DRAWN = 64  # the side at which films are drawn for their boxes, which are shares of any


class PhantomParams(Frozen):
    """How many films, how many of them ill."""

    images: int = Field(1200, ge=20)
    enrichment: float = Field(3.0, ge=1, description="factor on the prevalence of every finding")
    seed: int = Field(0, ge=0)


class Phantom(CxrDataset):
    """Drawn chest films with the 14 findings of ChestX-ray14; for trials and tests, says nothing of patients."""

    name = "phantom"
    version = 1
    Params = PhantomParams
    splits: ClassVar[tuple[str, ...]] = ("cv5", "holdout")
    needs_root = False
    licence = "drawn by cxrbench"
    phantom = True
    has_masks = True

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        studies = cohort(params)
        frame = pd.DataFrame(
            {
                "image_id": [s.image_id for s in studies],
                "patient_id": [s.patient_id for s in studies],
                "path": "",
                "sex": [s.sex for s in studies],
                "age": [s.age for s in studies],
                "view_position": [s.view_position for s in studies],
                "study": studies,
            }
        )
        for finding in FINDINGS:
            frame[finding] = [float(finding in dict(s.findings)) for s in studies]
        return Index(cls.name, frame, FINDINGS)

    @classmethod
    def read_image(cls, index: Index, row: int, size: int) -> npt.NDArray[np.uint8]:
        study: Study = index.frame["study"].to_numpy()[row]
        return paint_image(study, size)

    @classmethod
    def read_mask(cls, index: Index, row: int, size: int) -> npt.NDArray[np.uint8]:
        """Both lungs as they were drawn, behind the heart and the diaphragm left out."""
        return (cls.truth(index, row, size).lungs * np.uint8(255)).astype(np.uint8)

    @classmethod
    def finding_boxes(cls, index: Index) -> list[list[FindingBox]]:
        """As they were drawn."""
        films = [paint(study, DRAWN) for study in index.frame["study"]]
        return [
            [(b.finding, (b.x, b.y, b.x + b.width, b.y + b.height)) for b in film.boxes]
            for film in films
        ]

    @classmethod
    def truth(cls, index: Index, row: int, size: int) -> Film:
        """All that is known of a film: lungs, boxes of findings, affine, blur."""
        return paint(index.frame["study"].to_numpy()[row], size)

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """Nothing to write: every image is drawn when it is asked for."""
        return root


def cohort(params: Frozen) -> list[Study]:
    """The studies behind the index, for whoever needs their truth."""
    assert isinstance(params, PhantomParams)
    return sample_cohort(params.images, seed=params.seed, enrichment=params.enrichment)
