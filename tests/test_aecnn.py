"""AE-CNN: the ways down at equal input, other networks, wider codes, and what is measured of films given back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.spec import BenchSpec, MethodParams, Recipe
from cxrbench.core.stage import DataView, Stage, find_leaks, predict, score
from cxrbench.data.painter import paint_image, sample_cohort
from cxrbench.methods import aecnn_report
from cxrbench.methods.aecnn import AECNN, AECNNParams, AutoencoderParams, PatchAutoencoder
from cxrbench.methods.aecnn_report import (
    RESIZINGS,
    Reconstruction,
    ReconstructionParams,
    draw,
    entropy,
    plain,
    png_bytes,
    stored,
)
from cxrbench.methods.densenet121 import DenseNet121
from cxrbench.methods.fmix import FMix
from cxrbench.methods.sheets import BAR, GAP
from cxrbench.methods.vgg16 import VGG16
from cxrbench.metrics.images import psnr, ssim
from cxrbench.nn.autoencoder import SCALE, Autoencoder, enlarge, shrink
from cxrbench.runner.bench import read_spec

VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="r", split="cv5", split_digest="s", fold=0,
    labels=("Edema", "Mass"),
)  # fmt: skip
TINY = {"size": 32, "load": 32, "epochs": 1}
PAPERS = Path(__file__).parents[1] / "benchmarks" / "papers"


@pytest.fixture(scope="module")
def films() -> Any:
    """Drawn films, uint8 [40, 128, 128]; the last ten are for testing."""
    return np.stack([paint_image(s, 128) for s in sample_cohort(40, seed=3, enrichment=3)])


def settled(preset: Any = "quick", **change: Any) -> AECNNParams:
    found = AECNN.resolve(preset, change, {}, where="x")
    assert isinstance(found, AECNNParams)
    return found


def params_of(preset: Any = "quick", **change: Any) -> AECNNParams:
    return settled(preset, **{"backbone": "resnet10t", "pretrained": "none", **change})


def tiny(seed: int = 0, **change: Any) -> AECNN:
    torch.manual_seed(seed)
    return AECNN(params_of(**{"recipe": TINY, **change}), VIEW.labels)


def a_batch(side: int = 128) -> Any:
    random = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (3, 1, side, side), generator=random, dtype=torch.uint8),
        "target": torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]),
        "known": torch.tensor([[True, True], [False, True], [True, False]]),
        "row": torch.arange(3),
    }


def unit(films: Any) -> torch.Tensor:
    return torch.from_numpy(films)[:, None].float() / 255


def leave(folder: Path, states: dict[str, Any]) -> dict[str, Path]:
    for name, state in states.items():
        (folder / name).mkdir()
        save_file(dict(state), folder / name / "model.safetensors")
    return {name: folder / name for name in states}


# --- the ways down


def test_plain_resizing_has_pillow_s_weights(films: Any) -> None:
    for by, how in (
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
        ("area", Image.Resampling.BOX),
    ):
        found = shrink(unit(films[:3]), by)  # type: ignore[arg-type]
        assert found.shape == (3, 1, 32, 32)
        for film, small in zip(films[:3], found[:, 0], strict=True):
            by_pillow = np.asarray(Image.fromarray(film).resize((32, 32), how)) / 255
            assert np.abs(small.numpy() - by_pillow).max() < 0.005, by


def test_resized_images_are_images() -> None:
    steps = torch.zeros(1, 1, 32, 32)
    steps[..., 13:] = 1.0
    for by in RESIZINGS:
        small = shrink(steps, by)
        assert small.min() >= 0
        assert small.max() <= 1
        again = plain(by).up(small)
        assert again.shape == steps.shape
        assert (float(again.min()), float(again.max())) == (0, 1)
        # Nothing moves: what is brought down and up again has the same centre.
        ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
        inner = (..., slice(16, -16))
        assert (plain(by).up(shrink(ramp, by)) - ramp)[inner].mean().abs() < 1e-6


@pytest.mark.parametrize("by", RESIZINGS)
def test_resizing_stands_in_the_autoencoder_s_place(by: Any, tmp_path: Path) -> None:
    """Same classifier, same start, same share of the loss; no autoencoder at all."""
    module, batch = tiny(downscale=by).eval(), a_batch()
    assert not any("autoencoder" in name for name in module.state_dict())
    first = DenseNet121(AECNN.start(module.params), VIEW.labels)
    module.receive(leave(tmp_path, {"classifier": first.state_dict()}))
    for name, value in first.state_dict().items():
        assert torch.equal(module.state_dict()[f"classifier.{name}"], value)
    with torch.inference_mode():
        logits = first.eval()(shrink(batch["image"].float() / 255, by))
        assert torch.equal(module(batch["image"].float() / 255), logits)
        known = batch["known"]
        bce = F.binary_cross_entropy_with_logits(logits[known], batch["target"][known])
        found = module.losses(batch)
    assert set(found) == {"loss"}
    assert found["loss"].item() == pytest.approx(0.9 * bce.item(), rel=1e-5)


@pytest.mark.parametrize("preset", ["paper", "tuned", "quick"])
def test_only_the_way_down_differs(preset: Any) -> None:
    ways = ("autoencoder", *RESIZINGS)
    runs = {by: AECNN.stages(VIEW, settled(preset, downscale=by)) for by in ways}
    assert len({stage.inputs["classifier"].digest for stage in runs.values()}) == 1
    assert len({stage.digest for stage in runs.values()}) == 4
    plain_params = {**runs["autoencoder"].params, "downscale": ""}
    for by in RESIZINGS:
        assert set(runs[by].inputs) == {"classifier"}
        assert {**runs[by].params, "downscale": ""} == plain_params
        assert runs[by].seed == runs["autoencoder"].seed, "the same crops in the same order"
        assert find_leaks(score(predict(runs[by], VIEW), replicates=0, seed=0)) == []
    assert set(runs["autoencoder"].inputs) == {"classifier", "autoencoder"}


def test_an_unknown_way_down_is_refused() -> None:
    with pytest.raises(ConfigError, match="downscale"):
        params_of(downscale="nearest")


# --- other networks


@pytest.mark.parametrize(("backbone", "baseline"), [("vgg16", VGG16), ("densenet121", DenseNet121)])
def test_the_first_stage_is_the_baseline_of_its_network(backbone: str, baseline: Any) -> None:
    recipe = {"epochs": 3}
    own = AECNN.stages(VIEW, params_of(backbone=backbone, classifier={"recipe": recipe}))
    theirs = baseline.resolve(
        "quick",
        {"pretrained": "none", "recipe": own.inputs["classifier"].params["recipe"]},
        {},
        where="x",
    )
    assert own.inputs["classifier"].digest == baseline.stages(VIEW, theirs).digest
    assert own.inputs["classifier"].name == baseline.name


def test_vgg16_reads_the_code() -> None:
    with torch.device("meta"):
        module = AECNN(params_of(backbone="vgg16", recipe=TINY), VIEW.labels)
        baseline = VGG16(AECNN.start(module.params), VIEW.labels)
        assert module(torch.zeros(2, 1, 128, 128)).shape == (2, 2)
    assert [n for n in module.state_dict() if n.startswith("classifier.")] == [
        f"classifier.{name}" for name in baseline.state_dict()
    ]
    body = sum(p.numel() for p in module.parameters())
    assert body - sum(p.numel() for p in baseline.parameters()) == sum(
        p.numel() for p in module.autoencoder.parameters()
    )


@pytest.mark.parametrize("backbone", ["resnet10t", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_timm_learn_end_to_end(backbone: str, channels: int) -> None:
    side = 160 if backbone == "test_vit" else 32  # a transformer has one size
    recipe = {"size": side, "load": side}
    module = tiny(backbone=backbone, recipe=recipe, autoencoder={"code_channels": channels})
    found = module.losses(a_batch(SCALE * side))
    found["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    # The classification term alone reaches the encoder, too.
    module.zero_grad()
    module(a_batch(SCALE * side)["image"].float() / 255).sum().backward()
    assert module.autoencoder.encoder.mix.weight.grad.abs().max() > 0  # type: ignore[union-attr]


# --- the autoencoder


@pytest.mark.parametrize(
    ("channels", "hidden", "encoder", "decoder"),
    [(1, 0, 865, 160), (3, 0, 931, 448), (1, 32, 865, 320 + 4624), (3, 8, 931, 224 + 1168)],
)
@pytest.mark.parametrize("as_resizing", [False, True])
def test_sizes(channels: int, hidden: int, encoder: int, decoder: int, as_resizing: bool) -> None:
    net = Autoencoder(
        clip_code=True, as_resizing=as_resizing, code_channels=channels, hidden=hidden
    )
    assert sum(p.numel() for p in net.encoder.parameters()) == encoder
    assert sum(p.numel() for p in net.decoder.parameters()) == decoder
    with torch.inference_mode():
        code, image = net(torch.rand(2, 1, 32, 48))
    assert code.shape == (2, channels, 8, 12)
    assert image.shape == (2, 1, 32, 48)


def test_the_paper_s_network_is_as_published() -> None:
    net = settled("paper").autoencoder
    assert (net.as_resizing, net.code_channels, net.hidden, net.clip_code) == (False, 1, 0, False)
    torch.manual_seed(0)
    built = net.build(clip_code=False)
    torch.manual_seed(0)
    assert torch.equal(built.encoder.reduce.weight, nn.Conv2d(1, 32, 5).weight)
    image = torch.rand(1, 1, 16, 16)
    by_hand = F.conv2d(
        image, built.encoder.reduce.weight, built.encoder.reduce.bias, stride=4, padding=2
    )
    by_hand = F.conv2d(F.elu(by_hand), built.encoder.mix.weight, built.encoder.mix.bias)
    torch.testing.assert_close(built.encode(image), by_hand)


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_where_it_begins(films: Any, channels: int) -> None:
    torch.manual_seed(0)
    net = Autoencoder(clip_code=True, as_resizing=True, code_channels=channels, hidden=8)
    image = unit(films[:4])
    with torch.inference_mode():
        code, back = net(image)
        resized = shrink(image, "bicubic")
        assert torch.equal(code, resized.expand(-1, channels, -1, -1))
        floor = enlarge(resized, "bicubic")
        assert (back - floor.clamp(0, 1)).abs().mean() < 0.005
        net.decoder.expand.weight.zero_()
        torch.testing.assert_close(net(image)[1], floor.clamp(0, 1))


def test_three_channels_do_not_stay_one(films: Any) -> None:
    net = learned(films[:20], steps=30, code_channels=3)
    with torch.inference_mode():
        code = net.encode(unit(films[30:]))
    assert (code[:, 0] - code[:, 1]).abs().mean() > 1e-4
    assert (code[:, 1] - code[:, 2]).abs().mean() > 1e-4


def learned(films: Any, *, steps: int, **shape: Any) -> Autoencoder:
    """The second stage's own loss and rate on crops, without its loop."""
    torch.manual_seed(0)
    recipe = settled().autoencoder.recipe
    net = {"hidden": 32, **shape}
    module = PatchAutoencoder(
        AutoencoderParams(clip_code=True, as_resizing=True, recipe=recipe, **net), ()
    )
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=0)
    random = np.random.default_rng(0)
    for _ in range(steps):
        y, x = random.integers(0, 65, 2)
        crops = films[random.integers(0, len(films), 16), y : y + 64, x : x + 64]
        loss = module.training_step({"image": torch.from_numpy(crops)[:, None]}, 0)  # type: ignore[typeddict-item]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return module.autoencoder.eval()


