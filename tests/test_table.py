"""A user's own table: what is read, what is refused, and what the message says."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxrbench.core.errors import ConfigError, DataError, MissingInputError
from cxrbench.core.store import Store
from cxrbench.data import table
from cxrbench.data.index import Index
from cxrbench.data.splits import find_split
from cxrbench.data.table import Table, TableParams
from cxrbench.data.verify import verify_dataset

HEADER = "path,patient_id,Edema,Mass"
ROWS = ["a.png,007,1,0", "b.png,007,0,1", "sub/c d.png,x-1,-1,", "é.png,9,1.0,0"]


def make(
    root: Path, header: str = HEADER, rows=ROWS, *, name="films.csv", encoding="utf-8"
) -> Path:
    """The table, and an image for each path that may have one."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes("\n".join([header, *rows]).encode(encoding))
    for path in ("a.png", "b.png", "sub/c d.png", "é.png"):
        (root / path).parent.mkdir(exist_ok=True)
        Image.fromarray(np.eye(20, dtype=np.uint8) * 200).save(root / path)
    return root


def read(root: Path, **params) -> Index:
    return Table.read_index(root, TableParams.parse(params, where="--set data"))


def test_a_plain_table(tmp_path):
    index = read(make(tmp_path))
    assert index.labels == ("Edema", "Mass")
    assert index.patient_ids.tolist() == ["007", "007", "x-1", "9"]
    assert index.image_ids.tolist() == ["a.png", "b.png", "sub/c d.png", "é.png"]
    np.testing.assert_array_equal(index.targets, [[1, 0], [0, 1], [np.nan, np.nan], [1, 0]])
    assert index.notes == {"table": "films.csv", "rows": 4}


@pytest.mark.parametrize(
    ("params", "row"),
    [
        ({"uncertain": "positive"}, [1, np.nan]),
        ({"uncertain": "negative"}, [0, np.nan]),
        ({"blank": "negative"}, [np.nan, 0]),
        ({"uncertain": "positive", "blank": "negative"}, [1, 0]),
    ],
)
def test_uncertain_and_blank_cells_follow_the_policy(tmp_path, params, row):
    np.testing.assert_array_equal(read(make(tmp_path), **params).targets[2], row)


def test_reserved_columns_are_no_labels(tmp_path):
    header = "image_id,path,patient_id,group_id,split,fold,sex,age,view_position,Edema,"
    rows = [
        f"i{n},{path},p{n},g,train,1,F,{40 + n},PA,{n % 2},"
        for n, path in enumerate(("a.png", "b.png"))
    ]
    index = read(make(tmp_path, header, rows))
    assert index.labels == ("Edema",)
    assert index.image_ids.tolist() == ["i0", "i1"]
    assert index.frame[["sex", "age", "view_position"]].values.tolist() == [
        ["F", 40, "PA"],
        ["F", 41, "PA"],
    ]
    assert index.frame["group_id"].tolist() == ["g", "g"]


def test_columns_can_be_chosen(tmp_path):
    root = make(tmp_path, "image,patient_id,Edema,note", ["a.png,1,1,seen twice", "b.png,2,0,ok"])
    assert read(root, labels=["Edema"]).labels == ("Edema",)
    with pytest.raises(DataError, match="line 2: column 'note': 'seen twice' is not a number"):
        read(root)
    with pytest.raises(DataError, match="no column 'Oedema'; did you mean 'Edema'"):
        read(root, labels=["Oedema"])
    with pytest.raises(DataError, match="'patient_id' cannot be a label"):
        read(root, labels=["patient_id"])
    with pytest.raises(ConfigError, match="'lables'; did you mean 'labels'"):
        read(root, lables=["Edema"])


def test_which_table(tmp_path):
    root = make(tmp_path)
    same = read(root).frame
    pd.testing.assert_frame_equal(Table.read_index(root / "films.csv", TableParams()).frame, same)
    make(root, name="old.csv")
    with pytest.raises(MissingInputError, match=r"found films\.csv, old\.csv; choose"):
        read(root)
    assert read(root, table="old.csv").notes["table"] == "old.csv"
    with pytest.raises(MissingInputError, match=r"did you mean 'films\.csv'"):
        read(root, table="film.csv")
    with pytest.raises(DataError, match="outside"):
        read(root / "sub", table="../films.csv")
    with pytest.raises(MissingInputError, match="found none"):
        read(root / "sub")
    with pytest.raises(MissingInputError, match="pass --data"):
        Table.read_index(None, TableParams())


@pytest.mark.parametrize("kind", ["csv.gz", "parquet"])
def test_packed_and_parquet_tables(tmp_path, kind):
    root = make(tmp_path)
    expected = read(root)
    frame = pd.read_csv(root / "films.csv", dtype={"patient_id": str})
    (root / "films.csv").unlink()
    if kind == "parquet":
        frame.to_parquet(root / "films.parquet")
    else:
        frame.to_csv(root / "films.csv.gz", index=False)
    index = read(root)
    np.testing.assert_array_equal(index.targets, expected.targets)
    assert index.patient_ids.tolist() == expected.patient_ids.tolist()


