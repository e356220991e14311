"""Augmentation of whole batches against albumentations' of single images: the same pixels, the same distribution."""

from pathlib import Path
from typing import Any

import albumentations as A
import lightning as L
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp

from cxrbench.core.errors import ConfigError
from cxrbench.core.spec import Augment, Recipe
from cxrbench.data.augment import RandomView
from cxrbench.data.index import Index
from cxrbench.data.module import Batch, CxrDataModule
from cxrbench.nn.augment import DRAWS, augmented

SIDE, SIZE, COUNT = 40, 32, 24
TOP = float(np.nextafter(np.float32(1), np.float32(0)))  # the largest draw
AUGMENT = Augment(
    horizontal_flip=0.4, vertical_flip=0.2, rotate=20, shift=0.1, scale=0.15, shear=8, contrast=0.3,
    brightness=0.21, on="device",
)  # fmt: skip

# Other settings that so many images tell apart.
SEEN = {"horizontal_flip": 0.6, "vertical_flip": 0.0, "rotate": 0.0, "shift": 0.3, "scale": 0.0, "contrast": 0.1, "brightness": 0.6}  # fmt: skip


@pytest.fixture(scope="module")
def film() -> npt.NDArray[np.uint8]:
    """A smooth picture [40, 40] that no flip leaves as it is, black at one edge."""
    noise = gaussian_filter(np.random.default_rng(3).random((SIDE, SIDE)), 3)
    noise = (noise - noise.min()) / np.ptp(noise)
    return np.asarray(255 * noise * np.linspace(0, 1, SIDE), np.uint8)


def one(film: Any, augment: Augment, size: int = SIDE, **drawn: float) -> npt.NDArray[np.int64]:
    """A film with these draws, and the middle of all others."""
    draws = torch.full((1, len(DRAWS)), 0.5)
    for name, value in drawn.items():
        draws[0, DRAWS.index(name)] = value
    image = torch.from_numpy(film)[None, None]
    return np.asarray(augmented(image, draws, size, augment)[0, 0], dtype=np.int64)


