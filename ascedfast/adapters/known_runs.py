# SPDX-License-Identifier: MIT
"""What runs of one scheduler have in common, kept from one run to the next: a server repeats a few kinds of run.

A kind is known by the values of its levels, so that it does not matter how they came about. Making its tables costs
more than stepping through it.
"""

import bisect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from diffusers import SchedulerMixin
from torch import Tensor

from ascedfast.adapters.host_copy import LEVELS, HostCopy, on_host, values_of, version_of
from ascedfast.adapters.schedules import begins_of, calls_of, nan_warning, schedule_of
from ascedfast.adapters.support import facts_of, supported_base

MOST = 16
"""Kinds that are kept, and plans; the one that was not used for the longest time goes first."""
BY_ADDRESS = ("_internal_dict", "alphas_cumprod", "final_alpha_cumprod", "tau_func")
MADE_FROM = (
    *("_internal_dict", "alphas_cumprod", "final_alpha_cumprod", "num_inference_steps", "sigmas", "timesteps"),
    *("disable_corrector", "predict_x0", "tau_func"),
)
"""Attributes of a scheduler from which a run's scalars are made."""
T = TypeVar("T")


class Kind:
    """What the levels and settings of a run decide. Keeps nothing of the scheduler that a run changes.

    Args: host: see ``host_copy``.
    Attributes: base: see ``supported_base``. facts: of its class. timesteps: of the calls of ``step``. begins: calls
        that begin a step of the solver, as ``schedule`` counts steps. nan: why its last step gives NaN, or None.
        order: of the solver. made_from: attributes of the scheduler that decide, where it has them.
    Raises: ValueError for a scheduler that was not set to a run.
    """

    def __init__(self, host: SchedulerMixin) -> None:
        self.schedule = schedule_of(host)
        self.base, self.facts = supported_base(host), facts_of(host)
        self.timesteps, self.begins = calls_of(host, self.schedule), begins_of(host, self.schedule)
        self._steps = {call: step for step, call in enumerate(self.begins)}
        self.nan = nan_warning(host)
        config = host.config
        self.order: int = config.get(
            "solver_order", max(config.get("predictor_order", 1), config.get("corrector_order", 1) - 1)
        )
        held = host.__dict__
        self.made_from = tuple(name for name in MADE_FROM if held.get(name) is not None)
        self._named = [held.get(name) for name in BY_ADDRESS]  # must live as long as a key that has their addresses

    def step_at(self, call: int) -> int | None:
        """The step of the solver that a call of ``step`` begins; None within one."""
        return self._steps.get(call)

    def step_from(self, call: int) -> int:
        """The step of the solver that begins with this call or is the next to begin; the last one at the end."""
        return min(bisect.bisect_left(self.begins, call), len(self.begins) - 1)

    def may_edit_before(self, call: int) -> bool:
        """Whether the state that this call is given may be edited: not between two evaluations of one step."""
        return not self.facts.inner or call in self._steps


class KnownRuns:
    """Kinds and launch plans of an enabled scheduler's runs."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[tuple, Kind] = OrderedDict()
        self._plans: OrderedDict[tuple, Any] = OrderedDict()

    def kind(self, scheduler: SchedulerMixin, copy: HostCopy | None) -> Kind:
        """Of the run that the scheduler is set to. copy: made when it was. May wait for a device that it reads."""
        held = scheduler.__dict__  # not getattr: a scheduler looks in its configuration for what it lacks
        # What stock's step reads from the scheduler itself, where anybody may write.
        settings = held.get("predict_x0"), tuple(held.get("disable_corrector", ()))
        settings += held.get("num_inference_steps"), held.get("lower_order_nums", 0)
        # A solver's scalars are computed where its levels lie, and differ in their last bits.
        settings += tuple(levels.device if isinstance(levels, Tensor) else None for levels in map(held.get, LEVELS))
        for name in BY_ADDRESS:
            named = held.get(name)
            settings += (id(named), version_of(named), named.device) if isinstance(named, Tensor) else (id(named),)
        host = None
        values = None if copy is None else copy.values(scheduler)
        if values is None:
            host = on_host(scheduler)
            values = values_of(host)
        return _get(self._kinds, (settings, values), lambda: Kind(copy.of(scheduler) if host is None else host))

    def plan(
        self, name: str, kind: Kind, first: int, x: Tensor, m: Tensor, grid: tuple[int, ...], make: Callable[[], T]
    ) -> T:
        """What ``make`` gave under this ``name`` for a ``kind`` of run from step ``first`` on such tensors, whose
        locations are a ``grid``."""
        x_kind, m_kind = (x.shape, x.stride(), x.dtype, x.device), (m.shape, m.stride(), m.dtype, m.device)
        return _get(self._plans, (name, kind, first, grid, x_kind, m_kind), make)


def _get(kept: OrderedDict[tuple, T], key: tuple, make: Callable[[], T]) -> T:
    try:
        kept.move_to_end(key)
    except KeyError:
        kept[key] = make()
        if len(kept) > MOST:
            kept.popitem(last=False)
    return kept[key]
