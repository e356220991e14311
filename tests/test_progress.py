"""What time is left and on which grounds, how it is shown, and what `status` sees of a sweep that runs."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cxrbench.cli import progress as shown
from cxrbench.core.provenance import machine
from cxrbench.core.spec import Execution
from cxrbench.core.stage import DataView, Stage, predict, score
from cxrbench.core.store import Store, write_json
from cxrbench.runner.chains import chain_from
from cxrbench.runner.durations import Durations
from cxrbench.runner.estimate import Pulse, Span, Task, left_of_stage, time_left
from cxrbench.runner.graph import Graph, graph_of, to_json
from cxrbench.runner.notice import Notice, running_sweeps
from cxrbench.runner.progress import Progress, Running, Seen, Status, from_json
from cxrbench.runner.progress import to_json as status_json

VIEW = DataView(
    dataset="phantom", version=1, params={"images": 80}, revision="r", split="cv5",
    split_digest="s", fold=0, labels=("Edema",),
)  # fmt: skip
SETTINGS = Execution(slots=2, threads=1)


class Clock:
    """A clock that goes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def training(fold: int = 0, *, name: str = "net", seed: int = 0, **params: Any) -> Stage:
    return Stage("fit", name, "x:Net", 1, params, replace(VIEW, fold=fold), seed=seed)


def run_of(fit: Stage) -> list[Stage]:
    """A training with its prediction and score."""
    predicted = predict(fit, fit.data)
    return [fit, predicted, score(predicted, replicates=10, seed=0)]


def build(store: Store, stage: Stage, seconds: float, **change: Any) -> None:
    """An artefact as a worker leaves it, as far as durations go."""
    meta = {
        "nodes": to_json(stage.ancestry()),
        "cost": {"seconds": seconds},
        "execution": SETTINGS.model_dump(mode="json"),
        "provenance": machine(),
        **change,
    }
    write_json(store.artefact(stage.key) / "stage.json", meta)


def pulse(store: Store, stage: Stage, done: int, **change: Any) -> None:
    value = {"done": done, "of": 100, "first": 0, "epoch": 10, "stepping": 2.0 * done, "seconds": 9}
    write_json(store.partial(stage.key) / "progress.json", {**value, **change})


def task(digest: str, seconds: float | None, *parents: str, follows: bool = False) -> Task:
    known = None if seconds is None else Span(seconds, seconds)
    return Task(digest, parents, follows, known)


@pytest.mark.parametrize(
    ("waiting", "running", "slots", "left"),
    [
        ([], [], 1, Span(0, 0)),
        ([task("a", None)], [], 1, None),
        ([task("a", 5)], [], 1, Span(5, 5)),
        ([task("a", 5), task("b", None)], [], 1, Span(5, 5, open=True)),
        ([task("a", 5), task("b", 3)], [], 1, Span(8, 8)),
        ([task("a", 5), task("b", 3)], [], 2, Span(5, 5)),
        ([task("a", 5), task("b", 3, "a")], [], 2, Span(8, 8)),
        ([task("b", 3, "gone")], [], 1, Span(3, 3)),
        # A worker that is at something holds its slot; what waits for it begins then.
        ([task("b", 3)], [[task("a", 5)]], 1, Span(8, 8)),
        ([task("b", 3)], [[task("a", 5)]], 2, Span(5, 5)),
        ([task("b", 3, "p")], [[task("a", 5), task("p", 2)]], 2, Span(10, 10)),
        ([task("b", 9, "a")], [[task("a", 5), task("p", 2)]], 2, Span(14, 14)),
        # What follows is done by the same worker, one after the other, though a slot is free.
        ([task("a", 5), task("p", 2, "a", follows=True), task("q", 2, "a", follows=True)], [], 2, Span(9, 9)),
        ([task("a", 5), task("p", 2, "a"), task("q", 2, "a")], [], 2, Span(7, 7)),
    ],
)  # fmt: skip
def test_time_left_of_small_graphs(
    waiting: list[Task], running: list[list[Task]], slots: int, left: Span | None
) -> None:
    assert time_left(waiting, running, slots) == left


