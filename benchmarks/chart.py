# SPDX-License-Identifier: MIT
"""A chart of the saved results for the README: how each group of measurements stands to its bar."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks.results import Record
from benchmarks.source import source_sha256
from benchmarks.table import badness
from benchmarks.targets import PARITY, RIVALED

ROWS = (
    "P1 fused by default",
    "P1 beside the stock step",
    "P1 linear form",
    "P1 mode calibrated",
    "P2 runs",
    "P2 ops against torch",
    "P3 copy bandwidth",
    "P4 whole pipelines",
    "P5 syncs and launches",
    "P6 memory",
    "P7 rows and planes",
)
INCHES, DPI = (9.0, 5.2), 100
LEAST, MOST = 0.02, 4.0
"""Ends of the axis: what lies beyond them is drawn at them."""
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4)
MET, MISSED = ("#0072b2", "o"), ("#d55e00", "X")
"""Colour and marker. Blue and vermilion differ for every eye."""
LEVELS = (0.0, 0.18, -0.18, 0.35, -0.35)
"""Heights in a row at which dots stand, so that neighbours do not hide each other."""
APART = 1.08
"""Dots of one height whose ratios differ by less overlap."""


class Row(NamedTuple):
    """A group of targets that have a bar."""

    name: str
    records: list[Record]

    @property
    def measured(self) -> list[Record]:
        """Those with a value, the one farthest beyond its bar last."""
        return sorted((entry for entry in self.records if entry["value"] is not None), key=_beyond)

    @property
    def score(self) -> str:
        """As "13 of 15 met, 1 not measured"."""
        blank = len(self.records) - len(self.measured)
        met = f"{sum(bool(entry['met']) for entry in self.records)} of {len(self.records)} met"
        return met + f", {blank} not measured" * bool(blank)

    @property
    def worst(self) -> Record | None:
        """The missed record farthest beyond its bar."""
        return next((entry for entry in reversed(self.measured) if not entry["met"]), None)


def rows(records: Sequence[Record]) -> list[Row]:
    """The rows of the chart: every record with a bar in one of them, rows without records left out."""
    found: dict[str, list[Record]] = {}
    for entry in records:
        if entry["bar"] is not None:
            found.setdefault(_row_of(entry["id"]), []).append(entry)
    return [Row(name, found[name]) for name in sorted(found, key=ROWS.index)]


def _row_of(id: str) -> str:
    group, first, *others = id.split("/")
    if group == "P1":
        if "calibrated" in others:
            return "P1 mode calibrated"
        return ROWS[2] if "linear" in others else ROWS[0] if first in PARITY else ROWS[1]
    if group == "P2":
        return "P2 ops against torch" if first in RIVALED else "P2 runs"
    return next(name for name in ROWS if name.startswith(group))


def draw(records: Sequence[Record], path: Path) -> Path:
    """One dot a measurement at its value over its bar (bar over value where more is better), so that left of the line
    at 1 is met; the worst one missed in each row is named."""
    found = rows(records)
    if not any(row.measured for row in found):
        raise ValueError("no record has a value and a bar: nothing to draw")
    figure = plt.figure(figsize=INCHES)
    axes = figure.add_axes((0.24, 0.125, 0.59, 0.785))
    axes.set(xscale="log", xlim=(LEAST, MOST), ylim=(len(found) - 0.45, -0.55))
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    signs = {LEAST: "≤ ", MOST: "≥ "}
    axes.set_xticks(TICKS, [signs.get(tick, "") + f"{tick:g}".removeprefix("0") for tick in TICKS], fontsize=11)
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.axvspan(LEAST, 1, color="#f0f5f8", zorder=0)
    axes.axvline(1, color="black", linewidth=1.3, zorder=1)
    for place, row in enumerate(found):
        axes.axhline(place + 0.5, color="white", linewidth=3, zorder=0.5)
        _draw_row(axes, place, row)
    axes.set_xlabel("measured over its bar (P3: bar over measured); left of 1 is met", fontsize=11)
    figure.text(0.012, 0.94, _title(records), fontsize=11.5, weight="bold")
    for (colour, marker), name, x in ((MET, "met", 0.845), (MISSED, "missed", 0.91)):
        figure.text(x + 0.012, 0.033, name, fontsize=11)
        figure.add_artist(
            plt.Line2D([x], [0.044], color=colour, marker=marker, markersize=7.5, transform=figure.transFigure)
        )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _title(records: Sequence[Record]) -> str:
    """GPU, torch and source; "older code" where the source at hand is another."""
    first = records[0]
    sources = list(dict.fromkeys(entry["source_sha256"] for entry in records))
    others = " and others" * (len(sources) > 1)
    older = " (older code)" * (sources != [source_sha256()])
    return f"{first['gpu']}, torch {first['torch']}, source {sources[0][:8]}{others}{older}"


def _draw_row(axes: Axes, place: int, row: Row) -> None:
    outside = axes.get_yaxis_transform()
    axes.text(-0.02, place - 0.02, row.name, fontsize=11.5, ha="right", va="bottom", transform=outside)
    axes.text(-0.02, place + 0.02, row.score, fontsize=9.5, ha="right", va="top", color="#444444", transform=outside)
    last = dict.fromkeys(LEVELS, 0.0)
    for entry in row.measured:
        ratio = _ratio(entry)
        level = next((level for level in LEVELS if ratio >= last[level] * APART), min(LEVELS, key=last.__getitem__))
        last[level] = ratio
        colour, marker = MET if entry["met"] else MISSED
        style = {"s": 52 if entry["met"] else 66, "linewidth": 0.6, "edgecolor": "white", "clip_on": False}
        axes.scatter(ratio, place + level, color=colour, marker=marker, zorder=3 + (not entry["met"]), **style)
    if row.worst:
        _name(axes, place, row.worst)


def _name(axes: Axes, place: int, entry: Record) -> None:
    """What was measured, to the right of its dot; nothing of its row lies there. In two lines if it is long."""
    name = entry["id"].partition("/")[2]
    style = {"xytext": (8, 0), "textcoords": "offset points", "fontsize": 10, "va": "center", "color": "#8a3c00"}
    text = axes.annotate(name, (_ratio(entry), place), annotation_clip=False, **style)
    if text.get_window_extent().x1 > axes.figure.bbox.x1:
        cuts = [i + 1 for i, sign in enumerate(name) if sign in "/ "]
        cut = min(cuts, key=lambda cut: max(cut, len(name) - cut), default=len(name))
        text.set_text(f"{name[:cut]}\n{name[cut:]}")
        text.set_linespacing(0.95)


def _beyond(entry: Record) -> float:
    ratio = badness(entry)
    return math.inf if math.isnan(ratio) else ratio


def _ratio(entry: Record) -> float:
    """Where the dot stands."""
    return min(MOST, max(LEAST, _beyond(entry)))
