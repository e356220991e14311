"""What a translation changed: where, whom it deceives, how real it looks; on films whose answer is known."""

import json
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
from cxrbench.data.phantom import Phantom, PhantomParams
from cxrbench.methods import translation_report as module_under_test
from cxrbench.methods.densenet121 import QUICK, BackboneClassifier, BackboneParams
from cxrbench.methods.sheets import BAR, GAP, contact_sheet, plot, ticks
from cxrbench.methods.translation import GeneratorParams, Translators
from cxrbench.methods.translation_measures import (
    Verdicts,
    balanced_threshold,
    box_mask,
    by_film,
    change,
    distances,
    flips,
    halves,
    in_boxes,
    mean_shift,
    pointing_game,
    residual,
    separation,
)
from cxrbench.methods.translation_report import (
    ENLARGED,
    Onlooker,
    TranslationReport,
    TranslationReportParams,
    choose_domains,
    clahe,
    difference_map,
    finding_marks,
)

SIDE = 32
BOX = (0.5, 0.25, 0.75, 0.5)  # of the finding that every sick film here has
INSIDE = (slice(None), slice(8, 16), slice(16, 24))
NAN = np.nan


# --- the measures


def test_who_is_healthy() -> None:
    targets = np.array([[0, 0], [1, 0], [NAN, 0], [NAN, NAN], [NAN, 1], [1, 1]])
    images = SimpleNamespace(index=SimpleNamespace(labels=("a", "b")))
    rows = choose_domains(images, targets, 10, 0)
    assert {d: r.tolist() for d, r in rows.items()} == {"sick": [1, 4, 5], "healthy": [0, 2]}
    few = [tuple(choose_domains(images, targets, 2, seed)["sick"]) for seed in range(20)]
    assert set(few) == {(1, 4), (1, 5), (4, 5)}


def test_residuals() -> None:
    films = np.full((2, 10, 10), 100, np.uint8)
    made = films.copy()
    made[0, :2] = 49  # a fifth of the first film falls by 51 grey levels, 0.2 of the range
    made[1] = 151
    moved = change(films, made)
    assert moved.dtype == np.float32
    found = residual(moved)
    assert found == pytest.approx({"films": 2, "mean": (0.04 + 0.2) / 2, "p95": 0.2})


def test_each_film_s_residual_as_a_score() -> None:
    moved = np.zeros((3, 10, 10), np.float32)
    moved[0, :5] = 0.2  # inside the lungs
    moved[1, 5:] = 0.4  # outside
    moved[2] = 0.1
    lungs = np.zeros((3, 10, 10), bool)
    lungs[:2, :5] = True
    found = by_film(moved, lungs)
    assert found["mean"] == pytest.approx([0.1, 0.2, 0.1])
    assert found["p95"] == pytest.approx([0.2, 0.4, 0.1])
    assert found["lungs"] == pytest.approx([0.2, 0, np.nan], nan_ok=True)
    assert found["lungs_p95"] == pytest.approx([0.2, 0, np.nan], nan_ok=True)
    assert set(by_film(moved, None)) == {"mean", "p95"}


def test_separation_is_what_classifiers_are_scored_by() -> None:
    sick, healthy = np.array([0.9, 0.4, 0.8, np.nan]), np.array([0.1, 0.5])
    found = separation(sick, healthy)
    assert found.pop("films") == {"sick": 3, "healthy": 2}
    assert found == pytest.approx(
        {
            "auc": 5 / 6,
            "pr_auc": (1 + 1 + 3 / 4) / 3,
            "precision_at_95_recall": 3 / 4,
            "floor": 3 / 5,
        }
    )
    nothing = separation(sick * np.nan, healthy)
    assert nothing == {"films": {"sick": 0, "healthy": 2}}


def test_boxes_in_pixels() -> None:
    mask = box_mask(BOX, SIDE)
    assert mask.sum() == 64
    assert mask[INSIDE[1:]].all()
    assert box_mask((0.999, 0.999, 1, 1), 8).sum() == 1


