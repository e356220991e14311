"""Films that keep their shapes: what is read, kept and cut, from the file to the batch."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.registry import Registry
from cxrbench.core.spec import Augment, Execution, Recipe
from cxrbench.core.stage import fit
from cxrbench.core.store import Store
from cxrbench.data import pixel_cache
from cxrbench.data.film_cache import Films, open_films
from cxrbench.data.index import Index
from cxrbench.data.kermany import Kermany
from cxrbench.data.module import CxrDataModule
from cxrbench.data.pixels import UnreadableImageError, decode, kept_shape, read_at
from cxrbench.methods.cyclegan import CycleGAN, CycleGANParams
from cxrbench.methods.cyclegan_training import CycleGANTraining, TrainingParams
from cxrbench.runner.bind import bind
from cxrbench.runner.context import Context, Material
from cxrbench.runner.execute import ChosenImages, data_module
from cxrbench.runner.sides import side_of

SHAPES = [(40, 60), (60, 40), (50, 50), (41, 90), (20, 31), (64, 70)]
SIDE, CUT = 24, 16
CROPS = Recipe(
    size=CUT, load=SIDE, batch_size=6, train_view="random_crop", validation_view="center_crop"
)


def ramp(shape: tuple[int, int]) -> Any:
    """2 grey levels more a pixel to the right: how steep a film is says how it was squeezed."""
    return np.tile((2 * np.arange(shape[1])).astype(np.uint8), (shape[0], 1))


def read(row: int) -> Any:
    return read_at(ramp(SHAPES[row]), SIDE, "short_side")


def cached(store: Store) -> tuple[Films, dict[int, str]]:
    return open_films(read, [str(n) for n in range(6)], {}, SIDE, store)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


# --- reading


def test_a_film_keeps_its_shape_or_its_middle() -> None:
    film = ramp((40, 60))
    assert kept_shape((40, 60), 20) == (20, 30)
    assert kept_shape((2713, 127), 283) == (6046, 283)
    whole = read_at(film, 20, "short_side")
    assert whole.shape == (20, 30)
    assert np.diff(whole[0].astype(int)).mean() == pytest.approx(4, abs=0.1)  # twice as steep
    middle = read_at(film, 20, "centre")
    np.testing.assert_array_equal(middle, whole[:, 5:25])
    squeezed = read_at(film, 20, "squeeze")
    assert squeezed.shape == (20, 20)
    assert np.diff(squeezed[0].astype(int)).mean() == pytest.approx(6, abs=0.1)
    for reading in ("squeeze", "centre", "short_side"):  # squares are read alike
        np.testing.assert_array_equal(
            read_at(film[:, :40], 20, reading),  # type: ignore[arg-type]
            read_at(film[:, :40], 20, "squeeze"),
        )
    assert read_at(ramp((20, 31)), 40, "short_side").shape == (40, 62)  # small ones grow


# --- the cache


def test_films_are_kept_as_they_were_read(store: Store) -> None:
    films, unreadable = cached(store)
    assert (len(films), unreadable) == (6, {})
    for row in range(6):
        assert min(films[row].shape) == SIDE
        np.testing.assert_array_equal(films[row], read(row))
    few = films[np.array([3, 0])]
    np.testing.assert_array_equal(few[0], read(3))
    again = pickle.loads(pickle.dumps(films))
    np.testing.assert_array_equal(again[4], read(4))
    assert len(pickle.dumps(films)) < 1000
    with pytest.raises(ValueError, match="read-only"):
        films[0][0, 0] = 1
    later = open_films(lambda row: 1 / 0, [str(n) for n in range(6)], {}, SIDE, store)[0]  # type: ignore[arg-type, return-value]
    np.testing.assert_array_equal(later[5], read(5))  # nothing is read twice


def test_a_build_that_was_cut_off_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "BLOCK", 2)
    rows: list[int] = []

    def stops(row: int) -> Any:
        rows.append(row)
        if row == 4:
            raise KeyboardInterrupt
        return read(row)

    contents = [str(n) for n in range(6)]
    with pytest.raises(KeyboardInterrupt):
        open_films(stops, contents, {}, SIDE, store)
    [work] = (store.root / "partial").glob("pixels-*")
    with (work / "films.u8").open("ab") as file:  # half a block more, of which nobody knows
        file.write(b"x" * 99)
    before = len(rows)

    def goes_on(row: int) -> Any:
        rows.append(row)
        return read(row)

    films, _ = open_films(goes_on, contents, {}, SIDE, store)
    assert sorted(rows[before:]) == [4, 5]
    for row in range(6):
        np.testing.assert_array_equal(films[row], read(row))
    assert not work.exists()


@pytest.mark.parametrize("note", ["{", '{"rows": 99, "unreadable": {}}', '{"rows": "x"}'])
def test_what_cannot_be_gone_on_with_begins_anew(store: Store, note: str) -> None:
    with pytest.raises(ValueError, match="short side of 24"):
        open_films(lambda row: ramp((3, 3)), ["0"] * 6, {}, SIDE, store)
    cached(store)
    for folder in (store.root / "pixels").iterdir():
        (folder / "done.json").unlink()
        work = store.partial(f"pixels-{folder.name}")
        (work / "rows.json").write_text(note)
        (work / "films.u8").write_bytes(b"old")
    films, _ = cached(store)
    np.testing.assert_array_equal(films[0], read(0))


def test_unreadable_films_are_listed_and_damage_is_said(store: Store) -> None:
    def fails(row: int) -> Any:
        if row == 2:
            raise UnreadableImageError("2.png: no image")
        return read(row)

    films, unreadable = open_films(fails, ["a"] * 6, {}, SIDE, store)
    assert unreadable == {2: "2.png: no image"}
    assert films[2].shape == (SIDE, SIDE)
    assert not films[2].any()
    with (films.folder / "films.u8").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="damaged cache of films; delete the folder"):
        open_films(fails, ["a"] * 6, {}, SIDE, store)


# --- batches


def module_of(films: Any, recipe: Recipe = CROPS) -> CxrDataModule:
    frame = pd.DataFrame({"image_id": [f"i{n}" for n in range(6)], "patient_id": list("abcdef"), "path": "", "Edema": 0.0})  # fmt: skip
    parts = np.array(["train"] * 6, dtype=object)
    return CxrDataModule(
        Index("films", frame, ("Edema",)), films, parts, recipe, size=CUT, seed=5, fit_part="all"
    )


def test_windows_lie_anywhere_along_the_long_side_and_nothing_is_squeezed(store: Store) -> None:
    films, _ = cached(store)
    data = module_of(films)
    lefts = []
    for epoch in range(40):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        [batch] = list(loader)
        assert batch["image"].shape == (6, 1, CUT, CUT)
        for image, row in zip(batch["image"], batch["row"].tolist(), strict=True):
            steep = np.diff(image[0, 0].numpy().astype(int)).mean()
            height, width = SHAPES[row]
            assert steep == pytest.approx(2 * min(height, width) / SIDE, abs=0.3)
            if row == 3:  # 41 x 90: its long side is 53 px, so a window begins at one of 38 places
                row_of_film = films[3][0].astype(int)
                lefts.append(int(np.abs(row_of_film - int(image[0, 0, 0])).argmin()))
    assert min(lefts) < 8
    assert max(lefts) > 29
    again = module_of(films).train_dataloader()
    again.batch_sampler.set_epoch(39)  # type: ignore[union-attr]
    torch.testing.assert_close(next(iter(again))["image"], batch["image"])


def test_validation_sees_the_middle(store: Store) -> None:
    films, _ = cached(store)
    data = module_of(films)
    [batch] = list(data.evaluation_dataloader("train", "center_crop"))
    np.testing.assert_array_equal(batch["image"][0, 0], films[0][4:20, 10:26])


@pytest.mark.parametrize(
    "change",
    [
        {"train_view": "resize"},
        {"train_view": "whole"},
        {"validation_view": "resize"},
        {"augment": Augment(on="device")},
    ],
)
def test_views_that_would_squeeze_are_refused(store: Store, change: Any) -> None:
    with pytest.raises(ConfigError, match="keep their shapes are cropped"):
        module_of(cached(store)[0], CROPS.model_copy(update=change))


# --- from a data set's folder


def test_a_data_set_s_films_in_each_reading(tmp_path: Path) -> None:
    root = Kermany.fake(tmp_path / "data", images=24, size=48, seed=1)
    found = Kermany.read_index(root, Kermany.Params.parse({"task": "pneumonia"}, where="x"))
    for n in range(len(found)):
        path = found.path(n)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            image.convert("L").resize((48 + n % 5 * 8, 48)).save(path)
    store = Store(tmp_path / "store")
    binding = bind(Registry(), "kermany", root, {"task": "pneumonia"}, "official", store)
    view = binding.view(fold=0, seed=0, skip_unreadable=False)
    context = Context(store, Registry(), {"kermany": root}, Execution())
    index = context.open(view).index
    films = context.material(view, 32, "short_side").pixels
    middles = context.material(view, 32, "centre").squares
    squeezed = context.material(view, 32).squares
    assert isinstance(films, Films)
    assert len({film.shape for film in films[np.arange(len(index))]}) > 2
    for row in range(len(index)):
        film = decode(index.path(row))
        np.testing.assert_array_equal(films[row], read_at(film, 32, "short_side"))
        np.testing.assert_array_equal(middles[row], read_at(film, 32, "centre"))
        np.testing.assert_array_equal(squeezed[row], read_at(film, 32, "squeeze"))
    assert len(list((store.root / "pixels").iterdir())) == 3
    with pytest.raises(ConfigError, match="no lung masks"):
        context.masks(view, 32, "centre")


def test_drawn_squares_are_the_same_in_every_reading(tmp_path: Path) -> None:
    store = Store(tmp_path)
    binding = bind(Registry(), "phantom", None, {"images": 60}, "holdout", store)
    view = binding.view(fold=0, seed=0, skip_unreadable=False)
    context = Context(store, Registry(), {"phantom": None}, Execution())
    plain = context.material(view, 32).squares
    for reading in ("centre", "short_side"):
        found = context.material(view, 32, reading).squares  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, plain)
    np.testing.assert_array_equal(context.masks(view, 32, "centre"), context.masks(view, 32))
    assert len(list((store.root / "pixels").iterdir())) == 2  # films and masks


def test_masks_come_with_the_films_where_the_score_reads_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    binding = bind(Registry(), "phantom", None, {"images": 60}, "holdout", store)
    view = binding.view(fold=0, seed=0, skip_unreadable=False)
    context = Context(store, Registry(), {"phantom": None}, Execution())
    whole = Recipe(size=32, load=32, train_view="resize")
    for statistic in ("lungs", "mean"):
        stage = fit(CycleGAN, view, CycleGANParams(statistic=statistic, recipe=whole))  # type: ignore[arg-type]
        batch = next(iter(data_module(stage, context)[0].test_dataloader()))
        assert ("mask" in batch) == (statistic == "lungs")
        if statistic == "lungs":
            rows = batch["row"].numpy()
            np.testing.assert_array_equal(batch["mask"][:, 0], context.masks(view, 32)[rows])


def test_a_reader_that_squeezes_films_itself_cannot_keep_their_shape() -> None:
    class Own(Kermany):
        @classmethod
        def read_image(cls, index: Index, row: int, size: int) -> Any:
            return np.zeros((size, size), np.uint8)

    assert Own.squares("squeeze")
    assert not Kermany.squares("centre")
    with pytest.raises(ConfigError, match="let it override read_film"):
        Own.squares("centre")


def test_masks_and_boxes_are_those_of_the_middle() -> None:
    """A film of 40 x 60: the middle at side 20 is its columns 10 to 50."""
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 10:20] = 255

    class Wide:
        has_masks = True

        @staticmethod
        def as_read(reading: Any) -> Any:
            return reading

        @staticmethod
        def read_film(index: Any, row: int) -> Any:
            return ramp((40, 60))

        @staticmethod
        def read_mask(index: Any, row: int, size: int) -> Any:
            return read_at(mask, size, "squeeze")

        @staticmethod
        def finding_boxes(index: Any) -> Any:
            return [[("Mass", (0.0, 0.25, 0.5, 0.5)), ("Edema", (0.0, 0.0, 1 / 6, 1.0))], []]

    index = SimpleNamespace(select=lambda rows: None)
    opened: Any = SimpleNamespace(cls=Wide, index=index)
    from cxrbench.runner.context import _central

    found = _central(opened, 0, (20, 30), 20)
    assert (found[:, :5] == 255).all()
    assert not found[:, 5:].any()
    material = Material(opened, np.zeros((2, 20, 20), np.uint8), np.array(["test"] * 2), [])
    view: Any = SimpleNamespace(images=None)
    chosen = ChosenImages(material, np.arange(2), view, None, "centre")  # type: ignore[arg-type]
    boxes = chosen.boxes()
    assert boxes is not None
    assert boxes[1] == []
    [(name, box)] = boxes[0]  # the other lies beside the middle
    assert name == "Mass"
    assert box == pytest.approx((0, 0.25, 0.5, 0.5))
    whole = ChosenImages(material, np.arange(2), view, None).boxes()  # type: ignore[arg-type]
    assert whole == Wide.finding_boxes(None)


def test_no_square_of_the_side_is_made_for_a_stage_that_keeps_shapes() -> None:
    keeps = TrainingParams(keep_aspect=True, recipe=CROPS)

    def stage(params: Any) -> Any:
        target = "cxrbench.methods.cyclegan_training:CycleGANTraining"
        return SimpleNamespace(target=target, params=params.dumped(), key="x", kind="fit")

    assert CycleGANTraining.reading(keeps) == "short_side"
    assert side_of(stage(keeps)) is None
    assert side_of(stage(TrainingParams(recipe=CROPS))) == SIDE
