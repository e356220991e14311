"""What `plan --cost` prints."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxrbench.runner.context import Context
    from cxrbench.runner.plan import Plan

GPUS = (1, 8, 64)


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
        known = cost.flops is not None and cost.step is not None
        table.add_row(
            cost.training, cost.dataset, str(cost.count), str(cost.epochs), str(cost.side), f"{cost.images:,}",
            f"{cost.step / 1e9:,.1f}" if cost.step is not None else "?",
            f"{cost.flops / 1e15:,.1f}" if cost.flops is not None else "?",
            f"{cost.flops / total:.1%}" if known and total and cost.flops is not None else "",
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
