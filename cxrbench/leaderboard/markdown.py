"""Tables as text: the cells that the terminal, Markdown and CSV share."""

import csv
import html
import io
import re
from typing import Any

from cxrbench.core.reported import MEANS
from cxrbench.core.spreadsheet import inert
from cxrbench.leaderboard.compare import Comparison, Verdict
from cxrbench.leaderboard.paper import beside, paper_values, source
from cxrbench.leaderboard.ranks import no_diagram
from cxrbench.leaderboard.rows import BASELINES, METRICS, Row, Table, Value
from cxrbench.leaderboard.sentences import MARKS, PLACES

HEADER = ("#", "method", "folds", "AUC", "PR-AUC", "P@95R", "P@95R val", "recall val",
          "Δ densenet121", "Δ vgg16", "val-test", "hours", "params", "published", "paper AUC",
          "marks")  # fmt: skip
SIGNS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "practically equal": "≈",
                             "not told apart": "○", "not tested": ""}  # fmt: skip
MOST_IN_MATRIX = 12
OF_THE_ROW = ("place_first", "place_last", "rank_low", "rank_high", "auc_low", "auc_high", "auc_sd_folds",
              "auc_sd_seeds", "published", "published_low", "published_high", "paper_split",
              "paper_inside", "marks")  # fmt: skip
OF_A_COMPARISON = ("low", "high", "p", "p_adjusted", "effect", "verdict")
NOTES = (
    "AUC, PR-AUC (average precision) and P@95R (precision at 95 % recall) are macro means over the labels "
    "with both classes in the test part; ± is the standard deviation over folds, [ ] the 95 % interval "
    "of a patient-clustered bootstrap where there is one fold. P@95R picks its threshold on the test part, "
    "as papers do; P@95R val takes the validation part's, and recall val is the recall it then reached. "
    "# is the place by AUC: 1-2 are places that cannot be told apart, and [ ] the places between which 95 % of "
    "resamples put the method. Δ is the mean difference in AUC to a baseline on the same folds with its 95 % "
    "interval: ▲ better, ▼ worse, ≈ practically equal, ○ not told apart, no sign where no test was possible. "
    "val-test is the validation AUC minus the test AUC. hours are device hours of all stages. published says "
    "where the AUC stands in the range that others published on this split. paper AUC is the method's paper's; "
    "it can be reproduced or not only on the same split. What else a paper reports stands below the table."
)


def number(value: Value | None, *, signed: bool = False) -> str:
    """A metric as shown: mean ± sd, or mean [interval]."""
    if value is None:
        return "–"
    text = f"{value.mean:+.4f}" if signed else f"{value.mean:.4f}"
    if value.sd is not None:
        return f"{text} ± {value.sd:.4f}"
    if value.interval:
        return f"{text} [{value.interval[0]:.3f}, {value.interval[1]:.3f}]"
    return text


def place(row: Row) -> str:
    """`1-2 [1, 4]`: tie group and rank interval."""
    low_high = row.rank_interval
    return f"{row.place} [{low_high[0]}, {low_high[1]}]" if low_high else row.place


def delta(comparison: Comparison | None) -> str:
    """A difference with its interval and the sign of its verdict."""
    if comparison is None:
        return "–"
    text = f"{comparison.difference:+.4f}"
    if comparison.low is not None and comparison.high is not None:
        text += f" [{comparison.low:+.3f}, {comparison.high:+.3f}]"
    return f"{text} {SIGNS[comparison.verdict]}".rstrip()


def paper(row: Row) -> str:
    """The paper's AUC, and whether it was reproduced."""
    if row.paper is None:
        return "–"
    says = {True: "reproduced", False: "not reproduced", None: row.paper.tag}[row.paper.inside]
    return f"{row.paper.value:.4f} ({says})"


