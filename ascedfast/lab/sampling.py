# SPDX-License-Identifier: MIT
"""A deterministic sampler in the one algebra, for any parameterisation, and start noise that belongs to a seed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ascedfast.schedule import Schedule

Denoiser = Callable[[Tensor, int], Tensor]
"""(state [R, C, *grid], index of the step in the schedule) -> model output of the same shape."""
OnStep = Callable[[int, Tensor, Tensor], None]
"""(step, state before it, x0_hat of it)"""


def start_noise(seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal [R, *shape] on the CPU, each row from a generator of its own seed: the same in any batch.

    Drawn in float32, whatever the dtype: torch draws other numbers in another one."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(dtype)


@torch.no_grad()
def sample(denoiser: Denoiser, schedule: Schedule, x: Tensor, first: int = 0, on_step: OnStep | None = None) -> Tensor:
    """Follow the probability-flow ODE: x' = alpha'*x0_hat + sigma'*(x - alpha*x0_hat)/sigma.

    For noise, v and sample predictions this is DDIM with eta 0 (arXiv 2010.02502, Eq. 12), for rectified flow Euler.

    Args:
        x: [R, C, *grid], the state before step ``first``; not modified.
        on_step: sees every executed step; must not modify what it gets.
    Returns: the state after the last step, in x's dtype.
    Raises: ValueError for a first step outside the schedule, or a level without noise before a step.
    """
    if not 0 <= first < len(schedule):
        raise ValueError(f"first must lie in 0..{len(schedule) - 1}, got {first}")
    for step in range(first, len(schedule)):
        now, (alpha, sigma) = schedule.before[step], schedule.after[step]
        if now.sigma == 0:
            raise ValueError(f"step {step} starts without noise: nothing is left to denoise")
        x0 = schedule.x0_hat(step, x, denoiser(x, step))
        if on_step is not None:
            on_step(step, x, x0)
        x = alpha * x0 + (sigma / now.sigma) * (x - now.alpha * x0)
    return x
