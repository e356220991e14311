"""What a GPU makes of the suite's networks and loaders; eight minutes at most.

Every side ends with losses that are read, so the clock stops when the device has done its work; each is made at its
first call, so that memory that is short costs one row. Shapes: B batch, S side. Tests run all of this on the CPU, small.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from cxrbench.core.digest import digest_file
from cxrbench.core.spec import Augment, Execution
from cxrbench.data.resident import Resident
from cxrbench.nn.autoencoder import SCALE, Encoder
from cxrbench.nn.backbones import ImageNetInput, build_backbone, to_unit
from cxrbench.nn.losses import masked_bce
from cxrbench.perf import gpu_trainer
from cxrbench.perf.data import LABELS, serve
from cxrbench.perf.gpu_sharing import Sharing
from cxrbench.perf.harness import Absent, Comparison, Counted, Goal, Item
from cxrbench.runner.callbacks import SAVING
from cxrbench.runner.checkpoint import AtomicCheckpointIO
from cxrbench.runner.numerics import set_numerics

Losses = list[float]
Run = Callable[[], Losses]
# Images a second that an H200's memory and arithmetic allow for a training step, as the goals have them.
ROOFLINES = {"densenet121": 8220, "vgg16": 1189}
STEPS = 10


@dataclass
class How:
    """One way to take training steps: what the suite does is all of the levers but the last two."""

    channels_last: bool = False
    bf16: bool = False
    fused: bool = False
    resident: bool = True  # the batch is on the device; else it is sent in each step
    compiled: bool | str = False


OURS = How(channels_last=True, bf16=True, fused=True)


@dataclass
class Steps:
    """Training steps of a network from the same start; a call gives their losses. Made at the first call."""

    network: str
    side: int
    batch: int
    device: str
    how: How = field(default_factory=How)
    steps: int = STEPS
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]] | None = (
        None  # else one batch, again and again
    )
    _made: Any = None

    @property
    def shape(self) -> tuple[str, int, int, str, int]:
        """Network, side, batch, device and steps."""
        return self.network, self.side, self.batch, self.device, self.steps

    def __call__(self) -> Losses:
        if self._made is None:
            self._made = self._make()
        net, network, start = self._made
        net.load_state_dict(start)
        fused = self.how.fused
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=fused)
        losses = [self._step(network, optimiser, *pair) for pair in self._batches()]
        return torch.stack(losses).tolist()  # waits for the device

    def _make(self) -> tuple[nn.Module, Any, dict[str, Tensor]]:
        torch.manual_seed(0)
        body, _ = build_backbone(self.network, len(LABELS), "none")
        net = nn.Sequential(ImageNetInput(), body).to(self.device)
        if self.how.channels_last:
            net = net.to(memory_format=torch.channels_last)
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # both sides are to give the same losses
        start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        network: Any = net
        if self.how.compiled:
            mode = None if isinstance(self.how.compiled, bool) else self.how.compiled
            network = torch.compile(net, mode=mode, dynamic=False)
        return net, network, start

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.batches is not None:
            yield from self.batches()
            return
        generator = torch.Generator().manual_seed(1)
        shape = (self.batch, 1, self.side, self.side)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        target = (torch.rand(self.batch, len(LABELS), generator=generator) < 0.2).float()
        if self.how.resident:
            image, target = image.to(self.device), target.to(self.device)
        for _ in range(self.steps):
            yield image.to(self.device), target.to(self.device)

    def _step(self, network: Any, optimiser: Any, image: Tensor, target: Tensor) -> Tensor:
        if self.how.compiled:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.how.bf16):
            logits = network(to_unit(image))
        loss = masked_bce(logits, target, torch.ones_like(target, dtype=torch.bool))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.detach().clone()


def within(most: float) -> Callable[[Losses, Losses], str]:
    """Losses that are equal to `most`, relatively."""

    def equal(ours: Losses, peer: Losses) -> str:
        if len(ours) != len(peer) or not np.isfinite(ours).all():
            return f"{len(ours)} losses against {len(peer)}, or some that are no numbers"
        gap = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(ours, peer, strict=True))
        return "" if gap <= most else f"losses differ by {gap:.2g}, relatively"

    return equal


def comparisons(
    folder: Path, *, device: str = "", side: int = 224, large: int = 512, batch: int = 64, small: int = 16,
    rows: int = 2048, steps: int = STEPS, stages: int = 3, network: str = "densenet121", second: str = "vgg16",
) -> Iterator[Item]:  # fmt: skip
    """All of this topic; only tests name a `device`."""
    if not device:
        if not torch.cuda.is_available():
            yield Absent("gpu/*", "what a GPU makes of networks and loaders", "no CUDA device")
            return
        device = "cuda"
    deterministic = torch.are_deterministic_algorithms_enabled()
    set_numerics(Execution(accelerator="gpu"), "32-true")
    topics: tuple[Callable[[], Iterator[Item]], ...] = (
        lambda: _in_float32_and_bf16(network, device, side, batch, steps),
        lambda: _loader(folder, network, device, side, batch, rows),
        lambda: _loader(folder, second, device, large, max(1, batch // 2), max(1, rows // 8)),
        lambda: _memory(network, device, side, batch),
        lambda: _encoder(device, side, small),
        lambda: gpu_trainer.comparisons(folder, network, device, side, batch, 3 * steps),
        lambda: _sharing(network, device, side, small, steps, stages),
        lambda: _graphs(network, device, side, small, steps),
        lambda: _saving(folder, second, device),
    )
    try:
        for make in topics:
            yield from make()
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
    finally:
        set_numerics(Execution(), "32-true")
        torch.use_deterministic_algorithms(deterministic)


def _in_float32_and_bf16(
    network: str, device: str, side: int, batch: int, steps: int
) -> Iterator[Item]:
    compiled = Steps(network, side, batch, device, replace(OURS, compiled=True), steps)
    yield from _ladder(compiled)
    yield from _peers(compiled)


def _ladder(compiled: Steps) -> Iterator[Item]:
    """Each lever on top of those before it, against eager float32 (no TF32) that is sent its batches."""
    network, side, batch, device, steps = compiled.shape
    on: dict[str, Any] = {"resident": False}
    plain = Steps(network, side, batch, device, How(**on), steps)
    levers = ("channels_last", "bf16", "fused", "resident", "compiled")
    for lever in levers:
        on[lever] = True
        goal = Goal("ratio", 2, least=True) if lever == "bf16" else None
        most = 0.05 if "bf16" in on else 0.01
        yield Comparison(
            f"gpu/ladder/{lever}",
            f"{network}, {batch} images of {side} px: + {lever} / eager float32",
            ours=compiled if lever == "compiled" else Steps(network, side, batch, device, How(**on), steps),
            peer=plain, equal=within(most), goal=goal, units=(steps * batch,) * 2, unit="image",
            note="The goal is that of bf16 and channels_last together; losses are equal to 1 % in float32, to 5 % beyond it.",
        )  # fmt: skip


def _peers(compiled: Steps) -> Iterator[Item]:
    network, side, batch, device, steps = compiled.shape
    shared: dict[str, Any] = {"units": (steps * batch,) * 2, "unit": "image"}
    ours = Steps(network, side, batch, device, OURS, steps)
    yield Comparison(
        "gpu/compile", f"{network}, {batch} images of {side} px in bf16: compiled / eager",
        ours=compiled, peer=ours, equal=within(0.05), goal=Goal("ratio", 1.3, least=True), **shared,
    )  # fmt: skip
    yield Comparison(
        "gpu/timm", f"{network}, {batch} images of {side} px: our step / timm's network in the loop of its benchmark.py",
        ours=ours, peer=_by_timm(network, device, side, batch, steps),
        equal=lambda a, b: "" if len(a) == len(b) and np.isfinite([*a, *b]).all() else "not as many finite losses",
        goal=Goal("ratio", 0.97, least=True), **shared,
        note="timm's train benchmark: bf16 autocast, channels_last, SGD, one random batch on the device; written anew "
        "here, since the package lacks the script. Losses are not comparable: other weights and another loss.",
    )  # fmt: skip
    name = f"gpu/roofline/{network}"
    what = f"{network} at {side} px, {batch} images in bf16: images a second / an H200's roofline"
    if network in ROOFLINES:
        yield _share_of_roofline(name, what, ours, ROOFLINES[network], steps * batch)


def _by_timm(network: str, device: str, side: int, batch: int, steps: int) -> Run:
    made: list[Any] = []

    def run() -> Losses:
        if not made:
            net = timm.create_model(network, pretrained=False, num_classes=1000).to(device)
            net = net.to(memory_format=torch.channels_last)
            image = torch.randn(batch, 3, side, side, device=device)
            image = image.contiguous(memory_format=torch.channels_last)
            target = torch.zeros(batch, dtype=torch.int64, device=device)
            made.extend(
                (net, torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9), image, target)
            )
        net, optimiser, image, target = made
        losses = []
        for _ in range(steps):
            optimiser.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                loss = nn.functional.cross_entropy(net(image), target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    return run


def _share_of_roofline(name: str, what: str, steps: Steps, roofline: float, images: int) -> Counted:
    def share() -> float:
        taken = [_seconds(steps) for _ in range(8)][1:]
        return images / float(np.median(taken)) / roofline

    return Counted(
        name, what, share, None, note=f"{roofline:,} images a second; median of 7 calls."
    )


def _seconds(call: Callable[[], Any]) -> float:
    from time import perf_counter

    started = perf_counter()
    call()
    return perf_counter() - started


def _loader(
    folder: Path, network: str, device: str, side: int, batch: int, rows: int
) -> Iterator[Item]:
    """An epoch from the loader, and from pixels on the device, against as many steps on one fixed batch."""
    random = np.random.default_rng(0).integers(0, 256, (min(rows, 64), side, side), dtype=np.uint8)
    served = serve(folder / f"{network}-{side}.npy", random, rows, batch, augment=Augment())
    steps = len(served.loader)
    fixed = Steps(network, side, batch, device, OURS, steps)
    resident = Resident(served.pixels)

    def sent() -> Iterator[tuple[Tensor, Tensor]]:
        for found in served.loader:
            yield tuple(found[k].to(device, non_blocking=True) for k in ("image", "target"))

    def gathered() -> Iterator[tuple[Tensor, Tensor]]:
        for found in served.loader.batch_sampler:  # type: ignore[union-attr]
            row = torch.tensor([row for _, row in found]).to(device, non_blocking=True)
            yield resident.gather(row), torch.zeros(len(row), len(LABELS), device=device)

    for name, batches, how in (
        ("loader", sent, "the loader"),
        ("resident", gathered, "pixels on the device"),
    ):
        ours = Steps(network, side, batch, device, OURS, steps, batches)
        yield Comparison(
            f"gpu/{name}/{network}-{side}",
            f"training of {network} at {side} px from {how} / on one fixed batch",
            ours=ours, peer=fixed, equal=_as_many, goal=Goal("ratio", 0.97, least=True),
            units=(steps * batch,) * 2, unit="image", note="No augmentation, no loader processes; as many finite losses.",
        )  # fmt: skip
    if network in ROOFLINES and network != "densenet121":
        what = (
            f"{network} at {side} px, {batch} images in bf16: images a second / an H200's roofline"
        )
        yield _share_of_roofline(
            f"gpu/roofline/{network}", what, fixed, ROOFLINES[network], steps * batch
        )


def _as_many(ours: Losses, peer: Losses) -> str:
    fine = len(ours) == len(peer) and bool(np.isfinite([*ours, *peer]).all())
    return "" if fine else f"{len(ours)} losses against {len(peer)}, or some that are no numbers"


def _memory(network: str, device: str, side: int, batch: int) -> Iterator[Item]:
    def peak(how: How) -> int:
        if device != "cuda":
            return 1
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        Steps(network, side, batch, device, how, 2)()
        return torch.cuda.max_memory_allocated() - before

    yield Counted(
        "gpu/memory", f"{network}, {batch} images of {side} px: peak memory in bf16 and channels_last / in float32",
        lambda: peak(OURS) / peak(How(fused=True)), Goal("share", 0.55),
        note="Of what PyTorch's allocator hands out in two steps.",
    )  # fmt: skip


def _graphs(network: str, device: str, side: int, batch: int, steps: int) -> Iterator[Item]:
    mode = "reduce-overhead"
    yield Comparison(
        "gpu/graphs", f"{network}, {batch} images of {side} px in bf16: {mode} (CUDA graphs) / eager",
        ours=Steps(network, side, batch, device, replace(OURS, compiled=mode), steps),
        peer=Steps(network, side, batch, device, OURS, steps),
        equal=within(0.05), goal=Goal("ratio", 1.8, least=True), units=(steps * batch,) * 2, unit="image",
    )  # fmt: skip


def _encoder(device: str, side: int, batch: int) -> Iterator[Item]:
    """AE-CNN's encoder on images of four times the side, against the classifier on its code."""

    def passes(net: nn.Module, shape: tuple[int, ...]) -> Run:
        made: list[Any] = []

        def run() -> Losses:
            if not made:
                made.extend((net.to(device), torch.rand(shape, device=device)))
            module, image = made
            losses = []
            for _ in range(5):
                with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                    out = module(image)
                loss = out.float().square().mean()
                loss.backward()
                losses.append(loss.detach())
            return torch.stack(losses).tolist()

        return run

    classifier, _ = build_backbone("densenet121", len(LABELS), "none")
    whole = SCALE * side
    yield Comparison(
        "gpu/aecnn-encoder", f"AE-CNN's encoder on {batch} images of {whole} px / the classifier on their code of {side}",
        ours=passes(Encoder(), (batch, 1, whole, whole)),
        peer=passes(nn.Sequential(ImageNetInput(), classifier), (batch, 1, side, side)),
        equal=_as_many, goal=Goal("ratio", 20, least=True), units=(5, 5), unit="pass",
        note="Forward and backward; 20 x is 5 % of the classifier's time. Work that differs, so only finite values are asked.",
    )  # fmt: skip


