# SPDX-License-Identifier: MIT
"""dilate_mask of one image: the reference everywhere, the Triton kernel where there is a GPU."""

import pytest
import torch

from ascedfast import ops

CUDA = torch.cuda.is_available()
CASES = {"64x64": ((1, 64, 64), 1), "256x256": ((1, 256, 256), 5), "1024x1024": ((1, 1024, 1024), 20)}


@pytest.mark.parametrize("backend", ["reference", "triton"] if CUDA else ["reference"])
@pytest.mark.parametrize(("shape", "radius"), CASES.values(), ids=CASES)
def test_dilate_mask(benchmark, shape, radius, backend):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.001
    mask = mask.to("cuda" if CUDA else "cpu")

    def dilate():
        out = ops.dilate_mask(mask, radius, backend=backend)
        if CUDA:
            torch.cuda.synchronize()
        return out

    benchmark.group = f"dilate_mask {list(shape)} by {radius}"
    assert bool(benchmark(dilate).any())
