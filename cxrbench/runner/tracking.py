"""Weights & Biases: a mirror of the stages. Files stay the truth, and no failure of it stops a stage."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import read_json

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
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
            said = masked(f"{type(error).__name__}: {error}")
            print(f"wandb {mode}: {said}; going on without", flush=True)
    return None


def masked(text: str) -> str:
    """The text without the values of variables that hold secrets: logs are kept and shown."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, f"${name}")
    return text


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
    stage: Stage, execution: Execution, folder: Path, artefact: Path, facts: dict[str, Any]
) -> None:
    """A run for a stage that has no curve: its facts, its scores and its pictures.

    `folder` is where runs stay, `artefact` what the stage left.
    """
    if execution.wandb == "off":
        return
    run = _start(stage, execution, folder)
    if run is None:
        return
    try:
        _log(run, artefact, facts)
    except Exception as error:  # whatever it is, the artefact is there
        print(f"wandb: {masked(f'{type(error).__name__}: {error}')}; going on without", flush=True)


def finish(logger: Any) -> None:
    """End the run of a training; a server that fails now costs nothing but the run's last lines."""
    try:
        logger.experiment.finish()
    except Exception as error:
        print(f"wandb: {masked(f'{type(error).__name__}: {error}')}; going on without", flush=True)


def _log(run: Any, artefact: Path, facts: dict[str, Any]) -> None:
    run.summary.update(dict(_flat(facts)) | _scores(artefact / "scores.json"))
    pictures = artefact / "gallery.json"
    if pictures.is_file():
        import wandb

        for entry in read_json(pictures):
            path = artefact / entry["file"]
            run.log({f"gallery/{path.stem}": wandb.Image(str(path), caption=entry["caption"])})
    run.finish()


def _flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, int | float | str]]:
    """Numbers and texts of nested facts, by names like `restored/unet/psnr`."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}/")
        elif isinstance(value, int | float | str):
            yield f"{before}{name}", value


def _scores(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    scores = read_json(path)
    found = {f"macro/{name}": value for name, value in scores["macro"].items()}
    for label, values in scores["labels"].items():
        found |= {f"{label}/{metric}": values[metric] for metric in ("auc", "pr_auc")}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}
