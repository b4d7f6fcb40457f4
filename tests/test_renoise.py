# SPDX-License-Identifier: MIT
"""The fused renoise_ gives the reference's bits inside the mask and leaves x alone outside, in any layout."""

import pytest
import torch
from layouts import DEVICES, LAYOUTS, SHAPES, channels_last, same_bits, sliced

from ascedfast import ops

pytestmark = [pytest.mark.gpu] if DEVICES == ["cuda"] else []
SEEDS = [0, -1, 2**62 + 5]


def arguments(shape, device, perturb):
    g = torch.Generator().manual_seed(4)
    rows = shape[0]
    columns = {
        "seeds": torch.tensor(SEEDS[:rows], dtype=torch.int64),
        "steps": torch.arange(rows) + 12,
        "draws": torch.arange(rows) * 7,
        "x0_noise": torch.rand(rows, generator=g) if perturb else None,
    }
    alpha, sigma = torch.rand(rows, generator=g), torch.rand(rows, generator=g)
    mask = (torch.rand(shape[0], shape[-1], *shape[2:-1], generator=g) < 0.3).movedim(1, -1)
    x0 = channels_last(shape, g, torch.float32)
    moved = {name: None if t is None else t.to(device) for name, t in columns.items()}
    return mask.to(device), x0.to(device), alpha.to(device), sigma.to(device), moved


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("perturb", [False, True], ids=["plain", "x0-noise"])
def test_bits_in_every_layout(shape, layout, perturb, device):
    x = layout(shape, torch.Generator().manual_seed(5), torch.float32).to(device)
    mask, x0, alpha, sigma, columns = arguments(shape, device, perturb)
    before, twin = x.clone(), x.clone()
    ops.renoise_(twin, mask, x0, alpha, sigma, **columns, backend="reference")
    address = x.data_ptr()
    out = ops.renoise_(x, mask, x0, alpha, sigma, **columns, backend="triton")
    assert out is x
    assert x.data_ptr() == address
    assert same_bits(x, twin)
    outside = ~mask[:, None].expand_as(x)
    assert torch.equal(x[outside], before[outside])


# Triton's interpreter truncates bf16, so bf16 is compared on a GPU only.
LOW = [torch.float16] if DEVICES == ["cpu"] else [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_bits_in_low_precision(dtype, device):
    shape = SHAPES["latents"]
    x = sliced(shape, torch.Generator().manual_seed(6), dtype).to(device)
    mask, x0, alpha, sigma, columns = arguments(shape, device, True)
    twin = x.clone()
    ops.renoise_(twin, mask, x0, alpha, sigma, **columns, backend="reference")
    ops.renoise_(x, mask, x0, alpha, sigma, **columns, backend="triton")
    assert same_bits(x, twin)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_outside_and_an_empty_mask(device):
    shape = SHAPES["image"]
    x = sliced(shape, torch.Generator().manual_seed(7), torch.float32).to(device)
    x[0, 0, 0, 0] = float("nan")
    mask, x0, alpha, sigma, columns = arguments(shape, device, False)
    before = x.clone()
    ops.renoise_(x, mask & False, x0, alpha, sigma, **columns, backend="triton")
    assert same_bits(x, before)


@pytest.mark.parametrize("device", DEVICES)
def test_values_a_row_in_any_layout(device):
    """Expanded and strided ones: the kernel walks through dense rows."""
    mask, x0, alpha, sigma, columns = arguments(SHAPES["latents"], device, True)
    x = sliced(SHAPES["latents"], torch.Generator().manual_seed(7), torch.float32).to(device)
    apart = {name: torch.stack([t, -t, t], 1).flatten()[::3] for name, t in columns.items()}
    for level, keys in ((alpha[:1].expand(len(x)), columns), (torch.stack([alpha, -alpha], 1)[:, 0], apart)):
        twin, found = x.clone(), x.clone()
        ops.renoise_(twin, mask, x0, level.clone(), sigma, **columns, backend="reference")
        ops.renoise_(found, mask, x0, level, sigma, **keys, backend="triton")
        assert same_bits(found, twin)
