"""Where stages run: the options of `--engine`, and what a submission says."""

import json
import math
import os
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

ENGINES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Place:
    """The engine and what its jobs ask for, as given on the command line."""

    engine: str
    partition: str | None
    account: str | None
    time: str | None
    mem: str | None
    cpus: int | None
    ray_address: str | None = None

    def request(self) -> dict[str, Any]:
        """The keys of a request that were given."""
        names = ("partition", "account", "time", "mem", "cpus")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a training has and how many stages run at once, as given on the command line; None: not given."""

    gpus: int | None = None
    devices: int | None = None
    accelerator: str | None = None
    workers: int | None = None
    # None: one stage after the other; 0: as many as the hardware has room for.
    slots: int | None = None
    per_gpu: int = 1

    def of_one(self) -> dict[str, Any]:
        """What says the devices of a training."""
        return {"gpus": self.gpus, "devices": self.devices, "accelerator": self.accelerator}


@dataclass(frozen=True)
class Where:
    """A specification with the execution that was settled for it."""

    spec: "BenchSpec"
    execution: "Execution"
    precision: str | None  # what `auto` stands for, where it is not this machine that says


def settle(
    place: Place,
    spec: "BenchSpec",
    hardware: Hardware,
    wandb: str | None,
    *,
    rank_seconds: float | None = None,
    wait_for_gpu_mem: str | None = None,
    **switches: bool,
) -> Where:
    """The options as an execution; `switches` are fields of it that are on or off."""
    from cxrbench.core.spec import Execution
    from cxrbench.runner.devices import choose, waiting

    if place.engine not in ENGINES:
        raise UsageError(f"--engine {place.engine}: choose {' or '.join(ENGINES)}")
    update: dict[str, Any] = {
        "wandb": common.wandb_mode(wandb),
        "group": spec.name,
        "engine": place.engine,
        **switches,
    }
    if rank_seconds is not None:
        if not 0 < rank_seconds < math.inf:
            raise UsageError(f"--rank-seconds {rank_seconds:g}: give more than 0 seconds")
        update["rank_seconds"] = rank_seconds
    shared = {"per-gpu": hardware.per_gpu > 1, "wait-for-gpu-mem": wait_for_gpu_mem is not None}
    if place.engine != "local" and (asked := [name for name, given in shared.items() if given]):
        raise UsageError(
            f"--{asked[0]} is for --engine local; a job of {place.engine} has its GPUs alone"
        )
    if place.ray_address is not None and place.engine != "ray":
        raise UsageError("--ray-address needs --engine ray")
    if place.engine == "ray":
        return _on_ray(place, spec, hardware, update)
    if place.engine == "slurm":
        if hardware.slots:
            raise UsageError(
                "--slots is for --engine local and ray; SLURM's queue has its own limits"
            )
        return _on_cluster(place, spec, hardware, update)
    if given := place.request():
        instead = "slurm or ray" if "cpus" in given else "slurm"
        raise UsageError(f"--{next(iter(given))} needs --engine {instead}")
    chosen = choose(
        **hardware.of_one(),
        slots=1 if hardware.slots is None else hardware.slots,
        workers=hardware.workers,
        per_gpu=hardware.per_gpu,
    )
    if wait_for_gpu_mem is not None:
        update |= waiting(wait_for_gpu_mem, chosen.accelerator)
    return Where(spec, Execution.parse({**chosen.model_dump(), **update}, where="options"), None)


def _on_cluster(
    place: Place,
    spec: "BenchSpec",
    hardware: Hardware,
    update: dict[str, Any],
) -> Where:
    from cxrbench.core.cluster import Cluster
    from cxrbench.core.spec import Execution
    from cxrbench.runner.devices import gpus_of_jobs, precision_of_jobs

    workers = {} if hardware.workers is None else {"workers": hardware.workers}
    given = place.request() | workers
    asked = Cluster.parse({**spec.cluster.model_dump(), **given}, where="options")
    asked = gpus_of_jobs(asked, **hardware.of_one())
    kind, count = ("gpu", asked.gpus) if asked.gpus else ("cpu", hardware.devices or 1)
    execution = Execution.parse({**update, "accelerator": kind, "devices": count}, where="options")
    settled = spec.model_copy(update={"cluster": asked})
    return Where(settled, execution, precision_of_jobs(settled, asked))


def _on_ray(
    place: Place,
    spec: "BenchSpec",
    hardware: Hardware,
    update: dict[str, Any],
) -> Where:
    """On a Ray of this machine as the local engine would; on a cluster what is said of its nodes."""
    from cxrbench.core.spec import Execution
    from cxrbench.runner.devices import choose, cores_of_job, execution_of_job, precision_of_jobs
    from cxrbench.runner.engines.ray_engine import check_address, require_ray

    if other := [name for name in place.request() if name != "cpus"]:
        raise UsageError(f"--{other[0]} needs --engine slurm; Ray is asked for --gpus and --cpus")
    require_ray()
    slots = 1 if hardware.slots is None else hardware.slots
    address = place.ray_address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        chosen = choose(**hardware.of_one(), slots=slots, workers=hardware.workers)
        cores = place.cpus or max(1, (os.cpu_count() or 1) // chosen.slots)
        update = {**chosen.model_dump(), **update, "cores": cores}
        return Where(spec, Execution.parse(update, where="options"), None)
    check_address(address)  # before a plan that may take minutes
    if spec.cluster.stages:
        say("cluster.stages is for --engine slurm: Ray is asked the same for every chain of stages")
    settled = _on_cluster(place, spec, hardware, update)
    asked, base = settled.spec.cluster, settled.execution
    job = execution_of_job(base, asked, asked)
    more = {"slots": slots, "cores": cores_of_job(asked, job.devices), "ray_address": address}
    execution = Execution.parse({**job.model_dump(), **more}, where="options")
    return Where(settled.spec, execution, precision_of_jobs(settled.spec, asked))


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
