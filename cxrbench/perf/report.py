"""Results of a session of measuring: JSON with the machine's fingerprint, and the table made from it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrbench.core.errors import DataError
from cxrbench.core.provenance import collect_provenance
from cxrbench.core.store import read_json, write_json
from cxrbench.perf.harness import LEVEL, Row

SCHEMA = 1
UNITS = {"ratio": "x", "extra": "ms", "seconds": "s", "share": "", "count": "", "megabytes": "MB"}
HEAD = ("name", "what", "measured", "95 % interval", "goal", "ours", "peer")


def fingerprint() -> dict[str, Any]:
    """CPU, cores, memory, system, versions and commit; no name of host or user."""
    found = collect_provenance()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "time": found["time"],
        "processor": found["processor"],
        "cores": found["cores"],
        "memory_gib": round(memory, 1),
        "system": found["platform"],
        "gpu": _gpu(),
        "python": found["python"],
        "packages": found["packages"],
        "code": found["code"],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load": list(
            os.getloadavg()
        ),  # processes that wanted a core in the last 1, 5 and 15 minutes
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def write_results(path: Path, rows: Sequence[Row], rounds: int, note: str, seconds: float) -> None:
    """The JSON of a session."""
    write_json(
        path,
        {
            "schema_version": SCHEMA,
            "machine": fingerprint(),
            "rounds": rounds,
            "level": LEVEL,
            "seconds": round(seconds, 1),
            "note": note,
            "rows": [row.as_json() for row in rows],
        },
    )


def read_results(path: Path) -> dict[str, Any]:
    """The JSON of a session; DataError when it is none."""
    try:
        value = read_json(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if not isinstance(value, dict) or value.get("schema_version") != SCHEMA:
        raise DataError(f"{path}: not results of `cxrbench perf` (schema_version {SCHEMA})")
    return value


def markdown(results: dict[str, Any]) -> str:
    """The table of a session, and what it was measured on, as Markdown."""
    lines = [_machine(results), ""]
    lines += [f"| {' | '.join(HEAD)} |", "| --- | --- |" + " ---: |" * (len(HEAD) - 2)]
    rows = [row for row in results["rows"] if not row.get("points")]
    curves = [row for row in results["rows"] if row.get("points")]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    if curves:
        lines = [*(lines if rows else lines[:2]), *([""] if rows else []), *curve_table(curves)]
    said: dict[str, list[str]] = {}
    for row in results["rows"]:
        said.setdefault(row["note"], []).append(row["name"])
    notes = [
        f"- {', '.join(f'`{name}`' for name in names)}: {note}"
        for note, names in said.items()
        if note
    ]
    return "\n".join(lines + (["", *notes] if notes else [])) + "\n"


def curve_table(curves: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table: what each cost does as something grows."""
    lines = [
        "| name | what | grows with | time, exponent | 95 % interval | memory, exponent | from | to |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in curves:
        low, high = row["exponent_interval"]
        memory = "" if row["memory_exponent"] is None else f"{row['memory_exponent']:.2f}"
        ends = [
            f"{point['size']:,}: {_time(point['seconds']['median'])}, {point['megabytes']:.3g} MB"
            for point in (row["points"][0], row["points"][-1])
        ]
        lines.append(
            f"| `{row['name']}` | {row['what']} | {row['axis']} | {row['exponent']:.2f} | {low:.2f} to {high:.2f} | "
            f"{memory} | {ends[0]} | {ends[1]} |"
        )
    return lines


def tables(paths: Sequence[Path]) -> str:
    """The tables of several sessions, one after the other."""
    return "\n".join(markdown(read_results(path)) for path in paths)


def brief(paths: Sequence[Path]) -> str:
    """Of the same sessions what has a goal: what, measured, goal."""
    blocks = []
    for path in paths:
        results = read_results(path)
        lines = [_machine(results), "", "| what | measured | goal |", "| --- | ---: | ---: |"]
        for row in results["rows"]:
            if row["goal"] and not row.get("points"):
                _, what, measured, _, goal, *_ = cells(row)
                lines.append(f"| {what} | {measured} | {goal} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _machine(results: dict[str, Any]) -> str:
    machine, packages = results["machine"], results["machine"]["packages"]
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("numpy", "torch", "lightning") if name in packages
    )
    code = machine["code"]
    changed = " with changes" if code.get("dirty") else ""
    text = (
        f"{machine['time'][:10]}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {machine['gpu'] or 'no GPU'}; Python {machine['python']}, {versions}; "
        f"commit {(code.get('commit') or 'unknown')[:12]}{changed}; {results['rounds']} rounds "
        f"in {results['seconds']:.0f} s, {machine['threads']} thread; load at the end {machine['load'][0]:.1f}."
    )
    return f"{text} {results['note']}".strip()


def cells(row: dict[str, Any]) -> list[str]:
    """The cells of a row, in the order of HEAD."""
    if row["state"] in ("not available", "results differ", "failed"):
        return [
            f"`{row['name']}`",
            row["what"],
            row["state"],
            "",
            _goal(row["goal"]),
            row["why"],
            "",
        ]
    value, interval, quantity = row["ratio"], row["ratio_interval"], "ratio"
    if row["goal"]:
        value, interval, quantity = row["value"], row["interval"], row["goal"]["quantity"]
    elif row.get("quantity"):
        value, quantity = row["value"], row["quantity"]
    if value is None:  # alone and without a goal: its own time
        value, quantity = row["ours"]["median"], "seconds"
    measured = f"{_number(value, quantity)} {UNITS[quantity]}".strip()
    spread = "" if not interval else " to ".join(_number(end, quantity) for end in interval)
    mark = {"met": "", "missed": " **missed**", "no goal": ""}[row["state"]]
    return [
        f"`{row['name']}`", row["what"], measured + mark, spread, _goal(row["goal"]),
        *(_side(row[side], row["unit"]) for side in ("ours", "peer")),
    ]  # fmt: skip


def _goal(goal: dict[str, Any] | None) -> str:
    if not goal:
        return ""
    bound = f"{_number(goal['bound'], goal['quantity'])} {UNITS[goal['quantity']]}".strip()
    return f"{'≥' if goal['least'] else '≤'} {bound}"


def _number(value: float, quantity: str) -> str:
    scaled = 1000 * value if quantity == "extra" else value
    if abs(scaled) >= 100:
        return f"{scaled:,.0f}"
    return f"{scaled:.3g}"


def _side(side: dict[str, Any] | None, unit: str) -> str:
    """Median, minimum and interquartile range of a unit of work."""
    if side is None:
        return ""
    factor, name = _scale(side["median"])
    shown = [f"{side[key] * factor:.3g}" for key in ("median", "minimum", "iqr")]
    return f"{shown[0]} {name} (min {shown[1]}, IQR {shown[2]}) a {unit}"


def _scale(seconds: float) -> tuple[float, str]:
    """What to multiply seconds by, and the name of that unit."""
    return next(
        (pair for pair in ((1, "s"), (1e3, "ms"), (1e6, "µs")) if seconds * pair[0] >= 1),
        (1e9, "ns"),
    )


def _time(seconds: float) -> str:
    factor, name = _scale(seconds)
    return f"{seconds * factor:.3g} {name}"


def between(document: str, mark: str, text: str) -> str:
    """`document` with what stands between `<!-- mark:begin -->` and `<!-- mark:end -->` replaced."""
    begin, end = f"<!-- {mark}:begin -->\n", f"<!-- {mark}:end -->"
    head, found, rest = document.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise DataError(f"no {begin.strip()} and {end} in the document")
    return head + begin + text + end + tail
