# SPDX-License-Identifier: MIT
"""The table that comes with the package, for a first look before ``ascedfast calibrate``."""

import functools
from pathlib import Path

from ascedfast.calibration.table import NullTable

FILE = Path(__file__).parent.parent / "assets" / "null_table.json"


@functools.cache
def packaged_table() -> NullTable:
    """Of sound runs of two small models, pixels of 32 and 64 px, on grids of any size.

    Other models move otherwise, so its rates are a guess (``docs/calibration.md`` gives what was measured): a table of
    the pipeline's own keeps them. Raises: OSError, ValueError where the installation is damaged."""
    return NullTable.load(FILE)