def _saving(folder: Path, network: str, device: str) -> Iterator[Item]:
    """A training state from the device to disk: written, flushed, and its SHA-256 taken."""
    made: list[Any] = []
    path = folder / "state.ckpt"

    def save() -> float:
        if not made:
            net, _ = build_backbone(network, len(LABELS), "none")
            net = net.to(device)
            optimiser = torch.optim.AdamW(net.parameters())
            for weight in net.parameters():
                weight.grad = torch.zeros_like(weight)
            optimiser.step()
            made.append(
                {"state_dict": net.state_dict(), "optimizer_states": [optimiser.state_dict()]}
            )
        AtomicCheckpointIO().save_checkpoint(made[0], path)
        digest_file(path)
        return float(path.stat().st_size)

    yield Comparison(
        "gpu/checkpoint", f"saving a training of {network} with AdamW", ours=save,
        equal=lambda size, _: "" if size > 1e6 else f"a state of {size} bytes",
        goal=Goal("seconds", 60 * SAVING), unit="save",
        note=f"Saved each minute that is {SAVING:.0%} of the time; what takes longer is saved more rarely, so the share holds.",
    )  # fmt: skip


def _sharing(
    network: str, device: str, side: int, batch: int, steps: int, stages: int
) -> Iterator[Item]:
    """Small trainings in processes of their own: all at once, or one after the other."""
    with contextlib.closing(Sharing(network, side, batch, device, steps, stages)) as several:
        yield Comparison(
            "gpu/three-stages", f"{stages} trainings of {network}, {batch} images of {side} px: at once / one by one",
            ours=several.at_once, peer=several.one_by_one, equal=within(0.05),
            goal=Goal("ratio", 1.4, least=True), units=(stages * steps * batch,) * 2, unit="image",
            note="Each in a process of its own on one GPU, started before the clock is.",
        )  # fmt: skip
