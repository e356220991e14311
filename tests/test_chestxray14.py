"""ChestX-ray14 in every layout and with every header in circulation."""

import gzip
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxrbench.core.errors import DataError, MissingInputError, UsageError
from cxrbench.core.store import Store
from cxrbench.data import chestxray14, csvfile
from cxrbench.data import splits as splits_module
from cxrbench.data.chestxray14 import ChestXray14, ChestXray14Params
from cxrbench.data.chestxray14_files import (
    BOXES,
    LABELS,
    POSITIVES,
    label_facts,
    read_boxes,
    read_labels,
    read_lists,
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


def test_capitals_are_the_same_image_and_other_names_are_counted(tmp_path):
    write_csv(tmp_path / "Data_Entry_2017.csv")
    write_images(tmp_path / "images")
    (tmp_path / "images" / NAMES[0]).rename(tmp_path / "images" / NAMES[0].upper())
    write_images(tmp_path / "images", ["00000001_000 (1).png", "x.png"])
    index = read(tmp_path)
    assert list(index.image_ids) == NAMES
    assert index.path(0).name == NAMES[0].upper()
    assert index.notes["strange_names"] == 2
    told = {p.what.split(":")[0]: (p.severity, p.count) for p in ChestXray14.check(index)}
    assert told["PNG files are passed over"] == ("warning", 2)


@pytest.mark.parametrize("where", [0, 2])
def test_single_images_of_another_size_are_no_version(tmp_path, where):
    names = [f"00000003_{n:03d}.png" for n in range(5)]
    rows = [f"{name},Mass,0,3,60,M,PA,1,1,1,1" for name in names]
    write_csv(tmp_path / "Data_Entry_2017.csv", rows=[*ROWS, *rows])
    write_images(tmp_path / "images_001")
    write_images(tmp_path / "images_002", names)
    write_images(tmp_path / "images_002", [names[where]], size=30)
    assert len(read(tmp_path)) == 8


@pytest.fixture(scope="module")
def fakes(tmp_path_factory) -> dict[str, Path]:
    """The miniature in every layout."""
    return {
        variant: ChestXray14.fake(tmp_path_factory.mktemp(variant), images=60, variant=variant)
        for variant in ChestXray14.variants
    }


@pytest.fixture(scope="module")
def fake(fakes) -> Path:
    return fakes["nih"]


def test_the_usual_miniature_comes_first_and_others_have_names(tmp_path):
    assert ChestXray14.variants == ("nih", "kaggle", "flat", "zoogzog", "idiap")
    usual = ChestXray14.fake(tmp_path / "a", images=24, size=32)
    named = ChestXray14.fake(tmp_path / "b", images=24, size=32, variant="nih")
    files = [path.relative_to(usual) for path in sorted(usual.rglob("*")) if path.is_file()]
    assert len(files) == 24 + 4
    assert all((usual / f).read_bytes() == (named / f).read_bytes() for f in files)
    with pytest.raises(UsageError, match=r"no layout 'kagle'.*did you mean 'kaggle'"):
        ChestXray14.fake(tmp_path / "c", variant="kagle")


@pytest.mark.parametrize("variant", ChestXray14.variants)
def test_every_miniature_is_read_verified_and_split(fakes, tmp_path, variant):
    index = read(fakes[variant])
    assert len(index) == 60
    assert {p.severity for p in verify_dataset(ChestXray14, index)} <= {"warning", "info"}
    with Image.open(index.path(0)) as image:
        assert image.mode == "RGBA"
    for name in ("official", "cv5"):
        split, facts = find_split(ChestXray14, index, name, "r", Store(tmp_path))
        assert facts["coverage"] == {"present": 60, "promised": 112_120}
        assert not facts["complete"]
        for fold in range(split.folds):
            assert set(split.parts(index, fold)) == {"train", "val", "test"}
    official, _ = find_split(ChestXray14, index, "official", "r", Store(tmp_path))
    tested = set(index.image_ids[official.parts(index, 0) == "test"])
    assert tested == set(read_lists(fakes[variant], 3)["test"])
    # All layouts hold the same images with the same labels.
    same = read(fakes["nih"])
    assert list(index.image_ids) == list(same.image_ids)
    np.testing.assert_array_equal(index.targets, same.targets)


def raw(root: Path, name: str) -> bytes:
    data = next(root.rglob(name)).read_bytes()
    return gzip.decompress(data) if name.endswith(".gz") else data


def test_the_miniatures_hold_the_traps_of_the_download(fakes):
    folders = {v: {p.rpartition("/")[0] for p in read(fakes[v]).frame["path"]} for v in fakes}
    archives = [f"images_{n:03d}" for n in range(1, 13)]
    assert folders["nih"] == folders["kaggle"] == {f"{a}/images" for a in archives}
    assert folders["zoogzog"] == set(archives)
    assert folders["flat"] == {"images"}
    assert len(folders["idiap"]) > 1
    assert all(re.fullmatch(r"images/000\d\d", folder) for folder in folders["idiap"])

    header = raw(fakes["nih"], "Data_Entry_2017_v2020.csv").split(b"\n")[0].decode()
    assert header == HEADER.replace("Gender", "Sex")
    kaggle = raw(fakes["kaggle"], "Data_Entry_2017.csv").decode().splitlines()
    assert kaggle[0] == HEADER + "," and all(line.endswith(",") for line in kaggle)
    assert any(",414," in line for line in kaggle)
    flat = raw(fakes["flat"], "Data_Entry_2017_v2020.csv")
    assert flat.startswith(b"\xef\xbb\xbf") and flat.count(b"\r\n") == flat.count(b"\n") == 62
    assert " " in fakes["flat"].name and not fakes["flat"].name.isascii()
    zoogzog = raw(fakes["zoogzog"], "Data_Entry_2017.csv").decode().splitlines()
    assert not zoogzog[0].endswith(",") and all(line.endswith(",") for line in zoogzog[1:])
    assert "Y," in zoogzog[1]
    assert b'"OriginalImage[Width,Height]"' in raw(fakes["idiap"], "Data_Entry_2017_v2020.csv.gz")
    assert all(not raw(fakes[v], "test_list.txt").endswith(b"\n") for v in ("nih", "kaggle"))
    assert raw(fakes["kaggle"], "BBox_List_2017.csv").startswith(
        b"Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    )

    sizes = {Image.open(read(fakes["flat"]).path(row)).size for row in range(60)}
    assert sizes == {(64, 64), (64, 48)}
    for variant in ("kaggle", "flat"):
        notes = read(fakes[variant]).notes
        assert (notes["rows_without_image"], notes["strange_names"]) == (1, 1)
        assert any(path.endswith(".PNG") for path in read(fakes[variant]).frame["path"])
    assert not any(p.what.startswith("rows of") for p in ChestXray14.check(read(fakes["nih"])))


def test_boxes_of_the_miniature_lie_on_its_findings(fakes):
    path = fakes["nih"] / "BBox_List_2017.csv"
    assert "Infiltrate," in path.read_text()
    boxes, frame = read_boxes(path), read(fakes["nih"]).frame.set_index("image_id")
    assert list(boxes.columns) == ["image_id", "finding", "x", "y", "w", "h"]
    assert set(boxes["finding"]) <= set(BOXES) and "Infiltration" in set(boxes["finding"])
    for image, finding in zip(boxes["image_id"], boxes["finding"], strict=True):
        assert frame.at[image, finding] == 1
    assert set(boxes["image_id"]) <= set(read_names(fakes["nih"] / "test_list.txt"))
    assert (boxes["x"] + boxes["w"]).max() <= 1024 and boxes["w"].max() > 100


BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


@pytest.mark.parametrize("end", ["", ",,,"])
@pytest.mark.parametrize(
    "header",
    [BOX_HEADER, BOX_HEADER.rstrip(","), BOX_HEADER.replace("Bbox [x,y,w,h]", '"Bbox [x,y,w,h]"')],
)
def test_boxes_are_read_in_each_form_of_the_list(tmp_path, header, end):
    rows = [
        f"00000003_001.png,Infiltrate,1.5,2,30,40.25{end}",
        f"00000003_001.png,Mass,0,0,1,1{end}",
    ]
    boxes = read_boxes(write_csv(tmp_path / "boxes.csv", header, rows))
    assert boxes.to_numpy().tolist() == [
        ["00000003_001.png", "Infiltration", 1.5, 2, 30, 40.25],
        ["00000003_001.png", "Mass", 0, 0, 1, 1],
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "00000003_001.png,Masses,1,2,3,4",
            "line 3: unknown finding 'Masses'; did you mean 'Mass'",
        ),
        ("3.png,Mass,1,2,3,4", "line 3: '3.png' is no image"),
        ("00000003_001.png,Mass,1,2,three,4", r"line 3: 'three' is no number \(w\)"),
        ("00000003_001.png,Mass,1,2,3,inf", r"line 3: 'inf' is no number \(h\)"),
        ("00000003_001.png,Mass,-1,2,3,4", "line 3: .*outside the film"),
        ("00000003_001.png,Mass,1,2,0,4", "line 3: .*outside the film"),
        ("00000003_001.png,Mass,1000,2,25,4", "line 3: .*outside the film"),
        ("00000003_001.png,Mass,1,1000,25,24.5", "line 3: .*outside the film"),
        ("00000003_001.png,Mass,1,2,3", "line 3: 5 fields, but the header has 6"),
    ],
)
def test_bad_boxes_are_errors_with_line_and_become_findings(tmp_path, row, message):
    good = "00000003_001.png,Mass,1,2,3,4"
    path = write_csv(tmp_path / "BBox_List_2017.csv", BOX_HEADER, [good, row])
    with pytest.raises(DataError, match=f"BBox_List_2017.csv: {message}"):
        read_boxes(path)
    write_csv(tmp_path / "Data_Entry_2017.csv")
    write_images(tmp_path)
    told = [p for p in ChestXray14.check(read(tmp_path)) if p.severity == "error"]
    assert len(told) == 1 and "BBox_List_2017.csv: line 3" in told[0].what


