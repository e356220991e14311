"""The figures of a task's page and of a run's: what is compared, drawn."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from cxrbench.leaderboard.collect import Row
from cxrbench.leaderboard.over_data_sets import OverDataSets
from cxrbench.leaderboard.site.curves import GRID, LabelCurves, Reliability
from cxrbench.leaderboard.site.drawing import (
    DASHES,
    INK,
    MARKERS,
    MUTED,
    SERIES,
    axes,
    clean,
    kept_axes,
    svg,
)

MARGIN = 0.02
LINE = 0.17  # inches of a line of a legend


def _square(entries: int) -> AbstractContextManager[Axes]:
    """Axes of a fixed size under a legend of so many entries."""
    return axes(3.8, 3.55 + _room(entries), top=_room(entries))


def roc(curves: Mapping[str, LabelCurves]) -> str:
    """True positive rate over false positive rate of a label, a line a row."""
    with _square(len(curves)) as ax:
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
        for k, (name, curve) in enumerate(curves.items()):
            ax.fill_between(
                GRID, curve.roc.low, curve.roc.high, color=SERIES[k], alpha=0.16, linewidth=0
            )
            ax.plot(GRID, curve.roc.y, color=SERIES[k], linestyle=DASHES[k], label=clean(name))
        ax.set(xlabel="false positive rate", ylabel="true positive rate")
        ax.set(xlim=(-MARGIN, 1 + MARGIN), ylim=(-MARGIN, 1 + MARGIN))
        _legend(ax, len(curves))
        return svg(ax)


def precision_recall(curves: Mapping[str, LabelCurves]) -> str:
    """Precision over recall of a label, a line a row; the mark is precision at 95 % recall."""
    with _square(len(curves)) as ax:
        for k, (name, curve) in enumerate(curves.items()):
            ax.fill_between(
                GRID, curve.pr.low, curve.pr.high, color=SERIES[k], alpha=0.16, linewidth=0
            )
            ax.plot(GRID, curve.pr.y, color=SERIES[k], linestyle=DASHES[k], label=clean(name))
            ax.plot([0.95], [curve.precision_at_95], MARKERS[k], color=SERIES[k], markersize=5)
        share = float(np.mean([curve.prevalence for curve in curves.values()]))
        ax.axhline(share, color=MUTED, linewidth=0.8, linestyle=":")
        ax.axvline(0.95, color=MUTED, linewidth=0.8, linestyle=":")
        ax.set(xlabel="recall", ylabel="precision")
        ax.set(xlim=(-MARGIN, 1 + MARGIN), ylim=(-MARGIN, 1 + MARGIN))
        _legend(ax, len(curves))
        return svg(ax)


def calibration(found: Mapping[str, Reliability]) -> str:
    """Share of positives over mean probability, a line a row; the diagonal is perfect."""
    with _square(len(found)) as ax:
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
        for k, (name, each) in enumerate(found.items()):
            reach = np.clip([each.share - each.low, each.high - each.share], 0, None)
            ax.errorbar(
                each.probability, each.share, yerr=reach, color=SERIES[k], fmt=MARKERS[k], markersize=3.5,
                linestyle=DASHES[k], linewidth=1.2, ecolor=(SERIES[k], 0.45), elinewidth=0.7,
                label=clean(name),
            )  # fmt: skip
        ax.set(xlabel="mean probability", ylabel="share that is positive")
        ax.set(xlim=(-MARGIN, 1 + MARGIN), ylim=(-MARGIN, 1 + MARGIN))
        _legend(ax, len(found))
        return svg(ax)


def _columns(entries: int) -> int:
    return 1 if entries < 4 else 2


def _room(entries: int) -> float:
    """Inches that a legend above the axes needs."""
    return 0.08 + LINE * -(-entries // _columns(entries))


def _legend(ax: object, entries: int) -> None:
    if entries:
        ax.legend(  # type: ignore[attr-defined]
            loc="lower left", bbox_to_anchor=(-0.14, 1.0), ncols=_columns(entries),
            borderaxespad=0.2, columnspacing=1, handlelength=2.4, labelspacing=0.25,
        )  # fmt: skip


def fold_scatter(rows: Sequence[Row]) -> str:
    """The AUC of every fold and seed, a line a row; the bar is the mean."""
    count = len(rows)
    with axes(5.2, 0.95 + 0.27 * count, left=2.0) as ax:
        for place, row in enumerate(rows):
            for record in row.records:
                auc = record.scores["macro"].get("auc")
                if auc is not None:
                    # Seeds lie a little apart, so that each point is seen.
                    shift = 0.16 * ((record.seed % 3) - 1) if _seeds(row) > 1 else 0.0
                    ax.plot(
                        [auc], [place + shift], MARKERS[record.seed % len(MARKERS)], markersize=4.5,
                        color=SERIES[0], alpha=0.75, markeredgewidth=0,
                    )  # fmt: skip
            value = row.values["auc"]
            if value is not None:
                ax.plot([value.mean] * 2, [place - 0.32, place + 0.32], color=INK, linewidth=1.6)
        ax.set_yticks(range(count), [clean(row.name) for row in rows])
        ax.set(xlabel="macro AUC of one fold", ylim=(count - 0.5, -0.5))
        ax.grid(visible=False, axis="y")
        return svg(ax)


def _seeds(row: Row) -> int:
    return len({record.seed for record in row.records})


def pareto(points: Sequence[tuple[str, float, float]], cost: str) -> str:
    """AUC over a cost on a logarithmic axis: (name, cost, AUC); the line joins what nothing beats."""
    with axes(4.6, 3.6) as ax:
        best = frontier(points)
        if len(best) > 1:
            edge = sorted((points[i][1], points[i][2]) for i in best)
            ax.step(*zip(*edge, strict=True), where="post", color=MUTED, linewidth=0.9)
        for i, (name, spent, auc) in enumerate(points):
            first = i in best
            ax.plot(
                [spent],
                [auc],
                "o" if first else "x",
                color=SERIES[0] if first else MUTED,
                markersize=5.5,
            )
            ax.annotate(
                clean(name, 24), (spent, auc), xytext=(5, 3), textcoords="offset points",
                fontsize=7.5 if first else 7, color=INK if first else MUTED,
            )  # fmt: skip
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        low, high = min(p[1] for p in points), max(p[1] for p in points)
        # Room on the right for the last name.
        spread = max(math.log10(high / low), 0.3)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if spread < 2 else (1,)))
        ax.set_xlim(low / 10 ** (0.1 * spread), high * 10 ** (0.55 * spread))
        ax.set(xlabel=cost, ylabel="macro AUC")
        return svg(ax)


def frontier(points: Sequence[tuple[str, float, float]]) -> set[int]:
    """The points that none beats in AUC at the same or a smaller cost."""
    return {
        i
        for i, (_, spent, auc) in enumerate(points)
        if not any(
            other[1] <= spent and other[2] >= auc and (other[1] < spent or other[2] > auc)
            for other in points
        )
    }


def critical_difference(found: OverDataSets) -> str:
    """Demšar's diagram: names at their mean ranks, and bars over those that cannot be told apart."""
    ranks, count = found.mean_ranks, len(found.methods)
    groups = found.groups or []
    half = (count + 1) // 2
    low, high = 1.0, float(count)
    with axes(8.2, 0.9 + 0.2 * len(groups) + 0.22 * half, left=2.4, right=2.4) as ax:
        ax.set(xlim=(low - 0.1, high + 0.1), ylim=(-len(groups) * 0.8 - half - 0.6, 0.0))
        ax.xaxis.tick_top()
        ax.xaxis.set_major_locator(MaxNLocator(min(count, 10), integer=True))
        ax.set_yticks([])
        ax.grid(visible=False)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        ax.spines["top"].set_visible(True)
        for k, (first, last) in enumerate(groups):
            height = -0.5 - 0.8 * k
            ax.plot(ranks[[first, last]] + [-0.04, 0.04], [height] * 2, color=INK, linewidth=3.5)
        for place, (name, rank) in enumerate(zip(found.methods, ranks, strict=True)):
            left = place < half
            level = place if left else count - 1 - place
            height = -0.8 * len(groups) - 0.8 - level
            edge = low - 0.1 if left else high + 0.1
            ax.plot([rank, rank, edge], [0, height, height], color=MUTED, linewidth=0.9)
            ax.annotate(
                f"{clean(name)} {rank:.2f}", (edge, height), xytext=(-4 if left else 4, 0),
                textcoords="offset points", ha="right" if left else "left", va="center", fontsize=8,
                annotation_clip=False,
            )  # fmt: skip
        return svg(ax)


