# SPDX-License-Identifier: MIT
"""What runs of one scheduler have in common, kept from one run to the next: a server repeats a few kinds of run.

A kind is known by the values of its levels, so that it does not matter how they came about. Making its tables costs
more than stepping through it.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from diffusers import SchedulerMixin
from torch import Tensor

from ascedfast.adapters.host_copy import LEVELS, version_of
from ascedfast.adapters.schedules import schedule_of
from ascedfast.schedule import Schedule

MOST = 16
"""Kinds that are kept; the one that was not used for the longest time goes first."""
BY_ADDRESS = ("_internal_dict", "alphas_cumprod", "final_alpha_cumprod", "tau_func")
T = TypeVar("T")


class KnownRuns:
    """Schedules and launch plans of an enabled scheduler, by the levels of its runs."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple, tuple[Any, Any]] = OrderedDict()
        self._last: tuple[SchedulerMixin | None, tuple] = (None, ())

    def _levels(self, host: SchedulerMixin) -> tuple:
        if self._last[0] is not host:  # asked for twice at the start of each run
            self._last = host, _levels(host)
        return self._last[1]

    def schedule(self, host: SchedulerMixin) -> Schedule:
        """Of the run that the scheduler is set to (host: see ``host_copy``)."""
        return self._get(("schedule", *self._levels(host)), host, lambda: schedule_of(host))

    def plan(
        self, kind: str, host: SchedulerMixin, first: int, x: Tensor, m: Tensor, grid: tuple, make: Callable[[], T]
    ) -> T:
        """What ``make`` gave for this ``kind`` of run from step ``first`` on such tensors, whose locations are a
        ``grid``."""
        kinds = ((t.shape, t.stride(), t.dtype, t.device) for t in (x, m))
        return self._get((kind, *self._levels(host), first, grid, *kinds), host, make)

    def _get(self, key: tuple, host: SchedulerMixin, make: Callable[[], T]) -> T:
        if key not in self._kept:
            # What the key names by its address must live as long as the key.
            named = [host.__dict__.get(name) for name in BY_ADDRESS]
            self._kept[key] = make(), named
            if len(self._kept) > MOST:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key][0]


def _levels(host: SchedulerMixin) -> tuple:
    held = host.__dict__  # not getattr: a scheduler looks in its configuration for what it lacks
    named = [held.get(name) for name in BY_ADDRESS]
    named = tuple((id(t), version_of(t), t.device) if isinstance(t, Tensor) else id(t) for t in named)
    levels = (held.get(name) for name in LEVELS)
    values = tuple((t.dtype, t.shape, *t.flatten().tolist()) if isinstance(t, Tensor) else None for t in levels)
    # What stock's step reads from the scheduler itself, where anybody may write.
    read = (held.get("predict_x0"), tuple(held.get("disable_corrector", ())))
    return (*named, *values, *read, held.get("num_inference_steps"), held.get("lower_order_nums", 0))
