"""ChestX-ray14 in miniature, in every layout in circulation and with the traps between them."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cxrbench.data.chestxray14_files import (
    BOX_SPACE,
    BOXES,
    BOXES_NAME,
    CSV_NAMES,
    LISTS,
    NO_FINDING,
)
from cxrbench.data.fakes import fake_patients, pick_variant, write_film
from cxrbench.data.painter import Study, paint
from cxrbench.data.splits import PARTS, committed_folder, read_split

ARCHIVES = 12


@dataclass(frozen=True)
class Layout:
    """How one repackaging lays out and writes the same things."""

    folder: Callable[[str, int], str]  # of an image, by its patient and the number of its archive
    labels: str = CSV_NAMES[0]
    sex: str = "Patient Sex"
    header_end: str = ""
    row_end: str = ""
    age: str = "{}"
    line_end: str = "\n"
    mark: bool = False  # byte order mark
    quoted: bool = False  # the two names with brackets and commas
    lists: str = "{}"
    boxes: str = ""  # blank: none
    below: str = "."  # the data folder, below the one that is given
    strays: bool = False  # one image absent, one in capitals; files that are no images of the set
    oblong: bool = False  # one image of another shape


LAYOUTS = {
    # The twelve archives, each unpacked into a folder of its own.
    "nih": Layout(lambda _, archive: f"images_{archive:03d}/images", boxes=BOXES_NAME),
    # Kaggle's archive: the 2017 release with its trailing commas and its impossible age.
    "kaggle": Layout(
        lambda _, archive: f"images_{archive:03d}/images",
        labels=CSV_NAMES[1],
        sex="Patient Gender",
        header_end=",",
        row_end=",",
        boxes=BOXES_NAME,
        strays=True,
    ),
    # The twelve archives unpacked into one folder, and what a spreadsheet makes of the label file.
    "flat": Layout(
        lambda _, archive: "images",
        labels=f"meta/{CSV_NAMES[0]}",
        line_end="\r\n",
        mark=True,
        lists="meta/{}",
        below="Röntgen bilder, 14",
        strays=True,
        oblong=True,
    ),
    "zoogzog": Layout(
        lambda _, archive: f"images_{archive:03d}",
        labels=CSV_NAMES[1],
        row_end=",",
        age="{:03d}Y",
        lists="dataset/{}",
    ),
    "idiap": Layout(
        lambda patient, _: f"images/{patient[:5]}",
        labels=f"{CSV_NAMES[0]}.gz",
        quoted=True,
        lists="{}.gz",
        boxes=f"{BOXES_NAME}.gz",
    ),
}


def write_download(root: Path, images: int, size: int, seed: int, variant: str) -> Path:
    """Write so many images, their label file, lists and boxes; returns the folder to read.

    Every layout has one RGBA file. Patients are those of the committed split, so that each part of it has
    some.
    """
    layout = LAYOUTS[pick_variant(variant, tuple(LAYOUTS))]
    root = root / layout.below
    rows, boxes = [_header(layout)], []
    listed: dict[str, list[str]] = {part: [] for part in LISTS}
    patients = fake_patients(images, seed)
    for patient, part, studies in zip(*_real_patients(len(patients)), patients, strict=True):
        for study in studies:
            name, number = f"{patient}_{study.follow_up:03d}.png", len(rows)
            folder = layout.folder(patient, (number - 1) * ARCHIVES // images + 1)
            _write_image(layout, study, root / folder / name, size, number)
            rows.append(_row(layout, study, name, size, number))
            listed["test" if part == "test" else "train_val"].append(name)
            if part == "test":
                boxes += _boxes(name, study)
    if layout.strays:
        name = _write_strays(root, listed["train_val"][-1])
        rows.append(_row(layout, patients[0][0], name, size, len(rows)))
        listed["train_val"].append(name)
    text = layout.line_end.join(rows) + layout.line_end
    _write_text(root / layout.labels, text, "utf-8-sig" if layout.mark else "utf-8")
    for part, names in listed.items():
        # Without a final line end: `wc -l` counts one too few, as it does in the download.
        _write_text(root / layout.lists.format(LISTS[part]), layout.line_end.join(names))
    if layout.boxes:
        end = layout.row_end * 3
        text = "\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *(b + end for b in boxes)])
        _write_text(root / layout.boxes, text + "\n")
    return root


def _header(layout: Layout) -> str:
    pair = ("OriginalImage[Width,Height]", "OriginalImagePixelSpacing[x,y]")
    names = (
        *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"),
        *(layout.sex, "View Position", *(f'"{name}"' if layout.quoted else name for name in pair)),
    )
    return ",".join(names) + layout.header_end


def _row(layout: Layout, study: Study, name: str, size: int, number: int) -> str:
    findings = "|".join(finding for finding, _ in study.findings) or NO_FINDING
    # The 2017 release has ages such as 414.
    age = 414 if layout.labels == "Data_Entry_2017.csv" and number == 5 else study.age
    cells = (
        *(name, findings, study.follow_up, int(name[:8]), layout.age.format(age)),
        *(study.sex, study.view_position, size, size, 0.143, 0.143),
    )
    return ",".join(map(str, cells)) + layout.row_end


def _write_image(layout: Layout, study: Study, path: Path, size: int, number: int) -> None:
    mode = "RGBA" if number == 1 else "L"
    if layout.strays and number == 2:
        path = path.with_suffix(".PNG")
    height = size * 3 // 4 if layout.oblong and number == 3 else None
    write_film(study, path, size, mode, height)


def _write_strays(root: Path, last: str) -> str:
    """Files that are no images of the set; returns the name of an image that is listed but absent."""
    folder = min(root.rglob("*.png")).parent
    (folder / ".DS_Store").write_bytes(b"junk")
    (folder / f"._{last}").write_bytes(b"junk")
    (folder / f"{last[:-4]} (1).png").write_bytes(b"junk")
    (root / "README_CHESTXRAY.pdf").write_bytes(b"junk")
    return f"{last[:9]}{int(last[9:12]) + 1:03d}.png"


def _boxes(name: str, study: Study) -> list[str]:
    """Rows of the list of boxes, which writes Infiltrate for Infiltration."""
    rows = []
    for box in paint(study, 64).boxes:
        if box.finding in BOXES:
            sides = (box.x, box.y, min(box.width, 1 - box.x), min(box.height, 1 - box.y))
            finding = box.finding.replace("Infiltration", "Infiltrate")
            rows.append(",".join([name, finding, *(f"{side * BOX_SPACE:.9f}" for side in sides)]))
    return rows


def _write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _real_patients(count: int) -> tuple[list[str], list[str]]:
    """Ids from the committed split, and their parts: of five, three train, one validates, one tests."""
    folder = committed_folder("chestxray14", "official")
    assert folder is not None, "data_splits/chestxray14 comes with every copy of cxrbench"
    split, _ = read_split(folder, "official")
    parts = [("train", "val", "train", "test", "train")[i % 5] for i in range(count)]
    pools = {}
    for part in PARTS:
        ids = split.assignment["patient_id"][split.assignment["part"] == part]
        # From the whole range, which a layout spreads over folders.
        pools[part] = iter(ids.iloc[:: max(1, len(ids) // max(1, parts.count(part)))])
    return [next(pools[part]) for part in parts], parts
