# SPDX-License-Identifier: MIT
"""What is read off the arguments of a scheduler's ``step``."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor


@functools.cache
def parameters(step: Callable) -> tuple[str, ...]:
    """Names of the parameters of a scheduler's step, without self."""
    return tuple(inspect.signature(step).parameters)[1:]


def on_accelerator(timestep: Any) -> bool:
    """Whether reading the timestep would stall a device."""
    return isinstance(timestep, Tensor) and not timestep.is_cpu


def first_of(timestep: Any) -> Any:
    """One of a batch of equal timesteps."""
    return timestep.flatten()[0] if isinstance(timestep, Tensor) and timestep.dim() else timestep
