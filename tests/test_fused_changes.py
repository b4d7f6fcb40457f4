# SPDX-License-Identifier: MIT
"""What somebody changes about a run, before it or in the middle, is what the run does: the stock scheduler tells."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from layouts import DEVICES, same_bits

from ascedfast import AscedConfig, enable_asced

pytestmark = [pytest.mark.gpu] if DEVICES == ["cuda"] else []
DEVICE = DEVICES[0]
STEPS = 8
SHAPE = (1, 4, 12, 12)


class Clamped(DPMSolverMultistepScheduler):
    def convert_model_output(self, *args, **kwargs):
        return super().convert_model_output(*args, **kwargs).clamp(-1, 1)


def steps(scheduler, x, among):
    states = []
    for k in among:
        m = torch.randn(SHAPE, generator=torch.Generator().manual_seed(k)).to(DEVICE)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, scheduler.timesteps[k])
        x = scheduler.step(m, scheduler.timesteps[k], x, return_dict=False)[0]
        states.append(x.clone())
    return states


def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(99)).to(DEVICE)


def settings_after_set_timesteps(s):
    s.set_timesteps(STEPS, device=DEVICE)
    s.register_to_config(clip_sample=True)
    return steps(s, start(), range(STEPS))


def settings_in_the_middle(s):
    s.set_timesteps(STEPS, device=DEVICE)
    done = steps(s, start(), range(3))
    s.register_to_config(clip_sample=True)
    return done + steps(s, done[-1], range(3, STEPS))


def number_of_steps(s):
    s.set_timesteps(STEPS, device=DEVICE)
    s.num_inference_steps = 2 * STEPS
    return steps(s, start(), range(STEPS))


def last_alpha_of_the_second_run(s):
    s.set_timesteps(STEPS, device=DEVICE)
    done = steps(s, start(), range(STEPS))
    s.final_alpha_cumprod = torch.tensor(0.9)
    s.set_timesteps(STEPS, device=DEVICE)
    return done + steps(s, start(), range(STEPS))


def sigmas_in_the_middle(s):
    s.set_timesteps(STEPS, device=DEVICE)
    done = steps(s, start(), range(3))
    s.sigmas[4:6] *= 1.05
    return done + steps(s, done[-1], range(3, STEPS))


def sigmas_of_the_second_run(s):
    done = nothing(s)
    s.set_timesteps(STEPS, device=DEVICE)
    s.sigmas[2:5] *= 1.05
    done += steps(s, start(), range(STEPS))
    return done + nothing(s)


def sigmas_unseen(s):
    """Written past torch's counter of versions, between two runs of the same levels."""
    done = nothing(s)
    s.sigmas.data[2:5] *= 1.05
    s._step_index = None
    return done + steps(s, start(), range(STEPS))


def nothing(s):
    s.set_timesteps(STEPS, device=DEVICE)
    return steps(s, start(), range(STEPS))


def a_step_left_out(s):
    s.set_timesteps(STEPS, device=DEVICE)
    return steps(s, start(), [0, 1, 3, 4, 6])


@pytest.mark.parametrize(
    ("make", "story"),
    [
        (lambda: DDIMScheduler(clip_sample=False), settings_after_set_timesteps),
        (lambda: DDIMScheduler(clip_sample=False), settings_in_the_middle),
        (lambda: DDIMScheduler(clip_sample=False), number_of_steps),
        (lambda: DDIMScheduler(clip_sample=False), last_alpha_of_the_second_run),
        (lambda: DDIMScheduler(clip_sample=False), a_step_left_out),
        (EulerDiscreteScheduler, sigmas_in_the_middle),
        (FlowMatchEulerDiscreteScheduler, sigmas_of_the_second_run),
        (EulerDiscreteScheduler, sigmas_unseen),
        (Clamped, nothing),
    ],
)
def test_the_stock_run_comes_out(make, story):
    scheduler = make()
    enable_asced(scheduler, AscedConfig.fast(correct=False, t_c=0.5, window_start=0, backend="triton"), seeds=[1])
    ours, expected = story(scheduler), story(make())
    assert len(ours) == len(expected)
    assert all(same_bits(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize(
    ("make", "timestep"),
    [
        (lambda: DDIMScheduler(clip_sample=False), float),
        (FlowMatchEulerDiscreteScheduler, int),
        (FlowMatchEulerDiscreteScheduler, lambda t: np.float32(t)),
    ],
    ids=["ddim-float", "flow-int", "flow-numpy"],
)
def test_odd_timesteps_do_what_stock_does(make, timestep):
    def second_step(scheduler):
        scheduler.set_timesteps(STEPS, device=DEVICE)
        (x,) = steps(scheduler, start(), [0])
        try:
            return scheduler.step(x, timestep(scheduler.timesteps[1].item()), x, return_dict=False)[0]
        except (ValueError, IndexError) as error:
            return type(error)

    scheduler = make()
    enable_asced(scheduler, AscedConfig.fast(correct=False, t_c=0.5, window_start=0, backend="triton"), seeds=[1])
    ours, expected = second_step(scheduler), second_step(make())
    assert ours is expected or same_bits(ours, expected)


def test_a_held_list_of_model_outputs_is_the_schedulers():
    scheduler = DPMSolverMultistepScheduler()
    enable_asced(scheduler, AscedConfig.fast(correct=False, t_c=0.5, window_start=0, backend="triton"), seeds=[1])
    scheduler.set_timesteps(STEPS, device=DEVICE)
    held = scheduler.model_outputs
    steps(scheduler, start(), range(3))
    assert held is scheduler.model_outputs
    assert len(held) == 2
    assert all(isinstance(own, torch.Tensor) for own in held)


def test_new_seeds_after_a_warm_up_in_inference_mode():
    scheduler = DDIMScheduler(clip_sample=False)
    handle = enable_asced(scheduler, AscedConfig.fast(t_c=0.5, window_start=0, backend="triton"), seeds=[1])
    scheduler.set_timesteps(STEPS, device=DEVICE)
    with torch.inference_mode():
        handle.warm_up(start())
    handle.reseed([7])
    assert handle.report.rows[0].seed == 7
