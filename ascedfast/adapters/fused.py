# SPDX-License-Identifier: MIT
"""Steps of a diffusers scheduler by one fused launch in place of the stock ``step``: same bits, same bookkeeping."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LMSDiscreteScheduler,
    SchedulerMixin,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ascedfast import ops
from ascedfast.adapters import parity
from ascedfast.adapters.host_copy import version_of
from ascedfast.adapters.known_runs import Kind, KnownRuns
from ascedfast.adapters.linear import linear_plan
from ascedfast.adapters.support import supported_base
from ascedfast.device_guard import on_device_of
from ascedfast.engine import Engine
from ascedfast.linear_lockstep import LinearLockstep, LinearLockstepPlan
from ascedfast.lockstep import Lockstep, LockstepPlan
from ascedfast.rows import Row

View = Callable[[Tensor], Tensor]
HARMLESS = {"generator", "eta", "s_churn", "use_clipped_model_output"}
"""Arguments of ``step`` that change nothing in a deterministic step, where they are false or 0."""
OUTPUTS = {
    DDIMScheduler: DDIMSchedulerOutput,
    EulerDiscreteScheduler: EulerDiscreteSchedulerOutput,
    FlowMatchEulerDiscreteScheduler: FlowMatchEulerDiscreteSchedulerOutput,
    LMSDiscreteScheduler: LMSDiscreteSchedulerOutput,
}
RETURN_X0 = (DDIMScheduler, EulerDiscreteScheduler, LMSDiscreteScheduler)
"""Schedulers whose ``step`` returns their prediction too."""


class FusedSteps:
    """The fused steps of one run of one scheduler, with the stock's bits.

    Args: kind: of this run. lockstep: made with its updates. view: latents as [R, C, *grid].
    """

    def __init__(self, scheduler: SchedulerMixin, kind: Kind, lockstep: Lockstep, first: int, view: View) -> None:
        self.lockstep, self.kind, self.first, self.view = lockstep, kind, first, view
        self.t_c: int | None = lockstep.plan.t_c
        self.edited: Tensor | None = None
        held = scheduler.__dict__  # not hasattr: a scheduler looks in its configuration for what it lacks
        self.counter = "_step_index" if "_step_index" in held else "counter" if "counter" in held else None
        self.keeps_outputs = "model_outputs" in held
        self.counts_orders = "lower_order_nums" in held
        self.remembers = self.keeps_outputs or self.counts_orders
        self.integers = self.keeps_outputs or self.counter != "_step_index"
        self.returns_x0 = kind.base in RETURN_X0
        kept = [(name, held.get(name)) for name in kind.made_from]
        self.made_from = [(name, v, version_of(v) if isinstance(v, Tensor) else None) for name, v in kept]
        if self.counter is None:
            timesteps = scheduler.timesteps
            self.at, self.apart = timesteps.data_ptr(), timesteps.element_size() * timesteps.stride(0)

    @property
    def index(self) -> int:
        """In the schedule, of the step done last."""
        return self.first + self.lockstep.step - 1

    def step(self, scheduler: SchedulerMixin, m: Any, timestep: Any, x: Any, rest: dict[str, Any]) -> Any:
        """What the stock step would return, and the scheduler left as it would leave it; None where this call is not
        the run's next step, or asks for something that the fused form leaves out."""
        if not self._is_next(scheduler, m, timestep, x, rest):
            return None
        if self.edited is not None:
            self._repair(scheduler, m, x)
            self.edited = None
        lockstep, held = self.lockstep, scheduler.__dict__
        following, own = lockstep.advance(x, m)
        if self.remembers:
            self._remember(held, own)
        if self.counter is not None:
            held[self.counter] = self.first + lockstep.step
        if lockstep.step == self.t_c:
            self.edited = lockstep.correct_(following)
        result = (following, own) if self.returns_x0 else (following,)
        return OUTPUTS.get(self.kind.base, SchedulerOutput)(*result) if rest.get("return_dict", True) else result

    def leave_alone(self) -> None:
        """Step on, and correct nothing."""
        self.t_c = None

    def warm_up(self, scheduler: SchedulerMixin, x: Tensor, m: Tensor) -> None:
        """Compile everything that the run will launch, the repair after a correction too; the run stays where it is."""
        self.lockstep.warm_up(x, m)
        if any(self.lockstep.reads_own_x0_at(step) for step in range(len(self.kind.timesteps) - self.first)):
            own = scheduler.convert_model_output(m, sample=x)
            self._fill(own, own.clone(), torch.zeros_like(self.view(x)[:, 0], dtype=torch.bool))

    def _is_next(self, scheduler: SchedulerMixin, m: Any, timestep: Any, x: Any, rest: dict[str, Any]) -> bool:
        lockstep, held, counter = self.lockstep, scheduler.__dict__, self.counter
        if not (isinstance(x, Tensor) and isinstance(m, Tensor) and lockstep.fits(x, m)):
            return False
        if x.requires_grad or m.requires_grad:
            return False
        for name in rest:
            if name != "return_dict" and (name not in HARMLESS or (rest[name] and name != "generator")):
                return False
        for name, made_from, version in self.made_from:
            if held.get(name) is not made_from or (version is not None and made_from._version != version):
                return False  # somebody changed the run under way
        if counter is None:
            if not self._is_due(timestep, self.first + lockstep.step):
                return False
        elif held[counter] != self.first + lockstep.step:
            return False
        elif not self.integers:
            integer = not timestep.is_floating_point() if isinstance(timestep, Tensor) else isinstance(timestep, int)
            if integer:
                return False  # stock raises
        # The solver's memory, as the last fused step left it.
        return not self.keeps_outputs or not lockstep.reads_own_x0 or held["model_outputs"][-1] is lockstep.last_own_x0

    def _remember(self, held: dict[str, Any], own: Tensor | None) -> None:
        """Leave the solver's memory as the stock step would."""
        if self.keeps_outputs:
            held["model_outputs"].append(own)  # in place, as stock does
            del held["model_outputs"][0]
        if self.counts_orders:
            held["lower_order_nums"] = min(held["lower_order_nums"] + 1, self.kind.order)

    def _is_due(self, timestep: Any, index: int) -> bool:
        """Whether this is the timestep of that index. One on the device is known by its place in
        ``scheduler.timesteps``, which pipelines walk through: reading it back would stall the device."""
        if isinstance(timestep, Tensor) and timestep.is_floating_point():
            return False  # stock raises
        if not isinstance(timestep, Tensor) or timestep.is_cpu:
            return hasattr(timestep, "__index__") and int(timestep) == self.kind.timesteps[index]
        return timestep.data_ptr() == self.at + index * self.apart

    def _repair(self, scheduler: SchedulerMixin, m: Tensor, x: Tensor) -> None:
        """Inside the mask, a two-step solver's older prediction becomes the present one, in place."""
        if self.lockstep.reads_own_x0:
            self._fill(self.lockstep.last_own_x0, scheduler.convert_model_output(m, sample=x), self.edited[:, 0])

    def _fill(self, own: Tensor, current: Tensor, mask: Tensor) -> None:
        ops.history_fill_([self.view(own)], mask, self.view(current), backend=self.lockstep.config.backend)


