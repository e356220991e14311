"""Identity, specifications, YAML, the leak check, the registry, the store and records."""

import inspect
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from cxrbench.core.digest import canonical_json, canonical_object, digest, source_digest
from cxrbench.core.errors import (
    CannotWriteError,
    ConfigError,
    DataError,
    MissingInputError,
    UsageError,
)
from cxrbench.core.frozen import Frozen
from cxrbench.core.record import RETRACTED, read_record, read_records, write_record
from cxrbench.core.registry import Registry, class_sources, load_target, normalise
from cxrbench.core.seed import derive_seed
from cxrbench.core.spec import BenchSpec, Recipe
from cxrbench.core.stage import (
    DataView,
    Stage,
    compute,
    find_leaks,
    fit,
    predict,
    score,
    transform,
)
from cxrbench.core.store import Lock, Store, read_json, write_atomic, write_json
from cxrbench.core.treeprint import scan_files, tree_fingerprint
from cxrbench.core.yamlfile import MAX_BYTES, parse_yaml, read_yaml
from cxrbench.runner.graph import from_json, graph_of, pack, to_json, unpack

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
RECORDS = Path(__file__).parent / "data" / "records"
VIEW = DataView(
    dataset="films", version=3, params={"task": "a"}, revision="r1", split="cv5",
    split_digest="s1", fold=1, labels=("Edema", "Mass"), root_seed=7,
)  # fmt: skip


class Params(Frozen):
    """Of a stage that does nothing."""

    width: int = 8
    rate: float = 1e-4


class Part:
    """Stands for a method: only its name, version and Params matter to a stage."""

    name = "part"
    version = 2
    Params: ClassVar = Params


class Other(Part):
    """Another one."""

    name = "other"


def final(model: Stage, view: DataView = VIEW) -> Stage:
    return score(predict(model, view), replicates=10, seed=0)


# --- digests and seeds


def test_canonical_json_is_one_text_for_equal_values() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "ä"}) == '{"a":"ä","b":[1,2.5]}'
    value = {f"k{i}": {"x": i, "y": [i, None, True]} for i in range(50)}
    shuffled = list(value.items())
    random.Random(0).shuffle(shuffled)
    assert digest(dict(shuffled)) == digest(value)
    assert digest({"a": 1}) != digest({"a": "1"}) != digest({"a": True})


@pytest.mark.parametrize("prepared", [(), ("b",), ("a", "d"), ("a", "b", "c", "d", "ä")])
def test_an_object_put_together_from_texts_is_the_whole_s_text(prepared: tuple[str, ...]) -> None:
    value = {"d": {"y": 1.5, "x": None}, "b": "ü", "a": [], "ä": 1e-05, "c": {}}
    texts = {key: canonical_json(value[key]) for key in prepared}
    rest = {key: each for key, each in value.items() if key not in texts}
    assert canonical_object(rest, texts) == canonical_json(value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, {"a": [-math.inf]}])
def test_numbers_that_json_has_not_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(bad)


def test_digests_do_not_change_from_process_to_process() -> None:
    code = "from cxrbench.core.digest import digest; print(digest({'b': {1.5, }.pop(), 'a': 'x'}))"
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == digest({"a": "x", "b": 1.5})


def golden_stages() -> dict[str, str]:
    base = fit(Part, VIEW)
    aligned = transform(Part, VIEW, None, base=compute(Other, VIEW))
    return {
        "fit": base.digest,
        "transform": aligned.images.digest if aligned.images else "",
        "fit on transformed": fit(Part, aligned, Params(width=16)).digest,
        "score": final(base).digest,
        "recipe": digest(Recipe().model_dump(mode="json")),
    }


def test_identities_are_what_they_were() -> None:
    """A change here means that no finished run of anyone is found again: is that meant?"""
    assert golden_stages() == GOLDEN["stages"]


def test_seeds_are_what_they_were() -> None:
    found = {
        "0": derive_seed(0),
        "7 fit part": derive_seed(7, "fit", "part"),
        "7 fitp art": derive_seed(7, "fitp", "art"),
        "1 epoch 3": derive_seed(1, "order", 3),
    }
    assert found == GOLDEN["seeds"]
    assert len(set(found.values())) == len(found)
    assert all(0 <= value < 2**63 for value in found.values())


