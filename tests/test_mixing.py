"""Mixed batches: shares exact to the pixel, masks of the intended spectrum, draws that can be repeated."""

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from cxrbench.methods.base import Batch
from cxrbench.methods.fmix import FMix
from cxrbench.nn.fmix import Mixed, cutmix, fmix, fmix_mask, mixup

Mix = Callable[..., Mixed]
ALL: list[Mix] = [fmix, mixup, cutmix]
MASKED: list[Mix] = [fmix, cutmix]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int = 6, height: int = 20, width: int = 24) -> Tensor:
    """Image i is i all over, so that a mean tells whose pixels it was made of."""
    return torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 1, height, width)


def crossings(mask: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    """Changes between 0 and 1 along an axis, of each line."""
    return np.sum(mask.take(range(1, mask.shape[axis]), axis) != mask.take(range(mask.shape[axis] - 1), axis), axis=axis)  # fmt: skip


# --- what all three promise


@pytest.mark.parametrize("mix", ALL)
def test_lam_is_the_share_of_the_own_image(mix: Mix) -> None:
    own = torch.arange(6)
    for seed in range(20):
        mixed = mix(numbered(), generator=seeded(seed))
        expected = mixed.lam * own + (1 - mixed.lam) * mixed.permutation
        torch.testing.assert_close(
            mixed.image.mean(dim=(1, 2, 3)), expected.float(), rtol=0, atol=1e-5
        )
        assert 0 <= mixed.lam <= 1
        assert sorted(mixed.permutation.tolist()) == own.tolist()
        assert mixed.permutation.dtype == torch.int64


@pytest.mark.parametrize("mix", MASKED)
def test_one_mask_serves_the_batch_and_pastes_at_the_same_place(mix: Mix) -> None:
    image = torch.rand(5, 3, 16, 24, generator=seeded(0))
    mixed = mix(image, generator=seeded(4))
    assert 0.1 < mixed.lam < 0.9, "or the test sees nothing"
    assert not torch.equal(mixed.permutation, torch.arange(5))
    from_own = mixed.image == image
    moved = mixed.permutation != torch.arange(5)
    mask = from_own[moved][0, 0]
    assert torch.equal(from_own[moved], mask.expand(int(moved.sum()), 3, 16, 24))
    assert mask.float().mean().item() == pytest.approx(mixed.lam, abs=1e-6)
    assert torch.equal(mixed.image, torch.where(mask, image, image[mixed.permutation]))


@pytest.mark.parametrize("mix", ALL)
def test_the_draws_come_from_the_generator_or_from_the_seed_of_the_step(mix: Mix) -> None:
    image = torch.rand(6, 1, 16, 16, generator=seeded(0))
    one, two, other = (mix(image, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.image, two.image)
    assert one.lam == two.lam
    assert one.lam != other.lam
    torch.manual_seed(1)
    three, four = mix(image), mix(image)
    assert torch.equal(one.image, three.image)
    assert three.lam != four.lam
    np.random.seed(0)  # noqa: NPY002 - what no draw may depend on
    assert torch.equal(mix(image, generator=seeded(1)).image, one.image)


@pytest.mark.parametrize("mix", ALL)
@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lam_is_beta_distributed(mix: Mix, alpha: float) -> None:
    # On one row of many pixels, where a box covers the share that was drawn unless the border cuts it.
    image, generator = torch.zeros(2, 1, 4, 64), seeded(0)
    lams = np.array([mix(image, alpha=alpha, generator=generator).lam for _ in range(1500)])
    variance = 1 / (4 * (2 * alpha + 1))
    if mix is cutmix:  # the border's cut leaves more of the own image
        assert lams.mean() > 0.55
        return
    assert lams.mean() == pytest.approx(0.5, abs=5 * (variance / 1500) ** 0.5)
    assert lams.var() == pytest.approx(variance, rel=0.12)


@pytest.mark.parametrize("mix", ALL)
def test_a_batch_of_one_is_left_as_it_is(mix: Mix) -> None:
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(mix(image, generator=seeded(0)).image, image)


@pytest.mark.parametrize("mix", ALL)
def test_the_type_and_the_input_are_kept(mix: Mix) -> None:
    image = torch.rand(4, 1, 16, 16).bfloat16()
    before = image.clone()
    assert mix(image, generator=seeded(0)).image.dtype == torch.bfloat16
    assert torch.equal(image, before)


@pytest.mark.parametrize("mix", ALL)
def test_what_cannot_be_mixed_is_refused(mix: Mix) -> None:
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="alpha is"):
            mix(numbered(), alpha=alpha)
    with pytest.raises(ValueError, match="uint8"):
        mix(numbered().to(torch.uint8))
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        mix(torch.zeros(4, 4))


# --- FMix


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 0.987, 1.0])
def test_the_mean_of_the_mask_is_lambda_to_a_pixel(official: bool, lam: float) -> None:
    for height, width in ((32, 32), (31, 17), (12, 40)):
        mask = fmix_mask(height, width, lam, np.random.default_rng(0), official_spectrum=official)
        assert mask.shape == (height, width)
        assert abs(mask.sum() - lam * mask.size) < 1


