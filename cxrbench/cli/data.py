"""data verify and splits make|verify|show."""

import json
from typing import Annotated, Any

import typer

from cxrbench.cli import common
from cxrbench.core.errors import DataError
from cxrbench.core.store import Store

Dataset = Annotated[str, typer.Option("--dataset", help="See `cxrbench list datasets`.")]
Split = Annotated[str, typer.Option("--split", help="(default: the data set's first)")]
NAMES_SHOWN = 3


def register(app: typer.Typer) -> None:
    """Add the command groups to the application."""
    data = typer.Typer(help="Look into a data folder.", no_args_is_help=True)
    data.command(name="verify")(verify_data)
    app.add_typer(data, name="data")
    splits = typer.Typer(help="Cut, check and show splits.", no_args_is_help=True)
    splits.command(name="make")(make)
    splits.command(name="verify")(verify_splits)
    splits.command(name="show")(show)
    app.add_typer(splits, name="splits")


def _open(dataset: str, data: Any, split: str, settings: list[str], plugin: list[Any]) -> Any:
    from cxrbench.runner.bind import open_dataset

    cls = common.registry_of(plugin).load("datasets", dataset)
    params = common.parse_settings(settings)["data"]
    return open_dataset(cls, data, params, split, Store.default(), common.reporter())


def verify_data(
    dataset: Dataset,
    data: common.Data = None,
    split: Split = "",
    settings: common.Settings = [],  # noqa: B006
    plugin: common.Plugin = [],  # noqa: B006
    as_json: common.Json = False,
) -> None:
    """Read every image and label: what is missing, unreadable, duplicated or not as published."""
    from cxrbench.data.verify import verify_dataset

    opened = _open(dataset, data, split, settings, plugin)
    cls, index, report = opened.cls, opened.index, common.reporter()
    problems = verify_dataset(
        cls, index, progress=lambda done, of: report("reading", done, of), split=opened.split
    )
    if as_json:
        value = {
            "dataset": cls.name,
            "images": len(index),
            "problems": [p.__dict__ for p in problems],
        }
        print(json.dumps(value, indent=1, ensure_ascii=False))
    else:
        _print_problems(cls.name, index, problems)
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(DataError.exit_code)


def _print_problems(name: str, index: Any, problems: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    patients = len(set(index.patient_ids))
    table = Table(title=Text(f"{name}: {len(index):,} images of {patients:,} patients"))
    for column in ("severity", "what", "count", "names"):
        table.add_column(column, overflow="fold", justify="right" if column == "count" else "left")
    for problem in problems:
        names = ", ".join(problem.names[:NAMES_SHOWN])
        more = " …" if len(problem.names) > NAMES_SHOWN else ""
        table.add_row(problem.severity, Text(problem.what), str(problem.count), Text(names + more))
    Console().print(table)
    if not problems:
        print("nothing to report")


def make(
    dataset: Dataset,
    data: common.Data = None,
    split: Split = "",
    settings: common.Settings = [],  # noqa: B006
    plugin: common.Plugin = [],  # noqa: B006
) -> None:
    """Cut a split once and keep it; an existing one is only read."""
    opened = _open(dataset, data, split, settings, plugin)
    _print_counts(opened)


def verify_splits(
    dataset: Dataset,
    data: common.Data = None,
    split: Split = "",
    settings: common.Settings = [],  # noqa: B006
    plugin: common.Plugin = [],  # noqa: B006
) -> None:
    """Recount a split against its promised counts."""
    from cxrbench.data.splits import verify_split

    opened = _open(dataset, data, split, settings, plugin)
    differences = verify_split(opened.split, opened.facts, opened.index)
    for line in differences:
        print(line)
    print(f"{opened.cls.name}/{opened.split.name}: digest {opened.split.digest(opened.index)}")
    if differences and opened.facts.get("complete", True):
        raise typer.Exit(DataError.exit_code)
    print("as promised" if not differences else "a part of the whole; patients are disjoint")


def show(
    dataset: Dataset,
    data: common.Data = None,
    split: Split = "",
    settings: common.Settings = [],  # noqa: B006
    plugin: common.Plugin = [],  # noqa: B006
    as_json: common.Json = False,
) -> None:
    """Images, patients and positives of each part and fold."""
    opened = _open(dataset, data, split, settings, plugin)
    if as_json:
        from cxrbench.data.splits import describe

        print(json.dumps(describe(opened.split, opened.index), indent=1, ensure_ascii=False))
    else:
        _print_counts(opened)


def _print_counts(opened: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    index, split = opened.index, opened.split
    table = Table(title=Text(f"{opened.cls.name}/{split.name}"), caption=Text(split.rule))
    for column in ("fold", "part", "images", "patients", *index.labels):
        table.add_column(column, justify="right" if column != "part" else "left", overflow="fold")
    for fold in range(split.folds):
        parts = split.parts(index, fold)
        for part in ("train", "val", "test"):
            rows = parts == part
            positives = [
                str(int((index.targets[rows, k] == 1).sum())) for k in range(len(index.labels))
            ]
            patients = len(set(index.patient_ids[rows]))
            table.add_row(str(fold), part, str(int(rows.sum())), str(patients), *positives)
    Console().print(table)
