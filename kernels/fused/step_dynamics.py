# SPDX-License-Identifier: MIT
"""step_dynamics: x0_hat = a*x + b*m and the dynamics of one step in one pass (``reference.step_dynamics``).

Reads x, m and the previous x0_hat once, writes x0_hat and one value a location. One program does BLOCK locations of one
row and goes through the channels in order, so that the sum over channels does not depend on the batch.
"""

import torch
import triton
import triton.language as tl
from ascedfast.kernels.grid import grid_of, grid_strides, offset_of
from torch import Tensor

BLOCK = 256


@triton.jit
def _step_dynamics(
    x,  # [R, C, D, H, W], fp32 | fp16 | bf16
    m,  # [R, C, D, H, W], fp32 | fp16 | bf16
    x0_prev,  # [R, C, D, H, W] fp32, read where HAS_PREVIOUS
    x0,  # [R, C, D, H, W] fp32, written
    d,  # [R, D, H, W] fp32 contiguous, written where HAS_PREVIOUS
    a,  # [R] fp32
    b,  # [R] fp32
    clip,  # fp32
    height,
    width,
    locations,
    a_row,
    b_row,
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
    prev_row,
    prev_channel,
    prev_d,
    prev_h,
    prev_w,
    x0_row,
    x0_channel,
    C: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr,
    CLIP: tl.constexpr,
    MAX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    location = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = location < locations
    a_r = tl.load(a + row * a_row)
    b_r = tl.load(b + row * b_row)
    x += row * x_row + offset_of(location, height, width, x_d, x_h, x_w)
    m += row * m_row + offset_of(location, height, width, m_d, m_h, m_w)
    x0_prev += row * prev_row + offset_of(location, height, width, prev_d, prev_h, prev_w)
    x0 += row * x0_row + location
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(C):
        state = tl.load(x, ok, other=0.0).to(tl.float32)
        output = tl.load(m, ok, other=0.0).to(tl.float32)
        clean = a_r * state + b_r * output
        if CLIP:  # comparisons with NaN are false: NaN stays
            clean = tl.where(clean > clip, clip, tl.where(clean < -clip, -clip, clean))
        tl.store(x0, clean, ok)
        if HAS_PREVIOUS:
            change = tl.abs(clean - tl.load(x0_prev, ok, other=0.0))
            if MAX:
                total = tl.where((change > total) | (change != change), change, total)
            else:
                total += change
            x0_prev += prev_channel
        x += x_channel
        m += m_channel
        x0 += x0_channel
    if HAS_PREVIOUS:
        if not MAX:
            total = tl.div_rn(total, tl.zeros_like(total) + C)
        tl.store(d + row * locations + location, total, ok)


def step_dynamics(
    x: Tensor, m: Tensor, a: Tensor, b: Tensor, x0_prev: Tensor | None, clip: float | None, reduce: str
) -> tuple[Tensor, Tensor | None]:
    """Launch on checked arguments, see ``ops.step_dynamics``. No argument may be fp64."""
    rows, channels, *grid = x.shape
    depth, height, width = grid_of(tuple(grid))
    locations = depth * height * width
    x0 = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    d = None if x0_prev is None else torch.empty((rows, *grid), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return x0, d
    previous = x0 if x0_prev is None else x0_prev
    a, b = a.expand(rows), b.expand(rows)
    _step_dynamics[(triton.cdiv(locations, BLOCK), rows)](
        x,
        m,
        previous,
        x0,
        x0 if d is None else d,
        a,
        b,
        0.0 if clip is None else clip,
        height,
        width,
        locations,
        a.stride(0),
        b.stride(0),
        x.stride(0),
        x.stride(1),
        *grid_strides(x, 2),
        m.stride(0),
        m.stride(1),
        *grid_strides(m, 2),
        previous.stride(0),
        previous.stride(1),
        *grid_strides(previous, 2),
        x0.stride(0),
        x0.stride(1),
        C=channels,
        HAS_PREVIOUS=x0_prev is not None,
        CLIP=clip is not None,
        MAX=reduce == "max",
        BLOCK=BLOCK,
        enable_fp_fusion=False,
    )
    return x0, d
