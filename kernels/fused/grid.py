# SPDX-License-Identifier: MIT
"""Locations of a grid of one to three axes, in any strides."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def offset_of(location, height, width, stride_d, stride_h, stride_w):
    """Offset in elements of flat locations (row-major over D, H, W); int64.

    Divides in the locations' own type: a division of int64 takes a GPU ten times as long as one of int32.
    """
    line = location // width
    w = (location - line * width).to(tl.int64)
    d = line // height
    h = (line - d * height).to(tl.int64)
    return d.to(tl.int64) * stride_d + h * stride_h + w * stride_w


def grid_of(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    """(D, H, W) of a grid, missing leading axes 1."""
    return (1,) * (3 - len(sizes)) + tuple(sizes)


def strides_of(x: Tensor, first: int) -> tuple[int, ...]:
    """Strides in elements of the axes before the grid's and along (D, H, W); see ``grid_strides``."""
    return (*x.stride()[:first], *grid_strides(x, first))


def grid_strides(x: Tensor, first: int) -> tuple[int, int, int]:
    """Strides in elements along (D, H, W) of the grid axes, which start at axis ``first`` of x."""
    strides = x.stride()[first:]
    return (0,) * (3 - len(strides)) + tuple(strides)


def is_dense(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor of these sizes and strides is contiguous, axes of one element aside."""
    step = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True
