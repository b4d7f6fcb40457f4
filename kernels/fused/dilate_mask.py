# SPDX-License-Identifier: MIT
"""dilate_mask: a square of side 2*radius + 1 around every set location of an (H, W) plane (``reference.dilate_mask``).

The square is taken apart, in one launch: a program owns a few lines over their whole width, grows them across the lines
first and then along them, which needs nothing that another program made. A location costs 2*(2*radius + 1) loads of a
byte instead of (2*radius + 1)^2.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from ascedfast.kernels.grid import grid_of
from ascedfast.kernels.prepared import KEPT, Place, PreparedLaunch
from torch import Tensor

LINES, STRETCH = 4, 128
"""A block: so many lines, so many locations along them."""
UNROLLED = 16
"""Largest radius whose loads are written out, so that they overlap."""


@triton.jit
def _at(mask, position, size, stride, ok):
    """Whether the location is set, False beyond the border."""
    return tl.load(mask + position * stride, ok & (position >= 0) & (position < size), other=0) != 0


@triton.jit
def _grown(mask, position, size, stride, ok, RADIUS: tl.constexpr, UNROLL: tl.constexpr):
    """Whether a location up to RADIUS away along one axis is set: uint8."""
    found = _at(mask, position, size, stride, ok)
    if UNROLL:
        for step in tl.static_range(1, RADIUS + 1):
            found |= _at(mask, position - step, size, stride, ok) | _at(mask, position + step, size, stride, ok)
    else:
        for step in range(1, RADIUS + 1):
            found |= _at(mask, position - step, size, stride, ok) | _at(mask, position + step, size, stride, ok)
    return found.to(tl.uint8)


@triton.jit
def _dilate_mask(
    mask,  # [R, D, H, W] bool as uint8, any strides
    across,  # [R, D, H, W] uint8 contiguous, scratch: grown across the lines
    out,  # [R, D, H, W] uint8 contiguous, written
    depth,
    height,
    width,
    mask_row,
    mask_d,
    mask_h,
    mask_w,
    RADIUS: tl.constexpr,
    UNROLL: tl.constexpr,
    LINES: tl.constexpr,
    STRETCH: tl.constexpr,
):
    slabs = (height + LINES - 1) // LINES
    plane = (tl.program_id(0) // slabs).to(tl.int64)
    h = ((tl.program_id(0) % slabs) * LINES + tl.arange(0, LINES)).to(tl.int64)[:, None]
    mask += (plane // depth) * mask_row + (plane % depth) * mask_d
    line = (plane * height + h) * width
    start = 0
    while start < width:
        w = (start + tl.arange(0, STRETCH)).to(tl.int64)[None, :]
        ok = (h < height) & (w < width)
        tl.store(across + line + w, _grown(mask + w * mask_w, h, height, mask_h, ok, RADIUS, UNROLL), ok)
        start += STRETCH
    tl.debug_barrier()  # other threads of this program wrote what is read now
    start = 0
    while start < width:
        w = (start + tl.arange(0, STRETCH)).to(tl.int64)[None, :]
        ok = (h < height) & (w < width)
        tl.store(out + line + w, _grown(across + line, w, width, 1, ok, RADIUS, UNROLL), ok)
        start += STRETCH


class Dilation:
    """``dilate_mask`` on masks of one shape and strides, which are not empty."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...], radius: int) -> None:
        depth, height, width = grid_of(shape[1:])
        radius = min(radius, max(height, width))  # further is the whole plane all the same
        self._launch = PreparedLaunch(
            _dilate_mask,
            (shape[0] * depth * triton.cdiv(height, LINES),),
            depth,
            height,
            width,
            strides[0],
            *(0,) * (4 - len(shape)),
            *strides[1:],
            radius,
            radius <= UNROLLED,
            LINES,
            STRETCH,
            num_warps=4,
            num_stages=1,
        )

    def __call__(self, mask: Tensor) -> Tensor:
        out = torch.empty_like(mask, memory_format=torch.contiguous_format)
        self._launch(mask, torch.empty_like(out), out)
        return out

    def add_to(self, sequence: Any, mask: Place, across: Place, out: Place) -> None:
        """See ``PreparedLaunch.add_to``. across: scratch of the mask's size."""
        self._launch.add_to(sequence, mask, across, out)


@functools.lru_cache(maxsize=KEPT)
def _kept(shape: tuple[int, ...], strides: tuple[int, ...], radius: int, device: torch.device) -> Dilation:
    """One for each device: a compiled kernel is a device's own."""
    return Dilation(shape, strides, radius)


def dilate_mask(mask: Tensor, radius: int) -> Tensor:
    """Launch on checked arguments, see ``ops.dilate_mask``."""
    if mask.numel() == 0:
        return torch.empty(mask.shape, dtype=torch.bool, device=mask.device)
    return _kept(mask.shape, mask.stride(), radius, mask.device)(mask)
