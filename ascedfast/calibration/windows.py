# SPDX-License-Identifier: MIT
"""The changes of a run that are scored: those from the first step to T_c, smoothed."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ascedfast import _backend, reference
from ascedfast.device_guard import on_device_of

if TYPE_CHECKING:
    from ascedfast.report import RowReport

BLUR = 1 / 32
"""Standard deviation of the smoothing, in sides of the grid (of sqrt(H*W))."""


def sigma_of(grid: tuple[int, ...]) -> float:
    """Standard deviation of the smoothing on a grid that ends in (H, W), in its locations."""
    return BLUR * math.sqrt(grid[-2] * grid[-1])


def smoothed(d: Tensor, *, backend: str = "auto") -> Tensor:
    """d: float32 [..., H, W], changes, not negative; smoothed along H and W, the same shape. Raises: BackendError."""
    sigma = sigma_of(tuple(d.shape))
    if _backend.pick("temporal_scores", d.device, backend) != "triton" or d.dtype != torch.float32 or not d.numel():
        return reference.gaussian_blur(d, sigma, (-2, -1))
    from ascedfast.kernels import blur

    planes = d.reshape(1, -1, 1, *d.shape[-2:]).contiguous()
    with on_device_of(d):
        weights = blur.weights_on(sigma, d.device)
        smooth = blur.Blur(tuple(planes.shape), planes.stride(), len(weights) // 2)
        return smooth(planes, weights).view(d.shape)


def window_of(row: "RowReport") -> Tensor:
    """The smoothed changes of a row's window, float32 [K, *grid].

    Raises: ValueError where the run was left alone, its first steps were not recorded, or a step saw NaN or Inf."""
    if row.plan.reason is not None:
        raise ValueError(f"a run of {row.steps} steps cannot be watched: {row.plan.reason}")
    if row.finite is not None and not bool(row.finite):
        raise ValueError(f"the run of seed {row.seed} holds NaN or Inf")
    if row.executed < row.plan.t_c:
        raise ValueError(f"the run of seed {row.seed} has not reached T_c: {row.executed} of {row.plan.t_c} steps")
    if row.config.channels != "mean":
        raise ValueError(f"mode {row.config.mode!r} records the largest change of the channels, not the mean one")
    maps = [d.float() for step, d in row.dynamics if step < row.plan.t_c]
    if len(maps) != row.plan.t_c - 1:
        raise ValueError(
            f"the changes from the first step on are needed: watch with window_start=0 (row of seed {row.seed})"
        )
    return smoothed(torch.stack(maps))
