# SPDX-License-Identifier: MIT
"""Steps of a diffusers scheduler by one fused launch in place of the stock ``step``: same bits, same bookkeeping."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ascedfast import ops
from ascedfast.adapters import parity
from ascedfast.adapters.host_copy import version_of
from ascedfast.adapters.known_runs import KnownRuns
from ascedfast.adapters.schedules import supported_base
from ascedfast.device_guard import on_device_of
from ascedfast.engine import Engine
from ascedfast.lockstep import Lockstep, LockstepPlan
from ascedfast.rows import Row

View = Callable[[Tensor], Tensor]
MADE_FROM = ("_internal_dict", "alphas_cumprod", "final_alpha_cumprod", "num_inference_steps", "sigmas", "timesteps")
"""Attributes of a scheduler from which a run's scalars were made."""
HARMLESS = {"generator", "eta", "s_churn", "use_clipped_model_output"}
"""Arguments of ``step`` that change nothing in a deterministic step, where they are false or 0."""


class FusedSteps:
    """The fused steps of one run of one scheduler.

    Args: host: see ``host_copy``. lockstep: made with the updates of this run. view: latents as [R, C, *grid].
    """

    def __init__(
        self, scheduler: SchedulerMixin, host: SchedulerMixin, lockstep: Lockstep, first: int, view: View
    ) -> None:
        base = supported_base(host)
        self.lockstep, self.first, self.view = lockstep, first, view
        self.edited: Tensor | None = None
        self.counts_by_timestep = base is DDIMScheduler
        self.keeps_outputs = base is DPMSolverMultistepScheduler
        self.returns_x0 = base in (DDIMScheduler, EulerDiscreteScheduler)
        self.output = {
            DDIMScheduler: DDIMSchedulerOutput,
            EulerDiscreteScheduler: EulerDiscreteSchedulerOutput,
            DPMSolverMultistepScheduler: SchedulerOutput,
        }.get(base, FlowMatchEulerDiscreteSchedulerOutput)
        self.order = host.config.get("solver_order", 1)
        self.timesteps = host.timesteps.tolist()
        self.on_device = scheduler.timesteps
        kept = [(name, scheduler.__dict__.get(name)) for name in MADE_FROM]
        self.made_from = [(n, v, version_of(v) if isinstance(v, Tensor) else None) for n, v in kept if v is not None]

    @property
    def index(self) -> int:
        """In the schedule, of the step done last."""
        return self.first + self.lockstep.step - 1

    def step(self, scheduler: SchedulerMixin, m: Any, timestep: Any, x: Any, rest: dict[str, Any]) -> Any:
        """What the stock step would return, and the scheduler left as it would leave it; None where this call is not
        the run's next step, or asks for something that the fused form leaves out."""
        lockstep = self.lockstep
        index = self.first + lockstep.step
        if not (isinstance(x, Tensor) and isinstance(m, Tensor)) or not lockstep.fits(x, m):
            return None
        return_dict = True
        for name, value in rest.items():
            if name == "return_dict":
                return_dict = value
            elif name not in HARMLESS or (value and name != "generator"):
                return None
        held = scheduler.__dict__
        for name, made_from, version in self.made_from:
            if held.get(name) is not made_from or (version is not None and made_from._version != version):
                return None  # somebody changed the run under way
        if self.counts_by_timestep:
            if not self._is_due(timestep, index):
                return None
        elif scheduler._step_index != index:
            return None
        elif self.keeps_outputs:
            if lockstep.reads_own_x0 and scheduler.model_outputs[-1] is not lockstep.last_own_x0:
                return None
        elif isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            return None  # stock raises
        if x.requires_grad or m.requires_grad:
            return None
        if self.edited is not None:
            self._repair(scheduler, m, x)
        following, own = lockstep.advance(x, m)
        if self.keeps_outputs:
            scheduler.model_outputs.append(own)  # in place, as stock does
            del scheduler.model_outputs[0]
            scheduler.lower_order_nums = min(scheduler.lower_order_nums + 1, self.order)
        if not self.counts_by_timestep:
            scheduler._step_index = index + 1
        if lockstep.due:
            self.edited = lockstep.correct_(following)
        if return_dict:
            return self.output(following, own) if self.returns_x0 else self.output(following)
        return (following, own) if self.returns_x0 else (following,)

    def _is_due(self, timestep: Any, index: int) -> bool:
        """Whether this is the timestep of that index. One on the device is known by its place in
        ``scheduler.timesteps``, which pipelines walk through: reading it back would stall the device."""
        if isinstance(timestep, Tensor) and timestep.is_floating_point():
            return False  # stock raises
        if not isinstance(timestep, Tensor) or timestep.device.type == "cpu":
            return hasattr(timestep, "__index__") and int(timestep) == self.timesteps[index]
        size = self.on_device.element_size() * self.on_device.stride(0)
        return timestep.data_ptr() == self.on_device.data_ptr() + index * size

    def _repair(self, scheduler: SchedulerMixin, m: Tensor, x: Tensor) -> None:
        """Inside the mask, a two-step solver's older prediction becomes the present one, in place."""
        if self.lockstep.reads_own_x0:
            own, current = self.lockstep.last_own_x0, scheduler.convert_model_output(m, sample=x)
            mask = self.edited[:, 0]
            ops.history_fill_([self.view(own)], mask, self.view(current), backend=self.lockstep.config.backend)
        self.edited = None


def fused_steps(
    scheduler: SchedulerMixin,
    host: SchedulerMixin,
    known: KnownRuns,
    engine: Engine,
    first: int,
    x: Tensor,
    m: Tensor,
    view: View,
) -> FusedSteps | None:
    """The fused steps of the run that begins at ``first``, or None where the stock step stays: no kernel serves these
    tensors, the settings have no fused form, or a check found bits that differ from the stock's. host: see
    ``host_copy``."""
    if x.shape != m.shape or not m.is_floating_point() or m.device != x.device or x.requires_grad or m.requires_grad:
        return None
    if isinstance(scheduler, EulerDiscreteScheduler) and not scheduler.is_scale_input_called:
        return None  # stock warns at each step

    def make(rows: list[Row]) -> LockstepPlan | None:
        def make_plan() -> LockstepPlan | None:
            plan = parity.parity_plan(scheduler, first, x.dtype, m.dtype, x.device, host)
            if plan is None or not parity.gives_stock_bits(scheduler, plan, first, x, m, _by_kernel):
                return None
            return LockstepPlan(rows[0], len(rows), x, m, view, plan.updates, plan.scalars)

        return known.plan(host, first, x, m, tuple(view(x).shape), make_plan)

    lockstep = engine.lockstep(x, make)
    return None if lockstep is None else FusedSteps(scheduler, host, lockstep, first, view)


def _by_kernel(update, x: Tensor, m: Tensor, scalars: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from ascedfast.kernels.step_dynamics import step_dynamics

    zero = torch.zeros(x.shape[0], device=x.device)
    with on_device_of(x):
        *_, following, own = step_dynamics(x, m, zero, zero, None, None, "mean", update, scalars, own)
    return following, own
