"""Chest films with the lungs drawn in: JSRT, Montgomery, Shenzhen, Kaggle's merge, or your own pairs."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.data.base import CxrDataset, DataParams, Problem
from cxrbench.data.csvfile import some
from cxrbench.data.index import Index
from cxrbench.data.lung_fakes import VARIANTS, write_miniature
from cxrbench.data.lung_pairs import find_pairs
from cxrbench.data.lung_pixels import fit_mask, inside_border, read_jsrt, read_masks
from cxrbench.data.lung_sources import HOMES, LOOKED_FOR, READERS, Film, Found, Source, Tree
from cxrbench.data.pixels import Grey, UnreadableImageError, decode, resize
from cxrbench.data.splits import Split
from cxrbench.metrics.boxes import box_of_mask

Severity = Literal["error", "warning", "info"]
SOURCES: tuple[Source, ...] = ("jsrt", "montgomery", "shenzhen", "merge", "pairs")
LABELS = ("tuberculosis", "nodule")
# Films with a mask, and how many of them have the label; of Shenzhen's 662 films 566 have a mask.
PUBLISHED = {
    "jsrt": (247, {"nodule": 154}),
    "montgomery": (138, {"tuberculosis": 58}),
    "shenzhen": (566, {"tuberculosis": 287}),
}
SHENZHEN_FILMS = 662
# A collection with fewer films than the usual split has folds cannot be balanced over them.
FEWEST_BALANCED = 5
# The start of a clinical reading: "Patient's Sex: F", "Patient's Age: 027Y"; "male 45yrs", "femal 64days".
_READING_BYTES = 200
_SEX = re.compile(r"\b(?:(f|femal|female)|(m|male))\b", re.I)
_AGE = re.compile(r"\b(\d{1,3})\s*([ymd])", re.I)
_UNITS = {"y": 1, "m": 12, "d": 365}


class LungMasksParams(DataParams):
    """Which sources are read; None: every one that is found below the data folder."""

    sources: list[Source] | None = Field(None, min_length=1)


@dataclass(frozen=True)
class MaskedIndex(Index):
    """An index whose revision also depends on the masks."""

    def revision(self, contents: list[str]) -> str:
        masks = self.frame["mask_sha256"]
        return super().revision([f"{c} {m}" for c, m in zip(contents, masks, strict=True)])


class LungMasks(CxrDataset):
    """Lung masks: JSRT, Montgomery, Shenzhen, Kaggle's merge, pairs; singly or together.

    Lungs are not drawn alike: the SCR's and Montgomery's end at the heart, V7's go on behind it. The
    box around both is hardly touched by that.
    """

    name = "lung_masks"
    Params = LungMasksParams
    splits = ("cv5", "holdout")
    home = "; ".join(f"{source}: {where}" for source, where in HOMES.items())
    licence = (
        "SCR masks: research and education, no redistribution; Montgomery and Shenzhen: cite Jaeger et "
        "al. (2014); V7's masks (pairs): CC BY 4.0; the others: see where they come from"
    )
    has_masks = True
    variants = VARIANTS
    overlaps: ClassVar[dict[str, str]] = {
        "covid": "V7's lung masks (pairs) are drawn on films of the open COVID-19 image collection",
        "kermany": "V7's lung masks (pairs) are drawn on films of Kermany et al.",
        "tbx11k": "TBX11K includes the films of Montgomery and of Shenzhen",
    }

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        """All films that have a mask.

        Besides the usual columns: `mask_path` and `second_mask_path` (left and right lung, the second
        blank where one file has both), `mask_sha256`, `source`, `collection`. `tuberculosis` (Montgomery,
        Shenzhen, merge) and `nodule` (JSRT) are labels where a film of such a source is present.
        """
        assert isinstance(params, LungMasksParams)
        root = cls.require_root(root)
        found = _find(root, params.sources)
        films, twice = _each_once(root, found)
        frame = _frame(films, root)
        labels = tuple(label for label in LABELS if label in frame.columns)
        notes: dict[str, Any] = {
            "sources": list(found),
            "films": dict(Counter(film.source for film in films)),
            "without_mask": {s: len(f.without_mask) for s, f in found.items() if f.without_mask},
            "without_film": {s: len(f.without_film) for s, f in found.items() if f.without_film},
            "copies": {s: f.copies for s, f in found.items() if f.copies},
            "in_two_sources": twice,
            "coverage": _coverage(films, found),
        }
        if unknown := [name for f in found.values() for name in f.unknown_patients]:
            notes["patients_unknown"] = unknown
        manifests = tuple(path for f in found.values() for path in f.manifests)
        return MaskedIndex(cls.name, frame, labels, root, notes, manifests, _strata(frame, labels))

    @classmethod
    def make_split(cls, name: str, index: Index) -> Split:
        """`cv5` and `holdout` by patient, balanced over the collections and the labels within them."""
        split = super().make_split(name, index)
        labels = f"{len(index.labels)} labels"
        return replace(split, rule=split.rule.replace(labels, "collections and their labels"))

    @classmethod
    def read_film(cls, index: Index, row: int) -> npt.NDArray[np.uint8]:
        """A film as grey uint8 [H, W], bones bright, Montgomery's without its black borders."""
        film = _film(index, row)
        return film[_visible(index, row, film)]

    @classmethod
    def read_mask(cls, index: Index, row: int, size: int) -> npt.NDArray[np.uint8]:
        """Both lungs as uint8 [size, size], 255 and 0, cut and scaled exactly as `read_image` does.

        A pixel is lung where half of its area is. UnreadableImageError names a mask that cannot be
        read, does not fit its film, or is empty.
        """
        first, second = (str(index.frame[c].iat[row]) for c in ("mask_path", "second_mask_path"))
        assert index.root is not None
        paths = [index.root / path for path in (first, second) if path]
        film = _film(index, row)
        lungs = fit_mask(read_masks(paths), film, paths[0])[_visible(index, row, film)]
        if not lungs.any():
            names = " and ".join(map(str, paths))
            raise UnreadableImageError(f"{names}: an empty mask; draw the lungs or take it out")
        return np.where(resize(lungs.astype(np.uint8) * 255, size) >= 128, 255, 0).astype(np.uint8)

    @classmethod
    def check(cls, index: Index) -> list[Problem]:
        """Counts against the published ones, and files that could not be used."""
        problems = _count_problems(index)
        notes = index.notes
        assert index.root is not None
        for source, f in _find(index.root, notes["sources"]).items():
            problems += _leftovers(source, f)
        if notes["in_two_sources"]:
            what = "films of the merge lie in Montgomery or Shenzhen, too; used once"
            problems.append(Problem("info", what, count=notes["in_two_sources"]))
        return problems

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """The downloads in miniature, see lung_fakes.py; JSRT's films have their true size, so are few."""
        return write_miniature(root, variant, images, size, seed)


