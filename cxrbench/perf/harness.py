"""Two ways to the same result, timed in turns; no ratio where the results differ.

One call of each side warms up and is compared. Then come rounds: in each, both sides run once, in an
order drawn anew, so that whatever else the machine does meets both alike. A ratio is the peer's median
over ours (above 1: ours is faster); its interval resamples rounds, both sides of a round together.
"""

import gc
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
# ratio: the peer's time over ours. extra: ours beyond the peer's, and seconds: ours, both a unit of work.
# share: of what is counted, not timed. count: how many. megabytes: peak memory.
Quantity = Literal["ratio", "extra", "seconds", "share", "count", "megabytes"]
State = Literal["met", "missed", "no goal", "results differ", "not available", "failed"]

ROUNDS = 7
RESAMPLES = 2000
LEVEL = 0.95
SHORTEST = (
    0.02  # seconds; a shorter call is repeated within its round, or the clock's grain would show
)


class NotAvailableError(Exception):
    """What a comparison needs is not on this machine; says what."""


class ResultsDifferError(Exception):
    """What is counted does not give what its peer gives; says how."""


@dataclass(frozen=True)
class Goal:
    """At least, or else at most, so much of a quantity."""

    quantity: Quantity
    bound: float
    least: bool = False

    def met(self, value: float) -> bool:
        """Whether a measured value reaches the goal."""
        return value >= self.bound if self.least else value <= self.bound


@dataclass(frozen=True)
class Comparison:
    """Ours against a peer, or ours alone where there is none.

    `ours` and `peer` do `units` of work a call and return their results; `equal` gets both and says how
    they differ, or nothing. Alone, `equal` gets ours twice: it may check it against what is known.
    """

    name: str
    what: str
    ours: Callable[[], Any]
    peer: Callable[[], Any] | None = None
    equal: Callable[[Any, Any], str] = lambda ours, peer: ""
    goal: Goal | None = None
    units: tuple[float, float] = (1, 1)  # of ours and of the peer's
    unit: str = "call"
    note: str = ""


@dataclass(frozen=True)
class Counted:
    """A value that is counted or weighed once; `quantity` is what it is where there is no goal."""

    name: str
    what: str
    value: Callable[[], float]
    goal: Goal | None
    note: str = ""
    quantity: Quantity = "share"


@dataclass(frozen=True)
class Absent:
    """A comparison that this machine cannot make, and why."""

    name: str
    what: str
    why: str


@dataclass(frozen=True)
class Curve:
    """What a cost does as something grows: work at several sizes, each made ready by `work(size)` first.

    Time is that of the call which `work` returns; memory is its peak in a further call that is not timed, as
    Python and NumPy count it (`tracemalloc`).
    """

    name: str
    what: str
    axis: str
    sizes: tuple[int, ...]
    work: Callable[[int], Callable[[], Any]]
    note: str = ""


Item = Comparison | Counted | Absent | Curve


