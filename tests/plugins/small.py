"""Small networks as loose files: what `--plugin` takes."""

import numpy as np
import torch
from torch import nn

from cxrbench.core.contract import Transformation
from cxrbench.core.frozen import Frozen
from cxrbench.core.spec import Augment, MethodParams, Recipe
from cxrbench.core.stage import compute, fit, transform
from cxrbench.methods.base import Classifier, weights_in

RECIPE = Recipe(
    epochs=4,
    batch_size=8,
    optimizer="adamw",
    learning_rate=1e-3,
    schedule="cosine",
    warmup_epochs=0.5,
    size=32,
    load=36,
    augment=Augment(rotate=10, contrast=0.2),
)


class SmallParams(MethodParams):
    recipe: Recipe = RECIPE


class Small(Classifier):
    """A small network with dropout and batch norm."""

    name = "small"
    version = 1
    Params = SmallParams
    presets = {"quick": {}}

    def __init__(self, params, labels):
        super().__init__(params, labels)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
            nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, len(labels)),
        )  # fmt: skip

    def forward(self, image):
        return self.net(image)


class NoParams(Frozen):
    pass


class MeanFilm:
    """The mean of the training films: a `compute` stage."""

    name = "mean-film"
    version = 1
    Params = NoParams

    def __init__(self, params):
        pass

    def image_size(self):
        return 36

    def compute(self, images, targets, inputs, out, seed):
        mean = images[:].mean(axis=0)
        np.save(out / "mean.npy", mean)
        return {"images": len(images), "mean": float(mean.mean())}


class Difference(Transformation):
    """Each film minus the mean film: a `transform` stage."""

    name = "difference"
    version = 1
    Params = NoParams

    def __init__(self, params):
        self.mean = None

    def image_size(self):
        return 36

    def open(self, inputs, device):
        self.mean = np.load(inputs["mean"] / "mean.npy")

    def __call__(self, images):
        return np.clip(128 + images - self.mean, 0, 255).astype(np.uint8)


class SmallOnDifference(Small):
    """The small network on films from which the mean film is taken away."""

    name = "small-difference"
    version = 1
    presets = {"quick": {}}

    @classmethod
    def view(cls, data, params):
        return transform(Difference, data, mean=compute(MeanFilm, data))

    @classmethod
    def stages(cls, data, params):
        return fit(cls, cls.view(data, params), params)

    @classmethod
    def analyses(cls, data, params, model):
        return {"tested films": compute(MeanFilm, data, part="test", model=model)}


class SmallPretrained(Small):
    """The small network, begun with what it learned on another data set."""

    name = "small-pretrained"
    version = 1
    presets = {"quick": {}}

    @classmethod
    def stages(cls, data, params):
        return fit(cls, data, params, teacher=fit(Small, data.beside("striped"), params))

    def receive(self, inputs):
        weights = weights_in(inputs["teacher"])
        body = {name: value for name, value in weights.items() if not name.startswith("net.8")}
        self.load_state_dict(body, strict=False)


class SmallLeak(Small):
    """Fits on another fold than it is tested on; must be refused."""

    name = "small-leak"
    version = 1
    presets = {"tuned": {}}

    @classmethod
    def stages(cls, data, params):
        return fit(cls, data.at(fold=1), params)


class SmallBroken(Small):
    """Its loss is not a number after the first steps."""

    name = "small-broken"
    version = 1
    presets = {"paper": {}}

    def losses(self, batch):
        found = super().losses(batch)
        if self.global_step >= 3:
            found["loss"] = found["loss"] * torch.tensor(float("nan"))
        return found
