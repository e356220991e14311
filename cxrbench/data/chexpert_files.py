"""Where CheXpert's label files and images lie, in each layout in circulation."""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.nearest import nearest
from cxrbench.data.csvfile import some

SUBSETS = ("train", "valid", "test")
# Names that tell the subset, the best first: CheXpert's own, CheXlocalize's, the test labels by study.
LABEL_FILES = {
    "train": ("train.csv",),
    "valid": ("valid.csv", "val_labels.csv"),
    "test": ("test_labels.csv", "test.csv", "groundtruth.csv"),
}
PATIENT = re.compile(r"patient\d{5,}")
SEARCH_DEPTH = 3
HEAD = 4096  # bytes of a file that show whether it is a label file of CheXpert
_NAMES = {name for names in LABEL_FILES.values() for name in names}


@dataclass
class Layout:
    """What lies below a data folder: label files by name, and which folders hold which patient.

    Paths are below `root`, with `/` at the end where they are folders; the root itself is "".
    """

    root: Path
    labels: dict[str, list[Path]] = field(default_factory=dict)
    holders: dict[str, list[str]] = field(default_factory=dict)
    linked: set[str] = field(default_factory=set)  # patients' folders that are links
    not_followed: list[str] = field(default_factory=list)  # links that leave the root

    def inside(self, path: Path | str) -> bool:
        """Whether a path leads to a place below the root once links are followed."""
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root))

    def folders_of(self, patient: str, home: str) -> list[str]:
        """Folders that hold a patient: of copies those beside the label file, which lies in `home`."""
        folders = self.holders.get(patient, [])
        if len(folders) < 2:
            return folders
        return [folder for folder in folders if folder.startswith(home)] or folders


def survey(root: Path) -> Layout:
    """Walk a data folder down to the folders of patients, which are listed but not entered."""
    layout = Layout(root)
    seen: set[str] = set()

    def visit(folder: Path, prefix: str, depth: int) -> None:
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        try:
            items = sorted(os.scandir(folder), key=lambda item: item.name)
        except OSError as error:
            raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
        for item in items:
            if item.name.startswith(".") or item.name == "__MACOSX":
                continue
            if PATIENT.fullmatch(item.name):
                layout.holders.setdefault(item.name, []).append(prefix)
                if item.is_symlink():
                    layout.linked.add(prefix + item.name)
            elif item.name in _NAMES and item.is_file():
                layout.labels.setdefault(item.name, []).append(Path(item.path))
            elif depth < SEARCH_DEPTH and item.is_dir():
                if layout.inside(item.path):
                    visit(Path(item.path), f"{prefix}{item.name}/", depth + 1)
                else:
                    layout.not_followed.append(prefix + item.name)

    visit(root, "", 0)
    return layout


def find_label_files(layout: Layout, given: Mapping[str, str | None]) -> dict[str, Path]:
    """The label file of each subset that has one: given, else found below the root or beside it.

    A subset's file beside that of `train` is preferred. MissingInputError when there is none at all.
    """
    found: dict[str, Path] = {}
    for subset in SUBSETS:
        path = given.get(subset)
        if path is not None:
            found[subset] = _given_file(layout.root, subset, path)
        elif file := _search(layout, subset, found.get("train")):
            found[subset] = file
    if not found:
        wanted = ", ".join(name for names in LABEL_FILES.values() for name in names)
        raise MissingInputError(
            f"{layout.root}: no label file ({wanted}) here, {SEARCH_DEPTH} folders deep, or beside it; "
            f"say where it is: --set data.train_csv=PATH{_unfollowed(layout)}"
        )
    return found


def _given_file(root: Path, subset: str, given: str) -> Path:
    path = root / Path(given).expanduser()
    if not path.is_file():
        known = [p.name for p in path.parent.glob("*.csv*")] if path.parent.is_dir() else []
        hint = f"; {nearest(path.name, known)}" if known else ""
        raise MissingInputError(f"{path}: no such label file (data.{subset}_csv){hint}")
    return path


