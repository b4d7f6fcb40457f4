# SPDX-License-Identifier: MIT
"""Baselines (b) and (c): the statistics of the detector in plain torch, as one would write them, and compiled.

Smoothing, median, MAD, threshold and union; no labelling, which plain torch has no operator for.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def flags(maps: Tensor, mad_scale: float = 3.0, mad_floor: float = 0.5 / 127.5, sigma: float = 2.0) -> Tensor:
    """Locations above the robust threshold in any map: float32 [K, H, W] -> bool [H, W]."""
    radius = min(int(4 * sigma + 0.5), *maps.shape[-2:])
    offsets = torch.arange(-radius, radius + 1, device=maps.device)
    taps = torch.exp(-0.5 / (sigma * sigma) * offsets**2)
    taps = taps / taps.sum()
    smooth = _folded(maps[:, None], radius)
    smooth = F.conv2d(F.conv2d(smooth, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[:, 0]
    values = smooth.flatten(1)
    middle = values.median(1, keepdim=True).values  # the lower of two, as torch has it
    deviation = (values - middle).abs().median(1, keepdim=True).values
    return (values > middle + mad_scale * 1.4826 * deviation.clamp(min=mad_floor)).any(0).view(maps.shape[1:])


def compiled(quick: bool) -> Callable[..., Tensor]:
    """``flags`` under torch.compile; with the eager backend where only the harness is tried out."""
    return torch.compile(flags, fullgraph=True, dynamic=False, backend="eager" if quick else "inductor")


def _folded(maps: Tensor, radius: int) -> Tensor:
    """scipy's "reflect" on both axes: the border itself is repeated, as no mode of torch's pad does."""
    for dim in (-2, -1):
        before, after = maps.narrow(dim, 0, radius), maps.narrow(dim, maps.shape[dim] - radius, radius)
        maps = torch.cat([before.flip(dim), maps, after.flip(dim)], dim)
    return maps