def recall_reached(reached: Mapping[str, Sequence[float]]) -> str:
    """Recall on the test part at validation's threshold, a line a row, a mark a label; 0.95 was asked for."""
    with axes(5.2, 0.95 + 0.27 * len(reached), left=2.0) as ax:
        ax.axvline(0.95, color=INK, linewidth=1.0, linestyle=":")
        for place, values in enumerate(reached.values()):
            ax.plot(values, [place] * len(values), "o", markersize=4.5, color=SERIES[0], alpha=0.6, markeredgewidth=0)  # fmt: skip
        ax.set_yticks(range(len(reached)), [clean(name) for name in reached])
        ax.set(xlabel="recall on the test part", ylim=(len(reached) - 0.5, -0.5))
        ax.grid(visible=False, axis="y")
        return svg(ax)


def robustness(lines: Mapping[str, Sequence[tuple[float, float]]], unit: str) -> str:
    """Macro AUC over the level of a disturbance, a line a row."""
    with _square(len(lines)) as ax:
        ax.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
        for k, (name, line) in enumerate(lines.items()):
            ax.plot(
                *zip(*line, strict=True), color=SERIES[k], linestyle=DASHES[k], marker=MARKERS[k],
                markersize=4, label=clean(name),
            )  # fmt: skip
        ax.set(xlabel=unit, ylabel="macro AUC")
        _legend(ax, len(lines))
        return svg(ax)


def learning_curves(epochs: Sequence[float], lines: Mapping[str, Sequence[float]]) -> str:
    """Columns of a training's log over its epochs; what is not finite is a gap."""
    with kept_axes(4.2, 2.7) as ax:
        for k, (name, values) in enumerate(list(lines.items())[: len(SERIES)]):
            marker = "o" if len(epochs) < 20 else ""
            ax.plot(
                epochs, values, color=SERIES[k], linestyle=DASHES[k], marker=marker, markersize=2.5,
                label=clean(name, 22),
            )  # fmt: skip
        ax.autoscale()
        # Ticks are most of a figure's time, and of these there are many.
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel("epoch")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)
        return svg(ax)
