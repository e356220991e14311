"""What an index adds to its rows: soft targets, twins in one group, strata of whole label files."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxrbench.core.errors import DataError
from cxrbench.data.index import Index, join_twins
from cxrbench.data.splits import stratified_folds, stratified_parts


def make(patients: int = 30, **columns: Any) -> Index:
    rows = range(patients)
    frame = pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in rows],
            "patient_id": [f"p{n:02d}" for n in rows],
            "path": "",
            "mass": [float(n % 3 == 0) for n in rows],
            **columns,
        }
    )
    return Index("films", frame, ("mass",))


def test_soft_values_stand_for_unknown_labels_in_training_alone() -> None:
    mass = [1.0, 0.0, np.nan, np.nan]
    index = make(4, mass=mass, **{"soft:mass": [0.5, np.nan, 0.7, np.nan]})
    np.testing.assert_array_equal(index.targets[:, 0], np.float32(mass))
    expected = np.float32([1.0, 0.0, 0.7, np.nan])
    np.testing.assert_array_equal(index.training_targets[:, 0], expected)


def test_a_soft_value_is_a_share() -> None:
    with pytest.raises(DataError, match="soft:mass has values outside 0 to 1"):
        make(4, **{"soft:mass": [0.5, 0.5, 1.5, np.nan]})


def test_patients_with_one_image_are_one_unit_in_every_split() -> None:
    contents = [f"c{n}" for n in range(30)]
    contents[3] = contents[17] = contents[21] = "the same file"
    index = join_twins(make(), contents)
    assert index.notes["patients_joined_by_identical_images"] == 3
    assert list(index.frame["group_id"][[3, 17, 21]]) == ["p03"] * 3
    assert (index.frame["group_id"] != "").sum() == 3
    for seed in range(5):
        assigned = stratified_folds(index, folds=5, seed=seed).assigned(index)
        assert len(set(assigned[[3, 17, 21]])) == 1


def test_groups_of_the_table_are_kept_and_joined() -> None:
    groups = ["family"] * 2 + [""] * 28
    contents = [f"c{n}" for n in range(30)]
    contents[1] = contents[9] = "twin"
    index = join_twins(make(group_id=groups), contents)
    assert list(index.frame["group_id"][[0, 1, 9]]) == ["p00"] * 3


def test_several_images_of_one_patient_and_drawn_images_join_nobody() -> None:
    index = make()
    same = replace(
        index, frame=index.frame.assign(patient_id=["p00", "p00"] + [f"q{n}" for n in range(28)])
    )
    assert join_twins(same, ["x", "x", *map(str, range(28))]) is same
    assert join_twins(index, [""] * 30) is index


def strata(index: Index) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": index.patient_ids, "mass": index.targets[:, 0].astype(int)})


def test_a_part_of_the_images_is_cut_like_the_whole() -> None:
    whole = replace(make(200), strata=strata(make(200)))
    present = np.arange(200) % 4 == 1
    part = replace(whole.select(present), strata=whole.strata)
    for cut in (
        lambda index: stratified_folds(index, folds=5),
        lambda index: stratified_parts(index, "x", {"train": 0.7, "val": 0.1, "test": 0.2}),
    ):
        np.testing.assert_array_equal(cut(part).assigned(part), cut(whole).assigned(whole)[present])


def test_strata_balance_what_labels_do_not_say() -> None:
    index = make(200)
    hidden = strata(index).assign(source=[int(n < 40) for n in range(200)])
    assigned = stratified_folds(replace(index, strata=hidden), folds=5).assigned(index)
    assert [int((assigned[:40] == fold).sum()) for fold in range(5)] == [8] * 5


def test_a_selection_forgets_the_strata_of_what_it_left() -> None:
    index = replace(make(), strata=strata(make()))
    assert index.select(np.arange(30) < 9).strata is None
