"""DICOM files opened with care: which files of a folder are any, what their headers say, their pixels.

Nothing that names a person is read, no reference in a file is followed, and no file can make the reader
use more memory than a film of the largest size needs.
"""

import io
import logging
import os
import re
import stat
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pydicom import Dataset
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from cxrbench.core.errors import DataError
from cxrbench.core.patience import patient
from cxrbench.data.cells import has_control
from cxrbench.data.dicom_pixels import IMAGE, RULES, MissingDecoderError, to_grey
from cxrbench.data.pixels import MAX_PIXELS, Grey, UnreadableImageError

MAGIC_AT, MAGIC = 128, b"DICM"
HEADER_BYTES = 16 * 2**20  # what may lie before the image's description
FILE_BYTES = 2 * MAX_PIXELS + 2 * HEADER_BYTES
VALUE_BYTES = 2**20  # of any element but the pixels; a table of 65,536 entries has an eighth of it
MOST_READS = 200_000  # pydicom reads once or twice an element, and keeps what sequences hold
LAST_TAG, PIXELS = 0x0028FFFF, 0x7FE00010  # where the description of the image ends; the image
UNDEFINED = 0xFFFFFFFF
_HEADER = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "PresentationIntentType"),
    *("PatientID", "PatientSex", "PatientAge", "BodyPartExamined", "ViewPosition"),
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
)
_HEADER_TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in _HEADER]
_IMAGE_TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in (*RULES, *IMAGE)]
_PLAIN = re.compile(r"[A-Z0-9_ .,/+()-]{0,32}")
ODD_NAME = "names with control characters or in another encoding than UTF-8"
LEAVES = "links that leave the data folder"
NOWHERE = "links to nothing"
NO_FILE = "neither files nor folders"
CLOSED = "folders that cannot be opened"
REFUSED = (ODD_NAME, LEAVES, NOWHERE, NO_FILE, CLOSED)
# pydicom warns and logs with the values of elements, which may name a person; what is wrong with an
# image is told by UnreadableImageError.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


@dataclass(frozen=True)
class Header:
    """What the index needs of a file; text is stripped, blank where nothing is given."""

    sop_class: str
    sop_instance: str
    syntax: str
    modality: str
    intent: str
    patient: str
    sex: str
    age: str
    view: str
    body_part: str
    colours: int
    photometric: str
    frames: int
    rows: int
    columns: int


class _Bounded:
    """A file that ends after `limit` bytes; to be read piece by piece only.

    A piece is no longer than what is left, whatever length the file gives it.
    """

    def __init__(self, stream: io.BufferedReader, limit: int) -> None:
        self.stream, self.limit = stream, min(limit, os.fstat(stream.fileno()).st_size)
        self.seek, self.tell = stream.seek, stream.tell
        self.reads = 0

    def read(self, size: int = -1) -> bytes:
        self.reads += 1
        if self.reads > MOST_READS:
            raise ValueError("too many elements")
        if size < 0:  # pydicom's only such call inflates a deflated data set, without a bound
            raise ValueError("deflated; save it uncompressed")
        return self.stream.read(max(0, min(size, self.limit - self.stream.tell())))


