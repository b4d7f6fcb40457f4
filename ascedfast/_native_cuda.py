# SPDX-License-Identifier: MIT
"""The extension's CUDA ops on torch tensors: memory and the current stream come from torch, everything else is csrc's.
Nothing here waits for the device or reads it back; a CUDA graph can capture the calls.
"""

import torch
from torch import Tensor

from ascedfast import _backend


def _scratch(count: int, device: torch.device) -> tuple[Tensor | None, int, int]:
    """Memory, its address and its size; none where none is needed."""
    if count == 0:
        return None, 0, 0
    memory = torch.empty(count, dtype=torch.uint8, device=device)
    return memory, memory.data_ptr(), count


def _queue(device: torch.device) -> tuple[int, int]:
    """The device's ordinal and its current stream's address."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def label_regions(
    mask: Tensor, connectivity: int, min_area: float, max_area: float, core_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``ops.label_regions`` of bool or levels [R, D, H, W] on a CUDA device, any strides; arguments already checked.

    Returns: labels int32 and kept bool, contiguous, of mask's shape; overflow bool [R], False. Raises: ValueError
    beyond 2**30 - 1 locations a row, RuntimeError where CUDA refuses a launch.
    """
    native, shape = _backend.native(), tuple(mask.shape)
    labels = torch.empty(shape, dtype=torch.int32, device=mask.device)
    kept = torch.empty(shape, dtype=torch.bool, device=mask.device)
    if mask.numel() == 0:
        return labels, kept, torch.zeros(shape[0], dtype=torch.bool, device=mask.device)
    overflow = torch.empty(shape[0], dtype=torch.bool, device=mask.device)  # written by the kernel: no launch for it
    _kept_alive, *scratch = _scratch(native.label_regions_scratch_bytes(shape), mask.device)
    native.label_regions_cuda(
        mask.data_ptr(),
        mask.stride(),
        shape,
        labels.data_ptr(),
        kept.data_ptr(),
        overflow.data_ptr(),
        connectivity,
        float(min_area),
        float(max_area),
        0 if mask.dtype == torch.uint8 else core_width,  # 0: the seeds are the cores
        *scratch,
        *_queue(mask.device),
    )
    return labels, kept, overflow


def medians(values: Tensor) -> Tensor:
    """Exact median and median absolute deviation of each plane, with ``reference.median``'s rule and bits.

    Args: values: float32 [P, n] on a CUDA device, any stride between planes, contiguous in them, n >= 1.
    Returns: float32 [P, 2]: median, and median of |value - median|; both NaN where a value is NaN or Inf.
    Raises: ValueError; RuntimeError where CUDA refuses a launch.
    """
    if values.dtype != torch.float32 or values.dim() != 2 or values.device.type != "cuda":
        raise ValueError(f"values must be float32 [P, n] on CUDA, got {values.dtype} {tuple(values.shape)}")
    planes, count = values.shape
    if count > 1 and values.stride(1) != 1:
        raise ValueError(f"values must be contiguous in a plane, got strides {values.stride()}")
    native = _backend.native()
    statistics = torch.empty(planes, 2, dtype=torch.float32, device=values.device)
    _kept_alive, *scratch = _scratch(native.medians_scratch_bytes(planes), values.device)
    native.medians_cuda(
        values.data_ptr(),
        values.stride(0),
        planes,
        count,
        statistics.data_ptr(),
        *scratch,
        *_queue(values.device),
    )
    return statistics
