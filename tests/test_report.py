"""Model cards and checklists: what records say stands in them, what they do not say is asked, and nothing else."""

import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from sklearn.metrics import brier_score_loss
from typer.testing import CliRunner

from cxrbench.core.errors import MissingInputError
from cxrbench.core.record import Record, write_record
from cxrbench.core.store import Store, write_json
from cxrbench.leaderboard.collect import collect
from cxrbench.leaderboard.predictions import predictions_in
from cxrbench.leaderboard.report.claim import CLAIM
from cxrbench.leaderboard.report.text import escape, fenced
from cxrbench.leaderboard.report.tripod import TRIPOD
from cxrbench.leaderboard.report.write import write_report
from cxrbench.metrics.report import score_predictions

Make = Callable[..., Record]
LABELS = ["Mass", "Edema"]
# The parts of TRIPOD+AI's 27 items as the statement numbers them.
TRIPOD_PARTS = [
    "1",
    "2",
    "3a",
    "3b",
    "3c",
    "4",
    "5a",
    "5b",
    "6a",
    "6b",
    "6c",
    "7",
    "8a",
    "8b",
    "8c",
    "9a",
    "9b",
    "9c",
    "10",
    "11",
    "12a",
    "12b",
    "12c",
    "12d",
    "12e",
    "12f",
    "12g",
    "13",
    "14",
    "15",
    "16",
    "17",
    "18a",
    "18b",
    "18c",
    "18d",
    "18e",
    "18f",
    "19",
    "20a",
    "20b",
    "20c",
    "21",
    "22",
    "23a",
    "23b",
    "24",
    "25",
    "26",
    "27a",
    "27b",
    "27c",
]
RECIPE = {"epochs": 7, "optimizer": "adamw", "learning_rate": 0.003, "load": 128, "size": 112, "train_view": "resize",
          "validation_view": "resize", "test_view": "ten_crop", "augment": {"rotate": 5.0}}  # fmt: skip
HOSTILE = [
    "# a heading", "- item", "1. one", "a|b", "*b*", "__b__", "<script>x</script>", "<!-- ", "![](http://x.invalid/a.png)",
    "[x](javascript:alert(1))", "[x][y]", "```\n# x", "`", "a\n\n# b", "\u2028# b", "&lt;b&gt;", "\\", "~~x~~", "---",
    "$x$", "=1+1", "{{ 7 * 7 }}", "{% raw %}",
]  # fmt: skip


def predicted() -> pd.DataFrame:
    """240 test images of 80 patients; scores that know something."""
    rng = np.random.default_rng(0)
    target = (rng.random((240, 2)) < 0.4).astype(float)
    table: dict[str, Any] = {
        "image_id": [f"i{n}" for n in range(240)],
        "patient_id": [f"p{n // 3}" for n in range(240)],
        "part": ["test"] * 240,
        "sex": ["F", "M", "M"] * 80,
        "age": [20.0 + n % 60 for n in range(240)],
    }
    for k, label in enumerate(LABELS):
        table[f"target:{label}"] = target[:, k]
        table[f"probability:{label}"] = 1 / (1 + np.exp(-rng.normal(size=240) - target[:, k]))
    return pd.DataFrame(table)


def whole(store: Store, make: Make, **fields: Any) -> Record:
    """A record that says all that records say, with its predictions in the store."""
    method = fields.setdefault("method", "densenet121")
    stages = []
    facts = {
        "fit": {"weights": {"source": "imagenet", "sha256": "a" * 64}, "monitor": "val_auc", "best_epoch": 3, "epochs": 7,
                "parameters": 6_955_906},
        "predict": {"skipped_images": ["bad.png"]}, "score": {},
    }  # fmt: skip
    for kind, said in facts.items():
        name = sha256(f"{kind} {method}".encode("utf-8", "replace")).hexdigest()
        stages.append({"key": f"{kind}-m-{name[:16]}", "digest": name, "kind": kind, "name": "m", "version": 3, "facts": said,
                       "provenance": {"code": {"commit": "c" * 40, "dirty": False}}})  # fmt: skip
        write_json(store.artefact(stages[-1]["key"]) / "stage.json", {"nodes": []})
    table = predicted()
    table.to_parquet(store.artefact(stages[1]["key"]) / "predictions.parquet")
    scores = score_predictions(
        labels=LABELS,
        target=table[[f"target:{label}" for label in LABELS]].to_numpy(),
        probability=table[[f"probability:{label}" for label in LABELS]].to_numpy(),
        patient_id=table["patient_id"].to_numpy(dtype=object),
        replicates=50,
    )
    data = {"images": 900, "patients": 300, "complete": True, "phantom": False, "rule": "By the list.",
            "counts": {"test": {"images": 240, "patients": 80}, "train": {"images": 660, "patients": 220}},
            "coverage": {"present": 900, "promised": 900}}  # fmt: skip
    reported = {"split": "official", "source": "Table 1", "macro": {"auc": 0.82}, "labels": {}}
    given = {
        "folds": 1, "labels": LABELS, "stages": stages, "final": stages[2]["digest"], "paper": "Huang et al., 2017",
        "reported": reported, "data_facts": data, "params": {"pretrained": "imagenet", "recipe": RECIPE},
        "provenance": {"code": {"commit": "c" * 40, "dirty": False, "cxrbench": "0.1.0"}, "python": "3.11.7", "cores": 8,
                       "processor": "A processor", "packages": {"torch": "2.15.0"}}, **fields,
    }  # fmt: skip
    return make(**given).model_copy(update={"scores": scores})


