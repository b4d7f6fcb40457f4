# SPDX-License-Identifier: MIT
"""Levels of the schedulers that read the cumulative products of their alphas at integer timesteps (and of IPNDM and
Wuerstchen, which have such a process in closed form).

Each function takes a scheduler that is set to a run, its levels on the host, and gives a ``Schedule`` in float64.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from diffusers import SchedulerMixin

from ascedfast import process
from ascedfast.schedule import Schedule

KINDS: dict[str, Callable[[float, float], process.Coefficients]] = {
    "epsilon": process.eps,
    "v_prediction": process.v,
    "sample": process.sample,
}


def ddim(scheduler: SchedulerMixin) -> Schedule:
    """DDIM and its parallel form."""
    return _strided(scheduler, _clip(scheduler))


def cogvideox(scheduler: SchedulerMixin) -> Schedule:
    """CogVideoX's DDIM and DPM: like DDIM, but nothing is clipped whatever their configuration says."""
    return _strided(scheduler, None)


def _strided(scheduler: SchedulerMixin, clip: float | None) -> Schedule:
    config = scheduler.config
    abar, timesteps = _abar(scheduler), _integers(scheduler.timesteps)
    # DDIM steps to t - T/N, which is not always the next entry of its timesteps.
    stride = config.num_train_timesteps // scheduler.num_inference_steps
    after = [abar[t - stride] if t >= stride else float(scheduler.final_alpha_cumprod) for t in timesteps]
    return _from_abar(config.get("prediction_type"), [abar[t] for t in timesteps], after, scheduler, timesteps, clip)


def ddim_inverse(scheduler: SchedulerMixin) -> Schedule:
    """DDIM backwards: from the level below each timestep to the timestep."""
    config, abar, timesteps = scheduler.config, _abar(scheduler), _integers(scheduler.timesteps)
    stride, first = config.num_train_timesteps // scheduler.num_inference_steps, float(scheduler.initial_alpha_cumprod)
    before = [abar[t - stride] if t >= stride else first for t in timesteps]
    after = [abar[t] for t in timesteps]
    return _from_abar(config.prediction_type, before, after, None, timesteps, _clip(scheduler))


def ddpm(scheduler: SchedulerMixin) -> Schedule:
    """DDPM, its parallel form and UnCLIP: to the next timestep, at last to the clean sample."""
    abar, timesteps = _abar(scheduler), _integers(scheduler.timesteps)
    before = [abar[t] for t in timesteps]
    kind = scheduler.config.prediction_type
    return _from_abar(kind, before, [*before[1:], 1.0], scheduler, timesteps, _clip(scheduler))


def lcm(scheduler: SchedulerMixin) -> Schedule:
    """Latent consistency: each step returns its prediction with fresh noise of the next timestep's level."""
    abar, timesteps = _abar(scheduler), _integers(scheduler.timesteps)
    before = [abar[t] for t in timesteps]
    return _from_abar(scheduler.config.prediction_type, before, [*before[1:], 1.0], None, timesteps, _clip(scheduler))


def tcd(scheduler: SchedulerMixin) -> Schedule:
    """Trajectory consistency: to the next timestep, at last to timestep 0. It clips nothing."""
    abar, timesteps = _abar(scheduler), _integers(scheduler.timesteps)
    before = [abar[t] for t in timesteps]
    return _from_abar(scheduler.config.prediction_type, before, [*before[1:], abar[0]], None, timesteps, None)


def repaint_calls(scheduler: SchedulerMixin) -> list[float]:
    """Timesteps at which RePaint steps; at the others its pipelines go back up with ``undo_step``."""
    timesteps = scheduler.timesteps.tolist()
    return [t for last, t in itertools.pairwise([timesteps[0] + 1, *timesteps]) if t < last]


def repaint_begins(scheduler: SchedulerMixin) -> list[int]:
    """Of those calls, the last one at each timestep: what goes before is done over."""
    last = {t: call for call, t in enumerate(repaint_calls(scheduler))}
    return sorted(last.values())


def repaint(scheduler: SchedulerMixin) -> Schedule:
    """RePaint: the last pass over each timestep, to t - T//N."""
    calls, abar = repaint_calls(scheduler), _abar(scheduler)
    timesteps = [int(calls[call]) for call in repaint_begins(scheduler)]
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    after = [abar[t - stride] if t >= stride else float(scheduler.final_alpha_cumprod) for t in timesteps]
    clip = 1.0 if scheduler.config.clip_sample else None
    return _from_abar("epsilon", [abar[t] for t in timesteps], after, scheduler, timesteps, clip)


def wuerstchen(scheduler: SchedulerMixin) -> Schedule:
    """Wuerstchen: a cosine process over t in [0, 1], noise prediction, to the next of N + 1 timesteps."""
    abar = scheduler._alpha_cumprod(scheduler.timesteps.float(), torch.device("cpu")).double().tolist()
    return _from_abar("epsilon", abar[:-1], abar[1:], None, scheduler.timesteps.tolist(), None)


def pndm(scheduler: SchedulerMixin) -> Schedule:
    """PNDM without its Runge-Kutta start (plms)."""
    abar, timesteps = _abar(scheduler), _integers(scheduler.timesteps)
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    # The second step does the first one over, with the mean of both outputs: it ends at its own timestep.
    ends = [t if k == 1 else t - stride for k, t in enumerate(timesteps)]
    after = [abar[t] if t >= 0 else float(scheduler.final_alpha_cumprod) for t in ends]
    return _from_abar(scheduler.config.prediction_type, [abar[t] for t in timesteps], after, None, timesteps, None)


def ipndm(scheduler: SchedulerMixin) -> Schedule:
    """IPNDM, whose process is the sine and cosine of an angle."""
    pairs = zip(scheduler.alphas.double().tolist(), scheduler.betas.double().tolist(), strict=True)
    levels = [process.v(alpha, sigma) for alpha, sigma in pairs]
    return Schedule(tuple(levels[:-1]), tuple((level.alpha, level.sigma) for level in levels[1:]))


def _from_abar(
    prediction: str | None,
    before: Sequence[float],
    after: Sequence[float],
    paper: SchedulerMixin | None,
    timesteps: Sequence[float],
    clip: float | None,
) -> Schedule:
    """paper: the scheduler where its settings may be the paper's."""
    kind = KINDS[prediction]
    return Schedule(
        tuple(kind(abar**0.5, (1 - abar) ** 0.5) for abar in before),
        tuple((abar**0.5, (1 - abar) ** 0.5) for abar in after),
        clip=clip,
        linear_beta=paper is not None and is_paper_setting(paper, timesteps),
    )


def _abar(scheduler: SchedulerMixin) -> list[float]:
    return scheduler.alphas_cumprod.double().tolist()


def _integers(timesteps: torch.Tensor) -> list[int]:
    return [int(t) for t in timesteps.tolist()]


def _clip(scheduler: SchedulerMixin) -> float | None:
    """The bound of a clipped prediction. A dynamic threshold is another matter: see ``own_x0``."""
    config = scheduler.config
    return config.clip_sample_range if config.clip_sample and not config.get("thresholding") else None


def is_paper_setting(scheduler: SchedulerMixin, timesteps: Sequence[float]) -> bool:
    """Noise prediction with linear betas at evenly spaced timesteps from full noise to the clean sample."""
    config = scheduler.config
    if config.get("beta_schedule") != "linear" or config.get("prediction_type", "epsilon") != "epsilon":
        return False
    if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        return False
    if config.get("interpolation_type", "linear") != "linear":
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
