"""The published sets of films with lung masks: a reader each, by the names of files; no pixels."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Literal

from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.treeprint import scan_files

Source = Literal["jsrt", "montgomery", "shenzhen", "merge", "pairs"]
MANIFEST = "manifest.csv"
LOOKED_FOR: dict[Source, str] = {
    "jsrt": "JPCLN001.IMG, ... and fold1/masks/left lung/JPCLN001.gif, ...",
    "montgomery": "CXR_png/MCUCXR_0001_0.png, ... and ManualMask/leftMask/MCUCXR_0001_0.png, ...",
    "shenzhen": "CXR_png/CHNCXR_0001_0.png, ... and mask/CHNCXR_0001_0_mask.png, ...",
    "merge": "CXR_png/ and masks/ in one folder, with MCUCXR_0001_0.png, CHNCXR_0001_0_mask.png, ...",
    "pairs": "images/ and masks/ in one folder, with the same file names in both",
}
HOMES: dict[Source, str] = {
    "jsrt": "http://db.jsrt.or.jp/eng.php and, for the masks, "
    "https://www.isi.uu.nl/Research/Databases/SCR/",
    "montgomery": "https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html",
    "shenzhen": "https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html and, for the masks, "
    "https://www.kaggle.com/datasets/yoctoman/shcxr-lung-mask",
    "merge": "https://www.kaggle.com/datasets/nikhilpandey360/chest-xray-masks-and-labels",
    "pairs": "https://github.com/v7labs/covid-19-xray-dataset",
}
_SUFFIXES = (".img", ".gif", ".png", ".jpg", ".jpeg", MANIFEST)
_BASE = r"(?P<base>(?:.*/)?)"
_PATTERNS = {
    "jsrt film": re.compile(rf"{_BASE}(?P<key>JPC[LN]N\d{{3}})\.img", re.I),
    "jsrt mask": re.compile(
        rf"{_BASE}masks/(?P<side>left|right) lung/(?P<key>JPC[LN]N(?P<number>\d{{3}}))\.gif", re.I
    ),
    "film": re.compile(
        rf"{_BASE}CXR_png/(?P<key>(?P<set>MCU|CHN)CXR_(?P<number>\d{{4}}))_(?P<mark>[01])\.png"
    ),
    "side mask": re.compile(
        rf"{_BASE}ManualMask/(?P<side>left|right)Mask/(?P<key>MCUCXR_\d{{4}})_(?P<mark>[01])\.png"
    ),
    "mask": re.compile(
        rf"{_BASE}(?P<folder>[^/]+)/(?P<key>(?:MCU|CHN)CXR_\d{{4}})_(?P<mark>\w)(?P<tail>_mask)?\.png"
    ),
    "pair": re.compile(
        rf"{_BASE}(?P<folder>images|masks)/(?P<key>[^/]+)\.(?P<suffix>(?i:png|jpe?g|gif))", re.S
    ),
}


@dataclass(frozen=True)
class Film:
    """An image that has a mask; paths are below the data folder, ids as the index has them."""

    source: Source
    collection: str  # who took it: the merge holds two, and each folder of pairs is one
    image_id: str
    patient_id: str
    path: str
    masks: tuple[str, ...]  # one of both lungs, or left and right
    marks: dict[str, float] = field(default_factory=dict)  # labels, 1.0 or 0.0
    group_id: str = ""


@dataclass
class Found:
    """The films of a source, and what of its files is not used."""

    films: list[Film] = field(default_factory=list)
    without_mask: list[str] = field(default_factory=list)  # also those with one lung's of two
    without_film: list[str] = field(default_factory=list)
    copies: int = 0  # files of the same name and size in a second folder
    unknown_patients: list[str] = field(default_factory=list)  # folders of pairs
    rows_without_film: int = 0  # of manifests
    manifests: list[Path] = field(default_factory=list)


class Tree:
    """The files below a data folder whose names a source could have given."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = [(p, i) for p, i in scan_files(root, _SUFFIXES) if S_ISREG(i.st_mode)]
        self.sizes = {path: info.st_size for path, info in files}
        self.hits: dict[str, list[re.Match[str]]] = {kind: [] for kind in _PATTERNS}
        for path in self.sizes:
            for kind, pattern in _PATTERNS.items():
                if match := pattern.fullmatch(path):
                    self.hits[kind].append(match)
        # The merge keeps its masks beside CXR_png/ in masks/, the NIH's own sets elsewhere.
        masked = {m["base"] for m in self.hits["mask"] if m["folder"] == "masks"}
        self.merges = masked & {m["base"] for m in self.hits["film"]}

    def films(self, which: str, *, merged: bool) -> list[re.Match[str]]:
        """Films of Montgomery ("MCU"), Shenzhen ("CHN") or both (""), in or outside merges."""
        films = self.hits["film"]
        return [f for f in films if which in f["set"] and (f["base"] in self.merges) == merged]


def _jsrt(tree: Tree) -> Found | None:
    found = Found()
    for match in tree.hits["jsrt mask"]:
        _check_fold(tree.root, match)

    def film(match: re.Match[str], masks: tuple[str, ...]) -> Film:
        name = match["key"].upper()
        marks = {"nodule": float(name.startswith("JPCLN"))}
        return Film("jsrt", "jsrt", f"jsrt/{name}", f"jsrt:{name}", match[0], masks, marks)

    sides = _both_sides(tree, tree.hits["jsrt mask"], found)
    return _join("jsrt", tree, found, tree.hits["jsrt film"], sides, film)


