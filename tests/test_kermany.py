"""Kermany in Kaggle's and Mendeley's names: patients, classes, folders, copies, colours, twins."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import ConfigError, DataError, MissingInputError
from cxrbench.core.store import Store
from cxrbench.data.index import Index, join_twins
from cxrbench.data.kermany import Kermany, KermanyParams, _parse
from cxrbench.data.pixels import decode
from cxrbench.data.splits import NONE, find_split
from cxrbench.data.verify import verify_dataset

KAGGLE = {
    "train/NORMAL/IM-0115-0001.jpeg": "IM-0115",
    "train/NORMAL/IM-0127-0001-0002.jpeg": "IM-0127",
    "train/NORMAL/NORMAL2-IM-0127-0001.jpeg": "NORMAL2-IM-0127",
    "train/PNEUMONIA/person12_bacteria_34.jpeg": "bacteria-12",
    "train/PNEUMONIA/person12_virus_35.jpeg": "virus-12",
    "train/PNEUMONIA/person447_virus_921_1.jpeg": "virus-447",
    "val/PNEUMONIA/person1946_bacteria_4874.jpeg": "bacteria-1946",
    "test/NORMAL/IM-0001-0001.jpeg": "IM-0001",
    "test/PNEUMONIA/person100_bacteria_475.jpeg": "bacteria-100",
}
MENDELEY = {
    "train/NORMAL/NORMAL-1003233-0001.jpeg": "normal-1003233",
    "train/PNEUMONIA/BACTERIA-1008087-0001.jpeg": "bacteria-1008087",
    "train/PNEUMONIA/BACTERIA-1008087-0002.jpeg": "bacteria-1008087",
    "test/PNEUMONIA/VIRUS-1003041-0001.jpeg": "virus-1003041",
}


def make(base: Path, names) -> Path:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(name.encode())
    return base


def read(root: Path, **params) -> Index:
    return Kermany.read_index(root, KermanyParams(**params))


@pytest.mark.parametrize(("version", "names"), [("kaggle", KAGGLE), ("mendeley", MENDELEY)])
def test_patients_and_labels_come_from_names_and_folders(tmp_path, version, names):
    index = read(make(tmp_path, names))
    assert index.notes["version"] == version
    assert dict(zip(index.image_ids, index.patient_ids, strict=True)) == names
    for image, target in zip(index.image_ids, index.targets[:, 0], strict=True):
        assert target == ("PNEUMONIA" in image)


def test_etiology_has_the_pneumonias_only(tmp_path):
    index = read(make(tmp_path, KAGGLE), task="etiology")
    assert index.labels == ("viral",)
    assert set(index.image_ids) == {name for name in KAGGLE if "PNEUMONIA" in name}
    for image, target in zip(index.image_ids, index.targets[:, 0], strict=True):
        assert target == ("virus" in image)
    # Counts of the folders are those of the download, not of the task.
    assert index.notes["folders"] == {"train": 6, "val": 1, "test": 2}


@given(
    st.integers(1, 9999),
    st.integers(1, 9999),
    st.sampled_from(["bacteria", "virus"]),
    st.booleans(),
)
def test_patient_keys_do_not_depend_on_the_image_number(person, image, cause, more):
    tail = "_1" if more else ""
    path = f"train/PNEUMONIA/person{person}_{cause}_{image}{tail}.jpeg"
    assert _parse(Path("x"), [path])[1]["patient_id"].tolist() == [f"{cause}-{person}"]
    path = f"train/NORMAL/NORMAL2-IM-{person:04d}-{image:04d}{'-0001' if more else ''}.jpeg"
    assert _parse(Path("x"), [path])[1]["patient_id"].tolist() == [f"NORMAL2-IM-{person:04d}"]


@pytest.mark.parametrize("below", ["", "chest_xray", "archive/chest_xray", "a/b/chest_xray"])
def test_the_data_are_found_in_and_below_the_root(tmp_path, below):
    make(tmp_path / below, KAGGLE)
    (tmp_path / below / "train" / ".DS_Store").write_bytes(b"junk")
    make(tmp_path / below / "__MACOSX", ["train/NORMAL/._IM-0115-0001.jpeg"])
    index = read(tmp_path)
    assert set(index.image_ids) == set(KAGGLE)
    assert all(index.path(row).read_bytes().decode() == index.image_ids[row] for row in range(9))


def test_kaggles_doubled_folder_is_read_once_but_copies_are_refused(tmp_path):
    make(tmp_path / "chest_xray", KAGGLE)
    make(tmp_path / "chest_xray" / "chest_xray", KAGGLE)
    assert len(read(tmp_path)) == 9
    make(tmp_path / "small" / "chest_xray", KAGGLE)
    with pytest.raises(DataError, match=r"2 copies .*small/chest_xray; point --data at one"):
        read(tmp_path)


def test_an_empty_root_is_an_error(tmp_path):
    with pytest.raises(MissingInputError, match="no train/NORMAL"):
        read(tmp_path)
    (tmp_path / "train" / "NORMAL").mkdir(parents=True)
    with pytest.raises(MissingInputError, match="no JPEG or PNG"):
        read(tmp_path)


def test_names_without_a_patient_are_counted_and_named(tmp_path):
    strange = [f"train/NORMAL/copy{n}.jpeg" for n in range(7)]
    make(tmp_path, [*KAGGLE, *strange])
    with pytest.raises(DataError, match=r"7 file names tell no patient: .*copy0.*copy4.jpeg, ..."):
        read(tmp_path)


def test_files_in_the_other_class_and_mixed_versions_are_errors(tmp_path):
    make(tmp_path / "a", [*KAGGLE, "train/NORMAL/person9_virus_9.jpeg"])
    with pytest.raises(DataError, match=r"1 files lie in the other .*NORMAL/person9_virus_9"):
        read(tmp_path / "a")
    make(tmp_path / "b", [*KAGGLE, "train/PNEUMONIA/IM-0009-0001.jpeg"])
    with pytest.raises(DataError, match=r"1 files lie in the other .*PNEUMONIA/IM-0009"):
        read(tmp_path / "b")
    make(tmp_path / "c", [*KAGGLE, *MENDELEY])
    with pytest.raises(DataError, match="Kaggle v2 and Mendeley v3 mixed"):
        read(tmp_path / "c")


def test_official_keeps_the_test_folder_and_gives_a_patient_one_part_for_ever(tmp_path):
    names = [f"train/PNEUMONIA/person{n}_virus_{n}.jpeg" for n in range(2000)]
    names += [f"val/NORMAL/IM-{n:04d}-0001.jpeg" for n in range(16)]
    names += [f"test/NORMAL/NORMAL2-IM-{n:04d}-0001.jpeg" for n in range(20)]
    index = read(make(tmp_path / "all", names))
    split = Kermany.make_split("official", index)
    parts = split.parts(index, 0)
    assert ((parts == "test") == index.frame["image_id"].str.startswith("test/")).all()
    assert 0.07 < (parts == "val").mean() < 0.13
    shipped = index.frame["image_id"].str.startswith("val/").to_numpy()
    assert (parts[shipped] == "train").sum() > 8
    # Pinned: the hash must never change, or old results are no longer comparable.
    part_of = split.assignment.set_index("patient_id")["part"]
    assert [n for n in range(60) if part_of[f"virus-{n}"] == "val"] == [0, 1, 40, 49, 51, 59]

    partial = read(make(tmp_path / "some", names[:300:3]))
    whole = split.assignment.set_index("patient_id")["part"]
    small = Kermany.make_split("official", partial).assignment.set_index("patient_id")["part"]
    assert small.equals(whole.loc[small.index])


def test_a_patient_in_train_and_test_is_an_error_in_official_only(tmp_path):
    index = read(make(tmp_path, [*KAGGLE, "test/PNEUMONIA/person12_virus_99.jpeg"]))
    with pytest.raises(
        DataError, match="1 patients lie in the test folder and in another: virus-12"
    ):
        Kermany.make_split("official", index)
    assert Kermany.make_split("cv5", index).folds == 5
    # Another cause is another child.
    make(tmp_path / "b", [*KAGGLE, "test/PNEUMONIA/person447_bacteria_99.jpeg"])
    Kermany.make_split("official", read(tmp_path / "b"))


def test_counts_are_held_against_the_published_ones(tmp_path):
    index = read(make(tmp_path, KAGGLE))
    assert [(p.severity, p.count) for p in Kermany.check(index)] == [
        ("warning", 5216 - 6),
        ("warning", 15),
        ("warning", 622),
    ]
    more = Index(
        index.dataset,
        index.frame,
        index.labels,
        index.root,
        {"version": "mendeley", "folders": {"train": 5232, "val": 0, "test": 625}},
    )
    assert [(p.severity, p.what) for p in Kermany.check(more)] == [
        ("error", "625 images in test/, published 624")
    ]


def contents(index: Index) -> list[str]:
    return [digest_file(index.path(row)) for row in range(len(index))]


def painted(base: Path, modes: dict[str, str]) -> Path:
    """Files of a Pillow mode each; "?" is no image at all."""
    for name, mode in modes.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        if mode == "?":
            (base / name).write_bytes(b"no image")
        else:
            Image.new(mode, (20, 20), 90).save(base / name, "JPEG")
    return base


def test_colour_files_are_kept_or_dropped_by_their_header(tmp_path):
    grey, colour = list(KAGGLE)[:4], "train/PNEUMONIA/person12_virus_35.jpeg"
    late, damaged = "val/PNEUMONIA/person1946_bacteria_4874.jpeg", "train/NORMAL/IM-0127-0001.jpeg"
    # Three channels are what the paper's loader saw; four are another thing.
    odd = "train/PNEUMONIA/person13_virus_1.jpeg"
    modes = dict.fromkeys(grey, "L") | {colour: "RGB", late: "RGB", damaged: "?", odd: "CMYK"}
    painted(tmp_path, modes)
    whole = (tmp_path / colour).read_bytes()
    # Only the header is read: the rest may be damaged.
    (tmp_path / colour).write_bytes(whole[: whole.index(b"\xff\xda")])
    assert "rgb_dropped" not in read(tmp_path).notes
    assert set(read(tmp_path).image_ids) == set(modes)
    index = read(tmp_path, rgb="drop")
    assert set(index.image_ids) == {*grey, damaged, odd}
    assert index.notes["rgb_dropped"] == {"train/PNEUMONIA": 1, "val/PNEUMONIA": 1}
    # The counts are the download's, so that a dropped file is not called missing.
    assert index.notes["folders"] == {"train": 7, "val": 1, "test": 0}
    assert index.notes["coverage"]["present"] == 8
    assert set(read(tmp_path, rgb="drop", task="etiology").image_ids) == {grey[3], odd}


def test_dropping_all_of_a_class_is_an_error(tmp_path):
    names = ["train/NORMAL/IM-0115-0001.jpeg", "train/PNEUMONIA/person12_virus_35.jpeg"]
    painted(tmp_path, {names[0]: "L", names[1]: "RGB"})
    with pytest.raises(DataError, match=r"all 1 files of PNEUMONIA have three.*data.rgb=keep"):
        read(tmp_path, rgb="drop")
    painted(tmp_path, dict.fromkeys(names, "RGB"))
    with pytest.raises(DataError, match="all 1 files of NORMAL have three"):
        read(tmp_path, rgb="drop")
    # A copy without any healthy child has none to lose.
    some = {
        "train/PNEUMONIA/person1_virus_1.jpeg": "L",
        "train/PNEUMONIA/person2_virus_2.jpeg": "RGB",
    }
    assert len(read(painted(tmp_path / "sick", some), rgb="drop")) == 1


@pytest.mark.parametrize(
    ("dropped", "folders", "found"),
    [
        ({"train/PNEUMONIA": 280, "val/PNEUMONIA": 3}, (5216, 16, 624), []),
        ({"train/PNEUMONIA": 282}, (5216, 16, 624), ["282 files of three channels are left out"]),
        ({}, (5216, 16, 624), ["0 files of three channels are left out, published 283"]),
        ({"train/PNEUMONIA": 10}, (100, 0, 0), []),
        ({"train/PNEUMONIA": 284}, (4000, 16, 624), ["284 files of three channels"]),
        ({"train/NORMAL": 4}, (100, 0, 0), ["where the original has none"]),
        ({"test/PNEUMONIA": 4}, (100, 0, 0), ["where the original has none"]),
    ],
)
def test_dropped_files_are_held_against_the_papers_number(dropped, folders, found):
    frame = _parse(Path("x"), list(KAGGLE))[1].assign(path="", pneumonia=0.0)
    notes = {
        "version": "kaggle",
        "folders": dict(zip(("train", "val", "test"), folders, strict=True)),
        "rgb_dropped": dropped,
    }
    index = Index("kermany", frame, ("pneumonia",), Path("x"), notes)
    problems = [p for p in Kermany.check(index) if "three channels" in p.what]
    assert {p.severity for p in problems} <= {"error"}
    assert len(problems) == len(found)
    assert all(what in p.what for what, p in zip(found, problems, strict=True))


def test_patients_of_one_image_stay_together_in_official(tmp_path):
    # Of 0 to 59 these validate alone (see above): 0, 1, 40, 49, 51, 59.
    names = [f"train/PNEUMONIA/person{n}_virus_{n}.jpeg" for n in range(60)]
    names += ["test/NORMAL/IM-0001-0001.jpeg", "test/PNEUMONIA/person900_virus_1.jpeg"]
    index = read(make(tmp_path, names))
    alone = Kermany.make_split("official", index).assignment.set_index("patient_id")["part"]
    assert alone[["virus-1", "virus-7"]].tolist() == ["val", "train"]

    for twin, other in (("virus-1", "virus-7"), ("virus-30", "virus-59")):
        rows = [list(index.patient_ids).index(patient) for patient in (twin, other)]
        hashes = list(index.image_ids)
        hashes[rows[1]] = hashes[rows[0]]
        joined = join_twins(index, hashes)
        assert joined.notes["patients_joined_by_identical_images"] == 2
        parts = Kermany.make_split("official", joined).assignment.set_index("patient_id")["part"]
        # The unit's part is that of its smallest id, and nobody else moves.
        assert parts[twin] == parts[other] == alone[twin]
        assert parts.drop([twin, other]).equals(alone.drop([twin, other]))


def test_a_training_twin_of_a_tested_image_is_in_no_part(tmp_path):
    names = [f"train/PNEUMONIA/person{n}_virus_{n}.jpeg" for n in range(60)]
    # Two images of patient 5, one of which is the test image of patient 900, and a twin of the other.
    names += ["train/PNEUMONIA/person5_virus_500.jpeg", "test/NORMAL/IM-0001-0001.jpeg"]
    names += ["test/PNEUMONIA/person900_virus_1.jpeg"]
    index = read(make(tmp_path, names))
    where = {name: row for row, name in enumerate(index.image_ids)}
    hashes = list(index.image_ids)
    hashes[where["test/PNEUMONIA/person900_virus_1.jpeg"]] = hashes[where[names[5]]]
    hashes[where[names[60]]] = hashes[where[names[33]]]
    split = Kermany.make_split("official", join_twins(index, hashes))
    part_of = split.assignment.set_index("patient_id")["part"]
    assert sorted(part_of.index[part_of == NONE]) == ["virus-33", "virus-5"]
    assert sorted(part_of.index[part_of == "test"]) == ["IM-0001", "virus-900"]
    assert "are in no part" in split.rule
    # The other split has no fixed test part: all three are kept, in one fold.
    folds = Kermany.make_split("cv5", join_twins(index, hashes)).assignment
    assert (
        folds.set_index("patient_id")["part"][["virus-5", "virus-33", "virus-900"]].nunique() == 1
    )


@pytest.mark.parametrize("variant", Kermany.variants)
def test_every_miniature_holds_its_traps(tmp_path, variant):
    Kermany.fake(tmp_path, images=60, size=32, variant=variant)
    index = read(tmp_path)
    assert len(index) == 60
    assert index.notes["version"] == ("mendeley" if variant == "mendeley" else "kaggle")
    assert bool(index.notes["folders"]["val"]) == (variant != "mendeley")
    paths = [index.path(row) for row in range(60)]
    headers = []
    for path in paths:
        assert decode(path).shape == (32, 32)
        with Image.open(path) as image:
            headers.append((image.format, image.mode, path.suffix))
    found = Counter(headers)
    assert (
        found["PNG", "L", ".jpeg"] and found["JPEG", "RGB", ".jpeg"] and found["JPEG", "L", ".JPEG"]
    )
    colours = [p for p, header in zip(paths, headers, strict=True) if header[1] == "RGB"]
    assert {path.parent.name for path in colours} == {"PNEUMONIA"}
    assert len(read(tmp_path, rgb="drop")) == 60 - len(colours)
    assert len(set(contents(index))) == 59
    joined = join_twins(index, contents(index))
    assert joined.notes["patients_joined_by_identical_images"] == 2
    assert (" " in str(paths[0]) and "ö" in str(paths[0])) == (variant == "plain")
    assert (tmp_path / "chest_xray" / "chest_xray").is_dir() == (variant == "kaggle")


def test_an_unknown_miniature_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="use kaggle, mendeley, plain"):
        Kermany.fake(tmp_path, variant="nih")


@pytest.mark.parametrize("variant", Kermany.variants)
def test_the_miniature_is_read_verified_and_split(tmp_path, variant):
    root = tmp_path / "d"
    root.mkdir()
    Kermany.fake(root, images=60, size=32, variant=variant)
    for task in ("pneumonia", "etiology"):
        index = read(root, task=task)
        index = join_twins(index, contents(index))
        assert {p.severity for p in verify_dataset(Kermany, index)} <= {"warning", "info"}
        for name in Kermany.splits:
            revision = index.revision([""] * len(index))
            split, facts = find_split(Kermany, index, name, revision, Store(tmp_path))
            assert facts["complete"]
            for fold in range(split.folds):
                parts = split.parts(index, fold)
                assert all(len(set(index.targets[parts == p, 0])) == 2 for p in ("train", "val"))


def test_the_doubled_folder_changes_nothing(tmp_path):
    Kermany.fake(tmp_path, images=20, size=32)
    doubled = read(tmp_path)
    shutil.rmtree(tmp_path / "chest_xray" / "chest_xray")
    assert read(tmp_path).frame.equals(doubled.frame)


@pytest.mark.data
def test_the_real_sample(samples):
    root = samples / "kermany_sub"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    with pytest.raises(DataError, match=r"3 copies .*full224.*orig1024.*raw.*point --data"):
        read(root)
    index = read(root / "full224")
    assert index.notes["folders"] == {"train": 3133, "val": 13, "test": 355}
    assert len(set(index.patient_ids)) == 2452
    assert index.targets.sum() == 2607
    assert read(root / "full224", task="etiology").targets.sum() == 919
    parts = Kermany.make_split("official", index).parts(index, 0)
    assert (parts == "test").sum() == 355
    assert 0.06 < (parts == "val").mean() < 0.12
    with pytest.raises(DataError, match=r"all \d+ files of NORMAL have three channels"):
        read(root / "full224", rgb="drop")
    originals = read(root / "raw", rgb="drop")
    assert len(originals) == 14
    assert originals.notes["rgb_dropped"] == {"train/PNEUMONIA": 6}


@pytest.mark.data
def test_identical_films_of_the_real_sample_are_of_one_patient_each(samples):
    root = samples / "kermany_sub" / "full224"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    index = read(root)
    hashes = contents(index)
    groups = [n for n in Counter(hashes).values() if n > 1]
    assert sorted(groups) == [2] * 18 + [3]
    assert join_twins(index, hashes) is index
