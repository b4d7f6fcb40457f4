# SPDX-License-Identifier: MIT
"""What is known of a row of a ``RowBatch`` when it is added."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ascedfast.config import AscedConfig
from ascedfast.schedule import Plan, Schedule


@dataclass(frozen=True, eq=False)
class RowRequest:
    """Checked arguments of ``RowBatch.add``, and the plan. keep_mask: bool [1, 1, *grid]. updates: (c0, c1) of each
    executed step, None where the step to the next level is not linear."""

    schedule: Schedule
    config: AscedConfig
    seed: int
    draw: int
    first: int
    enabled: bool
    left_alone: str | None
    keep_mask: Tensor | None
    plan: Plan
    updates: Sequence[tuple[float, float]] | None