def test_a_spread_of_durations_is_a_spread_of_the_time_left() -> None:
    waiting = [replace(task(str(i), 0), seconds=Span(2, 3 + i)) for i in range(2)]
    assert time_left(waiting, [], 1) == Span(4, 7)
    assert time_left([*waiting, task("x", None)], [], 1) == Span(4, 7, open=True)
    assert time_left([replace(waiting[0], seconds=Span(1, 1, open=True))], [], 1) == Span(
        1, 1, True
    )


def sweep_end(graph: Graph, seconds: dict[str, float], slots: int) -> float:
    """When a sweep of `schedule._Sweep` would end, step by step and by its own chains."""
    pending, built, chains, now = dict(graph), set[str](), list[list[Stage]](), 0.0
    left: list[float] = []

    def ready(stage: Stage, soon: set[str]) -> bool:
        return all(p.digest in soon or p.digest in built for p in stage.parents())

    while True:
        for stage in list(pending.values()):
            if stage.digest in pending and len(chains) < slots and ready(stage, set()):
                chains.append(chain_from(stage, pending, ready))
                left.append(seconds[stage.digest])
                for each in chains[-1]:
                    del pending[each.digest]
        if not chains:
            return now
        step = min(left)
        now += step
        left = [each - step for each in left]
        for i in reversed(range(len(chains))):
            if left[i] == 0:
                built.add(chains[i].pop(0).digest)
                if chains[i]:
                    left[i] = seconds[chains[i][0].digest]
                else:
                    del chains[i], left[i]


@pytest.mark.parametrize("seed", range(12))
def test_the_estimate_foresees_the_sweep_s_own_order(seed: int) -> None:
    """Random graphs whose durations are known: the estimate is what the sweep would take, to the second."""
    draw = random.Random(seed)
    made: list[Stage] = []
    for i in range(14):
        parents = {
            str(k): p for k, p in enumerate(draw.sample(made, min(len(made), draw.randint(0, 2))))
        }
        kind: Any = draw.choice(["compute", "fit", "predict", "score"])
        made.append(replace(training(name=f"n{i}"), kind=kind, inputs=parents))
    graph = graph_of(made)
    seconds = {digest: float(draw.randint(1, 9)) for digest in graph}
    tasks = [
        task(s.digest, seconds[s.digest], *(p.digest for p in s.parents()),
             follows=s.kind in ("predict", "score"))
        for s in graph.values()
    ]  # fmt: skip
    for slots in (1, 2, 3):
        end = sweep_end(graph, seconds, slots)
        assert time_left(tasks, [], slots) == Span(end, end)


@pytest.mark.parametrize(
    ("measured", "elapsed", "pulse", "left"),
    [
        (None, 50, None, None),
        (Span(60, 80), 50, None, Span(10, 30)),
        (Span(40, 80), 50, None, Span(0, 30)),
        # Longer than all before it: nobody knows how much longer.
        (Span(60, 80), 90, None, Span(0, 0, open=True)),
        # Its own speed counts when a validation lies in it; before, it is a lower bound at most.
        (None, 50, Pulse(5, 100, 0, 10, 10.0), Span(190, 190, open=True)),
        (Span(60, 80), 50, Pulse(5, 100, 0, 10, 10.0), Span(10, 30)),
        (Span(60, 80), 50, Pulse(20, 100, 0, 10, 40.0), Span(160, 160)),
        # Steps that an earlier try did are no speed of this one.
        (None, 50, Pulse(90, 100, 70, 10, 40.0), Span(20, 20)),
        (None, 50, Pulse(70, 100, 70, 10, 0.0), None),
    ],
)
def test_what_a_running_stage_still_takes(
    measured: Span | None, elapsed: float, pulse: Pulse | None, left: Span | None
) -> None:
    assert left_of_stage(measured, elapsed, pulse) == left


