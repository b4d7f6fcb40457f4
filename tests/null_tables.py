# SPDX-License-Identifier: MIT
"""Tables of sound runs made up for tests: nothing was calibrated."""

from ascedfast import AscedConfig
from ascedfast.calibration.table import SURVIVAL, Null, NullTable
from ascedfast.reference_scores import Gumbel
from ascedfast.schedule import Schedule


def calibrated(
    schedule: Schedule, t_c: int, grid: tuple[int, ...], above: float = 0.0, spread: float = 0.12, **changes
) -> AscedConfig:
    """Mode "calibrated" that flags regions with a severity above ``above``, spread to that above ``above - spread``."""
    logsnr = tuple(max(-12.0, level.logsnr) for level in schedule.before[:t_c])
    half = SURVIVAL.index(0.5)
    levels = tuple(above - spread * (len(SURVIVAL) - k) / (len(SURVIVAL) - half) for k in range(len(SURVIVAL)))
    null = Null(logsnr, grid, (1.0,) * (t_c - 1), Gumbel(0.0, 1.0), Gumbel(0.0, 1.0), levels, 1e-6, 500, 0.1)
    return AscedConfig.calibrated(NullTable((null,)), t_c=t_c, reference_size=None, grow=1, **changes)
