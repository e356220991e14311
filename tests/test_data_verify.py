"""`data verify` and `splits verify`: each planted fault is found and named, and clean data give nothing."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from conftest import Cli
from PIL import Image

from cxrbench.cli import data as commands
from cxrbench.core.errors import DataError
from cxrbench.core.store import Store
from cxrbench.data.base import CxrDataset, Problem
from cxrbench.data.index import Index, content_hashes
from cxrbench.data.painter import paint_image, sample_cohort
from cxrbench.data.splits import Split, find_split, stratified_parts
from cxrbench.data.thumbnails import Thumbnails, write_thumbnails
from cxrbench.data.verify import verify_dataset, verify_split_of

NAMES = [f"{n}.png" for n in range(8)]


class Plain(CxrDataset):
    """Says one thing of its own."""

    name = "plain"
    splits = ("holdout",)

    @classmethod
    def make_split(cls, name, index):
        return stratified_parts(index, name, {"train": 0.5, "val": 0.25, "test": 0.25})

    @classmethod
    def check(cls, index):
        return [Problem("info", "checked", (str(len(index)),))]


class Masked(Plain):
    """Has masks beside its images."""

    name = "masked"
    has_masks = True
    masks: ClassVar[dict[int, Any]] = {}

    @classmethod
    def read_mask(cls, index, row, size):
        mask = cls.masks.get(row, 255 * np.eye(size, dtype=np.uint8))
        if isinstance(mask, Exception):
            raise mask
        return np.full((size, size), mask, np.uint8) if isinstance(mask, int) else mask


@pytest.fixture
def index(tmp_path) -> Index:
    """Eight different films of four patients."""
    root = tmp_path / "films"
    root.mkdir()
    for n, name in enumerate(NAMES):
        noise = np.random.default_rng(n).integers(0, 255, (40, 30), dtype=np.uint8)
        Image.fromarray(noise).save(root / name)
    frame = pd.DataFrame(
        {
            "image_id": NAMES,
            "patient_id": list("aabbccdd"),
            "path": NAMES,
            "Mass": [1.0, 0, 1, 0, 1, 0, np.nan, 0],
        }
    )
    return Index("plain", frame, ("Mass",), root)


def found(index: Index, cls: type[CxrDataset] = Plain, **how: Any) -> dict[str, Problem]:
    """By the first words of what was found."""
    problems = verify_dataset(cls, index, **how)
    assert problems[-1].what == "checked"
    return {problem.what.partition(";")[0]: problem for problem in problems[:-1]}


def copy(index: Index, source: int, target: int) -> None:
    shutil.copy(index.path(source), index.path(target))


def dim(index: Index, source: int, target: int) -> None:
    """The target becomes the source's image, darker and as another file."""
    image = np.asarray(Image.open(index.path(source)))
    Image.fromarray((image * 0.8 + 3).astype(np.uint8)).save(index.path(target))


def split_of(**parts: str) -> Split:
    return Split.of("plain", "s", "", pd.Series(parts))


APART = split_of(a="val", b="train", c="test", d="test")


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


def test_links_to_nowhere_are_missing(index, tmp_path: Path):
    index.path(0).unlink()
    index.path(0).symlink_to(tmp_path / "nowhere.png")
    assert found(index)["files are missing"].count == 1


def test_drawn_data_have_nothing_to_look_for(index):
    drawn = Index("plain", index.frame.assign(path=""), index.labels)
    assert found(drawn) == {}
    with mock.patch.object(Masked, "masks", {0: DataError("looked at")}):
        assert found(drawn, Masked) == {}


# --- duplicates


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


def test_near_duplicates_are_of_one_patient_or_of_two(index):
    dim(index, 0, 1)
    dim(index, 2, 4)
    problems = found(index)
    of_one = problems["nearly identical images of one patient"]
    assert (of_one.severity, of_one.names) == (
        "info",
        ("0.png (patient a) ~ 1.png (patient a) (1.00 alike)",),
    )
    of_two = problems["nearly identical images of different patients"]
    assert (of_two.severity, of_two.names) == (
        "warning",
        ("2.png (patient b) ~ 4.png (patient c) (1.00 alike)",),
    )
    assert len(problems) == 2


