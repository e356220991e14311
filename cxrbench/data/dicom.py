"""Your own DICOM files: a folder of them at any depth, with a table of labels or without, to predict on."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxrbench.core.errors import DataError, MissingInputError, UsageError
from cxrbench.core.frozen import Frozen
from cxrbench.core.nearest import nearest
from cxrbench.data.base import CxrDataset, DataParams, Problem
from cxrbench.data.cells import (
    RESERVED,
    Blank,
    Uncertain,
    has_control,
    label_names,
    marks,
    unsafe,
)
from cxrbench.data.csvfile import at, need_column, read_csv, some
from cxrbench.data.index import Index
from cxrbench.data.pixels import UnreadableImageError

if TYPE_CHECKING:
    from cxrbench.data.dicom_file import Header

TABLE = "labels.csv"
DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
# The modality of files that have none, by their kind of object.
MODALITY = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    FOR_PROCESSING: "DX",
}
CHEST = ("CHEST", "THORAX", "LUNG")
AGE = re.compile(r"(\d{1,3})([DWMY]?)")
DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25, "": 365.25}
# Files that were meant to be films, as far as their names and first bytes tell.
OLDEST = 120
UNREADABLE = "files that cannot be read"
MISNAMED = "files called .dcm that are no DICOM files"


class DicomParams(DataParams):
    """Which files are taken, who is a patient, and which table has the labels.

    `labels_file`: a CSV in the data folder with `image` (path or SOPInstanceUID) and label columns;
    unset is labels.csv if there is one, "" is none. `patients`: who a file belongs to: its PatientID
    (`tag`), the first folder below the data folder (`folder`), itself (`file`), or the table's
    `patient_id` (`table`). `modalities`, `views` and `body_parts` name what is taken, "" where a file
    says nothing; no views or body parts are all of them.
    """

    labels_file: str | None = None
    labels: list[str] | None = None
    uncertain: Uncertain = "unknown"
    blank: Blank = "unknown"
    patients: Literal["tag", "folder", "file", "table"] = "tag"
    modalities: list[str] = ["CR", "DX", "RG"]
    views: list[str] = []
    body_parts: list[str] = []


class Dicom(CxrDataset):
    """A folder of DICOM files: single grey CR, DX and RG images; labels from a table, or none."""

    name = "dicom"
    Params = DicomParams
    splits = ("holdout", "cv5")
    variants = ("plain",)

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        """All films below `root`, by path; other files are left out and counted by reason.

        `image_id` is the path. DataError or MissingInputError names files and repair.
        """
        assert isinstance(params, DicomParams)
        root = cls.require_root(root)
        found = _scan(root, params)
        frame = _describe(found.films)
        table = _open_table(root, params, frame, found)
        frame["patient_id"] = _patients(frame, params, root, table)
        labels = _add_labels(frame, params, table)
        notes = {
            "files": found.files,
            "left_out": {why: len(names) for why, names in sorted(found.left_out.items())},
            "modalities": dict(sorted(Counter(frame["modality"]).items())),
            "ages_without_unit": frame.attrs.pop("ages_without_unit"),
            "labels_file": table.path.name if table else None,
            "images_without_row": int((table.rows < 0).sum()) if table else 0,
        }
        # Names stay out of the notes, which go into records: a path may tell who a patient is.
        frame.attrs["left_out"] = found.left_out
        return Index(cls.name, frame, labels, root, notes, (table.path,) if table else ())

    @classmethod
    def read_film(cls, index: Index, row: int) -> npt.NDArray[np.uint8]:
        """One film by the rules of `dicom_pixels.to_grey`, grey uint8 [H, W]."""
        film: npt.NDArray[np.uint8] = _reader().decode_dicom(index.path(row))
        return film

    @classmethod
    def check(cls, index: Index) -> list[Problem]:
        """Files left out by reason, and signs that the tags do not mean what they should."""
        frame, suspect = index.frame, (UNREADABLE, MISNAMED, *_reader().REFUSED)
        problems = [
            Problem("warning" if why in suspect else "info", f"left out: {why}", tuple(names))
            for why, names in sorted(frame.attrs.get("left_out", {}).items())
        ]
        other = [part != "" and not any(c in part for c in CHEST) for part in frame["body_part"]]
        shared = frame["sop_instance"].duplicated(keep=False) & (frame["sop_instance"] != "")
        sexes = frame[frame["sex"].isin(("M", "F"))].groupby("patient_id")["sex"].nunique()
        unknown = (~np.isnan(index.targets)).sum(axis=1) == 0
        odd: tuple[tuple[str, Iterable[str]], ...] = (
            ("films of another body part than the chest (data.body_parts)", frame["path"][other]),
            ("files share a SOPInstanceUID", frame["path"][shared]),
            ("patients of both sexes; is PatientID a placeholder?", sexes.index[sexes > 1]),
            (f"ages over {OLDEST}", frame["path"][frame["age"] > OLDEST]),
            ("films without a known label", frame["path"][unknown] if index.labels else ()),
        )
        return problems + [
            Problem("warning", what, names) for what, given in odd if (names := tuple(given))
        ]

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """Films of many encodings in nested folders, a table, and files that are none."""
        _reader()
        from cxrbench.data.dicom_fake import write_fake

        write_fake(root, images=images, size=size, seed=seed)
        return root


def _reader() -> Any:
    """The module that needs pydicom; UsageError says how to install it."""
    try:
        from cxrbench.data import dicom_file
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pydicom":
            raise
        raise UsageError("data set dicom needs pydicom: pip install 'cxrbench[dicom]'") from None
    return dicom_file


@dataclass(frozen=True)
class _Found:
    """What a folder holds: headers of films by path, names of other files by reason."""

    films: "dict[str, Header]"
    left_out: dict[str, list[str]]
    known: set[str]  # paths and SOPInstanceUIDs of DICOM files that are left out
    files: int


def _scan(root: Path, params: DicomParams) -> _Found:
    """Every file below `root`. MissingInputError without any DICOM file, DataError without a film."""
    reader = _reader()
    paths, refused = reader.find_files(root)
    left_out: dict[str, list[str]] = defaultdict(list, refused)
    films, known, strangers = {}, set(), 0
    for path in paths:
        try:
            header = reader.read_header(root / path)
        except UnreadableImageError as error:
            reason = str(error).removeprefix(f"{root / path}: ")
            left_out[UNREADABLE].append(f"{path} ({reason})")
            known.add(path)
            continue
        if header is None:
            strangers += 1
            if path.lower().endswith((".dcm", ".dicom")):
                left_out[MISNAMED].append(path)
        elif why := _why_not(header, params):
            left_out[why].append(path)
            known |= {path, header.sop_instance}
        else:
            films[path] = header
    if films:
        return _Found(films, dict(left_out), known, len(paths))
    counts = "; ".join(f"{len(names):,} {why}" for why, names in sorted(left_out.items()))
    if strangers == len(paths):
        raise MissingInputError(
            f"{root}: none of {len(paths):,} files is a DICOM file ('DICM' at byte 128)"
            + (f"; {counts}" if counts else "")
        )
    raise DataError(
        f"{root}: no film among {len(paths):,} files; left out: {counts}; choose others with "
        '--set data.modalities=[...], data.views or data.body_parts ("" for those that do not say)'
    )


def _why_not(header: "Header", params: DicomParams) -> str:
    """Why a DICOM file is not taken; empty for a film."""
    modality = header.modality or MODALITY.get(header.sop_class, "")
    if header.sop_class == DIRECTORY:
        return "directories (DICOMDIR)"
    if not _takes(params.modalities, modality):
        return f"modality {modality or 'not given'} (data.modalities)"
    if not (header.rows and header.columns):
        return "objects without an image"
    if header.frames != 1:
        return "several frames"
    if header.colours != 1 or not header.photometric.startswith("MONOCHROME"):
        return "colour"
    if header.sop_class == FOR_PROCESSING or header.intent == "FOR PROCESSING":
        return "raw detector images (FOR PROCESSING)"
    if params.views and not _takes(params.views, header.view):
        return f"view {header.view or 'not given'} (data.views)"
    if params.body_parts and not _takes(params.body_parts, header.body_part):
        return f"body part {header.body_part or 'not given'} (data.body_parts)"
    return ""


def _takes(chosen: list[str], word: str) -> bool:
    return word in {one.strip().upper() for one in chosen}


def _describe(films: "dict[str, Header]") -> pd.DataFrame:
    """Everything but patients and labels; `attrs["ages_without_unit"]` counts ages taken as years."""
    headers = list(films.values())
    ages = [AGE.fullmatch(header.age) for header in headers]
    frame = pd.DataFrame(
        {
            "image_id": list(films),
            "path": list(films),
            "patient_id": [header.patient for header in headers],
            "sex": [header.sex if header.sex in ("M", "F", "O") else "" for header in headers],
            # Whole years, as in other data sets; an infant's months are 0.
            "age": [int(age[1]) * DAYS[age[2]] // DAYS["Y"] if age else np.nan for age in ages],
            "view_position": [header.view for header in headers],
            "body_part": [header.body_part for header in headers],
            "modality": [h.modality or MODALITY.get(h.sop_class, "") for h in headers],
            "sop_instance": [header.sop_instance for header in headers],
        }
    )
    frame.attrs["ages_without_unit"] = sum(bool(age and not age[2]) for age in ages)
    return frame


@dataclass(frozen=True)
class _Table:
    """A table of labels, and its row [N] for each film, -1 where it has none."""

    path: Path
    raw: pd.DataFrame
    rows: npt.NDArray[np.int64]


def _open_table(
    root: Path, params: DicomParams, frame: pd.DataFrame, found: _Found
) -> _Table | None:
    path = _find_table(root, params)
    if path is not None:
        raw = read_csv(path)
        return _Table(path, raw, _match(frame, found, raw, path, root))
    if params.labels or params.patients == "table":
        what = "data.labels" if params.labels else "data.patients=table"
        raise MissingInputError(
            f"{root}: {what} needs a table: put {TABLE} there, or --set data.labels_file=NAME"
        )
    return None


def _find_table(root: Path, params: DicomParams) -> Path | None:
    top, given = root.resolve(), params.labels_file
    if given is None:
        usual = root / TABLE
        return usual if usual.is_file() and not unsafe(TABLE, top) else None
    if given == "":
        return None
    if why := unsafe(given, top):
        raise DataError(f"data.labels_file: {given!r} {why}")
    if not (root / given).is_file():
        hint = nearest(given, [p.name for p in root.glob("*.csv*")])
        raise MissingInputError(f"{root / given}: no such table (data.labels_file); {hint}")
    return root / given


def _match(
    frame: pd.DataFrame, found: _Found, raw: pd.DataFrame, table: Path, root: Path
) -> npt.NDArray[np.int64]:
    """The table's row [N] of each film, -1 where it has none; rows of files left out are passed over.

    DataError names rows of files that are not there, and films that two rows name.
    """
    films: dict[str, list[int]] = defaultdict(list)
    for film, names in enumerate(zip(frame["path"], frame["sop_instance"], strict=True)):
        for name in {*names, _composed(names[0])} - {""}:
            films[name].append(film)
    rows = np.full(len(frame), -1)
    lost = []
    for row, (line, cell) in enumerate(raw[need_column(raw, table, "image", "path")].items()):
        name, where = cell.strip(), f"{table}: {at(raw, line)}"
        hits = films.get(name) or films.get(_composed(name), [])
        if len(hits) > 1:
            raise DataError(
                f"{where}: {name!r} is the SOPInstanceUID of {len(hits)} files: "
                f"{some(frame['path'].iloc[hits])}; name the path instead"
            )
        if hits and rows[hits[0]] >= 0:
            other = at(raw, raw.index[rows[hits[0]]])
            raise DataError(f"{where}: {name!r} stands in {other} already; keep one row a film")
        if hits:
            rows[hits[0]] = row
        elif name not in found.known:
            why = "" if has_control(name) else unsafe(name, root.resolve())
            lost.append(f"{name!r} ({at(raw, line)}{'; it ' if why else ''}{why})")
    if lost:
        raise DataError(
            f"{table}: {len(lost):,} of {len(raw):,} rows name no DICOM file below {root} by path or "
            f"SOPInstanceUID: {some(lost)}; add the files or remove the rows"
        )
    return rows


def _composed(name: str) -> str:
    """With letters and accents in one: file systems differ, and tables may come from another."""
    return unicodedata.normalize("NFC", name)


def _patients(
    frame: pd.DataFrame, params: DicomParams, root: Path, table: _Table | None
) -> "pd.Series[str]":
    """The patient of each film; DataError names the films of nobody."""
    given, lacking = frame["patient_id"], "have no PatientID"
    if params.patients == "file":
        given = frame["path"]
    elif params.patients == "folder":
        given = frame["path"].map(lambda path: path.rpartition("/")[0].partition("/")[0])
        lacking = "lie in no folder below it"
    elif params.patients == "table":
        assert table is not None
        cells = table.raw[need_column(table.raw, table.path, "patient_id")].str.strip().to_numpy()
        given = pd.Series(np.where(table.rows < 0, "", cells[table.rows]), dtype=object)
        lacking = f"have no patient_id in {table.path.name}"
    bad = given.map(lambda text: not text or has_control(text))
    if bad.any():
        others = [way for way in ("tag", "folder", "file", "table") if way != params.patients]
        raise DataError(
            f"{root}: {int(bad.sum()):,} of {len(frame):,} films {lacking}: {some(frame['path'][bad])}; "
            f"say whose they are: --set data.patients={'|'.join(others)} (file: each its own patient)"
        )
    return given


def _add_labels(frame: pd.DataFrame, params: DicomParams, table: _Table | None) -> tuple[str, ...]:
    """The names of the label columns, which `frame` gets; films without a row are unknown."""
    if table is None or (params.labels is None and not set(table.raw.columns) - RESERVED):
        return ()
    labels = label_names(table.raw, table.path, params.labels)
    for label in labels:
        known = marks(table.raw[label], table.path, uncertain=params.uncertain, blank=params.blank)
        frame[label] = np.where(table.rows < 0, np.nan, known[table.rows])
    return tuple(labels)
