# SPDX-License-Identifier: MIT
"""history_fill_ of a sixteenth of the locations: the reference everywhere, the Triton kernel where there is a GPU."""

import pytest
import torch

from ascedfast import ops

CUDA = torch.cuda.is_available()
SHAPES = {"latents": (1, 4, 128, 128), "pixels": (8, 3, 256, 256)}


@pytest.mark.parametrize("backend", ["reference", "triton"] if CUDA else ["reference"])
@pytest.mark.parametrize("entries", [1, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_history_fill_(benchmark, shape, entries, backend):
    device = "cuda" if CUDA else "cpu"
    current, *history = torch.randn(1 + entries, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.zeros(shape[0], *shape[2:], dtype=torch.bool, device=device)
    mask[:, shape[2] // 4 : shape[2] // 2, shape[3] // 4 : shape[3] // 2] = True
    before = history[-1].clone()

    def fill():
        ops.history_fill_(history, mask, current, backend=backend)
        if CUDA:
            torch.cuda.synchronize()

    benchmark.group = f"history_fill_ of {entries} {list(shape)}"
    benchmark(fill)
    assert torch.equal((history[-1] != before).any(1), mask)