def test_beyond_the_paper_it_beats_bicubic(films: Any) -> None:
    """The target at equal size: films that it never saw, every one of them."""
    net = learned(films[:30], steps=100)
    sharp = unit(films[30:])
    with torch.inference_mode():
        back = net(sharp)[1]
        bicubic = plain("bicubic").up(shrink(sharp, "bicubic"))
    gain = psnr(back[:, 0].numpy(), sharp[:, 0].numpy()) - psnr(
        bicubic[:, 0].numpy(), sharp[:, 0].numpy()
    )
    assert gain.mean() > 0.2
    assert gain.min() > 0


def test_the_code_is_float32_under_autocast() -> None:
    net = Autoencoder(clip_code=True, as_resizing=True, hidden=8)
    image = torch.rand(1, 1, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        code, back = net(image)
    assert code.dtype == back.dtype == torch.float32
    torch.testing.assert_close(code, shrink(image, "bicubic"), atol=1e-6, rtol=0)


# --- the report


def test_it_is_measured_on_test_films_with_both_autoencoders() -> None:
    params = params_of("paper", autoencoder={"code_channels": 3, "hidden": 4})
    data = replace(VIEW, revision="other")
    model = AECNN.stages(data, params)
    (stage,) = AECNN.analyses(data, params, model).values()
    assert (stage.kind, stage.part, stage.data) == ("compute", "test", data)
    assert stage.inputs == {"alone": model.inputs["autoencoder"], "trained_on": model}
    report = ReconstructionParams.model_validate(dict(stage.params))
    assert (report.side, report.clip_alone, report.clip_trained_on) == (1024, False, True)
    assert (report.code_channels, report.hidden, report.as_resizing) == (3, 4, False)
    for by in RESIZINGS:
        other = params_of(downscale=by)
        assert set(AECNN.analyses(data, other, AECNN.stages(data, other))) == {"calls"}


@pytest.fixture(scope="module")
def report(films: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Facts and folder of a report on ten films; stage 2 is bicubic itself, stage 3 has learned."""
    folder = tmp_path_factory.mktemp("report")
    recipe = Recipe(**TINY)
    shape = AutoencoderParams(as_resizing=True, hidden=8, recipe=recipe)
    alone = PatchAutoencoder(shape, ())
    nn.init.zeros_(alone.autoencoder.decoder.expand.weight)
    params = AECNNParams(
        backbone="resnet10t", pretrained="none", autoencoder=shape, recipe=recipe,
        classifier=MethodParams(recipe=recipe),
    )  # fmt: skip
    model = AECNN(params, VIEW.labels)
    model.autoencoder.load_state_dict(learned(films[:30], steps=40, hidden=8).state_dict())
    inputs = leave(folder, {"alone": alone.state_dict(), "trained_on": model.state_dict()})
    how = ReconstructionParams(side=128, films=5, as_resizing=True, hidden=8)
    facts = Reconstruction(how).compute(films[30:], None, inputs, folder, 0)
    return facts, folder


def test_the_facts_are_those_of_the_weights(report: Any, films: Any) -> None:
    facts, _ = report
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert (facts["films"], facts["side"], facts["code_values_per_pixel"]) == (5, 128, 1 / 16)
    chosen = films[30:][[0, 2, 4, 7, 9]]
    sharp = unit(chosen)
    for by in RESIZINGS:
        small = shrink(sharp, by)
        back = enlarge(small, by).clamp(0, 1)[:, 0].double().numpy()
        truth = sharp[:, 0].double().numpy()
        row = facts["ways"][by]
        assert row["psnr"] == pytest.approx(psnr(back, truth).mean(), rel=1e-6)
        assert row["ssim"] == pytest.approx(ssim(back, truth).mean(), rel=1e-6)
        inner = psnr(back[:, 8:-8, 8:-8], truth[:, 8:-8, 8:-8]).mean()
        assert row["psnr_inside"] == pytest.approx(inner, rel=1e-6)
        rounded = enlarge((small * 255).round() / 255, by).clamp(0, 1)[:, 0].double().numpy()
        assert row["psnr_of_8_bits"] == pytest.approx(psnr(rounded, truth).mean(), rel=1e-4)
        assert row["code_lowest"] == pytest.approx(float(small.amin((1, 2, 3)).mean()), abs=1e-6)
        assert row["code_highest"] == pytest.approx(float(small.amax((1, 2, 3)).mean()), abs=1e-6)


def test_stage_2_as_bicubic_gains_nothing_and_stage_3_gains(report: Any) -> None:
    facts, _ = report
    ways, gain = facts["ways"], facts["gain_over_bicubic_db"]
    assert ways["stage 2"] == pytest.approx(ways["bicubic"], rel=1e-4)
    assert gain["stage 2"]["mean"] == pytest.approx(0, abs=1e-3)
    expected = ways["stage 3"]["psnr"] - ways["bicubic"]["psnr"]
    assert gain["stage 3"]["mean"] == pytest.approx(expected)
    assert expected > 0.1
    assert 0 < gain["stage 3"]["worst"] <= gain["stage 3"]["mean"]
    assert gain["stage 3"]["films_better"] == 1
    assert ways["stage 3"]["code_like_resized"] > 0.9
    assert ways["stage 3"]["code_outside_0_1"] == 0
    assert 0 < ways["stage 3"]["png_bytes_of_code_per_film"] < 0.5


def test_codes_that_leave_the_range_are_counted(films: Any) -> None:
    way = aecnn_report.Way(
        lambda film: 1 - 1.5 * shrink(film, "area"),
        lambda code: enlarge((1 - code) / 1.5, "area"),
    )
    row = aecnn_report._measure(films[:1], way)
    small = shrink(unit(films[:1]), "area")
    assert row["code_outside_0_1"] == pytest.approx(float((small > 1 / 1.5).double().mean()))
    assert row["code_outside_0_1"] > 0
    assert row["code_lowest"] < 0
    assert row["code_like_resized"] == pytest.approx(-1)
    assert row["psnr_of_8_bits"] < row["psnr"], "what lies outside is cut when it is stored"


def test_sizes_of_what_is_kept() -> None:
    flat = np.full((16, 16), 7, np.uint8)
    assert entropy(flat) == 0
    assert entropy(np.arange(256, dtype=np.uint8)) == pytest.approx(8)
    assert entropy(np.array([0, 0, 9, 255], np.uint8)) == pytest.approx(1.5)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    assert png_bytes(flat) < 120
    assert 64 * 64 < png_bytes(noise) < 64 * 64 + 400
    code = torch.tensor([[[[-1.0, 0.5], [0.999, 2.0]]]])
    assert stored(code).tolist() == [[[0, 128], [255, 255]]]
    assert stored(code).dtype == np.uint8


def test_a_flat_film_has_no_gain(report: Any) -> None:
    flat, better = {"psnr": float("inf")}, {"psnr": 30.0}
    assert aecnn_report._gain([flat], [flat]) == {"mean": None, "worst": None, "films_better": None}
    found = aecnn_report._gain(
        [flat, better, {"psnr": 20.0}], [flat, {"psnr": 29.0}, {"psnr": 22.0}]
    )
    assert found == {"mean": -0.5, "worst": -2.0, "films_better": 0.5}


def test_the_gallery(report: Any, films: Any) -> None:
    _, folder = report
    (entry,) = json.loads((folder / "gallery.json").read_text())
    assert entry["file"] == "gallery.png"
    assert "128 px" in entry["caption"]
    with Image.open(folder / "gallery.png", formats=("PNG",)) as sheet:
        assert sheet.width == 9 * (aecnn_report.TILE + GAP)
        assert sheet.height == 2 * aecnn_report.SHOWN * (aecnn_report.TILE + BAR)
    same = aecnn_report.Way(lambda film: shrink(film, "area"), lambda code: unit(films[:1]))
    drawn = np.asarray(draw({"bicubic": same}, films[:1]))
    tile = aecnn_report.TILE
    last = drawn[:tile, 2 * (tile + GAP) : 2 * (tile + GAP) + tile]
    assert last.max() == 0, "a film given back whole has no residual"


def test_half_an_autoencoder_is_refused(films: Any, tmp_path: Path) -> None:
    state = {f"autoencoder.{n}": v for n, v in Autoencoder(clip_code=True).state_dict().items()}
    state.popitem()
    inputs = leave(tmp_path, {"alone": state, "trained_on": state})
    with pytest.raises(DataError, match="alone"):
        Reconstruction(ReconstructionParams(side=128)).compute(films, None, inputs, tmp_path, 0)


# --- the papers' tables


def rows_of(name: str) -> tuple[BenchSpec, list[tuple[Any, dict[str, Any]]]]:
    spec = read_spec(PAPERS / name)
    entries = [(e, {}) if isinstance(e, str) else (e.name, e.params) for e in spec.methods]
    return spec, entries


def final(cls: Any, params: dict[str, Any]) -> Stage:
    found: Stage = cls.stages(VIEW, cls.resolve("paper", params, {}, where="x"))
    return found


def test_the_table_of_ae_cnn() -> None:
    spec, rows = rows_of("aecnn.yaml")
    assert (spec.preset, spec.datasets[0].name, spec.datasets[0].split) == (
        "paper", "chestxray14", "official",
    )  # fmt: skip
    assert rows[0] == ("densenet121", {})
    assert rows[-1] == ("fmix", {})
    ways = [settled("paper", **given).downscale for _, given in rows[1:-1]]
    assert ways == ["autoencoder", "bicubic", "bilinear", "area"]
    baseline = final(DenseNet121, {}).digest
    starts = {final(AECNN, given).inputs["classifier"].digest for _, given in rows[1:-1]}
    assert starts == {baseline}, "the table's first row is everyone's first stage"


def test_the_table_of_fmix() -> None:
    spec, rows = rows_of("fmix.yaml")
    assert spec.preset == "paper"
    assert rows[0] == ("densenet121", {})
    assert len({final(FMix, given).digest for _, given in rows[1:]}) == len(rows) - 1
    mixes = [FMix.resolve("paper", given, {}, where="x").mix for _, given in rows[1:]]  # type: ignore[attr-defined]
    assert mixes == ["fmix", "fmix", "mixup", "cutmix", "fmix"]
    longer = FMix.resolve("paper", rows[-1][1], {}, where="x").recipe
    base = DenseNet121.resolve("paper", {}, {}, where="x").recipe
    assert longer == base.model_copy(update={"epochs": 40}), (
        "on top of the baseline's own augmentation"
    )
