# SPDX-License-Identifier: MIT
"""Levels of the schedulers that hold their sigmas, of the variance-exploding, the variance-preserving and EDM's form.

Each function takes a scheduler that is set to a run, its levels on the host, and gives a ``Schedule`` in float64, or
the calls of ``step`` that begin a step of the solver.
"""

from collections.abc import Callable, Sequence

from diffusers import SchedulerMixin

from ascedfast import process
from ascedfast.adapters.levels_vp import is_paper_setting
from ascedfast.process import Coefficients
from ascedfast.schedule import Schedule

EXPLODING: dict[str, Callable[[float], Coefficients]] = {
    "epsilon": process.ve_eps,
    "v_prediction": process.ve_v,
    "sample": process.ve_sample,
    "original_sample": process.ve_sample,
}


def in_pairs(scheduler: SchedulerMixin) -> list[int]:
    """Solvers of order two call the model twice a step, but once in the last."""
    return list(range(0, len(scheduler.timesteps), 2))


def in_order_list(scheduler: SchedulerMixin) -> list[int]:
    """A singlestep solver begins where its order is 1, and from there makes one step the longer the higher it gets."""
    return [call for call, order in enumerate(scheduler.order_list) if order == 1]


def euler(scheduler: SchedulerMixin) -> Schedule:
    """Euler, Euler ancestral and LMS."""
    return _exploding(scheduler, range(len(scheduler.timesteps)))


def second_order(scheduler: SchedulerMixin) -> Schedule:
    """Heun, KDPM2, KDPM2 ancestral and DPM-Solver SDE: their sigmas but the first stand twice."""
    return _exploding(scheduler, in_pairs(scheduler))


def _exploding(scheduler: SchedulerMixin, begins: Sequence[int]) -> Schedule:
    config, kind = scheduler.config, EXPLODING[scheduler.config.prediction_type]
    sigmas, timesteps = scheduler.sigmas.double().tolist(), scheduler.timesteps.tolist()
    return Schedule(
        tuple(kind(sigmas[call]) for call in begins),
        tuple((1.0, sigmas[call + 1]) for call in begins),
        clip=config.clip_sample_range if config.get("clip_sample") else None,
        linear_beta=is_paper_setting(scheduler, [timesteps[call] for call in begins]),
    )


def edm(scheduler: SchedulerMixin) -> Schedule:
    """EDM's preconditioning: EDMEuler, EDM-DPM and Cosine-DPM; a v prediction has the other sign there."""
    config, sigmas = scheduler.config, scheduler.sigmas.double().tolist()
    levels = [process.edm(sigma, config.sigma_data) for sigma in sigmas[:-1]]
    if config.prediction_type == "v_prediction":
        levels = [level._replace(b=-level.b) for level in levels]
    return Schedule(tuple(levels), tuple((1.0, sigma) for sigma in sigmas[1:]))


def consistency(scheduler: SchedulerMixin) -> Schedule:
    """Consistency models: x0_hat = c_skip*x + c_out*m with the boundary condition at sigma_min. What a step adds to its
    prediction is short of the next sigma by sigma_min."""
    config, sigmas = scheduler.config, scheduler.sigmas.double().tolist()
    low, high, data = config.sigma_min, config.sigma_max, config.sigma_data

    def level(sigma: float) -> Coefficients:
        skip = data**2 / ((sigma - low) ** 2 + data**2)
        return Coefficients(skip, (sigma - low) * data / (sigma**2 + data**2) ** 0.5, 1.0, sigma)

    added = [(min(max(sigma, low), high) ** 2 - low**2) ** 0.5 for sigma in sigmas[1:]]
    return Schedule(
        tuple(map(level, sigmas[:-1])), tuple((1.0, s) for s in added), clip=1.0 if config.clip_denoised else None
    )


def dpm(scheduler: SchedulerMixin) -> Schedule:
    """DPM-Solver, UniPC, DEIS and SASolver: multistep, every call a step."""
    return _preserving(scheduler, range(len(scheduler.timesteps)), paper=True)


def dpm_inverse(scheduler: SchedulerMixin) -> Schedule:
    """DPM-Solver backwards, from the clean sample to noise."""
    return _preserving(scheduler, range(len(scheduler.timesteps)), paper=False)


def dpm_singlestep(scheduler: SchedulerMixin) -> Schedule:
    """DPM-Solver in steps of one, two or three calls."""
    return _preserving(scheduler, in_order_list(scheduler), paper=True)


def _preserving(scheduler: SchedulerMixin, begins: Sequence[int], paper: bool) -> Schedule:
    config, timesteps = scheduler.config, scheduler.timesteps.tolist()
    kinds: dict[str, Callable[[float, float], Coefficients]] = {
        "epsilon": process.eps,
        "v_prediction": process.v,
        "sample": process.sample,
        "flow_prediction": lambda alpha, sigma: process.flow(sigma),
    }
    kind = kinds[config.prediction_type]
    pairs = [_alpha_sigma(s, config.use_flow_sigmas) for s in scheduler.sigmas.double().tolist()]
    return Schedule(
        tuple(kind(*pairs[call]) for call in begins),
        tuple(pairs[call] for call in [*begins[1:], len(pairs) - 1]),
        linear_beta=paper and is_paper_setting(scheduler, [timesteps[call] for call in begins]),
    )


def _alpha_sigma(sigma: float, flow: bool) -> tuple[float, float]:
    if flow:
        return 1 - sigma, sigma
    alpha = 1 / (sigma * sigma + 1) ** 0.5
    return alpha, sigma * alpha
