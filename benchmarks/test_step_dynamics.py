# SPDX-License-Identifier: MIT
"""step_dynamics of one step: the reference everywhere, the Triton kernel where there is a GPU."""

import pytest
import torch

from ascedfast import ops

CUDA = torch.cuda.is_available()
SHAPES = {"latents": (1, 4, 128, 128), "pixels": (8, 3, 256, 256)}


@pytest.mark.parametrize("backend", ["reference", "triton"] if CUDA else ["reference"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_step_dynamics(benchmark, shape, backend):
    device = "cuda" if CUDA else "cpu"
    x, m, previous = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    a, b = torch.rand(2, shape[0], generator=torch.Generator().manual_seed(1)).to(device)

    def step():
        out = ops.step_dynamics(x, m, a, b, previous, backend=backend)
        if CUDA:
            torch.cuda.synchronize()
        return out

    benchmark.group = f"step_dynamics {list(shape)}"
    x0, d = benchmark(step)
    assert x0.shape == x.shape
    assert bool((d > 0).any())
