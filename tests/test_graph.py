# SPDX-License-Identifier: MIT
"""The whole loop with a real U-Net in one CUDA graph, and no host sync of our own."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LMSDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from layouts import same_bits
from null_tables import calibrated

from ascedfast import AscedConfig, enable_asced
from ascedfast.adapters.schedules import schedule_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
STEPS = 25
SHAPE = (2, 3, 32, 32)
SCHEDULERS = {
    "ddim": (lambda: DDIMScheduler(), "parity"),
    "euler": (lambda: EulerDiscreteScheduler(), "parity"),
    "flow": (lambda: FlowMatchEulerDiscreteScheduler(), "parity"),
    "dpm": (lambda: DPMSolverMultistepScheduler(), "parity"),
    "unipc-linear": (lambda: UniPCMultistepScheduler(), "linear"),
    "lms-linear": (lambda: LMSDiscreteScheduler(), "linear"),
    "flow-calibrated": (lambda: FlowMatchEulerDiscreteScheduler(), "calibrated"),
}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return model.cuda().eval().requires_grad_(False)


def noise(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).cuda()


def prepared(case, seeds):
    make, form = case
    scheduler = make()
    scheduler.set_timesteps(STEPS, device="cuda")
    if form == "calibrated":
        config = calibrated(schedule_of(scheduler), 12, SHAPE[2:], above=-0.5)
    else:
        config = AscedConfig.fast(t_c=12, min_area=0, core_width=1, mad_scale=2.0, form=form)
    handle = enable_asced(scheduler, config, seeds=seeds)
    if hasattr(scheduler, "scale_model_input"):
        scheduler.is_scale_input_called = True
    return scheduler, handle


def loop(scheduler, unet, x, device_times):
    host_times = scheduler.timesteps_host
    for k in range(STEPS):
        m = unet(x, device_times[k], return_dict=False)[0]
        x = scheduler.step(m, host_times[k], x, return_dict=False)[0]
    return x


def eager(case, unet, seed, seeds):
    scheduler, handle = prepared(case, seeds)
    scheduler.timesteps_host = scheduler.timesteps.cpu()
    return loop(scheduler, unet, noise(seed), scheduler.timesteps), handle.report


@pytest.mark.parametrize("case", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_captured_loop_replays_with_new_noise_and_seeds(case, unet):
    with torch.no_grad():
        expected, reports = zip(*(eager(case, unet, 10 + k, [k, k + 50]) for k in range(2)), strict=True)
        scheduler, handle = prepared(case, [0, 50])
        scheduler.timesteps_host = scheduler.timesteps.cpu()
        times = scheduler.timesteps
        x = noise(10)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            unet(x, times[0])
            handle.warm_up(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = loop(scheduler, unet, x, times)
        for k in range(2):
            x.copy_(noise(10 + k))
            handle.reseed([k, k + 50])
            graph.replay()
            assert same_bits(out, expected[k])
            report = handle.report
            assert report.rows[0].status == reports[k].rows[0].status == "corrected"
            assert torch.equal(report.rows[1].mask, reports[k].rows[1].mask)


def test_capturing_without_warming_up_names_the_call(unet):
    scheduler, _ = prepared(SCHEDULERS["ddim"], [0, 1])
    scheduler.timesteps_host = scheduler.timesteps.cpu()
    x = noise(1)
    with torch.no_grad():
        unet(x, scheduler.timesteps[0])
        torch.cuda.synchronize()
        with pytest.raises(RuntimeError, match="warm_up"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            loop(scheduler, unet, x, scheduler.timesteps)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("case", SCHEDULERS.values(), ids=SCHEDULERS)
def test_no_sync_from_the_second_step_on(case, unet, mode):
    eager(case, unet, 1, [1, 2])  # compiles, and checks the bits
    with mode():
        scheduler, handle = prepared(case, [1, 2])
        host_times = scheduler.timesteps.cpu()
        times = scheduler.timesteps
        x = noise(1)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for k in range(STEPS):
                m = unet(x, times[k], return_dict=False)[0]
                x = scheduler.step(m, host_times[k], x, return_dict=False)[0]
                torch.cuda.set_sync_debug_mode("error")
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert handle._run._fused is not None
    assert handle.report.rows[0].status == "corrected"


def test_under_reduce_overhead(unet):
    compiled = torch.compile(unet, mode="reduce-overhead", dynamic=False)
    with torch.no_grad():
        scheduler, handle = prepared(SCHEDULERS["ddim"], [1, 2])
        times = scheduler.timesteps
        for _ in range(3):
            torch.compiler.cudagraph_mark_step_begin()
            compiled(noise(1), times[0])
        x, states = noise(1), []
        for t in times:
            torch.compiler.cudagraph_mark_step_begin()
            m = compiled(x, t, return_dict=False)[0]
            states.append((x, m.clone()))
            x = scheduler.step(m, t, x, return_dict=False)[0]
        assert handle.report.rows[0].status == "corrected"
        again, other = prepared(SCHEDULERS["ddim"], [1, 2])
        y = noise(1)
        for (state, m), t in zip(states, times, strict=True):
            assert same_bits(state, y)
            y = again.step(m, t, y, return_dict=False)[0]
        assert same_bits(x, y)
        assert torch.equal(handle.report.rows[0].mask, other.report.rows[0].mask)
