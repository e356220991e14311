"""Faults inside a training: what is said, what is kept, what a second try does."""

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch

from cxrbench.core.columns import FILE
from cxrbench.core.errors import CannotWriteError, CxrbenchError, DataError
from cxrbench.core.record import read_records
from cxrbench.core.store import Store, require_room
from cxrbench.data import module as loaders
from cxrbench.runner import callbacks, training, worker
from cxrbench.runner.checkpoint import AtomicCheckpointIO, newest_state
from cxrbench.runner.finish import write_records

from jobs import build, failure, planned, stage_of, write_job  # isort: skip


def states_of(store: Store, plan: Any) -> Path:
    return store.root / "partial" / stage_of(plan, "fit").key / "states"


@pytest.mark.parametrize(("fault", "what"), [("nan", "the loss"), ("nan weight", "a weight")])
def test_a_loss_that_is_no_number_stops_before_its_step(
    store: Store, fault: str, what: str
) -> None:
    code, plan = build(store, fault=fault, execution={"checkpoint_steps": 1})
    fit = stage_of(plan, "fit")
    assert code == 1 and not store.has(fit.key)
    error = failure(store, fit)
    assert error["type"] == "NonFiniteLossError"
    assert f"{what} is not finite in epoch 0, step " in error["error"]
    assert "recipe.learning_rate" in error["error"]
    if fault == "nan":
        named = error["error"].partition("step 2 (images ")[2].partition(")")[0].split(", ")
        assert len(set(named)) == 8 and all(name.endswith(".png") for name in named)
    kept = newest_state(states_of(store, plan))
    assert kept is not None and kept.name == "state-00000-000000002.ckpt"
    saved = torch.load(kept, weights_only=True)["state_dict"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.values())


@pytest.mark.parametrize(("fault", "said"), [("memory", "9.00 GiB"), ("host memory", "memory")])
def test_full_memory_names_what_to_change(store: Store, fault: str, said: str) -> None:
    _, plan = build(store, fault=fault)
    error = failure(store, stage_of(plan, "fit"))
    assert error["type"] == "MemoryFullError"
    for text in (
        said,
        "recipe.batch_size 8",
        "--set recipe.batch_size=4 --set recipe.accumulate=2",
    ):
        assert text in error["error"]
    assert "8 images a step" in error["error"]


def test_what_a_full_memory_proposes_is_the_same_step(store: Store) -> None:
    """Half the batch and twice the accumulation have as many steps and another digest."""
    code, plan = build(store, recipe={"batch_size": 4, "accumulate": 2})
    other, _ = planned(store)
    assert code == 0 and set(plan.graph).isdisjoint(other.graph)
    steps = store.meta(stage_of(plan, "fit").key)["facts"]["steps"]
    data = next(iter(other.bindings.values())).facts["counts"]["train"]["images"]
    assert steps == 2 * -(-(data // 4) // 2)


class Broken:
    """A view that fails for one image, or that ends or holds up the loader process."""

    def __init__(self, how: str) -> None:
        self.how, self.parent = how, os.getpid()

    def leaves(self, side: int) -> bool:
        return False

    def __call__(self, image: Any) -> Any:
        if self.how == "raise":
            raise ArithmeticError("odd pixels")
        if os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL) if self.how == "kill" else time.sleep(4)
        return image


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("raise", "DataError", ".png: ArithmeticError: odd pixels"),
        ("kill", "LoaderError", "--workers 0"),
        ("hang", "LoaderError", "no batch for 1 s"),
    ],
)
def test_a_loader_process_that_fails_says_where(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str, kind: str, says: str
) -> None:
    monkeypatch.setattr(loaders, "fixed_view", lambda *_: Broken(how))
    monkeypatch.setattr(loaders, "WORKER_TIMEOUT", 1)
    _, plan = build(store, execution={"workers": 1})
    error = failure(store, stage_of(plan, "fit"))
    assert error["type"] == kind, error
    assert says in error["error"]
    assert "Traceback" not in error["error"]


def test_equal_digests_give_equal_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("one", "two"):
        store = Store(tmp_path / name)
        code, plan = build(store, method="chain", recipe={"epochs": 1})
        assert code == 0
        files = [store.artefact(stage_of(plan, "predict").key) / FILE]
        files.append(store.artefact(stage_of(plan, "fit").key) / "model.safetensors")
        found.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
        facts = store.meta(stage_of(plan, "fit").key)["facts"]
        assert facts["determinism"] == {"again": "the same bits", "operations": []}
    assert found[0] == found[1]


