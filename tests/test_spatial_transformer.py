"""Affine maps and what aligns with them: conventions by hand, sizes against published counts, losses by hand."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbench.core.errors import ConfigError, DataError, MissingInputError
from cxrbench.nn.backbones import build_backbone
from cxrbench.nn.perceptual import (
    DENSENET_PAPER,
    VGG_AS_CODED,
    VGG_PAPER,
    FeatureExtractor,
    alignment_loss,
    feature_errors,
    ncc,
    squared_error,
)
from cxrbench.nn.spatial_transformer import (
    IDENTITY,
    PAPER_START,
    PoseBounds,
    PoseNet,
    WindowBounds,
    WindowNet,
    aspect_penalty,
    following_error,
    invert,
    random_windows,
    sampled_box,
    sampling_grid,
    theta_of_pose,
    theta_of_window,
    warp,
)

TINY = "resnet10t"
DIAGONAL = 0.2 * math.sqrt(2)  # of a square whose half side is 0.2


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def pose(**parts: float) -> Tensor:
    """One pose; what is not named is the identity's."""
    whole = {"tx": 0.0, "ty": 0.0, "sx": 1.0, "sy": 1.0, "angle": 0.0} | parts
    return torch.tensor([list(whole.values())])


def window(sx: float = 1, sy: float = 1, tx: float = 0, ty: float = 0) -> Tensor:
    return torch.tensor([[sx, sy, tx, ty]])


def picture(*size: int) -> Tensor:
    return torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))


# --- thetas by hand


def test_a_pose_is_scaled_first_and_then_rotated() -> None:
    theta = theta_of_pose(pose(tx=0.1, ty=-0.2, sx=0.5, sy=0.8, angle=math.pi / 6))
    root = math.sqrt(3)
    expected = [[[0.25 * root, -0.4, 0.1], [0.25, 0.4 * root, -0.2]]]
    torch.testing.assert_close(theta, torch.tensor(expected))
    x, y = theta[0, :, 0], theta[0, :, 1]  # what the output's axes become
    assert float(x @ y) == pytest.approx(0, abs=1e-7), "no shear"
    assert float(x.norm()) == pytest.approx(0.5)
    assert float(y.norm()) == pytest.approx(0.8)


def test_a_window_is_scale_and_shift() -> None:
    theta = theta_of_window(window(0.7, 0.5, 0.1, -0.3))
    torch.testing.assert_close(theta, torch.tensor([[[0.7, 0, 0.1], [0, 0.5, -0.3]]]))


def test_a_grid_is_that_of_torch() -> None:
    theta = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = F.affine_grid(theta, [3, 1, 5, 8], align_corners=False)
    torch.testing.assert_close(sampling_grid(theta, (5, 8)), expected)


def test_an_inverse_undoes_a_pose() -> None:
    theta = theta_of_pose(pose(tx=0.3, ty=-0.2, sx=0.5, sy=0.8, angle=0.4))
    back = invert(theta)
    whole = torch.cat((theta, torch.tensor([[[0.0, 0, 1]]])), 1)
    undone = torch.cat((back, torch.tensor([[[0.0, 0, 1]]])), 1)
    torch.testing.assert_close(undone @ whole, torch.eye(3)[None])


# --- the warp


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("theta", [theta_of_pose(pose()), theta_of_window(window())])
def test_the_identity_returns_the_input(theta: Tensor, padding: Any) -> None:
    image = picture(64, 48)
    found = warp(image, theta, (64, 48), padding)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], image[..., 1:-1, 1:-1], rtol=0, atol=1e-5)


def test_a_tenth_of_the_height_shows_the_central_rows() -> None:
    rows = torch.arange(100.0).view(1, 1, 100, 1).expand(1, 1, 100, 20)
    found = warp(rows, theta_of_window(window(sy=0.1)), (100, 20))[0, 0]
    # Output row i has its middle at input row 44.55 + i / 10: ten rows around the middle, 49.5.
    expected = 44.55 + torch.arange(100.0) / 10
    torch.testing.assert_close(found[:, 10], expected, rtol=0, atol=1e-3)


