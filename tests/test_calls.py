"""The galleries of classifiers: surest and worst calls, mixed films, and the charts they are drawn with."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cxrbench.core.gallery import read_gallery
from cxrbench.core.registry import Registry
from cxrbench.core.stage import DataView, predict
from cxrbench.methods.aecnn import AECNN
from cxrbench.methods.calls import Calls, CallsParams, Known, extremes
from cxrbench.methods.fmix import FMix, FMixParams
from cxrbench.methods.fmix_report import MixedFilms, MixedFilmsParams
from cxrbench.methods.sheets import COLOURS, bars, histograms

VIEW = DataView(
    dataset="phantom", version=1, params={}, revision="r", split="cv5", split_digest="s", fold=0,
    labels=("Edema", "Mass"),
)  # fmt: skip
SIDE = 32


class Films:
    """Images as a compute stage gets them: film n is n grey levels bright."""

    def __init__(self, count: int, names: list[str] | None = None) -> None:
        self.films = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, SIDE, SIDE))  # fmt: skip
        ids = names or [f"film-{n}" for n in range(count)]
        self.index = SimpleNamespace(image_ids=np.array(ids))
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, place: Any) -> np.ndarray:
        self.seen += np.atleast_1d(place).tolist()
        return np.array(self.films[place])


# --- surest and worst calls


def test_the_extremes_by_hand() -> None:
    target = np.array([1, 1, 1, 1, 0, 0, 0], bool)
    probability = np.array([0.9, 0.2, 0.7, 0.1, 0.8, 0.3, 0.05])
    right, wrong = extremes(Known(np.arange(7), target, probability))
    # Of four positives two are shown as found and two as missed; of three negatives two and one.
    assert right == [0, 2, 6, 5]
    assert wrong == [3, 1, 4]


def test_no_film_is_in_both_rows() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 40):
        known = Known(np.arange(count), np.arange(count) % 2 == 0, rng.random(count))
        right, wrong = extremes(known)
        assert not set(right) & set(wrong)
        assert len(right) <= 6
        assert len(wrong) <= 6


def predictions(folder: Path, names: list[str]) -> None:
    count = len(names)
    rng = np.random.default_rng(1)
    rare = np.zeros(count)
    rare[:4] = 1
    common = (np.arange(count) % 2).astype(float)
    common[5] = np.nan
    table = pd.DataFrame(
        {
            "image_id": [*names, "elsewhere"],
            "part": ["test"] * count + ["val"],
            "target:rare": [*rare, 1.0],
            "probability:rare": [*rng.random(count), 0.99],
            "target:common": [*common, 0.0],
            "probability:common": [*np.where(common == 1, 0.8, 0.3), 0.99],
            "target:never": [*np.zeros(count), 1.0],
            "probability:never": [*rng.random(count), 0.99],
        }
    )
    table.iloc[::-1].to_parquet(folder / "predictions.parquet")


def test_the_calls_of_a_model(tmp_path: Path) -> None:
    names = [f"film-{n}" for n in range(30)]
    predictions(tmp_path, names)
    films = Films(30)
    report = Calls(CallsParams(side=SIDE))
    assert report.image_size() == SIDE
    facts = report.compute(films, None, {"predictions": tmp_path}, tmp_path, 0)
    json.dumps(facts, allow_nan=False)
    found = facts["median_probability"]
    assert list(found) == ["common", "rare"], "a label of one class is there, or the order is lost"
    assert found["common"] == {"films": 29, "with": 0.8, "without": 0.3}
    # Film 5's common label is not known; even places have it not, odd ones have it.
    right, wrong = films.seen[:6], films.seen[6:12]
    assert [n % 2 for n in (*right, *wrong)] == [1, 1, 1, 0, 0, 0] * 2
    assert 5 not in films.seen[:12]
    gallery, chances = read_gallery(tmp_path)
    assert (gallery.films, chances.films) == (True, False)
    with Image.open(tmp_path / "gallery.png", formats=("PNG",)) as sheet:
        assert sheet.size[1] == 4 * (160 + 20), "two rows for each of two labels"


def test_without_both_classes_there_is_no_picture(tmp_path: Path) -> None:
    table = {"image_id": ["a"], "part": ["test"], "target:x": [1.0], "probability:x": [0.5]}
    pd.DataFrame(table).to_parquet(tmp_path / "predictions.parquet")
    facts = Calls(CallsParams()).compute(
        Films(1, ["a"]), None, {"predictions": tmp_path}, tmp_path, 0
    )
    assert facts == {"median_probability": {}}
    assert read_gallery(tmp_path) == []


METHODS = sorted(Registry().entries("methods"))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_gallery_that_no_score_descends_from(name: str) -> None:
    cls: Any = Registry().load("methods", name)
    params = cls.resolve("quick", {}, {}, where="x")
    model = cls.stages(VIEW, params)
    found = cls.analyses(VIEW, params, model)
    drawn = [stage for stage in found.values() if stage.kind == "compute"]
    assert drawn
    assert all(stage.part == "test" for stage in drawn)
    scored = predict(model, VIEW, cls.tested_on(VIEW, params, model)).ancestry()
    assert not {stage.digest for stage in drawn} & set(scored)


@pytest.mark.parametrize("name", ["densenet121", "vgg16", "fmix", "cyclegan-augmented"])
def test_calls_are_those_of_the_run_s_own_predictions(name: str) -> None:
    cls: Any = Registry().load("methods", name)
    params = cls.resolve("quick", {}, {}, where="x")
    model = cls.stages(VIEW, params)
    calls = cls.analyses(VIEW, params, model)["calls"]
    assert calls.inputs["predictions"].digest == predict(model, VIEW).digest
    assert calls.params == {"side": cls.image_size(params)[0]}


def test_plain_resizing_has_calls_in_place_of_reconstructions() -> None:
    params = AECNN.resolve("quick", {"downscale": "area"}, {}, where="x")
    found = AECNN.analyses(VIEW, params, AECNN.stages(VIEW, params))
    assert set(found) == {"calls"}
    assert found["calls"].params["side"] == AECNN.image_size(params)[0]


# --- mixed films


@pytest.mark.parametrize("mix", ["fmix", "cutmix", "mixup"])
def test_mixed_films_are_of_two_films_in_the_share_that_is_told(mix: Any, tmp_path: Path) -> None:
    report = MixedFilms(MixedFilmsParams(mix=mix, side=SIDE))
    facts = report.compute(Films(200), None, {}, tmp_path, 3)
    assert report.compute(Films(200), None, {}, tmp_path, 3) == facts
    assert facts["mix"] == mix
    assert len(set(facts["lam"])) == 6
    assert all(0 <= lam <= 1 for lam in facts["lam"])
    [listed] = read_gallery(tmp_path)
    assert listed.films
    with Image.open(tmp_path / listed.file, formats=("PNG",)) as sheet:
        drawn = np.asarray(sheet.convert("L"), dtype=float)
    columns = 3 if mix == "mixup" else 4
    assert drawn.shape[1] == columns * (160 + 6)
    first, second, mixed = (drawn[:160, k * 166 : k * 166 + 160].mean() for k in (0, 1, columns - 1))  # fmt: skip
    share = (mixed - second) / (first - second)
    assert share == pytest.approx(facts["lam"][0], abs=0.06)  # films of 8 bits


def test_one_film_is_mixed_with_nothing(tmp_path: Path) -> None:
    facts = MixedFilms(MixedFilmsParams(side=SIDE)).compute(Films(1), None, {}, tmp_path, 0)
    assert facts["lam"] == []
    assert read_gallery(tmp_path) == []


def test_the_mask_is_where_the_own_film_is() -> None:
    torch.manual_seed(0)
    image = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, SIDE, SIDE)
    for mix in ("fmix", "cutmix"):
        for _ in range(8):
            mixed = FMixParams(mix=mix).how.apply(image)
            assert mixed.mask is not None
            assert float(mixed.mask.float().mean()) == pytest.approx(mixed.lam, abs=1e-6)
            if mixed.permutation[0] == 1:
                assert torch.equal(mixed.image[1, 0] == 1, mixed.mask)
    assert FMixParams(mix="mixup").how.apply(image).mask is None


def test_what_is_drawn_is_mixed_as_in_the_training() -> None:
    change = {"mix": "cutmix", "alpha": 0.3}
    params = FMix.resolve("quick", change, {}, where="x")
    mixed = FMix.analyses(VIEW, params, FMix.stages(VIEW, params))["mixed films"]
    assert mixed.params == {
        "mix": "cutmix", "alpha": 0.3, "decay": 3.0, "official_spectrum": False, "side": 64,
    }  # fmt: skip


# --- charts


def coloured(picture: Image.Image, colour: str) -> np.ndarray:
    """Where a picture has a colour [H, W]."""
    wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return (np.asarray(picture.convert("RGB")) == wanted).all(-1)


def test_bars_are_as_long_as_their_values() -> None:
    picture = bars({"one": {"a": 1.0, "b": 0.25}, "two": {"a": 0.5}}, "recall")
    lengths = coloured(picture, COLOURS[0])[34:].sum(1)
    assert lengths[lengths > 100].tolist().count(380) >= 10
    assert set(lengths[lengths > 100]) == {380, 190}
    assert coloured(picture, COLOURS[1])[34:].sum(1).max() == 95


def test_bars_of_nothing_but_zeros_are_drawn() -> None:
    assert bars({"one": {"a": 0.0}}, "recall").size[0] > 100


def test_histograms_are_shares_of_each_sample() -> None:
    few, many = [0.0] * 3 + [1.0], [0.0] * 300 + [1.0] * 100
    picture = histograms({"label": {"with": few, "without": many}}, "probability")
    # The second line covers the first, since both are the same shares.
    assert coloured(picture, COLOURS[0])[42:158].sum() == 0
    assert coloured(picture, COLOURS[1])[42:158].sum() > 200


def test_histograms_of_one_value_are_drawn() -> None:
    assert histograms({"x": {"with": [0.5], "without": [0.5, 0.5]}}, "p").size == (228, 194)
