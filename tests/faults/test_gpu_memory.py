"""GPU memory that others hold: told from a want of our own, and waited for. The GPU is pretended."""

import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cxrbench.core.errors import UsageError
from cxrbench.core.spec import Execution
from cxrbench.core.store import Store
from cxrbench.runner import gpu_memory, gpu_wait, ranks, schedule
from cxrbench.runner.devices import waiting
from cxrbench.runner.faults import MemoryFullError, MemoryHeldError, explain
from cxrbench.runner.gpu_memory import GIB, shortage
from cxrbench.runner.gpu_wait import Patience, said_to_wait
from cxrbench.runner.job import Job
from cxrbench.runner.progress import Status

from jobs import build, failure, planned, stage_of  # isort: skip

OTHERS = "CXRBENCH_TEST_OTHERS"
GPU = Execution(accelerator="gpu", threads=1)
TAIL = "If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF"
TEXTS = {  # torch's words for full memory, and whether others are the cause
    "others hold 15 of 24 GiB": (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 1.66 GiB is "
        "free. Process 4711 has 15.00 GiB memory in use. Including non-PyTorch memory, this process has 6.80 GiB "
        "memory in use. Of the allocated memory 6.09 GiB is allocated by PyTorch, and 240.00 MiB is reserved by "
        f"PyTorch but unallocated. {TAIL}",
        True,
    ),
    "alone, and a word misspelt": (
        "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacty of 23.65 GiB of which 1.66 GiB is "
        "free. Including non-PyTorch memory, this process has 20.81 GiB memory in use. Of the allocated memory "
        f"17.09 GiB is allocated by PyTorch, and 4.40 GiB is reserved by PyTorch but unallocated. {TAIL}",
        False,
    ),
    "alone in a container, where the own process has another number": (
        "CUDA out of memory. Tried to allocate 496.00 MiB. GPU 0 has a total capacity of 14.75 GiB of which 235.06 "
        "MiB is free. Process 20398 has 14.52 GiB memory in use. Of the allocated memory 14.06 GiB is allocated by "
        f"PyTorch, and 330.42 MiB is reserved by PyTorch but unallocated. {TAIL}",
        False,
    ),
    "more than the whole GPU, beside others": (
        "CUDA out of memory. Tried to allocate 55.57 GiB. GPU 0 has a total capacity of 24.00 GiB of which 9.02 GiB is "
        "free. Of the allocated memory 984.52 MiB is allocated by PyTorch, and 463.48 MiB is reserved by PyTorch but "
        f"unallocated. {TAIL}",
        False,
    ),
    "CUDA graphs": (
        "CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 24.00 GiB of which 512.00 MiB "
        "is free. Process 7 has 20.00 GiB memory in use. Of the allocated memory 2.00 GiB is allocated by PyTorch, "
        "with 24.00 MiB allocated in private pools (e.g., CUDA Graphs), and 12.00 MiB is reserved by PyTorch but "
        f"unallocated. {TAIL}",
        True,
    ),
    "no figures": ("CUDA out of memory. Tried to allocate 9.00 GiB.", False),
}