def test_a_positive_angle_turns_the_picture_counter_clockwise_about_its_centre() -> None:
    image = picture(32, 32)
    found = warp(image, theta_of_pose(pose(angle=math.pi / 2)), (32, 32), "border")
    torch.testing.assert_close(found, torch.rot90(image, 1, (2, 3)), rtol=0, atol=1e-4)


def test_a_shift_is_counted_in_half_sides() -> None:
    image = picture(20, 40)
    found = warp(image, theta_of_window(window(tx=0.5, ty=-0.5)), (20, 40))
    expected = torch.zeros_like(image)
    expected[..., 5:, :30] = image[..., :15, 10:]  # looks 10 pixels to the right and 5 up
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_padding_is_zero_or_the_border() -> None:
    image = torch.full((1, 1, 8, 8), 0.7)
    theta = theta_of_window(window(2, 2))
    assert warp(image, theta, (8, 8))[0, 0, 0, 0] == 0
    torch.testing.assert_close(warp(image, theta, (8, 8), "border"), image)


def test_the_output_has_its_own_size() -> None:
    """320 x 320 to 320 x 256: a square input whose columns are pressed together, as in the paper."""
    columns = torch.arange(320.0).view(1, 1, 1, 320).expand(1, 1, 320, 320)
    found = warp(columns, theta_of_pose(pose()), (320, 256))
    assert found.shape == (1, 1, 320, 256)
    expected = (torch.arange(256) + 0.5) * 320 / 256 - 0.5
    torch.testing.assert_close(found[0, 0, 160], expected, rtol=0, atol=1e-3)


def test_a_warp_and_its_inverse_give_the_image_back() -> None:
    smooth = F.interpolate(picture(6, 6), 96, mode="bicubic")
    theta = theta_of_pose(pose(tx=0.05, ty=-0.04, sx=0.9, sy=0.95, angle=0.1))
    back = warp(warp(smooth, theta, (96, 96)), invert(theta), (96, 96))
    inner = (..., slice(24, 72), slice(24, 72))
    torch.testing.assert_close(back[inner], smooth[inner], rtol=0, atol=0.01)


