"""What an analysis measured, nested JSON, as tables that can be read."""

from dataclasses import dataclass
from typing import Any

MOST = 12  # entries of a list that are written out
DIGITS = 4


@dataclass(frozen=True)
class FactTable:
    """A caption, a header and rows of texts."""

    caption: str
    header: list[str]
    rows: list[list[str]]


def show(value: Any) -> str:
    """A JSON value as a short text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if isinstance(value, list):
        texts = [show(item) for item in value[:MOST]]
        more = [f"… {len(value) - MOST} more"] if len(value) > MOST else []
        return ", ".join([*texts, *more]) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {show(item)}" for key, item in value.items()) or "none"
    return str(value)


def fact_tables(facts: dict[str, Any], caption: str = "") -> list[FactTable]:
    """Tables of nested facts: single values together, and a grid where entries have the same fields."""
    plain = {key: value for key, value in facts.items() if not _is_tree(value)}
    tables = []
    if plain:
        rows = [[key, show(value)] for key, value in plain.items()]
        tables.append(FactTable(caption, ["", "value"], rows))
    for key, value in facts.items():
        if _is_tree(value):
            name = f"{caption} · {key}" if caption else key
            tables += [_grid(name, value)] if _is_grid(value) else fact_tables(value, name)
    return tables


def _is_tree(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _is_grid(value: dict[str, Any]) -> bool:
    """Whether every entry is a flat dictionary, and some field is in all of them."""
    entries = list(value.values())
    if len(entries) < 2 or not all(_is_tree(entry) for entry in entries):
        return False
    flat = not any(_is_tree(item) for entry in entries for item in entry.values())
    return flat and bool(set.intersection(*(set(entry) for entry in entries)))


def _grid(caption: str, value: dict[str, dict[str, Any]]) -> FactTable:
    fields = list(dict.fromkeys(name for entry in value.values() for name in entry))
    rows = [
        [name, *(show(entry[f]) if f in entry else "" for f in fields)]
        for name, entry in value.items()
    ]
    return FactTable(caption, ["", *fields], rows)
