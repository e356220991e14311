"""CheXpert: layouts, label files with every trap, what -1 and blanks mean, folds that nothing moves."""

import gzip
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxrbench.core.errors import ConfigError, DataError, MissingInputError, UsageError
from cxrbench.core.store import Store
from cxrbench.data.chexpert import (
    FINDING,
    POSITIVE,
    PUBLISHED,
    PUBLISHED_PA,
    SALT,
    UNSURE,
    Chexpert,
)
from cxrbench.data.chexpert_files import survey
from cxrbench.data.chexpert_labels import COMPETITION, FINDINGS, LABELS, read_rows
from cxrbench.data.chexpert_tasks import (
    ChexpertParams,
    abnormal,
    abnormal_strata,
    all_strata,
    findings,
    in_view,
)
from cxrbench.data.index import SOFT, Index, join_twins
from cxrbench.data.splits import NONE, Split, describe, find_split, verify_split
from cxrbench.data.verify import verify_dataset
from cxrbench.runner.bind import open_dataset

HEAD = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
COLUMNS = (*HEAD, *LABELS)
VIEW = "view1_frontal.jpg"
NAME = "CheXpert-v1.0-small"


def row(path: str = "", view: str = "PA", sex: str = "Male", age: str = "60", **marks: str) -> dict:
    """A row by column; labels by name with _ for blanks."""
    lateral = "lateral" in path
    cells = {"Path": path, "Sex": sex, "Age": age, "AP/PA": "" if lateral else view}
    cells |= {"Frontal/Lateral": "Lateral" if lateral else "Frontal"}
    given = {label.replace("_", " "): mark for label, mark in marks.items()}
    return cells | {label: given.get(label, "") for label in LABELS}


def path_of(number: int, subset: str = "train", study: int = 1, view: str = VIEW) -> str:
    return f"{NAME}/{subset}/patient{number:05d}/study{study}/{view}"


def write_csv(
    file: Path, rows: list[dict], columns=COLUMNS, *, names=None, end="\n", **how
) -> Path:
    lines = [",".join(names or columns), *(",".join(r[c] for c in columns) for r in rows)]
    file.parent.mkdir(parents=True, exist_ok=True)
    text = how.get("mark", "") + end.join(line + how.get("tail", "") for line in lines) + end
    file.write_bytes(text.encode(how.get("encoding", "utf-8")))
    return file


def write_images(folder: Path, rows: list[dict]) -> None:
    """A file each, at the path below the copy's own folder, with a content of its own."""
    for cells in rows:
        path = folder / cells["Path"].partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(cells["Path"])


ROWS = [
    row(path_of(1), No_Finding="1.0", Support_Devices="1.0"),
    row(path_of(2), view="AP", Edema="1.0", Atelectasis="-1.0", Pneumothorax="0.0", sex="Female"),
    row(path_of(2, view="view2_lateral.jpg"), Edema="1.0", Atelectasis="-1.0", Pneumothorax="0.0"),
    row(path_of(2, study=2), view="LL", Pleural_Effusion="1.0"),
    row(path_of(3), Cardiomegaly="-1.0", age="0", sex="Unknown"),
]
VALID = [
    row(path_of(64541, "valid"), **dict.fromkeys((x.replace(" ", "_") for x in LABELS), "0.0"))
]
IDS = [r["Path"].partition("/")[2] for r in ROWS]


@pytest.fixture
def small(tmp_path) -> Path:
    """A small version of five train images and one of valid."""
    base = tmp_path / NAME
    write_csv(base / "train.csv", ROWS)
    write_csv(base / "valid.csv", VALID)
    write_images(base, [*ROWS, *VALID])
    return tmp_path


def read(root: Path, **params) -> Index:
    return Chexpert.read_index(root, ChexpertParams.parse(params, where="test"))


def marks_of(index: Index) -> dict[str, dict[str, float]]:
    frame = index.frame.set_index("image_id")
    return {i: {k: frame.loc[i, FINDING + k] for k in LABELS} for i in frame.index}