def test_changes_in_boxes_and_outside() -> None:
    moved = np.full((4, SIDE, SIDE), 0.1, np.float32)
    moved[INSIDE] = [[[0.4]], [[0.2]], [[0.05]], [[0.9]]]
    moved[:, :, :8] = 7.0  # no lung
    lungs = np.ones((4, SIDE, SIDE), bool)
    lungs[:, :, :8] = False
    marks: list[Any] = [[("Mass", BOX)], [("Mass", BOX)], [("Edema", BOX), ("Mass", BOX)], []]
    found = in_boxes(moved, marks, lungs)
    by_finding = found.pop("by_finding")
    assert found == pytest.approx(
        {"films": 3, "inside": 0.65 / 3, "outside": 0.1, "ratio": 6.5 / 3, "more_inside": 2 / 3}
    )
    assert list(by_finding) == ["Edema", "Mass"]
    assert by_finding["Edema"] == pytest.approx(
        {"films": 1, "inside": 0.05, "outside": 0.1, "ratio": 0.5}
    )
    assert by_finding["Mass"]["films"] == 3
    assert in_boxes(moved, [[], [], [], []], lungs) == {"films": 0}
    assert in_boxes(moved, marks, lungs & False) == {"films": 0}
    still = in_boxes(moved * 0, marks, lungs)
    assert (still["ratio"], still["more_inside"]) == (None, 0)


def test_the_pointing_game() -> None:
    moved = np.zeros((3, SIDE, SIDE), np.float32)
    moved[0, 12, 20] = 1  # in the box
    moved[1, 12, 20], moved[1, 2, 2] = 1, 5  # higher elsewhere, where no lung is
    moved[2, 28, 28] = 1
    lungs = np.ones((3, SIDE, SIDE), bool)
    lungs[:, :4, :4] = False
    found = pointing_game(moved, [[("Mass", BOX)]] * 3, lungs)
    assert found["films"] == 3
    assert (found["hits"], found["in_tissue"]["hits"]) == pytest.approx((1 / 3, 2 / 3))
    assert found["chance"] == pytest.approx(1 / 16)
    assert found["in_tissue"]["chance"] == pytest.approx(64 / (1024 - 16))
    assert pointing_game(moved, [[]] * 3, lungs) == {"films": 0}


def test_the_highest_place_is_that_of_the_smoothed_change() -> None:
    moved = np.zeros((1, SIDE, SIDE), np.float32)
    moved[0, 2, 2] = 1.0  # one bright pixel
    moved[0, 10:14, 18:22] = 0.5  # a bright area
    everywhere = np.ones((1, SIDE, SIDE), bool)
    assert pointing_game(moved, [[("Mass", BOX)]], everywhere)["hits"] == 1


def test_flips() -> None:
    seen = Verdicts(*(np.array(p) for p in ([0.9, 0.8, 0.6, 0.2], [0.1, 0.7, 0.4, 0.1], [0.9, 0.4, 0.6, 0.9])))  # fmt: skip
    found = flips(seen, 0.5, was_sick=True)
    assert found == {
        "threshold": 0.5, "films": 3, "flipped": pytest.approx(2 / 3), "control": pytest.approx(1 / 3),
    }  # fmt: skip
    other = flips(seen, 0.5, was_sick=False)
    assert (other["films"], other["flipped"], other["control"]) == (1, 0.0, 1.0)
    none = flips(seen, 0.95, was_sick=True)
    assert (none["films"], none["flipped"]) == (0, None)
    shift = mean_shift(seen)
    assert shift == pytest.approx({"before": 0.625, "change": -0.3, "control": 0.075})


def test_the_balanced_threshold() -> None:
    healthy, sick = np.array([0.1, 0.2, 0.3, 0.8]), np.array([0.25, 0.6, 0.7, 0.9])
    assert balanced_threshold(healthy, sick) == 0.6
    assert balanced_threshold(healthy * 0, sick) > 0


def test_halves_share_no_patient() -> None:
    patients = np.array(["a"] * 3 + ["b"] * 2 + ["c"] * 4 + list("defghij"))
    for seed in range(5):
        first, second = halves(patients, seed)
        assert sorted([*first, *second]) == list(range(len(patients)))
        assert not set(patients[first]) & set(patients[second])
        assert abs(len(first) - len(second)) <= 4
    assert halves(patients, 0)[0].tolist() != halves(patients, 1)[0].tolist()


