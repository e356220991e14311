"""A training that goes slowly while a file exists, and one whose input cannot be made."""

import os
import time
from pathlib import Path

from torch import nn

from cxrbench.core.contract import Transformation
from cxrbench.core.frozen import Frozen
from cxrbench.core.spec import MethodParams, Recipe
from cxrbench.core.stage import compute, fit, transform
from cxrbench.methods.base import Classifier

BRAKE = "CXRBENCH_TEST_BRAKE"  # names the file
RECIPE = Recipe(epochs=4, batch_size=2, learning_rate=1e-3, size=32, load=36)


class BrakedParams(MethodParams):
    recipe: Recipe = RECIPE


class Braked(Classifier):
    """A small network with dropout, whose steps take 3 s while the brake is there."""

    name = "braked"
    version = 1
    Params = BrakedParams
    presets = {"quick": {}}

    def __init__(self, params, labels):
        super().__init__(params, labels)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(labels)),
        )  # fmt: skip

    def forward(self, image):
        return self.net(image)

    def losses(self, batch):
        if self.global_step >= 4 and os.environ.get(BRAKE) and Path(os.environ[BRAKE]).exists():
            time.sleep(3)
        return super().losses(batch)


class NoParams(Frozen):
    pass


class Impossible:
    """A `compute` stage that fails."""

    name = "impossible"
    version = 1
    Params = NoParams

    def __init__(self, params):
        pass

    def image_size(self):
        return 36

    def compute(self, images, targets, inputs, out, seed):
        raise ValueError("there is no such number")


class Unmade(Transformation):
    """Films that wait for what cannot be made."""

    name = "unmade"
    version = 1
    Params = NoParams

    def __init__(self, params):
        pass

    def image_size(self):
        return 36


class BrakedOnUnmade(Braked):
    """The small network on films that cannot be made."""

    name = "braked-unmade"
    version = 1
    presets = {"quick": {}}

    @classmethod
    def stages(cls, data, params):
        return fit(cls, transform(Unmade, data, number=compute(Impossible, data)), params)
