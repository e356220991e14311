"""What the miniatures of all downloads share: drawn studies and image files."""

from itertools import groupby
from pathlib import Path

from PIL import Image

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


def write_film(study: Study, path: Path, size: int, mode: str = "L") -> None:
    """Paint a study into a PNG or JPEG file of a Pillow mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paint_image(study, size)).convert(mode).save(path, quality=95)
