"""What a store holds, from its files, and what a queue holds of it."""

from collections import Counter
from typing import Any

from cxrbench.core.errors import DataError
from cxrbench.core.store import Store, a_number, read_json, read_note
from cxrbench.runner.notice import running_sweeps


def read_status(store: Store) -> dict[str, Any]:
    """Records by data set and method, unfinished stages, failures and their logs."""
    records = Counter(
        f"{path.parent.parent.name}/{path.parent.name}"
        for path in store.root.glob("records/*/*/*.json")
        if not path.name.endswith(".retracted.json")
    )
    artefacts = [path.parent.name for path in store.root.glob("artefacts/*/stage.json")]
    unfinished = []
    for folder in sorted(store.root.glob("partial/*-*")):
        if (folder / "states").is_dir():
            progress = read_note(folder / "progress.json", _steps) or "no step yet"
            unfinished.append({"stage": folder.name, "progress": progress})
    from cxrbench.runner.engines.slurm_queue import describe_jobs

    queue = describe_jobs(store)
    return {
        "jobs": _with_progress(queue["jobs"], unfinished),
        "queue_error": queue["error"],
        "store": str(store.root),
        "records": dict(records),
        "artefacts": len(artefacts),
        "unfinished": unfinished,
        "sweeps": running_sweeps(store),
        "failed": _failures(store),
        "stale": _stale(store),
    }


def _steps(pulse: Any) -> str:
    return f"step {int(a_number(pulse['done']))} of {int(a_number(pulse['of']))}"


def _with_progress(
    jobs: list[dict[str, Any]], unfinished: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The jobs of a cluster's queue, with how far their stage is."""
    pulses = {item["stage"]: item["progress"] for item in unfinished}
    return [{**job, "progress": pulses.get(job["stage"])} for job in jobs]


def _failures(store: Store) -> list[dict[str, Any]]:
    failed = []
    for path in sorted(store.root.glob("jobs/*.failure.json")):
        try:
            value = read_json(path)
        except DataError as error:
            value = {"stage": path.name, "error": str(error)}
        if not isinstance(value, dict):
            value = {"stage": path.name, "error": "not a failure's file; delete it"}
        failed.append({name: value.get(name) for name in ("stage", "error", "log")})
    return failed


def _stale(store: Store) -> list[str]:
    """Artefacts whose class had another text; read from the methods' files without importing them."""
    from cxrbench.core.registry import Registry, class_sources

    texts = class_sources(Registry())
    stale = []
    for path in sorted(store.root.glob("artefacts/fit-*/stage.json")):
        try:
            meta = read_json(path)
        except DataError:
            continue
        if not isinstance(meta, dict) or not isinstance(meta.get("version"), int):
            continue
        known = texts.get((str(meta.get("name")), meta["version"]))
        if known and meta.get("source") and str(meta["source"]) not in known:
            stale.append(path.parent.name)
    return stale
