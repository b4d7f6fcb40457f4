# SPDX-License-Identifier: MIT
"""Lockstep with a solver in linear form: one launch does its sums, x0_hat and the dynamics."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ascedfast import ops
from ascedfast.device_guard import on_device_of
from ascedfast.linear import LinearPlan
from ascedfast.lockstep import Lockstep, LockstepPlan
from ascedfast.rows import Row
from ascedfast.upload import upload

if TYPE_CHECKING:  # importing ascedfast needs no Triton
    from ascedfast.kernels.linear_launch import LinearLauncher


class LinearLockstepPlan(LockstepPlan):
    """``LockstepPlan`` with the steps of ``linear``, which begin at the row's first one.

    Args: state_dtype: of the next state. own_dtype: of the solver's own prediction, None where nobody asks for it.
    """

    def __init__(
        self,
        row: Row,
        rows: int,
        x: Tensor,
        m: Tensor,
        view: Callable[[Tensor], Tensor],
        linear: LinearPlan,
        state_dtype: torch.dtype,
        own_dtype: torch.dtype | None,
    ) -> None:
        self.linear, self._state_dtype, self._own_dtype = linear, state_dtype, own_dtype
        super().__init__(row, rows, x, m, view)

    @property
    def solves(self) -> bool:
        return True

    def begin(self, rows: Sequence[Row], x: Tensor) -> "LinearLockstep":
        return LinearLockstep(rows, self, x)

    def _launcher(self, row: Row, x: Tensor, m: Tensor, table: Tensor) -> "LinearLauncher":
        from ascedfast.kernels.linear_launch import LinearLauncher

        return LinearLauncher(
            x,
            m,
            self.view,
            levels=table,
            plan=self.linear,
            sums=upload(self.linear.table(), x.device),
            state_dtype=self._state_dtype,
            own_dtype=self._own_dtype,
            clip=row.schedule.clip,
            reduce=row.config.channels,
        )


class LinearLockstep(Lockstep):
    """``Lockstep`` that steps by sums. Allocates besides: the plan's carried tensors, float32, as x."""

    def __init__(self, rows: Sequence[Row], plan: LinearLockstepPlan, x: Tensor) -> None:
        super().__init__(rows, plan, x)
        self._linear = plan.linear
        self._carried = plan.launch.new_carried(x)

    def advance(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor | None]:
        """Do the solver's step and watch it. Returns the next state and the solver's own x0, where it was asked for."""
        observe, slot, *_ = self._script[self.step]
        x0 = self.bank if self.x0 is None else self.x0  # after T_c neither is touched
        with on_device_of(x):
            out = self._launch(x, m, self._carried, x0, self.bank, self.step, slot, observe)
        self.step += 1
        return out

    def repair(self, x: Tensor, m: Tensor, mask: Tensor) -> None:
        """Before the step after a correction: inside the mask, bool [R, *grid], what is carried becomes what it would
        be had the sample always been where x is. x, m: that step's, not modified."""
        x, m = self._view(x).double(), self._view(m).double()
        for slot, of_x, of_m in self._linear.steps[self.step].repair:
            self._fill(slot, mask, of_x * x + of_m * m)

    def warm_up(self, x: Tensor, m: Tensor) -> None:
        super().warm_up(x, m)
        nowhere = torch.zeros_like(self.bank[0], dtype=torch.bool)
        for slot in range(len(self._carried)):
            self._fill(slot, nowhere, self._view(x).double())

    def _fill(self, slot: int, mask: Tensor, current: Tensor) -> None:
        ops.history_fill_([self._carried[slot]], mask, current, backend=self.config.backend)
