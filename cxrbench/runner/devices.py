"""What this machine offers, and how a sweep shares it out."""

import math
import os
from pathlib import Path

from cxrbench.core.cluster import Cluster, Request, parse_time
from cxrbench.core.errors import UsageError
from cxrbench.core.spec import BenchSpec, Execution

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
    per_gpu: int = 1,
) -> Execution:
    """The execution that the options ask for; UsageError when the machine cannot give it.

    `gpus` is GPUs a training, 0 for the CPU; None takes one if there is one. `per_gpu` stages share each GPU.
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
    if per_gpu > 1:
        _check_sharing(per_gpu, count, wants_gpu=wants_gpu)
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
    if slots * count > found * per_gpu:
        each = f"{count} GPU{'s' if count > 1 else ''} each"
        shared = f" with {per_gpu} stages on each" if per_gpu > 1 else ""
        raise UsageError(
            f"--slots {slots} of {each} need more than the {found} GPU{'s' if found > 1 else ''} here{shared}"
        )
    default = min(8, max(1, cores // (found * per_gpu)))
    return Execution(
        accelerator="gpu",
        devices=count,
        slots=slots or max(1, found // count * per_gpu),
        per_gpu=per_gpu,
        threads=threads,
        workers=default if workers is None else workers,
    )


def _check_sharing(per_gpu: int, count: int, *, wants_gpu: bool) -> None:
    if not wants_gpu:
        raise UsageError(
            f"--per-gpu {per_gpu}: stages run on the CPU here; --slots says how many at the same time"
        )
    if count > 1:
        raise UsageError(
            f"--per-gpu {per_gpu}: a training on {count} GPUs has them for itself; pass --gpus 1"
        )


def waiting(text: str, accelerator: str) -> dict[str, float]:
    """The fields of an execution for `--wait-for-gpu-mem TIME[,GIB]`; UsageError for anything else, and without GPUs."""
    time, comma, size = text.partition(",")
    try:
        seconds, gib = parse_time(time), float(size) if comma else 0.0
        if not seconds or not 0 <= gib < math.inf:
            raise ValueError("nothing to wait for")
    except ValueError as error:
        raise UsageError(
            f"--wait-for-gpu-mem {text}: {error}; give a time such as 30 (minutes) or 2:00:00, and a comma with "
            f"the GiB to begin with if you like: 2:00:00,20"
        ) from None
    if accelerator != "gpu":
        raise UsageError("--wait-for-gpu-mem: stages run on the CPU here")
    return {"gpu_mem_seconds": seconds, "gpu_mem_gib": gib}


def gpus_of_jobs(
    cluster: Cluster, *, gpus: int | None, devices: int | None, accelerator: str | None
) -> Cluster:
    """The cluster's block with the number of GPUs of a training; UsageError where nobody says it.

    What the other machines have cannot be found out here.
    """
    if gpus is not None and (devices is not None or accelerator is not None):
        raise UsageError("--gpus stands alone; or pass --devices N with --accelerator cpu|gpu")
    if accelerator not in (None, "cpu", "gpu"):
        raise UsageError(f"--accelerator {accelerator}: choose cpu or gpu")
    if accelerator is not None:
        gpus = 0 if accelerator == "cpu" else devices or 1
    if gpus is None:
        gpus = cluster.gpus
    if gpus is None:
        raise UsageError(
            "what a cluster's nodes have is not known here: pass --gpus N for a training (0 is the CPU), "
            "or write cluster.gpus into the benchmark's file"
        )
    return cluster.model_copy(update={"gpus": gpus})


def precision_of_jobs(spec: BenchSpec, cluster: Cluster) -> str:
    """What `precision: auto` stands for in jobs; UsageError where this machine cannot tell and nobody says."""
    if not cluster.gpus:
        return "32-true"
    given = spec.recipe.get("precision", "auto")
    if given != "auto":
        return str(given)
    if gpu_count():
        return auto_precision("gpu")
    raise UsageError(
        "there is no GPU here to tell which precision the cluster's GPUs are for; say it: recipe.precision "
        "bf16-mixed (A100 and later) or 16-mixed, in the benchmark's file or by `run --precision`"
    )


def cores_of_job(request: Request, devices: int) -> int:
    """The cores that a job asks for: four for each GPU, two for each process on CPUs, unless it says."""
    return request.cpus or devices * (4 if request.gpus else 2)


def execution_of_job(base: Execution, cluster: Cluster, request: Request) -> Execution:
    """How the stages of one job run on what it asks for; `base.devices` are processes on CPUs."""
    devices = request.gpus or (base.devices if base.accelerator == "cpu" else 1)
    cores = cores_of_job(request, devices)
    workers = cluster.workers
    if workers is None:
        workers = min(8, max(1, cores // devices)) if request.gpus else 0
    update = {
        "accelerator": "gpu" if request.gpus else "cpu",
        "devices": devices,
        "slots": 1,
        "threads": 0 if request.gpus else max(1, cores // devices),
        "workers": workers,
    }
    return base.model_copy(update=update)
