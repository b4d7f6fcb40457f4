# SPDX-License-Identifier: MIT
"""Which diffusers schedulers can be watched, and the noise levels of a run as a ``Schedule``.

Levels are read once, at the first step of a run. Not at ``set_timesteps``: some pipelines write into ``sigmas`` in
between.
"""

from diffusers import SchedulerMixin

from ascedfast.adapters.class_swap import stock_class
from ascedfast.adapters.support import REFUSED, SUPPORT, facts_of, supported_base
from ascedfast.schedule import Schedule

ZERO_SNR = ("DDIM", "DDIMParallel", "CogVideoXDDIM", "CogVideoXDPM", "DDPM", "DDPMParallel", "LCM", "TCD")
"""They divide by the alpha of their timestep as it is; the others keep it above 0."""
SPACES = {
    "DPMSolverMultistepScheduler": ("dpmsolver++", "sde-dpmsolver++"),
    "DPMSolverMultistepInverseScheduler": ("dpmsolver++", "sde-dpmsolver++"),
    "DPMSolverSinglestepScheduler": ("dpmsolver++", "sde-dpmsolver++"),
    "SASolverScheduler": ("data_prediction",),
}
"""Algorithms that remember predictions of the sample, which dynamic thresholding needs."""
FLOW_OR_NOT = (
    *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler"),
    *("UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"),
)
"""``use_flow_sigmas`` says which process they step through, whatever the model predicts."""


def refusal(scheduler: SchedulerMixin) -> str | None:
    """Why this scheduler cannot be watched, in words for the user; None when it can."""
    base = supported_base(scheduler)
    if base is None:
        return _why_not(scheduler)
    name, config = base.__name__, scheduler.config
    prediction = config.get("prediction_type", "epsilon")
    short = name.removesuffix("Scheduler")
    if short in ZERO_SNR and config.get("rescale_betas_zero_snr") and prediction == "epsilon":
        return (
            f"{name} with rescale_betas_zero_snr and prediction_type='epsilon' divides by zero at its first "
            "step (its own samples are NaN too); use prediction_type='v_prediction' or rescale_betas_zero_snr=False"
        )
    if name in FLOW_OR_NOT and prediction == "flow_prediction" and not config.use_flow_sigmas:
        return (
            f"{name} with prediction_type='flow_prediction' and use_flow_sigmas=False mixes two processes "
            f"(its own samples are wrong too): use {name}.from_config(scheduler.config, use_flow_sigmas=True)"
        )
    if name in FLOW_OR_NOT and prediction == "v_prediction" and config.use_flow_sigmas:
        return (
            f"{name} with prediction_type='v_prediction' and use_flow_sigmas=True takes alpha^2 + sigma^2 for 1, which "
            "it is not there (its own samples are wrong too): use use_flow_sigmas=False, or "
            "prediction_type='flow_prediction' for a model of a rectified flow"
        )
    if config.get("thresholding") and name in SPACES and config.algorithm_type not in SPACES[name]:
        kinds = " and ".join(map(repr, SPACES[name]))
        return f"dynamic thresholding is supported with algorithm_type {kinds} only"
    if name == "PNDMScheduler" and not config.skip_prk_steps:
        return (
            "PNDMScheduler's Runge-Kutta start is not supported: set skip_prk_steps=True, as in "
            "PNDMScheduler.from_config(scheduler.config, skip_prk_steps=True)"
        )
    if getattr(scheduler, "solver_p", None) is not None:
        return f"{name} with solver_p, whose history is another scheduler's, is not supported"
    return None


def _why_not(scheduler: SchedulerMixin) -> str:
    name = type(scheduler).__name__
    if name in REFUSED and stock_class(scheduler).__module__.startswith("diffusers."):
        return f"{name} is not supported: {REFUSED[name]}"
    names = ", ".join(SUPPORT)
    return f"{name} is not supported (or overrides step); supported schedulers: {names}"


