"""One training: the one place where a Trainer is made."""

import csv
import io
import logging
import os
import shutil
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from cxrbench.core.errors import ConfigError
from cxrbench.core.registry import load_target
from cxrbench.core.seed import derive_seed
from cxrbench.core.spec import Execution, Recipe
from cxrbench.core.stage import Stage
from cxrbench.core.store import (
    a_number,
    fsync_tree,
    read_note,
    require_room,
    write_atomic,
    write_json,
)
from cxrbench.data.module import CxrDataModule
from cxrbench.methods.base import Method
from cxrbench.nn.backbones import read_weights
from cxrbench.runner.averaging import AveragedWeights
from cxrbench.runner.callbacks import (
    FiniteLoss,
    History,
    KeepBest,
    Pulse,
    SaveState,
    SkippedSteps,
    StepSeeds,
)
from cxrbench.runner.checkpoint import AtomicCheckpointIO, newest_state
from cxrbench.runner.compiling import NewStep, check_graphs, compile_networks, takes_graphs
from cxrbench.runner.determinism import noted_operations, promise
from cxrbench.runner.halving import Parts, note_batch, read_halvings
from cxrbench.runner.numerics import algorithms, set_memory_format, set_numerics, times_kernels
from cxrbench.runner.sketches import Sketches, leave_sketches
from cxrbench.runner.tracking import end_training, training_logger

# Weights and two moments of each are a state of Adam. On disk lie two states and the one that is being
# written, and two files of the best weights.
WEIGHTS_ON_DISK = 3 * 3 + 2
SKETCHES = "sketches"  # the folder of pictures of the training under way
TRAINED = "trained"  # the folder in which a finished training leaves its files


def build_module(stage: Stage, inputs: dict[str, Path]) -> Method:
    """The module of a fit stage with its initial weights: a function of the stage's seed."""
    cls = load_target(stage.target)
    params = cls.Params.parse(dict(stage.params), where=stage.key)
    torch.manual_seed(derive_seed(stage.seed, "init"))
    module: Method = cls(params, stage.data.labels)
    module.receive(inputs)
    return module


def load_module(stage: Stage, weights: Path, execution: Execution) -> Method:
    """The module of a fit stage with the weights that its training left, laid out for this device."""
    cls = load_target(stage.target)
    params = cls.without_weights(cls.Params.parse(dict(stage.params), where=stage.key))
    module: Method = cls(params, stage.data.labels)
    module.load_state_dict(read_weights(weights), strict=True)
    set_memory_format(module, params.recipe, execution)
    return module


def make_trainer(
    recipe: Recipe,
    execution: Execution,
    callbacks: list[L.Callback],
    root: Path,
    logger: Any,
    *,
    parts: int = 1,
) -> L.Trainer:
    """The Trainer of a fit stage, whose batches come in `parts`; ConfigError for what this device cannot do."""
    synchronised = recipe.sync_batchnorm and execution.devices > 1
    if synchronised and execution.accelerator == "cpu":
        raise ConfigError(
            "recipe.sync_batchnorm: torch synchronises batch statistics between GPUs only; leave it off for "
            "several processes on the CPU"
        )
    elastic = "LOCAL_RANK" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ
    strategy: Any = "auto"
    if execution.devices > 1:
        backend = "nccl" if execution.accelerator == "gpu" else "gloo"
        patience = timedelta(seconds=execution.rank_seconds)
        strategy = DDPStrategy(
            process_group_backend=backend,
            timeout=patience,
            # Gradients are reduced where they lie: without a second copy of them all, and its memory.
            gradient_as_bucket_view=True,
        )
    return L.Trainer(
        accelerator=execution.accelerator,
        devices=execution.devices,
        strategy=strategy,
        precision=recipe.precision,  # type: ignore[arg-type]
        max_epochs=recipe.epochs,
        accumulate_grad_batches=recipe.accumulate * parts,
        gradient_clip_val=recipe.gradient_clip,
        deterministic=algorithms(execution),  # type: ignore[arg-type]
        benchmark=times_kernels(execution),
        callbacks=callbacks,
        logger=logger or False,  # None would be Lightning's default logger
        log_every_n_steps=50,
        # Named, so that SLURM variables in the environment never make Lightning requeue or load.
        plugins=[
            AtomicCheckpointIO(),
            TorchElasticEnvironment() if elastic else LightningEnvironment(),
        ],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        sync_batchnorm=synchronised,
        # On SLURM, Lightning begins with any hpc_ckpt_*.ckpt that lies there, whoever left it.
        default_root_dir=root / "none",
    )


