# SPDX-License-Identifier: MIT
"""A multistep solver's memory after a correction: inside the mask, as if the sample had always been on its new path.

Every entry of the solver's list (predictions, noises, derivatives) becomes what the present step computes for its own
entry. Equal entries have no slope, so the step is the one-step solver's inside the mask: the old entries belong to the
state that was edited away, and extrapolating from them would lead the new one astray.

UniPC and SASolver first replace the state x that they are given by a corrected one, built from the state L that they
remember (``last_sample``), never from x itself, and so would undo the edit:

    corrected = l*L + w*h + sum_i r_i*H_i + n*z     h: the present entry; H_i: older ones; z: ``last_noise`` or nothing

With H_i = h inside the mask, the L for which corrected = x is

    L = (x - (w + sum_i r_i)*h - n*z) / l

The coefficients are read from one step of a copy of the scheduler with unit vectors (``solver_probe``). h is what the
stock makes of x and m, taken as it is: the copy gets h for a model output, so that thresholding does no harm.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import PNDMScheduler, SchedulerMixin
from torch import Tensor

from ascedfast.adapters.solver_probe import LISTS, memory_of, probe, probe_copy
from ascedfast.process import Coefficients

LAST_SAMPLE, LAST_NOISE = ("last_sample", 0), ("last_noise", 0)


Host = Callable[[], SchedulerMixin]


def fill_history(scheduler: Any, host: Host, index: int, m: Tensor, x: Tensor, mask: Tensor) -> None:
    """Make the solver's memory fit the corrected state x, before the step that is about to be made from it.

    Args:
        host: makes a copy of the scheduler with its present memory and its levels on the host (``host_copy``), which is
            then stepped; called only where one is needed.
        index: in the schedule, of the coming step. m: the model's output at x, in the layout of x.
        mask: bool, broadcasts against x; the memory changes where it is True.
    Does nothing for solvers without a memory. Tensors are replaced, not written into: they may be the caller's.
    """
    memory = memory_of(scheduler)
    names = [name for name in LISTS if any(name == entry[0] for entry in memory)]
    if not names:
        return
    if LAST_SAMPLE in memory:
        h = scheduler.convert_model_output(m, sample=x)
        last = _last_sample_for(x, h, memory, host, index)
        if last is not None:
            scheduler.last_sample = _inside(mask, last, memory[LAST_SAMPLE])
    else:
        h = _coming_entry(scheduler, host, index, m, x, names[0])
    for name in names:
        setattr(scheduler, name, [None if old is None else _inside(mask, h, old) for old in getattr(scheduler, name)])


def fill_argument(call: dict[str, Any], level: Coefficients, mask: Tensor) -> dict[str, Any]:
    """The arguments of a step whose caller holds the prediction of the step before (CogVideoXDPM's): inside the mask,
    that one becomes the coming step's own prediction.

    Args: call: by name, the tensors not written into. level: of the coming step. mask: bool, broadcasts against x.
    """
    old = call["old_pred_original_sample"]
    if old is None:
        return call
    new = level.a * call["sample"] + level.b * call["model_output"]
    return call | {"old_pred_original_sample": _inside(mask, new, old)}


def _inside(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask, new.to(old.dtype), old)


def _coming_entry(scheduler: Any, host: Host, index: int, m: Tensor, x: Tensor, name: str) -> Tensor:
    """What the coming step will add to the list ``name``."""
    if isinstance(scheduler, PNDMScheduler):
        return m  # remembered as it is given
    if hasattr(scheduler, "convert_model_output"):
        return scheduler.convert_model_output(m, sample=x)
    twin = host()
    twin.step(m, twin.timesteps[index], x, return_dict=False)
    return getattr(twin, name)[-1]


def _last_sample_for(x: Tensor, h: Tensor, memory: dict, host: Host, index: int) -> Tensor | None:
    """The remembered state from which the solver's corrector returns x, once every list entry is h; None where the
    coming step has no corrector. Computed in float32 (float64 for such x)."""
    row = _corrector(host(), index)
    weight = row.pop(LAST_SAMPLE)
    if weight == 0:
        return None
    noise, _ = row.pop(LAST_NOISE, 0.0), row.pop("x")
    wide = torch.promote_types(x.dtype, torch.float32)
    last = x.to(wide) - sum(row.values()) * h.to(wide)
    if noise != 0:
        last = last - noise * memory[LAST_NOISE].to(wide)
    return last / weight


def _corrector(host: SchedulerMixin, index: int) -> dict:
    """Coefficients of the corrected state of the coming step: of "x", "m" (here h) and each remembered tensor."""
    twin = probe_copy(host, exact=False)
    twin.convert_model_output = lambda h, *args, **kwargs: h
    # Timesteps that the solver has kept may lie on a device, and SASolver asks their value.
    kept, known = twin.timestep_list, host.timesteps
    known = [known[i] if i >= 0 else None for i in range(index - len(kept), index)]
    on_device = [isinstance(t, Tensor) and t.device.type != "cpu" for t in kept]
    twin.timestep_list = [there if away else t for t, there, away in zip(kept, known, on_device, strict=True)]
    return probe(twin, host.timesteps[index], exact=False).memory[LAST_SAMPLE]