def test_images_too_even_to_compare_are_named(index):
    random = np.random.default_rng(0)
    for row in (0, 5):
        even = random.integers(90, 92, (40, 40), dtype=np.uint8)
        Image.fromarray(even).save(index.path(row))
    problems = found(index)
    assert set(problems) == {"images too even to be compared with others"}
    assert problems.popitem()[1].names == ("0.png", "5.png")


def test_an_ended_search_is_told(index):
    for row in range(8):
        dim(index, row - row % 2, row)
    with mock.patch("cxrbench.data.duplicates.MOST_CANDIDATES", 2):
        problems = found(index)
    assert problems["the search for near duplicates was ended: far too many images look alike"]


# --- splits


@pytest.mark.parametrize("plant", [copy, dim])
@pytest.mark.parametrize(("part", "leaks"), [("train", False), ("test", True), ("none", False)])
def test_duplicates_across_parts_are_errors(index, plant, part, leaks):
    plant(index, 2, 4)
    split = split_of(a="val", b="train", c=part, d="test")
    problems = found(index, split=split)
    word, sign, how = ("identical", "=", "") if plant is copy else ("nearly identical", "~", None)
    leak = problems.get(f"leak: {word} images in two parts of the split")
    assert (leak is not None) == leaks
    if leak:
        assert leak.severity == "error"
        name = f"2.png (patient b, train) {sign} 4.png (patient c, test)"
        assert leak.names == (name + (" (1.00 alike)" if how is None else how),)


def test_images_in_no_part_are_not_named(index):
    copy(index, 2, 4)
    copy(index, 2, 6)
    split = split_of(a="val", b="train", c="test", d="none")
    leak = found(index, split=split)["leak: identical images in two parts of the split"]
    assert leak.names == ("2.png (patient b, train) = 4.png (patient c, test)",)


def test_folds_are_parts(index):
    copy(index, 2, 4)
    split = split_of(a=0, b=1, c=2, d=1)
    leak = found(index, split=split)["leak: identical images in two parts of the split"]
    assert leak.names == ("2.png (patient b, fold 1) = 4.png (patient c, fold 2)",)
    assert "leak: identical" not in str(found(index, split=split_of(a=0, b=1, c=1, d=2)))


def test_groups_in_two_parts_are_leaks(index):
    group = ["", "", "g", "g", "g", "g", np.nan, np.nan]
    grouped = Index("plain", index.frame.assign(group_id=group), index.labels, index.root)
    problems = found(grouped, split=APART)
    leak = problems["leak: groups of patients (group_id) in two parts of the split"]
    assert (leak.severity, leak.names) == ("error", ("g",))
    together = found(grouped, split=split_of(a="val", b="train", c="train", d="test"))
    assert "leak" not in str(together)
    left_out = found(grouped, split=split_of(a="val", b="train", c="none", d="test"))
    assert "leak" not in str(left_out)


def test_patients_without_a_group_are_no_group(index):
    group = ["", "", "", "", *[np.nan] * 4]
    loose = Index("plain", index.frame.assign(group_id=group), index.labels, index.root)
    parts = split_of(a="val", b="train", c="train", d="test")
    assert "leak" not in str(found(loose, split=parts))


def test_a_patient_in_two_parts_is_a_leak(index):
    """A Split cannot say so; whatever comes after it must not believe it."""

    class Torn(Split):
        def assigned(self, index):
            return np.array(["train", "test", *["val"] * 6], dtype=object)

    problems = found(index, split=Torn("plain", "s", "", APART.assignment))
    leak = problems["leak: patients in two parts of the split"]
    assert (leak.severity, leak.names) == ("error", ("a",))


def test_labels_without_a_positive_are_told_by_part(index):
    problems = found(index, split=split_of(a="train", b="val", c="train", d="test"))
    lacking = problems["labels that cannot be scored in a part"]
    assert (lacking.severity, lacking.names) == ("warning", ("test: no positive of Mass",))


