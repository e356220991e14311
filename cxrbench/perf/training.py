"""The Lightning set-up against a hand-written loop, and what each lever of a step brings."""

import contextlib
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cxrbench.core.spec import Execution, MethodParams, Recipe
from cxrbench.core.stage import DataView, Stage, fit
from cxrbench.data.index import Index
from cxrbench.data.module import CxrDataModule
from cxrbench.methods.base import Classifier
from cxrbench.nn.backbones import build_backbone
from cxrbench.nn.losses import masked_bce
from cxrbench.perf.harness import Comparison, Counted, Goal, Item, ResultsDifferError
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


def _recipe(size: int, batch: int) -> Recipe:
    return Recipe(
        epochs=1, batch_size=batch, learning_rate=1e-3, size=size, load=size, train_view="whole",
        precision="32-true",
    )  # fmt: skip


def _stage(recipe: Recipe) -> Stage:
    view = DataView("perf", 1, {}, "", "holdout", "", 0, LABELS)
    return fit(SmallNet, view, MethodParams(recipe=recipe))


def _data(recipe: Recipe, steps: int) -> Callable[[], CxrDataModule]:
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
    return lambda: CxrDataModule(index, pixels, parts, recipe, size=recipe.size, seed=0)


def _by_hand(stage: Stage, data: CxrDataModule) -> dict[str, Tensor]:
    """The weights that an epoch of plain PyTorch leaves: steps, then validation."""
    module = build_module(stage, {})
    recipe = module.params.recipe
    optimiser = torch.optim.Adam(module.parameters(), lr=recipe.learning_rate)
    module.train()
    for batch in data.train_dataloader():
        optimiser.zero_grad()
        loss = module.losses(batch)["loss"]  # type: ignore[operator]
        loss.backward()
        optimiser.step()
    module.eval()
    with torch.no_grad():
        logits = [module(batch["image"].float() / 255) for batch in data.val_dataloader()]
    assert torch.isfinite(torch.cat(logits)).all()
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _same_weights(ours: dict[str, Tensor], peer: dict[str, Tensor]) -> str:
    if ours.keys() != peer.keys():
        return "other names of weights"
    different = [name for name in peer if not torch.equal(ours[name], peer[name])]
    return f"other weights after the epoch: {', '.join(different)}" if different else ""


def comparisons(
    folder: Path, *, steps: int = 150, size: int = 64, batch: int = 16, side: int = 64
) -> Iterator[Item]:
    """All of this topic."""
    recipe = _recipe(size, batch)
    stage, data, number = _stage(recipe), _data(recipe, steps), count()

    def ours() -> dict[str, Tensor]:
        work = folder / f"training-{next(number)}"
        work.mkdir()
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            train(stage, data(), {}, work, Execution(), work)
        return safetensors.torch.load_file(work / TRAINED / "model.safetensors")

    yield Comparison(
        "training/overhead",
        "an epoch by the suite's trainer / a hand-written loop, same net and batches",
        ours=ours,
        peer=lambda: _by_hand(stage, data()),
        equal=_same_weights,
        goal=Goal("extra", 0.002),
        units=(steps, steps),
        unit="step",
        note=f"{steps} steps of {batch} images of {size} px; the trainer's start, its validation AUC, state and "
        "weights on disk are in it. The weights after the epoch are equal bit for bit.",
    )
    yield _operations(side)
    yield from ladder("cpu", side=side, batch=2)


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
    differs = _same_weights(*found)

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
    device: str, side: int, batch: int, *, channels_last: bool = False, fused: bool = False,
    steps: int = 2,
) -> Step:  # fmt: skip
    """Some training steps of a DenseNet121 from the same start; gives their losses."""
    torch.manual_seed(0)
    net, _ = build_backbone("densenet121", len(LABELS), "none")
    net = net.to(device)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    image = torch.rand(batch, 3, side, side)
    target = (torch.rand(batch, len(LABELS)) < 0.5).float()
    known = torch.ones_like(target, dtype=torch.bool).to(device)

    def run() -> list[float]:
        net.load_state_dict(start)
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=fused)
        losses = []
        for _ in range(steps):
            here = image.to(device)
            if channels_last:
                here = here.contiguous(memory_format=torch.channels_last)
            loss = masked_bce(net(here), target.to(device), known)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.detach())
        return [float(loss) for loss in losses]  # waits for the device

    return run


def ladder(device: str, *, side: int, batch: int) -> Iterator[Item]:
    """Each lever on top of those before it, against none of them; gpu.py has a GPU's."""
    levers, steps, most = ["channels_last", "fused"], 2, 0.01
    plain = make_step(device, side, batch, steps=steps)
    for number, lever in enumerate(levers, start=1):
        on = dict.fromkeys(levers[:number], True)
        yield Comparison(
            f"ladder/{device}/{lever}",
            f"DenseNet121, {batch} images of {side} px: + {lever} / baseline",
            ours=make_step(device, side, batch, steps=steps, **on),
            peer=plain,
            equal=_losses_within(most),
            units=(steps * batch,) * 2,
            unit="image",
            note=f"Losses of {steps} steps from the same start are equal to {most:g}, relatively: other kernels add up "
            "in another order.",
        )


def _losses_within(most: float) -> Callable[[list[float], list[float]], str]:
    def equal(ours: list[float], peer: list[float]) -> str:
        gap = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(ours, peer, strict=True))
        return "" if gap <= most else f"losses differ by {gap:.2g}, relatively"

    return equal
