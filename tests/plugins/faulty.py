"""A small network whose training meets with a fault that its parameters name."""

import os
import signal
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cxrbench.core.contract import Transformation
from cxrbench.core.frozen import Frozen
from cxrbench.core.spec import MethodParams, Recipe
from cxrbench.core.stage import compute, fit, transform
from cxrbench.methods.base import Classifier

Fault = Literal["", "nan", "nan weight", "memory", "host memory", "raise", "kill", "hang"]
# "4,10": from step 10 on there is memory for 4 images at once. Not a parameter: it changes no digest.
HOLDS = "CXRBENCH_TEST_HOLDS"
FULL = "CUDA out of memory. Tried to allocate 9.00 GiB."
# The step during which the training is asked to stop.
ASKED = "CXRBENCH_TEST_ASKED"
# A file with the GiB that others hold of a GPU of 24, of which the training takes 8 from its fourth step on.
OTHERS = "CXRBENCH_TEST_OTHERS"
REPORT = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 24.00 GiB of which {free} GiB is "
    "free. Including non-PyTorch memory, this process has 6.50 GiB memory in use. Of the allocated memory 6.00 GiB "
    "is allocated by PyTorch, and 128.00 MiB is reserved by PyTorch but unallocated. If reserved ..."
)


TINY = Recipe(epochs=2, batch_size=8, learning_rate=1e-2, size=16, load=16)


class FaultyParams(MethodParams):
    """`fault` comes at a step of the training, on a rank or, with -1, on all of them."""

    fault: Fault = ""
    step: int = 2
    rank: int = -1
    recipe: Recipe = TINY


class Faulty(Classifier):
    """A linear map of tiny films."""

    name = "faulty"
    version = 1
    Params = FaultyParams
    presets = {"quick": {}}

    def __init__(self, params, labels):
        super().__init__(params, labels)
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, len(labels)))

    def forward(self, image):
        return self.net(image)

    def losses(self, batch):
        found = super().losses(batch)
        params = self.params
        if HOLDS in os.environ:
            most, since = map(int, os.environ[HOLDS].split(","))
            if len(batch["row"]) > most and self.global_step >= since:
                raise torch.OutOfMemoryError(FULL)
        if OTHERS in os.environ and self.global_step >= 3:
            free = 24 - 6.5 - float(Path(os.environ[OTHERS]).read_text())
            if free < 2:
                raise torch.OutOfMemoryError(REPORT.format(free=free))
        if os.environ.get(ASKED) == str(self.global_step):
            os.kill(os.getpid(), signal.SIGTERM)
        here = params.rank in (-1, self.trainer.global_rank)
        if here and params.fault and self.global_step == params.step:
            self.meet(params.fault, found)
        return found

    def meet(self, fault, found):
        if fault == "nan":
            found["loss"] = found["loss"] * float("nan")
        elif fault == "nan weight":  # of which the loss of its own step knows nothing
            found["loss"] = (
                found["loss"]
                + (self.net[1].weight[0, 0] - self.net[1].weight[0, 0].detach()).sqrt()
            )
        elif fault == "memory":
            raise torch.OutOfMemoryError(FULL)
        elif fault == "host memory":
            torch.empty(2**60)
        elif fault == "raise":
            raise ArithmeticError("the real cause")
        elif fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "hang":
            time.sleep(600)


class Undivided(Faulty):
    """Its loss is of the batch as a whole."""

    name = "undivided"
    version = 1
    divisible = False
    presets = {"quick": {}}


class NeedsGpu(Faulty):
    """Fails as if the GPU did, on those that the environment calls broken, and notes where it was begun."""

    name = "needs-gpu"
    version = 1
    presets = {"quick": {}}

    def on_train_start(self):
        here = os.environ["CUDA_VISIBLE_DEVICES"]
        with Path(os.environ["CXRBENCH_TEST_TRIES"]).open("a") as log:
            log.write(f"{here}\n")
        if here in os.environ["CXRBENCH_TEST_BROKEN"].split(","):
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with ...")


class NoParams(Frozen):
    pass


class MeanFilm:
    """The mean of the training films."""

    name = "slow-mean"
    version = 1
    Params = NoParams

    def __init__(self, params):
        pass

    def image_size(self):
        return 16

    def compute(self, images, targets, inputs, out, seed):
        time.sleep(0.3)
        np.save(out / "mean.npy", images[:].mean(axis=0))
        return {"images": len(images)}


class Difference(Transformation):
    """Each film minus the mean film."""

    name = "slow-difference"
    version = 1
    Params = NoParams

    def __init__(self, params):
        self.mean = None

    def image_size(self):
        return 16

    def open(self, inputs, device):
        self.mean = np.load(inputs["mean"] / "mean.npy")

    def __call__(self, images):
        time.sleep(0.1)
        return np.clip(128 + images - self.mean, 0, 255).astype(np.uint8)


class Chain(Faulty):
    """A training on rewritten films: stages of every kind, slow enough to be killed in."""

    name = "chain"
    version = 1
    presets = {"quick": {"recipe": TINY.model_copy(update={"epochs": 6}).model_dump()}}

    @classmethod
    def stages(cls, data, params):
        return fit(cls, transform(Difference, data, mean=compute(MeanFilm, data)), params)

    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)
