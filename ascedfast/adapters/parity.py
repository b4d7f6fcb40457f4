# SPDX-License-Identifier: MIT
"""The stock step's own scalars, so that a fused update gives the stock's very bits.

Each is made by the torch expressions of the stock ``step`` on 0-dim float32 tensors where the stock has them, then
rounded as torch rounds such a scalar when it meets a tensor:

    scalar on                            s * tensor, tensor * s         tensor / s
    the CPU, tensors on a GPU            s in float32                   times float32(1/s)
    the GPU, tensors there               s rounded to the tensor's type divided by s rounded to it
    the CPU, tensors there               s rounded, but not on the right  divided by s in float32
"""

import copy
from dataclasses import dataclass

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor

from ascedfast.adapters.class_swap import restore, stock_class
from ascedfast.adapters.host_copy import on_host
from ascedfast.adapters.support import supported_base
from ascedfast.solver import SCALARS, Update, solver_update

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "flow"}


@dataclass(frozen=True)
class ParityPlan:
    """One update and six float32 scalars for each step of a schedule, from its first executed step on."""

    updates: tuple[Update, ...]
    scalars: Tensor


class _Scalars:
    """Scalars as torch uses them beside tensors of ``device``. on_gpu: the stock has them on the GPU too."""

    def __init__(self, device: torch.device, on_gpu: bool) -> None:
        self.on_gpu, self.apart = on_gpu, device.type == "cuda" and not on_gpu

    def left(self, s: Tensor, dtype: torch.dtype) -> float:
        """In s * tensor."""
        return float(s if self.apart else s.to(dtype))

    def right(self, s: Tensor, dtype: torch.dtype) -> float:
        """In tensor * s."""
        return float(s.to(dtype) if self.on_gpu else s)

    def under(self, s: Tensor, dtype: torch.dtype) -> float:
        """In tensor / s; the reciprocal where torch multiplies by it."""
        if self.on_gpu:
            return float(s.to(dtype))
        return float(torch.tensor(1.0) / s if self.apart else s)


def _levels_on_gpu(scheduler: SchedulerMixin) -> bool:
    levels = scheduler.alphas_cumprod if supported_base(scheduler) is DDIMScheduler else scheduler.sigmas
    return levels.is_cuda


def parity_plan(
    scheduler: SchedulerMixin,
    first: int,
    x: torch.dtype,
    m: torch.dtype,
    device: torch.device,
    host: SchedulerMixin | None = None,
) -> ParityPlan | None:
    """The updates of a run whose first step is ``first``, on tensors of these types on ``device``.

    Args: host: the scheduler with its levels on the host (``host_copy``); default: they are read back.
    Returns None for solvers and settings that have no such form (thresholding, stochastic or third-order solvers,
    other predictions): those are left to the stock step.
    """
    base, config = supported_base(scheduler), scheduler.config
    host = on_host(scheduler) if host is None else host
    prediction = PREDICTIONS.get(config.get("prediction_type", "flow_prediction"))
    if stock_class(scheduler) is not base:  # a subclass may have changed what step calls
        return None
    if prediction is None or config.get("thresholding") or torch.float64 in (x, m):
        return None
    if base not in BUILDERS:
        return None
    scalar = _Scalars(device, _levels_on_gpu(scheduler))
    steps = BUILDERS[base](host, prediction, first, x, m, scalar)
    if steps is None:
        return None
    rows = [values + [0.0] * (SCALARS - len(values)) for _, values in steps]
    return ParityPlan(tuple(update for update, _ in steps), torch.tensor(rows, dtype=torch.float32))


def _ddim(scheduler, prediction, first, x, m, scalar) -> list[tuple[Update, list[float]]] | None:
    if prediction == "flow":
        return None
    wide = torch.promote_types(x, m)
    clip = scheduler.config.clip_sample_range if scheduler.config.clip_sample else None
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    steps = []
    for t in (int(value) for value in scheduler.timesteps[first:].tolist()):
        a = scheduler.alphas_cumprod[t]
        a_next = scheduler.alphas_cumprod[t - stride] if t >= stride else scheduler.final_alpha_cumprod
        b = 1 - a
        no_noise = 0.0 * scheduler._get_variance(t, t - stride) ** 0.5
        root_a, root_b = a**0.5, b**0.5
        root_next, rest = a_next**0.5, (1 - a_next - no_noise**2) ** 0.5
        if prediction == "eps":
            values = [
                scalar.left(root_b, m),
                scalar.under(root_a, wide),
                scalar.left(rest, m),
                scalar.left(root_next, wide),
            ]
        else:
            values = [
                scalar.left(root_b, m),
                scalar.left(root_a, x),
                scalar.left(rest, wide),
                scalar.left(root_next, wide),
                scalar.left(root_a, m),
                scalar.left(root_b, x),
            ]
        steps.append((Update("ddim", prediction, not scalar.apart, clip), values))
    return steps


