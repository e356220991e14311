"""run, bench and status; plan.py beside it has plan."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cxrbench.cli import cluster, common, plan, progress
from cxrbench.cli.common import say
from cxrbench.core.errors import UsageError
from cxrbench.core.registry import Registry, normalise
from cxrbench.core.store import Store

if TYPE_CHECKING:
    from cxrbench.core.spec import Execution
    from cxrbench.runner.bench import Mode, Result


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(run)
    app.command()(bench)
    app.command()(plan.plan)
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
    spec = plan.read_spec_file(spec_file, registry, only, data)
    place = cluster.Place(engine, partition, account, time, mem, cpus, ray_address)
    hardware = cluster.Hardware(gpus=gpus, devices=devices, accelerator=accelerator, workers=workers,
                                slots=slots, per_gpu=per_gpu)  # fmt: skip
    where = cluster.settle(place, spec, hardware, wandb, rank_seconds=rank_seconds, halve_on_oom=halve_on_oom,
                           deterministic=deterministic, resident=resident, wait_for_gpu_mem=wait_for_gpu_mem)  # fmt: skip
    _run_spec(where, registry, mode, dry_run=dry_run, as_json=as_json)


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
        plan.show_plan(made, store, as_json=as_json)
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