def test_the_mean_over_masks_is_lambda_to_less_than_a_pixel() -> None:
    rng = np.random.default_rng(0)
    means = [fmix_mask(3, 3, 0.37, rng).mean() for _ in range(3000)]
    assert set(np.round(np.multiply(means, 9))) == {3.0, 4.0}
    assert np.mean(means) == pytest.approx(0.37, abs=0.005)


def test_masks_are_as_rough_along_both_axes_and_smoother_with_more_decay() -> None:
    rng = np.random.default_rng(0)

    def roughness(decay: float) -> tuple[float, float]:
        masks = [fmix_mask(64, 64, 0.5, rng, decay=decay) for _ in range(150)]
        down, right = (np.mean([crossings(m, axis).mean() for m in masks]) for axis in (0, 1))
        return float(down), float(right)

    rough, down, right = roughness(1.5), *roughness(3.0)
    assert down == pytest.approx(right, rel=0.15)
    assert 1 < down < 0.6 * rough[0] < 0.6 * 32, "noise would change every second pixel"


def test_the_grey_image_has_the_intended_spectrum() -> None:
    """f^-6 in power for decay 3, which the cut to a mask flattens; the same along both axes."""
    rng = np.random.default_rng(1)
    power = np.zeros((32, 32))
    for _ in range(400):
        power += np.abs(np.fft.fft2(fmix_mask(32, 32, 0.5, rng) - 0.5)) ** 2
    assert power[1, 0] == pytest.approx(power[0, 1], rel=0.25)
    assert 14 < power[1, 0] / power[2, 0] < 32
    assert power[1, 1] == pytest.approx(power[1, -1], rel=0.25), "both diagonals"


def test_the_official_quirk_has_at_most_one_cycle_from_left_to_right() -> None:
    rng = np.random.default_rng(0)
    quirk = [fmix_mask(48, 48, 0.5, rng, official_spectrum=True) for _ in range(60)]
    assert max(crossings(m, axis=1).max() for m in quirk) == 2
    assert max(crossings(m, axis=0).max() for m in quirk) > 2
    intended = [fmix_mask(48, 48, 0.5, rng) for _ in range(60)]
    assert max(crossings(m, axis=1).max() for m in intended) > 3


def test_fmix_hands_its_options_to_the_mask() -> None:
    def pasted(**options: object) -> NDArray[np.bool_]:
        mixed = fmix(numbered(6, 64, 64), generator=seeded(2), **options)
        return (mixed.image != numbered(6, 64, 64)).any(dim=0)[0].numpy()

    assert crossings(pasted(decay=0.5), 0).sum() > 3 * crossings(pasted(decay=5), 0).sum() > 0
    assert not np.array_equal(pasted(official_spectrum=True), pasted())
    assert np.array_equal(pasted(decay=3.0), pasted())