def test_everything_stays_float32_under_autocast() -> None:
    image = picture(64, 64)
    given = pose(tx=0.123, sx=0.777, angle=0.1)
    expected = warp(image, theta_of_pose(given), (64, 64))
    theta = theta_of_pose(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(theta_of_pose(given), theta, rtol=0, atol=0)
        torch.testing.assert_close(invert(theta), invert(theta.clone()), rtol=0, atol=0)
        found = warp(image, theta, (64, 64))
        halves = warp(image.bfloat16(), theta.bfloat16(), (64, 64))
        penalty = aspect_penalty(window(2).bfloat16())
    assert found.dtype == halves.dtype == penalty.dtype == torch.float32
    assert torch.equal(found, expected)


def test_gradients_reach_the_theta_and_the_image() -> None:
    image, given = picture(16, 16).requires_grad_(), pose(tx=0.1).requires_grad_()
    warp(image, theta_of_pose(given), (16, 16)).square().sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert given.grad is not None and (given.grad != 0).all()


# --- boxes and STERN's penalty


@pytest.mark.parametrize(
    ("theta", "box"),
    [
        (theta_of_window(window()), (0, 0, 1, 1)),
        (theta_of_window(window(0.5, 0.8)), (0.25, 0.1, 0.75, 0.9)),
        (theta_of_window(window(0.5, 0.5, 0.2, -0.4)), (0.35, 0.05, 0.85, 0.55)),
        (theta_of_window(window(-0.5, 0.8)), (0.25, 0.1, 0.75, 0.9)),  # mirrored
        (theta_of_window(window(0.5, 0.5, 0.9)), (0.7, 0.25, 1, 0.75)),  # cut at the right edge
        (theta_of_window(window(0.1, 0.1, 1.5)), (1, 0.45, 1, 0.55)),  # past the image
        (
            theta_of_pose(pose(sx=0.5, sy=0.2, angle=math.pi / 2)),  # the axes change places
            (0.4, 0.25, 0.6, 0.75),
        ),
        (
            theta_of_pose(pose(sx=0.4, sy=0.4, angle=math.pi / 4)),
            (0.5 - DIAGONAL, 0.5 - DIAGONAL, 0.5 + DIAGONAL, 0.5 + DIAGONAL),
        ),
    ],
)
def test_the_sampled_box_by_hand(theta: Tensor, box: tuple[float, ...]) -> None:
    torch.testing.assert_close(sampled_box(theta), torch.tensor([box], dtype=torch.float32))


def test_the_sampled_box_is_what_the_warp_shows() -> None:
    """Every pixel with a gradient lies in the box, and pixels at its edges have one."""
    side = 60
    theta = theta_of_pose(pose(tx=0.1, ty=-0.1, sx=0.4, sy=0.6, angle=0.5))
    image = torch.ones(1, 1, side, side, requires_grad=True)
    warp(image, theta, (200, 200)).sum().backward()
    assert image.grad is not None
    rows, columns = torch.nonzero(image.grad[0, 0], as_tuple=True)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    found = sampled_box(theta)[0] * side
    torch.testing.assert_close(
        found, torch.tensor([float(edge) for edge in seen]), rtol=0, atol=1.5
    )


def test_the_penalty_of_stern() -> None:
    windows = torch.tensor([[1.0, 0.5, 0, 0], [1.0, 0.8, 0.3, 0], [0.9, 1.0, 0, 0], [1, 0.1, 0, 0]])
    torch.testing.assert_close(aspect_penalty(windows), torch.tensor([0.75, 0, 0, 8.75]))
    torch.testing.assert_close(aspect_penalty(windows[:1], 1.5), torch.tensor([0.5]))
    given = window(1.0, 0.5).requires_grad_()
    aspect_penalty(given).sum().backward()
    torch.testing.assert_close(given.grad, torch.tensor([[2.0, -4.0, 0, 0]]))


# --- known movements


def test_a_window_that_goes_along_with_its_film_shows_the_same() -> None:
    """And costs nothing; the same window on a moved film costs the squares of what it is off."""
    side = 96
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    image = (0.5 + 0.5 * torch.sin(rows / 9) * torch.cos(columns / 7))[None, None]
    framed = window(0.6, 0.5, 0.1, -0.15)
    known = torch.tensor([[1.2, 1.15, 0.1, -0.05]])
    moved = warp(image, theta_of_window(known), (side, side))
    along = torch.cat(
        (framed[:, :2] / known[:, :2], (framed[:, 2:] - known[:, 2:]) / known[:, :2]), 1
    )
    seen = warp(moved, theta_of_window(along), (40, 40))
    there = warp(image, theta_of_window(framed), (40, 40))
    assert (seen - there).abs().mean() < 0.01
    torch.testing.assert_close(
        following_error(framed, along, known), torch.zeros(1), atol=1e-6, rtol=0
    )
    still = following_error(framed, framed, known).item()
    off = [math.log(1.2), math.log(1.15), 0.1 * 0.2 + 0.1, -0.15 * 0.15 - 0.05]
    assert still == pytest.approx(sum(v * v for v in off), rel=1e-4)
    smaller = following_error(window(0.3, 0.25, 0.1, -0.15), window(0.3, 0.25, 0.1, -0.15), known)
    assert smaller.item() == pytest.approx(still, rel=1e-4), "a size is better than another"


def test_known_movements_stay_near_and_differ() -> None:
    torch.manual_seed(0)
    known = random_windows(500, torch.device("cpu"))
    sx, sy, *shifts = known.unbind(1)
    assert 1 / 1.3 <= sx.min() < 0.8
    assert 1.25 < sx.max() <= 1.3
    assert (sy / sx - 1).abs().max() <= 0.0501
    assert all(0.24 < shift.abs().max() <= 0.25 for shift in shifts)
    correlation = torch.corrcoef(known[:, [0, 2, 3]].T) - torch.eye(3)
    assert correlation.abs().max() < 0.15


# --- networks


def test_the_published_aligner_has_its_published_size() -> None:
    with torch.device("meta"):
        net = PoseNet("none")
        found = net.backbone(torch.rand(2, 3, 320, 320))
    assert parameters(net.backbone) == 11_176_512
    assert parameters(net.head) == 132_613
    assert found.shape == (2, 512)


@pytest.mark.parametrize(("side", "linear"), [(256, 589_988), (512, 3_211_428)])
def test_the_published_localisation_net_has_its_published_size(side: int, linear: int) -> None:
    with torch.device("meta"):
        net = WindowNet(3, side)
        flat = net.features(torch.rand(1, 3, side, side))
    assert parameters(net.features) == 271_392
    assert parameters(net.head) == linear
    assert parameters(net) == {256: 861_380, 512: 3_482_820}[side]
    assert flat.shape == (1, {256: 18_432, 512: 100_352}[side])


@pytest.mark.parametrize("bounds", [None, PoseBounds()])
def test_an_aligner_begins_at_the_identity(bounds: PoseBounds | None) -> None:
    net = PoseNet("none", backbone=TINY, bounds=bounds)
    net.train()
    found = net(torch.rand(3, 3, 64, 64))
    torch.testing.assert_close(found, pose().expand(3, 5))
    assert all(p.requires_grad for p in net.parameters())
    found.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad.abs().sum() > 0 for p in net.head[-1].parameters())


