# SPDX-License-Identifier: MIT
"""What a scheduler's next step computes, as numbers: one row of coefficients a result.

Every deterministic solver step is linear in the state x, the model output m and what the solver remembers. So a copy
of the scheduler is stepped with unit vectors in their place, and the results are the coefficients: no formula of any
solver is repeated here, and every special case (first steps, lower orders at the end, a corrector) comes out as stock
has it.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ascedfast.adapters.host_copy import LEVELS

LISTS = ("model_outputs", "derivatives", "ets")
"""Attributes that hold a solver's history, oldest entry first."""
SINGLES = ("last_sample", "last_noise", "cur_sample")
"""Attributes that hold one tensor or None."""
TABLES = (*LEVELS, "alphas_cumprod", "final_alpha_cumprod", "alphas", "betas")
Entry = tuple[str, int]
"""An attribute and the place in it, counted from the newest (0)."""


class _Exact(Tensor):
    """A tensor that keeps its type where a step asks for float32."""

    def to(self, *args, **kwargs):
        return self


@dataclass(frozen=True)
class Probe:
    """Coefficients of one step. A row maps "x", "m" and what was remembered before the step to a result.

    state: of the next state. memory: of each entry that is remembered after the step.
    """

    state: dict[Entry | str, float]
    memory: dict[Entry, dict[Entry | str, float]]


def memory_of(scheduler: SchedulerMixin) -> dict[Entry, Tensor]:
    """The tensors that a scheduler remembers from earlier steps; the newest of a list stands at 0."""
    found = {}
    for name in LISTS:
        for age, entry in enumerate(reversed(_held(scheduler, name) or [])):
            if entry is not None:
                found[name, age] = entry
    for name in SINGLES:
        if isinstance(one := _held(scheduler, name), Tensor):
            found[name, 0] = one
    return found


def _held(scheduler: SchedulerMixin, name: str) -> Any:
    """An attribute or None. Not by getattr alone: a scheduler searches its configuration for what it lacks."""
    if name in scheduler.__dict__ or not hasattr(type(scheduler), name):
        return scheduler.__dict__.get(name)
    return getattr(scheduler, name)


def remember(scheduler: SchedulerMixin, memory: dict[Entry, Tensor]) -> None:
    """Replace remembered tensors. Lists are replaced, not written into: they may be shared with a caller."""
    for (name, age), tensor in memory.items():
        if name in SINGLES:
            setattr(scheduler, name, tensor)
            continue
        entries = list(getattr(scheduler, name))
        entries[len(entries) - 1 - age] = tensor
        setattr(scheduler, name, entries)


def probe_copy(host: SchedulerMixin, *, exact: bool) -> SchedulerMixin:
    """A scheduler to probe; stepping it changes nothing of ``host``, a scheduler with its levels on the host.

    exact: its schedule widened to float64, so that the coefficients are float64 arithmetic on the stock's float32
        schedule; otherwise they carry the roundings of the stock's own float32 scalars.
    """
    twin = copy.copy(host)
    twin.__dict__.update({name: list(value) for name, value in twin.__dict__.items() if isinstance(value, list)})
    for name in TABLES:
        table = twin.__dict__.get(name)
        if isinstance(table, Tensor):
            widened = exact and table.is_floating_point() and name != "timesteps"
            twin.__dict__[name] = table.cpu().double() if widened else table.cpu()
    if "is_scale_input_called" in twin.__dict__:
        twin.is_scale_input_called = True  # stock would warn
    return twin


def probe(twin: SchedulerMixin, timestep: Tensor, *, exact: bool) -> Probe:
    """Coefficients of the coming step of a ``probe_copy``, which makes that step.

    Stochastic solvers draw from a generator of their own; what they draw shows up in no coefficient of a deterministic
    step. Rows of a solver that is not linear are meaningless: the caller leaves those to stock.
    """
    before = list(memory_of(twin))
    names = ["x", "m", *before]
    rows = torch.eye(len(names), dtype=torch.float64 if exact else torch.float32)
    unit = {name: _as_state(rows[i]) for i, name in enumerate(names)}
    remember(twin, {entry: unit[entry] for entry in before})
    keywords = {"generator": torch.Generator().manual_seed(0)} if hasattr(twin, "tau_func") else {}
    state = twin.step(unit["m"], timestep, unit["x"], return_dict=False, **keywords)[0]

    def row(result: Tensor) -> dict[Entry | str, float]:
        return dict(zip(names, result.flatten().tolist(), strict=True))

    return Probe(row(state), {entry: row(result) for entry, result in memory_of(twin).items()})


def _as_state(row: Tensor) -> Tensor:
    state = row.view(-1, 1, 1, 1)
    return state.as_subclass(_Exact) if row.dtype == torch.float64 else state
