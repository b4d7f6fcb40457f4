# SPDX-License-Identifier: MIT
"""Baselines (b) and (c): the ops in plain torch, as one would write them, and compiled.

No labelling, which plain torch has no operator for; noise is torch's own, without seeds a row.
"""

from collections.abc import Callable
from typing import Any

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


def step(x: Tensor, m: Tensor, x0_prev: Tensor, a: float, b: float, delta: float) -> tuple[Tensor, Tensor, Tensor]:
    """A flow-matching step, x0_hat and its dynamics: [R, C, H, W] -> the next state, float32 x0_hat, d [R, H, W]."""
    wide, output = x.float(), m.float()
    x0 = a * wide + b * output
    return (wide + delta * output).to(x.dtype), x0, (x0 - x0_prev).abs().mean(1)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """bool [R, H, W] grown by a square."""
    return F.max_pool2d(mask[:, None].half(), 2 * radius + 1, 1, radius)[:, 0] > 0


def renoise(x: Tensor, mask: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noised prediction inside the mask, [R, C, H, W]; alpha, sigma [R]."""
    level = (slice(None), None, None, None)
    return torch.where(mask[:, None], (alpha[level] * x0 + sigma[level] * torch.randn_like(x0)).to(x.dtype), x)


def fill(entry: Tensor, mask: Tensor, current: Tensor) -> Tensor:
    """The current value inside the mask, [R, C, H, W]."""
    return torch.where(mask[:, None], current, entry)


def compiled(function: Callable[..., Any], quick: bool) -> Callable[..., Any]:
    """A function of this file under torch.compile; with the eager backend where only the harness is tried out."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend="eager" if quick else "inductor")


def _folded(maps: Tensor, radius: int) -> Tensor:
    """scipy's "reflect" on both axes: the border itself is repeated, as no mode of torch's pad does."""
    for dim in (-2, -1):
        before, after = maps.narrow(dim, 0, radius), maps.narrow(dim, maps.shape[dim] - radius, radius)
        maps = torch.cat([before.flip(dim), maps, after.flip(dim)], dim)
    return maps