def test_the_seed_of_a_part_hangs_on_the_root_seed_and_its_name_alone() -> None:
    first = fit(Part, VIEW)
    assert fit(Part, replace(VIEW, fold=4)).seed == first.seed
    assert fit(Other, VIEW).seed != first.seed
    assert fit(Part, replace(VIEW, root_seed=8)).seed != first.seed
    assert compute(Part, VIEW).seed != first.seed


# --- what is in a stage's digest


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "other"}, {"version": 4}, {"params": {"task": "b"}}, {"revision": "r2"},
        {"split": "official"}, {"split_digest": "s2"}, {"fold": 2}, {"labels": ("Mass", "Edema")},
        {"skip_unreadable": True}, {"external": True}, {"root_seed": 8},
    ],
    ids=str,
)  # fmt: skip
def test_what_the_data_decide_is_in_a_training_s_digest(change: dict[str, Any]) -> None:
    assert fit(Part, replace(VIEW, **change)).digest != fit(Part, VIEW).digest


def test_what_the_method_decides_is_in_a_training_s_digest() -> None:
    base = fit(Part, VIEW)
    other = {
        fit(Part, VIEW, Params(width=9)).digest,
        fit(Other, VIEW).digest,
        fit(Part, VIEW, part="all").digest,
        fit(Part, VIEW, base=base).digest,
        fit(Part, VIEW, start=base).digest,
        replace(base, version=3).digest,
        replace(base, kind="compute").digest,
    }
    assert base.digest not in other
    assert len(other) == 7


def test_what_does_not_decide_the_artefact_is_not_in_its_digest() -> None:
    base = fit(Part, VIEW)
    assert replace(base, target="/somewhere/else.py:Part").digest == base.digest
    assert fit(Part, VIEW, Params()).digest == base.digest
    reordered = replace(base, params=dict(reversed(list(base.params.items()))))
    assert reordered.digest == base.digest


def test_a_changed_parent_changes_all_that_comes_after() -> None:
    first = final(fit(Part, VIEW, start=fit(Other, VIEW)))
    second = final(fit(Part, VIEW, start=fit(Other, VIEW, Params(width=9))))
    assert {s.kind for s in first.ancestry().values()} == {"fit", "predict", "score"}
    assert not set(first.ancestry()) & set(second.ancestry())


@pytest.mark.parametrize(
    "change",
    [
        {"fold": 3},
        {"split": "official", "split_digest": "s9"},
        {"labels": ("x",)},
        {"root_seed": 99},
    ],
    ids=str,
)
def test_a_rewriting_of_the_images_serves_every_fold_and_split(change: dict[str, Any]) -> None:
    first, second = transform(Part, VIEW), transform(Part, replace(VIEW, **change))
    assert first.images is not None
    assert second.images is not None
    assert first.images.digest == second.images.digest


def test_a_rewriting_that_was_learned_on_a_fold_serves_that_fold_alone() -> None:
    views = [replace(VIEW, fold=fold) for fold in (0, 1)]
    images = [transform(Part, v, None, by=compute(Other, v)).images for v in views]
    assert len({stage.digest for stage in images if stage}) == 2


def test_parameters_of_another_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="part: params must be Params"):
        fit(Part, VIEW, Recipe())


# --- leaks


def test_graphs_without_a_leak() -> None:
    aligned = transform(Part, VIEW, None, by=compute(Other, VIEW))
    outside = replace(VIEW, dataset="elsewhere", external=True, split_digest="x", fold=0)
    for model in (
        fit(Part, VIEW),
        fit(Part, VIEW, start=fit(Other, VIEW)),
        fit(Part, aligned),
        fit(Part, VIEW, start=fit(Other, outside)),
        fit(Part, VIEW, start=fit(Other, outside, part="all")),
    ):
        assert find_leaks(final(model)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fold": 2}, "fitted on fold 2, whose training part holds test patients of fold 1"),
        ({"split": "official", "split_digest": "o"}, "fitted on split 'official', tested on 'cv5'"),
        ({"split_digest": "other"}, "fitted on split 'cv5'"),
        ({"dataset": "elsewhere"}, "elsewhere, which is not declared external"),
        ({"external": True}, "films is declared external but is tested on"),
    ],
)
@pytest.mark.parametrize("kind", [fit, compute])
def test_a_part_that_saw_the_test_patients_is_named(
    kind: Any, change: dict[str, Any], says: str
) -> None:
    start = kind(Other, replace(VIEW, **change))
    for model in (fit(Part, VIEW, start=start), fit(Part, transform(Part, VIEW, None, by=start))):
        leaks = find_leaks(final(model))
        assert len(leaks) == 1
        assert says in leaks[0]
        assert "other" in leaks[0]


