"""The Lightning set-up against a hand-written loop, and what each lever of a step brings."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torchvision
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cxrbench.core.spec import Execution, MethodParams, Precision, Recipe
from cxrbench.core.stage import DataView, Stage, fit
from cxrbench.data.index import Index
from cxrbench.data.module import CxrDataModule
from cxrbench.data.pixels import Grey, decode, resize
from cxrbench.methods.base import Classifier
from cxrbench.nn.backbones import ImageNetInput, build_backbone, to_unit
from cxrbench.nn.losses import masked_bce
from cxrbench.perf.data import draw_films
from cxrbench.perf.harness import Comparison, Counted, Goal, Item, ResultsDifferError
from cxrbench.runner.numerics import set_memory_format, set_numerics
from cxrbench.runner.training import TRAINED, build_module, train

LABELS = ("a", "b", "c")
FREE = {"detach", "slice", "t", "view", "expand", "empty"}  # operations that compute nothing


class SmallNet(Classifier):
    """A network whose steps are short, so that what is around them shows."""

    name = "perf-small-net"

    def __init__(self, params: MethodParams, labels: tuple[str, ...]) -> None:
        super().__init__(params, labels)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, len(labels)),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.net(image)
        return logits


def one_epoch(size: int, batch: int, precision: Precision) -> Recipe:
    """An epoch of images [size, size] as they are, at a constant rate."""
    return Recipe(
        epochs=1, batch_size=batch, learning_rate=1e-3, size=size, load=size, train_view="whole",
        precision=precision,
    )  # fmt: skip


def stage_of(cls: type[Classifier], params: MethodParams) -> Stage:
    """The training of a class on data of this module."""
    return fit(cls, DataView("perf", 1, {}, "", "holdout", "", 0, LABELS), params)


def drawn_data(recipe: Recipe, steps: int, *, pin: bool = False) -> Callable[[], CxrDataModule]:
    """The same data in a module that no trainer has seen yet, each time."""
    random = np.random.default_rng(0)
    rows = (steps + 2) * recipe.batch_size
    pixels = random.integers(0, 256, (rows, recipe.load, recipe.load), dtype=np.uint8)
    names = [str(row) for row in range(rows)]
    frame = pd.DataFrame({"image_id": names, "patient_id": names, "path": ""})
    frame[list(LABELS)] = (random.random((rows, len(LABELS))) < 0.3).astype(float)
    parts = np.array(
        ["train"] * (steps * recipe.batch_size) + ["val"] * (2 * recipe.batch_size), object
    )
    index = Index("perf", frame, LABELS)
    return lambda: CxrDataModule(index, pixels, parts, recipe, size=recipe.size, seed=0, pin=pin)


def by_trainer(
    stage: Stage, data: CxrDataModule, work: Path, execution: Execution
) -> dict[str, Tensor]:
    """The weights that the suite's trainer leaves."""
    work.mkdir()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(stage, data, {}, work, execution, work)
    return safetensors.torch.load_file(work / TRAINED / "model.safetensors")


def by_hand(stage: Stage, data: CxrDataModule, execution: Execution) -> dict[str, Tensor]:
    """The weights that an epoch of plain PyTorch leaves: steps, then validation. Hooks of the module are called."""
    module: Any = build_module(stage, {})
    recipe = module.params.recipe
    device = "cuda" if execution.accelerator == "gpu" else "cpu"
    set_numerics(execution, recipe.precision)
    set_memory_format(module, recipe, execution)
    module.to(device).train()
    optimiser = torch.optim.Adam(module.parameters(), lr=recipe.learning_rate, fused=True)
    mixed = partial(torch.autocast, device, torch.bfloat16, recipe.precision == "bf16-mixed")

    def sent(batch: Any) -> Any:
        return move_data_to_device(batch, torch.device(device))

    for number, batch in enumerate(data.train_dataloader()):
        module.on_train_batch_start(batch, number)
        optimiser.zero_grad()
        with mixed():
            loss = module.losses(sent(batch))["loss"]
        loss.backward()
        optimiser.step()
        module.on_train_batch_end(None, batch, number)
    module.eval()
    with torch.no_grad(), mixed():
        logits = [module.logits(sent(batch)) for batch in data.val_dataloader()]
    assert torch.isfinite(torch.cat(logits)).all()
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}


def same_weights(ours: dict[str, Tensor], peer: dict[str, Tensor]) -> str:
    if ours.keys() != peer.keys():
        return "other names of weights"
    different = [name for name in peer if not torch.equal(ours[name], peer[name])]
    return f"other weights after the epoch: {', '.join(different)}" if different else ""


