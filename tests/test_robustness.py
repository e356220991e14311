"""Saved models on disturbed films: the command, its file, and the pages' curves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_runner import PHANTOM, SMALL, bench

from cxrbench.core.errors import DataError
from cxrbench.core.record import Record, read_records
from cxrbench.core.registry import Registry
from cxrbench.core.robust import Robustness, robustness_path
from cxrbench.core.spec import Execution
from cxrbench.core.store import Store
from cxrbench.data.disturb import DISTURBANCES, Disturbance
from cxrbench.leaderboard.collect import collect
from cxrbench.leaderboard.site.disturbed import disturbed
from cxrbench.metrics.classification import roc_auc
from cxrbench.runner.robustness import measure


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Record]]:
    """A model on raw films and one on films that a fitted transform rewrote."""
    store = Store(tmp_path_factory.mktemp("store"))
    result = bench(
        store, [SMALL], Execution(threads=1), methods=["small", "small-difference"], datasets=PHANTOM,
        recipe={"epochs": 2},
    )  # fmt: skip
    assert result.complete, result.outcome.failed
    return store, {r.method: r for r in read_records(store.root / "records")[0]}


def measured(store: Store, record: Record, kinds: Any, **options: Any) -> Robustness:
    roots: dict[str, Path | None] = {"phantom": None}
    registry, execution = Registry([SMALL]), Execution(threads=1)
    path = measure(record, kinds, store=store, registry=registry, roots=roots, execution=execution, **options)  # fmt: skip
    return Robustness.parse(json.loads(path.read_text()), where=str(path))


@pytest.mark.parametrize("method", ["small", "small-difference"])
def test_undisturbed_films_give_the_records_scores(done: Any, method: str) -> None:
    store, records = done
    record = records[method]
    found = measured(store, record, [])
    (plain,) = found.curves["undisturbed"]
    assert plain.auc == pytest.approx(record.scores["macro"]["auc"], abs=1e-9)
    assert plain.pr_auc == pytest.approx(record.scores["macro"]["pr_auc"], abs=1e-9)
    for label, score in record.scores["labels"].items():
        assert plain.labels[label]["auc"] == pytest.approx(score["auc"], abs=1e-9)
    assert found.images == record.scores["images"]


def test_films_are_disturbed_before_they_are_rewritten(
    done: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turned upside down by the disturbance, then minus the mean film: the model sees just that."""
    store, records = done
    record = records["small-difference"]
    seen: list[Any] = []

    def upside_down(image: Any, level: float, random: Any) -> Any:
        seen.append(image.shape)
        return np.ascontiguousarray(image[::-1])

    monkeypatch.setitem(DISTURBANCES, "flip", Disturbance(upside_down, (1.0,), "turn"))
    found = measured(store, record, ["flip"])
    assert set(seen) == {(36, 36)}, "at the side that the first step reads"
    (level,) = found.curves["flip"]
    (plain,) = found.curves["undisturbed"]
    assert level.auc != plain.auc


def test_what_is_there_is_not_measured_again(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, records = done
    record, calls = records["small"], []
    monkeypatch.setitem(DISTURBANCES, "once", Disturbance(lambda i, level, r: calls.append(1) or i, (1.0, 2.0), "x"))  # fmt: skip
    first = measured(store, record, ["once"])
    count = len(calls)
    assert count == 2 * first.images
    assert measured(store, record, ["once"]) == first
    assert len(calls) == count
    fewer = measured(store, record, [], images=7)
    assert (fewer.images, "once" in fewer.curves) == (7, False), "other films, another curve"


def test_a_model_that_is_not_the_records_is_refused(done: Any, tmp_path: Path) -> None:
    store, records = done
    record = records["small"]
    scores = {**record.scores, "macro": {**record.scores["macro"], "auc": 0.999}}
    robustness_path(store, record).unlink(missing_ok=True)
    with pytest.raises(DataError, match="undisturbed test films give an AUC"):
        measured(store, record.model_copy(update={"scores": scores}), [])


def test_curves_of_the_pages(done: Any) -> None:
    store, records = done
    (table,) = collect(list(records.values()))
    robustness_path(store, records["small"]).unlink(missing_ok=True)
    measured(store, records["small"], ["noise"])
    found = disturbed(table.rows, store)
    name = next(row.name for row in table.rows if row.method == "small")
    line = found.lines["noise"][name]
    assert [level for level, _ in line] == [0.0, *DISTURBANCES["noise"].levels]
    assert line[0][1] == pytest.approx(records["small"].scores["macro"]["auc"], abs=1e-9)
    assert found.drop("noise", name) == pytest.approx(line[0][1] - line[-1][1])
    path = robustness_path(store, records["small"])
    path.write_text("{")
    assert disturbed(table.rows, store).lines.get("noise", {}).get(name) is None
    with pytest.raises(DataError, match=path.name):  # nothing is written over what cannot be read
        measured(store, records["small"], [])
    path.unlink()


def test_scores_are_those_of_the_rows_own_targets(done: Any) -> None:
    """Rows and probabilities stay in step: the prediction file gives the same AUC label by label."""
    store, records = done
    record = records["small"]
    key = next(s.key for s in record.stages if s.kind == "predict")
    table = pd.read_parquet(store.artefact(key) / "predictions.parquet")
    test = table[table["part"] == "test"]
    (plain,) = measured(store, record, []).curves["undisturbed"]
    for label in record.labels:
        auc = roc_auc(test[f"target:{label}"], test[f"probability:{label}"])
        assert plain.labels[label]["auc"] == (None if auc is None else pytest.approx(auc, abs=1e-9))
