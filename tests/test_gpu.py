# SPDX-License-Identifier: MIT
"""A whole run on a GPU: the same masks, noise and corrected states as on the CPU, bit for bit."""

import pytest
import torch

import ascedfast
from ascedfast import AscedConfig, Schedule, noise, process
from ascedfast.noise import Purpose

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
pytestmark = [pytest.mark.gpu, needs_gpu]

STEPS, T_C, SIDE = 12, 6, 64


def run_on(device, config):
    """Predictions that jump in a square at step 4; model outputs are made on the CPU, so that only ours differs."""
    levels = [process.eps((1 - s) ** 0.5, s**0.5) for s in (0.98 - 0.08 * k for k in range(STEPS))]
    run = ascedfast.begin(Schedule.from_levels(levels, clip=1.0), config, seeds=[7, 2**63])
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, SIDE, SIDE, generator=g).to(device)
    for k, level in enumerate(levels):
        x0 = 0.1 * torch.randn(2, 4, SIDE, SIDE, generator=g)
        if k >= 4:
            x0[:, :, 8:24, 8:24] += 0.7
        run.observe(x, ((x.cpu() - level.alpha * x0) / level.sigma).to(device))
        run.correct_(x)
    return x.cpu(), run.report


@pytest.mark.parametrize("mode", ["official", "paper", "fast"])
def test_run_equals_the_cpus(mode):
    config = AscedConfig.for_mode(mode, t_c=T_C, window_start=1)
    (x, report), (expected, other) = run_on("cuda", config), run_on("cpu", config)
    assert [row.status for row in report] == ["corrected"] * 2
    assert torch.equal(report.masks.cpu(), other.masks)
    assert torch.equal(report.masks_grown.cpu(), other.masks_grown)
    assert torch.equal(x, expected)
    assert report.to_dict()["rows"][0]["regions"] == other.to_dict()["rows"][0]["regions"]


def test_noise_has_the_cpus_bits():
    seeds = torch.tensor([0, -1, 2**62 + 3])
    on_cpu, on_gpu = (
        noise.normal(s, 7, (33, 31), step=5, purpose=Purpose.RENOISE, draw=2) for s in (seeds, seeds.cuda())
    )
    assert torch.equal(on_gpu.cpu(), on_cpu)
