"""The command line: quick to answer, plain when piped, and clear about what is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from cxrbench import __version__
from cxrbench.core.record import write_record
from cxrbench.core.store import Store, write_json
from cxrbench.runner import devices

# Rich draws tables and the live view; in the help it would take as long as all the rest.
HEAVY = ("torch", "numpy", "pandas", "lightning", "sklearn", "cv2", "PIL", "wandb", "timm", "rich.markdown")  # fmt: skip
PLUGINS = Path(__file__).parent / "plugins"
PHANTOM = ["--set", "data.images=60"]


def bench_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "bench.yaml"
    path.write_text(textwrap.dedent(text))
    return path


SMALL = """
    name: small
    preset: quick
    methods: [small]
    datasets:
      - {name: phantom, folds: [0], params: {images: 60}}
"""

# --- quickness


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", "list", "list methods", "run --help", "bench --help", "status"],
)
def test_the_light_commands_import_nothing_heavy(store: Store, words: str) -> None:
    code = (
        "import sys; from cxrbench.cli import main\n"
        f"sys.argv = ['cxrbench', *{words.split()!r}]\n"
        "try: main()\n"
        "except SystemExit as leave: assert not leave.code, leave.code\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_python_m_cxrbench_is_the_command(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cxrbench", "list", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "aecnn" in json.loads(done.stdout)["methods"]


def test_the_version_is_the_package_s(cli: Cli) -> None:
    assert cli("--version") == (0, f"cxrbench {__version__}\n", "")


# --- list


def test_list_shows_what_can_be_named(cli: Cli) -> None:
    code, out, _ = cli("list")
    assert code == 0
    for name in ("aecnn", "densenet121", "vgg16", "phantom", "kermany", "chestxray14", "table"):
        assert re.search(rf"^  {name}\s+\S", out, re.MULTILINE), name
    code, out, _ = cli("list", "presets", "--json")
    assert "aecnn" in json.loads(out)["presets"]["quick"]
    code, out, _ = cli("list", "methods", "--plugin", PLUGINS / "small.py")
    assert "small-leak" in out
    assert "phantom" not in out


def test_list_of_something_else(cli: Cli) -> None:
    code, _, err = cli("list", "metods")
    assert code == 2
    assert "choose methods, datasets, presets" in err


# --- errors and their codes


@pytest.mark.parametrize("name", ["densnet121", "dense net 121", "DenseNet12", "x" * 80, "../x"])
def test_an_unknown_method_is_2_and_gets_the_nearest(cli: Cli, name: str) -> None:
    code, _, err = cli("run", "--method", name, "--gpus", 0)
    assert code == 2
    assert f"unknown method {name!r}" in err
    if name.lower().startswith("dens"):
        assert "densenet121" in err


def test_an_unknown_data_set_is_2(cli: Cli) -> None:
    code, _, err = cli("run", "--method", "aecnn", "--dataset", "chest-xray-14", "--gpus", 0)
    assert code == 2
    assert "unknown dataset 'chest-xray-14'; did you mean 'chestxray14'" in err


@pytest.mark.parametrize(
    "word", ["epochs=3", "params", "params.", "params.=1", "model.x=1", "recipe..x=1", "=3"]
)
def test_a_bad_setting_is_2(cli: Cli, word: str) -> None:
    code, _, err = cli("run", "--method", "densenet121", "--gpus", 0, "--set", word)
    assert code == 2
    assert f"--set {word}: expected params.KEY=VALUE" in err


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("recipe.epoch=3", "did you mean 'epochs'"),
        ("recipe.epochs=three", "recipe.epochs: "),
        ("params.backbon=x", "did you mean 'backbone'"),
        ("recipe.epochs=[1", "--set recipe.epochs"),
        ("data.image=5", "did you mean 'images'"),
        ("recipe.size=512", "size 512 is larger than load 64"),
    ],
)
def test_a_setting_that_does_not_validate_is_78(cli: Cli, word: str, says: str) -> None:
    code, _, err = cli("run", "--method", "densenet121", "--gpus", 0, *PHANTOM, "--set", word)
    assert code == 78
    assert says in err


@pytest.mark.parametrize(
    "words",
    [
        ["run"], ["run", "--method"], ["run", "--method", "aecnn", "--foldd", "1"], ["rn"],
        ["run", "--method", "aecnn", "--fold", "-1"], ["run", "--method", "aecnn", "--fold", "x"],
        ["run", "--method", "aecnn", "--gpus", "0", "--mode", "again"],
        ["run", "--method", "aecnn", "--gpus", "0", "--wandb", "yes"],
        ["run", "--method", "aecnn", "--accelerator", "tpu"],
        ["run", "--method", "aecnn", "--gpus", "0", "--devices", "2"],
        ["run", "--method", "aecnn", "--data", "/tmp"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_words_that_do_not_fit_are_2(cli: Cli, words: list[str]) -> None:
    code, _, err = cli(*words, *(["--dry-run"] if "--method" in words[:-1] else []))
    assert code == 2
    assert err.strip()


@pytest.mark.parametrize("words", [["--data", "/nowhere/at/all"], []])
@pytest.mark.parametrize("dataset", ["kermany", "chestxray14", "table"])
def test_missing_data_are_66(cli: Cli, dataset: str, words: list[str]) -> None:
    code, _, err = cli("run", "--method", "densenet121", "--dataset", dataset, "--gpus", 0, *words)
    assert code == 66
    assert ("/nowhere/at/all" if words else "--data DIR") in err


def test_a_missing_plugin_or_specification_is_66(cli: Cli, tmp_path: Path) -> None:
    for words in (["list", "--plugin", "x.py"], ["bench", "x.yaml"], ["plan", tmp_path]):
        code, _, err = cli(*words)
        assert code == 66
        assert "no such file" in err


def test_a_typo_in_a_specification_is_78(cli: Cli, tmp_path: Path) -> None:
    text = "datasets: [{name: phantom, fold: [0]}]\nrecipe: {epochs: 1}\nmehtods: all"
    code, _, err = cli("bench", bench_file(tmp_path, text))
    assert code == 78
    assert "bench.yaml: unknown key 'mehtods'; did you mean 'methods'" in err
    assert "bench.yaml: unknown key 'datasets.0.fold'; did you mean 'folds'" in err


@pytest.mark.parametrize("text", ["", "[1, 2]", "name: [", "datasets: []", "a: 1\na: 2", "42"])
def test_a_file_that_is_no_specification_is_78(cli: Cli, tmp_path: Path, text: str) -> None:
    code, _, err = cli("plan", bench_file(tmp_path, text))
    assert code == 78
    assert "bench.yaml" in err


@pytest.mark.parametrize("folds", ["[5]", "[-1]", "[0, 99]"])
def test_a_fold_that_does_not_exist_is_78(cli: Cli, tmp_path: Path, folds: str) -> None:
    text = SMALL.replace("[0]", folds)
    code, _, err = cli("plan", bench_file(tmp_path, text), "--plugin", PLUGINS / "small.py")
    assert code == 78
    assert "does not exist; split 'cv5' has folds 0-4" in err


def test_one_data_set_in_two_folders_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Workers find a data set's folder by its name."""
    from cxrbench.data.kermany import Kermany

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Kermany.fake(tmp_path / name, images=40)
    text = """
        preset: quick
        methods: [small]
        datasets:
          - {name: kermany, path: a, folds: [0], split: cv5}
          - {name: kermany, path: b, folds: [1], split: cv5}
    """
    code, _, err = cli("plan", bench_file(tmp_path, text), "--plugin", PLUGINS / "small.py")
    assert code == 78
    assert "kermany lies in two folders" in err


