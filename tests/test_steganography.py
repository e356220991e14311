"""Hidden signals: each test on functions whose answer is known, and all of them on a cycle that hides and one that does not."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cxrbench.core.errors import DataError
from cxrbench.data.painter import paint_image, sample_cohort
from cxrbench.methods import steganography as module_under_test
from cxrbench.methods.steganography import Steganography, SteganographyParams
from cxrbench.methods.steganography_tests import (
    NOISE_LEVELS,
    RADII,
    Cycle,
    Trial,
    corruptions,
    eight_bits,
    jpeg,
    linear_decoder,
    locality,
    noise,
    noise_curve,
    other_seed,
    shrink,
    spectrum,
    targeted,
)
from cxrbench.methods.translation import GeneratorParams, Translators
from cxrbench.nn.blur import gaussian_blur

SIDE = 32
FILMS = 12
LEVEL = 2 / 255  # a grey level in [-1, 1]


@pytest.fixture(scope="module")
def pixels() -> Any:
    """Drawn films, uint8 [12, 32, 32]; the second half shall be sick."""
    return np.stack([paint_image(s, SIDE) for s in sample_cohort(FILMS, seed=1, enrichment=3)])


@pytest.fixture(scope="module")
def films(pixels: Any) -> Tensor:
    return torch.from_numpy(pixels)[:, None] / 127.5 - 1


def smooth(image: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(image, sigma)


class Hides(nn.Module):
    """A smoothed film in coarse steps of grey, the film itself written between two steps."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step / 255

    def forward(self, image: Tensor) -> Tensor:
        unit = (image + 1) / 2
        coarse = torch.floor(smooth(unit, 3.0) / self.step) * self.step
        return (coarse + self.step * (0.05 + 0.9 * unit)) * 2 - 1


class Reads(Hides):
    """What `Hides` wrote between the steps."""

    def forward(self, image: Tensor) -> Tensor:
        unit = (image + 1) / 2
        return ((unit % self.step / self.step - 0.05) / 0.9).clamp(0, 1) * 2 - 1


class Blurs(nn.Module):
    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, image: Tensor) -> Tensor:
        return smooth(image, self.sigma)