def test_columns_of_boxes_in_another_order_are_refused(tmp_path):
    path = write_csv(
        tmp_path / "b.csv", BOX_HEADER.replace("w,h", "h,w"), ["00000003_001.png,Mass,1,2,3,4"]
    )
    with pytest.raises(DataError, match=r"b.csv: columns .*; expected Bbox \[x,y,w,h\]"):
        read_boxes(path)


def test_boxes_that_the_labels_deny_are_found(fakes, tmp_path):
    root = tmp_path / "d"
    shutil.copytree(fakes["nih"], root)
    path = root / "BBox_List_2017.csv"
    index = read(root)
    assert not [p for p in ChestXray14.check(index) if "deny" in p.what]
    image = index.image_ids[index.frame["Mass"] == 0][0]
    path.write_text(path.read_text() + f"{image},Mass,1,2,3,4\n")
    (told,) = [p for p in ChestXray14.check(index) if "deny" in p.what]
    assert (told.severity, told.names) == ("warning", (f"{image} (Mass)",))
    index.notes["label_release"] = "v2020"
    (told,) = [p for p in ChestXray14.check(index) if "deny" in p.what]
    assert told.severity == "error"


def test_lists_of_another_length_are_told(fake):
    told = {p.what: p.severity for p in ChestXray14.check(read(fake))}
    names, boxes = (
        len(read_names(fake / "test_list.txt")),
        len(read_boxes(fake / "BBox_List_2017.csv")),
    )
    assert told[f"{names:,} names in test_list.txt, published 25,596"] == "warning"
    assert told[f"{boxes:,} boxes in BBox_List_2017.csv, published 984"] == "warning"
    assert sum("box" in what for what in told) == 1


