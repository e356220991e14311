"""Recipes to optimisers and schedules."""

import math
from collections.abc import Mapping
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


# Those that torch has as one kernel for all weights; the others take one for each operation on lists of them.
FUSED = ("adam", "adamw", "sgd")
LINEAR_END = 0.01  # what a linear schedule leaves of the rate


def build_optimiser(
    module: nn.Module,
    recipe: Recipe,
    steps_per_epoch: int,
    rates: Mapping[str, float] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """What Lightning's `configure_optimizers` returns for a recipe.

    `rates`: submodule -> its share of the learning rate, where that is not 1. `options`: optimiser -> what a
    paper's own framework sets otherwise.
    """
    settings: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        settings["momentum"] = 0.9
    settings |= (options or {}).get(recipe.optimizer, {})
    # Not under a loss scaler: a fused optimiser undoes the scale itself, so Lightning refuses to clip before it.
    if recipe.optimizer in FUSED and recipe.precision != "16-mixed":
        settings["fused"] = True
    groups = _groups(module, recipe.learning_rate, rates or {})
    optimiser = OPTIMISERS[recipe.optimizer](groups, **settings)
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
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        if recipe.schedule == "linear":
            return 1 - (1 - LINEAR_END) * done
        return 0.5 * (1 + math.cos(math.pi * done))

    schedule = {"scheduler": LambdaLR(optimiser, factor), "interval": "step"}
    return {"optimizer": optimiser, "lr_scheduler": schedule}


def _groups(module: nn.Module, rate: float, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters that learn: those of each submodule in `rates`, and the rest before them."""
    chosen = {part: list(module.get_submodule(part).parameters()) for part in rates}
    taken = {id(p) for part in chosen.values() for p in part}
    rest = [p for p in module.parameters() if id(p) not in taken and p.requires_grad]
    slowed = [
        {"params": [p for p in chosen[part] if p.requires_grad], "lr": rate * share}
        for part, share in rates.items()
    ]
    return [{"params": rest}, *slowed]