def test_a_training_on_all_images_leaks() -> None:
    assert "fitted on all images" in find_leaks(final(fit(Part, VIEW, part="all")))[0]
    statistic = compute(Other, VIEW, part="all")
    assert "compute other" in find_leaks(final(fit(Part, VIEW, by=statistic)))[0]


def test_a_model_of_one_fold_scored_on_another_leaks() -> None:
    assert find_leaks(final(fit(Part, VIEW), VIEW.at(fold=0)))
    assert not find_leaks(final(fit(Part, VIEW), VIEW.at(fold=1)))


def test_predictions_are_of_the_run_s_own_view_with_the_model_s_images() -> None:
    aligned = transform(Part, VIEW.at(fold=3))
    stage = predict(fit(Part, aligned), VIEW)
    assert stage.data.images == aligned.images
    assert stage.data.fold == VIEW.fold
    assert find_leaks(score(stage, replicates=1, seed=0))


# --- graphs as JSON


def a_graph() -> Stage:
    outside = replace(VIEW, dataset="elsewhere", external=True)
    aligned = transform(Part, VIEW, Params(width=3), by=compute(Other, VIEW))
    return final(fit(Part, aligned, start=fit(Other, outside)))


def test_graphs_survive_json() -> None:
    last = a_graph()
    nodes = json.loads(json.dumps(to_json(graph_of([last, fit(Part, VIEW)]))))
    graph = from_json(nodes)
    assert len(nodes) == len(graph) == len(last.ancestry()) + 1
    again = graph[last.digest]
    assert list(again.ancestry()) == list(last.ancestry())
    assert again.data == last.data
    assert again.target == last.target
    assert next(iter(again.inputs.values())).data.images is not None


def test_a_digest_is_that_of_the_whole_content() -> None:
    for stage in a_graph().ancestry().values():
        data = stage.data.pixels() if stage.kind == "transform" else stage.data.identity()
        content = {
            "kind": stage.kind, "name": stage.name, "version": stage.version, "params": dict(stage.params),
            "data": data, "seed": stage.seed, "part": stage.part,
            "inputs": {name: parent.digest for name, parent in stage.inputs.items()},
        }  # fmt: skip
        assert stage.digest == digest(content)


def test_what_stages_share_is_written_once() -> None:
    params = Params(width=3)
    views = [replace(VIEW, fold=fold) for fold in range(4)]
    folds = [final(fit(Part, view, params), view) for view in views]
    nodes = to_json(graph_of([*folds, a_graph()]))
    packed = json.loads(json.dumps(pack(nodes)))
    assert unpack(packed) == json.loads(json.dumps(nodes))
    assert sum(row.get("width") == 3 for row in packed["params"]) == 2, "one a model of parameters"
    assert [view["fold"] for view in packed["views"]][:4] == [0, 1, 2, 3], "three stages a view"
    graph = from_json(unpack(packed))
    assert list(graph) == [node["digest"] for node in nodes]
    assert len({id(stage.params) for stage in graph.values() if stage.kind == "fit"}) < len(folds)
    with pytest.raises(DataError, match="not its content's"):
        from_json(unpack({**packed, "params": [{**row, "width": 9} for row in packed["params"]]}))


def test_equal_models_have_a_dump_each_and_one_model_has_one() -> None:
    one, other = Params(width=3), Params(width=3)
    assert one.dumped() is one.dumped()
    assert one.dumped() == other.dumped()
    assert one.model_copy(update={"width": 4}).dumped() == {**other.dumped(), "width": 4}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("params", "width"), 99), (("seed",), 1), (("version",), 9), (("part",), "all"),
        (("data", "fold"), 0), (("data", "revision"), "r9"), (("data", "labels"), ["Edema"]),
        (("name",), "x"), (("inputs",), {}), (("digest",), "0" * 64),
    ],
    ids=str,
)  # fmt: skip
def test_a_tampered_graph_is_refused(path: tuple[str, ...], value: Any) -> None:
    nodes = to_json(graph_of([fit(Part, VIEW, start=fit(Other, VIEW))]))
    node = nodes[-1]
    for key in path[:-1]:
        node[key] = dict(node[key])
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(DataError, match="not its content's"):
        from_json(nodes)


