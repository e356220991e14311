"""ChestX-ray14 of the NIH Clinical Center (Wang et al., 2017): 112,120 films, 14 findings."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.core.treeprint import scan_files
from cxrbench.data import chestxray14_fake
from cxrbench.data.base import CxrDataset, DataParams, FindingBox, Problem
from cxrbench.data.chestxray14_files import (
    BOX_SPACE,
    BOXED_IMAGES,
    BOXED_PATIENTS,
    BOXES,
    BOXES_NAME,
    CSV_NAMES,
    IMAGE_NAME,
    IMAGES,
    LABELS,
    LISTED,
    LISTS,
    PATIENTS,
    POSITIVES,
    RELEASES,
    label_facts,
    listed_parts,
    read_boxes,
    read_labels,
    read_lists,
    search,
)
from cxrbench.data.csvfile import some
from cxrbench.data.index import Index
from cxrbench.data.splits import Split, committed_folder, read_split, stratified_parts

VAL_IMAGES = 10_000
SEARCH_DEPTH = 3
SAMPLED = 5  # images of a folder that tell its size in pixels


class ChestXray14Params(DataParams):
    """Where things lie when they are not found by themselves, or are there more than once."""

    labels_file: str | None = None
    images: str | None = None


class ChestXray14(CxrDataset):
    """ChestX-ray14: any layout of the download, or any part of it."""

    name = "chestxray14"
    Params = ChestXray14Params
    splits = ("official", "cv5")
    home = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    licence = "free use; name the NIH Clinical Center and cite Wang et al. (CVPR 2017)"
    variants = tuple(chestxray14_fake.LAYOUTS)

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        """Images below `root` that stand in the label file, in the label file's order."""
        assert isinstance(params, ChestXray14Params)
        root = cls.require_root(root)
        labels_file = _labels_file(root, params.labels_file)
        frame = read_labels(labels_file)
        files, counts = _image_files(root, params.images)
        paths = frame["image_id"].map(files)
        unlabelled = sorted(set(files) - set(frame["image_id"]))
        if paths.isna().all():
            raise DataError(
                f"{labels_file}: none of the {len(files):,} images below {root} stands in it, "
                f"such as {some(unlabelled, 2)}; give the right one: --set data.labels_file=..."
            )
        present = int(paths.notna().sum())
        notes: dict[str, Any] = {
            "labels_file": labels_file.name,
            **label_facts(frame),
            "coverage": {"present": present, "promised": IMAGES, "complete": present == IMAGES},
            "rows_without_image": int(paths.isna().sum()),
            "images_without_row": len(unlabelled),
            "repeated_rows": frame.attrs["repeated"],
            **counts,
        }
        frame = frame.assign(path=paths)[paths.notna()].reset_index(drop=True)
        return Index(cls.name, frame, LABELS, root, notes, (labels_file,))

    @classmethod
    def make_split(cls, name: str, index: Index) -> Split:
        """`official` from the NIH's two lists; `cv5` over everything.

        The committed files were made by this from the v2020 labels of all 112,120 images with
        `write_split(ChestXray14.make_split(name, index), index, folder)`.
        """
        if name != "official":
            return super().make_split(name, index)
        assert index.root is not None
        lists = read_lists(index.root, SEARCH_DEPTH)
        if lacking := [LISTS[part] for part in LISTS if part not in lists]:
            raise MissingInputError(
                f"{index.root}: no {' or '.join(lacking)}; get them at {cls.home}"
            )
        part = listed_parts(index.root, lists, index.image_ids)
        val = VAL_IMAGES / LISTED["train_val"]
        exact = {"val": VAL_IMAGES} if len(index) == IMAGES else None
        trained = index.select(part == "train_val")
        cut = stratified_parts(trained, name, {"train": 1 - val, "val": val}, exact=exact)
        tested = pd.Series("test", index=np.unique(index.patient_ids[part == "test"].astype(str)))
        kept = cut.assignment.set_index("patient_id")["part"]
        rule = f"The NIH's test_list.txt tests. {cut.rule} Both only among the NIH's train_val_list.txt."
        return Split.of(cls.name, name, rule, pd.concat([kept, tested]))

    @classmethod
    def finding_boxes(cls, index: Index) -> list[list[FindingBox]] | None:
        """The NIH's boxes, where their list is there; they lie on images of the official test part."""
        path = search(index.root, (BOXES_NAME,), SEARCH_DEPTH) if index.root else None
        if path is None:
            return None
        found: dict[str, list[FindingBox]] = {name: [] for name in index.image_ids}
        for name, finding, x, y, w, h in read_boxes(path).itertuples(index=False):
            if name in found:
                edges = (x / BOX_SPACE, y / BOX_SPACE, (x + w) / BOX_SPACE, (y + h) / BOX_SPACE)
                found[name].append((finding, edges))
        return list(found.values())

    @classmethod
    def check(cls, index: Index) -> list[Problem]:
        """Labels, lists and boxes against the published counts, lists against the split `official`."""
        notes = index.notes
        problems = [
            Problem("warning", what, count=notes[key])
            for key, what in (
                ("rows_without_image", "rows of the label file have no image (a partial download)"),
                ("images_without_row", "images do not stand in the label file and are left out"),
                ("same_image_twice", "images lie in two folders; the first is used"),
                ("repeated_rows", "rows of the label file repeat another row"),
                ("strange_names", "PNG files are passed over: no name like 00000001_000.png"),
            )
            if notes.get(key)
        ]
        old = index.frame["image_id"][index.frame["age"] > 100]
        if len(old):
            problems.append(Problem("warning", "ages over 100 (known errors of 2017)", tuple(old)))
        return [*problems, *_label_problems(notes), *_list_problems(index), *_box_problems(index)]

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """The download in miniature, in one of the layouts in circulation."""
        return chestxray14_fake.write_download(root, images, size, seed, variant)