def opened(index: Index, tmp_path: Path) -> tuple[Split, dict[str, Any], list[str], Path]:
    store = Store(tmp_path / "store")
    contents = content_hashes(index, tmp_path / "hashes.parquet")
    split, facts = find_split(Plain, index, "holdout", index.revision(contents), store)
    return split, facts, contents, tmp_path / "thumbnails.parquet"


def audit(index: Index, *about: Any) -> dict[str, Problem]:
    problems = verify_split_of(index, *about)
    return {problem.what.partition(";")[0]: problem for problem in problems}


def test_a_split_is_checked_without_reading_an_image(index, tmp_path):
    split, facts, contents, memory = opened(index, tmp_path)
    part = split.assigned(index)
    other = int(np.flatnonzero(part != part[0])[0])
    dim(index, 0, other)
    contents = content_hashes(index, tmp_path / "hashes.parquet")
    unchecked = "near duplicates not checked: run `cxrbench data verify` once"
    before = audit(index, split, facts, contents, memory)
    assert (before[unchecked].severity, before[unchecked].count) == ("info", 8)
    assert not any(problem.severity == "error" for problem in before.values())
    verify_dataset(Plain, index, split=split, contents=contents, memory=memory)
    with mock.patch.object(Plain, "read_image", side_effect=AssertionError):
        after = audit(index, split, facts, contents, memory)
    assert unchecked not in after
    leak = after["leak: nearly identical images in two parts of the split"]
    assert leak.severity == "error"
    assert NAMES[other] in leak.names[0]
    new = ["new", *contents[1:]]
    partly = audit(index, split, facts, new, memory)
    assert partly[
        "images not compared with others: unreadable, or new since `cxrbench data verify`"
    ].names == ("0.png",)


def test_a_split_for_other_images_is_an_error_and_one_for_more_is_not(index, tmp_path):
    split, facts, contents, memory = opened(index, tmp_path)
    broken = {**facts, "differences": ["part test, images: 3, promised 2"]}
    problem = audit(index, split, broken, contents, memory)["not as the split's file promises"]
    assert (problem.severity, problem.names) == ("error", ("part test, images: 3, promised 2",))
    part = {**broken, "coverage": {"present": 8, "promised": 9}}
    assert audit(index, split, part, contents, memory)["a part of the whole"].severity == "info"


# --- masks


def test_bad_masks_are_named(index):
    index.path(5).write_bytes(b"")
    masks = {1: DataError("m1.png: torn"), 2: 0, 3: 255, 5: 0}
    with mock.patch.object(Masked, "masks", masks):
        problems = found(index, Masked)
        assert found(index, Masked, deep=False) == {}
    assert problems["masks cannot be read"].names == ("1.png (m1.png: torn)",)
    empty = problems["masks are empty or cover the whole image"]
    assert empty.names == ("2.png (every pixel is 0)", "3.png (every pixel is 255)")
    assert {p.severity for p in problems.values()} == {"error"}
    assert "images cannot be read" in problems
    assert len(problems) == 3
    assert set(found(index, Masked)) == {"images cannot be read"}


# --- memory


def test_what_was_seen_is_not_read_again(index, tmp_path):
    dim(index, 2, 4)
    index.path(6).write_bytes(b"torn")
    hashes, memory = tmp_path / "hashes.parquet", tmp_path / "cache" / "thumbnails.parquet"
    contents = content_hashes(index, hashes)
    first = found(index, contents=contents, memory=memory)
    read = []
    plain = Plain.read_image.__func__

    def counting(cls, index, row, size):
        read.append(row)
        return plain(cls, index, row, size)

    with mock.patch.object(Plain, "read_image", classmethod(counting)):
        assert found(index, contents=contents, memory=memory) == first
        assert read == [6]  # what cannot be read is not remembered
        copy(index, 0, 1)
        again = content_hashes(index, hashes)
        assert "identical images of one patient" in found(index, contents=again, memory=memory)
        Image.fromarray(np.eye(40, dtype=np.uint8) * 200).save(index.path(1))
        read.clear()
        found(index, contents=content_hashes(index, hashes), memory=memory)
        assert sorted(read) == [1, 6]
        read.clear()
        found(index, contents=contents, memory=memory, fresh=True)
        assert sorted(read) == list(range(8))


