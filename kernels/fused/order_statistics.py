# SPDX-License-Identifier: MIT
"""Exact order statistics inside one program, on the bits of non-negative floats, which are ordered as integers.

A search keeps a bracket [low, high) of bit patterns with the number of values below each end, and cuts it in three a
round: one reduction counts below both cuts. It ends as soon as one value is left in the bracket, after about 13 rounds
(21 at most). The median needs two neighbouring ranks of an even count, so the rank after the wanted one comes with it.
"""

import triton
import triton.language as tl

NOTHING = tl.constexpr(0x7FFFFFFF)
"""Above every value: lanes without one."""
INFINITE = tl.constexpr(0x7F800000)
"""Bits of Inf; NaN is one more, whatever its payload."""


@triton.jit
def distance_bits(values, center):
    """Bits of |values - center|: int32."""
    bits = tl.abs(values - center).to(tl.int32, bitcast=True)
    return tl.minimum(bits, INFINITE + 1)


@triton.jit
def middle(lower, upper, count):
    """The median: ``upper`` rank of an odd count, the mean of both of an even one (reference.median). Bits to fp32."""
    low, high = lower.to(tl.float32, bitcast=True), upper.to(tl.float32, bitcast=True)
    return tl.where(count % 2 == 1, low, (low + high) * 0.5)


@triton.jit
def _cuts(low, high):
    third = tl.maximum((high - low) // 3, 1)
    return low + third, high - third


@triton.jit
def _narrowed(low, high, below, upto, cut1, cut2, under1, under2, rank):
    """The part of the bracket that holds ``rank``, and the numbers of values below its ends."""
    first = under1 > rank
    second = (under2 > rank) & (under1 <= rank)
    new_low = tl.where(first, low, tl.where(second, cut1, cut2))
    new_high = tl.where(first, cut1, tl.where(second, cut2, high))
    new_below = tl.where(first, below, tl.where(second, under1, under2))
    new_upto = tl.where(first, under1, tl.where(second, under2, upto))
    return new_low, new_high, new_below, new_upto


@triton.jit
def ranked(
    bits,  # int32 [N], N < 2^15; NOTHING in lanes without a value
    count,  # values
    rank,  # 0 .. count - 1
):
    """The values of ranks ``rank`` and ``rank + 1`` (NOTHING behind the last), bits."""
    low = tl.min(bits, 0)
    high = tl.max(tl.where(bits == NOTHING, -1, bits), 0) + 1
    below = low - low
    upto = below + count
    while (high - low > 1) & (upto - below > 1):
        cut1, cut2 = _cuts(low, high)
        both = tl.sum((bits < cut1).to(tl.int32) + ((bits < cut2).to(tl.int32) << 16), 0)
        low, high, below, upto = _narrowed(low, high, below, upto, cut1, cut2, both & 0xFFFF, both >> 16, rank)
    lower = tl.max(tl.where(bits < high, bits, -1), 0)
    behind = tl.min(tl.where(bits < high, NOTHING, bits), 0)
    return lower, tl.where(upto > rank + 1, lower, behind)


@triton.jit
def ranked_in_memory(
    values,  # [count] fp32
    count,  # may be 0: then the result means nothing
    center,  # the distance to it is what is ranked
    rank,
    low,  # bits, at or below the value of this rank
    high,  # above it
    N: tl.constexpr,
):
    """``ranked`` of any number of values, read anew each round."""
    lane = tl.arange(0, N)
    below = low - low
    upto = below + count
    while (high - low > 1) & (upto - below > 1):
        cut1, cut2 = _cuts(low, high)
        under1 = tl.zeros((N,), tl.int32)
        under2 = tl.zeros((N,), tl.int32)
        start = low - low
        while start < count:
            ok = start + lane < count
            bits = distance_bits(tl.load(values + start + lane, ok, other=0.0), center)
            under1 += ((bits < cut1) & ok).to(tl.int32)
            under2 += ((bits < cut2) & ok).to(tl.int32)
            start += N
        sum1, sum2 = tl.sum(under1, 0), tl.sum(under2, 0)
        low, high, below, upto = _narrowed(low, high, below, upto, cut1, cut2, sum1, sum2, rank)
    lower = tl.zeros((N,), tl.int32) - 1
    behind = tl.zeros((N,), tl.int32) + NOTHING
    start = low - low
    while start < count:
        ok = start + lane < count
        bits = distance_bits(tl.load(values + start + lane, ok, other=0.0), center)
        lower = tl.maximum(lower, tl.where((bits < high) & ok, bits, -1))
        behind = tl.minimum(behind, tl.where((bits < high) | (start + lane >= count), NOTHING, bits))
        start += N
    last = tl.max(lower, 0)
    return last, tl.where(upto > rank + 1, last, tl.min(behind, 0))
