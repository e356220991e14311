"""The suite's trainer against a hand-written loop on a GPU: steps alone, as its start and end are paid once."""

import time
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

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


class Timed(BackboneClassifier):
    """A classifier that says when its device began and ended the steps of an epoch."""

    name = "perf-timed"
    last: ClassVar[int] = 0  # the number of the last step
    marks: ClassVar[list[float]] = []

    def _mark(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == FIRST:
            self._mark()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.last:
            self._mark()


def comparison(
    folder: Path, network: str, device: str, side: int, batch: int, steps: int
) -> Counted:
    """Images a second of the trainer's steps over those of the loop's."""
    recipe = one_epoch(side, batch, "bf16-mixed")
    stage = stage_of(Timed, BackboneParams(backbone=network, pretrained="none", recipe=recipe))
    data, number = drawn_data(recipe, FIRST + steps, pin=device == "cuda"), count()
    # Deterministic, so that the weights can be equal bit for bit.
    execution = Execution(accelerator="gpu" if device == "cuda" else "cpu", deterministic=True)

    def trained() -> dict[str, Tensor]:
        return by_trainer(stage, data(), folder / f"trainer-{next(number)}", execution)

    def seconds(side: int) -> float:
        """Of the steps of one side; its weights must be those of the sides before."""
        Timed.last, Timed.marks = FIRST + steps - 1, []
        weights = trained() if side == 0 else by_hand(stage, data(), execution)
        if differs := same_weights(weights, kept.setdefault("weights", weights)):
            raise ResultsDifferError(differs)
        began, ended = Timed.marks
        return ended - began

    kept: dict[str, dict[str, Tensor]] = {}

    def share() -> float:
        order = np.random.default_rng(0)
        taken = np.empty((2, 1 + ROUNDS))  # the first round warms up
        for turn in range(1 + ROUNDS):
            for side in order.permutation(2):
                taken[side, turn] = seconds(side)
        trainer, loop = np.median(taken[:, 1:], axis=1)
        return float(loop / trainer)

    return Counted(
        "gpu/trainer",
        f"{network}, {batch} images of {side} px in bf16: steps of the suite's trainer / of a hand-written loop",
        share,
        Goal("share", 0.97, least=True),
        note=f"Images a second, medians of {ROUNDS} rounds of {steps} steps in turns, deterministic kernels. The weights "
        "after them are equal bit for bit. Start, validation and saving are not in it.",
    )