def cells(row: Row) -> list[str]:
    """A row's texts in the order of HEADER."""
    v, cost = row.values, [record.cost for record in row.records]
    hours = sum(c.get("device_hours") or 0.0 for c in cost)
    parameters = cost[0].get("parameters")
    return [
        place(row),
        row.name,
        f"{row.done}/{row.folds}",
        number(v["auc"]),
        number(v["pr_auc"]),
        number(v["precision_at_95_recall"]),
        number(v["precision_at_validation_threshold"]),
        number(v["recall_at_validation_threshold"]),
        *(delta(row.comparisons.get(name)) for name in BASELINES),
        number(v["validation_minus_test_auc"], signed=True),
        f"{hours:.2f} {(cost[0].get('device') or 'cpu').upper()}",
        f"{parameters / 1e6:.2f} M" if parameters else "–",
        row.published.place if row.published else "–",
        paper(row),
        ", ".join(row.marks) or "–",
    ]


def floor_line(table: Table) -> str:
    """What a constant classifier reaches on the same images."""
    values = [table.floor.get(name) for name in ("auc", "pr_auc", "precision_at_95_recall")]
    auc, pr, precision = ("–" if v is None else f"{v:.4f}" for v in values)
    return f"A constant classifier reaches AUC {auc}, PR-AUC {pr}, P@95R {precision}."


def _escape(text: object) -> str:
    """One line of plain text: no HTML, no cell border, no code, no link and no image."""
    plain = html.escape(" ".join(str(text).splitlines()), quote=False)
    return re.sub(r"([\\|`]|(?<=\])[(:])", r"\\\1", plain)


def to_markdown(tables: list[Table], excluded: list[str]) -> str:
    """`LEADERBOARD.md`."""
    lines = ["# Leaderboard", ""]
    for table in tables:
        facts = table.test_facts
        lines += [f"## {_escape(table.title)}", ""]
        lines += [
            f"{_escape(facts.get('images', '?'))} images of "
            f"{_escape(facts.get('patients', '?'))} patients, "
            f"{len(table.labels)} label{'s' if len(table.labels) > 1 else ''}. {floor_line(table)}",
            "",
            "| " + " | ".join(HEADER) + " |",
            "|" + "---|" * len(HEADER),
        ]
        lines += ["| " + " | ".join(map(_escape, cells(row))) + " |" for row in table.rows]
        lines += ["", *(f"- {_escape(text)}" for text in [*table.warnings, *_remarks(table)]), ""]
        lines += _matrix(table)
    reason = no_diagram([table.dataset for table in tables])
    lines += [reason, ""] if tables and reason else []
    if excluded:
        lines += ["## Left out", "", *(f"- {_escape(text)}" for text in excluded), ""]
    return "\n".join([*lines, NOTES, ""])


def _remarks(table: Table) -> list[str]:
    """Notes on the statistics, what marks mean, and how rows stand to published numbers."""
    used = {mark for row in table.rows for mark in row.marks}
    ranges = [row.published for row in table.rows if row.published]
    return [
        *table.notes,
        *(text for mark, text in MARKS.items() if mark in used),
        *dict.fromkeys(f"published, {f.low:.3f} to {f.high:.3f}: {f.source}" for f in ranges),
        *(text for name, text in PLACES.items() if name in {flag.place for flag in ranges}),
        *(f"{row.name}: {row.paper.how}" for row in table.rows if row.paper),
        *(text for row in table.rows if (text := _beside(row))),
        *(_spread(row) for row in table.rows if row.spread.seeds is not None),
    ]


def _beside(row: Row) -> str:
    """What else than an AUC the paper reports, and ours."""
    found = [
        f"{each.metric} {each.paper:.4f} (ours {number(each.ours)})"
        for each in beside(row)
        if each.metric != MEANS["auc"]
    ]
    return (
        f"{row.name}: the paper reports {', '.join(found)}. Source: {source(row)}." if found else ""
    )


def _spread(row: Row) -> str:
    folds = "–" if row.spread.folds is None else f"{row.spread.folds:.4f}"
    return f"{row.name}: standard deviation of the AUC over folds {folds}, over seeds within a fold {row.spread.seeds:.4f}"


