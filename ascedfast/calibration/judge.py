# SPDX-License-Identifier: MIT
"""What a table of sound runs says of one run: how rare it is, and where."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ascedfast import ops
from ascedfast.calibration.scores import temporal_scores
from ascedfast.calibration.table import Null, NullTable
from ascedfast.calibration.windows import smoothed
from ascedfast.report import RowReport

GROW_AT = 0.5
"""A region spreads over the locations as severe as the worst of every second sound run."""
RATE = 0.05
"""Of false alarms among sound samples, by default."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One sample. severity: float32 [*grid]; see ``Null.severity``. p_value: share of sound samples as severe.

    null: what it was compared with. A sample whose run was left alone has no ``Judged``."""

    severity: Tensor
    p_value: float
    null: Null

    def mask(self, rate: float = RATE) -> Tensor:
        """bool [*grid], the regions that a share ``rate`` of sound samples has any of. Raises: ValueError."""
        return regions(self.severity[None], self.null.threshold(GROW_AT), self.null.threshold(rate))[0]


def judge(row: RowReport, table: NullTable) -> Judged:
    """Compare a run with sound ones.

    Args:
        row: of a report made with ``AscedConfig(record="run")`` or ``window_start=0``: the scores need the changes from
            the first step on.
    Raises: ValueError where the run was left alone, is not finite, or its first steps were not recorded.
    """
    maps = smoothed(row)
    null = table.at(row.logsnr[: len(maps) + 1])
    severity = null.severity(temporal_scores(maps[:, None], null.profile))[0]
    return Judged(severity, null.p_value(float(severity.max())), null)


def regions(severity: Tensor, low: float, high: float) -> Tensor:
    """Connected regions of severity above ``low`` that hold a location above ``high``.

    Args: severity: float [R, *grid]. Returns: bool [R, *grid]; empty where a row holds NaN."""
    above = severity > low
    connectivity = 4 if severity.dim() == 3 else 6
    labels, _, _ = ops.label_regions(above, connectivity=connectivity, min_area=0, max_area=torch.inf, core_width=1)
    flat = labels.flatten(1).long()
    seeds = ((severity > max(low, high)) & above).flatten(1)
    held = torch.zeros(len(flat), flat.shape[1] + 1, dtype=torch.bool, device=severity.device)
    held.scatter_(1, torch.where(seeds, flat, 0), True)
    held[:, 0] = False
    sound = severity.flatten(1).isnan().any(1, keepdim=True)
    return (held.gather(1, flat) & ~sound).view_as(above)
