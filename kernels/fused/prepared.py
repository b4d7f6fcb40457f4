# SPDX-License-Identifier: MIT
"""A kernel launched again and again with other addresses and nothing else changed.

A launch through ``JITFunction`` looks at every argument anew, 30 us and more for the kernels of a correction, which run
for 3 to 10 us each.
"""

from typing import Any

import torch
import triton
from torch import Tensor

ALIGNED = 16
"""Bytes; addresses that are a multiple of it allow wide loads."""
KEPT = 256
"""Launches an op keeps, by the shapes, strides and settings they were prepared for."""


class PreparedLaunch:
    """One launch of ``kernel`` on tensors of fixed types, on one device.

    Args: grid: of programs, one to three sizes. fixed: every argument after the tensors, in the kernel's order,
        constants too. options: Triton's (``num_warps``).
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], *fixed: Any, **options: Any) -> None:
        self._kernel, self._fixed, self._options = kernel, fixed, options
        self._grid = (*grid, 1, 1)[:3]
        self._runner = self._stream_of = self._device = None

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on the current stream of the tensors' device, which must be the current one; bool is seen as uint8."""
        addresses = [tensor.data_ptr() for tensor in tensors]
        joined = 0
        for address in addresses:
            joined |= address
        if self._runner is not None and joined % ALIGNED == 0:
            self._runner(*addresses, *self._fixed, stream=self._stream_of(self._device))
            return
        seen = [tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor for tensor in tensors]
        compiled = self._kernel[self._grid](*seen, *self._fixed, **self._options)
        if tensors[0].is_cuda and joined % ALIGNED == 0:  # compiled for such addresses; others take the long way
            self._device = tensors[0].device.index
            self._stream_of = triton.runtime.driver.active.get_current_stream
            self._runner = compiled[self._grid]