# --- label files


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"mark": "\ufeff"},
        {"end": "\r\n"},
        {"tail": ","},
        {"columns": tuple(reversed(COLUMNS))},
        {"names": [c.replace(" ", "_") for c in COLUMNS]},
        {"columns": (*COLUMNS[3:9], *COLUMNS[:3], *COLUMNS[9:])},
    ],
    ids=["plain", "mark", "crlf", "commas", "reversed", "underscores", "mixed"],
)
def test_columns_are_found_by_name_however_the_file_is_written(tmp_path, how):
    write_csv(tmp_path / "train.csv", ROWS, **how)
    write_images(tmp_path, ROWS)
    index = read(tmp_path, view="all")
    assert list(index.image_ids) == IDS
    assert list(index.patient_ids) == [f"patient{n:05d}" for n in (1, 2, 2, 2, 3)]
    assert list(index.frame["view_position"]) == ["PA", "AP", "lateral", "LL", "PA"]
    assert list(index.frame["sex"]) == ["M", "F", "M", "M", ""]
    assert list(index.frame["age"]) == [60, 60, 60, 60, 0]
    for cells, image_id in zip(ROWS, IDS, strict=True):
        found = marks_of(index)[image_id]
        wanted = {k: float(cells[k]) if cells[k] else np.nan for k in LABELS}
        assert all(found[k] == wanted[k] or np.isnan([found[k], wanted[k]]).all() for k in LABELS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Path": "/data/train/patient00009/study1/" + VIEW}, "line 7.*is absolute"),
        ({"Path": "C:/train/patient00009/study1/" + VIEW}, "line 7.*is absolute"),
        ({"Path": f"{NAME}/train/../../patient00009/study1/{VIEW}"}, r"line 7.*holds '\.\.'"),
        ({"Path": f"../train/patient00009/study1/{VIEW}"}, r"line 7.*holds '\.\.'"),
        ({"Path": f"{NAME}\\train\\patient00009\\study1\\{VIEW}"}, "line 7.*a backslash"),
        ({"Path": f"{NAME}/valid/patient00009/study1/{VIEW}"}, "line 7.*of another subset"),
        ({"Path": f"{NAME}/train/patient9/study1/{VIEW}"}, "line 7.*is not like train/patient0"),
        ({"Path": f"{NAME}/train/patient00009/study1/view1.jpg"}, "line 7.*is not like"),
        ({"Path": f"a\x01/train/patient00009/study1/{VIEW}"}, "line 7.*is not like"),
        ({"Path": ""}, "line 7.*is not like"),
        ({"Edema": "2.0"}, r"line 7: column 'Edema': '2.0' is not 1, 0, -1 or blank \(1 such"),
        ({"Edema": "yes"}, "line 7: column 'Edema'"),
        ({"Sex": "male"}, "line 7: column 'Sex': 'male' is not Male"),
        ({"Age": "old"}, "line 7: column 'Age'"),
        ({"Age": "-3"}, "line 7: column 'Age'"),
        ({"AP/PA": "pa"}, "line 7: column 'AP/PA': 'pa' is not AP"),
        ({"Frontal/Lateral": "Lateral"}, "line 7: Frontal/Lateral contradicts"),
        ({"Path": ROWS[0]["Path"]}, "patient00001/study1/view1_frontal.jpg stands twice.*2, 7"),
    ],
)
def test_bad_rows_are_errors_with_file_and_line(small, change, message):
    write_csv(small / NAME / "train.csv", [*ROWS, row(path_of(9)) | change])
    with pytest.raises(DataError, match=f"train.csv: .*{message}|train.csv: {message}"):
        read(small)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("path", *COLUMNS[1:]), "no column 'Path' or 'Study'; did you mean 'path'"),
        (
            [c.replace("Edema", "Oedema") for c in COLUMNS],
            "no column 'Edema'.*did you mean 'Oedema'",
        ),
        ([c.replace("Lung Opacity", "lung opacity") for c in COLUMNS], "mean 'lung opacity'"),
        ([c.replace("Fracture", "Edema") for c in COLUMNS], r"columns \['Edema'\] stand twice"),
    ],
)
def test_headers_are_exact_and_hint_at_the_nearest(small, names, message):
    write_csv(small / NAME / "train.csv", ROWS, names=names)
    with pytest.raises(DataError, match=message):
        read(small)


def test_other_encodings_are_told(small):
    write_csv(small / NAME / "train.csv", ROWS, encoding="utf-16")
    with pytest.raises(DataError, match="encoded as UTF-16"):
        read(small)


def test_repeated_rows_are_left_out_and_counted(small):
    write_csv(small / NAME / "train.csv", [*ROWS, ROWS[0], ROWS[0]])
    index = read(small, view="all")
    assert len(index) == 6
    assert index.notes["repeated_rows"] == 2
    assert ("warning", 2) in [(p.severity, p.count) for p in Chexpert.check(index)]


def test_a_patient_of_two_subsets_is_an_error(small):
    write_csv(small / NAME / "valid.csv", [row(path_of(1, "valid"))])
    with pytest.raises(DataError, match=r"1 patients stand in .* two subsets: patient00001"):
        read(small)


# --- layouts


@pytest.fixture(scope="module")
def fakes(tmp_path_factory) -> dict[str, Path]:
    roots = {}
    for variant in Chexpert.variants:
        roots[variant] = tmp_path_factory.mktemp(variant)
        Chexpert.fake(roots[variant], images=60, size=32, variant=variant)
    return roots


def test_every_layout_gives_the_same_images_ids_and_marks(fakes):
    indexes = {variant: read(root, view="all") for variant, root in fakes.items()}
    usual = marks_of(indexes["small"])
    for variant, index in indexes.items():
        found = marks_of(index)
        assert {i.split("/")[0] for i in found} == {
            "aimi": {"train", "valid"},
            "chexlocalize": {"valid", "test"},
        }.get(variant, {"train", "valid", "test"})
        for image_id, marks in found.items():
            assert list(marks.values()) == pytest.approx(
                list(usual[image_id].values()), nan_ok=True
            )
        wanted = {i for i in usual if i.split("/")[0] in {j.split("/")[0] for j in found}}
        assert set(found) == wanted
        assert all(index.path(n).is_file() for n in range(len(index)))
    assert indexes["studies"].notes["label_files"]["test"] == "groundtruth.csv"
    assert indexes["chexlocalize"].notes["label_files"]["valid"] == "val_labels.csv"
    assert "batch 3 (train 2)" in " ".join(indexes["aimi"].frame["path"])
    assert any(not p.isascii() for p in indexes["full"].frame["path"])


def test_every_miniature_is_verified_and_has_every_oddity(fakes):
    for root in fakes.values():
        index = read(root)
        problems = verify_dataset(Chexpert, index)
        assert {p.severity for p in problems} == {"warning"}
    index = read(fakes["small"], view="all")
    frame = index.frame.set_index("patient_id")
    assert frame.loc["patient33093", "sex"] == ""
    assert frame.loc["patient64538", "age"] == 0
    assert frame.loc["patient40001", "view_position"] == "LL"
    assert np.isnan(frame.loc["patient40002", [FINDING + k for k in LABELS]].astype(float)).all()
    assert "patient64540" not in frame.index
    assert (frame["view_position"] == "lateral").any()
    assert (frame[[FINDING + k for k in LABELS]] == -1).any(axis=None)
    absent = [p for p in Chexpert.check(index) if "missing" in p.what]
    assert [(p.count, p.names) for p in absent] == [
        (1, ("train/patient64540/study1/view1_frontal.jpg",))
    ]
    assert "some copies lack it" in absent[0].what
    full = next(fakes["full"].glob("donn*/*/train.csv")).read_bytes()
    assert full.startswith(b"\xef\xbb\xbfPath,") and full.endswith(b",\r\n")
    assert b",Lung_Opacity," in (fakes["chexlocalize"] / "CheXpert" / "val_labels.csv").read_bytes()
    base = fakes["aimi"] / "chexpertchestxrays-u20210408"
    assert (base / "CHEXPERT DEMO.xlsx").is_file()
    assert not next(base.glob("*/train.csv")).read_text().startswith("Path")
    with Image.open(index.path(0)) as image:
        assert image.mode == "RGB" and image.width != image.height
    with pytest.raises(UsageError, match="did you mean 'small'"):
        Chexpert.fake(fakes["small"], variant="smal")


