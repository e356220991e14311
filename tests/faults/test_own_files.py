"""Files that cxrbench itself wrote into the store, edited by hand: read, passed over, or an error that names the file."""

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrbench.core import mirror_record, registry
from cxrbench.core.errors import CxrbenchError, DataError
from cxrbench.core.gallery import GALLERY, read_gallery
from cxrbench.core.record import read_record
from cxrbench.core.spec import Execution
from cxrbench.core.store import Lock, Store, read_json_as, write_json
from cxrbench.data.pixel_cache import Unfinished, open_pixels
from cxrbench.data.thumbnails import Thumbnails, find_alike
from cxrbench.runner import ranks, tracking, training, worker
from cxrbench.runner.checkpoint import newest_state
from cxrbench.runner.durations import Durations
from cxrbench.runner.engines.slurm_job import BatchJob
from cxrbench.runner.failures import failure_path, read_failure
from cxrbench.runner.faults import MemoryFullError
from cxrbench.runner.finish import write_records
from cxrbench.runner.halving import halve, read_halvings
from cxrbench.runner.plan import Plan
from cxrbench.runner.progress import Progress, Seen
from cxrbench.runner.status import read_status

from jobs import build, planned, stage_of  # isort: skip
from test_readers import edited, places  # isort: skip

ODD: list[Any] = [
    None,
    "x",
    "\0",
    [],
    {},
    5,
    -1,
    True,
    float("inf"),
    10**400,
    [None, None],
    ["a", [1]],
    {"a": None},
]
MOST = int(os.environ.get("CXRBENCH_FUZZ") or 60)  # edits of one file that are tried


def edits(value: Any) -> Iterator[str]:
    """The file with something of another type, or nothing, at each of its places; always the same choice of them."""
    every = [(place, odd, False) for place in places(value) for odd in ODD]
    every += [(place, None, True) for place in places(value) if place]
    chosen = random.Random(0).sample(every, min(MOST, len(every)))
    for place, odd, drop in chosen:
        yield json.dumps(edited(value, place, odd, drop))
    yield from ("", "[" * 100_000, "null", '"\\ud800"')


def try_all(path: Path, read: Callable[[], Any], *, named: bool = True) -> int:
    """Read every edit; how many were refused, each by an error of ours that names the file if it is to be `named`."""
    whole, refused = path.read_text(), 0
    for text in edits(json.loads(whole)):
        path.write_text(text)
        try:
            read()
        except CxrbenchError as error:
            refused += 1
            assert not named or path.name in str(error) or path.parent.name in str(error), (
                text,
                error,
            )
    path.write_text(whole)
    read()
    return refused