def train(
    stage: Stage,
    data: CxrDataModule,
    inputs: dict[str, Path],
    work: Path,
    execution: Execution,
    logs: Path,
) -> None:
    """Train a fit stage from its newest state, or from the start; leaves `work/trained/`.

    `logs` is where runs of Weights & Biases stay. Raises InterruptedRunError when asked to stop, NonFiniteLossError, CannotWriteError.
    """
    if (work / TRAINED / "facts.json").is_file():
        return
    started = time.monotonic()
    attempt = _count_attempt(work)
    module = build_module(stage, inputs)
    module.steps_per_epoch = data.steps_per_epoch()
    recipe = module.params.recipe
    states = work / "states"
    states.mkdir(parents=True, exist_ok=True)
    halvings = read_halvings(work)
    data.most = halvings[-1]["images"] if halvings else None
    parts = data.parts(execution.devices)
    check_graphs(recipe, parts)
    channels_last = set_memory_format(module, recipe, execution)
    best, finite, history = KeepBest(states, module.monitor), FiniteLoss(), History(parts, attempt)
    pulse = Pulse(work / "progress.json")
    save = SaveState(
        states,
        best,
        finite,
        steps=execution.checkpoint_steps * parts,
        seconds=execution.checkpoint_seconds,
        rank_seconds=execution.rank_seconds,
    )
    # A short epoch has a picture, too.
    every = min(module.sketch_steps, module.steps_per_epoch)
    sketches = [Sketches(work / SKETCHES, every)] if every else []
    averaged = [AveragedWeights(decay=recipe.ema_decay)] if recipe.ema_decay else []
    graphs = [NewStep()] if takes_graphs(recipe) else []
    callbacks = [
        *graphs, StepSeeds(stage.seed), finite, SkippedSteps(), best, *averaged, history, *sketches, pulse, save,
        Parts(parts),
    ]  # fmt: skip
    _hush()
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    require_room(states, WEIGHTS_ON_DISK * weights, f"the states of {stage.key}")
    logger = training_logger(stage, execution, logs, attempt=attempt)
    trainer = make_trainer(recipe, execution, callbacks, work, logger, parts=parts)
    set_numerics(execution, recipe.precision)
    resume = newest_state(states)
    if trainer.is_global_zero:
        divides = module.divisible and module.automatic_optimization
        note_batch(work, data.share(execution.devices) if divides else 0)
        print(f"{stage.key}: " + (f"resuming from {resume.name}" if resume else "from the start"))
    if recipe.compile:
        compile_networks(module, recipe)
    with noted_operations() as operations:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    finite.check(trainer)
    if trainer.is_global_zero:
        facts = {
            "best_epoch": best.epoch,
            "best_value": best.value,
            "monitor": best.monitor,
            "epochs": recipe.epochs,
            "steps": trainer.global_step,
            "seconds": time.monotonic() - started,
            "resumed": resume is not None,
            "attempts": attempt,
            "seconds_saving": save.spent,
            "images_per_second": pulse.images / pulse.seconds if pulse.seconds else None,
            "parameters": sum(p.numel() for p in module.parameters()),
            "trainable_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
            "weights": module.weights_source(),
            "precision": recipe.precision,
            "channels_last": channels_last,
            "peak_gpu_memory_bytes": (
                torch.cuda.max_memory_allocated() if execution.accelerator == "gpu" else None
            ),
            "determinism": promise(execution, operations),
            "halvings": halvings,
            "data": data.facts(),
        }
        _leave(work, best.write(), history.rows, facts, module.sketched)
        end_training(logger, facts)


def _count_attempt(work: Path) -> int:
    """How often this training was begun, this time included; the first rank counts."""
    note = work / "attempts.json"
    before = read_note(note, lambda value: int(a_number(value["attempts"]))) or 0
    if int(os.environ.get("RANK", "0")) == 0:
        write_json(note, {"attempts": before + 1})
    return before + 1


def _leave(
    work: Path, weights: Path, rows: list[dict[str, Any]], facts: dict[str, Any], sketched: str
) -> None:
    """The finished training's files; `facts.json` last, since it says that they are whole."""
    out = work / TRAINED
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    shutil.copyfile(weights, out / "model.safetensors")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(out / "log.csv", text.getvalue().encode())
    leave_sketches(work / SKETCHES, sketched, out)
    fsync_tree(out)
    write_json(out / "facts.json", facts)


def _hush() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*your dataloader is not resumable.*",
        ".*The number of training batches.*",
        ".*LeafSpec.*",
        ".*sync_dist.*",
        ".*tensorboardX.*",
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", text)