def test_the_root_is_the_copy_its_parent_or_its_train_folder(small):
    whole = read(small)
    assert set(whole.frame["subset"]) == {"train", "valid"}
    assert list(read(small / NAME).image_ids) == list(whole.image_ids)
    alone = read(small / NAME / "train")
    assert list(alone.image_ids) == [i for i in whole.image_ids if i.startswith("train")]
    assert all(alone.path(n).is_file() for n in range(len(alone)))


def test_label_files_may_lie_elsewhere_and_be_packed(small, tmp_path):
    text = (small / NAME / "train.csv").read_bytes()
    (small / NAME / "train.csv").unlink()
    packed = small / "labels" / "mine.csv.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(text))
    index = read(small / NAME, train_csv="../labels/mine.csv.gz", view="all")
    assert set(IDS) < set(index.image_ids)
    assert packed.resolve() in [p.resolve() for p in index.sources]
    with pytest.raises(MissingInputError, match=r"data\.train_csv\); did you mean 'valid.csv'"):
        read(small / NAME, train_csv="vald.csv")


def test_a_train_csv_of_another_data_set_is_passed_over(small):
    write_csv(small / "apples" / "train.csv", [{"a": "1"}], columns=("a",))
    assert len(read(small)) == 5
    (small / NAME / "train.csv").unlink()
    (small / NAME / "valid.csv").unlink()
    with pytest.raises(
        MissingInputError, match=r"no label file \(train.csv, valid.csv.*train_csv="
    ):
        read(small)


def test_two_copies_are_refused_unless_the_label_file_is_beside_one(small):
    shutil.copytree(small / NAME, small / "CheXpert-v1.0")
    # Equal label files are one, and that of a copy has the images of that copy.
    assert {p.split("/")[0] for p in read(small).frame["path"]} == {"CheXpert-v1.0"}
    write_csv(small / NAME / "train.csv", ROWS[:2])
    with pytest.raises(
        DataError, match=r"2 different label files of the subset train.*data.train_csv"
    ):
        read(small)
    index = read(small, train_csv=f"{NAME}/train.csv")
    assert {p.split("/")[0] for p in index.frame["path"]} == {NAME}
    shutil.copy(small / NAME / "train.csv", small / "mine.csv")
    with pytest.raises(DataError, match=r"lies in two folders: .*point --data at one copy"):
        read(small, train_csv="mine.csv")


def test_chexlocalizes_copy_of_valid_does_not_disturb(small):
    other = small / "CheXpert-v1.0"
    write_csv(other / "valid.csv", [VALID[0] | {"Edema": "1.0"}])
    write_images(other, VALID)
    write_csv(small / "CheXpert" / "val_labels.csv", VALID)
    index = read(small)
    valid = index.frame[index.frame["subset"] == "valid"]
    assert valid["path"].tolist() == [f"{NAME}/valid/patient64541/study1/{VIEW}"]
    assert valid["Edema"].tolist() == [0]


def test_missing_images_are_counted_and_named(small):
    shutil.rmtree(small / NAME / "train" / "patient00002")
    index = read(small, view="all")
    assert index.notes["coverage"] == {"present": 3, "promised": 6, "complete": False}
    missing = next(p for p in Chexpert.check(index) if "missing" in p.what)
    assert (missing.severity, missing.count, missing.names) == ("warning", 3, tuple(IDS[1:4]))
    # Notes go into records, and ids must not be published.
    assert "patient0" not in str(index.notes)
    shutil.rmtree(small / NAME / "train")
    shutil.rmtree(small / NAME / "valid")
    with pytest.raises(
        MissingInputError, match=r"none of the 5 images of train.csv, valid.csv is here"
    ):
        read(small)


def test_a_copy_is_complete_only_with_the_published_rows(small, monkeypatch):
    whole = {"present": 6, "promised": 6}
    assert read(small, view="all").notes["coverage"] == {**whole, "complete": False}
    for subset, images in (("train", 5), ("valid", 1)):
        monkeypatch.setitem(PUBLISHED, subset, {**PUBLISHED[subset], "images": images})
    assert read(small, view="all").notes["coverage"] == {**whole, "complete": True}
    (small / NAME / IDS[0]).unlink()
    assert not read(small, view="all").notes["coverage"]["complete"]


def test_hidden_and_packers_folders_are_passed_over(small):
    for junk in (".trash", "__MACOSX"):
        shutil.copytree(small / NAME, small / junk / NAME)
    assert {p.split("/")[0] for p in read(small).frame["path"]} == {NAME}


def test_folders_without_a_row_are_counted(small):
    (small / NAME / "train" / "patient00077").mkdir()
    index = read(small)
    assert index.notes["patients_without_row"] == 1
    assert "folders of patients" in " ".join(p.what for p in Chexpert.check(index))


