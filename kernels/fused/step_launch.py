# SPDX-License-Identifier: MIT
"""step_dynamics again and again on tensors of one kind: everything that does not change between steps is made once.

A step's work takes some microseconds and so does a launch through ``JITFunction``, which looks at every argument anew;
here a compiled kernel is called with prepared arguments.
"""

from collections.abc import Callable, Sequence

import torch
import triton
from ascedfast.kernels.launcher import Launcher
from ascedfast.kernels.prepared import launch_of, misaligned, stream_getter
from ascedfast.kernels.step_dynamics import step_dynamics_kernel, variant
from ascedfast.kernels.tile import WARPS
from torch import Tensor

from ascedfast.solver import Update

TABLE_WIDTH = 8
"""float32 of one step: a, b and six scalars of the solver."""

VARYING = 11
"""The kernel's arguments that differ between steps: eight tensors, the table, step and slot."""


class StepLauncher(Launcher):
    """A solver's update with the stock's bits, or x0_hat and its dynamics alone.

    Args:
        x, m, view, clip, reduce: see ``Launcher``.
        table: float32 [steps, 8] contiguous: a, b and the scalars of each step's update.
        updates: the solver's updates that occur; a call names one by its index.
    """

    def __init__(
        self,
        x: Tensor,
        m: Tensor,
        view: Callable[[Tensor], Tensor],
        *,
        table: Tensor,
        updates: Sequence[Update],
        clip: float | None,
        reduce: str,
    ) -> None:
        super().__init__(x, m, view, clip, reduce)
        self._table = table
        self._updates = [(update, *_result_dtypes(update, x, m)) for update in updates]
        following = torch.empty_like(x)
        x0 = self.new_x0(x)
        self._strides = [self._layout.strides(t) for t in (view(x), view(m), x0, x0, view(following))]
        self._step_stride = table.stride(0)

    def __call__(
        self,
        x: Tensor,
        m: Tensor,
        x0: Tensor,
        bank: Tensor,
        step: int,
        slot: int,
        observe: int,
        which: int | None,
        own_prev: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """One step; x and m must fit.

        Args:
            x0: from ``new_x0``; holds x0_hat of the last observed step, then of this one.
            bank: float32 [slots, R, *grid] contiguous, receives the dynamics.
            which: the update, None to observe only.
            observe: 0 no, 1 x0_hat alone, 2 also its dynamics against the x0_hat in the buffer.
            step: row of the table. slot: of the bank. own_prev: what the last call returned second ("dpm2").
        Returns: the next state and the solver's own x0, new tensors; None without an update.
        """
        x_next = own = None
        if which is not None:
            _, state_dtype, own_dtype = self._updates[which]
            # Without a type it takes half the time.
            x_next = torch.empty_like(x) if state_dtype == x.dtype else torch.empty_like(x, dtype=state_dtype)
            own = None if own_dtype is None else torch.empty_like(x_next, dtype=own_dtype)
        x_at, m_at = x.data_ptr(), m.data_ptr()
        key = (observe, which, misaligned(x_at, m_at), own_prev is None)
        prepared = self._prepared.get(key)
        if prepared is None or not self._compiles:
            self._first(key, x, m, x0, bank, x_next, own, own_prev, step, slot)
            return x_next, own
        launch, table, stream_of, device = prepared
        x0 = x0.data_ptr()
        launch(
            stream_of(device),
            x_at,
            m_at,
            x0,
            x0,
            bank.data_ptr(),
            x0 if x_next is None else x_next.data_ptr(),
            x0 if own is None else own.data_ptr(),
            x0 if own_prev is None else own_prev.data_ptr(),
            table,
            step,
            slot,
        )
        return x_next, own

    def _first(self, key, x, m, x0, bank, x_next, own, own_prev, step, slot) -> None:
        """Compile a variant, run it once, and keep it for the next time."""
        observe, which, *_ = key
        update = None if which is None else self._updates[which][0]
        layout = self._layout
        order = layout.order(self._strides)
        sizes, strides = layout.numbers(self._strides, order)
        constants = variant(layout, order, observe, self._clip is not None, self._reduce, update)
        tail = (
            0.0 if self._clip is None else self._clip,
            0.0 if update is None or update.clip is None else update.clip,
            layout.rows,
            *sizes,
            layout.locations,
            0,
            self._step_stride,
            *strides,
            *constants,
        )
        grid = (triton.cdiv(layout.locations, constants[-1]), layout.rows, 1)
        compiled = step_dynamics_kernel[grid](
            x,
            m,
            x0,
            x0,
            bank,
            x0 if x_next is None else x_next,
            x0 if own is None else own,
            x0 if own_prev is None else own_prev,
            self._table,
            step,
            slot,
            *tail,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        if self._compiles:
            launch = launch_of(compiled, grid, VARYING, tail)
            self._prepared[key] = (launch, self._table.data_ptr(), stream_getter(), x.device.index)


def _result_dtypes(update: Update, x: Tensor, m: Tensor) -> tuple[torch.dtype, torch.dtype | None]:
    return update.state_dtype(x.dtype, m.dtype), update.own_x0_dtype(x.dtype, m.dtype)