def _euler(scheduler, prediction, first, x, m, scalar) -> list[tuple[Update, list[float]]] | None:
    if prediction == "flow":
        return None
    steps = []
    for sigma, sigma_next in zip(scheduler.sigmas[first:-1], scheduler.sigmas[first + 1 :], strict=True):
        sigma_hat = sigma * (0.0 + 1)
        step, square = sigma_next - sigma_hat, sigma**2 + 1
        values = [
            scalar.left(sigma_hat, m),
            scalar.under(sigma_hat, torch.float32),
            scalar.right(step, torch.float32),
            scalar.right(-sigma / square**0.5, m),
            scalar.under(square, torch.float32),
        ]
        steps.append((Update("euler", prediction, not scalar.apart), values))
    return steps


def _flow(scheduler, prediction, first, x, m, scalar) -> list[tuple[Update, list[float]]] | None:
    if scheduler.config.stochastic_sampling:
        return None
    steps = scheduler.sigmas[first + 1 :] - scheduler.sigmas[first:-1]
    return [(Update("flow", "flow"), [scalar.left(step, m)]) for step in steps]


def _dpm(scheduler, prediction, first, x, m, scalar) -> list[tuple[Update, list[float]]] | None:
    config = scheduler.config
    if config.algorithm_type != "dpmsolver++" or config.solver_order > 2 or scheduler.lower_order_nums:
        return None
    if config.variance_type in ("learned", "learned_range"):
        return None
    wide = torch.promote_types(x, m)
    count = len(scheduler.timesteps)
    levels = [scheduler._sigma_to_alpha_sigma_t(sigma) for sigma in scheduler.sigmas]
    lambdas = [torch.log(alpha) - torch.log(sigma) for alpha, sigma in levels]
    steps = []
    for k in range(first, count):
        (alpha, sigma), (alpha_next, sigma_next) = levels[k], levels[k + 1]
        h = lambdas[k + 1] - lambdas[k]
        grown = torch.exp(-h) - 1.0
        if prediction == "eps":
            values = [scalar.left(sigma, m), scalar.under(alpha, wide)]
        elif prediction == "v":
            values = [scalar.left(sigma, m), scalar.left(alpha, x)]
        else:
            values = [scalar.left(scheduler.sigmas[k], m), 0.0]
        values += [scalar.left(sigma_next / sigma, torch.float32), scalar.left(alpha_next * grown, wide)]
        last = k == count - 1 and (
            config.euler_at_final or (config.lower_order_final and count < 15) or config.final_sigmas_type == "zero"
        )
        solver = "dpm1" if config.solver_order == 1 or k == first or last else "dpm2"
        if solver == "dpm2":
            ratio = (lambdas[k] - lambdas[k - 1]) / h
            if config.solver_type == "midpoint":  # stock subtracts it
                weight = -(0.5 * (alpha_next * grown))
            else:
                weight = alpha_next * (grown / h + 1.0)
            values += [scalar.left(1.0 / ratio, wide), scalar.left(weight, wide)]
        steps.append((Update(solver, prediction, not scalar.apart), values))
    return steps


BUILDERS = {
    DDIMScheduler: _ddim,
    EulerDiscreteScheduler: _euler,
    FlowMatchEulerDiscreteScheduler: _flow,
    DPMSolverMultistepScheduler: _dpm,
}
"""The solvers that have such a form."""
_verdicts: dict[tuple, bool] = {}


def gives_stock_bits(scheduler: SchedulerMixin, plan: ParityPlan, first: int, x: Tensor, m: Tensor, step) -> bool:
    """Whether ``step`` gives the stock's bits over a whole run of small random tensors, checked once a process.

    Args:
        x, m: tensors of the run: their types and device are taken. step: ``(update, x, m, scalars, own_x0_prev)``
            to (next state, own x0).
    A result is kept for the scheduler's class, its settings that choose the update, the types and the device.
    """
    place = _levels_on_gpu(scheduler)
    key = (supported_base(scheduler), frozenset(plan.updates), x.dtype, m.dtype, x.device, place)
    if key not in _verdicts:
        _verdicts[key] = _compare(scheduler, plan, first, x, m, step)
    return _verdicts[key]


def forget_verdicts() -> None:
    """Check again at the next run."""
    _verdicts.clear()


def _compare(scheduler: SchedulerMixin, plan: ParityPlan, first: int, x: Tensor, m: Tensor, step) -> bool:
    stock = copy.deepcopy(scheduler)
    restore(stock)
    g = torch.Generator().manual_seed(0)
    # No multiple of a kernel's block: the last one is not full.
    state = torch.randn(2, 4, 9, 15, generator=g).to(x.device, x.dtype)
    scalars = plan.scalars.to(x.device)
    if hasattr(stock, "_step_index"):
        stock._step_index = first
    own = None
    for k, update in enumerate(plan.updates):
        output = torch.randn(state.shape, generator=g).to(m.device, m.dtype)
        got, own = step(update, state, output, scalars[k], own)
        expected = stock.step(output, stock.timesteps[first + k], state, return_dict=False)
        if not torch.equal(got, expected[0]) or got.dtype != expected[0].dtype:
            return False
        state = expected[0]
    return True


def check_with_reference(update: Update, x: Tensor, m: Tensor, scalars: Tensor, own: Tensor | None):
    """A ``step`` for ``gives_stock_bits``."""
    return solver_update(update, x, m, scalars, own)