def _check_fold(root: Path, mask: re.Match[str]) -> None:
    """Refuse a mask in the other fold: the SCR has odd numbers in fold1 and even ones in fold2."""
    folder = mask["base"].rstrip("/").rpartition("/")[2].lower()
    right, wrong = ("fold1", "fold2") if int(mask["number"]) % 2 else ("fold2", "fold1")
    if folder == wrong:
        raise DataError(
            f"{root / mask[0]}: lies in {wrong}, but the SCR has this number in {right}; unpack the SCR "
            "masks again"
        )


def _montgomery(tree: Tree) -> Found | None:
    found = Found()
    sides = _both_sides(tree, tree.hits["side mask"], found)
    films = tree.films("MCU", merged=False)
    return _join("montgomery", tree, found, films, sides, _tb_film("montgomery", tree))


def _shenzhen(tree: Tree) -> Found | None:
    found = Found()
    masks = [
        m
        for m in tree.hits["mask"]
        if m["tail"]
        and m["key"].startswith("CHN")
        and not (m["folder"] == "masks" and m["base"] in tree.merges)
    ]
    films = tree.films("CHN", merged=False)
    return _join(
        "shenzhen", tree, found, films, _whole(tree, masks, found), _tb_film("shenzhen", tree)
    )


def _merge(tree: Tree) -> Found | None:
    found = Found()
    masks = [m for m in tree.hits["mask"] if m["folder"] == "masks" and m["base"] in tree.merges]
    films = tree.films("", merged=True)
    return _join("merge", tree, found, films, _whole(tree, masks, found), _tb_film("merge", tree))


def _tb_film(source: Source, tree: Tree) -> Callable[[re.Match[str], tuple[str, ...]], Film]:
    """Makes films whose names end in _0 (normal) or _1 (tuberculosis)."""

    def film(match: re.Match[str], masks: tuple[str, ...]) -> Film:
        for mask in masks:
            mark = Path(mask).stem.removesuffix("_mask")[-1]
            if mark in "01" and mark != match["mark"]:
                raise DataError(
                    f"{tree.root / mask}: _{mark} in its name, but its film is {match[0]}; "
                    "keep the pair that belongs together"
                )
        collection = "montgomery" if match["set"] == "MCU" else "shenzhen"
        return Film(
            source,
            collection,
            f"{source}/{match['key']}_{match['mark']}",
            f"{collection}:{match['number']}",
            match[0],
            masks,
            {"tuberculosis": float(match["mark"])},
        )

    return film


def _once(tree: Tree, matches: Iterable[re.Match[str]], found: Found) -> dict[str, re.Match[str]]:
    """The first match of each key (and side); copies are counted, other files of the name refused."""
    first: dict[str, re.Match[str]] = {}
    for match in matches:
        side = match.groupdict().get("side")
        key = f"{match['key'].upper()} {side.lower()}" if side else match["key"].upper()
        one = first.setdefault(key, match)
        if one is match:
            continue
        same_name = Path(one[0]).name == Path(match[0]).name
        if not same_name or tree.sizes[one[0]] != tree.sizes[match[0]]:
            raise DataError(
                f"{tree.root}: two different files for {key}: {one[0]} and {match[0]}; keep one, or point "
                "--data at one of the folders"
            )
        found.copies += 1
    return first


def _whole(tree: Tree, masks: list[re.Match[str]], found: Found) -> dict[str, tuple[str, ...]]:
    return {key: (match[0],) for key, match in _once(tree, masks, found).items()}


def _both_sides(tree: Tree, masks: list[re.Match[str]], found: Found) -> dict[str, tuple[str, ...]]:
    """Left and right mask by key; one lung alone is no mask of the thorax and has the other missing."""
    once = _once(tree, masks, found)
    keys = dict.fromkeys(key.rpartition(" ")[0] for key in once)
    sides = {key: [once.get(f"{key} {side}") for side in ("left", "right")] for key in keys}
    return {key: tuple(m[0] if m else "" for m in pair) for key, pair in sides.items()}


def _join(
    source: Source,
    tree: Tree,
    found: Found,
    matches: list[re.Match[str]],
    masks: dict[str, tuple[str, ...]],
    film: Callable[[re.Match[str], tuple[str, ...]], Film],
) -> Found | None:
    """Films with their masks, by key; None when there is neither.

    MissingInputError when there are films alone or masks alone.
    """
    films = _once(tree, matches, found)
    if not films and not masks:
        return None
    if not films or not masks:
        have, lack = ("films", "mask") if films else ("masks", "film")
        raise MissingInputError(
            f"{tree.root}: {len(films or masks)} {have} of {source} but no {lack} of them; looked for "
            f"{LOOKED_FOR[source]}; get them at {HOMES[source]}, or leave the source out: "
            "--set data.sources=[...]"
        )
    for key, match in films.items():
        if all(masks.get(key, ("",))):
            found.films.append(film(match, masks[key]))
        else:
            found.without_mask.append(match[0])
    alone = [path for key, paths in masks.items() if key not in films for path in paths]
    found.without_film += filter(None, alone)
    return found


READERS: dict[Source, Callable[[Tree], Found | None]] = {
    "jsrt": _jsrt,
    "montgomery": _montgomery,
    "shenzhen": _shenzhen,
    "merge": _merge,
}