def test_a_graph_that_lacks_a_node_or_has_a_foreign_field_is_refused() -> None:
    nodes = to_json(graph_of([a_graph()]))
    with pytest.raises(DataError, match="not a graph"):
        from_json(nodes[1:])
    with pytest.raises(DataError, match="not a graph"):
        from_json([{**nodes[0], "surprise": 1}])


# --- specifications and their errors


class Inner(Frozen):
    """Nested."""

    epochs: int = 1
    optimizer: str = "adam"


class Outer(Frozen):
    """Holds nested ones in all the ways that specifications do."""

    recipe: Inner = Inner()
    maybe: Inner | None = None
    many: list[Inner] = []
    mixed: list[str | Inner] = []
    by_name: dict[str, Inner] = {}
    rate: float = Field(0.1, gt=0)


@pytest.mark.parametrize(
    ("value", "key", "hint"),
    [
        ({"recipes": {}}, "recipes", "'recipe'"),
        ({"recipe": {"epoch": 3}}, "recipe.epoch", "'epochs'"),
        ({"maybe": {"epohcs": 3}}, "maybe.epohcs", "'epochs'"),
        ({"many": [{}, {"optimiser": "sgd"}]}, "many.1.optimiser", "'optimizer'"),
        ({"mixed": ["a", {"optimiser": "sgd"}]}, "optimiser", "'optimizer'"),
        ({"by_name": {"a": {"epoch": 1}}}, "by_name.a.epoch", "'epochs'"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(value: Any, key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        Outer.parse(value, where="bench.yaml")
    lines = str(error.value).splitlines()
    assert all(line.startswith("bench.yaml: ") for line in lines)
    wanted = [line for line in lines if "unknown key" in line]
    assert len(wanted) == 1
    assert f"{key}'" in wanted[0]
    assert f"did you mean {hint}" in wanted[0]


def test_a_wrong_value_is_named_with_what_was_given() -> None:
    with pytest.raises(ConfigError, match=r"x: recipe.epochs: .*integer.*\(given: 'ten'\)"):
        Outer.parse({"recipe": {"epochs": "ten"}}, where="x")
    with pytest.raises(ConfigError, match=r"x: rate: .*greater than 0.*\(given: -1\)"):
        Outer.parse({"rate": -1}, where="x")
    with pytest.raises(ConfigError, match="rate"):
        Outer.parse({"rate": math.nan}, where="x")
    with pytest.raises(ConfigError, match="x: value: "):
        Outer.parse([1], where="x")
    with pytest.raises(ConfigError):
        Outer.parse({1: 2}, where="x")


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Outer.parse({"recipe": {"epoch": 1, "epochs": "x"}, "rte": 1}, where="x")
    assert len(str(error.value).splitlines()) == 3


def test_a_huge_wrong_value_is_not_printed_in_full() -> None:
    with pytest.raises(ConfigError) as error:
        Outer.parse({"rate": list(range(100_000))}, where="x")
    assert len(str(error.value)) < 1000


def test_specifications_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().rate = 0.5


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="size 300 is larger than load 256"):
        Recipe.parse({"size": 300, "load": 256}, where="recipe")


def test_a_benchmark_names_a_typo_in_a_data_set_and_in_a_method() -> None:
    spec = {
        "datasets": [{"name": "phantom", "fold": [0]}],
        "methods": [{"name": "a", "presett": "x"}],
    }
    with pytest.raises(ConfigError) as error:
        BenchSpec.parse(spec, where="b.yaml")
    assert "b.yaml: unknown key 'datasets.0.fold'; did you mean 'folds'" in str(error.value)
    assert "did you mean 'preset'" in str(error.value)


# --- YAML


def test_yaml_numbers_and_words_are_what_they_look_like() -> None:
    text = """
    rate: 1e-4
    other: -1.5E+3
    half: .5
    whole: 20
    no: no
    answers: [yes, on, off, y, n, No]
    truths: [true, False]
    nothing: null
    weights: none
    nan: .nan
    day: 2020-13-45
    other_day: 2020-01-02
    """
    found = parse_yaml(text, where="x")
    assert found["rate"] == 1e-4
    assert isinstance(found["rate"], float)
    assert found["other"] == -1500.0
    assert found["half"] == 0.5
    assert found["whole"] == 20
    assert found["no"] == "no"
    assert found["answers"] == ["yes", "on", "off", "y", "n", "No"]
    assert found["truths"] == [True, False]
    assert found["nothing"] is None
    assert found["weights"] == "none"
    assert found["nan"] == ".nan"
    assert (found["day"], found["other_day"]) == ("2020-13-45", "2020-01-02")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "'a' stands twice"),
        ("x:\n  b: 1\n  c: 2\n  b: 3", "'b' stands twice"),
        ("- {a: 1, a: 1}", "'a' stands twice"),
        ("a: [1", "b.yaml: "),
        ("a: !!python/object/apply:os.system ['true']", "b.yaml: "),
        ("a: !!python/name:os.system", "b.yaml: "),
        ("a: *nowhere", "b.yaml: "),
        ("a: 1\n---\nb: 2", "b.yaml: "),
        ("[1, 2]: 3", "b.yaml: "),
        ("{a: 1}: 3", "b.yaml: "),
        ("a: \x07", "b.yaml: "),
        ("[" * 5000, "b.yaml: "),
        ("a: " + "1" * 5000, "b.yaml: "),
    ],
    ids=lambda text: text[:30],
)
def test_bad_yaml_is_a_clear_error(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_yaml(text, where="b.yaml")


def test_merge_keys_still_work() -> None:
    text = "base: &b {x: 1, y: 2}\nother: {<<: *b, y: 3}"
    assert parse_yaml(text, where="x")["other"] == {"x": 1, "y": 3}


def test_yaml_files_that_are_no_specification(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    with pytest.raises(MissingInputError, match=r"spec.yaml: no such file"):
        read_yaml(path)
    with pytest.raises(MissingInputError, match="no such file"):
        read_yaml(tmp_path)
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match=r"spec.yaml: not UTF-8"):
        read_yaml(path)
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1,000,000 bytes"):
        read_yaml(path)
    path.write_bytes(b"\xef\xbb\xbfname: x\r\n")
    assert read_yaml(path) == {"name": "x"}


# --- registry


PLUGIN = '''
class Plain:
    """Does little."""

    name = "my_method"
    version = 4
    presets = {"quick": {}, "paper": {}}
'''


def test_listing_imports_nothing_heavy(tmp_path: Path) -> None:
    plugin = tmp_path / "p.py"
    plugin.write_text(PLUGIN + "\nraise SystemExit('was imported')\n")
    code = (
        "import sys; from pathlib import Path; from cxrbench.core.registry import *\n"
        f"r = Registry([Path({str(plugin)!r})]); names = [*r.entries('methods'), *r.entries('datasets')]\n"
        "class_sources(r)\n"
        "print(*names); print(*({'torch', 'numpy', 'pandas', 'lightning', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, heavy = done.stdout.splitlines()
    known = {
        "aecnn",
        "densenet121",
        "vgg16",
        "phantom",
        "table",
        "kermany",
        "chestxray14",
        "my-method",
    }
    assert known <= set(names.split())
    assert heavy == ""


def test_entries_say_what_is_needed_to_list_them() -> None:
    methods = Registry().entries("methods")
    assert methods["aecnn"].presets == ("paper", "tuned", "quick")
    assert methods["aecnn"].target == "cxrbench.methods.aecnn:AECNN"
    assert "patch-autoencoder" not in methods
    assert all(entry.summary.endswith((".", ")")) or entry.summary for entry in methods.values())
    assert "cxrdataset" not in Registry().entries("datasets")


@pytest.mark.parametrize("name", ["my-method", "my_method", " My_Method "])
def test_hyphen_and_underscore_are_one(tmp_path: Path, name: str) -> None:
    plugin = tmp_path / "p.py"
    plugin.write_text(PLUGIN)
    entry = Registry([plugin]).entry("methods", name)
    assert entry.name == normalise(name) == "my-method"
    assert entry.presets == ("quick", "paper")
    assert load_target(entry.target).version == 4


@pytest.mark.parametrize(
    ("family", "name", "hint"),
    [("methods", "densnet121", "'densenet121'"), ("datasets", "chestxray", "'chestxray14'")],
)
def test_an_unknown_name_gets_the_nearest(family: Any, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"unknown {family[:-1]} '{name}'; did you mean {hint}"):
        Registry().entry(family, name)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    plugin = tmp_path / "p.py"
    plugin.write_text(PLUGIN.replace("my_method", "AECNN"))
    with pytest.raises(UsageError, match=r"two methods are called 'aecnn'.*aecnn:AECNN.*p.py"):
        Registry([plugin]).entries("methods")
    with pytest.raises(UsageError, match="two methods"):
        Registry([plugin, plugin]).entries("methods")


def test_bad_plugins_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such file"):
        Registry([tmp_path / "absent.py"])
    plugin = tmp_path / "p.py"
    plugin.write_text("class :")
    with pytest.raises(UsageError, match=r"p.py: not a Python file"):
        Registry([plugin]).entries("methods")
    plugin.write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match=r"p.py: not a Python file"):
        Registry([plugin]).entries("methods")
    for name in ("a/b", "../x", ".x", "a b", ""):
        plugin.write_text(PLUGIN.replace("my_method", name))
        with pytest.raises(UsageError, match="use letters, digits"):
            Registry([plugin]).entries("methods")
    plugin.write_bytes(b"x = 1\x00")
    with pytest.raises(UsageError, match=r"p.py: not a Python file"):
        Registry([plugin]).entries("methods")


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ("import no_such_module_at_all", UsageError, "import failed: ModuleNotFoundError"),
        ("1 / 0", UsageError, "import failed: ZeroDivisionError"),
        (
            "from cxrbench.core.errors import DataError; raise DataError('mine')",
            DataError,
            "mine",
        ),
    ],
)
def test_a_plugin_that_cannot_be_imported_says_so_every_time(
    tmp_path: Path, line: str, error: type[Exception], says: str
) -> None:
    plugin = tmp_path / "p.py"
    plugin.write_text(f"# {tmp_path}\n{line}\n{PLUGIN}")
    registry = Registry([plugin])
    for _ in range(2):
        with pytest.raises(error, match=says):
            registry.load("methods", "my-method")


