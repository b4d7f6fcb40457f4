# SPDX-License-Identifier: MIT
"""history_fill_: up to three tensors take ``current`` inside the mask, in place (``reference.history_fill``).

One program does BLOCK locations of one row, reads ``current`` once and writes every entry. Outside the mask nothing is
written, so that every bit stays. In large tensors a block without a masked location ends after reading its mask, and
elsewhere only what lies inside is read; in small ones, where the wait for memory counts and not the bytes, ``current``
is read beside the mask.
"""

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from ascedfast.kernels.grid import grid_of, offset_of, strides_of
from ascedfast.kernels.prepared import KEPT, PreparedLaunch
from torch import Tensor

TILE, MIN_BLOCK, MOST_CHANNELS = 1024, 32, 16
"""Elements of a program's tile at a time, fewest locations and most channels of it."""
SMALL = 1 << 20
"""Elements up to which the wait for memory counts more than the bytes."""
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
    AT_ONCE: tl.constexpr,  # read ``current`` without waiting for the mask
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    location = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = location < locations
    at = offset_of(location, height, width, mask_d, mask_h, mask_w)
    inside = tl.load(mask + row * mask_row + at, there, other=0) != 0
    if not AT_ONCE:
        if tl.max(inside.to(tl.int32), 0) == 0:
            return
        there = inside
    current += row * current_row + offset_of(location, height, width, current_d, current_h, current_w)
    entry0 += row * row0 + offset_of(location, height, width, d0, h0, w0)
    entry1 += row * row1 + offset_of(location, height, width, d1, h1, w1)
    entry2 += row * row2 + offset_of(location, height, width, d2, h2, w2)
    for first in range(0, C, CHANNELS):
        channel = (first + tl.arange(0, CHANNELS)).to(tl.int64)[:, None]
        value = tl.load(current[None, :] + channel * current_channel, there[None, :] & (channel < C), other=0.0)
        ok = inside[None, :] & (channel < C)
        tl.store(entry0[None, :] + channel * channel0, _converted(value, entry0), ok)
        if ENTRIES > 1:
            tl.store(entry1[None, :] + channel * channel1, _converted(value, entry1), ok)
        if ENTRIES > 2:
            tl.store(entry2[None, :] + channel * channel2, _converted(value, entry2), ok)


@functools.lru_cache(maxsize=KEPT)
def _prepared(
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    types: tuple[torch.dtype, ...],
    entries: int,
    device: torch.device,
) -> PreparedLaunch:
    """strides: of the mask, of ``current`` and of three entries; types: of the last four."""
    _, height, width = grid_of(shape[2:])
    locations = math.prod(shape[2:])
    channels = min(MOST_CHANNELS, triton.next_power_of_2(shape[1]))
    block = max(MIN_BLOCK, TILE // channels)
    return PreparedLaunch(
        _history_fill,
        (triton.cdiv(locations, block), shape[0]),
        height,
        width,
        locations,
        *[stride for of_one in strides for stride in of_one],
        shape[1],
        entries,
        math.prod(shape) <= SMALL,
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
