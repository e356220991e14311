"""Memory for fewer images than a batch has: `--halve-on-oom` holds the step and says what it did."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cxrbench.core.record import read_record
from cxrbench.core.store import Store, write_json
from cxrbench.data.micro_batches import cut, equal_part
from cxrbench.leaderboard.collect import collect
from cxrbench.nn.losses import masked_bce
from cxrbench.runner import ranks
from cxrbench.runner.faults import MemoryFullError
from cxrbench.runner.finish import write_records
from cxrbench.runner.halving import halve, read_halvings
from cxrbench.runner.job import Job

from jobs import build, failure, planned, stage_of, write_job  # isort: skip

HOLDS = "CXRBENCH_TEST_HOLDS"
OPTION = {"halve_on_oom": True, "checkpoint_steps": 1}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every try in this process, which is a second and not ten; one test below has real ones."""

    def fit_here(job: Job, stage: Any, work: Path, lock: int) -> None:
        if ranks.run_rank(job, stage.digest):
            raise ranks.first_failure(work, job.execution)

    monkeypatch.setattr(ranks, "fit_apart", fit_here)
    monkeypatch.setattr(ranks, "die_with_parent", lambda kernel: None)


def trained(folder: Path, **how: Any) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """(weights, facts, log.csv) of a training that went well."""
    store = Store(folder)
    code, plan = build(store, **how)
    fit = stage_of(plan, "fit")
    assert code == 0, failure(store, fit)["error"]
    artefact = store.artefact(fit.key)
    weights = safetensors.torch.load_file(artefact / "model.safetensors")
    return weights, store.meta(fit.key)["facts"], (artefact / "log.csv").read_text()


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return all(torch.allclose(found[n], wanted[n], rtol=1e-5, atol=1e-6) for n in wanted)


# 80 drawn films are about 60 for training, so a batch of 6 with 4 accumulated ends an epoch with a step of one batch.
@pytest.mark.parametrize(
    ("recipe", "holds", "sizes"),
    [
        ({"batch_size": 8}, "4,0", [4]),
        ({"batch_size": 8}, "2,3", [4, 2]),
        ({"batch_size": 6, "accumulate": 4}, "1,1", [3, 1]),
        ({"batch_size": 8, "schedule": "cosine", "ema_decay": 0.9}, "4,8", [4]),
        ({"batch_size": 64}, "20,0", [30, 15]),
    ],
)  # fmt: skip
def test_halved_batches_train_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: None, recipe: dict[str, Any],
    holds: str, sizes: list[int],
) -> None:  # fmt: skip
    wanted, plain, log = trained(tmp_path / "whole", recipe=recipe)
    monkeypatch.setenv(HOLDS, holds)
    found, facts, halved_log = trained(tmp_path / "halved", recipe=recipe, execution=OPTION)
    assert close(found, wanted)
    assert facts["steps"] == plain["steps"] and plain["halvings"] == []
    assert [entry["images"] for entry in facts["halvings"]] == sizes
    since = int(holds.partition(",")[2])
    assert {entry["step"] for entry in facts["halvings"]} == {since}
    assert all("9.00 GiB" in entry["why"] for entry in facts["halvings"])
    for one, other in zip(log.splitlines()[1:], halved_log.splitlines()[1:], strict=True):
        pairs = zip(one.split(","), other.split(","), strict=True)
        assert all(float(a) == pytest.approx(float(b), rel=1e-4) for a, b in pairs)


@pytest.mark.slow
def test_a_halved_training_has_a_process_of_its_own_for_each_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted, _, _ = trained(tmp_path / "whole")
    monkeypatch.setenv(HOLDS, "2,5")
    found, facts, _ = trained(tmp_path / "halved", execution=OPTION)
    assert close(found, wanted)
    assert [entry["images"] for entry in facts["halvings"]] == [4, 2]
    said = capfd.readouterr().out
    assert said.count("resuming from state-00000-000000005.ckpt") == 2
    assert "--halve-on-oom: again with micro-batches of 4 a device" in said