def find_files(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Regular files below `root` as sorted paths with `/`, and those refused, by reason.

    Links are followed while they stay below `root`; a folder is entered once, by its own name if it has
    one. Hidden files are passed over, as by `scan_files`.
    """
    found: list[str] = []
    refused: dict[str, list[str]] = defaultdict(list)
    top = root.resolve()
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        prefix = folders.pop() if folders else links.pop(links.index(min(links)))
        try:
            here = (root / prefix).stat()
            items = [] if (here.st_dev, here.st_ino) in seen else list(os.scandir(root / prefix))
        except OSError:
            refused[CLOSED].append(prefix)
            continue
        seen.add((here.st_dev, here.st_ino))
        for item in items:
            path = prefix + item.name
            if item.name.startswith(".") or item.name == "__MACOSX":
                continue
            if why := _refused(item, top):
                refused[why].append(path)
            elif item.is_dir():
                (links if item.is_symlink() else folders).append(path + "/")
            else:
                found.append(path)
    return sorted(found), {why: sorted(paths) for why, paths in refused.items()}


def _refused(item: os.DirEntry[str], top: Path) -> str:
    """Why a file or folder is not opened; empty when it is."""
    if has_control(item.name):
        return ODD_NAME
    try:
        if item.is_symlink() and not Path(item.path).resolve().is_relative_to(top):
            return LEAVES
        mode = item.stat().st_mode
    except (OSError, RuntimeError):  # a link to nothing or to itself
        return NOWHERE
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return NO_FILE
    return ""


@patient
def read_header(path: Path) -> Header | None:
    """What a file says of itself; None when it is no DICOM file, whatever its name.

    Reads no more than the groups up to the image's description. Raises UnreadableImageError.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] != MAGIC:
                return None
            stream.seek(0)
            return _header(_read(stream, HEADER_BYTES, LAST_TAG, _HEADER_TAGS))
    except Exception as error:  # hostile bytes make pydicom raise nearly anything
        raise UnreadableImageError(f"{path}: {_reason(error)}") from None


def _read(stream: io.BufferedReader, limit: int, last: int, tags: list[BaseTag | int]) -> Dataset:
    """The elements with the given tags, up to the last tag; nothing else of the file is kept."""
    wanted = {int(tag) for tag in tags} - {PIXELS}

    def stops(tag: BaseTag, vr: str | None, length: int) -> bool:
        if int(tag) in wanted and VALUE_BYTES < length != UNDEFINED:
            raise ValueError(f"element {tag} has {length:,} bytes")
        return int(tag) > last

    bounded = cast(BinaryIO, _Bounded(stream, limit))
    return read_partial(bounded, stop_when=stops, specific_tags=tags)


def _header(ds: Dataset) -> Header:
    meta = ds.file_meta
    return Header(
        sop_class=_text(ds, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID"),
        sop_instance=_text(ds, "SOPInstanceUID") or _text(meta, "MediaStorageSOPInstanceUID"),
        syntax=_text(meta, "TransferSyntaxUID"),
        modality=_code(ds, "Modality"),
        intent=_code(ds, "PresentationIntentType"),
        patient=_text(ds, "PatientID"),
        sex=_code(ds, "PatientSex"),
        age=_text(ds, "PatientAge").upper(),
        view=_code(ds, "ViewPosition"),
        body_part=_code(ds, "BodyPartExamined"),
        colours=_number(ds, "SamplesPerPixel", 0),
        photometric=_code(ds, "PhotometricInterpretation"),
        frames=_number(ds, "NumberOfFrames", 1),
        rows=_number(ds, "Rows", 0),
        columns=_number(ds, "Columns", 0),
    )


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    if value is None:
        return ""
    values = value if isinstance(value, MultiValue) else [value]
    if not all(isinstance(v, str | int | float) for v in values):
        raise ValueError(f"{keyword} is no text")
    return "\\".join(map(str, values)).strip(" \0\t\r\n")


def _code(ds: Dataset, keyword: str) -> str:
    """A short word in capitals; it may come to stand in records, so nothing else is let through."""
    text = _text(ds, keyword).upper()
    return text if _PLAIN.fullmatch(text) else "UNPRINTABLE"


def _number(ds: Dataset, keyword: str, default: int) -> int:
    text = _text(ds, keyword)
    return int(text) if text else default


@patient
def decode_dicom(path: Path) -> Grey:
    """The film in a DICOM file as grey uint8 [H, W], by the rules of `to_grey`.

    Raises UnreadableImageError, and DataError when what decodes it is not installed.
    """
    try:
        with path.open("rb") as stream:
            if (size := os.fstat(stream.fileno()).st_size) > FILE_BYTES:
                raise ValueError(f"{size:,} bytes; a film has {FILE_BYTES:,} at most")
            return to_grey(_read(stream, FILE_BYTES, PIXELS, _IMAGE_TAGS))
    except MissingDecoderError as error:
        # Not the file's fault: it must not be remembered as unreadable once the decoder is there.
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # hostile bytes make pydicom raise nearly anything
        raise UnreadableImageError(f"{path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """One line of what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
