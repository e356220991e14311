"""What methods promise on drawn films, whose lungs and findings are known: trained here, with seeds of their own."""

from pathlib import Path
from typing import Any

import pytest
from test_resume import end, start

from cxrbench.core.gallery import read_gallery
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, Execution
from cxrbench.core.store import Store, read_json
from cxrbench.nn.spatial_transformer import PAPER_START
from cxrbench.runner.bench import plan_bench
from cxrbench.runner.chains import write_job

pytestmark = pytest.mark.slow
# `tuned` itself asks for VGG16 and ImageNet's weights: its window, its schedule, a network for one core.
SMALL = {"backbone": "resnet10t", "pretrained": "none", "loc_size": 96}
MOVED = Path(__file__).parent / "plugins" / "moved_phantom.py"
SMALL_RECIPE = {"size": 64, "load": 64, "epochs": 8, "batch_size": 32}


def measured(
    home: Path, method: str, analysis: str, *, seed: int, films: str = "phantom", **entry: Any
) -> tuple[dict[str, Any], Path]:
    """The facts and the folder of an analysis of 300 drawn films; what it does not need is not trained."""
    store, registry = Store(home), Registry([MOVED])
    data = {"name": films, "split": "holdout", "params": {"images": 300, "seed": seed}}
    asked = {
        "preset": "quick", "methods": [{"name": method, **entry}], "datasets": [data], "seeds": [seed],
    }  # fmt: skip
    plan = plan_bench(BenchSpec.parse(asked, where="test"), registry, store, "cpu")
    stage = plan.graph[plan.runs[0].analyses[analysis]]
    job, chain = store.folder("jobs") / "job.json", list(stage.ancestry().values())
    write_job(job, plan, store, registry, Execution(threads=1), chain)
    assert end(start(job), 1800) == 0, job.with_suffix(".log").read_text()[-2000:]
    folder = store.artefact(stage.key)
    facts = read_json(folder / "stage.json")["facts"]
    assert isinstance(facts, dict)
    return facts, folder


def test_the_paper_s_window_cuts_the_apices(tmp_path: Path) -> None:
    """It starts at the central tenth of the rows, which a short training hardly leaves, and the report says so."""
    params = {
        "start": PAPER_START, "bounded": False, "window_rate": 1.0, "recovery_weight": 0.0,
        "step_weight": 0.0, "recipe": {"epochs": 6},
    }  # fmt: skip
    entry = {"params": params}
    facts, folder = measured(tmp_path, "attention-stn", "windows", seed=31, **entry)
    lungs = facts["lungs"]
    assert lungs["apices"]["mean"] < 0.1
    assert lungs["covered"]["mean"] > lungs["apices"]["mean"]
    assert facts["sy"]["mean"] < facts["sx"]["mean"]
    gallery = read_gallery(folder)[0]
    assert (folder / gallery.file).is_file()
    assert "true lungs" in gallery.caption


def test_stern_s_window_holds_the_lungs(tmp_path: Path) -> None:
    """At least 85 % of them, with the window of `tuned`: bounded, and starting at eight tenths of the film.

    No great feat: a fixed central window covers 97.4 % of the lungs of drawn films, and this one hardly moves
    from its start. What is promised is that training does not lose them.
    """
    recipe = {"recipe": SMALL_RECIPE}
    params = {**SMALL, **recipe, "attention": recipe}
    facts, _ = measured(tmp_path, "stern", "windows", seed=32, preset="tuned", params=params)
    assert facts["lungs"]["covered"]["mean"] >= 0.85
    assert facts["lungs"]["apices"]["mean"] >= 0.85
    assert facts["area"] < 0.8, "the whole film holds the lungs, too"


def test_stern_s_window_goes_to_the_thorax(tmp_path: Path) -> None:
    """Where chests are of several sizes and off the middle, it beats any one window and loses no lungs."""
    facts, _ = measured(tmp_path, "stern", "windows", seed=35, films="moved-phantom")
    assert facts["lungs"]["iou"]["mean"] > facts["iou_of_the_start"]
    assert facts["lungs"]["iou"]["mean"] > facts["iou_of_one_box_for_all"]
    assert facts["lungs"]["covered"]["mean"] >= 0.85
    assert min(facts[shift]["std"] for shift in ("tx", "ty")) > 0.03


def test_the_thorax_s_crop_holds_the_lungs(tmp_path: Path) -> None:
    """At least 95 % of them, in boxes that are trusted and closer than the whole film."""
    facts, _ = measured(tmp_path, "thorax-crop", "thorax boxes", seed=33)
    assert facts["lungs"]["covered"]["mean"] >= 0.95
    assert facts["whole_images"] <= 0.1 * facts["images"]
    assert facts["area"] < 0.9
    assert facts["average_precision_at_iou_50"] > 0.95


def test_the_cyclegan_changes_findings_more_than_tissue(tmp_path: Path) -> None:
    """Inside the boxes of drawn findings against the lungs outside of them.

    1.35 times as much when this was written, and 0.92 in the same boxes laid over healthy films.
    """
    facts, _ = measured(tmp_path, "cyclegan", "translation", seed=34)
    assert facts["boxes"]["films"] > 20
    assert facts["boxes"]["inside"] > facts["boxes"]["outside"]
