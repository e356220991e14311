"""Weights & Biases runs, read back as `wandb sync` would read them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from wandb_files import of_kind, read_back, values

from cxrbench.core.spec import Execution
from cxrbench.core.stage import DataView, Stage
from cxrbench.runner.tracking import log_summary

VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="0", split="cv5", split_digest="0", fold=2, labels=("Edema",)
)  # fmt: skip
STAGE = Stage(
    kind="compute", name="windows", target="x:Y", version=1, params={"side": 8}, data=VIEW
)


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    folder.mkdir()
    Image.new("L", (16, 16), 99).save(folder / "sheet.png")
    shown = [{"file": "sheet.png", "caption": "Windows in red."}]
    (folder / "gallery.json").write_text(json.dumps(shown))
    scores = {"macro": {"auc": 0.75, "floor": None}, "labels": {"Edema": {"auc": 0.5, "pr_auc": None}}}  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def test_facts_scores_and_pictures_are_in_an_offline_run(artefact: Path, tmp_path: Path) -> None:
    facts = {"images": 12, "lungs": {"covered": {"mean": 0.9, "p05": None}}, "words": ["no"]}
    log_summary(STAGE, Execution(wandb="offline", group="sweep"), tmp_path, artefact, facts)
    records = read_back(tmp_path)
    run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type) == ("sweep", "compute")
    assert {"windows", "phantom", "fold-2", "seed-0"} <= set(run.tags)
    assert not run.host
    environments = of_kind(records, "environment")
    assert not any(e.program or e.executable or e.host for e in environments)
    summary = values(records, "summary", lambda record: record.update)
    assert summary["images"] == 12
    assert summary["lungs/covered/mean"] == 0.9
    assert (summary["macro/auc"], summary["Edema/auc"]) == (0.75, 0.5)
    assert not {"words", "macro/floor", "Edema/pr_auc", "lungs/covered/p05"} & set(summary)
    logged = values(records, "history", lambda record: record.item)
    assert logged["gallery/sheet/caption"] == "Windows in red."
    assert logged["gallery/sheet/_type"] == "image-file"
    assert list(tmp_path.glob(f"wandb/offline-run-*/files/{logged['gallery/sheet/path']}"))


def test_a_transform_serves_all_folds_and_is_tagged_with_none(
    artefact: Path, tmp_path: Path
) -> None:
    stage = replace(STAGE, kind="transform")
    log_summary(stage, Execution(wandb="offline"), tmp_path, artefact, {})
    [run] = of_kind(read_back(tmp_path), "run")
    assert run.display_name == "transform windows phantom"
    assert not [tag for tag in run.tags if tag.startswith("fold")]


def test_nothing_is_written_when_it_is_off(artefact: Path, tmp_path: Path) -> None:
    log_summary(STAGE, Execution(wandb="off"), tmp_path, artefact, {})
    assert not (tmp_path / "wandb").exists()
