"""All pixels of a training on its device: a batch is then gathered there, and the loader sends numbers of rows."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cxrbench.core.errors import ConfigError

CHUNK = 1024  # images that are sent at once
MOST = 0.5  # of the device's free memory: the rest is for the network


class Resident:
    """uint8 images [N, L, L], sent to a device when it first asks for some."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self._there: Tensor | None = None

    def gather(self, row: Tensor) -> Tensor:
        """Images [B, 1, L, L] of the rows [B], on their device."""
        if self._there is None or self._there.device != row.device:
            self._there = self._sent(row.device)
        return self._there.index_select(0, row).unsqueeze(1)

    def _sent(self, device: torch.device) -> Tensor:
        if device.type == "cuda":
            check_room(self.pixels.nbytes, torch.cuda.mem_get_info(device)[0])
        there = torch.empty(self.pixels.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self.pixels), CHUNK):
            some = np.array(self.pixels[start : start + CHUNK])
            there[start : start + CHUNK].copy_(torch.from_numpy(some))
        return there


def check_room(needed: int, free: int) -> None:
    """Raise ConfigError where so many bytes are no guest on a device with so many free."""
    if needed > MOST * free:
        raise ConfigError(
            f"--resident: the pixels take {needed / 2**30:.1f} GiB of a GPU that has {free / 2**30:.1f} GiB free, of "
            f"which they may have {MOST:.0%}; leave it off"
        )
