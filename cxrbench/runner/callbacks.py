"""What happens around the steps of a training: randomness, saving, choosing, watching, stopping."""

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from lightning import LightningModule as Module
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed

from cxrbench.core.errors import CxrbenchError, InterruptedRunError
from cxrbench.core.seed import derive_seed
from cxrbench.core.store import write_atomic
from cxrbench.methods.base import Method
from cxrbench.runner.checkpoint import register_state, state_path

SAVING = 0.02  # the most of a training's time that saving by time may take
TWICE = 3.0  # seconds within which two stop signals are one
SHOWN = 8  # images of a batch that an error names
NEVER = 2**62


class NonFiniteLossError(CxrbenchError):
    """A loss that is NaN or infinite: nothing after it would mean anything."""


class StepSeeds(Callback):
    """Randomness inside a step (dropout) as a function of seed, epoch, batch and rank; of `step_draws` not of rank."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.draws = torch.Generator()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Module, batch: Any, batch_idx: int
    ) -> None:
        step = ("step", trainer.current_epoch, batch_idx)
        common = derive_seed(self.seed, *step, 0)
        assert isinstance(pl_module, Method)
        pl_module.step_draws = self.draws.manual_seed(common)
        rank = trainer.global_rank
        seed = derive_seed(self.seed, *step, rank) if rank else common
        if pl_module.device.type == "cpu":
            # `torch.manual_seed` also notes a call for each kind of GPU that is not there, with a
            # formatted stack and for ever: milliseconds a step.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)


class FiniteLoss(Callback):
    """Stops at a loss that is not finite, before its step on a CPU and before any save on a GPU."""

    def __init__(self) -> None:
        self._first: Tensor | None = None  # step of the first bad loss on a GPU; NEVER: none
        self._images: list[str] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Module, batch: Any, batch_idx: int
    ) -> None:
        self._images = batch["image_id"]

    def on_before_backward(self, trainer: Trainer, pl_module: Module, loss: Tensor) -> None:
        bad = ~torch.isfinite(loss.detach())
        if loss.device.type == "cpu":
            if bool(bad):
                images = ", ".join(self._images[:SHOWN])
                more = ", ..." if len(self._images) > SHOWN else ""
                self._stop(trainer, trainer.global_step, f" (images {images}{more})")
        else:  # reading a value from a GPU would make every step wait
            step = torch.where(bad, trainer.global_step, NEVER)
            self._first = step if self._first is None else torch.minimum(self._first, step)

    def check(self, trainer: Trainer) -> None:
        """Raise if any loss since the last check was not finite, or any weight is not now."""
        first = NEVER if self._first is None else int(self._first)
        self._first = None
        if first < NEVER:
            self._stop(trainer, first)
        weights = [torch.isfinite(p.detach()).all() for p in trainer.lightning_module.parameters()]
        if weights and not bool(torch.stack(weights).all()):
            self._stop(trainer, trainer.global_step, what="a weight")

    def _stop(
        self, trainer: Trainer, step: int, where: str = "", *, what: str = "the loss"
    ) -> None:
        raise NonFiniteLossError(
            f"{what} is not finite in epoch {trainer.current_epoch}, step {step}{where}; the last good "
            f"state is kept; lower recipe.learning_rate or set recipe.gradient_clip"
        )


class SkippedSteps(Callback):
    """Stops a training in 16-mixed whose loss scaler skips one step after the other: it learns nothing.

    Steps are skipped where gradients are infinite or NaN, which is rare and harmless unless it is always so.
    """

    def __init__(self, most: int = 50) -> None:
        self.most = most
        self.skipped = 0  # in a row
        self._step, self._scale = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Module) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._step, self._scale = trainer.global_step, scaler.get_scale() if scaler else 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Module, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or trainer.global_step == self._step:
            return
        # The scaler waits for the GPU in each step, so reading its scale costs nothing more.
        scale = scaler.get_scale()
        self.skipped = self.skipped + 1 if scale < self._scale or not scale else 0
        self._step, self._scale = trainer.global_step, scale
        if self.skipped > self.most:
            raise NonFiniteLossError(
                f"16-mixed skipped the last {self.skipped} steps, to step {trainer.global_step}: their "
                f"gradients were not finite at a loss scale of {scale:.3g}, so nothing is learned; use --precision "
                f"bf16-mixed or 32-true, or lower recipe.learning_rate"
            )


class History(Callback):
    """The metrics of every epoch: the mean of what the steps return, and what validation logs.

    It travels in the training state, the sums of a broken epoch too, so a resumed log has no gap. A
    batch in `parts` counts as much as a whole one.
    """

    def __init__(self, parts: int = 1, attempt: int = 1) -> None:
        self.attempt = attempt
        self.rows: list[dict[str, Any]] = []
        self.share = 1 / parts
        self._sums: dict[str, Tensor] = {}
        self._steps = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Module) -> None:
        if trainer.logger:
            trainer.logger.log_metrics({"attempt": self.attempt}, step=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Module, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        terms = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        for name, value in terms.items():
            if isinstance(value, Tensor) and value.numel() == 1:
                term = value.detach().double() * self.share
                if name == "loss":  # which Lightning has divided by the batches of a step
                    term = term * trainer.accumulate_grad_batches
                before = self._sums.get(name)
                self._sums[name] = term if before is None else before.to(term.device) + term
        self._steps += self.share

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Module) -> None:
        means = {
            f"train_{name}": float(trainer.strategy.reduce(value / self._steps, reduce_op="mean"))
            for name, value in self._sums.items()
        }
        self._sums, self._steps = {}, 0.0
        if trainer.logger:
            trainer.logger.log_metrics(means, step=trainer.global_step)
        metrics = {**means, **{k: float(v) for k, v in trainer.callback_metrics.items()}}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": rate, **metrics}
        self.rows.append(row)
        if trainer.is_global_zero:
            shown = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items())
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        sums = {name: float(value) for name, value in self._sums.items()}
        return {"rows": self.rows, "sums": sums, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self._steps = state_dict["steps"]
        sums = state_dict["sums"]
        self._sums = {n: torch.tensor(v, dtype=torch.float64) for n, v in sums.items()}


class KeepBest(Callback):
    """The weights of the best epoch by a validation metric; the first of equals.

    They stay in memory and go to disk with the training state that names them.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        self.folder, self.monitor = folder, monitor
        self.sign = -1.0 if monitor.endswith("loss") else 1.0
        self.epoch: int | None = None
        self.value: float | None = None
        self._weights: dict[str, Tensor] | None = None

    @property
    def path(self) -> Path:
        """The file of the best weights so far."""
        return self.folder / f"best-{self.epoch}.safetensors"

    def on_validation_end(self, trainer: Trainer, pl_module: Module) -> None:
        metric = trainer.callback_metrics.get(self.monitor)
        if metric is None:
            raise CxrbenchError(f"validation gives no {self.monitor}, which recipe.select asks for")
        value = float(metric)
        if value != value:
            raise NonFiniteLossError(
                f"{self.monitor} is not a number in epoch {trainer.current_epoch}"
            )
        if self.value is None or self.sign * value > self.sign * self.value:
            self.epoch, self.value = trainer.current_epoch, value
            if trainer.is_global_zero:
                state = pl_module.state_dict().items()
                self._weights = {n: t.detach().to("cpu", copy=True) for n, t in state}

    def write(self) -> Path:
        """Put the best weights on disk, unless they are there; returns their file."""
        if self._weights is not None:
            whole = {name: tensor.contiguous() for name, tensor in self._weights.items()}
            write_atomic(self.path, safetensors.torch.save(whole))
            self._weights = None
        return self.path

    def forget_others(self) -> None:
        """Remove weights that neither the saved state nor the one before it names."""
        files = self.folder.glob("best-*.safetensors")
        older = sorted((f for f in files if f != self.path), key=lambda f: f.stat().st_mtime)
        for old in older[:-1]:
            old.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.value = state_dict["epoch"], state_dict["value"]


