"""The paper's numbers beside ours: what is shown of a record's, and what is withdrawn."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrbench.core.record import Record, read_records
from cxrbench.core.store import Store
from cxrbench.leaderboard.collect import Table, collect
from cxrbench.leaderboard.export.document import to_json
from cxrbench.leaderboard.markdown import HEADER, cells, to_csv, to_markdown
from cxrbench.leaderboard.paper import beside, shares
from cxrbench.leaderboard.site.build import write_site
from cxrbench.leaderboard.withdrawn import paper_numbers, withdrawals
from cxrbench.methods.aecnn import AECNN
from cxrbench.methods.attention_stn import AttentionSTN
from cxrbench.methods.densenet121 import DenseNet121
from cxrbench.methods.thorax_crop import ThoraxCrop
from cxrbench.methods.vgg16 import VGG16
from cxrbench.metrics.report import score_predictions

Make = Callable[..., Record]
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
STN = AttentionSTN.reported["chexpert"]
ABNORMAL = {"dataset": "chexpert", "dataset_params": {"task": "abnormal"}, "labels": ["abnormal"]}


def only(records: list[Record]) -> Table:
    [table] = collect(records)
    return table


def scored(make: Make, fold: int = 0, labels: list[str] | None = None, **fields: Any) -> Record:
    """A record with the scores of drawn predictions."""
    rng = np.random.default_rng(fold)
    named = labels or ["abnormal"]
    target = (rng.random((200, len(named))) < 0.8).astype(float)
    probability = 1 / (1 + np.exp(-rng.normal(size=target.shape) - target))
    patients = np.arange(200) // 2
    scores = score_predictions(
        labels=named, target=target, probability=probability, patient_id=patients,
        val_target=target[:80], val_probability=probability[:80], replicates=0,
    )  # fmt: skip
    given = {
        **ABNORMAL,
        "method": "attention-stn",
        "reported": dict(STN),
        **fields,
        "labels": named,
    }
    return make(fold=fold, **given).model_copy(update={"scores": scores})


def test_every_mean_that_a_paper_reports_stands_beside_ours(make_record: Make) -> None:
    macro = {"pr_auc": 0.9, "precision_at_95_recall": 0.7}
    reported = {**STN, "macro": {**STN["macro"], "stranger": 0.5, "accuracy": 7}}
    table = only([make_record(0.8, macro=macro, reported=reported, **ABNORMAL)])
    [row] = table.rows
    found = [(each.metric, each.paper, each.ours and each.ours.mean) for each in beside(row)]
    assert found == [("AUC", 0.8422, 0.8), ("PR-AUC", 0.9523, 0.9), ("P@95R", 0.8525, 0.7)]
    text = to_markdown([table], [])
    assert (
        "the paper reports PR-AUC 0.9523 (ours 0.9000), P@95R 0.8525 (ours 0.7000). Source: Rocha"
        in text
    )
    [line] = csv.DictReader(io.StringIO(to_csv([table])))
    assert (line["paper_auc"], line["paper_pr_auc"]) == ("0.8422", "0.9523")
    assert (line["paper_precision_at_95_recall"], line["paper_accuracy"]) == ("0.8525", "")
    [entry] = json.loads(to_json([table], []))["tables"][0]["rows"]
    assert entry["paper_values"] == STN["macro"]


def test_accuracy_is_that_of_the_films_that_the_row_is_tested_on(make_record: Make) -> None:
    def run(fold: int, blurred: float, sharp: float) -> Record:
        facts = {"blurred": {"mean": {"accuracy": blurred}}, "sharp": {"mean": {"accuracy": sharp}}}
        curves = {"key": "k", "digest": "d", "kind": "compute", "name": "curves", "version": 1}
        return make_record(
            0.8, method="deblur", fold=fold, params={"test_on": "blurred"},
            analyses={"accuracy and curves": {**curves, "facts": facts}},
            reported={"split": "official", "source": "Liu", "macro": {"accuracy": 0.74}},
        )  # fmt: skip

    table = only([run(0, 0.6, 0.9), run(1, 0.7, 0.9)])
    [accuracy] = beside(table.rows[0])
    assert (accuracy.metric, accuracy.paper) == ("accuracy", 0.74)
    assert accuracy.ours is not None and accuracy.ours.mean == pytest.approx(0.65)
    assert cells(table.rows[0])[HEADER.index("paper AUC")] == "–"
    assert "the paper reports accuracy 0.7400 (ours 0.6500 ± 0.0707). Source: Liu." in to_markdown(
        [table], []
    )


@pytest.mark.parametrize("facts", [{}, {"blurred": 1}, {"blurred": {"mean": 2}}, {"blurred": {"mean": {"accuracy": "x"}}}], ids=str)  # fmt: skip
def test_without_our_accuracy_the_paper_s_stands_alone(make_record: Make, facts: Any) -> None:
    curves = {"key": "k", "digest": "d", "kind": "compute", "name": "curves", "version": 1}
    record = make_record(
        0.8, params={"test_on": "blurred"}, reported={"source": "x", "macro": {"accuracy": 0.74}},
        analyses={"accuracy and curves": {**curves, "facts": facts}},
    )  # fmt: skip
    [accuracy] = beside(only([record]).rows[0])
    assert (accuracy.paper, accuracy.ours) == (0.74, None)


# --- shares


def test_shares_are_the_means_of_the_counts_over_all_images(make_record: Make) -> None:
    records = [scored(make_record, fold) for fold in (0, 1)]
    table = only(records)
    at_test, at_validation, paper = shares(table)[table.rows[0].name]
    assert [each.at for each in (at_test, at_validation)] == ["test part", "validation part"]
    for each, point in (
        (at_test, "precision_at_95_recall"), (at_validation, "precision_at_validation_threshold"),
    ):  # fmt: skip
        assert sum(value.mean for value in each.values.values()) == pytest.approx(1)
        counts = [r.scores["labels"]["abnormal"][point]["confusion"] for r in records]
        for name in ("tp", "fp", "tn", "fn"):
            assert each.values[f"{name}_share"].mean == pytest.approx(
                np.mean([count[name] / 200 for count in counts])
            )
    assert "Rocha" in paper.at
    printed = {name: value.mean for name, value in paper.values.items()}
    assert printed == {
        "tp_share": 0.7608,
        "fp_share": 0.1317,
        "tn_share": 0.0674,
        "fn_share": 0.0401,
    }


def test_tasks_of_several_labels_have_no_shares(make_record: Make) -> None:
    assert shares(only([scored(make_record, labels=["Mass", "Edema"], reported=None)])) == {}
    assert shares(only([make_record(0.8, **ABNORMAL)])) == {}, "a record without scores by label"


@pytest.mark.parametrize("cls", [VGG16, ThoraxCrop, AttentionSTN])
def test_the_paper_s_shares_give_its_precision_at_95_percent_recall(cls: Any) -> None:
    macro = cls.reported["chexpert"]["macro"]
    tp, fp, fn = (macro[f"{name}_share"] for name in ("tp", "fp", "fn"))
    assert tp / (tp + fp) == pytest.approx(macro["precision_at_95_recall"], abs=2e-4)
    assert tp / (tp + fn) == pytest.approx(0.95, abs=5e-4)


def test_a_task_s_page_shows_papers_and_shares(make_record: Make, store: Store, tmp_path: Path) -> None:  # fmt: skip
    source = "<script>alert(1)</script>"
    records = [scored(make_record, fold, reported={**STN, "source": source}) for fold in (0, 1)]
    write_site(collect(records), records, [], tmp_path / "site", store)
    [page] = (tmp_path / "site" / "tasks").glob("*.html")
    text = page.read_text(encoding="utf-8")
    assert source not in text
    for shown in (
        "paper AUC",
        "paper PR-AUC",
        "paper P@95R",
        "Shares at 95 % recall",
        "0.7608",
        "0.9523",
    ):
        assert shown in text, shown
    assert "paper accuracy" not in text, "a column that says nothing"
    several = [scored(make_record, labels=["Mass", "Edema"], reported=None)]
    write_site(collect(several), several, [], tmp_path / "other", store)
    [page] = (tmp_path / "other" / "tasks").glob("*.html")
    text = page.read_text(encoding="utf-8")
    assert "Shares at" not in text and 'id="papers"' not in text


# --- what is withdrawn


def test_the_published_record_keeps_its_wrong_auc_and_the_leaderboard_does_not_show_it() -> None:
    records, _ = read_records(RESULTS)
    [record] = [each for each in records if each.method == "deblur"]
    assert record.reported and record.reported["macro"] == {"accuracy": 0.867, "auc": 0.9544}
    table = next(t for t in collect(records) if any(r.method == "deblur" for r in t.rows))
    [row] = [row for row in table.rows if row.method == "deblur"]
    assert row.paper is None
    assert row.reported and row.reported["macro"] == {"accuracy": 0.867}
    assert [
        text for text in table.warnings if "paper's AUC 0.9544 is withdrawn: it is of sharp" in text
    ]


def test_numbers_of_another_task_are_withdrawn_and_no_others(make_record: Make) -> None:
    def left(method: str, reported: Any, **fields: Any) -> dict[str, Any] | None:
        given = {"source": "x", "macro": reported}
        found, said = paper_numbers(make_record(method=method, reported=given, **fields))
        assert bool(said) == (found != given)
        return found["macro"] if found else None

    old = {"auc": 0.8422, "pr_auc": 0.9523, "precision_at_95_recall": 0.8525}
    for task, kept in (("findings", None), ("abnormal", old)):
        chexpert = {"dataset": "chexpert", "dataset_params": {"task": task}}
        assert left("attention-stn", old, **chexpert) == kept
    findings = {"dataset": "chexpert", "dataset_params": {"task": "findings"}}
    assert left("attention-stn", {"auc": 0.84}, **findings) == {"auc": 0.84}
    assert left("stern", old, **findings) == old
    sharp = {"params": {"test_on": "sharp"}}
    assert left("deblur", {"auc": 0.9544}, **sharp) == {"auc": 0.9544}, "here it belongs"
    wrong = {"accuracy": 0.867, "auc": 0.9544}
    assert left("deblur", wrong, dataset_params={"task": "etiology"}, params={"test_on": "restored"}) is None  # fmt: skip


def test_what_methods_report_today_is_not_withdrawn(make_record: Make) -> None:
    for cls in (VGG16, ThoraxCrop, AttentionSTN, DenseNet121, AECNN):
        for dataset, reported in cls.reported.items():
            params = reported.get("params", {})
            record = make_record(method=cls.name, dataset=dataset, dataset_params=params, reported=dict(reported))  # fmt: skip
            assert paper_numbers(record) == (reported, [])
    assert all(entry.macro and entry.why for entry in withdrawals())