def test_two_plugins_of_one_file_name_are_two_modules(tmp_path: Path) -> None:
    classes = []
    for n in (1, 2):
        path = tmp_path / str(n) / "p.py"
        path.parent.mkdir()
        path.write_text(PLUGIN.replace("my_method", f"m{n}"))
        classes.append(Registry([path]).load("methods", f"m{n}"))
    assert [cls.name for cls in classes] == ["m1", "m2"]
    stage = Stage("fit", "m1", classes[0].plugin_target, 1, {}, VIEW)
    assert load_target(stage.target) is classes[0]


def test_every_class_of_a_plugin_can_be_a_stage(tmp_path: Path) -> None:
    plugin = tmp_path / "p.py"
    helper = "class Aligner:\n    name = 'aligner'\n    version = 1\n    Params = None\n"
    plugin.write_text(helper + PLUGIN)
    Registry([plugin]).load("methods", "my-method")
    assert load_target(f"{plugin}:Aligner").plugin_target == f"{plugin}:Aligner"


def test_the_text_of_a_class_is_the_same_read_or_imported(tmp_path: Path) -> None:
    plugin = tmp_path / "p.py"
    extra = '''
def mark(cls):
    return cls


@mark
class Decorated:
    """Has a decorator, a comment at the end, and a line that looks like code."""

    name = "decorated"
    version = 1
    presets = {"quick": {}}
    text = """
class Fake:
"""

    def f(self):
        return 1
        # the end

    # and after it


x = "\\u2028"


class Last(Decorated):
    """The file ends without a line break."""

    name = "last"
    version = 1
    presets = {"quick": {}}
    text = "a b"'''
    plugin.write_text(PLUGIN + extra)
    registry = Registry([plugin])
    sources = class_sources(registry)
    for name in ("decorated", "my-method", "last"):
        cls = registry.load("methods", name)
        assert sources[(cls.name, cls.version)] == {source_digest(cls)}, name