def nan_warning(scheduler: SchedulerMixin) -> str | None:
    """What to do about a run that ends in NaN or Inf in stock itself, in words for the user; None for all others.

    Args: scheduler: set to the run, its levels on the host (see ``host_copy``).
    """
    name, config = supported_base(scheduler).__name__, scheduler.config
    helios = name == "HeliosScheduler" and config.scheduler_type == "unipc" and config.solver_order > 2
    if helios and config.use_flow_sigmas and scheduler.sigmas[0] == 1:
        return "HeliosScheduler of order 3 gives NaN from its third step on, since it starts at a sigma of 1: use 2"
    solvers = ("UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler")
    if name not in solvers or scheduler.sigmas[-1] != 0:
        return None
    if name != "UniPCMultistepScheduler":
        return f"{name} gives NaN at a last sigma of 0 (its own schedules end above it): leave sigmas[-1] > 0"
    if not scheduler.predict_x0:
        cause, cure = "predict_x0=False", "predict_x0=True or final_sigmas_type='sigma_min'"
    elif config.solver_type == "bh1":
        cause, cure = "solver_type='bh1'", "solver_type='bh2' or final_sigmas_type='sigma_min'"
    elif not config.lower_order_final and config.solver_order > 1:
        cause, cure = "lower_order_final=False", "lower_order_final=True"
    else:
        return None
    return f"UniPCMultistepScheduler with {cause} gives NaN or Inf at its last step, to a sigma of 0: use {cure}"


def why_left_alone(scheduler: SchedulerMixin, first: int) -> str | None:
    """Why a run whose first call of ``step`` is about to be the one of that index cannot be corrected; None usually.

    Args: first: counted over the calls of the whole schedule.
    """
    name, facts = supported_base(scheduler).__name__, facts_of(scheduler)
    if facts.inverse:
        return f"{name} goes from the sample to noise: it is observed, never corrected"
    if name == "PNDMScheduler" and (first or scheduler.counter):
        return (
            "PNDMScheduler works from the first timestep after set_timesteps only; its second step takes whatever run "
            "begins later back to where it began"
        )
    if name == "FlowMatchLCMScheduler" and scheduler._scale_factors and scheduler._upscale_mode:
        return "FlowMatchLCMScheduler with scale_factors changes the size of its latents under way"
    if name in ("HeliosScheduler", "HeliosDMDScheduler") and scheduler.config.stages > 1:
        return f"{name} with stages: the levels of one stage are not those of the clean video; use stages=1"
    if begins_within_a_step(scheduler, first):
        starts = facts.begins(scheduler)
        nearest = min(starts, key=lambda call: abs(call - first))
        return (
            f"{name} begins in the middle of a step of its solver, so that no x0_hat can be told: begin at a call that "
            f"starts one (set_begin_index({nearest}), another strength, or number of steps)"
        )
    return None


def begins_within_a_step(scheduler: SchedulerMixin, first: int) -> bool:
    """Whether the call of that index is not the first of a step of the solver."""
    facts = facts_of(scheduler)
    return facts.inner and first not in facts.begins(scheduler)


def schedule_of(scheduler: SchedulerMixin) -> Schedule:
    """All levels of the run that ``scheduler`` is set to, a step of the solver each.

    Raises: ValueError where ``set_timesteps`` was not called.
    """
    if not _is_set(scheduler):
        raise ValueError("call scheduler.set_timesteps before the first step")
    return facts_of(scheduler).levels(scheduler)


def calls_of(scheduler: SchedulerMixin, schedule: Schedule) -> list[float]:
    """Timesteps at which ``step`` is called in the run that ``scheduler`` is set to, whose levels are ``schedule``."""
    facts = facts_of(scheduler)
    if facts.calls is not None:
        return facts.calls(scheduler)
    timesteps = scheduler.timesteps.tolist()
    # Some count the level at which the run ends among the timesteps.
    return timesteps[: len(schedule)] if facts.begins is None else timesteps


def begins_of(scheduler: SchedulerMixin, schedule: Schedule) -> list[int]:
    """Of those calls, the ones that begin a step of the solver, as ``schedule`` counts steps."""
    facts = facts_of(scheduler)
    return list(range(len(schedule))) if facts.begins is None else facts.begins(scheduler)


def _is_set(scheduler: SchedulerMixin) -> bool:
    held = scheduler.__dict__  # not getattr: a scheduler looks in its configuration for what it lacks
    # EDMEuler keeps no number of steps where sigmas were given; Wuerstchen never does.
    if held.get("num_inference_steps") is not None or held.get("custom_timesteps"):
        return True
    name = supported_base(scheduler).__name__
    return name == "EDMEulerScheduler" or (name == "DDPMWuerstchenScheduler" and "timesteps" in held)
