# SPDX-License-Identifier: MIT
"""step_dynamics: a solver's update, x0_hat = a*x + b*m and the dynamics of a step in one pass over memory.

One program does BLOCK locations of one row, some channels at a time (``tile``); a location's channels are added in the
order of ``reference.dynamics``, so that the sum does not depend on the batch or on the layout.
"""

import torch
import triton
import triton.language as tl
from ascedfast.kernels.observe import clean_of, larger, plus_groups
from ascedfast.kernels.solver import next_state
from ascedfast.kernels.tile import WARPS, Layout, channel_stride, offset_at
from torch import Tensor

from ascedfast.solver import Update


@triton.jit(do_not_specialize=["step", "slot", "clip", "solver_clip"])
def step_dynamics_kernel(
    x,  # [R, C, D, H, W], fp32 | fp16 | bf16
    m,  # [R, C, D, H, W], fp32 | fp16 | bf16
    x0,  # [R, C, D, H, W] fp32: x0_hat, written where OBSERVE; the previous one is read first where PREVIOUS
    x0_prev,  # [R, C, D, H, W] fp32, may be x0 itself
    d,  # [slots, R, D, H, W] fp32 contiguous, written where PREVIOUS
    x_next,  # [R, C, D, H, W], written where SOLVER
    own_x0,  # [R, C, D, H, W], the solver's own prediction, written where OWN_X0
    own_x0_prev,  # [R, C, D, H, W], that of the previous step, read by two-step solvers
    table,  # [R, steps, TABLE_WIDTH] fp32: a, b and the solver's scalars of each step
    step,  # row of the table
    slot,  # of d
    clip,  # fp32, of x0_hat
    solver_clip,  # fp32, of the solver's own prediction
    rows,
    height,
    width,
    locations,
    table_row,
    table_step,
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
    prev_row,
    prev_channel,
    prev_d,
    prev_h,
    prev_w,
    next_row,
    next_channel,
    next_d,
    next_h,
    next_w,
    C: tl.constexpr,
    OBSERVE: tl.constexpr,
    PREVIOUS: tl.constexpr,
    CLIP: tl.constexpr,
    MAX: tl.constexpr,
    SOLVER: tl.constexpr,
    PREDICTION: tl.constexpr,
    DIVIDE: tl.constexpr,
    SOLVER_CLIP: tl.constexpr,
    OWN_X0: tl.constexpr,
    LAYOUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    location = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at_x = offset_at(location, height, width, x_d, x_h, x_w, C, LAYOUT)
    at_m = offset_at(location, height, width, m_d, m_h, m_w, C, LAYOUT)
    at_x0 = offset_at(location, height, width, x0_d, x0_h, x0_w, C, LAYOUT)
    at_prev = offset_at(location, height, width, prev_d, prev_h, prev_w, C, LAYOUT)
    at_next = offset_at(location, height, width, next_d, next_h, next_w, C, LAYOUT)
    x_channel = channel_stride(x_channel, locations, LAYOUT)
    m_channel = channel_stride(m_channel, locations, LAYOUT)
    x0_channel = channel_stride(x0_channel, locations, LAYOUT)
    prev_channel = channel_stride(prev_channel, locations, LAYOUT)
    next_channel = channel_stride(next_channel, locations, LAYOUT)
    table += row * table_row + step.to(tl.int64) * table_step
    a = tl.load(table)
    b = tl.load(table + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in tl.static_range(0, C, CHANNELS):
        channel = first + tl.arange(0, CHANNELS).to(tl.int64)[:, None]
        ok = (location < locations)[None, :] & (channel < C)
        # All loads before the first store: a compiler that cannot rule out that they meet keeps their order, and a load
        # behind a store would wait for memory a second time.
        state = tl.load(x + row * x_row + channel * x_channel + at_x[None, :], ok, other=0.0)
        output = tl.load(m + row * m_row + channel * m_channel + at_m[None, :], ok, other=0.0)
        at_result = row * next_row + channel * next_channel + at_next[None, :]
        if PREVIOUS:
            before = tl.load(x0_prev + row * prev_row + channel * prev_channel + at_prev[None, :], ok, other=0.0)
        if SOLVER != "none":
            older = state.to(tl.float32)
            if SOLVER == "dpm2":
                older = tl.load(own_x0_prev + at_result, ok, other=0.0).to(tl.float32)
            following, own = next_state(
                state,
                output,
                older,
                table + 2,
                solver_clip,
                x_next.dtype.element_ty,
                SOLVER,
                PREDICTION,
                DIVIDE,
                SOLVER_CLIP,
            )
            tl.store(x_next + at_result, following.to(x_next.dtype.element_ty), ok)
            if OWN_X0:
                tl.store(own_x0 + at_result, own.to(own_x0.dtype.element_ty), ok)
        if OBSERVE:
            clean = clean_of(state.to(tl.float32), output.to(tl.float32), a, b, clip, CLIP)
            if PREVIOUS:
                change = tl.where(ok, tl.abs(clean - before), 0.0)
                total = larger(total, change) if MAX else plus_groups(total, change, CHANNELS, BLOCK)
            tl.store(x0 + row * x0_row + channel * x0_channel + at_x0[None, :], clean, ok)
    if PREVIOUS:
        if not MAX:
            total = total * (1.0 / C)
        at_d = (slot.to(tl.int64) * rows + row) * locations + location
        tl.store(d + at_d, total, location < locations)


def variant(layout: Layout, order: str, observe: int, clip: bool, reduce: str, update: Update | None) -> tuple:
    """The kernel's constexpr arguments, in order. order: ``Layout.order``'s. observe: 0 no, 1 x0_hat alone, 2 with the
    dynamics."""
    channels = layout.together(order)
    return (
        layout.channels,
        observe > 0,
        observe > 1,
        clip,
        reduce == "max",
        "none" if update is None else update.solver,
        "none" if update is None else update.prediction,
        update is None or update.divide,
        update is not None and update.clip is not None,
        update is not None and update.solver != "flow",
        order,
        channels,
        layout.block(channels),
    )


def step_dynamics(
    x: Tensor,
    m: Tensor,
    a: Tensor,
    b: Tensor,
    x0_prev: Tensor | None,
    clip: float | None,
    reduce: str,
    update: Update | None = None,
    scalars: Tensor | None = None,
    own_x0_prev: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Launch on checked arguments, see ``ops.step_dynamics``. No argument may be fp64.

    Returns x0_hat, d, the next state and the solver's own x0; None where they were not asked for.
    """
    layout = Layout(x)
    x0 = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    d = None if x0_prev is None else torch.empty((x.shape[0], *x.shape[2:]), dtype=torch.float32, device=x.device)
    x_next = own = None
    if update is not None:
        x_next = torch.empty(x.shape, dtype=update.state_dtype(x.dtype, m.dtype), device=x.device)
        own_dtype = update.own_x0_dtype(x.dtype, m.dtype)
        own = None if own_dtype is None else torch.empty(x.shape, dtype=own_dtype, device=x.device)
    if x.numel() == 0:
        return x0, d, x_next, own
    pair = torch.stack(torch.broadcast_tensors(a, b), -1)
    table = pair if scalars is None else torch.cat((pair, scalars.expand(*pair.shape[:-1], -1)), -1)
    table = table.expand(layout.rows, -1).contiguous()
    previous = x0 if x0_prev is None else x0_prev
    if own_x0_prev is not None:
        own_x0_prev = own_x0_prev.contiguous()
    strides = [layout.strides(t) for t in (x, m, x0, previous, x0 if x_next is None else x_next)]
    order = layout.order(strides)
    constants = variant(layout, order, 1 if x0_prev is None else 2, clip is not None, reduce, update)
    sizes, flat = layout.numbers(strides, order)
    step_dynamics_kernel[(triton.cdiv(layout.locations, constants[-1]), layout.rows)](
        x,
        m,
        x0,
        previous,
        x0 if d is None else d,
        x0 if x_next is None else x_next,
        x0 if own is None else own,
        x0 if own_x0_prev is None else own_x0_prev,
        table,
        0,
        0,
        0.0 if clip is None else clip,
        0.0 if update is None or update.clip is None else update.clip,
        layout.rows,
        *sizes,
        layout.locations,
        table.stride(0),
        0,
        *flat,
        *constants,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    return x0, d, x_next, own
