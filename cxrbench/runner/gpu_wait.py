"""Waiting for GPU memory that others hold (`--wait-for-gpu-mem`), in a process that holds none itself.

    partial/<key>/waiting.json    while a stage waits: {"free": ..., "total": ..., "need": ..., "who": ...}

A training's worker starts `python -m cxrbench.runner.gpu_wait`, since CUDA's context would stay in the worker and
take its share while the training runs in another process.
"""

import ctypes
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxrbench.core.errors import CxrbenchError
from cxrbench.core.spec import Execution
from cxrbench.core.store import read_note, write_json
from cxrbench.runner import gpu_memory
from cxrbench.runner.faults import MemoryHeldError
from cxrbench.runner.gpu_memory import BESIDE, GIB, gib
from cxrbench.runner.orphans import die_with_parent

NOTE = "waiting.json"
FIRST_PAUSE = 15.0  # seconds; each pause is twice the one before
LONGEST_PAUSE = 300.0
ENOUGH, NOT_ENOUGH = 0, 75  # exit codes of the process that waits


def said_to_wait(work: Path) -> str:
    """What a stage waits for, in words; empty where it waits for nothing."""

    def words(note: Any) -> str:
        return f"waits for GPU memory: {gib(note['free'])} of {gib(note['total'])} GiB free"

    return read_note(work / NOTE, words) or ""


def wait(
    key: str,
    work: Path,
    *,
    devices: int,
    need: int,
    seconds: float,
    pause_first: bool,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether `need` bytes became free on every device within so many seconds.

    Looks at once, or with `pause_first` after a pause: a training that failed while memory seemed free must not be
    begun again and again without one. Leaves its last look in the note when it was in vain.
    """
    left, pause, said = seconds, FIRST_PAUSE, False

    def rest() -> None:
        nonlocal left, pause
        # Of two stages that push each other out one is to come first.
        now = min(left, random.uniform(pause / 2, pause))
        sleep(now)
        left, pause = left - now, min(2 * pause, LONGEST_PAUSE)

    if pause_first:
        rest()
    while True:
        place, free, total = _scarcest(devices)
        # A GPU that has all but what processes take beside their tensors is nobody's.
        if free >= min(need, total - BESIDE):
            (work / NOTE).unlink(missing_ok=True)
            if said:
                print(f"{key}: waited {seconds - left:.0f} s for GPU memory", flush=True)
            return True
        who = gpu_memory.holders(place)
        write_json(work / NOTE, {"free": free, "total": total, "need": need, "who": who})
        if not said:
            found = _figures(free, total, need, who)
            print(f"{key}: waits for GPU memory, at most {left:.0f} s: {found}", flush=True)
            said = True
        if left <= 0:
            return False
        rest()


def _scarcest(devices: int) -> tuple[int, int, int]:
    """(place, free, total) of the GPU with the least free memory."""
    looks = [(place, *gpu_memory.look(place)) for place in range(devices)]
    return min(looks, key=lambda each: each[1])


def _figures(free: int, total: int, need: int, who: str) -> str:
    others = max(0, total - free - BESIDE)
    named = f" ({who})" if who else ""
    return (
        f"{gib(free)} of {gib(total)} GiB are free, {gib(min(need, total))} are wanted, others hold about "
        f"{gib(others)} GiB{named}"
    )


@dataclass
class Patience:
    """What a stage may still wait for GPU memory, and what it waits for."""

    key: str
    work: Path
    execution: Execution
    waited: float = 0.0
    need: int = 0  # bytes that it was short of
    _failed: bool = field(init=False, default=False)

    def __bool__(self) -> bool:
        return self.execution.gpu_mem_seconds > 0

    def note(self, error: MemoryHeldError) -> None:
        """Others left too little: the next `wait` is for what was needed. Raises the error when the time is over."""
        if self.waited >= self.execution.gpu_mem_seconds:
            raise MemoryHeldError(
                f"{error}; waited {self.waited:.0f} s for it (--wait-for-gpu-mem)"
            )
        self.need, self._failed = max(self.need, error.need), True

    def wait(self) -> None:
        """Wait for what the user asked for or the last try needed; MemoryHeldError when the time is over."""
        wanted = int(self.execution.gpu_mem_gib * GIB)
        (self.work / NOTE).unlink(missing_ok=True)  # of a worker that was killed
        if not self or not (wanted or self._failed):
            return
        ask: dict[str, Any] = {
            "devices": self.execution.devices,
            "need": max(self.need, wanted),
            "seconds": self.execution.gpu_mem_seconds - self.waited,
            "pause_first": self._failed,
        }
        import torch

        torch.cuda.empty_cache()  # of this worker's stages before
        began, self._failed = time.monotonic(), False
        enough = self._apart(ask)
        self.waited += time.monotonic() - began
        if not enough:
            raise self._in_vain(ask["need"])

    def _apart(self, ask: dict[str, Any]) -> bool:
        kernel = ctypes.CDLL(None)
        words = json.dumps({"key": self.key, "work": str(self.work), **ask})
        code = subprocess.run(
            [sys.executable, "-m", "cxrbench.runner.gpu_wait", words],
            check=False,
            preexec_fn=lambda: die_with_parent(kernel),
        ).returncode
        if code not in (ENOUGH, NOT_ENOUGH):
            raise CxrbenchError(
                f"the process that waits for GPU memory ended with code {code}; its error stands in the log"
            )
        return code == ENOUGH

    def _in_vain(self, need: int) -> MemoryHeldError:
        path = self.work / NOTE
        note = json.loads(path.read_text())
        path.unlink()
        figures = _figures(note["free"], note["total"], need, note["who"])
        return MemoryHeldError(
            f"waited {self.waited:.0f} s in vain for GPU memory: {figures}; run the same command again when they "
            f"are gone, wait longer by --wait-for-gpu-mem, or take another GPU by CUDA_VISIBLE_DEVICES"
        )


def main(words: list[str]) -> int:
    """Wait as the JSON in the first word says."""
    ask = json.loads(words[0])
    return ENOUGH if wait(ask.pop("key"), Path(ask.pop("work")), **ask) else NOT_ENOUGH


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
