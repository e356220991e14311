"""What the trainings of a plan cost: floating-point operations of a step, counted, times images and epochs.

A step runs on tensors without memory, forward and backward, under torch's own counter. Nothing is timed: hours need a
rate, and what a device sustains differs by network (what moves memory is slower than what multiplies).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cxrbench.core.registry import load_target
from cxrbench.core.stage import DataView, Stage
from cxrbench.data.splits import fewer_trained
from cxrbench.runner.context import Context
from cxrbench.runner.graph import Graph

BATCH = 2
FORWARD = 1 / 3  # of a step's operations; the backward pass has two for each of them

# (training, validation) images of a view's fold
Images = Callable[[DataView], tuple[int, int]]


@dataclass(frozen=True)
class Cost:
    """One kind of training on one data set; None where the operations hang on values (a detector's boxes)."""

    training: str
    dataset: str
    count: int  # trainings of this kind
    epochs: int
    side: int  # of the images in a batch, in pixels
    images: int  # that are trained on: a fold's, the mean over folds
    step: float | None  # operations of a training step, for each image
    weights: int  # bytes
    flops: float | None  # of all trainings of this kind, validation in it
    stages: tuple[str, ...]  # their keys


class _Drawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a step draws by chance comes true: every film that may be translated is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool
        return func(*args, **(kwargs or {}))


def step_flops(stage: Stage) -> tuple[float | None, int, int]:
    """(operations of a step for each image, bytes of weights, side of the images) of a training."""
    cls = load_target(stage.target)
    params = cls.without_weights(cls.Params.parse(dict(stage.params), where=stage.key))
    side, labels = cls.image_size(params)[1], len(stage.data.labels)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = cls(params, stage.data.labels)
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        if cls.reads_masks(params):
            return None, weights, side
        batch = {
            "image": torch.empty(BATCH, 1, side, side, dtype=torch.uint8),
            "target": torch.empty(BATCH, labels),
            "known": torch.empty(BATCH, labels, dtype=torch.bool),
            "row": torch.empty(BATCH, dtype=torch.int64),
            "domains": {"healthy": [0], "sick": [1]},  # of a CycleGAN: half and half
        }
        with FlopCounterMode(display=False) as counter, _Drawn():  # type: ignore[no-untyped-call]
            found = module.training_step(batch, 0)
            (found["loss"] if isinstance(found, Mapping) else found).backward()
    return counter.get_total_flops() / BATCH, weights, side


def images_of(context: Context) -> Images:
    """Counts the images of a view's fold by opening its data set, each once."""
    known: dict[tuple[str, int, int | None], tuple[int, int]] = {}

    def count(view: DataView) -> tuple[int, int]:
        key = view.split_digest, view.fold, view.train_images
        if key not in known:
            opened = context.open(view)
            parts = opened.split.parts(opened.index, view.fold)
            if view.train_images is not None:
                parts = fewer_trained(parts, opened.index.image_ids, view.train_images)
            known[key] = int(np.sum(parts == "train")), int(np.sum(parts == "val"))
        return known[key]

    return count


def training_costs(graph: Graph, images: Images) -> list[Cost]:
    """The trainings of a plan by name, data set and recipe, the dearest first."""
    kinds: dict[tuple[str, str, str], list[Stage]] = defaultdict(list)
    for stage in graph.values():
        if stage.kind == "fit":
            kinds[stage.name, stage.data.dataset, str(stage.params)].append(stage)
    known: dict[tuple[str, str, int], tuple[float | None, int, int]] = {}
    found = []
    for (name, dataset, params), stages in kinds.items():
        network = name, params, len(stages[0].data.labels)
        if network not in known:
            known[network] = step_flops(stages[0])
        step, weights, side = known[network]
        epochs = int(stages[0].params["recipe"]["epochs"])
        parts = [images(stage.data) for stage in stages]
        total = None
        if step is not None:
            total = step * epochs * sum(train + val * FORWARD for train, val in parts)
        trained = round(sum(train for train, _ in parts) / len(parts))
        keys = tuple(stage.key for stage in stages)
        found.append(
            Cost(name, dataset, len(stages), epochs, side, trained, step, weights, total, keys)
        )
    return sorted(found, key=lambda cost: -(cost.flops or 0.0))


def longest_chain(graph: Graph, found: list[Cost]) -> float:
    """Operations of the longest chain of trainings that must follow one another, which no number of GPUs shortens."""
    own = {key: (cost.flops or 0.0) / cost.count for cost in found for key in cost.stages}
    longest: dict[str, float] = {}
    for digest, stage in graph.items():  # parents first
        before = max((longest[parent.digest] for parent in stage.parents()), default=0.0)
        longest[digest] = before + own.get(stage.key, 0.0)
    return max(longest.values(), default=0.0)


def hours(flops: float, sustained: float, gpus: int = 1, chain: float = 0.0) -> float:
    """At least so many hours on GPUs that each sustain so many operations a second; `chain` runs on one of them."""
    return max(flops / gpus, chain) / sustained / 3600
