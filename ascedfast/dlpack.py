# SPDX-License-Identifier: MIT
"""Arrays of other libraries as tensors, without a copy."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(x: Any, name: str = "x", *, write: bool = False) -> Tensor:
    """x as a tensor over the same memory, on the same device.

    On CUDA the array's pending work comes before torch's current stream, as DLPack has it. What torch writes later is
    ordered on torch's stream alone: a library that works on another stream has to wait for it.

    Args:
        x: a tensor (returned as it is), a numpy array, or any object that speaks DLPack (CuPy, JAX, ...).
        name: what the errors call it.
        write: x will be written in place. Only numpy says whether an array may be; do not give arrays of a library
            that holds them immutable (JAX).
    Raises: TypeError for anything else, and for an array that cannot be shared (its dtype, a negative stride);
        ValueError for a numpy array that is to be written and is read-only.
    """
    if isinstance(x, Tensor):
        return x
    kind = type(x).__name__
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"{name} must be a tensor or an array that speaks DLPack, got {kind}")
    if write and isinstance(x, np.ndarray) and not x.flags.writeable:
        raise ValueError(f"{name} is written in place, and this numpy array is read-only: give a writable one")
    if any(stride < 0 for stride in getattr(x, "strides", None) or ()):  # torch.from_dlpack would end the process
        raise TypeError(f"{name}, a {kind}, has a negative stride: no tensor can share its memory")
    try:
        if not isinstance(x, np.ndarray):
            return torch.from_dlpack(x)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
            return torch.from_numpy(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}, a {kind}, cannot be taken as a tensor without a copy: {error}") from error