MOVES = {
    "rotate": (Augment(rotate=20), {"rotate": TOP}, {"rotate": (20, 20)}),
    "rotate back": (Augment(rotate=20), {"rotate": 0}, {"rotate": (-20, -20)}),
    "shift": (
        Augment(shift=0.11), {"shift_x": TOP, "shift_y": 0},
        {"translate_percent": {"x": (0.11, 0.11), "y": (-0.11, -0.11)}},
    ),
    "larger": (Augment(scale=0.2), {"scale": TOP}, {"scale": (1.2, 1.2)}),
    "smaller": (Augment(scale=0.2), {"scale": 0}, {"scale": (0.8, 0.8)}),
    # albumentations turns the sign of a shear.
    "shear": (
        Augment(shear=15), {"shear_x": TOP, "shear_y": 0}, {"shear": {"x": (-15, -15), "y": (15, 15)}},
    ),
    "all": (
        Augment(rotate=10, shear=12, scale=0.1, shift=0.11),
        {"rotate": TOP, "shear_x": TOP, "shear_y": 0, "scale": TOP, "shift_x": TOP, "shift_y": 0},
        {"rotate": (10, 10), "shear": {"x": (-12, -12), "y": (12, 12)}, "scale": (1.1, 1.1),
         "translate_percent": {"x": (0.11, 0.11), "y": (-0.11, -0.11)}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_a_movement_gives_the_pixels_of_albumentations(film: Any, name: str) -> None:
    augment, draws, settings = MOVES[name]
    neutral = {"rotate": (0, 0), "translate_percent": (0, 0), "scale": (1, 1), "shear": (0, 0)}
    peer = A.Affine(**{**neutral, **settings}, keep_ratio=True, p=1.0)  # type: ignore[arg-type]
    expected = peer(image=film)["image"].astype(int)
    assert np.abs(expected - film).mean() > 5
    assert np.abs(one(film, augment, **draws) - expected).max() <= 1


@pytest.mark.parametrize("order", [0.0, 0.9])
def test_brightness_and_contrast_give_the_pixels_of_albumentations(film: Any, order: float) -> None:
    peer = A.ColorJitter(p=1.0)
    steps = [0, 1, 2, 3] if order < 0.5 else [1, 0, 2, 3]
    expected = peer.apply(
        film, brightness=1.21, contrast=0.7, saturation=1, hue=0, order=steps
    ).astype(int)
    augment = Augment(brightness=0.21, contrast=0.3)
    found = one(film, augment, brightness=TOP, contrast=0, order=order)
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - expected).mean() < 0.2
    assert np.abs(expected - film).mean() > 5


def test_crops_are_windows_and_every_place_is_as_likely(film: Any) -> None:
    numbered = np.arange(36, dtype=np.uint8).reshape(6, 6)
    draws = torch.rand(9000, len(DRAWS), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(numbered).expand(9000, 1, 6, 6)
    found = augmented(images, draws, 4, Augment()).numpy()[:, 0]
    corners, counts = np.unique(found[:, 0, 0], return_counts=True)
    assert corners.tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]
    assert counts.min() > 900
    for corner in corners:
        window = numbered[corner // 6 : corner // 6 + 4, corner % 6 : corner % 6 + 4]
        np.testing.assert_array_equal(found[found[:, 0, 0] == corner][0], window)
    assert one(film, Augment(), SIZE, top=TOP, left=TOP)[0, 0] == film[SIDE - SIZE, SIDE - SIZE]


def measured(images: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Numbers [N] of images [N, S, S] that each kind of change moves."""
    image = images.astype(np.float64)
    down, across = np.mgrid[0 : image.shape[1], 0 : image.shape[2]]
    mass = image.sum((1, 2))
    x, y = (image * across).sum((1, 2)) / mass, (image * down).sum((1, 2)) / mass
    dx, dy = across - x[:, None, None], down - y[:, None, None]
    return {
        "mean": image.mean((1, 2)), "spread": image.std((1, 2)), "x": x, "y": y,
        "width": np.sqrt((image * dx**2).sum((1, 2)) / mass),
        "slant": (image * dx * dy).sum((1, 2)) / mass,
        "black": (image == 0).mean((1, 2)), "corner": image[:, 2, 2], "largest": image.max((1, 2)),
    }  # fmt: skip


def test_both_ways_have_the_same_distribution(film: Any) -> None:
    count = 1500
    view = RandomView(SIZE, crop=True, augment=AUGMENT)
    theirs = measured(np.stack([view(film, seed) for seed in range(count)]))
    draws = torch.rand(count, len(DRAWS), generator=torch.Generator().manual_seed(1))
    images = torch.from_numpy(film).expand(count, 1, SIDE, SIDE)
    ours = measured(augmented(images, draws, SIZE, AUGMENT).numpy()[:, 0])
    for name, values in ours.items():
        assert ks_2samp(values, theirs[name]).pvalue > 1e-3, name
    for name, value in SEEN.items():
        other = AUGMENT.model_copy(update={name: value})
        changed = measured(augmented(images, draws, SIZE, other).numpy()[:, 0])
        assert min(ks_2samp(changed[n], theirs[n]).pvalue for n in theirs) < 1e-4, name


# --- in the loaders


def module(workers: int = 0, **recipe: Any) -> CxrDataModule:
    names = [f"i{n:02d}" for n in range(COUNT)]
    frame = pd.DataFrame({"image_id": names, "patient_id": names, "path": "", "Edema": 0.0})
    parts = np.array(["train"] * 16 + ["val"] * 8, dtype=object)
    pixels = np.random.default_rng(1).integers(0, 256, (COUNT, SIDE, SIDE), dtype=np.uint8)
    made = Recipe(**{"batch_size": 8, "size": SIZE, "load": SIDE, "augment": AUGMENT, **recipe})
    return CxrDataModule(
        Index("films", frame, ("Edema",)), pixels, parts, made, size=SIZE, seed=5, workers=workers,
    )  # fmt: skip


class Seen(L.LightningModule):
    """Keeps what a training gets, by (epoch, row)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.images: dict[tuple[int, int], torch.Tensor] = {}
        self.validated: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert "draws" not in batch
        for row, image in zip(batch["row"].tolist(), batch["image"], strict=True):
            self.images[self.current_epoch, row] = image
        return self.weight.square().sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(folder: Path, data: CxrDataModule) -> Seen:
    seen = Seen()
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(seen, datamodule=data)
    return seen


def test_a_training_gets_augmented_images_that_hang_on_seed_epoch_and_row(tmp_path: Path) -> None:
    data = module()
    first = trained(tmp_path, data)
    assert len(first.images) == 32
    assert {tuple(image.shape) for image in first.images.values()} == {(1, SIZE, SIZE)}
    assert not torch.equal(first.images[0, 3], first.images[1, 3])
    again = trained(tmp_path, module(workers=1, batch_size=4))
    assert all(torch.equal(image, again.images[key]) for key, image in first.images.items())
    plain = module(validation_view="resize")
    expected = torch.cat([batch["image"] for batch in plain.val_dataloader()])
    assert torch.equal(torch.cat([b["image"] for b in first.validated[:1]]), expected)


@pytest.mark.parametrize(
    ("view", "side"), [("random_crop", SIZE), ("resize", SIZE), ("whole", SIDE)]
)
def test_every_view_of_training_has_its_size(tmp_path: Path, view: str, side: int) -> None:
    seen = trained(tmp_path, module(train_view=view))
    assert {tuple(image.shape) for image in seen.images.values()} == {(1, side, side)}


def test_masks_are_refused() -> None:
    data = module()
    data.masks = data.pixels
    with pytest.raises(ConfigError, match=r"recipe\.augment\.on: masks"):
        data.train_dataloader()
