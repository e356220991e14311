"""Batches from the pixel cache against what one would write instead; caches.py has its making.

S: side of a view. The films are drawn by the phantom and saved as PNG files; the cache of a comparison holds
what its peer computes anew each time, so that the pixels must be the same bit for bit. The process has
one thread (`cxrbench perf` sees to it), the files lie in the page cache, loaders have no workers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Normalize

from cxrbench.core.spec import Augment, Recipe
from cxrbench.data.index import Index
from cxrbench.data.module import CxrDataModule
from cxrbench.data.painter import paint_image, sample_cohort
from cxrbench.data.pixels import Grey, decode, resize
from cxrbench.nn.backbones import ImageNetInput, to_unit
from cxrbench.perf import caches
from cxrbench.perf.harness import (
    Absent,
    Comparison,
    Goal,
    Item,
    close_arrays,
    same_arrays,
)

LABELS = tuple(f"finding {number}" for number in range(14))
MOVED = Augment(rotate=10, shift=0.05, scale=0.1, contrast=0.25, brightness=0.1)  # as in `tuned`


def draw_films(folder: Path, films: int, side: int) -> list[Path]:
    """PNG files of drawn films [side, side]."""
    folder.mkdir(parents=True)
    paths = []
    for number, study in enumerate(sample_cohort(films, seed=0, enrichment=3)[:films]):
        paths.append(folder / f"{number}.png")
        Image.fromarray(paint_image(study, side)).save(paths[-1])
    return paths


def by_pillow(path: Path, size: int) -> Grey:
    """The idiom of most training code: open, RGB, Pillow's resize; one of three equal channels [S, S]."""
    with Image.open(path, formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB").resize((size, size)))[..., 0]


def by_opencv(path: Path, size: int) -> Grey:
    """Grey and area averaging, [S, S]."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True)
class Cached:
    """A memory map of pixels [N, S, S] and the training loader on it."""

    pixels: npt.NDArray[np.uint8]
    loader: DataLoader[Any]


def serve(
    path: Path, images: npt.NDArray[np.uint8], rows: int, batch: int, **recipe: Any
) -> Cached:
    """`rows` images, those given over and over, as CxrDataModule serves them to a training."""
    side = images.shape[-1]
    whole = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(rows, side, side))
    for start in range(0, rows, len(images)):
        whole[start : start + len(images)] = images[: rows - start]
    whole.flush()
    pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    names = [f"{row:06d}" for row in range(rows)]
    frame = pd.DataFrame({"image_id": names, "patient_id": names, "path": ""})
    frame[list(LABELS)] = 0.0
    chosen = Recipe(
        **{"batch_size": batch, "load": side, "size": side, "train_view": "whole", **recipe}
    )
    module = CxrDataModule(
        Index("perf", frame, LABELS), pixels, np.full(rows, "train", object), chosen,
        size=chosen.size, seed=0,
    )  # fmt: skip
    return Cached(pixels, module.train_dataloader())


class Epoch:
    """Runs through a loader. The first call's batches are the result; later ones are dropped at once."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.first = True

    def __call__(self) -> dict[int, Tensor]:
        kept: dict[int, Tensor] = {}
        for batch in self.loader:
            if self.first:
                kept.update(zip(batch["row"].tolist(), batch["image"], strict=True))
        self.first = False
        return kept


class PerSample(Dataset[dict[str, Tensor]]):
    """An image at a time from the same map, made float and normalised as torchvision does it."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.pixels = pixels
        first = ImageNetInput()
        self.normalise = Normalize(first.mean.flatten().tolist(), first.std.flatten().tolist())
        self.target = torch.zeros(len(pixels), len(LABELS))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        image = torch.from_numpy(self.pixels[row].copy()).float().div(255)
        normal: Tensor = self.normalise(image.expand(3, -1, -1))
        return {"image": normal, "target": self.target[row], "row": torch.tensor(row)}


def _as_floats(ours: dict[int, Tensor], peer: dict[int, Tensor]) -> str:
    """Our bytes, normalised where the network does it, against the peer's floats."""
    rows = sorted(peer)
    if not set(rows) <= set(ours):
        return "rows are missing"
    batch = ImageNetInput()(to_unit(torch.stack([ours[row] for row in rows])))
    return same_arrays(batch.numpy(), torch.stack([peer[row] for row in rows]).numpy())


def comparisons(
    folder: Path,
    *,
    films: int = 12,
    side: int = 1024,
    size: int = 224,
    rows: int = 2048,
    batch: int = 64,
    sizes: Sequence[int] = caches.SIZES,
    lengths: tuple[int, int] = (1000, 4000),
) -> Iterator[Item]:
    """All of this topic."""
    paths = draw_films(folder / "films", films, side)
    yield from _against_decoding(folder, paths, size, rows, batch)
    random = np.random.default_rng(0).integers(0, 256, (rows, size, size), dtype=np.uint8)
    yield from _against_memory(folder, random, batch)
    yield from _views(folder, random[:512], batch)
    yield _against_torchxrayvision(folder, paths, size, rows, batch)
    yield from caches.comparisons(folder, paths, size, sizes=sizes, images=lengths)


def _against_decoding(
    folder: Path, paths: list[Path], size: int, rows: int, batch: int
) -> Iterator[Item]:
    readers: dict[str, tuple[Callable[[Path, int], Grey], str, Goal | None]] = {
        "pillow": (by_pillow, "PIL decode, RGB, resize", Goal("ratio", 1000, least=True)),
        "opencv": (by_opencv, "cv2 decode to grey, area", None),
    }
    for name, (read, what, goal) in readers.items():
        images = np.stack([read(path, size) for path in paths])
        served = serve(folder / f"{name}.npy", images, rows, batch)

        def peer(read: Callable[[Path, int], Grey] = read) -> Grey:
            return np.stack([read(path, size) for path in paths])

        def equal(ours: dict[int, Tensor], peer: Grey) -> str:
            if not ours:
                return "no batch"
            expected = np.stack([peer[row % len(peer)] for row in sorted(ours)])
            found = np.stack([ours[row][0].numpy() for row in sorted(ours)])
            return same_arrays(found, expected)

        yield Comparison(
            f"data/{name}",
            f"training batches of {size} px / {what} of each PNG",
            ours=Epoch(served.loader),
            peer=peer,
            equal=equal,
            goal=goal,
            units=(len(served.loader) * batch, len(paths)),
            unit="image",
            note=f"{len(paths)} drawn films, decoded anew each time; uint8, no augmentation.",
        )


def _against_memory(folder: Path, images: npt.NDArray[np.uint8], batch: int) -> Iterator[Item]:
    images = images[: len(images) // batch * batch]  # a last incomplete batch would be left out
    served = serve(folder / "random.npy", images, len(images), batch)
    few = PerSample(served.pixels[: max(batch, len(images) // 8)])
    yield Comparison(
        "data/per-sample",
        "training batches / a per-sample float DataLoader on the same map",
        ours=Epoch(served.loader),
        peer=Epoch(DataLoader(few, batch_size=batch)),
        equal=_as_floats,
        goal=Goal("ratio", 20, least=True),
        units=(len(images), len(few)),
        unit="image",
        note="Ours stay uint8 with one channel; the network's first layer makes them float.",
    )
    normalise = ImageNetInput()
    fewer = serve(folder / "fewer.npy", images, len(few), batch)

    def made_float() -> None:
        for found in fewer.loader:
            normalise(to_unit(found["image"]))

    yield Comparison(
        "data/per-sample-float",
        "the same, our batches made float on the CPU too",
        ours=made_float,
        peer=Epoch(DataLoader(few, batch_size=batch)),
        units=(len(few), len(few)),
        unit="image",
        note="Same pixels as the row above, whose equality was checked.",
    )
    buffer = np.empty((batch, *images.shape[1:]), np.uint8)
    order = np.random.default_rng(1).permutation(len(images))

    def take() -> npt.NDArray[np.uint8]:
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            # With its default mode numpy.take goes through a second buffer and is slower.
            np.take(served.pixels, rows, axis=0, out=buffer[: len(rows)], mode="clip")
        return buffer.copy()

    def same_last(ours: dict[int, Tensor], peer: npt.NDArray[np.uint8]) -> str:
        last = order[-batch:].tolist()
        if not set(last) <= set(ours):
            return "rows are missing"
        return same_arrays(np.stack([ours[row][0].numpy() for row in last]), peer)

    yield Comparison(
        "data/take",
        "training batches / numpy.take into one reused buffer",
        ours=Epoch(served.loader),
        peer=take,
        equal=same_last,
        goal=Goal("ratio", 0.6, least=True),
        units=(len(images), len(images)),
        unit="image",
    )


def _views(folder: Path, images: npt.NDArray[np.uint8], batch: int) -> Iterator[Item]:
    """What the views cost: albumentations an image at a time, meant for loader processes."""
    side = images.shape[-1]
    recipes: dict[str, dict[str, Any]] = {
        "crop": {"train_view": "random_crop", "size": side * 7 // 8},
        "augmented": {"train_view": "random_crop", "size": side * 7 // 8, "augment": MOVED},
    }
    plain = serve(folder / "plain.npy", images, len(images), batch)
    for name, recipe in recipes.items():
        seen = serve(folder / f"{name}.npy", images, len(images), batch, **recipe)
        yield Comparison(
            f"data/{name}",
            f"batches of the view `{name}` / batches as they are",
            ours=Epoch(seen.loader),
            peer=Epoch(plain.loader),
            equal=lambda ours, peer: "" if sorted(ours) == sorted(peer) else "other rows",
            units=(len(seen.loader) * batch,) * 2,
            unit="image",
            note="Below 1 by intent: what augmentation costs one core. The rows are equal, not the pixels.",
        )


def _against_torchxrayvision(
    folder: Path, paths: list[Path], size: int, rows: int, batch: int
) -> Item:
    """Its data set reads, scales and squeezes a PNG file each time; ours serves what the cache holds."""
    name = "data/torchxrayvision"
    what = f"training batches of {size} px / torchxrayvision's NIH_Dataset with its resizer on the PNG files"
    try:
        peer_library = import_module("torchxrayvision")
    except ImportError as error:
        return Absent(name, what, f"pip install torchxrayvision ({error})")
    said = {
        "Finding Labels": "No Finding",
        "View Position": "PA",
        "Patient Age": 50,
        "Patient Gender": "F",
    }
    rated = pd.DataFrame(
        [{"Image Index": path.name, "Patient ID": row, **said} for row, path in enumerate(paths)]
    )
    rated.to_csv(folder / "nih.csv", index=False)
    films = peer_library.datasets.NIH_Dataset(
        str(folder / "films"), csvpath=str(folder / "nih.csv"), unique_patients=False,
        transform=peer_library.datasets.XRayResizer(size, engine="cv2"),
    )  # fmt: skip
    images = np.stack([resize(decode(path), size) for path in paths])
    served = serve(folder / "xrv.npy", images, rows, batch)

    def peer() -> npt.NDArray[np.float32]:
        return np.stack([films[row]["img"][0] for row in range(len(films))])

    def equal(ours: dict[int, Tensor], peer: npt.NDArray[np.float32]) -> str:
        expected = np.stack([peer[row % len(peer)] for row in sorted(ours)])
        found = np.stack([ours[row][0].numpy() for row in sorted(ours)])
        # Theirs lie between -1024 and 1024; ours were rounded to grey levels.
        return close_arrays(found, (expected / 1024 + 1) / 2 * 255, 0.501)

    return Comparison(
        name, what, ours=Epoch(served.loader), peer=peer, equal=equal,
        units=(len(served.loader) * batch, len(paths)), unit="image",
        note="Equal to half a grey level: theirs are squeezed as floats. Its resizer with cv2, the quicker of its two.",
    )  # fmt: skip
