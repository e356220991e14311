"""Images written for other tools: what is written is what is read again."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrbench.core.errors import CannotWriteError, DataError, UsageError
from cxrbench.data.export import export_images
from cxrbench.data.index import Index
from cxrbench.data.kermany import Kermany
from cxrbench.data.pixels import decode
from cxrbench.data.table import Table

SIDE = 48


def drawn(names: list[str]) -> Index:
    frame = pd.DataFrame(
        {
            "image_id": names,
            "patient_id": names,
            "path": "",
            "mass": [1.0, 0.0, np.nan][: len(names)],
        }
    )
    return Index("films", frame, ("mass",))


def flat(row: int) -> np.ndarray:
    return np.full((SIDE, SIDE), 10 * row, np.uint8)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    root = Kermany.fake(tmp_path / "raw", images=40, size=SIDE)
    index = Kermany.read_index(root, Kermany.Params())
    parts = Kermany.make_split("official", index).parts(index, 0)
    out = tmp_path / "out"
    export_images(index, parts, lambda row: Kermany.read_image(index, row, SIDE), out)
    again = Table.read_index(out, Table.Params())
    np.testing.assert_array_equal(again.targets, index.targets)
    np.testing.assert_array_equal(again.image_ids, index.image_ids)
    np.testing.assert_array_equal(again.patient_ids, index.patient_ids)
    np.testing.assert_array_equal(Table.make_split("given", again).parts(again, 0), parts)
    for row in range(len(index)):
        np.testing.assert_array_equal(decode(again.path(row)), Kermany.read_image(index, row, SIDE))


def test_unknown_labels_are_blank_and_masks_stand_beside(tmp_path: Path) -> None:
    out = export_images(
        drawn(["a", "b/c.png", "d.jpg"]),
        np.array(["train", "none", "test"], dtype=object),
        flat,
        tmp_path / "out",
        read_mask=lambda row: np.full((SIDE, SIDE), 255, np.uint8),
    )
    table = pd.read_csv(out / "table.csv", dtype=str, keep_default_na=False)
    assert list(table["mass"]) == ["1", "0", ""]
    assert list(table["split"]) == ["train", "", "test"]
    assert list(table["path"]) == ["images/a.png", "images/b/c.png", "images/d.jpg.png"]
    assert {p.relative_to(out / "masks") for p in out.rglob("masks/**/*.png")} == {
        p.relative_to(out / "images") for p in out.rglob("images/**/*.png")
    }


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        export_images(drawn(["a"]), None, flat, tmp_path)


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/x", "a\\b", "a//b", "a\0b"])
def test_ids_that_would_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no name for a file"):
        export_images(drawn([name]), None, flat, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [["a", "a.png"], ["Film", "film"]])
def test_two_images_are_never_one_file(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two images would be written as"):
        export_images(drawn(names), None, flat, tmp_path / "out")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def broken(row: int) -> np.ndarray:
        if row:
            raise OSError(28, "No space left on device")
        return flat(row)

    with pytest.raises(CannotWriteError, match="No space left"):
        export_images(drawn(["a", "b"]), None, broken, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
