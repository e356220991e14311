"""What the miniatures of all downloads share: drawn studies and image files."""

from itertools import groupby
from pathlib import Path

from PIL import Image

from cxrbench.core.errors import UsageError
from cxrbench.core.nearest import nearest
from cxrbench.data.painter import Study, paint_image, sample_cohort

MOST_IMAGES = 3
# Miniatures have so few patients that findings must be common to occur at all.
ENRICHMENT = 4.0


def fake_patients(images: int, seed: int) -> list[list[Study]]:
    """Studies by patient, `images` in all, at most MOST_IMAGES a patient."""
    patients: list[list[Study]] = []
    cohort = sample_cohort(images * 8, seed=seed, enrichment=ENRICHMENT)
    for _, studies in groupby(cohort, key=lambda study: study.patient_id):
        room = min(MOST_IMAGES, images - sum(map(len, patients)))
        if not room:
            break
        patients.append(list(studies)[:room])
    return patients


def write_film(
    study: Study, path: Path, size: int, mode: str = "L", height: int | None = None
) -> None:
    """Paint a study into a PNG or JPEG file of a Pillow mode; `height` where it is not square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    film = Image.fromarray(paint_image(study, size)).convert(mode)
    if height is not None:
        film = film.resize((size, height))
    film.save(path, quality=95)


def pick_variant(variant: str, variants: tuple[str, ...]) -> str:
    """The layout that `fake` is asked for: blank is the first; UsageError for one that is not there."""
    if variant and variant not in variants:
        raise UsageError(f"no layout {variant!r} of the miniature; {nearest(variant, variants)}")
    return variant or variants[0]
