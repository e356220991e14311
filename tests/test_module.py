"""The loaders: which rows a step sees, and that nothing but seed, epoch and row decides how."""

import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import chi2_contingency
from torchvision.transforms import CenterCrop, TenCrop

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.spec import Augment, Recipe
from cxrbench.data.augment import RandomView, fixed_view
from cxrbench.data.epoch_batches import REPEATED, EpochBatches
from cxrbench.data.index import Index
from cxrbench.data.module import CxrDataModule, ViewDataset
from cxrbench.data.pixels import resize
from cxrbench.data.sampling import balanced_weights
from cxrbench.methods.base import once
from cxrbench.metrics.boxes import box_of_mask

ROWS = np.arange(100, 147)  # 47 rows, so that batches of 6 leave some over
SIDE, SIZE, COUNT = 24, 16, 40


def batches(
    batch_size: int = 6, *, train: bool = True, seed: int = 3, rank: int = 0, world: int = 1
) -> EpochBatches:
    return EpochBatches(ROWS, batch_size, train=train, seed=seed, rank=rank, world=world)


def rows_of(batches: EpochBatches) -> list[list[int]]:
    return [[row for _, row in batch] for batch in batches]


def flat(parts: Iterable[Iterable[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


# --- the order


def test_an_epoch_has_every_row_once_but_for_the_incomplete_batch() -> None:
    order = batches()
    found = rows_of(order)
    assert len(found) == len(order) == 47 // 6
    assert {len(batch) for batch in found} == {6}
    assert max(Counter(flat(found)).values()) == 1
    assert set(flat(found)) < set(ROWS)
    assert set(flat(rows_of(batches(47)))) == set(ROWS)


def test_other_rows_are_left_over_in_other_epochs() -> None:
    order, seen = batches(), set()
    for epoch in range(6):
        order.set_epoch(epoch)
        seen |= set(flat(rows_of(order)))
    assert seen == set(ROWS)


def test_the_order_hangs_on_seed_and_epoch_alone() -> None:
    order = batches()
    first = rows_of(order)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    assert rows_of(order) == first
    order.set_epoch(1)
    second = rows_of(order)
    assert second != first
    order.set_epoch(0)
    assert rows_of(order) == first
    assert rows_of(batches(seed=4)) != first
    assert flat(first) != sorted(flat(first))


def test_items_carry_their_epoch() -> None:
    order = batches()
    order.sampler.set_epoch(5)  # as Lightning calls it
    assert {epoch for batch in order for epoch, _ in batch} == {5}


def test_an_interrupted_epoch_goes_on_where_it_stopped_and_the_next_is_whole() -> None:
    order = batches()
    whole = rows_of(order)
    order.skip = 3
    assert rows_of(order) == whole[3:]
    assert rows_of(order) == whole


def test_a_part_smaller_than_a_batch_is_one_batch() -> None:
    assert sorted(rows_of(batches(64))[0]) == list(ROWS)
    assert len(batches(64)) == 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_devices_cut_the_same_global_batches(world: int) -> None:
    alone = rows_of(batches(12))
    ranks = [rows_of(batches(12, rank=rank, world=world)) for rank in range(world)]
    for number, batch in enumerate(alone):
        shares = [ranks[rank][number] for rank in range(world)]
        assert {len(share) for share in shares} == {12 // world}
        assert sorted(flat(shares)) == sorted(batch)
    assert {len(rank) for rank in ranks} == {len(alone)}


def weighted(weights: npt.NDArray[np.float64], rank: int = 0, world: int = 1) -> EpochBatches:
    return EpochBatches(ROWS, 12, train=True, seed=3, rank=rank, world=world, weights=weights)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_devices_cut_the_same_weighted_batches(world: int) -> None:
    """Every rank draws the same films with replacement and takes its own share of each batch."""
    weights = np.where(ROWS < 104, 10.0, 1.0)
    weights /= weights.sum()
    alone = rows_of(weighted(weights))
    ranks = [rows_of(weighted(weights, rank, world)) for rank in range(world)]
    assert len(alone) == 47 // 12
    for number, batch in enumerate(alone):
        shares = [rank[number] for rank in ranks]
        assert {len(share) for share in shares} == {12 // world}
        joined = [share[place] for place in range(12 // world) for share in shares]
        assert joined == batch, "in the order of one device"
    assert {len(rank) for rank in ranks} == {len(alone)}
    drawn = Counter(flat(alone))
    assert max(drawn.values()) > 1, "with replacement"
    assert sum(drawn[row] for row in ROWS[:4]) > 9  # 48 % of the weight, 9 % of the films


def test_weighted_batches_are_others_in_other_epochs_and_the_same_again() -> None:
    order = weighted(np.full(len(ROWS), 1 / len(ROWS)))
    first = rows_of(order)
    order.set_epoch(1)
    assert rows_of(order) != first
    order.set_epoch(0)
    order.skip = 1
    assert rows_of(order) == first[1:], "an interrupted epoch goes on where it stopped"


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 5, 47, 60])
def test_evaluation_sees_every_row_and_pads_with_repeats_only(world: int, batch_size: int) -> None:
    ranks = [batches(batch_size, train=False, rank=rank, world=world) for rank in range(world)]
    found = [rows_of(rank) for rank in ranks]
    assert {len(rank) for rank in found} == {len(ranks[0])}, "a rank would wait for ever"
    if world > 1:
        assert len({tuple(map(len, rank)) for rank in found}) == 1
    seen = Counter(flat(map(flat, found)))
    assert set(seen) == set(ROWS)
    if world == 1:
        assert flat(found[0]) == list(ROWS)
        assert set(seen.values()) == {1}
    assert rows_of(ranks[0]) == found[0]
    # What counts is every row once, and some on every rank.
    counted = [
        [row for items in rank for epoch, row in items if epoch != REPEATED] for rank in ranks
    ]
    assert sorted(flat(counted)) == sorted(ROWS)
    assert all(counted)


# --- batches


def test_a_batch_marks_what_padding_repeats(tmp_path: Path) -> None:
    parts = np.array(["val"] * 5, dtype=object)
    pixels = np.zeros((5, 16, 16), np.uint8)
    data = CxrDataModule(make_index(5), pixels, parts, Recipe(size=16, load=16, batch_size=8), size=16, seed=0)  # fmt: skip
    data.trainer = SimpleNamespace(global_rank=1, world_size=2)  # type: ignore[assignment]
    (batch,) = data.val_dataloader()
    assert batch["row"].tolist() == [1, 3, 0, 2]
    assert batch["repeated"].tolist() == [False, False, True, True]
    left = once(batch)
    assert left is not None
    assert left["row"].tolist() == [1, 3]
    assert left["image_id"] == ["i001", "i003"]
    assert len(left["image"]) == 2
    assert once({**batch, "repeated": torch.ones(4, dtype=torch.bool)}) is None
    data.trainer = SimpleNamespace(global_rank=0, world_size=6)  # type: ignore[assignment]
    with pytest.raises(DataError, match="5 images, too few for 6 devices"):
        data.val_dataloader()


def make_index(count: int = COUNT) -> Index:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "image_id": [f"i{n:03d}" for n in range(count)],
            "patient_id": [f"p{n // 2:03d}" for n in range(count)],
            "path": "",
            "Edema": rng.choice([0.0, 1.0, np.nan], count),
            "Mass": rng.choice([0.0, 1.0], count),
        }
    )
    return Index("films", frame, ("Edema", "Mass"))


@pytest.fixture
def pixels(tmp_path: Path) -> npt.NDArray[np.uint8]:
    """A memory map [40, 24, 24], as the cache gives it."""
    values = np.random.default_rng(1).integers(0, 256, (COUNT, SIDE, SIDE), dtype=np.uint8)
    np.save(tmp_path / "images.npy", values)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


PARTS = np.array(["train"] * 24 + ["val"] * 8 + ["test"] * 7 + ["unreadable"], dtype=object)
AUGMENT = Augment(
    horizontal_flip=0.5, vertical_flip=0.5, rotate=20, shift=0.1, scale=0.1, shear=5, contrast=0.3,
    brightness=0.2,
)  # fmt: skip


def module(
    pixels: Any, workers: int = 0, *, seed: int = 5, fit_part: str = "train", **recipe: Any
) -> CxrDataModule:
    made = Recipe(**{"batch_size": 8, "size": SIZE, "load": SIDE, "augment": AUGMENT, **recipe})
    return CxrDataModule(
        make_index(), pixels, PARTS, made, size=SIZE, seed=seed, workers=workers, fit_part=fit_part
    )


def test_a_batch_is_what_models_expect(pixels: Any) -> None:
    data = module(pixels)
    index = data.index
    seen = []
    for batch in data.train_dataloader():
        assert batch["image"].shape == (8, 1, SIZE, SIZE)
        assert batch["image"].dtype == torch.uint8
        assert batch["target"].shape == batch["known"].shape == (8, 2)
        assert batch["target"].dtype == torch.float32
        assert batch["known"].dtype == torch.bool
        assert batch["row"].dtype == torch.int64
        rows = batch["row"].numpy()
        seen += rows.tolist()
        truth = index.targets[rows]
        np.testing.assert_array_equal(batch["known"], ~np.isnan(truth))
        np.testing.assert_array_equal(batch["target"], np.nan_to_num(truth))
        assert batch["image_id"] == list(index.image_ids[rows])
        assert batch["patient_id"] == list(index.patient_ids[rows])
    assert sorted(seen) == list(range(24))
    assert np.isnan(index.targets[:24]).any()


def test_evaluation_batches_are_the_unchanged_images_in_order(pixels: Any) -> None:
    data = module(pixels, validation_view="whole", test_view="ten_crop")
    found = list(data.val_dataloader())
    assert torch.cat([b["row"] for b in found]).tolist() == list(range(24, 32))
    np.testing.assert_array_equal(torch.cat([b["image"] for b in found])[:, 0], pixels[24:32])
    crops = torch.cat([b["image"] for b in data.test_dataloader()])
    assert crops.shape == (7, 10, 1, SIZE, SIZE)
    loaders = data.predict_dataloader()
    assert [len(loader.batch_sampler.rows) for loader in loaders] == [8, 7]
    assert all(next(iter(loader))["image"].ndim == 5 for loader in loaders)


def test_unreadable_images_are_in_no_part(pixels: Any) -> None:
    for fit_part, expected in (("train", 24), ("all", 39)):
        data = module(pixels, fit_part=fit_part)
        assert len(data.rows["train"]) == expected
        assert 39 not in np.concatenate(list(data.rows.values()))


def test_a_fold_without_images_is_refused(pixels: Any) -> None:
    for absent in ("train", "val"):
        parts = np.where(absent == PARTS, "none", PARTS)
        with pytest.raises(DataError, match=f"the {absent} part of this fold has no image"):
            data = CxrDataModule(make_index(), pixels, parts, Recipe(), size=SIZE, seed=0)
            data.train_dataloader() if absent == "train" else data.val_dataloader()
    parts = np.where(PARTS == "test", "none", PARTS)
    data = CxrDataModule(make_index(), pixels, parts, Recipe(), size=SIZE, seed=0)
    with pytest.raises(DataError, match="the test part of this fold has no image"):
        data.test_dataloader()


def test_facts_count_images_and_patients(pixels: Any) -> None:
    facts = module(pixels).facts()
    assert facts["train"] == {"images": 24, "patients": 12}
    assert facts["test"] == {"images": 7, "patients": 4}


def positives(data: CxrDataModule) -> npt.NDArray[np.bool_]:
    """[train rows]: whether a film has a label that is 1; unknown is not."""
    return np.asarray((data.index.targets[data.rows["train"]] == 1).any(axis=1))


@pytest.mark.parametrize("every", [2, 8, 24])
def test_a_balanced_sampler_draws_films_with_and_without_a_finding_equally_often(
    pixels: Any, every: int
) -> None:
    data = module(pixels, sampler="balanced", batch_size=24)
    edema = np.full(COUNT, np.nan)
    edema[::every] = 1.0  # half, an eighth, and one of the 24 training films
    frame = data.index.frame.assign(Edema=edema, Mass=0.0)
    data.index = replace(data.index, frame=frame)
    with_it, weights = positives(data), balanced_weights(data.index, data.rows["train"])
    assert with_it.sum() == 24 // every
    assert weights.sum() == pytest.approx(1)
    assert weights[with_it].sum() == pytest.approx(0.5)
    for same in (weights[with_it], weights[~with_it]):
        assert np.ptp(same) == 0
    batches = data.train_dataloader().batch_sampler
    assert isinstance(batches, EpochBatches)
    drawn = []
    for epoch in range(100):
        batches.set_epoch(epoch)
        drawn += flat(rows_of(batches))
    share = np.isin(drawn, data.rows["train"][with_it]).mean()
    assert share == pytest.approx(0.5, abs=4 * 0.5 / len(drawn) ** 0.5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_with_one_class_alone_a_balanced_sampler_draws_all_alike(pixels: Any, value: float) -> None:
    data = module(pixels, sampler="balanced")
    frame = data.index.frame.assign(Edema=np.nan, Mass=value)
    data.index = replace(data.index, frame=frame)
    assert balanced_weights(data.index, data.rows["train"]) == pytest.approx(np.full(24, 1 / 24))


def epochs(data: CxrDataModule, count: int = 2) -> list[tuple[list[int], torch.Tensor]]:
    loader, found = data.train_dataloader(), []
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        found += [(batch["row"].tolist(), batch["image"].clone()) for batch in loader]
    return found


def test_workers_do_not_change_a_single_pixel(pixels: Any) -> None:
    alone = epochs(module(pixels, workers=0))
    torch.manual_seed(99)
    many = epochs(module(pixels, workers=2))
    assert [rows for rows, _ in alone] == [rows for rows, _ in many]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(alone, many, strict=True))


def test_an_image_is_augmented_by_seed_epoch_and_row_alone(pixels: Any) -> None:
    first = epochs(module(pixels), count=2)
    by_key = {
        (number // 3, row): image
        for number, (rows, images) in enumerate(first)
        for row, image in zip(rows, images, strict=True)
    }
    # Another batch size brings a row into other company, and the same view of it.
    for number, (rows, images) in enumerate(epochs(module(pixels, batch_size=4), count=2)):
        for row, image in zip(rows, images, strict=True):
            assert torch.equal(image, by_key[number // 6, row])
    changed = [not torch.equal(by_key[0, row], by_key[1, row]) for row in range(24)]
    assert all(changed), "an epoch repeats the augmentation of the one before"
    other = epochs(module(pixels, seed=6), count=1)
    assert not all(torch.equal(image, by_key[0, row]) for rows, images in other
                   for row, image in zip(rows, images, strict=True))  # fmt: skip


def test_a_pickled_loader_carries_no_pixels(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 256, (COUNT, 100, 100), dtype=np.uint8)
    np.save(tmp_path / "images.npy", values)
    pixels = np.load(tmp_path / "images.npy", mmap_mode="r")
    dataset = ViewDataset(pixels, make_index(), RandomView(SIZE, crop=True, augment=AUGMENT), 0)
    packed = pickle.dumps(dataset)
    assert len(packed) < 0.1 * pixels.nbytes
    again = pickle.loads(packed)
    assert isinstance(again.pixels, np.memmap)
    items = [(0, 7), (3, 30)]
    assert torch.equal(again.__getitems__(items)["image"], dataset.__getitems__(items)["image"])


# --- views


def test_ten_crops_are_torchvision_s() -> None:
    for side, size in ((32, 24), (25, 18), (16, 16)):
        image = np.random.default_rng(side).integers(0, 256, (side, side), dtype=np.uint8)
        found = fixed_view("ten_crop", size)(image)
        expected = [np.asarray(crop) for crop in TenCrop(size)(Image.fromarray(image))]
        np.testing.assert_array_equal(found, expected)
        centre = fixed_view("center_crop", size)(image)
        np.testing.assert_array_equal(centre, np.asarray(CenterCrop(size)(Image.fromarray(image))))


def test_fixed_views() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    np.testing.assert_array_equal(fixed_view("whole", 8)(image), image)
    np.testing.assert_array_equal(fixed_view("resize", 8)(image), resize(image, 8))
    with pytest.raises(ValueError, match="no view 'crop'"):
        fixed_view("crop", 8)


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("name", ["whole", "resize", "center_crop", "ten_crop"])
def test_a_view_says_which_images_it_leaves_alone(name: str, side: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    view = fixed_view(name, 16)
    assert view.leaves(side) == np.array_equal(view(image), image)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("augment", [{}, {"rotate": 30}, {"horizontal_flip": 0.5}])
def test_a_random_view_says_which_images_it_leaves_alone(
    augment: dict[str, float], crop: bool
) -> None:
    view = RandomView(16, crop=crop, augment=Augment(**augment))
    for side in (16, 32):
        image = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
        alone = all(np.array_equal(view(image, seed), image) for seed in range(20))
        assert view.leaves(side) == alone


def test_images_left_alone_are_gathered_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (COUNT, SIZE, SIZE), dtype=np.uint8)
    view = RandomView(SIZE, crop=True, augment=Augment())
    dataset, items = ViewDataset(pixels, make_index(), view, 0), [(0, 7), (0, 3), (0, 30)]
    quick = dataset.__getitems__(items)["image"]
    assert torch.equal(quick, torch.from_numpy(pixels[[7, 3, 30], None]))
    monkeypatch.setattr(RandomView, "leaves", lambda view, side: False)
    assert torch.equal(dataset.__getitems__(items)["image"], quick)


@pytest.mark.parametrize(
    "augment",
    [
        {}, {"horizontal_flip": 1.0}, {"vertical_flip": 1.0}, {"rotate": 30}, {"shift": 0.2},
        {"scale": 0.3}, {"shear": 10}, {"contrast": 0.5}, {"brightness": 0.4}, AUGMENT.model_dump(),
    ],
    ids=lambda a: "+".join(a) or "nothing",
)  # fmt: skip
@pytest.mark.parametrize("crop", [True, False])
def test_every_augmentation_keeps_bytes_and_shape_and_does_something(
    augment: dict[str, Any], crop: bool
) -> None:
    # Bright in the middle and dark without symmetry, so that each change shows and none saturates.
    down, right = np.mgrid[0:40, 0:40]
    image = np.asarray(60 + 2 * down + right, np.uint8)
    view = RandomView(32, crop=crop, augment=Augment(**augment))
    plain = RandomView(32, crop=crop, augment=Augment())
    changed = 0
    for seed in range(8):
        found = view(image, seed)
        assert found.dtype == np.uint8
        assert found.shape == (32, 32)
        np.testing.assert_array_equal(found, view(image, seed))
        changed += not np.array_equal(found, plain(image, seed))
    assert changed >= (6 if augment else 0)


def test_flips_and_contrast_do_what_they_say() -> None:
    down, right = np.mgrid[0:32, 0:32]
    image = np.asarray(60 + 3 * down + right, np.uint8)
    flipped = RandomView(32, crop=True, augment=Augment(horizontal_flip=1.0))(image, 0)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    turned = RandomView(32, crop=True, augment=Augment(vertical_flip=1.0))(image, 0)
    np.testing.assert_array_equal(turned, image[::-1])
    for seed in range(20):
        spread = RandomView(32, crop=True, augment=Augment(contrast=0.25))(image, seed).std()
        assert 0.73 * image.std() < spread < 1.27 * image.std()
        level = RandomView(32, crop=True, augment=Augment(brightness=0.1))(image, seed).mean()
        assert abs(level - image.mean()) < 0.1 * 255 + 1


def test_a_rotation_stays_within_its_angle() -> None:
    image = np.zeros((101, 101), np.uint8)
    image[48:53, 50:] = 255  # a ray from the centre to the right
    for seed in range(20):
        found = RandomView(101, crop=True, augment=Augment(rotate=10))(image, seed)
        rows, columns = np.nonzero(found > 128)
        far = columns > 85
        angle = np.degrees(np.arctan2(rows[far].mean() - 50, columns[far].mean() - 50))
        assert abs(angle) <= 10.5


def test_where_an_image_is_cropped_says_nothing_of_its_flip() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    view = RandomView(4, crop=True, augment=Augment(horizontal_flip=0.5))
    counts = np.zeros((5, 2))
    for seed in range(1000):
        found = view(image, seed)
        counts[found.min() // 8, int(found[0, 0] > found[0, 1])] += 1
    assert chi2_contingency(counts).pvalue > 1e-3


def test_a_large_seed_is_taken() -> None:
    image = np.zeros((20, 20), np.uint8)
    assert RandomView(16, crop=True, augment=Augment())(image, 2**63 - 1).shape == (16, 16)


def test_masks_move_with_their_images(pixels: Any) -> None:
    """A mask that is the image's own bright part stays that in every view."""
    bright = np.where(np.asarray(pixels) > 127, 255, 0).astype(np.uint8)
    recipe = Recipe(batch_size=8, size=SIZE, load=SIDE, augment=Augment(rotate=20, shift=0.1))
    data = CxrDataModule(
        make_index(), bright, PARTS, recipe, size=SIZE, seed=0, workers=2, masks=bright
    )
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            image, mask = batch["image"], batch["mask"]
            assert mask.shape == image.shape and set(mask.unique().tolist()) <= {0, 255}
            # The image is interpolated and the mask is not, so they differ at edges only.
            assert ((image > 127) == (mask > 127)).float().mean() > 0.9
            for film, box, known in zip(mask, batch["box"], batch["box_known"], strict=True):
                expected = box_of_mask(film[0].numpy())
                assert known == (expected is not None)
                np.testing.assert_allclose(box, np.zeros(4) if expected is None else expected)


def test_masks_have_no_ten_crops(pixels: Any) -> None:
    recipe = Recipe(batch_size=8, size=SIZE, load=SIDE, test_view="ten_crop")
    data = CxrDataModule(make_index(), pixels, PARTS, recipe, size=SIZE, seed=0, masks=pixels)
    with pytest.raises(ConfigError, match="no ten crops"):
        next(iter(data.test_dataloader()))


def test_soft_targets_are_trained_on_and_never_scored(pixels: Any) -> None:
    index = make_index()
    soft = np.where(np.isnan(index.targets[:, 0]), 0.7, np.nan)
    index = replace(index, frame=index.frame.assign(**{"soft:Edema": soft}))
    data = CxrDataModule(index, pixels, PARTS, Recipe(batch_size=8, size=SIZE), size=SIZE, seed=0)
    for loader, training in ((data.train_dataloader(), True), (data.test_dataloader(), False)):
        for batch in loader:
            unknown = torch.from_numpy(np.isnan(index.targets[batch["row"].numpy(), 0]))
            assert (batch["known"][:, 0] == (~unknown | training)).all()
            assert (batch["target"][unknown, 0] == (0.7 if training else 0.0)).all()
