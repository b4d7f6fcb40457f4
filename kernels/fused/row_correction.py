# SPDX-License-Identifier: MIT
"""The correction of rows that lie in slots of a batch: their windows gathered for the detection, and what it found
written back to the slots, the states re-noised on the way.

Rows stand in a list, ``due``: the slot of each, -1 for none, and its row of x. A list has one of few lengths, so that
launches are prepared for each; what is none costs the launch its programs, and writes nothing.
"""

import math

import triton
import triton.language as tl
from ascedfast.kernels.grid import grid_of, offset_of, strides_of
from ascedfast.kernels.prepared import PreparedLaunch
from ascedfast.kernels.renoise import write_noised
from ascedfast.kernels.row_step import (
    ALPHA,
    DRAW,
    OPENS,
    SCRIPT,
    SEED_HIGH,
    SEED_LOW,
    SIGMA,
    START,
    T_C,
    WILD,
    X0_NOISE,
)
from torch import Tensor

from ascedfast.noise import Purpose

BLOCK = 256


@triton.jit
def gather_windows_kernel(
    bank,  # [slots, maps, n] fp32
    script,  # [slots, SCRIPT] int32
    due,  # [2, D] int32
    windows,  # [K, D, n] fp32, written; zeros for what is none
    maps,
    locations,
    SCRIPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place, k = tl.program_id(1), tl.program_id(2)
    count = tl.num_programs(1)
    slot = tl.load(due + place).to(tl.int64)
    location = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = location < locations
    at = script + tl.maximum(slot, 0) * SCRIPT
    first = tl.load(at + START) - tl.load(at + OPENS)
    source = bank + (tl.maximum(slot, 0) * maps + first + k) * locations + location
    values = tl.load(source, here & (location * 0 + slot >= 0), other=0.0)
    tl.store(windows + (k.to(tl.int64) * count + place) * locations + location, values, here)


@triton.jit
def apply_found_kernel(
    x,  # [R, C, D, H, W] in any strides, fp32 | fp16 | bf16, written inside the mask where CORRECT
    due,  # [2, D] int32
    grown,  # [D, n] uint8: what was found, row by row of the list
    mask,  # [D, n] uint8
    labels,  # [D, n] int32
    z,  # [D, n] fp32
    overflow,  # [D] uint8
    script,  # [slots, SCRIPT] int32
    x0,  # [slots, C, n] fp32
    slot_grown,  # [slots, n], and so on: the same by slot, written
    slot_mask,
    slot_labels,
    slot_z,
    slot_overflow,
    height,
    width,
    locations,
    x_row,
    x_channel,
    x_d,
    x_h,
    x_w,
    C: tl.constexpr,
    CORRECT: tl.constexpr,
    NAN_WHERE_WILD: tl.constexpr,
    PERTURB: tl.constexpr,
    RENOISE_PURPOSE: tl.constexpr,
    PERTURB_PURPOSE: tl.constexpr,
    SCRIPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(1).to(tl.int64)
    slot = tl.load(due + place).to(tl.int64)
    if slot < 0:
        return
    row = tl.load(due + tl.num_programs(1) + place).to(tl.int64)
    script += slot * SCRIPT
    location = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = location < locations
    tame = (tl.zeros((BLOCK,), tl.int32) + tl.load(script + WILD)) == 0
    found, kept = place * locations + location, slot * locations + location
    inside = (tl.load(grown + found, here, other=0) != 0) & tame
    severity = tl.load(z + found, here, other=0.0)
    if NAN_WHERE_WILD:
        severity = tl.where(tame, severity, float("nan"))
    tl.store(slot_z + kept, severity, here)
    tl.store(slot_grown + kept, inside.to(tl.uint8), here)
    tl.store(slot_mask + kept, ((tl.load(mask + found, here, other=0) != 0) & tame).to(tl.uint8), here)
    tl.store(slot_labels + kept, tl.where(tame, tl.load(labels + found, here, other=0), 0), here)
    if tl.program_id(0) == 0:
        lost = (tl.load(overflow + place) != 0) & (tl.load(script + WILD) == 0)
        tl.store(slot_overflow + slot, lost.to(tl.uint8))
    if CORRECT:
        if tl.max(inside.to(tl.int32), 0) == 0:
            return
        a = tl.load(script + ALPHA).to(tl.float32, bitcast=True)
        s = tl.load(script + SIGMA).to(tl.float32, bitcast=True)
        amount = tl.load(script + X0_NOISE).to(tl.float32, bitcast=True)
        key0 = tl.load(script + SEED_LOW).to(tl.uint32, bitcast=True)
        key1 = tl.load(script + SEED_HIGH).to(tl.uint32, bitcast=True)
        step = tl.load(script + T_C).to(tl.uint32)
        draw = tl.load(script + DRAW).to(tl.uint32) << 16
        x += row * x_row + offset_of(location, height, width, x_d, x_h, x_w)
        x0 += slot * C * locations + location
        write_noised(
            x, x0, location, inside, x_channel, locations, a, s, amount, key0, key1, step, draw, C, PERTURB,
            RENOISE_PURPOSE, PERTURB_PURPOSE,
        )  # fmt: skip


def gathering(maps: int, length: int, locations: int, bank_maps: int) -> PreparedLaunch:
    """Launches of ``gather_windows_kernel``: windows of so many changes, in lists of that length."""
    grid = (triton.cdiv(locations, BLOCK), length, maps)
    return PreparedLaunch(gather_windows_kernel, grid, bank_maps, locations, SCRIPT, BLOCK, num_warps=4)


def applying(length: int, x: Tensor, correct: bool, nan_where_wild: bool, perturbs: bool) -> PreparedLaunch:
    """Launches of ``apply_found_kernel`` on states like x, for lists of that length."""
    channels, *grid = x.shape[1:]
    _, height, width = grid_of(tuple(grid))
    locations = math.prod(grid)
    return PreparedLaunch(
        apply_found_kernel,
        (triton.cdiv(locations, BLOCK), length),
        height,
        width,
        locations,
        *strides_of(x, 2),
        channels,
        correct,
        nan_where_wild,
        perturbs,
        int(Purpose.RENOISE),
        int(Purpose.PERTURB_X0),
        SCRIPT,
        BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )
