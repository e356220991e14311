"""CxrDataModule: any data set, split, fold and view as Lightning sees it.

Shapes: B batch, S side of a view, K labels. A batch is a dict of `image` uint8 [B, 1, S, S] (or
[B, 10, 1, S, S] for ten crops), `target` float [B, K] with 0 where unknown, `known` bool [B, K],
`row` int [B] (row of the index), `image_id` and `patient_id` lists of B strings. Of data sets with
masks, for methods that ask for them: `mask` uint8 [B, 1, S, S] (255 inside the lungs), `box` float [B, 4]
around both lungs (x0, y0, x1, y1 in shares of the side) and `box_known` bool [B] (some lung is in view). Where
padding under DDP repeats images: `repeated` bool [B]. Where a device augments: `draws` float [B, 13] until it has.
Of a part of a batch: `known_count` (`micro_batches`).

All randomness is a function of (seed, epoch, row): never of a generator's history, of the number of
workers or of devices. So an interrupted training goes on exactly as if it had not been interrupted.
"""

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict, TypeVar

import cv2
import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.seed import derive_seed
from cxrbench.core.spec import Recipe
from cxrbench.data.augment import Draws, FixedView, RandomView, fixed_view
from cxrbench.data.epoch_batches import REPEATED, EpochBatches
from cxrbench.data.film_cache import Films, gather, require_crops
from cxrbench.data.index import Index
from cxrbench.data.micro_batches import CutLoader, equal_part
from cxrbench.data.resident import Resident
from cxrbench.data.sampling import balanced_weights, matched_weights
from cxrbench.data.splits import PARTS
from cxrbench.metrics.boxes import box_of_mask
from cxrbench.nn.augment import augmented

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Made = TypeVar("Made")
WORKER_TIMEOUT = 300  # seconds until a silent loader process is an error


class Batch(TypedDict):
    """What a model gets."""

    image: Tensor
    target: Tensor
    known: Tensor
    row: Tensor
    image_id: list[str]
    patient_id: list[str]
    mask: NotRequired[Tensor]
    box: NotRequired[Tensor]
    box_known: NotRequired[Tensor]
    repeated: NotRequired[Tensor]
    draws: NotRequired[Tensor]
    known_count: NotRequired[Tensor]


