# SPDX-License-Identifier: MIT
"""step_dynamics of one step: the reference everywhere, the Triton kernel where there is a GPU."""

import pytest
import torch

from ascedfast import ops

CUDA = torch.cuda.is_available()
SHAPES = {"latents": (1, 4, 128, 128), "pixels": (8, 3, 256, 256)}


def step_of(shape, backend, **options):
    """One step, waited for, to be timed."""
    device = "cuda" if CUDA else "cpu"
    x, m, previous = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    a, b = torch.rand(2, shape[0], generator=torch.Generator().manual_seed(1)).to(device)

    def step():
        out = ops.step_dynamics(x, m, a, b, previous, backend=backend, **options)
        if CUDA:
            torch.cuda.synchronize()
        return out

    return step


@pytest.mark.parametrize("backend", ["reference", "triton"] if CUDA else ["reference"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_step_dynamics(benchmark, shape, backend):
    step = step_of(shape, backend)
    benchmark.group = f"step_dynamics {list(shape)}"
    x0, d = benchmark(step)
    assert x0.shape == shape
    assert bool((d > 0).any())


@pytest.mark.parametrize("backend", ["reference", "triton"] if CUDA else ["reference"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_step_dynamics_by_patch(benchmark, shape, backend):
    step = step_of(shape, backend, patch=8)
    benchmark.group = f"step_dynamics {list(shape)} by patches of 8x8"
    _, d = benchmark(step)
    assert d.shape == (shape[0], shape[2] // 8, shape[3] // 8)
    assert bool((d > 0).all())