@dataclass(frozen=True)
class Row:
    """What became of a comparison; seconds are those of one unit of work."""

    name: str
    what: str
    state: State
    goal: dict[str, Any] | None = None
    value: float | None = None  # of the goal's quantity, or else of `quantity`
    quantity: Quantity | None = None
    interval: tuple[float, float] | None = None  # of the value
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    ours: dict[str, Any] | None = None
    peer: dict[str, Any] | None = None
    unit: str = ""
    why: str = ""
    note: str = ""
    axis: str = ""  # of a curve
    points: list[dict[str, Any]] | None = None  # size, seconds, megabytes
    # Of seconds against sizes in log-log: 1 is linear.
    exponent: float | None = None
    exponent_interval: tuple[float, float] | None = None
    memory_exponent: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Harness:
    """How things are measured; `clock` and `order` are replaced in tests.

    `budget` are the seconds that all items together may take: what would end later is a row that says so.
    """

    rounds: int = ROUNDS
    seed: int = 0
    budget: float | None = None
    clock: Callable[[], float] = time.perf_counter
    shortest: float = SHORTEST
    order: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise ValueError(f"rounds is {self.rounds}; an interval needs two at least")
        self.order = np.random.default_rng(self.seed)
        self._ends = None if self.budget is None else self.clock() + self.budget

    def measure(self, item: Item) -> Row:
        """One row, whatever happens: what this machine lacks, and an error, are rows too."""
        if isinstance(item, Absent):
            return Row(item.name, item.what, "not available", why=item.why)
        goal = asdict(item.goal) if not isinstance(item, Curve) and item.goal else None
        try:
            self._afford(0)
            if isinstance(item, Curve):
                return self._trace(item)
            return self._count(item) if isinstance(item, Counted) else self._compare(item)
        except NotAvailableError as error:
            return Row(item.name, item.what, "not available", goal=goal, why=str(error))
        except ResultsDifferError as error:
            return Row(item.name, item.what, "results differ", goal=goal, why=str(error))
        except Exception as error:  # one that fails must not cost the others
            return failed(item.name, item.what, error, goal)

    def _afford(self, seconds: float) -> None:
        if self._ends is not None and self.clock() + seconds > self._ends:
            raise NotAvailableError(
                f"no time: all together have {self.budget:g} s, and {max(0.0, self._ends - self.clock()):.0f} are left"
            )

    def _count(self, item: Counted) -> Row:
        value = float(item.value())
        state: State = "no goal"
        if item.goal is not None:
            state = "met" if item.goal.met(value) else "missed"
        return Row(
            item.name,
            item.what,
            state,
            goal=asdict(item.goal) if item.goal else None,
            value=value,
            quantity=item.quantity,
            note=item.note,
        )

    def _compare(self, item: Comparison) -> Row:
        sides = [item.ours] if item.peer is None else [item.ours, item.peer]
        repeats, results, took = zip(*(self._warm_up(side) for side in sides), strict=True)
        differs = item.equal(results[0], results[-1])
        if differs:
            goal = asdict(item.goal) if item.goal else None
            return Row(item.name, item.what, "results differ", goal=goal, why=differs)
        del results
        self._afford(self.rounds * sum(took))
        taken = self._rounds(sides, repeats) / np.asarray(item.units)[: len(sides), None]
        return _row(item, taken, np.random.default_rng(self.seed))

    def _trace(self, item: Curve) -> Row:
        calls = [item.work(size) for size in item.sizes]
        repeats = [self._warm_up(call)[0] for call in calls]
        taken = self._rounds(calls, repeats)
        memory = [peak_memory(call) for call in calls]
        medians = np.median(taken, axis=1)
        interval = resampled(
            taken, lambda m: log_slope(item.sizes, m), np.random.default_rng(self.seed)
        )
        points = [
            {"size": size, "seconds": summary(one), "megabytes": peak}
            for size, one, peak in zip(item.sizes, taken, memory, strict=True)
        ]
        return Row(
            item.name,
            item.what,
            "no goal",
            axis=item.axis,
            points=points,
            exponent=float(log_slope(item.sizes, medians[:, None])[0]),
            exponent_interval=interval,
            memory_exponent=float(log_slope(item.sizes, np.array(memory)[:, None])[0])
            if min(memory) > 0
            else None,
            note=item.note,
        )

    def _warm_up(self, side: Callable[[], Any]) -> tuple[int, Any, float]:
        """(calls a round, the result, seconds of a call)."""
        started = self.clock()
        result = side()
        took = self.clock() - started
        # The first call also fills caches: for short ones that is much, and for compiled ones nearly all.
        if took < 10 * self.shortest or self._ends is not None:
            started = self.clock()
            side()
            took = self.clock() - started
        return max(1, round(self.shortest / took)) if took > 0 else 1, result, took

    def _rounds(self, sides: Sequence[Callable[[], Any]], repeats: Sequence[int]) -> Seconds:
        """Seconds of a call [sides, rounds]."""
        taken = np.empty((len(sides), self.rounds))
        gc.collect()
        gc.disable()  # as `timeit` does: a collection belongs to nobody's work
        try:
            for number in range(self.rounds):
                for side in self.order.permutation(len(sides)):
                    taken[side, number] = self._timed(sides[side], repeats[side])
        finally:
            gc.enable()
        return taken

    def _timed(self, side: Callable[[], Any], repeats: int) -> float:
        started = self.clock()
        for _ in range(repeats):
            side()
        return (self.clock() - started) / repeats


