"""A loss scaler that skips every step ends the training, and one that skips some does not."""

from collections.abc import Callable

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from cxrbench.runner.callbacks import NonFiniteLossError, SkippedSteps


class Overflowing(L.LightningModule):
    """One weight, whose gradient is infinite in the steps that are asked for."""

    def __init__(self, bad: Callable[[int], bool]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.weight.register_hook(
            lambda grad: grad * float("inf") if bad(self.global_step) else grad
        )

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def train(bad: Callable[[int], bool], *, accumulate: int = 1) -> tuple[SkippedSteps, Overflowing]:
    """120 steps with the scaler of 16-mixed, which Lightning itself would not take on a CPU."""
    module, watch = Overflowing(bad), SkippedSteps()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[watch], accumulate_grad_batches=accumulate,
        plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", growth_interval=7))],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.ones(120 * accumulate, 1)))
    return watch, module


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_scaler_that_skips_every_step_ends_the_training(accumulate: int) -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"skipped the last 51 steps, to step 61: .*bf16-mixed"
    ):
        train(lambda step: step >= 10, accumulate=accumulate)


@pytest.mark.parametrize(
    "bad", [lambda step: step % 2 == 0, lambda step: 10 <= step < 60, lambda _: False]
)
def test_one_that_skips_some_is_left_alone(bad: Callable[[int], bool]) -> None:
    watch, module = train(bad)
    assert watch.skipped <= 1 and float(module.weight.detach()) < 1


def test_without_a_scaler_nothing_is_counted() -> None:
    watch = SkippedSteps()
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[watch], logger=False,
                        enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False)  # fmt: skip
    trainer.fit(Overflowing(lambda _: False), DataLoader(torch.ones(3, 1)))
    assert watch.skipped == 0
