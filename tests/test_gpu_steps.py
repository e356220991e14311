"""What a GPU would be asked to do, without one: fake tensors on a fake device go through each method's step.

Whatever makes the CPU wait for the GPU in a step (a value that is read, a shape that hangs on values, a copy that
nobody may overtake) leaves the GPU idle while the next operations are sent. Forward passes alone are seen.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_methods import METHODS, VIEW, load
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from cxrbench.core.errors import ConfigError, InterruptedRunError
from cxrbench.core.registry import load_target
from cxrbench.core.spec import Augment, Execution, Recipe
from cxrbench.core.stage import Stage
from cxrbench.data.index import Index
from cxrbench.data.module import CxrDataModule
from cxrbench.data.resident import check_room
from cxrbench.methods.optimisers import build_optimiser
from cxrbench.nn import blur, deconvolution
from cxrbench.nn.augment import DRAWS, augmented
from cxrbench.nn.backbones import build_backbone
from cxrbench.runner import averaging, worker
from cxrbench.runner.averaging import AveragedWeights, ExponentialAverage
from cxrbench.runner.callbacks import SAVING, FiniteLoss, KeepBest, SaveState
from cxrbench.runner.compiling import check_graphs, compile_networks
from cxrbench.runner.numerics import set_memory_format, set_numerics
from cxrbench.runner.training import make_trainer, train

BATCH = 4
# torchvision's and YOLO's losses read how many boxes match in each step; a detector is trained once for all folds.
READS = {"thorax-detector"}
GPU = Execution(accelerator="gpu")


class Waits(TorchDispatchMode):
    """Notes every operation for which a CPU would wait for its GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        first = next((a for a in args if isinstance(a, Tensor)), None)
        there = None if first is None else first.device.type
        if name.startswith("aten._to_copy"):
            to = torch.device(kwargs.get("device") or there).type
            self._copied(there, to, asynchronous=kwargs.get("non_blocking", False))
        elif name.startswith("aten.copy_"):
            self._copied(args[1].device.type, there, asynchronous=len(args) > 2 and args[2])
        elif name.startswith("aten._local_scalar_dense"):
            if there != "cuda":
                return False if first.dtype == torch.bool else 0  # what is drawn on the CPU
            self.found.append(name)
            return 1
        elif name.startswith("aten._linalg_check_errors") or (
            there == "cuda" and name.startswith(("aten.nonzero", "aten.masked_select"))
        ):
            self.found.append(name)
        return func(*args, **kwargs)

    def _copied(self, source: str | None, to: str | None, *, asynchronous: bool) -> None:
        # To the CPU, whoever reads the values must wait, whatever the copy does.
        if source != to and (to == "cpu" or not asynchronous):
            self.found.append(f"copy from {source} to {to}")


def trainings() -> dict[str, Stage]:
    """The trainings of all methods in their tuned presets, with small networks."""
    found: dict[str, Stage] = {}
    for name in METHODS:
        cls, view = load(name), replace(VIEW, labels=("Edema",))
        small = {"backbone": "resnet10t", "pretrained": "none"}
        known = {k: v for k, v in small.items() if k in cls.Params.model_fields}
        recipe = {"precision": "bf16-mixed"}
        if name == "deblur":
            known["frozen"] = False
        params = cls.resolve("tuned", known, recipe, where="test")
        model = cls.stages(view, params)
        last = [model, *cls.analyses(view, params, model).values()]
        stages = [stage for each in last for stage in each.ancestry().values()]
        found |= {stage.name: stage for stage in stages if stage.kind == "fit"}
    return found


TRAININGS = trainings()


def on_device(stage: Stage) -> tuple[Any, dict[str, Any]]:
    """A training's module on the fake device, and a batch there."""
    cls = load_target(stage.target)
    params = cls.without_weights(cls.Params.parse(dict(stage.params), where="test"))
    side = min(cls.image_size(params)[1], 256)
    torch.set_default_device("cuda")
    try:
        module = cls(params, ("Edema",))
        batch = {
            "image": torch.empty(BATCH, 1, side, side, dtype=torch.uint8),
            "target": torch.empty(BATCH, 1),
            "known": torch.empty(BATCH, 1, dtype=torch.bool),
            "row": torch.empty(BATCH, dtype=torch.int64),
        }
    finally:
        torch.set_default_device(None)
    noted = {"domains": {"healthy": [0, 2], "sick": [1]}}  # as a real batch's are on the CPU
    return module, batch | noted