def thorax_box(mask: Grey, name: str = "the mask") -> tuple[float, float, float, float]:
    """The box (x0, y0, x1, y1) around both lungs of a mask [H, W], in shares of its sides.

    `name` is what the DataError of an empty mask names.
    """
    box = box_of_mask(mask)
    if box is None:
        raise DataError(f"{name}: an empty mask has no thorax box; take the image out")
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1


def _find(root: Path, wanted: list[Source] | None) -> dict[Source, Found]:
    """What is found of each source; MissingInputError tells what was looked for."""
    tree = Tree(root)
    readers = {**READERS, "pairs": find_pairs}
    chosen = [source for source in SOURCES if wanted is None or source in wanted]
    found = {source: readers[source](tree) for source in chosen}
    absent = [source for source in chosen if found[source] is None]
    if absent and (wanted is not None or len(absent) == len(chosen)):
        lines = "".join(f"\n  {s}: {LOOKED_FOR[s]} (get it at {HOMES[s]})" for s in absent)
        raise MissingInputError(f"{root}: nothing like this here or below:{lines}")
    return {source: f for source, f in found.items() if f is not None}


def _each_once(root: Path, found: dict[Source, Found]) -> tuple[list[Film], int]:
    """The films of all sources, and how many of the merge's are left out: the NIH's own come first."""
    films: list[Film] = []
    known: set[str] = set()
    twice = 0
    for f in found.values():
        for film in f.films:
            if film.source == "merge" and film.patient_id in known:
                twice += 1
                continue
            known.add(film.patient_id)
            films.append(film)
    if not films:
        lacking = [path for f in found.values() for path in f.without_mask]
        raise DataError(f"{root}: no film has its masks: {some(lacking)}; get the masks as well")
    return films, twice


def _frame(films: list[Film], root: Path) -> pd.DataFrame:
    pairs = [(*film.masks, "")[:2] for film in films]
    columns: dict[str, Any] = {
        "image_id": [film.image_id for film in films],
        "patient_id": [film.patient_id for film in films],
        "path": [film.path for film in films],
        "mask_path": [first for first, _ in pairs],
        "second_mask_path": [second for _, second in pairs],
        "mask_sha256": _mask_hashes(root, [film.masks for film in films]),
        "source": [film.source for film in films],
        "collection": [film.collection for film in films],
    }
    for label in LABELS:
        marks = [film.marks.get(label, np.nan) for film in films]
        if not np.isnan(marks).all():
            columns[label] = np.array(marks, dtype=np.float32)
    if any(film.group_id for film in films):
        columns["group_id"] = [film.group_id for film in films]
    sexes, ages = zip(*(_reading(root, film) for film in films), strict=True)
    if any(sexes) or not np.isnan(ages).all():
        columns |= {"sex": list(sexes), "age": list(ages)}
    return pd.DataFrame(columns)


def _mask_hashes(root: Path, masks: Iterable[tuple[str, ...]]) -> list[str]:
    """SHA-256 of each film's mask files, one after the other."""

    def digests(paths: tuple[str, ...]) -> str:
        try:
            return " ".join(digest_file(root / path) for path in paths)
        except OSError as error:
            raise DataError(f"{root}: {error}") from None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(digests, masks))


