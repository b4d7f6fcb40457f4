# SPDX-License-Identifier: MIT
"""Steps whose tokens have timesteps of their own (``per_token_timesteps`` of FlowMatchEuler): what is given to the
sampler, a first frame for one, is at a lower level than the rest, and the pipeline puts it back after each step.

Such a step takes the velocity with the other sign, x_next = x + (s - s_next)*m, unless it draws its state anew.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ascedfast.adapters.arguments import first_of

TOKENS = "per_token_timesteps"
TOLERANCE = 1e-3
"""Between timesteps that are the same level; the scheduler's own, 1e-6 of sigma."""

ROUNDED = (
    "per_token_timesteps are the step's timestep rounded to bfloat16 or float16, which the scheduler takes for another "
    "level: give them in float32"
)
"""Where the rounding is upwards, the next lower level is the step's own: the sample stays behind the schedule."""


def x0_by_token(scheduler: SchedulerMixin, call: Mapping[str, Any]) -> Tensor:
    """x0_hat of a step called with [B, S] or [B, 1] timesteps, from the level of each token: fp32, as the sample."""
    sigma = (call[TOKENS] / scheduler.config.num_train_timesteps)[..., None]
    x, m = call["sample"].float(), call["model_output"].float()
    return x - sigma * m if scheduler.config.stochastic_sampling else x + sigma * m


def off_level(call: Mapping[str, Any], view: Callable[[Tensor], Tensor]) -> Tensor:
    """bool [R, 1, *grid]: tokens at another level than the step's, at which the rest is re-noised.

    Args: view: sees the sample as [R, C, *grid]. Nothing is read back from the device.
    """
    apart = (call[TOKENS] - first_of(call["timestep"])).abs() > TOLERANCE
    return view(apart[..., None].expand(call["sample"].shape))[:, :1]


def rounded(call: Mapping[str, Any], timestep: float) -> Tensor | None:
    """bool []: no token is at the step's level, and one is where rounding to 16 bits puts it. None where it changes
    nothing. Nothing is read back from the device.

    Args: timestep: of the step, by the scheduler's schedule.
    """
    exact, tokens = torch.tensor(timestep, dtype=torch.float64), call[TOKENS]
    values = {float(exact.to(kind)) for kind in (torch.bfloat16, torch.float16)}
    values = [value for value in values if abs(value - timestep) > TOLERANCE]
    if not values:
        return None
    there = [(tokens == value).any() for value in values]
    return torch.stack(there).any() & ((tokens - timestep).abs() > TOLERANCE).all()
