# SPDX-License-Identifier: MIT
"""The fused dilate_mask is scipy's binary_dilation by a square, in any layout; tests/test_ops.py has the reference."""

import numpy as np
import pytest
import torch
from layouts import DEVICES
from scipy import ndimage

from ascedfast import ops

pytestmark = [pytest.mark.gpu] if DEVICES == ["cuda"] else []
# (mask, radius): sides that fill no block, radii beyond the sides and beyond what is written out, volumes.
CASES = [
    ((2, 17, 23), 0),
    ((2, 17, 23), 2),
    ((1, 5, 300), 3),
    ((1, 24, 9), 18),
    ((3, 1, 1), 5),
    ((1, 6, 6), 1 << 15),
    ((2, 3, 9, 7), 4),
    *([((2, 1024, 1024), 20), ((8, 256, 256), 5)] if DEVICES == ["cuda"] else []),
]


def contiguous(mask):
    return mask


def turned(mask):
    return mask.transpose(-1, -2).contiguous().transpose(-1, -2)


def sliced(mask):
    wide = torch.ones(*mask.shape[:-1], 2 * mask.shape[-1] + 3, dtype=torch.bool)
    wide[..., 2 : 2 + 2 * mask.shape[-1] : 2] = mask
    return wide[..., 2 : 2 + 2 * mask.shape[-1] : 2]


def by_scipy(mask, radius):
    side = 2 * min(radius, max(mask.shape[-2:])) + 1
    structure = np.ones((1,) * (mask.dim() - 2) + (side, side), bool)
    return torch.from_numpy(ndimage.binary_dilation(mask.numpy(), structure))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, turned, sliced], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("shape", "radius"), CASES, ids=str)
def test_grown_as_scipy_grows(shape, radius, layout, device):
    mask = layout(torch.rand(shape, generator=torch.Generator().manual_seed(radius)) < 0.02)
    mask[(0,) * (mask.dim() - 1) + (-1,)] = True  # a corner of one row: no other row may see it
    on_device = torch.empty_strided(mask.shape, mask.stride(), dtype=torch.bool, device=device).copy_(mask)
    grown = ops.dilate_mask(on_device, radius, backend="triton")
    assert grown.dtype == torch.bool
    assert grown.is_contiguous()
    assert torch.equal(grown.cpu(), by_scipy(mask, radius))
    assert torch.equal(grown, ops.dilate_mask(on_device, radius, backend="reference"))
    assert torch.equal(on_device.cpu(), mask)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full(value, device):
    mask = torch.full((2, 12, 9), value, device=device)
    assert torch.equal(ops.dilate_mask(mask, 3, backend="triton"), mask)
    assert ops.dilate_mask(mask[:0], 3, backend="triton").shape == (0, 12, 9)