def test_fresh_reading_trusts_no_remembered_thumbnail(index, tmp_path):
    memory = tmp_path / "thumbnails.parquet"
    contents = content_hashes(index, tmp_path / "hashes.parquet")
    wrong = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    write_thumbnails(memory, Thumbnails(contents, np.stack([wrong] * 8)))
    assert found(index, contents=contents, memory=memory) != {}
    assert found(index, contents=contents, memory=memory, fresh=True) == {}
    assert found(index, contents=contents, memory=memory) == {}


def test_fresh_reading_finds_files_that_changed_unseen(index, tmp_path):
    hashes, memory = tmp_path / "hashes.parquet", tmp_path / "thumbnails.parquet"
    contents = content_hashes(index, hashes)
    assert found(index, contents=contents, memory=memory) == {}
    before = index.path(3).stat()
    data = bytearray(index.path(3).read_bytes())
    data[-1] ^= 1
    index.path(3).write_bytes(data)
    os.utime(index.path(3), ns=(before.st_atime_ns, before.st_mtime_ns))
    contents = content_hashes(index, hashes)
    assert found(index, contents=contents, memory=memory) == {}
    changed = found(index, contents=contents, memory=memory, fresh=True)
    problem = changed[
        "files have other contents than when they were hashed, at the same size and time"
    ]
    assert (problem.severity, problem.names) == ("error", ("3.png",))


def test_an_interruption_keeps_what_was_read(index, tmp_path):
    memory = tmp_path / "thumbnails.parquet"
    contents = content_hashes(index, tmp_path / "hashes.parquet")
    plain = Plain.read_image.__func__

    def interrupted(cls, index, row, size):
        if row == 5:
            raise KeyboardInterrupt
        return plain(cls, index, row, size)

    with (
        mock.patch.object(Plain, "read_image", classmethod(interrupted)),
        pytest.raises(KeyboardInterrupt),
    ):
        verify_dataset(Plain, index, contents=contents, memory=memory)
    with mock.patch.object(Plain, "read_image", side_effect=DataError("read again")):
        problems = found(index, contents=contents, memory=memory)
    again = {name.split(" ")[0] for name in problems["images cannot be read"].names}
    assert not again & {f"{n}.png" for n in range(5)}


# --- the command line


def write_table(root: Path, films: dict[str, bytes], splits: dict[str, str]) -> list[object]:
    """Films of a patient each, and the words that name them as a data set."""
    root.mkdir()
    rows = ["path,patient_id,split,Mass"]
    for n, (name, data) in enumerate(films.items()):
        (root / name).write_bytes(data)
        rows.append(f"{name},p{n},{splits[name]},{n % 2}")
    (root / "films.csv").write_text("\n".join(rows))
    return ["--dataset", "table", "--data", root, "--split", "given"]


