# SPDX-License-Identifier: MIT
"""Which implementation of an op runs. Nothing is built here, and importing this needs no GPU."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch

BACKENDS = ("auto", "triton", "native", "reference")
OPS = (
    "step_dynamics",
    "robust_threshold",
    "temporal_scores",
    "temporal_severity",
    "label_regions",
    "dilate_mask",
    "renoise_",
    "history_fill_",
)

_NATIVE_OPS = ("label_regions",)
_TRITON_OPS = OPS
_OF_CALIBRATION = ("temporal_scores", "temporal_severity")
"""Runs that are not calibrated do without."""
_BY_ITSELF = ("triton", "native", "reference")
"""What "auto" tries, in order; labelling is what Triton does worst."""
_BY_ITSELF_FOR = {"label_regions": ("native", "triton", "reference")}


class BackendError(RuntimeError):
    """An explicitly requested backend cannot serve an op; the message gives every cause."""


@functools.cache
def native() -> ModuleType | ImportError:
    """The compiled extension, or why it cannot be imported."""
    try:
        return importlib.import_module("ascedfast._C")
    except ImportError as error:
        return error


def has_cuda() -> bool:
    """Whether the compiled extension is there and holds the CUDA ops."""
    return bool(getattr(native(), "has_cuda", False))


def why_not(backend: str, op: str, device: torch.device) -> list[str]:
    """Every reason why ``backend`` cannot serve ``op`` on ``device``; empty when it can."""
    causes = []
    if backend == "native":
        extension = native()
        if op not in _NATIVE_OPS:
            causes.append(f"{op} has no native implementation")
        elif device.type not in ("cpu", "cuda"):
            causes.append(f"native {op} runs on the CPU and on CUDA, the tensor is on {device.type}")
        elif device.type == "cuda" and not isinstance(extension, ImportError) and not has_cuda():
            causes.append("the extension ascedfast._C was built without CUDA: nvcc builds it")
        if isinstance(extension, ImportError):
            causes.append(f"the extension ascedfast._C is not installed ({extension}); a C++ compiler builds it")
    if backend == "triton":
        if op not in _TRITON_OPS:
            causes.append(f"{op} has no triton kernel yet")
        if importlib.util.find_spec("triton") is None:
            causes.append("triton is not installed")
        elif device.type != "cuda" and not _interpreted():
            causes.append(f"triton kernels run on CUDA (or with TRITON_INTERPRET=1), the tensor is on {device.type}")
    return causes


def why_not_by_itself(backend: str, op: str, device: torch.device) -> list[str]:
    """``why_not``, and why "auto" leaves a backend alone that could serve."""
    causes = why_not(backend, op, device)
    if not causes and backend == "triton" and device.type != "cuda":
        causes.append("interpreted kernels are for tests: taken on request only")
    return causes


def pick(op: str, device: torch.device, backend: str = "auto") -> str:
    """The backend that serves ``op`` on ``device``. An explicit choice that cannot be met raises BackendError."""
    return _pick(op, device.type, backend)


@functools.cache
def _pick(op: str, device_type: str, backend: str) -> str:
    device = torch.device(device_type)
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "auto":
        order = _BY_ITSELF_FOR.get(op, _BY_ITSELF)
        return next(name for name in order if not why_not_by_itself(name, op, device))
    causes = why_not(backend, op, device)
    if causes:
        raise BackendError(f"backend {backend!r} cannot serve {op}: {'; '.join(causes)}")
    return backend


def check_all(backend: str) -> None:
    """Raise BackendError unless ``backend`` can serve every op that each run needs, so that none fails half-way."""
    if backend == "auto":
        return
    device = torch.device("cuda" if backend == "triton" else "cpu")
    needed = [op for op in OPS if op not in _OF_CALIBRATION]
    causes = [cause for op in needed for cause in why_not(backend, op, device)]
    if causes:
        raise BackendError(f"backend {backend!r} cannot serve a whole run: {'; '.join(dict.fromkeys(causes))}")


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
