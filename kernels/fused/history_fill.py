# SPDX-License-Identifier: MIT
"""history_fill_: up to three tensors take ``current`` inside the mask, in place (``reference.history_fill``).

Outside the mask nothing is written, so that every bit stays. In large tensors a program does BLOCK locations of one
row, and one without a masked location ends after reading its mask; elsewhere only what lies inside is read. In small
ones, where the wait for memory counts and not the bytes, a program does BLOCK locations of one channel and reads
``current`` beside the mask.
"""

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from ascedfast.kernels.grid import grid_of, is_dense, offset_of, strides_of
from ascedfast.kernels.prepared import KEPT, PreparedLaunch
from torch import Tensor

TILE, MIN_BLOCK, MOST_CHANNELS = 1024, 32, 16
"""Elements of a program's tile at a time, fewest locations and most channels of it."""
SMALL, SMALL_BLOCK, MOST_PLANES = 1 << 20, 512, 65535
"""Elements up to which the wait for memory counts more than the bytes; a program's locations then; a grid's limit."""
MOST_ENTRIES = 3


@triton.jit
def _converted(value, entry):
    """As torch converts: the same dtype keeps its bits, 16-bit formats come from float32."""
    if value.dtype != entry.dtype.element_ty:
        if entry.dtype.element_ty != tl.float64:
            value = value.to(tl.float32)
        value = value.to(entry.dtype.element_ty)
    return value


@triton.jit
def _write(value, ok, entry0, entry1, entry2, ENTRIES: tl.constexpr):
    """The value as each entry's dtype has it."""
    tl.store(entry0, _converted(value, entry0), ok)
    if ENTRIES > 1:
        tl.store(entry1, _converted(value, entry1), ok)
    if ENTRIES > 2:
        tl.store(entry2, _converted(value, entry2), ok)


@triton.jit
def _history_fill(
    mask,  # [R, D, H, W] bool as uint8
    current,  # [R, C, D, H, W], any float
    entry0,  # [R, C, D, H, W], any float, written
    entry1,  # the same, where ENTRIES > 1
    entry2,  # the same, where ENTRIES > 2
    height,
    width,
    locations,
    mask_row,
    mask_d,
    mask_h,
    mask_w,
    current_row,
    current_channel,
    current_d,
    current_h,
    current_w,
    row0,
    channel0,
    d0,
    h0,
    w0,
    row1,
    channel1,
    d1,
    h1,
    w1,
    row2,
    channel2,
    d2,
    h2,
    w2,
    C: tl.constexpr,
    ENTRIES: tl.constexpr,
    DENSE: tl.constexpr,  # contiguous tensors: no stride is read, no location taken apart
    CHANNELS: tl.constexpr,  # 0: one program a channel, which reads ``current`` without waiting for the mask
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0)
    if CHANNELS > 0:
        block = block.to(tl.int64)
        own = row * 0  # the first channel: the loop counts from there
    else:
        own = row % C
        row = row // C
    location = block * BLOCK + tl.arange(0, BLOCK)
    there = location < locations
    if DENSE:
        mask += row * locations + location
        place = (row * C + own) * locations + location
        current += place
        entry0 += place
        entry1 += place
        entry2 += place
        current_channel = locations
        channel0 = locations
        channel1 = locations
        channel2 = locations
    else:
        mask += row * mask_row + offset_of(location, height, width, mask_d, mask_h, mask_w)
        current += row * current_row + own * current_channel
        entry0 += row * row0 + own * channel0
        entry1 += row * row1 + own * channel1
        entry2 += row * row2 + own * channel2
        current += offset_of(location, height, width, current_d, current_h, current_w)
        entry0 += offset_of(location, height, width, d0, h0, w0)
        entry1 += offset_of(location, height, width, d1, h1, w1)
        entry2 += offset_of(location, height, width, d2, h2, w2)
    inside = tl.load(mask, there, other=0) != 0
    if CHANNELS == 0:
        value = tl.load(current, there, other=0.0)
        _write(value, inside, entry0, entry1, entry2, ENTRIES)
    elif tl.max(inside.to(tl.int32), 0) != 0:
        for first in range(0, C, CHANNELS):
            channel = (first + tl.arange(0, CHANNELS)).to(tl.int64)[:, None]
            ok = inside[None, :] & (channel < C)
            value = tl.load(current[None, :] + channel * current_channel, ok, other=0.0)
            to0 = entry0[None, :] + channel * channel0
            to1 = entry1[None, :] + channel * channel1
            to2 = entry2[None, :] + channel * channel2
            _write(value, ok, to0, to1, to2, ENTRIES)


@functools.lru_cache(maxsize=KEPT)
def _prepared(
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    types: tuple[torch.dtype, ...],
    entries: int,
    device: torch.device,
) -> PreparedLaunch:
    """strides: of the mask, of ``current`` and of three entries; types: of the last four."""
    grid = grid_of(shape[2:])
    locations = math.prod(grid)
    dense = all(is_dense((shape[0], *shape[1 : len(of_one) - 3], *grid), of_one) for of_one in strides)
    sizes, flat = grid[1:], tuple(stride for of_one in strides for stride in of_one)
    if dense:  # Triton passes no argument that is 1, and a launch is shorter by each
        sizes, flat = (1, 1), (1,) * len(flat)
    channels = min(MOST_CHANNELS, triton.next_power_of_2(shape[1]))
    planes, block = shape[0], max(MIN_BLOCK, TILE // channels)
    if math.prod(shape) <= SMALL and shape[0] * shape[1] <= MOST_PLANES:
        channels, planes, block = 0, shape[0] * shape[1], SMALL_BLOCK
    return PreparedLaunch(
        _history_fill,
        (triton.cdiv(locations, block), planes),
        *sizes,
        locations,
        *flat,
        shape[1],
        entries,
        dense,
        channels,
        block,
    )


def history_fill_(entries: Sequence[Tensor], mask: Tensor, current: Tensor) -> None:
    """Launch on one to three checked entries, see ``ops.history_fill_``."""
    if current.numel() == 0:
        return
    tensors = (current, *entries, *[entries[0]] * (MOST_ENTRIES - len(entries)))
    strides = (strides_of(mask, 1), *(strides_of(t, 2) for t in tensors))
    types = tuple(t.dtype for t in tensors)
    _prepared(current.shape, strides, types, len(entries), current.device)(mask, *tensors)
