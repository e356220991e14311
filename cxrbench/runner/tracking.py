"""Weights & Biases: a mirror of the stages. Files stay the truth, and no failure of it stops a stage."""

import os
from pathlib import Path
from typing import Any

from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage

INIT_SECONDS = 20  # until an unreachable server is given up


def _identity(stage: Stage, execution: Execution) -> dict[str, Any]:
    """How the run of a stage is named and found."""
    data = stage.data
    return {
        "project": os.environ.get("WANDB_PROJECT", "cxrbench"),
        "name": f"{stage.kind} {stage.name} {data.dataset} fold {data.fold}",
        "group": execution.group or None,
        "id": stage.digest[:16],
        "tags": [stage.kind, stage.name, data.dataset, data.split, f"fold-{data.fold}"],
        "job_type": stage.kind,
        "config": {"stage": stage.key, "params": dict(stage.params), "data": data.identity()},
    }


def _start(stage: Stage, execution: Execution, folder: Path) -> Any | None:
    """A started run; offline when the server cannot be reached, None when nothing works."""
    import wandb

    settings = wandb.Settings(init_timeout=INIT_SECONDS, silent=True)
    for mode in dict.fromkeys((execution.wandb, "offline")):
        try:
            return wandb.init(
                **_identity(stage, execution),
                dir=str(folder),
                mode=mode,  # type: ignore[arg-type]
                resume="allow" if mode == "online" else None,
                settings=settings,
            )
        except Exception as error:  # whatever it is, the stage matters more
            print(f"wandb {mode}: {type(error).__name__}: {error}; going on without", flush=True)
    return None


def training_logger(stage: Stage, execution: Execution, folder: Path) -> Any | None:
    """Lightning's logger for a training, or None."""
    if execution.wandb == "off" or int(os.environ.get("RANK", "0")) > 0:
        return None
    run = _start(stage, execution, folder)
    if run is None:
        return None
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(experiment=run)


def log_summary(
    stage: Stage, execution: Execution, folder: Path, facts: dict[str, Any], scores: dict[str, Any]
) -> None:
    """A run for a stage that has no curve: its facts, and the macro and per-label scores."""
    if execution.wandb == "off":
        return
    run = _start(stage, execution, folder)
    if run is None:
        return
    summary = {name: value for name, value in facts.items() if isinstance(value, (int, float, str))}
    summary |= {
        f"macro/{name}": value
        for name, value in scores.get("macro", {}).items()
        if isinstance(value, (int, float))
    }
    for label, values in scores.get("labels", {}).items():
        summary |= {f"{label}/{m}": values[m] for m in ("auc", "pr_auc") if values[m] is not None}
    run.summary.update(summary)
    run.finish()
