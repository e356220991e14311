"""Weights & Biases as a mirror: how its runs are opened. Files stay the truth.

The module `wandb` comes from the caller: this floor imports none. What leaves the machine are numbers, names of
methods and data sets, and pictures; host, paths, git remote and printed text stay here.
"""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cxrbench.core.redact import masked, redact

Mode = Literal["off", "offline", "online"]
Tell = Callable[[str], None]
PROJECT = "cxrbench"
INIT_SECONDS = 15  # until an unreachable server is given up; with what it takes besides, under 20
FINISH_SECONDS = 120  # for what is still to be uploaded at a run's end
LONGEST_TAG, LONGEST_NAME = 64, 128  # longer ones the server refuses
DATA_VARIABLE = "WANDB_DATA_DIR"
_gave_up: list[str] = []  # why this process tries no server any more


def project() -> str:
    """The project that runs belong to: WANDB_PROJECT, or `cxrbench`."""
    return os.environ.get("WANDB_PROJECT") or PROJECT


def open_run(
    wandb: Any, mode: Mode, folder: Path, tell: Tell, *, measured: bool = True, **identity: Any
) -> Any | None:
    """A started run below `folder`/wandb, or None when nothing works; it never asks and never raises.

    Offline where nobody is logged in or no server answers; the first time that is said by `tell`, and this process
    does not try again. identity: id, name, group, job_type, tags and config, as `wandb.init` takes them. measured:
    whether the use of CPU and GPU is logged, for a run that is computing now.
    """
    tags = [tag[:LONGEST_TAG] for tag in dict.fromkeys(identity.pop("tags")) if tag]
    name = identity.pop("name")[:LONGEST_NAME]
    group = (identity.pop("group") or "")[:LONGEST_NAME] or None
    config = redact(identity.pop("config"))
    # Tables and artefacts of an offline run wait here for `wandb sync`, not in the user's home folder.
    os.environ.setdefault(DATA_VARIABLE, str(folder / "wandb" / "data"))
    for attempt in dict.fromkeys((effective(mode), "offline")):
        try:
            if attempt == "online" and not wandb.login(prompt=False, verify=False):
                raise RuntimeError("not logged in; `wandb login` or WANDB_API_KEY does it")
            return wandb.init(
                project=project(),
                dir=str(folder),
                mode=attempt,
                resume="allow" if attempt == "online" else None,
                settings=_settings(wandb, measured),
                tags=tags,
                name=name,
                group=group,
                config=config,
                **identity,
            )
        except Exception as error:  # whatever it is, what is logged matters more
            what = "going on offline" if attempt == "online" else "going on without"
            tell(f"wandb {attempt}: {first_line(error)}; {what}")
            if attempt == "online":
                _gave_up.append(str(error))
            # Else its service holds the id of the run that could not begin, and refuses it offline, too.
            wandb.teardown()
    return None


def effective(mode: Mode) -> Mode:
    """The mode that runs are opened in from now on: offline once a server was given up."""
    return "offline" if _gave_up and mode == "online" else mode


def _settings(wandb: Any, measured: bool) -> Any:
    return wandb.Settings(
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        silent=True,
        console="off",  # what is printed names folders
        disable_git=True,  # a remote's address may hold a user's name or a token
        save_code=False,
        host="",
        x_disable_meta=True,  # program and interpreter with their paths
        x_disable_machine_info=not measured,
        x_disable_stats=not measured,
        x_save_requirements=measured,
    )


def first_line(error: Exception) -> str:
    """Kind and first line of an error, without secrets."""
    lines = masked(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def finish_run(run: Any, tell: Tell) -> None:
    """End a run; a failure is told, since its files are there to be uploaded later."""
    try:
        run.finish()
    except Exception as error:
        tell(f"wandb: {first_line(error)}; {sync_command(Path(run.settings.root_dir))}")


def is_uploaded(run: Path) -> bool:
    """Whether `wandb sync` has uploaded an offline run's folder."""
    return bool(list(run.glob("*.wandb.synced")))


def waiting(folder: Path) -> list[Path]:
    """The folders of offline runs below `folder`/wandb that were not uploaded yet."""
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    return [run for run in runs if not is_uploaded(run)]


def sync_command(folder: Path) -> str:
    """The command that uploads all that waits below `folder`/wandb; what was uploaded it leaves out."""
    return f"wandb sync {shlex.quote(str((folder / 'wandb').resolve()))}/offline-run-*"


def flat(tree: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by names like `recipe/augment/rotate`."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{name}/")
        else:
            found[f"{before}{name}"] = value
    return found
