"""Checkpoints that a kill, a full disk or a power cut cannot spoil.

    state-<epoch>-<step>.ckpt   a whole training state
    state.json                  names the newest and the one before, with their SHA-256

A state is written beside its final name, flushed and renamed; only then does `state.json` name it.
Lightning's own saving copies across file systems, which a kill in mid-copy turns into a torn file.
"""

import contextlib
import os
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import CannotWriteError, DataError
from cxrbench.core.store import read_note, why_not, write_json

POINTER = "state.json"
PARTS_OF_A_STATE = {"state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers"}
STATE = re.compile(r"state-\d+-\d+\.ckpt")


@dataclass(frozen=True)
class SavedState:
    """A state on disk."""

    file: str
    sha256: str
    epoch: int
    step: int


class AtomicCheckpointIO(CheckpointIO):
    """Saves so that a reader finds the old file or the new one; loads tensors and plain values only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        # A full disk surfaces as torch's RuntimeError with the OSError behind it.
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            why = why_not(error, path.parent, tensor_bytes(checkpoint))
            raise CannotWriteError(
                f"{path}: cannot save the training state, the one before is kept ({why})"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = torch.load(
                path, map_location=map_location or "cpu", weights_only=True
            )
        except Exception as error:  # the unpickler's refusals have many types
            raise DataError(
                f"{path}: not a training state of cxrbench ({type(error).__name__}), nothing of it was "
                f"run; delete {Path(path).parent} to train from the start"
            ) from None
        if not isinstance(loaded, dict) or not set(loaded) >= PARTS_OF_A_STATE:
            raise DataError(
                f"{path}: not a training state of cxrbench, which has {', '.join(sorted(PARTS_OF_A_STATE))}; "
                f"delete {Path(path).parent} to train from the start"
            )
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists: what a file of them takes at least."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value
    return sum(map(tensor_bytes, items)) if isinstance(value, dict | list | tuple) else 0


def state_path(folder: Path, epoch: int, step: int) -> Path:
    """Where the state after `step` optimiser steps, in `epoch`, is saved."""
    return folder / f"state-{epoch:05d}-{step:09d}.ckpt"


def saved_states(folder: Path) -> list[SavedState]:
    """What `state.json` names, the newest first; nothing where it is torn."""

    def named(value: Any) -> list[SavedState]:
        return [SavedState(**item) for item in value]

    states = read_note(folder / POINTER, named) or []
    # Only what `state_path` names: a pointer must not lead out of its folder.
    return [s for s in states if isinstance(s.file, str) and STATE.fullmatch(s.file)]


def register_state(folder: Path, path: Path, epoch: int, step: int) -> None:
    """Make a saved file the newest state, and remove those that nobody names any more."""
    before = [s for s in saved_states(folder) if s.file != path.name]
    states = [SavedState(path.name, digest_file(path), epoch, step), *before[:1]]
    write_json(folder / POINTER, [asdict(state) for state in states])
    kept = {state.file for state in states}
    for old in folder.glob("state-*.ckpt"):
        if old.name not in kept:
            old.unlink(missing_ok=True)


def newest_state(folder: Path) -> Path | None:
    """The newest state that is whole; a damaged one is passed over with a warning."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)
    for state in saved_states(folder):
        path = folder / state.file
        if path.is_file() and digest_file(path) == state.sha256:
            return path
        warnings.warn(f"{path}: damaged or missing; going on from the state before", stacklevel=2)
    return None
