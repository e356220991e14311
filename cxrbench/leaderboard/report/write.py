"""Tables to a folder of model cards and checklists: `write_report`."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from cxrbench.core.digest import digest
from cxrbench.core.errors import MissingInputError
from cxrbench.core.store import Store, write_atomic
from cxrbench.leaderboard.markdown import number
from cxrbench.leaderboard.report import data_facts, model_facts
from cxrbench.leaderboard.report.claim import CLAIM
from cxrbench.leaderboard.report.items import Count, count
from cxrbench.leaderboard.report.subject import Subject
from cxrbench.leaderboard.report.text import Markdown, render
from cxrbench.leaderboard.report.tripod import TRIPOD
from cxrbench.leaderboard.rows import Row, Table
from cxrbench.leaderboard.sentences import NOT_A_DEVICE

GUIDELINES = (CLAIM, TRIPOD)
NEVER_A_PATH = re.compile(r"[^a-z0-9]+")


def write_report(
    tables: Sequence[Table],
    excluded: Sequence[str],
    folder: Path,
    store: Store,
    method: str | None = None,
) -> list[Path]:
    """Write `index.md`, and for each method its card and a checklist of every row; the paths.

    `method` limits them to one. Calibration and subgroups need the predictions in `store`; files say where these
    are not there. MissingInputError where no row is left.
    """
    subjects = _subjects(tables, store)
    if method is not None:
        known = sorted({s.row.method for s in subjects})
        subjects = [s for s in subjects if s.row.method == method]
        if not subjects:
            raise MissingInputError(
                f"--method {method}: no record of it; there are {', '.join(known) or 'none at all'}"
            )
    cards: dict[str, list[Subject]] = defaultdict(list)
    for subject in subjects:
        cards[subject.row.method].append(subject)
    files: dict[str, str] = {}
    entries = []
    for subject in subjects:
        text, counts = _checklist(subject)
        files[f"{_folder(subject)}/{_file(subject)}"] = text
        entries.append((subject, counts))
    for name, of_method in cards.items():
        files[f"{_folder(of_method[0])}/card.md"] = _card(name, of_method)
    first = {"index.md": _index(entries, excluded)}
    for name, text in {**first, **files}.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in {**first, **files}]


def _subjects(tables: Sequence[Table], store: Store) -> list[Subject]:
    """Every row as a subject, by method; it knows its tests on other data."""
    pairs = sorted(
        ((table, row) for table in tables for row in table.rows),
        key=lambda pair: (pair[1].method, pair[0].title, pair[0].identity),
    )
    return [Subject(table, row, store, _elsewhere(pairs, table, row)) for table, row in pairs]


def _elsewhere(
    pairs: Sequence[tuple[Table, Row]], table: Table, row: Row
) -> list[tuple[Table, Row]]:
    """Rows of the very same models, all their trainings alike, tested on other data."""
    models = _models(row)
    return [
        (other, each)
        for other, each in pairs
        if other is not table and other.tested_on is not None and models & _models(each)
    ]


def _models(row: Row) -> set[frozenset[str]]:
    """The trainings of each run, by digest."""
    runs = [frozenset(s.digest for s in r.stages if s.kind == "fit") for r in row.records]
    return {run for run in runs if run}


def _checklist(subject: Subject) -> tuple[str, list[Count]]:
    sheets = [(guideline, guideline.answers(subject)) for guideline in GUIDELINES]
    counts = [count(answers) for _, answers in sheets]
    names = [guideline.name for guideline in GUIDELINES]
    shown = list(zip(names, counts, strict=True))
    text = render("checklist.md", s=subject, sheets=sheets, counts=shown, space=Markdown(" "))
    return text, counts


def _card(method: str, subjects: list[Subject]) -> str:
    return render(
        "card.md",
        method=method,
        subjects=subjects,
        data=data_facts,
        model=model_facts,
        number=number,
        link=lambda s: Markdown(_file(s)),
        md=Markdown,
        not_a_device=NOT_A_DEVICE,
    )


def _index(entries: Sequence[tuple[Subject, list[Count]]], excluded: Sequence[str]) -> str:
    return render(
        "index.md",
        entries=entries,
        names=[guideline.name for guideline in GUIDELINES],
        excluded=excluded,
        card=lambda s: Markdown(f"{_folder(s)}/card.md"),
        link=lambda s: Markdown(f"{_folder(s)}/{_file(s)}"),
        md=Markdown,
        not_a_device=NOT_A_DEVICE,
    )


def _folder(subject: Subject) -> str:
    """A readable name for a method; one that is no plain word has its digest, too."""
    method = subject.row.method
    plain = NEVER_A_PATH.sub("-", method.lower()).strip("-")[:40]
    return plain if plain == method else f"{plain}-{digest(method)[:8]}".lstrip("-")


def _file(subject: Subject) -> str:
    words = f"{subject.row.preset} {subject.table.dataset} {subject.table.split_name}"
    plain = NEVER_A_PATH.sub("-", words.lower()).strip("-")[:50]
    return f"checklist-{plain}-{subject.identity[:8]}.md"
