# SPDX-License-Identifier: MIT
"""Which call of a run's ``step`` is about to be made."""

from typing import Any

from ascedfast.adapters.arguments import first_of, on_accelerator
from ascedfast.adapters.host_copy import HostCopy, on_host
from ascedfast.adapters.known_runs import Kind, KnownRuns
from ascedfast.adapters.support import facts_of, supported_base

FROM_THE_FIRST = ("HeliosScheduler",)
"""Whatever the timestep is, they begin at their first."""
NEAREST = ("DDPMWuerstchenScheduler",)
"""They take the timestep of theirs that lies nearest: pipelines round it."""
STRANGE = (
    "timestep {value:g} is not one of scheduler.timesteps{theirs}: where another pipeline or loop has set this "
    "scheduler meanwhile, give each one of its own"
)


def index_of(
    scheduler: Any, timestep: Any, due: tuple[Kind, int] | None, known: KnownRuns, copy: HostCopy | None
) -> tuple[int, Kind | None]:
    """Index of the call of ``step`` that is about to run; the kind of run where it had to be looked up.

    Args: due: the run under way and the index of its next call, if there is one. copy: made when the scheduler was set.
    Raises: ValueError for a timestep that is none of the run's; IndexError where the scheduler raises it.
    """
    if facts_of(scheduler).counts == "index":
        if scheduler.step_index is not None:
            return scheduler.step_index, None
        if getattr(scheduler, "begin_index", None) is not None:
            return scheduler.begin_index, None
        if supported_base(scheduler).__name__ in FROM_THE_FIRST:
            return 0, None
        if not hasattr(scheduler, "index_for_timestep"):
            return _by_value(scheduler, timestep, known.kind(scheduler, copy))
        place = _place_of(scheduler, timestep)
        if place is None:
            found = scheduler.index_for_timestep(timestep)
            if found is None:  # FlowMapEuler steps between any two levels
                raise ValueError(STRANGE.format(value=float(first_of(timestep)), theirs=""))
            return found, None
        kind = known.kind(scheduler, copy)
        if kind.timesteps.count(kind.timesteps[place]) > 1:  # stock takes the second one of equal timesteps
            host = on_host(scheduler) if copy is None else copy.of(scheduler)
            place = host.index_for_timestep(host.timesteps[place])
        return place, kind
    if due is not None and due[1] < len(due[0].timesteps):
        if on_accelerator(timestep):
            return due[1], None  # reading the timestep back would stall the device
        if float(first_of(timestep)) == due[0].timesteps[due[1]]:
            return due[1], None  # some come twice
    return _by_value(scheduler, timestep, known.kind(scheduler, copy))


def _by_value(scheduler: Any, timestep: Any, kind: Kind) -> tuple[int, Kind]:
    """Index by the value of the timestep, where it comes first."""
    timesteps = kind.timesteps
    place = None if kind.facts.calls is not None else _place_of(scheduler, timestep)
    value = float(first_of(timestep)) if place is None else timesteps[place]
    if kind.base.__name__ in NEAREST:
        value = min(timesteps, key=lambda t: abs(t - value))
    if value not in timesteps:
        raise ValueError(STRANGE.format(value=value, theirs=f" {timesteps}"))
    return timesteps.index(value), kind


def _place_of(scheduler: Any, timestep: Any) -> int | None:
    """Where in ``scheduler.timesteps`` a timestep on a device lies: pipelines walk through them, and reading one back
    would stall the device. None for any other."""
    theirs = scheduler.timesteps
    if not on_accelerator(timestep) or timestep.device != theirs.device:
        return None
    after = timestep.data_ptr() - theirs.data_ptr()
    if not after:
        return 0
    place, rest = divmod(after, theirs.element_size() * max(theirs.stride(0), 1))
    return place if rest == 0 and 0 <= place < len(theirs) else None
