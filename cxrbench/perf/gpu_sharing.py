"""Processes that each train on the same GPU when they are told to."""

from multiprocessing.connection import Connection
from typing import Any

import torch.multiprocessing as processes

SECONDS = 120.0  # until a silent process is given up


def _serve(pipe: Connection, words: dict[str, Any]) -> None:
    """A process: makes its steps, then takes them each time it is told, and gives their losses."""
    import torch

    from cxrbench.core.spec import Execution
    from cxrbench.perf.gpu import OURS, Steps
    from cxrbench.runner.numerics import set_numerics

    torch.set_num_threads(1)
    set_numerics(Execution(accelerator="gpu"), "32-true")
    steps = Steps(**words, how=OURS)
    while pipe.recv():
        try:
            pipe.send(steps())
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


class Sharing:
    """Several processes with one training each; started at the first call."""

    def __init__(
        self, network: str, side: int, batch: int, device: str, steps: int, stages: int
    ) -> None:
        self.words = {
            "network": network, "side": side, "batch": batch, "device": device, "steps": steps,
        }  # fmt: skip
        self.stages = stages
        self._started: list[tuple[Any, Connection]] = []

    def at_once(self) -> list[float]:
        """All of them at the same time; their losses."""
        pipes = self._pipes()
        for pipe in pipes:
            pipe.send(True)
        return [loss for pipe in pipes for loss in _heard(pipe)]

    def one_by_one(self) -> list[float]:
        """Each when the one before it is done."""
        found = []
        for pipe in self._pipes():
            pipe.send(True)
            found += _heard(pipe)
        return found

    def close(self) -> None:
        """End the processes."""
        for process, pipe in self._started:
            pipe.close()
            process.terminate()
            process.join()
        self._started.clear()

    def _pipes(self) -> list[Connection]:
        if not self._started:
            context = processes.get_context("spawn")
            for _ in range(self.stages):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there, self.words), daemon=True)
                process.start()
                there.close()
                self._started.append((process, here))
        return [pipe for _, pipe in self._started]


def _heard(pipe: Connection) -> list[float]:
    if not pipe.poll(SECONDS):
        raise RuntimeError(f"a process that trains was silent for {SECONDS:.0f} s")
    found = pipe.recv()
    if isinstance(found, str):
        raise RuntimeError(found)
    losses: list[float] = found
    return losses