class SaveState(Callback):
    """Saves the training state by time, by steps if asked, and at SIGTERM; at an epoch's end if it can.

    By time: after `seconds`, and after as many more as keep saving at SAVING of the time (a large state on a slow disk).

    The first SIGTERM or SIGINT ends the step, saves and raises InterruptedRunError; another one, seconds
    later, ends the process at once. A batch system may signal a worker and its parent at the same time.
    """

    def __init__(
        self,
        folder: Path,
        best: KeepBest,
        finite: FiniteLoss,
        *,
        steps: int,
        seconds: float,
        rank_seconds: float,
    ) -> None:
        self.folder, self.best, self.finite = folder, best, finite
        self.steps, self.seconds = steps, seconds
        self.patience = timedelta(seconds=rank_seconds)  # with a silent rank
        self.spent = 0.0  # seconds in all
        self._took = 0.0  # the last save, in seconds
        self._saved_at = time.monotonic()
        self._asked = False
        self._group: Any = None  # the ranks' own, in which no GPU is waited for
        self._asked_at: float | None = None
        self._handlers: dict[signal.Signals, signal.Handlers] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Module) -> None:
        self._saved_at = time.monotonic()
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo", timeout=self.patience)
        if threading.current_thread() is threading.main_thread():
            self._handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), signal.SIG_DFL)
            for number in self._handlers:
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        self._asked_at = self._asked_at or now
        if now - self._asked_at > TWICE:
            self._restore()
            os.kill(os.getpid(), number)
        self._asked = True

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def teardown(self, trainer: Trainer, pl_module: Module, stage: str) -> None:
        self._restore()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Module, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients that are still being added up are no part of a state.
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        # The epoch's end saves, and stops if asked: of a state between its last batch and its validation Lightning
        # goes on with the next epoch.
        if batch_idx + 1 == trainer.num_training_batches:
            return
        asked = self._agreed(trainer, self._asked)
        due = bool(self.steps) and (batch_idx + 1) % self.steps == 0
        if not due and self.seconds and batch_idx % 10 == 9:
            due = self._agreed(trainer, self._late())
        if asked or due:
            self._save(trainer)
        if asked:
            raise InterruptedRunError("asked to stop; the training state is saved")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Module) -> None:
        asked = self._agreed(trainer, self._asked)
        late = self._agreed(trainer, self._late())
        if asked or bool(self.steps) or late:
            self._save(trainer)
        if asked:
            raise InterruptedRunError("asked to stop; the training state is saved")

    def _late(self) -> bool:
        rationed = self._took / SAVING if self.seconds else 0.0
        return time.monotonic() - self._saved_at >= max(self.seconds, rationed)

    def _agreed(self, trainer: Trainer, wish: bool) -> bool:
        """What any rank wishes: all must save together or none."""
        if trainer.world_size == 1:
            return wish
        wishes = torch.tensor(int(wish))  # on the CPU: this is asked in every step
        distributed.all_reduce(wishes, group=self._group)
        return bool(wishes)

    def _save(self, trainer: Trainer) -> None:
        began = time.monotonic()
        self.finite.check(trainer)
        path = state_path(self.folder, trainer.current_epoch, trainer.global_step)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            if self.best.epoch is not None:
                self.best.write()
            register_state(self.folder, path, trainer.current_epoch, trainer.global_step)
            self.best.forget_others()
        self._saved_at = time.monotonic()
        self._took = self._saved_at - began
        self.spent += self._took


class Pulse(Callback):
    """Writes how far a training is, for whoever watches: at most twice a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0.0
        self.images = 0
        self.seconds = 0.0
        self._first: tuple[int, float] | None = None  # steps done before this try, and its start
        self._epoch_start = time.monotonic()
        self._started = self._epoch_start

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Module, batch: Any, batch_idx: int
    ) -> None:
        if self._first is None:
            done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
            self._first = done, time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: Module) -> None:
        # An epoch that is gone on with in its middle has no start of its own.
        self._epoch_start = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Module) -> None:
        self._epoch_start = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: Module,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
    ) -> None:
        now = time.monotonic()
        self.images += len(batch["row"]) * trainer.world_size
        if batch_idx + 1 == trainer.num_training_batches:
            self.seconds += now - self._epoch_start
        if trainer.is_global_zero and now - self._written > 0.5:
            self._written = now
            assert self._first is not None
            first, began = self._first
            epoch = int(trainer.num_training_batches)
            pulse = {
                "done": trainer.current_epoch * epoch + batch_idx + 1,
                "of": epoch * int(trainer.max_epochs or 1),
                "first": first,
                "epoch": epoch,
                "stepping": now - began,
                "seconds": now - self._started,
            }
            self.path.write_text(json.dumps(pulse))
