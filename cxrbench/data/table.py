"""Your own images: a CSV or Parquet table with a row an image, a column a label, a patient each."""

import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.core.nearest import nearest
from cxrbench.data.base import CxrDataset, DataParams, Problem
from cxrbench.data.csvfile import at, need_column, read_csv, some
from cxrbench.data.fakes import fake_patients, write_film
from cxrbench.data.index import ATTRIBUTES, Index
from cxrbench.data.splits import PARTS, Split

SUFFIXES = (".csv", ".csv.gz", ".parquet")
RESERVED = {
    *("image", "image_id", "path", "patient_id", "group_id", "split", "fold"),
    *ATTRIBUTES,
}


class TableParams(DataParams):
    """Which table, which columns are labels, and what -1 and blank cells mean."""

    table: str = ""
    labels: list[str] | None = None
    uncertain: Literal["unknown", "positive", "negative"] = "unknown"
    blank: Literal["unknown", "negative"] = "unknown"


class Table(CxrDataset):
    """A table with `patient_id`, `path` (or `image`) below the data folder, and label columns.

    Optional: `image_id`, `split` (train, val, test), `group_id` (patients that must stay together),
    `sex`, `age`, `view_position`.
    """

    name = "table"
    Params = TableParams
    splits = ("holdout", "cv5", "given")

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        """All rows of the table; a row that cannot be used is an error that names its line."""
        assert isinstance(params, TableParams)
        if root is not None and root.is_file():
            table, root = root, root.parent
        else:
            root = cls.require_root(root)
            table = _find_table(root, params.table)
        raw = _read_parquet(table) if table.suffix == ".parquet" else read_csv(table)
        patients = need_column(raw, table, "patient_id")
        paths = need_column(raw, table, "path", "image")
        ids = next((c for c in ("image_id", "image") if c in raw.columns), paths)
        labels = _label_names(raw, table, params.labels)
        frame = pd.DataFrame(
            {"image_id": raw[ids], "patient_id": raw[patients], "path": raw[paths]}
        )
        _check_words(frame, table)
        _check_files(frame, table, root)
        for label in labels:
            frame[label] = _marks(raw[label], table, params)
        for extra in ("sex", "view_position", "group_id", "split"):
            if extra in raw.columns:
                frame[extra] = raw[extra]
        if "age" in raw.columns:
            frame["age"] = _numbers(raw["age"], table)
        notes = {"table": table.name, "rows": len(frame)}
        return Index(cls.name, frame.reset_index(drop=True), tuple(labels), root, notes)

    @classmethod
    def make_split(cls, name: str, index: Index) -> Split:
        """`given` is the table's own `split` column; it must keep patients together."""
        if name != "given":
            return super().make_split(name, index)
        where = f"{index.root}/{index.notes['table']}"
        if "split" not in index.frame.columns:
            raise MissingInputError(
                f"{where}: no column 'split'; use --split holdout or --split cv5"
            )
        pairs = index.frame[["patient_id", "split"]].drop_duplicates()
        if wrong := sorted(set(pairs["split"]) - set(PARTS)):
            raise DataError(f"{where}: split {wrong[0]!r}; {nearest(wrong[0], PARTS)}")
        if lacking := [part for part in PARTS if part not in set(pairs["split"])]:
            raise DataError(
                f"{where}: no row has split {lacking[0]!r}; a split needs {', '.join(PARTS)}"
            )
        torn = sorted(set(pairs["patient_id"][pairs["patient_id"].duplicated()]))
        if torn:
            raise DataError(
                f"{where}: {len(torn)} patients stand in two parts: {some(torn)}; give each patient one "
                "part, or use --split holdout"
            )
        rule = "The table's own column `split`."
        return Split.of(cls.name, name, rule, pairs.set_index("patient_id")["split"])

    @classmethod
    def check(cls, index: Index) -> list[Problem]:
        """Labels with one value only, which no score is defined for."""
        problems = []
        for k, label in enumerate(index.labels):
            known = index.targets[:, k][~np.isnan(index.targets[:, k])]
            if len(set(known)) == 1:
                problems.append(
                    Problem("warning", f"every known value is {known[0]:.0f}", (label,))
                )
        return problems

    @classmethod
    def fake(
        cls, root: Path, *, images: int = 60, size: int = 64, seed: int = 0, variant: str = ""
    ) -> Path:
        """A CSV with four labels, some of them uncertain or blank, and its images."""
        labels = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration")
        rows = [",".join(("path", "patient_id", "split", "sex", "age", "view_position", *labels))]
        for i, studies in enumerate(fake_patients(images, seed)):
            part = ("train", "val", "train", "test", "train")[i % 5]
            for study in studies:
                path = f"images/{study.image_id}"
                write_film(study, root / path, size)
                shown = dict(study.findings)
                marks = ["1" if label in shown else "0" for label in labels]
                if i % 7 == 6:
                    marks[0], marks[1] = "-1", ""
                who = (study.patient_id, part, study.sex, str(study.age), study.view_position)
                rows.append(",".join((path, *who, *marks)))
        (root / "films.csv").write_text("\n".join(rows) + "\n")
        return root