class Sharpens(nn.Module):
    """An honest way back: it only has what the film shows."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, image: Tensor) -> Tensor:
        return image + 0.5 * (image - smooth(image, self.sigma))


# --- the functions


def test_noise_is_scaled_to_grey_levels() -> None:
    zero = torch.zeros(4, 3, 32, 32)
    three = noise(3, 0)(zero)
    assert float(three.std()) == pytest.approx(3 * LEVEL, rel=0.03)
    assert torch.equal(noise(6, 0)(zero), 2 * three)
    assert not torch.equal(noise(3, 1)(zero), three)
    assert torch.equal(noise(0, 1)(zero + 0.5), zero + 0.5)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_jpeg_costs_more_the_worse_it_is(films: Tensor, channels: int) -> None:
    image = films[:3].expand(-1, channels, -1, -1)
    lost = [float((jpeg(q)(image) - image).abs().mean()) / LEVEL for q in (95, 75, 30)]
    assert 0.2 < lost[0] < lost[1] < lost[2] < 10
    flat = torch.full((1, channels, 16, 16), -1.0)
    assert torch.equal(jpeg(95)(flat), flat)


def test_jpeg_keeps_channels_in_their_places() -> None:
    image = torch.full((1, 3, 16, 16), -1.0)
    image[:, 0] = 0.6
    assert jpeg(95)(image).mean((0, 2, 3)).tolist() == pytest.approx([0.6, -1, -1], abs=0.04)


def test_eight_bits(films: Tensor) -> None:
    torch.testing.assert_close(eight_bits(films), films)
    assert eight_bits(torch.tensor([LEVEL * 0.4, 5.0])).tolist() == pytest.approx(
        [LEVEL / 2, 1.0], abs=1e-6
    )
    rounded = eight_bits(films + 0.3 * LEVEL)
    torch.testing.assert_close(rounded, films.clamp(max=1))


def test_shrinking_forgets_fine_detail() -> None:
    fine = torch.ones(1, 1, 16, 16)
    fine[..., ::2] = -1
    torch.testing.assert_close(shrink(2)(fine), torch.zeros_like(fine))
    flat = torch.full((1, 1, 16, 16), 0.25)
    torch.testing.assert_close(shrink(4)(flat), flat)


def test_the_sweep_has_the_card_s_corruptions() -> None:
    strengths = {family: list(changes) for family, changes in corruptions().items()}
    assert strengths == {
        "jpeg": [95, 85, 75, 50, 30], "blur": [0.5, 1.0, 2.0], "shrink": [2, 4], "eight_bits": [8],
    }  # fmt: skip
    assert NOISE_LEVELS == (0, 0.5, 1, 2, 3, 5, 8, 16)


class Line:
    """In place of a trial: errors 0.1 + 0.02 a level, the control flat."""

    def under(self, change: Any) -> dict[str, float]:
        level = float(change(torch.zeros(1, 1, 64, 64)).std()) / LEVEL
        return {"error": 0.1 + 0.02 * level, "control": 0.3, "moved": level, "moved_real": level / 4}  # fmt: skip


def test_the_noise_curve_s_numbers() -> None:
    found = noise_curve(Line(), seed=0)  # type: ignore[arg-type]
    assert found["levels"] == list(NOISE_LEVELS)
    assert found["error_rise_at_3"] == pytest.approx(1.6, rel=0.02)
    assert found["error_area"] == pytest.approx(1 + 0.02 * 8 / 0.1, rel=0.02)
    assert (found["control_rise_at_3"], found["control_area"]) == pytest.approx((1, 1))
    assert found["readings"] == pytest.approx(4)


def test_a_trial_s_four_errors(films: Tensor) -> None:
    x, y = films[:5], films[5:]
    trial = Trial(Cycle(lambda i: i + 0.2, lambda i: i - 0.1), x, y)
    found = trial.under(lambda i: i + 0.4)
    # there + change + back: 0.2 + 0.4 - 0.1, in halves, since [-1, 1] spans two.
    assert found == pytest.approx({"error": 0.25, "control": 0.25, "moved": 0.2, "moved_real": 0.2}, rel=1e-5)  # fmt: skip
    plain = trial.under(lambda i: i)
    assert plain == pytest.approx({"error": 0.05, "control": 0.05, "moved": 0, "moved_real": 0}, abs=1e-6)  # fmt: skip


@pytest.mark.parametrize(("cycles", "high"), [(0.1, 0.0), (0.375, 1.0)])
def test_the_spectrum_of_a_wave(cycles: float, high: float) -> None:
    wave = (torch.arange(64) * cycles * 2 * math.pi).sin().expand(2, 1, 64, 64) / 2 + 0.5
    frequency, power, share = spectrum(wave)
    assert frequency[-1] == 0.5
    assert frequency[int(np.argmax(power))] == pytest.approx(cycles, abs=1 / 64)
    assert share == pytest.approx(high, abs=0.01)
    assert spectrum(wave.transpose(2, 3))[2] == pytest.approx(share)


def test_the_share_above_a_quarter_of_white_noise() -> None:
    random = torch.Generator().manual_seed(0)
    _, power, share = spectrum(torch.rand(20, 1, 64, 64, generator=random))
    assert share == pytest.approx(
        1 - math.pi / 16, abs=0.02
    )  # a disc of radius 1/4 in a unit square
    assert max(power[2:]) < 1.5 * min(power[2:])


def test_a_flat_film_has_no_power_anywhere() -> None:
    assert spectrum(torch.full((1, 1, 32, 32), 0.5))[2] == 0


def test_locality() -> None:
    image = torch.zeros(6, 1, 64, 64)
    shares, map_ = locality(lambda i: i, image, level=8, seed=0)
    assert shares == pytest.approx({"moved": 4 / 255 / 64, "outside": 0, "far": 0}, abs=1e-5)
    assert map_.shape == (64, 64)
    assert int((map_ > 0).sum()) == 64
    assert map_[28:36, 28:36].min() > 0

    def one_pixel(i: Tensor) -> Tensor:
        return F.avg_pool2d(i, 3, 1, 1)

    shares, _ = locality(one_pixel, image, level=8, seed=0)
    assert 0.05 < shares["outside"] < 0.5
    assert shares["far"] == 0
    shares, _ = locality(lambda i: i.roll(32, -1), image, level=8, seed=0)
    assert (shares["outside"], shares["far"]) == (1, 1)
    shares, _ = locality(lambda i: i * 0, image, level=8, seed=0)
    assert shares == {"moved": 0}


def test_targeted_attacks_need_what_they_need() -> None:
    y, wanted = torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 10 * LEVEL)
    wanted[1] *= 4
    found = targeted(lambda i: i, y, wanted, steps=10, tolerance=0.5)
    assert found["radii"] == list(RADII)
    shares = [(max(0, 1 - r / 10) + max(0, 1 - r / 40)) / 2 for r in RADII]
    assert found["left"] == pytest.approx(shares, abs=0.03)
    assert found["needed"] == [8.0, 32.0]
    assert found["median_needed"] == 20
    hard = targeted(lambda i: i / 4, y, wanted, steps=10, tolerance=0.5)
    assert hard["needed"] == [32.0, None]
    assert hard["median_needed"] is None
    easy = targeted(lambda i: i * 50, y, wanted, steps=10, tolerance=0.5)
    assert easy["needed"] == [1.0, 1.0]
    with torch.no_grad():
        assert targeted(lambda i: i, y, wanted, steps=10, tolerance=0.5) == found


def test_attacks_stay_among_films() -> None:
    y, wanted = torch.full((1, 1, 4, 4), 1 - LEVEL), torch.full((1, 1, 4, 4), 3.0)
    found = targeted(lambda i: i, y, wanted, steps=10, tolerance=0.5)
    assert found["left"][-1] == pytest.approx(2 / (2 + LEVEL), rel=1e-4)


def test_the_decoder_of_another_seed(films: Tensor) -> None:
    mine, theirs = (Cycle(lambda i, k=k: i + k, lambda i, k=k: i - k) for k in (0.25, 0.5))  # type: ignore[misc]
    found = other_seed(mine, theirs, films)
    assert found == pytest.approx(
        {"error": 0, "others_error": 0.125, "hidden": 0.125, "others_own": 0}, abs=1e-6
    )


def test_the_linear_decoder_undoes_what_a_filter_can(films: Tensor) -> None:
    x = (films + 1) / 2
    shifted = x.roll((2, -1), (2, 3)) * 0.5 + 0.2
    found = linear_decoder(shifted, shifted, x, seed=0)
    assert found["films"] == FILMS // 2
    assert found["others_error"] < 0.5 * found["error"]
    assert found["hidden"] == pytest.approx(found["others_error"] - found["error"])
    perfect = linear_decoder(shifted, x, x, seed=0)
    assert perfect["error"] == 0
    assert perfect["hidden"] > 0
    nothing, bright = torch.full_like(x, 0.5), torch.full_like(x, 0.9)
    assert linear_decoder(nothing, bright, bright, seed=0)["others_error"] < 1e-5
    assert linear_decoder(x[:1], x[:1], x[:1], seed=0) == {"films": 0}


# --- the whole


class Images:
    """What a `compute` stage is given."""

    has_masks = False

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels
        self.dataset = SimpleNamespace()
        self.index = SimpleNamespace(labels=("Edema",))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, place: Any) -> Any:
        return self.pixels[place]


def report_of(
    pixels: Any,
    nets: dict[str, tuple[nn.Module, nn.Module]],
    out: Path,
    monkeypatch: Any,
    **more: Any,
) -> dict[str, Any]:
    """The facts of a report whose inputs are the given pairs (to_healthy, to_sick)."""
    pairs = {name: Translators(GeneratorParams(channels=1), *pair) for name, pair in nets.items()}
    monkeypatch.setattr(
        module_under_test, "load_translators", lambda params, folder, device: pairs[str(folder)]
    )
    targets = np.array([[0.0]] * 6 + [[1.0]] * 6)
    params = SteganographyParams(
        generator=GeneratorParams(channels=1), size=SIDE, attacked=2, attack_steps=3, **more
    )
    out.mkdir(exist_ok=True)
    inputs = {name: Path(name) for name in pairs}
    facts = Steganography(params).compute(Images(pixels), targets, inputs, out, 5)
    json.dumps(facts, allow_nan=False)
    return facts


@pytest.fixture
def both(pixels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The reports of a pair that hides sick films in healthy ones, and of an honest pair."""
    hiding = {"translators": (Hides(8), Reads(8)), "other": (Hides(11), Reads(11))}
    honest = {"translators": (Blurs(1.0), Sharpens(1.0)), "other": (Blurs(1.2), Sharpens(0.8))}
    return (
        report_of(pixels, hiding, tmp_path / "hiding", monkeypatch),
        report_of(pixels, honest, tmp_path / "honest", monkeypatch),
    )


