# SPDX-License-Identifier: MIT
"""linear_step again and again on tensors of one kind, with prepared arguments, as ``step_launch`` does."""

from collections.abc import Callable

import torch
import triton
from ascedfast.kernels.launcher import Launcher
from ascedfast.kernels.linear_step import linear_step_kernel
from ascedfast.kernels.prepared import launch_of, misaligned, stream_getter
from ascedfast.kernels.tile import GROUP, WARPS
from torch import Tensor

from ascedfast.linear import COLUMNS, WIDTH, LinearPlan, LinearStep


class LinearLauncher(Launcher):
    """A solver's sums, x0_hat and its dynamics.

    Args:
        x, m, view, clip, reduce: see ``Launcher``.
        levels: float32 [steps, n] contiguous, whose first columns are a and b. plan: the solver's steps.
        sums: its table on x's device. state_dtype: of the next state.
        own_dtype: of the solver's own prediction, or None where nobody asks for it.
    """

    def __init__(
        self,
        x: Tensor,
        m: Tensor,
        view: Callable[[Tensor], Tensor],
        *,
        levels: Tensor,
        plan: LinearPlan,
        sums: Tensor,
        state_dtype: torch.dtype,
        own_dtype: torch.dtype | None,
        clip: float | None,
        reduce: str,
    ) -> None:
        super().__init__(x, m, view, clip, reduce)
        self._levels, self._sums, self._plan = levels, sums, plan
        self._state_dtype, self._own_dtype = state_dtype, own_dtype
        following = torch.empty_like(x)
        self._strides = [self._layout.strides(t) for t in (view(x), view(m), self.new_x0(x), view(following))]

    def new_carried(self, x: Tensor) -> list[Tensor]:
        """Buffers for the slots of the plan, float32; the first step reads none of them."""
        return [self.new_x0(x) for _ in range(self._plan.slots)]

    def __call__(
        self,
        x: Tensor,
        m: Tensor,
        carried: list[Tensor],
        x0: Tensor,
        bank: Tensor,
        step: int,
        slot: int,
        observe: int,
    ) -> tuple[Tensor, Tensor | None]:
        """One step; x and m must fit.

        Args:
            carried: from ``new_carried``, read and written. x0: from ``new_x0``; see ``StepLauncher``, as for bank,
            step, slot and observe.
        Returns: the next state and the solver's own prediction, new tensors.
        """
        sums = self._plan.steps[step]
        x_next = torch.empty_like(x, dtype=self._state_dtype)
        own = None if self._own_dtype is None else torch.empty_like(x_next, dtype=self._own_dtype)
        reads = [carried[i] for i in sums.reads]
        tensors = (x, m, *_three(reads, x0), *_two([carried[i] for i in sums.writes], x0), x_next)
        addresses = [t.data_ptr() for t in tensors]
        key = (observe, len(sums.reads), len(sums.writes), misaligned(*addresses[:2]))
        prepared = self._prepared.get(key)
        if prepared is None or not self._compiles:
            arguments = (*tensors, x_next if own is None else own, x0, bank, self._levels, self._sums, step, slot)
            self._first(key, arguments, sums)
            return x_next, own
        launch, levels, table, stream_of, device = prepared
        addresses.append(addresses[-1] if own is None else own.data_ptr())
        launch(
            stream_of(device),
            *addresses,
            x0.data_ptr(),
            bank.data_ptr(),
            levels,
            table,
            step,
            slot,
        )
        return x_next, own

    def _first(self, key: tuple, arguments: tuple, sums: LinearStep) -> None:
        """Compile a variant, run it once, and keep it for the next time."""
        observe = key[0]
        layout, plan = self._layout, self._plan
        channels = min(GROUP, triton.next_power_of_2(layout.channels))
        order = layout.order(self._strides)
        sizes, strides = layout.numbers(self._strides, order)
        constants = (
            layout.channels,
            len(sums.reads),
            len(sums.writes),
            plan.clip is not None,
            self._own_dtype is not None,
            observe > 0,
            observe > 1,
            self._clip is not None,
            self._reduce == "max",
            COLUMNS,
            WIDTH,
            order,
            channels,
            layout.block(channels),
        )
        tail = (
            0.0 if self._clip is None else self._clip,
            0.0 if plan.clip is None else plan.clip,
            layout.rows,
            *sizes,
            layout.locations,
            0,
            self._levels.stride(0),
            0,
            *strides,
            *constants,
        )
        grid = (triton.cdiv(layout.locations, constants[-1]), layout.rows, 1)
        compiled = linear_step_kernel[grid](*arguments, *tail, num_warps=WARPS, enable_fp_fusion=False)
        if self._compiles:
            tables = (self._levels.data_ptr(), self._sums.data_ptr())
            launch = launch_of(compiled, grid, len(arguments), tail)
            self._prepared[key] = (launch, *tables, stream_getter(), arguments[0].device.index)


def _three(tensors: list[Tensor], filler: Tensor) -> list[Tensor]:
    return [*tensors, filler, filler, filler][:3]


def _two(tensors: list[Tensor], filler: Tensor) -> list[Tensor]:
    return [*tensors, filler, filler][:2]
