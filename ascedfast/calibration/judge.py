# SPDX-License-Identifier: MIT
"""What a table of sound runs says of one run: how rare it is, and where."""

import math
from dataclasses import dataclass

from torch import Tensor

from ascedfast import ops
from ascedfast.calibration.regions import regions
from ascedfast.calibration.table import Null, NullTable
from ascedfast.calibration.windows import window_of
from ascedfast.report import RowReport

RATE = 0.05
"""Of false alarms among sound samples, by default."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One sample. severity: float32 [*grid]; see ``Null.severity``. p_value: share of sound samples as severe as it is
    outside what is protected.

    null: what it was compared with. A sample whose run was left alone has no ``Judged``."""

    severity: Tensor
    p_value: float
    null: Null

    def mask(self, rate: float = RATE) -> Tensor:
        """bool [*grid], the regions that a share ``rate`` of sound samples has any of. Raises: ValueError."""
        connectivity = 4 if self.severity.dim() == 2 else 6
        return regions(self.severity[None], self.null, rate, connectivity)[0][0]


def judge(row: RowReport, table: NullTable) -> Judged:
    """Compare a run with sound ones.

    Args:
        row: of a report made with ``AscedConfig(record="run")`` or ``window_start=0``: the scores need the changes from
            the first step on.
    Raises: ValueError where the run was left alone, is not finite, its first steps were not recorded, or the table is
        of other runs (``NullTable.at``).
    """
    maps = window_of(row)
    null = table.at(row.logsnr[: len(maps) + 1], maps.shape[1:])
    severity = null.severity(ops.temporal_scores(maps[:, None], null.profile))[0]
    return Judged(severity, null.p_value(float(row.outside_keep(severity, -math.inf).max())), null)
