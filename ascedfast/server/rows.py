# SPDX-License-Identifier: MIT
"""The one place that knows which engine watches the rows."""

from collections.abc import Sequence

from torch import Tensor

from ascedfast.config import AscedConfig
from ascedfast.engine import Engine
from ascedfast.report import RowReport
from ascedfast.schedule import Schedule


class WatchedRows:
    """Rows that are watched and corrected, each with a schedule, settings and seed of its own."""

    def __init__(self) -> None:
        self._engine = Engine()

    def add(self, config: AscedConfig, seed: int, draw: int, schedule: Schedule) -> int:
        """A new row's id. Raises: ValueError for settings that do not fit the schedule; then nothing is added."""
        return self._engine.add(schedule, config, seed=seed, draw=draw)

    def observe(self, rows: Sequence[int], x: Tensor, m: Tensor) -> None:
        """Watch a step of rows whose states are x and outputs m [R, C, H, W]."""
        wanted = [i for i, row in enumerate(rows) if self._engine.wants_step([row])]
        self._engine.skip([row for i, row in enumerate(rows) if i not in set(wanted)])
        if wanted:
            parts = (x, m) if len(wanted) == len(rows) else (x[wanted], m[wanted])
            self._engine.observe(*parts, [rows[i] for i in wanted])

    def correct_(self, rows: Sequence[int], x: Tensor) -> None:
        """Correct, in place, those of the states x [R, C, H, W] whose rows have come to their T_c."""
        if self._engine.due:
            self._engine.correct_(x, rows)

    def remove(self, row: int) -> RowReport:
        """Take a row out; its report."""
        return self._engine.remove(row)