def report(store: Store, records: list[Record], folder: Path, **more: Any) -> dict[str, str]:
    """The text of every file by its name below the folder."""
    tables = collect(records, predictions_in(store))
    paths = write_report(tables, ["x.json: torn"], folder, store, **more)
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def only(files: dict[str, str], word: str) -> str:
    (text,) = [text for name, text in files.items() if word in name]
    return text


def state(checklist: str, guideline: str, number: str) -> tuple[str, str]:
    """(state, text) of an item."""
    sheet = re.split(r"^# ", checklist, flags=re.MULTILINE)
    (found,) = [part for part in sheet if part.startswith(guideline)]
    (line,) = [line for line in found.splitlines() if line.startswith(f"| {number} |")]
    cells = re.split(r"(?<!\\)\|", line)
    return cells[3].strip(), cells[4].strip()


# --- the lists


def test_the_guidelines_have_their_items() -> None:
    claim = [item.number for items in CLAIM.sections.values() for item in items]
    assert claim == [str(n) for n in range(1, 45)]
    tripod = [item.number for items in TRIPOD.sections.values() for item in items]
    assert tripod == TRIPOD_PARTS
    assert len({number.rstrip("abcdefg") for number in tripod}) == 27
    for guideline in (CLAIM, TRIPOD):
        for items in guideline.sections.values():
            assert [i.number for i in items if not i.topic or not i.ask.endswith("?")] == []
            assert [i.number for i in items if i.rest and not i.facts] == []


# --- what stands in them


def test_the_card_says_what_the_record_says(
    store: Store, make_record: Make, tmp_path: Path
) -> None:
    record = whole(store, make_record)
    card = only(report(store, [record], tmp_path), "card")
    for says in (
        "not a medical device", "kermany, read by version 1 of its reader", f"files and labels): {'r' * 64}",
        "From https://data.mendeley.com", f"digest {'5' * 64}", "By the list.", "disjoint by patient",
        "read as one grey channel at 128 px; the network sees 112 px", "epochs: 7", "learning_rate: 0.003",
        "augmentation: rotate: 5", f"m: initial weights imagenet, SHA-256 {'a' * 64}", "pretrained: imagenet",
        "epoch 3 of 7 (from 0), by val_auc", "Parameters: m 6,955,906", "A processor, 8 CPU cores", "0.25 device hours for 1 run",
        "torch 2.15.0", "Python 3.11.7", f"Commit {'c' * 40}", "1 unreadable images left out", "mean of ten crops",
        "Huang et al., 2017", "The paper reports 0.8200", "percentiles of 50 resamples of whole patients, 95 %",
        "One seed", "One fold", "train: 660 images of 220 patients", "cxrbench run", "--method densenet121",
        f"Records: {record.id}", "By sex: F ", "Expected calibration error",
    ):  # fmt: skip
        assert says in card, says
    assert "Not computed" not in card


def test_numbers_of_the_card_are_the_predictions_own(
    store: Store, make_record: Make, tmp_path: Path
) -> None:
    record = whole(store, make_record)
    card = only(report(store, [record], tmp_path), "card")
    table = predicted()
    brier = np.mean(
        [brier_score_loss(table[f"target:{x}"], table[f"probability:{x}"]) for x in LABELS]
    )
    assert f"Brier score {brier:.4f}" in card
    mass = record.scores["labels"]["Mass"]
    low, high = mass["auc_interval"]
    assert (
        rf"| Mass | 240 | {mass['positives']} | {mass['auc']:.4f} \[{low:.3f}, {high:.3f}\] |"
        in card
    )
    assert f"AUC {record.scores['macro']['auc']:.4f}" in card


