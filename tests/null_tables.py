# SPDX-License-Identifier: MIT
"""Tables of sound runs made up for tests: nothing was calibrated."""

from ascedfast import AscedConfig
from ascedfast.calibration.table import SURVIVAL, Null, NullTable
from ascedfast.reference_scores import Gumbel
from ascedfast.schedule import Schedule


def calibrated(schedule: Schedule, t_c: int, grid: tuple[int, ...], above: float = 0.0, **changes) -> AscedConfig:
    """Mode "calibrated" that flags regions with a score of e^above, and all around it above e^(above - .12)."""
    logsnr = tuple(max(-12.0, level.logsnr) for level in schedule.before[:t_c])
    levels = tuple(above - 0.02 * (len(SURVIVAL) - k) for k in range(len(SURVIVAL)))
    null = Null(logsnr, grid, (1.0,) * (t_c - 1), Gumbel(0.0, 1.0), Gumbel(0.0, 1.0), levels, 0.01, 500)
    return AscedConfig.calibrated(NullTable((null,)), t_c=t_c, reference_size=None, grow=1, **changes)
