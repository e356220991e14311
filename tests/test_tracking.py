"""Weights & Biases runs, read back as `wandb sync` would read them."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cxrbench.core.spec import Execution
from cxrbench.core.stage import DataView, Stage
from cxrbench.runner.tracking import log_summary

VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="0", split="cv5", split_digest="0", fold=2, labels=("Edema",)
)  # fmt: skip
STAGE = Stage(
    kind="compute", name="windows", target="x:Y", version=1, params={"side": 8}, data=VIEW
)


BLOCK, HEAD = 32768, 7  # of the log format of LevelDB, which wandb writes behind a header as long


def messages(data: bytes) -> Iterator[bytes]:
    """The messages of a run's file: whole (1), or begun (2), gone on with (3) and ended (4)."""
    assert data[:4] == b":W&B"
    place, parts = HEAD, b""
    while place + HEAD <= len(data):
        if BLOCK - place % BLOCK < HEAD:  # a block's end is filled with zeros
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEAD])
        parts += data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (1, 4):
            yield parts
            parts = b""


def read_back(folder: Path) -> list[Any]:
    """The records of the one offline run below a folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    return [Record.FromString(message) for message in messages(path.read_bytes())]


def values(records: list[Any], kind: str, items: Any) -> dict[str, Any]:
    """What the records of a kind say, by name; of a nested one by its whole path."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in records
        if record.WhichOneof("record_type") == kind
        for item in items(getattr(record, kind))
    }


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
    assert {"windows", "phantom", "fold-2"} <= set(run.tags)
    summary = values(records, "summary", lambda record: record.update)
    assert summary["images"] == 12
    assert summary["lungs/covered/mean"] == 0.9
    assert (summary["macro/auc"], summary["Edema/auc"]) == (0.75, 0.5)
    assert not {"words", "macro/floor", "Edema/pr_auc", "lungs/covered/p05"} & set(summary)
    logged = values(records, "history", lambda record: record.item)
    assert logged["gallery/sheet/caption"] == "Windows in red."
    assert logged["gallery/sheet/_type"] == "image-file"
    assert list(tmp_path.glob(f"wandb/offline-run-*/files/{logged['gallery/sheet/path']}"))


def test_nothing_is_written_when_it_is_off(artefact: Path, tmp_path: Path) -> None:
    log_summary(STAGE, Execution(wandb="off"), tmp_path, artefact, {})
    assert not (tmp_path / "wandb").exists()