def test_without_predictions_the_card_says_that_they_are_missing(
    store: Store, make_record: Make, tmp_path: Path
) -> None:
    record = whole(store, make_record)
    other = Store(tmp_path / "other")
    files = report(other, [record], tmp_path / "out")
    card, checklist = only(files, "card"), only(files, "checklist")
    assert card.count("Not computed") == 2
    assert state(checklist, "CLAIM", "36")[0] == "open"
    assert "predictions" not in state(checklist, "CLAIM", "37")[1]


def test_a_checklist_counts_what_it_shows(store: Store, make_record: Make, tmp_path: Path) -> None:
    checklist = only(report(store, [whole(store, make_record)], tmp_path), "checklist")
    states = {n: state(checklist, "CLAIM", str(n))[0] for n in range(1, 45)}
    counts = [list(states.values()).count(name) for name in ("filled", "in part", "open")]
    said = "**CLAIM 2024: {} of 44 items filled** from the records, {} in part, {} to be filled"
    assert said.format(*counts) in checklist
    assert min(counts) > 5
    parts = {number: state(checklist, "TRIPOD", number)[0] for number in TRIPOD_PARTS}
    filled = [n for n, found in parts.items() if found == "filled"]
    assert f"({len(filled)} of their 52 parts)" in checklist
    whole_items = [n for n in range(1, 28) if {s for p, s in parts.items() if p.rstrip("abcdefg") == str(n)} == {"filled"}]  # fmt: skip
    assert f"**TRIPOD+AI: {len(whole_items)} of 27 items filled**" in checklist
    for number, found in states.items():
        asks = "**To be filled by the authors:**" in state(checklist, "CLAIM", str(number))[1]
        assert asks == (found != "filled"), number
    assert state(checklist, "CLAIM", "20")[0] == state(checklist, "CLAIM", "24")[0] == "filled"
    assert state(checklist, "CLAIM", "36")[0] == "in part"
    assert "F 80, M 160" in state(checklist, "CLAIM", "36")[1]
    assert state(checklist, "CLAIM", "44") == (
        "open",
        "**To be filled by the authors:** Who paid, and what role had they?",
    )


def test_what_a_record_does_not_say_is_asked(
    store: Store, make_record: Make, tmp_path: Path
) -> None:
    """A record with nothing in its free parts fills no item that needs them."""
    bare = make_record(0.8, dataset="mine", params={}, data_facts={}, cost={}, provenance={})
    checklist = only(report(store, [bare], tmp_path), "checklist")
    for number in ("9", "12", "21", "23", "24", "26", "33", "35", "36", "38"):
        assert state(checklist, "CLAIM", number)[0] == "open", number
    assert "None" not in checklist


def test_a_test_elsewhere_fills_external_testing(
    store: Store, make_record: Make, tmp_path: Path
) -> None:
    home = whole(store, make_record)
    away = {
        "dataset": "chexpert", "version": 1, "params": {}, "revision": "e" * 64, "split": "all", "split_digest": "4" * 64,
        "fold": 0, "label_map": {}, "unmatched_model": [], "unmatched_data": [], "overlap": "",
        "data_facts": {"images": 50, "patients": 40},
    }  # fmt: skip
    stages = [stage.model_dump() for stage in home.stages[:1]]
    other = make_record(0.71, folds=1, labels=LABELS, tested_on=away, stages=stages)
    more = [*stages, {**stages[0], "digest": "8" * 64}]  # another model that shares a training
    unrelated = make_record(
        0.99, folds=1, labels=LABELS, tested_on={**away, "split": "x"}, stages=more
    )
    files = report(store, [home, other, unrelated], tmp_path)
    (at_home,) = [t for n, t in files.items() if "checklist" in n and f"digest {'5' * 64}" in t and "This is one" not in t]  # fmt: skip
    found, text = state(at_home, "CLAIM", "33")
    assert found == "filled"
    assert "AUC 0.7100" in text
    assert "0.99" not in text
    assert any("trained on kermany, tested on chexpert" in text for text in files.values())


def test_a_reader_of_another_version_says_nothing_of_the_data(
    store: Store, make_record: Make, tmp_path: Path
) -> None:
    card = only(report(store, [whole(store, make_record, dataset_version=99)], tmp_path), "card")
    assert "mendeley" not in card


def test_phantoms_and_doubts_stand_among_the_limits(
    store: Store, make_record: Make, tmp_path: Path
) -> None:
    facts = {"phantom": True, "complete": False}
    dirty = {"code": {"commit": "c", "dirty": True}}
    record = make_record(
        0.5, folds=1, data_facts=facts, provenance=dirty, changed={"recipe.epochs": 1}
    )
    card = only(report(store, [record], tmp_path), "card")
    limits = card.split("### Limits")[1].split("###")[0]
    for says in ("drawn films", "uncommitted", "settings differ", "some images", "what a constant"):
        assert says in limits, says


