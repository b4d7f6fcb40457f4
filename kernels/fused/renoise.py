# SPDX-License-Identifier: MIT
"""renoise_: alpha*(x0 + x0_noise*xi) + sigma*e inside the mask, in place (``reference.renoise``).

One program does BLOCK locations of one row. A block without a masked location ends after reading its mask; elsewhere
nothing is written outside the mask, so x keeps its bits there.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from ascedfast.kernels.grid import grid_of, offset_of, strides_of
from ascedfast.kernels.philox import block_of_normals
from ascedfast.kernels.prepared import KEPT, Place, PreparedLaunch
from torch import Tensor

from ascedfast.noise import Purpose

BLOCK = 256


@triton.jit
def _four_channels(x0, first, stride, inside, C: tl.constexpr):
    """x0 of the channels from ``first`` on (int64 [BLOCK], all the same), 0 beyond the last one."""
    one = tl.load(x0 + first * stride, inside & (first < C), other=0.0)
    two = tl.load(x0 + (first + 1) * stride, inside & (first + 1 < C), other=0.0)
    three = tl.load(x0 + (first + 2) * stride, inside & (first + 2 < C), other=0.0)
    four = tl.load(x0 + (first + 3) * stride, inside & (first + 3 < C), other=0.0)
    return one, two, three, four


@triton.jit
def write_noised(
    x,  # pointers to channel 0 of the locations, written
    x0,  # the same, fp32
    location,  # int64 [BLOCK], in the request's own grid
    inside,
    x_channel,
    x0_channel,
    a,
    s,
    amount,  # read where PERTURB
    key0,  # uint32
    key1,
    step,
    draw,  # uint32, already << 16
    C: tl.constexpr,
    PERTURB: tl.constexpr,
    RENOISE_PURPOSE: tl.constexpr,
    PERTURB_PURPOSE: tl.constexpr,
):
    """x = a*(x0 + amount*xi) + s*e at the locations ``inside``."""
    counter = location.to(tl.uint32)
    for group in range((C + 3) // 4):
        e = block_of_normals(counter, draw + group, step, RENOISE_PURPOSE, key0, key1)
        xi = e
        if PERTURB:
            xi = block_of_normals(counter, draw + group, step, PERTURB_PURPOSE, key0, key1)
        # All four before the first store, which no compiler may move a load over.
        known = _four_channels(x0, tl.zeros_like(location) + group * 4, x0_channel, inside, C)
        for word in tl.static_range(4):
            channel = tl.zeros_like(location) + (group * 4 + word)
            clean = known[word]
            if PERTURB:
                clean = clean + amount * xi[word]
            y = a * clean + s * e[word]
            tl.store(x + channel * x_channel, y.to(x.dtype.element_ty), inside & (channel < C))


@triton.jit
def _renoise(
    x,  # [R, C, D, H, W], fp32 | fp16 | bf16, written
    mask,  # [R, D, H, W] bool as uint8
    x0,  # [R, C, D, H, W] fp32
    alpha,  # [R] fp32
    sigma,  # [R] fp32
    x0_noise,  # [R] fp32, read where PERTURB
    seeds,  # [R] int64
    steps,  # [R] int64
    draws,  # [R] int64
    height,
    width,
    locations,
    x_row,
    x_channel,
    x_d,
    x_h,
    x_w,
    mask_row,
    mask_d,
    mask_h,
    mask_w,
    x0_row,
    x0_channel,
    x0_d,
    x0_h,
    x0_w,
    C: tl.constexpr,
    PERTURB: tl.constexpr,
    RENOISE_PURPOSE: tl.constexpr,
    PERTURB_PURPOSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    location = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = location < locations
    at = offset_of(location, height, width, mask_d, mask_h, mask_w)
    inside = tl.load(mask + row * mask_row + at, inside, other=0) != 0
    if tl.max(inside.to(tl.int32), 0) == 0:
        return
    a = tl.load(alpha + row)
    s = tl.load(sigma + row)
    amount = a
    if PERTURB:
        amount = tl.load(x0_noise + row)
    seed = tl.load(seeds + row).to(tl.uint64, bitcast=True)
    key0, key1 = (seed & 0xFFFFFFFF).to(tl.uint32), (seed >> 32).to(tl.uint32)
    step = tl.load(steps + row).to(tl.uint32)
    draw = tl.load(draws + row).to(tl.uint32) << 16
    x += row * x_row + offset_of(location, height, width, x_d, x_h, x_w)
    x0 += row * x0_row + offset_of(location, height, width, x0_d, x0_h, x0_w)
    write_noised(
        x, x0, location, inside, x_channel, x0_channel, a, s, amount, key0, key1, step, draw, C, PERTURB,
        RENOISE_PURPOSE, PERTURB_PURPOSE,
    )  # fmt: skip


@functools.lru_cache(maxsize=KEPT)
def _prepared(
    shape: tuple[int, ...],
    x_strides: tuple[int, ...],
    mask_strides: tuple[int, ...],
    x0_strides: tuple[int, ...],
    types: tuple[torch.dtype, ...],
    perturb: bool,
    device: torch.device,
) -> PreparedLaunch:
    """types: of the tensors, which a compiled kernel is made for."""
    _, height, width = grid_of(shape[2:])
    locations = math.prod(shape[2:])
    return PreparedLaunch(
        _renoise,
        (triton.cdiv(locations, BLOCK), shape[0]),
        height,
        width,
        locations,
        *x_strides,
        *mask_strides,
        *x0_strides,
        shape[1],
        perturb,
        int(Purpose.RENOISE),
        int(Purpose.PERTURB_X0),
        BLOCK,
        enable_fp_fusion=False,
    )


def renoise_(
    x: Tensor,
    mask: Tensor,
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    seeds: Tensor,
    steps: Tensor,
    draws: Tensor,
    x0_noise: Tensor | None,
) -> Tensor:
    """Launch on checked arguments, see ``ops.renoise_``. x0 is fp32."""
    if x.numel() == 0:
        return x
    levels = (alpha, sigma, alpha if x0_noise is None else x0_noise)
    # The kernel walks through dense rows.
    tensors = (x, mask, x0, *(value.contiguous() for value in (*levels, seeds, steps, draws)))
    _prepared(*_kind(tensors, x0_noise is not None))(*tensors)
    return x


def add_to(sequence: Any, tensors: Sequence[Tensor], places: Sequence[Place], perturb: bool) -> None:
    """See ``PreparedLaunch.add_to``. tensors: like x, mask, x0, alpha, sigma, x0_noise (alpha where not ``perturb``),
    seeds, steps and draws of the calls to come; places: theirs."""
    _prepared(*_kind(tensors, perturb)).add_to(sequence, *places)


def _kind(tensors: Sequence[Tensor], perturb: bool) -> tuple:
    """What ``_prepared`` takes."""
    x, mask, x0, *_ = tensors
    strides = (strides_of(x, 2), strides_of(mask, 1), strides_of(x0, 2))
    return x.shape, *strides, tuple(tensor.dtype for tensor in tensors), perturb, x.device
