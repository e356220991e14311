"""Pictures of a training under way, for methods that draw some: how films come onto the canonical chest, say."""

from pathlib import Path
from typing import Any

from lightning import LightningModule as Module
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from cxrbench.core.gallery import GALLERY
from cxrbench.core.store import write_json
from cxrbench.methods.base import Method
from cxrbench.runner.tracking import log_picture

MOST = 10  # pictures that are kept, besides that of the start
STEM = "step-"


def kept_every(step: int, every: int) -> int:
    """How far apart pictures are kept once a training is at a step: twice as far whenever there are too many."""
    while step > MOST * every:
        every *= 2
    return every


class Sketches(Callback):
    """A picture before every so many steps: to the logger, and some of them to a folder, evenly spaced.

    What is kept is a function of the step alone, so a resumed training leaves the same. Other steps cost nothing: no
    value is read from the device. Only the first process draws.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self._last = -1

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Module, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # A step of several batches begins with the first.
        if step % self.every or step == self._last or not trainer.is_global_zero:
            return
        self._last = step
        apart = kept_every(step, self.every)
        if step % apart and not trainer.logger:
            return
        assert isinstance(pl_module, Method)
        picture = pl_module.sketch(batch)
        log_picture(trainer.logger, f"gallery/{pl_module.name}", picture, pl_module.sketched, step)
        if step % apart == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            picture.save(self.folder / f"{STEM}{step:07d}.png")
            for path, of in _steps(self.folder):
                if of % apart and of <= step:
                    path.unlink()


def _steps(folder: Path) -> list[tuple[Path, int]]:
    return [(p, int(p.stem.removeprefix(STEM))) for p in sorted(folder.glob(f"{STEM}*.png"))]


def leave_sketches(folder: Path, caption: str, out: Path) -> None:
    """Copies what a training drew to its artefact's files, with the list that captions it; nothing where none is."""
    listed = []
    for path, step in _steps(folder):
        (out / path.name).write_bytes(path.read_bytes())
        listed.append({"file": path.name, "caption": f"Step {step}: {caption}", "films": True})
    if listed:
        write_json(out / GALLERY, listed)
