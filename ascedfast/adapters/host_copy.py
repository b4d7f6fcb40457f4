# SPDX-License-Identifier: MIT
"""A scheduler's levels on the host, without reading them back from a GPU.

Pipelines put timesteps and sigmas on the GPU, and reading them there at the first step would stall the run. So the
scheduler's ``set_timesteps`` is called once more, for the CPU, on a copy. Where somebody wrote into the live tensors
since, they are read back after all.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from diffusers import SchedulerMixin
from torch import Tensor

from ascedfast.adapters.class_swap import STATE, stock_class

LEVELS = ("timesteps", "sigmas")


class HostCopy:
    """What ``set_timesteps`` gave, and the tensors it belongs to."""

    def __init__(self, scheduler: SchedulerMixin, set_timesteps: Callable, args: tuple, kwargs: dict) -> None:
        self._seen = _levels_of(scheduler)
        self._copy: SchedulerMixin | None = None
        if not any(levels is not None and levels.is_cuda for _, levels, _ in self._seen):
            self._copy = on_host(scheduler)
            return
        call = inspect.signature(set_timesteps).bind(scheduler, *args, **kwargs)
        if any(isinstance(value, Tensor) and value.is_cuda for value in call.arguments.values()):
            return
        twin = _bare_copy(scheduler)
        arguments = {**call.arguments, "device": "cpu"}
        arguments[next(iter(arguments))] = twin
        set_timesteps(**arguments)
        self._copy = twin

    def of(self, scheduler: SchedulerMixin) -> SchedulerMixin:
        """A scheduler of the stock class with the levels of this one on the host. Do not step with it."""
        if not self._holds(scheduler):
            return on_host(scheduler)
        twin = _bare_copy(scheduler)  # anew: settings, and where the betas lie, may have changed since
        held = self._copy.__dict__  # not hasattr: a scheduler looks in its configuration for what it lacks
        far = [name for name in LEVELS if name in held and not _on_host(twin.__dict__[name])]
        twin.__dict__.update({name: held[name] for name in far})
        return twin

    def values(self, scheduler: SchedulerMixin) -> tuple | None:
        """``values_of`` what ``of`` gives; None where it would have to read the levels back."""
        if not self._holds(scheduler):
            return None
        # Levels on the host are read each time: something may have been written there unseen, through numpy.
        held = scheduler.__dict__
        return tuple(_value(held.get(name)) if _on_host(held.get(name)) else self._copied[name] for name in LEVELS)

    @functools.cached_property
    def _copied(self) -> dict[str, tuple | None]:
        return dict(zip(LEVELS, values_of(self._copy), strict=True))

    def _holds(self, scheduler: SchedulerMixin) -> bool:
        """Whether the copy still tells the scheduler's levels: they are the same tensors, and nobody wrote there."""
        held = scheduler.__dict__
        for name, levels, version in self._seen:
            now = held.get(name)
            if levels is None:
                if isinstance(now, Tensor):
                    return False
            elif now is not levels or version is None or levels._version != version:
                return False
        return self._copy is not None


def on_host(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The same by reading the levels back; waits for the device where they are on one."""
    twin = _bare_copy(scheduler)
    for name in LEVELS:
        if isinstance(getattr(twin, name, None), Tensor):
            setattr(twin, name, getattr(twin, name).cpu())
    return twin


def _bare_copy(scheduler: SchedulerMixin) -> SchedulerMixin:
    twin = object.__new__(stock_class(scheduler))
    twin.__dict__.update({name: value for name, value in scheduler.__dict__.items() if name != STATE})
    for name, value in twin.__dict__.items():
        if isinstance(value, list):
            twin.__dict__[name] = copy.copy(value)
    return twin


def version_of(tensor: Tensor) -> int | None:
    """A number that changes when the tensor is written into; None where torch keeps none (inference tensors)."""
    return None if tensor.is_inference() else tensor._version


def values_of(host: SchedulerMixin) -> tuple:
    """The levels of a scheduler that has them on the host, as something to look up."""
    return tuple(_value(host.__dict__.get(name)) for name in LEVELS)


def _value(levels: Any) -> tuple | None:
    if not isinstance(levels, Tensor):
        return None
    one = levels if levels.dim() == 1 else levels.flatten()
    return (levels.dtype, levels.shape, *one.tolist())


def _on_host(levels: Any) -> bool:
    return not isinstance(levels, Tensor) or levels.is_cpu


def _levels_of(scheduler: Any) -> list[tuple[str, Tensor | None, int | None]]:
    found = [(name, scheduler.__dict__.get(name)) for name in LEVELS]
    return [(name, t, version_of(t)) if isinstance(t, Tensor) else (name, None, None) for name, t in found]
