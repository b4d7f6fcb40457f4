# SPDX-License-Identifier: MIT
"""Watches a diffusion sampler while it runs and repairs the regions that are becoming artifacts, in the same run."""

import importlib.util

from ascedfast import custom_ops as _custom_ops  # noqa: F401 - registers torch.ops.ascedfast
from ascedfast._version import __version__
from ascedfast.begin_run import begin
from ascedfast.config import AscedConfig
from ascedfast.detect import artifact_mask
from ascedfast.engine import Engine
from ascedfast.process import Coefficients
from ascedfast.report import Region, Report, RowReport
from ascedfast.schedule import Schedule
from ascedfast.second_pass import SecondPass
from ascedfast.serving_rows import BatchFullError, RowBatch

_DIFFUSERS = ("asced", "disable_asced", "enable_asced", "is_asced_enabled")
__all__ = [
    "AscedConfig",
    "BatchFullError",
    "Coefficients",
    "Engine",
    "Region",
    "Report",
    "RowBatch",
    "RowReport",
    "Schedule",
    "SecondPass",
    "__version__",
    "artifact_mask",
    "begin",
]
try:  # a star import must not fail where diffusers is missing
    if importlib.util.find_spec("diffusers") is not None:
        __all__ += _DIFFUSERS
except ImportError:
    pass


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    # The core works without diffusers; its adapter is imported when one of its names is first used.
    if name in _DIFFUSERS:
        try:
            from ascedfast.adapters import diffusers
        except ModuleNotFoundError as error:
            raise ImportError(
                f"ascedfast.{name} needs diffusers: pip install 'ascedfast[diffusers]' "
                "(in a checkout: pip install -e '.[diffusers]')"
            ) from error
        return getattr(diffusers, name)
    raise AttributeError(f"module 'ascedfast' has no attribute {name!r}")
