# SPDX-License-Identifier: MIT
"""Tensors of one shape in the layouts that kernels must take as they come."""

import torch

SHAPES = {
    "image": (2, 3, 17, 23),  # odd sides, fewer channels than a noise block
    "latents": (3, 16, 16, 16),
    "volume": (2, 5, 3, 9, 7),
    "one-element": (1, 1, 1, 1),
    "no-rows": (0, 4, 8, 8),
    "two-blocks": (1, 2, 1, 257),  # one location more than a kernel's block
}
DEVICES = ["cuda"] if torch.cuda.is_available() else ["cpu"]


def sliced(shape, g, dtype):
    """A slice of a larger tensor: neither contiguous nor at offset 0."""
    return torch.randn(shape[0], shape[1] + 2, *shape[2:], generator=g).to(dtype)[:, 1:-1]


def turned(shape, g, dtype):
    """The last two axes swapped in memory."""
    swapped = (*shape[:-2], shape[-1], shape[-2])
    return torch.randn(swapped, generator=g).to(dtype).transpose(-1, -2)


def channels_last(shape, g, dtype):
    return torch.randn(shape[0], *shape[2:], shape[1], generator=g).to(dtype).movedim(-1, 1)


def packed(shape, g, dtype):
    """Packed latents seen as a grid: the view that adapters hand on."""
    locations = torch.Size(shape[2:]).numel()
    return torch.randn(shape[0], locations, shape[1], generator=g).to(dtype).unflatten(1, shape[2:]).movedim(-1, 1)


LAYOUTS = [sliced, turned, channels_last, packed]


def same_bits(a, b):
    """Equal bit patterns; any NaN equals any NaN."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    return bool(((a == b) & (a.signbit() == b.signbit()) | (a.isnan() & b.isnan())).all())
