"""Data sets bound to a folder: revision, split and counts, remembered until any file changes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrbench.core.digest import PACKAGE, digest, package_digest
from cxrbench.core.errors import ConfigError, UsageError
from cxrbench.core.frozen import Frozen
from cxrbench.core.registry import Registry
from cxrbench.core.stage import DataView
from cxrbench.core.store import Store, read_json_as, write_json
from cxrbench.core.treeprint import tree_fingerprint

Progress = Callable[[str, int, int], None]  # (what, done, of)


class Binding(Frozen):
    """What planning must know of a data set in a folder; no pixels, no rows."""

    dataset: str
    version: int
    params: dict[str, Any]
    revision: str
    labels: list[str]
    split: str
    split_digest: str
    folds: int
    facts: dict[str, Any]

    def view(self, *, fold: int, seed: int, skip_unreadable: bool) -> DataView:
        """One fold as the stages see it."""
        if not 0 <= fold < self.folds:
            raise ConfigError(
                f"{self.dataset}: fold {fold} does not exist; split {self.split!r} has "
                f"{'one fold, 0' if self.folds == 1 else f'folds 0-{self.folds - 1}'}"
            )
        return DataView(
            dataset=self.dataset,
            version=self.version,
            params=self.params,
            revision=self.revision,
            split=self.split,
            split_digest=self.split_digest,
            fold=fold,
            labels=tuple(self.labels),
            skip_unreadable=skip_unreadable,
            root_seed=seed,
        )


@dataclass(frozen=True)
class Opened:
    """A data set that is read: its class, parameters, index, split and content hashes."""

    cls: Any
    params: Frozen
    index: Any
    split: Any
    contents: list[str]
    revision: str
    facts: dict[str, Any]


def open_dataset(
    cls: Any,
    root: Path | None,
    params: dict[str, Any],
    split: str,
    store: Store,
    progress: Progress | None = None,
) -> Opened:
    """Read index, content hashes and split of a data set."""
    from cxrbench.data.external import EVERYTHING, everything
    from cxrbench.data.index import content_hashes, join_twins
    from cxrbench.data.splits import find_split

    if root is not None and not cls.needs_root:
        raise UsageError(f"data set {cls.name} is drawn and takes no --data")
    parsed = cls.Params.parse(params, where=f"data set {cls.name}")
    index = cls.read_index(root.expanduser().resolve() if root else None, parsed)
    cache = store.root / "cache" / f"hashes-{digest(str(index.root))[:16]}.parquet"
    report = (lambda done, of: progress(f"hashing {cls.name}", done, of)) if progress else None
    contents = content_hashes(index, cache, report)
    index = join_twins(index, contents)
    revision = index.revision(contents)
    if split == EVERYTHING:
        whole = {"present": len(index), "promised": len(index)}
        facts = {"coverage": whole, "complete": True, "differences": []}
        return Opened(cls, parsed, index, everything(index), contents, revision, facts)
    found, facts = find_split(cls, index, split, revision, store)
    used = found.takes_part(index)
    if not used.all():  # what a split leaves out may lie there or not: these are the same data
        kept = [content for content, use in zip(contents, used, strict=True) if use]
        revision = index.select(used).revision(kept)
    return Opened(cls, parsed, index, found, contents, revision, facts)


def bind(
    registry: Registry,
    name: str,
    root: Path | None,
    params: dict[str, Any],
    split: str,
    store: Store,
    progress: Progress | None = None,
) -> Binding:
    """The binding of a data set; from the cache when neither code nor files have changed."""
    entry = registry.entry("datasets", name)

    def memory() -> Path:
        key = _cache_key(registry, entry.name, root, params, split, store)
        return store.root / "cache" / f"binding-{key[:16]}.json"

    cached = memory()
    if cached.is_file():

        def current(known: Any) -> Binding | None:
            if known["sources"] != _stamps(known["sources"]):
                return None
            return Binding.parse(known["binding"], where=str(cached))

        if found := read_json_as(cached, current, "what cxrbench wrote"):
            return found
    cls = registry.load("datasets", name)
    opened = open_dataset(cls, root, params, split, store, progress)
    from cxrbench.data.splits import describe

    counts = describe(opened.split, opened.index)
    coverage = opened.index.notes.get("coverage") or opened.facts["coverage"]
    binding = Binding(
        dataset=cls.name,
        version=cls.version,
        params=opened.params.model_dump(mode="json"),
        revision=opened.revision,
        labels=list(opened.index.labels),
        split=opened.split.name,
        split_digest=opened.split.digest(opened.index),
        folds=opened.split.folds,
        facts={
            "images": counts["images"],
            "patients": counts["patients"],
            "notes": opened.index.notes,
            "phantom": cls.phantom,
            # Of the download and of the split: a part of either is never called by the whole's name.
            "complete": bool(opened.facts["complete"]) and bool(coverage.get("complete", True)),
            "coverage": {name: coverage[name] for name in ("present", "promised")},
            "rule": opened.split.rule,
            "counts": counts["counts"],
            "warnings": list(counts["warnings"]),
        },
    )
    sources = _stamps({str(path): None for path in opened.index.sources})
    # Asked anew: opening may have written the split, which the name depends on.
    write_json(memory(), {"binding": binding.model_dump(mode="json"), "sources": sources})
    return binding


def _stamps(paths: dict[str, Any]) -> dict[str, Any]:
    """Size and time of files; None for those that are gone."""
    stamps: dict[str, Any] = {}
    for path in paths:
        try:
            info = Path(path).stat()
            stamps[path] = [info.st_size, info.st_mtime_ns]
        except OSError:
            stamps[path] = None
    return stamps


def _cache_key(
    registry: Registry,
    name: str,
    root: Path | None,
    params: dict[str, Any],
    split: str,
    store: Store,
) -> str:
    resolved = root.expanduser().resolve() if root else None
    tree = resolved.parent if resolved and resolved.is_file() else resolved
    splits = [PACKAGE / "data_splits" / name, PACKAGE.parent / "data_splits" / name]
    splits += sorted(store.root.glob(f"splits/{name}-*"))
    return digest(
        {
            "code": package_digest(),
            "plugins": registry.fingerprint(),
            "dataset": name,
            "root": str(resolved),
            "tree": tree_fingerprint(tree) if tree and tree.exists() else None,
            "splits": [tree_fingerprint(folder) for folder in splits if folder.is_dir()],
            "params": params,
            "split": split,
            "store": str(store.root),
        }
    )
