"""Options and output that several commands share. Messages go to stderr, results to stdout."""

import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxrbench.core.errors import SweepIncompleteError, UsageError
from cxrbench.core.registry import Registry

if TYPE_CHECKING:
    from cxrbench.runner.schedule import Outcome

Plugin = Annotated[
    list[Path], typer.Option("--plugin", help="A loose file with a method or data set of your own.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Data = Annotated[Path | None, typer.Option("--data", help="The folder of the data set.")]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="params.KEY=V, recipe.KEY=V (every stage), data.KEY=V or test.KEY=V (--test-on).",
    ),
]
Gpus = Annotated[
    int | None, typer.Option(min=0, help="GPUs for one training; 0 is the CPU. (default: 1 if any)")
]
Devices = Annotated[int | None, typer.Option(min=1, help="Processes of one training.")]
Accelerator = Annotated[str | None, typer.Option(help="cpu or gpu.")]
Slots = Annotated[
    int,
    typer.Option(
        min=0, help="Stages at the same time. (default: one a GPU, or one for every two CPU cores)"
    ),
]
PerGpu = Annotated[
    int, typer.Option(min=1, help="Stages that share each GPU and its memory, for small networks.")
]
RankSeconds = Annotated[
    float | None,
    typer.Option(
        help="Until a silent process of a training on several is given up. (default: 300)"
    ),
]
Workers = Annotated[int | None, typer.Option(min=0, help="Loader processes of one training.")]
HalveOnOom = Annotated[
    bool,
    typer.Option(
        "--halve-on-oom",
        help="Out of memory: go on with half the images at once; the images of a step stay.",
    ),
]
WaitForGpuMem = Annotated[
    str | None,
    typer.Option(
        metavar="TIME[,GIB]",
        help="Wait so long (30 is minutes, 2:00:00) for GPU memory that others hold; begin no stage before GIB are free.",
    ),
]
Wandb = Annotated[
    str | None, typer.Option(help="online, offline or off. (default: online if logged in)")
]
Engine = Annotated[
    str,
    typer.Option(
        help="local; ray: stages as tasks of Ray; slurm: put them into a cluster's queue and end."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="--engine ray: HOST:PORT or auto. (default: $RAY_ADDRESS, else a Ray of this machine)"
    ),
]
Partition = Annotated[str | None, typer.Option(help="--engine slurm: of the cluster.")]
Account = Annotated[str | None, typer.Option(help="--engine slurm: who is charged.")]
Time = Annotated[str | None, typer.Option(help="--engine slurm: limit of a job, 4:00:00 or 2-00.")]
Mem = Annotated[str | None, typer.Option(help="--engine slurm: memory of a job, 32G.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="--engine slurm, ray: cores of a job.")]
PLAIN_SECONDS = 30.0  # between progress lines when the output is not a terminal


def say(line: str) -> None:
    """A message for the user."""
    print(line, file=sys.stderr, flush=True)


def parse_settings(words: list[str]) -> dict[str, dict[str, Any]]:
    """`--set a.b.c=1` as nested dictionaries under params, recipe, data and test."""
    from cxrbench.core.yamlfile import parse_yaml

    tree: dict[str, dict[str, Any]] = {"params": {}, "recipe": {}, "data": {}, "test": {}}
    for word in words:
        key, sign, text = word.partition("=")
        path = key.strip().split(".")
        if not sign or len(path) < 2 or path[0] not in tree or not all(path):
            raise UsageError(
                f"--set {word}: expected params.KEY=VALUE, recipe.KEY=VALUE, data.KEY=VALUE or "
                "test.KEY=VALUE"
            )
        node: dict[str, Any] = tree[path[0]]
        for part in path[1:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UsageError(f"--set {word}: {part} was given a value before")
        node[path[-1]] = parse_yaml(text, where=f"--set {key}")
    return tree


def wandb_mode(asked: str | None) -> str:
    """The mode of Weights & Biases: what was asked, else online when the user is logged in."""
    if asked in ("online", "offline", "off"):
        return asked
    if asked is not None:
        raise UsageError(f"--wandb {asked}: choose online, offline or off")
    import netrc
    import os

    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return {"offline": "offline", "disabled": "off"}[os.environ["WANDB_MODE"]]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        return "online" if netrc.netrc().authenticators("api.wandb.ai") else "off"
    except (OSError, netrc.NetrcParseError):
        return "off"


def end_unfinished(outcome: "Outcome", *, sweep: str = "") -> None:
    """Say what failed or stopped, and leave with the code for it; nothing when all went well.

    Several runs, which `sweep` tells the end of, have one code for any failure.
    """
    if outcome.interrupted:
        again = shlex.join(["cxrbench", *sys.argv[1:]])
        say(f"stopped; the same command goes on from here:\n  {again}")
        raise typer.Exit(130 if outcome.interrupted == signal.SIGINT else 75)
    for failure in outcome.failed.values():
        say(f"FAILED {failure['stage']}: {failure['error']}\n  log: {failure['log']}")
    codes = {int(failure.get("exit_code") or 1) for failure in outcome.failed.values()}
    if outcome.failed and sweep:
        raise SweepIncompleteError(sweep)
    if codes:
        raise typer.Exit(max(1, codes.pop()) if len(codes) == 1 else 1)


def registry_of(plugins: list[Path]) -> Registry:
    """The registry with the user's loose files."""
    return Registry(plugins)


def reporter() -> Callable[[str, int, int], None]:
    """(what, done, of) for work before the first stage: a bar on a terminal, else lines."""
    if sys.stderr.isatty():
        return _bar()
    last = time.monotonic()

    def report(what: str, done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > PLAIN_SECONDS or done == of > 2000:
            last = time.monotonic()
            say(f"{what} {done:,}/{of:,}")

    return report


def _bar() -> Callable[[str, int, int], None]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, of: int) -> None:
        if not tasks:
            bar.start()
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=of)
        bar.update(tasks[what], completed=done)
        if bar.finished:
            bar.stop()
            tasks.clear()

    return report