# --- hostile records


def parsed(text: str) -> tuple[list[Any], list[Any]]:
    """(blocks, inline tokens) of a file, as a Markdown reader sees it."""
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return blocks, [child for block in blocks for child in block.children or []]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(
    store: Store, make_record: Make, tmp_path: Path, text: str
) -> None:
    plain = whole(store, make_record)
    texts = {
        "method": text, "preset": text, "dataset": text, "split": text, "paper": text, "warnings": [text],
        "changed": {text: text}, "params": {text: text, "pretrained": text, "recipe": {**RECIPE, "optimizer": text}},
        "data_facts": {**plain.data_facts, "rule": text, "notes": {text: text}}, "dataset_params": {text: text},
        "views": [{"name": text, "preset": text, "params": {}}],
        "provenance": {"packages": {text: text}, "processor": text, "code": {"commit": text}},
        "reported": {"macro": {"auc": 0.5}, "split": text, "source": text},
    }  # fmt: skip
    same = dict.fromkeys(("method", "preset", "dataset", "split", "paper"), "x")
    usual = {
        **texts,
        **same,
        "warnings": ["x"],
        "changed": {"x": "x"},
        "dataset_params": {"x": "x"},
        "views": [{"name": "x", "preset": "x", "params": {}}],
    }
    files = report(store, [plain.model_copy(update=texts)], tmp_path / "hostile")
    expected = report(store, [plain.model_copy(update=usual)], tmp_path / "plain")
    assert all(re.fullmatch(r"[a-z0-9-]*/?[a-z0-9-]+\.md", name) for name in files)
    for word in ("index", "card", "checklist"):
        blocks, inline = parsed(only(files, word))
        kinds = [block.type for block in blocks]
        usual_blocks = [block.type for block in parsed(only(expected, word))[0]]
        for kind in ("heading_open", "table_open", "tr_open", "td_open", "bullet_list_open", "fence", "blockquote_open", "hr"):  # fmt: skip
            assert kinds.count(kind) == usual_blocks.count(kind), (word, kind)
        seen = {token.type for token in [*blocks, *inline]}
        assert not seen & {"html_block", "html_inline", "image"}
        links = [token.attrs["href"] for token in inline if token.type == "link_open"]
        assert all(re.fullmatch(r"[a-z0-9-]*/?[a-z0-9-]+\.md", link) for link in links)
        emphasised = [token for token in inline if token.type in ("em_open", "s_open")]
        assert emphasised == []


@pytest.mark.parametrize("text", ["0.6687", "-0.003", "Pleural_Thickening", "a - b", "95 % of 3"])
def test_ordinary_texts_are_not_escaped(text: str) -> None:
    assert escape(text) == text


def test_code_cannot_leave_its_fence() -> None:
    (block,) = parsed(fenced("a\n```\n# b\n````"))[0]
    assert block.type == "fence"
    assert block.content == "a\n```\n# b\n````\n"


# --- files and the command


def test_files_are_the_same_each_time_and_two_settings_have_two(
    store: Store, make_record: Make, tmp_path: Path
) -> None:
    one = whole(store, make_record)
    params = {**one.params, "x": 1}
    records = [one, one.model_copy(update={"params": params, "final": "f" * 64, "id": "other"})]
    files = report(store, records, tmp_path / "one")
    assert len(files) == 1 + 1 + 2
    assert report(store, records[::-1], tmp_path / "two") == files
    assert "- x.json: torn" in files["index.md"]


def test_the_command_writes_one_method_or_all(
    store: Store, make_record: Make, tmp_path: Path
) -> None:
    from cxrbench.cli import app

    runner = CliRunner()
    with pytest.raises(MissingInputError, match="no record"):
        runner.invoke(app, ["report"], catch_exceptions=False)
    for method in ("densenet121", "vgg16"):
        write_record(store.root / "records", make_record(0.8, method=method, folds=1))
    done = runner.invoke(app, ["report"], catch_exceptions=False)
    assert done.exit_code == 0
    assert (store.root / "report" / "vgg16" / "card.md").is_file()
    assert len(done.stdout.splitlines()) == 5
    done = runner.invoke(app, ["report", "--method", "vgg16", "--out", str(tmp_path / "one")])
    assert len(done.stdout.splitlines()) == 3
    with pytest.raises(MissingInputError, match="there are densenet121, vgg16"):
        runner.invoke(app, ["report", "--method", "aecnn"], catch_exceptions=False)
