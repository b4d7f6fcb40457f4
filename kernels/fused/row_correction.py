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
    FINITE,
    OPENS,
    SCRIPT,
    SEED_HIGH,
    SEED_LOW,
    SIGMA,
    START,
    T_C,
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
    by_slot,  # uint8 [slots, record], written: labels and z [n] of four bytes, grown, mask [n] and overflow of one
    record,
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
    NAN_WHERE_NOT_FINITE: tl.constexpr,
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
    finite = (tl.zeros((BLOCK,), tl.int32) + tl.load(script + FINITE)) != 0
    found = place * locations + location
    by_slot += slot * record
    size = slot * 0 + locations  # of 64 bits
    kept_labels = by_slot.to(tl.pointer_type(tl.int32)) + location
    kept_z = (by_slot + 4 * size).to(tl.pointer_type(tl.float32)) + location
    kept_grown = by_slot + 8 * size + location
    inside = (tl.load(grown + found, here, other=0) != 0) & finite
    severity = tl.load(z + found, here, other=0.0)
    if NAN_WHERE_NOT_FINITE:
        severity = tl.where(finite, severity, float("nan"))
    tl.store(kept_z, severity, here)
    tl.store(kept_grown, inside.to(tl.uint8), here)
    tl.store(kept_grown + size, ((tl.load(mask + found, here, other=0) != 0) & finite).to(tl.uint8), here)
    tl.store(kept_labels, tl.where(finite, tl.load(labels + found, here, other=0), 0), here)
    if tl.program_id(0) == 0:
        lost = (tl.load(overflow + place) != 0) & (tl.load(script + FINITE) != 0)
        tl.store(by_slot + 10 * size, lost.to(tl.uint8))
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


def record_bytes(locations: int) -> int:
    """Of what is kept of a slot: labels int32, z float32, grown and mask a byte each, overflow; a multiple of 16."""
    return -(-(10 * locations + 1) // 16) * 16


def applying(length: int, x: Tensor, correct: bool, nan_where_not_finite: bool, perturbs: bool) -> PreparedLaunch:
    """Launches of ``apply_found_kernel`` on states like x, for lists of that length."""
    channels, *grid = x.shape[1:]
    _, height, width = grid_of(tuple(grid))
    locations = math.prod(grid)
    return PreparedLaunch(
        apply_found_kernel,
        (triton.cdiv(locations, BLOCK), length),
        record_bytes(locations),
        height,
        width,
        locations,
        *strides_of(x, 2),
        channels,
        correct,
        nan_where_not_finite,
        perturbs,
        int(Purpose.RENOISE),
        int(Purpose.PERTURB_X0),
        SCRIPT,
        BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )
