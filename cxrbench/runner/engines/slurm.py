"""The SLURM engine: a plan's missing stages as batch jobs, after which the process that submitted may end.

Each chain of stages is a job; those that are alike are arrays (`slurm_batch`). A job waits for those that build its inputs
(`afterok`), writes the records of the runs that it completes (`slurm_job`), and a last small job writes those whose
analyses failed. What is in the queue already is found there (`slurm_queue`) and not submitted again.
"""

import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cxrbench.core.cluster import Cluster, check_names
from cxrbench.core.errors import UsageError
from cxrbench.core.registry import Registry
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import Store, write_atomic, write_json
from cxrbench.runner.chains import all_chains, write_job
from cxrbench.runner.devices import execution_of_job
from cxrbench.runner.engines.slurm_batch import (
    RECORDS_REQUEST,
    Batch,
    Kind,
    Ref,
    Waiting,
    batches_of,
    request_of,
    sbatch_words,
    script,
)
from cxrbench.runner.engines.slurm_queue import (
    QueuedJob,
    SlurmError,
    call,
    queued_stages,
    read_queue,
    settled,
    slurm_folder,
)
from cxrbench.runner.failures import failure_path
from cxrbench.runner.plan import Plan

LOG_DAYS = 7  # for which the files of jobs stay that have done their work


@dataclass
class Submission:
    """What was put into the queue, and what was there already."""

    jobs: dict[str, list[str]] = field(default_factory=dict)  # job -> keys of its stages
    calls: int = 0  # of sbatch
    waiting: dict[str, str] = field(default_factory=dict)  # key of a stage that was queued -> job
    records_job: str | None = None

    @property
    def numbers(self) -> list[str]:
        """What scancel takes to end all of it."""
        every = [*self.jobs, *([self.records_job] if self.records_job else [])]
        return list(dict.fromkeys(job.partition("_")[0] for job in every))


def submit_plan(
    plan: Plan,
    store: Store,
    registry: Registry,
    execution: Execution,
    cluster: Cluster,
    *,
    again: bool = False,
) -> Submission:
    """Put every missing stage that is not queued into the queue; returns at once.

    `again` builds all stages anew. Raises SlurmError, with what is queued by then left as it is: the same
    command goes on.
    """
    # A method that --only leaves out may have an entry, too.
    methods = [("fit", name) for name in registry.entries("methods")]
    check_names(cluster, [*methods, *((s.kind, s.name) for s in plan.graph.values())])
    lock = store.lock("slurm-submit")
    lock.acquire(wait=True)  # two submissions at once would not see each other's jobs
    try:
        return _Submitter(plan, store, registry, execution, cluster, again).submit()
    finally:
        lock.release()


