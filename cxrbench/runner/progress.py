"""A moment of a sweep for whoever shows it: what every stage is at, and what time is left."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cxrbench.core.errors import DataError
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import MISFITS, Store, a_number, read_note
from cxrbench.runner.durations import Durations
from cxrbench.runner.estimate import Pulse, Span, Task, left_of_stage, time_left
from cxrbench.runner.gpu_wait import said_to_wait
from cxrbench.runner.graph import Graph

State = Literal["done", "running", "waiting", "blocked", "failed"]
STATES: tuple[State, ...] = ("done", "running", "waiting", "blocked", "failed")
PAUSE = 0.5  # seconds between two looks; trainings write no pulse more often
LOOKED = 0.05  # most of the time that may go into looking


@dataclass(frozen=True)
class Running:
    """A stage that a worker is at: steps done and in all (0 where it tells none), seconds, what is left."""

    key: str
    done: int
    of: int
    elapsed: float
    left: Span | None
    waits: str = ""  # for what, where it does not go on


@dataclass(frozen=True)
class Status:
    """How many stages of each (kind, name) are in which state, those that run, and seconds."""

    counts: Mapping[tuple[str, str], Mapping[State, int]]
    running: list[Running]
    elapsed: float
    left: Span | None
    stopping: bool = False

    def count(self, state: State) -> int:
        """Stages in a state."""
        return sum(each.get(state, 0) for each in self.counts.values())

    @property
    def total(self) -> int:
        """All stages that were missing when the sweep began."""
        return sum(self.count(state) for state in STATES)


@dataclass
class Seen:
    """What a sweep hands over when it is looked at."""

    pending: Graph
    chains: Iterable[list[Stage]]
    done: Iterable[str]
    failed: Iterable[str]
    blocked: Iterable[str]
    stopping: bool = False


def read_pulse(store: Store, key: str) -> Pulse | None:
    """How far a training of the store says it is; None where it has not said anything yet."""

    def pulse(value: Any) -> Pulse:
        whole = {name: int(a_number(value[name])) for name in ("done", "of", "first", "epoch")}
        return Pulse(**whole, seconds=a_number(value["stepping"]))

    return read_note(store.root / "partial" / key / "progress.json", pulse)


def _spent(store: Store, key: str) -> float:
    """Seconds that earlier tries of a stage took, which its measured duration will count."""
    note = store.root / "partial" / key / "spent.json"
    return read_note(note, lambda value: a_number(value["seconds"])) or 0.0


@dataclass
class Progress:
    """Looks at a sweep from its beginning on; `stages` are all that it is to build."""

    stages: Graph
    store: Store
    execution: Execution
    clock: Callable[[], float] = time.monotonic
    durations: Durations = field(init=False)
    _began: dict[str, float] = field(init=False, default_factory=dict)  # running stages, by key
    _last: float = field(init=False, default=float("-inf"))
    _cost: float = field(init=False, default=0.0)
    _most: int = field(init=False, default=0)  # workers at the same time so far

    def __post_init__(self) -> None:
        self.durations = Durations(self.store, self.execution)
        self._start = self.clock()

    def due(self) -> bool:
        """Whether it is time for another look: a large graph is looked at less often."""
        return self.clock() - self._last >= max(PAUSE, self._cost / LOOKED)

    def look(self, seen: Seen) -> Status:
        """The status now."""
        self._last = self.clock()
        chains = [self._rest(chain) for chain in seen.chains]
        heads = [chain[0] for chain in chains if chain]
        running = [self._running(stage) for stage in heads]
        self._began = {each.key: self._began[each.key] for each in running}
        tasks = {stage.digest: self._task(stage) for c in chains for stage in c}
        for stage, each in zip(heads, running, strict=True):
            tasks[stage.digest] = Task(stage.digest, seconds=each.left)
        self._most = max(self._most, len(chains))
        left = time_left(
            [self._task(stage) for stage in seen.pending.values()],
            [[tasks[stage.digest] for stage in chain] for chain in chains],
            # An engine that shares out a cluster may have more at work than slots were asked for.
            max(self.execution.slots, self._most),
        )
        counts = self._counts(seen, {stage.digest for stage in heads})
        status = Status(counts, running, self._last - self._start, left, seen.stopping)
        self._cost = self.clock() - self._last
        return status

    def _rest(self, chain: list[Stage]) -> list[Stage]:
        """What a worker has not built yet of its chain."""
        return [stage for stage in chain if not self.store.has(stage.key)]

    def _running(self, stage: Stage) -> Running:
        began = self._began.setdefault(stage.key, self._last)
        elapsed = self._last - began
        pulse = read_pulse(self.store, stage.key) if stage.kind == "fit" else None
        spent = elapsed + _spent(self.store, stage.key)
        left = left_of_stage(self.durations.of(stage), spent, pulse)
        done, of = (pulse.done, pulse.of) if pulse else (0, 0)
        waits = said_to_wait(self.store.root / "partial" / stage.key)
        if waits and left:  # for how long, only others know
            left = Span(left.low, left.high, open=True)
        return Running(stage.key, done, of, elapsed, left, waits)

    def _task(self, stage: Stage) -> Task:
        parents = tuple(parent.digest for parent in stage.parents())
        follows = stage.kind in ("predict", "score")
        return Task(stage.digest, parents, follows, self.durations.of(stage))

    def _counts(self, seen: Seen, heads: set[str]) -> dict[tuple[str, str], Counter[State]]:
        state: dict[str, State] = dict.fromkeys(self.stages, "waiting")
        for chain in seen.chains:
            state.update({s.digest: "done" for s in chain if self.store.has(s.key)})
        state.update(dict.fromkeys(heads, "running"))
        state.update(dict.fromkeys(seen.blocked, "blocked"))
        state.update(dict.fromkeys(seen.done, "done"))
        state.update(dict.fromkeys(seen.failed, "failed"))
        counts: dict[tuple[str, str], Counter[State]] = {}
        for digest, stage in self.stages.items():
            counts.setdefault((stage.kind, stage.name), Counter())[state[digest]] += 1
        return counts


def to_json(status: Status) -> dict[str, Any]:
    """A status as JSON; `left` is null where nothing is known."""

    def span(value: Span | None) -> dict[str, Any] | None:
        return vars(value) if value else None

    return {
        "stages": [
            {"kind": kind, "name": name, **{state: each.get(state, 0) for state in STATES}}
            for (kind, name), each in status.counts.items()
        ],
        "running": [{**vars(each), "left": span(each.left)} for each in status.running],
        "elapsed": status.elapsed,
        "left": span(status.left),
        "stopping": status.stopping,
    }


def from_json(value: Any) -> Status:
    """The status of `to_json`; DataError for anything else."""
    try:
        counts = {
            (str(each["kind"]), str(each["name"])): {s: int(a_number(each[s])) for s in STATES}
            for each in value["stages"]
        }
        running = [
            Running(
                str(each["key"]), int(a_number(each["done"])), int(a_number(each["of"])),
                a_number(each["elapsed"]),
                _span(each["left"]), str(each.get("waits", "")),
            )
            for each in value["running"]
        ]  # fmt: skip
        return Status(
            counts,
            running,
            a_number(value["elapsed"]),
            _span(value["left"]),
            bool(value["stopping"]),
        )
    except MISFITS as error:
        raise DataError(f"not a sweep's status: {type(error).__name__}: {error}") from None


def _span(value: Any) -> Span | None:
    return (
        None
        if value is None
        else Span(a_number(value["low"]), a_number(value["high"]), bool(value["open"]))
    )
