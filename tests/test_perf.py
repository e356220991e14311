"""Measuring in turns: order, refusal, intervals, results as files; and the real comparisons in miniature.

Nothing here depends on how long anything takes: clocks are faked, or times are not looked at.
"""

import importlib.util
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cxrbench.core.errors import DataError, UsageError
from cxrbench.perf import (
    caches,
    commands,
    data,
    gpu,
    gpu_trainer,
    growth,
    report,
    statistics,
    suite,
    sweep,
    training,
)
from cxrbench.perf.harness import (
    Absent,
    Comparison,
    Counted,
    Curve,
    Goal,
    Harness,
    Item,
    NotAvailableError,
    ResultsDifferError,
    Row,
    close_arrays,
    log_slope,
    peak_memory,
    resampled,
    same_arrays,
)

ROOT = Path(__file__).resolve().parents[1]


class Bench:
    """A clock that only the sides of a comparison move, and a list of who ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def side(self, name: str, *seconds: float, result: Any = 1) -> Callable[[], Any]:
        """Takes the given seconds in turn, then over again."""
        turns = itertools.cycle(seconds)

        def run() -> Any:
            self.calls.append(name)
            self.now += next(turns)
            return result

        return run

    def harness(self, rounds: int = 7, seed: int = 0) -> Harness:
        return Harness(rounds, seed, clock=lambda: self.now, shortest=0.1)


def compare(bench: Bench, **fields: Any) -> Comparison:
    sides = {"ours": bench.side("ours", 1.0), "peer": bench.side("peer", 4.0)}
    return Comparison("x", "ours / peer", **{**sides, **fields})


# --- the harness


def test_rounds_alternate_in_a_random_order_after_a_warm_up() -> None:
    bench = Bench()
    row = bench.harness(rounds=40).measure(compare(bench))
    assert bench.calls[:2] == ["ours", "peer"], "each side warms up once"
    rounds = [tuple(bench.calls[at : at + 2]) for at in range(2, len(bench.calls), 2)]
    assert len(rounds) == 40
    assert set(rounds) == {("ours", "peer"), ("peer", "ours")}, (
        "each round holds both, in any order"
    )
    assert row.ours is not None
    assert len(row.ours["rounds"]) == 40


def test_the_warm_up_is_in_no_figure() -> None:
    bench = Bench()
    slow_at_first = itertools.chain([100.0], itertools.repeat(1.0))

    def ours() -> None:
        bench.now += next(slow_at_first)

    row = bench.harness().measure(compare(bench, ours=ours))
    assert row.ours is not None
    assert row.ours["rounds"] == [1.0] * 7
    assert row.ratio == 4.0


def test_short_calls_are_repeated_within_a_round() -> None:
    bench = Bench()
    row = bench.harness().measure(compare(bench, ours=bench.side("ours", 0.01)))
    assert bench.calls.count("ours") == 2 + 7 * 10
    assert bench.calls.count("peer") == 1 + 7
    assert row.ratio == pytest.approx(400)


def test_median_minimum_and_spread_are_those_of_a_unit() -> None:
    bench = Bench()
    ours = bench.side("ours", 9.0, 2.0, 4.0, 6.0, 8.0)  # the first is the warm-up
    row = bench.harness(rounds=4).measure(compare(bench, ours=ours, units=(2, 4)))
    assert row.ours is not None
    assert row.peer is not None
    assert (row.ours["median"], row.ours["minimum"]) == (2.5, 1.0)
    assert row.ours["iqr"] == pytest.approx(1.5)
    assert row.peer["median"] == 1.0
    assert row.ratio == pytest.approx(1 / 2.5)


@pytest.mark.parametrize("goal", [None, Goal("ratio", 2, least=True)])
def test_unequal_results_have_no_ratio_and_are_not_timed(goal: Goal | None) -> None:
    bench = Bench()
    row = bench.harness().measure(compare(bench, equal=lambda a, b: "one bit differs", goal=goal))
    assert (row.state, row.why) == ("results differ", "one bit differs")
    assert row.ratio is row.value is row.ours is row.peer is None
    assert bench.calls == ["ours", "peer"]
    assert "results differ" in report.cells(row.as_json())
    assert "4" not in "".join(report.cells(row.as_json()))


def test_both_results_reach_the_check() -> None:
    bench, seen = Bench(), []
    item = compare(
        bench, ours=bench.side("o", 1.0, result="a"), peer=bench.side("p", 1.0, result="b"),
        equal=lambda ours, peer: seen.append((ours, peer)) or "",
    )  # fmt: skip
    bench.harness().measure(item)
    assert seen == [("a", "b")]


@pytest.mark.parametrize(
    ("goal", "value", "state"),
    [
        (Goal("ratio", 4, least=True), 4.0, "met"),
        (Goal("ratio", 4.1, least=True), 4.0, "missed"),
        (Goal("extra", 0.0), -3.0, "met"),
        (Goal("extra", -3.5), -3.0, "missed"),
        (Goal("seconds", 1.0), 1.0, "met"),
        (Goal("seconds", 0.9), 1.0, "missed"),
    ],
)
def test_goals_are_of_ratios_of_what_is_extra_or_of_seconds(
    goal: Goal, value: float, state: str
) -> None:
    bench = Bench()
    row = bench.harness().measure(compare(bench, goal=goal))
    assert row.value == pytest.approx(value)
    assert row.state == state


def test_a_side_alone_is_timed_against_its_goal() -> None:
    bench = Bench()
    row = bench.harness().measure(compare(bench, peer=None, goal=Goal("seconds", 2)))
    assert (row.state, row.value, row.ratio, row.peer) == ("met", 1.0, None, None)


def test_the_interval_resamples_rounds_with_both_sides_together() -> None:
    noise = np.array([1.0, 2.0, 5.0, 1.0, 3.0, 2.0, 8.0])  # meets both sides alike
    generator = np.random.default_rng(0)
    low, high = resampled(np.stack([noise, 3 * noise]), lambda m: m[1] / m[0], generator)
    assert (low, high) == pytest.approx((3, 3))
    apart = np.stack([np.ones(7), noise])
    low, high = resampled(apart, lambda m: m[1] / m[0], generator)
    assert 1 <= low < np.median(noise) < high <= 8


def test_what_is_not_here_is_a_row() -> None:
    bench = Bench()

    def missing() -> None:
        raise NotAvailableError("no such package")

    for item in (
        Absent("x", "y", "no such package"),
        compare(bench, peer=missing),
        Counted("x", "y", missing, Goal("share", 1)),  # type: ignore[arg-type]
    ):
        row = bench.harness().measure(item)
        assert (row.state, row.why, row.ratio) == ("not available", "no such package", None)


def test_an_error_is_a_row_and_costs_no_other() -> None:
    bench = Bench()

    def broken() -> None:
        raise RuntimeError("CUDA out of memory\nand how much there was")

    def differing() -> float:
        raise ResultsDifferError("other gradients")

    goal = Goal("ratio", 2, least=True)
    row = bench.harness().measure(compare(bench, peer=broken, goal=goal))
    assert (row.state, row.why) == ("failed", "RuntimeError: CUDA out of memory")
    assert row.goal is not None
    assert "failed" in report.cells(row.as_json())
    counted = bench.harness().measure(Counted("x", "y", differing, Goal("count", 1)))
    assert (counted.state, counted.why) == ("results differ", "other gradients")
    assert bench.harness().measure(compare(bench)).state == "no goal"
    with pytest.raises(ValueError, match="two at least"):
        Harness(rounds=1)


def test_what_would_end_after_the_budget_is_not_begun() -> None:
    bench = Bench()
    harness = Harness(7, clock=lambda: bench.now, shortest=0.1, budget=30)
    # Two calls of each side to warm up, then 7 rounds of 5 s.
    late = harness.measure(compare(bench))
    assert (
        late.state == "not available"
        and late.why == "no time: all together have 30 s, and 20 are left"
    )
    assert bench.calls == ["ours", "ours", "peer", "peer"]
    assert harness.measure(compare(bench, ours=bench.side("ours", 0.5), peer=bench.side("peer", 0.5))).ratio == 1  # fmt: skip
    bench.now = 30.5
    assert harness.measure(Counted("x", "y", lambda: 1, None)).state == "not available"


def test_a_topic_that_cannot_go_on_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def items(topic: str, folder: Path, spec_file: Path | None) -> Iterator[Item]:
        yield replace(compare(bench), name=f"{topic}/one")
        if topic == "data":
            raise OSError("no room")

    monkeypatch.setattr(suite, "items", items)
    told: list[Row] = []
    rows = suite.measure(["data", "gpu"], bench.harness(), spec_file=None, tell=told.append)
    assert [(r.name, r.state) for r in rows] == [("data/one", "no goal"), ("data/*", "failed"), ("gpu/one", "no goal")]  # fmt: skip
    assert told == rows and rows[1].why == "OSError: no room"


def test_a_count_without_a_goal_is_shown() -> None:
    row = Bench().harness().measure(Counted("x", "share of a roofline", lambda: 0.25, None))
    assert (row.state, row.value) == ("no goal", 0.25)
    assert report.cells(row.as_json())[2] == "0.25"


def test_equality_is_to_the_bit_or_to_a_bound() -> None:
    one = np.array([1, 2, 3], np.uint8)
    assert same_arrays(one, one.copy()) == ""
    assert same_arrays(one, one + np.uint8(1)) == "3 of 3 values differ"
    assert "uint8 (3,) against int64 (3,)" in same_arrays(one, one.astype(np.int64))
    assert "(3,) against" in same_arrays(one, one[:2])
    here = np.array([0.5, np.nan])
    assert close_arrays(here, here + 1e-13) == ""
    assert "differ by up to 1e-11" in close_arrays(here, here + 1e-11)
    assert "other places" in close_arrays(here, here[::-1])
    assert "against" in close_arrays(here, here[:1])


def test_a_curve_s_exponent_is_that_of_its_law() -> None:
    now = [0.0]

    def work(size: int) -> Callable[[], Any]:
        kept: list[Any] = []

        def run() -> None:
            kept[:] = [bytearray(1000 * size)]
            now[0] += 3e-6 * size**2

        return run

    curve = Curve("g", "squares", "sides", (1000, 2000, 4000), work)
    row = Harness(5, clock=lambda: now[0], shortest=1e-9).measure(curve)
    assert row.exponent == pytest.approx(2)
    assert row.exponent_interval == pytest.approx((2, 2))
    assert row.memory_exponent == pytest.approx(1, abs=0.02)
    assert row.points is not None
    assert [point["size"] for point in row.points] == [1000, 2000, 4000]
    assert row.points[0]["seconds"]["median"] == pytest.approx(3)
    assert row.points[1]["megabytes"] == pytest.approx(2e6 / 2**20, rel=0.02)


def test_peak_memory_counts_what_was_held_at_once() -> None:
    def call() -> None:
        for _ in range(4):
            bytearray(5 * 2**20)

    assert 5 <= peak_memory(call) < 6


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_slopes_in_logarithms(power: float) -> None:
    sizes = (2, 4, 8, 16)
    assert log_slope(sizes, 7 * np.array(sizes)[:, None] ** power) == pytest.approx(power)


# --- results as files


@pytest.fixture
def results(tmp_path: Path) -> Path:
    bench = Bench()
    items: list[Item] = [
        compare(bench, goal=Goal("ratio", 5, least=True), note="scaled", unit="image"),
        compare(bench, goal=Goal("extra", 0.002)),
        compare(bench),
        compare(bench, equal=lambda a, b: "one bit"),
        compare(bench, peer=None),
        Counted("c", "shared", lambda: 0.5, Goal("share", 0.6)),
        Absent("a", "a peer", "pip install it"),
    ]
    rows = [bench.harness().measure(item) for item in items]
    report.write_results(tmp_path / "r.json", rows, 7, "Noisy.", 1.0)
    return tmp_path / "r.json"


def test_results_name_the_machine_but_not_the_host(results: Path) -> None:
    import getpass
    import platform

    found = report.read_results(results)
    assert set(found["machine"]) >= {
        "processor",
        "cores",
        "memory_gib",
        "system",
        "packages",
        "code",
    }
    assert found["machine"]["packages"]["numpy"] == np.__version__
    text = results.read_text()
    assert platform.node() not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text
    assert len(found["rows"]) == 7


def test_the_table_says_what_was_met_missed_refused_and_lacking(results: Path) -> None:
    text = report.markdown(report.read_results(results))
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert "4 x **missed** | 4 to 4 | ≥ 5 x" in lines[0]
    assert "1 s (min 1, IQR 0) a image" in lines[0]
    assert "-3,000 ms" in lines[1]
    assert "4 x |" in lines[2]
    assert "results differ" in lines[3]
    assert "| 1 s |" in lines[4]
    assert "| 0.5 |" in lines[5]
    assert "≤ 0.6" in lines[5]
    assert "not available" in lines[6]
    assert "- `x`: scaled" in text
    assert "Noisy." in text
    assert {line.count("|") for line in lines} == {8}


@pytest.mark.parametrize("alone", [False, True])
def test_curves_have_a_table_of_their_own(tmp_path: Path, alone: bool) -> None:
    point = {
        "megabytes": 2.5,
        "seconds": {"median": 0.004, "minimum": 0.004, "iqr": 0.0, "rounds": []},
    }
    curve = Row(
        "g/x", "work", "no goal", axis="images", exponent=1.04, exponent_interval=(0.98, 1.1), memory_exponent=0.5,
        points=[{"size": 1000, **point}, {"size": 2000, **point}],
    )  # fmt: skip
    rows = [curve] if alone else [Row("a", "b", "not available", why="c"), curve]
    report.write_results(tmp_path / "r.json", rows, 7, "", 1.0)
    text = report.markdown(report.read_results(tmp_path / "r.json"))
    assert (
        "| `g/x` | work | images | 1.04 | 0.98 to 1.10 | 0.50 | 1,000: 4 ms, 2.5 MB | 2,000: 4 ms, 2.5 MB |"
        in text
    )
    assert ("| name | what | measured |" in text) is not alone
    tables = [block for block in text.split("\n\n") if block.startswith("| name")]
    assert len(tables) == (1 if alone else 2)
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


def test_what_is_no_result_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(DataError, match="not results of `cxrbench perf`"):
        report.read_results(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"none\.json"):
        report.read_results(tmp_path / "none.json")


def test_a_table_goes_between_its_marks() -> None:
    document = "a\n<!-- perf:begin -->\nold\n<!-- perf:end -->\nb\n"
    assert report.between(document, "perf", "new\n") == document.replace("old", "new")
    with pytest.raises(DataError, match="perf:begin"):
        report.between("nothing", "perf", "x")


@pytest.mark.parametrize(
    ("name", "make", "option"),
    [("docs/performance.md", report.tables, ""), ("README.md", report.brief, " --brief")],
)
def test_the_documents_tables_are_those_of_the_results(
    name: str, make: Callable[[list[Path]], str], option: str
) -> None:
    results = sorted((ROOT / "benchmarks" / "performance").glob("*.json"))
    document = (ROOT / name).read_text()
    made = report.between(document, "perf", make(results))
    words = " ".join(f"--table {path.name}" for path in results)
    assert made == document, f"cxrbench perf {words}{option} --into {name}"


def test_in_brief_stands_what_has_a_goal(tmp_path: Path) -> None:
    goal = asdict(Goal("ratio", 2, least=True))
    rows = [
        Row("a", "with", "not available", goal=goal, why="c"),
        Row("b", "without", "not available", why="c"),
    ]
    report.write_results(tmp_path / "r.json", rows, 7, "", 1.0)
    [line] = [x for x in report.brief([tmp_path / "r.json"]).splitlines() if "not available" in x]
    assert line == "| with | not available | ≥ 2 x |"


# --- the comparisons in miniature: both sides give the same


def checked(items: Iterator[Item]) -> dict[str, Item]:
    """Each comparison's warm-up and check, without rounds."""
    found: dict[str, Item] = {}
    for item in items:
        found[item.name] = item
        if isinstance(item, Comparison):
            ours = item.ours()
            assert item.equal(ours, ours if item.peer is None else item.peer()) == "", item.name
    return found


