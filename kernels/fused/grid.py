# SPDX-License-Identifier: MIT
"""Locations of a grid of one to three axes, in any strides."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def offset_of(location, height, width, stride_d, stride_h, stride_w):
    """Offset in elements of flat locations (row-major over D, H, W); int64."""
    location = location.to(tl.int64)
    w = location % width
    h = (location // width) % height
    d = location // (width * height)
    return d * stride_d + h * stride_h + w * stride_w


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
