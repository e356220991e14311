"""What stages took, from the artefacts of a store: the only ground on which time is estimated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxrbench.core.digest import digest
from cxrbench.core.errors import DataError
from cxrbench.core.provenance import machine
from cxrbench.core.spec import Execution
from cxrbench.core.stage import Stage
from cxrbench.core.store import MISFITS, Store, a_number
from cxrbench.runner.estimate import Span
from cxrbench.runner.graph import to_json

MOST_READ = 60  # artefacts of one name whose durations are read, the newest
# What decides speed; a duration that was measured under other settings says nothing.
SETTINGS = ("accelerator", "devices", "slots", "per_gpu", "threads", "workers")


def likeness(node: Mapping[str, Any], among: Mapping[str, Mapping[str, Any]]) -> str:
    """A digest of what decides how long a stage takes: equal for its like in other folds and seeds.

    `node` is a stage as `to_json` writes it and `among` all that it hangs on, by digest.
    """
    data = node["data"]
    images = data["images"]
    above = {name: _name(among[parent]) for name, parent in node["inputs"].items()}
    return digest(
        {
            **{key: node[key] for key in ("kind", "name", "version", "params", "part")},
            "data": {k: v for k, v in data.items() if k not in ("fold", "root_seed", "images")},
            "images": likeness(among[images], among) if images else None,
            "inputs": above,
        }
    )


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['kind']}-{node['name']}"


def likeness_of(nodes: list[dict[str, Any]]) -> str:
    """The likeness of the last of some nodes, parents first."""
    return likeness(nodes[-1], {node["digest"]: node for node in nodes})


class Durations:
    """Seconds that stages of each likeness took under the same settings.

    What lay in the store before counts if it was measured on a machine of this processor and number of cores; what
    is added during the sweep counts wherever it ran.
    """

    def __init__(self, store: Store, execution: Execution) -> None:
        self.store, self.settings = store, _settings(execution.model_dump())
        self._seconds: dict[str, list[float]] = {}
        self._names: dict[str, list[Path]] | None = None
        self._likes: dict[str, str] = {}  # of stages, by digest

    def of(self, stage: Stage) -> Span | None:
        """What stages like this one took, least and most; None if there were none."""
        if stage.digest not in self._likes:
            self._read(f"{stage.kind}-{stage.name}")
            self._likes[stage.digest] = likeness_of(to_json(stage.ancestry()))
        found = self._seconds.get(self._likes[stage.digest])
        return Span(min(found), max(found)) if found else None

    def add(self, key: str) -> None:
        """Note what a stage took that this sweep has built."""
        name = key.rpartition("-")[0]
        self._read(name)
        self._note(key, here=True)

    def _read(self, name: str) -> None:
        if self._names is None:
            self._names = {}
            for path in self.store.root.glob("artefacts/*"):
                self._names.setdefault(path.name.rpartition("-")[0], []).append(path)
        paths = self._names.pop(name, [])
        for path in sorted(paths, key=_written)[-MOST_READ:]:
            self._note(path.name, here=False)

    def _note(self, key: str, *, here: bool) -> None:
        try:
            meta = self.store.meta(key)
            ran = {name: meta["provenance"][name] for name in machine()}
            if _settings(meta["execution"]) != self.settings or not (here or ran == machine()):
                return
            like, seconds = likeness_of(meta["nodes"]), a_number(meta["cost"]["seconds"])
        except (OSError, DataError, *MISFITS):
            return  # an artefact that does not say what it took; others may
        self._seconds.setdefault(like, []).append(seconds)


def _settings(execution: Mapping[str, Any]) -> dict[str, Any]:
    plain = Execution().model_dump()  # older artefacts lack what was added later
    return {name: execution.get(name, plain[name]) for name in SETTINGS}


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # discarded meanwhile
        return 0.0
