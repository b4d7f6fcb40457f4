# SPDX-License-Identifier: MIT
"""Steps whose tokens have timesteps of their own (``per_token_timesteps`` of FlowMatchEuler): what is given to the
sampler, a first frame for one, is at a lower level than the rest, and the pipeline puts it back after each step.

Such a step takes the velocity with the other sign, x_next = x + (s - s_next)*m, unless it draws its state anew.
"""

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import SchedulerMixin
from torch import Tensor

from ascedfast.adapters.arguments import first_of

TOKENS = "per_token_timesteps"
TOLERANCE = 1e-3
"""Between timesteps that are the same level; the scheduler's own, 1e-6 of sigma."""


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