def comparisons(
    folder: Path,
    *,
    steps: int = 100,
    size: int = 64,
    batch: int = 16,
    side: int = 1024,
) -> Iterator[Item]:
    """All of this topic."""
    recipe = one_epoch(size, batch, "32-true")
    stage, data = stage_of(SmallNet, MethodParams(recipe=recipe)), drawn_data(recipe, steps)
    number = count()
    yield Comparison(
        "training/overhead",
        "an epoch by the suite's trainer / a hand-written loop, same net and batches",
        ours=lambda: by_trainer(stage, data(), folder / f"training-{next(number)}", Execution()),
        peer=lambda: by_hand(stage, data(), Execution()),
        equal=same_weights,
        goal=Goal("extra", 0.002),
        units=(steps, steps),
        unit="step",
        note=f"{steps} steps of {batch} images of {size} px; the trainer's start, its validation AUC, state and "
        "weights on disk are in it. The weights after the epoch are equal bit for bit.",
    )
    yield _operations(64)
    yield from ladder(folder, films=2, side=side, size=64)


class CountOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations of ATen that compute something, backward passes included."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func.overloadpacket.__name__ not in FREE
        return func(*args, **(kwargs or {}))


def _operations(side: int) -> Item:
    """DenseNet121's operations in a forward and backward pass, and those of torchvision's blocks."""
    counts: dict[str, int] = {}

    def counted(name: str, net: nn.Module, image: Tensor) -> dict[str, Tensor]:
        with CountOperations() as count:  # type: ignore[no-untyped-call]
            net(image).square().sum().backward()
        counts[name] = count.calls
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    torch.manual_seed(0)
    image = torch.rand(2, 3, side, side)
    plain = torchvision.models.densenet121(weights=None, num_classes=len(LABELS))
    ours, _ = build_backbone("densenet121", len(LABELS), "none")
    ours.load_state_dict(plain.state_dict())
    found = counted("ours", ours, image), counted("theirs", plain, image)
    differs = same_weights(*found)

    def value() -> float:
        if differs:
            raise ResultsDifferError(differs.replace("weights after the epoch", "gradients"))
        return counts["ours"]

    return Counted(
        "training/operations",
        "DenseNet121: operations of ATen in a forward and backward pass",
        value,
        Goal("count", 1000),
        note=f"{counts['theirs']:,} with torchvision's blocks; the gradients are equal bit for bit, which is checked first.",
    )


Step = Callable[[], list[float]]


def make_step(
    read: Callable[[], Grey],
    *,
    channels_last: bool = False,
    bf16: bool = False,
    fused: bool = False,
) -> Step:
    """A training step of a DenseNet121 on the images [B, S, S] that are read anew; gives its loss.

    And the loss after it, where an optimiser shows: that one is computed in the first call alone.
    """
    torch.manual_seed(0)
    net, _ = build_backbone("densenet121", len(LABELS), "none")
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    normalise = ImageNetInput()
    after: list[float] = []

    def loss_of(image: Tensor) -> Tensor:
        target = (torch.arange(len(image) * len(LABELS)) % 2.0).view(len(image), -1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(normalise(to_unit(image)))
        return masked_bce(logits.float(), target, torch.ones_like(target, dtype=torch.bool))

    def run() -> list[float]:
        net.load_state_dict(start)
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=fused)
        image = torch.from_numpy(read()).unsqueeze(1)
        loss = loss_of(image)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if not after:
            with torch.no_grad():
                after.append(float(loss_of(image)))
        return [float(loss.detach()), *after]

    return run


def ladder(folder: Path, *, films: int, side: int, size: int) -> Iterator[Item]:
    """Each lever on top of those before it, against none of them; gpu.py has a GPU's.

    Films [side, side] are decoded from their PNG files in each step, until the cache holds them at [size, size].
    """
    paths = draw_films(folder / "ladder", films, side)

    def decoded() -> Grey:
        return np.stack([resize(decode(path), size) for path in paths])

    saved = folder / "ladder.npy"
    np.save(saved, decoded())
    cached = np.load(saved, mmap_mode="r", allow_pickle=False)
    plain = make_step(decoded)
    on: dict[str, bool] = {}
    for lever in ("channels_last", "bf16", "fused", "cache"):
        read = decoded
        if lever == "cache":
            read = partial(np.take, cached, range(films), axis=0)
        else:
            on[lever] = True
        most = 0.05 if "bf16" in on else 0.01
        yield Comparison(
            f"ladder/cpu/{lever}",
            f"DenseNet121, {films} films of {side} px at {size}: + {lever} / baseline",
            ours=make_step(read, **on),
            peer=plain,
            equal=_losses_within(most),
            units=(films, films),
            unit="image",
            note="Losses before and after a step are equal to 1 % in float32, to 5 % with bf16, relatively: other kernels add "
            "up in another order.",
        )


def _losses_within(most: float) -> Callable[[list[float], list[float]], str]:
    def equal(ours: list[float], peer: list[float]) -> str:
        gap = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(ours, peer, strict=True))
        return "" if gap <= most else f"losses differ by {gap:.2g}, relatively"

    return equal
