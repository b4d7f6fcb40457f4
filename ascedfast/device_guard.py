# SPDX-License-Identifier: MIT
"""Kernels are launched on the current device, and a pipeline may run on another one."""

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_HERE = nullcontext()


def on_device_of(x: Tensor) -> AbstractContextManager:
    """Makes x's device the current one for the length of a ``with`` block; nothing to do on the CPU."""
    if not x.is_cuda or not _several() or torch.cuda.current_device() == x.device.index:
        return _HERE
    return torch.cuda.device(x.device)


@functools.cache
def _several() -> bool:
    return torch.cuda.device_count() > 1
