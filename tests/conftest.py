"""What the tests share: a store of their own, the sample images, and records from nothing."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cxrbench.cli
from cxrbench.core.record import Record
from cxrbench.core.store import HOME_VARIABLE, Store
from cxrbench.runner import devices

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
# Tests start processes that import torch and Lightning: 17 s of CPU for each without bytecode, 8 s with it.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
SLOW_VARIABLE = "CXRBENCH_SLOW"
LONGEST = (
    "test_runner.py",
    "test_conformance.py",
    "test_site.py",
    "test_perf.py",
    "test_trainings.py",
)
SAMPLES_VARIABLE = "CXRBENCH_SAMPLES"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files come first, so that no process waits for another's at the end; slow tests run only when they
    are asked for: `-m slow`, `-m slurm`, `-m ray`, or CXRBENCH_SLOW=1 for all.
    """
    first = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))
    asked = any(word in config.option.markexpr for word in ("slow", "slurm", "ray"))
    if asked or os.environ.get(SLOW_VARIABLE) == "1":
        return
    skip = pytest.mark.skip(reason=f"slow; run with -m slow or {SLOW_VARIABLE}=1")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test talks to Weights & Biases, whoever is logged in."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # so that it is put back
    monkeypatch.delenv("WANDB_DATA_DIR")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store, which the command line takes for its own."""
    home = tmp_path / "store"
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    return Store(home)


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real sample images beside the checkout."""
    given = os.environ.get(SAMPLES_VARIABLE)
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder}: no sample images; set {SAMPLES_VARIABLE}")
    return folder


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command as a shell would, but in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(devices, "gpu_count", lambda: 0)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cxrbench", *map(str, words)])
        capsys.readouterr()
        code: Any = 0
        try:
            cxrbench.cli.main()
        except SystemExit as leave:
            code = leave.code or 0
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return run


RECORD: dict[str, Any] = {
    "created": "2026-01-02T03:04:05Z",
    "benchmark": "test",
    "method": "densenet121",
    "method_version": 1,
    "preset": "paper",
    "params": {"recipe": {"epochs": 2}},
    "changed": {},
    "paper": "",
    "reported": None,
    "dataset": "kermany",
    "dataset_version": 1,
    "dataset_params": {"task": "pneumonia"},
    "revision": "r" * 64,
    "labels": ["pneumonia"],
    "split": "cv5",
    "split_digest": "5" * 64,
    "folds": 2,
    "fold": 0,
    "seed": 0,
    "data_facts": {"images": 100, "patients": 60, "phantom": False, "complete": True},
    "stages": [],
    "cost": {"device": "cpu", "device_hours": 0.25, "parameters": 7_000_000},
    "warnings": [],
    "provenance": {"code": {"commit": "c" * 40, "dirty": False}},
}


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """Builds a record: `auc` and other macro scores by keyword, any field of `Record` too."""
    made = 0

    def build(
        auc: float | None = 0.8, *, macro: dict[str, Any] | None = None, **fields: Any
    ) -> Record:
        nonlocal made
        made += 1
        value = {
            **RECORD,
            "id": f"{made:012x}",
            "final": f"{made:064x}",
            "scores": {"macro": {"auc": auc, "floor": {"auc": 0.5}, **(macro or {})}},
            **fields,
        }
        return Record.parse(value, where="test")

    return build
