"""A training that was broken off and gone on with, as Weights & Biases has it on disk."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cxrbench.core.store import Store

from jobs import build, stage_of  # isort: skip

from wandb_files import config, messages, of_kind


def runs_of(store: Store, digest: str) -> list[list[Any]]:
    """The records of each offline run with an id, in the order of their making."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()
    paths = store.root.glob(f"wandb/offline-run-*-{digest}/run-*.wandb")
    return [
        [Record.FromString(m) for m in messages(p.read_bytes())]
        for p in sorted(paths, key=lambda path: path.stat().st_mtime)
    ]


def points(records: list[Any], name: str) -> dict[int, float]:
    """A metric's values by the step of the training."""
    found = {}
    for history in of_kind(records, "history"):
        row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in history.item}
        if name in row:
            found[int(row["trainer/global_step"])] = row[name]
    return found


def test_a_resumed_training_is_one_run_without_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    how = {"execution": {"wandb": "offline", "checkpoint_steps": 1}, "recipe": {"epochs": 4}}
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    code, plan = build(whole, **how)
    digest = stage_of(plan, "fit").digest[:16]
    [undisturbed] = runs_of(whole, digest)
    monkeypatch.setenv("CXRBENCH_TEST_HOLDS", "1,17")  # in the third epoch's middle
    assert code == 0 and build(broken, **how)[0] == 1
    runs_of(broken, digest)  # ends the client, which a real failure does by ending the process
    monkeypatch.delenv("CXRBENCH_TEST_HOLDS")
    time.sleep(1.1)  # the client names folders by the second, in which no process could begin again
    assert build(broken, **how)[0] == 0
    first, second = runs_of(broken, digest)
    assert [of_kind(r, "run")[0].run_id for r in (first, second)] == [digest] * 2
    assert points(first, "attempt") == {0: 1} and points(second, "attempt") == {17: 2}
    for name in ("train_loss", "val_auc"):
        wanted = points(undisturbed, name)
        assert len(wanted) == 4
        assert points(first, name) | points(second, name) == wanted
    axes = {m.name or m.glob_name: m.step_metric for m in of_kind(second, "metric")}
    assert axes["*"] == "trainer/global_step"
    assert config(second)["stage"] == config(first)["stage"]
    assert broken.meta(stage_of(plan, "fit").key)["facts"]["attempts"] == 2