@pytest.mark.parametrize(
    "place", ["patient00001", "patient00001/study1", f"patient00001/study1/{VIEW}"]
)
def test_links_of_patients_studies_and_images_may_not_leave_the_folder(small, tmp_path, place):
    root, path = small / NAME, small / NAME / "train" / place
    outside = tmp_path / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)
    with pytest.raises(
        DataError, match=r"train.csv: line 2: train/patient00001.* is a link that leaves"
    ):
        read(root)
    # A link that stays inside is as good as a file; one that leads nowhere is a missing image.
    shutil.move(outside, root / "kept")
    path.unlink()
    path.symlink_to(root / "kept")
    assert read(root).image_ids[0] == IDS[0]
    path.unlink()
    path.symlink_to(root / "nowhere")
    assert IDS[0] not in set(read(root).image_ids)


def test_a_linked_folder_outside_is_not_followed_and_told(small, tmp_path):
    root = small / NAME
    shutil.move(root / "valid", tmp_path / "elsewhere")
    (root / "valid").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    index = read(root)
    assert index.notes["links_not_followed"] == ["valid"]
    assert index.notes["coverage"]["present"] == 4
    told = next(p for p in Chexpert.check(index) if "links" in p.what)
    assert told.names == ("valid",)
    shutil.move(root / "train", tmp_path / "away")
    (root / "train").symlink_to(tmp_path / "away")
    with pytest.raises(MissingInputError, match="not followed: train, valid"):
        read(root)


def test_labels_by_study_hold_for_its_images(small):
    rows = [row(path_of(64741, "test", view=v)) for v in ("view1_frontal.jpg", "view2_lateral.jpg")]
    write_images(small / NAME, rows)
    studies = [
        {"Study": f"CheXpert-v1.0/test/patient{n}/study1"}
        | dict.fromkeys(LABELS, "0")
        | {"Edema": m}
        for n, m in ((64741, "1"), (64742, "0"))
    ]
    write_csv(small / NAME / "groundtruth.csv", studies, columns=("Study", *LABELS))
    index = read(small, view="all")
    test = index.frame[index.frame["subset"] == "test"]
    assert test["image_id"].tolist() == [r["Path"].partition("/")[2] for r in rows]
    assert test["Edema"].tolist() == [1, 1]
    assert test["view_position"].tolist() == ["", "lateral"]
    assert np.isnan(test["age"]).all()
    assert index.notes["studies_without_image"] == 1
    assert index.notes["coverage"]["promised"] - index.notes["coverage"]["present"] == 1
    for bad, message in (
        ("../test/patient64741/study1", r"'\.\.'"),
        ("a/study1", "is not like test/p"),
    ):
        write_csv(small / "g.csv", [studies[0] | {"Study": bad}], columns=("Study", *LABELS))
        with pytest.raises(DataError, match=f"g.csv: line 2: Study .*{message}"):
            read(small, test_csv="g.csv")


# --- views and tasks


@pytest.mark.parametrize(
    ("view", "positions"),
    [
        ("all", ["PA", "AP", "lateral", "LL", "PA"]),
        ("frontal", ["PA", "AP", "LL", "PA"]),
        ("pa", ["PA", "PA"]),
        ("ap", ["AP"]),
        ("lateral", ["lateral"]),
    ],
)
def test_views(small, view, positions):
    (small / NAME / "valid.csv").unlink()
    index = read(small, view=view)
    assert list(index.frame["view_position"]) == positions
    assert index.notes["left_out"]["of_another_view"] == 5 - len(positions)


def test_a_file_that_does_not_tell_ap_from_pa_has_neither(fakes):
    index = read(fakes["small"], view="pa")
    assert set(index.frame["subset"]) == {"train", "valid"}
    test_rows = index.notes["rows"]["test"]
    assert index.notes["left_out"]["view_not_told"] == test_rows["frontal"]
    with pytest.raises(MissingInputError, match=r"no image of the subset test.*does not tell AP"):
        Chexpert.make_split("radiologist", index)


def test_defaults_follow_from_the_task_and_are_recorded():
    assert ChexpertParams().model_dump()["view"] == "frontal"
    assert ChexpertParams().labels == "all"
    task = ChexpertParams(task="abnormal")
    assert (task.view, task.labels) == ("pa", None)
    for params in (task, ChexpertParams(labels="competition"), ChexpertParams()):
        assert ChexpertParams(**params.model_dump(mode="json")) == params


def test_the_five_labels_of_the_competition(small):
    assert read(small, labels="competition").labels == COMPETITION
    assert read(small).labels == LABELS


CASES = {  # marks: the class under u-ones, u-zeros, u-ignore, u-mixed; None for left out
    "normal": ({"No_Finding": "1.0"}, (0, 0, 0, 0)),
    "normal with a device": ({"No_Finding": "1.0", "Support_Devices": "1.0"}, (0, 0, 0, 0)),
    "denied findings": ({"No_Finding": "1.0", "Edema": "0.0"}, (0, 0, 0, 0)),
    "a finding": ({"Fracture": "1.0"}, (1, 1, 1, 1)),
    "a finding and a doubt": ({"Fracture": "1.0", "Edema": "-1.0"}, (1, 1, 1, 1)),
    "a doubt": ({"Fracture": "-1.0"}, (1, None, None, None)),
    "a doubt that mixed makes one of": ({"Edema": "-1.0"}, (1, None, None, 1)),
    "a device alone": ({"Support_Devices": "1.0"}, (None, None, None, None)),
    "nothing": ({}, (None, None, None, None)),
    "only denials": ({"Edema": "0.0"}, (None, None, None, None)),
    "contradiction": ({"No_Finding": "1.0", "Edema": "1.0"}, (1, 1, 1, 1)),
    "doubtful contradiction": ({"No_Finding": "1.0", "Edema": "-1.0"}, (1, None, None, 1)),
}


