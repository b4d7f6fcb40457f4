# SPDX-License-Identifier: MIT
"""temporal_scores: how still a place stands and how far it leapt (``reference.temporal_scores``).

Two launches over the smoothed changes of a window. The first adds up each plane in float64, a stretch a program; the
second finds the row's scale from these sums (the median of K numbers, by rank, in every program) and goes over the
window twice, once for what stands still and once for what leapt, when the mean of the other changes is known.
Without atomics: the same bits from run to run, and for a row in any batch. Next to the reference only the sums differ,
in the last bit of a float64, which moves one score in some thousand by its last bit.
"""

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ascedfast import reference_scores
from ascedfast.upload import upload

BLOCK = 1024
"""Locations of a program of the second launch, and of a step of one of the first."""
STRETCHES = 64
"""At most so many sums of a plane."""


@triton.jit
def sums_of(
    d,  # [K, R, n] fp32, bf16 or fp16
    sums,  # [K*R, STRETCHES] fp64, written
    locations,
    stretch,  # locations of one, whole blocks
    STRETCHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    plane = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * stretch
    end = tl.minimum(first + stretch, locations)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(first, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(d + plane * locations + i, i < end, other=0.0).to(tl.float64)
    tl.store(sums + plane * STRETCHES + tl.program_id(1), tl.sum(total, 0))


@triton.jit
def _larger(a, b):
    """The larger one; NaN stays."""
    return tl.where((b > a) | (b != b), b, a)


@triton.jit
def scale_of(
    sums,
    profile,
    row,
    rows,
    locations,
    K: tl.constexpr,
    FLOOR: tl.constexpr,
    STRETCHES: tl.constexpr,
    PARTS: tl.constexpr,  # STRETCHES, or the next power of two
    KS: tl.constexpr,  # the same of K
):
    """The row's scale: the median of its steps' mean changes by the profile, at least FLOOR of their mean."""
    k = tl.arange(0, KS)
    known = k < K
    part = tl.arange(0, PARTS)[None, :]
    at = sums + (k * rows + row)[:, None] * STRETCHES + part
    # All at once: one after the other each would wait for memory.
    total = tl.sum(tl.load(at, known[:, None] & (part < STRETCHES), other=0.0), 1)
    share = total / locations.to(tl.float64) / tl.load(profile + k, known, other=1.0)
    before = (share[None, :] < share[:, None]) | ((share[None, :] == share[:, None]) & (k[None, :] < k[:, None]))
    rank = tl.sum((before & known[None, :]).to(tl.int32), 1)
    low = tl.sum(tl.where(known & (rank == (K - 1) // 2), share, 0.0), 0)
    high = tl.sum(tl.where(known & (rank == K // 2), share, 0.0), 0)
    mean = tl.sum(tl.where(known, share, 0.0), 0) / K
    scale = (low + high) / 2
    return tl.where(mean != mean, mean, _larger(scale, mean * FLOOR))


@triton.jit
def _relative(d, k, plane_size, unit, i, ok):
    """r_k of locations i: d_k by its unit; 0 where the sample never changes."""
    change = tl.load(d + k * plane_size + i, ok, other=0.0).to(tl.float64)
    smallest = tl.where(unit < 2.2250738585072014e-308, 2.2250738585072014e-308, unit)
    return tl.where(unit == 0, 0.0, change / smallest).to(tl.float32)


@triton.jit
def calm_and_leap(
    d,  # of the row, step k at k * plane_size
    profile,  # [2, K] fp64: the profile, and 1/k
    scale,
    plane_size,
    i,
    ok,
    K: tl.constexpr,
    FIRST: tl.constexpr,
    A_SHARE: tl.constexpr,  # 1 / (K - 2)
    STILL_FLOOR: tl.constexpr,
    JUMP_FLOOR: tl.constexpr,
):
    """The scores of locations i of a row: what stands still, then what leapt, when the mean of the others is known."""
    total = (i * 0).to(tl.float32)
    calm = total
    for k in range(K):
        r = _relative(d, k, plane_size, tl.load(profile + k) * scale, i, ok)
        if k >= FIRST:
            past = total * tl.load(profile + K + k).to(tl.float32)
            calm = _larger(calm, tl.div_rn(past + STILL_FLOOR, r + STILL_FLOOR))
        total += r
    leap = total * 0
    if K > 2:
        there = _relative(d, 0, plane_size, tl.load(profile) * scale, i, ok)
        for k in range(1, K):
            back = _relative(d, k, plane_size, tl.load(profile + k) * scale, i, ok)
            others = total - there - back
            others = tl.where(others < 0, 0.0, others) * A_SHARE
            both = tl.where((there < back) | (there != there), there, back)
            leap = _larger(leap, tl.div_rn(both, others + JUMP_FLOOR))
            there = back
    return calm, leap


@triton.jit(do_not_specialize=["rows", "locations"])
def _scores(
    d,  # [K, R, n] fp32, bf16 or fp16
    sums,  # [K*R, STRETCHES] fp64
    profile,  # [2, K] fp64: the profile, and 1/k
    still,  # [R, n] fp32, written
    jump,  # [R, n] fp32, written
    rows,
    locations,
    K: tl.constexpr,
    FIRST: tl.constexpr,
    A_SHARE: tl.constexpr,
    STILL_FLOOR: tl.constexpr,
    JUMP_FLOOR: tl.constexpr,
    SCALE_FLOOR: tl.constexpr,
    STRETCHES: tl.constexpr,
    PARTS: tl.constexpr,
    KS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = i < locations
    scale = scale_of(sums, profile, row, rows, locations, K, SCALE_FLOOR, STRETCHES, PARTS, KS)
    plane_size = rows.to(tl.int64) * locations
    calm, leap = calm_and_leap(
        d + row * locations, profile, scale, plane_size, i, ok, K, FIRST, A_SHARE, STILL_FLOOR, JUMP_FLOOR
    )
    tl.store(still + row * locations + i, calm, ok)
    tl.store(jump + row * locations + i, leap, ok)


class Window:
    """What is known of windows of one shape before they are: sizes, grids and the constants of the kernels.

    Args: shape: [K, R, *grid] of the changes, not empty, K >= 2.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count, self.rows, *grid = shape
        self.locations = math.prod(grid)
        self.stretch = triton.cdiv(triton.cdiv(self.locations, STRETCHES), BLOCK) * BLOCK
        self.stretches = triton.cdiv(self.locations, self.stretch)
        self.sums_shape = (self.count * self.rows, self.stretches)
        self.sums_fixed = (self.locations, self.stretch, self.stretches, BLOCK)
        self.grid = (self.rows, triton.cdiv(self.locations, BLOCK))
        self.fixed = (
            self.rows,
            self.locations,
            self.count,
            min(reference_scores.STILL_FROM, self.count - 1),
            1 / max(1, self.count - 2),
            reference_scores.STILL_FLOOR,
            reference_scores.JUMP_FLOOR,
            reference_scores.SCALE_FLOOR,
            self.stretches,
            triton.next_power_of_2(self.stretches),
            max(16, triton.next_power_of_2(self.count)),
            BLOCK,
        )


@functools.lru_cache(maxsize=64)
def table_on(profile: tuple[float, ...], device: torch.device) -> Tensor:
    """The profile and 1/k on a device, fp64 [2, K]. Kept: a CUDA graph can be captured after the first call."""
    return upload(torch.tensor([profile, (0, *(1 / k for k in range(1, len(profile))))], dtype=torch.float64), device)


def temporal_scores(d: Tensor, profile: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Launch on checked arguments, see ``ops.temporal_scores``. d: [K, R, *grid], fp32, bf16 or fp16."""
    # Not halves of one tensor: a custom op's results share no memory.
    still, jump = (torch.empty(d.shape[1:], dtype=torch.float32, device=d.device) for _ in range(2))
    if still.numel() == 0:
        return still, jump
    d, window = d.contiguous(), Window(d.shape)
    sums = torch.empty(window.sums_shape, dtype=torch.float64, device=d.device)
    table = table_on(tuple(map(float, profile)), d.device)
    sums_of[window.sums_shape](d, sums, *window.sums_fixed)
    _scores[window.grid](d, sums, table, still, jump, *window.fixed, enable_fp_fusion=False)
    return still, jump
