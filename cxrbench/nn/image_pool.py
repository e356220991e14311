"""A store of made images, so that a discriminator also sees older ones (Shrivastava et al., CVPR 2017)."""

import torch
from torch import Tensor

from cxrbench.core.errors import ConfigError, DataError


class ImagePool:
    """Up to `size` images; a full pool gives an older one back half of the time.

    While it fills, every image is kept and returned. Then each image, with probability 1/2, takes the place
    of one drawn at random, which is returned in its stead; else it is returned and not kept. Images of one
    batch come one after the other. A pool of size 0 returns what it is given.

    Draws come from torch's global generator on the CPU, whatever the images' device. Each rank has its own
    pool, so it is no module: DDP would make the buffers of all ranks equal to rank 0's. A checkpoint that is
    written by rank 0 has to gather `state` from all.
    """

    def __init__(self, size: int = 50) -> None:
        if size < 0:
            raise ConfigError(f"pool size {size}: must be 0 or more")
        self.size = size
        self._kept: Tensor | None = None  # [size, C, H, W], of which the first `_count` count
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @torch.no_grad()
    def exchange(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] for as many new or older ones, float32 and without gradient."""
        images = images.detach().float()
        if self.size == 0:
            return images
        kept = self._room(images)
        given = []
        for image in images:
            if self._count < self.size:
                kept[self._count] = image
                self._count += 1
            elif torch.rand(()).item() > 0.5:
                place = int(torch.randint(self.size, ()))
                older = kept[place].clone()
                kept[place] = image
                image = older
            given.append(image)
        return torch.stack(given)

    def state(self) -> Tensor:
        """What is kept, [n, C, H, W] float32, in its order; [0, 0, 0, 0] of an empty pool."""
        if self._kept is None:
            return torch.empty(0, 0, 0, 0)
        return self._kept[: self._count].clone()

    def restore(self, state: Tensor) -> None:
        """Take what `state` gave; DataError when it does not fit this pool."""
        if state.ndim != 4 or len(state) > self.size:
            raise DataError(
                f"state of an image pool: {tuple(state.shape)}; expected [n, C, H, W] with n up to "
                f"{self.size}; resume with the pool size that the training began with"
            )
        self._count, self._kept = len(state), None
        if len(state):
            self._kept = state.new_empty((self.size, *state.shape[1:]), dtype=torch.float32)
            self._kept[: len(state)] = state

    def _room(self, images: Tensor) -> Tensor:
        """The store, on the images' device."""
        if self._kept is None:
            self._kept = images.new_empty((self.size, *images.shape[1:]))
        elif self._kept.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"images {tuple(images.shape)}: the pool keeps images of {tuple(self._kept.shape[1:])}"
            )
        self._kept = self._kept.to(images.device)
        return self._kept