def test_batches_and_caches_hold_what_their_peers_compute(tmp_path: Path) -> None:
    found = checked(
        data.comparisons(
            tmp_path,
            films=3,
            side=96,
            size=32,
            rows=70,
            batch=8,
            sizes=(32, 48),
            lengths=(300, 600),
        )
    )
    assert {"data/pillow", "data/opencv", "data/per-sample", "data/take", "cache/1-core"} <= set(
        found
    )
    here = importlib.util.find_spec("torchxrayvision") is not None
    assert isinstance(found["data/torchxrayvision"], Comparison if here else Absent)


def test_a_cache_of_more_images_needs_no_more_memory(tmp_path: Path) -> None:
    few, many = (caches.build_memory(tmp_path / str(n), n) for n in (512, 2048))
    assert many - few < 8, "2,048 images of 64 px are 8 MB themselves"


def test_another_pixel_or_row_is_seen(tmp_path: Path) -> None:
    items = data.comparisons(tmp_path, films=2, side=96, size=32, rows=16, batch=8)
    for item in itertools.islice(items, 5):
        assert isinstance(item, Comparison)
        if item.name == "data/per-sample-float":  # its pixels are those of the one before
            continue
        assert item.peer is not None
        ours, peer = item.ours(), item.peer()
        ours[min(ours)] = ours[min(ours)] ^ 1
        assert "differ" in item.equal(ours, peer), item.name
        assert item.equal({}, peer) != "", item.name