def packed(film: np.ndarray, **how: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(film).save(stream, **how)
    return stream.getvalue()


@pytest.fixture
def leaky(tmp_path: Path) -> list[object]:
    """Six copies of train films among the test films, re-encoded, darker and smaller."""
    films, splits = {}, {}
    for n, study in enumerate(sample_cohort(24, seed=9)):
        film = paint_image(study, 160)
        part = ("train", "val")[n % 2]
        films[f"{n}.png"], splits[f"{n}.png"] = packed(film, format="PNG"), part
        if n < 6:
            small = np.asarray(Image.fromarray(film).resize((100, 100)))
            copied = (small * 0.85).astype(np.uint8)
            films[f"copy{n}.jpg"] = packed(copied, format="JPEG", quality=50)
            splits[f"copy{n}.jpg"] = "test"
    return write_table(tmp_path / "leaky", films, splits)


def test_a_leak_is_65_with_all_names(cli: Cli, leaky):
    code, out, _ = cli("splits", "verify", *leaky, "--json")
    assert code == 0
    assert "near duplicates not checked: run `cxrbench data verify` once" in out
    for words in (("data", "verify"), ("splits", "verify")):
        code, out, err = cli(*words, *leaky, "--json")
        assert code == 65, err
        found = json.loads(out)
        (leak,) = [p for p in found["problems"] if p["what"].startswith("leak")]
        assert (leak["severity"], leak["count"], len(leak["names"])) == ("error", 6, 6)
        for n, name in enumerate(sorted(leak["names"], key=lambda name: name.split(" ~ "))):
            assert f"copy{n}.jpg (patient " in name
            assert f"{n}.png (patient " in name
            assert ", test)" in name
        assert found["counts"]["test"]["images"] == 6
        assert found["counts"]["train"]["positives"].keys() == {"Mass"}
        assert (found["split"], found["folds"], found["images"]) == ("given", 1, 30)
        assert found["notes"]["rows"] == 30
        code, out, _ = cli(*words, *leaky)
        assert code == 65
        assert "copy0.jpg" in out
        assert "… and 3 more" in out
        assert out.splitlines()[-1] == "1 error; --json lists every name"


def test_identical_files_across_parts_are_a_leak_at_once(cli: Cli, tmp_path):
    films = {f"{n}.png": packed(paint_image(s, 64), format="PNG") for n, s in studies(6)}
    films["copy.png"] = films["0.png"]
    parts = ("train", "train", "val", "val", "test", "test", "test")
    words = write_table(tmp_path / "t", films, dict(zip(films, parts, strict=True)))
    code, out, _ = cli("splits", "verify", *words, "--json")
    assert code == 65
    leaks = [p for p in json.loads(out)["problems"] if p["severity"] == "error"]
    assert "0.png (patient p0, train) = copy.png (patient p6, test)" in str(leaks)


def studies(count: int):
    return enumerate(sample_cohort(count, seed=2))


def test_sound_data_are_0_and_tell_counts_and_notes(cli: Cli, tmp_path):
    films = {f"{n}.png": packed(paint_image(s, 64), format="PNG") for n, s in studies(12)}
    parts = dict(zip(films, ("train", "val", "test") * 4, strict=True))
    words = write_table(tmp_path / "t", films, parts)
    code, out, _ = cli("data", "verify", *words)
    assert code == 0, out
    assert "table: 12 images of 12 patients" in out
    assert "rows: 12" in out
    assert out.splitlines()[-1] == "no error; the split is as promised"
    code, out, _ = cli("splits", "verify", *words)
    assert code == 0
    assert "not checked" not in out
    assert "what was found" not in out


def test_names_of_files_cannot_command_a_terminal(cli: Cli, tmp_path, capsys):
    films = {f"{n}[red].png": packed(paint_image(s, 64), format="PNG") for n, s in studies(6)}
    parts = dict(zip(films, ("train", "val", "test") * 2, strict=True))
    words = write_table(tmp_path / "t", films, parts)
    (tmp_path / "t" / "0[red].png").write_bytes(b"\x1b[2J")
    code, out, _ = cli("data", "verify", *words)
    assert code == 65
    assert "0[red].png" in out
    assert "\x1b" not in out
    hostile = Problem("error", "what\x1b[2J", ("name\x1b[2J",))
    commands._print_table(commands._problem_table([hostile]))
    assert "\x1b" not in capsys.readouterr().out


def test_fresh_reads_all_files_again(cli: Cli, leaky):
    from cxrbench.data.table import Table

    cli("data", "verify", *leaky)
    with mock.patch.object(Table, "read_image", side_effect=DataError("read again")):
        assert "read again" not in cli("data", "verify", *leaky)[1]
        assert "read again" in cli("data", "verify", *leaky, "--fresh")[1]
