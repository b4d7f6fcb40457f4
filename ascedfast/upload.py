# SPDX-License-Identifier: MIT
"""Small tables from the host to a device."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A contiguous copy of host values on ``device``, which the host does not wait for: it comes from pinned memory."""
    values = values.contiguous()
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