class LinearSteps(FusedSteps):
    """Fused steps in linear form. The scheduler's own memory stays empty: the stock step cannot take over."""

    lockstep: LinearLockstep

    def step(self, scheduler: SchedulerMixin, m: Any, timestep: Any, x: Any, rest: dict[str, Any]) -> Any:
        """As ``FusedSteps.step``. Raises: RuntimeError where the run was changed under way."""
        out = super().step(scheduler, m, timestep, x, rest)
        if out is None and self.lockstep.step:
            raise RuntimeError(
                f"step {self.index + 1} of this run is not the next one of the run that began in linear form (its "
                "scheduler, shapes, types or arguments changed): call set_timesteps, or use form='parity'"
            )
        return out

    def _repair(self, scheduler: SchedulerMixin, m: Tensor, x: Tensor) -> None:
        self.lockstep.repair(x, m, self.edited[:, 0])


def fused_steps(
    scheduler: SchedulerMixin,
    host: Callable[[], SchedulerMixin],
    kind: Kind,
    known: KnownRuns,
    engine: Engine,
    first: int,
    x: Tensor,
    m: Tensor,
    view: View,
) -> FusedSteps | None:
    """The fused steps of the run that begins at ``first``, or None where the stock step stays: no kernel serves these
    tensors, the settings have no fused form, or a check found bits that differ from the stock's. host: makes what
    ``host_copy`` describes."""
    if x.requires_grad or m.requires_grad:
        return None
    if isinstance(scheduler, EulerDiscreteScheduler) and not scheduler.is_scale_input_called:
        return None  # stock warns at each step

    def make(rows: list[Row]) -> LockstepPlan | None:
        def make_plan() -> LockstepPlan | None:
            if x.shape != m.shape or not m.is_floating_point() or m.device != x.device:
                return None
            if rows[0].config.form == "linear":
                return _linear(host(), rows, first, x, m, view)
            plan = parity.parity_plan(scheduler, first, x.dtype, m.dtype, x.device, host())
            if plan is None or not parity.gives_stock_bits(scheduler, plan, first, x, m, _by_kernel):
                return None
            return LockstepPlan(rows[0], len(rows), x, m, view, plan.updates, plan.scalars)

        return known.plan("fused", kind, first, x, m, tuple(view(x).shape), make_plan)

    lockstep = engine.lockstep(x, make)
    if lockstep is None:
        return None
    steps = LinearSteps if isinstance(lockstep, LinearLockstep) else FusedSteps
    return steps(scheduler, kind, lockstep, first, view)


def _linear(
    host: SchedulerMixin, rows: list[Row], first: int, x: Tensor, m: Tensor, view: View
) -> LinearLockstepPlan | None:
    plan = linear_plan(host, rows[0].schedule, first)
    if plan is None:
        return None
    base, wide = supported_base(host), torch.promote_types(x.dtype, m.dtype)
    state = m.dtype if base in (EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler) else wide
    own = None if base not in RETURN_X0 else torch.float32 if base is EulerDiscreteScheduler else wide
    return LinearLockstepPlan(rows[0], len(rows), x, m, view, plan, state, own)


def _by_kernel(update, x: Tensor, m: Tensor, scalars: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from ascedfast.kernels.step_dynamics import step_dynamics

    zero = torch.zeros(x.shape[0], device=x.device)
    with on_device_of(x):
        *_, following, own = step_dynamics(x, m, zero, zero, None, None, "mean", update, scalars, own)
    return following, own
