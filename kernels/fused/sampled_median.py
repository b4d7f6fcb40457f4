# SPDX-License-Identifier: MIT
"""Median and MAD of planes too large for the registers of one program.

As Floyd and Rivest select (CACM 18(3), 1975): an even sample of the plane gives a bracket that almost surely holds the
median, one pass counts what lies below it and keeps what lies inside, about a sixteenth, and the wanted rank is
searched among those. Where the bracket misses, or holds more than was made room for, the whole plane is searched: the
result is exact in every case, and only the time depends on the sample. The same is done for the distances from the
median.

Five launches: ``_open``, ``_sift``, ``_close`` (median, and the bracket of the distances), ``_sift``, ``_close``. All
in one program a plane took most of 250 us at 256x256 on an H200: it waits for its own barriers in every step.
"""

import torch
import triton
import triton.language as tl
from ascedfast.kernels.order_statistics import INFINITE, distance_bits, middle, ranked, ranked_in_memory
from torch import Tensor

SAMPLE, MARGIN = 4096, 128
"""Values of a sample, and ranks on either side of its middle: four standard deviations of a random sample's."""
CHUNK = 4096
WIDE_CHUNK = 8192
"""Values a program reads at once: of its share of a plane, and where it does a whole plane with 32 warps."""
ROOM = 8
"""Inverse of the share of a plane that there is room for between the ends of a bracket."""

# Fields of a plane's state, int32: bits of the bracket's ends, then counts.
_LOW, _HIGH, _BELOW, _AT_LOW, _AT_HIGH, _INSIDE, _WILD = (tl.constexpr(i) for i in range(7))
_STATE = tl.constexpr(8)


