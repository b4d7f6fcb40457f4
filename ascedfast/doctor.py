# SPDX-License-Identifier: MIT
"""What is installed, which backend serves which op, and why the others do not."""

import platform
from importlib import metadata
from typing import Any

import torch

from ascedfast import _backend
from ascedfast._version import __version__
from ascedfast.noise import NOISE_VERSION

PACKAGES = ("triton", "numpy", "diffusers", "transformers", "accelerate")


def examine() -> dict[str, Any]:
    """Plain values: versions, devices, and for each op on each device the backend taken and the causes against the
    others."""
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    extension = _backend.native()
    return {
        "ascedfast": __version__,
        "noise_version": NOISE_VERSION,
        "python": platform.python_version(),
        "packages": {"torch": torch.__version__, **{name: _version(name) for name in PACKAGES}},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "extension": f"not installed: {extension}" if isinstance(extension, ImportError) else extension.__file__,
        "extension_has_cuda": _backend.has_cuda(),
        "ops": [
            {
                "op": op,
                "device": device.type,
                "backend": _backend.pick(op, device),
                "others": {
                    name: causes
                    for name in ("triton", "native")
                    if (causes := _backend.why_not_by_itself(name, op, device))
                },
            }
            for device in devices
            for op in _backend.OPS
        ],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