def test_what_was_left_by_killed_workers_does_not_disturb(store: Store) -> None:
    """Stale work in `partial/`: torn files, half-built folders, states of nobody."""
    plan, registry = planned(store)
    for stage in plan.graph.values():
        left = store.partial(stage.key)
        (left / "out-00000000").mkdir()
        (left / "out-00000000" / "stage.json").write_text("{")
        (left / "progress.json").write_text("{")
        (left / "spent.json").write_bytes(b"\xff")
        (left / "states").mkdir()
        for name in ("state.json", "state-00000-000000001.ckpt", ".state.ckpt.tmp"):
            (left / "states" / name).write_bytes(b"torn")
        (left / "trained").mkdir()
        (left / "trained" / "model.safetensors").write_bytes(b"torn")
        os.utime(left, (4e9, 4e9))  # of a machine whose clock is ahead
    assert worker.main([str(write_job(plan, registry, store))]) == 0
    assert all(store.has(stage.key) for stage in plan.graph.values())
    assert not list((store.root / "partial").glob("*/*"))


def test_a_foreign_state_of_slurm_is_not_begun_with(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"JOB_ID": "43", "JOB_NAME": "x", "NTASKS": "1", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    plan, registry = planned(store)
    work = store.partial(stage_of(plan, "fit").key)
    for folder in (work, work / "states"):
        folder.mkdir(exist_ok=True)
        torch.save({"state_dict": {}, "epoch": 7}, folder / "hpc_ckpt_42.ckpt")
    assert worker.main([str(write_job(plan, registry, store))]) == 0
    facts = store.meta(stage_of(plan, "fit").key)["facts"]
    assert facts["resumed"] is False and facts["epochs"] == 2


def test_whichever_step_is_asked_to_stop_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an epoch's middle, and in its last step, after which its validation is due."""
    results = {}
    for asked in ("", "1", "last of the first epoch", "last"):
        store = Store(tmp_path / (asked or "whole"))
        plan, registry = planned(store)
        job, fit = write_job(plan, registry, store), stage_of(plan, "fit")
        if asked:
            steps = results["whole"][0]
            step = {"last of the first epoch": steps // 2 - 1, "last": steps - 1}.get(asked, asked)
            monkeypatch.setenv("CXRBENCH_TEST_ASKED", str(step))
            assert worker.main([str(job)]) == 75
            assert not store.has(fit.key)
            monkeypatch.delenv("CXRBENCH_TEST_ASKED")
        assert worker.main([str(job)]) == 0
        files = [store.artefact(fit.key) / name for name in ("model.safetensors", "log.csv")]
        facts = store.meta(fit.key)["facts"]
        assert facts["attempts"] == (2 if asked else 1)
        results[asked or "whole"] = (facts["steps"], *(file.read_bytes() for file in files))
    assert results["whole"][2].count(b"\n") == 3  # a line for each epoch
    assert all(result == results["whole"] for result in results.values())


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the middle of a step that never ends; two signals within a moment are one."""
    monkeypatch.setattr(callbacks, "TWICE", 0.4)

    def hang() -> None:
        save = callbacks.SaveState(tmp_path, None, None, steps=0, seconds=0, rank_seconds=1)  # type: ignore[arg-type]
        save.on_train_start(mock.Mock(world_size=1), None)  # type: ignore[arg-type]
        (tmp_path / "begun").touch()
        while True:
            time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=hang)
    process.start()
    while not (tmp_path / "begun").exists():
        assert process.is_alive()
        time.sleep(0.01)
    for _ in range(2):
        process.terminate()
    process.join(0.2)
    assert process.is_alive()
    time.sleep(0.5)
    process.terminate()
    process.join(1)
    assert process.exitcode == -signal.SIGTERM


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_state_that_does_not_fit_on_the_disk_leaves_the_one_before(small_disk: Path) -> None:
    io, path = AtomicCheckpointIO(), small_disk / "state-00000-000000001.ckpt"
    small, large = ({"w": torch.arange(n)} for n in (20_000, 120_000))
    io.save_checkpoint(small, path)
    with pytest.raises(
        CannotWriteError, match=r"960,000 bytes are needed, \d{3},\d{3} bytes are free"
    ):
        io.save_checkpoint(large, path)
    assert torch.equal(torch.load(path, weights_only=True)["w"], small["w"])
    assert [file.name for file in small_disk.iterdir()] == [path.name]


def test_a_training_needs_room_for_its_states(small_disk: Path) -> None:
    with pytest.raises(CannotWriteError, match=r"states need 2,000,000 bytes, .* CXRBENCH_HOME"):
        require_room(small_disk / "partial" / "states", 2_000_000, "the states")
    require_room(small_disk / "partial" / "states", 900_000, "the states")


def test_a_full_disk_ends_a_worker_with_73(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(training, "require_room", lambda folder, need, what: asked.append(need))

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training.shutil, "copyfile", full)
    code, plan = build(store)
    assert code == 73 and asked and asked[0] > 11 * 257 * 4
    error = failure(store, stage_of(plan, "fit"))
    assert error["exit_code"] == 73 and "bytes are free" in error["error"]
    monkeypatch.undo()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code, _ = build(store)
    assert code == 0, "the same command goes on"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_hostile_state_is_refused_and_nothing_of_it_runs(store: Store, tmp_path: Path) -> None:
    fired = tmp_path / "fired"
    plan, registry = planned(store)
    folder = store.partial(stage_of(plan, "fit").key) / "states"
    folder.mkdir()
    path = folder / "state-00000-000000001.ckpt"
    torch.save({"state_dict": Bomb(fired)}, path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    pointer = [{"file": path.name, "sha256": sha, "epoch": 0, "step": 1}]
    (folder / "state.json").write_text(json.dumps(pointer))
    assert worker.main([str(write_job(plan, registry, store))]) == 65
    error = failure(store, stage_of(plan, "fit"))["error"]
    assert str(path) in error and "delete" in error
    assert not fired.exists()
    torch.load(path, weights_only=False)
    assert fired.exists(), "the bomb is a bomb"


@pytest.mark.parametrize("content", [{}, [], 5, {"state_dict": {}, "epoch": 1}], ids=str)
def test_tensors_that_are_no_state_are_refused_by_name(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "state-00000-000000001.ckpt"
    torch.save(content, path)
    with pytest.raises(DataError, match=rf"{path.name}: not a training state .* delete"):
        AtomicCheckpointIO().load_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    ["", "5", "[5]", "{}", "[" * 100_000, '[{"file": 5, "sha256": "", "epoch": 0, "step": 0}]',
     '[{"file": "../evil.ckpt", "sha256": "SHA", "epoch": 0, "step": 0}]'],
)  # fmt: skip
def test_a_pointer_that_is_none_points_to_nothing(tmp_path: Path, content: str) -> None:
    states = tmp_path / "states"
    states.mkdir()
    (tmp_path / "evil.ckpt").write_bytes(b"x")
    sha = hashlib.sha256(b"x").hexdigest()
    (states / "state.json").write_text(content.replace("SHA", sha))
    assert newest_state(states) is None


def test_a_damaged_state_is_passed_over_for_the_one_before(store: Store) -> None:
    _, plan = build(store, fault="nan", step=4, execution={"checkpoint_steps": 1})
    states = states_of(store, plan)
    newest = newest_state(states)
    assert newest is not None
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        before = newest_state(states)
    assert before is not None and before < newest


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"<html></html>", None])
def test_torn_predictions_are_named(store: Store, damage: bytes | None) -> None:
    plan, registry = planned(store)
    job = write_job(plan, registry, store)
    assert worker.main([str(job)]) == 0
    score, predict = stage_of(plan, "score"), stage_of(plan, "predict")
    store.discard(score.key)
    path = store.artefact(predict.key) / FILE
    if damage is None:
        pd.DataFrame({"image_id": ["a"]}).to_parquet(path)
    else:
        path.write_bytes(damage)
    assert worker.main([str(job)]) == 65
    assert str(path) in failure(store, score)["error"]
    assert "delete" in failure(store, score)["error"]


def test_a_torn_record_is_left_out_and_written_anew(store: Store) -> None:
    code, plan = build(store)
    assert code == 0
    [first] = write_records(plan, store)
    first.write_text(first.read_text()[:200])
    with pytest.warns(UserWarning, match=first.name):
        [second] = write_records(plan, store)
    records, excluded = read_records(store.root / "records")
    assert [record.id for record in records] == [second.stem.rpartition("-")[2]]
    assert len(excluded) == 1 and str(first) in excluded[0]


def test_a_forged_artefact_makes_no_record(store: Store) -> None:
    code, plan = build(store)
    fit = stage_of(plan, "fit")
    path = store.artefact(fit.key) / "stage.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "version": "new", "digest": None}))
    assert code == 0
    with pytest.raises(CxrbenchError, match=r"stage\.json: digest"):
        write_records(plan, store)
