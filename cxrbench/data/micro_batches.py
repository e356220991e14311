"""A batch in equal parts, for a device on which it does not fit: the same images and the same loss a step.

The trainer divides the loss of each part by their number. That is the loss of the batch where this is a mean
over images; of a mean over known labels, `known_count` says how many its equal share has.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader


def equal_part(images: int, at_most: int) -> int:
    """The largest number of images that divides a batch and is no more than `at_most`."""
    return next(size for size in range(min(images, max(1, at_most)), 0, -1) if images % size == 0)


def cut(batch: dict[str, Any], parts: int) -> Iterator[dict[str, Any]]:
    """Equal parts of a batch, each with the batch's `known_count` / parts, float []."""
    images = len(batch["row"])
    if images % parts:
        raise ValueError(f"{images} images do not divide into {parts} parts")
    known: Tensor = batch["known"]
    share = known.sum().clamp(min=1) / parts
    size = images // parts
    for start in range(0, images, size):
        part = {name: values[start : start + size] for name, values in batch.items()}
        yield {**part, "known_count": share}


class CutLoader(DataLoader[Any]):
    """A loader of whole batches that gives them in `parts`."""

    parts = 1

    def __len__(self) -> int:
        return super().__len__() * self.parts

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            yield from cut(batch, self.parts)
