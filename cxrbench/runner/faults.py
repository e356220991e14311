"""What a library's error means, and what to change: full memory, full disks, loader processes, lost ranks."""

import re
import signal
from pathlib import Path

from cxrbench.core.errors import CannotWriteError, CxrbenchError
from cxrbench.core.patience import given_up, passing
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import free_bytes, unwritable, why_not
from cxrbench.runner.gpu_memory import Shortage, gib, shortage

MEMORY = re.compile(r"can't allocate memory|out of memory|std::bad_alloc", re.IGNORECASE)
LOADER = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|is killed by signal)")
SILENT_LOADER = re.compile(r"DataLoader timed out after (\d+) seconds")
# What CUDA and its driver say of a GPU that is broken, lost or taken away. An illegal address or a failed
# assertion is not among them: that is a program's own fault, on any GPU.
DEVICE = re.compile(
    r"unspecified launch failure|uncorrectable (ECC|NVLink) error|hardware stack error|Xid|fallen off the bus|"
    r"GPU is lost|no CUDA-capable device|devices? (is/are|are|is) busy or unavailable|CUDA error: unknown error",
    re.IGNORECASE,
)
# gloo's and NCCL's words for a process that is gone, and for one that says nothing.
LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|ncclRemoteError", re.IGNORECASE)
SILENT = re.compile(r"timed out waiting|timeout|watchdog caught", re.IGNORECASE)


class MemoryFullError(CxrbenchError):
    """The memory of the device or of the host is not enough."""


class MemoryHeldError(MemoryFullError):
    """Other processes hold memory of the GPU without which it would have been enough: `need` bytes."""

    need: int = 0


class DeviceError(CxrbenchError):
    """A GPU failed: on another one the same work may succeed."""


class LoaderError(CxrbenchError):
    """A process that loads batches died or said nothing."""


class LostRankError(CxrbenchError):
    """Another process of the same training is gone or silent: a consequence, not the cause."""


KINDS: dict[str, type[CxrbenchError]] = {
    kind.__name__: kind for kind in (MemoryFullError, MemoryHeldError, DeviceError, LoaderError)
}  # what a rank's failure is again in the process that started it


def explain(error: Exception, stage: Stage, execution: Execution, home: Path) -> Exception:
    """The error that says what to change in the place of a library's; any other as it is.

    `home` is the store's folder, whose disk may be full.
    """
    text = str(error)
    if isinstance(error, CxrbenchError):
        return _without_traceback(error)
    if unwritable(error):
        return CannotWriteError(f"cannot write in {home} ({why_not(error, home)})")
    if isinstance(error, OSError) and (silent := passing(error)):
        return given_up(str(error.filename or home), silent)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and MEMORY.search(text)):
        if (short := shortage(text)) and short.because_of_others:
            return _held(short, text, execution)
        return MemoryFullError(_memory(error, stage, execution))
    if isinstance(error, RuntimeError) and DEVICE.search(text):
        first = text.splitlines()[0]
        return DeviceError(
            f"the GPU failed ({first}); look at nvidia-smi and the kernel's log (dmesg | grep Xid), and leave it "
            f"out by CUDA_VISIBLE_DEVICES"
        )
    if isinstance(error, RuntimeError) and LOADER.search(text):
        return LoaderError(
            f"a loader process of {execution.workers} died ({text.splitlines()[0]}); it was "
            f"perhaps killed for want of memory ({_shared_memory()}): pass a smaller --workers, or "
            f"--workers 0 to load in the training process"
        )
    if isinstance(error, RuntimeError) and (found := SILENT_LOADER.search(text)):
        return LoaderError(
            f"the loader processes gave no batch for {found[1]} s; is the disk of the store "
            f"silent? Its pixels/ is what they read. --workers 0 loads in the training process"
        )
    if isinstance(error, RuntimeError) and execution.devices > 1:
        return _lost(text) or error
    return error


def _without_traceback(error: CxrbenchError) -> CxrbenchError:
    """An error of a loader process, which comes with the traceback from there in its text."""
    text, name = str(error), f"{type(error).__name__}: "
    if not text.startswith("Caught ") or name not in text:
        return error
    return type(error)(text.rpartition(name)[2].strip())


def _held(short: Shortage, text: str, execution: Execution) -> MemoryHeldError:
    """Who left too little, and the option that waits for them."""
    wait = "" if execution.gpu_mem_seconds else ", or wait for them: --wait-for-gpu-mem 2:00:00"
    error = MemoryHeldError(
        f"out of memory because of others on the GPU ({text.splitlines()[0]}): {gib(short.need)} GiB are needed, "
        f"others hold about {gib(short.others)} of {gib(short.total)}, {gib(short.free)} are free; take another "
        f"GPU by CUDA_VISIBLE_DEVICES{wait}"
    )
    error.need = short.need
    return error


def _memory(error: Exception, stage: Stage, execution: Execution) -> str:
    """What was asked for, and the settings that ask for less."""
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    recipe = stage.params.get("recipe")
    if not isinstance(recipe, dict):
        return f"out of memory ({first}); pass --slots 1"
    batch, steps = int(recipe["batch_size"]), int(recipe["accumulate"])
    said = (
        f"out of memory ({first}) with recipe.batch_size {batch}, recipe.size "
        f"{recipe['size']}, recipe.precision {recipe['precision']} on {execution.devices} x "
        f"{execution.accelerator}"
    )
    if batch % 2 == 0 and batch // 2 >= execution.devices:
        automatic = "" if execution.halve_on_oom else ", or --halve-on-oom"
        return (
            f"{said}; the same {batch * steps} images a step with less memory: --set "
            f"recipe.batch_size={batch // 2} --set recipe.accumulate={2 * steps} (a run of its own: batch "
            f"norm sees {batch // 2} images at once){automatic}"
        )
    return (
        f"{said}; pass a smaller --set recipe.size, or --slots 1 where other stages run beside it"
    )


def _shared_memory() -> str:
    shm = Path("/dev/shm")
    return (
        f"/dev/shm has {free_bytes(shm):,} bytes free" if shm.is_dir() else "there is no /dev/shm"
    )


def _lost(text: str) -> LostRankError | None:
    """What gloo or NCCL says when another rank does not answer."""
    first = next(iter(text.splitlines()), "")
    if LOST.search(text):
        return LostRankError(f"another process of the training is gone ({first})")
    if SILENT.search(text):
        return LostRankError(f"another process of the training is silent ({first})")
    return None


def how_it_ended(code: int) -> str:
    """The end of a worker that left no reason; `code` is -N where signal N killed it."""
    if code == CannotWriteError.exit_code:
        return "the worker could not write why it failed: is the store's disk full?"
    if code >= 0:
        return f"the worker ended with code {code}"
    hint = ""
    if -code == signal.SIGKILL:
        hint = (
            ", perhaps for want of memory: pass --slots 1, or a smaller --set recipe.batch_size with"
            " --set recipe.accumulate"
        )
    if -code == signal.SIGBUS:
        hint = "; the disk of the store or /dev/shm is full, or a file that was read was cut short"
    return f"the worker was killed by signal {-code}{hint}"
