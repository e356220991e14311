"""Paediatric pneumonia films of Guangzhou (Kermany et al., 2018): 5,856 images, Kaggle v2 or Mendeley v3."""

import hashlib
import itertools
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image

from cxrbench.core.errors import ConfigError, DataError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.core.treeprint import scan_files
from cxrbench.data.base import CxrDataset, DataParams, Problem
from cxrbench.data.csvfile import some
from cxrbench.data.fakes import fake_patients
from cxrbench.data.index import Index
from cxrbench.data.painter import Study, paint_image
from cxrbench.data.pixels import SUFFIXES
from cxrbench.data.splits import NONE, Split
from cxrbench.data.stratify import units_of

FOLDERS = ("train", "val", "test")
CLASSES = ("NORMAL", "PNEUMONIA")
# Images by version and folder.
PUBLISHED = {
    "kaggle": {"train": 5216, "val": 16, "test": 624},
    "mendeley": {"train": 5232, "val": 0, "test": 624},
}
IMAGES = 5856
# Three-channel files, all pneumonias of the training side: the VGG16 paper trains without them.
RGB_FILES = 283
# A bare "person12" is two children, one with bacteria and one with a virus.
NAMES = {
    "kaggle": re.compile(
        r"(?:person(?P<person>\d+)_(?P<cause>bacteria|virus)_\d+(?:_\d+)?"
        r"|(?P<normal>(?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)?)\.(?i:jpe?g|png)"
    ),
    "mendeley": re.compile(r"(?P<cause>NORMAL|BACTERIA|VIRUS)-(?P<person>\d+)-\d+\.(?i:jpe?g|png)"),
}
VAL_PERCENT = 10
SALT = "cxrbench-kermany-val-v1"
SEARCH_DEPTH = 3
# What the miniature shows.
_DRAWN: dict[str, tuple[tuple[str, float], ...]] = {
    "normal": (),
    "bacteria": (("Consolidation", 0.9),),
    "virus": (("Infiltration", 0.9),),
}


class KermanyParams(DataParams):
    """`pneumonia` against normal, or the `etiology` (viral against bacterial) of the pneumonias.

    `rgb: drop` leaves out the files of three channels, which are all pneumonias. Pixels are made grey in
    any case, so that the colour mode itself never tells the class.
    """

    task: Literal["pneumonia", "etiology"] = "pneumonia"
    rgb: Literal["keep", "drop"] = "keep"