@pytest.fixture(autouse=True)
def _no_fake_is_kept() -> Any:
    yield
    blur._kept_matrix.cache_clear()
    deconvolution._kept_transfer.cache_clear()


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("name", sorted(set(TRAININGS) - READS))
def test_no_training_step_waits_for_its_gpu(name: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        module, batch = on_device(TRAININGS[name])
        if name == "deblur-unet":  # the matrices of its blur are sent in the first step, and kept
            module.training_step(batch, 0)
        waits = Waits()
        with waits:
            module.training_step(batch, 0)
    assert waits.found == []


def test_every_method_s_trainings_are_looked_at() -> None:
    assert set(TRAININGS) >= READS
    assert set(TRAININGS) >= {"densenet121", "aligner", "cyclegan-training", "patch-autoencoder", "deblur-unet", "stern"}  # fmt: skip


def test_what_waits_is_seen() -> None:
    with FakeTensorMode():
        here, there = torch.empty(3), torch.empty(3, 2, 2, device="cuda")
        waits = Waits()
        with waits:
            here.to("cuda", non_blocking=True)
            there.sum() + 1
            assert waits.found == []
            here.to("cuda")
            there.cpu()
            bool((there > 0).any())
            torch.linalg.inv(there)
    assert [word.split(".")[-2 if "aten" in word else 0] for word in waits.found] == [
        "copy from cpu to cuda", "copy from cuda to cpu", "_local_scalar_dense", "_linalg_check_errors"
    ]  # fmt: skip


def test_augmentation_on_a_gpu_waits_for_nothing() -> None:
    augment = Augment(horizontal_flip=0.5, rotate=5, shift=0.1, contrast=0.1, on="device")
    with FakeTensorMode(), Waits() as waits:
        image = torch.empty(BATCH, 1, 40, 40, dtype=torch.uint8, device="cuda")
        seen = augmented(image, torch.empty(BATCH, len(DRAWS), device="cuda"), 32, augment)
    assert (seen.shape, waits.found) == ((BATCH, 1, 32, 32), [])


def test_callbacks_of_a_step_wait_for_nothing(tmp_path: Path) -> None:
    finite, trainer = (
        FiniteLoss(),
        make_trainer(Recipe(precision="32-true"), Execution(), [], tmp_path, None),
    )
    with FakeTensorMode(), Waits() as waits:
        for _ in range(2):
            finite.on_before_backward(trainer, nn.Identity(), torch.empty((), device="cuda"))  # type: ignore[arg-type]
    assert waits.found == []


# --- optimisers and averages


class Net(nn.Module):
    """A layer, a norm and its count of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    ("recipe", "device", "fused"),
    [
        ({"optimizer": "adam"}, "cuda", True),
        ({"optimizer": "adamw"}, "cuda", True),
        ({"optimizer": "sgd"}, "cuda", True),
        ({"optimizer": "rmsprop"}, "cuda", False),
        ({"optimizer": "adam"}, "cpu", True),
        ({"optimizer": "adam", "precision": "16-mixed"}, "cuda", False),
    ],
)
def test_optimisers_are_fused(recipe: dict[str, Any], device: str, fused: bool) -> None:
    with FakeTensorMode(), torch.device(device):
        optimiser = build_optimiser(Net(), Recipe(**recipe), 1)
        assert bool(optimiser.param_groups[0].get("fused")) is fused


def test_averages_have_torch_s_bits_and_count_batches_as_the_network() -> None:
    torch.manual_seed(0)
    net = Net()
    ours = ExponentialAverage(net, torch.device("cpu"), 0.9)
    theirs = AveragedModel(net, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(5):
        net.layers(torch.rand(8, 3)).sum().backward()
        optimiser.step()
        for average in (ours, theirs):
            average.update_parameters(net)
    state = ours.state_dict()
    assert state.keys() == theirs.state_dict().keys() and int(state["n_averaged"]) == 5
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(state[name], value), name
    assert int(state["module.layers.1.num_batches_tracked"]) == 5
    assert not torch.equal(state["module.layers.0.weight"], net.layers[0].weight)


def test_averages_lie_on_the_training_s_device_and_are_counted_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own are made where the network is before it is moved: on the CPU, always."""
    made: list[tuple[torch.device, float]] = []
    monkeypatch.setattr(
        averaging, "ExponentialAverage", lambda net, device, decay: made.append((device, decay))
    )
    trainer = make_trainer(Recipe(precision="32-true"), Execution(), [], tmp_path, None)
    monkeypatch.setattr(trainer.strategy, "_root_device", torch.device("cuda", 0))
    AveragedWeights(0.9).setup(trainer, Net(), "fit")  # type: ignore[arg-type]
    assert made == [(torch.device("cuda", 0), 0.9)]
    assert ExponentialAverage(Net(), torch.device("meta"), 0.9).n_averaged.device.type == "cpu"


# --- switches


@pytest.mark.parametrize(
    ("execution", "precision", "expected"),
    [
        (GPU, "32-true", (False, "highest", True, False)),
        (GPU, "bf16-mixed", (True, "high", True, False)),
        (GPU.model_copy(update={"deterministic": True}), "bf16-mixed", (True, "high", False, True)),
        (Execution(), "32-true", (False, "highest", False, True)),
    ],
)
def test_float32_is_float32_and_kernels_are_timed_on_gpus(
    execution: Execution, precision: str, expected: tuple[Any, ...]
) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        set_numerics(execution, precision)
        found = (
            torch.backends.cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
        )
        assert found == expected
        assert not torch.utils.deterministic.fill_uninitialized_memory
        if execution.accelerator == "gpu":
            assert torch.is_deterministic_algorithms_warn_only_enabled() is execution.deterministic
    finally:
        set_numerics(Execution(), "32-true")
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(
    ("fields", "execution", "last"),
    [
        ({"precision": "32-true"}, Execution(), True),
        ({"precision": "bf16-mixed"}, GPU, True),
        ({"precision": "32-true"}, GPU, False),
        ({"precision": "32-true", "channels_last": True}, GPU, True),
        ({"precision": "bf16-mixed", "channels_last": False}, GPU, False),
    ],
)
def test_auto_lays_convolutions_out_for_the_device(
    fields: dict[str, Any], execution: Execution, last: bool
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    assert set_memory_format(net, Recipe(**fields), execution) is last
    weight = next(net.parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last) is last
    assert weight.is_contiguous() is not last


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_every_training_heeds_its_memory_format(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights as the recipe lays them out reach the Trainer, whatever the method."""
    seen: list[Any] = []

    def no_fit(trainer: Any, module: Any, **how: Any) -> None:
        seen.append(module)
        raise InterruptedRunError("far enough")

    monkeypatch.setattr("lightning.Trainer.fit", no_fit)
    stage = TRAININGS[name]
    data = SimpleNamespace(
        steps_per_epoch=lambda: 1, parts=lambda devices: 1, share=lambda devices: 1
    )
    cls = load_target(stage.target)
    params = cls.without_weights(cls.Params.parse(dict(stage.params), where="test"))
    module = cls(params, stage.data.labels)
    monkeypatch.setattr("cxrbench.runner.training.build_module", lambda *words: module)
    with pytest.raises(InterruptedRunError, match="far enough"):
        train(stage, data, {}, tmp_path, Execution(), tmp_path)  # type: ignore[arg-type]
    kernels = [p for p in seen[0].parameters() if p.ndim == 4]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_a_peak_of_memory_is_the_stage_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    worker._forget_peak(GPU)
    worker._forget_peak(Execution())
    assert calls == ["reset"]


# --- compiling


def test_the_networks_of_a_loss_are_compiled_whatever_forward_is() -> None:
    compiled = {}
    for name in ("aecnn", "cyclegan-training", "densenet121", "stern", "stn-align-joint"):
        stage = TRAININGS[name]
        cls = load_target(stage.target)
        params = cls.without_weights(cls.Params.parse(dict(stage.params), where="test"))
        with torch.device("meta"):
            module = cls(params, ("Edema",))
        compiled[name] = compile_networks(module, Recipe(compile=True))
    assert compiled == {
        "aecnn": ["autoencoder", "classifier.net"],
        "cyclegan-training": ["to_healthy", "to_sick", "judge_healthy", "judge_sick"],
        "densenet121": ["net"],
        "stern": ["net", "window"],
        "stn-align-joint": ["aligner.pose", "aligner.network", "classifier.net"],
    }


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Networks are captured as for a GPU, and run as they are; yields dynamo's counters."""
    as_compiled = nn.Module.compile

    def eager(net: nn.Module, *, mode: Any, dynamic: bool) -> None:
        as_compiled(net, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", eager)
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


@pytest.mark.parametrize("name", sorted(set(TRAININGS) - READS))
def test_networks_of_a_loss_are_graphs_without_a_break(name: str, captured: Any) -> None:
    stage = TRAININGS[name]
    cls = load_target(stage.target)
    params = cls.without_weights(cls.Params.parse(dict(stage.params), where="test"))
    small = {"size": 64, "load": 64}
    params = params.model_copy(update={"recipe": params.recipe.model_copy(update=small)})
    module = cls(params, ("Edema",))
    side = cls.image_size(params)[1]
    batch = {
        "image": torch.randint(0, 256, (BATCH, 1, side, side), dtype=torch.uint8),
        "target": torch.ones(BATCH, 1),
        "known": torch.ones(BATCH, 1, dtype=torch.bool),
        "row": torch.arange(BATCH),
        "domains": {"healthy": [0, 2], "sick": [1, 3]},
    }
    networks = compile_networks(module, Recipe(compile=True))
    module.training_step(batch, 0)
    assert captured["stats"]["unique_graphs"] >= len(networks)
    assert not captured["graph_break"]


@pytest.mark.parametrize("name", ["densenet121", "vgg16"])
def test_the_baselines_are_one_graph(name: str, captured: Any) -> None:
    net, _ = build_backbone(name, 2, "none")
    torch.compile(net, backend="eager", fullgraph=True)(torch.rand(2, 3, 64, 64))
    assert captured["stats"]["unique_graphs"] == 1


def test_graphs_are_refused_gradients_that_are_added_up() -> None:
    check_graphs(Recipe(compile="reduce-overhead"), 1)
    check_graphs(Recipe(compile=True, accumulate=2), 1)
    for recipe, parts in ((Recipe(compile="reduce-overhead", accumulate=2), 1), (Recipe(compile="max-autotune"), 2)):  # fmt: skip
        with pytest.raises(ConfigError, match=r"set recipe\.compile to true"):
            check_graphs(recipe, parts)


# --- saving


def test_saving_takes_no_more_than_its_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxrbench.runner import callbacks

    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    finite = FiniteLoss()
    save = SaveState(tmp_path, KeepBest(tmp_path, "val_loss"), finite, steps=0, seconds=60, rank_seconds=9)  # fmt: skip
    assert not save._late()
    now[0] = 60
    assert save._late()

    class Slow:
        current_epoch = global_step = 0
        is_global_zero = False

        def save_checkpoint(self, path: Path) -> None:
            now[0] += 3

    monkeypatch.setattr(finite, "check", lambda trainer: None)
    save._save(Slow())  # type: ignore[arg-type]
    assert save.spent == 3
    now[0] += 3 / SAVING - 1
    assert not save._late()
    now[0] += 1
    assert save._late()


# --- pixels on the device

TRAINER = SimpleNamespace(
    global_rank=0,
    world_size=1,
    fit_loop=SimpleNamespace(
        epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)),
        epoch_loop=SimpleNamespace(
            batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0))
        ),
    ),
)


