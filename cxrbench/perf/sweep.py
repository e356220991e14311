"""Trainings that are shared, and what planning and `status` cost."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec
from cxrbench.core.store import Store, write_json
from cxrbench.perf.harness import Absent, Comparison, Counted, Goal, Item, NotAvailableError
from cxrbench.runner.bench import read_spec
from cxrbench.runner.plan import make_plan
from cxrbench.runner.status import read_status

FAKES = {  # more films than a miniature has, where labels are rare
    "chestxray14": {"images": 200, "size": 32},
    "chexpert": {"images": 200, "size": 32},
}
# In a process of its own, so that the peak of memory is that of planning alone.
PLANNER = """
import json, re, sys, time
from pathlib import Path
from cxrbench.core.registry import Registry
from cxrbench.core.spec import BenchSpec
from cxrbench.core.store import Store
from cxrbench.runner.plan import make_plan
spec = BenchSpec.parse(json.loads(sys.argv[1]), where="perf")
registry = Registry()
def peak():  # of this program alone; getrusage hands the parent's peak on
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
registry.load("methods", "densenet121")  # imports torch, which is not planning
base = peak()
started, cpu = time.perf_counter(), time.process_time()
plan = make_plan(spec, registry, Store(Path(sys.argv[2])))
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({"runs": len(plan.runs), "seconds": seconds, "cpu": cpu, "peak": peak(), "base": base}))
"""


def shared_trainings(spec: BenchSpec, registry: Registry, folder: Path) -> tuple[int, int]:
    """(trainings of a plan, those that its runs would need one by one) on miniatures of its data sets."""

    def beside(entries: list[Any]) -> list[Any]:
        placed = []
        for entry in entries:
            cls = registry.load("datasets", entry.name)
            root = None
            if cls.needs_root:
                root = folder / cls.name
                if not root.exists():
                    root.mkdir(parents=True)
                    root = cls.fake(root, **FAKES.get(cls.name, {}))
            placed.append(entry.model_copy(update={"path": root}))
        return placed

    kinds = ("datasets", "test_on", "externals")
    placed = spec.model_copy(update={kind: beside(getattr(spec, kind)) for kind in kinds})
    return make_plan(placed, registry, Store(folder / "store")).demand()


def many_runs(runs: int) -> dict[str, Any]:
    """A specification of so many runs at least: two classifiers, five folds, seeds."""
    return {
        "name": "many",
        "preset": "quick",
        "methods": ["densenet121", "aecnn"],
        "datasets": [{"name": "phantom", "params": {"images": 60}}],
        "seeds": list(range(-(-runs // 10))),
    }


def fill_store(store: Store, records: int) -> Store:
    """Records and artefacts as finished runs leave them, as far as `status` looks at them."""
    source = "0" * 64
    for number in range(records):
        folder = store.root / "records" / "phantom" / f"method-{number % 12}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:016x}-{number:012x}.json").write_text("{}")
        for kind in ("fit", "predict", "score"):
            artefact = store.root / "artefacts" / f"{kind}-densenet121-{number:016x}"
            artefact.mkdir(parents=True)
            meta = {
                "name": "densenet121",
                "version": 1,
                "source": source,
                "facts": {"steps": number},
            }
            (artefact / "stage.json").write_text(json.dumps(meta))
    write_json(store.root / "filled.json", records)
    return store


def comparisons(
    folder: Path, *, spec_file: Path | None = None, runs: int = 10_000, records: int = 10_000
) -> Iterator[Item]:
    """All of this topic; `spec_file` is the benchmark whose sharing is counted."""
    what = "trainings executed / trainings that independent runs would need"
    if spec_file is None or not spec_file.is_file():
        yield Absent("sweep/shared", what, f"{spec_file or 'benchmarks/main.yaml'} is not here")
    else:
        yield _shared(spec_file, folder)
    yield from _planning(folder, runs)
    store = fill_store(Store(folder / "many-records"), records)
    yield Comparison(
        f"sweep/status-{records}",
        f"status of {records:,} records and {3 * records:,} artefacts",
        ours=lambda: read_status(store),
        equal=lambda found, _: (
            "" if (sum(found["records"].values()), found["artefacts"]) == (records, 3 * records)
            else "not all are counted"
        ),
        goal=Goal("seconds", 2),
    )  # fmt: skip


def _shared(spec_file: Path, folder: Path) -> Counted:
    fits: list[int] = []

    def share() -> float:
        fits.extend(shared_trainings(read_spec(spec_file), Registry(), folder / "shared"))
        return fits[0] / fits[1]

    value = share()
    return Counted(
        "sweep/shared",
        f"{spec_file.name}: trainings executed / trainings that independent runs would need",
        lambda: value,
        Goal("share", 0.6),
        note=f"{fits[0]} of {fits[1]}, counted on miniatures of the data sets: exact, as the graph hangs on no image.",
    )


def _plan_alone(runs: int, home: Path) -> dict[str, float]:
    """What a process of its own says of planning so many runs: seconds, megabytes before and at the peak."""
    done = subprocess.run(
        [sys.executable, "-c", PLANNER, json.dumps(many_runs(runs)), str(home)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotAvailableError(f"planning failed: {done.stderr.strip()[-200:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _planning(folder: Path, runs: int) -> Iterator[Item]:
    found: dict[str, float] = {}

    def measure() -> dict[str, float]:
        if not found:
            found.update(_plan_alone(runs, folder / "plan"))
        return found

    note = "Once, in a process of its own that has imported torch; the plan is not remembered yet."
    yield Counted(
        "sweep/plan-time", f"planning {runs:,} runs", lambda: measure()["seconds"],
        Goal("seconds", 5), note=note,
    )  # fmt: skip
    yield Counted(
        "sweep/plan-cpu", "the same, CPU time of the process", lambda: measure()["cpu"],
        Goal("seconds", 5), note="What a core that nobody shares would take.",
    )  # fmt: skip
    yield Counted(
        "sweep/plan-memory",
        f"planning {runs:,} runs: peak memory beyond the imports",
        lambda: measure()["peak"] - measure()["base"],
        Goal("megabytes", 500),
    )
