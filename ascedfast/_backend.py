# SPDX-License-Identifier: MIT
"""Which implementation of an op runs. Nothing is built here, and importing this needs no GPU."""

import functools
import importlib
import importlib.util
from types import ModuleType

import torch

BACKENDS = ("auto", "triton", "native", "reference")

_NATIVE_OPS: dict[str, tuple[str, ...]] = {"label_regions": ("cpu",)}
_TRITON_OPS: dict[str, tuple[str, ...]] = {}


class BackendError(RuntimeError):
    """An explicitly requested backend cannot serve an op; the message gives every cause."""


@functools.cache
def native() -> ModuleType | ImportError:
    """The compiled extension, or why it cannot be imported."""
    try:
        return importlib.import_module("ascedfast._C")
    except ImportError as error:
        return error


def why_not(backend: str, op: str, device: torch.device) -> list[str]:
    """Every reason why ``backend`` cannot serve ``op`` on ``device``; empty when it can."""
    if backend == "reference":
        return []
    causes = []
    table = _NATIVE_OPS if backend == "native" else _TRITON_OPS
    if op not in table:
        causes.append(f"{op} has no {backend} implementation")
    elif device.type not in table[op]:
        causes.append(f"{op} runs on {', '.join(table[op])} there, the tensor is on {device.type}")
    if backend == "native" and isinstance(native(), ImportError):
        causes.append(f"the extension ascedfast._C is not installed ({native()}); a C++ compiler builds it at install")
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        causes.append("triton is not installed")
    return causes


def pick(op: str, device: torch.device, backend: str = "auto") -> str:
    """The backend that serves ``op`` on ``device``. An explicit choice that cannot be met raises BackendError."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return next(name for name in ("triton", "native", "reference") if not why_not(name, op, device))
    causes = why_not(backend, op, device)
    if causes:
        raise BackendError(f"backend {backend!r} cannot serve {op}: {'; '.join(causes)}")
    return backend
