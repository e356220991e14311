"""CSV as people have it: byte order marks, any line end, trailing commas; anything doubtful is an error.

Everything stays text (`None` and `NA` are words like any other), columns are chosen by name, and each
row keeps the number of its line in the file, so that errors can point to it.
"""

import codecs
import csv
import gzip
import io
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.nearest import nearest
from cxrbench.core.patience import patient

# Packed text can unfold to a thousand times its size.
MOST_BYTES = 2**29
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def read_csv(path: Path, *, split_brackets: bool = False) -> pd.DataFrame:
    """The rows as text, indexed by line number (the index is named "line").

    Columns without a name are dropped. `split_brackets` turns a quoted header such as "Size[x,y]" into
    as many columns as it has commas, which is what the unquoted header is. DataError names the line.
    """
    rows = _rows(path)
    header_line, header = next(rows, (0, []))
    if not header:
        raise DataError(f"{path}: empty; expected a header and rows")
    if split_brackets:
        header = [piece for name in header for piece in re.split(r",(?=[^\[\]]*\])", name)]
    names = [name.strip() for name in header]
    _check_header(path, header_line, names)
    # The header may end in commas, or the rows, or both.
    while not names[-1]:
        names.pop()
    width, lines, cells = len(names), [], []
    for line, row in rows:
        if len(row) != width:
            if len(row) < width or "".join(row[width:]).strip():
                raise DataError(
                    f"{path}: line {line}: {len(row)} fields, but the header has {width}; "
                    "quote fields that contain commas, and complete rows that are cut short"
                )
            row = row[:width]
        lines.append(line)
        cells.append(row)
    if not lines:
        raise DataError(f"{path}: a header but no rows")
    frame = pd.DataFrame(cells, columns=names, index=pd.Index(lines, name="line"), dtype=object)
    return frame.loc[:, [bool(name) for name in names]]


def _check_header(path: Path, line: int, names: list[str]) -> None:
    filled = [name for name in names if name]
    if len(filled) == 1:
        for mark, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if mark in filled[0]:
                raise DataError(f"{path}: line {line}: separated by {word}; save it with commas")
    if twice := sorted({name for name in filled if filled.count(name) > 1}):
        raise DataError(f"{path}: line {line}: the columns {twice} stand twice; keep one of each")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every row that is not blank."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}: line {line}: {error}; is a quote left open?") from None
        if "".join(row).strip():
            yield line, row


def read_text(path: Path) -> str:
    """UTF-8 text of a file or a .gz file, without the byte order mark.

    DataError for other encodings, and for more than MOST_BYTES, packed or unpacked.
    """
    data = _read_bounded(path)
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            raise DataError(f"{path}: encoded as {encoding}; save it as UTF-8")
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path}: a spreadsheet; save it as CSV (UTF-8)")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise DataError(f"{path}: line {line}: a NUL byte (damaged, or UTF-16); save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line}: byte 0x{data[error.start]:02x} is not UTF-8 (probably latin-1 or "
            "Windows-1252); save it as UTF-8"
        ) from None


@patient
def _read_bounded(path: Path) -> bytes:
    try:
        info = path.stat()
        # Reading a pipe or a device would never end.
        if not stat.S_ISREG(info.st_mode):
            raise DataError(f"{path}: not a file of text; give the label file itself")
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: unreadable ({error})") from None
    if len(data) > MOST_BYTES:
        raise DataError(
            f"{path}: over {MOST_BYTES / 2**20:.0f} MiB of text; is it a label file? cut it down"
        )
    return data


def read_names(path: Path) -> list[str]:
    """The lines of a list of names, stripped, blank ones left out."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def need_column(frame: pd.DataFrame, path: Path, *names: str) -> str:
    """The first of the names that is a column; DataError with the nearest column otherwise."""
    for name in names:
        if name in frame.columns:
            return name
    hint = nearest(names[0], [str(column) for column in frame.columns])
    raise DataError(f"{path}: no column {' or '.join(repr(n) for n in names)}; {hint}")


def at(frame: pd.DataFrame, row: object) -> str:
    """Where a row stands, such as "line 12" (a Parquet file has rows)."""
    return f"{frame.index.name} {row}"


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first names, for an error message."""
    names = list(names)
    return ", ".join(names[:limit]) + (
        f", ... ({len(names):,} in all)" if len(names) > limit else ""
    )