def test_hiding_is_caught_and_honesty_is_not(both: Any) -> None:
    hiding, honest = (facts["sick"] for facts in both)
    assert hiding["noise"]["error"][0] < 1e-4, "it reconstructs whatever the translation shows"
    assert hiding["noise"]["error_rise_at_3"] > 100
    assert hiding["noise"]["error_area"] > 100
    assert honest["noise"]["error_rise_at_3"] < 1.5
    assert honest["noise"]["control_rise_at_3"] < 1.5
    assert honest["noise"]["readings"] == pytest.approx(1, abs=0.1)
    # Any film of enough grey levels is read as noisily by a reader of low bits: the tell is what is lost.
    assert hiding["other_seed"]["hidden"] > 0.1
    assert abs(honest["other_seed"]["hidden"]) < 0.01
    assert hiding["other_seed"]["others_own"] < 1e-4
    assert hiding["linear_decoder"]["hidden"] > 0.01
    assert honest["linear_decoder"]["hidden"] < 0
    # Rounding alone breaks nothing honest, and half of what stands in eight grey levels.
    for facts, least, most in ((hiding, 10, math.inf), (honest, 0.9, 1.1)):
        rounded = facts["corruptions"]["eight_bits"]["8"]["error"]
        assert least < rounded / max(facts["noise"]["error"][0], 1e-6) < most
    assert hiding["corruptions"]["jpeg"]["75"]["error"] > 0.1
    assert honest["corruptions"]["jpeg"]["75"]["error"] < 0.1
    assert hiding["targeted"]["left"][3] < honest["targeted"]["left"][3] + 0.5