def test_distances_rank_what_is_made() -> None:
    random = np.random.default_rng(0)
    real, patients = random.normal(size=(60, 4)), np.arange(60).astype(str)
    source = random.normal(size=(45, 4)) + 2
    near = distances(real, patients, source, source - 2, seed=0)
    assert near["films"] == 30
    assert near == distances(real, patients, source, source - 2, seed=0)
    assert 0 < near["kid_std"]["floor"] < 1
    for name in ("kid", "fid"):
        row = near[name]
        assert list(row) == ["translated", "untranslated", "floor"]
        assert row["untranslated"] > 5 * abs(row["translated"])
        assert row["untranslated"] > 5 * abs(row["floor"])
    assert near["fid"]["floor"] > 0.01, "it is another half"
    same = distances(real, patients, source, source, seed=0)
    assert same["kid"]["translated"] == same["kid"]["untranslated"]
    assert distances(real[:2], patients[:2], source, source, seed=0) == {"films": 1}


# --- pictures


def test_a_difference_map_is_large_and_yellow_where_it_changed() -> None:
    film = np.full((SIDE, SIDE), 100, np.uint8)
    made = film.copy()
    made[INSIDE[1:]] = 140
    picture = difference_map(film, made)
    assert picture.shape == (ENLARGED, ENLARGED, 3)
    red, green, blue = picture[384, 640].astype(int)
    assert min(red, green) > 160 > 3 * blue
    red, green, blue = picture[900, 100].astype(int)
    assert max(red, green) < 100 < blue


def test_clahe_lifts_what_is_faint() -> None:
    film = np.full((64, 64), 100, np.uint8)
    film[::2] += 2
    assert np.ptp(clahe(film)) >= 4 * np.ptp(film)


def test_sheets_are_grey_unless_they_have_colour() -> None:
    grey, colour = np.zeros((8, 8)), np.zeros((8, 8, 3), np.uint8)
    sheet = contact_sheet([[(grey, "a"), (grey + 1, "b")], [None, (grey, "c")]], side=40)
    assert (sheet.mode, sheet.size) == ("L", (2 * (40 + GAP), 2 * (40 + BAR)))
    pixels = np.asarray(sheet)
    assert pixels[:40, :40].max() == 0
    assert pixels[:40, 46:86].min() == 255
    assert pixels[60:100, :40].min() == 255, "a blank place"
    assert contact_sheet([[(grey, ""), (colour, "")]]).mode == "RGB"


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ((30, 100), [40, 60, 80, 100]),
        ((-0.03, 0.011), [-0.03, -0.02, -0.01, 0, 0.01]),
    ],
)
def test_axes_have_round_numbers(ends: Any, expected: Any) -> None:
    assert ticks(*ends) == pytest.approx(expected)


def test_plots_leave_out_what_is_not_finite() -> None:
    lines = {"a": [(0.0, 1.0), (1.0, float("inf")), (2.0, 3.0)], "b": [(0.0, 2.0), (2.0, 2.0)]}
    assert len(np.unique(np.asarray(plot(lines, "x", "y")).reshape(-1, 3), axis=0)) > 10
    with pytest.raises(ValueError, match="no point"):
        plot({"a": [(0.0, float("nan"))]}, "x", "y")


# --- the whole


class Erases(nn.Module):
    """Makes healthy: nothing is brighter than mid grey, and all is a little darker."""

    def forward(self, image: Tensor) -> Tensor:
        return image.clamp(max=0.0) - 0.02


class Adds(nn.Module):
    """Makes sick: something bright in the box, and all a little brighter."""

    def forward(self, image: Tensor) -> Tensor:
        image = image + 0.02
        image[INSIDE[0], :, INSIDE[1], INSIDE[2]] += 0.8
        return image


class Images:
    """Forty films, twenty of them with a bright box; lungs are the right half."""

    has_masks = False

    def __init__(self, marks: Any = None) -> None:
        random = np.random.default_rng(0)
        self.pixels = random.integers(60, 120, (40, SIDE, SIDE)).astype(np.uint8)
        self.pixels[20:][INSIDE] += 100
        self.targets = np.repeat([[0.0, 0.0], [0.0, 1.0]], 20, axis=0)
        patients = np.array([f"p{n // 2}" for n in range(40)])
        self.index = SimpleNamespace(patient_ids=patients, labels=("a", "b"))
        self.dataset = SimpleNamespace()
        self._marks = marks

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, place: Any) -> Any:
        return self.pixels[place]

    def boxes(self) -> Any:
        return self._marks


