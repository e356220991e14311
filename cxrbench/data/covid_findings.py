"""What the findings of the open COVID-19 image collection say of a label.

The table has a tree such as `Pneumonia/Viral/COVID-19`; its older versions have leaves alone, several of
them with commas: `COVID-19, ARDS`. Case is ignored. A name that is not known here is never guessed at.
"""

import math
from collections.abc import Callable

COVID = "covid-19"
NO_FINDING = "no finding"
VIRAL = {"viral", "sars", "mers", "mers-cov", "influenza", "h1n1", "varicella", "herpes"}
NOT_VIRAL = {
    *("bacterial", "streptococcus", "klebsiella", "legionella", "mycoplasma", "chlamydophila"),
    *("e.coli", "staphylococcus", "mrsa", "nocardia", "fungal", "pneumocystis", "aspergillosis"),
    *("lipoid", "aspiration"),
}
NO_PNEUMONIA = {NO_FINDING, "tuberculosis"}
ARDS = "ards"  # may come of a pneumonia or of anything else
UNSAID = {"", "todo", "unknown"}


def label_of(task: str, text: str) -> float:
    """1.0, 0.0 or NaN (unknown) of a finding for the task "covid" or "pneumonia".

    Raises ValueError for a finding that contradicts itself.
    """
    items = [[level.strip() for level in item.split("/")] for item in text.casefold().split(",")]
    if len(items) > 1 and [NO_FINDING] in items:
        raise ValueError(f"'No Finding' with another finding: {text!r}")
    rules: dict[str, Callable[[list[list[str]]], float]] = {
        "covid": _covid,
        "pneumonia": _pneumonia,
    }
    return rules[task](items)


def is_unsaid(text: str) -> bool:
    """Whether an unknown label comes of a finding that leaves it open, not of an unknown name."""
    return all(item.strip() in {*UNSAID, ARDS} for item in text.casefold().split(","))


def _covid(items: list[list[str]]) -> float:
    if any(COVID in levels for levels in items):
        return 1.0
    return math.nan if any(map(_may_be_viral, items)) else 0.0


def _pneumonia(items: list[list[str]]) -> float:
    levels = [level for item in items for level in item]
    if any(level in {COVID, *VIRAL, *NOT_VIRAL} or _is_called_so(level) for level in levels):
        return 1.0
    return 0.0 if all(level in NO_PNEUMONIA for level in levels) else math.nan


def _may_be_viral(levels: list[str]) -> bool:
    """Whether nothing is said, or a name is not known that no other level places."""
    if any(level in NOT_VIRAL for level in levels):
        return False
    known = {ARDS, *VIRAL, *NO_PNEUMONIA}
    return not all(level in known or _is_called_so(level) for level in levels)


def _is_called_so(level: str) -> bool:
    return level.endswith("pneumonia")
