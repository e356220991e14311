"""What is written and where: data folders stay as they are, secrets stay outside, cells stay text."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxrbench.core import mirror
from cxrbench.core.errors import CxrbenchError
from cxrbench.core.redact import masked
from cxrbench.core.registry import Registry
from cxrbench.core.spec import Execution
from cxrbench.core.spreadsheet import inert
from cxrbench.core.store import Store
from cxrbench.data.export import TABLE, export_images
from cxrbench.data.index import Index
from cxrbench.data.verify import verify_dataset
from cxrbench.runner import apply, tracking
from cxrbench.runner.bind import open_dataset
from cxrbench.runner.engines.local import LocalEngine
from cxrbench.runner.finish import write_records

from jobs import build  # isort: skip

PACKAGE = Path(__file__).parents[2] / "cxrbench"
READERS = sorted(name for name in Registry().entries("datasets") if name != "phantom")


def look(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time and inode of everything below a folder."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        info = path.lstat()
        found[str(path)] = (info.st_size, info.st_mtime_ns, info.st_ino)
    return found


@pytest.mark.parametrize("name", READERS)
def test_nothing_is_written_beside_the_data(tmp_path: Path, store: Store, name: str) -> None:
    """So a read-only folder is enough."""
    cls = Registry().load("datasets", name)
    root = tmp_path / "data"
    root.mkdir()
    cls.fake(root, images=40, size=32)
    before = look(root)
    params = cls.Params().model_dump(mode="json")
    opened = open_dataset(cls, root, params, cls.splits[0], store)
    verify_dataset(cls, opened.index, split=opened.split, memory=store.folder("cache") / "m.npz")
    assert look(root) == before


SECRETS = {
    "WANDB_API_KEY": "f00dfacef00dfacef00dfacef00dfacef00dface",
    "HF_TOKEN": "hf_NobodyShouldEverReadThisInAStore",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYNOTINASTORE",
    "MY_DB_PASSWORD": "correct-horse-battery-staple",
}


def test_no_secret_is_in_the_store_or_the_log(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    code, plan = build(store, execution={"wandb": "offline"})
    assert code == 0 and write_records(plan, store)
    code, _ = build(store, fault="raise")
    assert code == 1
    printed = "".join(capfd.readouterr())
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert {"records", "jobs", "wandb", "artefacts"} <= {
        path.relative_to(store.root).parts[0] for path in files
    }
    for name, value in SECRETS.items():
        assert value not in printed, name
        holding = [str(path) for path in files if value.encode() in path.read_bytes()]
        assert not holding, f"{name} is in {holding}"


def test_a_secret_in_an_error_of_weights_and_biases_is_masked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    said = f"key {SECRETS['WANDB_API_KEY']} is false"
    assert masked(said) == "key $WANDB_API_KEY is false"


@pytest.mark.parametrize("where", ["init", "finish"])
def test_a_failure_of_weights_and_biases_costs_no_stage(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    class Run:
        id, summary, settings = "x", {}, SimpleNamespace(root_dir=str(store.root))

        def __getattr__(self, name: str) -> Any:
            def call(*args: Any, **named: Any) -> None:
                if name == "finish":
                    raise ConnectionError("gone")

            return call

    modes = []

    def init(**named: Any) -> Any:
        modes.append(named["mode"])
        if where == "init":
            raise TimeoutError("no answer")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(mirror, "_gave_up", [])
    monkeypatch.setattr(tracking, "training_logger", lambda *_: None)
    code, plan = build(store, execution={"wandb": "online"})
    assert code == 0 and all(store.has(stage.key) for stage in plan.graph.values())
    assert modes[:2] == (["online", "offline"] if where == "init" else ["online", "online"])
    said = "going on without" if where == "init" else "ConnectionError: gone; wandb sync"
    assert said in capfd.readouterr().out


HOSTILE = ("=HYPERLINK(1)", "+1", "-1+1", "@SUM(A1)", "\tx", "\rx", "\n=x")


@pytest.mark.parametrize("text", HOSTILE)
def test_formulas_become_text(text: str) -> None:
    assert inert(text) == "'" + text
    assert inert("a" + text) == "a" + text and inert(-1.5) == -1.5


def test_exports_and_predictions_hold_no_formula(tmp_path: Path) -> None:
    hostile = list(HOSTILE[:4])
    frame = pd.DataFrame({
        "image_id": [f"a{i}" for i in range(4)], "patient_id": hostile, "path": "", "sex": hostile,
        "=1+1": 1.0,
    })  # fmt: skip
    index = Index("test", frame, ("=1+1",))
    out = export_images(index, None, lambda row: np.zeros((16, 16), np.uint8), tmp_path / "out")
    predicted = tmp_path / "p.csv"
    apply.write_table(frame.drop(columns="=1+1"), predicted)
    for path in (out / TABLE, predicted):
        cells = [cell for line in path.read_text().splitlines() for cell in line.split(",")]
        assert sum(cell.startswith("'") for cell in cells) >= 8
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


# Read again by us or by a peer alone, where a changed id would be another patient; or no word of a user's is inside.
NOT_FOR_PEOPLE = {"data/splits.py", "perf/data.py", "runner/training.py"}


def test_every_writer_of_csv_writes_inert_text() -> None:
    writers, without = 0, []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        writes = any(c in ("csv.writer", "csv.DictWriter") or c.endswith(".to_csv") for c in calls)
        name = str(path.relative_to(PACKAGE))
        if not writes or "fake" in name or name in NOT_FOR_PEOPLE:
            continue
        writers += 1
        if not any(
            "inert" in ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
        ):
            without.append(name)
    assert writers >= 4
    # A data set's own miniature is written as its download is.
    assert [name for name in without if not name.startswith("data/")] == []


@pytest.mark.parametrize(("losses", "says"), [(2, ""), (3, "killed 3 times")])
def test_a_server_of_workers_that_is_killed_is_replaced(
    tmp_path: Path, losses: int, says: str
) -> None:
    tries = []

    class Process:
        exitcode = 0

        def __init__(self, **named: Any) -> None:
            tries.append(named)

        def start(self) -> None:
            if len(tries) <= losses:
                raise EOFError("unexpected EOF")

    engine = LocalEngine(Execution())
    engine.processes = type("Context", (), {"Process": Process})()
    if says:
        with pytest.raises(CxrbenchError, match=says):
            engine.start(tmp_path / "job.json", tmp_path / "log")
    else:
        assert engine.start(tmp_path / "job.json", tmp_path / "log").ended()
    assert len(tries) == 3


HOLD = """
import sys, time
from pathlib import Path
from cxrbench.core.store import Store
lock = Store(Path(sys.argv[1])).lock("fit-x")
assert lock.acquire(wait=False)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("skew", [-600.0, 600.0, -3e8])
def test_a_clock_that_is_wrong_steals_no_lock(store: Store, skew: float) -> None:
    """Locks hang on their holder's life, never on a time."""
    command = [sys.executable, "-c", HOLD, str(store.root)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    try:
        path = store.root / "locks" / "fit-x.lock"
        when = path.stat().st_mtime + skew
        os.utime(path, (when, when))
        lock: Any = store.lock("fit-x")
        assert not lock.acquire(wait=False)
    finally:
        holder.kill()
        holder.wait()
    assert lock.acquire(wait=False), "freed at once when its holder is dead"
    lock.release()
