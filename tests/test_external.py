"""Models tested on another data set than they were trained on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from cxrbench.cli import app
from cxrbench.core.errors import ConfigError, MissingInputError, UsageError
from cxrbench.core.record import read_records
from cxrbench.core.stage import find_leaks
from cxrbench.core.store import Store
from cxrbench.data.chestxray14 import ChestXray14
from cxrbench.data.external import everything, known_overlap, match_labels
from cxrbench.data.table import Table
from cxrbench.leaderboard.collect import collect
from cxrbench.leaderboard.markdown import to_csv, to_markdown
from cxrbench.runner.bench import BenchSpec, plan_bench
from cxrbench.runner.plan import Registry

SMALL = Path(__file__).parent / "plugins" / "small.py"


def test_labels_are_matched_by_the_written_names_alone() -> None:
    match = match_labels(
        ("Effusion", "Mass", "Pleural_Thickening", "Hernia"),
        ("Pleural Effusion", "Lung Lesion", "Pleural Thickening", "Mass"),
    )
    assert match.pairs == (
        ("Effusion", "Pleural Effusion"),
        ("Mass", "Mass"),
        ("Pleural_Thickening", "Pleural Thickening"),
    )
    assert match.unmatched_model == ("Hernia",)
    assert match.unmatched_data == ("Lung Lesion",), "a lesion is no mass: never guessed"


def test_a_given_pair_comes_first_and_must_exist() -> None:
    match = match_labels(("Mass",), ("Lung Lesion", "Mass"), {"Mass": "Lung Lesion"})
    assert match.pairs == (("Mass", "Lung Lesion"),)
    with pytest.raises(ConfigError, match=r"data set has no label .Lung Lesions.*Lung Lesion"):
        match_labels(("Mass",), ("Lung Lesion",), {"Mass": "Lung Lesions"})
    with pytest.raises(ConfigError, match="the model has no label 'Masse'"):
        match_labels(("Mass",), ("Mass",), {"Masse": "Mass"})


@pytest.mark.parametrize(
    ("model", "data", "given", "says"),
    [
        (("Effusion",), ("Pleural Effusion", "Pleural_Effusion"), {}, "could be any of"),
        (("Mass", "Nodule"), ("Mass",), {"Nodule": "Mass"}, "matched by two labels"),
    ],
)
def test_a_doubtful_match_is_refused(
    model: tuple[str, ...], data: tuple[str, ...], given: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        match_labels(model, data, given)


def test_an_overlap_is_known_from_either_side() -> None:
    class First:
        name = "first"
        overlaps = {"second": "the same films"}

    class Second:
        name = "second"
        overlaps: dict[str, str] = {}

    assert known_overlap(First, Second) == known_overlap(Second, First) == "the same films"
    assert known_overlap(Second, Second) == ""


def test_everything_tests(tmp_path: Path) -> None:
    index = Table.read_index(Table.fake(tmp_path, images=20), Table.Params())
    split = everything(index)
    assert set(split.parts(index, 0)) == {"test"} and split.folds == 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set to train on and a table to test on, which holds two of its films."""
    home = ChestXray14.fake(tmp_path_factory.mktemp("home"), images=80, size=48)
    away = Table.fake(tmp_path_factory.mktemp("away"), images=40, size=48, seed=5)
    films = sorted((away / "images").iterdir())[:2]
    for film, copied in zip(films, sorted(home.rglob("*.png")), strict=False):
        shutil.copyfile(copied, film)
    return home, away


