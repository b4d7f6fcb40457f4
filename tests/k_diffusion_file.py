# SPDX-License-Identifier: MIT
"""k-diffusion's real sampling.py, with stand-ins for what it imports and its samplers do not need.

The package pulls in torchvision, wandb, CLIP and more, so it is installed alone:
``pip install --no-deps k-diffusion==0.1.1.post1``.
"""

import importlib.util
import sys
import types
from pathlib import Path
from unittest import mock

import pytest

NAME = "k_diffusion"


def append_dims(x, dims):
    """The one function of k_diffusion.utils that sampling.py calls."""
    return x.reshape(x.shape + (1,) * (dims - x.ndim))


def load_sampling():
    """The module; the test is skipped where the package is not installed."""
    package = importlib.util.find_spec(NAME)
    if package is None:
        pytest.skip("k-diffusion is missing: pip install --no-deps k-diffusion==0.1.1.post1")
    stand_in = types.ModuleType(NAME)
    stand_in.utils = types.SimpleNamespace(append_dims=append_dims)
    missing = {name: mock.MagicMock(name=name) for name in ("torchdiffeq", "torchsde") if not _there(name)}
    path = Path(package.origin).parent / "sampling.py"
    spec = importlib.util.spec_from_file_location(f"{NAME}.sampling", path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {NAME: stand_in, f"{NAME}.utils": stand_in.utils, **missing}):
        spec.loader.exec_module(module)
    return module


def _there(name):
    return importlib.util.find_spec(name) is not None
