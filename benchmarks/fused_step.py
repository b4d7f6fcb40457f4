# SPDX-License-Identifier: MIT
"""The one place that knows how the fused step is called: what P3 and P7 time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ascedfast import ops
from ascedfast.solver import Update
from benchmarks.device import nbytes
from benchmarks.loops import randn

A, B, DELTA = 1.0, -0.6, -0.04
"""A flow-matching step: x0_hat = x - .6 m, x_next = x - .04 m."""


class StepCall(NamedTuple):
    """One call on buffers of its own. bytes: what its contract makes it read and write, each element once."""

    call: Callable[[], object]
    bytes: int
    note: str | None = None


def step_call(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0, layout: str = ""
) -> StepCall:
    """One step in the window. It reads x, m and the previous x0_hat and writes x_next, x0_hat and d; x and m are of
    ``dtype``, x0_hat and d float32.

    Args: layout: "" for [B, C, H, W], "channels-last" for that in memory, "packed" for [B, S, C].
    """
    x, m = randn(shape, seed, device).to(dtype), randn(shape, seed + 1, device).to(dtype)
    if layout == "channels-last":
        x, m = (tensor.to(memory_format=torch.channels_last) for tensor in (x, m))
    view = _grid_of_packed if layout == "packed" else _as_it_is
    x0 = torch.empty_like(view(x), dtype=torch.float32).copy_(view(x))
    return (_by_launcher if device.type == "cuda" else _by_op)(x, m, x0, view)


def _by_launcher(x: Tensor, m: Tensor, x0: Tensor, view: Callable[[Tensor], Tensor]) -> StepCall:
    """As the engine does it: x0_hat is replaced in its buffer."""
    from ascedfast.kernels.step_launch import TABLE_WIDTH, StepLauncher

    bank = torch.empty(1, x.shape[0], *x0.shape[2:], device=x.device)
    table = torch.zeros(1, TABLE_WIDTH, device=x.device)
    table[0, :3] = torch.tensor([A, B, DELTA])
    kinds = {"updates": [Update("flow", "flow")], "clip": None, "reduce": "mean"}
    launch = StepLauncher(x, m, view, table=table, **kinds)

    def call() -> Tensor | None:
        return launch(x, m, x0, bank, 0, 0, 2, 0, None)[0]

    return StepCall(call, nbytes(x, m, call(), x0, x0, bank))


def _by_op(x: Tensor, m: Tensor, x0: Tensor, view: Callable[[Tensor], Tensor]) -> StepCall:
    """The op in plain torch, where no kernel runs."""
    a, b = (torch.full((x.shape[0],), value, device=x.device) for value in (A, B))
    x, m = view(x), view(m)

    def call() -> tuple[Tensor, Tensor | None]:
        return ops.step_dynamics(x, m, a, b, x0)

    return StepCall(call, nbytes(x, m, x0, *call()), "plain torch, without the solver's update")


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _grid_of_packed(tensor: Tensor) -> Tensor:
    """[B, S, C] seen as [B, C, H, W], as adapters hand it on."""
    side = round(tensor.shape[1] ** 0.5)
    return tensor.unflatten(1, (side, tensor.shape[1] // side)).movedim(-1, 1)
