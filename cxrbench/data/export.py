"""Images of a view as PNG files with a table, for tools of other people.

What is written is read again by the data set `table`, and, where there are masks, by `lung_masks`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from cxrbench.core.columns import ATTRIBUTES
from cxrbench.core.errors import CannotWriteError, DataError, UsageError
from cxrbench.core.spreadsheet import inert
from cxrbench.data.index import Index

Grey = npt.NDArray[np.uint8]
TABLE = "table.csv"
EXTRA = (*ATTRIBUTES, "group_id", "licence")


def export_images(
    index: Index,
    parts: npt.NDArray[np.object_] | None,
    read: Callable[[int], Grey],
    out: Path,
    *,
    read_mask: Callable[[int], Grey] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `images/<image_id>.png`, `masks/` alike, and `table.csv`; the folder appears when whole.

    `parts` [N] (train, val, test, or anything else for none) becomes the column `split`. Raises
    UsageError when `out` exists, DataError for ids that are no file names.
    """
    if out.exists():
        raise UsageError(f"{out}: exists; give a folder that is not there yet")
    names = _file_names(index)
    work = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        for row, name in enumerate(names):
            _write(read(row), work / "images" / name)
            if read_mask:
                _write(read_mask(row), work / "masks" / name)
            if progress:
                progress(row + 1, len(names))
        _table(index, parts, names).to_csv(work / TABLE, index=False)
        work.rename(out)
    except OSError as error:
        raise CannotWriteError(f"{out}: cannot write ({error.strerror or error})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _file_names(index: Index) -> list[str]:
    names = []
    for image_id in index.image_ids:
        text = str(image_id)
        steps = text.split("/")
        if any(step in ("", ".", "..") or "\\" in step or "\0" in step for step in steps):
            raise DataError(f"{index.dataset}: image id {text!r} is no name for a file")
        names.append(text if text.lower().endswith(".png") else f"{text}.png")
    # Many disks do not tell capitals from small letters.
    folded = pd.Series(names).str.casefold()
    if twice := [names[i] for i in np.flatnonzero(folded.duplicated())]:
        raise DataError(f"{index.dataset}: two images would be written as {twice[0]}")
    return names


def _write(image: Grey, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _table(index: Index, parts: npt.NDArray[np.object_] | None, names: list[str]) -> pd.DataFrame:
    columns = {
        "path": [f"images/{name}" for name in names],
        "image_id": index.image_ids,
        "patient_id": index.patient_ids,
    }
    if parts is not None:
        columns["split"] = np.where(np.isin(parts, ("train", "val", "test")), parts, "")
    columns |= {name: index.frame[name] for name in EXTRA if name in index.frame.columns}
    labels = index.frame[list(index.labels)].astype("Int64")  # 1, 0 or blank
    table = pd.concat([pd.DataFrame(columns).map(inert), labels.reset_index(drop=True)], axis=1)
    return table.rename(columns=inert)