class Kermany(CxrDataset):
    """Kermany: train, val and test folders of NORMAL and PNEUMONIA."""

    name = "kermany"
    Params = KermanyParams
    splits = ("official", "cv5")
    home = "https://data.mendeley.com/datasets/rscbjbr9sj/3"
    licence = "CC BY 4.0; cite Kermany, Zhang and Goldbaum (2018)"
    variants = ("kaggle", "mendeley", "plain")
    overlaps = {"lung_masks": "its kermany part is films of this collection, with masks"}

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        """All images of the class folders; `image_id` is the path below the `chest_xray` folder."""
        assert isinstance(params, KermanyParams)
        root = cls.require_root(root)
        base = _find_base(root)
        names = [path for path, _ in scan_files(base, SUFFIXES) if _is_film(path)]
        if not names:
            raise MissingInputError(f"{base}: no JPEG or PNG in train/NORMAL and its like")
        version, frame = _parse(base, names)
        folders = frame["image_id"].str.partition("/")[0].value_counts()
        notes = {
            "version": version,
            "folders": {folder: int(folders.get(folder, 0)) for folder in FOLDERS},
            "coverage": {
                "present": len(frame),
                "promised": IMAGES,
                "complete": len(frame) == IMAGES,
            },
        }
        if params.rgb == "drop":
            frame, notes["rgb_dropped"] = _drop_rgb(base, frame)
        prefix = "" if base == root else f"{base.relative_to(root).as_posix()}/"
        frame["path"] = prefix + frame["image_id"]
        if params.task == "etiology":
            frame = frame[frame["cause"] != "normal"].reset_index(drop=True)
            frame["viral"] = (frame["cause"] == "virus").astype(np.float32)
            labels: tuple[str, ...] = ("viral",)
        else:
            frame["pneumonia"] = (frame["cause"] != "normal").astype(np.float32)
            labels = ("pneumonia",)
        return Index(cls.name, frame.drop(columns="cause"), labels, root, notes)

    @classmethod
    def make_split(cls, name: str, index: Index) -> Split:
        """`official`: the test folder tests; a tenth of the other patients, by hash, validates.

        The 16 images of the val folder are too few to select by and join the training images. The
        hash gives a patient the same part in a partial copy. Patients joined by an identical image stay
        together; where one of them tests, the others are in no part, since the test part is fixed.
        """
        if name != "official":
            return super().make_split(name, index)
        folder = index.frame["image_id"].str.partition("/")[0]
        tested = set(index.patient_ids[folder == "test"])
        trained = set(index.patient_ids[folder != "test"])
        if both := sorted(tested & trained):
            raise DataError(
                f"{index.root}: {len(both)} patients lie in the test folder and in another: "
                f"{some(both)}; use --split cv5, or move their images into one folder"
            )
        units = units_of(index.frame)
        fixed = {units[patient] for patient in tested}
        parts = dict.fromkeys(tested, "test") | {
            patient: NONE if units[patient] in fixed else _hashed_part(units[patient])
            for patient in trained
        }
        rule = (
            "The test folder tests; of the patients of the train and val folders those validate whose "
            f"SHA-256 of '{SALT}|' and the patient id is below {VAL_PERCENT} modulo 100; the others train. "
            "Patients who share an identical image count as one, by their smallest id; those who share one "
            "with a tested patient are in no part."
        )
        return Split.of(cls.name, name, rule, pd.Series(parts))

    @classmethod
    def check(cls, index: Index) -> list[Problem]:
        """Images of each folder, and files left out for their colour, against the published counts."""
        published = PUBLISHED[index.notes["version"]]
        found = index.notes["folders"]
        problems = [
            Problem(
                "error" if found[folder] > published[folder] else "warning",
                f"{found[folder]:,} images in {folder}/, published {published[folder]:,}",
                count=abs(found[folder] - published[folder]),
            )
            for folder in FOLDERS
            if found[folder] != published[folder]
        ]
        dropped = index.notes.get("rgb_dropped")
        return problems if dropped is None else problems + _rgb_problems(dropped, not problems)

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """A download in miniature: Kaggle's with its double and stray files, Mendeley's, or bare films.

        Each has a val folder (but Mendeley's) too small to select by, colour files among the
        pneumonias, a PNG that is called .jpeg, an upper-case suffix, and one film of two patients.
        """
        bases = {
            "kaggle": "chest_xray",
            "mendeley": "CellData/chest_xray",
            "plain": "Röntgen der Kinder",
        }
        variant = variant or cls.variants[0]
        if variant not in bases:
            raise ConfigError(
                f"{cls.name}: no miniature {variant!r}; use {', '.join(cls.variants)}"
            )
        base = root / bases[variant]
        _write_films(base, fake_patients(images, seed), size, mendeley=variant == "mendeley")
        if variant == "plain":
            return root
        if variant == "kaggle":
            shutil.copytree(base, base / "chest_xray")
        (base / "train" / ".DS_Store").write_bytes(b"junk")
        junk = base / "__MACOSX" / "train" / "NORMAL"
        junk.mkdir(parents=True)
        (junk / "._IM-0001-0001.jpeg").write_bytes(b"junk")
        return root


