"""data verify and splits make|verify|show."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxrbench.cli import common
from cxrbench.cli.export import export
from cxrbench.core.errors import DataError
from cxrbench.core.store import Store

if TYPE_CHECKING:
    from rich.table import Table

    from cxrbench.data.base import Problem

Dataset = Annotated[str, typer.Option("--dataset", help="See `cxrbench list datasets`.")]
Split = Annotated[str, typer.Option("--split", help="(default: the data set's first)")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Read every file again, whatever is remembered of it.")
]
NAMES_SHOWN, LONGEST = 3, 200  # names in a table, and letters of one; --json has all
WIDE = 160  # columns of text where no terminal sets a limit
COLOURS = {"error": "bold red", "warning": "yellow", "info": "dim"}


def register(app: typer.Typer) -> None:
    """Add the command groups to the application."""
    data = typer.Typer(help="Look into a data folder.", no_args_is_help=True, rich_markup_mode=None)
    data.command(name="verify")(verify_data)
    data.command(name="export")(export)
    app.add_typer(data, name="data")
    splits = typer.Typer(
        help="Cut, check and show splits.", no_args_is_help=True, rich_markup_mode=None
    )
    splits.command(name="make")(make)
    splits.command(name="verify")(verify_splits)
    splits.command(name="show")(show)
    app.add_typer(splits, name="splits")


def _open(dataset: str, data: Any, split: str, settings: list[str], plugin: list[Any]) -> Any:
    from cxrbench.runner.bind import open_dataset

    cls = common.registry_of(plugin).load("datasets", dataset)
    params = common.parse_settings(settings)["data"]
    return open_dataset(cls, data, params, split, Store.default(), common.reporter())


def _memory(opened: Any) -> Any:
    from cxrbench.data.thumbnails import memory_of

    return memory_of(opened.cls, opened.params.model_dump(mode="json"), Store.default())


def verify_data(
    dataset: Dataset,
    data: common.Data = None,
    split: Split = "",
    settings: common.Settings = [],  # noqa: B006
    plugin: common.Plugin = [],  # noqa: B006
    fresh: Fresh = False,
    as_json: common.Json = False,
) -> None:
    """Read every image and label, and name faults.

    What is missing, unreadable, duplicated, leaked or not as published.
    """
    from cxrbench.data.verify import verify_dataset

    opened = _open(dataset, data, split, settings, plugin)
    report = common.reporter()
    problems = verify_dataset(
        opened.cls,
        opened.index,
        progress=lambda done, of: report("reading", done, of),
        split=opened.split,
        contents=opened.contents,
        memory=_memory(opened),
        fresh=fresh,
    )
    _tell(opened, problems, as_json)


def verify_splits(
    dataset: Dataset,
    data: common.Data = None,
    split: Split = "",
    settings: common.Settings = [],  # noqa: B006
    plugin: common.Plugin = [],  # noqa: B006
    as_json: common.Json = False,
) -> None:
    """Recount a split, and look for leaks.

    Patients and images that stand in two of its parts.
    """
    from cxrbench.data.verify import verify_split_of

    opened = _open(dataset, data, split, settings, plugin)
    problems = verify_split_of(
        opened.index, opened.split, opened.facts, opened.contents, _memory(opened)
    )
    _tell(opened, problems, as_json)


def _tell(opened: Any, problems: "list[Problem]", as_json: bool) -> None:
    """Print what was found, and leave with the code of bad data where an error is among it."""
    from cxrbench.data.splits import describe

    counts = describe(opened.split, opened.index)["counts"]
    index, facts = opened.index, opened.facts
    if as_json:
        value = {
            "dataset": opened.cls.name,
            "images": len(index),
            "patients": len(set(index.patient_ids)),
            "notes": index.notes,
            "split": opened.split.name,
            "rule": opened.split.rule,
            "digest": opened.split.digest(index),
            "folds": opened.split.folds,
            "complete": facts["complete"],
            "coverage": facts["coverage"],
            "counts": counts,
            "problems": [problem.__dict__ for problem in problems],
        }
        print(json.dumps(value, indent=1, ensure_ascii=False))
    else:
        _print_facts(opened)
        _print_table(_counts_table(opened, counts))
        if problems:
            _print_table(_problem_table(problems))
        _print_end(opened, problems)
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(DataError.exit_code)


def _print_facts(opened: Any) -> None:
    """What the reader has noted, a line each."""
    index = opened.index
    patients = len(set(index.patient_ids))
    print(f"{opened.cls.name}: {len(index):,} images of {patients:,} patients")
    for key, value in index.notes.items():
        if value not in (None, "", 0, [], {}):
            print(_clip(f"  {key.replace('_', ' ')}: {_plain(value)}"))
    print(f"{opened.split.name}: {_printable(opened.split.rule)}")
    print(f"  digest: {opened.split.digest(index)}")


def _plain(value: Any) -> str:
    """A note as a line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _counts_table(opened: Any, counts: dict[str, Any]) -> "Table":
    """Images, patients and positives, a column for each part or fold."""
    from rich.table import Table
    from rich.text import Text

    split = opened.split
    table = Table(
        title=f"each {'part' if split.folds == 1 else 'fold'}: images, and positive ones by label"
    )
    table.add_column("")
    parts = sorted(counts, key=("train", "val", "test").index) if split.folds == 1 else list(counts)
    for part in parts:
        table.add_column(part if split.folds == 1 else f"fold {part}", justify="right")
    for what in ("images", "patients"):
        table.add_row(what, *(f"{counts[part][what]:,}" for part in parts))
    table.add_section()
    for label in opened.index.labels:
        positives = (counts[part]["positives"][label] for part in parts)
        table.add_row(Text(_printable(label)), *(f"{count:,}" for count in positives))
    return table


def _problem_table(problems: "list[Problem]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="what was found")
    for column in ("severity", "what", "count", "names"):
        table.add_column(column, overflow="fold", justify="right" if column == "count" else "left")
    for problem in sorted(problems, key=lambda problem: list(COLOURS).index(problem.severity)):
        names = [_clip(name) for name in problem.names[:NAMES_SHOWN]]
        if more := len(problem.names) - len(names):
            names.append(f"… and {more:,} more")
        table.add_row(
            Text(problem.severity, style=COLOURS[problem.severity]),
            Text(_printable(problem.what)),
            f"{problem.count:,}",
            Text("\n".join(names)),
        )
    return table


def _print_end(opened: Any, problems: "list[Problem]") -> None:
    """The verdict in a line."""
    errors = sum(problem.severity == "error" for problem in problems)
    coverage = opened.facts["coverage"]
    if errors:
        print(f"{errors} {'error' if errors == 1 else 'errors'}; --json lists every name")
    elif coverage["present"] < coverage["promised"]:
        present, promised = coverage["present"], coverage["promised"]
        print(f"no error; a part of the whole: {present:,} of {promised:,} images of the split")
    else:
        print("no error; the split is as promised")


def _printable(text: str) -> str:
    """Text without the control characters that a terminal obeys; names of files may come from strangers."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _clip(text: str) -> str:
    text = _printable(text)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _print_table(table: "Table") -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(table)


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
    _print_table(table)
