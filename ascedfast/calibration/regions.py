# SPDX-License-Identifier: MIT
"""Regions of a severity: spread to where it is high, kept where it is rare."""

import torch
from torch import Tensor

from ascedfast import ops
from ascedfast.calibration.table import Null

SPREAD_AT = 0.5
"""A region spreads over the locations as severe as the worst of every second sound run."""


def regions(
    severity: Tensor, null: Null, rate: float, connectivity: int, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Connected regions above the severity of SPREAD_AT of sound runs that hold a location above that of ``rate``.

    Args: severity: float32 [R, *grid].
    Returns: mask bool [R, *grid]; labels int32 of all regions, kept or not; overflow bool [R], see
        ``ops.label_regions``. Nothing is kept in a row with NaN.
    """
    high = null.threshold(rate)
    mask, labels, overflow = seeded(severity, min(high, null.threshold(SPREAD_AT)), high, connectivity, backend)
    return mask, labels, overflow


def seeded(
    severity: Tensor, low: float, high: float, connectivity: int, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Connected regions above ``low`` that hold a location above ``high``; as ``regions``."""
    sound = ~severity.flatten(1).isnan().any(1)
    above = (severity > low) & sound.view(-1, *([1] * (severity.dim() - 1)))
    labels, _, overflow = ops.label_regions(above, connectivity=connectivity, backend=backend)
    flat = labels.flatten(1).long()
    # One place a region; all that is no seed goes to the ground's.
    holds = torch.zeros(len(flat), flat.shape[1] + 1, dtype=torch.bool, device=severity.device)
    holds.scatter_(1, torch.where((severity > high).flatten(1), flat, 0), True)
    holds[:, 0] = False
    holds &= ~overflow[:, None]
    return holds.gather(1, flat).view_as(above), labels, overflow
