"""Chained blocks against torchvision's: the same bits by fewer operations."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import densenet121
from torchvision.models.densenet import DenseNet

from cxrbench.nn.backbones import build_backbone
from cxrbench.nn.densenet import chain_blocks

# These compute nothing.
FREE = {"detach", "slice", "t", "view", "expand", "empty"}


class Count(TorchDispatchMode):
    """Operations of ATen that compute something, backward passes included."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func.overloadpacket.__name__ not in FREE
        return func(*args, **(kwargs or {}))


def pair(**settings: Any) -> tuple[DenseNet, DenseNet]:
    plain = DenseNet(num_classes=3, num_init_features=8, **settings)
    chained = DenseNet(num_classes=3, num_init_features=8, **settings)
    chained.load_state_dict(plain.state_dict())
    return plain, chain_blocks(chained)


def step(net: torch.nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = net(image)
    logits.square().sum().backward()
    return logits, {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_logits_gradients_and_statistics_are_bit_identical(
    training: bool, channels_last: bool
) -> None:
    torch.manual_seed(0)
    how = torch.channels_last if channels_last else torch.contiguous_format
    nets = [
        net.train(training).to(memory_format=how)
        for net in pair(block_config=(3, 5, 4), growth_rate=8)
    ]
    image = torch.randn(4, 3, 64, 64).to(memory_format=how)
    (a, grads_a), (b, grads_b) = (step(net, image) for net in nets)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert list(grads_a) == list(grads_b)
    for name, gradient in grads_a.items():
        torch.testing.assert_close(gradient, grads_b[name], rtol=0, atol=0, msg=name)
    states = [net.state_dict() for net in nets]
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=0, msg=name)


def test_a_step_of_densenet121_has_a_third_fewer_operations() -> None:
    image = torch.randn(2, 3, 32, 32)
    ours, _ = build_backbone("densenet121", 14, "none")
    counts = []
    for net in (densenet121(num_classes=14), ours):
        with Count() as seen:
            step(net, image)
        counts.append(seen.calls)
    assert counts[1] < 1000 < 1400 < counts[0]
    assert list(ours.state_dict()) == list(densenet121(num_classes=14).state_dict())


@pytest.mark.parametrize("settings", [{"drop_rate": 0.2}, {"memory_efficient": True}])
def test_other_layers_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="denseblock1: its layers have dropout"):
        pair(block_config=(2, 2), growth_rate=4, **settings)