class Gpu:
    """A GPU of 24 GiB; others hold some of it until so many seconds were waited."""

    def __init__(self, path: Path) -> None:
        self.path, self.until, self.now, self.looks = path, 0.0, 0.0, 0
        self.hold(0)

    def hold(self, gib: float, *, until: float = float("inf")) -> None:
        self.path.write_text(str(gib))
        self.until = until

    def look(self, device: int) -> tuple[int, int]:
        self.looks += 1
        return int((24 - 0.5 - float(self.path.read_text())) * GIB), 24 * GIB

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.until:
            self.hold(0)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Every try and every wait in this process, and the waits in no time."""
    gpu = Gpu(tmp_path / "held")

    def fit_here(job: Job, stage: Any, work: Path, lock: int) -> None:
        if ranks.run_rank(job, stage.digest):
            raise ranks.first_failure(work, job.execution)

    def wait_here(patience: Patience, ask: dict[str, Any]) -> bool:
        before = gpu.now
        enough = gpu_wait.wait(patience.key, patience.work, **ask, sleep=gpu.sleep)
        patience.waited += gpu.now - before
        return enough

    monkeypatch.setenv(OTHERS, str(gpu.path))
    monkeypatch.setattr(ranks, "fit_apart", fit_here)
    monkeypatch.setattr(ranks, "die_with_parent", lambda kernel: None)
    monkeypatch.setattr(Patience, "_apart", wait_here)
    monkeypatch.setattr(
        gpu_wait.random, "uniform", lambda low, high: high
    )  # looks at 15, 45, 105 s
    monkeypatch.setattr(gpu_memory, "look", gpu.look)
    monkeypatch.setattr(gpu_memory, "holders", lambda device: "process 4711 20.0 GiB")
    return gpu


def option(seconds: float = 3600, gib: float = 0, **more: Any) -> dict[str, Any]:
    return {"gpu_mem_seconds": seconds, "gpu_mem_gib": gib, "checkpoint_steps": 1, **more}


@pytest.mark.parametrize("name", TEXTS)
def test_others_are_told_from_a_want_of_our_own(store: Store, name: str) -> None:
    text, others = TEXTS[name]
    error = explain(
        torch.OutOfMemoryError(text), stage_of(planned(store)[0], "fit"), GPU, store.root
    )
    assert isinstance(error, MemoryFullError) and isinstance(error, MemoryHeldError) is others
    assert ("--wait-for-gpu-mem" in str(error)) is others
    assert ("recipe.batch_size=4" in str(error)) is not others


def test_what_torch_says_is_read_to_the_byte() -> None:
    found = shortage(TEXTS["others hold 15 of 24 GiB"][0])
    assert found and (found.asked, found.total) == (2 * GIB, int(23.65 * GIB))
    assert found.reserved == 240 * 2**20 and found.need == 2 * GIB + int(6.09 * GIB) + GIB
    assert found.others == pytest.approx((23.65 - 1.66 - 6.09 - 240 / 1024 - 1) * GIB, abs=4)


@pytest.mark.parametrize(
    ("held", "peak", "others"), [(22, 0, True), (23.5, 0, True), (14, 6, True), (0, 22, False), (1, 22.6, False)]
)  # fmt: skip
def test_a_gpu_on_which_nothing_can_begin_is_measured(
    store: Store, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, held: float, peak: float, others: bool
) -> None:
    """CUDA's own words have no figures; what the process had it has given back by then."""
    gpu.hold(held)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: int(peak * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    error = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ...")
    found = explain(error, stage_of(planned(store)[0], "fit"), GPU, store.root)
    assert isinstance(found, MemoryFullError) and isinstance(found, MemoryHeldError) is others


def test_a_training_waits_for_others_and_goes_on_from_its_state(
    tmp_path: Path, gpu: Gpu, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = Store(tmp_path / "plain")
    wanted = stage_of(build(plain)[1], "fit").key
    gpu.hold(16, until=100)
    store = Store(tmp_path / "store")
    capfd.readouterr()
    began = time.monotonic()
    code, plan = build(store, execution=option())
    took, fit = time.monotonic() - began, stage_of(plan, "fit")
    said = capfd.readouterr().out
    assert code == 0 and fit.key == wanted
    # The checks of both: bit for bit the weights of a training that nobody disturbed.
    files = [s.artefact(wanted) / "model.safetensors" for s in (plain, store)]
    one, other = map(safetensors.torch.load_file, files)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert said.count("waits for GPU memory") == 1 and "process 4711" in said
    assert "others hold about 15.5 GiB" in said and "9.0 are wanted" in said
    assert "resuming from state-00000-000000003.ckpt" in said
    assert "waited 105 s for GPU memory" in said and gpu.looks == 3
    cost = store.meta(fit.key)["cost"]["seconds"]
    assert cost < took - 90, "what was waited is no cost of the training"
    assert not said_to_wait(store.partial(fit.key))


def test_a_wait_in_vain_names_who_and_how_much(store: Store, gpu: Gpu) -> None:
    gpu.hold(16)
    code, plan = build(store, execution=option(100))
    error = failure(store, stage_of(plan, "fit"))
    assert code == 1 and error["type"] == "MemoryHeldError"
    for words in ("waited 100 s", "7.5 of 24.0 GiB are free", "process 4711", "--wait-for-gpu-mem"):
        assert words in error["error"]
    assert gpu.now == pytest.approx(100)
    gpu.hold(0)  # the same command, later
    assert build(store, execution=option(100))[0] == 0


def test_memory_that_seems_free_is_not_tried_for_ever(
    store: Store, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others who come and go between two looks: each try is after a pause, and the pauses have an end."""
    gpu.hold(16)
    monkeypatch.setattr(gpu_memory, "look", lambda device: (23 * GIB, 24 * GIB))
    code, plan = build(store, execution=option(60))
    error = failure(store, stage_of(plan, "fit"))
    assert code == 1 and error["type"] == "MemoryHeldError" and "waited 60 s" in error["error"]


def test_nothing_begins_before_what_was_asked_for_is_free(
    store: Store, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OTHERS)  # the training itself would do with less
    gpu.hold(10, until=50)
    code, _ = build(store, execution=option(gib=20))
    assert code == 0 and gpu.now == 105
    gpu.hold(10)
    code, _ = build(store, step=3, execution=option(60, gib=13))
    assert code == 0 and gpu.now == 105, "13 of 24 are free"
    gpu.hold(0.4)
    assert build(store, step=4, execution=option(60, gib=80))[0] == 0, (
        "no GPU has more than all of its own"
    )


@pytest.mark.parametrize("halve", [False, True])
def test_an_own_want_is_never_waited_for(store: Store, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, halve: bool) -> None:  # fmt: skip
    monkeypatch.setenv("CXRBENCH_TEST_HOLDS", "4,0")
    code, plan = build(store, execution=option(halve_on_oom=halve))
    fit = stage_of(plan, "fit")
    assert gpu.now == 0 and gpu.looks == 0
    if halve:
        assert code == 0 and len(store.meta(fit.key)["facts"]["halvings"]) == 1
    else:
        assert code == 1 and failure(store, fit)["type"] == "MemoryFullError"


def test_others_are_waited_for_before_anything_is_halved(store: Store, gpu: Gpu) -> None:
    gpu.hold(16, until=100)
    code, plan = build(store, execution=option(halve_on_oom=True))
    assert code == 0 and store.meta(stage_of(plan, "fit").key)["facts"]["halvings"] == []


def test_without_the_option_the_error_names_it(store: Store, gpu: Gpu) -> None:
    gpu.hold(16)
    code, plan = build(store)
    error = failure(store, stage_of(plan, "fit"))
    assert code == 1 and error["type"] == "MemoryHeldError" and gpu.looks == 0
    assert "others hold about 15.4 of 24.0" in error["error"]
    assert "--wait-for-gpu-mem" in error["error"]


def test_the_words_of_the_option() -> None:
    assert waiting("2:00:00", "gpu") == {"gpu_mem_seconds": 7200, "gpu_mem_gib": 0}
    assert waiting("30,20.5", "gpu") == {"gpu_mem_seconds": 1800, "gpu_mem_gib": 20.5}
    for text in ("", "0", "2h", "1:00:00,", "30,x", "30,nan", "30,-1", "30,inf"):
        with pytest.raises(UsageError, match="give a time"):
            waiting(text, "gpu")
    with pytest.raises(UsageError, match="run on the CPU"):
        waiting("30", "cpu")


@pytest.mark.parametrize(
    "text", ["", "5", "[5]", '{"free": "x", "total": 3}', '{"free": 1}', "[" * 100_000]
)
def test_a_torn_note_is_none(tmp_path: Path, text: str) -> None:  # fmt: skip
    (tmp_path / "waiting.json").write_text(text)
    assert said_to_wait(tmp_path) == ""


@pytest.mark.slow
def test_a_sweep_waits_in_processes_of_its_own_and_shows_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, by real workers: only what CUDA says is pretended."""
    held = tmp_path / "held"
    held.write_text("16")
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import sys
        if "cxrbench.runner.gpu_wait" in sys.orig_argv:
            import torch
            held = lambda: float(open({str(held)!r}).read())
            torch.cuda.mem_get_info = lambda device: (int((23.5 - held()) * 2**30), 24 * 2**30)
            torch.cuda.list_gpu_processes = lambda device: "process  4711 uses 20480.000 MB GPU memory"
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(OTHERS, str(held))
    plan, registry = planned(store)
    seen: list[str] = []

    def show(status: Status) -> None:
        seen.extend(each.waits for each in status.running if each.waits)
        if seen:
            held.write_text("0")

    execution = Execution(threads=1, slots=1, checkpoint_steps=1, gpu_mem_seconds=300)
    outcome = schedule.run_plan(plan, store, registry, execution, show=show)
    assert not outcome.failed and len(outcome.done) == len(plan.graph)
    assert set(seen) == {"waits for GPU memory: 7.5 of 24.0 GiB free"}
    [log] = [path.read_text() for path in (store.root / "jobs").glob("*.log")]
    assert log.count("waits for GPU memory") == 1 and "process 4711 20.0 GiB" in log
    assert log.count("resuming from") == 1
