"""`leaderboard.tex`: a booktabs table for each task, to be put into a paper with \\input.

The file is plain ASCII and needs the packages booktabs and graphicx alone, so it compiles with any engine and font
encoding. Bold are the methods that share the first place; where no test was possible nothing is bold.
"""

import unicodedata
from collections.abc import Iterator, Sequence

from cxrbench.leaderboard.rows import BASELINES, Row, Table, Value
from cxrbench.leaderboard.sentences import MARKS

HEAD = """% Written by cxrbench from its records; do not edit, write it anew with `cxrbench leaderboard`.
% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.
"""
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after a row's end these would be read as its options
    '"': r"\char34{}",  # OT1, LaTeX's default encoding, has no straight double quote of its own
    "–": "--", "—": "---", "·": r"$\cdot$", "→": r"$\rightarrow$", "−": "$-$", "±": r"$\pm$",
    "×": r"$\times$", "Δ": r"$\Delta$", "≈": r"$\approx$", "≤": r"$\leq$", "≥": r"$\geq$",
    "’": "'", "‘": "`", "“": "``", "”": "''", "…": r"\ldots{}",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}",
}  # fmt: skip
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u0304": "=",
           "\u0306": "u", "\u0307": ".", "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c"}  # fmt: skip
LIGATURES = "-,'`!?"  # two of them in a row would become another character
METRICS = (("auc", "AUC"), ("pr_auc", "PR-AUC"), ("precision_at_95_recall", "P@95R"))
SIGNS = {
    "better": r"$^{\uparrow}$",
    "worse": r"$^{\downarrow}$",
    "practically equal": r"$^{\approx}$",
}
MOST_ROWS = 30  # of one float: a page holds them with caption and notes
LONG_NAME = 60  # characters; longer names are broken into lines


def escape(text: object) -> str:
    """A text as LaTeX shows it, on one line; a character that no common font has becomes its number."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    found = []
    for here, after in zip(plain, [*plain[1:], ""], strict=True):
        shown = SPECIAL.get(here) or (here if here.isascii() else _accented(here))
        parted = here in LIGATURES and after and after in LIGATURES
        found.append(shown + "{}" if parted else shown)
    return "".join(found)


def _accented(character: str) -> str:
    """`\\'{e}`, or `U+4E2D` in brackets."""
    base, *marks = list(unicodedata.normalize("NFD", character))
    if base.isascii() and base.isalpha() and len(marks) == 1 and marks[0] in ACCENTS:
        stem = {"i": r"\i", "j": r"\j"}.get(base, base) if ACCENTS[marks[0]] != "c" else base
        return rf"\{ACCENTS[marks[0]]}{{{stem}}}"
    return f"{{[}}U+{ord(character):04X}{{]}}"


def to_latex(tables: Sequence[Table]) -> str:
    """The text of `leaderboard.tex`; tables of more than a page's rows go on in further floats."""
    return "\n".join([HEAD, *(text for table in tables for text in _floats(table))])


def _floats(table: Table) -> Iterator[str]:
    rows = table.rows
    for first in range(0, len(rows), MOST_ROWS):
        last = first + MOST_ROWS >= len(rows)
        yield _float(table, rows[first : first + MOST_ROWS], first > 0, last)


def _float(table: Table, rows: list[Row], continued: bool, last: bool) -> str:
    letters = _letters(table)
    label = [] if continued else [rf"\label{{tab:cxrbench-{table.identity[:8]}}}"]
    notes = [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize", _notes(table, letters),
             r"\end{minipage}"]  # fmt: skip
    lines = [
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{_caption(table, continued)}}}",
        *label,
        r"\smallskip",
        # Shrunk where it is wider than the text, never enlarged.
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        *_tabular(table, rows, letters, floor=last),
        "}",
        *(notes if last else []),
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _tabular(
    table: Table, rows: list[Row], letters: dict[str, str], *, floor: bool
) -> Iterator[str]:
    """The lines of a table's body; the last float of a table ends with the constant classifier."""
    baselines = [name for name in BASELINES if any(r.comparisons.get(name) for r in table.rows)]
    papers = any(row.paper for row in table.rows)
    heads = ["", "Method", "Folds", *(title for _, title in METRICS)]
    heads += [rf"$\Delta$ {escape(name)}" for name in baselines] + ["Paper's AUC"] * papers
    long = max(len(row.name) for row in table.rows) > LONG_NAME
    method, ragged = (r"p{0.45\linewidth}", r"\raggedright ") if long else ("l", "")
    yield rf"\begin{{tabular}}{{@{{}}r{method}c{'l' * (len(heads) - 3)}@{{}}}}"
    yield from (r"\toprule", " & ".join(heads) + r" \\", r"\midrule")
    for row in rows:
        cells = [_place(row), ragged + _name(row, letters), f"{row.done}/{row.folds}"]
        cells += [_metric(row, metric) for metric, _ in METRICS]
        cells += [_difference(row, name) for name in baselines] + [_paper(row)] * papers
        yield " & ".join(cells) + r" \\"
    if floor:
        yield from (r"\midrule", _floor(table, len(heads)))
    yield from (r"\bottomrule", r"\end{tabular}%")


