# SPDX-License-Identifier: MIT
"""A chart of the saved results for the README: how each group of measurements stands to its bar."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from benchmarks.results import Record
from benchmarks.table import badness

MET, MISSED = "#2a7f62", "#b4462f"
LEAST, MOST = 0.05, 20.0
"""Ends of the axis: bars beyond them are cut."""


def draw(records: Sequence[Record], path: Path) -> Path:
    """One bar a measurement that has a value and a bar: value over bar (bar over value where more is better), so that
    left of the line at 1 is met. P7's grid shows its farthest point for each plane."""
    held = _thinned([entry for entry in records if entry["bar"] is not None and entry["value"] is not None])
    if not held:
        raise ValueError("no record has a value and a bar: nothing to draw")
    ratios = [min(MOST, max(LEAST * 1.02, badness(entry))) for entry in held]
    figure, axes = plt.subplots(figsize=(8, 0.2 * len(held) + 1.2))
    axes.barh(
        range(len(held)),
        [ratio - LEAST for ratio in ratios],
        left=LEAST,
        color=[MET if entry["met"] else MISSED for entry in held],
    )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(LEAST, MOST)
    axes.set_yticks(range(len(held)), [entry["id"] for entry in held], fontsize=7)
    axes.invert_yaxis()
    axes.set_ylim(len(held) - 0.4, -0.6)
    axes.set_xlabel("measured over its bar (1: the bar; further left is better)")
    axes.set_title(f"{held[0]['gpu']}, torch {held[0]['torch']}, source {held[0]['source_sha256'][:8]}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _thinned(records: list[Record]) -> list[Record]:
    kept: dict[str, Record] = {}
    for entry in records:
        key = entry["id"].rpartition("x")[2] if entry["id"].startswith("P7/") else entry["id"]
        if key not in kept or badness(entry) > badness(kept[key]):
            kept[key] = entry
    return list(kept.values())