def _find_table(root: Path, given: str) -> Path:
    if given:
        path = root / given
        if not path.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{path}: outside {root}; pass the table itself as --data")
        if not path.is_file():
            hint = nearest(given, [p.name for p in _tables(root)])
            raise MissingInputError(f"{path}: no such table (data.table); {hint}")
        return path
    tables = _tables(root)
    if len(tables) == 1:
        return tables[0]
    names = ", ".join(p.name for p in tables) or "none"
    raise MissingInputError(
        f"{root}: expected one table (.csv or .parquet), found {names}; choose: --set data.table=NAME"
    )


def _tables(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.name.lower().endswith(SUFFIXES) and p.is_file())


def _read_parquet(path: Path) -> pd.DataFrame:
    """The table as text, blank where it holds nothing, indexed by row from 1."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a Parquet table ({error})") from None
    if frame.empty:
        raise DataError(f"{path}: no rows")
    text = frame.astype(object).where(frame.notna(), "").map(str)
    text.columns = pd.Index([str(name) for name in frame.columns])
    text.index = pd.RangeIndex(1, len(text) + 1, name="row")
    return text


def _label_names(raw: pd.DataFrame, table: Path, given: list[str] | None) -> list[str]:
    labels = [str(c) for c in raw.columns if c not in RESERVED] if given is None else given
    for label in labels:
        need_column(raw, table, label)
        if label in RESERVED:
            raise DataError(f"{table}: {label!r} cannot be a label (data.labels); it is reserved")
    if not labels:
        raise DataError(f"{table}: no label column beside {', '.join(map(str, raw.columns))}")
    return labels


def _check_words(frame: pd.DataFrame, table: Path) -> None:
    """Refuse blank or unprintable ids, and images or files that stand twice."""
    for column in ("path", "image_id", "patient_id"):
        values = frame[column]
        bad = values[values.map(lambda text: not text.strip() or _has_control(text))]
        if len(bad):
            raise DataError(
                f"{table}: {at(frame, bad.index[0])}: {column} {bad.iloc[0]!r} is blank or holds control "
                f"characters ({len(bad)} such rows)"
            )
    for column in ("path", "image_id"):
        twice = frame[column][frame[column].duplicated(keep=False)]
        if len(twice):
            lines = some([str(line) for line in twice.index[twice == twice.iloc[0]]])
            raise DataError(
                f"{table}: {twice.nunique()} values of {column} stand twice, such as "
                f"{twice.iloc[0]!r} in lines {lines}; keep one row an image"
            )


def _has_control(text: str) -> bool:
    return any(unicodedata.category(letter) == "Cc" for letter in text)


def _check_files(frame: pd.DataFrame, table: Path, root: Path) -> None:
    """Refuse paths that leave `root`, and tell all files that are missing."""
    top = root.resolve()
    missing = []
    for line, path in frame["path"].items():
        if reason := _unsafe(path, top):
            raise DataError(f"{table}: {at(frame, line)}: path {path!r} {reason}")
        if not (root / path).is_file():
            missing.append(f"{path} ({at(frame, line)})")
    if missing:
        every = "\n  ".join(missing)
        raise DataError(
            f"{table}: {len(missing):,} of {len(frame):,} files are not below {root}:\n  {every}\n"
            f"add the files or remove their rows"
        )


def _unsafe(path: str, top: Path) -> str:
    """Why a path from a table is not followed; empty when it is safe."""
    if "\\" in path:
        return "holds a backslash; write it with /"
    if path.startswith("/") or path[1:2] == ":":
        return "is absolute; write it relative to the data folder"
    if ".." in path.split("/"):
        return "holds '..'; write it relative to the data folder"
    if not (top / path).resolve().is_relative_to(top):
        return "is a link that leaves the data folder; point --data at the real folder"
    return ""


def _marks(cells: pd.Series, table: Path, params: TableParams) -> npt.NDArray[np.float32]:
    """1, 0 and NaN [N] of a label column."""
    meaning = {"unknown": np.nan, "positive": 1.0, "negative": 0.0}
    values = {1.0: 1.0, 0.0: 0.0, -1.0: meaning[params.uncertain]}
    numbers = _numbers(cells, table).to_numpy()
    wrong = ~np.isin(numbers, list(values)) & ~np.isnan(numbers)
    if wrong.any():
        _refuse(cells, table, wrong, "is not 1, 0, -1 or blank")
    marks = np.full(len(numbers), meaning[params.blank], np.float32)
    for number, mark in values.items():
        marks[numbers == number] = mark
    if np.isnan(marks).all():
        raise DataError(
            f"{table}: column {cells.name!r} holds no known value; leave it out (data.labels)"
        )
    return marks


def _numbers(cells: pd.Series, table: Path) -> "pd.Series[float]":
    """Numbers of a column of text, NaN where it is blank."""
    text = cells.str.strip()
    numbers = pd.to_numeric(text, errors="coerce").astype(float)
    wrong = ((text != "") & ~np.isfinite(numbers)).to_numpy()
    if wrong.any():
        _refuse(cells, table, wrong, "is not a number")
    return numbers


def _refuse(cells: pd.Series, table: Path, wrong: npt.NDArray[np.bool_], why: str) -> None:
    first = int(np.flatnonzero(wrong)[0])
    raise DataError(
        f"{table}: {cells.index.name} {cells.index[first]}: column {cells.name!r}: "
        f"{cells.iloc[first]!r} {why} ({int(wrong.sum())} such cells)"
    )
