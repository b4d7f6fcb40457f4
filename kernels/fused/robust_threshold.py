# SPDX-License-Identifier: MIT
"""robust_threshold: smoothing, exact median and MAD of every plane, threshold, union (``reference.robust_threshold``).

A plane is one map of one row, its channels included; by frame, of one frame of a row: frames are rows then, and share
nothing but whether all of them are finite. Launches: smoothing 1 (2 in volumes); statistics 1 for planes of
up to 128x128 values, 5 above (``sampled_median``); flags, counts and z of all maps of a row 1. The caller may hand in a
function that does the statistics of the planes for which it is faster.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from ascedfast.kernels.blur import Blur, weights_on
from ascedfast.kernels.grid import grid_of, grid_strides, offset_of
from ascedfast.kernels.order_statistics import INFINITE, NOTHING, distance_bits, middle, ranked
from ascedfast.kernels.prepared import KEPT, NoSequence, Place, PreparedLaunch
from ascedfast.kernels.sampled_median import statistics_by_sample
from torch import Tensor

from ascedfast import reference

IN_REGISTERS = 1 << 14
"""Largest plane that one program holds in its registers: 128x128."""
FASTER_FROM, FASTER_UPTO = 64 * 64 + 1, 512 * 512
"""Planes whose statistics a compiled kernel does faster: beyond what registers do well, within a cluster's memory."""
BLOCK = 512
UNROLLED = 16
"""Most maps whose loop is written out, for loads that overlap."""
_MAD_TO_SIGMA = tl.constexpr(reference.MAD_TO_SIGMA)


@triton.jit
def _statistics(
    values,  # [planes, count] fp32
    statistics,  # [planes, 2] fp32, written: median (NaN where the plane holds NaN or Inf), MAD
    count,
    N: tl.constexpr,
):
    plane = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, N)
    ok = lane < count
    x = tl.load(values + plane * count + lane, ok, other=0.0)
    rank = (count - 1) // 2
    bits = tl.where(ok, distance_bits(x, 0.0), NOTHING)
    wild = tl.sum((ok & (bits >= INFINITE)).to(tl.int32), 0)
    lower, upper = ranked(bits, count, rank)
    center = middle(lower, upper, count)
    bits = tl.where(ok, distance_bits(x, center), NOTHING)
    lower, upper = ranked(bits, count, rank)
    tl.store(statistics + plane * 2, tl.where(wild > 0, float("nan"), center))
    tl.store(statistics + plane * 2 + 1, middle(lower, upper, count))


@triton.jit
def _judged(
    values,  # pointers to the first channel of one map's locations
    statistics,  # to this plane's pair
    above,
    z,
    wild,
    scale,
    mad_floor,
    z_floor,
    locations,
    ok,
    C: tl.constexpr,
):
    """One map more: in how many a location is above, the largest z, whether a map has NaN or Inf."""
    center, mad = tl.load(statistics), tl.load(statistics + 1)
    peak = tl.load(values, ok, other=0.0)
    for channel in tl.static_range(1, C):
        peak = tl.maximum(peak, tl.load(values + channel * locations, ok, other=0.0))
    above += (peak > center + scale * tl.maximum(mad, mad_floor)).to(tl.int32)
    new = tl.div_rn(peak - center, tl.zeros_like(peak) + tl.maximum(mad, z_floor) * _MAD_TO_SIGMA)
    z = tl.where((new > z) | (new != new), new, z)
    return above, z, wild | (center != center).to(tl.int32)


