"""Where stages run: the options of `--engine`, and what a submission says."""

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cxrbench.cli import common
from cxrbench.cli.common import say
from cxrbench.core.errors import UsageError

if TYPE_CHECKING:
    from cxrbench.core.registry import Registry
    from cxrbench.core.spec import BenchSpec, Execution
    from cxrbench.core.store import Store
    from cxrbench.runner.engines.slurm import Submission
    from cxrbench.runner.plan import Plan

ENGINES = ("local", "slurm")


@dataclass(frozen=True)
class Place:
    """The engine and what its jobs ask for, as given on the command line."""

    engine: str
    partition: str | None
    account: str | None
    time: str | None
    mem: str | None
    cpus: int | None

    def request(self) -> dict[str, Any]:
        """The keys of a request that were given."""
        names = ("partition", "account", "time", "mem", "cpus")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Where:
    """A specification with the execution that was settled for it."""

    spec: "BenchSpec"
    execution: "Execution"
    precision: str | None  # what `auto` stands for, where it is not this machine that says


def settle(
    place: Place,
    spec: "BenchSpec",
    gpus: int | None,
    devices: int | None,
    accelerator: str | None,
    slots: int | None,
    workers: int | None,
    wandb: str | None,
    *,
    halve_on_oom: bool = False,
) -> Where:
    """The options as an execution; `slots` is None where there is one stage after the other."""
    from cxrbench.core.spec import Execution
    from cxrbench.runner.devices import choose

    if place.engine not in ENGINES:
        raise UsageError(f"--engine {place.engine}: choose {' or '.join(ENGINES)}")
    update = {
        "wandb": common.wandb_mode(wandb),
        "group": spec.name,
        "engine": place.engine,
        "halve_on_oom": halve_on_oom,
    }
    if place.engine == "slurm":
        if slots:
            raise UsageError("--slots is for --engine local; a cluster's queue has its own limits")
        return _on_cluster(place, spec, gpus, devices, accelerator, workers, update)
    if given := place.request():
        raise UsageError(f"--{next(iter(given))} needs --engine slurm")
    slots = 1 if slots is None else slots
    chosen = choose(
        gpus=gpus, devices=devices, accelerator=accelerator, slots=slots, workers=workers
    )
    return Where(spec, Execution.parse({**chosen.model_dump(), **update}, where="options"), None)


def _on_cluster(
    place: Place,
    spec: "BenchSpec",
    gpus: int | None,
    devices: int | None,
    accelerator: str | None,
    workers: int | None,
    update: dict[str, Any],
) -> Where:
    from cxrbench.core.cluster import Cluster
    from cxrbench.core.spec import Execution
    from cxrbench.runner.devices import gpus_of_jobs, precision_of_jobs

    given = place.request() | ({"workers": workers} if workers is not None else {})
    asked = Cluster.parse({**spec.cluster.model_dump(), **given}, where="options")
    asked = gpus_of_jobs(asked, gpus=gpus, devices=devices, accelerator=accelerator)
    kind, count = ("gpu", asked.gpus) if asked.gpus else ("cpu", devices or 1)
    execution = Execution.parse({**update, "accelerator": kind, "devices": count}, where="options")
    settled = spec.model_copy(update={"cluster": asked})
    return Where(settled, execution, precision_of_jobs(settled, asked))


def submit(
    plan: "Plan",
    store: "Store",
    registry: "Registry",
    where: Where,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Put the plan's missing stages into the queue and say how to go on."""
    from cxrbench.runner.engines.slurm import submit_plan
    from cxrbench.runner.finish import write_records

    cluster, execution = where.spec.cluster, where.execution
    made = submit_plan(plan, store, registry, execution, cluster, again=force)
    records = write_records(plan, store)  # of what was built before and has none yet
    if as_json:
        value = {"jobs": made.jobs, "waiting": made.waiting, "records_job": made.records_job}
        print(json.dumps(value, indent=1))
        return
    for job, keys in made.jobs.items():
        print(f"{job}  {' + '.join(keys)}")
    sys.stdout.flush()
    _tell(made, len(records))


def _tell(made: "Submission", records: int) -> None:
    if records:
        say(f"{records} new records")
    if made.waiting:
        say(f"{len(made.waiting)} stages were in the queue already")
    if made.jobs:
        say(f"{len(made.jobs)} jobs and one for the last records, by {made.calls} calls of sbatch")
        say(f"watch: cxrbench status    stop: scancel {' '.join(made.numbers)}")
    elif not made.waiting:
        say("nothing to build; `cxrbench leaderboard` ranks the records")
