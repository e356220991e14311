"""The benchmarks of the papers: they plan without a leak, and every number stands beside its own row alone."""

from pathlib import Path
from typing import Any, get_args

import pytest

from cxrbench.core.errors import ConfigError
from cxrbench.core.registry import Registry
from cxrbench.core.reported import MEANS, SHARES, PaperMetric
from cxrbench.core.spec import BenchSpec, ExternalEntry
from cxrbench.core.store import Store
from cxrbench.runner.bench import narrow, read_spec
from cxrbench.runner.plan import Plan, make_plan
from cxrbench.runner.unfold import PlannedRun

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILES = sorted(path for path in BENCHMARKS.rglob("*.yaml") if "results" not in path.parts)
SETTINGS: dict[str, dict[str, Any]] = {
    "kermany": {"images": 60, "size": 32},
    "chexpert": {"images": 90, "size": 32},
    "chestxray14": {"images": 60, "size": 32},
    "lung_masks": {"images": 16, "size": 32},
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A miniature of every data set."""
    registry = Registry()
    return {
        name: registry.load("datasets", name).fake(tmp_path_factory.mktemp(name), **given)
        for name, given in SETTINGS.items()
    }


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    """What has been planned, by file."""
    return {}


@pytest.fixture
def planned(
    roots: dict[str, Path], plans: dict[str, Plan], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Plans a file of benchmarks/ on the miniatures; one fold, the first seed."""

    def plan(name: str) -> Plan:
        if name not in plans:
            spec = read_spec(BENCHMARKS / name)
            plans[name] = on_miniatures(spec, roots, Store(tmp_path_factory.mktemp("store")))
        return plans[name]

    return plan


def on_miniatures(spec: BenchSpec, roots: dict[str, Path], store: Store) -> Plan:
    update = {
        "datasets": [
            entry.model_copy(update={"path": roots.get(entry.name), "folds": [0]})
            for entry in spec.datasets
        ],
        "externals": [
            entry.model_copy(update={"path": roots[entry.name]}) for entry in spec.externals
        ],
        "seeds": spec.seeds[:1],
    }
    return make_plan(spec.model_copy(update=update), Registry(), store)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_benchmark_plans_without_a_leak(path: Path, planned: Any) -> None:
    plan = planned(str(path.relative_to(BENCHMARKS)))
    assert plan.runs
    assert plan.leaks == []
    assert len({run.final for run in plan.runs}) == len(plan.runs), "a row stands twice"


# --- numbers beside rows


def macro(run: PlannedRun) -> dict[str, float]:
    return run.reported["macro"] if run.reported else {}


def test_every_cell_of_deblur_has_its_own_numbers(planned: Any) -> None:
    plan = planned("papers/deblur.yaml")
    of_the_table = [r for r in plan.runs if not {"sigma", "restore"} & set(r.changed)]
    tasks: dict[str, dict[tuple[str, str], dict[str, float]]] = {"pneumonia": {}, "etiology": {}}
    for run in of_the_table:
        task = plan.graph[run.final].data.params["task"]
        tasks[task][run.params["train_on"], run.params["test_on"]] = macro(run)
    assert [len(cells) for cells in tasks.values()] == [9, 9]
    expected = {
        ("sharp", "sharp"): {"accuracy": 0.8750, "auc": 0.9544},
        ("sharp", "blurred"): {"accuracy": 0.74},
        ("sharp", "restored"): {"accuracy": 0.8670},
        ("blurred", "blurred"): {"accuracy": 0.8702, "auc": 0.9467},
    }
    assert {key: value for key, value in tasks["pneumonia"].items() if value} == expected
    etiology = {
        ("sharp", "sharp"): {"accuracy": 0.9120},
        ("blurred", "blurred"): {"accuracy": 0.8974},
    }
    assert {key: value for key, value in tasks["etiology"].items() if value} == etiology
    others = [run for run in plan.runs if run not in of_the_table]
    assert len(others) == 6
    assert not any(run.reported for run in others), "another sigma or filter"


def test_the_raw_row_of_stn_align_has_its_own_paper_s_number(planned: Any) -> None:
    raw, aligned = planned("papers/stn-align.yaml").runs
    assert (macro(raw), macro(aligned)) == ({"auc": 0.8110}, {"auc": 0.8153})
    assert raw.reported is not None
    labels = raw.reported["labels"].values()
    assert len(labels) == 14
    assert sum(labels) / 14 == pytest.approx(0.8111, abs=5e-5)  # the printed mean is rounded down


def test_rows_that_no_paper_has_are_without_a_number(planned: Any) -> None:
    for name in ("aecnn", "fmix"):
        for run in planned(f"papers/{name}.yaml").runs:
            assert bool(run.reported) == (not run.changed), run.changed
    for name in ("papers/cyclegan-few.yaml", "views.yaml"):
        assert not any(run.reported for run in planned(name).runs)
    beyond = planned("papers/deblur-beyond.yaml").runs
    assert [run.changed for run in beyond if run.reported] == [{}]


def test_the_shares_of_the_attention_paper_stand_beside_its_rows(planned: Any) -> None:
    runs = planned("papers/attention-stn.yaml").runs
    tp = {
        (run.method, run.params["pretrained"], "start" in run.changed): macro(run).get("tp_share")
        for run in runs
    }
    for pretrained in ("none", "imagenet"):
        assert tp["vgg16", pretrained, False] == 0.7606
        assert tp["thorax-crop", pretrained, False] == 0.7605
        assert tp["attention-stn", pretrained, False] == 0.7608
        assert tp["attention-stn", pretrained, True] is None
    assert tp["stern", "none", False] is None
    assert len(runs) == len(tp) == 9


def plan_of(roots: dict[str, Path], store: Store, **spec: Any) -> list[PlannedRun]:
    return on_miniatures(BenchSpec.parse(spec, where="spec"), roots, store).runs


@pytest.mark.parametrize("recipe", [{}, {"epochs": 2, "batch_size": 8}])
@pytest.mark.parametrize("lungs", [[], ["lung_masks"]])
@pytest.mark.parametrize("name", ["quick.yaml", "main.yaml"])
def test_a_sweep_fits_one_thorax_detector(
    roots: dict[str, Path], store: Store, name: str, lungs: list[str], recipe: dict[str, Any]
) -> None:
    """For the crops of its rows, and for those that windows are shown beside, whatever recipe it lays on all."""
    spec = read_spec(BENCHMARKS / name)
    methods = ["attention-stn", "stern", "thorax-crop"]
    change: dict[str, Any] = {"methods": methods, "recipe": {**spec.recipe, **recipe}}
    change["externals"] = spec.externals or [ExternalEntry(name=each) for each in lungs]
    plan = on_miniatures(spec.model_copy(update=change), roots, store)
    assert [s.name for s in plan.graph.values()].count("thorax-detector") == 1
    shown = [s for s in plan.graph.values() if s.name == "windows"]
    assert all(("crops" in s.inputs) == bool(change["externals"]) for s in shown)


def test_a_method_s_numbers_hold_for_its_task_alone(roots: dict[str, Path], store: Store) -> None:
    kermany = [{"name": "kermany", "params": {"task": task}} for task in ("pneumonia", "etiology")]
    pneumonia, etiology = plan_of(roots, store, methods=["deblur"], datasets=kermany)
    assert macro(pneumonia) == {"accuracy": 0.8670}
    assert etiology.reported is None
    tasks: list[dict[str, Any]] = [
        {"task": "abnormal"}, {"task": "abnormal", "view": "ap"}, {"task": "findings"},
        {"task": "abnormal", "policy": "u-zeros"},
    ]  # fmt: skip
    chexpert = [{"name": "chexpert", "split": "cv5", "params": task} for task in tasks]
    runs = plan_of(roots, store, methods=["vgg16", "attention-stn"], datasets=chexpert, seeds=[0])
    found = [macro(run).get("auc") for run in runs]
    assert found == [0.8321, None, None, None, 0.8422, None, None, None]


def test_a_row_s_own_numbers_replace_the_method_s(roots: dict[str, Path], store: Store) -> None:
    row = {"dataset": "chestxray14", "split": "theirs", "source": "x", "macro": {"pr_auc": 0.25}}
    nih = {"name": "chestxray14", "split": "official"}
    own, none, plain, few = plan_of(
        roots, store, datasets=[nih],
        methods=[
            {"name": "densenet121", "params": {"recipe": {"epochs": 2}}, "reported": [row]},
            {"name": "densenet121", "params": {"recipe": {"epochs": 3}}, "reported": []},
            "densenet121",
            {"name": "fmix"},
        ],
    )  # fmt: skip
    assert own.reported == {
        "split": "theirs", "source": "x", "params": {}, "macro": {"pr_auc": 0.25}, "labels": {},
    }  # fmt: skip
    assert none.reported is None
    assert (macro(plain), macro(few)) == ({"auc": 0.8216}, {"auc": 0.8131})
    cut = plan_of(roots, store, methods=["densenet121"], datasets=[{**nih, "train_images": 20}])
    assert cut[0].reported is None, "trained on a part of the paper's films"
    viewed = {"name": "densenet121", "views": ["stn-align"]}
    aligned, named = plan_of(roots, store, methods=[viewed, {**viewed, "reported": [row]}], datasets=[nih])  # fmt: skip
    assert aligned.reported is None, "on other images than the paper's"
    assert macro(named) == {"pr_auc": 0.25}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"macro": {"acuracy": 0.9}}, r"^spec: methods.0.MethodEntry.reported.0.macro.acuracy: .*'accuracy'"),
        ({"macro": {"accuracy": 91.2}}, r"reported.0.macro.accuracy: .*less than or equal to 1"),
        ({"macro": {"accuracy": "0.9"}}, r"reported.0.macro.accuracy: .*valid number"),
        ({"macro": {}}, r"reported.0.macro: "),
        ({"source": ""}, r"reported.0.source: "),
        ({"tasks": 1}, r"^spec: unknown key 'methods.0.MethodEntry.reported.0.tasks'"),
        ({"dataset": "kermani"}, r"deblur: reported: dataset 'kermani' is not in this benchmark; it has kermany"),
        ({"params": {"tasc": "etiology"}}, r"reported: params: kermany has no option 'tasc'; did you mean 'task'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_number_names_its_place(
    roots: dict[str, Path], store: Store, change: dict[str, Any], says: str
) -> None:
    row = {"dataset": "kermany", "split": "official", "source": "x", "macro": {"accuracy": 0.9}}
    method = {"name": "deblur", "reported": [{**row, **change}]}
    with pytest.raises(ConfigError, match=says):
        plan_of(roots, store, methods=[method], datasets=[{"name": "kermany"}])