def test_an_honest_blur_has_no_excess(both: Any, films: Tensor) -> None:
    hiding, honest = (facts["sick"]["spectrum"] for facts in both)
    assert honest["excess"] < 0
    assert honest["ratio"] < 1
    plain, written = (spectrum((net(films) + 1) / 2)[2] for net in (Blurs(3.0), Hides(8)))
    assert written > 10 * plain
    assert hiding["excess"] == pytest.approx(hiding["made"] - hiding["real"])


def test_directions_are_apart(both: Any) -> None:
    hiding, _ = both
    assert hiding["films"] == {"sick": 6, "healthy": 6}
    # Its other direction reads low bits of real films: noise.
    assert hiding["healthy"]["noise"]["error"][0] > 0.1
    assert hiding["healthy"]["noise"]["error_rise_at_3"] < 1.5


def test_the_pictures(both: Any, tmp_path: Path) -> None:
    listed = json.loads((tmp_path / "hiding" / "gallery.json").read_text())
    names = ["gallery", "noise", "corruptions", "spectrum", "locality", "targeted", "decoders"]
    assert [entry["file"] for entry in listed] == [f"{name}.png" for name in names]
    for entry in listed:
        assert entry["caption"]
        with Image.open(tmp_path / "hiding" / entry["file"], formats=("PNG",)) as picture:
            assert min(picture.size) > 200
            assert len(np.unique(np.asarray(picture))) > 10


def test_real_generators_and_the_seed(pixels: Any, tmp_path: Path) -> None:
    params = SteganographyParams(
        generator=GeneratorParams(channels=3, width=4, blocks=1),
        size=SIDE, films=3, attacked=1, attack_steps=2,
    )  # fmt: skip
    for name in ("translators", "other"):
        torch.manual_seed(len(name))
        pair = nn.ModuleDict({d: params.generator.build() for d in ("to_healthy", "to_sick")})
        (tmp_path / name).mkdir()
        save_file(pair.state_dict(), tmp_path / name / "model.safetensors")
    inputs = {name: tmp_path / name for name in ("translators", "other")}
    targets = np.array([[0.0]] * 6 + [[1.0]] * 6)
    report = Steganography(params)
    assert report.image_size() == SIDE
    first = report.compute(Images(pixels), targets, inputs, tmp_path, 1)
    assert first["films"] == {"sick": 3, "healthy": 3}
    assert report.compute(Images(pixels), targets, inputs, tmp_path, 1) == first
    assert report.compute(Images(pixels), targets, inputs, tmp_path, 2) != first
    alone = report.compute(
        Images(pixels), targets, {"translators": tmp_path / "other"}, tmp_path, 1
    )
    assert "other_seed" in first["sick"]
    assert "other_seed" not in alone["sick"]
    assert alone["sick"]["noise"] != first["sick"]["noise"]


def test_one_domain_is_refused(pixels: Any, tmp_path: Path, monkeypatch: Any) -> None:
    params = SteganographyParams(generator=GeneratorParams(channels=1), size=SIDE)
    monkeypatch.setattr(module_under_test, "load_translators", lambda *_: None)
    with pytest.raises(DataError, match="12 healthy and 0 sick films"):
        Steganography(params).compute(
            Images(pixels), np.zeros((FILMS, 1)), {"translators": tmp_path}, tmp_path, 0
        )