@pytest.mark.parametrize("lam", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(lam: float) -> None:
    with pytest.raises(ValueError, match="lam is"):
        fmix_mask(8, 8, lam, np.random.default_rng(0))


# --- mixup and CutMix


def test_mixup_blends_every_pixel_alike() -> None:
    image = torch.rand(4, 2, 8, 8, generator=seeded(0))
    mixed = mixup(image, generator=seeded(1))
    expected = mixed.lam * image + (1 - mixed.lam) * image[mixed.permutation]
    assert torch.equal(mixed.image, expected)
    assert 0 < mixed.lam < 1


def test_cutmix_pastes_a_box_of_the_image_s_proportions() -> None:
    seen = []
    for seed in range(200):
        mixed = cutmix(numbered(2, 40, 80), generator=seeded(seed))
        if mixed.permutation[0] == 0:
            continue
        pasted = mixed.image[0, 0] != 0
        rows, columns = pasted.any(1), pasted.any(0)
        height, width = int(rows.sum()), int(columns.sum())
        assert int(pasted.sum()) == height * width, "a filled box, and in one piece:"
        assert (rows.int().diff().abs().sum() <= 2) and (columns.int().diff().abs().sum() <= 2)
        if height and not (rows[0] or rows[-1] or columns[0] or columns[-1]):
            assert abs(width - 2 * height) <= 2
        seen.append((int(rows.int().argmax()), int(columns.int().argmax())))
    tops, lefts = np.array(seen).T
    assert tops.max() > 25
    assert lefts.max() > 50
    assert (tops == 0).any()
    assert (lefts == 0).any()


def test_the_centre_of_the_box_is_anywhere() -> None:
    """Every pixel's chance to be pasted is near the others'; only the border gets less."""
    generator = seeded(0)
    pasted = torch.stack(
        [(m.image[0, 0] != 0).float() for m in (cutmix(numbered(2, 16, 16), generator=generator) for _ in range(1500))
         if m.permutation[0] == 1]
    ).mean(0)  # fmt: skip
    assert pasted[8, 8] == pasted.max() or pasted[8, 8] > 0.9 * pasted.max()
    assert pasted[0, 0].item() == pytest.approx(pasted[-1, -1].item(), abs=0.1)
    assert pasted[0, 0] < 0.8 * pasted[8, 8]


# --- on several devices


@pytest.mark.parametrize("mix", ["fmix", "mixup", "cutmix"])
def test_the_devices_of_a_batch_mix_as_one_would(mix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pretended devices, whose mean of losses and gradients is that of one with the whole batch."""
    torch.manual_seed(0)
    params = FMix.resolve("quick", {"mix": mix, "probability": 1.0, "backbone": "test_convnext"}, {}, where="x")  # fmt: skip
    module = FMix(params, ("Edema", "Mass"))
    whole = {
        "image": torch.randint(0, 256, (6, 1, 64, 64), dtype=torch.uint8),
        "target": torch.randint(0, 2, (6, 2)).float(),
        "known": torch.ones(6, 2, dtype=torch.bool),
        "row": torch.arange(6),
    }
    shares = [{name: column[rank::2] for name, column in whole.items()} for rank in range(2)]

    def loss_of(batch: Batch) -> Tensor:
        module.step_draws = seeded(3)
        return module.losses(batch)["loss"]

    alone = loss_of(cast(Batch, whole))
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)

    def all_gather(column: Tensor) -> Tensor:
        [name] = [n for n, c in shares[rank].items() if c is column]
        return torch.stack([share[name] for share in shares])

    monkeypatch.setattr(module, "all_gather", all_gather)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        parts.append(loss_of(cast(Batch, shares[rank])))
    assert not torch.allclose(parts[0], parts[1]), "both devices see the same images"
    torch.testing.assert_close(torch.stack(parts).mean(), alone)