@pytest.mark.parametrize("masses", [0, 10_000])
def test_more_boxes_of_a_finding_than_published_are_an_error(fake, monkeypatch, masses):
    # Of the list as a whole there are more than published, or fewer.
    few = dict.fromkeys(LABELS, 0) | {"Nodule": 1, "Mass": masses}
    monkeypatch.setattr(chestxray14, "BOXES", few)
    told = {p.what: p.severity for p in ChestXray14.check(read(fake)) if "of Nodule" in p.what}
    held = int((read_boxes(fake / "BBox_List_2017.csv")["finding"] == "Nodule").sum())
    assert told == {f"{held} boxes of Nodule in BBox_List_2017.csv, published 1": "error"}


def facts(healthy: int, rows: int = 112_120, **other) -> dict:
    """Notes of an index, as if the label file had these counts."""
    return {
        "labels_file": "labels.csv",
        "label_release": other.get("release", "unknown"),
        "label_rows": rows,
        "label_patients": other.get("patients", 30_805),
        "rows_without_finding": healthy,
        "label_positives": other.get("positives", {}),
    }


def check(notes: dict) -> list[tuple[str, str]]:
    frame = read_labels_of_rows().assign(path="")
    index = Index("chestxray14", frame, LABELS, None, notes)
    return [(p.severity, p.what) for p in ChestXray14.check(index) if "ages over" not in p.what]


