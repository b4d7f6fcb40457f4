# SPDX-License-Identifier: MIT
"""A fused solver update gives the stock scheduler's very bits: the oracle is diffusers' own ``step``."""

import pytest
import torch
from ascedfast.kernels import step_dynamics as kernel
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from layouts import DEVICES, same_bits

from ascedfast.adapters import parity

pytestmark = [pytest.mark.usefixtures("poisoned_empty"), *([pytest.mark.gpu] if DEVICES == ["cuda"] else [])]

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
TYPES = [(FP32, FP32), (BF16, BF16), (FP16, FP16), (FP32, BF16), (FP32, FP16)]


def schedulers():
    for prediction in ("epsilon", "v_prediction"):
        for clip in (False, True):
            for spacing in ("leading", "trailing"):
                settings = {"prediction_type": prediction, "clip_sample": clip, "timestep_spacing": spacing}
                yield f"DDIM-{prediction}-{clip}-{spacing}", DDIMScheduler(**settings)
        for karras in (False, True):
            settings = {"prediction_type": prediction, "use_karras_sigmas": karras}
            yield f"Euler-{prediction}-{karras}", EulerDiscreteScheduler(**settings)
    zero_snr = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    yield "DDIM-zero-snr", DDIMScheduler(**zero_snr)
    yield "DDIM-clip-range", DDIMScheduler(clip_sample=True, clip_sample_range=0.7)
    for inverted in (False, True):
        yield f"FlowMatchEuler-{inverted}", FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=inverted)
    for prediction in ("epsilon", "v_prediction", "flow_prediction"):
        for order in (1, 2):
            for solver in ("midpoint", "heun"):
                settings = {"prediction_type": prediction, "solver_order": order, "solver_type": solver}
                settings["use_flow_sigmas"] = prediction == "flow_prediction"
                yield f"DPM-{prediction}-{order}-{solver}", DPMSolverMultistepScheduler(**settings)


SCHEDULERS = dict(schedulers())


def by_kernel(update, x, m, scalars, own):
    zero = torch.zeros(x.shape[0], device=x.device)
    *_, following, own = kernel.step_dynamics(x, m, zero, zero, None, None, "mean", update, scalars, own)
    return following, own


def verdict(scheduler, steps, types, device, step, place_sigmas=False):
    scheduler.set_timesteps(steps, device=device if place_sigmas else None)
    x, m = (torch.zeros(1, dtype=dtype, device=device) for dtype in types)
    plan = parity.parity_plan(scheduler, 0, *types, torch.device(device))
    parity.forget_verdicts()
    return parity.gives_stock_bits(scheduler, plan, 0, x, m, step)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_reference_gives_the_stock_bits(scheduler, types, device):
    assert verdict(scheduler, 10, types, device, parity.check_with_reference)
    assert verdict(scheduler, 16, types, device, parity.check_with_reference, place_sigmas=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("types", TYPES if DEVICES == ["cuda"] else [(FP32, FP32), (FP16, FP16), (FP32, FP16)], ids=str)
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_kernel_gives_the_stock_bits(scheduler, types, device):
    assert verdict(scheduler, 5, types, device, by_kernel)
    if device == "cuda":
        assert verdict(scheduler, 25, types, device, by_kernel, place_sigmas=True)


@pytest.mark.parametrize("device", DEVICES)
def test_kernel_gives_the_own_x0_of_ddim_and_euler(device):
    for name in ("DDIM-epsilon-True-leading", "Euler-epsilon-False", "DDIM-v_prediction-False-leading"):
        scheduler = SCHEDULERS[name]
        scheduler.set_timesteps(5)
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = 0
        x, m = torch.randn(2, 1, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(device)
        plan = parity.parity_plan(scheduler, 0, FP32, FP32, torch.device(device))
        _, own = by_kernel(plan.updates[0], x, m, plan.scalars[0].to(device), None)
        assert same_bits(own, scheduler.step(m, scheduler.timesteps[0], x, return_dict=False)[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["DDIM-epsilon-True-leading", "Euler-v_prediction-False", "FlowMatchEuler-False"])
def test_special_values_are_the_stocks(name, device):
    values = torch.tensor([0.0, -0.0, 1e-40, 3e38, float("inf"), -float("inf"), float("nan"), 1.0])
    x, m = (t.reshape(1, 1, 8, 8).to(device) for t in torch.meshgrid(values, values, indexing="ij"))
    scheduler = SCHEDULERS[name]
    scheduler.set_timesteps(5)
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = 0
    plan = parity.parity_plan(scheduler, 0, FP32, FP32, torch.device(device))
    got, _ = by_kernel(plan.updates[0], x, m, plan.scalars[0].to(device), None)
    assert same_bits(got, scheduler.step(m, scheduler.timesteps[0], x, return_dict=False)[0])


def test_settings_without_a_fused_form_are_left_to_stock():
    left = [
        DDIMScheduler(thresholding=True),
        DDIMScheduler(prediction_type="sample"),
        DPMSolverMultistepScheduler(solver_order=3),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        DPMSolverMultistepScheduler(algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    ]
    for scheduler in left:
        scheduler.set_timesteps(5)
        assert parity.parity_plan(scheduler, 0, FP32, FP32, torch.device("cpu")) is None


def test_a_wrong_update_is_found_out():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(5)

    def contracted(update, x, m, scalars, own):
        following, own = parity.check_with_reference(update, x, m, scalars, own)
        return torch.nextafter(following, following + 1), own

    assert not verdict(scheduler, 5, (FP32, FP32), DEVICES[0], contracted)