@pytest.mark.slow
def test_two_processes_halve_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of 8 is 4 and 4; each is halved, and images that pad the validation count once."""
    wanted, plain, _ = trained(tmp_path / "whole", execution={"devices": 2})
    monkeypatch.setenv(HOLDS, "2,5")
    found, facts, _ = trained(tmp_path / "halved", execution={"devices": 2, **OPTION})
    assert close(found, wanted) and facts["steps"] == plain["steps"]
    assert facts["best_value"] == pytest.approx(plain["best_value"], rel=1e-5)
    assert [entry["images"] for entry in facts["halvings"]] == [2]


def test_without_the_option_nothing_is_halved(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOLDS, "4,0")
    code, plan = build(store)
    fit = stage_of(plan, "fit")
    error = failure(store, fit)
    assert code == 1 and error["type"] == "MemoryFullError" and "--halve-on-oom" in error["error"]
    assert not read_halvings(store.partial(fit.key))


def test_the_option_is_no_part_of_a_digest(store: Store) -> None:
    plan, registry = planned(store)
    jobs = [write_job(plan, registry, store, halve_on_oom=on).read_text() for on in (True, False)]
    first, second = map(json.loads, jobs)
    assert first["nodes"] == second["nodes"] and first["todo"] == second["todo"]


def test_the_record_says_how_often(
    store: Store, monkeypatch: pytest.MonkeyPatch, here: None
) -> None:
    monkeypatch.setenv(HOLDS, "2,0")
    code, plan = build(store, recipe={"epochs": 1}, execution=OPTION)
    [path] = write_records(plan, store)
    [said] = [text for text in read_record(path).warnings if "halved" in text]
    assert code == 0 and "micro-batches halved twice, to 2 images a device" in said
    assert collect([read_record(path)])[0].rows[0].marks.count("halved") == 1


def test_a_single_image_that_does_not_fit_is_the_end(
    store: Store, monkeypatch: pytest.MonkeyPatch, here: None
) -> None:
    monkeypatch.setenv(HOLDS, "0,0")
    code, plan = build(store, recipe={"batch_size": 4}, execution=OPTION)
    fit = stage_of(plan, "fit")
    assert code == 1 and "a single image does not fit" in failure(store, fit)["error"]
    sizes = [entry["images"] for entry in read_halvings(store.partial(fit.key))]
    assert sizes == [2, 1]


def test_a_loss_that_is_no_mean_over_parts_is_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, here: None
) -> None:
    monkeypatch.setenv(HOLDS, "4,0")
    code, plan = build(store, method="undivided", execution=OPTION)
    error = failure(store, stage_of(plan, "fit"))
    assert code == 1 and error["type"] == "MemoryFullError"
    assert "not the mean over parts" in error["error"]
    from cxrbench.methods.cyclegan_training import CycleGANTraining
    from cxrbench.methods.fmix import FMix

    assert not CycleGANTraining.divisible and not FMix.divisible


def test_a_state_in_whole_batches_is_gone_on_with_in_parts_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: None
) -> None:
    """Halved in an epoch's middle, then begun without the note: progress is counted anew both times."""
    wanted, _, _ = trained(tmp_path / "whole")
    store = Store(tmp_path / "both")
    monkeypatch.setenv(HOLDS, "4,3")
    monkeypatch.setattr(ranks, "MemoryFullError", KeyError)  # so that the first try is the last
    code, plan = build(store, execution=OPTION)
    work = store.partial(stage_of(plan, "fit").key)
    assert code == 1 and not read_halvings(work)
    monkeypatch.undo()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    write_json(work / "halvings.json", [{"images": 4, "epoch": 0, "step": 3, "why": ""}])
    monkeypatch.setenv(HOLDS, "2,10")
    assert build(store, execution={"checkpoint_steps": 1})[0] == 1
    (work / "halvings.json").unlink()
    monkeypatch.delenv(HOLDS)
    found, facts, _ = trained(tmp_path / "both")
    assert close(found, wanted) and facts["resumed"]


@pytest.mark.parametrize(
    ("images", "at_most", "part"), [(8, 4, 4), (8, 5, 4), (9, 4, 3), (7, 3, 1), (6, 99, 6), (1, 0, 1)]
)  # fmt: skip
def test_parts_are_equal(images: int, at_most: int, part: int) -> None:
    assert equal_part(images, at_most) == part


def test_the_parts_of_a_batch_have_its_loss_though_labels_are_unknown() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=draw, requires_grad=True)
    batch = {
        "row": torch.arange(6),
        "image_id": list("abcdef"),
        "target": torch.rand(6, 3, generator=draw).round(),
        "known": torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 1]]) > 0,
    }  # fmt: skip
    whole = masked_bce(logits, batch["target"], batch["known"])
    [wanted] = torch.autograd.grad(whole, logits, retain_graph=True)
    parts = list(cut(batch, 3))
    assert [part["image_id"] for part in parts] == [["a", "b"], ["c", "d"], ["e", "f"]]
    loss = sum(
        masked_bce(logits[part["row"]], part["target"], part["known"], part["known_count"]) / 3
        for part in parts
    )
    [found] = torch.autograd.grad(loss, logits)
    assert torch.allclose(loss, whole) and torch.allclose(found, wanted)
    batch["known"] = torch.zeros(6, 3, dtype=torch.bool)
    for part in cut(batch, 3):
        value = masked_bce(logits[:2], part["target"], part["known"], part["known_count"])
        assert float(value) == 0
    with pytest.raises(ValueError, match="6 images do not divide into 4 parts"):
        next(cut(batch, 4))


@pytest.mark.parametrize("text", ["", "5", "[5]", '[{"images": "x"}]', "[" * 100_000])
def test_a_torn_note_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "halvings.json").write_text(text)
    assert read_halvings(tmp_path) == []
    with pytest.raises(MemoryFullError, match="had not begun"):
        halve(tmp_path, MemoryFullError("full"))