@pytest.mark.parametrize("policy", ["u-ones", "u-zeros", "u-ignore", "u-mixed"])
def test_abnormal_follows_the_rule_of_the_paper(tmp_path, policy):
    rows = [row(path_of(n), **marks) for n, (marks, _) in enumerate(CASES.values(), 1)]
    write_csv(tmp_path / "train.csv", rows)
    write_images(tmp_path, rows)
    index = read(tmp_path, task="abnormal", policy=policy)
    found = dict(zip(index.patient_ids, index.targets[:, 0], strict=True))
    column = ("u-ones", "u-zeros", "u-ignore", "u-mixed").index(policy)
    for n, (case, (_, classes)) in enumerate(CASES.items(), 1):
        assert found.get(f"patient{n:05d}") == classes[column], case
    out = index.notes["left_out"]
    assert out["neither_normal_nor_abnormal"] == 3
    assert out["only_uncertain"] == sum(c[column] is None for _, c in CASES.values()) - 3
    assert index.notes["contradictions"] == 2
    assert index.notes["abnormal"] == {
        **{"images": 9, "normal": 3, "abnormal": 6, "certain": 3, "patients": 9}
    }
    assert any("No Finding and a finding" in p.what for p in Chexpert.check(index))


def test_abnormal_with_smoothed_findings_trains_on_a_soft_value(tmp_path):
    rows = [
        row(path_of(1), Edema="-1.0"),
        row(path_of(2), No_Finding="1"),
        row(path_of(3), Edema="1"),
    ]
    write_csv(tmp_path / "train.csv", rows)
    write_images(tmp_path, rows)
    index = read(tmp_path, task="abnormal", policy="u-zeros", uncertain={"Edema": "smooth"})
    assert np.isnan(index.targets[0, 0])
    assert 0.55 <= index.training_targets[0, 0] <= 0.85
    assert index.training_targets[1:, 0].tolist() == [0, 1]


# --- what -1 and blanks mean


def decide(label: str, marks: list[float], **params):
    ids = np.array([f"i{n}" for n in range(len(marks))], dtype=object)
    return ChexpertParams(**params).decide(label, np.array(marks, np.float32), ids)


@pytest.mark.parametrize(
    ("policy", "edema", "fracture"),
    [
        ("u-ones", 1, 1),
        ("u-zeros", 0, 0),
        ("u-ignore", np.nan, np.nan),
        ("u-mixed", 1, 0),
        ("u-smooth", np.nan, np.nan),
    ],
)
def test_presets(policy, edema, fracture):
    for label, value in (("Edema", edema), ("Fracture", fracture)):
        target, soft = decide(label, [1, 0, -1, np.nan], policy=policy)
        assert target.tolist() == pytest.approx([1, 0, value, 0], nan_ok=True)
        assert (soft is not None) == (policy == "u-smooth")


def test_exceptions_by_label_and_blanks():
    params = {"uncertain": {"Pleural_Effusion": "zeros", "Edema": "ignore"}}
    assert decide("Pleural Effusion", [-1], **params)[0].tolist() == [0]
    assert np.isnan(decide("Edema", [-1], **params)[0]).all()
    assert decide("Fracture", [-1], **params)[0].tolist() == [1]
    assert np.isnan(decide("Edema", [np.nan], blank="ignore")[0]).all()
    assert decide("Edema", [np.nan], blank="ignore", blanks={"Edema": "zeros"})[0].tolist() == [0]
    assert np.isnan(decide("Edema", [np.nan], blanks={"Edema": "ignore"})[0]).all()
    resolved = ChexpertParams(policy="u-mixed", blanks={"Lung_Lesion": "ignore"}).resolved(LABELS)
    assert resolved["uncertain"]["Atelectasis"] == resolved["uncertain"]["Edema"] == "ones"
    assert resolved["uncertain"]["Cardiomegaly"] == "zeros"
    assert [k for k, v in resolved["blank"].items() if v == "ignore"] == ["Lung Lesion"]
    assert "smooth" not in resolved
    assert ChexpertParams(policy="u-smooth").resolved(LABELS)["smooth"] == [0.55, 0.85]


@given(low=st.floats(0, 1), high=st.floats(0, 1), count=st.integers(1, 30))
def test_soft_values_lie_in_the_range_and_follow_from_image_and_label(low, high, count):
    low, high = min(low, high), max(low, high)
    marks = [-1.0, 1.0, 0.0, np.nan] * count
    target, soft = decide("Edema", marks, policy="u-smooth", smooth=(low, high))
    unsure = np.array(marks) == -1
    assert np.isnan(target[unsure]).all()
    assert (np.isnan(soft) == ~unsure).all()
    assert ((soft[unsure] >= np.float32(low)) & (soft[unsure] <= np.float32(high))).all()
    params = ChexpertParams(policy="u-smooth", smooth=(low, high))
    ids = np.array([f"i{n}" for n in reversed(range(len(marks)))], dtype=object)
    again = params.decide("Edema", np.array(marks[::-1], np.float32), ids)[1]
    assert again[::-1].tolist() == pytest.approx(soft.tolist(), abs=0, nan_ok=True)


def test_soft_values_spread_over_the_range_and_differ_by_label():
    _, edema = decide("Edema", [-1] * 4000, policy="u-smooth")
    _, other = decide("Fracture", [-1] * 4000, policy="u-smooth")
    assert abs(edema.mean() - 0.7) < 0.005
    assert edema.min() < 0.56 and edema.max() > 0.84
    assert abs(np.corrcoef(edema, other)[0, 1]) < 0.05


