"""CycleGAN's blocks: published sizes, initial weights, float32 where it must be, and what the pool gives back."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.nn.image_pool import ImagePool
from cxrbench.nn.patchgan import PatchGAN, least_squares
from cxrbench.nn.resnet_generator import InstanceNorm, ResidualBlock, ResnetGenerator


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- generator


@pytest.mark.parametrize("resize_conv", [False, True])
@pytest.mark.parametrize(("channels", "count"), [(3, 11_378_179), (1, 11_365_633)])
def test_the_generator_has_its_published_size(channels: int, count: int, resize_conv: bool) -> None:
    net = ResnetGenerator(channels, resize_conv=resize_conv)
    assert parameters(net) == count
    assert sum(isinstance(module, ResidualBlock) for module in net.modules()) == 9


@pytest.mark.parametrize("resize_conv", [False, True])
def test_a_generated_image_has_the_size_and_range_of_an_image(resize_conv: bool) -> None:
    torch.manual_seed(0)
    net = ResnetGenerator(1, width=4, blocks=2, resize_conv=resize_conv)
    with torch.no_grad():
        net.layers[-2].weight.mul_(100)
        found = net(torch.rand(2, 1, 32, 48) * 2 - 1)
    assert found.shape == (2, 1, 32, 48)
    assert -1 <= found.min() < -0.5
    assert 0.5 < found.max() <= 1


def test_every_weight_of_a_generator_gets_a_gradient() -> None:
    net = ResnetGenerator(1, width=4, blocks=1)
    net(torch.rand(1, 1, 16, 16)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_halvings_and_residual_blocks_stand_in_the_order_of_the_paper() -> None:
    net = ResnetGenerator(3, blocks=1)
    seen = [
        (type(m).__name__, m.kernel_size[0], m.stride[0], m.in_channels, m.out_channels)
        for m in net.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert seen == [
        ("Conv2d", 7, 1, 3, 64),
        ("Conv2d", 3, 2, 64, 128),
        ("Conv2d", 3, 2, 128, 256),
        ("Conv2d", 3, 1, 256, 256),
        ("Conv2d", 3, 1, 256, 256),
        ("ConvTranspose2d", 3, 2, 256, 128),
        ("ConvTranspose2d", 3, 2, 128, 64),
        ("Conv2d", 7, 1, 64, 3),
    ]


def test_a_residual_block_adds_to_what_it_reads() -> None:
    block = ResidualBlock(4)
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(block(x) - x, block.body(x))
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
    assert torch.equal(block(x), x)


def test_a_block_sees_the_mirrored_border_and_no_zeros() -> None:
    """Columns that repeat every second pixel look the same at the border only where it is mirrored."""
    stripes = torch.tensor([0.0, 1.0]).repeat(4).expand(1, 4, 8, 8).contiguous()
    block = ResidualBlock(4)
    found = block.body[0](stripes)
    torch.testing.assert_close(found[..., 0], found[..., 2])
    torch.testing.assert_close(found[..., 0, :], found[..., 4, :])


def test_repeating_pixels_leaves_no_checkerboard() -> None:
    """Of a flat image, and with weights that were drawn, neighbours are equal but for the borders."""
    torch.manual_seed(0)
    spread = {}
    for resize_conv in (False, True):
        net = ResnetGenerator(1, width=4, blocks=0, resize_conv=resize_conv)
        up = net.layers[-8]  # the first enlargement
        with torch.no_grad():
            inner = up(torch.ones(1, 16, 8, 8))[..., 4:-4, 4:-4]
        assert inner.shape == (1, 8, 8, 8)
        spread[resize_conv] = float(inner.std((2, 3)).max())
    assert spread[True] < 1e-6 < 1e-3 < spread[False]


def test_sides_that_would_not_come_back_are_refused() -> None:
    net = ResnetGenerator(1, width=2, blocks=0)
    for size in ((18, 16), (16, 18)):
        with pytest.raises(ValueError, match="both sides must be multiples of 4"):
            net(torch.rand(1, 1, *size))
    with pytest.raises(ConfigError, match="channels and width are at least 1"):
        ResnetGenerator(1, width=0)


# --- discriminator


@pytest.mark.parametrize(("channels", "count"), [(3, 2_764_737), (1, 2_762_689)])
def test_the_discriminator_has_its_published_size(channels: int, count: int) -> None:
    net = PatchGAN(channels)
    assert parameters(net) == count
    with torch.no_grad():
        assert net(torch.rand(1, channels, 256, 256)).shape == (1, 1, 30, 30)


def test_a_patch_has_70_pixels() -> None:
    """Without the normalisation, which looks at the whole image, one score depends on 70 x 70 pixels."""
    torch.manual_seed(0)
    net = PatchGAN(1, width=4)
    for at, layer in enumerate(net.layers):
        if isinstance(layer, InstanceNorm):
            net.layers[at] = nn.Identity()
    image = torch.rand(1, 1, 256, 256, requires_grad=True)
    net(image)[0, 0, 15, 15].backward()
    assert image.grad is not None
    rows, columns = torch.nonzero(image.grad[0, 0], as_tuple=True)
    assert rows.max() - rows.min() + 1 == 70
    assert columns.max() - columns.min() + 1 == 70


def test_only_the_first_and_the_last_convolution_go_without_normalisation() -> None:
    kinds = [type(layer).__name__ for layer in PatchGAN(1, width=2).layers]
    block = ["Conv2d", "InstanceNorm", "LeakyReLU"]
    assert kinds == ["Conv2d", "LeakyReLU", *block * 3, "Conv2d"]
    slopes = {
        m.negative_slope for m in PatchGAN(1, width=2).modules() if isinstance(m, nn.LeakyReLU)
    }
    assert slopes == {0.2}


def test_the_least_side_leaves_one_patch() -> None:
    net = PatchGAN(1, width=2)
    assert net(torch.rand(1, 1, 24, 24)).shape == (1, 1, 1, 1)
    assert net(torch.rand(1, 1, 64, 64)).shape == (1, 1, 6, 6)
    with pytest.raises(ValueError, match="sides must be at least 24"):
        net(torch.rand(1, 1, 24, 23))


def test_the_loss_by_hand_and_in_float32() -> None:
    real, made = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.5, -1.0]])
    judged = (least_squares(real, 1) + least_squares(made, 0)) / 2
    assert float(judged) == pytest.approx((0.25 / 2 + 1.25 / 2) / 2)
    assert float(least_squares(made, 1)) == pytest.approx((0.25 + 4) / 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert least_squares(made.bfloat16(), 1).dtype == torch.float32


# --- what both share


@pytest.mark.parametrize("make", [ResnetGenerator, PatchGAN])
def test_convolutions_begin_at_the_normal_law_of_the_paper(make: Any) -> None:
    torch.manual_seed(0)
    net = make(1, width=32)
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.01)
    assert float(weights.mean()) == pytest.approx(0, abs=2e-4)
    for layer in layers:
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.2), (
            "each, not on average"
        )
        assert not layer.bias.any()


def test_instance_norm_is_without_weights_and_float32_under_autocast() -> None:
    norm = InstanceNorm(2)
    assert parameters(norm) == 0
    x = torch.randn(2, 2, 8, 8) * 30 + 1000  # bfloat16 knows no number between 1000 and 1004
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = norm(x)
        halved = norm(x.bfloat16())
    assert found.dtype == halved.dtype == torch.float32
    expected = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.train()(x), norm.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("make", [ResnetGenerator, PatchGAN])
def test_networks_run_under_autocast(make: Any) -> None:
    net = make(1, width=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(torch.rand(1, 1, 32, 32))
        loss = F.mse_loss(found.float(), torch.zeros(found.shape))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


# --- image pool


def numbered(first: int, count: int) -> Tensor:
    """Images [count, 1, 2, 2] that are filled with their number."""
    return torch.arange(first, first + count).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def numbers(images: Tensor) -> list[int]:
    return [int(image.mean()) for image in images]


def test_a_pool_that_fills_returns_what_it_is_given() -> None:
    pool = ImagePool(5)
    assert numbers(pool.exchange(numbered(0, 3))) == [0, 1, 2]
    assert numbers(pool.exchange(numbered(3, 2))) == [3, 4]
    assert len(pool) == 5
    assert numbers(pool.state()) == [0, 1, 2, 3, 4]


def test_a_full_pool_does_what_the_official_one_does() -> None:
    """The same draws, image by image, against the rule written out."""
    pool = ImagePool(4)
    pool.exchange(numbered(0, 4))
    torch.manual_seed(7)
    found = [n for first in range(4, 64, 3) for n in numbers(pool.exchange(numbered(first, 3)))]
    torch.manual_seed(7)
    kept, expected = [0, 1, 2, 3], []
    for new in range(4, 64):
        if torch.rand(()).item() > 0.5:
            place = int(torch.randint(4, ()))
            expected.append(kept[place])
            kept[place] = new
        else:
            expected.append(new)
    assert found == expected
    assert numbers(pool.state()) == kept
    assert set(found) | set(kept) == set(range(64)), "no image is lost"


def test_half_of_the_images_are_older_and_every_place_is_drawn() -> None:
    torch.manual_seed(0)
    pool = ImagePool(50)
    pool.exchange(numbered(0, 50))
    found = torch.tensor([numbers(pool.exchange(numbered(n, 1)))[0] for n in range(50, 2050)])
    older = (found != torch.arange(50, 2050)).float().mean()
    assert float(older) == pytest.approx(0.5, abs=0.04)
    assert min(numbers(pool.state())) > 1000, "each of the 50 places was taken lately"


def test_an_image_can_come_back_within_its_batch() -> None:
    torch.manual_seed(0)
    pool = ImagePool(1)
    pool.exchange(numbered(0, 1))
    found = numbers(pool.exchange(numbered(1, 200)))
    assert len(set(found)) == 200, "each image is given once"
    assert found != list(range(1, 201))


def test_a_pool_of_none_gives_back_what_it_is_given() -> None:
    pool = ImagePool(0)
    before = torch.random.get_rng_state()
    given = pool.exchange(numbered(0, 3).clone().requires_grad_())
    assert numbers(given) == [0, 1, 2]
    assert not given.requires_grad
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(pool) == 0
    pool.restore(pool.state())


def test_pooled_images_are_copies_without_gradient() -> None:
    image = torch.zeros(1, 1, 2, 2, requires_grad=True)
    pool = ImagePool(2)
    given = pool.exchange(image * 1)
    assert not given.requires_grad
    given.add_(9)
    pool.state().add_(9)
    with torch.no_grad():
        image.add_(9)
    assert not pool.state().any()


def test_an_older_image_outlives_the_one_that_takes_its_place() -> None:
    torch.manual_seed(0)
    pool = ImagePool(1)
    pool.exchange(numbered(7, 1))
    while True:
        given = pool.exchange(numbered(8, 1))
        if numbers(given) == [7]:
            break
    pool.exchange(numbered(9, 20))
    assert numbers(given) == [7]


@pytest.mark.parametrize("before", [2, 9])
def test_a_resumed_pool_goes_on_as_if_nothing_had_happened(before: int) -> None:
    torch.manual_seed(0)
    pool, resumed = ImagePool(4), ImagePool(4)
    pool.exchange(torch.rand(before, 1, 3, 3))
    resumed.restore(pool.state())
    assert len(resumed) == len(pool)
    for step in range(5):
        images = torch.rand(3, 1, 3, 3)
        torch.manual_seed(step)
        expected = pool.exchange(images)
        torch.manual_seed(step)
        assert torch.equal(resumed.exchange(images), expected)
    assert torch.equal(resumed.state(), pool.state())


def test_an_empty_pool_is_resumed_as_an_empty_one() -> None:
    pool = ImagePool(3)
    pool.exchange(numbered(0, 2))
    pool.restore(ImagePool(3).state())
    assert len(pool) == 0
    assert numbers(pool.exchange(torch.zeros(1, 3, 5, 5))) == [0], "of another shape, too"


def test_what_does_not_fit_a_pool_is_refused() -> None:
    pool = ImagePool(2)
    with pytest.raises(DataError, match="n up to 2; resume with the pool size"):
        pool.restore(torch.zeros(3, 1, 2, 2))
    with pytest.raises(DataError, match=r"expected \[n, C, H, W\]"):
        pool.restore(torch.zeros(2, 2))
    pool.exchange(numbered(0, 1))
    with pytest.raises(ValueError, match=r"keeps images of \(1, 2, 2\)"):
        pool.exchange(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ConfigError, match="pool size -1: must be 0 or more"):
        ImagePool(-1)


def test_pools_keep_float32() -> None:
    pool = ImagePool(1)
    given = pool.exchange(torch.full((1, 1, 2, 2), 0.1).bfloat16())
    assert given.dtype == pool.state().dtype == torch.float32
