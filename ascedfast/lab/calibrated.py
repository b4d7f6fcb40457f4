# SPDX-License-Identifier: MIT
"""Mode "calibrated" as it is tried here: with a table, by the preset of the subject's layout."""

from ascedfast import AscedConfig
from ascedfast.calibration.judge import RATE
from ascedfast.calibration.table import NullTable
from ascedfast.lab.subject import Subject
from ascedfast.presets import preset


def calibrated(subject: Subject, table: NullTable, rate: float = RATE) -> AscedConfig:
    """Raises: ValueError for a rate that the table cannot keep."""
    return preset("latent" if getattr(subject, "latent", False) else "pixel", "calibrated", table=table, rate=rate)
