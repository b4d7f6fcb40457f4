# SPDX-License-Identifier: MIT
"""Small tables from the host to a device."""

import torch
from torch import Tensor

INLINE = 1 << 16
"""Bytes up to which CUDA takes a copy from ordinary memory into its own queue at once."""


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A contiguous copy of host values on ``device``, which the host does not wait for."""
    values = values.contiguous()
    if device.type == "cuda" and values.nbytes > INLINE:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