def _labels_file(root: Path, given: str | None) -> Path:
    if given is not None:
        path = root / Path(given).expanduser()
        if not path.is_file():
            raise MissingInputError(f"{path}: no such label file (data.labels_file)")
        return path
    beside = root.resolve().parent
    if found := search(root, CSV_NAMES, SEARCH_DEPTH) or search(beside, CSV_NAMES, 1):
        return found
    raise MissingInputError(
        f"{root}: no {' or '.join(CSV_NAMES)} here, {SEARCH_DEPTH} folders deep, or beside it; get it at "
        f"{ChestXray14.home}, or say where it is: --set data.labels_file=PATH"
    )


def _image_files(root: Path, folder: str | None) -> tuple[dict[str, str], dict[str, int]]:
    """Path below `root` of each image name, and counts for the notes."""
    base = root / (folder or "")
    if not base.resolve().is_relative_to(root.resolve()) or not base.is_dir():
        raise MissingInputError(f"{base}: no such folder below {root} (data.images)")
    prefix = "" if base == root else f"{base.relative_to(root).as_posix()}/"
    found: dict[str, tuple[str, int]] = {}
    twice = strange = 0
    for path, info in scan_files(base, (".png",)):
        name = path.rpartition("/")[2].lower()
        if not IMAGE_NAME.fullmatch(name):
            strange += 1
            continue
        first, size = found.setdefault(name, (prefix + path, info.st_size))
        if size != info.st_size:
            _refuse_versions(root, first, prefix + path)
        twice += first != prefix + path
    if not found:
        packed = "; unpack images_*.tar.gz" if any(base.glob("*.tar.gz")) else ""
        raise MissingInputError(f"{base}: no image like 00000001_000.png in it or below{packed}")
    files = {name: path for name, (path, _) in found.items()}
    _check_one_version(root, files)
    return files, {"same_image_twice": twice, "strange_names": strange}


