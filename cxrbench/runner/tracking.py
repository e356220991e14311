"""Weights & Biases: a mirror of the stages and records. Files stay the truth, and no failure of it stops a stage."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cxrbench.core.gallery import read_gallery
from cxrbench.core.mirror import finish_run, first_line, open_run, sync_command, waiting
from cxrbench.core.mirror_record import mirror_records, unmirrored
from cxrbench.core.record import Record
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import Store, read_json_as


def _identity(stage: Stage, execution: Execution) -> dict[str, Any]:
    """How the run of a stage is named and found.

    A stage may serve several methods, so it carries its own name; the methods are tags of the records' runs. A
    transform serves all folds.
    """
    data = stage.data
    fold = "" if stage.kind == "transform" else f"fold-{data.fold}"
    return {
        "name": " ".join([stage.kind, stage.name, data.dataset, fold.replace("-", " ")]).strip(),
        "group": execution.group or None,
        "id": stage.digest[:16],
        "tags": [stage.kind, stage.name, data.dataset, data.split, fold, f"seed-{data.root_seed}"],
        "job_type": stage.kind,
        "config": {"stage": stage.key, "params": dict(stage.params), "data": data.identity()},
    }


def _start(stage: Stage, execution: Execution, folder: Path) -> Any | None:
    """A started run; offline when the server cannot be reached, None when nothing works."""
    import wandb

    return open_run(wandb, execution.wandb, folder, _print, **_identity(stage, execution))


def _print(line: str) -> None:
    print(line, flush=True)


def training_logger(
    stage: Stage, execution: Execution, folder: Path, *, attempt: int = 1
) -> Any | None:
    """Lightning's logger for a training, or None; `attempt` counts from 1 when one is gone on with."""
    if execution.wandb == "off" or int(os.environ.get("RANK", "0")) > 0:
        return None
    run = _start(stage, execution, folder)
    if run is None:
        return None
    from lightning.pytorch.loggers import WandbLogger

    with _harmless():
        run.config.update({"attempt": attempt}, allow_val_change=True)
        # Lightning does so only for runs that it opens itself. A resumed run counts its own steps on, but this
        # axis goes back to where the training began again.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run)


def end_training(logger: Any | None, facts: Mapping[str, Any]) -> None:
    """What a finished training found, beside its curves."""
    if logger:
        with _harmless():
            logger.experiment.summary.update(dict(_flat(facts)))
        finish_run(logger.experiment, _print)


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
    with _harmless():
        _log(run, artefact, facts)
    finish_run(run, _print)


@contextmanager
def _harmless() -> Iterator[None]:
    """What fails here is told; the files are there whatever it is."""
    try:
        yield
    except Exception as error:
        print(f"wandb: {first_line(error)}; going on without", flush=True)


def _log(run: Any, artefact: Path, facts: dict[str, Any]) -> None:
    run.summary.update(dict(_flat(facts)) | _scores(artefact / "scores.json"))
    pictures = read_gallery(artefact)
    if pictures:
        import wandb

        for shown in pictures:
            path = artefact / shown.file
            run.log({f"gallery/{path.stem}": wandb.Image(str(path), caption=shown.caption)})


def log_records(
    records: Sequence[Record], execution: Execution, store: Store, tell: Callable[[str], None]
) -> None:
    """A run for each finished record that has none yet, and how to upload what waits."""
    if execution.wandb == "off":
        return
    if unmirrored(records, execution.wandb, store):
        import wandb

        mirror_records(wandb, records, execution.wandb, store, tell)
    if waiting(store.root):
        tell(f"to upload what is logged: {sync_command(store.root)}")


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

    def numbers(scores: Any) -> dict[str, float]:
        found = {f"macro/{name}": value for name, value in scores["macro"].items()}
        for label, values in scores["labels"].items():
            found |= {f"{label}/{metric}": values[metric] for metric in ("auc", "pr_auc")}
        return {name: value for name, value in found.items() if isinstance(value, int | float)}

    return read_json_as(path, numbers, "scores")
