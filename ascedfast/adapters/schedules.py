# SPDX-License-Identifier: MIT
"""The noise levels of diffusers' schedulers as a ``Schedule``, read once at the first step of a run.

Not at ``set_timesteps``: some pipelines write into ``sigmas`` in between.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from ascedfast import process
from ascedfast.adapters.class_swap import stock_class
from ascedfast.schedule import Schedule

SUPPORTED: tuple[type, ...] = (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    DEISMultistepScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    IPNDMScheduler,
    SASolverScheduler,
)


def supported_base(scheduler: SchedulerMixin) -> type | None:
    """The supported class whose ``step`` this scheduler runs, or None."""
    return _supported_base(stock_class(scheduler))


@functools.cache
def _supported_base(stock: type) -> type | None:
    return next((base for base in SUPPORTED if issubclass(stock, base) and stock.step is base.step), None)


def refusal(scheduler: SchedulerMixin) -> str | None:
    """Why this scheduler cannot be watched, in words for the user; None when it can."""
    base = supported_base(scheduler)
    if base is None:
        names = ", ".join(cls.__name__ for cls in SUPPORTED)
        return f"{type(scheduler).__name__} is not supported (or overrides step); supported schedulers: {names}"
    config = scheduler.config
    prediction = config.get("prediction_type", "epsilon")
    if base is DDIMScheduler and config.rescale_betas_zero_snr and prediction == "epsilon":
        return (
            "DDIMScheduler with rescale_betas_zero_snr and prediction_type='epsilon' divides by zero at its first "
            "step (its own samples are NaN too); use prediction_type='v_prediction' or rescale_betas_zero_snr=False"
        )
    if base is DPMSolverMultistepScheduler and config.thresholding and "++" not in config.algorithm_type:
        return "dynamic thresholding is supported with algorithm_type 'dpmsolver++' and 'sde-dpmsolver++' only"
    if base is SASolverScheduler and config.thresholding and config.algorithm_type != "data_prediction":
        return "dynamic thresholding is supported with algorithm_type 'data_prediction' only"
    if base is PNDMScheduler and not config.skip_prk_steps:
        return (
            "PNDMScheduler's Runge-Kutta start is not supported: set skip_prk_steps=True, as in "
            "PNDMScheduler.from_config(scheduler.config, skip_prk_steps=True)"
        )
    if getattr(scheduler, "solver_p", None) is not None:
        return "UniPCMultistepScheduler with solver_p, whose history is another scheduler's, is not supported"
    return None


def nan_warning(scheduler: SchedulerMixin) -> str | None:
    """What to do about a run that ends in NaN or Inf in stock itself, in words for the user; None for all others.

    Args: scheduler: set to the run, its levels on the host (see ``host_copy``).
    """
    base, config = supported_base(scheduler), scheduler.config
    if base not in (UniPCMultistepScheduler, DEISMultistepScheduler, SASolverScheduler) or scheduler.sigmas[-1] != 0:
        return None
    if base is not UniPCMultistepScheduler:
        return f"{base.__name__} gives NaN at a last sigma of 0 (its own schedules end above it): leave sigmas[-1] > 0"
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
    """Why a run whose first step is about to run at index ``first`` is inconsistent in stock itself; None usually."""
    if supported_base(scheduler) is PNDMScheduler and (first or scheduler.counter):
        return (
            "PNDMScheduler works from the first timestep after set_timesteps only; its second step takes whatever run "
            "begins later back to where it began"
        )
    return None


def schedule_of(scheduler: SchedulerMixin) -> Schedule:
    """All levels of the run that ``scheduler`` is set to; ``set_timesteps`` must have been called."""
    if getattr(scheduler, "num_inference_steps", None) is None:
        raise ValueError("call scheduler.set_timesteps before the first step")
    return _BUILDERS[supported_base(scheduler)](scheduler)


def _ddim(scheduler: DDIMScheduler) -> Schedule:
    config = scheduler.config
    kind = {"epsilon": process.eps, "v_prediction": process.v, "sample": process.sample}[config.prediction_type]
    abar = scheduler.alphas_cumprod.double().tolist()
    timesteps = [int(t) for t in scheduler.timesteps.tolist()]
    # DDIM steps to t - T/N, which is not always the next entry of its timesteps.
    stride = config.num_train_timesteps // scheduler.num_inference_steps
    after = [abar[t - stride] if t >= stride else float(scheduler.final_alpha_cumprod) for t in timesteps]
    return Schedule(
        tuple(kind(abar[t] ** 0.5, (1 - abar[t]) ** 0.5) for t in timesteps),
        tuple((value**0.5, (1 - value) ** 0.5) for value in after),
        clip=config.clip_sample_range if config.clip_sample and not config.thresholding else None,
        linear_beta=_is_paper_setting(scheduler, timesteps),
    )


def _euler(scheduler: EulerDiscreteScheduler | LMSDiscreteScheduler) -> Schedule:
    kinds = {"epsilon": process.ve_eps, "v_prediction": process.ve_v, "sample": process.ve_sample}
    kinds["original_sample"] = process.ve_sample
    sigmas = scheduler.sigmas.double().tolist()
    kind = kinds[scheduler.config.prediction_type]
    return Schedule(
        tuple(map(kind, sigmas[:-1])),
        tuple((1.0, sigma) for sigma in sigmas[1:]),
        linear_beta=_is_paper_setting(scheduler, scheduler.timesteps.tolist()),
    )


def _flow_match_euler(scheduler: FlowMatchEulerDiscreteScheduler) -> Schedule:
    kind = process.inverted_flow if scheduler.config.invert_sigmas else process.flow
    levels = [kind(s) for s in scheduler.sigmas.double().tolist()]
    return Schedule(tuple(levels[:-1]), tuple((level.alpha, level.sigma) for level in levels[1:]))


def _dpm_solver_multistep(scheduler: SchedulerMixin) -> Schedule:
    """Of DPMSolverMultistep, and of the others that have its sigmas."""
    config = scheduler.config
    kinds: dict[str, Callable[[float, float], process.Coefficients]] = {
        "epsilon": process.eps,
        "v_prediction": process.v,
        "sample": process.sample,
        "flow_prediction": lambda alpha, sigma: process.flow(sigma),
    }
    kind = kinds[config.prediction_type]
    pairs = [_alpha_sigma(s, config.use_flow_sigmas) for s in scheduler.sigmas.double().tolist()]
    return Schedule(
        tuple(kind(*pair) for pair in pairs[:-1]),
        tuple(pairs[1:]),
        linear_beta=_is_paper_setting(scheduler, scheduler.timesteps.tolist()),
    )


def _pndm(scheduler: PNDMScheduler) -> Schedule:
    kind = {"epsilon": process.eps, "v_prediction": process.v}[scheduler.config.prediction_type]
    abar = scheduler.alphas_cumprod.double().tolist()
    timesteps = [int(t) for t in scheduler.timesteps.tolist()]
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    # The second step does the first one over, with the mean of both outputs: it ends at its own timestep.
    ends = [t if k == 1 else t - stride for k, t in enumerate(timesteps)]
    after = [abar[t] if t >= 0 else float(scheduler.final_alpha_cumprod) for t in ends]
    return Schedule(
        tuple(kind(abar[t] ** 0.5, (1 - abar[t]) ** 0.5) for t in timesteps),
        tuple((value**0.5, (1 - value) ** 0.5) for value in after),
    )


def _ipndm(scheduler: IPNDMScheduler) -> Schedule:
    pairs = zip(scheduler.alphas.double().tolist(), scheduler.betas.double().tolist(), strict=True)
    levels = [process.v(alpha, sigma) for alpha, sigma in pairs]
    return Schedule(tuple(levels[:-1]), tuple((level.alpha, level.sigma) for level in levels[1:]))


def _alpha_sigma(sigma: float, flow: bool) -> tuple[float, float]:
    if flow:
        return 1 - sigma, sigma
    alpha = 1 / (sigma * sigma + 1) ** 0.5
    return alpha, sigma * alpha


def _is_paper_setting(scheduler: SchedulerMixin, timesteps: Sequence[float]) -> bool:
    """Noise prediction with linear betas at evenly spaced timesteps from full noise to the clean sample."""
    config = scheduler.config
    if config.beta_schedule != "linear" or config.prediction_type != "epsilon" or config.trained_betas is not None:
        return False
    if config.get("rescale_betas_zero_snr") or config.get("interpolation_type", "linear") != "linear":
        return False
    others = ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "flow_sigmas", "lu_lambdas")
    if any(config.get(f"use_{name}") for name in others):
        return False
    total, steps = config.num_train_timesteps, len(timesteps)
    gaps = [early - late for early, late in itertools.pairwise(timesteps)]
    even = all(abs(gap - sum(gaps) / len(gaps)) <= 1.5 for gap in gaps)
    # Spacing "leading" starts lowest: at (N-1) strides of T//N, DPM-Solver++ at N of T//(N+1).
    whole = timesteps[0] >= min((steps - 1) * (total // steps), steps * (total // (steps + 1)))
    return even and whole and timesteps[-1] <= total / steps + 1


_BUILDERS: dict[type, Callable[..., Schedule]] = {
    DDIMScheduler: _ddim,
    EulerDiscreteScheduler: _euler,
    FlowMatchEulerDiscreteScheduler: _flow_match_euler,
    DPMSolverMultistepScheduler: _dpm_solver_multistep,
    UniPCMultistepScheduler: _dpm_solver_multistep,
    DEISMultistepScheduler: _dpm_solver_multistep,
    LMSDiscreteScheduler: _euler,
    PNDMScheduler: _pndm,
    IPNDMScheduler: _ipndm,
    SASolverScheduler: _dpm_solver_multistep,
}
