"""The U-Net: the published size, what comes out at the start, and float32 where it counts."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbench.nn.unet import GROUPS, Norm, UNet


def images(count: int = 2, side: int = 32) -> Tensor:
    draw = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(draw, size=(side, side), mode="bilinear")


def make(seed: int = 0, **options: object) -> UNet:
    torch.manual_seed(seed)
    return UNet(**options)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_published_size() -> None:
    net = UNet()
    assert parameters(net) == 2_158_417
    convs = [m for m in net.down.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [16, 16, 32, 32, 64, 64, 128, 128, 256, 256]
    assert not any(isinstance(m, nn.GroupNorm | nn.BatchNorm2d | nn.Dropout) for m in net.modules())


def test_a_wider_one_has_the_drawing_s_first_widths() -> None:
    with torch.device("meta"):
        net = UNet(width=64)
    assert [b[0].out_channels for b in net.down][:4] == [64, 128, 256, 512]


def test_the_residual_one_has_the_same_layers_and_norms() -> None:
    net = UNet(residual=True)
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 18
    assert parameters(net) == 2_158_417 + sum(parameters(n) for n in norms)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("height", "width"), [(224, 224), (16, 48)])
def test_an_image_keeps_its_size(residual: bool, height: int, width: int) -> None:
    image = torch.rand(1, 1, height, width)
    with torch.inference_mode():
        assert make(width=8, residual=residual)(image).shape == image.shape


@pytest.mark.parametrize("shape", [(1, 1, 225, 224), (1, 1, 224, 8), (1, 3, 32, 32), (1, 32, 32)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 16.*set recipe\.size") as error:
        make(width=8)(torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize(("width", "residual"), [(0, False), (4, True), (20, True)])
def test_widths_that_cannot_be_are_refused(width: int, residual: bool) -> None:
    with pytest.raises(ValueError, match=f"width is {width}"):
        UNet(width, residual=residual)


def test_the_last_relu_begins_open_whatever_the_seed() -> None:
    """With Glorot's weights and a bias of 0 some seeds give an image that is 0 all over and stays so."""
    with torch.inference_mode():
        for seed in range(20):
            assert (make(seed, width=8)(images()) > 0).all(), seed


def test_weights_begin_as_glorot_s() -> None:
    for conv in (make().down[3][0], make().up[1]):
        receptive = conv.weight[0, 0].numel()
        limit = (6 / (receptive * (conv.in_channels + conv.out_channels))) ** 0.5
        assert 0.98 * limit < conv.weight.abs().max().item() <= limit
        assert not conv.bias.any()


def test_the_coded_one_ends_in_a_relu_and_no_cut() -> None:
    net = make(width=8)
    with torch.no_grad():
        net.head.weight.mul_(500)
        found = net(images())
    assert found.min() == 0
    assert found.max() > 1


def test_the_residual_one_begins_as_the_identity() -> None:
    net, image = make(width=8, residual=True), images()
    with torch.no_grad():
        assert torch.equal(net(image), image)
        net.head.bias.fill_(0.25)
        torch.testing.assert_close(net(image), image + 0.25)


def test_the_residual_one_is_cut_outside_training_alone() -> None:
    net, image = make(width=8, residual=True), images()
    with torch.no_grad():
        net.head.bias.fill_(0.9)
        free, cut = net.train()(image), net.eval()(image)
    assert free.max() > 1
    assert torch.equal(cut, free.clamp(0, 1))


@pytest.mark.parametrize("residual", [False, True])
def test_training_reaches_every_parameter_and_lowers_the_loss(residual: bool) -> None:
    net, sharp = make(width=8, residual=residual), images(4)
    blurred = F.avg_pool2d(sharp, 5, stride=1, padding=2)
    losses = []
    for _ in range(12):
        loss = F.mse_loss(net(blurred), sharp)
        losses.append(loss.item())
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(1e-3 * parameter.grad.sign())
    assert losses[-1] < 0.9 * losses[0]
    still = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert not still


def test_all_levels_look_at_the_image_and_keep_its_place() -> None:
    """A spot changes the result around itself, as far as the deepest level sees and no farther."""
    net, image = make(width=8), torch.full((1, 1, 256, 256), 0.5)
    spot = image.clone()
    spot[..., 64, 64] = 1
    with torch.inference_mode():
        change = (net(spot) - net(image)).abs()[0, 0]
    assert change.max() > 0
    assert change[32:97, 32:97].sum() > 0.9 * change.sum()
    assert not change[:, 192:].any()


@pytest.mark.parametrize("residual", [False, True])
def test_images_come_out_in_float32_under_autocast(residual: bool) -> None:
    net, image = make(width=8, residual=residual), images()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(image)
    assert found.dtype == torch.float32
    if residual:
        assert torch.equal(found, image), "not even the input is rounded"
    else:
        assert not torch.equal(found, found.bfloat16().float()), "the last layer is not rounded"


def test_statistics_are_float32_under_autocast() -> None:
    norm, x = Norm(GROUPS, 8), torch.randn(2, 8, 16, 16).bfloat16() + 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.group_norm(x.float(), GROUPS))
