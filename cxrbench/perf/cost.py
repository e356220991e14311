"""What the trainings of a plan cost, modelled: floating-point operations that are counted, times images and epochs.

The operations of a step are counted on fake tensors by torch's own counter, forward, and taken three times, as a
backward pass is two forward ones. Nothing here is timed, and what a GPU sustains is an assumption of whoever reads it.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cxrbench.core.registry import load_target
from cxrbench.core.stage import Stage
from cxrbench.runner.graph import Graph

BATCH = 2


@dataclass(frozen=True)
class Part:
    """Images of a data set's fold in each part."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Cost:
    """One kind of training on one data set; `flops` are those of all `count` of them, None where they hang on values."""

    training: str
    dataset: str
    count: int
    epochs: int
    image: float | None  # forward, of one image
    weights: int  # bytes
    flops: float | None


class Drawn(TorchDispatchMode):
    """What a step draws by chance comes true: every film that may be translated is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool
        return func(*args, **(kwargs or {}))


def forward_flops(stage: Stage) -> tuple[float | None, int]:
    """(floating-point operations of one image in a step's forward pass, bytes of weights) of a training.

    None where they hang on values: a detector's loss counts the boxes that match.
    """
    cls = load_target(stage.target)
    plain = cls.Params.parse(_without_layout(dict(stage.params)), where=stage.key)
    params = cls.without_weights(plain)
    side, labels = cls.image_size(params)[1], len(stage.data.labels)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = cls(params, stage.data.labels)
        batch: dict[str, Any] = {
            "image": torch.empty(BATCH, 1, side, side, dtype=torch.uint8),
            "target": torch.empty(BATCH, labels),
            "known": torch.empty(BATCH, labels, dtype=torch.bool),
            "row": torch.empty(BATCH, dtype=torch.int64),
        }
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        if cls.needs_masks:
            return None, weights
        batch["domains"] = {"healthy": [0], "sick": [1]}  # of a CycleGAN: half and half
        with FlopCounterMode(display=False) as counter, Drawn():
            module.training_step(batch, 0)
    return counter.get_total_flops() / BATCH, weights


def _without_layout(params: Any) -> Any:
    """Parameters with `channels_last` off, which decides no operation: fakes cannot be laid out anew."""
    if not isinstance(params, Mapping):
        return params
    return {
        name: False if name == "channels_last" else _without_layout(value)
        for name, value in params.items()
    }


def costs(graph: Graph, images: Mapping[str, Part]) -> list[Cost]:
    """The trainings of a plan by name and data set; `images` by data set, whatever the plan was made with."""
    kinds: dict[tuple[str, str, str], list[Stage]] = defaultdict(list)
    for stage in graph.values():
        if stage.kind == "fit":
            recipe = str(sorted(stage.params["recipe"].items()))
            kinds[stage.name, stage.data.dataset, recipe].append(stage)
    found, known = [], dict[tuple[str, str], tuple[float | None, int]]()
    for (name, dataset, recipe), stages in sorted(kinds.items()):
        # The number of labels, which alone differs, is a few thousandths of a network's operations at most.
        if (name, recipe) not in known:
            known[name, recipe] = forward_flops(stages[0])
        image, weights = known[name, recipe]
        epochs = int(stages[0].params["recipe"]["epochs"])
        total = None
        if image is not None and dataset in images:
            of = images[dataset]
            each = epochs * (3 * of.train + of.val) + of.val + of.test
            total = len(stages) * image * each
        found.append(Cost(name, dataset, len(stages), epochs, image, weights, total))
    return found


def longest_chain(graph: Graph, found: list[Cost]) -> float:
    """Operations of the trainings that must follow one another, of the longest such chain."""
    own = {(c.training, c.dataset): (c.flops or 0.0) / c.count for c in found}
    longest: dict[str, float] = {}
    for digest, stage in graph.items():  # parents first
        before = max((longest[parent.digest] for parent in stage.parents()), default=0.0)
        mine = own.get((stage.name, stage.data.dataset), 0.0) if stage.kind == "fit" else 0.0
        longest[digest] = before + mine
    return max(longest.values(), default=0.0)


def hours(flops: float, sustained: float, gpus: int = 1, chain: float = 0.0) -> float:
    """At least so many hours on GPUs that sustain so many operations a second each; `chain` runs on one."""
    return max(flops / gpus, chain) / sustained / 3600
