"""data export: the images of a data set, or of what a stage made of them, as files."""

from pathlib import Path
from typing import Annotated

import typer

from cxrbench.cli import common
from cxrbench.cli.common import say
from cxrbench.core.errors import UsageError
from cxrbench.core.store import Store


def export(
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    dataset: Annotated[str, typer.Option(help="See `cxrbench list datasets`.")] = "",
    stage: Annotated[
        str, typer.Option(help="A transform's key instead: its rewritten images are written.")
    ] = "",
    data: common.Data = None,
    split: Annotated[str, typer.Option(help="(default: the data set's first)")] = "",
    fold: Annotated[int, typer.Option(min=0, help="Whose parts stand in the column `split`.")] = 0,
    size: Annotated[int, typer.Option(min=16, max=4096, help="Side in pixels.")] = 224,
    settings: common.Settings = [],  # noqa: B006
    plugin: common.Plugin = [],  # noqa: B006
) -> None:
    """Write images as PNG with a table that `--dataset table` reads."""
    from cxrbench.core.spec import Execution
    from cxrbench.data.export import export_images
    from cxrbench.runner.apply import find_stage
    from cxrbench.runner.bind import bind
    from cxrbench.runner.context import Context

    if bool(dataset) == bool(stage):
        raise UsageError("say one of --dataset NAME and --stage KEY")
    store, registry, report = Store.default(), common.registry_of(plugin), common.reporter()
    if stage:
        if split or fold or settings:
            raise UsageError("--split, --fold and --set are the stage's own; leave them out")
        view = find_stage(store, "transform", stage).view()
    else:
        params = common.parse_settings(settings)["data"]
        binding = bind(registry, dataset, data, params, split, store, report)
        view = binding.view(fold=fold, seed=0, skip_unreadable=False)
    context = Context(store, registry, {view.dataset: data}, Execution())
    opened = context.open(view)
    material = context.material(view, size)
    masks = context.masks(view, size) if opened.cls.has_masks and not stage else None
    export_images(
        opened.index,
        material.parts,
        lambda row: material.squares[row],
        out,
        read_mask=None if masks is None else lambda row: masks[row],
        progress=lambda done, of: report("writing", done, of),
    )
    say(f"{len(opened.index):,} images at {size} px: {out}")