def test_the_text_of_every_built_in_stage_is_found() -> None:
    registry = Registry()
    sources = class_sources(registry)
    modules = {entry.target.partition(":")[0] for entry in registry.entries("methods").values()}
    checked = set()
    for module in sorted(modules):
        registry.load("methods", module.rpartition(".")[2])
        for cls in vars(sys.modules[module]).values():
            own = inspect.isclass(cls) and cls.__module__ == module
            if own and "name" in vars(cls) and "version" in vars(cls):
                assert sources[(cls.name, cls.version)] == {source_digest(cls)}, cls
                checked.add(cls.name)
    assert {"densenet121", "vgg16", "aecnn", "patch-autoencoder"} <= checked


# --- store


def test_an_artefact_exists_only_when_it_is_complete(store: Store) -> None:
    folder = store.artefact("fit-x")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    assert not store.has("fit-x")
    with store.building("fit-y") as out:
        (out / "a" / "b").mkdir(parents=True)
        (out / "a" / "b" / "c.bin").write_bytes(b"1")
        assert not store.has("fit-y")
        assert store.publish("fit-y", out, {"key": "fit-y"})
    assert store.has("fit-y")
    assert store.meta("fit-y") == {"key": "fit-y"}
    assert (store.artefact("fit-y") / "a" / "b" / "c.bin").read_bytes() == b"1"


