"""How long a sweep still takes: a function of its graph and of measured durations, and of nothing else.

Seconds everywhere. What was never measured counts as nothing and makes the answer a lower bound.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Between `low` and `high` seconds; `open`: longer than `low`, nobody knows how much."""

    low: float
    high: float
    open: bool = False

    def less(self, seconds: float) -> "Span":
        """What is left of it after some seconds; a span that is over is open, since it should have ended."""
        if seconds > self.high:
            return Span(0.0, 0.0, open=True)
        return Span(max(0.0, self.low - seconds), self.high - seconds, self.open)


@dataclass(frozen=True)
class Task:
    """A stage that is not built yet; `seconds` is None where nothing is known of it.

    `parents` are the digests that it waits for; `follows`: a worker that has built one of them goes on with it.
    """

    digest: str
    parents: tuple[str, ...] = ()
    follows: bool = False
    seconds: Span | None = None


@dataclass(frozen=True)
class Pulse:
    """How far a training says it is: steps done of all, of which this try did those after `first` in `seconds`.

    `epoch` is the number of steps of an epoch, after which comes a validation.
    """

    done: int
    of: int
    first: int
    epoch: int
    seconds: float


def left_of_stage(measured: Span | None, elapsed: float, pulse: Pulse | None) -> Span | None:
    """What a running stage still takes; None where nothing is known.

    A training's own speed counts, from the first validation on, which takes its time, too. Before it, and for all
    other kinds, what stages like it took counts. Where there were none, the first steps give a lower bound.
    """
    if pulse and pulse.done > pulse.first:
        rate = pulse.seconds / (pulse.done - pulse.first)
        left = rate * (pulse.of - pulse.done)
        whole_epoch = pulse.done - pulse.first > pulse.epoch
        if whole_epoch or measured is None:
            return Span(left, left, open=not whole_epoch)
    return measured.less(elapsed) if measured else None


def time_left(
    waiting: Sequence[Task], running: Iterable[Sequence[Task]], slots: int
) -> Span | None:
    """What a sweep still takes on so many slots; None where nothing at all is known.

    `waiting` are in the order in which the sweep starts them, `running` the chains that workers are at, of which the
    first task's `seconds` are what is left of it. A failure is not foreseen.
    """
    chains = [list(chain) for chain in running if chain]
    tasks = [*waiting, *(task for chain in chains for task in chain)]
    known = [task.seconds for task in tasks if task.seconds]
    if not tasks:
        return Span(0.0, 0.0)
    if not known:
        return None
    ends = [
        _Simulation(waiting, chains, slots, pick).run()
        for pick in (lambda span: span.low, lambda span: span.high)
    ]
    # With longer stages a list schedule may end sooner (Graham 1969).
    return Span(
        min(ends), max(ends), open=len(known) < len(tasks) or any(span.open for span in known)
    )


class _Simulation:
    """The sweep's own order: a free slot takes the first stage that is ready, and what follows it."""

    def __init__(
        self,
        waiting: Sequence[Task],
        chains: list[list[Task]],
        slots: int,
        pick: Callable[[Span], float],
    ) -> None:
        self.waiting, self.pick = waiting, pick
        self.place = {task.digest: i for i, task in enumerate(waiting)}
        unbuilt = set(self.place) | {task.digest for chain in chains for task in chain}
        self.lacks = [{p for p in task.parents if p in unbuilt} for task in waiting]
        self.children: dict[str, list[int]] = {}
        for i, lacks in enumerate(self.lacks):
            for parent in lacks:
                self.children.setdefault(parent, []).append(i)
        self.ready = [i for i, lacks in enumerate(self.lacks) if not lacks]  # a heap: it is sorted
        self.taken: set[int] = set()
        self.free = max(slots, len(chains), 1) - len(chains)
        self.now = 0.0
        self.events: list[tuple[float, int, list[Task]]] = []  # (when, number, its chain's rest)
        self.number = 0
        for chain in chains:
            self._begin(chain)

    def run(self) -> float:
        """When the last stage ends."""
        self._fill()
        while self.events:
            self.now = self.events[0][0]
            while self.events and self.events[0][0] == self.now:
                self._end(heapq.heappop(self.events)[2])
            self._fill()
        return self.now

    def _begin(self, chain: list[Task]) -> None:
        span = chain[0].seconds
        self.number += 1
        end = self.now + (self.pick(span) if span else 0.0)
        heapq.heappush(self.events, (end, self.number, chain))

    def _end(self, chain: list[Task]) -> None:
        digest = chain[0].digest
        if len(chain) > 1:
            self._begin(chain[1:])
        else:
            self.free += 1
        for i in self.children.get(digest, ()):
            self.lacks[i].discard(digest)
            if not self.lacks[i] and i not in self.taken:
                heapq.heappush(self.ready, i)

    def _fill(self) -> None:
        while self.free and self.ready:
            head = heapq.heappop(self.ready)
            if head not in self.taken:
                self.free -= 1
                self._begin(self._chain(head))

    def _chain(self, head: int) -> list[Task]:
        """The chain that `runner.chains.chain_from` makes of what the head leads to."""
        chain, soon = [self.waiting[head]], {self.waiting[head].digest}
        self.taken.add(head)
        after = list(self.children.get(chain[0].digest, ()))
        heapq.heapify(after)
        while after:
            i = heapq.heappop(after)
            task = self.waiting[i]
            if i not in self.taken and task.follows and self.lacks[i] <= soon:
                self.taken.add(i)
                chain.append(task)
                soon.add(task.digest)
                for child in self.children.get(task.digest, ()):
                    heapq.heappush(after, child)
        return chain
