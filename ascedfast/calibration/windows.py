# SPDX-License-Identifier: MIT
"""The changes of one run that are scored: those of the steps before T_c, smoothed."""

import math

import torch
from torch import Tensor

from ascedfast import reference
from ascedfast.report import RowReport

BLUR = 1 / 32
"""Standard deviation of the smoothing, in sides of the grid (of sqrt(H*W))."""


def smoothed(row: RowReport) -> Tensor:
    """The changes of a row's window, float32 [K, *grid], smoothed over its last two axes.

    Raises: ValueError where the run was left alone, or a step saw NaN or Inf."""
    if row.plan.reason is not None:
        raise ValueError(f"a run of {row.steps} steps cannot be watched: {row.plan.reason}")
    if row.finite is not None and not bool(row.finite):
        raise ValueError(f"the run of seed {row.seed} holds NaN or Inf: a pipeline that gives sound runs is needed")
    maps = [d.float() for step, d in row.dynamics if step < row.plan.t_c]
    if len(maps) != row.plan.t_c - 1:
        raise ValueError(
            f"the changes from the first step on are needed: watch with window_start=0 (row of seed {row.seed})"
        )
    maps = torch.stack(maps)
    sigma = BLUR * math.sqrt(maps.shape[-2] * maps.shape[-1])
    return reference.gaussian_blur(maps, sigma, (-2, -1))
