"""What a plan's trainings cost, counted: operations that are known, and sums that can be done by hand."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Cli
from test_gpu_steps import READS, TRAININGS
from test_methods import VIEW, load

from cxrbench.core.stage import DataView, Stage
from cxrbench.runner.cost import hours, images_of, longest_chain, step_flops, training_costs


def baseline(name: str, fold: int = 0) -> Stage:
    cls = load(name)
    params = cls.resolve("tuned", {"pretrained": "none"}, {"epochs": 3}, where="test")
    model: Stage = cls.stages(replace(VIEW, fold=fold), params)
    return model


# torchvision's tables have a forward pass at 224 px, in multiplications with an addition each.
@pytest.mark.parametrize(("name", "giga"), [("densenet121", 2.83), ("vgg16", 15.47)])
def test_steps_of_the_baselines_cost_what_is_published(name: str, giga: float) -> None:
    step, weights, side = step_flops(baseline(name))
    assert side == 224
    assert step == pytest.approx(3 * 2 * giga * 1e9, rel=0.03)
    assert weights == pytest.approx({"densenet121": 6.97e6, "vgg16": 134.3e6}[name] * 4, rel=0.01)


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_every_training_is_counted_or_said_not_to_be(name: str) -> None:
    step, weights, _ = step_flops(TRAININGS[name])
    assert weights > 0
    assert (step is None) == (name in READS)
    assert step is None or step > 1e6


def test_costs_are_steps_times_images_and_epochs() -> None:
    folds = [baseline("densenet121", fold) for fold in range(2)]
    graph = {stage.digest: stage for stage in folds}

    def images(view: DataView) -> tuple[int, int]:
        return (100, 30) if view.fold == 0 else (120, 60)

    (cost,) = training_costs(graph, images)
    assert cost.step is not None
    assert (cost.training, cost.count, cost.epochs, cost.images) == ("densenet121", 2, 3, 110)
    assert cost.flops == pytest.approx(cost.step * 3 * (100 + 10 + 120 + 20))
    assert longest_chain(graph, [cost]) == pytest.approx(cost.flops / 2)


def test_fewer_training_images_are_counted_beside_all_of_them() -> None:
    parts = np.array(["train"] * 6 + ["val"] * 2, object)
    opened = SimpleNamespace(
        index=SimpleNamespace(image_ids=np.arange(8).astype(str)),
        split=SimpleNamespace(parts=lambda index, fold: parts),
    )
    count = images_of(SimpleNamespace(open=lambda view: opened))  # type: ignore[arg-type]
    for fewer, expected in ((None, 6), (4, 4), (None, 6)):
        assert count(replace(VIEW, train_images=fewer)) == (expected, 2)


def test_a_chain_is_as_long_as_its_trainings_together() -> None:
    cls = load("aecnn")
    small = {"pretrained": "none", "backbone": "resnet10t"}
    params = cls.resolve("quick", small, {}, where="test")
    graph = cls.stages(VIEW, params).ancestry()
    found = training_costs(graph, lambda view: (10, 0))
    assert {cost.training for cost in found} == {"aecnn", "densenet121", "patch-autoencoder"}
    each = {cost.training: cost.flops or 0.0 for cost in found}
    before = max(each["densenet121"], each["patch-autoencoder"])
    assert longest_chain(graph, found) == pytest.approx(each["aecnn"] + before)


def test_hours_end_where_a_chain_must_be_waited_for() -> None:
    assert hours(7.2e15, 1e12) == pytest.approx(2)
    assert hours(7.2e15, 1e12, gpus=4) == pytest.approx(0.5)
    assert hours(7.2e15, 1e12, gpus=64, chain=3.6e15) == pytest.approx(1)


SPEC = """
name: small
preset: quick
methods:
  - {name: densenet121, params: {backbone: resnet10t}}
  - {name: fmix, params: {backbone: resnet10t}}
datasets:
  - {name: phantom, split: cv5, folds: [0, 1], params: {images: 60}}
"""


def test_plan_prints_the_cost(cli: Cli, tmp_path) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(SPEC)
    code, out, err = cli("plan", str(spec), "--cost", "--tflops", "10", "--json", "--gpus", "0")
    assert code == 0, err
    found = json.loads(out)
    assert {c["training"]: c["count"] for c in found["trainings"]} == {"densenet121": 2, "fmix": 2}
    assert all(20 < cost["images"] < 60 for cost in found["trainings"])
    assert found["flops"] == pytest.approx(sum(cost["flops"] for cost in found["trainings"]))
    assert found["hours"]["1"] == pytest.approx(found["flops"] / 10e12 / 3600)
    code, out, err = cli("plan", str(spec), "--cost", "--gpus", "0")
    assert code == 0, err
    assert "densenet121" in out
    assert "in the longest chain" in out
    assert "at least" not in out  # without a rate there are no hours


def test_a_rate_without_cost_is_refused(cli: Cli, tmp_path) -> None:
    spec = tmp_path / "small.yaml"
    spec.write_text(SPEC)
    code, _, err = cli("plan", str(spec), "--tflops", "10")
    assert code == 2
    assert "--tflops needs --cost" in err
