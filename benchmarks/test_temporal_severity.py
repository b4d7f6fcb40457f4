# SPDX-License-Identifier: MIT
"""temporal_severity of one image's window: the reference everywhere, the Triton kernel where there is a GPU."""

import pytest
import torch

from ascedfast import ops
from ascedfast.reference_scores import Gumbel

CUDA = torch.cuda.is_available()
CASES = {"64x64": (11, 1, 64, 64), "256x256": (11, 1, 256, 256)}


@pytest.mark.parametrize("backend", ["reference", "triton"] if CUDA else ["reference"])
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES)
def test_temporal_severity(benchmark, shape, backend):
    d = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to("cuda" if CUDA else "cpu")
    among = {"still": Gumbel(1.0, 0.2), "jump": Gumbel(0.5, 0.3), "low": 0.0, "high": 1.0}

    def judge():
        out = ops.temporal_severity(d, [1.0] * len(d), **among, backend=backend)
        if CUDA:
            torch.cuda.synchronize()
        return out

    benchmark.group = f"temporal_severity {list(shape)}"
    severity, levels = benchmark(judge)
    assert torch.equal(levels > 0, severity > 0)