def test_a_bad_parquet_cell_is_named_by_row(tmp_path):
    root = make(tmp_path)
    (root / "films.csv").unlink()
    frame = pd.DataFrame({"path": ["a.png", "b.png"], "patient_id": [1, 2], "Edema": [1, 2]})
    frame.to_parquet(root / "films.parquet")
    with pytest.raises(DataError, match=r"films\.parquet: row 2: column 'Edema': '2' is not 1, 0"):
        read(root)
    (root / "films.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="not a Parquet table"):
        read(root)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("path,patient,Edema", ["a.png,1,1"], "no column 'patient_id'; did you mean 'patient'"),
        ("file,patient_id,Edema", ["a.png,1,1"], "no column 'path' or 'image'"),
        ("path,patient_id", ["a.png,1"], "no label column"),
        (HEADER, ["a.png,1,2,0"], "line 2: column 'Edema': '2' is not 1, 0, -1 or blank"),
        (HEADER, ["a.png,1,yes,0"], "line 2: column 'Edema': 'yes' is not a number"),
        (HEADER, ["a.png,1,nan,0"], "line 2: column 'Edema': 'nan' is not a number"),
        (HEADER, ["a.png,1,inf,0"], "line 2: column 'Edema': 'inf' is not a number"),
        (HEADER, ["a.png,1,1,0", "b.png,2,True,0"], "line 3: column 'Edema': 'True'"),
        (HEADER, ["a.png,1,,0", "b.png,1,-1,0"], "column 'Edema' holds no known value"),
        (HEADER, ["a.png,1,1,0", "b.png,,1,0"], "line 3: patient_id '' is blank"),
        (HEADER, ["a.png,1,1,0", "a.png,1,1,0"], "path stand twice.*'a.png' in lines 2, 3"),
        (HEADER, ["a.png,1,1"], "line 2: 3 fields, but the header has 4"),
        (HEADER, ["a.png,1,1,0,7"], "line 2: 5 fields"),
        (HEADER, [], "a header but no rows"),
        (HEADER + ",Mass", ["a.png,1,1,0,0"], "stand twice"),
        ("path;patient_id;Edema", ["a.png;1;1"], "semicolons"),
        (HEADER + ",age", ["a.png,1,1,0,old"], "line 2: column 'age': 'old' is not a number"),
    ],
)
def test_bad_tables_are_errors_with_line_and_column(tmp_path, header, rows, message):
    with pytest.raises(DataError, match=f"films.csv: .*{message}"):
        read(make(tmp_path, header, rows))


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("utf-16", "encoded as UTF-16"), ("latin-1", "line 5: byte 0xe9 is not UTF-8")],
)
def test_other_encodings_are_named(tmp_path, encoding, message):
    with pytest.raises(DataError, match=message):
        read(make(tmp_path, encoding=encoding))
    assert len(read(make(tmp_path / "bom", encoding="utf-8-sig"))) == 4


def test_two_ids_for_one_file_are_refused(tmp_path):
    root = make(tmp_path, "image_id,path,patient_id,Edema", ["i,a.png,1,1", "j,a.png,2,0"])
    with pytest.raises(DataError, match="values of path stand twice"):
        read(root)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/passwd", "is absolute"),
        ("C:/x.png", "is absolute"),
        ("../secret.png", r"holds '\.\.'"),
        ("sub/../../secret.png", r"holds '\.\.'"),
        ("sub\\a.png", "backslash"),
        ('"a\n.png"', "control characters"),
        ("a\x07.png", "control characters"),
        ("leak/secret.png", "a link that leaves"),
        ("leak.png", "a link that leaves"),
    ],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, path, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.png").write_bytes(b"x")
    root = make(tmp_path / "in", rows=["a.png,1,1,0", f"{path},2,0,1"])
    (root / "leak").symlink_to(tmp_path / "out")
    (root / "leak.png").symlink_to(tmp_path / "out" / "secret.png")
    with pytest.raises(DataError, match=f"line 3: path .*{message}"):
        read(root)


def test_links_inside_the_folder_are_followed(tmp_path):
    root = make(tmp_path, rows=["here.png,1,1,0", "b.png,2,0,1"])
    (root / "here.png").symlink_to(root / "a.png")
    assert len(read(root)) == 2


def test_missing_files_are_all_counted_and_named(tmp_path):
    rows = [*ROWS, *(f"gone{n:02d}.png,{n},1,0" for n in range(12))]
    with pytest.raises(DataError) as caught:
        read(make(tmp_path, rows=rows))
    message = str(caught.value)
    assert "12 of 16 files are not below" in message
    assert "gone00.png (line 6)" in message
    assert all(f"gone{n:02d}.png" in message for n in range(12))


