# SPDX-License-Identifier: MIT
"""A solver's step in linear form, x0_hat and the dynamics in one pass over memory (``linear.linear_update``).

Sums are done in float64: a step is bound by memory, and there a product of a float32 and a coefficient is exact enough
that only the last rounding counts. Tiles, layouts and the order of the channels' sum are those of step_dynamics.
"""

import triton
import triton.language as tl
from ascedfast.kernels.observe import clean_of, larger, tree_sum
from ascedfast.kernels.tile import channel_stride, offset_at


@triton.jit
def _sum(coefficients, x, m, c0, c1, c2, READS: tl.constexpr):
    """One row of the table times the inputs, float64."""
    total = tl.load(coefficients) * x + tl.load(coefficients + 1) * m
    if READS > 0:
        total += tl.load(coefficients + 2) * c0
    if READS > 1:
        total += tl.load(coefficients + 3) * c1
    if READS > 2:
        total += tl.load(coefficients + 4) * c2
    return total


@triton.jit(do_not_specialize=["step", "slot", "clip", "solver_clip"])
def linear_step_kernel(
    x,  # [R, C, D, H, W], fp32 | fp16 | bf16
    m,  # [R, C, D, H, W], fp32 | fp16 | bf16
    read_0,  # [R, C, D, H, W] fp32, lies as x0: carried tensors in the order of the coefficients
    read_1,
    read_2,
    write_0,  # [R, C, D, H, W] fp32, lies as x0; may be one that is read
    write_1,
    x_next,  # [R, C, D, H, W], written
    own_x0,  # [R, C, D, H, W], lies as x_next: the solver's own prediction, written where OWN_X0
    x0,  # [R, C, D, H, W] fp32: x0_hat, written where OBSERVE; the previous one is read first where PREVIOUS
    d,  # [slots, R, D, H, W] fp32 contiguous, written where PREVIOUS
    levels,  # [R, steps, levels_step] fp32: a and b of each step
    sums,  # [R, steps, linear.WIDTH] fp64
    step,  # row of both tables
    slot,  # of d
    clip,  # fp32, of x0_hat
    solver_clip,  # fp32, of the solver's own prediction
    rows,
    height,
    width,
    locations,
    levels_row,
    levels_step,
    sums_row,
    x_row,
    x_channel,
    x_d,
    x_h,
    x_w,
    m_row,
    m_channel,
    m_d,
    m_h,
    m_w,
    x0_row,
    x0_channel,
    x0_d,
    x0_h,
    x0_w,
    next_row,
    next_channel,
    next_d,
    next_h,
    next_w,
    C: tl.constexpr,
    READS: tl.constexpr,
    WRITES: tl.constexpr,
    SOLVER_CLIP: tl.constexpr,
    OWN_X0: tl.constexpr,
    OBSERVE: tl.constexpr,
    PREVIOUS: tl.constexpr,
    CLIP: tl.constexpr,
    MAX: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    LAYOUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    location = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at_x = offset_at(location, height, width, x_d, x_h, x_w, C, LAYOUT)
    at_m = offset_at(location, height, width, m_d, m_h, m_w, C, LAYOUT)
    at_x0 = offset_at(location, height, width, x0_d, x0_h, x0_w, C, LAYOUT)
    at_next = offset_at(location, height, width, next_d, next_h, next_w, C, LAYOUT)
    x_channel = channel_stride(x_channel, locations, LAYOUT)
    m_channel = channel_stride(m_channel, locations, LAYOUT)
    x0_channel = channel_stride(x0_channel, locations, LAYOUT)
    next_channel = channel_stride(next_channel, locations, LAYOUT)
    levels += row * levels_row + step.to(tl.int64) * levels_step
    sums += row * sums_row + step.to(tl.int64) * WIDTH
    a = tl.load(levels)
    b = tl.load(levels + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in tl.static_range(0, C, CHANNELS):
        channel = first + tl.arange(0, CHANNELS).to(tl.int64)[:, None]
        ok = (location < locations)[None, :] & (channel < C)
        state = tl.load(x + row * x_row + channel * x_channel + at_x[None, :], ok, other=0.0).to(tl.float32)
        output = tl.load(m + row * m_row + channel * m_channel + at_m[None, :], ok, other=0.0).to(tl.float32)
        at_kept = row * x0_row + channel * x0_channel + at_x0[None, :]
        at_result = row * next_row + channel * next_channel + at_next[None, :]
        wide = state.to(tl.float64)
        wide_output = output.to(tl.float64)
        c0 = wide
        c1 = wide
        c2 = wide
        if READS > 0:
            c0 = tl.load(read_0 + at_kept, ok, other=0.0).to(tl.float64)
        if READS > 1:
            c1 = tl.load(read_1 + at_kept, ok, other=0.0).to(tl.float64)
        if READS > 2:
            c2 = tl.load(read_2 + at_kept, ok, other=0.0).to(tl.float64)
        if PREVIOUS:  # before the first store, as in step_dynamics
            before = tl.load(x0 + at_kept, ok, other=0.0)
        following = _sum(sums, wide, wide_output, c0, c1, c2, READS)
        if SOLVER_CLIP or OWN_X0:
            own = tl.load(sums + WIDTH - 2) * wide + tl.load(sums + WIDTH - 1) * wide_output
            if SOLVER_CLIP:
                own = tl.where(own > solver_clip, solver_clip, tl.where(own < -solver_clip, -solver_clip, own))
                following += tl.load(sums + COLUMNS - 1) * own
            if OWN_X0:
                tl.store(own_x0 + at_result, own.to(tl.float32).to(own_x0.dtype.element_ty), ok)
        tl.store(x_next + at_result, following.to(tl.float32).to(x_next.dtype.element_ty), ok)
        if WRITES > 0:
            new_0 = _sum(sums + COLUMNS, wide, wide_output, c0, c1, c2, READS).to(tl.float32)
        if WRITES > 1:
            new_1 = _sum(sums + 2 * COLUMNS, wide, wide_output, c0, c1, c2, READS).to(tl.float32)
        if WRITES > 0:
            tl.store(write_0 + at_kept, new_0, ok)
        if WRITES > 1:
            tl.store(write_1 + at_kept, new_1, ok)
        if OBSERVE:
            clean = clean_of(state, output, a, b, clip, CLIP)
            if PREVIOUS:
                change = tl.where(ok, tl.abs(clean - before), 0.0)
                if MAX:
                    total = larger(total, change)
                else:
                    total += tree_sum(change, CHANNELS, BLOCK)
            tl.store(x0 + at_kept, clean, ok)
    if PREVIOUS:
        if not MAX:
            total = total * (1.0 / C)
        tl.store(d + (slot.to(tl.int64) * rows + row) * locations + location, total, location < locations)