@pytest.fixture(scope="module")
def trained(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a model that was trained on one data set and tested on both."""
    home, away = folders
    store = Store(tmp_path_factory.mktemp("store"))
    words = [
        "run", "--method", "small-difference", "--plugin", SMALL, "--preset", "quick", "--gpus", 0,
        "--dataset", "chestxray14", "--data", home, "--set", "recipe.epochs=1",
        "--test-on", "table", "--test-data", away, "--json",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRBENCH_HOME", str(store.root))
        done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return store


def test_a_test_on_another_data_set_end_to_end(folders: tuple[Path, Path], trained: Store) -> None:
    away, store = folders[1], trained
    records, _ = read_records(store.root / "records")
    own, other = sorted(records, key=lambda r: r.tested_on is not None)
    assert own.tested_on is None and other.tested_on is not None
    names = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration")
    assert other.tested_on.label_map == dict(zip(names, names, strict=True))
    assert other.labels == list(names) and "Hernia" in other.tested_on.unmatched_model
    assert sum(stage.kind == "fit" for stage in other.stages) == 1
    assert {s.key for s in own.stages if s.kind == "fit"} <= {s.key for s in other.stages}
    assert [s.kind for s in other.stages].count("transform") == 2, "its images are rewritten, too"
    assert any("OVERLAP: 2 test images of table" in text for text in other.warnings)
    assert any(text.startswith("not tested, table lacks them") for text in other.warnings)

    (key,) = {s.key for s in other.stages if s.kind == "predict"} - {s.key for s in own.stages}
    table = pd.read_parquet(store.artefact(key) / "predictions.parquet")
    assert set(table["part"]) == {"test"}
    expected = pd.read_csv(away / "films.csv")
    assert sorted(table["image_id"]) == sorted(expected["path"])
    assert [c for c in table if c.startswith("target:")] == [f"target:{name}" for name in names]
    joined = table.merge(expected, left_on="image_id", right_on="path")
    known = joined["Effusion"].isin((0, 1))
    assert (joined["target:Effusion"][known] == joined["Effusion"][known]).all()
    # Thresholds come from the validation part of the data that was trained on.
    ours, theirs = (
        r.scores["labels"]["Effusion"]["precision_at_validation_threshold"] for r in (own, other)
    )
    assert ours["threshold"] == theirs["threshold"]

    tables = collect(records)
    assert len(tables) == 2, "a test on other data is another table"
    text = to_markdown(tables, [])
    assert "→ table · all" in text and "OVERLAP" in text
    assert ",table," in to_csv(tables)


def test_no_common_label_and_tests_on_the_own_data_are_refused(
    folders: tuple[Path, Path], store: Store
) -> None:
    home, away = folders
    entry = {"name": "chestxray14", "path": str(home)}
    spec = {"preset": "quick", "methods": ["small"], "datasets": [entry]}
    registry = Registry([SMALL])

    def planned(test: dict[str, object]) -> None:
        plan_bench(
            BenchSpec.parse({**spec, "test_on": [test]}, where="test"), registry, store, "cpu"
        )

    with pytest.raises(ConfigError, match="tested on from outside"):
        planned(entry)
    frame = pd.read_csv(away / "films.csv", dtype=str, keep_default_na=False)
    frame["odd"] = ["1", "0"] * (len(frame) // 2)
    frame.to_csv(away / "odd.csv", index=False)
    params = {"table": "odd.csv", "labels": ["odd"]}
    with pytest.raises(ConfigError, match="pair them in label_map"):
        planned({"name": "table", "path": str(away), "params": params})
    (away / "odd.csv").unlink()


@pytest.mark.parametrize(
    "words", [["--test-data", "."], ["--label-map", "a=b"], ["--set", "test.task=covid"]]
)
def test_options_of_a_test_need_a_test(words: list[str], store: Store) -> None:
    done = CliRunner().invoke(app, ["run", "--method", "vgg16", *words])
    assert done.exit_code != 0 and "--test-on NAME" in done.output + str(done.exception)


def test_a_fit_on_the_tested_data_is_a_leak(folders: tuple[Path, Path], store: Store) -> None:
    home, away = folders
    spec = BenchSpec.parse(
        {
            "preset": "quick",
            "methods": ["small"],
            "datasets": [{"name": "chestxray14", "path": str(home)}],
            "test_on": [{"name": "table", "path": str(away)}],
        },
        where="test",
    )
    plan = plan_bench(spec, Registry([SMALL]), store, "cpu")
    run = next(run for run in plan.runs if run.tested_on)
    assert not find_leaks(plan.graph[run.final])
    assert json.loads(run.model_dump_json())["tested_on"]["dataset"] == "table"


def test_a_trained_model_predicts_images_without_labels(
    trained: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXRBENCH_HOME", str(trained.root))
    films = Table.fake(tmp_path / "films", images=12, size=48, seed=9)
    frame = pd.read_csv(films / "films.csv", dtype=str)[["path", "patient_id"]]
    frame.insert(1, "image_id", ["=1+1", *frame["path"][1:]])
    frame.assign(anything="").to_csv(films / "films.csv", index=False)
    records, _ = read_records(trained.root / "records")
    own = next(r for r in records if r.tested_on is None)
    out = tmp_path / "found.csv"
    words = ["predict", own.id, "--dataset", "table", "--data", films, "--gpus", 0, "--out", out,
             "--set", "data.labels=[]", "--plugin", SMALL]  # fmt: skip
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    found = pd.read_csv(out, dtype={"patient_id": str})
    assert list(found["image_id"]) == ["'=1+1", *frame["path"][1:]], "a spreadsheet runs nothing"
    assert list(found["patient_id"]) == list(frame["patient_id"])
    columns = [column for column in found if column.startswith("probability:")]
    assert columns == [f"probability:{label}" for label in own.labels]
    assert found[columns].to_numpy().min() >= 0 and found[columns].to_numpy().max() <= 1


@pytest.mark.parametrize("out", ["found.txt", "found"])
def test_predictions_are_a_csv_or_parquet(out: str, store: Store) -> None:
    done = CliRunner().invoke(app, ["predict", "abc", "--dataset", "table", "--out", out])
    assert isinstance(done.exception, UsageError) and ".csv" in str(done.exception)


def test_a_model_that_is_not_there_is_said(store: Store) -> None:
    done = CliRunner().invoke(app, ["predict", "abc", "--dataset", "table", "--out", "x.csv"])
    assert isinstance(done.exception, MissingInputError) and "'abc'" in str(done.exception)


def test_rewritten_images_are_exported(
    folders: tuple[Path, Path], trained: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXRBENCH_HOME", str(trained.root))
    records, _ = read_records(trained.root / "records")
    own = next(r for r in records if r.tested_on is None)
    key = next(s.key for s in own.stages if s.kind == "transform")
    side = int(trained.meta(key)["facts"]["size"])
    words = ["data", "export", "--stage", own.id, "--data", folders[0], "--size", side, "--out", tmp_path / "out"]  # fmt: skip
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    made = np.load(trained.artefact(key) / "images.npy")
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert len(table) == len(made) and set(table["split"]) == {"train", "val", "test"}
    for row in (0, len(made) - 1):
        image = np.asarray(Image.open(tmp_path / "out" / table["path"][row]))
        np.testing.assert_array_equal(image, made[row])
