"""`data verify`: each planted fault is found and named, and clean data give nothing."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxrbench.data.base import CxrDataset, Problem
from cxrbench.data.index import Index
from cxrbench.data.splits import Split
from cxrbench.data.verify import verify_dataset

NAMES = [f"{n}.png" for n in range(8)]


class Plain(CxrDataset):
    """Says one thing of its own."""

    name = "plain"

    @classmethod
    def check(cls, index):
        return [Problem("info", "checked", (str(len(index)),))]


@pytest.fixture
def index(tmp_path) -> Index:
    """Eight different films of four patients."""
    for n, name in enumerate(NAMES):
        noise = np.random.default_rng(n).integers(0, 255, (40, 30), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    frame = pd.DataFrame(
        {
            "image_id": NAMES,
            "patient_id": list("aabbccdd"),
            "path": NAMES,
            "Mass": [1.0, 0, 1, 0, 1, 0, np.nan, 0],
        }
    )
    return Index("plain", frame, ("Mass",), tmp_path)


def found(index: Index, **how) -> dict[str, Problem]:
    problems = verify_dataset(Plain, index, **how)
    assert problems[-1].what == "checked"
    return {problem.what: problem for problem in problems[:-1]}


def copy(index: Index, source: int, target: int) -> None:
    shutil.copy(index.path(source), index.path(target))


def test_clean_data_give_only_the_data_sets_own_words(index):
    seen = []
    assert found(index, progress=lambda done, total: seen.append((done, total))) == {}
    assert seen[-1] == (8, 8)


def test_unusable_files_are_named_with_the_reason(index):
    data = index.path(1).read_bytes()
    index.path(1).write_bytes(data[: len(data) // 2])
    index.path(2).write_bytes(b"<html>404</html>")
    index.path(3).unlink()
    index.path(4).write_bytes(b"")
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(index.path(5))
    problems = found(index)
    unreadable = problems["images cannot be read"]
    assert (unreadable.severity, unreadable.count) == ("error", 3)
    assert [name.split(" ")[0] for name in unreadable.names] == ["1.png", "2.png", "4.png"]
    assert "truncated" in unreadable.names[0]
    assert "HTML page" in unreadable.names[1]
    assert "empty file" in unreadable.names[2]
    assert problems["files are missing"].names == ("3.png (no such file)",)
    assert problems["images show nothing: all pixels are equal"].names == (
        "5.png (every pixel is 7)",
    )
    assert len(problems) == 3


def test_shallow_looks_for_files_only(index):
    index.path(2).write_bytes(b"<html>404</html>")
    index.path(3).unlink()
    copy(index, 0, 7)
    assert set(found(index, deep=False)) == {"files are missing"}


def test_duplicates_are_sorted_by_what_they_do(index):
    copy(index, 0, 1)  # one patient, other label
    copy(index, 2, 4)  # two patients, same label
    problems = found(index)
    assert problems["identical images with different labels"].severity == "error"
    assert problems["identical images with different labels"].names == (
        "0.png (patient a) = 1.png (patient a)",
    )
    assert problems["identical images of one patient"].severity == "info"
    assert problems["identical images of different patients"].severity == "warning"
    assert problems["identical images of different patients"].names == (
        "2.png (patient b) = 4.png (patient c)",
    )
    assert len(problems) == 3


def test_unknown_is_another_label_than_negative(index):
    copy(index, 6, 7)
    assert "identical images with different labels" in found(index)


@pytest.mark.parametrize(("part", "leaks"), [("train", False), ("test", True)])
def test_duplicates_across_parts_are_errors(index, part, leaks):
    copy(index, 2, 4)
    parts = pd.Series({"a": "val", "b": "train", "c": part, "d": "test"})
    split = Split.of("plain", "s", "", parts)
    problems = found(index, split=split)
    assert ("identical images in two parts of the split" in problems) == leaks
    if leaks:
        assert problems["identical images in two parts of the split"].severity == "error"


def test_drawn_data_have_nothing_to_look_for(index):
    drawn = Index("plain", index.frame.assign(path=""), index.labels)
    assert found(drawn) == {}


def test_links_to_nowhere_are_missing(index, tmp_path: Path):
    index.path(0).unlink()
    index.path(0).symlink_to(tmp_path / "nowhere.png")
    assert found(index)["files are missing"].count == 1
