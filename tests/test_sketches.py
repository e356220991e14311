"""Pictures of a training under way: when they are drawn, how many stay, and what an aligner's shows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cxrbench.core.gallery import read_gallery
from cxrbench.core.spec import Recipe
from cxrbench.methods.aligner import SKETCHED, TILE, Aligner, AlignerParams, PoseParams
from cxrbench.methods.base import Method
from cxrbench.methods.canonical_chest import LossNetwork
from cxrbench.methods.sheets import BAR, GAP
from cxrbench.runner.sketches import MOST, Sketches, kept_every, leave_sketches


class Drawing(Method):
    """Counts what it is asked to draw."""

    name = "drawing"
    sketched = "a grey"

    def __init__(self) -> None:
        self.asked = 0
        torch.nn.Module.__init__(self)

    def sketch(self, batch: Any) -> Image.Image:
        self.asked += 1
        return Image.new("L", (4, 4), 99)


class Logger:
    """Notes the steps of the pictures that it gets."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log_image(self, *, key: str, images: list[Any], caption: list[str], step: int) -> None:
        assert (key, caption) == ("gallery/drawing", ["a grey"])
        self.steps.append(step)


def trained(
    folder: Path, steps: list[int], *, logger: Any = None, first: bool = True
) -> tuple[Drawing, list[int]]:
    module, callback = Drawing(), Sketches(folder, 100)
    for step in steps:
        trainer: Any = SimpleNamespace(global_step=step, is_global_zero=first, logger=logger)
        callback.on_train_batch_start(trainer, module, None, 0)
    return module, [int(path.stem.removeprefix("step-")) for path in sorted(folder.glob("*.png"))]


def test_a_picture_each_hundred_steps_and_nothing_on_others(tmp_path: Path) -> None:
    module, kept = trained(tmp_path, list(range(301)))
    assert kept == [0, 100, 200, 300]
    assert module.asked == 4


def test_a_long_training_keeps_few_that_are_evenly_spaced(tmp_path: Path) -> None:
    module, kept = trained(tmp_path, list(range(0, 7001, 100)))
    apart = kept_every(7000, 100)
    assert kept == list(range(0, 7001, apart))
    assert len(kept) <= MOST + 1
    assert module.asked < 40, "what is not kept and not logged is not drawn"
    _, resumed = trained(tmp_path, list(range(6000, 7001, 100)))
    assert resumed == kept


def test_the_logger_gets_all_and_a_second_process_draws_none(tmp_path: Path) -> None:
    logger = Logger()
    _, kept = trained(tmp_path / "a", list(range(0, 3001, 100)), logger=logger)
    assert logger.steps == list(range(0, 3001, 100))
    assert len(kept) <= MOST + 1
    module, kept = trained(tmp_path / "b", [0, 100], first=False)
    assert (module.asked, kept) == (0, [])


def test_a_step_of_several_batches_has_one_picture(tmp_path: Path) -> None:
    module, _ = trained(tmp_path, [0, 0, 0, 1, 1, 100, 100])
    assert module.asked == 2


def test_a_logger_that_fails_costs_the_training_nothing(tmp_path: Path) -> None:
    def fails(**given: Any) -> None:
        raise OSError("no room")

    _, kept = trained(tmp_path, [0], logger=SimpleNamespace(log_image=fails))
    assert kept == [0]


def test_the_pictures_stand_in_the_artefact_s_gallery(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    trained(tmp_path / "drawn", [0, 100])
    leave_sketches(tmp_path / "drawn", "a grey", out)
    listed = read_gallery(out)
    assert [(each.file, each.caption) for each in listed] == [
        ("step-0000000.png", "Step 0: a grey"), ("step-0000100.png", "Step 100: a grey"),
    ]  # fmt: skip
    assert all(each.films and (out / each.file).is_file() for each in listed)
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    leave_sketches(tmp_path / "undrawn", "a grey", nothing)
    assert not list(nothing.iterdir())


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    torch.manual_seed(0)
    pose = PoseParams(backbone="test_resnet", pretrained="none", dropout=0.5)
    loss = LossNetwork(network="densenet121", taps=("relu0",), pretrained="none")
    recipe = Recipe(size=64, load=64)
    module = Aligner(AlignerParams(pose=pose, loss=loss, recipe=recipe, outside="black"), ())
    module.chest.fill_(0.0)  # ImageNet's mean, about 0.45
    return module.train()


def test_an_aligner_draws_input_warped_and_canonical(aligner: Aligner) -> None:
    image = torch.randint(0, 256, (6, 1, 64, 64), dtype=torch.uint8)
    before = torch.get_rng_state()
    statistics = {name: b.clone() for name, b in aligner.pose.named_buffers()}
    drawn = np.asarray(aligner.sketch({"image": image}))
    assert torch.equal(torch.get_rng_state(), before), "a picture changes the training's randomness"
    assert aligner.pose.training
    assert all(torch.equal(b, statistics[name]) for name, b in aligner.pose.named_buffers())
    assert drawn.shape == (SKETCHED * (TILE + BAR), 3 * (TILE + GAP))
    columns = [drawn[:TILE, n * (TILE + GAP) : n * (TILE + GAP) + TILE] for n in range(3)]
    # It starts at the identity, so the first two are the same but for the rounding of the warp.
    assert np.abs(columns[0].astype(int) - columns[1].astype(int)).max() <= 1
    assert columns[0].std() > 10
    assert set(columns[2].flatten().tolist()) <= set(range(120, 128))


def test_the_report_s_aligner_draws_every_hundred_steps() -> None:
    """METHOD_CARDS 1.8."""
    assert Aligner.sketch_steps == 100