def test_given_splits_are_checked(tmp_path):
    header = "path,patient_id,split,Edema"
    rows = ["a.png,1,train,1", "b.png,1,train,0", "sub/c d.png,2,val,1", "é.png,3,test,0"]
    index = read(make(tmp_path, header, rows))
    parts = Table.make_split("given", index).parts(index, 0)
    assert parts.tolist() == ["train", "train", "val", "test"]
    for number, (bad, message) in enumerate(
        [
            ("b.png,1,test,0", "1 patients stand in two parts: 1"),
            ("b.png,1,valid,0", "split 'valid'; did you mean 'val'"),
        ]
    ):
        index = read(make(tmp_path / str(number), header, [rows[0], bad, *rows[2:]]))
        with pytest.raises(DataError, match=message):
            Table.make_split("given", index)
    index = read(make(tmp_path / "no-val", header, [*rows[:2], rows[3]]))
    with pytest.raises(DataError, match="no row has split 'val'"):
        Table.make_split("given", index)
    index = read(make(tmp_path / "none"))
    with pytest.raises(MissingInputError, match="no column 'split'"):
        Table.make_split("given", index)


def test_a_changed_split_column_is_not_answered_from_the_store(tmp_path):
    header = "path,patient_id,split,Edema"
    rows = ["a.png,1,train,1", "b.png,2,train,0", "sub/c d.png,3,val,1", "é.png,4,test,0"]
    store = Store(tmp_path / "store")
    index = read(make(tmp_path / "d", header, rows))
    find_split(Table, index, "given", "same", store)
    swapped = [
        row.replace("train", "X").replace("test", "train").replace("X", "test") for row in rows
    ]
    index = read(make(tmp_path / "d", header, swapped))
    split, _ = find_split(Table, index, "given", "same", store)
    assert split.parts(index, 0).tolist() == ["test", "test", "val", "train"]


def test_labels_with_one_value_are_told(tmp_path):
    index = read(make(tmp_path, rows=["a.png,1,1,0", "b.png,2,1,1"]))
    assert [(p.names, p.what) for p in Table.check(index)] == [
        (("Edema",), "every known value is 1")
    ]


@pytest.mark.parametrize("variant", Table.variants)
def test_every_miniature_is_read_verified_and_split(tmp_path, variant):
    root = Table.fake(tmp_path / "d", images=60, size=32, variant=variant)
    index = read(root)
    assert len(index) == 60
    assert np.isnan(index.targets).any()
    assert verify_dataset(Table, index) == []
    for name in Table.splits:
        split, facts = find_split(Table, index, name, "r", Store(tmp_path / "store"))
        assert facts["complete"] and set(split.parts(index, 0)) == {"train", "val", "test"}
        siblings = split.assigned(index)[(index.frame["group_id"] == "siblings").to_numpy()]
        assert len(set(siblings)) == 1
    pairs = index.frame[["patient_id", "group_id"]].drop_duplicates()
    assert (pairs["group_id"] == "siblings").sum() == 2


def test_the_miniatures_hold_the_traps_and_the_same_films(tmp_path):
    csv, parquet = (Table.fake(tmp_path / v, images=20, size=32, variant=v) for v in Table.variants)
    data = (csv / "films.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbfpath,")
    assert data.count(b",\r\n") == data.count(b"\n") == 21
    index = read(csv)
    assert index.path(1).name.endswith(" a.JPG") and "längs" in str(index.frame["path"][1])
    with Image.open(index.path(0)) as first, Image.open(index.path(2)) as third:
        assert (first.mode, third.size) == ("RGBA", (32, 24))
    stored = pd.read_parquet(parquet / "films.parquet")
    assert stored["Effusion"].dtype == bool and stored["patient_id"].dtype == np.int64
    assert stored.index[0] == 5
    same = read(parquet)
    assert list(same.frame["path"]) == list(index.frame["path"])
    np.testing.assert_array_equal(same.targets, index.targets)
    assert list(same.patient_ids) == [str(int(patient)) for patient in index.patient_ids]
    assert np.isnan(same.frame["age"][0]) and same.frame["age"][1] == index.frame["age"][1]


def test_a_parquet_table_that_unfolds_is_refused_before_it_is_read(tmp_path, monkeypatch):
    root = make(tmp_path)
    frame = pd.read_csv(root / "films.csv")
    (root / "films.csv").unlink()
    frame.to_parquet(root / "films.PARQUET")
    assert len(read(root)) == 4
    monkeypatch.setattr(table, "MOST_CELLS", 15)
    monkeypatch.setattr(pd, "read_parquet", lambda _: pytest.fail("it was read"))
    with pytest.raises(DataError, match=r"films\.PARQUET: 16 cells, over 15; keep the columns"):
        read(root)


def test_packed_tables_in_capitals_are_unpacked(tmp_path):
    root = make(tmp_path)
    packed = gzip.compress((root / "films.csv").read_bytes())
    (root / "films.csv").unlink()
    (root / "FILMS.CSV.GZ").write_bytes(packed)
    assert len(read(root)) == 4
