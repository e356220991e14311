"""How a device computes: which kernels may be chosen, and what float32 means. Recorded, never part of an identity."""

import torch
from torch import nn

from cxrbench.core.spec import Execution, Recipe


def set_numerics(execution: Execution, precision: str) -> None:
    """Set torch's switches for a training or a prediction in `precision`; the Trainer sets them again, alike.

    `32-true` is IEEE float32 in convolutions too, which torch leaves to TF32 (ten bits of fraction) on a GPU. In mixed
    precision, whose products have seven bits in bfloat16, TF32 may do what stays in float32.
    """
    exact = precision == "32-true"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    # Deterministic algorithms else fill every new tensor with NaN first: a memory pass for each operation's result.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    how = algorithms(execution)
    torch.use_deterministic_algorithms(bool(how), warn_only=how == "warn")
    # Shapes do not change from step to step, so the quickest kernels are searched for once.
    torch.backends.cudnn.benchmark = times_kernels(execution)


def set_memory_format(module: nn.Module, recipe: Recipe, execution: Execution) -> bool:
    """Lay a module's convolutions out as the recipe asks; whether channels come last.

    `auto` is what was quicker: on CPUs for most networks and for none much slower, on GPUs where tensor cores
    multiply. In float32 without TF32 cuDNN's kernels are those for channels that come first.
    """
    last = recipe.channels_last
    if last == "auto":
        last = execution.accelerator == "cpu" or recipe.precision != "32-true"
    if last:
        module.to(memory_format=torch.channels_last)
    return last


def algorithms(execution: Execution) -> bool | str:
    """Lightning's `deterministic`: an error on CPUs, a warning on GPUs, where some backward passes have no such form."""
    if execution.accelerator == "cpu":
        return True
    return "warn" if execution.deterministic else False


def times_kernels(execution: Execution) -> bool:
    """Whether cuDNN may choose kernels by timing them."""
    return execution.accelerator == "gpu" and not execution.deterministic