def test_a_bounded_pose_stays_in_its_bounds_and_reaches_them() -> None:
    bounds = PoseBounds(shift=0.2, scale=1.25, angle=0.3)
    low, high = bounds.apply(torch.full((1, 5), -50.0)), bounds.apply(torch.full((1, 5), 50.0))
    torch.testing.assert_close(low, torch.tensor([[-0.2, -0.2, 0.8, 0.8, -0.3]]))
    torch.testing.assert_close(high, torch.tensor([[0.2, 0.2, 1.25, 1.25, 0.3]]))
    torch.testing.assert_close(bounds.apply(torch.zeros(1, 5)), pose())


@pytest.mark.parametrize("wrong", [{"shift": 0}, {"scale": 1}, {"angle": 0}, {"angle": 4}])
def test_bounds_of_a_pose_that_bound_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"bounds of the pose: .*{next(iter(wrong))} "):
        PoseBounds(**wrong)


@pytest.mark.parametrize(
    ("start", "bounds"),
    [
        (PAPER_START, None),
        (IDENTITY, None),
        (IDENTITY, WindowBounds()),
        ((0.8, 0.8, 0.1, -0.1), WindowBounds()),
    ],
)
def test_a_localisation_net_begins_where_it_is_told(
    start: Any, bounds: WindowBounds | None
) -> None:
    net = WindowNet(1, 78, start=start, bounds=bounds)
    found = net(torch.rand(2, 1, 78, 78))
    torch.testing.assert_close(found, torch.tensor([start] * 2))
    found.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.head[-1].weight.grad.abs().sum() > 0


def test_the_paper_starts_at_a_tenth_of_the_rows() -> None:
    net = WindowNet(1, 78)
    assert net.head[-1].bias.tolist() == pytest.approx([1, 0.1, 0, 0])
    assert not net.head[-1].weight.any()


def test_a_bounded_window_stays_in_its_bounds_and_reaches_them() -> None:
    bounds = WindowBounds()
    low, high = bounds.apply(torch.full((1, 4), -50.0)), bounds.apply(torch.full((1, 4), 50.0))
    torch.testing.assert_close(low, torch.tensor([[0.3, 0.3, -0.3, -0.3]]))
    torch.testing.assert_close(high, torch.tensor([[1.1, 1.1, 0.3, 0.3]]))


@pytest.mark.parametrize("start", [PAPER_START, (1.0, 1.1, 0, 0), (1.0, 1.0, 0.3, 0)])
def test_a_start_outside_the_bounds_is_refused(start: Any) -> None:
    with pytest.raises(ConfigError, match=r"between 0\.3 and 1\.1 and shifts below 0\.3; start at"):
        WindowNet(1, 78, start=start, bounds=WindowBounds())


@pytest.mark.parametrize("wrong", [{"least": 0}, {"least": 1.2}, {"shift": 0}])
def test_bounds_of_a_window_that_bound_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="bounds of the window"):
        WindowBounds(**wrong)


