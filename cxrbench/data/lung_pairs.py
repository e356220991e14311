"""Films with lung masks of any origin: images/ and masks/ side by side, patients from a manifest."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from cxrbench.core.errors import DataError
from cxrbench.data.cells import has_control, unsafe
from cxrbench.data.csvfile import at, need_column, read_csv, some
from cxrbench.data.lung_sources import MANIFEST, Film, Found, Tree


@dataclass(frozen=True)
class _Manifest:
    """Patient and group of films, by their paths below the data folder."""

    name: str  # its own path below the data folder
    patients: dict[str, tuple[str, str]]


def find_pairs(tree: Tree) -> Found | None:
    """Every folder with images/ and masks/ that hold files of the same names; None when there is none.

    Patients stand in the nearest manifest.csv in or above such a folder (`file`, `patient_id`, and
    `group` for patients that must stay together). Without one each image counts as a patient of its
    own, which the folder's name in `unknown_patients` tells.
    """
    found = Found()
    folders: dict[str, dict[str, list[re.Match[str]]]] = defaultdict(lambda: defaultdict(list))
    for match in tree.hits["pair"]:
        if match["folder"] == "masks" or match["suffix"].lower() != "gif":
            folders[match["base"]][match["folder"]].append(match)
    folders = {base: kinds for base, kinds in folders.items() if len(kinds) == 2}
    manifests: dict[str, _Manifest] = {}
    for base, kinds in folders.items():
        images, masks = (_by_stem(tree.root, kinds[kind]) for kind in ("images", "masks"))
        both = {stem: path for stem, path in images.items() if stem in masks}
        if not both:
            raise DataError(
                f"{tree.root / base}: no name stands in both images/ and masks/, such as "
                f"{next(iter(images.values()))} and {next(iter(masks.values()))}; name each mask as its "
                "image, or leave this source out: --set data.sources=[...]"
            )
        found.without_mask += [path for stem, path in images.items() if stem not in both]
        found.without_film += [path for stem, path in masks.items() if stem not in both]
        manifest = _manifest_of(tree, base, list(images.values()), manifests)
        if manifest is None:
            found.unknown_patients.append(base.rstrip("/") or ".")
        else:
            _check_inside(tree.root, manifest.name, both.values())
        found.films += [_film(base, both[stem], masks[stem], manifest) for stem in both]
    present = {_nfc(path) for path in (*(f.path for f in found.films), *found.without_mask)}
    for manifest in manifests.values():
        found.manifests.append(tree.root / manifest.name)
        found.rows_without_film += len(set(manifest.patients) - present)
    return found if folders else None


def _film(base: str, path: str, mask: str, manifest: _Manifest | None) -> Film:
    stem = base + PurePosixPath(path).stem
    patient, group = stem, ""
    if manifest is not None:
        # Two manifests may number their patients alike.
        above = manifest.name.removesuffix(MANIFEST)
        patient, group = (f"{above}{who}" if who else "" for who in manifest.patients[_nfc(path)])
    return Film(
        "pairs",
        f"pairs/{base}".rstrip("/"),
        f"pairs/{stem}",
        f"pairs:{patient}",
        path,
        (mask,),
        group_id=f"pairs:{group}" if group else "",
    )


def _by_stem(root: Path, matches: list[re.Match[str]]) -> dict[str, str]:
    """Path by name without suffix."""
    paths: dict[str, str] = {}
    for match in matches:
        if has_control(match[0]):
            raise DataError(
                f"{root}: {match[0]!r} holds control or undecodable characters; rename it"
            )
        stem = _nfc(match["key"])
        if paths.setdefault(stem, match[0]) != match[0]:
            raise DataError(f"{root}: {paths[stem]} and {match[0]} have the same name; keep one")
    return paths


def _manifest_of(
    tree: Tree, base: str, images: list[str], known: dict[str, _Manifest]
) -> _Manifest | None:
    """The nearest manifest that names an image of the folder; DataError when it does not name all."""
    folder = PurePosixPath(base)
    for above in (folder, *folder.parents):
        name = (above / MANIFEST).as_posix()
        if name not in tree.sizes:
            continue
        manifest = known.get(name) or _read_manifest(tree.root, name)
        unnamed = [path for path in images if _nfc(path) not in manifest.patients]
        if len(unnamed) == len(images):
            continue
        if unnamed:
            raise DataError(
                f"{tree.root / name}: no row for {len(unnamed)} images: {some(unnamed)}; give each its "
                "patient, or take the images out"
            )
        known[name] = manifest
        return manifest
    return None


def _read_manifest(root: Path, name: str) -> _Manifest:
    path = root / name
    raw = read_csv(path)
    columns = {
        "file": raw[need_column(raw, path, "file", "path", "image")].map(_nfc),
        "patient": raw[need_column(raw, path, "patient_id")].str.strip(),
        "group": _optional(raw, "group", "group_id"),
    }
    frame = pd.DataFrame(columns, index=raw.index)
    for line, file in frame["file"].items():
        if reason := unsafe(file, path.parent.resolve()):
            raise DataError(f"{path}: {at(frame, line)}: file {file!r} {reason}")
    if len(blank := frame[frame["patient"] == ""]):
        raise DataError(
            f"{path}: {at(frame, blank.index[0])}: patient_id is blank ({len(blank)} such rows); give "
            "each image its patient"
        )
    odd = frame[(frame["patient"] + frame["group"]).map(has_control)]
    if len(odd):
        raise DataError(
            f"{path}: {at(frame, odd.index[0])}: patient or group {odd.iloc[0, 1:].tolist()} holds control "
            f"characters ({len(odd)} such rows)"
        )
    twice = frame[frame["file"].duplicated(keep=False)]
    if len(twice):
        first = twice["file"].iloc[0]
        lines = some([str(line) for line in twice.index[twice["file"] == first]])
        raise DataError(f"{path}: {first!r} stands in lines {lines}; keep one row an image")
    prefix = name.removesuffix(MANIFEST)
    people = zip(frame["patient"], frame["group"], strict=True)
    return _Manifest(name, dict(zip(prefix + frame["file"], people, strict=True)))


def _optional(raw: pd.DataFrame, *names: str) -> pd.Series:
    given = [name for name in names if name in raw.columns]
    return raw[given[0]].str.strip() if given else pd.Series("", index=raw.index, dtype=object)


def _check_inside(root: Path, manifest: str, paths: Iterable[str]) -> None:
    top = root.resolve()
    outside = [path for path in paths if not (root / path).resolve().is_relative_to(top)]
    if outside:
        raise DataError(
            f"{root / manifest}: {len(outside)} of its files are links that leave {root}: "
            f"{some(outside)}; point --data at the real folder"
        )


def _nfc(text: str) -> str:
    """Accents may be written in two ways; macOS unpacks archives in the other one."""
    return unicodedata.normalize("NFC", text)