@triton.jit
def _bracket(values, count, center, SAMPLE: tl.constexpr, MARGIN: tl.constexpr):
    """Bits of two values of the sample, around the middle of the distances from ``center``. One value is taken at a
    scattered place of each SAMPLE-th part, so that no period of the plane can hide from it."""
    part = tl.arange(0, SAMPLE).to(tl.int64)
    start = part * count // SAMPLE
    width = ((part + 1) * count // SAMPLE - start).to(tl.int32)
    scattered = (part.to(tl.uint32) * 1540483477) >> 9
    bits = distance_bits(tl.load(values + start + scattered.to(tl.int32) % width), center)
    low, _ = ranked(bits, SAMPLE, SAMPLE // 2 - MARGIN)
    high, _ = ranked(bits, SAMPLE, SAMPLE // 2 + MARGIN)
    return low, high


@triton.jit
def _keep(values, kept, inside, place, room):
    """Store the values ``inside`` the bracket behind one another, from ``place`` on, in the order of the plane."""
    place = place + tl.cumsum(inside.to(tl.int32), 0) - 1
    tl.store(kept + place, values, inside & (place < room))


@triton.jit
def _settled(
    values,  # [count] fp32
    kept,  # [room] fp32, the first ``inside`` of them strictly inside the bracket
    count,
    room,
    center,
    low,  # bits of the bracket's ends
    high,
    below,  # how many lie below it, at its ends, inside
    at_low,
    at_high,
    inside,
    N: tl.constexpr,
):
    """The middle of the distances from ``center``, fp32."""
    rank = (count - 1) // 2 + (low - low)
    hit = (rank >= below) & (rank + 1 < below + at_low + inside + at_high) & (inside <= room)
    if hit:
        i = rank - below - at_low
        wanted = tl.maximum(tl.minimum(i, inside - 1), 0)
        here, following = ranked_in_memory(kept, inside, center, wanted, low, high, N)
        lower = tl.where(i < 0, low, tl.where(i < inside, here, high))
        upper = tl.where(i < -1, low, tl.where(i + 1 < inside, tl.where(i < 0, here, following), high))
    else:
        lower, upper = ranked_in_memory(values, count, center, rank, low - low, low - low + (INFINITE + 2), N)
    return middle(lower, upper, count)


@triton.jit
def _begin_pass(state, values, count, center, SAMPLE: tl.constexpr, MARGIN: tl.constexpr):
    low, high = _bracket(values, count, center, SAMPLE, MARGIN)
    tl.store(state + _LOW, low)
    tl.store(state + _HIGH, high)
    for field in tl.static_range(2, 7):
        tl.store(state + field, 0)


@triton.jit
def _open(
    values,  # [planes, count] fp32
    state,  # [planes, 8] int32, written
    statistics,  # [planes, 2] fp32, the center is written: 0
    count,
    SAMPLE: tl.constexpr,
    MARGIN: tl.constexpr,
):
    plane = tl.program_id(0).to(tl.int64)
    tl.store(statistics + plane * 2, 0.0)
    _begin_pass(state + plane * _STATE, values + plane * count, count, 0.0, SAMPLE, MARGIN)


@triton.jit
def _sift(
    values,  # [planes, count] fp32
    kept,  # [planes, room] fp32, written
    state,  # [planes, 8] int32, the counts are added to
    statistics,  # [planes, 2] fp32, the center is read
    count,
    room,
    shares,  # programs a plane
    N: tl.constexpr,
):
    plane = (tl.program_id(0) // shares).to(tl.int64)
    at = (tl.program_id(0) % shares) * N + tl.arange(0, N)
    ok = at < count
    state += plane * _STATE
    low, high = tl.load(state + _LOW), tl.load(state + _HIGH)
    x = tl.load(values + plane * count + at, ok, other=0.0)
    bits = distance_bits(x, tl.load(statistics + plane * 2))
    between = ok & (bits > low) & (bits < high)
    # Integer counts, and a set of values that are ranked later: the order of the programs leaves no trace.
    place = tl.atomic_add(state + _INSIDE, tl.sum(between.to(tl.int32), 0))
    _keep(x, kept + plane * room, between, place, room)
    tl.atomic_add(state + _BELOW, tl.sum((ok & (bits < low)).to(tl.int32), 0))
    tl.atomic_add(state + _AT_LOW, tl.sum((ok & (bits == low)).to(tl.int32), 0))
    tl.atomic_add(state + _AT_HIGH, tl.sum((ok & (bits == high) & (high > low)).to(tl.int32), 0))
    tl.atomic_add(state + _WILD, tl.sum((ok & (bits >= INFINITE)).to(tl.int32), 0))


@triton.jit
def _close(
    values,  # [planes, count] fp32
    kept,  # [planes, room] fp32
    state,  # [planes, 8] int32, rewritten for the distances where not LAST
    statistics,  # [planes, 2] fp32: the center is read; the median, or LAST the MAD, is written
    count,
    room,
    LAST: tl.constexpr,
    SAMPLE: tl.constexpr,
    MARGIN: tl.constexpr,
    N: tl.constexpr,
):
    plane = tl.program_id(0).to(tl.int64)
    values += plane * count
    state += plane * _STATE
    statistics += plane * 2
    low, high = tl.load(state + _LOW), tl.load(state + _HIGH)
    below, inside = tl.load(state + _BELOW), tl.load(state + _INSIDE)
    at_low, at_high = tl.load(state + _AT_LOW), tl.load(state + _AT_HIGH)
    wild = tl.load(state + _WILD)
    center = tl.load(statistics)
    kept += plane * room
    found = _settled(values, kept, count, room, center, low, high, below, at_low, at_high, inside, N)
    if LAST:
        tl.store(statistics + 1, found)
    else:
        found = tl.where(wild > 0, float("nan"), found)
        tl.debug_barrier()  # every thread has read the state before it is rewritten
        tl.store(statistics, found)
        _begin_pass(state, values, count, found, SAMPLE, MARGIN)


def statistics_by_sample(values: Tensor) -> Tensor:
    """Median (NaN where a plane holds NaN or Inf) and MAD: fp32 [planes, 2].

    Args: values: non-negative fp32 [planes, count], contiguous, SAMPLE <= count < 2^31.
    """
    planes, count = values.shape
    room = max(count // ROOM, 1)
    kept = torch.empty((planes, room), dtype=torch.float32, device=values.device)
    statistics = torch.empty((planes, 2), dtype=torch.float32, device=values.device)
    sample = {"SAMPLE": SAMPLE, "MARGIN": MARGIN, "enable_fp_fusion": False}
    state = torch.empty((planes, _STATE.value), dtype=torch.int32, device=values.device)
    shares = triton.cdiv(count, CHUNK)
    _open[(planes,)](values, state, statistics, count, num_warps=16, **sample)
    for last in (False, True):
        _sift[(planes * shares,)](
            values, kept, state, statistics, count, room, shares, N=CHUNK, num_warps=8, enable_fp_fusion=False
        )
        _close[(planes,)](values, kept, state, statistics, count, room, LAST=last, N=WIDE_CHUNK, num_warps=32, **sample)
    return statistics
