# SPDX-License-Identifier: MIT
"""The detector on one 256x256x3 image and 12 frames: ours in each mode, and the released algorithm from scipy."""

import official_oracle
import pytest
import torch

from ascedfast import AscedConfig, artifact_mask

FRAMES = 12


@pytest.fixture(scope="module")
def frames():
    """Slow smooth fields: [12, 1, 3, 256, 256] in [-1, 1]."""
    coarse = torch.randn(FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(0)).cumsum(0) / 12
    fields = torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bicubic")
    return fields.clamp(-1, 1)[:, None]


@pytest.mark.benchmark(group="artifact_mask 12x1x3x256x256")
@pytest.mark.parametrize("mode", ["official", "paper", "fast"])
def test_artifact_mask(benchmark, frames, mode):
    mask = benchmark(artifact_mask, frames, AscedConfig.for_mode(mode))
    assert mask.shape == (1, 1, 256, 256)


@pytest.mark.benchmark(group="artifact_mask 12x1x3x256x256")
def test_artifact_mask_scipy(benchmark, frames):
    trace = benchmark(official_oracle.official, frames[:, 0].numpy())
    assert (torch.from_numpy(trace.mask) == artifact_mask(frames, AscedConfig.official())[0, 0]).all()
