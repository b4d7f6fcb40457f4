# SPDX-License-Identifier: MIT
"""What a trained model's folder says about its training: figures, loss curve, files written as a whole."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

CURVE_POINTS = 400
FIGURES_FILE = "training.json"


def draw_loss(curve: list[tuple[int, float, float]], title: str, path: Path) -> None:
    """Loss over iterations, on a logarithmic axis."""
    matplotlib.use("agg")
    figure = Figure(figsize=(6, 3), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot([step for step, *_ in curve], [loss for *_, loss in curve], linewidth=1)
    axes.set(yscale="log", xlabel="iteration", ylabel="loss", title=title)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path)


def thin(curve: list[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """At most CURVE_POINTS points, each the mean of its stretch, so that the curve keeps its level."""
    if len(curve) <= CURVE_POINTS:
        return curve
    parts = np.array_split(np.array(curve, dtype=float), CURVE_POINTS)
    return [(int(part[-1, 0]), round(float(part[-1, 1]), 2), float(part[:, 2].mean())) for part in parts]


def tenths(losses: list[float]) -> tuple[float, float]:
    """Mean loss of the first and of the last tenth of the run."""
    tenth = max(1, len(losses) // 10)
    return float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))


def write_atomically(path: Path, text: str) -> None:
    """So that a run that is cut off leaves the old file rather than half of the new one."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