def failed(name: str, what: str, error: Exception, goal: dict[str, Any] | None = None) -> Row:
    """The row of what ended with an error, with the first line of its words."""
    words = (str(error).strip().splitlines() or [""])[0][:300]
    return Row(name, what, "failed", goal=goal, why=f"{type(error).__name__}: {words}")


def summary(seconds: Seconds) -> dict[str, Any]:
    """Median, minimum, interquartile range and every round, in seconds a unit."""
    low, high = np.quantile(seconds, [0.25, 0.75])
    return {
        "median": float(np.median(seconds)),
        "minimum": float(seconds.min()),
        "iqr": float(high - low),
        "rounds": [float(s) for s in seconds],
    }


def resampled(
    taken: Seconds, value: Callable[[Seconds], Seconds], generator: np.random.Generator
) -> tuple[float, float]:
    """The central LEVEL of a value of the sides' medians [sides, ...] over resampled rounds."""
    rounds = taken.shape[1]
    drawn = taken[:, generator.integers(rounds, size=(RESAMPLES, rounds))]
    low, high = np.quantile(value(np.median(drawn, axis=2)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _row(item: Comparison, taken: Seconds, generator: np.random.Generator) -> Row:
    values: dict[str, Callable[[Seconds], Seconds]] = {"seconds": lambda m: m[0]}
    if item.peer is not None:
        values["ratio"] = lambda m: m[1] / m[0]
        values["extra"] = lambda m: m[0] - m[1]
    medians = np.median(taken, axis=1)
    goal, value, interval = item.goal, None, None
    state: State = "no goal"
    if goal is not None:
        value = float(values[goal.quantity](medians))
        interval = resampled(taken, values[goal.quantity], generator)
        state = "met" if goal.met(value) else "missed"
    against = values.get("ratio")
    return Row(
        item.name,
        item.what,
        state,
        goal=asdict(goal) if goal else None,
        value=value,
        interval=interval,
        ratio=None if against is None else float(against(medians)),
        ratio_interval=None if against is None else resampled(taken, against, generator),
        ours=summary(taken[0]),
        peer=None if item.peer is None else summary(taken[1]),
        unit=item.unit,
        note=item.note,
    )


def log_slope(sizes: Sequence[int], values: Seconds) -> Seconds:
    """The exponent of a power law by least squares in logarithms; values: [sizes, ...]."""
    x = np.log(np.asarray(sizes, dtype=np.float64))
    x -= x.mean()
    y = np.log(values)
    return np.asarray(np.tensordot(x, y, axes=(0, 0)) / (x @ x))


def peak_memory(call: Callable[[], Any]) -> float:
    """Megabytes that a call holds at most beyond what was there, as Python and NumPy count them."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def same_arrays(ours: Any, peer: Any) -> str:
    """How two arrays differ, bit for bit; empty when they do not."""
    one, other = np.asarray(ours), np.asarray(peer)
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{one.dtype} {one.shape} against {other.dtype} {other.shape}"
    different = int(np.sum(one != other))
    return f"{different} of {one.size} values differ" if different else ""


def close_arrays(ours: Any, peer: Any, most: float = 1e-12) -> str:
    """How two arrays differ by more than `most`; NaN equals NaN. Empty when they do not."""
    one, other = np.asarray(ours, dtype=np.float64), np.asarray(peer, dtype=np.float64)
    if one.shape != other.shape:
        return f"{one.shape} against {other.shape}"
    if not np.array_equal(np.isnan(one), np.isnan(other)):
        return "undefined in other places"
    gap = np.abs(one - other)
    largest = float(np.nanmax(gap)) if gap.size and not np.isnan(gap).all() else 0.0
    return f"they differ by up to {largest:.3g}" if largest > most else ""
