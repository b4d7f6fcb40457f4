# SPDX-License-Identifier: MIT
"""What the launchers of fused steps share: the kind of tensors they were prepared for, and what they keep."""

from collections.abc import Callable

import torch
from ascedfast.kernels.tile import Layout
from torch import Tensor


class Launcher:
    """Launches on tensors with the shapes, strides, types and device of x and m; keeps none of them.

    Args:
        x, m: a state and a model output. view: sees either as [R, C, *grid].
        clip, reduce: as for ``ops.step_dynamics``.
    """

    def __init__(self, x: Tensor, m: Tensor, view: Callable[[Tensor], Tensor], clip: float | None, reduce: str) -> None:
        self._kind = (x.shape, x.stride(), x.dtype, x.device, m.shape, m.stride(), m.dtype, m.device)
        self._view, self._layout = view, Layout(view(x))
        self._clip, self._reduce = clip, reduce
        self._prepared: dict[tuple, tuple] = {}
        self._compiles = x.device.type == "cuda"

    def fits(self, x: Tensor, m: Tensor) -> bool:
        """Whether these tensors are of the prepared kind."""
        return (x.shape, x.stride(), x.dtype, x.device, m.shape, m.stride(), m.dtype, m.device) == self._kind

    def new_x0(self, x: Tensor) -> Tensor:
        """A float32 buffer for x0_hat, [R, C, *grid], in x's order in memory."""
        return torch.empty_like(self._view(x), dtype=torch.float32)
