"""Averaged weights whose update is a few operations a step and lets the GPU run on.

Lightning makes its average before the network is on its device, so of a training on a GPU the average would stay on
the CPU and every step would wait for a copy of each weight; then it updates tensor by tensor, four operations each.
"""

import torch
from lightning import LightningModule as Module
from lightning import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class ExponentialAverage(AveragedModel):
    """decay x average + (1 - decay) x weight of every floating tensor, the same bits as torch's `get_ema_avg_fn`.

    Whole numbers (batches that a norm has seen) are those of the network.
    """

    def __init__(self, model: nn.Module, device: torch.device, decay: float) -> None:
        super().__init__(model, device=device, use_buffers=True)
        self.decay = decay
        # On the CPU, for it is read in each step.
        self.n_averaged = torch.tensor(0)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of `model`, which are on the same device."""
        averages, weights = _tensors(self.module), _tensors(model)
        whole = [n for n, tensor in enumerate(weights) if not tensor.is_floating_point()]
        if not int(self.n_averaged):
            whole = list(range(len(weights)))
        apart = set(whole)
        rest = [n for n in range(len(weights)) if n not in apart]
        if whole:
            torch._foreach_copy_([averages[n] for n in whole], [weights[n] for n in whole])
        if rest:
            kept = [averages[n] for n in rest]
            torch._foreach_mul_(kept, self.decay)
            added = torch._foreach_mul([weights[n] for n in rest], 1 - self.decay)
            torch._foreach_add_(kept, added)
        self.n_averaged += 1


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]


class AveragedWeights(EMAWeightAveraging):
    """An exponential average of the weights, still in place when KeepBest looks at the epoch."""

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: Module, stage: str) -> None:
        if stage == "fit":
            device = trainer.strategy.root_device
            self._average_model = ExponentialAverage(pl_module, device, self.decay)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Module) -> None:
        pass

    def on_validation_end(self, trainer: Trainer, pl_module: Module) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
