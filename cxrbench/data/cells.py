"""The cells of a user's own label table: what 1, 0, -1, blanks and paths mean, and what is refused."""

import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxrbench.core.columns import ATTRIBUTES
from cxrbench.core.errors import DataError
from cxrbench.data.csvfile import need_column

Uncertain = Literal["unknown", "positive", "negative"]
Blank = Literal["unknown", "negative"]
RESERVED = {
    *("image", "image_id", "path", "patient_id", "group_id", "split", "fold", "licence"),
    *ATTRIBUTES,
}


def label_names(raw: pd.DataFrame, table: Path, given: list[str] | None) -> list[str]:
    """The label columns: those given, which may be none, or all that are not RESERVED.

    DataError when there is none of those.
    """
    labels = [str(c) for c in raw.columns if c not in RESERVED] if given is None else given
    for label in labels:
        need_column(raw, table, label)
        if label in RESERVED:
            raise DataError(f"{table}: {label!r} cannot be a label (data.labels); it is reserved")
    if not labels and given is None:
        raise DataError(
            f"{table}: no label column beside {', '.join(map(str, raw.columns))}; for predictions alone "
            "pass --set data.labels=[]"
        )
    return labels


def marks(
    cells: pd.Series, table: Path, *, uncertain: Uncertain, blank: Blank
) -> npt.NDArray[np.float32]:
    """1, 0 and NaN [N] of a label column of text; DataError names the line of another value."""
    meaning = {"unknown": np.nan, "positive": 1.0, "negative": 0.0}
    values = {1.0: 1.0, 0.0: 0.0, -1.0: meaning[uncertain]}
    found = numbers(cells, table).to_numpy()
    wrong = ~np.isin(found, list(values)) & ~np.isnan(found)
    if wrong.any():
        _refuse(cells, table, wrong, "is not 1, 0, -1 or blank")
    known = np.full(len(found), meaning[blank], np.float32)
    for number, mark in values.items():
        known[found == number] = mark
    if np.isnan(known).all():
        raise DataError(
            f"{table}: column {cells.name!r} holds no known value; leave it out (data.labels)"
        )
    return known


def numbers(cells: pd.Series, table: Path) -> "pd.Series[float]":
    """Numbers of a column of text, NaN where it is blank; DataError names the line of another."""
    text = cells.str.strip()
    found = pd.to_numeric(text, errors="coerce").astype(float)
    wrong = ((text != "") & ~np.isfinite(found)).to_numpy()
    if wrong.any():
        _refuse(cells, table, wrong, "is not a number")
    return found


def _refuse(cells: pd.Series, table: Path, wrong: npt.NDArray[np.bool_], why: str) -> None:
    first = int(np.flatnonzero(wrong)[0])
    raise DataError(
        f"{table}: {cells.index.name} {cells.index[first]}: column {cells.name!r}: "
        f"{cells.iloc[first]!r} {why} ({int(wrong.sum())} such cells)"
    )


def has_control(text: str) -> bool:
    """Whether a text holds control characters or undecoded bytes, which digests of ids cannot carry."""
    return any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def unsafe(path: str, top: Path) -> str:
    """Why a path from a table is not followed below `top` (resolved); empty when it is safe."""
    if "\\" in path:
        return "holds a backslash; write it with /"
    if path.startswith("/") or path[1:2] == ":":
        return "is absolute; write it relative to the data folder"
    if ".." in path.split("/"):
        return "holds '..'; write it relative to the data folder"
    if not (top / path).resolve().is_relative_to(top):
        return "is a link that leaves the data folder; point --data at the real folder"
    return ""