def _matrix(table: Table) -> list[str]:
    """The ranked rows against each other: difference, interval and corrected p, row minus column."""
    ranked = [row for row in table.rows if row.rank]
    if not 2 < len(ranked) <= MOST_IN_MATRIX:
        return []
    found = {(pair.first, pair.second): pair.comparison for pair in table.pairwise}
    lines = ["Row minus column, 95 % interval, corrected p:", ""]
    lines += ["| | " + " | ".join(_escape(row.name) for row in ranked[1:]) + " |"]
    lines += ["|" + "---|" * len(ranked)]
    for i, row in enumerate(ranked[:-1]):
        shown = [_escape(_cell(found[i, j])) if j > i else "" for j in range(1, len(ranked))]
        lines.append(f"| {_escape(row.name)} | " + " | ".join(shown) + " |")
    return [*lines, ""]


def _cell(comparison: Comparison) -> str:
    p = comparison.p_adjusted
    shown = "" if p is None else " p < 0.001" if p < 0.001 else f" p {p:.3f}"
    return delta(comparison) + shown


def to_csv(tables: list[Table]) -> str:
    """`leaderboard.csv`: one line a row, full precision."""
    columns = ["dataset", "split", "split_digest", "tested_on", "rank", "method", "preset", "changed", "folds_done",
               "folds", "complete"]  # fmt: skip
    columns += [f"{m}_{kind}" for m in METRICS for kind in ("mean", "sd")]
    columns += [f"auc_minus_{name}" for name in BASELINES]
    columns += ["device", "device_hours", "parameters", *(f"paper_{name}" for name in MEANS)]
    columns += [*OF_THE_ROW, *(f"{name}_{what}" for name in BASELINES for what in OF_A_COMPARISON)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            writer.writerow({key: inert(value) for key, value in _flat(table, row).items()})
    return text.getvalue()


def _flat(table: Table, row: Row) -> dict[str, Any]:
    cost = [record.cost for record in row.records]
    flat: dict[str, Any] = {
        "dataset": table.dataset,
        "split": table.split_name,
        "split_digest": table.split_digest,
        "tested_on": table.tested_on.dataset if table.tested_on else "",
        "rank": row.rank,
        "method": row.method,
        "preset": row.preset,
        "changed": " ".join(f"{k}={v}" for k, v in row.changed.items()),
        "folds_done": row.done,
        "folds": row.folds,
        "complete": row.complete,
        "device": cost[0].get("device"),
        "device_hours": sum(c.get("device_hours") or 0.0 for c in cost),
        "parameters": cost[0].get("parameters"),
        **{f"paper_{name}": paper_values(row).get(name) for name in MEANS},
    }
    for metric in METRICS:
        value = row.values[metric]
        flat[f"{metric}_mean"] = value.mean if value else None
        flat[f"{metric}_sd"] = value.sd if value else None
    for name in BASELINES:
        difference = row.against.get(name)
        flat[f"auc_minus_{name}"] = difference.mean if difference else None
    for name in BASELINES:
        comparison = row.comparisons.get(name)
        for what in OF_A_COMPARISON:
            flat[f"{name}_{what}"] = getattr(comparison, what, None)
    return {**flat, **_judged(row)}


def _judged(row: Row) -> dict[str, Any]:
    """OF_THE_ROW: what the statistics say of a row by itself."""
    pairs = (row.tie, row.rank_interval, row.auc_interval)
    tie, places, interval = (pair or (None, None) for pair in pairs)
    published, reported = row.published, row.paper
    values = (
        *tie, *places, *interval, row.spread.folds, row.spread.seeds,
        published and published.place, published and published.low, published and published.high,
        reported and reported.tag, reported and reported.inside, ", ".join(row.marks),
    )  # fmt: skip
    return dict(zip(OF_THE_ROW, values, strict=True))


def pairs_to_csv(tables: list[Table]) -> str:
    """`pairwise.csv`: one line for every two ranked rows of a table."""
    columns = ["table", "first", "second", "difference", *OF_A_COMPARISON, "how"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for table in tables:
        for pair in table.pairwise:
            names = (table.title, table.rows[pair.first].name, table.rows[pair.second].name)
            line = dict(zip(columns, names, strict=False))
            line |= {name: getattr(pair.comparison, name) for name in columns[3:]}
            writer.writerow({key: inert(value) for key, value in line.items()})
    return text.getvalue()
