"""Text for CSV files that people open in a spreadsheet."""

from typing import Any

# A cell that begins with one of these is run as a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def inert(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula, with an apostrophe before it; others as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