def _reading(root: Path, film: Film) -> tuple[str, float]:
    """Sex ("M", "F" or blank) and age in years from ClinicalReadings/, where it is told."""
    if "tuberculosis" not in film.marks:
        return "", np.nan
    image = root / film.path
    path = image.parents[1] / "ClinicalReadings" / f"{image.stem}.txt"
    if not path.is_file():  # many copies come without the readings
        return "", np.nan
    with path.open("rb") as stream:
        text = stream.read(_READING_BYTES).decode("latin-1")
    start = "\n".join(text.splitlines()[:2])
    sex, age = _SEX.search(start), _AGE.search(start)
    return (
        "" if sex is None else ("F" if sex[1] else "M"),
        np.nan if age is None else float(int(age[1]) // _UNITS[age[2].lower()]),
    )


def _strata(frame: pd.DataFrame, labels: tuple[str, ...]) -> pd.DataFrame:
    """What splits are balanced over: films of each collection, and those with its label."""
    ids = [c for c in ("patient_id", "group_id") if c in frame.columns]
    strata = {c: frame[c] for c in ids}
    for collection, count in frame["collection"].value_counts().sort_index().items():
        if count >= FEWEST_BALANCED:
            inside = frame["collection"] == collection
            strata[f"{collection} films"] = inside.astype(np.int64)
            for label in labels:
                strata[f"{collection} {label}"] = (inside & (frame[label] == 1)).astype(np.int64)
    return pd.DataFrame(strata)


def _published(sources: Iterable[str]) -> list[str]:
    """The collections in some sources of which the numbers are published."""
    inside = {c for s in sources for c in (("montgomery", "shenzhen") if s == "merge" else (s,))}
    return [collection for collection in PUBLISHED if collection in inside]


def _coverage(films: list[Film], found: dict[Source, Found]) -> dict[str, Any]:
    """Films present and published; of pairs only a manifest tells more than what is there."""
    counts = Counter(film.collection if film.marks else "pairs" for film in films)
    promised = {c: PUBLISHED[c][0] for c in _published(found)}
    if "pairs" in found:
        promised["pairs"] = counts["pairs"] + found["pairs"].rows_without_film
    return {
        "present": len(films),
        "promised": sum(promised.values()),
        "complete": dict(counts) == promised,
    }


def _count_problems(index: Index) -> list[Problem]:
    """Films with a mask, and those with the label, against the published numbers."""
    problems = []
    for collection in _published(index.notes["sources"]):
        films, labelled = PUBLISHED[collection]
        rows = index.frame[index.frame["collection"] == collection]
        if len(rows) != films:
            severity: Severity = "error" if len(rows) > films else "warning"
            what = f"{len(rows)} films of {collection} with a mask, published {films}"
            problems.append(Problem(severity, what, count=abs(len(rows) - films)))
        for label, published in labelled.items():
            positive = int((rows[label] == 1).sum()) if len(rows) else 0
            # Of a part there may be fewer of both, never more of either.
            excess = max(positive - published, len(rows) - positive - (films - published))
            if excess > 0:
                what = f"{positive} of {len(rows)} films of {collection} are {label}, published {published} of {films}"
                problems.append(Problem("error", what, count=excess))
    return problems


def _leftovers(source: Source, found: Found) -> list[Problem]:
    """Files of a source that are not used, and patients that are not known."""
    drawn = SHENZHEN_FILMS - PUBLISHED["shenzhen"][0]
    expected = source in ("shenzhen", "merge") and len(found.without_mask) <= drawn
    lists: tuple[tuple[Severity, str, list[str]], ...] = (
        (
            "info" if expected else "warning",
            "films without a mask (or with that of one lung only) are left out",
            found.without_mask,
        ),
        ("warning", "masks have no film", found.without_film),
        (
            "warning",
            "no manifest.csv in or above these folders names their patients: each image counts as one, so "
            "that a split can tear a patient's images apart; add it, or point --data at the folder above",
            found.unknown_patients,
        ),
    )
    problems = [Problem(s, f"{source}: {what}", tuple(names)) for s, what, names in lists if names]
    counts: tuple[tuple[Severity, str, int], ...] = (
        ("info", "files lie in two folders; the first is used", found.copies),
        ("warning", "rows of manifest.csv have no film (a partial copy)", found.rows_without_film),
    )
    return problems + [Problem(s, f"{source}: {what}", count=n) for s, what, n in counts if n]


def _visible(index: Index, row: int, film: Grey) -> tuple[slice, slice]:
    """The part of a film that is used; only Montgomery's have black borders."""
    if index.frame["collection"].iat[row] == "montgomery":
        return inside_border(film)
    return slice(None), slice(None)


def _film(index: Index, row: int) -> Grey:
    path = index.path(row)
    return read_jsrt(path) if index.frame["source"].iat[row] == "jsrt" else decode(path)
