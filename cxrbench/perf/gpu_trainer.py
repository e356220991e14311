"""The suite's trainer on a GPU: against a hand-written loop, and how often its steps wait.

Steps alone are looked at, since a training's start and end are paid once.
"""

import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.profiler import profile, supported_activities

from cxrbench.core.spec import Execution
from cxrbench.methods.densenet121 import BackboneClassifier, BackboneParams
from cxrbench.perf.harness import Counted, Goal, ResultsDifferError
from cxrbench.perf.training import (
    by_hand,
    by_trainer,
    drawn_data,
    one_epoch,
    same_weights,
    stage_of,
)

FIRST = 5  # steps that are not timed: kernels are chosen in them
ROUNDS = 5
# Of the CUDA runtime; values that are read and copies that block come down to them. The profiler synchronises the
# device itself, once.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class Timed(BackboneClassifier):
    """A classifier that says when its device began and ended the steps of an epoch."""

    name = "perf-timed"
    last: ClassVar[int] = 0  # the number of the last step
    marks: ClassVar[list[float]] = []
    watch: ClassVar[profile | None] = None

    def _mark(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == FIRST:
            self._mark()
            if self.watch:
                self.watch.start()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.last:
            if self.watch:
                self.watch.stop()
            self._mark()


def comparisons(
    folder: Path, network: str, device: str, side: int, batch: int, steps: int
) -> Iterator[Counted]:
    """Images a second of the trainer's steps over those of the loop's; the waits in its steps."""
    recipe = one_epoch(side, batch, "bf16-mixed")
    stage = stage_of(Timed, BackboneParams(backbone=network, pretrained="none", recipe=recipe))
    data, number = drawn_data(recipe, FIRST + steps, pin=device == "cuda"), count()
    # Deterministic, so that the weights can be equal bit for bit.
    execution = Execution(accelerator="gpu" if device == "cuda" else "cpu", deterministic=True)

    def trained() -> dict[str, Tensor]:
        return by_trainer(stage, data(), folder / f"trainer-{next(number)}", execution)

    kept: dict[str, dict[str, Tensor]] = {}

    def seconds(which: int) -> float:
        """Of the steps of the trainer (0) or the loop (1); the weights must be those of all calls before."""
        Timed.last, Timed.marks = FIRST + steps - 1, []
        weights = trained() if which == 0 else by_hand(stage, data(), execution)
        if differs := same_weights(weights, kept.setdefault("weights", weights)):
            raise ResultsDifferError(differs)
        began, ended = Timed.marks
        return ended - began

    def share() -> float:
        order = np.random.default_rng(0)
        taken = np.empty((2, 1 + ROUNDS))  # the first round warms up
        for turn in range(1 + ROUNDS):
            for which in order.permutation(2):
                taken[which, turn] = seconds(which)
        trainer, loop = np.median(taken[:, 1:], axis=1)
        return float(loop / trainer)

    yield Counted(
        "gpu/trainer",
        f"{network}, {batch} images of {side} px in bf16: steps of the suite's trainer / of a hand-written loop",
        share,
        Goal("share", 0.97, least=True),
        note=f"Images a second, medians of {ROUNDS} rounds of {steps} steps in turns, deterministic kernels. The weights "
        "after them are equal bit for bit. Start, validation and saving are not in it.",
    )

    def waits() -> float:
        Timed.last, Timed.marks = FIRST + steps - 1, []
        Timed.watch = profile(activities=supported_activities())  # type: ignore[no-untyped-call]
        try:
            trained()
            events = Timed.watch.events()  # type: ignore[no-untyped-call]
            return waits_in(event.name for event in events or [])
        finally:
            Timed.watch = None

    yield Counted(
        "gpu/waits",
        f"{network}: waits for the device in {steps} steps of the suite's trainer",
        waits,
        Goal("count", 0),
        note=f"Calls of {', '.join(WAITS)} in the profiler's trace.",
    )


def waits_in(names: Iterable[str]) -> int:
    """How many of a trace's events are calls that return when the device has done what it was sent."""
    return sum(name in WAITS for name in names)
