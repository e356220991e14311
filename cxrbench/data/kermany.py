"""Paediatric pneumonia films of Guangzhou (Kermany et al., 2018): 5,856 images, Kaggle v2 or Mendeley v3."""

import hashlib
import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.core.treeprint import scan_files
from cxrbench.data.base import CxrDataset, DataParams, Problem
from cxrbench.data.csvfile import some
from cxrbench.data.fakes import fake_patients, write_film
from cxrbench.data.index import Index
from cxrbench.data.pixels import SUFFIXES
from cxrbench.data.splits import Split

FOLDERS = ("train", "val", "test")
CLASSES = ("NORMAL", "PNEUMONIA")
# Images by version and folder.
PUBLISHED = {
    "kaggle": {"train": 5216, "val": 16, "test": 624},
    "mendeley": {"train": 5232, "val": 0, "test": 624},
}
IMAGES = 5856
# A bare "person12" is two children, one with bacteria and one with a virus.
NAMES = {
    "kaggle": re.compile(
        r"(?:person(?P<person>\d+)_(?P<cause>bacteria|virus)_\d+(?:_\d+)?"
        r"|(?P<normal>(?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)?)\.(?:jpe?g|png)"
    ),
    "mendeley": re.compile(r"(?P<cause>NORMAL|BACTERIA|VIRUS)-(?P<person>\d+)-\d+\.(?:jpe?g|png)"),
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
    """`pneumonia` against normal, or the `etiology` (viral against bacterial) of the pneumonias."""

    task: Literal["pneumonia", "etiology"] = "pneumonia"


class Kermany(CxrDataset):
    """Kermany: train, val and test folders of NORMAL and PNEUMONIA."""

    name = "kermany"
    Params = KermanyParams
    splits = ("official", "cv5")
    home = "https://data.mendeley.com/datasets/rscbjbr9sj/3"
    licence = "CC BY 4.0; cite Kermany, Zhang and Goldbaum (2018)"

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
        hash gives a patient the same part in a partial copy.
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
        parts = dict.fromkeys(tested, "test") | {
            patient: _hashed_part(patient) for patient in trained
        }
        rule = (
            "The test folder tests; of the patients of the train and val folders those validate whose "
            f"SHA-256 of '{SALT}|' and the patient id is below {VAL_PERCENT} modulo 100; the others train."
        )
        return Split.of(cls.name, name, rule, pd.Series(parts))

    @classmethod
    def check(cls, index: Index) -> list[Problem]:
        """Images of each folder against the published counts."""
        published = PUBLISHED[index.notes["version"]]
        found = index.notes["folders"]
        return [
            Problem(
                "error" if found[folder] > published[folder] else "warning",
                f"{found[folder]:,} images in {folder}/, published {published[folder]:,}",
                count=abs(found[folder] - published[folder]),
            )
            for folder in FOLDERS
            if found[folder] != published[folder]
        ]

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """Kaggle's archive in miniature: doubled folder, junk files, a colour image."""
        base = root / "chest_xray"
        numbers = itertools.count(1)
        written = 0
        for i, studies in enumerate(fake_patients(images, seed)):
            cause = ("normal", "bacteria", "normal", "virus")[i % 4]
            folder = ("train", "train", "test", "train", "train", "train", "test", "val")[
                i // 4 % 8
            ]
            # Numbers are chosen so that some patients of each class validate by their hash.
            part = "val" if i // 4 % 3 == 0 else "train"
            number = next(n for n in numbers if _hashed_part(_patient_id(cause, n)) == part)
            for study in studies:
                written += 1
                film = replace(study, findings=_DRAWN[cause])
                if cause == "normal":
                    path = base / folder / "NORMAL" / f"IM-{number:04d}-{written:04d}.jpeg"
                else:
                    path = base / folder / "PNEUMONIA" / f"person{number}_{cause}_{written}.jpeg"
                write_film(film, path, size, "RGB" if written == 1 else "L")
        shutil.copytree(base, root / "chest_xray" / "chest_xray")
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


def _patient_id(cause: str, number: int) -> str:
    """As Kaggle's names give it."""
    return f"IM-{number:04d}" if cause == "normal" else f"{cause}-{number}"


def _hashed_part(patient: str) -> str:
    number = int.from_bytes(hashlib.sha256(f"{SALT}|{patient}".encode()).digest(), "big")
    return "val" if number % 100 < VAL_PERCENT else "train"
