"""Hints for names that do not exist."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the closest known names, or all of them when none is close."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=2, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(choices)}" if choices else "nothing is known here"
