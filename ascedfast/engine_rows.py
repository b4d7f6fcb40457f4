# SPDX-License-Identifier: MIT
"""The rows of a ``RowBatch`` in plain torch: an ``Engine``'s."""

from collections.abc import Sequence
from typing import Any

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

    def knows(self, rows: Sequence[int]) -> bool:
        """Whether these rows were named by the call before."""
        return False

    def left(self, rows: Sequence[int]) -> int:
        """Steps until the first of these rows ends."""
        return min((self._left(row) for row in rows), default=1)

    def are_linear(self, rows: Sequence[int]) -> bool:
        return all(self._requests[row].updates is not None for row in rows)

    @property
    def finished(self) -> tuple[int, ...]:
        """Rows that have executed every step."""
        return tuple(row for row in self._requests if self._left(row) == 0)

    def _left(self, row: int) -> int:
        request = self._requests[row]
        return len(request.schedule) - request.first - self.step_of(row)

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

    def replay(self, graph: Any, rows: Sequence[int]) -> None:
        raise RuntimeError("these rows run in plain torch: no step of theirs was captured")

    def warm_up(self, row: int, x: Tensor) -> None:
        """Nothing is compiled here."""

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
