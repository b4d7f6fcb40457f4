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
