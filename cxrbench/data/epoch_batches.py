"""Which rows are in which batch of an epoch: a function of the seed, the epoch and the rank."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cxrbench.core.errors import DataError
from cxrbench.core.seed import derive_seed

Rows = npt.NDArray[np.int64]
REPEATED = -1  # in place of the epoch: an image that only fills up a rank's last batch


class EpochBatches:
    """Batches of (epoch, row) for one rank; the order is a function of seed and epoch.

    Training: every global batch is cut among the ranks, so that devices do not change what a step sees;
    a last incomplete batch is left out. `weights` draws with replacement instead. Evaluation: rows in order, the last ranks padded with repeated
    rows, which are marked.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        *,
        train: bool,
        seed: int,
        rank: int,
        world: int,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.weights = weights  # [rows], sum 1: drawn with replacement; None: each once
        self.rows, self.train, self.seed = rows, train, seed
        self.rank, self.world = rank, world
        self.batch_size = batch_size
        if train and len(rows) < batch_size:  # one batch of all, of equal parts for the ranks
            self.batch_size = len(rows) - len(rows) % world
            if not self.batch_size:
                raise DataError(f"{len(rows)} training images are too few for {world} devices")
        self.epoch = 0
        self.skip = 0  # batches of this epoch that an interrupted training has already seen
        # Lightning calls set_epoch on `batch_sampler.sampler` only, never on a batch sampler itself.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.train:
            return len(self.rows) // self.batch_size
        return -(-len(self.rows) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        skip, self.skip = self.skip, 0
        batches = self._train_batches() if self.train else self._evaluation_batches()
        for number, rows in enumerate(batches):
            if number >= skip:
                yield rows

    def _train_batches(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng(derive_seed(self.seed, "order", self.epoch))
        if self.weights is None:
            shuffled = order.permutation(self.rows)
        else:
            shuffled = order.choice(self.rows, size=len(self.rows), p=self.weights)
        for number in range(len(self)):
            batch = shuffled[number * self.batch_size : (number + 1) * self.batch_size]
            yield [(self.epoch, int(row)) for row in batch[self.rank :: self.world]]

    def _evaluation_batches(self) -> Iterator[list[tuple[int, int]]]:
        share = len(self) * self.batch_size
        count = share * self.world if self.world > 1 else len(self.rows)
        mine = [
            (
                self.epoch if place < len(self.rows) else REPEATED,
                int(self.rows[place % len(self.rows)]),
            )
            for place in range(self.rank, count, self.world)
        ]
        for start in range(0, len(mine), self.batch_size):
            yield mine[start : start + self.batch_size]
