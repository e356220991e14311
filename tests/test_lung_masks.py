"""Lung masks: every source's layout, films and masks of one geometry, and what is refused."""

import os
import shutil
import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrbench.core.errors import ConfigError, DataError, MissingInputError, UsageError
from cxrbench.core.store import Store
from cxrbench.data.index import Index, join_twins
from cxrbench.data.lung_fakes import MOST_JSRT, draw, first_studies
from cxrbench.data.lung_masks import LungMasks, LungMasksParams, thorax_box
from cxrbench.data.lung_pixels import (
    BORDER_GREY,
    JSRT_BYTES,
    JSRT_SIDE,
    inside_border,
    read_jsrt,
    read_masks,
)
from cxrbench.data.pixels import UnreadableImageError, resize
from cxrbench.data.splits import describe, find_split
from cxrbench.data.verify import verify_dataset

MC, SZ, MERGE = "MontgomerySet", "ChinaSet_AllFiles", "Lung Segmentation"


def read(root: Path, *sources: str) -> Index:
    return LungMasks.read_index(root, LungMasksParams(sources=list(sources) or None))


def write(path: Path, pixels) -> Path:
    """An image file of pixels or, for names alone, a file that holds its own name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        path.write_bytes(path.name.encode())
    else:
        Image.fromarray(np.asarray(pixels)).save(path)
    return path


def touch(root: Path, *names: str) -> None:
    for name in names:
        write(root / name, None)


def blob(height: int = 40, width: int = 40, at: tuple[int, int, int, int] = (10, 20, 8, 24)):
    """A mask: rows and columns of a rectangle."""
    mask = np.zeros((height, width), np.uint8)
    mask[at[0] : at[1], at[2] : at[3]] = 255
    return mask


def pair(root: Path, image, mask, stem: str = "a") -> Path:
    write(root / "images" / f"{stem}.png", image)
    return write(root / "masks" / f"{stem}.png", mask)


def told(index: Index) -> dict[str, tuple[str, int]]:
    return {p.what: (p.severity, p.count) for p in LungMasks.check(index)}


def raw_film(path: Path, values) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.asarray(values).astype(">u2").tofile(path)
    return path


# --- JSRT


def test_raw_films_are_big_endian_and_inverted(tmp_path):
    values = np.arange(JSRT_SIDE**2).reshape(JSRT_SIDE, JSRT_SIDE) % 4096
    grey = read_jsrt(raw_film(tmp_path / "JPCLN001.IMG", values))
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, np.rint((1 - values / 4096) * 255))
    assert grey[0, 0] == 255
    assert grey[0, 2047] == 128


@pytest.mark.parametrize("size", [0, 200, 2 * 1024**2, JSRT_BYTES - 2, JSRT_BYTES + 1])
def test_raw_films_of_another_size_are_refused(tmp_path, size):
    (tmp_path / "JPCNN007.IMG").write_bytes(b"\0" * size)
    with pytest.raises(UnreadableImageError, match=r"JPCNN007.IMG: .* bytes; .* has 8,388,608"):
        read_jsrt(tmp_path / "JPCNN007.IMG")


def test_raw_films_with_more_than_12_bits_are_refused(tmp_path):
    values = np.zeros(JSRT_SIDE**2)
    values[-1] = 4096
    with pytest.raises(UnreadableImageError, match=r"x.IMG: a value of 4096; .* 12 bit"):
        read_jsrt(raw_film(tmp_path / "x.IMG", values))
    with pytest.raises(UnreadableImageError, match="No such file"):
        read_jsrt(tmp_path / "absent.IMG")


def scr(name: str, side: str) -> str:
    return f"scratch/fold{1 if int(name[-3:]) % 2 else 2}/masks/{side} lung/{name}.gif"


def test_jsrt_joins_both_lungs_at_half_the_films_size(tmp_path):
    values = np.full((JSRT_SIDE, JSRT_SIDE), 4095)
    values[512:1024, 256:1792] = 0
    raw_film(tmp_path / "All247images" / "JPCLN002.IMG", values)
    write(tmp_path / scr("JPCLN002", "left"), blob(1024, 1024, (256, 512, 512, 896)))
    write(tmp_path / scr("JPCLN002", "right"), blob(1024, 1024, (256, 512, 128, 512)))
    write(tmp_path / "scratch/fold2/masks/heart/JPCLN002.gif", blob(1024, 1024, (0, 1024, 0, 9)))
    index = read(tmp_path)
    assert index.labels == ("nodule",)
    row = index.frame.iloc[0]
    assert (row["image_id"], row["patient_id"], row["nodule"]) == (
        "jsrt/JPCLN002",
        "jsrt:JPCLN002",
        1,
    )
    for size in (64, 100, 2048):
        image, mask = LungMasks.read_image(index, 0, size), LungMasks.read_mask(index, 0, size)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, np.where(image >= 128, 255, 0))
    assert thorax_box(mask) == (256 / 2048, 0.25, 1792 / 2048, 0.5)


def test_jsrt_labels_and_films_with_one_lung_only(tmp_path):
    names = ["JPCLN001", "JPCLN154", "JPCNN001", "JPCNN092"]
    for name in names:
        touch(tmp_path, f"{name}.IMG", *(scr(name, side) for side in ("left", "right")))
    (tmp_path / scr("JPCNN092", "left")).unlink()
    touch(tmp_path, scr("JPCLN003", "left"), "BJPCNN01.IMG")
    index = read(tmp_path)
    labels = dict(zip(index.image_ids, index.targets[:, 0], strict=True))
    assert labels == {"jsrt/JPCLN001": 1, "jsrt/JPCLN154": 1, "jsrt/JPCNN001": 0}
    problems = told(index)
    lacking = "jsrt: films without a mask (or with that of one lung only) are left out"
    assert problems[lacking] == ("warning", 1)
    assert problems["jsrt: masks have no film"] == ("warning", 1)
    assert problems["3 films of jsrt with a mask, published 247"] == ("warning", 244)


def test_a_mask_in_the_other_fold_is_an_error(tmp_path):
    for name in ("JPCLN001", "JPCLN002"):
        touch(tmp_path, f"{name}.IMG", *(scr(name, side) for side in ("left", "right")))
    shutil.move(tmp_path / scr("JPCLN002", "left"), tmp_path / scr("JPCLN001", "left"))
    touch(tmp_path, "scratch/fold1/masks/left lung/JPCLN002.gif")
    with pytest.raises(DataError, match=r"left lung/JPCLN002.gif: lies in fold1, .* in fold2"):
        read(tmp_path)


def test_masks_of_both_folds_in_one_folder_are_accepted(tmp_path):
    touch(tmp_path, "JPCNN002.img", "masks/left lung/JPCNN002.gif", "masks/right lung/JPCNN002.gif")
    assert list(read(tmp_path).image_ids) == ["jsrt/JPCNN002"]


# --- Montgomery, Shenzhen and the merge


def montgomery(root: Path, name: str = "MCUCXR_0001_1", film=None, left=None, right=None) -> None:
    write(root / MC / "CXR_png" / f"{name}.png", film)
    write(root / MC / "ManualMask" / "leftMask" / f"{name}.png", left)
    write(root / MC / "ManualMask" / "rightMask" / f"{name}.png", right)


@pytest.mark.parametrize("size", [16, 33, 64])
def test_black_borders_are_cut_from_film_and_mask_alike(tmp_path, size):
    film = np.full((60, 90), BORDER_GREY + 1, np.uint8)
    film[12:44, 16:80] = blob(32, 64, (8, 24, 16, 48))
    film[12, 16:80] = film[43, 16:80] = film[12:44, 16] = film[12:44, 79] = BORDER_GREY + 1
    film = np.where(film == BORDER_GREY + 1, BORDER_GREY, film).astype(np.uint8)
    film[12, 30] = film[43, 30] = film[20, 16] = film[20, 79] = 100
    lungs = np.zeros((60, 90), bool)
    lungs[12:44, 16:80] = blob(32, 64, (8, 24, 16, 48)) > 0
    half = np.arange(90) >= 48
    montgomery(tmp_path, film=film, left=lungs & half, right=lungs & ~half)
    index = read(tmp_path)
    mask = LungMasks.read_mask(index, 0, size)
    expected = resize(blob(32, 64, (8, 24, 16, 48)), size)
    np.testing.assert_array_equal(mask, np.where(expected >= 128, 255, 0))
    image = LungMasks.read_image(index, 0, size)
    np.testing.assert_array_equal(image, resize(film[12:44, 16:80], size))
    assert thorax_box(mask) == pytest.approx((0.25, 0.25, 0.75, 0.75), abs=0.6 / size)


def test_a_border_ends_at_the_first_pixel_that_is_not_black():
    film = np.zeros((50, 70), np.uint8)
    film[10:40, 20:60] = 200
    assert inside_border(film) == (slice(10, 40), slice(20, 60))
    film[3, 30] = BORDER_GREY
    assert inside_border(film) == (slice(10, 40), slice(20, 60))
    film[3, 30] = BORDER_GREY + 1  # lettering is never cut
    assert inside_border(film) == (slice(3, 40), slice(20, 60))
    assert inside_border(np.zeros((50, 70), np.uint8)) == (slice(0, 50), slice(0, 70))


def test_only_montgomerys_films_are_cut(tmp_path):
    film = np.zeros((40, 40), np.uint8)
    film[10:30, 10:30] = 200
    pair(tmp_path / "montgomery", film, film)
    write(tmp_path / SZ / "CXR_png" / "CHNCXR_0001_0.png", film)
    write(tmp_path / "mask" / "CHNCXR_0001_0_mask.png", film)
    index = read(tmp_path)
    assert len(index) == 2
    for row in range(2):
        np.testing.assert_array_equal(LungMasks.read_image(index, row, 40), film)
        np.testing.assert_array_equal(LungMasks.read_mask(index, row, 40) > 0, film > 0)


def test_montgomerys_masks_differ_in_size_from_each_other(tmp_path):
    montgomery(tmp_path, film=blob(), left=blob(), right=blob(41, 40))
    index = read(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"rightMask/MCU.*: 40 x 41, but .* is 40 x 40"):
        LungMasks.read_mask(index, 0, 16)


def test_shenzhen_takes_masks_by_number_and_leaves_films_without_one_out(tmp_path):
    for name in ("CHNCXR_0001_0", "CHNCXR_0327_1", "CHNCXR_0328_1"):
        touch(tmp_path, f"{SZ}/CXR_png/{name}.png")
    touch(tmp_path, "mask/mask/CHNCXR_0001_0_mask.png", "mask/mask/CHNCXR_0327_X_mask.png")
    touch(tmp_path, "mask/mask/CHNCXR_0009_0_mask.png", f"{SZ}/CXR_png/Thumbs.db")
    index = read(tmp_path)
    assert dict(zip(index.image_ids, index.targets[:, 0], strict=True)) == {
        "shenzhen/CHNCXR_0001_0": 0,
        "shenzhen/CHNCXR_0327_1": 1,
    }
    assert list(index.patient_ids) == ["shenzhen:0001", "shenzhen:0327"]
    assert index.notes["without_mask"] == index.notes["without_film"] == {"shenzhen": 1}


def test_a_mask_whose_name_says_another_label_is_an_error(tmp_path):
    touch(tmp_path, f"{SZ}/CXR_png/CHNCXR_0001_0.png", "mask/CHNCXR_0001_1_mask.png")
    with pytest.raises(DataError, match=r"CHNCXR_0001_1_mask.png: _1 in its name, but its film is"):
        read(tmp_path)


def merge(root: Path, *names: str, base: str = MERGE) -> None:
    for name in names:
        tail = "_mask" if name.startswith("CHN") else ""
        touch(root, f"{base}/CXR_png/{name}.png", f"{base}/masks/{name}{tail}.png")


def test_the_merge_is_read_in_both_namings_and_from_its_doubled_archive(tmp_path):
    names = ("MCUCXR_0001_0", "MCUCXR_0104_1", "CHNCXR_0001_0", "CHNCXR_0327_1")
    merge(tmp_path, *names)
    touch(tmp_path, f"{MERGE}/CXR_png/CHNCXR_0026_0.png", f"{MERGE}/test/CHNCXR_0026_0.png")
    index = read(tmp_path)
    assert set(index.image_ids) == {f"merge/{name}" for name in names}
    assert index.targets[:, 0].sum() == 2
    assert index.notes["without_mask"] == {"merge": 1}
    before = index.revision([""] * 4)
    shutil.copytree(tmp_path / MERGE, tmp_path / "data" / MERGE)
    index = read(tmp_path)
    assert index.revision([""] * 4) == before
    assert index.notes["copies"] == {"merge": 9}
    (tmp_path / "data" / MERGE / "CXR_png" / "CHNCXR_0001_0.png").write_bytes(b"another")
    with pytest.raises(
        DataError, match=r"two different files for CHNCXR_0001: .*CHNCXR_0001_0.png"
    ):
        read(tmp_path)


def test_one_patient_with_two_labels_is_an_error(tmp_path):
    merge(tmp_path, "CHNCXR_0001_0", "CHNCXR_0001_1")
    with pytest.raises(DataError, match="two different files for CHNCXR_0001"):
        read(tmp_path)


def test_a_film_in_the_merge_and_in_the_original_is_used_once(tmp_path):
    montgomery(tmp_path, "MCUCXR_0001_0")
    touch(tmp_path, f"{SZ}/CXR_png/CHNCXR_0001_0.png", "mask/CHNCXR_0001_0_mask.png")
    merge(tmp_path, "MCUCXR_0001_0", "MCUCXR_0104_1", "CHNCXR_0001_0", "CHNCXR_0327_1")
    index = read(tmp_path)
    assert list(index.image_ids) == [
        "montgomery/MCUCXR_0001_0",
        "shenzhen/CHNCXR_0001_0",
        "merge/CHNCXR_0327_1",
        "merge/MCUCXR_0104_1",
    ]
    assert index.notes["in_two_sources"] == 2
    what = "films of the merge lie in Montgomery or Shenzhen, too; used once"
    assert told(index)[what] == ("info", 2)
    # A patient has one name wherever the film comes from.
    assert set(read(tmp_path, "merge").patient_ids) == set(index.patient_ids)
    assert read(tmp_path, "merge").notes["in_two_sources"] == 0


@pytest.mark.parametrize(
    ("text", "sex", "age"),
    [
        ("Patient's Sex: F\nPatient's Age: 027Y\nnormal", "F", 27),
        ("Patient's Sex: O\nPatient's Age: 047Y\nnormal", "", 47),
        ("male 45yrs\r\nnormal", "M", 45),
        ("Female , 24 yrs\nSTB", "F", 24),
        ("femal 32yrs", "F", 32),
        ("male 16month", "M", 1),
        ("female 64days", "F", 0),
        ("read on 12.3.\nno more\nmale 45yrs", "", None),
        ("", "", None),
    ],
)
def test_clinical_readings_tell_sex_and_age(tmp_path, text, sex, age):
    montgomery(tmp_path, "MCUCXR_0001_0")
    montgomery(tmp_path, "MCUCXR_0002_1")
    readings = tmp_path / MC / "ClinicalReadings"
    readings.mkdir()
    (readings / "MCUCXR_0001_0.txt").write_text(text)
    (readings / "MCUCXR_0002_1.txt").write_text("male 33yrs")
    frame = read(tmp_path).frame
    assert frame["sex"].tolist() == [sex, "M"]
    assert frame["age"].fillna(-1).tolist() == [-1 if age is None else age, 33]
    shutil.rmtree(readings)
    assert "sex" not in read(tmp_path).frame.columns


# --- pairs


def manifest(folder: Path, *rows: str, header: str = "file,patient_id,group") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\ufeff" + "\r\n".join([header, *rows]) + "\r\n"
    (folder / "manifest.csv").write_bytes(text.encode())


def test_pairs_take_patients_and_groups_from_the_nearest_manifest(tmp_path):
    for name in ("one/a", "one/b", "two/sub/a", "c"):
        base, _, stem = name.rpartition("/")
        pair(tmp_path / base, blob(), blob(), stem)
    manifest(
        tmp_path, "one/images/a.png,p1,g", "one/images/b.png,p2,g", "images/c.png,p3,", "x,p4,"
    )
    manifest(tmp_path / "two", "sub/images/a.png,p1,")
    index = read(tmp_path)
    frame = index.frame.set_index("image_id")
    assert frame["patient_id"].to_dict() == {
        "pairs/c": "pairs:p3",
        "pairs/one/a": "pairs:p1",
        "pairs/one/b": "pairs:p2",
        "pairs/two/sub/a": "pairs:two/p1",
    }
    assert frame["group_id"].tolist() == ["", "pairs:g", "pairs:g", ""]
    assert index.strata is not None
    assert set(index.strata["group_id"]) == {"", "pairs:g"}
    assert "patients_unknown" not in index.notes
    assert index.sources == (tmp_path / "manifest.csv", tmp_path / "two" / "manifest.csv")
    assert index.notes["coverage"] == {"present": 4, "promised": 5, "complete": False}
    assert told(index) == {
        "pairs: rows of manifest.csv have no film (a partial copy)": ("warning", 1)
    }


def test_pairs_without_a_manifest_count_each_image_as_a_patient_and_say_so(tmp_path):
    for stem in ("a", "b"):
        pair(tmp_path / "here", blob(), blob(), stem)
    manifest(tmp_path, "elsewhere/a.png,p1,")  # a manifest of other images
    index = read(tmp_path)
    assert list(index.patient_ids) == ["pairs:here/a", "pairs:here/b"]
    assert index.notes["patients_unknown"] == ["here"]
    [problem] = LungMasks.check(index)
    assert (problem.severity, problem.names) == ("warning", ("here",))
    assert "each image counts as one" in problem.what


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["images/a.png,p1,"], r"manifest.csv: no row for 1 images: images/b.png"),
        (["images/a.png,p1,", "images/b.png, ,"], r"line 3: patient_id is blank"),
        (["images/a.png,p1,", "images/b.png,p2,", "images/a.png,p3,"], r"'images/a.png' .* 2, 4"),
        (
            ["images/a.png,p1,", "../images/b.png,p2,"],
            r"line 3: file '\.\./images/b.png' holds '\.\.'",
        ),
        (["images/a.png,p1,", "/images/b.png,p2,"], r"line 3: .* is absolute"),
        (["images/a.png,p1,", "C:/images/b.png,p2,"], r"line 3: .* is absolute"),
        (["images/a.png,p1,", "images\\b.png,p2,"], r"line 3: .* holds a backslash"),
        (["images/a.png,p1"], r"line 2: 2 fields, but the header has 3"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(tmp_path, rows, says):
    for stem in ("a", "b"):
        pair(tmp_path, blob(), blob(), stem)
    manifest(tmp_path, *rows)
    with pytest.raises(DataError, match=says):
        read(tmp_path)


def test_a_manifest_needs_its_columns(tmp_path):
    pair(tmp_path, blob(), blob())
    manifest(tmp_path, "images/a.png,p", header="file,Patient")
    with pytest.raises(DataError, match=r"manifest.csv: no column 'patient_id'"):
        read(tmp_path)


def test_names_with_control_characters_are_refused(tmp_path):
    pair(tmp_path / "a", blob(), blob(), "x\ny")
    with pytest.raises(DataError, match=r"images/x\\ny.png' holds control"):
        read(tmp_path / "a")
    pair(tmp_path / "b" / "u\nv", blob(), blob())
    with pytest.raises(DataError, match=r"'u\\nv/images/a.png' holds control"):
        read(tmp_path / "b")
    pair(tmp_path / "c", blob(), blob(), os.fsdecode(b"x\xff"))
    with pytest.raises(DataError, match="undecodable"):
        read(tmp_path / "c")
    pair(tmp_path / "d", blob(), blob())
    manifest(tmp_path / "d", 'images/a.png,"p\t1",')
    with pytest.raises(DataError, match=r"line 2: patient or group \['p\\t1', ''\] holds control"):
        read(tmp_path / "d")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_files_of_a_manifest_do_not_leave_the_data_folder(tmp_path, form):
    root, name = tmp_path / "data", unicodedata.normalize(form, "ü.png")
    pair(root, blob(), blob(), "a")
    write(tmp_path / "other.png", blob())
    write(root / "masks" / name, blob())
    (root / "images" / name).symlink_to(tmp_path / "other.png")
    manifest(root, "images/a.png,p1,", "images/ü.png,p2,")
    with pytest.raises(DataError, match=r"manifest.csv: .*links? that leaves? "):
        read(root)
    (root / "images" / name).unlink()
    (root / "images" / name).symlink_to("a.png")  # links that stay inside are followed
    assert len(read(root)) == 2


def test_names_match_in_both_unicode_forms(tmp_path):
    composed = "Ä ü 1"
    apart = unicodedata.normalize("NFD", composed)
    write(tmp_path / "images" / f"{apart}.png", blob())
    write(tmp_path / "masks" / f"{composed}.png", blob())
    manifest(tmp_path, f"images/{composed}.png,p1,")
    index = read(tmp_path)
    assert list(index.patient_ids) == ["pairs:p1"]
    assert told(index) == {}


def test_two_images_of_one_name_and_folders_without_a_common_name_are_errors(tmp_path):
    pair(tmp_path / "x", blob(), blob())
    write(tmp_path / "x" / "images" / "a.jpg", blob())
    with pytest.raises(DataError, match=r"x/images/a.jpg and x/images/a.png have the same name"):
        read(tmp_path)
    write(tmp_path / "y" / "images" / "a.png", blob())
    write(tmp_path / "y" / "masks" / "a_mask.png", blob())
    with pytest.raises(DataError, match=r"no name stands in both .* images/a.png and masks/a_mask"):
        read(tmp_path / "y", "pairs")


# --- masks of every kind


@pytest.mark.parametrize("kind", ["L", "1", "0 and 1", "RGB", "palette", "gif", "jpg"])
def test_every_kind_of_mask_is_read_alike(tmp_path, kind):
    lungs = blob(64, 64, (16, 48, 16, 48))
    image = Image.fromarray(lungs)
    path = tmp_path / "masks" / f"a.{kind if kind in ('gif', 'jpg') else 'png'}"
    pair(tmp_path, lungs, lungs)
    (tmp_path / "masks" / "a.png").unlink()
    if kind == "0 and 1":
        image = Image.fromarray(lungs // 255)
    elif kind == "palette":  # a GIF's or PNG's numbers are no greys
        image = Image.fromarray(np.where(lungs, 3, 7).astype(np.uint8), mode="P")
        image.putpalette([*[9] * 9, 255, 255, 255, *[9] * 9, 0, 0, 0])
    elif kind in ("1", "RGB"):
        image = image.convert(kind)
    image.save(path)
    index = read(tmp_path)
    np.testing.assert_array_equal(LungMasks.read_mask(index, 0, 64), lungs)


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_a_mask_of_another_size_lies_exactly_on_its_film(tmp_path, factor):
    film = blob(48, 96, (12, 36, 24, 60))
    scaled = np.kron(film[::2, ::2], np.ones((round(2 * factor), round(2 * factor)), np.uint8))
    pair(tmp_path, film, scaled)
    index = read(tmp_path)
    image = LungMasks.read_image(index, 0, 96)
    np.testing.assert_array_equal(LungMasks.read_mask(index, 0, 96) > 0, image >= 128)


def test_a_larger_mask_is_sampled_at_the_middle_of_each_pixel(tmp_path):
    pair(tmp_path, blob(), blob(120, 120, (31, 61, 31, 61)))
    mask = LungMasks.read_mask(read(tmp_path), 0, 40)
    np.testing.assert_array_equal(mask, blob(40, 40, (10, 20, 10, 20)))


def test_a_reduced_mask_may_be_rounded_to_whole_pixels(tmp_path):
    pair(tmp_path, np.zeros((2000, 1671), np.uint8), blob(512, 428))
    assert LungMasks.read_mask(read(tmp_path), 0, 64).any()


@pytest.mark.parametrize("shape", [(40, 42), (42, 40), (20, 30), (80, 40)])
def test_a_mask_of_other_proportions_is_refused(tmp_path, shape):
    pair(tmp_path, blob(), blob(*shape))
    with pytest.raises(
        UnreadableImageError, match=r"masks/a.png: .* proportions of its film, 40 x 40"
    ):
        LungMasks.read_mask(read(tmp_path), 0, 16)


def test_an_empty_mask_is_named(tmp_path):
    pair(tmp_path, blob(), np.zeros((40, 40), np.uint8))
    with pytest.raises(UnreadableImageError, match=r"masks/a.png: an empty mask"):
        LungMasks.read_mask(read(tmp_path), 0, 16)
    montgomery(tmp_path / "m", film=blob(), left=0 * blob(), right=0 * blob())
    with pytest.raises(
        UnreadableImageError, match=r"leftMask/.* and .*rightMask/.*: an empty mask"
    ):
        LungMasks.read_mask(read(tmp_path / "m"), 0, 16)


def test_a_film_in_the_place_of_a_mask_is_refused(tmp_path):
    grey = np.tile(np.arange(40, dtype=np.uint8) * 6, (40, 1))
    for mask in (grey, blob() // 4, np.full((40, 40), 128, np.uint8)):
        pair(tmp_path, blob(), mask)
        with pytest.raises(UnreadableImageError, match=r"masks/a.png: no mask: its largest value"):
            LungMasks.read_mask(read(tmp_path), 0, 16)


def test_gif_masks_are_held_to_the_limits_of_all_images(tmp_path):
    path = tmp_path / "m.gif"

    def refused(says: str) -> None:
        with pytest.raises(UnreadableImageError, match=says) as error:
            read_masks([path])
        assert str(path) in str(error.value)

    noise = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8) * 255
    write(path, noise)
    whole = path.read_bytes()
    np.testing.assert_array_equal(read_masks([path]), noise > 0)
    for share in (0.2, 0.6, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused("truncated|cannot")
    path.write_bytes(b"<html>404</html>")
    refused("not a GIF image")
    Image.fromarray(noise).save(path, "PNG")
    refused("not a GIF image")
    frames = [Image.fromarray(np.roll(noise, n)) for n in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    refused("several frames")
    write(path, noise[:8])
    refused("64 x 8; a mask has 16 px or more")
    path.write_bytes(whole[:6] + struct.pack("<HH", 65_000, 65_000) + whole[10:])
    refused("pixels")
    path.write_bytes(whole[:6] + struct.pack("<HH", 9_000, 9_000) + whole[10:])
    refused("9000 x 9000; .* at most 64,000,000 pixels")


# --- sources singly and together


def test_labels_are_unknown_where_a_source_does_not_tell_them(tmp_path):
    montgomery(tmp_path, "MCUCXR_0001_1")
    touch(tmp_path, "JPCLN002.IMG", scr("JPCLN002", "left"), scr("JPCLN002", "right"))
    pair(tmp_path / "p", blob(), blob())
    index = read(tmp_path)
    assert index.labels == ("tuberculosis", "nodule")
    unknown = np.nan
    np.testing.assert_array_equal(
        index.targets, [[unknown, 1], [1, unknown], [unknown, unknown]], strict=False
    )
    assert read(tmp_path, "jsrt").labels == ("nodule",)
    assert read(tmp_path, "montgomery", "pairs").labels == ("tuberculosis",)
    assert index.notes["films"] == {"jsrt": 1, "montgomery": 1, "pairs": 1}
    assert index.notes["sources"] == ["jsrt", "montgomery", "pairs"]


def test_pairs_alone_have_no_label_and_are_split_all_the_same(tmp_path):
    root = tmp_path / "d"
    for n in range(15):
        write(root / "images" / f"{n}.png", blob())
        write(root / "masks" / f"{n}.png", blob())
    index = read(root)
    assert index.labels == ()
    assert index.targets.shape == (15, 0)
    assert index.training_targets.shape == (15, 0)
    for name in LungMasks.splits:
        revision = index.revision([""] * 15)
        split, facts = find_split(LungMasks, index, name, revision, Store(tmp_path))
        assert facts["complete"]
        assert describe(split, index)["warnings"] == []
    assert "over collections and their labels (seed 0)" in split.rule


def test_what_is_absent_is_told_with_what_was_looked_for(tmp_path):
    with pytest.raises(MissingInputError) as error:
        read(tmp_path)
    for words in ("JPCLN001.IMG", "leftMask", "mask/CHNCXR_0001_0_mask.png", "CXR_png/ and masks/"):
        assert words in str(error.value)
    pair(tmp_path, blob(), blob())
    assert len(read(tmp_path)) == 1
    with pytest.raises(
        MissingInputError, match=r"looked|nothing like this.*\n  merge: CXR_png/ and"
    ):
        read(tmp_path, "pairs", "merge")
    with pytest.raises(MissingInputError, match="--data"):
        LungMasks.read_index(None, LungMasksParams())
    for wrong in ([], ["jsr"]):
        with pytest.raises(ConfigError, match="sources"):
            LungMasksParams.parse({"sources": wrong}, where="test")


def test_films_without_any_mask_and_masks_without_any_film_are_errors(tmp_path):
    touch(tmp_path / "a", f"{SZ}/CXR_png/CHNCXR_0001_0.png")
    with pytest.raises(MissingInputError, match=r"1 films of shenzhen but no mask .*yoctoman"):
        read(tmp_path / "a")
    touch(tmp_path / "b", scr("JPCLN001", "left"), scr("JPCLN001", "right"))
    with pytest.raises(MissingInputError, match=r"1 masks of jsrt but no film"):
        read(tmp_path / "b")
    touch(tmp_path / "b", "JPCLN003.IMG")
    with pytest.raises(DataError, match=r"no film has its masks: JPCLN003.IMG"):
        read(tmp_path / "b")


def test_pipes_and_hidden_files_are_passed_over(tmp_path):
    pair(tmp_path, blob(), blob())
    os.mkfifo(tmp_path / "images" / "b.png")
    os.mkfifo(tmp_path / "masks" / "b.png")
    touch(
        tmp_path, "images/.c.png", "masks/.c.png", "__MACOSX/images/d.png", "__MACOSX/masks/d.png"
    )
    assert list(read(tmp_path).image_ids) == ["pairs/a"]


def test_the_revision_changes_with_a_mask_and_with_nothing_else(tmp_path):
    for n in range(3):
        pair(tmp_path, blob(), blob(), str(n))
    montgomery(tmp_path, film=blob(), left=blob(), right=blob())
    first = read(tmp_path).revision(["x"] * 4)
    for path in tmp_path.rglob("*.png"):
        os.utime(path, (1, 1))
    assert read(tmp_path).revision(["x"] * 4) == first
    assert read(tmp_path).revision(["x"] * 3 + ["y"]) != first
    # Also of the index that is made when two patients share a film.
    assert join_twins(read(tmp_path), ["x"] * 4).revision(["x"] * 4) == first
    write(tmp_path / MC / "ManualMask" / "rightMask" / "MCUCXR_0001_1.png", blob(at=(9, 20, 8, 24)))
    second = read(tmp_path).revision(["x"] * 4)
    assert second != first
    write(tmp_path / "masks" / "1.png", blob(at=(9, 20, 8, 24)))
    assert join_twins(read(tmp_path), ["x"] * 4).revision(["x"] * 4) not in (first, second)


def published(root: Path) -> None:
    """Names of all files of JSRT, Montgomery and Shenzhen, as DATA_FACTS counts them."""
    for name in [f"JPCLN{n:03d}" for n in range(1, 155)] + [f"JPCNN{n:03d}" for n in range(1, 94)]:
        touch(root, f"{name}.IMG", scr(name, "left"), scr(name, "right"))
    for n in range(138):
        montgomery(root, f"MCUCXR_{n:04d}_{int(n < 58)}")
    for n in range(662):
        name = f"CHNCXR_{n:04d}_{int(n < 336)}"
        touch(root, f"{SZ}/CXR_png/{name}.png")
        if n < 287 or 336 <= n < 336 + 279:
            touch(root, f"mask/{name}_mask.png")


def test_the_whole_downloads_are_complete_and_balanced_by_collection(tmp_path):
    published(tmp_path)
    index = read(tmp_path)
    assert index.notes["coverage"] == {"present": 951, "promised": 951, "complete": True}
    assert [(p.severity, p.count) for p in LungMasks.check(index)] == [("info", 96)]
    split = LungMasks.make_split("cv5", index)
    fold = split.assigned(index)
    frame = index.frame.assign(fold=fold)
    for collection, rows in frame.groupby("collection"):
        label = "nodule" if collection == "jsrt" else "tuberculosis"
        for group in (rows, rows[rows[label] == 1]):
            counts = group["fold"].value_counts()
            assert len(counts) == 5
            assert counts.max() - counts.min() <= 1, (collection, counts.to_dict())

    montgomery(tmp_path, "MCUCXR_0999_1")
    (tmp_path / scr("JPCNN003", "left")).unlink()
    index = read(tmp_path)
    assert not index.notes["coverage"]["complete"]
    found = told(index)
    assert found["139 films of montgomery with a mask, published 138"] == ("error", 1)
    assert (
        found["59 of 139 films of montgomery are tuberculosis, published 58 of 138"][0] == "error"
    )
    assert found["246 films of jsrt with a mask, published 247"] == ("warning", 1)
    (tmp_path / "mask/CHNCXR_0001_1_mask.png").unlink()
    lacking = "shenzhen: films without a mask (or with that of one lung only) are left out"
    assert told(read(tmp_path))[lacking] == ("warning", 97)


@pytest.mark.parametrize(("count", "mark", "positive"), [(59, 1, 59), (81, 0, 0)])
def test_a_part_with_too_many_of_one_label_is_contradictory(tmp_path, count, mark, positive):
    for n in range(count):
        montgomery(tmp_path, f"MCUCXR_{n:04d}_{mark}")
    found = told(read(tmp_path))
    assert found[f"{count} films of montgomery with a mask, published 138"][0] == "warning"
    what = f"{positive} of {count} films of montgomery are tuberculosis, published 58 of 138"
    assert found[what] == ("error", 1)


def test_an_empty_array_has_no_thorax_box():
    with pytest.raises(DataError, match="film 7: an empty mask has no thorax box"):
        thorax_box(np.zeros((8, 8), np.uint8), "film 7")


# --- the miniature


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    return LungMasks.fake(tmp_path_factory.mktemp("all"), images=60, size=32)


def test_the_miniature_of_all_sources_is_read_verified_and_split(everything, tmp_path):
    index = read(everything)
    assert len(index) == 60
    assert index.notes["films"] == {
        "jsrt": 10,
        "montgomery": 10,
        "shenzhen": 10,
        "merge": 10,
        "pairs": 20,
    }
    assert index.notes["in_two_sources"] == 4
    assert {p.severity for p in verify_dataset(LungMasks, index)} == {"warning", "info"}
    for name in LungMasks.splits:
        revision = index.revision([""] * len(index))
        split, facts = find_split(LungMasks, index, name, revision, Store(tmp_path))
        assert facts["complete"]
        assert set(split.parts(index, 0)) == {"train", "val", "test"}


def test_drawn_lungs_lie_where_they_are_darker_than_what_surrounds_them(everything):
    index = read(everything)
    for row in range(len(index)):
        image = LungMasks.read_image(index, row, 64).astype(float)
        inside = LungMasks.read_mask(index, row, 64) > 0
        x0, y0, x1, y1 = thorax_box(inside)
        box = np.zeros((64, 64), bool)
        box[round(y0 * 64) : round(y1 * 64), round(x0 * 64) : round(x1 * 64)] = True
        assert 0.1 < inside.mean() < 0.6
        assert image[inside].mean() < image[box & ~inside].mean() - 20, index.image_ids[row]


@pytest.mark.parametrize("variant", LungMasks.variants[1:])
def test_each_miniature_has_the_lungs_that_were_drawn(tmp_path, variant):
    LungMasks.fake(tmp_path, images=12, size=32, variant=variant)
    index = read(tmp_path)
    assert index.notes["sources"] == [variant]
    assert len(index) == (MOST_JSRT if variant == "jsrt" else 12)
    assert not [p for p in LungMasks.check(index) if p.severity == "error"]
    if variant == "pairs":
        return
    label = "nodule" if variant == "jsrt" else "tuberculosis"
    for number, study in enumerate(first_studies(12, 0)[: len(index)], start=1):
        film = draw(study, label, number, 32)
        shown = slice(0, 28 if variant == "shenzhen" or (variant == "merge" and number > 6) else 32)
        key = (
            f"JPC{'LN'[1 - number % 2]}N{(number + 1) // 2:03d}"
            if variant == "jsrt"
            else f"CXR_{number:04d}"
        )
        [row] = [i for i, name in enumerate(index.image_ids) if key in name]
        assert index.targets[row, 0] == number % 2
        lungs = resize(film.lungs[shown].astype(np.uint8) * 255, 32)
        np.testing.assert_array_equal(LungMasks.read_mask(index, row, 32) > 0, lungs >= 128)
        image = np.maximum(
            film.image[shown], BORDER_GREY + 4 if "MCU" in index.image_ids[row] else 0
        )
        np.testing.assert_allclose(LungMasks.read_image(index, row, 32), resize(image, 32), atol=1)


def test_an_unknown_miniature_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"no layout 'jsr'.*jsrt"):
        LungMasks.fake(tmp_path, variant="jsr")


# --- real films


@pytest.mark.data
def test_the_real_sample(samples):
    root = samples / "lung_masks_sub"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    index = read(root)
    assert index.notes["films"] == {"pairs": 147}
    assert len(set(index.patient_ids)) == 118
    assert index.labels == ()
    assert index.notes["coverage"]["complete"]
    assert [p for p in verify_dataset(LungMasks, index) if p.severity == "error"] == []
    for row in range(0, len(index), 7):
        mask = LungMasks.read_mask(index, row, 256)
        x0, y0, x1, y1 = thorax_box(mask)
        assert x1 - x0 > 0.5
        assert y1 - y0 > 0.3
        # Both lungs are drawn: nothing lies between them in the middle of the box.
        middle = mask[:, round((x0 + x1) / 2 * 256)]
        assert (middle == 0).mean() > 0.5
    for fold in range(5):
        parts = LungMasks.make_split("cv5", index).parts(index, fold)
        groups = index.frame.groupby("group_id").indices.values()
        assert all(len(set(parts[rows])) == 1 for rows in groups)
    one = read(root / "kermany_v7")
    assert one.notes["patients_unknown"] == ["."]
    assert len(one) == len(set(one.patient_ids)) == 83