def test_a_localisation_net_reads_larger_images_at_its_own_side() -> None:
    net = WindowNet(1, 80)
    nn.init.normal_(net.head[-1].weight)
    image = picture(160, 160)
    small = F.interpolate(image, (80, 80), mode="bilinear", antialias=True)
    torch.testing.assert_close(net(image), net(small))


def test_a_side_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="loc_size: 77; the localisation net needs at least 78"):
        WindowNet(3, 77)
    assert WindowNet(3, 78).head[0].in_features == 128


def test_an_image_that_is_not_square_has_no_pose() -> None:
    with pytest.raises(ValueError, match="needs a square image"):
        PoseNet("none", backbone=TINY)(torch.rand(1, 3, 64, 48))


def test_poses_and_windows_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    nets = [(PoseNet("none", backbone=TINY).eval(), 3), (WindowNet(1, 78), 1)]
    for net, channels in nets:
        nn.init.normal_(net.head[-1].weight)
        image = torch.rand(2, channels, 78, 78)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            found = net(image)
        assert found.dtype == torch.float32
        assert not torch.equal(found, found.bfloat16().float()), "rounded on the way"


def test_imagenet_weights_of_the_aligner_are_loaded_whole(tmp_path: Path) -> None:
    donor, _ = build_backbone(TINY, 7, "none")
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    net = PoseNet(str(tmp_path / "w.pth"), backbone=TINY)
    assert net.weights.source == "w.pth"
    own = net.backbone.state_dict()
    assert all(torch.equal(own[n], v) for n, v in donor.state_dict().items() if n in own)
    with pytest.raises(MissingInputError, match="no such file of weights"):
        PoseNet(str(tmp_path / "absent.pth"), backbone=TINY)


# --- the perceptual loss


def filled(network: str, taps: Any) -> FeatureExtractor:
    """An extractor with weights of its own, without the seconds that a whole VGG16 takes to make."""
    with torch.device("meta"):
        net = FeatureExtractor(network, taps, "none")
    return with_weights(net)


def with_weights(net: Any) -> Any:
    """A network from the meta device, with numbers in place of its initial weights."""
    net = net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            least = 0.5 if name.endswith("running_var") else -0.5
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + least)
    return net


@pytest.mark.parametrize(
    ("network", "taps", "shapes"),
    [
        ("vgg16", VGG_PAPER, [(2, 256, 80, 64)]),
        ("vgg16", VGG_AS_CODED, [(2, 64, 320, 256), (2, 128, 160, 128)]),
        ("densenet121", DENSENET_PAPER, [(2, 256, 20, 16)]),
    ],
)
def test_the_taps_of_the_paper_have_their_shapes(network: str, taps: Any, shapes: Any) -> None:
    with torch.device("meta"):
        found = FeatureExtractor(network, taps, "none")(torch.rand(2, 3, 320, 256))
    assert [tuple(each.shape) for each in found] == shapes


def test_the_tap_of_the_paper_is_relu3_3_and_that_of_the_code_is_before_a_relu() -> None:
    net = filled("vgg16", (*VGG_AS_CODED, *VGG_PAPER))
    first, second, third = net(torch.randn(1, 3, 16, 16))
    assert first.min() == 0
    assert second.min() < 0, "conv2_1, which no later layer may overwrite"
    assert third.min() == 0
    x = torch.randn(1, 3, 16, 16)
    for name, layer in net.features.named_children():
        x = layer(x)
        if name == "15":
            assert isinstance(layer, nn.ReLU)
            assert x.shape[1] == 256


def test_taps_come_in_the_order_asked() -> None:
    net = filled("vgg16", ("5", "1"))
    assert [each.shape[1] for each in net(torch.randn(1, 3, 8, 8))] == [128, 64]


def test_an_extractor_is_frozen_but_lets_gradients_through() -> None:
    net = filled("densenet121", ("norm0", "pool0"))
    net.train()
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    before = {n: t.clone() for n, t in net.state_dict().items()}
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    net(image)[0].sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())