def test_more_gpus_than_there_are_is_2_and_says_what_to_pass(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["run", "--method", "aecnn"], ["plan", "x.yaml"]):
        code, _, err = cli(*command, "--gpus", 2)
        if command[0] == "run":
            assert code == 2
            assert "2 GPUs are asked for, but this machine has no GPU" in err
            assert "--gpus 0 (one CPU process)" in err
            assert "--devices 2 --accelerator cpu (2 CPU processes)" in err
    monkeypatch.setattr(devices, "gpu_count", lambda: 1)
    code, _, err = cli("run", "--method", "aecnn", "--gpus", 2)
    assert code == 2
    assert "has 1 GPU that torch can use; pass --gpus 1 or" in err


def test_ctrl_c_before_a_sweep_says_how_to_go_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from cxrbench.runner import status

    def interrupted(store: Store) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "read_status", interrupted)
    code, out, err = cli("status")
    assert (code, out) == (130, "")
    assert err == "cxrbench: interrupted; the same command goes on from here\n"


def test_a_store_that_cannot_be_written_is_73(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CXRBENCH_HOME", str(tmp_path / "file" / "store"))
    code, _, err = cli("run", "--method", "vgg16", "--gpus", 0, "--dry-run")
    assert code == 73
    assert "CXRBENCH_HOME" in err


def test_control_c_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cxrbench.runner.status.read_status", stop)
    assert cli("status")[0] == 130


def test_a_closed_pipe_ends_quietly(store: Store) -> None:
    code = "import os, sys; from cxrbench.cli import main; sys.argv = ['cxrbench', 'list']; main()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1, 128 + signal.SIGPIPE, -signal.SIGPIPE)


# --- plans


def test_a_plan_shows_what_is_shared_and_missing(cli: Cli, tmp_path: Path) -> None:
    text = """
        name: shared
        preset: quick
        methods: [densenet121, aecnn]
        datasets: [{name: phantom, folds: [0, 1], params: {images: 60}}]
    """
    path = bench_file(tmp_path, text)
    code, out, _ = cli("plan", path)
    assert code == 0
    assert "4 runs" in out
    assert "trainings: 6 (one by one it would be 8: 0.750 of them)" in out
    assert out.count("2 (shared)") == 2
    code, out, _ = cli("plan", path, "--json", "--only", "aecnn")
    found = json.loads(out)
    assert code == 0
    assert [run["method"] for run in found["runs"]] == ["aecnn", "aecnn"]
    assert {stage["state"] for stage in found["stages"]} == {"missing"}
    assert found["trainings"] == 6
    assert found["leaks"] == []
    code, _, err = cli("plan", path, "--only", "vgg16")
    assert code == 2
    assert "--only vgg16: not in shared" in err


def test_a_leaking_plan_is_1_and_is_never_run(cli: Cli, tmp_path: Path, store: Store) -> None:
    text = SMALL.replace("[small]", "[{name: small-leak, preset: tuned}]")
    path, plugin = bench_file(tmp_path, text), ["--plugin", PLUGINS / "small.py"]
    says = "fitted on fold 1, whose training part holds test patients of fold 0"
    for _ in range(2):  # the second time from the remembered plan
        code, out, _ = cli("plan", path, *plugin)
        assert code == 1
        assert f"LEAK small-leak fold 0: fit small-leak: {says}" in out
    code, out, _ = cli("plan", path, "--json", *plugin)
    assert code == 1
    assert len(json.loads(out)["leaks"]) == 1
    code, _, err = cli("plan", path, "--cost", *plugin)
    assert code == 1
    assert f"LEAK small-leak fold 0: fit small-leak: {says}" in err
    for words in (["bench", path, "--gpus", 0], ["bench", path, "--gpus", 0, "--dry-run"]):
        code, _, err = cli(*words, *plugin)
        assert code == 78
        assert says in err
    assert not (store.root / "artefacts").exists()
    assert not (store.root / "jobs").exists()
    other = SMALL.replace("[small]", "[{name: small-leak, preset: tuned}]").replace("[0]", "[1]")
    assert cli("plan", bench_file(tmp_path, other), *plugin)[0] == 0


def test_a_dry_run_shows_the_plan_and_builds_nothing(cli: Cli, store: Store) -> None:
    code, out, err = cli("run", "--method", "aecnn", "--gpus", 0, "--dry-run", "--json", *PHANTOM)
    assert code == 0
    assert "no --dataset: using the phantom (drawn films) with the quick preset" in err
    found = json.loads(out)
    assert found["trainings"] == 3
    assert found["runs"][0]["preset"] == "quick"
    assert found["runs"][0]["params"]["recipe"]["precision"] == "32-true"
    assert not (store.root / "artefacts").exists()


def test_settings_reach_the_plan(cli: Cli) -> None:
    code, out, _ = cli(
        "run", "--method", "aecnn", "--gpus", 0, "--dry-run", "--json", *PHANTOM,
        "--set", "params.bce_weight=0.8", "--set", "recipe.epochs=2",
        "--set", "params.autoencoder.recipe.epochs=1", "--precision", "bf16-mixed",
        "--dataset", "phantom", "--preset", "quick", "--fold", 3, "--seed", 7,
    )  # fmt: skip
    assert code == 0
    run = json.loads(out)["runs"][0]
    assert (run["fold"], run["seed"]) == (3, 7)
    assert run["params"]["bce_weight"] == 0.8
    assert run["params"]["recipe"]["epochs"] == 2
    assert run["params"]["classifier"]["recipe"]["epochs"] == 2
    assert run["params"]["autoencoder"]["recipe"]["epochs"] == 1
    assert run["params"]["recipe"]["precision"] == "bf16-mixed"
    assert run["changed"]["bce_weight"] == 0.8


def test_folders_of_a_specification_are_beside_it_or_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxrbench.runner.bench import read_spec

    monkeypatch.setenv("HOME", "/home/nobody")
    text = """
        datasets:
          - {name: a, path: films}
          - {name: b, path: /abs/films}
          - {name: c, path: ~/films}
          - {name: d}
    """
    found = [entry.path for entry in read_spec(bench_file(tmp_path, text)).datasets]
    assert found[:2] == [tmp_path / "films", Path("/abs/films")]
    assert found[2:] == [Path("/home/nobody/films"), None]


# --- data, splits, doctor, status, leaderboard


def test_splits_of_the_phantom(cli: Cli) -> None:
    code, out, _ = cli("splits", "show", "--dataset", "phantom", *PHANTOM, "--json")
    assert code == 0
    assert json.loads(out)
    code, out, _ = cli("splits", "show", "--dataset", "phantom", *PHANTOM)
    assert code == 0
    assert len(re.findall(r"^│ +\d │ (?:train|val|test) ", out, re.MULTILINE)) == 15
    assert cli("splits", "make", "--dataset", "phantom", *PHANTOM)[0] == 0
    code, out, _ = cli("splits", "verify", "--dataset", "phantom", *PHANTOM)
    assert code == 0
    assert "as promised" in out
    assert cli("splits", "show", "--dataset", "phantom", "--split", "official")[0] == 2


def test_data_verify(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("data", "verify", "--dataset", "phantom", *PHANTOM)
    assert code == 0
    assert "60 images" in out
    from cxrbench.data.kermany import Kermany

    root = Kermany.fake(tmp_path, images=40)
    code, out, _ = cli("data", "verify", "--dataset", "kermany", "--data", root, "--json")
    assert code == 0, out
    assert json.loads(out)["images"] == 40
    broken = next(p for p in sorted(tmp_path.rglob("*.jpeg")) if not p.name.startswith("."))
    for copy in tmp_path.rglob(broken.name):  # the download holds every image twice
        copy.write_bytes(b"")
    code, out, _ = cli("data", "verify", "--dataset", "kermany", "--data", root, "--json")
    assert code == 65
    errors = [p for p in json.loads(out)["problems"] if p["severity"] == "error"]
    assert any(broken.name in name for error in errors for name in error["names"])


def test_doctor_looks_at_the_machine(
    cli: Cli, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = cli("doctor")
    assert code == 0
    for what in ("python", "torch", "gpu", "disk", "store", "/dev/shm", "wandb"):
        assert re.search(rf"^(ok  |WARN)  {re.escape(what)}: ", out, re.MULTILINE), what
    assert list(store.root.iterdir()) == [], "probes are left"
    code, out, _ = cli("doctor", "--json")
    assert {finding["level"] for finding in json.loads(out)} <= {"ok", "warning"}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CXRBENCH_HOME", str(tmp_path / "file" / "x"))
    code, out, _ = cli("doctor")
    assert code == 1
    assert "FAIL  store" in out


def test_doctor_knows_the_malware(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from cxrbench.runner import doctor

    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.6.2")
    code, out, _ = cli("doctor")
    assert code == 1
    assert "FAIL  lightning: 2.6.2 is known malware" in out


def test_status_of_an_empty_and_of_a_broken_store(cli: Cli, store: Store) -> None:
    code, out, _ = cli("status", "--json")
    assert code == 0
    assert json.loads(out)["artefacts"] == 0
    write_json(
        store.artefact("fit-x-1") / "stage.json", {"name": "aecnn", "version": 1, "source": "0"}
    )
    (store.folder("artefacts", "fit-y-1") / "stage.json").write_text("{")
    write_json(store.folder("jobs") / "a.failure.json", {"stage": "fit-z", "error": "oh"})
    (store.folder("jobs") / "b.failure.json").write_text("[1]")
    (store.folder("partial", "fit-w-1", "states")).joinpath("x").touch()
    code, out, _ = cli("status")
    assert code == 0
    assert "stale fit-x-1" in out
    assert "failed fit-z: oh" in out
    assert "unfinished fit-w-1: no step yet" in out


def test_a_leaderboard_from_records(
    cli: Cli, store: Store, make_record: Any, tmp_path: Path
) -> None:
    code, _, err = cli("leaderboard")
    assert code == 66
    assert "no record" in err
    for method, auc in (("densenet121", 0.8), ("aecnn", 0.9), ("[red]x\x1b[31m", 0.7)):
        write_record(
            store.root / "records", make_record(auc, method=method, folds=1, warnings=[method])
        )
    code, out, _ = cli("leaderboard", "--out", tmp_path / "board")
    assert code == 0
    assert "aecnn" in out
    assert "[red]x" in out
    assert "\x1b" not in out
    assert (tmp_path / "board" / "LEADERBOARD.md").is_file()
    code, out, _ = cli("leaderboard", "--json")
    tables = json.loads(out)["tables"]
    assert [row["method"] for row in tables[0]["rows"]][:2] == ["aecnn", "densenet121"]
    assert cli("leaderboard", "--dataset", "other")[0] == 66


def test_publish_says_what_it_refuses(
    cli: Cli, store: Store, make_record: Any, tmp_path: Path
) -> None:
    facts = {"phantom": True}
    write_record(store.root / "records", make_record(0.8, folds=1, data_facts=facts))
    code, _, err = cli("publish", "--dataset", "kermany", "--to", tmp_path / "out")
    assert code == 65
    assert "phantom data" in err
    write_record(store.root / "records", make_record(0.8, folds=1, dataset="x"))
    assert cli("publish", "--dataset", "x", "--to", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "x" / "LEADERBOARD.md").is_file()


@pytest.mark.parametrize("words", ["list", "doctor", "splits show --dataset phantom", "--help"])
@pytest.mark.parametrize("variable", ["NO_COLOR", None])
def test_what_is_not_a_terminal_gets_no_escape_codes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: str, variable: str | None
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    more = PHANTOM if "phantom" in words else []
    code, out, err = cli(*words.split(), *more)
    assert code == 0
    assert "\x1b" not in out + err


@pytest.mark.parametrize(
    ("environment", "asked", "expected"),
    [
        ({}, None, "off"), ({}, "offline", "offline"), ({}, "online", "online"),
        ({"WANDB_API_KEY": "x"}, None, "online"), ({"WANDB_API_KEY": "x"}, "off", "off"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, None, "offline"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "disabled"}, None, "off"),
    ],
)  # fmt: skip
def test_weights_and_biases_is_on_when_logged_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str],
    asked: str | None, expected: str,
) -> None:  # fmt: skip
    from cxrbench.cli.common import wandb_mode

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_MODE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(asked) == expected
    if not environment and asked is None:
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine api.wandb.ai login user password x\n")
        netrc.chmod(0o600)
        assert wandb_mode(None) == "online"