def test_durations_are_those_of_the_same_stage_in_other_folds_and_seeds(store: Store) -> None:
    wanted = training(0, epochs=3)
    assert Durations(store, SETTINGS).of(wanted) is None
    build(store, training(1, epochs=3), 10.0)
    build(store, training(2, epochs=3, seed=7), 14.0)
    # None of these says anything about it.
    build(store, training(3, epochs=4), 1.0)
    build(store, training(4, epochs=3, name="net-wide"), 2.0)
    other = replace(training(3, epochs=3), data=replace(VIEW, fold=3, params={"images": 900}))
    build(store, other, 3.0)
    build(
        store,
        training(5, epochs=3),
        4.0,
        execution=SETTINGS.model_copy(update={"slots": 1}).model_dump(),
    )
    build(store, training(6, epochs=3), 5.0, provenance={**machine(), "cores": 4096})
    build(store, training(7, epochs=3), 6.0, cost={})
    (store.artefact(training(8, epochs=3).key)).mkdir()
    found = Durations(store, SETTINGS)
    assert found.of(wanted) == Span(10, 14)
    assert found.of(run_of(wanted)[1]) is None
    # What this sweep builds counts wherever it ran: a cluster's nodes are other machines.
    build(store, training(9, epochs=3), 20.0, provenance={**machine(), "cores": 4096})
    found.add(training(9, epochs=3).key)
    assert found.of(wanted) == Span(10, 20)


def test_artefacts_of_before_an_option_was_there_count(store: Store) -> None:
    old = SETTINGS.model_dump(mode="json")
    del old["per_gpu"]
    build(store, training(1), 10.0, execution=old)
    assert Durations(store, SETTINGS).of(training(0)) == Span(10, 10)
    assert Durations(store, SETTINGS.model_copy(update={"per_gpu": 2})).of(training(0)) is None


def test_a_sweep_from_nothing_known_to_a_number(store: Store) -> None:
    """Two folds on one slot by a fake clock: `?`, a lower bound, then the whole."""
    clock = Clock()
    first, second = run_of(training(0)), run_of(training(1))
    graph = graph_of([first[-1], second[-1]])
    settings = SETTINGS.model_copy(update={"slots": 1})
    watch = Progress(graph, store, settings, clock)
    pending = {s.digest: s for s in second}

    def look(**seen: Any) -> Status:
        given = {"pending": pending, "chains": [first], "done": [], "failed": [], "blocked": []}
        return watch.look(Seen(**{**given, **seen}))

    status = look()
    assert status.left is None and status.running[0].left is None
    assert status.counts["fit", "net"] == {"running": 1, "waiting": 1}
    clock.now += 10
    pulse(store, first[0], 5)
    status = look()
    assert status.left == Span(190, 190, open=True) and status.running[0].elapsed == 10
    clock.now += 30
    pulse(store, first[0], 20)
    assert look().running[0].left == Span(160, 160)
    for stage, seconds in zip(first, (200.0, 5.0, 1.0), strict=True):
        build(store, stage, seconds, execution=settings.model_dump(mode="json"))
        watch.durations.add(stage.key)
    clock.now += 166
    done = [stage.digest for stage in first]
    pending = {}
    status = look(chains=[second], done=done)
    assert status.left == Span(206, 206)
    clock.now += 60
    status = look(chains=[second], done=done)
    assert status.left == Span(146, 146) and status.elapsed == 266
    assert (status.count("done"), status.count("waiting"), status.total) == (3, 2, 6)
    status = look(
        chains=[], done=done, failed=[second[0].digest], blocked=[s.digest for s in second[1:]]
    )
    assert status.left == Span(0, 0) and status.counts["score", "net"] == {"done": 1, "blocked": 1}


def test_time_of_earlier_tries_counts_as_gone(store: Store) -> None:
    clock = Clock()
    stage = training(0)
    build(store, training(1), 100.0)
    write_json(store.partial(stage.key) / "spent.json", {"seconds": 70.0})
    watch = Progress({stage.digest: stage}, store, SETTINGS, clock)
    assert watch.look(Seen({}, [[stage]], [], [], [])).left == Span(30, 30)


def test_a_large_graph_is_looked_at_less_often(store: Store) -> None:
    clock = Clock()
    watch = Progress({}, store, SETTINGS, clock)
    assert watch.due()
    watch.look(Seen({}, [], [], [], []))
    assert not watch.due()
    clock.now += 1
    assert watch.due()
    watch._cost = 0.5
    assert not watch.due()
    clock.now += 9
    assert watch.due()


