"""The command that does a run again, from its record alone."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cxrbench.core.errors import ConfigError, DataError
from cxrbench.core.record import Record
from cxrbench.core.store import Store
from cxrbench.core.yamlfile import parse_yaml
from cxrbench.leaderboard.predictions import is_key

FOLDER = "DIR"  # where a reader's own copy of a data set lies
NEWLINE = " \\\n  "


@dataclass(frozen=True)
class Reproduction:
    """A command, the file that it needs, if any, and what a reader must put in its place."""

    command: str
    specification: str
    notes: list[str]


def nodes_of(store: Store, record: Record) -> list[dict[str, Any]]:
    """The run's stages as the store describes them; none where it has them no more."""
    final = next((stage for stage in record.stages if stage.digest == record.final), None)
    if final is None or not is_key(final.key) or not store.has(final.key):
        return []
    try:
        nodes = store.meta(final.key).get("nodes")
    except DataError:
        return []
    return [node for node in nodes or [] if isinstance(node, dict) and "data" in node]


def reproduction(record: Record, nodes: list[dict[str, Any]]) -> Reproduction:
    """How to do a run again; `nodes` are the stages as the store describes them, or none."""
    externals = _externals(record, nodes)
    needs_file = any(
        view.get("changed") or view.get("preset") != record.preset for view in record.views
    ) or (record.tested_on is not None and record.tested_on.fold != 0)
    notes = _notes(record, externals)
    if not needs_file:
        words = list(_words(record, externals))
        return Reproduction(NEWLINE.join(["cxrbench run", *words]), "", notes)
    text = json.dumps(_specification(record, externals), indent=1, ensure_ascii=False)
    return Reproduction("cxrbench bench run.yaml", text, notes)


def _words(record: Record, externals: list[str]) -> Iterator[str]:
    """The options of `cxrbench run`, one group a line."""
    yield f"--method {_quote(record.method)} --preset {_quote(record.preset)}"
    yield f"--dataset {_quote(record.dataset)} --split {_quote(record.split)}" + (
        "" if record.data_facts.get("phantom") else f" --data {FOLDER}"
    )
    yield f"--fold {record.fold} --seed {record.seed}"
    yield from (_set("data", key, value) for key, value in _given(record.dataset_params))
    precision = {value for path, value in _leaves(record.params) if _is_precision(path)}
    shared = len(precision) == 1  # by all trainings, so one option says it
    if shared:
        yield f"--precision {_quote(str(precision.pop()))}"
    yield from (
        _set("params", key, value)
        for key, value in _changes(record)
        if not (shared and _is_precision(key))
    )
    yield from (f"--view {_quote(str(view['name']))}" for view in record.views)
    yield from (f"--external {_quote(name)}={FOLDER}" for name in externals)
    if _skips(record):
        yield "--skip-unreadable"
    test = record.tested_on
    if test is not None:
        folder = "" if test.data_facts.get("phantom") else f" --test-data {FOLDER}"
        yield f"--test-on {_quote(test.dataset)} --test-split {_quote(test.split)}{folder}"
        yield from (_set("test", key, value) for key, value in _given(test.params))
        yield from (
            f"--label-map {_quote(f'{ours}={theirs}')}"
            for ours, theirs in test.label_map.items()
            if ours != theirs
        )


def _specification(record: Record, externals: list[str]) -> dict[str, Any]:
    """The same as a benchmark file; JSON is YAML, too."""
    home = {"name": record.dataset, "split": record.split, "folds": [record.fold]}
    method = {"name": record.method, "params": _tree(_changes(record))}
    views = [
        {
            "name": v["name"],
            "preset": v["preset"],
            "params": _tree((v.get("changed") or {}).items()),
        }
        for v in record.views
    ]
    spec: dict[str, Any] = {
        "name": "again",
        "preset": record.preset,
        "methods": [method],
        "datasets": [{**home, "params": dict(_given(record.dataset_params))}],
        "seeds": [record.seed],
        "views": views,
        "externals": [{"name": name} for name in externals],
        "skip_unreadable": _skips(record),
    }
    test = record.tested_on
    if test is not None:
        entry = {"name": test.dataset, "split": test.split, "fold": test.fold}
        params = dict(_given(test.params))
        spec["test_on"] = [{**entry, "params": params, "label_map": test.label_map}]
    return spec


def _changes(record: Record) -> list[tuple[str, Any]]:
    """What differs from the preset, with precision as the machine chose it and weights by content."""
    changed = dict(record.changed)
    for path, value in _leaves(record.params):
        # `auto` stands for another precision on another machine, so it is said.
        if _is_precision(path) or (path in changed and path.endswith("pretrained")):
            changed[path] = value
    return sorted(changed.items())


def _is_precision(path: str) -> bool:
    return f".{path}".endswith(".recipe.precision")


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _tree(changes: Any) -> dict[str, Any]:
    """Dotted paths as nested dictionaries."""
    tree: dict[str, Any] = {}
    for path, value in changes:
        *above, last = path.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def _given(params: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted((key, value) for key, value in params.items() if value is not None)


def _externals(record: Record, nodes: list[dict[str, Any]]) -> list[str]:
    """Data sets besides the run's own that a part of it was fitted on."""
    fitted = [node["data"] for node in nodes if node.get("kind") in ("fit", "compute")]
    return sorted({str(data["dataset"]) for data in fitted if data.get("external")})


def _skips(record: Record) -> bool:
    return any(stage.facts.get("skipped_images") for stage in record.stages)


def _notes(record: Record, externals: list[str]) -> list[str]:
    notes = []
    if not record.data_facts.get("phantom"):
        notes.append(f"{FOLDER} is the folder of your copy of {record.dataset}.")
    notes += [f"{name}={FOLDER} is the folder of your copy of {name}." for name in externals]
    if any(str(value).startswith("sha256:") for _, value in _leaves(record.params)):
        notes.append("Initial weights are named by their content: the store must hold that file.")
    commit = (record.provenance.get("code") or {}).get("commit")
    if commit:
        notes.append(f"Code: commit {commit}.")
    if any((s.provenance.get("code") or {}).get("dirty") for s in record.stages):
        notes.append("The code had changes that no commit holds: an exact repeat is not certain.")
    return notes


def _set(kind: str, key: str, value: Any) -> str:
    return f"--set {_quote(f'{kind}.{key}={_as_yaml(value)}')}"


def _as_yaml(value: Any) -> str:
    """Without quotes where YAML reads the word as the text that it is."""
    if isinstance(value, str):
        try:
            if parse_yaml(value, where="") == value:
                return value
        except ConfigError:
            pass
    return json.dumps(value)


def _quote(text: str) -> str:
    """For a shell; a line break or a control character in a name cannot end the command."""
    return shlex.quote("".join(c if c.isprintable() else " " for c in text))
