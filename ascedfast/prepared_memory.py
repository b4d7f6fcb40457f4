# SPDX-License-Identifier: MIT
"""Memory of prepared launches: tensors that only say how much, and several in one buffer."""

from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

ALIGNED = 16
"""Bytes: Triton's kernels are compiled for addresses that are a multiple of it."""


def part_of(buffer: Tensor, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """The tensor that begins at a byte of a buffer, as a storage of its own over the same memory: torch.save refuses
    views of one storage in several types."""
    part = buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
    return from_dlpack(to_dlpack(part))


def shell(tensor: Tensor) -> Tensor:
    """The tensor without its memory, for ``torch.empty_like``, which takes half the time of sizes, type and device. Its
    values must not be read: there are none."""
    tensor.untyped_storage().resize_(0)
    return tensor


class Parts:
    """Tensors of so many bytes that share one buffer on a device, each aligned. bytes: a ``shell`` of the buffer.
    places: of the buffer, its number among the addresses of a call, and where in it each begins."""

    def __init__(self, device: torch.device, base: int, *sizes: int) -> None:
        *starts, total = accumulate((-(-size // ALIGNED) * ALIGNED for size in sizes), initial=0)
        self.bytes = shell(torch.empty(total, dtype=torch.uint8, device=device))
        self.places = [(base, start) for start in starts]
