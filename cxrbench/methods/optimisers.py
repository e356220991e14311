"""Recipes to optimisers and schedules."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from cxrbench.core.spec import Recipe

OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def build_optimiser(module: nn.Module, recipe: Recipe, steps_per_epoch: int) -> Any:
    """What Lightning's `configure_optimizers` returns for a recipe."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    options: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        options["momentum"] = 0.9
    optimiser = OPTIMISERS[recipe.optimizer](parameters, **options)
    if recipe.schedule == "plateau":
        plateau = ReduceLROnPlateau(
            optimiser, factor=recipe.plateau_factor, patience=recipe.plateau_patience
        )
        schedule = {"scheduler": plateau, "monitor": "val_loss", "interval": "epoch"}
        return {"optimizer": optimiser, "lr_scheduler": schedule}
    if recipe.schedule == "constant" and not recipe.warmup_epochs:
        return optimiser
    steps = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if recipe.schedule == "constant":
            return 1.0
        done = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    schedule = {"scheduler": LambdaLR(optimiser, factor), "interval": "step"}
    return {"optimizer": optimiser, "lr_scheduler": schedule}