def read_labels_of_rows():
    with tempfile.TemporaryDirectory() as folder:
        return read_labels(write_csv(Path(folder) / "labels.csv"))


def test_the_release_of_the_labels_is_said():
    ((severity, what),) = check(facts(60_361, release="v2020", positives=POSITIVES["v2020"]))
    assert severity == "info"
    assert (
        what == "labels.csv: 60,361 of 112,120 rows without a finding: labels of the release v2020"
    )
    ((severity, what),) = check(facts(60_412, release="2017", positives=POSITIVES["2017"]))
    assert severity == "warning"
    assert "release 2017; 181 images have others in v2020" in what
    ((severity, what),) = check(facts(60_400))
    assert severity == "warning"
    assert "60,400 of 112,120 rows without a finding is no known release: 60,361 (v2020)" in what
    assert check(facts(3, rows=100, release="partial")) == [
        ("warning", "100 rows in labels.csv, whose release cannot be told, published 112,120")
    ]
    assert check(facts(3, rows=112_121))[0][0] == "error"


@pytest.mark.parametrize("release", ["v2020", "2017"])
def test_labels_that_contradict_their_release_are_errors(release):
    healthy = {"v2020": 60_361, "2017": 60_412}[release]
    wrong = {**POSITIVES[release], "Cardiomegaly": 2_775}
    (_, *told) = check(facts(healthy, release=release, positives=wrong, patients=30_806))
    want = {"v2020": "2,776", "2017": "2,772"}[release]
    assert told == [
        ("error", f"2,775 of Cardiomegaly in labels.csv, published {want}"),
        ("error", "30,806 patients in labels.csv, published 30,805"),
    ]


def test_facts_of_a_label_file():
    notes = label_facts(read_labels_of_rows())
    assert notes == {
        "label_release": "partial",
        "label_rows": 3,
        "label_patients": 2,
        "rows_without_finding": 1,
        "label_positives": dict.fromkeys(LABELS, 0)
        | {"Cardiomegaly": 1, "Emphysema": 1, "Pleural_Thickening": 1},
    }


def test_label_files_are_bounded_and_regular(tmp_path, monkeypatch):
    monkeypatch.setattr(csvfile, "MOST_BYTES", 2**20)
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"0,1\n" * 2**20))
    with pytest.raises(DataError, match=r"x\.csv\.gz: over 1 MiB of text"):
        read_csv(tmp_path / "x.csv.gz")
    (tmp_path / "y.csv").write_bytes(b"a,b\n" + b"0,1\n" * 2**18)
    with pytest.raises(DataError, match=r"y\.csv: over 1 MiB of text"):
        read_csv(tmp_path / "y.csv")
    os.mkfifo(tmp_path / "z.csv")
    with pytest.raises(DataError, match=r"z\.csv: not a file of text"):
        read_csv(tmp_path / "z.csv")
    (tmp_path / "broken.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")[:10] + b"\xff" * 40)
    with pytest.raises(DataError, match=r"broken\.csv\.gz: unreadable"):
        read_csv(tmp_path / "broken.csv.gz")