def test_every_metric_of_a_paper_has_a_title() -> None:
    assert set(get_args(PaperMetric)) == {*MEANS, *SHARES}


def test_only_keeps_every_row_of_a_method() -> None:
    spec = narrow(read_spec(BENCHMARKS / "papers/deblur.yaml"), Registry(), ["deblur"])
    assert len(spec.methods) == 12


# --- the rows of single files


def test_few_films_are_with_and_without_generated_ones(planned: Any) -> None:
    runs = planned("papers/cyclegan-few.yaml").runs
    asked = {(run.method, run.train_images) for run in runs}
    films = (50, 100, 250, 500, None)
    assert asked == {(m, n) for m in ("densenet121", "cyclegan-augmented") for n in films}
    plan = planned("papers/cyclegan-few.yaml")
    for run in runs:
        fits = [s for s in plan.stages_of(run).values() if s.kind == "fit"]
        assert {s.data.train_images for s in fits} == {run.train_images}, "generators see no more"


def test_chains_of_two_views_share_their_stages_and_do_not_leak(planned: Any) -> None:
    plan = planned("views.yaml")
    assert plan.leaks == []
    rows = {(run.method, tuple(view["name"] for view in run.views)): run for run in plan.runs}
    two = ("thorax-crop", "deblur")
    assert set(rows) == {
        ("densenet121", ()), ("vgg16", ()), ("aecnn", ()), ("aecnn", ("stn-align",)), ("vgg16", two),
        *(("densenet121", views) for views in [("stn-align",), ("thorax-crop",), ("deblur",), two]),
    }  # fmt: skip

    def built(method: str, *views: str, kind: str) -> dict[str, Any]:
        stages = plan.stages_of(rows[method, views]).values()
        return {stage.digest: stage for stage in stages if stage.kind == kind}

    chain = built("vgg16", *two, kind="transform")
    assert [stage.name for stage in chain.values()] == ["crop-thorax", "focal-blur", "restore"]
    assert set(chain) == set(built("densenet121", *two, kind="transform"))
    alone = built("densenet121", "thorax-crop", kind="transform")
    assert set(alone) < set(chain), "the first link is the view by itself"
    assert not set(chain) & set(built("densenet121", "deblur", kind="transform"))
    [unet] = [s for s in built("vgg16", *two, kind="fit").values() if s.name == "deblur-unet"]
    assert unet.data.images is not None and unet.data.images.digest in alone, (
        "the U-Net learns on cropped films"
    )
    shared = [built(m, "stn-align", kind="transform") for m in ("aecnn", "densenet121")]
    assert shared[0].keys() == shared[1].keys() != set()


def test_what_goes_beyond_the_report_on_blur(planned: Any) -> None:
    runs = planned("papers/deblur-beyond.yaml").runs
    assert all(run.params["unet"]["residual"] for run in runs)
    restored = [run.params for run in runs if run.params["test_on"] == "restored"]
    assert sum(p["noise"] > 0 and p["photons"] is not None for p in restored) == 1
    assert [p["law"] for p in restored if p["growth"] > 1] == ["radius", "down"]
    assert sum(p["unet"]["blind"] is not None for p in restored) == 1
