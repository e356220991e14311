"""Methods over data sets: ranks, groups, the diagram; and thresholds that transfer or do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cxrbench.core.record import Record
from cxrbench.core.store import Store
from cxrbench.leaderboard.collect import collect
from cxrbench.leaderboard.over_data_sets import OverDataSets, _groups, over_data_sets
from cxrbench.leaderboard.site import figures
from cxrbench.leaderboard.site.build import write_site
from cxrbench.leaderboard.site.thresholds import transfers

Make = Callable[..., Record]
# Nine data sets: c always last, and by much; a a little above b, not on every one.
AUC = {
    "densenet121": [0.80, 0.81, 0.84, 0.83, 0.90, 0.77, 0.71, 0.88, 0.82],
    "vgg16": [0.79, 0.82, 0.83, 0.84, 0.89, 0.78, 0.70, 0.89, 0.81],
    "aecnn": [0.60, 0.61, 0.66, 0.62, 0.73, 0.59, 0.53, 0.70, 0.64],
}


def over(make: Make, count: int, **fields: Any) -> OverDataSets | None:
    records = [
        make(values[k], method=method, dataset=f"set{k}", folds=1, **fields)
        for method, values in AUC.items()
        for k in range(count)
    ]
    return over_data_sets(collect(records))


def test_ranks_and_groups(make_record: Make) -> None:
    found = over(make_record, 9)
    assert found is not None
    assert [name.split()[0] for name in found.methods] == ["densenet121", "vgg16", "aecnn"]
    by_hand = np.array([stats.rankdata([-AUC[m][k] for m in AUC]) for k in range(9)])
    np.testing.assert_array_equal(found.ranks, by_hand)
    np.testing.assert_allclose(found.mean_ranks, by_hand.mean(axis=0))
    # p = 2 / 2^9 against the last, times three; the first two cannot be told apart.
    assert found.groups == [(0, 1)]


def test_with_six_data_sets_nothing_is_told_apart_of_three(make_record: Make) -> None:
    found = over(make_record, 6)
    assert found is not None
    assert found.groups == [(0, 2)], "0.031 x 3 is not below 0.05"


def test_below_six_data_sets_there_is_no_diagram(make_record: Make) -> None:
    found = over(make_record, 5)
    assert found is not None
    assert found.groups is None
    assert "needs at least 6; there are 5" in found.how


@pytest.mark.parametrize(
    ("count", "fields"),
    [(1, {}), (9, {"data_facts": {"images": 9, "phantom": True}})],
    ids=["one data set", "drawn films"],
)
def test_what_says_nothing_over_data_sets(make_record: Make, count: int, fields: Any) -> None:
    assert over(make_record, count, **fields) is None


def test_a_method_that_is_missing_somewhere_is_left_out(make_record: Make) -> None:
    records = [make_record(0.8, method=m, dataset=d, folds=1) for m in "ab" for d in "xyz"]
    records.append(make_record(0.9, method="c", dataset="x", folds=1))
    found = over_data_sets(collect(records))
    assert found is not None
    assert [name[0] for name in found.methods] == ["a", "b"]
    assert (found.ranks == 1.5).all(), "ties share the mean of their ranks"


@pytest.mark.parametrize(
    ("apart", "groups"),
    [
        (set(), [(0, 3)]),
        ({(0, 3)}, [(0, 2), (1, 3)]),
        ({(0, 1), (0, 2), (0, 3)}, [(1, 3)]),
        ({(i, j) for i in range(4) for j in range(i + 1, 4)}, []),
    ],
)
def test_groups_are_the_longest_runs(apart: Any, groups: Any) -> None:
    assert _groups(4, apart) == groups


def test_the_diagram_stands_on_the_first_page(make_record: Make, tmp_path: Path) -> None:
    records = [
        make_record(values[k], method=method, dataset=f"set{k}", folds=1)
        for method, values in AUC.items()
        for k in range(9)
    ]
    page = write_site(collect(records), records, [], tmp_path / "site", Store(tmp_path / "store"))
    assert "figures/data-sets.svg" in page.read_text()
    drawn = (tmp_path / "site" / "figures" / "data-sets.svg").read_text()
    assert all(f"{method} (paper) {rank}" in drawn for method, rank in (("densenet121", "1.44"), ("aecnn", "3.00")))  # fmt: skip


# --- thresholds


def labelled(recall: float, precision: float) -> dict[str, Any]:
    return {
        "auc": 0.8,
        "precision_at_validation_threshold": {"recall": recall, "validation_recall": 0.96, "precision": precision},
        "precision_at_95_recall": {"recall": 0.95, "precision": 0.5},
    }  # fmt: skip


def test_thresholds_that_transfer_or_do_not(make_record: Make) -> None:
    made = [
        make_record(fold=fold, labels=["a", "b"]).model_copy(
            update={"scores": {"macro": {"auc": 0.8}, "labels": {"a": labelled(0.95 - fold / 50, 0.4), "b": labelled(0.6 + fold / 5, 0.6)}}}
        )
        for fold in (0, 1)
    ]  # fmt: skip
    (table,) = collect([*made, make_record(method="vgg16", fold=0, labels=["a", "b"])])
    found = transfers(table.rows)
    assert list(found) == ["densenet121 (paper)"], "without scores by label there is none"
    transfer = found["densenet121 (paper)"]
    assert transfer.recall == pytest.approx({"a": 0.94, "b": 0.7})
    assert transfer.promised == pytest.approx({"a": 0.96, "b": 0.96})
    assert (transfer.kept, transfer.worst) == (1, "b")
    assert (transfer.precision, transfer.at_best) == pytest.approx((0.5, 0.5))


def test_the_figure_of_recalls_has_a_mark_a_label() -> None:
    drawn = figures.recall_reached({"m": [0.9, 0.95, 0.99]})
    assert drawn.count("<use") >= 3
