"""Several users and several trainings on one machine: whose files they are, and whose port."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cxrbench.core.store import Store
from cxrbench.runner.finish import write_records

from jobs import build, planned, stage_of, write_job  # isort: skip


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)])
def test_what_is_written_honours_the_umask(
    tmp_path: Path, mask: int, file: int, folder: int
) -> None:
    """No file is open to more than the user's umask allows, nor to less: a group may share a store."""
    before = os.umask(mask)
    try:
        store = Store(tmp_path / "store")
        store.check_writable()
        code, plan = build(store, method="chain", recipe={"epochs": 1})
        assert code == 0 and write_records(plan, store)
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in store.root.rglob("*")}
    assert len(found) > 30
    odd = {p: oct(m) for p, m in found.items() if m != (folder if p.is_dir() else file)}
    assert not odd


def test_the_state_of_another_user_is_gone_on_with(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds tensors and plain values, so nothing of it can run."""
    if os.geteuid() != 0:
        pytest.skip("giving a file to another user needs root")
    monkeypatch.setenv("CXRBENCH_TEST_HOLDS", "4,10")
    code, plan = build(store, execution={"checkpoint_steps": 1})
    fit = stage_of(plan, "fit")
    assert code == 1
    for path in store.partial(fit.key).rglob("*"):
        os.chown(path, 12345, 12345)
    monkeypatch.delenv("CXRBENCH_TEST_HOLDS")
    assert build(store)[0] == 0
    assert store.meta(fit.key)["facts"]["resumed"] is True


@pytest.mark.slow
def test_two_trainings_of_two_processes_do_not_meet(tmp_path: Path) -> None:
    """Begun at the same moment on one host, each finds a port of its own and its own other rank."""
    workers, stores = [], [Store(tmp_path / name) for name in ("one", "two")]
    for store in stores:
        plan, registry = planned(store)
        job = write_job(plan, registry, store, devices=2)
        command = [sys.executable, "-m", "cxrbench.runner.worker", str(job)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with job.with_suffix(".log").open("wb") as log:
            workers.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    assert [worker.wait(500) for worker in workers] == [0, 0]
    one, two = (store.artefact(stage_of(plan, "fit").key) / "model.safetensors" for store in stores)
    assert one.read_bytes() == two.read_bytes()