def test_smoothed_labels_are_trained_on_but_not_scored(small):
    index = read(small, uncertain={"Cardiomegaly": "smooth"})
    row_of = list(index.image_ids).index(IDS[4])
    k = index.labels.index("Cardiomegaly")
    assert np.isnan(index.targets[row_of, k])
    assert 0.55 <= index.training_targets[row_of, k] <= 0.85
    assert index.frame[SOFT + "Cardiomegaly"].notna().sum() == 1
    assert index.notes["policy"]["uncertain"]["Cardiomegaly"] == "smooth"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"policy": "u-one"}, "policy"),
        ({"uncertain": {"Edma": "ones"}}, "uncertain: .*no label 'Edma'; did you mean 'Edema'"),
        ({"uncertain": {"Edema": "one"}}, r"uncertain\.Edema"),
        (
            {"uncertain": {"Lung_Lesion": "ones", "Lung Lesion": "zeros"}},
            "'Lung Lesion' stands twice",
        ),
        ({"blanks": {"Edema": "ones"}}, r"blanks\.Edema"),
        ({"smooth": [0.9, 0.1]}, "smooth: .*0.9 to 0.1 is no range"),
        ({"smooth": [0.5, 1.5]}, "smooth: .*no range"),
        ({"smooth": [0.5]}, "smooth"),
        ({"view": "oblique"}, "view"),
        ({"task": "abnormal", "labels": "all"}, "labels: the task abnormal has one label"),
        ({"task": "abnormal", "blank": "ignore"}, "blank.*a blank is no finding"),
        (
            {"task": "abnormal", "uncertain": {"Support Devices": "ones"}},
            "'Support Devices' has no part",
        ),
        ({"labels": "competition", "uncertain": {"Fracture": "ones"}}, "'Fracture' has no part"),
        ({"polcy": "u-ones"}, "unknown key 'polcy'; did you mean 'policy'"),
    ],
)
def test_options_that_make_no_sense_are_errors_that_name_them(params, message):
    with pytest.raises(ConfigError, match=message):
        ChexpertParams.parse(params, where="test")


# --- splits

# Rates of 1, 0 and -1 in train.csv.
RATES = {
    "No Finding": (0.10, 0, 0),
    "Enlarged Cardiomediastinum": (0.048, 0.097, 0.056),
    "Cardiomegaly": (0.121, 0.050, 0.036),
    "Lung Opacity": (0.473, 0.030, 0.025),
    "Lung Lesion": (0.041, 0.006, 0.007),
    "Edema": (0.234, 0.093, 0.058),
    "Consolidation": (0.066, 0.126, 0.124),
    "Pneumonia": (0.027, 0.013, 0.084),
    "Atelectasis": (0.149, 0.006, 0.151),
    "Pneumothorax": (0.087, 0.252, 0.014),
    "Pleural Effusion": (0.386, 0.158, 0.052),
    "Pleural Other": (0.016, 0.001, 0.012),
    "Fracture": (0.040, 0.011, 0.003),
    "Support Devices": (0.519, 0.027, 0.005),
}