def _search(layout: Layout, subset: str, train: Path | None) -> Path | None:
    beside = layout.root.resolve().parent
    for name in LABEL_FILES[subset]:
        outside = [beside / name] if (beside / name).is_file() else []
        files = [f for f in layout.labels.get(name) or outside if _is_ours(f)]
        if train is not None and len(files) > 1:
            files = [file for file in files if file.parent == train.parent] or files
        if len(files) > 1 and len({file.read_bytes() for file in files}) > 1:
            raise DataError(
                f"{layout.root}: {len(files)} different label files of the subset {subset}: "
                f"{some(str(file.relative_to(layout.root)) for file in files)}; point --data at one copy "
                f"of the data set, or choose: --set data.{subset}_csv=PATH"
            )
        if files:
            return files[0]
    return None


def _is_ours(path: Path) -> bool:
    """Whether a file with so common a name as train.csv speaks of Cardiomegaly, in any encoding."""
    with path.open("rb") as stream:
        return b"cardiomegaly" in stream.read(HEAD).replace(b"\0", b"").lower()


def _unfollowed(layout: Layout) -> str:
    if not layout.not_followed:
        return ""
    return (
        f"; links that leave the data folder are not followed ({some(layout.not_followed)}): point "
        "--data at the real folder"
    )


def find_images(layout: Layout, rows: pd.DataFrame, labels_file: Path) -> list[str]:
    """Path below the root [N] of images (columns `image_id`, `line`), empty where there is no file.

    DataError for a link that leaves the root and for an image that lies in two folders.
    """
    home = _home(layout, labels_file)
    direct: set[str] = set()  # folders of studies to which no link leads
    paths = []
    for line, image_id in zip(rows["line"], rows["image_id"], strict=True):
        _, patient, study, name = image_id.split("/")
        found = {
            path: kind
            for folder in layout.folders_of(patient, home)
            if (kind := _look(layout, path := f"{folder}{patient}/{study}/{name}", direct))
        }
        if len(found) > 1:
            raise DataError(
                f"{layout.root}: {image_id} lies in two folders: {some(found)}; point --data at one copy "
                "of the data set"
            )
        path, kind = next(iter(found.items()), ("", ""))
        if kind == "linked" and not layout.inside(layout.root / path):
            raise DataError(
                f"{labels_file}: line {line}: {path} is a link that leaves the data folder; point "
                "--data at the real folder"
            )
        paths.append(path)
    return paths


def _look(layout: Layout, path: str, direct: set[str]) -> Literal["", "file", "linked"]:
    """What lies at a path below the root: nothing, a file, or a file that a link leads to."""
    full = f"{layout.root}/{path}"
    folder = path.rpartition("/")[0]
    try:
        info = os.lstat(full)
        if (
            folder not in direct
            and folder.rpartition("/")[0] not in layout.linked
            and not _is_link(os.lstat(f"{layout.root}/{folder}"))
        ):
            direct.add(folder)
        linked = folder not in direct or _is_link(info)
        if linked:
            info = Path(full).stat()
    except OSError:
        return ""
    if not stat.S_ISREG(info.st_mode):
        return ""
    return "linked" if linked else "file"


def _is_link(info: os.stat_result) -> bool:
    return stat.S_ISLNK(info.st_mode)


def _home(layout: Layout, labels_file: Path) -> str:
    """The label file's folder below the root; where it lies elsewhere, the root."""
    folder = labels_file.parent
    if not folder.is_relative_to(layout.root) or folder == layout.root:
        return ""
    return f"{folder.relative_to(layout.root).as_posix()}/"


def images_of_study(layout: Layout, study_id: str, labels_file: Path) -> list[str]:
    """Names of the files in a study's folder (`test/patient64741/study1`), sorted; none if it is absent."""
    _, patient, study = study_id.split("/")
    for folder in layout.folders_of(patient, _home(layout, labels_file)):
        path = layout.root / folder / patient / study
        if path.is_dir() and layout.inside(path):
            return sorted(item.name for item in os.scandir(path))
    return []