def report_of(images: Images, out: Path, monkeypatch: Any, **params: Any) -> dict[str, Any]:
    generator = GeneratorParams(channels=1)
    pair = Translators(generator, Erases(), Adds())
    monkeypatch.setattr(module_under_test, "load_translators", lambda *_: pair)
    inputs = {"translators": out, "classifier": out}
    report = TranslationReport(TranslationReportParams(generator=generator, size=SIDE, **params))
    facts = report.compute(images, images.targets, inputs, out, 3)
    json.dumps(facts, allow_nan=False)
    return facts


def test_what_changed_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images([[("Mass", BOX)] if n >= 20 else [] for n in range(40)])
    facts = report_of(images, tmp_path, monkeypatch)
    assert facts["films"] == {"sick": 20, "healthy": 20}
    healthy = facts["residual"]["healthy"]
    assert healthy["mean"] == pytest.approx(0.01, abs=0.002), "0.02 of a range of 2"
    # A sixteenth of each sick film falls from 190 on average to 125.
    assert facts["residual"]["sick"]["mean"] == pytest.approx(0.01 + 64 / 255 / 16, abs=0.003)
    boxes = facts["boxes"]
    assert boxes["films"] == 20
    assert boxes["inside"] == pytest.approx(65 / 255, abs=0.02)
    assert boxes["outside"] == pytest.approx(0.01, abs=0.002)
    assert boxes["more_inside"] == 1
    assert boxes["same_boxes_of_healthy_films"]["ratio"] == pytest.approx(1, abs=0.05)
    assert facts["pointing"]["hits"] == 1
    assert facts["pointing"]["chance"] == pytest.approx(1 / 16)
    assert "classifier" not in facts


def test_the_residual_inside_known_lungs_is_a_score_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images()
    images.pixels[:20, :, :4] = 250  # healthy films change, too, but beside the lungs
    images.has_masks = True
    lungs = np.zeros((40, SIDE, SIDE), np.uint8)
    lungs[INSIDE] = 255
    images.masks = lambda: lungs  # type: ignore[attr-defined]
    found = report_of(images, tmp_path, monkeypatch)["scores"]
    assert set(found) == {"mean", "p95", "lungs", "lungs_p95"}
    assert found["lungs"]["auc"] == found["lungs_p95"]["pr_auc"] == 1
    assert found["lungs"]["films"] == {"sick": 20, "healthy": 20}
    assert found["mean"]["auc"] < 0.5
    images.has_masks = False
    found = report_of(images, tmp_path, monkeypatch)["scores"]
    assert "lung masks" in found["lungs"]["missing"]
    assert found["mean"]["auc"] < 0.5


def test_without_boxes_nothing_is_said_of_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = report_of(Images(), tmp_path, monkeypatch, films=7)
    assert set(facts) == {"films", "residual", "scores"}
    assert facts["films"] == {"sick": 7, "healthy": 7}
    listed = json.loads((tmp_path / "gallery.json").read_text())
    names = ["gallery.png", "means.png", "sick.png", "healthy.png"]
    assert [entry["file"] for entry in listed] == names
    assert all(entry["films"] for entry in listed)  # a mean of seven films shows them
    for entry, rows in zip(listed, (6, 2, 6, 6), strict=True):
        with Image.open(tmp_path / entry["file"], formats=("PNG",)) as picture:
            assert picture.height == rows * (224 + BAR)
            assert picture.mode == "RGB"


CLASSIFIER = BackboneParams(
    backbone="test_resnet", pretrained="none", recipe=QUICK.model_copy(update={"size": SIDE})
)


def a_classifier(folder: Path) -> BackboneClassifier:
    torch.manual_seed(1)
    module = BackboneClassifier(CLASSIFIER, ("a", "b")).eval()
    save_file(module.state_dict(), folder / "model.safetensors")
    return module


