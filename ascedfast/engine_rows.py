# SPDX-License-Identifier: MIT
"""The rows of a ``RowBatch`` in plain torch: an ``Engine``'s."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ascedfast.engine import Engine
from ascedfast.mixed_rows import work_dtype
from ascedfast.report import RowReport
from ascedfast.row_request import RowRequest


class EngineRows:
    """On checked arguments, see ``RowBatch``. Allocates as an ``Engine`` does."""

    def __init__(self) -> None:
        self._engine = Engine()
        self._requests: dict[int, RowRequest] = {}

    def __contains__(self, row: object) -> bool:
        return row in self._requests

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(self._requests)

    def request(self, row: int) -> RowRequest:
        return self._requests[row]

    def step_of(self, row: int) -> int:
        return self._engine.step_of(row)

    def add(self, request: RowRequest) -> int:
        row = self._engine.add(
            request.schedule,
            request.config,
            seed=request.seed,
            draw=request.draw,
            first=request.first,
            enabled=request.enabled,
            left_alone=request.left_alone,
            keep_mask=request.keep_mask,
        )
        self._requests[row] = request
        return row

    def observe(self, rows: Sequence[int], x: Tensor, m: Tensor, *, solve: bool) -> None:
        """One step of these rows; ``solve``: x becomes the next state."""
        pairs = [self._requests[row].updates[self.step_of(row)] for row in rows] if solve else ()
        self._engine.observe(x, m, rows)
        if solve:
            work, ones = work_dtype(x), (1,) * (x.dim() - 1)
            kept, added = (column.view(-1, *ones) for column in torch.tensor(pairs, dtype=torch.float32).unbind(1))
            x.copy_(kept.to(x.device, work) * x.to(work) + added.to(x.device, work) * m.to(work))

    def correct_(self, rows: Sequence[int], x: Tensor) -> tuple[int, ...]:
        due = tuple(row for row in rows if self._engine.is_due(row))
        if due:
            self._engine.correct_(x, rows)
        return due

    def report(self, row: int) -> RowReport:
        return self._engine.report_of(row)

    def discard(self, row: int) -> None:
        self._engine.remove(row)
        del self._requests[row]
