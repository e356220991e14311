"""Trainings that do not fit into memory: begun again with half the micro-batch and twice the accumulation.

    partial/<key>/batch.json      images of a batch that a device is given: {"images": 8}
    partial/<key>/halvings.json   what was halved so far: [{"images": 4, "epoch": 0, "step": 12, "why": "..."}]

Images per optimiser step and the loss of a step stay the same, so a network without batch norm trains to the same
weights but for rounding. A try has a process of its own: one that ran out of memory keeps some of it.
"""

from pathlib import Path
from typing import Any

from lightning import LightningModule as Module
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from cxrbench.core.store import a_number, read_note, write_json
from cxrbench.data.micro_batches import equal_part
from cxrbench.runner.checkpoint import saved_states
from cxrbench.runner.faults import MemoryFullError

BATCH = "batch.json"
HALVINGS = "halvings.json"
PARTS = "cxrbench_parts"  # in a training state: the parts in which its progress is counted


def read_halvings(work: Path) -> list[dict[str, Any]]:
    """What was halved in a training so far; a torn note is none."""

    def halvings(value: Any) -> list[dict[str, Any]]:
        return [{**entry, "images": max(1, int(entry["images"]))} for entry in value]

    return read_note(work / HALVINGS, halvings) or []


def note_batch(work: Path, images: int) -> None:
    """Note what a device is given at once, for whoever halves it; `images` is 0 where that is not allowed."""
    write_json(work / BATCH, {"images": images})


def halve(work: Path, error: MemoryFullError) -> int:
    """Note that the next try has half the images at once; returns their number.

    Raises MemoryFullError with the reason where there is no half.
    """
    whole = read_note(work / BATCH, lambda value: int(a_number(value["images"])))
    if whole is None:
        raise MemoryFullError(f"{error}; nothing to halve: the training had not begun")
    if not whole:
        raise MemoryFullError(
            f"{error}; --halve-on-oom leaves this training alone: the loss of its batch is not the mean "
            f"over parts of it"
        )
    halvings = read_halvings(work)
    now = equal_part(whole, halvings[-1]["images"] if halvings else whole)
    if now == 1:
        raise MemoryFullError(f"{error}; --halve-on-oom: a single image does not fit")
    smaller = equal_part(whole, now // 2)
    states = saved_states(work / "states")
    epoch, step = (states[0].epoch, states[0].step) if states else (0, 0)
    entry = {
        "images": smaller,
        "epoch": epoch,
        "step": step,
        "why": str(error).partition(" with ")[0],
    }
    write_json(work / HALVINGS, [*halvings, entry])
    return smaller


class Parts(Callback):
    """Counts the progress of a training state in parts of batches, whatever it was counted in when saved."""

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Module, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[PARTS] = self.parts

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: Module, checkpoint: dict[str, Any]
    ) -> None:
        """Rescale the counts, before Lightning restores its loops from them."""
        before = int(checkpoint.get(PARTS, 1))
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            # A state that is saved while a batch ends has one that is not yet completed.
            open_batches = counts["processed"] - counts["completed"]
            for name in ("ready", "started", "processed"):
                counts[name] = counts[name] * self.parts // before
            counts["completed"] = counts["processed"] - open_batches