def test_the_classifier_s_eyes(tmp_path: Path) -> None:
    module, films = a_classifier(tmp_path), Images().pixels
    seen = Onlooker(CLASSIFIER, tmp_path, ("a", "b"), "cpu")
    with torch.inference_mode():
        probability, features = seen(films)
        image = torch.from_numpy(films)[:, None] / 255
        expected = torch.sigmoid(module(image)).amax(1)
        large = np.repeat(np.repeat(films, 2, 1), 2, 2)
        shrunk = F.interpolate(torch.from_numpy(large)[:, None] / 255, (SIDE, SIDE), mode="bilinear", antialias=True)  # fmt: skip
        again = torch.sigmoid(module(shrunk)).amax(1)
        assert seen(large)[0] == pytest.approx(again.numpy(), abs=1e-5)
        # Its last layer makes the probabilities of the features.
        head = [m for m in module.net.modules() if isinstance(m, nn.Linear)][-1]
        logits = head(torch.from_numpy(features).float())
    assert probability == pytest.approx(expected.numpy(), abs=1e-5)
    assert torch.sigmoid(logits).amax(1).numpy() == pytest.approx(probability, abs=1e-5)
    with torch.inference_mode():  # "No Finding" says the opposite of sick
        each = torch.sigmoid(module(image))
        turned = Onlooker(CLASSIFIER, tmp_path, ("No Finding", "b"), "cpu")(films)[0]
    assert turned == pytest.approx(torch.maximum(1 - each[:, 0], each[:, 1]).numpy(), abs=1e-5)
    with pytest.raises(DataError, match="classifier"):
        Onlooker(CLASSIFIER, tmp_path, ("a", "b", "c"), "cpu")


def test_what_a_classifier_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_classifier(tmp_path)
    facts = report_of(Images(), tmp_path, monkeypatch, classifier=CLASSIFIER)
    found = facts["classifier"]
    assert set(found) == {"auc", "made_healthy", "made_sick"}
    assert 0 <= found["auc"] <= 1
    for direction in ("made_healthy", "made_sick"):
        row = found[direction]
        assert row["at_half"]["threshold"] == 0.5
        assert row["probability"]["change"] != row["probability"]["control"]
    # Before translation at most half of either class is called what it is not, by the balanced threshold's choice.
    called = [found[d]["at_balanced"]["films"] for d in ("made_healthy", "made_sick")]
    assert abs(called[0] - called[1]) <= 2
    apart = facts["distance"]
    assert apart["features"] > 10
    for direction in ("made_healthy", "made_sick"):
        assert apart[direction]["films"] == 10
        kid = apart[direction]["kid"]
        assert kid["translated"] < kid["untranslated"], "both generators make what is there"
    assert report_of(Images(), tmp_path, monkeypatch, classifier=CLASSIFIER) == facts


def test_one_domain_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images()
    images.targets = images.targets * 0 + 1
    with pytest.raises(DataError, match="0 healthy and 40 sick films"):
        report_of(images, tmp_path, monkeypatch)


def test_drawn_films_know_their_boxes() -> None:
    index = Phantom.read_index(None, PhantomParams(images=60, enrichment=1))
    images = SimpleNamespace(index=index, boxes=lambda: Phantom.finding_boxes(index))
    sick = choose_domains(images, index.targets, 99, 0)["sick"]
    marks = finding_marks(images, sick)
    assert marks is not None
    named = [{name for name, _ in found} for found in marks]
    for found, row in zip(named, sick, strict=True):
        assert found <= set(np.array(index.labels)[index.targets[row] == 1])
    assert sum(bool(found) for found in named) > len(sick) // 2
    edges = np.array([box for found in marks for _, box in found])
    assert (edges[:, :2] < edges[:, 2:]).all()
    assert edges.min() >= 0
    assert edges.max() <= 1
    assert finding_marks(SimpleNamespace(boxes=lambda: None), sick) is None


def test_a_long_caption_stays_under_its_own_picture() -> None:
    black = np.zeros((32, 32))
    long = "Cardiomegaly, Edema, Infiltration, Pleural Thickening"
    alone = contact_sheet([[(black, long), None]], side=96)
    both = contact_sheet([[(black, long), (black, "")]], side=96)
    under = np.asarray(both)[96:]
    np.testing.assert_array_equal(np.asarray(alone)[96:], under)
    assert (under[:, :96] < 255).any()
    assert (under[:, 100:] == 255).all()