class ViewDataset(Dataset[Batch]):
    """Gathers whole batches from the pixel cache; an item is (epoch, row)."""

    def __init__(
        self,
        pixels: Pixels | Films,
        index: Index,
        view: FixedView | RandomView,
        seed: int,
        masks: Pixels | None = None,
        draws: Draws | None = None,
        *,
        resident: bool = False,
    ) -> None:
        training = isinstance(view, RandomView) or draws is not None
        targets = index.training_targets if training else index.targets
        self.pixels, self.masks = pixels, masks
        self.view, self.draws = view, draws
        self.resident = resident  # the images are taken from a device that has them all
        self.seed = seed
        self.image_ids = index.image_ids
        self.patient_ids = index.patient_ids
        self.known = ~np.isnan(targets)
        self.targets = np.nan_to_num(targets, nan=0.0)

    def __getitems__(self, items: list[tuple[int, int]]) -> Batch:
        rows = np.asarray([row for _, row in items], dtype=np.int64)
        if self.resident:
            return self._described(items, rows)
        gathered = gather(self.pixels, rows)
        images = gathered
        masks: list[Pixels] = []
        if self.masks is not None:
            every = zip(rows, gathered, self.masks[rows], self._seeds(items), strict=True)
            pairs = [self._named(self._both, *each) for each in every]
            images, masks = np.stack([image for image, _ in pairs]), [mask for _, mask in pairs]
        elif isinstance(self.pixels, Films) or not self.view.leaves(gathered.shape[-1]):
            each = zip(rows, gathered, self._seeds(items), strict=True)
            images = np.stack([self._named(self._view, *one) for one in each])
        batch = self._described(items, rows)
        batch["image"] = torch.from_numpy(images).unsqueeze(-3)  # the channel, before [S, S]
        if masks:
            batch["mask"], batch["box"], batch["box_known"] = _mask_fields(masks)
        return batch

    def _described(self, items: list[tuple[int, int]], rows: Rows) -> Batch:
        """A batch without its images: what is known of them."""
        batch: Batch = Batch(  # type: ignore[typeddict-item]
            target=torch.from_numpy(self.targets[rows]),
            known=torch.from_numpy(self.known[rows]),
            row=torch.from_numpy(rows),
            image_id=[str(name) for name in self.image_ids[rows]],
            patient_id=[str(name) for name in self.patient_ids[rows]],
        )
        repeated = [epoch == REPEATED for epoch, _ in items]
        if any(repeated):
            batch["repeated"] = torch.tensor(repeated)
        if self.draws is not None:
            batch["draws"] = torch.from_numpy(self.draws.of(items[0][0], rows))
        return batch

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would travel as a copy of every pixel.
        state = self.__dict__.copy()
        for name in ("pixels", "masks"):
            if isinstance(state[name], np.memmap) and state[name].filename is not None:
                state[name] = str(state[name].filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("pixels", "masks"):
            if isinstance(state[name], str):
                state[name] = np.load(state[name], mmap_mode="r", allow_pickle=False)
        self.__dict__.update(state)

    def _named(self, make: Callable[..., Made], row: int, *args: Any) -> Made:
        """What `make` gives for an image; its error names the image."""
        try:
            return make(*args)
        except Exception as error:
            raise DataError(
                f"image {self.image_ids[row]}: {type(error).__name__}: {error}"
            ) from error

    def _seeds(self, items: list[tuple[int, int]]) -> list[int]:
        return [derive_seed(self.seed, "augment", epoch, row) for epoch, row in items]

    def _view(self, image: Pixels, seed: int) -> Pixels:
        return self.view(image, seed) if isinstance(self.view, RandomView) else self.view(image)

    def _both(self, image: Pixels, mask: Pixels, seed: int) -> tuple[Pixels, Pixels]:
        if isinstance(self.view, RandomView):
            return self.view.with_mask(image, mask, seed)
        # Shrinking leaves grey at the edges.
        return self.view(image), np.where(self.view(mask) > 127, 255, 0).astype(np.uint8)


def _mask_fields(masks: list[Pixels]) -> tuple[Tensor, Tensor, Tensor]:
    if masks[0].ndim != 2:
        raise ConfigError("masks have no ten crops; use the test_view resize, center_crop or whole")
    boxes = [box_of_mask(mask) for mask in masks]
    found = [np.zeros(4) if box is None else box for box in boxes]
    return (
        torch.from_numpy(np.stack(masks)).unsqueeze(1),
        torch.from_numpy(np.stack(found)).float(),
        torch.tensor([box is not None for box in boxes]),
    )


def _as_is(batch: Batch) -> Batch:
    return batch


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the loader processes are the parallelism


class CxrDataModule(L.LightningDataModule):
    """Loaders of one fold: `parts` [N] says train, val or test (or none) of each row of the index."""

    def __init__(
        self,
        index: Index,
        pixels: Pixels | Films,
        parts: npt.NDArray[np.object_],
        recipe: Recipe,
        *,
        size: int,
        seed: int,
        workers: int = 0,
        fit_part: str = "train",
        masks: Pixels | None = None,
        pin: bool = False,
        resident: bool = False,
    ) -> None:
        super().__init__()
        self.pin = pin  # batches lie where a GPU copies them from without waiting
        # Films of many shapes are cropped by the loader, and only what it leaves alone lies on a device.
        self.resident = Resident(pixels) if resident and not isinstance(pixels, Films) else None
        self.index, self.pixels, self.masks, self.recipe = index, pixels, masks, recipe
        self.size, self.seed, self.workers = size, seed, workers
        if isinstance(pixels, Films):
            require_crops(recipe)
        self.most: int | None = None  # images that a device is given at once; None: its whole share
        self.rows = {part: np.flatnonzero(parts == part) for part in PARTS}
        if fit_part == "all":
            self.rows["train"] = np.flatnonzero(np.isin(parts.astype(str), PARTS))

    def share(self, world: int) -> int:
        """Images of a batch that each of `world` devices gets."""
        return min(self.recipe.batch_size, len(self.rows["train"])) // world

    def parts(self, world: int) -> int:
        """Into how many equal parts that share is cut, so that none has more than `most` images."""
        share = self.share(world)
        return share // equal_part(share, self.most) if self.most and share else 1

    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the same for any number of devices."""
        batches = max(1, len(self.rows["train"]) // self.recipe.batch_size)
        return -(-batches // self.recipe.accumulate)

    def _require(self, part: str) -> None:
        if not len(self.rows[part]):
            raise DataError(f"{self.index.dataset}: the {part} part of this fold has no image")

    def _weights(self) -> npt.NDArray[np.float64] | None:
        if self.recipe.sampler == "shuffle":
            return None
        balanced = self.recipe.sampler == "balanced"
        rows = self.rows["train"]
        return balanced_weights(self.index, rows) if balanced else self._matched()[0]

    def _matched(self) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
        return matched_weights(self.index, self.rows["train"])

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _loader(
        self,
        view: FixedView | RandomView,
        batches: EpochBatches,
        parts: int = 1,
        draws: Draws | None = None,
    ) -> DataLoader[Batch]:
        # A device gathers in a hook of the trainer, so only where there is one.
        there = self.resident is not None and self.trainer is not None and self.masks is None
        there = there and not isinstance(self.pixels, Films) and view.leaves(self.pixels.shape[-1])
        dataset = ViewDataset(
            self.pixels, self.index, view, self.seed, self.masks, draws, resident=there
        )
        loader = (CutLoader if parts > 1 else DataLoader)(
            dataset,
            batch_sampler=batches,
            collate_fn=_as_is,  # type: ignore[arg-type]
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=_start_worker,
            pin_memory=self.pin,
            timeout=WORKER_TIMEOUT if self.workers else 0,
            # Its own generator: making an iterator must not draw from the global one.
            generator=torch.Generator().manual_seed(0),
            # A fork shares the index and the map at once; the others import torch for seconds.
            multiprocessing_context="fork" if self.workers else None,
        )
        if isinstance(loader, CutLoader):
            loader.parts = parts
        return loader

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in a random order, from where an interrupted training stopped."""
        recipe, (rank, world) = self.recipe, self._ranks()
        self._require("train")
        if recipe.batch_size % world:
            raise ConfigError(
                f"recipe.batch_size {recipe.batch_size} does not divide among {world} devices; "
                f"choose a multiple of {world}"
            )
        batches = EpochBatches(
            self.rows["train"],
            recipe.batch_size,
            train=True,
            seed=self.seed,
            rank=rank,
            world=world,
            weights=self._weights(),
        )
        if self.trainer is not None:
            loop: Any = self.trainer.fit_loop
            # Lightning's own set_epoch comes too late for the first epoch after a resume.
            batches.set_epoch(loop.epoch_progress.current.processed)
            # At an epoch's end the count of its batches still stands, though the next one begins.
            done = loop.epoch_loop.batch_progress.current.ready // self.parts(world)
            batches.skip = done % len(batches)
        parts = self.parts(world)
        if recipe.augment.on == "device":
            draws = Draws(self.seed, len(self.pixels))
            return self._loader(self._before_draws(), batches, parts, draws)
        crop = recipe.train_view == "random_crop"
        view = RandomView(self._train_side(), crop=crop, augment=recipe.augment)
        return self._loader(view, batches, parts)

    def _train_side(self) -> int:
        if self.recipe.train_view != "whole" or isinstance(self.pixels, Films):
            return self.size
        return int(self.pixels.shape[-1])

    def _before_draws(self) -> FixedView:
        """What a loader process does with an image that a device will crop and augment."""
        if self.masks is not None:
            raise ConfigError(
                "recipe.augment.on: masks are moved with their images in loader processes alone; choose loader"
            )
        return fixed_view("resize" if self.recipe.train_view == "resize" else "whole", self.size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Gather, crop and augment where the batch is now, as far as that was left to the device."""
        if "image" not in batch:
            assert self.resident is not None
            batch["image"] = self.resident.gather(batch["row"])
        if "draws" in batch:
            draws = batch.pop("draws")
            batch["image"] = augmented(
                batch["image"], draws, self._train_side(), self.recipe.augment
            )
        return batch

    def evaluation_dataloader(self, part: str, view: str) -> DataLoader[Batch]:
        """Every image of a part once over all ranks, in order; what fills up the last batches is marked."""
        self._require(part)
        rank, world = self._ranks()
        if len(self.rows[part]) < world:
            raise DataError(
                f"{self.index.dataset}: the {part} part of this fold has {len(self.rows[part])} images, too few "
                f"for {world} devices"
            )
        size = max(1, self.recipe.batch_size // world)
        size = min(size, self.most or size)
        batches = EpochBatches(
            self.rows[part], size, train=False, seed=self.seed, rank=rank, world=world
        )
        return self._loader(fixed_view(view, self.size), batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation part, unchanged."""
        return self.evaluation_dataloader("val", self.recipe.validation_view)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test part in the recipe's test view."""
        return self.evaluation_dataloader("test", self.recipe.test_view)

    def predict_dataloader(self) -> Sequence[DataLoader[Batch]]:
        """The validation and the test part, both in the recipe's test view."""
        view = self.recipe.test_view
        return [self.evaluation_dataloader(part, view) for part in ("val", "test")]

    def facts(self) -> dict[str, Any]:
        """Image and patient counts of each part, for the record, and of pools that are matched by age and sex."""
        found: dict[str, Any] = {
            part: {"images": len(rows), "patients": len(set(self.index.patient_ids[rows]))}
            for part, rows in self.rows.items()
        }
        if self.recipe.sampler == "matched":
            found["matched"] = self._matched()[1]
        return found
