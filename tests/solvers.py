# SPDX-License-Identifier: MIT
"""Schedulers beside the ten of ``tiny.SCHEDULERS``, by name, and a loop that steps any of them as its pipelines do."""

import inspect

import diffusers
import tiny
import torch
from diffusers.utils.torch_utils import randn_tensor

from ascedfast.adapters.schedules import begins_of, calls_of, schedule_of
from ascedfast.adapters.support import facts_of, supported_base
from ascedfast.process import Coefficients, ve_eps, ve_v

SCALED, V, FLOW, NO_CLIP = tiny.SCALED, tiny.V, tiny.FLOW, tiny.NO_CLIP
SAMPLE, LEARNED = {"prediction_type": "sample"}, {"variance_type": "learned_range"}
STAGES = {"stages": 1, "shift": 3.0, "time_shift_type": "linear"}
SETTINGS = {
    "ddim-parallel": ("DDIMParallel", NO_CLIP),
    "ddim-parallel-clip": ("DDIMParallel", {}),
    "ddim-parallel-threshold": ("DDIMParallel", {**NO_CLIP, "thresholding": True}),
    "ddim-cogvideox": ("CogVideoXDDIM", {}),
    "ddim-cogvideox-v": (
        "CogVideoXDDIM",
        {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    "ddim-inverse": ("DDIMInverse", NO_CLIP),
    "ddpm": ("DDPM", NO_CLIP),
    "ddpm-clip": ("DDPM", {}),
    "ddpm-v": ("DDPM", {**SCALED, **V, **NO_CLIP}),
    "ddpm-sample": ("DDPM", {**SAMPLE, **NO_CLIP}),
    "ddpm-learned": ("DDPM", {**NO_CLIP, **LEARNED}),
    "ddpm-threshold": ("DDPM", {**NO_CLIP, "thresholding": True}),
    "ddpm-parallel": ("DDPMParallel", NO_CLIP),
    "ddpm-wuerstchen": ("DDPMWuerstchen", {}),
    "ddpm-wuerstchen-scaled": ("DDPMWuerstchen", {"scaler": 2.0}),
    "unclip": ("UnCLIP", NO_CLIP),
    "unclip-learned": ("UnCLIP", {**LEARNED, "clip_sample_range": 5.0}),
    "unclip-sample": ("UnCLIP", {**SAMPLE, **NO_CLIP}),
    "repaint": ("RePaint", {}),
    "repaint-eta": ("RePaint", {"eta": 1.0, **NO_CLIP}),
    "lcm": ("LCM", {}),
    "lcm-v-clip": ("LCM", {**V, "clip_sample": True}),
    "lcm-threshold": ("LCM", {"thresholding": True}),
    "tcd": ("TCD", {}),
    "tcd-v": ("TCD", V),
    "scm": ("SCM", {}),
    "cm": ("CMStochasticIterative", {}),
    "cm-unclipped": ("CMStochasticIterative", {"clip_denoised": False}),
    "euler-a": ("EulerAncestralDiscrete", SCALED),
    "euler-a-v": ("EulerAncestralDiscrete", {**SCALED, **V}),
    "edm-euler": ("EDMEuler", {}),
    "edm-euler-v": ("EDMEuler", {**V, "sigma_schedule": "exponential"}),
    "flow-lcm": ("FlowMatchLCM", {"shift": 3.0}),
    "flow-map": ("FlowMapEulerDiscrete", {"shift": 3.0}),
    "ltx-euler-a": ("LTXEulerAncestralRF", {}),
    "ltx-euler-a-ode": ("LTXEulerAncestralRF", {"eta": 0.0}),
    "minimax": ("MiniMaxH3", {"shift": 3.0}),
    "heun": ("HeunDiscrete", SCALED),
    "heun-v-karras": ("HeunDiscrete", {**SCALED, **V, "use_karras_sigmas": True}),
    "heun-clip": ("HeunDiscrete", {**SCALED, "clip_sample": True}),
    "kdpm2": ("KDPM2Discrete", SCALED),
    "kdpm2-v": ("KDPM2Discrete", {**SCALED, **V}),
    "kdpm2-a": ("KDPM2AncestralDiscrete", SCALED),
    "flow-heun": ("FlowMatchHeunDiscrete", {"shift": 3.0}),
    "dpm-sde": ("DPMSolverSDE", {**SCALED, "noise_sampler_seed": 7}),
    "dpm-sde-v": ("DPMSolverSDE", {**SCALED, **V, "noise_sampler_seed": 7}),
    "dpm-single1": ("DPMSolverSinglestep", {**SCALED, "solver_order": 1}),
    "dpm-single2": ("DPMSolverSinglestep", SCALED),
    "dpm-single2-v": ("DPMSolverSinglestep", {**SCALED, **V}),
    "dpm-single3-flow": ("DPMSolverSinglestep", {**FLOW, "solver_order": 3}),
    "dpm-single2-sde": ("DPMSolverSinglestep", {**SCALED, "algorithm_type": "sde-dpmsolver++"}),
    "dpm-single2-threshold": ("DPMSolverSinglestep", {**SCALED, "thresholding": True}),
    "dpm-inverse": ("DPMSolverMultistepInverse", SCALED),
    "edm-dpm2": ("EDMDPMSolverMultistep", {}),
    "edm-dpm3-v": ("EDMDPMSolverMultistep", {**V, "solver_order": 3}),
    "edm-dpm2-sde": ("EDMDPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "edm-dpm2-threshold": ("EDMDPMSolverMultistep", {"thresholding": True}),
    "cosine-dpm2": ("CosineDPMSolverMultistep", {}),
    "dpm-cogvideox": ("CogVideoXDPM", {}),
    "dpm-cogvideox-v": ("CogVideoXDPM", {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    "helios-unipc": ("Helios", STAGES),
    "helios-euler": ("Helios", {**STAGES, "scheduler_type": "euler"}),
    "helios-dmd": ("HeliosDMD", STAGES),
}
NEEDS_TORCHSDE = ("dpm-sde", "dpm-sde-v", "cosine-dpm2")
WITH_A_KNOWN_PART = ("repaint", "repaint-eta")
INVERSE = ("ddim-inverse", "dpm-inverse")
PARAMETERS = list(SETTINGS)


def make(name, **changes):
    kind, options = SETTINGS[name]
    return tiny.quietly(lambda: getattr(diffusers, f"{kind}Scheduler")(**options | changes))


def set_steps(scheduler, steps=25):
    """As the scheduler's pipelines call it."""
    extra = {}
    if type(scheduler).__name__ == "SCMScheduler":
        extra = {"intermediate_timesteps": None}
    elif type(scheduler).__name__ == "RePaintScheduler":
        extra = {"jump_length": 5, "jump_n_sample": 2}
    scheduler.set_timesteps(steps, **extra)
    return scheduler


def levels_at(scheduler):
    """The level at which each call evaluates the model: the middle of a step too."""
    schedule = schedule_of(scheduler)
    begins, calls = begins_of(scheduler, schedule), calls_of(scheduler, schedule)
    name = supported_base(scheduler).__name__
    if name == "RePaintScheduler":
        by_time = dict(zip([calls[call] for call in begins], schedule.before, strict=True))
        return [by_time[t] for t in calls]
    if not facts_of(scheduler).inner:
        return list(schedule.before)
    levels = dict(zip(begins, schedule.before, strict=True))
    sigmas = scheduler.sigmas.double().tolist()
    v = scheduler.config.get("prediction_type") == "v_prediction"
    for call in range(len(calls)):
        if call in levels:
            continue
        if name == "FlowMatchHeunDiscreteScheduler":
            level = Coefficients(1.0, -sigmas[call], 1 - sigmas[call], sigmas[call])
        elif name == "DPMSolverSinglestepScheduler":
            one = set_steps(diffusers.DPMSolverMultistepScheduler.from_config(dict(scheduler.config)))
            one.sigmas, one.timesteps = scheduler.sigmas, scheduler.timesteps
            level = schedule_of(one).before[call]
        else:
            s = sigmas[call]
            if name == "KDPM2DiscreteScheduler":
                s = float(scheduler.sigmas_interpol[call])
            elif name == "KDPM2AncestralDiscreteScheduler":
                s = float(scheduler.sigmas_interpol[call - 1])
            elif name == "DPMSolverSDEScheduler":
                s = (sigmas[call - 1] * sigmas[call]) ** 0.5
            level = (ve_v if v else ve_eps)(s)
        levels[call] = level
    return [levels[call] for call in sorted(levels)]


def output_of(level, x, x0):
    """The model output from which x0_hat = a*x + b*m is x0."""
    if level.b == 0:
        return x0 * 0
    return (x0 - x * level.a) * (1 / level.b)


def sample(
    scheduler, x, predict, *, steps=25, dtype=torch.float32, generator=None, edit=None, seen=lambda t: t, **options
):
    """Every state, the first one included, of a loop with the denoiser ``predict(step, level, x)`` -> x0, where step
    counts the steps of the solver. options: for ``step``. edit: as for ``tiny.sample``. generator: one, or one a row.
    seen: a view of x as [R, C, *grid], whose first two columns RePaint is given."""
    set_steps(scheduler, steps)
    name = supported_base(scheduler).__name__
    levels, schedule = levels_at(scheduler), schedule_of(scheduler)
    begins, calls = begins_of(scheduler, schedule), calls_of(scheduler, schedule)
    timesteps = scheduler.timesteps if name != "RePaintScheduler" else torch.tensor(calls)
    takes = inspect.signature(type(scheduler).step).parameters
    given = dict(options)
    if "generator" in takes:
        given["generator"] = generator
    first = levels[0]
    x = (x * (first.sigma**2 + 0.25 * first.alpha**2) ** 0.5).to(dtype)
    states, old, step = [x.clone()], None, -1
    for call, t in enumerate(timesteps[: len(levels)]):
        step += call in begins
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        m = output_of(levels[call], x.float(), predict(max(step, 0), levels[call], x.float())).to(dtype)
        if scheduler.config.get("variance_type") == "learned_range":
            m = torch.cat([m, torch.zeros_like(m)], 1)
        m = m if edit is None else edit(call, m)
        if name == "CogVideoXDPMScheduler":
            back = timesteps[call - 1] if call else None
            x, old = scheduler.step(m, old, t, back, x, return_dict=False, **given)
        elif name == "DDPMWuerstchenScheduler":
            x = scheduler.step(m, t.expand(len(x)), x, return_dict=False, **given)[0]
        elif name == "UnCLIPScheduler":
            before = timesteps[call + 1] if call + 1 < len(timesteps) else None
            x = scheduler.step(m, t, x, return_dict=False, prev_timestep=before, **given)[0]
        elif name == "RePaintScheduler":
            if call and timesteps[call - 1] <= t:  # a jump back up, whose last undo ends here
                stride = 1000 // scheduler.num_inference_steps
                for up in range(int(timesteps[call - 1]), int(t), stride):
                    x = scheduler.undo_step(x, up, generator)
            known = torch.zeros_like(x)
            seen(known)[..., :2] = 1
            x = scheduler.step(m, t, x, torch.zeros_like(x), known, return_dict=False, **given)[0]
        elif name == "HeliosDMDScheduler":
            noise = randn_tensor(x.shape, generator=generator).to(dtype)
            dmd = {"dmd_noisy_tensor": noise, "dmd_sigmas": scheduler.sigmas, "dmd_timesteps": timesteps}
            dmd |= {"cur_sampling_step": call, "all_timesteps": timesteps}
            x = scheduler.step(m, t, x, return_dict=False, **dmd, **given)[0]
        else:
            x = scheduler.step(m, t, x, return_dict=False, **given)[0]
        states.append(x.clone())
    return states


def jumping(unsteady, mean=0.5):
    """A location-wise denoiser: steady, but where ``unsteady`` it jumps from step to step."""

    def predict(step, level, x):
        jump = 0.6 if step % 2 else -0.6
        steady = mean + 0.015625 * step * mean + torch.where(unsteady, jump, 0.0)
        return (steady + 0.03125 * x.clamp(-2, 2)).expand_as(x)

    return predict


def gaussian(mean=0.25, variance=0.25):
    """E[x0 | x] where x0 ~ N(mean, variance), location by location."""

    def predict(step, level, x):
        gain = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)

    return predict
