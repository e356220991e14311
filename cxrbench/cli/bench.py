"""run, bench, plan and status."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cxrbench.cli import cluster, common, progress
from cxrbench.cli.common import say
from cxrbench.core.errors import UsageError
from cxrbench.core.registry import Registry, normalise
from cxrbench.core.store import Store

if TYPE_CHECKING:
    from cxrbench.core.spec import BenchSpec, Execution
    from cxrbench.runner.bench import Mode, Result
    from cxrbench.runner.plan import Plan


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(run)
    app.command()(bench)
    app.command()(plan)
    app.command()(status)


def run(
    method: Annotated[str, typer.Option(help="What to train; see `cxrbench list methods`.")],
    dataset: Annotated[str | None, typer.Option(help="(default: phantom)")] = None,
    data: common.Data = None,
    split: Annotated[str, typer.Option(help="(default: the data set's first)")] = "",
    fold: Annotated[int, typer.Option(min=0)] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    train_images: Annotated[
        int | None, typer.Option(min=1, help="Only so many of the training images.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="paper, tuned or quick. (default: paper; quick on the phantom)"),
    ] = None,
    gpus: common.Gpus = None,
    devices: common.Devices = None,
    accelerator: common.Accelerator = None,
    workers: common.Workers = None,
    precision: Annotated[
        str | None,
        typer.Option(help="32-true, 16-mixed or bf16-mixed. (default: as the machine can)"),
    ] = None,
    settings: common.Settings = [],  # noqa: B006 - typer copies it
    view: Annotated[
        list[str], typer.Option(help="What rewrites the images first; several are a chain.")
    ] = [],  # noqa: B006
    external: Annotated[
        list[str], typer.Option(help="NAME=DIR: a data set that parts of the method are fitted on.")
    ] = [],  # noqa: B006
    test_on: Annotated[
        str | None, typer.Option(help="Another data set that the model is tested on besides.")
    ] = None,
    test_data: Annotated[Path | None, typer.Option(help="Its folder.")] = None,
    test_split: Annotated[
        str, typer.Option(help="`all` of its images, or the test part of one of its splits.")
    ] = "all",
    label_map: Annotated[
        list[str],
        typer.Option(help="OURS=THEIRS: a label's name there, beyond the names known to be equal."),
    ] = [],  # noqa: B006
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable", help="Leave unreadable images out; the record says which."
        ),
    ] = False,
    halve_on_oom: common.HalveOnOom = False,
    deterministic: common.Deterministic = False,
    resident: common.Resident = False,
    wait_for_gpu_mem: common.WaitForGpuMem = None,
    wandb: common.Wandb = None,
    engine: common.Engine = "local",
    partition: common.Partition = None,
    account: common.Account = None,
    time: common.Time = None,
    mem: common.Mem = None,
    cpus: common.Cpus = None,
    ray_address: common.RayAddress = None,
    rank_seconds: common.RankSeconds = None,
    mode: Annotated[str, typer.Option(help="missing, force or collect.")] = "missing",
    plugin: common.Plugin = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    as_json: common.Json = False,
) -> None:
    """Train one method on one fold, score it, and leave a record."""
    from cxrbench.core.spec import BenchSpec, DatasetEntry, MethodEntry

    if dataset is None and data is not None:
        raise UsageError("--data needs --dataset: `table` for your own, or see `cxrbench list`")
    if dataset is None:
        dataset = "phantom"
        preset = preset or "quick"
        say(f"no --dataset: using the phantom (drawn films) with the {preset} preset")
    registry = common.registry_of(plugin)
    registry.entry("methods", method)  # an unknown name is that, and no bad benchmark name
    chosen = common.parse_settings(settings)
    if precision:
        chosen["recipe"]["precision"] = precision
    spec = BenchSpec.parse(
        {
            "name": f"run-{normalise(method)}",
            "preset": preset or "paper",
            "methods": [MethodEntry(name=method, params=chosen["params"])],
            "datasets": [
                DatasetEntry(
                    name=dataset,
                    split=split,
                    folds=[fold],
                    train_images=train_images,
                    path=data,
                    params=chosen["data"],
                )
            ],
            "seeds": [seed],
            "recipe": chosen["recipe"],
            "views": view,
            "externals": [_external(word) for word in external],
            "test_on": _test_on(test_on, test_data, test_split, chosen["test"], label_map),
            "skip_unreadable": skip_unreadable,
        },
        where="options",
    )
    place = cluster.Place(engine, partition, account, time, mem, cpus, ray_address)
    hardware = cluster.Hardware(gpus=gpus, devices=devices, accelerator=accelerator, workers=workers)  # fmt: skip
    where = cluster.settle(place, spec, hardware, wandb, rank_seconds=rank_seconds, halve_on_oom=halve_on_oom,
                           deterministic=deterministic, resident=resident, wait_for_gpu_mem=wait_for_gpu_mem)  # fmt: skip
    _run_spec(where, registry, mode, dry_run=dry_run, as_json=as_json)


def _external(word: str) -> dict[str, Any]:
    """The entry of `externals` in a specification."""
    name, sign, folder = word.partition("=")
    if not name or (sign and not folder):
        raise UsageError(f"--external {word}: expected NAME=DIR")
    return {"name": name, "path": Path(folder) if sign else None}


def _test_on(
    name: str | None, data: Path | None, split: str, params: dict[str, Any], pairs: list[str]
) -> list[dict[str, Any]]:
    """The entry of `test_on` in a specification."""
    if name is None:
        if data or params or pairs or split != "all":
            raise UsageError(
                "--test-data, --test-split, --label-map and --set test.KEY need --test-on NAME"
            )
        return []
    label_map = dict(pair.partition("=")[::2] for pair in pairs)
    if wrong := [pair for pair in pairs if not all(pair.partition("="))]:
        raise UsageError(f"--label-map {wrong[0]}: expected OURS=THEIRS")
    entry = {"name": name, "path": data, "split": split, "params": params, "label_map": label_map}
    return [entry]


def bench(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC.yaml")],
    only: Annotated[list[str], typer.Option(help="Only these methods.")] = [],  # noqa: B006
    data: Annotated[
        list[str], typer.Option("--data", help="NAME=DIR: where a data set of the file lies.")
    ] = [],  # noqa: B006
    gpus: common.Gpus = None,
    devices: common.Devices = None,
    accelerator: common.Accelerator = None,
    slots: common.Slots = 0,
    per_gpu: common.PerGpu = 1,
    workers: common.Workers = None,
    halve_on_oom: common.HalveOnOom = False,
    deterministic: common.Deterministic = False,
    resident: common.Resident = False,
    wait_for_gpu_mem: common.WaitForGpuMem = None,
    wandb: common.Wandb = None,
    engine: common.Engine = "local",
    partition: common.Partition = None,
    account: common.Account = None,
    time: common.Time = None,
    mem: common.Mem = None,
    cpus: common.Cpus = None,
    ray_address: common.RayAddress = None,
    rank_seconds: common.RankSeconds = None,
    mode: Annotated[str, typer.Option(help="missing, force or collect.")] = "missing",
    plugin: common.Plugin = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    as_json: common.Json = False,
) -> None:
    """Run a benchmark file.

    Every method on every fold, then the leaderboard. The same command goes on where it was stopped.
    """
    registry = common.registry_of(plugin)
    spec = _spec(spec_file, registry, only, data)
    place = cluster.Place(engine, partition, account, time, mem, cpus, ray_address)
    hardware = cluster.Hardware(gpus=gpus, devices=devices, accelerator=accelerator, workers=workers,
                                slots=slots, per_gpu=per_gpu)  # fmt: skip
    where = cluster.settle(place, spec, hardware, wandb, rank_seconds=rank_seconds, halve_on_oom=halve_on_oom,
                           deterministic=deterministic, resident=resident, wait_for_gpu_mem=wait_for_gpu_mem)  # fmt: skip
    _run_spec(where, registry, mode, dry_run=dry_run, as_json=as_json)


def _spec(path: Path, registry: Registry, only: list[str], data: list[str]) -> "BenchSpec":
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


def _run_spec(
    where: cluster.Where,
    registry: Registry,
    mode: str,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from cxrbench.runner.bench import plan_bench, run_bench

    if mode not in ("missing", "force", "collect"):
        raise UsageError(f"--mode {mode}: choose missing, force or collect")
    store = Store.default()
    spec, execution = where.spec, where.execution
    accelerator, reporter = execution.accelerator, common.reporter()
    made = plan_bench(spec, registry, store, accelerator, reporter, precision=where.precision)
    if dry_run:
        _show_plan(made, store, as_json=as_json)
        return
    missing = made.graph if mode == "force" else made.missing(store)
    fits = sum(stage.kind == "fit" for stage in missing.values())
    say(f"{spec.name}: {len(made.runs)} runs, {len(missing)} stages to build ({fits} trainings)")
    if execution.engine == "slurm" and mode != "collect":
        cluster.submit(made, store, registry, where, force=mode == "force", as_json=as_json)
        return
    with progress.live() as (show, tell):
        chosen = cast("Mode", mode)
        result = run_bench(made, registry, store, execution, chosen, show=show, tell=tell)
    _report(result, store, execution, as_json=as_json)


def _report(result: "Result", store: Store, execution: "Execution", *, as_json: bool) -> None:
    """The tables of what is there; a sweep that was stopped ends at once, without them."""
    from cxrbench.cli.board import rank, show_tables, write_pages
    from cxrbench.core.record import read_record
    from cxrbench.leaderboard.files import NAMES, write_tables
    from cxrbench.runner.finish import find_records

    if result.outcome.interrupted:
        common.end_unfinished(result.outcome)
    paths = [path for run in result.plan.runs for path in find_records(store, run)]
    records = [read_record(path) for path in paths]
    if as_json:
        print(
            json.dumps([r.model_dump(mode="json") for r in records], indent=1, ensure_ascii=False)
        )
    elif records:
        folder = store.root / "leaderboard" / result.plan.name
        tables = rank(records, store)
        page, files = folder / "site" / "index.html", [folder / name for name in NAMES]
        new = bool(result.records) or not all(path.is_file() for path in (page, *files))
        show_tables(tables, [], write_tables(tables, [], folder) if new else files)
        if new:  # drawing figures takes seconds
            write_pages(tables, records, [], page.parent, store)
        else:
            print(page)
    if execution.wandb != "off" and records:
        from cxrbench.runner.tracking import log_records

        log_records(records, execution, store, say)
    if result.records:
        say(f"{len(result.records)} new records below {store.root / 'records'}")
    unfinished = len(result.plan.runs) - len({r.final for r in records})
    text = f"{unfinished} of {len(result.plan.runs)} runs are not finished"
    if unfinished and result.complete:
        say(text)
    alone = sum(planned.tested_on is None for planned in result.plan.runs) == 1
    common.end_unfinished(result.outcome, sweep="" if alone else text)


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
    spec = _spec(spec_file, registry, only, data)
    if tflops is not None and not cost:
        raise UsageError("--tflops needs --cost")
    execution = choose(gpus=gpus)
    precision = auto_precision(execution.accelerator)
    made = make_plan(spec, registry, store, precision=precision, progress=common.reporter())
    if cost:
        from cxrbench.cli.cost import show_cost
        from cxrbench.runner.context import Context

        show_cost(made, Context(store, registry, made.roots, execution), tflops, as_json=as_json)
    else:
        _show_plan(made, store, as_json=as_json)
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


def _show_plan(made: "Plan", store: Store, *, as_json: bool) -> None:
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


def _show_jobs(found: dict[str, Any]) -> None:
    """The jobs of a cluster; those that ended without their stage are what to submit again."""
    if found["queue_error"]:
        say(f"the queue cannot be read: {found['queue_error']}")
    failed = {item["stage"] for item in found["failed"]}
    for job in found["jobs"]:
        why = f" ({job['reason']})" if job["reason"] not in ("", "None") else ""
        how = f": {job['progress']}" if job["progress"] else ""
        if job["alive"]:
            print(f"  job {job['job']} {job['state'].lower()}{why} {job['stage']}{how}")
        elif job["stage"] not in failed:
            blocked = "blocked" if job["reason"] == "DependencyNeverSatisfied" else "ended"
            print(
                f"  job {job['job']} {blocked} {job['stage']}: {job['state'].lower()}{why}; not built"
            )


def status(as_json: common.Json = False) -> None:
    """What the store holds: records, unfinished and failed stages."""
    from cxrbench.runner.progress import to_json
    from cxrbench.runner.status import read_status

    store = Store.default()
    found = read_status(store)
    if as_json:
        sweeps = [{**sweep, "status": to_json(sweep["status"])} for sweep in found["sweeps"]]
        print(json.dumps({**found, "sweeps": sweeps}, indent=1, ensure_ascii=False))
        return
    print(f"store: {found['store']}")
    for name, counts in sorted(found["records"].items()):
        print(f"  {name}: {counts} records")
    print(f"  {found['artefacts']} artefacts built")
    for sweep in found["sweeps"]:
        print(f"  running {sweep['name']}: {progress.line(sweep['status'])}")
    _show_jobs(found)
    for item in found["unfinished"]:
        print(f"  unfinished {item['stage']}: {item['progress']}")
    for item in found["stale"]:
        print(f"  stale {item}: its class has another text at the same version")
    for item in found["failed"]:
        print(f"  failed {item['stage']}: {item['error']}\n    log: {item['log']}")