class _Submitter:
    def __init__(
        self,
        plan: Plan,
        store: Store,
        registry: Registry,
        execution: Execution,
        cluster: Cluster,
        again: bool,
    ) -> None:
        self.plan, self.store, self.registry = plan, store, registry
        self.execution, self.cluster, self.again = execution, cluster, again
        self.refs: dict[str, Ref] = {}  # stage digest -> the job that will build it
        self.done = Submission()
        self.plan_file: Path | None = None
        self.readers: dict[str, set[str]] = {}  # stage digest -> the stages that read its artefact
        for stage in plan.graph.values():
            for parent in stage.parents():
                self.readers.setdefault(parent.digest, set()).add(stage.digest)

    def submit(self) -> Submission:
        # The queue first: what leaves it after this look has left its artefact in the store.
        queue = read_queue()
        queued = queued_stages(self.store, queue)
        if self.again:
            self._forget(queued)
        missing = self.plan.missing(self.store)
        for digest, stage in missing.items():
            if digest in queued:
                self.refs[digest] = queued[digest].ref
                self.done.waiting[stage.key] = str(queued[digest].ref)
        pending = {d: s for d, s in missing.items() if d not in queued}
        if not pending:
            return self.done
        self._check_precision(pending)
        # What has done its work would pile up by submissions: logs, jobs, and a plan for each.
        old = datetime.now(UTC) - timedelta(days=LOG_DAYS)
        for path in settled(self.store, queue, before=old.isoformat()):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for batch in self._batches(all_chains(pending, self.store)):
            self._send(batch)
        self._send_records()
        return self.done

    def _forget(self, queued: Mapping[str, QueuedJob]) -> None:
        for stage in self.plan.graph.values():
            if stage.digest in queued:
                raise UsageError(
                    f"--mode force: {stage.key} is in the queue as job {queued[stage.digest].ref}; wait for it "
                    f"or end it by scancel"
                )
        for stage in self.plan.graph.values():
            self.store.discard(stage.key)
            self.store.clear_partial(stage.key)

    def _check_precision(self, pending: Mapping[str, Stage]) -> None:
        for stage in pending.values():
            recipe = stage.params.get("recipe")
            half = isinstance(recipe, dict) and recipe.get("precision") == "16-mixed"
            if stage.kind == "fit" and half and not request_of([stage], self.cluster).gpus:
                raise UsageError(
                    f"{stage.key}: precision 16-mixed needs a GPU, and its job asks for none"
                )

    def _batches(self, chains: list[list[Stage]]) -> Iterator[Batch]:
        """Batches whose inputs are all submitted; asks for the next only when these are."""
        while chains:
            ours = {stage.digest for chain in chains for stage in chain}
            ready = [c for c in chains if not (self._needs(c) & ours)]
            waiting = []
            for chain in ready:
                after = frozenset(self.refs[d] for d in self._needs(chain) if d in self.refs)
                waiting.append(Waiting(chain, request_of(chain, self.cluster), after))
            yield from batches_of(waiting)
            chains = [c for c in chains if not any(c is r for r in ready)]

    def _needs(self, chain: list[Stage]) -> set[str]:
        own = {stage.digest for stage in chain}
        return {p.digest for stage in chain for p in stage.parents()} - own

    def _send(self, batch: Batch) -> None:
        execution = execution_of_job(self.execution, self.cluster, batch.request)
        folder, elements = self._folder(), {}
        for number, chain in batch.elements.items():
            # Not the job's file that the local engine writes: it may run beside this queue.
            path = folder / f"{number}.json"
            job = write_job(path, self.plan, self.store, self.registry, execution, chain)
            own = {s.digest for s in chain}
            elements[str(number)] = {
                "job": str(job),
                "todo": [s.digest for s in chain],
                "keys": [s.key for s in chain],
                # What other jobs read; a job that fails beside it must not keep them from it.
                "awaited": [s.digest for s in chain if self.readers.get(s.digest, own) - own],
            }
            for stage in chain:
                failure_path(self.store, stage).unlink(missing_ok=True)
        self._write_batch(folder, elements, array=batch.array, again=self.again)
        job_number = self._call(
            folder, batch, execution.devices, "build", list(batch.elements) if batch.array else None
        )
        for place, chain in batch.elements.items():
            ref = Ref(job_number, place if batch.array else None)
            self.refs.update({stage.digest: ref for stage in chain})
            self.done.jobs[str(ref)] = [stage.key for stage in chain]

    def _send_records(self) -> None:
        """A last job, when all others have ended in whatever way, for runs whose analyses failed."""
        every = list(dict.fromkeys(ref.job if ref.element is None or str(ref) in self.done.jobs else str(ref)
                                   for ref in self.refs.values()))  # fmt: skip
        request = self.cluster.request("records", "records").model_copy(update=RECORDS_REQUEST)
        batch = Batch(request, {0: []}, array=False)
        folder = self._folder()
        nothing: dict[str, object] = {"job": None, "todo": [], "keys": [], "awaited": []}
        self._write_batch(folder, {"0": nothing}, array=False, again=False)
        self.done.records_job = self._call(
            folder, batch, 1, "records", None, f"afterany:{':'.join(every)}"
        )

    def _folder(self) -> Path:
        folder = slurm_folder(self.store) / uuid.uuid4().hex[:12]
        folder.mkdir()
        return folder

    def _write_batch(
        self, folder: Path, elements: Mapping[str, object], *, array: bool, again: bool
    ) -> None:
        """What a batch's jobs read; whole before the batch is submitted."""
        if self.plan_file is None:
            self.plan_file = slurm_folder(self.store) / f"plan-{uuid.uuid4().hex[:12]}.json"
            write_json(self.plan_file, self.plan.to_json())
        write_json(folder / "batch.json", {
            "store": str(self.store.root),
            "plan": str(self.plan_file),
            "submitted": datetime.now(UTC).isoformat(),
            "array": array,
            "again": again,
            "timeouts": self.cluster.timeouts,
            "elements": dict(elements),
        })  # fmt: skip
        write_atomic(folder / "job.sh", script(folder).encode())

    def _call(
        self,
        folder: Path,
        batch: Batch,
        processes: int,
        kind: Kind,
        array: list[int] | None,
        dependency: str | None = None,
    ) -> str:
        words = sbatch_words(
            batch.request, folder, processes=processes, save_seconds=self.cluster.save_seconds,
            array=array, dependency=batch.dependency if dependency is None else dependency, kind=kind,
        )  # fmt: skip
        try:
            number = call(words).strip().partition(";")[0]
        except SlurmError as error:
            queued = len(self.done.jobs)
            raise SlurmError(
                f"{error}\nasked by: {' '.join(words)}\n{queued} jobs are in the queue; when this is repaired "
                f"the same command adds the rest"
            ) from None
        write_atomic(folder / "job", f"{number}\n".encode())
        self.done.calls += 1
        return number
