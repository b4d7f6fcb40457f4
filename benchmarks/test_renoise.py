# SPDX-License-Identifier: MIT
"""renoise_ of a tenth of the locations: the reference everywhere, the Triton kernel where there is a GPU."""

import pytest
import torch

from ascedfast import ops

CUDA = torch.cuda.is_available()
SHAPES = {"latents": (1, 4, 128, 128), "pixels": (8, 3, 256, 256)}


@pytest.mark.parametrize("backend", ["reference", "triton"] if CUDA else ["reference"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_renoise_(benchmark, shape, backend):
    device = "cuda" if CUDA else "cpu"
    g = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, *shape, generator=g).to(device)
    mask = (torch.rand(shape[0], *shape[2:], generator=g) < 0.1).to(device)
    level = torch.rand(shape[0], generator=g).to(device)
    count = torch.arange(shape[0]).to(device)
    columns = {"seeds": count, "steps": count, "draws": count}
    before = x.clone()

    def renoise():
        ops.renoise_(x, mask, x0, level, level, **columns, backend=backend)
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = f"renoise_ {list(shape)}"
    benchmark(renoise)
    changed = (x != before).any(1)
    assert torch.equal(changed, mask)
