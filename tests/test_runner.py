"""Sweeps by real workers: sharing, devices, failures, races, damaged data."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from conftest import Cli
from wandb_files import config, of_kind, read_back, summary, values

from cxrbench.core.errors import ConfigError, CxrbenchError
from cxrbench.core.record import read_records
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, Execution
from cxrbench.core.store import Store
from cxrbench.data import pixels
from cxrbench.data.kermany import Kermany
from cxrbench.data.table import Table
from cxrbench.leaderboard.collect import collect
from cxrbench.runner.bench import Result, plan_bench, run_bench
from cxrbench.runner.chains import write_job
from cxrbench.runner.context import Told
from cxrbench.runner.job import Job
from cxrbench.runner.plan import make_plan
from cxrbench.runner.unfold import PlannedRun

PLUGINS = Path(__file__).parent / "plugins"
SMALL, STRIPED = PLUGINS / "small.py", PLUGINS / "striped.py"


def bench(store: Store, plugins: list[Path], execution: Execution, **spec: object) -> Result:
    registry = Registry(plugins)
    made = BenchSpec.parse({"name": "test", "preset": "quick", **spec}, where="test")
    plan = plan_bench(made, registry, store, "cpu")
    return run_bench(plan, registry, store, execution, "missing")


def predictions(store: Store, result: Result) -> list[pd.DataFrame]:
    stages = [s for s in result.plan.graph.values() if s.kind == "predict" and store.has(s.key)]
    return [pd.read_parquet(store.artefact(s.key) / "predictions.parquet") for s in stages]


PHANTOM = [{"name": "phantom", "split": "holdout", "params": {"images": 150}}]


def test_two_processes_train_and_predict_each_image_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    result = bench(
        store, [SMALL], Execution(devices=2, threads=1), methods=["small"], datasets=PHANTOM,
        recipe={"epochs": 2, "precision": "bf16-mixed"},
    )  # fmt: skip
    assert result.complete, result.outcome.failed
    (table,) = predictions(store, result)
    facts = result.plan.bindings.popitem()[1].facts["counts"]
    parts = table["part"].value_counts().to_dict()
    assert table["image_id"].is_unique
    assert parts == {p: facts[p]["images"] for p in ("val", "test")}
    record = read_records(store.root / "records")[0][0]
    fit = next(stage for stage in record.stages if stage.kind == "fit")
    assert fit.facts["steps"] == 2 * (facts["train"]["images"] // 8)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)
@pytest.mark.parametrize("how", [True, "reduce-overhead"])
def test_a_compiled_training_predicts_as_an_eager_one(tmp_path: Path, how: bool | str) -> None:
    tables = []
    for compiled in (False, how):
        store = Store(tmp_path / str(compiled))
        result = bench(
            store, [SMALL], Execution(threads=1), methods=["small"], datasets=PHANTOM,
            recipe={"epochs": 2, "compile": compiled},
        )  # fmt: skip
        assert result.complete, result.outcome.failed
        (table,) = predictions(store, result)
        tables.append(table)
    columns = [name for name in tables[0] if name.startswith("probability:")]
    eager, compiled_ = (table[columns].to_numpy() for table in tables)
    assert eager.std() > 0
    np.testing.assert_allclose(compiled_, eager, atol=1e-3)


def test_compute_and_transform_give_a_view_like_raw_data(tmp_path: Path) -> None:
    store = Store(tmp_path)
    result = bench(
        store, [SMALL], Execution(threads=1), methods=["small-difference"], datasets=PHANTOM,
        recipe={"epochs": 2, "ema_decay": 0.9},
    )  # fmt: skip
    assert result.complete, result.outcome.failed
    kinds = [stage.kind for stage in result.plan.graph.values()]
    assert kinds == ["compute", "transform", "fit", "predict", "score", "compute"]
    facts = result.plan.bindings.popitem()[1].facts["counts"]
    mean = next(s for s in result.plan.graph.values() if s.kind == "compute")
    assert mean.part == "train"
    assert store.meta(mean.key)["facts"]["images"] == facts["train"]["images"]


def test_a_budget_of_training_images_is_another_training_and_the_same_test(tmp_path: Path) -> None:
    store = Store(tmp_path)
    [home] = PHANTOM
    result = bench(
        store, [SMALL], Execution(threads=1), methods=["small"], recipe={"epochs": 1},
        datasets=[home, {**home, "train_images": 24}, {**home, "train_images": 10_000}],
    )  # fmt: skip
    whole, few = read_records(store.root / "records")[0]
    if whole.train_images:
        whole, few = few, whole
    assert (whole.train_images, few.train_images) == (None, 24)
    assert [s.facts["steps"] for s in few.stages if s.kind == "fit"] == [24 // 8]
    assert whole.data_facts["counts"]["train"]["images"] // 8 in [
        s.facts["steps"] for s in whole.stages if s.kind == "fit"
    ]
    a, b = (table["image_id"].tolist() for table in predictions(store, result)[:2])
    assert a == b
    [failure] = result.outcome.failed.values()
    assert "train_images 10000: the training part has" in failure["error"]


def test_views_analyses_and_other_data_to_fit_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    films = Striped.fake(tmp_path / "films")
    result = bench(
        store, [SMALL, STRIPED], Execution(threads=1), recipe={"epochs": 1}, datasets=PHANTOM,
        methods=["small-difference", {"name": "small", "views": ["small-difference"]}, "small-pretrained"],
        externals=[{"name": "striped", "path": str(films)}],
    )  # fmt: skip
    assert result.complete, result.outcome.failed
    records, _ = read_records(store.root / "records")
    own, viewed, pretrained = sorted(records, key=lambda r: (not r.analyses, not r.views))
    assert own.method == "small-difference" and set(own.analyses) == {"tested films"}
    counted = own.analyses["tested films"].facts["images"]
    assert counted == own.data_facts["counts"]["test"]["images"], (
        "an analysis may read the test part"
    )
    assert [view["name"] for view in viewed.views] == ["small-difference"]
    rewritten = [{s.key for s in r.stages if s.kind == "transform"} for r in (own, viewed)]
    assert rewritten[0] == rewritten[1] != set(), "a view is built once for all who read it"
    names = {row.name for row in collect(records)[0].rows}
    assert any(name.startswith("small on small-difference (") for name in names)
    assert [s.kind for s in pretrained.stages] == ["fit", "fit", "predict", "score"]
    fits = list(result.plan.stages_of(_run_of(result, "small-pretrained")).values())
    assert [s.data.external for s in fits if s.kind == "fit"] == [True, False]


def _run_of(result: Result, method: str) -> PlannedRun:
    return next(run for run in result.plan.runs if run.method == method)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"methods": ["small-pretrained"]}, "--external striped=DIR"),
        ({"methods": ["small"], "views": ["small"]}, "small rewrites no images"),
        ({"methods": ["small"], "views": ["small-diference"]}, "small-difference"),
    ],
)
def test_what_a_plan_lacks_is_said(spec: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(CxrbenchError, match=says):
        bench(Store(tmp_path), [SMALL], Execution(), datasets=PHANTOM, **spec)


def test_a_failure_blocks_only_what_needs_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    result = bench(
        store, [SMALL, STRIPED], Execution(threads=1, slots=2),
        recipe={"epochs": 2, "schedule": "plateau", "warmup_epochs": 0, "select": "val_auc", "accumulate": 2},
        methods=[{"name": "small-broken", "preset": "paper"}, "small"],
        datasets=[{"name": "striped", "path": str(Striped.fake(tmp_path / "films"))}],
    )  # fmt: skip
    (failure,) = result.outcome.failed.values()
    assert failure["type"] == "NonFiniteLossError" and "epoch 0, step" in failure["error"]
    assert Path(failure["log"]).is_file()
    records, _ = read_records(store.root / "records")
    assert [record.method for record in records] == ["small"]
    assert records[0].scores["macro"]["auc"] > 0.9, "stripes are easy to see"


class Striped:
    @staticmethod
    def fake(root: Path) -> Path:
        root.mkdir()
        loaded = Registry([STRIPED]).load("datasets", "striped")
        return loaded.fake(root, images=160)


def test_a_remembered_plan_is_the_plan(tmp_path: Path) -> None:
    spec = BenchSpec.parse(
        {"preset": "quick", "methods": ["densenet121", "aecnn"], "seeds": [0, 1], "datasets": [
            {"name": "phantom", "split": "cv5", "folds": [0, 2], "params": {"images": 60}}]},
        where="test",
    )  # fmt: skip
    made, remembered = (make_plan(spec, Registry(), Store(tmp_path)) for _ in range(2))
    assert len(made.runs) == 8
    assert {(run.fold, run.seed) for run in made.runs} == {(0, 0), (0, 1), (2, 0), (2, 1)}
    assert all(made.graph[run.final].data.fold == run.fold for run in made.runs)
    texts = [json.dumps(plan.to_json(), sort_keys=True) for plan in (remembered, made)]
    assert texts[0] == texts[1]
    assert remembered.demand() == made.demand() == (12, 16)
    assert [tuple(vars(each).values()) for each in remembered.trainings()] == [
        ("aecnn", "phantom", 4, 4), ("densenet121", "phantom", 4, 8), ("patch-autoencoder", "phantom", 4, 4)
    ]  # fmt: skip


def test_one_decode_serves_every_size_of_a_plan(tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    spec = BenchSpec.parse(
        {"preset": "quick", "methods": ["densenet121", {"name": "densenet121", "params": {"recipe": {"load": 80}}}],
         "datasets": [{"name": "kermany", "path": str(Kermany.fake(films)), "split": "cv5", "folds": [0],
                       "params": {"task": "pneumonia"}}]},
        where="test",
    )  # fmt: skip
    store, registry = Store(tmp_path / "store"), Registry()
    plan = make_plan(spec, registry, store)
    (sides,) = plan.sides.values()
    assert len(sides) > 1
    assert make_plan(spec, registry, store).sides == plan.sides
    chain = [next(stage for stage in plan.graph.values() if stage.kind == "fit")]
    job = Job(write_job(tmp_path / "job.json", plan, store, registry, Execution(), chain))
    assert job.sides == plan.sides
    context, view = job.context(), chain[0].data
    with mock.patch("cxrbench.data.base.decode", wraps=pixels.decode) as decoded:
        material = context.material(view, sides[0])
        assert decoded.call_count == len(material.pixels)
        again = context.material(view, sides[-1])
    assert decoded.call_count == len(material.pixels), "the other size was there already"
    index = material.opened.index
    np.testing.assert_array_equal(again.pixels[3], Kermany.read_image(index, 3, sides[-1]))


def test_a_reader_with_rules_of_its_own_for_a_size_is_asked_for_each(tmp_path: Path) -> None:
    class Odd(Kermany):
        @classmethod
        def read_image(cls, index: Any, row: int, size: int) -> Any:
            return np.full((size, size), size, np.uint8)

    assert Kermany.one_film() and not Odd.one_film()
    images = Odd.read_images(None, 0, [20, 30])
    assert [(image.shape, image[0, 0]) for image in images] == [((20, 20), 20), ((30, 30), 30)]


def test_progress_of_decoding_is_told_with_its_rate(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 1.0, 2.0, 11.0, 12.0])
    told = Told(clock=lambda: next(now), every=5.0)
    for done in (100, 200, 600, 1000):
        told(done, 1000)
    assert capsys.readouterr().out.splitlines() == [
        "decoding images 100/1000",
        "decoding images 600/1000, 50 a second, 8 s left",
        "decoding images 1000/1000, 82 a second",
    ]


def test_leaking_plan_is_refused_before_anything_runs(
    cli: Cli, store: Store, tmp_path: Path
) -> None:
    spec = tmp_path / "leak.yaml"
    spec.write_text(
        "name: leak\npreset: tuned\nmethods: [small-leak]\n"
        "datasets: [{name: phantom, split: cv5, folds: [0], params: {images: 150}}]\n"
    )
    code, _, said = cli("bench", spec, "--plugin", SMALL)
    assert code == 78 and "test patients of fold 0" in said
    assert not list((store.root / "artefacts").glob("*"))
    code, out, _ = cli("plan", spec, "--plugin", SMALL)
    assert code == 1 and "LEAK" in out


def test_two_sweeps_on_one_store_and_a_third_that_has_nothing_to_do(
    store: Store, tmp_path: Path
) -> None:
    spec = tmp_path / "twice.yaml"
    spec.write_text(
        "name: twice\npreset: quick\nmethods: [small]\nrecipe: {epochs: 1}\n"
        "datasets: [{name: phantom, split: cv5, folds: [0, 1], params: {images: 150}}]\n"
    )
    home = store.root
    words = ["bench", str(spec), "--plugin", str(SMALL), "--gpus", "0"]
    command = [sys.executable, "-m", "cxrbench", *words]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors.decode()
    records, excluded = read_records(home / "records")
    assert len(records) == 2 and not excluded
    times = {p: p.stat().st_mtime_ns for p in home.glob("artefacts/*/stage.json")}
    # Nothing is left to do, so nothing heavy is imported.
    code = (
        "import sys; sys.argv = sys.argv[1:]; from cxrbench.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "print([m for m in ('torch', 'lightning', 'pandas') if m in sys.modules], file=sys.stderr)"
    )
    third = subprocess.run(
        [sys.executable, "-c", code, "cxrbench", *words],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert third.stderr.splitlines()[-1] == "[]", third.stderr
    assert "small (quick" in third.stdout
    assert times == {p: p.stat().st_mtime_ns for p in home.glob("artefacts/*/stage.json")}


def test_unreadable_image_stops_the_run_unless_it_may_be_left_out(
    cli: Cli, store: Store, tmp_path: Path
) -> None:
    root = tmp_path / "films"
    root.mkdir()
    Table.fake(root, images=60, size=48)
    film = sorted(root.rglob("*.png"))[7]
    film.write_bytes(film.read_bytes()[:150])
    words = ["run", "--method", "small", "--preset", "quick", "--plugin", SMALL, "--gpus", "0",
             "--dataset", "table", "--data", root, "--set", "recipe.epochs=1",
             "--set", "recipe.test_view=ten_crop", "--set", "recipe.validation_view=whole",
             "--wandb", "offline"]  # fmt: skip
    code, _, said = cli(*words)
    assert code == 65, said
    assert film.name in said and "--skip-unreadable" in said
    code, out, said = cli(*words, "--skip-unreadable", "--json")
    assert code == 0, said
    (record,) = json.loads(out)
    assert any("1 unreadable images left out" in text for text in record["warnings"])
    # Each stage is a run of its own that can be synced later, and so is the record.
    stages = {stage["digest"][:16]: stage for stage in record["stages"]}
    logged = (store.root / "wandb").glob("offline-run-*")
    runs = {path.name.split("-", 3)[-1]: path for path in logged}
    [of_record] = set(runs) - set(stages)
    assert set(stages) <= set(runs) and of_record.startswith("record-")
    assert "wandb sync" in said
    for digest, stage in stages.items():
        check_logged_stage(store.root, digest, stage)


def check_logged_stage(home: Path, digest: str, stage: dict[str, Any]) -> None:
    """Its group, tags, config and summary; of a training the curves, too."""
    back = read_back(home, digest)
    [run] = of_kind(back, "run")
    assert (run.run_group, run.job_type) == ("run-small", stage["kind"])
    assert {stage["name"], "table", "holdout", "fold-0", "seed-0"} <= set(run.tags)
    assert config(back)["stage"] == stage["key"]
    assert not run.host and not any(r.program for r in of_kind(back, "environment"))
    shown = summary(back)
    if stage["kind"] == "fit":
        assert shown["best_epoch"] == stage["facts"]["best_epoch"] and shown["parameters"] > 0
        curves = values(back, "history", lambda record: record.item)
        assert {"train_loss", "val_auc", "trainer/global_step"} <= set(curves)
    if stage["kind"] == "score":
        assert "macro/auc" in shown


@pytest.mark.parametrize("typo", ["epoch: 3", "optimiser: adam"])
def test_yaml_typo_names_key_and_nearest(cli: Cli, tmp_path: Path, typo: str) -> None:
    spec = tmp_path / "typo.yaml"
    spec.write_text(
        f"name: typo\nmethods: [small]\npreset: quick\nrecipe: {{{typo}}}\n"
        "datasets: [{name: phantom, params: {images: 150}}]\n"
    )
    code, _, said = cli("plan", spec, "--plugin", SMALL)
    assert code == 78
    assert {"epoch: 3": "epochs", "optimiser: adam": "optimizer"}[typo] in said


def test_interrupted_sweep_saves_and_goes_on(cli: Cli, store: Store, tmp_path: Path) -> None:
    spec = tmp_path / "long.yaml"
    spec.write_text(
        "name: long\npreset: quick\nmethods: [small]\nrecipe: {epochs: 40}\n"
        "datasets: [{name: phantom, split: holdout, params: {images: 150}}]\n"
    )
    home = store.root
    words = ["bench", spec, "--plugin", SMALL, "--gpus", "0"]
    command = [sys.executable, "-m", "cxrbench", *map(str, words)]
    sweep = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(home.glob("partial/fit-*/progress.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    sweep.send_signal(signal.SIGINT)
    _, errors = sweep.communicate(timeout=200)
    assert sweep.returncode == 130, errors
    assert "the same command goes on" in errors and "FAILED" not in errors
    assert list(home.glob("partial/fit-*/states/state.json"))
    code, _, said = cli(*words)
    assert code == 0, said
    log = next(home.glob("jobs/*.log")).read_text()
    assert "resuming from state-" in log
    (record,) = read_records(home / "records")[0]
    assert record.stages[0].facts["epochs"] == 40


def test_a_plugin_that_does_not_say_its_size_is_named(tmp_path: Path) -> None:
    before, method, after = (PLUGINS / "braked.py").read_text().rpartition("def image_size(self):")
    assert method
    plugin = tmp_path / "sizeless.py"
    plugin.write_text(f"{before}def side(self):{after}")
    with pytest.raises(ConfigError, match=r"sizeless\.py:Unmade: needs a method image_size"):
        bench(
            Store(tmp_path / "store"), [plugin], Execution(), methods=["braked-unmade"], datasets=PHANTOM
        )  # fmt: skip