def _caption(table: Table, continued: bool) -> str:
    title = escape(table.title)
    if continued:
        return f"{title} (continued)"
    facts = table.test_facts
    held = f"{facts.get('images', '?')} images of {facts.get('patients', '?')} patients"
    labels = f"{len(table.labels)} label{'s' if len(table.labels) > 1 else ''}"
    bold = (
        "Bold: the methods that share the first place."
        if any(row.tie for row in table.rows)
        else "Nothing is bold: no two methods could be tested."
    )
    return (
        rf"{title}: {escape(held)}, {labels}. Macro means over labels; $\pm$ standard deviation over folds and "
        r"seeds, {[} {]} 95\,\% interval over patients where there is one fold. "
        rf"P@95R: precision at 95\,\% recall. {bold}"
    )


def _letters(table: Table) -> dict[str, str]:
    """The marks that occur, with the letter that stands for each."""
    used = [mark for mark in MARKS if any(mark in row.marks for row in table.rows)]
    return dict(zip(used, "abcdefghijklmnopqrstuvwxyz", strict=False))


def _name(row: Row, letters: dict[str, str]) -> str:
    raised = ",".join(letters[mark] for mark in row.marks if mark in letters)
    name = escape(row.name)
    name = rf"\textbf{{{name}}}" if _is_first(row) else name
    return name + (rf"\textsuperscript{{{raised}}}" if raised else "")


def _is_first(row: Row) -> bool:
    return row.tie is not None and row.tie[0] == 1


def _place(row: Row) -> str:
    return escape(row.place).replace("-", "--") if row.rank else "--"


def _metric(row: Row, metric: str) -> str:
    value: Value | None = row.values[metric]
    if value is None:
        return "--"
    text = f"{value.mean:.3f}"
    if metric == "auc" and _is_first(row):
        text = rf"\textbf{{{text}}}"
    if value.sd is not None:
        return rf"{text} $\pm$ {value.sd:.3f}"
    interval = value.interval or (row.auc_interval if metric == "auc" else None)
    return f"{text} {_interval(interval)}" if interval else text


def _interval(interval: tuple[float, float]) -> str:
    return f"{{[}}{interval[0]:.3f}, {interval[1]:.3f}{{]}}"


def _difference(row: Row, baseline: str) -> str:
    found = row.comparisons.get(baseline)
    if found is None:
        return "--"
    sign = "$-$" if found.difference < 0 else "+"
    return f"{sign}{abs(found.difference):.3f}{SIGNS.get(found.verdict, '')}"


def _paper(row: Row) -> str:
    return f"{row.paper.value:.3f} ({escape(row.paper.tag)})" if row.paper else "--"


def _floor(table: Table, columns: int) -> str:
    """What a constant classifier reaches."""
    values = [table.floor.get(metric) for metric, _ in METRICS]
    shown = [f"{value:.3f}" if isinstance(value, int | float) else "--" for value in values]
    cells = ["", "constant classifier", "", *shown]
    return " & ".join(cells + [""] * (columns - len(cells))) + r" \\"


def _notes(table: Table, letters: dict[str, str]) -> str:
    """What marks and signs mean, warnings, and how the statistics were computed."""
    marks = [
        rf"\textsuperscript{{{letter}}}\,{escape(MARKS[mark])}." for mark, letter in letters.items()
    ]
    used = {c.verdict for row in table.rows for c in row.comparisons.values() if c}
    signs = [f"{sign} {verdict}." for verdict, sign in SIGNS.items() if verdict in used]
    warnings = [f"{escape(text).rstrip('.')}." for text in table.warnings]
    return "\n".join([*marks, *signs, *warnings, *map(escape, table.notes)])