def _check_one_version(root: Path, files: dict[str, str]) -> None:
    """Refuse folders with images of different sizes in pixels, judged by a few images of each."""
    held: dict[str, list[str]] = {}
    for path in files.values():
        held.setdefault(path.rpartition("/")[0], []).append(path)
    sizes: dict[tuple[int, int], str] = {}
    for paths in list(held.values())[:: max(1, len(held) // 50)]:
        found: Counter[tuple[int, int]] = Counter()
        for path in paths[:: -(-len(paths) // SAMPLED)]:
            try:
                with Image.open(root / path, formats=("PNG",)) as image:
                    found[image.size] += 1
            except (OSError, ValueError, SyntaxError):
                continue  # an unreadable image is reported by whoever decodes it
        # Single images of another size happen; a version is what most of a folder has.
        for size, _ in found.most_common(1):
            sizes.setdefault(size, paths[0])
    if len(sizes) > 1:
        _refuse_versions(root, *list(sizes.values())[:2])


def _refuse_versions(root: Path, first: str, second: str) -> None:
    folders = [path.rpartition("/")[0] or "." for path in (first, second)]
    raise DataError(
        f"{root}: different versions of the images in {folders[0]} and {folders[1]} (see {first} and "
        f"{second}); choose one: --set data.images={folders[0]}"
    )


def _counted(counts: dict[str, tuple[int, int]], fewer: str = "error") -> list[Problem]:
    """What differs from the published counts, {what: (found, published)}; more is always an error."""
    return [
        Problem(
            "warning" if have < want and fewer == "warning" else "error",
            f"{have:,} {what}, published {want:,}",
            count=abs(have - want),
        )
        for what, (have, want) in counts.items()
        if have != want
    ]


def _label_problems(notes: dict[str, Any]) -> list[Problem]:
    """Which release the label file is, and where it contradicts that release's published counts."""
    rows, healthy, release = (
        notes[key] for key in ("label_rows", "rows_without_finding", "label_release")
    )
    file = notes["labels_file"]
    if rows != IMAGES:
        what = f"rows in {file}, whose release cannot be told"
        return _counted({what: (rows, IMAGES)}, fewer="warning")
    told = f"{file}: {healthy:,} of {rows:,} rows without a finding"
    if release not in POSITIVES:
        known = " and ".join(f"{number:,} ({name})" for number, name in RELEASES.items())
        return [Problem("warning", f"{told} is no known release: {known}", count=healthy)]
    if release == "v2020":
        problems = [Problem("info", f"{told}: labels of the release v2020", count=healthy)]
    else:
        what = f"{told}: labels of the release 2017; 181 images have others in v2020"
        problems = [Problem("warning", what, count=healthy)]
    found = {
        f"of {label} in {file}": (notes["label_positives"][label], want)
        for label, want in POSITIVES[release].items()
    }
    found[f"patients in {file}"] = (notes["label_patients"], PATIENTS)
    return problems + _counted(found)


def _list_problems(index: Index) -> list[Problem]:
    """The NIH's lists, where present, against their published length and the split `official`."""
    folder = committed_folder(ChestXray14.name, "official")
    if index.root is None or folder is None:
        return []
    try:
        lists = read_lists(index.root, SEARCH_DEPTH)
    except DataError as error:
        return [Problem("error", str(error), count=1)]
    counts = {f"names in {LISTS[part]}": (len(lists[part]), LISTED[part]) for part in lists}
    split, _ = read_split(folder, "official")
    tested = set(split.assignment["patient_id"][split.assignment["part"] == "test"])
    wrong = [
        name
        for part, names in lists.items()
        for name in names
        if (name[:8] in tested) != (part == "test")
    ]
    what = "images of the NIH's lists that the split `official` has in another part"
    parted = [Problem("error", what, tuple(wrong))] if wrong else []
    return [*parted, *_counted(counts, fewer="warning")]


def _box_problems(index: Index) -> list[Problem]:
    """The list of boxes, where present, against its published counts and the labels."""
    path = search(index.root, (BOXES_NAME,), SEARCH_DEPTH) if index.root else None
    if path is None:
        return []
    try:
        boxes = read_boxes(path)
    except DataError as error:
        return [Problem("error", str(error), count=1)]
    images = boxes["image_id"]
    marks = index.frame[index.frame["image_id"].isin(images)].set_index("image_id")
    denied = tuple(
        f"{image} ({finding})"
        for image, finding in zip(images, boxes["finding"], strict=True)
        if image in marks.index and not marks.at[image, finding]
    )
    what = f"boxes in {path.name} of findings that the image's labels deny"
    # v2020 is the 2017 release with the findings of the boxes added where they were missing.
    severity: Literal["error", "warning"] = (
        "error" if index.notes["label_release"] == "v2020" else "warning"
    )
    contradictions = [Problem(severity, what, denied)] if denied else []
    return [*contradictions, *_box_counts(boxes, path.name)]


def _box_counts(boxes: pd.DataFrame, file: str) -> list[Problem]:
    held, images = boxes["finding"].value_counts(), boxes["image_id"]
    counts = {
        "boxes": (len(boxes), sum(BOXES.values())),
        "images with a box": (images.nunique(), BOXED_IMAGES),
        "patients with a box": (images.str[:8].nunique(), BOXED_PATIENTS),
        **{f"boxes of {k}": (int(held.get(k, 0)), BOXES.get(k, 0)) for k in LABELS},
    }
    named = {f"{what} in {file}": pair for what, pair in counts.items()}
    if len(boxes) >= sum(BOXES.values()):
        return _counted(named)
    # A part of the list has fewer of everything, which one line says.
    total, *others = _counted(named, fewer="warning")
    return [total, *(problem for problem in others if problem.severity == "error")]
