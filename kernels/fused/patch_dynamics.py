# SPDX-License-Identifier: MIT
"""step_dynamics by patch: x0_hat of every location, the dynamics as means over squares of the (H, W) plane.

One program does PATCHES squares side by side of one plane of one row, all lines and columns of them, so that nothing is
added across programs. Channels, then lines, then columns are added by the trees of ``reference``; what lies beyond the
border counts as zero. Lines and columns are known without a division, so any strides are as good as dense ones.
"""

import torch
import triton
import triton.language as tl
from ascedfast.kernels.observe import clean_of, larger, tree_sum
from ascedfast.kernels.tile import GROUP, MIN_BLOCK, TILE, Layout
from torch import Tensor

from ascedfast.reference import patch_grid

WARP_TILE = 512
"""Elements of a warp's part of the tile, 16 a thread."""


@triton.jit(do_not_specialize=["clip"])
def _patch_dynamics(
    x,  # [R, C, D, H, W], fp32 | fp16 | bf16
    m,  # [R, C, D, H, W], fp32 | fp16 | bf16
    x0,  # [R, C, D, H, W] fp32, written: x0_hat
    x0_prev,  # [R, C, D, H, W] fp32 | fp16 | bf16
    d,  # [R, D, ceil(H/PATCH), ceil(W/PATCH)] fp32 contiguous, written
    a,  # [R] fp32
    b,  # [R] fp32
    clip,  # fp32, of x0_hat
    depth,
    height,
    width,
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
    C: tl.constexpr,
    CLIP: tl.constexpr,
    MAX: tl.constexpr,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    PATCHES: tl.constexpr,
):
    COLUMNS: tl.constexpr = PATCHES * PATCH
    BLOCK: tl.constexpr = PATCH * COLUMNS
    row = tl.program_id(1).to(tl.int64)
    down = (height + PATCH - 1) // PATCH
    across = (width + PATCH - 1) // PATCH
    stretches = (across + PATCHES - 1) // PATCHES
    strip = tl.program_id(0) // stretches  # a line of patches, counted through all planes of the row
    plane = (strip // down).to(tl.int64)
    top = (strip % down) * PATCH
    first = (tl.program_id(0) % stretches) * PATCHES
    index = tl.arange(0, BLOCK)
    h = (top + index // COLUMNS).to(tl.int64)
    w = (first * PATCH + index % COLUMNS).to(tl.int64)
    inside = (h < height) & (w < width)
    x += row * x_row + plane * x_d
    m += row * m_row + plane * m_d
    x0 += row * x0_row + plane * x0_d
    x0_prev += row * prev_row + plane * prev_d
    at_x = h * x_h + w * x_w
    at_m = h * m_h + w * m_w
    at_x0 = h * x0_h + w * x0_w
    at_prev = h * prev_h + w * prev_w
    a = tl.load(a + row * a_row)
    b = tl.load(b + row * b_row)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.static_range(0, C, CHANNELS):
        channel = start + tl.arange(0, CHANNELS).to(tl.int64)[:, None]
        ok = inside[None, :] & (channel < C)
        state = tl.load(x + channel * x_channel + at_x[None, :], ok, other=0.0).to(tl.float32)
        output = tl.load(m + channel * m_channel + at_m[None, :], ok, other=0.0).to(tl.float32)
        before = tl.load(x0_prev + channel * prev_channel + at_prev[None, :], ok, other=0.0).to(tl.float32)
        clean = clean_of(state, output, a, b, clip, CLIP)
        tl.store(x0 + channel * x0_channel + at_x0[None, :], clean, ok)
        change = tl.where(ok, tl.abs(clean - before), 0.0)
        if MAX:
            total = larger(total, change)
        else:
            total += tree_sum(change, CHANNELS, BLOCK)
    if not MAX:
        total = total * (1.0 / C)
    by_column = tree_sum(tl.reshape(total, [PATCH, COLUMNS]), PATCH, COLUMNS)
    by_patch = tree_sum(tl.trans(tl.reshape(by_column, [PATCHES, PATCH])), PATCH, PATCHES)
    patch = first + tl.arange(0, PATCHES)
    held = tl.minimum(height - top, PATCH) * tl.maximum(tl.minimum(width - patch * PATCH, PATCH), 1)
    at_d = (row * depth * down + strip) * across + patch
    tl.store(d + at_d, tl.div_rn(by_patch, held.to(tl.float32)), patch < across)


def patch_dynamics(
    x: Tensor,
    m: Tensor,
    a: Tensor,
    b: Tensor,
    x0_prev: Tensor,
    clip: float | None,
    reduce: str,
    patch: int,
) -> tuple[Tensor, Tensor]:
    """Launch on checked arguments, see ``ops.step_dynamics``. patch is above 1; no argument may be fp64."""
    layout = Layout(x)
    depth, height, width = layout.grid
    grid = patch_grid(x.shape[2:], patch)
    x0 = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    d = torch.empty((layout.rows, *grid), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return x0, d
    a, b = a.expand(layout.rows), b.expand(layout.rows)
    channels = min(GROUP, triton.next_power_of_2(layout.channels))
    most = max(TILE // channels, MIN_BLOCK) // patch**2
    patches = max(1, MIN_BLOCK // patch**2, min(most, triton.next_power_of_2(grid[-1])))
    tile = channels * patches * patch**2
    strides = [stride for tensor in (x, m, x0, x0_prev) for stride in layout.strides(tensor)]
    _patch_dynamics[(depth * grid[-2] * triton.cdiv(grid[-1], patches), layout.rows)](
        x,
        m,
        x0,
        x0_prev,
        d,
        a,
        b,
        0.0 if clip is None else clip,
        depth,
        height,
        width,
        a.stride(0),
        b.stride(0),
        *strides,
        C=layout.channels,
        CLIP=clip is not None,
        MAX=reduce == "max",
        CHANNELS=channels,
        PATCH=patch,
        PATCHES=patches,
        num_warps=max(1, min(8, tile // WARP_TILE)),
        enable_fp_fusion=False,
    )
    return x0, d