def served(recipe: Recipe, *, resident: bool) -> list[dict[str, Any]]:
    """The training batches of 24 random images, as they leave the loader."""
    rows = 24
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 20, 20), dtype=np.uint8)
    names = [str(row) for row in range(rows)]
    frame = pd.DataFrame({"image_id": names, "patient_id": names, "path": "", "a": 0.0})
    parts = np.full(rows, "train", object)
    data = CxrDataModule(Index("x", frame, ("a",)), pixels, parts, recipe, size=recipe.size, seed=3, resident=resident)  # fmt: skip
    data.trainer = TRAINER  # type: ignore[assignment]
    loaded = list(data.train_dataloader())
    kept = [{"in_loader": "image" in batch} for batch in loaded]
    return [{**note, **data.on_after_batch_transfer(batch, 0)} for note, batch in zip(kept, loaded, strict=True)]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "gathered"),
    [
        ({"size": 20, "train_view": "whole"}, True),
        ({"size": 16, "augment": Augment(rotate=9, horizontal_flip=0.5, on="device")}, True),
        ({"size": 16}, False),  # the loader crops
        ({"size": 20, "train_view": "whole", "augment": Augment(rotate=9)}, False),
    ],
)
def test_resident_pixels_make_the_loader_s_batches(fields: dict[str, Any], gathered: bool) -> None:
    recipe = Recipe(batch_size=8, load=20, **fields)
    plain, there = (served(recipe, resident=on) for on in (False, True))
    assert len(plain) == len(there) == 3
    for ours, theirs in zip(there, plain, strict=True):
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["row"], theirs["row"])
        assert theirs["in_loader"] and ours["in_loader"] is not gathered


def test_pixels_that_leave_no_room_are_no_guests() -> None:
    check_room(2**30, 2**31)
    with pytest.raises(ConfigError, match=r"--resident: the pixels take 2\.0 GiB .* leave it off"):
        check_room(2**31, 2**31)