@pytest.fixture(autouse=True)
def _sources_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`read_status` reads the text of every method, which is no file of the store."""
    monkeypatch.setattr(registry, "class_sources", lambda _: {("faulty", 1): {"another text"}})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Plan]:
    """A store with one run of a small method, and its plan."""
    store = Store(tmp_path_factory.mktemp("built"))
    code, plan = build(store, recipe={"epochs": 1})
    assert code == 0
    return store, plan


def note(path: Path, value: Any) -> Path:
    write_json(path, value)
    return path


def test_notes_beside_a_training(store: Store) -> None:
    stage = stage_of(planned(store)[0], "fit")
    work = store.partial(stage.key)
    (work / "states").mkdir()
    pulse = {"done": 3, "of": 9, "first": 0, "epoch": 3, "stepping": 2.5, "seconds": 4.0}
    progress = Progress({stage.digest: stage}, store, Execution())
    seen = Seen({}, [[stage]], [], [], [])
    state = {"file": "state-00000-000000003.ckpt", "sha256": "0" * 64, "epoch": 0, "step": 3}
    full = MemoryFullError("full")

    def halved() -> None:
        with contextlib.suppress(MemoryFullError):  # with the reason
            halve(work, full)
        (work / "halvings.json").unlink(missing_ok=True)

    cases: list[tuple[str, Any, Callable[[], Any]]] = [
        ("progress.json", pulse, lambda: (read_status(store), progress.look(seen))),
        ("progress.json", pulse, lambda: worker._spent_before(work)),
        ("spent.json", {"seconds": 3.0}, lambda: (worker._spent_before(work), progress.look(seen))),
        (
            "waiting.json",
            {"free": 1, "total": 2, "need": 1, "who": ""},
            lambda: progress.look(seen),
        ),
        ("attempts.json", {"attempts": 2}, lambda: training._count_attempt(work)),
        ("halvings.json", [{"images": 4, "epoch": 0}], lambda: read_halvings(work)),
        ("batch.json", {"images": 8}, halved),
        ("states/state.json", [state], lambda: newest_state(work / "states")),
    ]
    for name, value, read in cases:
        assert try_all(note(work / name, value), read) == 0, name
        (work / name).unlink(missing_ok=True)


def test_failures(store: Store) -> None:
    stage = stage_of(planned(store)[0], "fit")
    path = failure_path(store, stage)
    value = {"stage": stage.key, "error": "full", "exit_code": 1, "log": "x", "type": "DeviceError",
             "rank": "0", "lost": False, "need": 5}  # fmt: skip
    assert try_all(note(path, value), lambda: (read_failure(path), read_status(store))) == 0
    work = store.partial(stage.key)
    rank = work / "rank-0.failure.json"

    def first() -> None:
        kept = rank.read_text()
        assert isinstance(ranks.first_failure(work, Execution(devices=2)), CxrbenchError)
        rank.write_text(kept)

    value["type"] = "MemoryHeldError"
    assert try_all(note(rank, value), first) == 0


def test_notices_of_sweeps(store: Store) -> None:
    status = {"stages": [{"kind": "fit", "name": "x", "done": 1, "running": 0, "waiting": 0, "blocked": 0, "failed": 0}],
              "running": [{"key": "fit-x", "done": 1, "of": 2, "elapsed": 3.0, "waits": "",
                           "left": {"low": 1.0, "high": 2.0, "open": False}}],
              "elapsed": 1.0, "left": None, "stopping": False}  # fmt: skip
    path = note(store.folder("sweeps") / "1-a.json", {"name": "bench", "status": status})
    lock = Lock(path.with_suffix(".lock"))
    lock.acquire(wait=True)
    assert try_all(path, lambda: read_status(store)) == 0
    assert len(read_status(store)["sweeps"]) == 1
    lock.release()


def test_what_artefacts_say(built: tuple[Store, Plan]) -> None:
    store, plan = built
    fit, score = stage_of(plan, "fit"), stage_of(plan, "score")
    described, scores = (
        store.artefact(s.key) / name for s, name in ((fit, "stage.json"), (score, "scores.json"))
    )
    assert (
        try_all(described, lambda: (read_status(store), Durations(store, Execution()).of(fit))) == 0
    )

    def record() -> None:
        for path in write_records(plan, store, again=True):
            read_record(path)
            path.unlink()

    assert try_all(described, record) > 5
    assert try_all(scores, record) > 2
    assert try_all(scores, lambda: tracking._scores(scores)) > 2


def test_plans_and_bindings(store: Store) -> None:
    planned(store)
    for kind in ("plan", "binding"):
        [path] = (store.root / "cache").glob(f"{kind}-*.json")
        assert try_all(path, lambda: planned(store)) > 10, kind


def test_caches_of_pixels(store: Store) -> None:
    def read(row: int, sides: list[int]) -> Any:
        return [np.full((side, side), row, np.uint8) for side in sides]

    def opened() -> Any:
        return open_pixels(read, ["a", "b"], {"identity": 1}, 8, store)

    folder = opened().folder
    assert try_all(folder / "done.json", opened) > 2
    work = store.partial("unfinished")
    Unfinished(work, 2, 8).close()

    def again() -> None:
        Unfinished(work, 2, 8).close()

    assert try_all(note(work / "rows.json", {"rows": 1, "unreadable": {"0": "torn"}}), again) == 0


def test_remembered_pairs_of_alike_films(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    one = draw.integers(0, 256, (32, 32), np.uint8)
    films = np.stack([one, np.clip(one.astype(int) + 1, 0, 255).astype(np.uint8), one.T])
    names = ["a", "b", "c"]
    known = Thumbnails(names, films)
    memory = tmp_path / "thumbnails.parquet"
    wanted = find_alike(names, known, memory)
    path = memory.with_suffix(".json")
    assert path.is_file() and find_alike(names, known, memory).complete == wanted.complete
    assert try_all(path, lambda: find_alike(names, known, memory)) > 2


def test_notes_of_mirrored_records(tmp_path: Path) -> None:
    path = note(
        tmp_path / "wandb" / "mirrored" / "x" / "r.json", {"mode": "offline", "folder": "gone"}
    )
    for mode in ("online", "offline"):
        assert try_all(path, lambda mode=mode: mirror_record._is_there(path, mode)) == 0
    assert not mirror_record._is_there(path, "offline"), "its folder is gone"
    path.write_text('{"mode": "online", "folder": "gone"}')
    assert mirror_record._is_there(path, "online")


def test_galleries(tmp_path: Path) -> None:
    path = note(tmp_path / GALLERY, [{"file": "a.png", "caption": "A film", "films": True}])
    assert try_all(path, lambda: read_gallery(tmp_path)) > 5


def test_batches_of_a_cluster(store: Store) -> None:
    plan, _ = planned(store)
    plan_file = note(store.folder("jobs", "slurm") / "plan-x.json", plan.to_json())
    element = {"job": "/x/0.json", "todo": list(plan.graph), "keys": ["fit-x"], "awaited": []}
    folder = store.folder("jobs", "slurm", "abc")
    batch = {"store": str(store.root), "plan": str(plan_file), "submitted": "2026", "array": False,
             "again": False, "timeouts": 3, "elements": {"0": element}}  # fmt: skip
    path = note(folder / "batch.json", batch)

    def job() -> BatchJob:
        return BatchJob(folder, {"SLURM_JOB_ID": "12"})

    assert try_all(path, lambda: read_status(store)) == 0
    assert try_all(path, job) > 5
    assert try_all(plan_file, job) > 2


def test_an_error_names_file_and_repair(tmp_path: Path) -> None:
    path = note(tmp_path / "x.json", {"a": 1})
    with pytest.raises(DataError, match=r"x\.json: not a thing \(KeyError: 'b'\); delete it"):
        read_json_as(path, lambda value: value["b"], "a thing")
