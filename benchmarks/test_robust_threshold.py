# SPDX-License-Identifier: MIT
"""robust_threshold of a window of maps: the reference everywhere, the Triton kernels where there is a GPU."""

import pytest
import torch

from ascedfast import ops
from ascedfast.config import AscedConfig

CUDA = torch.cuda.is_available()
SHAPES = {
    "64x64": (12, 1, 1, 64, 64),
    "128x128": (12, 1, 1, 128, 128),
    "256x256": (12, 1, 1, 256, 256),
    "official": (11, 1, 3, 256, 256),
    "batch": (6, 64, 1, 128, 128),
    "1024x1024": (6, 1, 1, 1024, 1024),
    "video": (8, 1, 1, 21, 60, 104),
}
SLOW_ON_A_CPU = ("batch", "1024x1024", "video")
CASES = [(name, False) for name in SHAPES if CUDA or name not in SLOW_ON_A_CPU] + [("video", True)] * CUDA


@pytest.mark.parametrize("backend", ["reference", "triton"] if CUDA else ["reference"])
@pytest.mark.parametrize(("name", "by_frame"), CASES)
def test_robust_threshold(benchmark, name, by_frame, backend):
    shape = SHAPES[name]
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).abs().to("cuda" if CUDA else "cpu")
    config = AscedConfig.official() if name == "official" else AscedConfig()
    settings = {"mad_scale": config.mad_scale, "mad_floor": config.mad_floor, "z_floor": 0.004}
    settings["blur_sigma"] = config.sizes(shape[3:]).blur_sigma

    def threshold():
        out = ops.robust_threshold(maps, **settings, by_frame=by_frame, backend=backend)
        if CUDA:
            torch.cuda.synchronize()
        return out

    benchmark.group = f"robust_threshold {list(shape)}"
    flags, z = benchmark(threshold)
    assert flags.shape == z.shape == (shape[1], *shape[3:])
    assert bool(z.isfinite().all())
