"""plan: what a benchmark would run, what is shared, and what its trainings cost."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxrbench.cli import common
from cxrbench.core.errors import UsageError
from cxrbench.core.registry import Registry, normalise
from cxrbench.core.store import Store

if TYPE_CHECKING:
    from cxrbench.core.spec import BenchSpec
    from cxrbench.runner.context import Context
    from cxrbench.runner.plan import Plan

GPUS = (1, 8, 64)


def read_spec_file(path: Path, registry: Registry, only: list[str], data: list[str]) -> "BenchSpec":
    """A benchmark's file with the options `--only` and `--data NAME=DIR` laid over it."""
    from cxrbench.runner.bench import narrow, read_spec

    spec = narrow(read_spec(path), registry, only)
    folders = {}
    every: list[Any] = [*spec.datasets, *spec.test_on, *spec.externals]
    for word in data:
        name, sign, folder = word.partition("=")
        if not sign or normalise(name) not in {normalise(e.name) for e in every}:
            raise UsageError(f"--data {word}: expected NAME=DIR with a data set of {path}")
        folders[normalise(name)] = Path(folder)

    def placed(entry: Any) -> Any:
        return entry.model_copy(update={"path": folders.get(normalise(entry.name), entry.path)})

    return spec.model_copy(
        update={
            "datasets": [placed(entry) for entry in spec.datasets],
            "test_on": [placed(entry) for entry in spec.test_on],
            "externals": [placed(entry) for entry in spec.externals],
        }
    )


def plan(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC.yaml")],
    only: Annotated[list[str], typer.Option(help="Only these methods.")] = [],  # noqa: B006
    data: Annotated[list[str], typer.Option("--data", help="NAME=DIR")] = [],  # noqa: B006
    gpus: common.Gpus = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Count the operations of the trainings, and no stages.")
    ] = False,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="With --cost: TFLOP/s that a GPU sustains, for the hours."),
    ] = None,
    plugin: common.Plugin = [],  # noqa: B006
    as_json: common.Json = False,
) -> None:
    """Show the runs and stages of a benchmark.

    Exit code 1 when a run would leak.
    """
    from cxrbench.runner.devices import auto_precision, choose
    from cxrbench.runner.plan import make_plan

    registry, store = common.registry_of(plugin), Store.default()
    spec = read_spec_file(spec_file, registry, only, data)
    if tflops is not None and not cost:
        raise UsageError("--tflops needs --cost")
    execution = choose(gpus=gpus)
    precision = auto_precision(execution.accelerator)
    made = make_plan(spec, registry, store, precision=precision, progress=common.reporter())
    if cost:
        from cxrbench.runner.context import Context

        show_cost(made, Context(store, registry, made.roots, execution), tflops, as_json=as_json)
        for leak in made.leaks:
            common.say(f"LEAK {leak}")
    else:
        show_plan(made, store, as_json=as_json)
    if made.leaks:
        raise typer.Exit(1)


def _demand(made: "Plan") -> Any:
    """A table of the trainings: in the plan, and by runs one by one."""
    from rich.table import Table

    table = Table(title="trainings")
    for name in ("training", "data set", "here", "one by one"):
        table.add_column(name, overflow="fold")
    for each in made.trainings():
        table.add_row(each.training, each.dataset, str(each.shared), str(each.alone))
    return table


def show_plan(made: "Plan", store: Store, *, as_json: bool) -> None:
    """Every stage, whom it serves and whether it is done; trainings by part; leaks."""
    users: dict[str, int] = {}
    for each in made.runs:
        for digest in made.stages_of(each):
            users[digest] = users.get(digest, 0) + 1
    rows: list[dict[str, Any]] = [
        {
            "stage": stage.key,
            "kind": stage.kind,
            "dataset": stage.data.dataset,
            "fold": stage.data.fold,
            "runs": users[digest],
            "state": "done" if store.has(stage.key) else "missing",
        }
        for digest, stage in made.graph.items()
    ]
    fits, alone = made.demand()
    if as_json:
        runs = [r.model_dump(mode="json") for r in made.runs]
        value = {"runs": runs, "stages": rows, "trainings": fits, "trainings_unshared": alone,
                 "demand": [vars(each) for each in made.trainings()], "leaks": made.leaks}  # fmt: skip
        print(json.dumps(value, indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{made.name}: {len(made.runs)} runs, {len(rows)} stages")
    for name in ("stage", "data set", "fold", "serves runs", "state"):
        table.add_column(name, overflow="fold")
    for row in rows:
        shared = str(row["runs"]) + (" (shared)" if row["runs"] > 1 else "")
        table.add_row(row["stage"], row["dataset"], str(row["fold"]), shared, row["state"])
    console = Console()
    console.print(table)
    if fits < alone:
        console.print(_demand(made))
    share = f": {fits / alone:.3f} of them" if alone else ""
    console.print(f"trainings: {fits} (one by one it would be {alone}{share})", highlight=False)
    for leak in made.leaks:
        console.print(f"LEAK {leak}", style="bold red", markup=False)


def show_cost(made: "Plan", context: "Context", tflops: float | None, *, as_json: bool) -> None:
    """Operations of a plan's trainings; hours where somebody says what a GPU sustains."""
    from rich.console import Console
    from rich.table import Table

    from cxrbench.runner.cost import hours, images_of, longest_chain, training_costs

    found = training_costs(made.graph, images_of(context))
    total = sum(cost.flops or 0.0 for cost in found)
    chain = longest_chain(made.graph, found)
    taken = {} if tflops is None else {n: hours(total, tflops * 1e12, n, chain) for n in GPUS}
    if as_json:
        value: dict[str, Any] = {"trainings": [asdict(cost) for cost in found], "flops": total,
                                 "longest_chain_flops": chain, "hours": taken}  # fmt: skip
        print(json.dumps(value, indent=1, ensure_ascii=False))
        return
    table = Table(title=f"{made.name}: {sum(cost.count for cost in found)} trainings")
    for name in ("training", "data set", "trainings", "epochs", "px", "images", "GFLOP an image", "PFLOP", "share"):  # fmt: skip
        numbers = name not in ("training", "data set")
        table.add_column(name, overflow="fold", justify="right" if numbers else "left")
    for cost in found:
        table.add_row(
            cost.training, cost.dataset, str(cost.count), str(cost.epochs), str(cost.side), f"{cost.images:,}",
            f"{cost.step / 1e9:,.1f}" if cost.step is not None else "?",
            f"{cost.flops / 1e15:,.1f}" if cost.flops is not None else "?",
            f"{cost.flops / total:.1%}" if cost.flops else "",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        f"{total / 1e15:,.1f} PFLOP in all, validation in it; {chain / 1e15:,.1f} in the longest chain of trainings. "
        "Counted, not timed: a step forward and backward for each image.", highlight=False,
    )  # fmt: skip
    if any(cost.flops is None for cost in found):
        console.print("?: hangs on what the network finds, and is left out", highlight=False)
    for gpus, needed in taken.items():
        console.print(f"{gpus} GPU{'s' * (gpus > 1)} at {tflops:g} TFLOP/s: at least {needed:,.2f} h", highlight=False)  # fmt: skip
