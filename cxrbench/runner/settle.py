"""Parameters as they will be run: preset, changes, precision and initial weights resolved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrbench.core.digest import digest_file
from cxrbench.core.errors import MissingInputError
from cxrbench.core.spec import MethodParams, Preset
from cxrbench.core.store import Store, write_atomic


@dataclass(frozen=True)
class Settled:
    """Parameters without anything left to decide, and what differs from the preset."""

    params: MethodParams
    changed: dict[str, Any]


def settle(
    cls: Any,
    preset: Preset,
    given: Mapping[str, Any],
    recipe: Mapping[str, Any],
    *,
    precision: str,
    store: Store,
) -> Settled:
    """A method's parameters; `precision` is what `auto` stands for."""
    where = f"method {cls.name}"
    asked = cls.resolve(preset, given, recipe, where=where)
    plain = cls.resolve(preset, {}, {}, where=where)
    tree = _with_stored_weights(_with_precision(asked.model_dump(), precision), store, where)
    changed = difference(plain.model_dump(mode="json"), asked.model_dump(mode="json"))
    return Settled(cls.Params.parse(tree, where=where), changed)


def _with_precision(tree: dict[str, Any], precision: str) -> dict[str, Any]:
    """`auto` resolved everywhere: what is computed with decides the artefact."""
    resolved: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            resolved[key] = _with_precision(value, precision)
        else:
            resolved[key] = precision if key == "precision" and value == "auto" else value
    return resolved


def _with_stored_weights(tree: dict[str, Any], store: Store, where: str) -> dict[str, Any]:
    """Files of initial weights named by their content, and kept in the store under that name.

    So the identity of a training holds what it starts from, not where that lay.
    """
    stored: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            stored[key] = _with_stored_weights(value, store, where)
        elif key == "pretrained" and isinstance(value, str) and _is_file_name(value):
            stored[key] = _keep_weights(Path(value).expanduser(), store, where)
        else:
            stored[key] = value
    return stored


def _is_file_name(value: str) -> bool:
    return value not in ("imagenet", "coco", "none") and not value.startswith("sha256:")


def _keep_weights(path: Path, store: Store, where: str) -> str:
    if not path.is_file():
        raise MissingInputError(
            f"{where}: pretrained: {path} is no file; give imagenet (or coco, for a detector), none or a file of weights"
        )
    name = f"{digest_file(path)}{path.suffix}"
    kept = store.folder("weights") / name
    if not kept.is_file():
        write_atomic(kept, path.read_bytes())
    return f"sha256:{name}"


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of `new` that differ from `old`, by dotted path."""
    changed: dict[str, Any] = {}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            changed.update(difference(before, value, f"{prefix}{key}."))
        elif value != before:
            changed[prefix + key] = value
    return changed
