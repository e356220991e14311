"""torch.compile for a training, and what CUDA graphs ask of it."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningModule as Module
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from cxrbench.core.errors import ConfigError
from cxrbench.core.spec import Recipe

GRAPHS = ("reduce-overhead", "max-autotune")  # modes whose steps are CUDA graphs on a GPU


def takes_graphs(recipe: Recipe) -> bool:
    """Whether the steps of a recipe are CUDA graphs where there is a GPU."""
    return recipe.compile in GRAPHS


def check_graphs(recipe: Recipe, parts: int) -> None:
    """Raise ConfigError for gradients that are added up over several graphs' runs.

    A run's gradients lie in the graph's own memory, where the next one writes.
    """
    if takes_graphs(recipe) and recipe.accumulate * parts > 1:
        halved = " (and the batch was halved)" if parts > 1 else ""
        raise ConfigError(
            f"recipe.compile {recipe.compile}: CUDA graphs keep no gradients from batch to batch, and recipe.accumulate "
            f"is {recipe.accumulate}{halved}; set recipe.compile to true"
        )


def compile_networks(module: nn.Module, recipe: Recipe) -> list[str]:
    """Compile each network of a method in place, for one shape a time; returns their names.

    Its own `forward` is not what many methods train: AE-CNN's loss calls encoder, decoder and classifier, a CycleGAN's
    both generators and judges, and the joint alignment the networks of the aligner within it.
    """
    mode: Any = None if recipe.compile is True else recipe.compile
    found = list(_networks(module))
    for name in found:
        # Without it a last, smaller batch of validation would make the batch's size a variable.
        module.get_submodule(name).compile(mode=mode, dynamic=False)
    return found


def _networks(module: nn.Module, prefix: str = "") -> Iterator[str]:
    for name, child in module.named_children():
        if isinstance(child, Module):  # a method within a method, which has networks of its own
            yield from _networks(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield prefix + name


class NewStep(Callback):
    """Tells CUDA graphs where a batch begins, so that none waits for what the last one left."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Module, batch: Any, batch_idx: int
    ) -> None:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: Module,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