def test_what_fails_while_building_leaves_no_artefact(store: Store) -> None:
    with pytest.raises(RuntimeError, match="oh"), store.building("k") as out:
        (out / "file").write_bytes(b"1")
        raise RuntimeError("oh")
    assert not store.has("k")
    assert not out.exists()
    assert not store.artefact("k").exists()
    assert list(store.partial("k").iterdir()) == []


def test_metadata_that_json_has_not_publishes_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"), store.building("k") as out:
        store.publish("k", out, {"loss": math.nan})
    assert not store.has("k")


def test_the_second_of_two_publishers_loses_and_damages_nothing(store: Store) -> None:
    rounds, racers = 10, 4
    for n in range(rounds):
        won: list[int] = []
        barrier = threading.Barrier(racers)

        def race(me: int, key: str = f"k{n}", won: list[int] = won, at: Any = barrier) -> None:
            with store.building(key) as out:
                for name in ("a", "b", "c"):
                    (out / name).write_text(str(me))
                at.wait()
                if store.publish(key, out, {"by": me}):
                    won.append(me)

        threads = [threading.Thread(target=race, args=(me,)) for me in range(racers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        folder = store.artefact(f"k{n}")
        assert store.meta(f"k{n}") == {"by": won[0]}
        assert {(folder / name).read_text() for name in ("a", "b", "c")} == {str(won[0])}
        assert list(store.partial(f"k{n}").iterdir()) == []


def test_a_broken_folder_in_an_artefact_s_place_is_an_error_not_a_success(store: Store) -> None:
    folder = store.artefact("k")
    folder.mkdir(parents=True)
    (folder / "left.bin").write_bytes(b"1")
    with pytest.raises(CannotWriteError, match="cannot publish"), store.building("k") as out:
        store.publish("k", out, {})
    store.discard("k")
    assert not folder.exists()
    with store.building("k") as out:
        assert store.publish("k", out, {})


def test_discard_removes_an_artefact(store: Store) -> None:
    store.discard("never")
    with store.building("k") as out:
        store.publish("k", out, {})
    store.discard("k")
    assert not store.has("k")
    assert list(store.folder("partial").glob("discarded-*")) == []


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": math.nan})
    assert read_json(path) == {"a": 1}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWriteError, match=r"x.json: cannot write \(No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"], "a temporary file is left"


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(CannotWriteError, match="set CXRBENCH_HOME to a writable folder"):
        store.check_writable()
    with pytest.raises(CannotWriteError, match="cannot create"):
        store.lock("k")
    with pytest.raises(CannotWriteError, match="cannot write"):
        write_atomic(tmp_path / "file" / "x" / "y.json", b"1")


def test_the_default_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CXRBENCH_HOME", raising=False)
    assert Store.default().root == tmp_path / "runs"
    monkeypatch.setenv("CXRBENCH_HOME", "")
    assert Store.default().root == tmp_path / "runs"
    monkeypatch.setenv("CXRBENCH_HOME", "~/x")
    assert Store.default().root == (Path.home() / "x").resolve()


@pytest.mark.parametrize("torn", [b"", b'{"a": 1', b"\xff\xfe", b"<html>", b"[" * 200_000])
def test_torn_json_is_named(store: Store, torn: bytes) -> None:
    folder = store.artefact("k")
    folder.mkdir(parents=True)
    (folder / "stage.json").write_bytes(torn)
    with pytest.raises(DataError, match=r"k/stage.json: not JSON .*delete it"):
        store.meta("k")


def test_metadata_must_be_an_object(store: Store) -> None:
    write_json(store.artefact("k") / "stage.json", [1])
    with pytest.raises(DataError, match="not an object"):
        store.meta("k")


def _hold(path: str, ready: Any, leave: Any) -> None:
    lock = Lock(Path(path))
    assert lock.acquire(wait=True)
    ready.set()
    leave.wait(60)
    os._exit(0)  # without a release: the kernel frees it


def test_a_lock_holds_across_processes_until_its_holder_is_gone(store: Store) -> None:
    lock = store.lock("k")
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(lock.path), ready, leave))
    holder.start()
    assert ready.wait(60)
    assert not lock.acquire(wait=False)
    leave.set()
    holder.join(60)
    assert lock.acquire(wait=False)
    assert not store.lock("k").acquire(wait=False)
    assert store.lock("other").acquire(wait=False)
    lock.release()
    lock.release()
    again = store.lock("k")
    assert again.acquire(wait=False)
    again.release()