def _is_film(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and parts[0] in FOLDERS and parts[1] in CLASSES


def _find_base(root: Path) -> Path:
    """The folder that holds train and test; several different ones are an error that names them."""
    found: list[Path] = []
    for depth in range(SEARCH_DEPTH + 1):
        for folder in sorted(root.glob("*/" * depth)) if depth else [root]:
            inside = any(folder.is_relative_to(outer) for outer in found)
            hidden = any(p.startswith((".", "__MACOSX")) for p in folder.relative_to(root).parts)
            films = any((folder / part / name).is_dir() for part in FOLDERS for name in CLASSES)
            # Kaggle's archive holds everything a second time in chest_xray/chest_xray.
            if films and not inside and not hidden:
                found.append(folder)
    if not found:
        raise MissingInputError(
            f"{root}: no train/NORMAL, test/PNEUMONIA, ... here or {SEARCH_DEPTH} folders deep; get the "
            f"images at {Kermany.home}"
        )
    if len(found) > 1:
        names = ", ".join(str(folder) for folder in found)
        raise DataError(
            f"{root}: {len(found)} copies of the data set: {names}; point --data at one of them"
        )
    return found[0]


def _parse(base: Path, names: list[str]) -> tuple[str, pd.DataFrame]:
    """The version, and image_id, patient_id and cause (bacteria, virus, normal) of each image."""
    read = {
        version: {path: match for path in names if (match := pattern.fullmatch(path.split("/")[2]))}
        for version, pattern in NAMES.items()
    }
    if all(read.values()):
        examples = " and ".join(next(iter(matches)) for matches in read.values())
        raise DataError(f"{base}: names of Kaggle v2 and Mendeley v3 mixed, such as {examples}")
    version = max(read, key=lambda v: len(read[v]))
    if strange := [path for path in names if path not in read[version]]:
        raise DataError(
            f"{base}: {len(strange)} file names tell no patient: {some(strange)}; expected "
            "person12_virus_34.jpeg, IM-0115-0001.jpeg or BACTERIA-1234567-0001.jpeg"
        )
    rows, wrong = [], []
    for path, match in read[version].items():
        parts = match.groupdict()
        cause = (parts["cause"] or "normal").lower()
        rows.append((path, parts.get("normal") or f"{cause}-{parts['person']}", cause))
        if (cause == "normal") != (path.split("/")[1] == "NORMAL"):
            wrong.append(path)
    if wrong:
        raise DataError(
            f"{base}: {len(wrong)} files lie in the other class's folder: {some(wrong)}"
        )
    return version, pd.DataFrame(rows, columns=["image_id", "patient_id", "cause"])


def _drop_rgb(base: Path, frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows whose files are not of three channels, and how many the others are, by folder and class.

    Only headers are read. A file without a readable one is kept, for the decoder to report.
    """
    with ThreadPoolExecutor() as pool:
        coloured = np.array(list(pool.map(_is_rgb, [base / name for name in frame["image_id"]])))
    kept = frame[~coloured].reset_index(drop=True)
    healthy, left = frame["cause"] == "normal", kept["cause"] == "normal"
    for word, before, after in (
        ("NORMAL", healthy, left),
        ("PNEUMONIA", ~healthy, ~left),
    ):
        if before.any() and not after.any():
            raise DataError(
                f"{base}: all {int(before.sum()):,} files of {word} have three channels, so rgb: drop "
                "leaves none (a re-encoded copy?); use --set data.rgb=keep, or the original files"
            )
    names = frame["image_id"][coloured].str.rpartition("/")[0]
    return kept, {str(name): int(count) for name, count in sorted(Counter(names).items())}


def _is_rgb(path: Path) -> bool:
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.mode == "RGB"
    except Exception:  # whatever is wrong with it, the decoder says it better
        return False


def _rgb_problems(dropped: dict[str, int], whole: bool) -> list[Problem]:
    """How the dropped files differ from the paper's 283 pneumonias of the training side."""
    count = sum(dropped.values())
    odd = {
        name: n for name, n in dropped.items() if name not in ("train/PNEUMONIA", "val/PNEUMONIA")
    }
    problems = []
    if count > RGB_FILES or (whole and count < RGB_FILES):
        what = f"{count:,} files of three channels are left out, published {RGB_FILES}"
        problems.append(Problem("error", what, count=abs(count - RGB_FILES)))
    if odd:
        what = "files of three channels where the original has none (re-encoded?) are left out"
        names = tuple(f"{name}: {n:,}" for name, n in odd.items())
        problems.append(Problem("error", what, names, sum(odd.values())))
    return problems


def _hashed_part(patient: str) -> str:
    number = int.from_bytes(hashlib.sha256(f"{SALT}|{patient}".encode()).digest(), "big")
    return "val" if number % 100 < VAL_PERCENT else "train"


def _write_films(base: Path, patients: list[list[Study]], size: int, *, mendeley: bool) -> None:
    """The class folders with all films; patients come in blocks of four, so that each part has each cause."""
    numbers = itertools.count(1_000_001 if mendeley else 1)
    first: dict[tuple[int, str], Path] = {}
    serial = itertools.count(1)
    for i, studies in enumerate(patients):
        block, cause = i // 4, ("normal", "bacteria", "normal", "virus")[i % 4]
        folder = ("train", "test", "train" if mendeley else "val", "train")[block % 4]
        # Numbers are chosen so that some patients of each class validate by their hash.
        part = "val" if block % 4 == 3 else "train"
        number = next(n for n in numbers if _hashed_part(_fake_id(cause, n, mendeley)) == part)
        home = base / folder / ("NORMAL" if cause == "normal" else "PNEUMONIA")
        home.mkdir(parents=True, exist_ok=True)
        for study in studies:
            path = home / _fake_name(cause, number, next(serial), mendeley)
            trap = first.setdefault((block, cause), path) == path and block == 0
            if trap and cause == "normal":
                path = first[block, cause] = path.with_suffix(".JPEG")
            film = Image.fromarray(paint_image(replace(study, findings=_DRAWN[cause]), size))
            film = film.convert("RGB") if trap and cause == "bacteria" else film
            film.save(path, "PNG" if trap and cause == "virus" else "JPEG", quality=95)
    if (4, "bacteria") in first:
        shutil.copyfile(first[0, "bacteria"], first[4, "bacteria"])


def _fake_id(cause: str, number: int, mendeley: bool) -> str:
    return f"IM-{number:04d}" if cause == "normal" and not mendeley else f"{cause}-{number}"


def _fake_name(cause: str, number: int, serial: int, mendeley: bool) -> str:
    if mendeley:
        return f"{cause.upper()}-{number}-{serial:04d}.jpeg"
    if cause == "normal":
        return f"IM-{number:04d}-{serial:04d}.jpeg"
    return f"person{number}_{cause}_{serial}.jpeg"