@triton.jit
def _flag(
    values,  # [K, R, C, locations] fp32
    statistics,  # [K, R, 2] fp32: median, MAD
    mad_scale,  # [R] or [R, D, H, W] fp32, read where not SCALE_AXES == 0
    flags,  # [R, locations] uint8, COUNT: int32, written
    z,  # [R, locations] fp32, written
    scale,  # fp32, mad_scale*1.4826 where SCALE_AXES == 0
    mad_floor,
    z_floor,
    height,
    width,
    locations,
    scale_row,
    scale_d,
    scale_h,
    scale_w,
    K: tl.constexpr,
    C: tl.constexpr,
    SCALE_AXES: tl.constexpr,  # 0: a float; 1: one a row; 2: one a location
    COUNT: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
    FRAMES: tl.constexpr,  # rows that belong to one request
    LANES: tl.constexpr,  # FRAMES, rounded up to a power of two
):
    row = tl.program_id(1).to(tl.int64)
    rows = tl.num_programs(1).to(tl.int64)
    location = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = location < locations
    if SCALE_AXES == 1:
        scale = tl.load(mad_scale + row * scale_row) * _MAD_TO_SIGMA
    if SCALE_AXES == 2:
        at = offset_of(location, height, width, scale_d, scale_h, scale_w)
        scale = tl.load(mad_scale + row * scale_row + at, ok, other=0.0) * _MAD_TO_SIGMA
    above = tl.zeros((BLOCK,), tl.int32)
    best = tl.zeros((BLOCK,), tl.float32) - float("inf")
    wild = tl.zeros((BLOCK,), tl.int32)
    if FRAMES > 1:
        frame = tl.arange(0, LANES)
        for k in range(K):
            centers = tl.load(statistics + (k * rows + row - row % FRAMES + frame) * 2, frame < FRAMES, other=0.0)
            wild |= tl.max((centers != centers).to(tl.int32), 0)
    values += row * C * locations + location
    statistics += row * 2
    if UNROLL:
        for _ in tl.static_range(K):
            above, best, wild = _judged(
                values, statistics, above, best, wild, scale, mad_floor, z_floor, locations, ok, C
            )
            values += rows * C * locations
            statistics += rows * 2
    else:
        for _ in range(K):
            above, best, wild = _judged(
                values, statistics, above, best, wild, scale, mad_floor, z_floor, locations, ok, C
            )
            values += rows * C * locations
            statistics += rows * 2
    above = tl.where(wild != 0, 0, above)
    if not COUNT:
        above = (above > 0).to(tl.uint8)
    tl.store(flags + row * locations + location, above, ok)
    tl.store(z + row * locations + location, tl.where(wild != 0, float("nan"), best), ok)


Statistics = Callable[[Tensor], Tensor]
"""Median and MAD of planes, fp32 [planes, 2], the median NaN where a value is NaN or Inf; from non-negative fp32
[planes, count], contiguous."""


def statistics_of(values: Tensor, faster: Statistics | None = None) -> Tensor:
    """``Statistics`` by Triton; by ``faster`` where the planes' size makes that worth it."""
    planes, count = values.shape
    if faster is not None and FASTER_FROM <= count <= FASTER_UPTO:
        return faster(values)
    if count > IN_REGISTERS:
        return statistics_by_sample(values)
    statistics = torch.empty((planes, 2), dtype=torch.float32, device=values.device)
    _prepared_statistics(planes, count, values.device)(values, statistics)
    return statistics


