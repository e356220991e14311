"""Matplotlib figures to small SVG files that follow the reader's dark mode.

Colours are drawn as stand-ins and become CSS variables, which a file sets for light and dark itself.
No text is ever read as mathematics.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID = "#0a0b0c", "#1a1b1c", "#2a2b2c"
SERIES = tuple(f"#3a3b{digit:02x}" for digit in range(8))
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)), (0, (1, 1)), (0, (4, 1)), (0, (8, 2, 2, 2)))  # fmt: skip
MARKERS = "osD^vPX*"
# Stand-in: (light, dark). The series are Okabe and Ito's, darker or lighter where the ground needs it.
COLOURS = {
    INK: ("#1b1f24", "#e6edf3"), MUTED: ("#57606a", "#9aa4ae"), GRID: ("#d8dee4", "#3a424b"),
    SERIES[0]: ("#0072b2", "#56b4e9"), SERIES[1]: ("#d55e00", "#ff9d5c"),
    SERIES[2]: ("#007d5c", "#2fd3a3"), SERIES[3]: ("#a8508a", "#e8a6cf"),
    SERIES[4]: ("#806600", "#f0e442"), SERIES[5]: ("#2f6f9f", "#9ad0f5"),
    SERIES[6]: ("#444444", "#cccccc"), SERIES[7]: ("#6a3d9a", "#c79bff"),
}  # fmt: skip
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "cxrbench", "text.parse_math": False,
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "axes.titlecolor": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "legend.fontsize": 8, "lines.linewidth": 1.4, "path.simplify": True,
}  # fmt: skip
BOTTOM = 0.5  # inches for the labels of the horizontal axis
LONGEST = 34  # characters of a name in a figure


def clean(text: object, longest: int = LONGEST) -> str:
    """A name as a figure can show it: printable, and not longer than its place."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


@contextmanager
def axes(
    width: float = 4.2,
    height: float = 3.2,
    *,
    left: float = 0.62,
    right: float = 0.12,
    top: float = 0.35,
) -> Iterator[Axes]:
    """Axes in a figure of so many inches, with margins for what is written beside and above."""
    with rc_context(STYLE):
        yield _new(width, height, left, right, top)


def _new(width: float, height: float, left: float, right: float = 0.12, top: float = 0.35) -> Axes:
    figure = Figure(figsize=(width, height))
    inside = (width - left - right) / width, (height - top - BOTTOM) / height
    return figure.add_axes((left / width, BOTTOM / height, *inside))


@contextmanager
def kept_axes(width: float, height: float, *, left: float = 0.62) -> Iterator[Axes]:
    """The same, for lines alone: emptied and used again, which takes half the time."""
    with rc_context(STYLE):
        ax = _kept(width, height, left)
        yield ax
        for line in list(ax.lines):
            line.remove()
        ax.relim()


_kept = lru_cache(maxsize=4)(_new)


def svg(drawn: Axes) -> str:
    """The file's text, inside the `axes` block; the same figure always gives the same text."""
    stream = io.StringIO()
    figure = drawn.figure
    assert isinstance(figure, Figure)
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'(?<=[ (])d="[^"]*"', lambda found: _rounded(found[0]), text)
    text = text.replace("'DejaVu Sans'", "system-ui, sans-serif")
    for number, stand_in in enumerate(COLOURS):
        text = text.replace(stand_in, f"var(--c{number})")
    return re.sub(r">\n\s*", ">\n", text.replace("<defs>", f"{_style()}<defs>", 1))


def _rounded(path: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", path)


def _style() -> str:
    light, dark = (
        "".join(f"--c{number}:{pair[k]};" for number, pair in enumerate(COLOURS.values()))
        for k in (0, 1)
    )
    return f"<style>:root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