def test_a_child_that_has_the_descriptor_holds_the_lock_too(store: Store) -> None:
    lock = store.lock("k")
    assert lock.acquire(wait=False)
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.descriptor]
    )
    lock.release()
    assert not store.lock("k").acquire(wait=False)
    child.communicate(b"\n", timeout=60)
    assert store.lock("k").acquire(wait=False)


# --- walks over folders


def test_a_data_folder_is_walked_in_order_without_loops(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a/1.png", "a/x.txt", ".hidden/3.png", "__MACOSX/4.png", "c/.5.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = [name for name, _ in scan_files(tmp_path, (".png",))]
    assert found == ["a/1.png", "b/2.PNG"]


def test_the_fingerprint_of_a_folder_changes_with_any_edit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("1")
    seen = {tree_fingerprint(tmp_path)}
    assert tree_fingerprint(tmp_path) in seen
    os.utime(path, ns=(1, 1))
    seen.add(tree_fingerprint(tmp_path))
    path.write_text("12")
    os.utime(path, ns=(1, 1))
    seen.add(tree_fingerprint(tmp_path))
    path.rename(tmp_path / "b.csv")
    seen.add(tree_fingerprint(tmp_path))
    assert len(seen) == 4


# --- records


def test_a_record_of_the_first_schema_can_always_be_read() -> None:
    record = read_record(RECORDS / "v1.json")
    assert record.schema_version == 1
    assert record.id == "0123456789ab"
    assert record.scores["macro"]["auc"] == 0.8125
    assert [stage.kind for stage in record.stages] == ["fit", "predict", "score"]
    again = type(record).parse(json.loads(record.model_dump_json()), where="again")
    assert again == record


def test_records_are_written_once(tmp_path: Path, make_record: Any) -> None:
    record = make_record(auc=0.75)
    path = write_record(tmp_path, record)
    assert path == tmp_path / "kermany" / "densenet121" / f"{record.final[:16]}-{record.id}.json"
    assert read_record(path) == record
    before = path.read_bytes()
    with pytest.raises(DataError, match="records are never overwritten"):
        write_record(tmp_path, record.model_copy(update={"seed": 5}))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "not a record of schema 1"),
        ({"schema_version": None}, "not a record of schema 1"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"fold": "x"}, "fold: "),
        ({"labels": "Edema"}, "labels: "),
        ({"method": "../../x"}, "method: "),
        ({"dataset": "a/b"}, "dataset: "),
        ({"id": "..\\x"}, "id: "),
        ({"scores": {}}, "macro"),
        ({"scores": {"macro": {"auc": "0.9"}}}, "auc"),
        ({"scores": {"macro": {"auc": 7}}}, "auc"),
        ({"revision": "\ud800"}, "surrogates not allowed"),
    ],
    ids=ascii,
)
def test_a_foreign_or_edited_record_is_refused_by_name(
    tmp_path: Path, make_record: Any, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**make_record().model_dump(mode="json"), **change}))
    with pytest.raises(DataError, match=says) as error:
        read_record(path)
    assert "r.json" in str(error.value)


def test_torn_and_retracted_records_are_left_out_with_their_reason(
    tmp_path: Path, make_record: Any
) -> None:
    good, gone, torn = (write_record(tmp_path, make_record()) for _ in range(3))
    write_json(gone.with_name(gone.stem + RETRACTED), {"reason": "wrong labels"})
    torn.write_bytes(torn.read_bytes()[:100])
    (torn.parent / "list.json").write_text("[1]")
    (torn.parent / ".x.json.tmp").write_text("")
    (torn.parent / "folder.json").mkdir()
    (torn.parent / "link.json").symlink_to("nowhere")
    records, excluded = read_records(tmp_path)
    assert records == [read_record(good)]
    assert len(excluded) == 5
    assert f"{gone}: retracted" in excluded
    assert any(text.startswith(f"{torn}: not JSON") for text in excluded)
    assert read_records(tmp_path / "absent") == ([], [])
