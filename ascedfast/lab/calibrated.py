# SPDX-License-Identifier: MIT
"""Mode "calibrated" as it is tried here: with a table, by the preset of the subject's layout."""

from ascedfast import AscedConfig
from ascedfast.calibration.judge import RATE
from ascedfast.calibration.table import NullTable
from ascedfast.lab.corrections import Prefix
from ascedfast.lab.subject import Subject
from ascedfast.presets import preset
from ascedfast.schedule import Schedule


def noise_of(config: AscedConfig, schedule: Schedule, prefix: Prefix) -> float:
    """On x0_hat, of a correction by this configuration at the end of this part of a run."""
    return config.x0_noise_at([level.logsnr for level in schedule.before[prefix.first : prefix.step]])


def calibrated(subject: Subject, table: NullTable, rate: float = RATE) -> AscedConfig:
    """Raises: ValueError for a rate that the table cannot keep."""
    return preset("latent" if getattr(subject, "latent", False) else "pixel", "calibrated", table=table, rate=rate)
