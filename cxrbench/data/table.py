"""Your own images: a CSV or Parquet table with a row an image, a column a label, a patient each."""

from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import parquet

from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.frozen import Frozen
from cxrbench.core.nearest import nearest
from cxrbench.data.base import CxrDataset, DataParams, Problem
from cxrbench.data.cells import Blank, Uncertain, has_control, label_names, marks, numbers, unsafe
from cxrbench.data.csvfile import at, need_column, read_csv, some
from cxrbench.data.fakes import fake_patients, pick_variant, write_film
from cxrbench.data.index import Index
from cxrbench.data.painter import Study
from cxrbench.data.splits import PARTS, Split

SUFFIXES = (".csv", ".csv.gz", ".parquet")
# A few kilobytes of Parquet can promise billions of equal cells.
MOST_CELLS = 100_000_000


class TableParams(DataParams):
    """Which table, which columns are labels, and what -1 and blank cells mean."""

    table: str = ""
    labels: list[str] | None = None
    uncertain: Uncertain = "unknown"
    blank: Blank = "unknown"


class Table(CxrDataset):
    """A table with `patient_id`, `path` (or `image`) below the data folder, and label columns.

    Optional: `image_id`, `split` (train, val, test), `group_id` (patients that must stay together),
    `sex`, `age`, `view_position`.
    """

    name = "table"
    Params = TableParams
    splits = ("holdout", "cv5", "given")
    variants = ("csv", "parquet")

    @classmethod
    def read_index(cls, root: Path | None, params: Frozen) -> Index:
        """All rows of the table; a row that cannot be used is an error that names its line."""
        assert isinstance(params, TableParams)
        if root is not None and root.is_file():
            table, root = root, root.parent
        else:
            root = cls.require_root(root)
            table = _find_table(root, params.table)
        packed = table.suffix.lower() == ".parquet"
        raw = _read_parquet(table) if packed else read_csv(table)
        patients = need_column(raw, table, "patient_id")
        paths = need_column(raw, table, "path", "image")
        ids = next((c for c in ("image_id", "image") if c in raw.columns), paths)
        labels = label_names(raw, table, params.labels)
        frame = pd.DataFrame(
            {"image_id": raw[ids], "patient_id": raw[patients], "path": raw[paths]}
        )
        _check_words(frame, table)
        _check_files(frame, table, root)
        for label in labels:
            frame[label] = marks(raw[label], table, uncertain=params.uncertain, blank=params.blank)
        for extra in ("sex", "view_position", "group_id", "split"):
            if extra in raw.columns:
                frame[extra] = raw[extra]
        if "age" in raw.columns:
            frame["age"] = numbers(raw["age"], table)
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
        """A table with four labels, some of them uncertain or blank, and its images.

        `csv` is what a spreadsheet leaves of one, beside images in several formats; `parquet` has typed
        columns with nulls.
        """
        variant = pick_variant(variant, cls.variants)
        rows: list[dict[str, object]] = []
        for i, studies in enumerate(fake_patients(images, seed)):
            for study in studies:
                path, mode, height = _FORMS.get(len(rows), ("images/{}.png", "L", 1.0))
                path = path.format(study.image_id.removesuffix(".png"))
                write_film(study, root / path, size, mode, round(size * height))
                rows.append({"path": path, "patient_id": study.patient_id, **_cells(study, i)})
        frame = pd.DataFrame(rows)
        if variant == "csv":
            text = frame.to_csv(index=False, lineterminator=",\r\n", float_format="%.0f")
            (root / "films.csv").write_bytes(text.encode("utf-8-sig"))
        else:
            typed = frame.astype({"patient_id": int, "sex": "category"})
            typed["Effusion"] = typed["Effusion"] == 1
            # As a table is kept that was filtered: its old row numbers come along.
            typed.set_axis(range(5, 5 + len(typed))).to_parquet(root / "films.parquet")
        return root


# Path, Pillow mode and height of the miniature's first images: what a folder of films may hold.
_FORMS = {
    0: ("images/{}.png", "RGBA", 1.0),
    1: ("images/Thorax, längs/{} a.JPG", "RGB", 1.0),
    2: ("images/{}.jpeg", "L", 0.75),
}
_LABELS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration")


def _cells(study: Study, patient: int) -> dict[str, object]:
    """The cells of a row of the miniature, besides path and patient."""
    marks: dict[str, float] = {label: float(label in dict(study.findings)) for label in _LABELS}
    if patient % 7 == 6:
        marks |= {"Atelectasis": -1.0, "Cardiomegaly": np.nan}
    return {
        "split": ("train", "val", "train", "test", "train")[patient % 5],
        # Two patients of the training part, to be kept together.
        "group_id": "siblings" if patient in (0, 2) else None,
        "sex": study.sex,
        "age": study.age if patient else np.nan,
        "view_position": study.view_position,
        **marks,
    }


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
        head = parquet.read_metadata(path)
        if (cells := head.num_rows * head.num_columns) > MOST_CELLS:
            raise DataError(
                f"{path}: {cells:,} cells, over {MOST_CELLS:,}; keep the columns needed"
            )
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a Parquet table ({error})") from None
    if frame.empty:
        raise DataError(f"{path}: no rows")
    text = frame.astype(object).where(frame.notna(), "").map(_as_text)
    text.columns = pd.Index([str(name) for name in frame.columns])
    text.index = pd.RangeIndex(1, len(text) + 1, name="row")
    return text


def _as_text(value: object) -> str:
    return str(int(value) if isinstance(value, bool | np.bool_) else value)


def _check_words(frame: pd.DataFrame, table: Path) -> None:
    """Refuse blank or unprintable ids, and images or files that stand twice."""
    for column in ("path", "image_id", "patient_id"):
        values = frame[column]
        bad = values[values.map(lambda text: not text.strip() or has_control(text))]
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


def _check_files(frame: pd.DataFrame, table: Path, root: Path) -> None:
    """Refuse paths that leave `root`, and tell all files that are missing."""
    top = root.resolve()
    missing = []
    for line, path in frame["path"].items():
        if reason := unsafe(path, top):
            raise DataError(f"{table}: {at(frame, line)}: path {path!r} {reason}")
        if not (root / path).is_file():
            missing.append(f"{path} ({at(frame, line)})")
    if missing:
        every = "\n  ".join(missing)
        raise DataError(
            f"{table}: {len(missing):,} of {len(frame):,} files are not below {root}:\n  {every}\n"
            f"add the files or remove their rows"
        )