def test_scores_and_replicates_are_scikit_learns(tmp_path: Path) -> None:
    items = statistics.comparisons(tmp_path, images=300, labels=4, count=30, looped=30)
    found = checked(items)
    bootstrap = found["statistics/bootstrap"]
    assert isinstance(bootstrap, Comparison)
    ours = bootstrap.ours()
    assert np.isnan(ours).any(), "some resample has no positive of the rare label"
    assert bootstrap.equal(ours + 1e-11, ours) != ""


def test_drawn_cohorts_have_ties_and_patients_with_several_films() -> None:
    cohort = statistics.draw_cohort(2000, 3)
    assert np.unique(cohort.score[:, 0]).size < 2000
    assert np.unique(cohort.patient).size < 500
    assert cohort.target.any(axis=0).all()


def test_the_trainer_leaves_the_weights_of_a_plain_loop(tmp_path: Path) -> None:
    found = checked(training.comparisons(tmp_path, steps=6, size=16, batch=4, side=64))
    levers = ["channels_last", "bf16", "fused", "cache"]
    assert [n for n in found if n.startswith("ladder/cpu/")] == [f"ladder/cpu/{x}" for x in levers]
    operations = found["training/operations"]
    assert isinstance(operations, Counted)
    assert operations.value() == 981
    assert operations.note.startswith("1,462 with torchvision's blocks")
    overhead = found["training/overhead"]
    assert isinstance(overhead, Comparison)
    ours = overhead.ours()
    name = next(iter(ours))
    assert name in overhead.equal({**ours, name: ours[name] + 1e-6}, ours)


