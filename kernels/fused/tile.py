# SPDX-License-Identifier: MIT
"""The tile of a fused step: some locations of one row, some channels at a time; how [R, C, *grid] tensors lie."""

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from ascedfast.kernels.grid import grid_of, offset_of, strides_of
from torch import Tensor

GROUP = 16
"""Channels that are added as one tree, see ``reference.dynamics``."""
TOGETHER = 64
"""Most channels of a tile where a location's lie side by side: fewer would take a part of each line of memory."""
TILE, SMALL_TILE = 2048, 512
"""Elements of a program's tile, 16 a thread; 4 a thread where there would be too few programs."""
ENOUGH = 4096
"""Programs that fill a large GPU, the last ones evenly."""
WARPS = 4
MIN_BLOCK = 32


@triton.jit
def offset_at(location, height, width, stride_d, stride_h, stride_w, C: tl.constexpr, LAYOUT: tl.constexpr):
    """Offset of locations. Dense tensors need no division, and what the compiler knows of them makes wide loads."""
    if LAYOUT == "planes":
        return location
    elif LAYOUT == "last":
        return location * C
    else:
        return offset_of(location, height, width, stride_d, stride_h, stride_w)


@triton.jit
def channel_stride(stride, locations, LAYOUT: tl.constexpr):
    """Distance of channels."""
    if LAYOUT == "planes":
        return locations
    elif LAYOUT == "last":
        return 1
    else:
        return stride


class Layout:
    """Sizes and strides of [R, C, *grid] tensors of one shape, as the kernel takes them."""

    def __init__(self, x: Tensor) -> None:
        self.rows, self.channels, *grid = x.shape
        self.grid = grid_of(tuple(grid))
        self.locations = math.prod(self.grid)

    def strides(self, x: Tensor) -> tuple[int, ...]:
        """(row, channel, D, H, W) in elements."""
        return strides_of(x, 2)

    def together(self, order: str) -> int:
        """Channels of a tile, a power of two, for tensors in this ``order``."""
        return min(TOGETHER if order == "last" else GROUP, triton.next_power_of_2(self.channels))

    def block(self, channels: int) -> int:
        """Locations of a tile of so many channels."""
        tile = TILE
        while tile > SMALL_TILE and self.rows * triton.cdiv(self.locations, tile // channels) < ENOUGH:
            tile //= 2
        return max(MIN_BLOCK, tile // channels)

    def order(self, strides: Sequence[tuple[int, ...]]) -> str:
        """How all tensors with these strides lie inside a row: "planes", dense with the locations of a channel side by
        side; "last", dense with the channels of a location side by side; else "strided"."""
        for name, channel, step in (("planes", self.locations, 1), ("last", 1, self.channels)):
            wanted = (channel, *(size * step for size in (self.grid[1] * self.grid[2], self.grid[2], 1)))
            sizes = (self.channels, *self.grid)
            if all(
                size == 1 or stride == want
                for tensor in strides
                for size, stride, want in zip(sizes, tensor[1:], wanted, strict=True)
            ):
                return name
        return "strided"

    def numbers(self, strides: Sequence[tuple[int, ...]], order: str) -> tuple[tuple[int, int], tuple[int, ...]]:
        """(height, width) and all strides as kernels take them. Dense tensors are read without, but for the strides of
        rows: the others are 1 then, which Triton does not pass, and a launch is shorter by each."""
        if order == "strided":
            return self.grid[1:], tuple(stride for tensor in strides for stride in tensor)
        return (1, 1), tuple(stride for tensor in strides for stride in (tensor[0], *(1,) * (len(tensor) - 1)))
