# SPDX-License-Identifier: MIT
"""The deterministic step to the next noise level as x_next = c0*x + c1*m."""

import functools
from collections.abc import Sequence

import numpy as np

from ascedfast.schedule import Schedule


@functools.lru_cache(maxsize=64)
def deterministic_updates(schedule: Schedule, first: int = 0) -> tuple[tuple[float, float], ...] | None:
    """(c0, c1) of each executed step, float64: x0_hat and the noise that it leaves are put together at the next level,
    as DDIM and, in a flow, Euler do (arXiv 2010.02502, Eq. 12 with eta 0).

    Args: first: index in the schedule of the first executed step.
    Returns: None where a step is not linear or not determined: the schedule clips, or a level has no noise.
    """
    levels = schedule.before[first:]
    if schedule.clip is not None or any(level.sigma == 0 for level in levels):
        return None
    pairs = []
    for level, (alpha, sigma) in zip(levels, schedule.after[first:], strict=True):
        kept = sigma / level.sigma  # e = (x - alpha*x0_hat) / sigma
        towards = alpha - kept * level.alpha
        pairs.append((kept + towards * level.a, towards * level.b))
    return tuple(pairs)


def euler_updates(sigmas: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """(c0, c1) of each step of a flow's Euler, x + (s' - s)*m: with float32 states the bits of diffusers'
    FlowMatchEulerDiscreteScheduler, which subtracts in float32.

    Args: sigmas: of the steps, and the one at which the run ends, as the scheduler has them.
    """
    levels = np.asarray(sigmas, dtype=np.float32)
    return tuple((1.0, float(step)) for step in np.diff(levels))
