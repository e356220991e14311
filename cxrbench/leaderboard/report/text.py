"""Markdown from templates in which every value is escaped: records may come from strangers."""

import html
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).with_name("templates")
# What opens a heading, a list, a quotation or a rule at the start of a line.
OPENS = re.compile(r"^(?:([#+=-])(?=[\s#+=-]|$)|(\d{1,9})([.)])(?=\s|$))")
# An underscore between letters is a plain one.
MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")


class Markdown(str):
    """Text that is Markdown already and is written as it stands."""


def escape(value: Any) -> str:
    """One line of plain text: no markup, no HTML, no link, no cell border."""
    if isinstance(value, Markdown):
        return value
    plain = "".join(c if c.isprintable() else " " for c in str(value))
    plain = html.escape(" ".join(plain.split()), quote=False)
    return OPENS.sub(_opened, MARKUP.sub(r"\\\g<0>", plain))


def _opened(found: re.Match[str]) -> str:
    sign, digits, point = found.groups()
    return f"\\{sign}" if sign else f"{digits}\\{point}"


def fenced(text: str) -> Markdown:
    """A block of code; its fence is longer than any row of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}\n{text}\n{fence}")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    found = Environment(  # Markdown: `finalize` escapes, autoescape is for HTML
        loader=FileSystemLoader(TEMPLATES),
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["fenced"] = fenced
    return found


def render(template: str, **values: Any) -> str:
    """A template's text."""
    return _environment().get_template(template).render(**values)
