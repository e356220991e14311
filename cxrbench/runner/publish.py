"""Chosen records into the repository: only clean, complete and real ones, and their pictures that show no single film."""

from collections import defaultdict
from pathlib import Path

from cxrbench.core.errors import DataError
from cxrbench.core.gallery import read_gallery
from cxrbench.core.record import Record, read_records, write_record
from cxrbench.core.redact import redact
from cxrbench.core.store import Store, write_atomic


def objections(records: list[Record]) -> list[str]:
    """Why the records of one method on one split cannot stand in public."""
    found = []
    first = records[0]
    who = f"{first.method} on {first.dataset}/{first.split}"
    if first.data_facts.get("phantom"):
        found.append(f"{who}: phantom data")
    folds = {record.fold for record in records}
    if len(folds) < first.folds:
        found.append(f"{who}: {len(folds)} of {first.folds} folds are there")
    for record in records:
        code = record.provenance.get("code") or {}
        stages = [s.provenance.get("code") or {} for s in record.stages]
        if any(c.get("dirty") or not c.get("commit") for c in (code, *stages)):
            found.append(f"{who} fold {record.fold}: made by code that is not a clean commit")
    return found


def publish(store: Store, target: Path, *, dataset: str, methods: list[str]) -> list[Path]:
    """Copy records to `target/<dataset>/<method>/`; DataError lists every objection.

    Means, maps and plots of the analyses go into a folder beside the record, with their captions in `PICTURES.md`.
    Pictures in which a single film can be seen stay in the store.
    """
    records, _ = read_records(store.root / "records")
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    newest = {r.final: r for r in sorted(records, key=lambda r: r.created)}
    for record in newest.values():
        if record.dataset == dataset and (not methods or record.method in methods):
            key = (
                record.method,
                record.preset,
                str(record.changed),
                record.split_digest,
                str(record.seed),
                str(record.tested_on and (record.tested_on.dataset, record.tested_on.split_digest)),
            )
            groups[key].append(record)
    if not groups:
        raise DataError(
            f"{store.root}/records: no record of {dataset} {' '.join(methods)}".rstrip()
        )
    wrong = [text for group in groups.values() for text in objections(group)]
    if wrong:
        raise DataError("not published:\n  " + "\n  ".join(wrong))
    written = []
    for group in groups.values():
        for record in group:
            clean = Record.parse(redact(record.model_dump(mode="json")), where=record.id)
            path = target / record.dataset / record.method / f"{record.final[:16]}-{record.id}.json"
            if not path.exists():
                written.append(write_record(target, clean))
            written += _pictures(store, record, path.with_suffix(""))
    return written


def _pictures(store: Store, record: Record, folder: Path) -> list[Path]:
    """Copy the pictures of a record's analyses that show no single film; those that are new."""
    written, lines = [], []
    for stage in [*record.stages, *record.analyses.values()]:
        artefact = store.artefact(stage.key)
        for shown in read_gallery(artefact) if store.has(stage.key) else ():
            source = artefact / shown.file
            if shown.films or Path(shown.file).name != shown.file:
                continue
            path = folder / f"{stage.name}-{shown.file}"
            lines.append(f"{shown.caption} (`{stage.name}`)\n\n![{shown.caption}]({path.name})\n")
            if not path.exists():
                write_atomic(path, source.read_bytes())
                written.append(path)
    if lines:
        title = f"# {record.method} on {record.dataset}/{record.split}, fold {record.fold}\n"
        write_atomic(folder / "PICTURES.md", "\n".join([title, *lines]).encode())
    return written
