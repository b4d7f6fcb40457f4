# SPDX-License-Identifier: MIT
"""Gaussian smoothing of planes, with the bits of ``reference.gaussian_blur``.

A program owns a slab: a few lines of one plane, over their whole length and all channels. It smooths across the lines
first, then along them and then over the channels, so that what a pass needs of the one before was made by the same
program, and one launch does the axes H, W and C. The axis D of a volume has a launch of its own.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from ascedfast.kernels.grid import grid_of
from ascedfast.kernels.prepared import Place, PreparedLaunch
from torch import Tensor

from ascedfast import reference
from ascedfast.upload import upload

LINES, STRETCH = 8, 64
"""A block: so many lines of a slab, so many locations along them."""
FEW_LINES, LONGEST = 2, 256
"""Of wide kernels: more programs, and a line in one stretch where it is not longer."""
UNROLLED = 12
"""Largest radius whose taps are written out, for loads that overlap; with one channel, else registers run out."""
AT_ONCE = tl.constexpr(4)
"""Pairs of taps of a wide kernel that are loaded together."""


@triton.jit
def _folded(position, size, ONCE: tl.constexpr):
    """Half-sample symmetric reflection; as often as needed, or once, which is enough up to a radius of ``size``.

    int32, in few instructions: a wide kernel computes more positions than values."""
    if ONCE:
        position = position ^ (position >> 31)  # -1 - position below 0
    else:
        position = position % (2 * size)
        position = tl.where(position < 0, position + 2 * size, position)
    return tl.minimum(position, 2 * size - 1 - position)


@triton.jit
def _pair(values, position, tap, size, stride, ok, weights, RADIUS: tl.constexpr, ONCE: tl.constexpr):
    """(x[-j] + x[j]) * w[j] of the pair number ``tap``, the farthest first; fp64."""
    reach = RADIUS - tap
    before = tl.load(values + _folded(position - reach, size, ONCE).to(tl.int64) * stride, ok, other=0.0)
    after = tl.load(values + _folded(position + reach, size, ONCE).to(tl.int64) * stride, ok, other=0.0)
    return (tl.abs(before).to(tl.float64) + tl.abs(after).to(tl.float64)) * tl.load(weights + tap)


@triton.jit
def _weighted(
    values,  # pointers to position 0 of the axis, fp32; only magnitudes count
    position,
    size,
    stride,
    ok,
    weights,  # [2*RADIUS + 1] fp64
    RADIUS: tl.constexpr,
    ONCE: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Centre first, then the pairs from the farthest to the nearest, a rounding after every product and sum."""
    centre = tl.load(values + position.to(tl.int64) * stride, ok, other=0.0)
    total = tl.abs(centre).to(tl.float64) * tl.load(weights + RADIUS)
    if UNROLL:
        for tap in tl.static_range(RADIUS):
            total += _pair(values, position, tap, size, stride, ok, weights, RADIUS, ONCE)
    else:
        for tap in tl.range(RADIUS, loop_unroll_factor=AT_ONCE):
            total += _pair(values, position, tap, size, stride, ok, weights, RADIUS, ONCE)
    return total.to(tl.float32)