def cohort(patients: int, seed: int = 0) -> pd.DataFrame:
    """Rows as `read_rows` gives them: PA images of patients with 1 to 40, labels that persist."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), np.minimum(rng.geometric(0.4, patients), 40))
    columns = {
        "patient_id": [f"patient{n + 1:05d}" for n in owner],
        "subset": "train",
        "lateral": False,
        "view_position": "PA",
    }
    for label in LABELS:
        own = rng.random(patients)[owner]
        drawn = np.where(rng.random(len(owner)) < 0.6, own, rng.random(len(owner)))
        one, zero, unsure = np.cumsum(RATES[label])
        steps = [drawn < one, drawn < zero, drawn < unsure]
        columns[label] = np.select(steps, [1.0, 0.0, -1.0], np.nan)
    rows = pd.DataFrame(columns)
    rows["image_id"] = [f"train/{p}/study{n}/{VIEW}" for n, p in enumerate(rows["patient_id"])]
    return rows.astype(dict.fromkeys(LABELS, np.float32))


def as_index(rows: pd.DataFrame, strata: pd.DataFrame | None, labels: pd.DataFrame) -> Index:
    frame = pd.concat([rows[["image_id", "patient_id", "subset"]], labels], axis=1)
    names = tuple(c for c in labels.columns if not c.startswith(SOFT))
    notes = {"label_files": {"train": "train.csv"}, "view": "pa"}
    return Index("chexpert", frame.assign(path="x"), names, None, notes, (), strata)


def test_folds_balance_every_label_under_every_policy():
    rows = cohort(20_000)
    strata = all_strata(rows)
    checked, parts = 0, None
    for policy in ("u-ones", "u-zeros", "u-ignore", "u-mixed"):
        for blank in ("zeros", "ignore"):
            params = ChexpertParams(view="pa", policy=policy, blank=blank)
            index = as_index(rows, strata, findings(rows, params))
            if parts is None:
                parts = Chexpert.make_split("cv5", index).assigned(index)
            for k, label in enumerate(LABELS):
                target = index.targets[:, k]
                if len(set(index.patient_ids[target == 1])) < 500:
                    continue
                checked += 1
                shares = [np.nanmean(target[parts == fold]) for fold in range(5)]
                assert shares == pytest.approx([np.nanmean(target)] * 5, rel=0.05), (policy, label)
    assert checked > 90


def test_folds_of_abnormal_balance_both_classes_whatever_the_policy():
    rows = cohort(4_000)
    rows.loc[rows[list(FINDINGS)].abs().eq(1).any(axis=1), "No Finding"] = np.nan
    strata, counts = abnormal_strata(rows)
    assert counts["images"] == counts["normal"] + counts["abnormal"]
    splits = []
    for policy in ("u-ones", "u-zeros", "u-mixed"):
        labels, keep = abnormal(rows, ChexpertParams(task="abnormal", policy=policy))
        index = as_index(rows[keep], strata, labels[keep])
        splits.append(Chexpert.make_split("cv5", index))
        parts = splits[-1].assigned(index)
        whole = index.targets.mean()
        shares = [index.targets[parts == fold].mean() for fold in range(5)]
        assert shares == pytest.approx([whole] * 5, rel=0.02)
    assert splits[0].assignment.equals(splits[1].assignment)
    assert splits[0].assignment.equals(splits[2].assignment)


def test_a_partial_download_has_every_patient_in_the_same_fold(fakes, tmp_path):
    root = tmp_path / "part"
    shutil.copytree(fakes["small"], root)
    whole = Chexpert.make_split("cv5", read(root))
    official = Chexpert.make_split("official", read(root))
    for folder in sorted((root / NAME / "train").iterdir())[::2]:
        shutil.rmtree(folder)
    index = read(root)
    assert len(index) < len(read(fakes["small"]))
    assert Chexpert.make_split("cv5", index).assignment.equals(whole.assignment)
    assert Chexpert.make_split("official", index).assignment.equals(official.assignment)
    # Another policy has the same folds, too.
    for params in ({"policy": "u-ignore", "blank": "ignore"}, {"labels": "competition"}):
        other = Chexpert.make_split("cv5", read(fakes["small"], **params))
        assert other.assignment.equals(whole.assignment)


def test_cv5_leaves_valid_and_test_out_and_is_the_same_without_them(fakes, tmp_path):
    index = read(fakes["small"])
    split, facts = find_split(Chexpert, index, "", "r" * 64, Store(tmp_path / "store"))
    assert (split.name, split.folds) == ("cv5", 5)
    train = (index.frame["subset"] == "train").to_numpy()
    assert (split.takes_part(index) == train).all()
    for fold in range(5):
        parts = split.parts(index, fold)
        assert set(parts[train]) == {"train", "val", "test"}
        assert set(parts[~train]) == {NONE}
    assert facts["images"] == train.sum() == facts["coverage"]["present"]
    assert facts["patients"] == len(set(index.patient_ids[train]))
    assert set(facts["counts"]) == {"0", "1", "2", "3", "4"}
    assert facts["complete"] and not facts["differences"]
    # A copy without CheXlocalize has the same digest: the same experiment.
    alone = read(fakes["aimi"])
    assert Chexpert.make_split("cv5", alone).digest(alone) == split.digest(index)
    assert "must not" not in split.rule and "SHA-256" in split.rule


def test_splits_are_stored_by_strata_too(small, tmp_path):
    """A label file that grew by rows without images cuts other folds, though the images are the same."""
    store, index = Store(tmp_path / "store"), read(small)
    more = pd.concat([index.strata, index.strata.assign(patient_id="patient00099")])
    grown = Index(
        index.dataset, index.frame, index.labels, index.root, index.notes, index.sources, more
    )
    first, _ = find_split(Chexpert, index, "official", "r" * 64, store)
    second, _ = find_split(Chexpert, grown, "official", "r" * 64, store)
    assert "patient00099" in set(second.assignment["patient_id"])
    assert "patient00099" not in set(first.assignment["patient_id"])


def test_official_tests_valid_and_gives_a_patient_one_part_for_ever(tmp_path):
    rows = [row(path_of(n)) for n in range(1, 1001)]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "valid.csv", VALID)
    write_images(tmp_path, [*rows[::50], *VALID])
    index = read(tmp_path)
    part_of = Chexpert.make_split("official", index).assignment.set_index("patient_id")["part"]
    assert part_of["patient64541"] == "test"
    assert 0.07 < (part_of == "val").mean() < 0.13
    # Pinned: the hash must never change, or old results are no longer comparable.
    assert SALT == "cxrbench-chexpert-val-v1"
    validating = [n for n in range(1, 60) if part_of[f"patient{n:05d}"] == "val"]
    assert validating == [5, 25, 35, 48, 57]


def test_radiologist_validates_on_valid_and_tests_on_chexlocalize(fakes):
    index = read(fakes["small"])
    parts = Chexpert.make_split("radiologist", index).parts(index, 0)
    role = {"train": "train", "valid": "val", "test": "test"}
    assert (parts == index.frame["subset"].map(role)).all()
    official = Chexpert.make_split("official", index)
    parts = official.parts(index, 0)
    assert (parts == NONE).sum() == (index.frame["subset"] == "test").sum()
    assert set(describe(official, index)["counts"]) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("variant", "split", "message"),
    [
        ("aimi", "radiologist", r"subset test.*data\.test_csv="),
        ("chexlocalize", "cv5", r"subset train.*data\.train_csv="),
        ("chexlocalize", "official", "subset train"),
        ("small", "holdout5", "no split"),
    ],
)
def test_a_split_says_which_subset_it_lacks(fakes, variant, split, message):
    with pytest.raises(MissingInputError, match=message):
        Chexpert.make_split(split, read(fakes[variant]))


def test_patients_with_a_tested_image_take_no_part(small):
    index = read(small)
    contents = [f"c{n}" for n in range(len(index))]
    valid = list(index.frame["subset"]).index("valid")
    contents[0] = contents[valid]
    joined = join_twins(index, contents)
    parts = Chexpert.make_split("official", joined).assignment.set_index("patient_id")["part"]
    assert parts["patient00001"] == NONE
    assert parts["patient64541"] == "test"
    assert NONE not in set(parts.drop("patient00001"))
    assert "patient00001" not in set(
        joined.patient_ids[Chexpert.make_split("official", joined).takes_part(joined)]
    )


def test_images_that_are_left_out_count_for_nothing(small):
    """The part `none` in a split of parts: no digest, no count, no coverage."""
    index = read(small)
    parts = {
        "patient00001": "train",
        "patient00002": "val",
        "patient00003": NONE,
        "patient64541": "test",
    }
    split = Split.of("chexpert", "mine", "by hand", pd.Series(parts))
    keep = index.patient_ids != "patient00003"
    less = index.select(keep)
    assert split.digest(index) == split.digest(less)
    assert describe(split, index)["images"] == keep.sum()
    facts = {**describe(split, index), "digest": split.digest(index), "labels": list(index.labels)}
    assert verify_split(split, facts, index) == verify_split(split, facts, less) == []
    partial = index.select(index.patient_ids != "patient00001")
    assert verify_split(split, facts, partial) == [
        "3 of the 4 images of 'mine' are present (75.0%)"
    ]
    with pytest.raises(DataError, match="unknown parts nobody"):
        Split.of("chexpert", "mine", "by hand", pd.Series({**parts, "patient00003": "nobody"}))
    with pytest.raises(DataError, match=r"folds \[0, 1\]"):
        Split.of("chexpert", "mine", "", pd.Series({"a": 0, "b": 1, "c": -1}))


# --- counts


def published_notes(**rows) -> dict:
    return {
        **{"task": "findings", "view": "frontal", "label_release": "v1.0"},
        "label_files": {s: f"{s}.csv" for s in PUBLISHED},
        "rows": {
            s: {**PUBLISHED[s], "frontal": PUBLISHED[s].get("frontal", 518)} for s in PUBLISHED
        }
        | {s: {**PUBLISHED[s], **found} for s, found in rows.items()},
        **dict.fromkeys(("repeated_rows", "studies_without_image", "patients_without_row"), 0),
        **{"contradictions": 0, "links_not_followed": [], "policy": {"blank": {}}},
        "coverage": {"present": 1, "promised": 1, "complete": True},
    }


def checked(notes: dict, small: Path) -> list[tuple[str, str]]:
    index = read(small)
    other = Index(index.dataset, index.frame, index.labels, index.root, notes)
    return [(p.severity, p.what) for p in Chexpert.check(other)]


def test_counts_are_held_against_the_published_ones(small):
    assert checked(published_notes(), small) == []
    assert checked(published_notes(train={"images": 223_000, "patients": 9}), small) == [
        ("warning", "223,000 rows in train.csv, published 223,414")
    ]
    assert checked(published_notes(test={"images": 669}), small) == [
        ("error", "669 rows in test.csv, published 668")
    ]
    assert checked(published_notes(valid={"patients": 199, "PA": 34}), small) == [
        ("error", "199 patients in valid.csv, published 200"),
        ("error", "34 PA in valid.csv, published 33"),
    ]
    unknown = published_notes() | {"label_release": "unknown"}
    assert "another labeller" in checked(unknown, small)[0][1]
    task = published_notes() | {"task": "abnormal", "view": "pa", "abnormal": dict(PUBLISHED_PA)}
    assert [severity for severity, _ in checked(task, small)] == ["info"]
    task["abnormal"]["normal"] -= 1
    assert checked(task, small)[0] == ("error", "5,498 normal of the task, expected 5,499")


def test_labels_that_lose_their_negatives_are_told(small):
    def told(**params) -> list:
        return [p for p in Chexpert.check(read(small, **params)) if "few negatives" in p.what]

    # Here the one row of valid denies everything.
    assert told(blank="ignore") == []
    (small / NAME / "valid.csv").unlink()
    (problem,) = told(blank="ignore")
    assert problem.severity == "warning"
    assert "Edema (0 of 1 known)" in problem.names
    assert not [name for name in problem.names if name.startswith("Pneumothorax")]
    write_csv(small / NAME / "train.csv", [cells | {"Edema": "1.0"} for cells in ROWS])
    assert told() == []
    write_csv(small / NAME / "train.csv", ROWS)
    (problem,) = told(blanks={"Edema": "ignore"})
    assert problem.names == ("Edema (0 of 1 known)",)


@pytest.mark.data
def test_the_real_train_csv_has_the_published_counts():
    """train.csv as torchxrayvision packages it, where that is installed; no image is needed."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or spec.origin is None:
        pytest.skip("torchxrayvision is not installed")
    file = Path(spec.origin).parent / "data" / "chexpert_train.csv.gz"
    rows = read_rows(file, "train", survey(file.parent)).assign(subset="train")
    views = rows["view_position"].value_counts()
    assert len(rows) == PUBLISHED["train"]["images"]
    assert rows["patient_id"].nunique() == PUBLISHED["train"]["patients"]
    assert {k: views[k] for k in ("AP", "PA", "LL", "RL")} == {
        k: PUBLISHED["train"][k] for k in ("AP", "PA", "LL", "RL")
    }
    marks = rows[list(LABELS)]
    assert tuple((marks == 1).sum()) == POSITIVE
    assert tuple((marks == -1).sum()) == UNSURE
    for policy, ill in (("u-ones", 22_149), ("u-zeros", 19_830)):
        params = ChexpertParams(task="abnormal", policy=policy)
        seen = rows[in_view(rows, params)]
        labels, keep = abnormal(seen, params)
        assert (int((labels["abnormal"] == 0).sum()), int((labels["abnormal"] == 1).sum())) == (
            5_499,
            ill,
        )
        assert keep.sum() == 5_499 + ill
    strata, counts = abnormal_strata(seen)
    assert counts == PUBLISHED_PA
    # Ids must not be published, but the digest of the folds tells whether a rebuilt split is the same.
    params = ChexpertParams(task="abnormal")
    labels, keep = abnormal(seen, params)
    index = as_index(seen[keep].reset_index(drop=True), strata, labels[keep].reset_index(drop=True))
    digest = Chexpert.make_split("cv5", index).digest(index)
    assert digest == "9ff266da0112fa99cf5912816d7b3b7c089d4e1f055a020d095421b112a5135c"


def test_what_a_split_leaves_out_changes_no_identity(tmp_path):
    """Runs on cv5 are the same with and without the images of valid and test."""
    root = Chexpert.fake(tmp_path / "data", images=80, variant="full")
    store = Store(tmp_path / "store")

    def bound() -> tuple[str, str, int]:
        opened = open_dataset(Chexpert, root, {}, "cv5", store)
        return opened.revision, opened.split.digest(opened.index), len(opened.index)

    whole = bound()
    for found in [*root.rglob("valid"), *root.rglob("valid.csv")]:
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    part = bound()
    assert part[:2] == whole[:2] and part[2] < whole[2]
