"""ChestX-ray14 in every layout and with every header in circulation."""

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxrbench.core.errors import DataError, MissingInputError
from cxrbench.core.store import Store
from cxrbench.data import splits as splits_module
from cxrbench.data.chestxray14 import (
    LABELS,
    POSITIVES,
    ChestXray14,
    ChestXray14Params,
    read_labels,
)
from cxrbench.data.csvfile import read_csv, read_names
from cxrbench.data.index import Index
from cxrbench.data.splits import find_split
from cxrbench.data.verify import verify_dataset

SAMPLES = Path(os.environ.get("CXRBENCH_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
BRACKETS = "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    + BRACKETS
)
ROWS = [
    "00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,No Finding,1,1,58,M,PA,2894,2729,0.143,0.143",
    "00000002_000.png,Pleural_Thickening,0,2,414,F,AP,2500,2048,0.168,0.168",
]
NAMES = [row.split(",")[0] for row in ROWS]


def write_csv(path: Path, header: str = HEADER, rows: list[str] = ROWS, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = how.get("end", "\n").join([header, *rows]) + how.get("end", "\n")
    path.write_bytes(text.encode(how.get("encoding", "utf-8")))
    return path


def write_images(folder: Path, names: list[str] = NAMES, size: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(names):
        noise = np.random.default_rng(n).integers(0, 255, (size, size), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)


def read(root: Path, **params) -> Index:
    return ChestXray14.read_index(root, ChestXray14Params(**params))


def assert_right(frame) -> None:
    assert list(frame["image_id"]) == NAMES
    assert list(frame["patient_id"]) == ["00000001", "00000001", "00000002"]
    shown = [[k for k in LABELS if frame[k].iloc[n]] for n in range(3)]
    assert shown == [["Cardiomegaly", "Emphysema"], [], ["Pleural_Thickening"]]
    assert list(frame["sex"]) == ["M", "M", "F"]
    assert list(frame["age"]) == [57, 58, 414]
    assert list(frame["view_position"]) == ["PA", "PA", "AP"]


@pytest.mark.parametrize(
    "variant",
    [
        "plain",
        "sex",
        "trailing comma in rows",
        "trailing comma everywhere",
        "quoted brackets",
        "byte order mark",
        "CRLF",
        "CR",
        "other column order",
        "ages with unit",
        "no final newline",
    ],
)
def test_every_header_in_circulation(tmp_path, variant):
    path, header, rows, how = tmp_path / "labels.csv", HEADER, ROWS, {}
    if variant == "sex":
        header = header.replace("Gender", "Sex")
    elif variant.startswith("trailing"):
        rows = [row + "," for row in rows]
        header += "," if variant.endswith("everywhere") else ""
    elif variant == "quoted brackets":
        header = header.replace(
            BRACKETS, '"OriginalImage[Width,Height]","OriginalImagePixelSpacing[x,y]"'
        )
    elif variant == "byte order mark":
        how["encoding"] = "utf-8-sig"
    elif variant in ("CRLF", "CR"):
        how["end"] = "\r\n" if variant == "CRLF" else "\r"
    elif variant == "other column order":
        cells = [line.split(",") for line in [header, *rows]]
        header, *rows = [",".join(line[::-1]) for line in cells]
    elif variant == "ages with unit":
        rows = [
            row.replace(",57,", ",057Y,").replace(",58,", ",704M,").replace(",414,", ",414Y,")
            for row in rows
        ]
    write_csv(path, header, rows, **how)
    if variant == "no final newline":
        path.write_bytes(path.read_bytes().rstrip())
    assert_right(read_labels(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "00000003_000.png,Effusions,0,3,1,M,PA,1,1,1,1",
            "line 5.*'Effusions'; did you mean 'Effusion'",
        ),
        ("00000003_000.png,Mass ,0,3,1,M,PA,1,1,1,1", "line 5.*'Mass '.*did you mean 'Mass'"),
        ("00000003_000.png,mass,0,3,1,M,PA,1,1,1,1", "line 5.*'mass'.*'Mass'"),
        ("00000003_000.png,Mass|,0,3,1,M,PA,1,1,1,1", "line 5.*unknown ''"),
        ("00000003_000.png,,0,3,1,M,PA,1,1,1,1", "line 5.*unknown ''"),
        ("00000003_000.png,None,0,3,1,M,PA,1,1,1,1", "line 5.*unknown 'None'"),
        ("00000003_000.png,Mass|No Finding,0,3,1,M,PA,1,1,1,1", "line 5.*'No Finding' with"),
        ("00000003_000.png,Mass,0,4,1,M,PA,1,1,1,1", "line 5.*of patient '4'"),
        ("3_0.png,Mass,0,3,1,M,PA,1,1,1,1", "line 5.*image '3_0.png'"),
        ("00000003_000.png,Mass,0,3,old,M,PA,1,1,1,1", "line 5.*Patient Age 'old'"),
        ("00000003_000.png,Mass,0,3", "line 5: 4 fields, but the header has 11"),
        ("00000003_000.png,Mass,0,3,1,M,PA,1,1,1,1,x", "line 5: 12 fields"),
        ("00000001_000.png,Mass,0,1,57,M,PA,1,1,1,1", "00000001_000.png stands twice.*lines 2, 5"),
        ('00000003_000.png,"Mass,0,3,1,M,PA,1,1,1,1', "line 5.*quote left open"),
    ],
)
def test_bad_rows_are_errors_with_file_and_line(tmp_path, row, message):
    path = write_csv(tmp_path / "labels.csv", rows=[*ROWS, row])
    with pytest.raises(DataError, match=f"labels.csv: .*{message}|labels.csv: {message}"):
        read_labels(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        ((HEADER + "\n").encode(), "a header but no rows"),
        ("\n".join([HEADER, *ROWS]).encode("utf-16"), "encoded as UTF-16"),
        ("\n".join([HEADER, *ROWS]).encode("utf-16-le"), "line 1: a NUL byte"),
        ("\n".join([HEADER, ROWS[0].replace("57", "é")]).encode("latin-1"), "line 2: byte 0xe9"),
        ("\n".join([HEADER, *ROWS]).replace(",", ";").encode(), "separated by semicolons"),
        ("\n".join([HEADER + ",Patient ID", *[r + ",1" for r in ROWS]]).encode(), "stand twice"),
        (b"PK\x03\x04rest", "a spreadsheet"),
        (
            "\n".join([HEADER.replace("Finding Labels", "Finding Label"), *ROWS]).encode(),
            "no column 'Finding Labels'; did you mean 'Finding Label'",
        ),
    ],
)
def test_bad_files_are_errors_that_say_what_they_are(tmp_path, data, message):
    path = tmp_path / "labels.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_labels(path)


def test_repeated_rows_are_counted_and_left_out(tmp_path):
    frame = read_labels(write_csv(tmp_path / "labels.csv", rows=[*ROWS, ROWS[0]]))
    assert_right(frame)
    assert frame.attrs["repeated"] == 1


def test_words_are_kept_and_lines_counted(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a,b,\n"two\nlines",NA\n\n ,None,\n')
    frame = read_csv(path)
    assert frame.to_dict("list") == {"a": ["two\nlines", " "], "b": ["NA", "None"]}
    assert list(frame.index) == [2, 5]


def test_damaged_gzip_and_absent_files(tmp_path):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n" * 100)[:30])
    with pytest.raises(DataError, match="unreadable"):
        read_csv(tmp_path / "x.csv.gz")
    with pytest.raises(MissingInputError, match="no such file"):
        read_csv(tmp_path / "y.csv")


@given(st.integers(1, 99_999_999), st.integers(0, 999))
def test_patient_ids_are_text_of_eight_digits(tmp_path_factory, patient, follow_up):
    name = f"{patient:08d}_{follow_up:03d}.png"
    path = write_csv(
        tmp_path_factory.getbasetemp() / "one.csv",
        rows=[f"{name},Mass,{follow_up},{patient},60,M,PA,1,1,1,1"],
    )
    assert read_labels(path)["patient_id"].tolist() == [name[:8]]


LAYOUTS = {
    "kaggle": ["images_001/images", "images_002/images", "images_012/images"],
    "zoogzog": ["images_001", "images_001", "images_002"],
    "flat": ["images", "images", "images"],
    "idiap": ["00000", "00000", "00000"],
    "root": [".", ".", "."],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_are_found_in_every_layout(tmp_path, layout):
    write_csv(tmp_path / "Data_Entry_2017.csv")
    for name, folder in zip(NAMES, LAYOUTS[layout], strict=True):
        write_images(tmp_path / folder, [name])
    index = read(tmp_path)
    assert_right(index.frame)
    assert all(index.path(row).name == name for row, name in enumerate(NAMES))
    assert all(index.path(row).is_file() for row in range(3))
    assert index.notes["coverage"] == {"present": 3, "promised": 112_120, "complete": False}
    assert index.notes["label_release"] == "partial"


@pytest.mark.parametrize(
    "place", ["d/x.csv", "d/meta/deep/x.csv", "x.csv", "meta/x.csv", "d/x.csv.gz"]
)
def test_the_label_file_is_found_in_below_and_beside_the_root(tmp_path, place):
    path = tmp_path / place.replace("x.csv", "Data_Entry_2017_v2020.csv")
    write_csv(path)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    write_images(tmp_path / "d" / "images224")
    assert_right(read(tmp_path / "d").frame)


def test_the_2020_labels_are_preferred_and_others_can_be_given(tmp_path):
    root = tmp_path / "d"
    write_images(root)
    write_csv(root / "Data_Entry_2017.csv", rows=[r.replace("Cardiomegaly|", "") for r in ROWS])
    write_csv(root / "meta" / "Data_Entry_2017_v2020.csv")
    assert_right(read(root).frame)
    assert read(root).notes["labels_file"] == "Data_Entry_2017_v2020.csv"
    assert read(root, labels_file="Data_Entry_2017.csv").frame["Cardiomegaly"].sum() == 0
    elsewhere = write_csv(tmp_path / "mine.csv")
    assert_right(read(root, labels_file=str(elsewhere)).frame)
    with pytest.raises(MissingInputError, match="no such label file"):
        read(root, labels_file="other.csv")


def test_partial_downloads_and_strange_images_are_counted(tmp_path):
    write_csv(tmp_path / "Data_Entry_2017.csv")
    write_images(tmp_path / "images", [NAMES[0], "00000009_000.png"])
    (tmp_path / "images" / "notes.png").write_bytes(b"not an image of the set")
    index = read(tmp_path)
    assert list(index.image_ids) == NAMES[:1]
    assert index.notes["rows_without_image"] == 2
    assert index.notes["images_without_row"] == 1
    told = {p.what.split(" (")[0]: p.count for p in ChestXray14.check(index)}
    assert told["rows of the label file have no image"] == 2
    assert told["images do not stand in the label file and are left out"] == 1


def test_nothing_to_read_is_an_error_that_says_where_was_looked(tmp_path):
    root = tmp_path / "d"
    root.mkdir()
    with pytest.raises(MissingInputError, match="pass --data"):
        ChestXray14.read_index(None, ChestXray14Params())
    with pytest.raises(MissingInputError, match=r"no Data_Entry_2017_v2020.csv.*data.labels_file"):
        read(root)
    write_csv(root / "Data_Entry_2017.csv")
    (root / "images_001.tar.gz").write_bytes(b"")
    with pytest.raises(MissingInputError, match="unpack images"):
        read(root)
    write_images(root / "images", ["00000009_000.png"])
    with pytest.raises(DataError, match=r"none of the 1 images .*00000009_000.png"):
        read(root)


def test_the_same_image_twice_is_noted_but_versions_are_not_mixed(tmp_path):
    write_csv(tmp_path / "Data_Entry_2017.csv")
    write_images(tmp_path / "images_001")
    shutil.copytree(tmp_path / "images_001", tmp_path / "images_002")
    index = read(tmp_path)
    assert index.notes["same_image_twice"] == 3
    assert set(index.frame["path"]) == {f"images_001/{name}" for name in NAMES}
    write_images(tmp_path / "images_002", size=30)
    with pytest.raises(DataError, match=r"images_001 and images_002.*--set data.images=images_001"):
        read(tmp_path)
    assert set(read(tmp_path, images="images_002").frame["path"]) == {
        f"images_002/{name}" for name in NAMES
    }
    with pytest.raises(MissingInputError, match=r"data\.images"):
        read(tmp_path, images="../elsewhere")


def test_folders_of_other_sizes_are_versions_even_without_a_common_name(tmp_path):
    write_csv(tmp_path / "Data_Entry_2017.csv")
    write_images(tmp_path / "big", NAMES[:1], size=40)
    write_images(tmp_path / "small", NAMES[1:])
    with pytest.raises(DataError, match="different versions of the images in big and small"):
        read(tmp_path)


def test_a_loop_of_links_ends(tmp_path):
    write_csv(tmp_path / "Data_Entry_2017.csv")
    write_images(tmp_path / "images")
    (tmp_path / "images" / "loop").symlink_to(tmp_path)
    assert len(read(tmp_path)) == 3


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> Path:
    return ChestXray14.fake(tmp_path_factory.mktemp("nih"), images=60, size=32)


def test_the_miniature_is_read_verified_and_split(fake, tmp_path):
    index = read(fake)
    assert len(index) == 60
    assert len({path.split("/")[0] for path in index.frame["path"]}) > 1
    modes = {Image.open(index.path(row)).mode for row in range(60)}
    assert modes == {"L", "RGBA"}
    assert {p.severity for p in verify_dataset(ChestXray14, index)} <= {"warning", "info"}
    for name in ("official", "cv5"):
        split, facts = find_split(ChestXray14, index, name, "r", Store(tmp_path))
        assert facts["coverage"] == {"present": 60, "promised": 112_120}
        assert not facts["complete"]
        for fold in range(split.folds):
            assert set(split.parts(index, fold)) == {"train", "val", "test"}
    listed = set(read_names(fake / "test_list.txt"))
    official, _ = find_split(ChestXray14, index, "official", "r", Store(tmp_path))
    assert set(index.image_ids[official.parts(index, 0) == "test"]) == listed


def test_official_is_cut_from_the_lists_where_no_file_is_committed(fake, tmp_path, monkeypatch):
    index = read(fake)
    monkeypatch.setattr(splits_module, "PACKAGE", tmp_path / "cxrbench")
    split, facts = find_split(ChestXray14, index, "official", "r", Store(tmp_path / "store"))
    parts = split.parts(index, 0)
    assert facts["complete"]
    assert set(index.image_ids[parts == "test"]) == set(read_names(fake / "test_list.txt"))
    assert 0 < (parts == "val").sum() < (parts == "train").sum()

    bare = Index(index.dataset, index.frame, index.labels, tmp_path)
    with pytest.raises(MissingInputError, match=r"no test_list\.txt or train_val_list.txt"):
        ChestXray14.make_split("official", bare)


def test_lists_that_contradict_are_errors(fake, tmp_path):
    root = tmp_path / "d"
    shutil.copytree(fake, root)
    index = read(root)
    test, rest = root / "test_list.txt", root / "train_val_list.txt"
    assert not [p for p in ChestXray14.check(index) if p.severity == "error"]
    names, others = read_names(test), read_names(rest)

    rest.write_text("\n".join(others[1:]))
    with pytest.raises(DataError, match=f"in neither of the NIH's lists: {others[0]}"):
        ChestXray14.make_split("official", index)
    rest.write_text("\n".join([*others, names[0]]))
    with pytest.raises(DataError, match=f"in both of the NIH's lists: {names[0]}"):
        ChestXray14.make_split("official", index)
    wrong = [p for p in ChestXray14.check(index) if p.severity == "error"]
    assert [p.names for p in wrong] == [(names[0],)]
    torn = next(n for n in others if sum(o[:8] == n[:8] for o in others) > 1)
    rest.write_text("\n".join(o for o in others if o != torn))
    test.write_text("\n".join([*names, torn]))
    with pytest.raises(DataError, match=f"patients in both of the NIH's lists: {torn[:8]}"):
        ChestXray14.make_split("official", index)


@pytest.mark.data
def test_the_real_label_file_has_the_published_counts():
    path = SAMPLES / "nih_meta" / "Data_Entry_2017_v2020.csv.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    frame = read_labels(path)
    assert len(frame) == 112_120
    assert frame["patient_id"].nunique() == 30_805
    assert {k: int(frame[k].sum()) for k in LABELS} == POSITIVES
    assert (frame[list(LABELS)].sum(axis=1) == 0).sum() == 60_361
    assert frame["sex"].value_counts().to_dict() == {"M": 63_340, "F": 48_780}
    assert frame["view_position"].value_counts().to_dict() == {"PA": 67_310, "AP": 44_810}
    assert (frame["age"].min(), frame["age"].max()) == (0, 95)
    patients = {k: frame["patient_id"][frame[k] == 1].nunique() for k in LABELS}
    assert (patients["Hernia"], patients["Pneumonia"], patients["Infiltration"]) == (
        134,
        1008,
        8035,
    )
    index = Index(
        "chestxray14", frame.assign(path=""), LABELS, path.parent, {"label_release": "v2020"}
    )
    assert ChestXray14.check(index) == []
    frame.loc[0, "Cardiomegaly"] = 0.0
    wrong = Index("chestxray14", frame.assign(path=""), LABELS, path.parent, index.notes)
    assert [p.what for p in ChestXray14.check(wrong)] == ["2,775 of Cardiomegaly, published 2,776"]


@pytest.mark.data
def test_the_real_sample_is_read_in_one_version_only():
    if not (SAMPLES / "nih_images_sub").is_dir():
        pytest.skip(f"no {SAMPLES}/nih_images_sub")
    with pytest.raises(DataError, match=r"nih_images_sub/images and nih_images_sub/images224"):
        read(SAMPLES)
    small = read(SAMPLES, images="nih_images_sub/images224")
    assert len(small) == small.notes["coverage"]["present"] == 375
    assert small.notes["label_release"] == "v2020"
    # The same folder, found from one level down, with the label file beside it.
    assert len(read(SAMPLES / "nih_images_sub", images="images224")) == 375
    large = read(SAMPLES, images="nih_images_sub/images")
    assert {Image.open(large.path(row)).size for row in range(len(large))} == {(1024, 1024)}
    assert not [p for p in verify_dataset(ChestXray14, large) if p.severity == "error"]
