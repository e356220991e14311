"""Two processes with the same global batch have the loss curve of one."""

import csv
from pathlib import Path
from typing import Any

import pytest
from test_resume import end, start

from cxrbench.core.errors import ConfigError
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec, Execution, Recipe
from cxrbench.core.store import Store
from cxrbench.runner.bench import plan_bench
from cxrbench.runner.chains import write_job
from cxrbench.runner.training import make_trainer

# Slowly: rounding alone parts two trainings after large steps.
RECIPE = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-5}
# Networks with batch norm stand aside for others: without a GPU each process has its own statistics. So do known
# movements of the aligner's films and of the windows', of which each process draws its own.
POSE = {"backbone": "test_convnext", "pretrained": "none", "bounded": True, "dropout": 0.0}
ALIGNER = {
    "pose": POSE,
    "recovery_weight": 0.0,
    # At the others' rate all films would still have one pose, which ends the training as a collapse.
    "recipe": {"learning_rate": 3e-4},
}
# Method, parameters, training, tolerance.
TRAININGS = [
    ("deblur", {}, "deblur-unet", 1e-3),
    ("aecnn", {}, "patch-autoencoder", 1e-3),
    ("vgg16", {}, "vgg16", 0.05),  # dropout draws another mask in each process
    ("stn-align", {"aligner": ALIGNER}, "aligner", 1e-3),
    ("fmix", {"backbone": "test_convnext"}, "fmix", 1e-3),
    ("stern", {"backbone": "test_convnext", "recovery_weight": 0.0}, "stern", 1e-3),
]


def trained(
    home: Path, method: str, params: dict[str, Any], training: str, devices: int
) -> list[dict[str, str]]:
    """The log of a training among a method's stages."""
    store, registry = Store(home), Registry()
    data = {"name": "phantom", "split": "holdout", "params": {"images": 80}}
    spec = {"name": "ddp", "preset": "quick", "methods": [{"name": method, "params": params}], "datasets": [data], "recipe": RECIPE}  # fmt: skip
    plan = plan_bench(BenchSpec.parse(spec, where="test"), registry, store, "cpu")
    stage = next(s for s in plan.graph.values() if (s.kind, s.name) == ("fit", training))
    execution = Execution(threads=1, devices=devices)
    job = store.folder("jobs") / "job.json"
    write_job(job, plan, store, registry, execution, list(stage.ancestry().values()))
    assert end(start(job), 900) == 0, job.with_suffix(".log").read_text()[-2000:]
    with (store.artefact(stage.key) / "log.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "params", "training", "tolerance"), TRAININGS, ids=[row[2] for row in TRAININGS]
)
def test_two_processes_have_the_loss_curve_of_one(
    tmp_path: Path, method: str, params: dict[str, Any], training: str, tolerance: float
) -> None:
    one, two = (trained(tmp_path / str(n), method, params, training, n) for n in (1, 2))
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        for column in ("train_loss", "val_loss"):
            assert float(theirs[column]) == pytest.approx(float(ours[column]), rel=tolerance), (
                column
            )
    assert len({row["val_loss"] for row in one}) == 2, "it does not move"


def test_batch_statistics_are_not_synchronised_without_a_gpu(tmp_path: Path) -> None:
    recipe = Recipe(sync_batchnorm=True, precision="32-true")
    with pytest.raises(ConfigError, match="torch synchronises batch statistics"):
        make_trainer(recipe, Execution(devices=2), [], tmp_path, None)
    make_trainer(recipe, Execution(), [], tmp_path, None)  # one process has nothing to synchronise
