# SPDX-License-Identifier: MIT
"""The truth of each op in plain torch, on any device. Kernels are tested against this file, this file against
independent oracles (numpy, scipy). Written to be read: no in-place tricks, one rounding an operation. What
``temporal_scores`` and ``temporal_severity`` consist of lies in ``reference_scores``.

Shapes: R rows (requests), C channels, ``*grid`` the location axes ((H, W), or (D, H, W)), K maps of a window.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ascedfast.noise import Purpose, normal
from ascedfast.reference_scores import temporal_scores, temporal_severity  # noqa: F401 - an op's truth is found here

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation for a Gaussian."""


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """[R] or 0-dim coefficients, shaped to broadcast over [R, C, *grid]."""
    return value.to(like.dtype).reshape(-1, *([1] * (like.dim() - 1)))


def step_dynamics(
    x: Tensor,
    m: Tensor,
    a: Tensor,
    b: Tensor,
    x0_prev: Tensor | None,
    clip: float | None,
    reduce: str,
    patch: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """x0_hat = a*x + b*m, and d = reduce over channels of |x0_hat - x0_prev|.

    Args:
        x, m: [R, C, *grid], any float dtype; a, b: float32 [R] or 0-dim.
        x0_prev: [R, C, *grid], the previous step's x0_hat, or None at the first step.
        clip: x0_hat is clamped to [-clip, clip]; NaN stays NaN.
        reduce: "mean" or "max", see ``dynamics``. patch: d holds means of patches, see ``patch_means``.
    Returns: x0_hat [R, C, *grid] and d [R, *patch_grid(grid, patch)] or None, float32 (float64 where x is). Where x or
        m is not finite x0_hat is NaN: a clip would hide an Inf.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, m = x.to(dtype), m.to(dtype)
    x0 = _rows(a, x) * x + _rows(b, x) * m
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
    zero = torch.add(x - x, m, alpha=0)  # NaN where x or m is not finite
    x0 = x0 - zero  # a difference: a sum would lose the sign of a zero
    return x0, None if x0_prev is None else patch_means(dynamics(x0, x0_prev.to(dtype), reduce), patch)


CHANNEL_GROUP = 16
"""Channels that ``dynamics`` adds as one tree."""


def dynamics(x0: Tensor, x0_prev: Tensor, reduce: str) -> Tensor:
    """|x0 - x0_prev| reduced over axis 1: [R, C, *grid] -> [R, *grid]. For DDIM without clipping this is
    (sigma'/alpha') * |eps' - eps|, for flow s' * |v' - v|: the weighted score dynamics of arXiv 2503.16218, Eq. 4,
    without the schedule's own drift.

    "mean": in groups of 16 channels, padded with zeros to a power of two, the first half is added to the second until
    one is left; groups are added in order; the sum is multiplied by 1/C. A fixed order, so that the bits depend neither
    on the batch nor on the layout in memory.
    """
    change = (x0 - x0_prev).abs()
    channels = change.shape[1]
    if reduce == "max":
        return change.amax(1)
    total = _halved(change[:, :CHANNEL_GROUP].unbind(1))
    for first in range(CHANNEL_GROUP, channels, CHANNEL_GROUP):
        total = total + _halved(change[:, first : first + CHANNEL_GROUP].unbind(1))
    return total * (1.0 / channels)


def patch_grid(grid: Sequence[int], patch: int) -> tuple[int, ...]:
    """Sizes of a grid of patch x patch squares of the (H, W) plane; the last ones may be cut off."""
    *depth, height, width = grid
    return (*depth, -(-height // patch), -(-width // patch))


def patch_means(d: Tensor, patch: int) -> Tensor:
    """Means over patch x patch squares of the (H, W) plane; a square that the border cuts off has the mean of the
    locations that it holds.

    Args: d: magnitudes [R, *grid], any float dtype. patch: side in locations, a power of two.
    Returns: [R, *patch_grid(grid, patch)]. The values of a square in raster order, padded with zeros, are added by
        halving (the first half to the second), then divided by the number of its locations: a fixed order. NaN stays.
    """
    if patch == 1:
        return d
    height, width = d.shape[-2:]
    *outer, down, across = (d.shape[0], *patch_grid(d.shape[1:], patch))
    padded = F.pad(d, (0, across * patch - width, 0, down * patch - height))
    squares = padded.reshape(*outer, down, patch, across, patch).movedim((-3, -1), (0, 1)).flatten(0, 1)
    lines, columns = (
        (size - patch * torch.arange(count, device=d.device)).clamp(max=patch)
        for size, count in ((height, down), (width, across))
    )
    return _halved(squares.unbind(0)) / (lines[:, None] * columns).to(d.dtype)


def _halved(parts: Sequence[Tensor]) -> Tensor:
    """The sum by a halving tree. Zeros change no sum of magnitudes: a part without a partner goes on as it is."""
    while len(parts) > 1:
        half = 1 << ((len(parts) - 1).bit_length() - 1)
        paired = [low + high for low, high in zip(parts, parts[half:], strict=False)]
        parts = [*paired, *parts[len(paired) : half]]
    return parts[0]


def gaussian_weights(sigma: float) -> np.ndarray:
    """scipy.ndimage's taps, truncated at 4 sigma: float64 [2*radius + 1]."""
    radius = int(4.0 * sigma + 0.5)
    if radius == 0:
        return np.ones(1)
    taps = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    return taps / taps.sum()


def _reflected(size: int, radius: int, device: torch.device) -> Tensor:
    """Source index for positions -radius .. size-1+radius, half-sample symmetric, folded as often as needed."""
    position = torch.arange(-radius, size + radius, device=device) % (2 * size)
    return torch.where(position < size, position, 2 * size - 1 - position)


def gaussian_blur(x: Tensor, sigma: float, dims: Sequence[int]) -> Tensor:
    """scipy.ndimage.gaussian_filter (mode "reflect") along ``dims`` in that order, bit for bit on x86-64.

    Each axis accumulates in float64, centre first, then the pairs from the farthest to the nearest, a rounding after
    every product and sum, and is cast to x's dtype. x: float, any shape; sigma in locations; 0 returns x.
    """
    if sigma <= 0:
        return x
    weights = gaussian_weights(sigma)
    radius = len(weights) // 2
    for dim in dims:
        size = x.shape[dim]
        padded = x.double().index_select(dim, _reflected(size, radius, x.device))
        total = padded.narrow(dim, radius, size) * float(weights[radius])
        for j in range(radius, 0, -1):
            pair = padded.narrow(dim, radius - j, size) + padded.narrow(dim, radius + j, size)
            total = total + pair * float(weights[radius - j])
        x = total.to(x.dtype)
    return x


def median(x: Tensor, dim: int = -1) -> Tensor:
    """numpy's median along ``dim``: the mean of the two middle values of an even count, in x's dtype; NaN if any is."""
    n = x.shape[dim]
    upper = x.kthvalue(n // 2 + 1, dim).values
    middle = upper if n % 2 else (x.kthvalue(n // 2, dim).values + upper) / 2
    return torch.where(x.isnan().any(dim), math.nan, middle)  # kthvalue sorts NaN last


def robust_threshold(
    maps: Tensor,
    *,
    mad_scale: float | Tensor,
    mad_floor: float,
    blur_sigma: float,
    z_floor: float,
    count: bool = False,
    by_frame: bool = False,
) -> tuple[Tensor, Tensor]:
    """Where and how far the maps of a window lie above median + mad_scale * 1.4826 * MAD.

    Args:
        maps: float32 [K, R, C, *grid], non-negative (the sign is dropped, so that -0.0 is 0.0), K >= 1. Statistics
            are over C and the grid of one map of one row.
        mad_scale: a float, or float32 [R] or [R, *grid].
        mad_floor: lower bound of the MAD in the threshold; z_floor: the same in z (> 0). Units of the maps.
        blur_sigma: in locations; the grid axes are blurred, then the channel axis where C > 1.
        count: in how many maps, instead of in any.
        by_frame: the frames of a volume are taken as rows, smoothing and statistics are of each alone.
    Returns: flags bool [R, *grid] (count: int32) and z float32 [R, *grid], the largest robust z of the window. A row
        with NaN or Inf in any map has no flag, and z is NaN.
    """
    shape = (maps.shape[1], *maps.shape[3:])
    finite = maps.isfinite().transpose(0, 1).flatten(1).all(1)
    if by_frame and maps.dim() == 6:
        frames = maps.shape[3]
        finite = finite.repeat_interleave(frames)
        maps, mad_scale = frames_as_rows(maps), scale_by_frame(mad_scale, frames)
    flags, z = _threshold_rows(maps, finite, mad_scale, mad_floor, blur_sigma, z_floor)
    flags = flags if count else flags > 0
    return flags.view(shape), z.view(shape)


def frames_as_rows(maps: Tensor) -> Tensor:
    """[K, R, C, D, H, W] as [K, R*D, C, H, W]; a copy where C > 1."""
    return maps.movedim(3, 2).flatten(1, 2)


def scale_by_frame(mad_scale: float | Tensor, frames: int) -> float | Tensor:
    """A scale of rows as one of their frames: [R] as [R*D], [R, D, H, W] as [R*D, H, W]."""
    if not isinstance(mad_scale, Tensor):
        return mad_scale
    return mad_scale.repeat_interleave(frames) if mad_scale.dim() == 1 else mad_scale.flatten(0, 1)


def _threshold_rows(
    maps: Tensor, finite: Tensor, mad_scale: float | Tensor, mad_floor: float, blur_sigma: float, z_floor: float
) -> tuple[Tensor, Tensor]:
    """In how many maps a location is above, int32, and z; finite: bool [R]."""
    grid_dims = range(3, maps.dim())
    maps = gaussian_blur(maps.abs(), blur_sigma, [*grid_dims, *([2] if maps.shape[2] > 1 else [])])
    center = median(maps.flatten(2))
    mad = median((maps.flatten(2) - center[..., None]).abs())
    shape = (*center.shape, *([1] * len(grid_dims)))
    center, mad, finite = center.view(shape), mad.view(shape), finite.view(shape[1:])
    threshold = center + _threshold_scale(mad_scale, maps) * mad.clamp(min=mad_floor)
    peak = maps.amax(2)
    above = (peak > threshold) & finite
    z = ((peak - center) / (MAD_TO_SIGMA * mad.clamp(min=z_floor))).amax(0)
    return above.sum(0, dtype=torch.int32), torch.where(finite, z, math.nan)


def _threshold_scale(mad_scale: float | Tensor, maps: Tensor) -> Tensor:
    """mad_scale * 1.4826 in maps' dtype, shaped to broadcast over [K, R, *grid]."""
    if isinstance(mad_scale, Tensor):  # two float32 factors: exact in float64, so rounded once
        scale = (mad_scale.double() * float(np.float32(MAD_TO_SIGMA))).float().to(maps.dtype)
        return scale.view(*scale.shape, *([1] * (maps.dim() - 2 - scale.dim())))
    # The released code under numpy >= 2: in float64, rounded once.
    return torch.tensor(mad_scale * MAD_TO_SIGMA, dtype=torch.float64).to(maps.dtype)


def _shifted(x: Tensor, offset: Sequence[int], fill: int) -> Tensor:
    """x moved by ``offset`` along its last axes, ``fill`` where nothing comes in."""
    pads: list[int] = []
    crops = []
    for size, step in zip(x.shape[-len(offset) :], offset, strict=True):
        pads = [max(step, 0), max(-step, 0), *pads]
        crops.append(slice(max(-step, 0), max(-step, 0) + size))
    return F.pad(x, pads, value=fill)[(..., *crops)]


def _neighbours(rank: int, connectivity: int) -> list[tuple[int, ...]]:
    """Offsets of the neighbours: across faces (4 of 2D, 6 of 3D) or also edges and corners (8, 26)."""
    offsets = [tuple(int(i) - 1 for i in np.base_repr(n, 3).zfill(rank)) for n in range(3**rank)]
    reach = 1 if connectivity == 2 * rank else rank
    return [offset for offset in offsets if 0 < sum(map(abs, offset)) <= reach]


def label_regions(
    mask: Tensor, *, connectivity: int, min_area: float, max_area: float, core_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Connected regions, and which of them are kept.

    Args:
        mask: bool [R, H, W] or [R, D, H, W], or uint8 levels: 0 ground, 1 set, 2 set and a seed.
        connectivity: 4 or 8 in 2D, 6 or 26 in 3D.
        min_area, max_area: a region is kept where min_area < locations < max_area, both strict.
        core_width: and where it holds a full core_width x core_width block of the (H, W) plane; of levels, a seed.
    Returns: labels int32 (0 ground, regions 1.. of each row in raster order of their first location, the dropped
        ones too) and kept bool, both of mask's shape; overflow bool [R], False: every region is found.
    """
    seeds = (mask & 2) > 0 if mask.dtype == torch.uint8 else None
    mask = mask != 0
    rows, *grid = mask.shape
    n = math.prod(grid)
    overflow = torch.zeros(rows, dtype=torch.bool, device=mask.device)
    if mask.numel() == 0:
        return mask.to(torch.int32), mask.clone(), overflow
    index = torch.arange(n, device=mask.device).view(1, *grid)
    root = torch.where(mask, index, n)
    offsets = _neighbours(len(grid), connectivity)
    while True:
        # Hook every root to the smallest root that touches its region, then halve the paths.
        low = root
        for offset in offsets:
            low = torch.minimum(low, _shifted(root, offset, n))
        low = torch.where(mask, low, n)
        parent = F.pad(index.expand_as(root).reshape(rows, n), (0, 1), value=n).contiguous()
        parent = parent.scatter_reduce(1, root.reshape(rows, n), low.reshape(rows, n), "amin")
        following = torch.minimum(low.reshape(rows, n), parent.gather(1, root.reshape(rows, n)))
        following = F.pad(following, (0, 1), value=n)
        following = following.gather(1, following)[:, :n].reshape_as(root)
        if torch.equal(following, root):
            break
        root = following
    flat = F.pad(root.reshape(rows, n), (0, 1), value=n)
    first = F.pad((mask & (root == index)).reshape(rows, n), (0, 1))
    labels = (first.cumsum(1) * (flat < n)).gather(1, flat)[:, :n].reshape_as(root)
    labels = torch.where(mask, labels, 0).to(torch.int32)
    area = torch.zeros_like(flat).scatter_add(1, flat, torch.ones_like(flat))
    cores = _full_blocks(mask, core_width) if seeds is None else seeds.reshape(rows, n).to(torch.int64)
    core = torch.zeros_like(flat).scatter_add(1, flat, F.pad(cores, (0, 1)))
    keep = (area > min_area) & (area < max_area) & (core > 0)
    return labels, mask & keep.gather(1, flat)[:, :n].reshape_as(mask), overflow


def _full_blocks(mask: Tensor, width: int) -> Tensor:
    """1 at each location that is the first corner of a width x width block of set locations: int64 [R, n]."""
    height, length = mask.shape[-2:]
    if width > min(height, length):
        return torch.zeros(mask.shape[0], mask[0].numel(), dtype=torch.int64, device=mask.device)
    hollow = (~mask).float().reshape(-1, 1, height, length)
    hollow = F.max_pool2d(F.max_pool2d(hollow, (width, 1), stride=1), (1, width), stride=1)
    full = F.pad(hollow == 0, (0, width - 1, 0, width - 1))
    return full.reshape(mask.shape[0], -1).to(torch.int64)


def dilate_mask(mask: Tensor, radius: int) -> Tensor:
    """Grow bool [R, *grid] by ``radius`` locations in the (H, W) plane: a (2*radius + 1)^2 square, not a disc."""
    if radius == 0 or mask.numel() == 0:
        return mask.clone()
    planes = mask.float().reshape(-1, 1, *mask.shape[-2:])
    side = 2 * radius + 1
    planes = F.max_pool2d(planes, (side, 1), stride=1, padding=(radius, 0))
    return F.max_pool2d(planes, (1, side), stride=1, padding=(0, radius)).reshape(mask.shape) > 0


def renoise(
    x: Tensor,
    mask: Tensor,
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    seeds: Tensor,
    steps: Tensor,
    draws: Tensor,
    x0_noise: Tensor | None = None,
) -> Tensor:
    """alpha*(x0 + x0_noise*xi) + sigma*e inside the mask, x's own bits outside (arXiv 2503.16218, Eq. 6, with the
    perturbation before the noising, as the released code has it).

    Args:
        x: [R, C, *grid] at the level (alpha, sigma); mask: bool [R, *grid]; x0: [R, C, *grid] float32 or float64.
        alpha, sigma, x0_noise: [R], float32; x0_noise None is 0 for all rows (no second draw).
        seeds, steps, draws: int64 [R], see ``noise.normal``.
    Returns: a new tensor like x; arithmetic in x0's dtype, rounded once to x's.
    """
    channels, grid = x.shape[1], x.shape[2:]
    if x0_noise is not None:
        xi = normal(seeds, channels, grid, step=steps, draw=draws, purpose=Purpose.PERTURB_X0)
        x0 = x0 + _rows(x0_noise, x0) * xi.to(x0.dtype)
    e = normal(seeds, channels, grid, step=steps, draw=draws, purpose=Purpose.RENOISE)
    y = _rows(alpha, x0) * x0 + _rows(sigma, x0) * e.to(x0.dtype)
    return torch.where(mask[:, None], y.to(x.dtype), x)


def history_fill(entries: Sequence[Tensor], mask: Tensor, current: Tensor) -> list[Tensor]:
    """The entries of a solver's history with ``current`` inside the mask, their own bits outside.

    Args: entries: [R, C, *grid] each, any float dtypes; mask: bool [R, *grid]; current: [R, C, *grid].
    Returns: new tensors like the entries.
    """
    return [torch.where(mask[:, None], current.to(entry.dtype), entry) for entry in entries]
