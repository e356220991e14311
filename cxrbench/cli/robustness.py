"""robustness: saved models on disturbed films."""

from typing import Annotated

import typer

from cxrbench.cli import common
from cxrbench.cli.common import say
from cxrbench.core.errors import MissingInputError, UsageError
from cxrbench.core.store import Store


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(robustness)


def robustness(
    dataset: Annotated[str, typer.Option(help="The data set whose runs are tried.")],
    data: common.Data = None,
    method: Annotated[list[str], typer.Option(help="Only these methods.")] = [],  # noqa: B006
    kind: Annotated[
        list[str],
        typer.Option(help="Only these: blur, rotation, shift, crop, noise, lettering."),
    ] = [],  # noqa: B006
    images: Annotated[
        int | None, typer.Option(min=2, help="So many test images at most, evenly spread.")
    ] = None,
    gpus: common.Gpus = None,
    plugin: common.Plugin = [],  # noqa: B006
) -> None:
    """AUC of saved models on disturbed test films.

    Blurred, turned, shifted, cropped, noisy and lettered ones.
    The pages of `cxrbench leaderboard --html` draw the curves. What was measured before is kept.
    """
    from cxrbench.core.record import read_records
    from cxrbench.data.disturb import DISTURBANCES
    from cxrbench.runner.devices import choose
    from cxrbench.runner.robustness import measure

    unknown = sorted(set(kind) - set(DISTURBANCES))
    if unknown:
        raise UsageError(f"--kind {unknown[0]}: choose from {', '.join(DISTURBANCES)}")
    store, registry = Store.default(), common.registry_of(plugin)
    name = registry.entry("datasets", dataset).name
    records, _ = read_records(store.root / "records")
    newest = {r.final: r for r in sorted(records, key=lambda r: r.created)}.values()
    chosen = [
        record
        for record in newest
        if record.dataset == name
        and record.tested_on is None
        and (not method or record.method in method)
    ]
    if not chosen:
        raise MissingInputError(f"{store.root / 'records'}: no run on {name} of these methods")
    for record in chosen:
        path = measure(
            record,
            kind or list(DISTURBANCES),
            store=store,
            registry=registry,
            roots={name: data},
            execution=choose(gpus=gpus),
            images=images,
            tell=say,
        )
        print(path)
