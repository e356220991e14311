"""Miniatures of the lung masks' sources: drawn films, and the lungs as they were drawn."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from cxrbench.data.fakes import fake_patients, pick_variant
from cxrbench.data.lung_pixels import BORDER_GREY, JSRT_LEVELS, JSRT_SIDE
from cxrbench.data.painter import Film, Study, paint

VARIANTS = ("all", "jsrt", "montgomery", "shenzhen", "merge", "pairs")
# A raw film of JSRT does not say how large it is, so its one true size is demanded: 8 MB each.
MOST_JSRT = 10
JSRT_MASK_SIDE = 1024
_FINDINGS = {"nodule": (("Nodule", 0.9),), "tuberculosis": (("Infiltration", 0.8), ("Nodule", 0.6))}
Pixels = npt.NDArray[np.uint8]
Lungs = npt.NDArray[np.bool_]
Numbered = list[tuple[int, Study]]  # odd numbers have the label


def write_miniature(root: Path, variant: str, images: int, size: int, seed: int) -> Path:
    """Write the sources of a variant below `root`, `images` films with masks in all; returns `root`.

    JSRT has MOST_JSRT at most. Each source also holds what is no film or has no mask.
    """
    variant = pick_variant(variant, VARIANTS)
    studies = list(enumerate(first_studies(images, seed), start=1))
    if variant == "all":
        _write_all(root, studies, size, seed)
    elif variant == "jsrt":
        _write_jsrt(root, studies[:MOST_JSRT], size)
    elif variant == "montgomery":
        _write_montgomery(root, studies, size)
    elif variant == "shenzhen":
        _write_shenzhen(root, studies, size)
    elif variant == "merge":
        half = len(studies) // 2
        _write_merge(root, studies[:half], studies[half:], size)
        # Kaggle's archive holds everything a second time.
        shutil.copytree(root / "Lung Segmentation", root / "data" / "Lung Segmentation")
    else:
        _write_pairs(root, fake_patients(images, seed), size)
    return root


def first_studies(images: int, seed: int) -> list[Study]:
    """One study each of so many patients."""
    return [studies[0] for studies in fake_patients(images * 3, seed)][:images]


def draw(study: Study, label: str, number: int, size: int) -> Film:
    """A study's film [size, size]: with a label's findings if the number is odd, else without any."""
    return paint(replace(study, findings=_FINDINGS[label] if number % 2 else ()), size)


def _write_all(root: Path, studies: Numbered, size: int, seed: int) -> None:
    """Every source; two films of the merge lie in Montgomery and two in Shenzhen as well."""
    share = len(studies) // 6
    montgomery, shenzhen, merge = (studies[i * share : (i + 1) * share] for i in range(3))
    jsrt = [
        (n, study) for n, (_, study) in enumerate(studies[3 * share : 4 * share][:MOST_JSRT], 1)
    ]
    _write_montgomery(root, montgomery, size)
    _write_shenzhen(root, shenzhen, size)
    half = len(merge) // 2
    _write_merge(root, montgomery[:2] + merge[:half], shenzhen[:2] + merge[half:], size)
    _write_jsrt(root, jsrt, size)
    _write_pairs(root, fake_patients(len(studies) - 3 * share - len(jsrt), seed + 1), size)


def _write_jsrt(root: Path, studies: Numbered, size: int) -> None:
    """Raw films, masks of both lungs and of a heart, in the folders of the SCR."""
    for number, study in studies:
        film = draw(study, "nodule", number, size)
        own = (number + 1) // 2
        name = f"JPC{'L' if number % 2 else 'N'}N{own:03d}"
        masks = root / "scratch" / f"fold{1 if own % 2 else 2}" / "masks"
        _write_raw(film.image, _new(root / "All247images" / f"{name}.IMG"))
        for side, lung in _sides(film.lungs):
            large = _enlarge(_bytes(lung), JSRT_MASK_SIDE)
            Image.fromarray(large).save(_new(masks / f"{side} lung" / f"{name}.gif"))
    Image.new("L", (JSRT_MASK_SIDE, JSRT_MASK_SIDE), 255).save(
        _new(masks / "heart" / f"{name}.gif")
    )
    (root / "CLNDAT_EN.txt").write_text("no label file of this data set\n")


def _write_raw(image: Pixels, path: Path) -> None:
    values = np.rint((1 - image / 255) * JSRT_LEVELS).clip(0, JSRT_LEVELS - 1)
    _enlarge(values.astype(np.uint16), JSRT_SIDE).astype(">u2").tofile(path)


def _write_montgomery(root: Path, studies: Numbered, size: int) -> None:
    """Black borders around most films; masks of one bit, left and right."""
    base = root / "MontgomerySet"
    for number, study in studies:
        name, image, lungs = _montgomery_film(number, study, size)
        Image.fromarray(image).save(_new(base / "CXR_png" / f"{name}.png"))
        for side, lung in _sides(lungs):
            Image.fromarray(lung).save(_new(base / "ManualMask" / f"{side}Mask" / f"{name}.png"))
        reading = f"Patient's Sex: {study.sex}\nPatient's Age: {study.age:03d}Y\nread\n"
        _new(base / "ClinicalReadings" / f"{name}.txt").write_text(reading)
    (base / "CXR_png" / "Thumbs.db").write_bytes(b"junk")


def _montgomery_film(number: int, study: Study, size: int) -> tuple[str, Pixels, Lungs]:
    film = draw(study, "tuberculosis", number, size)
    # No row of the film itself may pass for border.
    image = np.maximum(film.image, BORDER_GREY + 4)
    if number % 3:
        border = ((size // 8, 0), (size // 16, size // 5)) if number % 3 == 1 else ((0, 0), (9, 3))
        return (
            f"MCUCXR_{number:04d}_{number % 2}",
            np.pad(image, border),
            np.pad(film.lungs, border),
        )
    return f"MCUCXR_{number:04d}_{number % 2}", image, film.lungs


def _write_shenzhen(root: Path, studies: Numbered, size: int) -> None:
    """Colour films that are not square, masks in a folder of their own, one film without a mask."""
    base = root / "ChinaSet_AllFiles"
    for number, study in studies:
        name, image, lungs = _shenzhen_film(number, study, size)
        Image.fromarray(image).convert("RGB").save(_new(base / "CXR_png" / f"{name}.png"))
        Image.fromarray(_bytes(lungs)).save(_new(root / "mask" / f"{name}_mask.png"))
        # One reading is misspelt, as some of the real ones are.
        word = "femal" if number == 1 else {"M": "male", "F": "female"}[study.sex]
        reading = f"{word} {study.age}yrs\nread"
        _new(base / "ClinicalReadings" / f"{name}.txt").write_text(reading)
    shutil.copyfile(base / "CXR_png" / f"{name}.png", base / "CXR_png" / "CHNCXR_0662_1.png")
    (base / "CXR_png" / "Thumbs.db").write_bytes(b"junk")


def _shenzhen_film(number: int, study: Study, size: int) -> tuple[str, Pixels, Lungs]:
    film = draw(study, "tuberculosis", number, size)
    shown = slice(0, size * 9 // 10)
    return f"CHNCXR_{number:04d}_{number % 2}", film.image[shown], film.lungs[shown]


def _write_merge(root: Path, montgomery: Numbered, shenzhen: Numbered, size: int) -> None:
    """Both sets in one folder, one mask each; a film of Shenzhen without a mask."""
    base = root / "Lung Segmentation"
    for number, study in montgomery:
        name, image, lungs = _montgomery_film(number, study, size)
        Image.fromarray(image).save(_new(base / "CXR_png" / f"{name}.png"))
        Image.fromarray(_bytes(lungs)).save(_new(base / "masks" / f"{name}.png"))
    for number, study in shenzhen:
        name, image, lungs = _shenzhen_film(number, study, size)
        Image.fromarray(image).convert("RGB").save(_new(base / "CXR_png" / f"{name}.png"))
        Image.fromarray(_bytes(lungs)).save(_new(base / "masks" / f"{name}_mask.png"))
    shutil.copyfile(base / "CXR_png" / f"{name}.png", _new(base / "test" / "CHNCXR_0661_1.png"))
    shutil.copyfile(base / "CXR_png" / f"{name}.png", base / "CXR_png" / "CHNCXR_0661_1.png")


def _write_pairs(root: Path, patients: list[list[Study]], size: int) -> None:
    """Two folders: one whose manifest names patients, one without; a mask of twice the size, strays."""
    known, alone = root / "Lungen für alle", root / "more films"
    rows = ["file,patient_id,group,licence"]
    for i, studies in enumerate(patients):
        for study in studies:
            base = alone if i % 4 == 3 else known
            film = paint(study, size)
            name = f"é {Path(study.image_id).stem}.png"
            lungs = _bytes(film.lungs)
            if i % 3 == 0:
                lungs = _enlarge(lungs, 2 * size)
            Image.fromarray(film.image).save(_new(base / "images" / name))
            Image.fromarray(lungs).save(_new(base / "masks" / name))
            if base is known:
                rows.append(
                    f'images/{name},{study.patient_id},{"family" if i < 2 else ""},"CC BY, 4.0"'
                )
    for folder, stray in (("images", "no mask.png"), ("masks", "no film.png")):
        Image.new("L", (size, size), 99).save(_new(alone / folder / stray))
        (alone / folder / ".DS_Store").write_bytes(b"junk")
    text = "\ufeff" + "\r\n".join([*rows, "images/not copied.png,x9,,"]) + "\r\n"
    (known / "manifest.csv").write_bytes(text.encode())


def _sides(lungs: Lungs) -> list[tuple[str, Lungs]]:
    """The left and the right lung: the left one is on the right of the film."""
    right = np.arange(lungs.shape[1]) < lungs.shape[1] / 2
    return [("left", lungs & ~right), ("right", lungs & right)]


def _enlarge(pixels: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_NEAREST_EXACT))


def _bytes(lungs: Lungs) -> Pixels:
    return lungs.astype(np.uint8) * np.uint8(255)


def _new(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
