# SPDX-License-Identifier: MIT
"""From many sound runs of one step count to their null."""

import math
from collections.abc import Sequence

import numpy as np

from ascedfast.calibration.table import EARLIEST, LEAST_RUNS, SURVIVAL, Null
from ascedfast.reference_scores import LEAST_SCORE, Gumbel

EULER = 0.5772156649015329


def gumbel(largest: np.ndarray) -> Gumbel:
    """By the method of moments. largest: float [n], the logarithm of each sample's largest score.

    Raises: ValueError where all are the same: nothing moves in such runs, or they are one run."""
    scale = float(np.std(largest, ddof=1)) * math.sqrt(6) / math.pi
    if not scale > 0:
        raise ValueError("every run has the same largest score: are they all of one seed?")
    return Gumbel(float(np.mean(largest)) - EULER * scale, scale)


def fit(
    logsnr: Sequence[float],
    grid: Sequence[int],
    profile: Sequence[float],
    still: np.ndarray,
    jump: np.ndarray,
    x0_noise: float = 0.0,
) -> Null:
    """The null of n runs.

    Args:
        logsnr: of the K + 1 predictions. grid: sizes of the location axes. profile: K mean changes.
        still, jump: float [n], each run's largest scores; jump 0 throughout where the window is too short for one.
        x0_noise: of ``Null``.
    Raises: ValueError for too few runs, or runs with NaN.
    """
    runs = len(still)
    if runs < LEAST_RUNS:
        raise ValueError(f"{runs} runs are too few for a table: at least {LEAST_RUNS}")
    has_jump = len(profile) > 2
    scores = [np.log(np.maximum(one, LEAST_SCORE)) for one in ((still, jump) if has_jump else (still,))]
    bad = sum(~np.isfinite(one) for one in scores).astype(bool)
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {runs} runs hold NaN or Inf")
    fits = [gumbel(one) for one in scores]
    severity = np.max([(one - by.location) / by.scale for one, by in zip(scores, fits, strict=True)], axis=0)
    levels = np.quantile(severity, [1 - share for share in SURVIVAL])
    beyond = severity[severity > levels[-1]] - levels[-1]
    if not len(beyond):
        raise ValueError("a tenth of the runs share their largest score: do these runs move at all?")
    return Null(
        tuple(max(EARLIEST, value) for value in logsnr),
        tuple(grid),
        tuple(float(value) for value in profile),
        fits[0],
        fits[1] if has_jump else None,
        tuple(float(level) for level in levels),
        float(beyond.mean()),
        runs,
        x0_noise,
    )
