"""predict: a trained model on images of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from cxrbench.cli import common, progress
from cxrbench.cli.common import say
from cxrbench.core.errors import UsageError
from cxrbench.core.store import Store


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(predict)


def predict(
    model: Annotated[str, typer.Argument(help="A record's id or a training's key; see `runs/`.")],
    dataset: Annotated[str, typer.Option(help="How the images are read: table, dicom, ...")],
    out: Annotated[Path, typer.Option(help="The table to write: .csv or .parquet.")],
    data: common.Data = None,
    settings: common.Settings = [],  # noqa: B006
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave unreadable images out, and say so.")
    ] = False,
    gpus: common.Gpus = None,
    workers: common.Workers = None,
    plugin: common.Plugin = [],  # noqa: B006
) -> None:
    """Probabilities of a trained model for images.

    Every image of a folder gets them; labels are not needed.
    """
    from cxrbench.runner.apply import find_stage, predict_images, write_table
    from cxrbench.runner.devices import choose

    if out.suffix not in (".csv", ".parquet"):
        raise UsageError(f"--out {out}: name a .csv or a .parquet file")
    store = Store.default()
    stage = find_stage(store, "fit", model)
    with progress.live() as (show, tell):
        table, remarks, outcome = predict_images(
            stage,
            dataset,
            data,
            common.parse_settings(settings)["data"],
            store=store,
            registry=common.registry_of(plugin),
            execution=choose(gpus=gpus, workers=workers),
            skip_unreadable=skip_unreadable,
            progress=common.reporter(),
            show=show,
            tell=tell,
        )
    if table is None:
        common.end_unfinished(outcome)
    else:
        write_table(table, out)
        for remark in remarks:
            say(remark)
        say(f"{len(table):,} images by {stage.key}: {out}")
