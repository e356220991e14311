"""What this machine offers, and how a sweep shares it out."""

import os
from pathlib import Path

from cxrbench.core.errors import UsageError
from cxrbench.core.spec import Execution

# Without one of these no driver is loaded, and asking torch (seconds to import) is needless.
DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")


def gpu_count() -> int:
    """GPUs that torch can use."""
    if not any(Path(path).exists() for path in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()


def auto_precision(accelerator: str) -> str:
    """What `precision: auto` stands for here."""
    if accelerator == "cpu":
        return "32-true"
    import torch

    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "16-mixed"


def choose(
    *,
    gpus: int | None = None,
    devices: int | None = None,
    accelerator: str | None = None,
    slots: int = 0,
    threads: int = 0,
    workers: int | None = None,
) -> Execution:
    """The execution that the options ask for; UsageError when the machine cannot give it.

    `gpus` is GPUs a training, 0 for the CPU; None takes one if there is one.
    """
    if gpus is not None and (devices is not None or accelerator is not None):
        raise UsageError("--gpus stands alone; or pass --devices N with --accelerator cpu|gpu")
    if accelerator not in (None, "auto", "cpu", "gpu"):
        raise UsageError(f"--accelerator {accelerator}: choose cpu or gpu")
    found = 0 if gpus == 0 or accelerator == "cpu" else gpu_count()
    wants_gpu = (
        bool(gpus) or accelerator == "gpu" or (gpus is None and accelerator != "cpu" and found > 0)
    )
    count = gpus or devices or 1
    cores = os.cpu_count() or 1
    if not wants_gpu:
        # A second thread makes the small networks that a CPU can train little faster; a second training does.
        slots = slots or max(1, (cores if cores <= 2 else cores // 2) // count)
        return Execution(
            accelerator="cpu",
            devices=count,
            slots=slots,
            threads=threads or max(1, cores // (slots * count)),
            workers=0 if workers is None else workers,
        )
    if found < count:
        have = "no GPU" if not found else f"{found} GPU{'s' if found > 1 else ''}"
        instead = f"--gpus {found}" if found else "--gpus 0 (one CPU process)"
        raise UsageError(
            f"{count} GPUs are asked for, but this machine has {have} that torch can use; pass {instead}"
            f" or --devices {count} --accelerator cpu ({count} CPU processes)"
        )
    if slots * count > found:
        raise UsageError(
            f"--slots {slots} of {count} GPUs each need more than the {found} GPUs here"
        )
    default = min(8, max(1, cores // max(1, found)))
    return Execution(
        accelerator="gpu",
        devices=count,
        slots=slots or max(1, found // count),
        threads=threads,
        workers=default if workers is None else workers,
    )
