# SPDX-License-Identifier: MIT
"""Regions of a severity: spread to where it is high, kept where it is rare."""

import math

import torch
from torch import Tensor

from ascedfast import ops
from ascedfast.calibration.table import Null

SPREAD_AT = 0.5
"""A region spreads over the locations as severe as the worst of every second sound run."""
RULES = {"min_area": 0, "max_area": math.inf, "core_width": 1}
"""Of ``ops.label_regions``: a region of any size is kept, if it holds a seed."""


def thresholds(null: Null, rate: float) -> tuple[float, float]:
    """The severities from which a region spreads and grows: low, high. Raises: ValueError, as ``Null.threshold``."""
    high = null.threshold(rate)
    return min(high, null.threshold(SPREAD_AT)), high


def regions(
    severity: Tensor, null: Null, rate: float, connectivity: int, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Connected regions above the severity of SPREAD_AT of sound runs that hold a location above that of ``rate``.

    Args: severity: float32 [R, *grid].
    Returns: mask bool [R, *grid]; labels int32 of all regions, kept or not; overflow bool [R], see
        ``ops.label_regions``. Nothing is kept in a row with NaN.
    """
    return seeded(severity, *thresholds(null, rate), connectivity, backend)


def seeded(
    severity: Tensor, low: float, high: float, connectivity: int, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Connected regions above ``low`` that hold a location above ``high``; as ``regions``."""
    sound = ~severity.flatten(1).isnan().any(1).view(-1, *([1] * (severity.dim() - 1)))
    levels = ((severity > low) & sound).to(torch.uint8) + ((severity > high) & sound).to(torch.uint8)
    labels, mask, overflow = ops.label_regions(levels, connectivity=connectivity, **RULES, backend=backend)
    return mask, labels, overflow
