# SPDX-License-Identifier: MIT
"""temporal_scores of one image's window: the reference everywhere, the Triton kernel where there is a GPU."""

import pytest
import torch

from ascedfast import ops

CUDA = torch.cuda.is_available()
CASES = {"64x64": (11, 1, 64, 64), "256x256": (11, 1, 256, 256)}


@pytest.mark.parametrize("backend", ["reference", "triton"] if CUDA else ["reference"])
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES)
def test_temporal_scores(benchmark, shape, backend):
    d = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to("cuda" if CUDA else "cpu")

    def score():
        out = ops.temporal_scores(d, [1.0] * len(d), backend=backend)
        if CUDA:
            torch.cuda.synchronize()
        return out

    benchmark.group = f"temporal_scores {list(shape)}"
    assert bool((benchmark(score).still > 0).all())
