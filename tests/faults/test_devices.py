"""GPUs that fail, pretended: workers run on the CPU, but are given GPUs by name."""

from pathlib import Path
from typing import Any

import pytest

from cxrbench.core.spec import Execution
from cxrbench.core.store import Store
from cxrbench.runner import schedule
from cxrbench.runner.engines.local import LocalEngine, Running
from cxrbench.runner.faults import DeviceError, explain

from jobs import planned, stage_of  # isort: skip

GPU = Execution(accelerator="gpu", slots=2, threads=1)


@pytest.fixture
def tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GPUs on which the training was begun, a line each; workers believe to be on a CPU."""
    plain = schedule.write_job

    def on_cpu(path: Path, plan: Any, store: Any, registry: Any, _: Execution, chain: Any) -> Path:
        return plain(path, plan, store, registry, Execution(threads=1), chain)

    monkeypatch.setattr(schedule, "write_job", on_cpu)
    monkeypatch.setenv("CXRBENCH_TEST_TRIES", str(tmp_path / "tries"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "tries"


def sweep(store: Store, execution: Execution) -> tuple[schedule.Outcome, list[str], Any]:
    plan, registry = planned(store, "needs-gpu")
    said: list[str] = []
    return schedule.run_plan(plan, store, registry, execution, tell=said.append), said, plan


def test_a_stage_whose_gpu_fails_is_tried_once_on_another(
    store: Store, tries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXRBENCH_TEST_BROKEN", "0")
    outcome, said, plan = sweep(store, GPU)
    assert not outcome.failed and not outcome.blocked and len(outcome.done) == len(plan.graph)
    assert tries.read_text().split() == ["0", "1"]
    assert sum(line.startswith("again ") and "launch failure" in line for line in said) == 1


def test_a_stage_that_fails_on_both_gpus_has_failed(
    store: Store, tries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXRBENCH_TEST_BROKEN", "0,1,2")
    outcome, _, plan = sweep(store, GPU.model_copy(update={"slots": 3}))
    [failure] = outcome.failed.values()
    assert tries.read_text().split() == ["0", "1"], "not a third time"
    assert failure["type"] == "DeviceError" and "CUDA_VISIBLE_DEVICES" in failure["error"]
    assert len(outcome.blocked) == len(plan.graph) - 1


def test_the_last_gpu_is_kept(store: Store, tries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXRBENCH_TEST_BROKEN", "0")
    outcome, _, _ = sweep(store, GPU.model_copy(update={"slots": 1}))
    assert len(outcome.failed) == 1 and tries.read_text().split() == ["0"]


def test_a_broken_gpu_gets_no_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    engine = LocalEngine(GPU.model_copy(update={"devices": 2}))
    first, second = (Running(None, engine.free.pop(0)) for _ in range(2))  # type: ignore[arg-type]
    assert engine.set_aside(first) and engine.broken == {"3", "5"}
    engine.finished(first)
    assert not engine.has_room()
    assert not engine.set_aside(second), "there is no other"
    engine.finished(second)
    assert engine.free == [1]
    assert not LocalEngine(Execution()).set_aside(first), "a CPU is none"


@pytest.mark.parametrize(
    ("text", "breaks"),
    [
        ("CUDA error: unspecified launch failure\nCUDA kernel errors might be", True),
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", True),
        ("No CUDA-capable device is detected", True),
        ("Unable to determine the device handle: GPU is lost. Reboot", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA out of memory. Tried to allocate 2 GiB", False),
        ("shape mismatch", False),
    ],
)
def test_what_a_broken_gpu_says(store: Store, text: str, breaks: bool) -> None:
    stage = stage_of(planned(store)[0], "fit")
    known = explain(RuntimeError(text), stage, GPU, store.root)
    assert isinstance(known, DeviceError) is breaks
    assert not breaks or text.splitlines()[0] in str(known)
