"""Names to classes. Listing reads file names and docstrings and imports nothing heavy.

A method or data set is one file of `cxrbench/methods` or `cxrbench/data`, an entry point of another
distribution (`cxrbench.methods`, `cxrbench.datasets`), or a loose file given with `--plugin`.
"""

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cxrbench.core.digest import PACKAGE, digest_file
from cxrbench.core.errors import CxrbenchError, MissingInputError, UsageError
from cxrbench.core.nearest import nearest

Family = Literal["methods", "datasets"]
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")  # it becomes a part of paths
FOLDERS: dict[Family, str] = {"methods": "methods", "datasets": "data"}
MARKS: dict[Family, str] = {"methods": "presets", "datasets": "CxrDataset"}  # no entry without it


@dataclass(frozen=True)
class Entry:
    """A method or data set that exists, known without importing it."""

    name: str
    family: Family
    target: str  # "module:Class" or "/path/file.py:Class"
    summary: str
    presets: tuple[str, ...]
    path: Path | None


def normalise(name: str) -> str:
    """`-` and `_` are the same in a name; the hyphen is shown."""
    return name.strip().lower().replace("_", "-")


def _literal(node: ast.ClassDef, attribute: str) -> ast.expr | None:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if item.target.id == attribute:
                return item.value
        elif isinstance(item, ast.Assign):
            names = [t.id for t in item.targets if isinstance(t, ast.Name)]
            if attribute in names:
                return item.value
    return None


def _read_entries(path: Path, family: Family, target: str) -> list[Entry]:
    """The registered classes of a file: those with a literal `name` and, for methods, `presets`."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.is_relative_to(PACKAGE) and MARKS[family] not in text:
            return []  # spares parsing most of the package's files, a third of what `list` takes
        tree = ast.parse(text, filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{path}: not a Python file ({error})") from None
    entries = []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        name = _literal(node, "name")
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
            continue
        if not NAME.match(normalise(name.value)):
            raise UsageError(f"{path}: name {name.value!r}: use letters, digits, '.', '_' and '-'")
        presets = _literal(node, "presets")
        keys = presets.keys if isinstance(presets, ast.Dict) else []
        found = tuple(k.value for k in keys if isinstance(k, ast.Constant))
        bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        is_dataset = "CxrDataset" in bases
        if (family == "methods" and presets is not None and not is_dataset) or (
            family == "datasets" and is_dataset
        ):
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            entries.append(
                Entry(normalise(name.value), family, f"{target}:{node.name}", summary,
                      tuple(map(str, found)), path)
            )  # fmt: skip
    return entries


@lru_cache(maxsize=2)
def _built_in(family: Family) -> tuple[Entry, ...]:
    folder = PACKAGE / FOLDERS[family]
    return tuple(
        entry
        for path in sorted(folder.glob("*.py"))
        if not path.name.startswith("_")
        for entry in _read_entries(path, family, f"cxrbench.{FOLDERS[family]}.{path.stem}")
    )


@lru_cache(maxsize=2)
def _entry_points(family: Family) -> tuple[Entry, ...]:
    return tuple(
        Entry(normalise(point.name), family, point.value, f"from {point.module}", (), None)
        for point in metadata.entry_points(group=f"cxrbench.{family}")
    )


class Registry:
    """The methods and data sets that can be named, plugins included."""

    def __init__(self, plugins: Iterable[Path] = ()) -> None:
        self.plugins = tuple(path.expanduser().resolve() for path in plugins)
        for path in self.plugins:
            if not path.is_file():
                raise MissingInputError(f"--plugin {path}: no such file")

    def entries(self, family: Family) -> dict[str, Entry]:
        """All entries of a family by name; a name that stands twice is an error."""
        found: dict[str, Entry] = {}
        loose = (e for path in self.plugins for e in _read_entries(path, family, str(path)))
        for entry in (*_built_in(family), *_entry_points(family), *loose):
            if entry.name in found:
                raise UsageError(
                    f"two {family} are called {entry.name!r}: "
                    f"{found[entry.name].target} and {entry.target}; rename one"
                )
            found[entry.name] = entry
        return found

    def entry(self, family: Family, name: str) -> Entry:
        """The entry of a name; an unknown name gets the nearest known ones."""
        known = self.entries(family)
        if normalise(name) not in known:
            kind = family.removesuffix("s")
            raise UsageError(f"unknown {kind} {name!r}; {nearest(normalise(name), known)}")
        return known[normalise(name)]

    def load(self, family: Family, name: str) -> Any:
        """The class of a name; imports its module."""
        return load_target(self.entry(family, name).target)

    def fingerprint(self) -> list[str]:
        """The content of the plugins, which a cached plan depends on."""
        return [f"{path} {digest_file(path)}" for path in self.plugins]


def load_target(target: str) -> Any:
    """The class of "module:Class" or "/path/to/file.py:Class"."""
    source, _, name = target.rpartition(":")
    if source.endswith(".py"):
        module = _load_file(Path(source))
        cls = getattr(module, name)
        cls.plugin_target = target
        return cls
    return getattr(importlib.import_module(source), name)


def _load_file(path: Path) -> Any:
    # The module's name holds the path's hash, so that two plugins of one file name do not collide.
    module_name = f"cxrbench_plugin_{path.stem}_{digest_file(path)[:8]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--plugin {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        if isinstance(error, CxrbenchError):
            raise
        raise UsageError(
            f"--plugin {path}: import failed: {type(error).__name__}: {error}"
        ) from error
    # Every class of the file can be a stage (an aligner beside its method), not only the entries.
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module_name:
            value.plugin_target = f"{path}:{value.__qualname__}"  # type: ignore[attr-defined]
    return module


def class_sources(registry: Registry) -> dict[tuple[str, int], set[str]]:
    """SHA-256 of the text of every class that has a name and a version, without importing it."""
    found: dict[tuple[str, int], set[str]] = {}
    paths = set((PACKAGE / "methods").glob("*.py")) | set(registry.plugins)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")  # as Python counts them
        for node in ast.parse(text).body:
            if not isinstance(node, ast.ClassDef):
                continue
            name, version = _literal(node, "name"), _literal(node, "version")
            if isinstance(name, ast.Constant) and isinstance(version, ast.Constant):
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                body = "\n".join(lines[start - 1 : node.end_lineno]) + "\n"
                key = (str(name.value), int(str(version.value)))
                found.setdefault(key, set()).add(hashlib.sha256(body.encode()).hexdigest())
    return found