@functools.lru_cache(maxsize=KEPT)
def _prepared_statistics(planes: int, count: int, device: torch.device) -> PreparedLaunch:
    lanes = max(128, triton.next_power_of_2(count))
    warps = min(32, max(4, lanes // 256))
    return PreparedLaunch(_statistics, (planes,), count, lanes, num_warps=warps, enable_fp_fusion=False)


class Thresholding:
    """``robust_threshold`` on maps of one shape and strides, with one set of settings: all but the outputs made once.

    Args: shape, strides, device: of the maps, which are not empty. frames: of a request, whose rows follow each other
        (``reference.frames_as_rows``). scale_strides, scale_axes: of a tensor mad_scale, as
        the kernel has them; mad_scale: None there.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        device: torch.device,
        *,
        mad_scale: float | None,
        mad_floor: float,
        blur_sigma: float,
        z_floor: float,
        count: bool,
        faster: Statistics | None,
        scale_strides: tuple[int, ...] = (0, 0, 0, 0),
        scale_axes: int = 0,
        frames: int = 1,
    ) -> None:
        maps, rows, channels, *sizes = shape
        _, height, width = grid_of(tuple(sizes))
        locations = math.prod(sizes)
        self._weights, self._device, self._faster = weights_on(blur_sigma, device), device, faster
        self._blur = Blur(shape, strides, self._weights.numel() // 2)
        self._shape, self._flag_type = (rows, *sizes), torch.int32 if count else torch.bool
        self._flag = PreparedLaunch(
            _flag,
            (triton.cdiv(locations, BLOCK), rows),
            0.0 if mad_scale is None else float(np.float32(mad_scale * reference.MAD_TO_SIGMA)),
            float(mad_floor),
            float(z_floor),
            height,
            width,
            locations,
            *scale_strides,
            maps,
            channels,
            scale_axes,
            count,
            maps <= UNROLLED,
            BLOCK,
            frames,
            triton.next_power_of_2(frames),
            num_warps=4,
            enable_fp_fusion=False,
        )

    def __call__(self, maps: Tensor, mad_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        values = self._blur(maps, self._weights)
        statistics = statistics_of(values, self._faster)
        flags = torch.empty(self._shape, dtype=self._flag_type, device=self._device)
        z = torch.empty(self._shape, dtype=torch.float32, device=self._device)
        self._flag(values, statistics, statistics if mad_scale is None else mad_scale, flags, z)
        return flags, z

    @property
    def smoothing(self) -> tuple[Blur, Tensor]:
        """The smoothing and its weights, which stay where they are."""
        return self._blur, self._weights

    def by_medians(self, count: int) -> bool:
        """Whether the faster way serves planes of so many values."""
        return self._faster is not None and FASTER_FROM <= count <= FASTER_UPTO

    def add_statistics_to(
        self, sequence: Any, values: Place, planes: int, count: int, statistics: Place, scratch: Place, room: int
    ) -> None:
        """See ``PreparedLaunch.add_to``. values: fp32 [planes, count]; scratch: ``room`` bytes for the faster way."""
        if self.by_medians(count):
            sequence.medians(values, count, planes, count, statistics, scratch, room)
        elif count > IN_REGISTERS:
            raise NoSequence  # by sample, in launches that are not prepared
        else:
            _prepared_statistics(planes, count, self._device).add_to(sequence, values, statistics)

    def add_flags_to(self, sequence: Any, values: Place, statistics: Place, flags: Place, z: Place) -> None:
        """See ``PreparedLaunch.add_to``; with a number for mad_scale."""
        self._flag.add_to(sequence, values, statistics, statistics, flags, z)


_kept = functools.lru_cache(maxsize=KEPT)(Thresholding)


def robust_threshold(
    maps: Tensor,
    *,
    mad_scale: float | Tensor,
    mad_floor: float,
    blur_sigma: float,
    z_floor: float,
    count: bool,
    by_frame: bool = False,
    faster: Statistics | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch on checked arguments, see ``ops.robust_threshold``. maps is fp32; faster: see ``statistics_of``."""
    if maps.numel() == 0:
        shape = (maps.shape[1], *maps.shape[3:])
        flags = torch.empty(shape, dtype=torch.int32 if count else torch.bool, device=maps.device)
        return flags, torch.empty(shape, dtype=torch.float32, device=maps.device)
    settings = {"mad_floor": mad_floor, "blur_sigma": blur_sigma, "z_floor": z_floor, "count": count, "faster": faster}
    if by_frame and maps.dim() == 6:
        settings["frames"] = frames = maps.shape[3]
        shape = (maps.shape[1], *maps.shape[3:])
        maps, mad_scale = reference.frames_as_rows(maps), reference.scale_by_frame(mad_scale, frames)
        flags, z = _launched(maps, mad_scale, settings)
        return flags.view(shape), z.view(shape)
    return _launched(maps, mad_scale, settings)


def _launched(maps: Tensor, mad_scale: float | Tensor, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    kind = (maps.shape, maps.stride(), maps.device)
    if not isinstance(mad_scale, Tensor):
        return _kept(*kind, mad_scale=mad_scale, **settings)(maps)
    axes = min(mad_scale.dim(), 2)
    strides = (mad_scale.stride(0), *(grid_strides(mad_scale, 1) if axes == 2 else (0, 0, 0)))
    return _kept(*kind, mad_scale=None, scale_strides=strides, scale_axes=axes, **settings)(maps, mad_scale)
