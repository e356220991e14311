"""Runs the missing stages of a plan: parents first, each once, a failure blocks only what needs it."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cxrbench.core.registry import Registry
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import Store
from cxrbench.runner.chains import chain_from, write_job
from cxrbench.runner.engines.base import Worker, attached
from cxrbench.runner.failures import failure_path, read_failure
from cxrbench.runner.faults import DeviceError
from cxrbench.runner.graph import Graph
from cxrbench.runner.notice import Notice
from cxrbench.runner.plan import Plan
from cxrbench.runner.progress import Progress, Seen, Status

TICK = 0.2  # seconds between looks at the workers


@dataclass
class Outcome:
    """How the stages of a plan ended."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)  # digest -> failure
    blocked: list[str] = field(default_factory=list)
    interrupted: int = 0  # the signal that stopped the sweep


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The stop signals that have come; while this lasts they only ask."""
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_plan(
    plan: Plan,
    store: Store,
    registry: Registry,
    execution: Execution,
    *,
    show: Callable[[Status], None] = lambda status: None,
    tell: Callable[[str], None] = lambda line: None,
    built: Callable[[str], None] = lambda digest: None,
) -> Outcome:
    """Build all missing stages; returns when all are built, failed or blocked.

    `built` is called with the digest of each stage as soon as it is there.
    """
    sweep = _Sweep(plan, store, registry, execution, tell, built)
    try:
        with _signals() as caught, Notice(store, plan.name, tell) as notice:

            def look() -> None:
                status = sweep.status()
                show(status)
                notice.show(status)

            look()  # the first workers take seconds to start
            while sweep.step() and not caught:
                if sweep.progress.due():
                    look()
                time.sleep(TICK)
            if caught:
                sweep.outcome.interrupted = caught[0]
                tell("stopping: the workers save their state; once more to stop at once")
                look()
                sweep.engine.stop(list(sweep.running.values()), at_once=lambda: len(caught) > 1)
            sweep.collect()
            look()
    finally:
        sweep.engine.close()
    return sweep.outcome


class _Sweep:
    def __init__(
        self,
        plan: Plan,
        store: Store,
        registry: Registry,
        execution: Execution,
        tell: Callable[[str], None],
        built: Callable[[str], None],
    ) -> None:
        self.plan, self.store, self.registry, self.execution = plan, store, registry, execution
        self.tell, self.built = tell, built
        self.pending: Graph = plan.missing(store)
        self.progress = Progress(dict(self.pending), store, execution)
        self.engine = attached(execution)
        self.running: dict[str, Worker] = {}  # by the digest that heads the chain
        self.chains: dict[str, list[Stage]] = {}
        self.again: set[str] = set()  # stages that were begun again because a GPU failed
        self.outcome = Outcome()

    def status(self) -> Status:
        """Where the sweep stands."""
        end = self.outcome
        seen = Seen(
            self.pending, list(self.chains.values()), end.done, end.failed, end.blocked,
            stopping=bool(end.interrupted),
        )  # fmt: skip
        return self.progress.look(seen)

    def step(self) -> bool:
        """Collect what ended, start what is ready; False when nothing is left to wait for."""
        self.collect()
        for stage in list(self.pending.values()):
            if stage.digest not in self.pending or not self.engine.has_room():
                continue
            if self._ready(stage, set()):
                self._start(stage)
        return bool(self.running) or (bool(self.pending) and not self.engine.has_room())

    def _ready(self, stage: Stage, soon: set[str]) -> bool:
        return all(p.digest in soon or self.store.has(p.key) for p in stage.parents())

    def _start(self, stage: Stage) -> None:
        chain = chain_from(stage, self.pending, self._ready)
        path = self.store.folder("jobs") / f"{stage.digest[:16]}.json"
        job = write_job(path, self.plan, self.store, self.registry, self.execution, chain)
        for each in chain:
            del self.pending[each.digest]
            failure_path(self.store, each).unlink(missing_ok=True)
        self.chains[stage.digest] = chain
        self.running[stage.digest] = self.engine.start(job, job.with_suffix(".log"))
        self.tell(f"start  {' + '.join(s.key for s in chain)}")

    def collect(self) -> None:
        """Note the ends of workers: what they published counts, not how they exited."""
        for head, worker in list(self.running.items()):
            if not worker.ended():
                continue
            running, chain = self.running.pop(head), self.chains.pop(head)
            begun_again = self._begun_again(chain, running)
            self.engine.finished(running)
            for place, stage in enumerate(chain):
                if self.store.has(stage.key):
                    self.outcome.done.append(stage.digest)
                    self.progress.durations.add(stage.key)
                    self.tell(f"done   {stage.key}")
                    self.built(stage.digest)
                else:
                    if begun_again:
                        break
                    if self.outcome.interrupted:
                        self.tell(f"stopped {stage.key}")
                    else:
                        self._note_failure(stage, head, worker)
                    self.outcome.blocked += [s.digest for s in chain[place + 1 :]]
                    break

    def _begun_again(self, chain: list[Stage], worker: Worker) -> bool:
        """Whether the rest of a chain goes back among what is pending, because its GPU failed for the first time."""
        left = [stage for stage in chain if not self.store.has(stage.key)]
        if not left or left[0].digest in self.again or self.outcome.interrupted:
            return False
        failure = read_failure(failure_path(self.store, left[0])) or {}
        if failure.get("type") != DeviceError.__name__ or not self.engine.set_aside(worker):
            return False
        self.tell(f"again  {left[0].key}, on another GPU: {failure['error']}")
        self.again.add(left[0].digest)
        self.pending = {stage.digest: stage for stage in left} | self.pending
        return True

    def _note_failure(self, stage: Stage, head: str, worker: Worker) -> None:
        log = self.store.root / "jobs" / f"{head[:16]}.log"
        failure = {"stage": stage.key, "log": str(log), "exit_code": worker.code}
        said = read_failure(failure_path(self.store, stage))
        failure |= said or {"error": worker.why()}
        self.outcome.failed[stage.digest] = failure
        self._block(stage)
        self.tell(f"failed {stage.key}: {failure['error']}")

    def _block(self, failed: Stage) -> None:
        for stage in list(self.pending.values()):
            if failed.digest in stage.ancestry():
                del self.pending[stage.digest]
                self.outcome.blocked.append(stage.digest)