@triton.jit
def _blur(
    source,  # [K, R, C, layers, lines, length] fp32 in any strides
    first,  # [K*R, C, ...] fp32 contiguous, written: the result of passes 1 and 3
    second,  # like first, written: the result of pass 2
    weights,  # [2*RADIUS + 1] fp64
    rows,
    layers,
    lines,
    length,
    locations,
    source_k,
    source_row,
    source_channel,
    source_layer,
    source_line,
    source_along,
    layer_stride,  # of first and second; along a line it is 1
    line_stride,
    C: tl.constexpr,
    RADIUS: tl.constexpr,
    ALONG: tl.constexpr,  # pass 2
    CHANNELS: tl.constexpr,  # pass 3
    LINES_ONCE: tl.constexpr,
    ALONG_ONCE: tl.constexpr,
    UNROLL: tl.constexpr,
    LINES: tl.constexpr,
    STRETCH: tl.constexpr,
):
    slabs = (lines + LINES - 1) // LINES
    slab = tl.program_id(0) % slabs
    layer = (tl.program_id(0) // slabs) % layers
    plane = (tl.program_id(0) // (slabs * layers)).to(tl.int64)
    line = (slab * LINES + tl.arange(0, LINES))[:, None]
    line_at = line.to(tl.int64) * line_stride
    source += (plane // rows) * source_k + (plane % rows) * source_row + layer.to(tl.int64) * source_layer
    base = plane * C * locations + layer.to(tl.int64) * layer_stride
    start = 0
    while start < length:
        along = (start + tl.arange(0, STRETCH))[None, :]
        ok = (line < lines) & (along < length)
        values = source + along.to(tl.int64) * source_along
        target = first + base + line_at + along
        for _ in range(C):
            y = _weighted(values, line, lines, source_line, ok, weights, RADIUS, LINES_ONCE, UNROLL)
            tl.store(target, y, ok)
            values += source_channel
            target += locations
        start += STRETCH
    if ALONG:
        tl.debug_barrier()  # the slab is this program's own, other threads of it wrote what follows reads
        start = 0
        while start < length:
            along = (start + tl.arange(0, STRETCH))[None, :]
            ok = (line < lines) & (along < length)
            values = first + base + line_at
            target = second + base + line_at + along
            for _ in range(C):
                y = _weighted(values, along, length, 1, ok, weights, RADIUS, ALONG_ONCE, UNROLL)
                tl.store(target, y, ok)
                values += locations
                target += locations
            start += STRETCH
    if CHANNELS:
        tl.debug_barrier()
        start = 0
        while start < length:
            along = (start + tl.arange(0, STRETCH))[None, :]
            ok = (line < lines) & (along < length)
            values = second + base + line_at + along
            target = first + base + line_at + along
            for channel in range(C):
                y = _weighted(values, line * 0 + channel, C, locations, ok, weights, RADIUS, False, False)
                tl.store(target, y, ok)
                target += locations
            start += STRETCH


@functools.cache
def weights_on(sigma: float, device: torch.device) -> Tensor:
    """``reference.gaussian_weights`` on a device, fp64; one tap for sigma 0. Kept for later calls: the first of a sigma
    copies from the host, without waiting."""
    taps = reference.gaussian_weights(sigma) if sigma > 0 else np.ones(1)
    return upload(torch.from_numpy(taps), device)


class Blur:
    """Smooths |maps| along the grid axes, then the channels where C > 1. One launch, or two where the grid has three
    axes.

    Args: shape, strides: of the maps [K, R, C, *grid], not empty. radius: in locations; 0 copies the magnitudes.
    """

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...], radius: int) -> None:
        count, rows, channels, *sizes = shape
        depth, height, width = grid_of(tuple(sizes))
        self._rows, self._channels, self._locations, self._radius = rows, channels, math.prod(sizes), radius
        smooth = radius > 0
        volume = smooth and len(sizes) == 3
        buffers = 3 if volume else 2 if smooth else 1
        self._buffers, self._planes = buffers, (count * rows, channels * self._locations)
        passes = 1 if not smooth else 2 if channels == 1 else 3
        self._result = 1 if passes == 2 else 0
        self._launches: list[tuple[PreparedLaunch, int | None, int, int]] = []  # what each reads and writes
        strides, source = (*strides[:3], *(0,) * (3 - len(sizes)), *strides[3:]), None
        if volume:
            k, row, channel, d, h, w = strides
            across = self._launch((k, row, channel, h, d, w), height, depth, width, (width, height * width), 1)
            self._launches.append((across, source, 2, 2))
            plane = channels * self._locations
            source, strides = 2, (rows * plane, plane, self._locations, height * width, width, 1)
        last = self._launch(strides, depth, height, width, (height * width, width), passes)
        self._launches.append((last, source, 0, min(1, buffers - 1)))

    def _launch(self, strides, layers, lines, length, layer_and_line_stride, passes) -> PreparedLaunch:
        slab, stretch = LINES, STRETCH
        if self._radius > UNROLLED:
            slab, stretch = FEW_LINES, max(STRETCH, min(triton.next_power_of_2(length), LONGEST))
        return PreparedLaunch(
            _blur,
            (self._planes[0] * layers * triton.cdiv(lines, slab),),
            self._rows,
            layers,
            lines,
            length,
            self._locations,
            *strides,
            *layer_and_line_stride,
            self._channels,
            self._radius,
            passes > 1,
            passes > 2,
            self._radius <= lines,
            self._radius <= length,
            self._radius <= UNROLLED and self._channels == 1,
            slab,
            stretch,
            num_warps=4,
            num_stages=1,
            enable_fp_fusion=False,
        )

    def __call__(self, maps: Tensor, weights: Tensor) -> Tensor:
        """fp32 [K*R, C*locations], contiguous, of fp32 maps, which are not modified; weights: fp64 [2*radius + 1] on
        their device."""
        # One by one: what is not returned is free again for what comes next.
        spare = [torch.empty(self._planes, dtype=torch.float32, device=maps.device) for _ in range(self._buffers)]
        for launch, source, first, second in self._launches:
            launch(maps if source is None else spare[source], spare[first], spare[second], weights)
        return spare[self._result]

    @property
    def spare(self) -> int:
        """Buffers of the result's size that it needs besides the result."""
        return self._buffers - 1

    def add_to(self, sequence: Any, maps: Place, result: Place, spare: Sequence[Place], weights: Place) -> None:
        """See ``PreparedLaunch.add_to``."""
        buffers = list(spare)
        buffers.insert(self._result, result)
        for launch, source, first, second in self._launches:
            launch.add_to(
                sequence, maps if source is None else buffers[source], buffers[first], buffers[second], weights
            )
