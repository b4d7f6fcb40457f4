# SPDX-License-Identifier: MIT
"""What every fused step says of a tile of one row: x0_hat and the part of the dynamics that its channels add."""

import triton
import triton.language as tl


@triton.jit
def clean_of(x, m, a, b, clip, CLIP: tl.constexpr):
    """x0_hat = a*x + b*m of fp32 tiles, clipped; NaN wherever an input is not finite."""
    clean = a * x + b * m
    if CLIP:  # comparisons with NaN are false: NaN stays
        clean = tl.where(clean > clip, clip, tl.where(clean < -clip, -clip, clean))
    finite = ((x - x) + (m - m)) == 0.0
    return tl.where(finite, clean, float("nan"))


@triton.jit
def larger(total, change):
    """The largest change of each location so far, [BLOCK], and of a tile [CHANNELS, BLOCK]; NaN stays."""
    for_nan = tl.max(tl.where(change != change, 1, 0), 0)
    peak = tl.max(tl.where(change != change, 0.0, change), 0)
    peak = tl.where(for_nan == 1, float("nan"), peak)
    return tl.where((peak > total) | (peak != peak), peak, total)


@triton.jit
def plus_groups(total, change, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """total [BLOCK] and the channels of change [CHANNELS, BLOCK]: each 16 as a tree, one such sum after the other."""
    if CHANNELS <= 16:
        return total + tree_sum(change, CHANNELS, BLOCK)
    else:
        GROUPS: tl.constexpr = CHANNELS // 16
        values = tl.reshape(change, [GROUPS, 16, BLOCK])
        values = _fold_each(values, GROUPS, 8, BLOCK)
        values = _fold_each(values, GROUPS, 4, BLOCK)
        values = _fold_each(values, GROUPS, 2, BLOCK)
        values = tl.reshape(_fold_each(values, GROUPS, 1, BLOCK), [GROUPS, BLOCK])
        if GROUPS == 2:
            first, second = tl.split(tl.permute(values, [1, 0]))
            return total + first + second
        else:
            tl.static_assert(GROUPS == 4)
            front, back = tl.split(tl.permute(tl.reshape(values, [2, 2, BLOCK]), [1, 2, 0]))
            first, second = tl.split(tl.permute(front, [1, 0]))
            third, fourth = tl.split(tl.permute(back, [1, 0]))
            return total + first + second + third + fourth


@triton.jit
def _fold_each(values, GROUPS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """``_fold`` of each group of [GROUPS, 2 * HALF, BLOCK]."""
    low, high = tl.split(tl.permute(tl.reshape(values, [GROUPS, 2, HALF, BLOCK]), [0, 2, 3, 1]))
    return low + high


@triton.jit
def _fold(values, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """[2 * HALF, BLOCK] to [HALF, BLOCK]: the first half plus the second."""
    low, high = tl.split(tl.permute(tl.reshape(values, [2, HALF, BLOCK]), [1, 2, 0]))
    return low + high


@triton.jit
def tree_sum(values, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum over axis 0 of [CHANNELS, BLOCK], CHANNELS a power of two up to 16."""
    if CHANNELS >= 16:
        values = _fold(values, 8, BLOCK)
    if CHANNELS >= 8:
        values = _fold(values, 4, BLOCK)
    if CHANNELS >= 4:
        values = _fold(values, 2, BLOCK)
    if CHANNELS >= 2:
        values = _fold(values, 1, BLOCK)
    return tl.reshape(values, [BLOCK])
