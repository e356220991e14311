"""Splits: patients stay together, shares hold, files are verified, changes are noticed."""

import gzip
import itertools
import json
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import ConfigError, DataError, MissingInputError, UsageError
from cxrbench.core.seed import derive_seed
from cxrbench.core.store import Store
from cxrbench.data import splits as splits_module
from cxrbench.data.base import CxrDataset
from cxrbench.data.chestxray14 import LABELS, ChestXray14, read_labels
from cxrbench.data.index import Index
from cxrbench.data.splits import (
    Split,
    describe,
    fewer_trained,
    find_split,
    read_split,
    stratified_folds,
    stratified_parts,
    verify_split,
    write_split,
)

SAMPLES = Path(os.environ.get("CXRBENCH_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
COMMITTED = Path(__file__).parents[1] / "data_splits" / "chestxray14"


def make_index(
    patients: int = 200, labels: int = 4, seed: int = 0, root: Path | None = None
) -> Index:
    """Patients with 1 to 20 images, a few with many, and labels from common to rare."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.geometric(0.35, patients), 20)
    owner = np.repeat(np.arange(patients), sizes)
    frame = pd.DataFrame(
        {
            "image_id": [f"i{n:05d}" for n in range(len(owner))],
            "patient_id": [f"p{n:04d}" for n in owner],
            "path": "",
        }
    )
    names = tuple(f"L{k}" for k in range(labels))
    for k, name in enumerate(names):
        ill = rng.random(patients) < 0.3 / (k + 1)
        frame[name] = (ill[owner] & (rng.random(len(owner)) < 0.7)).astype(float)
    return Index("toy", frame, names, root)


@given(seed=st.integers(0, 10_000), patients=st.integers(10, 120), folds=st.integers(3, 7))
@settings(max_examples=25, deadline=None)
def test_folds_partition_the_images_and_keep_patients_together(seed, patients, folds):
    index = make_index(patients, seed=seed)
    split = stratified_folds(index, folds=folds, name="k")
    tested = np.zeros(len(index), int)
    for fold in range(folds):
        parts = split.parts(index, fold)
        frame = pd.DataFrame({"patient": index.patient_ids, "part": parts})
        assert (frame.groupby("patient")["part"].nunique() == 1).all()
        assert set(parts) <= {"train", "val", "test"}
        tested += parts == "test"
        after = split.parts(index, (fold + 1) % folds)
        assert ((parts == "val") == (after == "test")).all()
    assert (tested == 1).all()


def test_folds_share_images_and_labels_evenly():
    index = make_index(2000)
    split = stratified_folds(index, folds=5)
    assigned = split.assigned(index)
    sizes = np.array([(assigned == k).sum() for k in range(5)])
    positives = np.array([index.targets[assigned == k].sum(axis=0) for k in range(5)])
    assert np.ptp(sizes) <= 1
    assert (np.ptp(positives, axis=0) <= 2).all()
    # Also patients with many images are spread, not gathered in one fold.
    big = pd.Series(index.patient_ids).value_counts()
    big = set(big[big >= 8].index)
    held = [len(big & set(index.patient_ids[assigned == k])) for k in range(5)]
    assert min(held) >= 0.5 * np.mean(held)


def test_cut_does_not_depend_on_the_order_of_rows():
    index = make_index()
    shuffled = index.frame.sample(frac=1, random_state=3).reset_index(drop=True)
    other = Index("toy", shuffled, index.labels)
    one, two = stratified_folds(index, folds=5), stratified_folds(other, folds=5)
    pd.testing.assert_frame_equal(one.assignment, two.assignment)
    assert one.digest(index) == two.digest(other)
    assert stratified_folds(index, folds=5, seed=1).digest(index) != one.digest(index)


def test_the_rule_never_changes():
    """Pinned: another cut would make new results incomparable with stored ones."""
    rows = []
    for patient in range(150):
        for image in range(1 + derive_seed(0, "size", patient) % 9):
            marks = [derive_seed(0, k, patient, image) % (3 + 9 * k) == 0 for k in range(5)]
            rows.append((f"p{patient:03d}", f"p{patient:03d}-{image}", "", *map(float, marks)))
    labels = tuple("abcde")
    frame = pd.DataFrame(rows, columns=["patient_id", "image_id", "path", *labels])
    index = Index("toy", frame, labels)
    fractions = {"train": 0.8, "val": 0.05, "test": 0.15}
    assert [
        stratified_folds(index, folds=5).digest(index)[:12],
        stratified_parts(index, "holdout", fractions).digest(index)[:12],
        stratified_parts(index, "o", fractions, exact={"val": 40}).digest(index)[:12],
    ] == ["9a60b6c2b7e1", "64b88a35f092", "54fa7f1a2cfe"]


def test_unknown_labels_count_as_not_positive():
    index = make_index()
    frame = index.frame.copy()
    frame["L0"] = frame["L0"].where(frame["L0"] == 1)
    assert frame["L0"].isna().any()
    known = stratified_folds(index, folds=5).assignment
    pd.testing.assert_frame_equal(
        stratified_folds(Index("toy", frame, index.labels), folds=5).assignment, known
    )


def test_patients_that_share_a_group_stay_together():
    index = make_index(60)
    frame = index.frame.assign(group_id="")
    patients = sorted(set(frame["patient_id"]))
    # A chain: the first and last share no group, but are joined through the middle.
    for a, b in itertools.pairwise(patients[:7]):
        first = frame.index[frame["patient_id"] == a][0]
        last = frame.index[frame["patient_id"] == b][-1]
        extra = frame.loc[[first, last]].assign(
            group_id=f"{a}+{b}", image_id=[f"{a}{b}x", f"{a}{b}y"]
        )
        frame = pd.concat([frame, extra], ignore_index=True)
    split = stratified_folds(Index("toy", frame, index.labels), folds=5)
    part = split.assignment.set_index("patient_id")["part"]
    assert part.loc[patients[:7]].nunique() == 1
    assert part.nunique() == 5


def test_parts_follow_fractions_and_exact_counts():
    index = make_index(1500)
    fractions = {"train": 0.7, "val": 0.1, "test": 0.2}
    parts = stratified_parts(index, "holdout", fractions).parts(index, 0)
    for part, share in fractions.items():
        assert abs((parts == part).mean() - share) < 0.002
        prevalence = index.targets[parts == part].mean(axis=0)
        assert np.allclose(prevalence, index.targets.mean(axis=0), rtol=0.05)
    exact = stratified_parts(index, "o", {"train": 0.9, "val": 0.1}, exact={"val": 333})
    assert (exact.parts(index, 0) == "val").sum() == 333
    assert "333" in exact.rule


def test_a_small_part_also_gets_rare_labels_and_big_patients():
    index = make_index(1500, labels=6)
    parts = stratified_parts(index, "o", {"train": 0.9, "val": 0.1}).parts(index, 0)
    rare = index.targets[:, -1]
    assert rare[parts == "val"].sum() >= 0.05 * rare.sum()
    size = pd.Series(index.patient_ids).map(pd.Series(index.patient_ids).value_counts()).to_numpy()
    assert abs(size[parts == "val"].mean() / size.mean() - 1) < 0.2


def test_impossible_cuts_are_errors():
    index = make_index(20)
    with pytest.raises(ConfigError, match="three or more"):
        stratified_folds(index, folds=2)
    with pytest.raises(ConfigError, match="unknown parts"):
        stratified_parts(index, "o", {"train": 0.5, "valid": 0.5})
    with pytest.raises(ConfigError, match="cannot cut"):
        stratified_parts(index, "o", {"train": 0.5, "val": 0.5}, exact={"val": 10_000})
    pairs = Index("toy", index.frame[:12].assign(patient_id=list("aabbccddeeff")), index.labels)
    with pytest.raises(DataError, match="patients allow"):
        stratified_parts(pairs, "o", {"train": 0.5, "val": 0.5}, exact={"val": 5})
    few = Index("toy", index.frame[:12].assign(patient_id=list("aaabbbcccddd")), index.labels)
    with pytest.raises(DataError, match="4 separate patients are too few for the 5 parts"):
        stratified_folds(few, folds=5)


def test_unknown_folds_and_patients_are_named():
    index = make_index(30)
    folds = stratified_folds(index, folds=5)
    with pytest.raises(ConfigError, match=r"fold 5 does not exist; folds are 0-4"):
        folds.parts(index, 5)
    with pytest.raises(ConfigError, match="fold -1 does not exist"):
        folds.parts(index, -1)
    single = stratified_parts(index, "o", {"train": 0.5, "val": 0.2, "test": 0.3})
    with pytest.raises(ConfigError, match="its one fold is 0"):
        single.parts(index, 1)
    foreign = index.frame.copy()
    foreign.loc[0, "patient_id"] = "stranger"
    with pytest.raises(DataError, match="1 patients are not in the split 'cv5': stranger"):
        folds.parts(Index("toy", foreign, index.labels), 0)


def test_digest_is_of_the_images_present():
    index = make_index(30)
    split = stratified_folds(index, folds=5)
    partial = index.select(np.arange(len(index)) > 3)
    assert split.digest(partial) != split.digest(index)
    shifted = split.assignment.assign(part=(split.assignment["part"] + 1) % 5)
    assert Split("toy", "cv5", "", shifted).digest(index) != split.digest(index)


def test_files_are_reproducible_and_come_back(tmp_path):
    index = make_index(60)
    for split in (
        stratified_folds(index, folds=5),
        stratified_parts(index, "holdout", {"train": 0.6, "val": 0.2, "test": 0.2}),
    ):
        write_split(split, index, tmp_path / "a")
        write_split(split, index, tmp_path / "b")
        packed = (tmp_path / "a" / f"{split.name}.csv.gz").read_bytes()
        assert packed[4:8] == b"\0\0\0\0"  # no time in the header
        for suffix in ("csv.gz", "json"):
            name = f"{split.name}.{suffix}"
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        back, facts = read_split(tmp_path / "a", split.name)
        pd.testing.assert_frame_equal(back.assignment, split.assignment, check_dtype=False)
        assert back.folds == split.folds == facts["folds"]
        assert facts["digest"] == back.digest(index)
        assert sum(c["images"] for c in facts["counts"].values()) == len(index)
        assert verify_split(back, facts, index) == []


def tampered(folder: Path, edit, *, resign: bool) -> None:
    """Edit the lines of cv5.csv.gz; `resign` also corrects the hash that would give it away."""
    path = folder / "cv5.csv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join(edit(lines)).encode() + b"\n"))
    if resign:
        facts = json.loads((folder / "cv5.json").read_text())
        (folder / "cv5.json").write_text(json.dumps({**facts, "file_sha256": digest_file(path)}))


@pytest.mark.parametrize(
    ("edit", "resign", "message"),
    [
        (lambda lines: [*lines, "p0007,3"], True, "1 patients stand twice: p0007"),
        (lambda lines: [*lines, lines[1]], False, "1 patients stand twice: p0000"),
        (lambda lines: [lines[0], "p0000,9", *lines[2:]], True, r"folds \[0, 1, 2, 3, 4, 9\]"),
        (lambda lines: [lines[0], "p0000,dev", *lines[2:]], True, "unknown parts"),
        (lambda lines: lines[:-1], False, "changed since it was written"),
        (lambda lines: ["id,part", *lines[1:]], True, "expected patient_id, part"),
        (lambda lines: lines[:1], True, "no patient"),
    ],
)
def test_changed_files_are_refused(tmp_path, edit, resign, message):
    index = make_index(40)
    write_split(stratified_folds(index, folds=5), index, tmp_path)
    tampered(tmp_path, edit, resign=resign)
    with pytest.raises(DataError, match=message) as caught:
        read_split(tmp_path, "cv5")
    assert "cv5.csv.gz" in str(caught.value)


def test_torn_and_absent_files_are_errors(tmp_path):
    index = make_index(40)
    with pytest.raises(MissingInputError, match=r"cv5\.csv\.gz"):
        read_split(tmp_path, "cv5")
    write_split(stratified_folds(index, folds=5), index, tmp_path)
    whole = (tmp_path / "cv5.csv.gz").read_bytes()
    (tmp_path / "cv5.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="unreadable"):
        read_split(tmp_path, "cv5")
    (tmp_path / "cv5.json").write_text("{}")
    with pytest.raises(DataError, match="not a split's record"):
        read_split(tmp_path, "cv5")


def test_verify_tells_coverage_counts_and_foreign_images(tmp_path):
    index = make_index(60)
    split = stratified_folds(index, folds=5)
    write_split(split, index, tmp_path)
    _, facts = read_split(tmp_path, "cv5")
    half = index.select(np.arange(len(index)) % 2 == 0)
    assert len(verify_split(split, facts, half)) == 1
    assert f"{len(half):,} of the {len(index):,}" in verify_split(split, facts, half)[0]

    frame = index.frame.copy()
    frame.loc[frame.index[:3], "L0"] = 1 - frame.loc[frame.index[:3], "L0"]
    found = verify_split(split, facts, Index("toy", frame, index.labels))
    assert found and all("positives of L0" in line for line in found)

    frame = index.frame.copy()
    frame.loc[0, "image_id"] = "new"
    assert any(
        "another digest" in x for x in verify_split(split, facts, Index("toy", frame, index.labels))
    )


def test_describe_warns_of_what_cannot_be_scored():
    index = make_index(60)
    frame = index.frame.assign(L3=0.0)
    frame.loc[0, "L3"] = 1.0
    rare = Index("toy", frame, index.labels)
    split = stratified_folds(rare, folds=5)
    home = int(split.assigned(rare)[0])
    warnings = describe(split, rare)["warnings"]
    lacking = {f"fold {k} test: no positive of L3" for k in range(5) if k != home}
    assert lacking <= set(warnings)
    assert f"fold {home} test: no positive of L3" not in warnings
    assert f"fold {home} train: no positive of L3" in warnings


class Toy(CxrDataset):
    """Counts how often it is asked to cut."""

    name = "toy"
    splits = ("cv5", "holdout")
    made: ClassVar[list[str]] = []

    @classmethod
    def make_split(cls, name, index):
        cls.made.append(name)
        return super().make_split(name, index)


def test_find_split_makes_once_and_reads_afterwards(tmp_path):
    index, store = make_index(60), Store(tmp_path)
    Toy.made.clear()
    split, facts = find_split(Toy, index, "", "f" * 64, store)
    assert (split.name, Toy.made) == ("cv5", ["cv5"])
    again, _ = find_split(Toy, index, "cv5", "f" * 64, store)
    assert Toy.made == ["cv5"]
    assert again.digest(index) == split.digest(index)
    assert (tmp_path / "splits" / f"toy-{'f' * 16}" / "cv5.json").is_file()
    assert facts["coverage"] == {"present": len(index), "promised": len(index)}
    assert facts["complete"] and facts["differences"] == []
    with pytest.raises(UsageError, match="did you mean 'holdout'"):
        find_split(Toy, index, "hold-out", "f" * 64, store)


def test_find_split_remakes_half_written_files_and_refuses_changed_ones(tmp_path):
    index, store = make_index(60), Store(tmp_path)
    find_split(Toy, index, "cv5", "f" * 64, store)
    folder = tmp_path / "splits" / f"toy-{'f' * 16}"
    (folder / "cv5.json").unlink()
    find_split(Toy, index, "cv5", "f" * 64, store)
    tampered(folder, lambda lines: lines[:-1], resign=False)
    with pytest.raises(DataError, match="changed since"):
        find_split(Toy, index, "cv5", "f" * 64, store)


def test_groups_and_given_parts_are_part_of_the_key(tmp_path):
    index, store = make_index(60), Store(tmp_path)
    grouped = index.frame.assign(group_id=np.where(index.frame.index < 40, "one", ""))
    joined = Index("toy", grouped, index.labels)
    plain, _ = find_split(Toy, index, "cv5", "f" * 64, store)
    together, _ = find_split(Toy, joined, "cv5", "f" * 64, store)
    assert len(set(together.assigned(joined)[:40])) == 1 < len(set(plain.assigned(index)[:40]))


def test_a_committed_split_wins_and_tells_coverage(tmp_path, monkeypatch):
    index = make_index(60)
    whole = stratified_folds(index, folds=5, seed=9)
    monkeypatch.setattr(splits_module, "PACKAGE", tmp_path / "cxrbench")
    write_split(whole, index, tmp_path / "data_splits" / "toy")
    part = index.select(np.arange(len(index)) < 50)
    Toy.made.clear()
    split, facts = find_split(Toy, part, "cv5", "f" * 64, Store(tmp_path / "store"))
    assert Toy.made == []
    assert split.digest(index) == whole.digest(index)
    assert facts["coverage"] == {"present": 50, "promised": len(index)}
    assert not facts["complete"] and len(facts["differences"]) == 1
    # An installed wheel's copy comes before the checkout's.
    write_split(
        stratified_folds(index, folds=5), index, tmp_path / "cxrbench" / "data_splits" / "toy"
    )
    split, _ = find_split(Toy, index, "cv5", "f" * 64, Store(tmp_path / "store"))
    assert split.digest(index) != whole.digest(index)


def test_committed_files_are_intact():
    for name, folds in (("official", 1), ("cv5", 5)):
        split, facts = read_split(COMMITTED, name)
        assert split.folds == folds
        assert facts["images"] == 112_120
        assert list(split.assignment["patient_id"]) == [f"{n:08d}" for n in range(1, 30_806)]
        assert facts["warnings"] == []
    counts = read_split(COMMITTED, "official")[1]["counts"]
    assert {part: count["images"] for part, count in counts.items()} == {
        "train": 76_524,
        "val": 10_000,
        "test": 25_596,
    }


@pytest.fixture(scope="module")
def nih() -> Index:
    path = SAMPLES / "nih_meta" / "Data_Entry_2017_v2020.csv.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return Index("chestxray14", read_labels(path).assign(path=""), LABELS, path.parent)


@pytest.mark.data
def test_committed_splits_are_what_the_code_makes(nih, tmp_path):
    for name in ("official", "cv5"):
        split, facts = read_split(COMMITTED, name)
        assert verify_split(split, facts, nih) == []
        write_split(ChestXray14.make_split(name, nih), nih, tmp_path)
        again, _ = read_split(tmp_path, name)
        pd.testing.assert_frame_equal(again.assignment, split.assignment)
        assert (tmp_path / f"{name}.json").read_text().replace(
            digest_file(tmp_path / f"{name}.csv.gz"), facts["file_sha256"]
        ) == (COMMITTED / f"{name}.json").read_text()


@pytest.mark.data
def test_real_prevalence_is_even(nih):
    patients = np.array([nih.frame["patient_id"][nih.frame[k] == 1].nunique() for k in LABELS])
    overall = nih.targets.mean(axis=0)
    folds = read_split(COMMITTED, "cv5")[0].assigned(nih)
    for fold in range(5):
        here = nih.targets[folds == fold].mean(axis=0)
        assert (np.abs(here / overall - 1)[patients >= 500] < 0.005).all()
        assert (np.abs(here / overall - 1) < 0.05).all()
    parts = read_split(COMMITTED, "official")[0].parts(nih, 0)
    train, val = (nih.targets[parts == p].mean(axis=0) for p in ("train", "val"))
    assert (np.abs(val / train - 1) < 0.06).all()


@pytest.mark.data
def test_official_split_is_the_nihs(nih):
    names = (SAMPLES / "nih_meta" / "test_list.txt.gz").read_bytes()
    listed = set(gzip.decompress(names).decode().split())
    split, facts = read_split(COMMITTED, "official")
    assert set(nih.image_ids[split.parts(nih, 0) == "test"]) == listed
    assert facts["counts"]["test"]["patients"] == 2_797
    assert sum(facts["counts"][p]["patients"] for p in ("train", "val")) == 28_008
    positives = facts["counts"]["test"]["positives"]
    assert [positives[k] for k in ("Atelectasis", "Effusion", "Hernia")] == [3279, 4658, 86]


# --- fewer training images


def test_fewer_training_images_are_among_more_and_nothing_else_changes() -> None:
    parts = np.array((["train"] * 6 + ["val", "test"]) * 10, dtype=object)
    ids = np.array([f"image-{n}" for n in range(80)])
    few, more = fewer_trained(parts, ids, 7), fewer_trained(parts, ids, 30)
    assert ((few == "train").sum(), (more == "train").sum()) == (7, 30)
    assert set(ids[few == "train"]) < set(ids[more == "train"])
    assert (parts == "train").sum() == 60, "the parts that were given stay as they are"
    for found in (few, more):
        for part in ("val", "test"):
            np.testing.assert_array_equal(found == part, parts == part)
    turned = fewer_trained(parts[::-1], ids[::-1], 7)
    np.testing.assert_array_equal(turned[::-1], few)
    with pytest.raises(ConfigError, match=r"train_images 61: .* has 60 images"):
        fewer_trained(parts, ids, 61)