def test_an_extractor_takes_a_trained_network(tmp_path: Path) -> None:
    with torch.device("meta"):
        donor, _ = build_backbone("densenet121", 14, "none")
    donor = with_weights(donor)
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    from_file = FeatureExtractor("densenet121", DENSENET_PAPER, str(tmp_path / "w.pth"))
    assert from_file.weights.source == "w.pth"
    later = filled("densenet121", DENSENET_PAPER)
    later.load(donor.state_dict(), source="stage 1")
    image = torch.rand(1, 3, 64, 64)
    seen: list[Tensor] = []
    donor.features.transition2.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.inference_mode():
        donor.eval()(image)
        torch.testing.assert_close(from_file(image)[0], seen[0])
        torch.testing.assert_close(later(image)[0], seen[0])
    state = dict(donor.state_dict())
    state.pop("features.conv0.weight")
    with pytest.raises(DataError, match=re.escape("stage 1: the weights do not fit")):
        later.load(state, source="stage 1")


@pytest.mark.parametrize("taps", [("15", "31"), ()])
def test_unknown_taps_are_refused(taps: Any) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=r"taps of vgg16: .*0, 1, 2"):
        FeatureExtractor("vgg16", taps, "none")


def test_unknown_loss_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match="loss network 'resnet18': choose vgg16 or densenet121"):
        FeatureExtractor("resnet18", ("1",), "none")


def test_errors_of_features_are_means_of_squares() -> None:
    found = [torch.ones(2, 3, 4, 4), torch.zeros(2, 1, 2, 2)]
    target = [torch.zeros(1, 3, 4, 4), torch.full((1, 1, 2, 2), 3.0)]
    assert [float(e) for e in feature_errors(found, target)] == [1, 9]
    # 0.0625 squared 300 times, which bfloat16 cannot count together with 200 squared.
    a, b = torch.zeros(1, 1, 1, 301).bfloat16(), torch.full((1, 1, 1, 301), 0.0625).bfloat16()
    b[..., 0] = 200
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = squared_error(a, b)
    assert error.dtype == torch.float32
    assert error.item() == pytest.approx((40_000 + 300 * 0.0625**2) / 301, rel=1e-6)
    with pytest.raises(ValueError, match="differ"):
        squared_error(torch.ones(2, 3, 4, 4), torch.ones(1, 3, 4, 1))
    with pytest.raises(ValueError):
        feature_errors(found, target[:1])


def test_the_loss_of_the_report_and_that_of_the_code() -> None:
    features, pixels = [torch.tensor(0.3)], torch.tensor(0.01)
    assert float(alignment_loss(features, pixels)) == pytest.approx(0.3 + 20 * 0.01)
    coded = alignment_loss(features, pixels, pixel_weight=15, reduction="mean")
    assert float(coded) == pytest.approx((15 * 0.01 + 0.3) / 2)
    two = alignment_loss([*features, torch.tensor(0.6)], pixels, pixel_weight=15, reduction="mean")
    assert float(two) == pytest.approx((0.15 + 0.3 + 0.6) / 3)


def test_correlation_knows_neither_brightness_nor_contrast() -> None:
    image = torch.rand(3, 1, 8, 8)
    others = torch.cat((0.2 * image[:1] + 0.5, -image[1:2], torch.rand(1, 1, 8, 8)))
    found = ncc(image, others)
    expected = torch.corrcoef(torch.stack((image[2].flatten(), others[2].flatten())))[0, 1]
    torch.testing.assert_close(
        found, torch.stack((torch.tensor(1.0), torch.tensor(-1.0), expected))
    )
    assert ncc(image, image[:1]).shape == (3,)


def test_correlation_with_a_flat_image_is_zero_and_has_a_gradient() -> None:
    flat = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    found = ncc(flat, picture(8, 8))
    assert found.item() == pytest.approx(0, abs=1e-6)
    found.sum().backward()
    assert flat.grad is not None and torch.isfinite(flat.grad).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = picture(8, 8).bfloat16(), picture(9, 8)[..., 1:, :].bfloat16()
        found = ncc(*halves)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ncc(*(half.float() for half in halves)), rtol=0, atol=0)