def test_official_is_cut_from_the_lists_where_no_file_is_committed(fake, tmp_path, monkeypatch):
    index = read(fake)
    monkeypatch.setattr(splits_module, "PACKAGE", tmp_path / "cxrbench")
    split, facts = find_split(ChestXray14, index, "official", "r", Store(tmp_path / "store"))
    parts = split.parts(index, 0)
    assert facts["complete"]
    assert set(index.image_ids[parts == "test"]) == set(read_names(fake / "test_list.txt"))
    assert 0 < (parts == "val").sum() < (parts == "train").sum()

    bare = Index(index.dataset, index.frame, index.labels, tmp_path, index.notes)
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
    assert {k: int(frame[k].sum()) for k in LABELS} == POSITIVES["v2020"]
    assert label_facts(frame)["label_release"] == "v2020"
    assert label_facts(frame)["rows_without_finding"] == 60_361
    assert frame["sex"].value_counts().to_dict() == {"M": 63_340, "F": 48_780}
    assert frame["view_position"].value_counts().to_dict() == {"PA": 67_310, "AP": 44_810}
    assert (frame["age"].min(), frame["age"].max()) == (0, 95)
    patients = {k: frame["patient_id"][frame[k] == 1].nunique() for k in LABELS}
    assert (patients["Hernia"], patients["Pneumonia"], patients["Infiltration"]) == (
        134,
        1008,
        8035,
    )
    notes = {"labels_file": path.name, **label_facts(frame)}
    index = Index("chestxray14", frame.assign(path=""), LABELS, path.parent, notes)
    # The release, and nothing against it; lists and boxes lie beside it.
    assert [p.severity for p in ChestXray14.check(index)] == ["info"]
    # The findings of the boxes are what v2020 has more than the 2017 release.
    boxes = read_boxes(path.with_name("BBox_List_2017.csv.gz"))
    assert (len(boxes), boxes["image_id"].nunique()) == (984, 880)
    assert boxes["image_id"].str[:8].nunique() == 726
    lists = read_lists(path.parent, 0)
    assert {part: len(names) for part, names in lists.items()} == {
        "test": 25_596,
        "train_val": 86_524,
    }
    assert set(boxes["image_id"]) <= set(lists["test"])


@pytest.mark.data
def test_the_real_lists_of_chexnet_hold_the_release_of_2017():
    path = SAMPLES / "nih_meta" / "chexnet_arnoweng_78468_11219_22433.csv.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    frame = read_csv(path)
    frame[list(LABELS)] = frame[list(LABELS)].astype(float)
    notes = label_facts(frame.assign(patient_id=frame["image"].str[:8]))
    assert notes["label_release"] == "2017"
    assert notes["rows_without_finding"] == 60_412
    assert notes["label_positives"] == POSITIVES["2017"]
    boxes = read_boxes(path.with_name("BBox_List_2017.csv.gz"))
    marks = frame.set_index("image")
    pairs = zip(boxes["image_id"], boxes["finding"], strict=True)
    assert len({image for image, finding in pairs if not marks.at[image, finding]}) == 181


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


def test_boxes_are_known_by_image_in_shares(tmp_path: Path) -> None:
    root = ChestXray14.fake(tmp_path / "nih", images=40, variant="nih")
    index = ChestXray14.read_index(root, ChestXray14.Params())
    found = ChestXray14.finding_boxes(index)
    assert found is not None
    assert len(found) == len(index)
    listed = read_boxes(next(root.rglob("BBox_List_2017*")))
    assert sum(map(len, found)) == listed["image_id"].isin(index.image_ids).sum() > 0
    row = int(np.flatnonzero(index.image_ids == listed["image_id"].iloc[0])[0])
    finding, (x0, y0, x1, y1) = found[row][0]
    first = listed.iloc[0]
    assert finding == first["finding"]
    assert (x0, y0) == pytest.approx((first["x"] / 1024, first["y"] / 1024))
    assert (x1 - x0, y1 - y0) == pytest.approx((first["w"] / 1024, first["h"] / 1024))
    next(root.rglob("BBox_List_2017*")).unlink()
    assert ChestXray14.finding_boxes(index) is None
