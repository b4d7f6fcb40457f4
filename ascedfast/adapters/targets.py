# SPDX-License-Identifier: MIT
"""Schedulers that are told where a step ends: whether that is the next level of their schedule."""

from typing import Any

from torch import Tensor

from ascedfast.adapters.known_runs import Kind

TOLD_BY = {"UnCLIPScheduler": "prev_timestep", "FlowMapEulerDiscreteScheduler": "r_timestep"}
"""The argument of ``step`` that tells."""


def strays(kind: Kind, index: int, call: dict[str, Any]) -> str | None:
    """Why the state that this call returns is not at the schedule's next level, in words for the user; None usually.

    Args: index: of the call. call: its arguments by name. A target on a device is trusted: reading it would stall.
    """
    argument = TOLD_BY.get(kind.base.__name__)
    if argument is None:
        return None
    given, last = call.get(argument), index + 1 == len(kind.timesteps)
    if isinstance(given, Tensor) and not given.is_cpu:
        return None
    following = 0.0 if last else kind.timesteps[index + 1]
    if given is not None:
        given = float(given.flatten()[0]) if isinstance(given, Tensor) else float(given)
    elif argument == "prev_timestep" and not last:
        given = kind.timesteps[index] - 1
    if given is None or abs(given - following) <= 1e-3:
        return None
    return (
        f"{kind.base.__name__} does not step to its next timestep ({following:g}) but to {given:g}, a level that is "
        f"not on its schedule: pass {argument}=scheduler.timesteps[i + 1]"
    )