@pytest.mark.slow
def test_what_a_gpu_is_asked_to_do_runs_on_a_cpu_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code without a GPU: small networks, three processes, and no compiler."""
    assert [type(item) for item in gpu.comparisons(tmp_path)] == [
        Absent
    ] or torch.cuda.is_available()
    monkeypatch.setattr(torch, "compile", lambda net, **how: net)
    found = checked(
        gpu.comparisons(
            tmp_path, device="cpu", side=32, large=48, batch=4, small=2, rows=32, steps=2, stages=2,
            network="resnet10t", second="resnet10t",
        )
    )  # fmt: skip
    names = ["ladder/channels_last", "ladder/bf16", "ladder/fused", "ladder/resident", "ladder/compiled", "compile",
             "timm", "loader/resnet10t-32", "resident/resnet10t-32", "loader/resnet10t-48", "resident/resnet10t-48",
             "memory", "aecnn-encoder", "trainer", "waits", "three-stages", "graphs", "checkpoint"]  # fmt: skip
    assert list(found) == [f"gpu/{name}" for name in names]
    goals = {
        n: i.goal.bound for n, i in found.items() if isinstance(i, Comparison | Counted) and i.goal
    }
    assert goals == {
        "gpu/ladder/bf16": 2, "gpu/compile": 1.3, "gpu/timm": 0.97, "gpu/loader/resnet10t-32": 0.97,
        "gpu/resident/resnet10t-32": 0.97, "gpu/loader/resnet10t-48": 0.97, "gpu/resident/resnet10t-48": 0.97,
        "gpu/memory": 0.55, "gpu/aecnn-encoder": 20, "gpu/trainer": 0.97, "gpu/waits": 0, "gpu/three-stages": 1.4, "gpu/graphs": 1.8, "gpu/checkpoint": 1.2,
    }  # fmt: skip


def test_waits_are_told_from_launches() -> None:
    trace = ["cudaLaunchKernel", "cudaStreamSynchronize", "cudaMemcpyAsync", "aten::conv2d"]
    assert gpu_trainer.waits_in(trace) == 1


def test_a_roofline_s_share_is_of_what_was_measured() -> None:
    share = gpu._share_of_roofline("x", "y", lambda: [1.0], 8220, 10)  # type: ignore[arg-type]
    assert share.value() > 0 and share.goal is None


def test_planning_and_status_count_everything(tmp_path: Path) -> None:
    found = checked(
        sweep.comparisons(tmp_path, spec_file=tmp_path / "none.yaml", runs=20, records=30)
    )
    assert isinstance(found["sweep/shared"], Absent)
    time, memory = found["sweep/plan-time"], found["sweep/plan-memory"]
    assert isinstance(time, Counted)
    assert isinstance(memory, Counted)
    assert time.value() > 0
    assert memory.value() >= 0
    cpu = found["sweep/plan-cpu"]
    assert isinstance(cpu, Counted)
    assert 0 < cpu.value() <= time.value() + 0.1
    assert len(sweep.many_runs(20)["seeds"]) * 10 == 20


def test_shared_trainings_are_counted_on_miniatures(tmp_path: Path) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(
        "preset: quick\nmethods: [densenet121, aecnn]\n"
        "datasets: [{name: kermany, split: cv5, folds: [0, 1], params: {task: pneumonia}}]\n"
    )
    item = next(sweep.comparisons(tmp_path, spec_file=spec, runs=10, records=1))
    assert isinstance(item, Counted)
    # A fold: densenet121's training is the first of aecnn's three.
    assert item.value() == 6 / 8
    assert "6 of 8" in item.note


def test_every_growing_work_can_be_done(tmp_path: Path) -> None:
    curves = list(growth.comparisons(tmp_path, scale=10))
    assert {curve.name for curve in curves if isinstance(curve, Curve)} == {c.name for c in curves}
    for curve in curves:
        assert isinstance(curve, Curve)
        for size in sorted(set(curve.sizes))[:2]:
            curve.work(size)()


def test_commands_answer(tmp_path: Path) -> None:
    first = next(commands.comparisons(tmp_path, records=2))
    assert isinstance(first, Comparison)
    assert first.peer is not None
    assert first.ours() == first.peer() == 0
    assert first.equal(1, 0) != ""


# --- the command


def test_the_command_measures_a_topic_and_shows_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from cxrbench import cli
    from cxrbench.cli import perf

    monkeypatch.setattr(perf, "THREADS", ())
    bench = Bench()

    def items(topic: str, folder: Path, spec_file: Path | None) -> Iterator[Item]:
        assert folder.is_dir()
        yield replace(compare(bench), name=topic)

    monkeypatch.setattr(suite, "items", items)
    words = ["perf", "--only", "data", "--rounds", "2", "--out", tmp_path, "--note", "Trial."]
    monkeypatch.setattr(sys, "argv", ["cxrbench", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    (path,) = tmp_path.glob("*.json")
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["data"]
    assert "Trial." in capsys.readouterr().out
    with pytest.raises(UsageError, match="--only nothing"):
        suite.measure(["nothing"], Harness(), spec_file=None, tell=lambda row: None)
