# SPDX-License-Identifier: MIT
"""A wrapped sampler on a GPU: the CPU's masks, nothing outside them, and no wait for the device between the steps."""

import comfy_stub
import pytest
import tiny
import torch
from row_loop import bits

from ascedfast import AscedConfig
from ascedfast.adapters.k_diffusion import asced_sampler

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SHAPE, STEPS = (2, 4, 64, 48), 25
SIGMAS = torch.cat([torch.logspace(1.3, -1.3, STEPS), torch.zeros(1)])
UNSTEADY = tiny.spot(SHAPE[2:], 2)


class Model:
    """Predictions made beforehand on the CPU, so that only our own work could differ."""

    def __init__(self, device):
        steady = 0.25 * tiny.randn(*SHAPE)
        jumps = [torch.where(UNSTEADY, 0.6 if step % 2 else -0.6, 0.0) for step in range(STEPS)]
        self.outputs = iter([(steady + jump + 0.01 * step).to(device) for step, jump in enumerate(jumps)])

    def __call__(self, x, sigma):
        return next(self.outputs)


def whole_run(sampler, device, callback=None):
    return sampler(Model(device), 20 * tiny.randn(*SHAPE).to(device), SIGMAS, callback=callback or (lambda info: None))


def test_a_wrapped_sampler():
    on_cpu, on_gpu = (asced_sampler(comfy_stub.sample_euler, AscedConfig(mad_scale=8), seeds=[3, 4]) for _ in range(2))
    whole_run(on_cpu, "cpu")
    whole_run(on_gpu, "cuda")  # compiles
    start = on_gpu.report[0].plan.start

    def callback(info):
        if info["i"] == start + 1:
            torch.cuda.set_sync_debug_mode("error")

    try:
        x = whole_run(on_gpu, "cuda", callback)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    mask = on_gpu.report.masks_grown
    assert [row.status for row in on_gpu.report] == ["corrected"] * 2
    assert torch.equal(mask.cpu(), on_cpu.report.masks_grown)
    stock = whole_run(comfy_stub.sample_euler, "cuda")
    outside = ~mask.to(x.device).expand_as(x)
    assert torch.equal(bits(x)[outside], bits(stock)[outside])