def status_of(running: int = 1, **change: Any) -> Status:
    names = ["aecnn", "attention-stn", "cyclegan-augmented", "densenet121", "stern", "vgg16"]
    counts: Any = {
        (kind, name): {"done": i, "waiting": 3 - (i > 2)}
        for kind in ("compute", "transform", "fit", "predict", "score")
        for i, name in enumerate(names)
    }
    counts["fit", "stern"] = {"failed": 1, "running": running}
    counts["score", "stern"] = {"blocked": 12345}
    runs = [
        Running(f"fit-stn-align-joint-{i:016x}", 470, 1000, 90000.0, Span(70000, 170000))
        for i in range(running)
    ]
    return replace(Status(counts, runs, 3723.0, Span(4000, 9000)), **change)


@pytest.mark.parametrize("size", [(60, 24), (60, 10), (120, 60), (30, 8)])
@pytest.mark.parametrize("running", [0, 1, 40])
def test_the_view_fits_its_window(size: tuple[int, int], running: int) -> None:
    console = Console(width=size[0], height=size[1], record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(shown.view(status_of(running), *size))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= size[0]
    assert len(text.splitlines()) <= max(size[1], 14)
    if size[0] >= 60:
        assert "1h02 gone" in text and "1h06 to 2h30 left" in text
        for word in ("done", "running", "waiting", "blocked", "failed", "12345"):
            assert word in text
        assert not running or ("47%" in text and "19h26 to 47h13" in text)
    if size == (60, 24):
        assert "  stern" in text, "what failed is shown when there is no room for all"
        assert ("more" in text) == (running == 40)


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (None, "?"),
        (Span(0.2, 0.2, open=True), "?"),
        (Span(61, 61, open=True), "over 1:01"),
        (Span(61, 61), "1:01"),
        (Span(59.6, 3600), "1:00 to 1h00"),
        (Span(0, 400_000), "0:00 to 4d15h"),
    ],
)
def test_what_is_left_in_words(span: Span | None, text: str) -> None:
    assert shown.left(span) == text


def test_lines_come_at_growing_intervals() -> None:
    clock, said = Clock(), []
    show = shown.lines(clock, said.append)
    for second in range(7200):
        clock.now = 1000.0 + second
        show(status_of(elapsed=float(second)))
    assert 30 < len(said) < 90
    assert said[0].startswith("67/")
    assert "1 failed, 12345 blocked" in said[0] and "left; running: fit-stn-align" in said[0]


def test_what_status_sees_is_true_while_the_sweep_runs(store: Store, capsys: Any) -> None:
    from cxrbench.cli.bench import status

    sent = status_of()
    back = from_json(json.loads(json.dumps(status_json(sent))))
    assert shown.line(back) == shown.line(sent) and back.running == sent.running
    assert not running_sweeps(store)
    with Notice(store, "quick", print) as notice:
        notice.show(sent)
        [seen] = running_sweeps(store)
        assert seen == {"name": "quick", "status": back}
        status()
        assert "running quick: 67/" in capsys.readouterr().out
        status(as_json=True)
        assert json.loads(capsys.readouterr().out)["sweeps"][0]["status"]["left"]["low"] == 4000
        notice.path.write_text('{"name": "quick", "status": {"stages": 3}}')
        assert not running_sweeps(store)
        left = notice.path.read_text()
    assert not list((store.root / "sweeps").iterdir())
    # A sweep that was killed leaves both files; its lock went with it.
    dead = store.root / "sweeps" / "1-dead.json"
    write_json(dead, {"name": "dead", "status": status_json(sent)})
    dead.with_suffix(".lock").touch()
    assert not running_sweeps(store) and left
    with Notice(store, "next", print):
        assert not dead.exists()


def test_a_disk_that_is_full_costs_the_notice_and_not_the_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxrbench.core.errors import CannotWriteError
    from cxrbench.runner import notice as module

    def full(path: Path, value: Any) -> None:
        raise CannotWriteError("no room")

    monkeypatch.setattr(module, "write_json", full)
    said: list[str] = []
    with Notice(store, "quick", said.append) as notice:
        notice.show(status_of())
        notice.show(status_of(stopping=True))
    assert said == ["`cxrbench status` will not see this sweep: no room"]
