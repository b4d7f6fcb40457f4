# SPDX-License-Identifier: MIT
"""The rows of a ``RowBatch`` by Triton: each in a slot of buffers that are made once; one launch steps all of them.

The host knows how far each row is and what its plan says, the device knows it too (``kernels.row_step``): while the
same rows are stepped again, nothing is copied to the device and nothing is read back.
"""

import logging
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ascedfast._backend import BackendError
from ascedfast.device_guard import on_device_of
from ascedfast.noise import seed_to_int64
from ascedfast.protected import keep_by_row
from ascedfast.report import RowReport
from ascedfast.row_correction import CorrectedTogether, RowCorrections
from ascedfast.row_request import RowRequest
from ascedfast.rows import Row
from ascedfast.schedule import Plan
from ascedfast.upload import upload

logger = logging.getLogger("ascedfast")
NEVER = 2**31 - 1
UNPREPARED = "do a step like this one, of these rows, before a CUDA graph is captured of it"
TABLES = 64
"""Schedules whose tables stay on the device."""


@dataclass(slots=True, eq=False)
class Seat:
    """A row and its slot. opens, closes: the steps [opens, closes) are recorded. kind: what it has in common with rows
    that are corrected with it; None where it never is. detected: T_c has passed and its slot holds what was found."""

    slot: int
    row: Row
    request: RowRequest
    opens: int
    closes: int
    kind: CorrectedTogether | None
    detected: bool = False


class Stepped:
    """The rows that are stepped together, until others are named: counts their steps at once.

    ahead: steps executed since ``Row.step`` was written. left: of the one that ends first. due: steps, counted as ahead
    is, after which one of them stands at T_c.
    """

    def __init__(self, ids: Sequence[int], seats: list[Seat]) -> None:
        self.ids, self.seats, self.members, self.ahead = list(ids), seats, frozenset(ids), 0
        self.lasts = min((len(s.request.schedule) - s.row.first - s.row.step for s in seats), default=1)
        watched = (s.row for s in seats if s.row.enabled and s.row.plan.reason is None)
        self.due = {row.plan.t_c - row.step for row in watched}
        self.linear = all(s.request.updates is not None for s in seats)

    @property
    def left(self) -> int:
        return self.lasts - self.ahead


def _script_of(seat: Seat) -> bytes:
    """The int32 of ``kernels.row_step`` that tell the device of a row."""
    row = seat.row
    watched = row.enabled and row.plan.reason is None
    start = t_c = NEVER
    signal, levels = 0, (0.0, 0.0, 0.0)
    if watched:
        start, t_c = row.plan.start, row.plan.t_c
        signal = {"official": 1, "paper": 2}.get(row.config.mode, 0)
        levels = (*row.schedule.after[row.first + t_c - 1], row.x0_noise)
    largest = int(row.config.channels == "max")
    head = (0, 0, seat.opens, seat.closes, start, t_c, signal, largest)
    key = struct.pack("<q", seed_to_int64(row.seed))
    return struct.pack("<8i8si3f2i", *head, key, row.draw, *levels, 1, 1)


class DeviceRows:
    """On checked arguments, see ``RowBatch``. Args: as there; grid: the location axes of a row."""

    def __init__(
        self,
        max_rows: int,
        shape: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
        max_steps: int,
        max_maps: int,
        modes: tuple[str, ...],
    ) -> None:
        from ascedfast.kernels.row_step import SCRIPT, TABLE, RowStepper, Slots

        if dtype == torch.float64:
            raise BackendError("these rows run by Triton, in float32; float64 needs backend='reference'")
        channels, *grid = shape
        n, frames = math.prod(grid), max_maps + 1
        with torch.inference_mode(False):  # a tensor made inside could not be written outside

            def new(*sizes: int, of: torch.dtype = torch.float32) -> Tensor:
                return torch.empty(sizes, dtype=of, device=device)

            self._slots = Slots(
                x0=new(max_rows, channels, n),
                bank=new(max_rows, max_maps, n),
                grey=new(max_rows, frames if "official" in modes else 0, channels, n, of=torch.uint8),
                scores=new(max_rows, frames if "paper" in modes else 0, channels, n),
                script=new(max_rows, SCRIPT, of=torch.int32).zero_(),
                table=new(max_rows, max_steps, TABLE),
                index=new(max_rows, of=torch.int32).zero_(),
            )
            self._corrections = RowCorrections(self._slots, channels, tuple(grid), device)
        self._grid, self._device = tuple(grid), device
        self._step = RowStepper(self._slots, channels, self._grid)
        self._free = list(range(max_rows))[::-1]
        self._seats: dict[int, Seat] = {}
        self._tables: dict[tuple, Tensor] = {}
        self._next_id, self._warned = 0, False
        self._now = Stepped([], [])

    def __contains__(self, row: object) -> bool:
        return row in self._seats

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(self._seats)

    def request(self, row: int) -> RowRequest:
        return self._seats[row].request

    def step_of(self, row: int) -> int:
        return self._seats[row].row.step + (self._now.ahead if row in self._now.members else 0)

    def knows(self, rows: Sequence[int]) -> bool:
        """Whether these are the rows of the last call, in its order, all still there."""
        return self._now.ids == (rows if isinstance(rows, list) else list(rows))

    def left(self, rows: Sequence[int]) -> int:
        """Steps until the first of these rows ends."""
        return self._named(rows).left

    def are_linear(self, rows: Sequence[int]) -> bool:
        return self._named(rows).linear

    @property
    def finished(self) -> tuple[int, ...]:
        """Rows that have executed every step."""
        if self._now.left > 0 and len(self._now.ids) == len(self._seats):
            return ()
        seats = self._seats.items()
        return tuple(id for id, s in seats if self.step_of(id) == len(s.request.schedule) - s.row.first)

    def add(self, request: RowRequest) -> int:
        config, first = request.config, request.first
        if config.backend not in ("auto", "triton"):
            raise BackendError(f"the rows of this batch run by Triton: config.backend {config.backend!r} cannot be met")
        if self._device.type != "cuda" and config.backend == "auto":  # interpreted: no other kernel shares its memory
            config = replace(config, backend="triton")
        plan, executed = request.plan, len(request.schedule) - first
        if request.enabled and plan.reason is not None and request.left_alone is None and not self._warned:
            self._warned = True
            logger.warning("this run is left alone: %s", plan.reason)
        opens, closes = (plan.start, plan.t_c) if plan.reason is None else (0, 0)
        if config.record == "run":
            opens, closes = 0, executed
        if not request.enabled:
            opens = closes = 0
        (keep,) = keep_by_row(request.keep_mask, 1)
        keep = None if keep is None else keep.to(self._device, non_blocking=True)
        id, slot = self._next_id, self._free[-1]
        row = Row(id, request.schedule, request.config, request.seed, request.draw, first, plan, request.enabled, keep)
        seat = Seat(slot, row, request, opens, closes, self._corrections.kind(config, row))
        self._write(seat)
        self._free.pop()
        self._next_id += 1
        self._seats[id] = seat
        return id

    def _write(self, seat: Seat) -> None:
        """Put a row's script and table into its slot; the host does not wait."""
        table = self._table_of(seat.request)
        self._slots.table[seat.slot, : len(table)].copy_(table, non_blocking=True)
        script = torch.frombuffer(bytearray(_script_of(seat)), dtype=torch.int32)
        self._slots.script[seat.slot].copy_(script, non_blocking=True)

    def _table_of(self, request: RowRequest) -> Tensor:
        """float32 [steps, TABLE] on the device; kept for the runs to come of such a schedule."""
        from ascedfast.kernels.row_step import TABLE

        schedule, first, updates = request.schedule, request.first, request.updates
        key = (schedule, first, None if updates is None else tuple(map(tuple, updates)))
        table = self._tables.pop(key, None)
        if table is None:
            levels = schedule.before[first:]
            clip = math.inf if schedule.clip is None else schedule.clip
            pairs = updates or [(math.nan, math.nan)] * len(levels)
            rows = [(one.a, one.b, *pair, clip, one.alpha) for one, pair in zip(levels, pairs, strict=True)]
            table = torch.zeros(len(levels), TABLE)
            table[:, :6] = torch.tensor(rows, dtype=torch.float64)
            table = upload(table, self._device)
        self._tables[key] = table
        if len(self._tables) > TABLES:
            self._tables.pop(next(iter(self._tables)))
        return table

    def observe(self, rows: Sequence[int], x: Tensor, m: Tensor, *, solve: bool) -> None:
        """One step of these rows; ``solve``: x becomes the next state."""
        captures = x.is_cuda and torch.cuda.is_current_stream_capturing()
        if captures and not (self.knows(rows) and self._step.knows(x, m, solve)):
            raise RuntimeError(UNPREPARED)
        now = self._named(rows)
        with on_device_of(x):
            self._step(x, m, solve)
        if not captures:
            now.ahead += 1

    def replay(self, graph: Any, rows: Sequence[int]) -> None:
        now = self._named(rows)
        graph.replay()
        now.ahead += 1

    def warm_up(self, row: int, x: Tensor) -> None:
        """Compile for states like x, [1, *shape], which is written, by a row that no one steps."""
        seat = self._seats[row]
        for solve in (False, True):
            self._named([row])
            with on_device_of(x):
                self._step(x, x.clone(), solve)
        if seat.kind is not None:
            with on_device_of(x):
                seat.kind.warm_up(x)

    def correct_(self, rows: Sequence[int], x: Tensor) -> tuple[int, ...]:
        now = self._named(rows)
        if now.ahead not in now.due:
            return ()
        self._settle()
        due, there = [], []
        for place, seat in enumerate(now.seats):
            if not seat.detected and seat.row.due:
                due.append((place, seat))
                why = self._refusal(seat)
                if why is None:
                    there.append((place, seat))
                else:
                    seat.row.plan = Plan(0, 0, why)
        with on_device_of(x):
            self._corrections([(place, seat.slot, seat.row, seat.kind) for place, seat in there], x)
        for _, seat in there:  # last: a failure above leaves the rows as they were
            seat.detected = True
        return tuple(seat.row.id for _, seat in due)

    def _refusal(self, seat: Seat) -> str | None:
        row = seat.row
        return row.config.table.refusal(row.window_logsnr, self._grid) if row.config.mode == "calibrated" else None

    def report(self, row: int) -> RowReport:
        """Copies of what lies in the row's slot."""
        from ascedfast.kernels.row_step import FINITE, FINITE_AFTER

        self._settle()
        seat, slots = self._seats[row], self._slots
        held, step = seat.row, seat.row.step
        recorded = min(step, seat.closes) - seat.opens
        maps = slots.bank[seat.slot, : max(recorded - 1, 0)].clone().view(-1, *self._grid)
        held.dynamics = [(seat.opens + 1 + k, d) for k, d in enumerate(maps)]
        script = slots.script[seat.slot].view(torch.uint8).clone()
        before, after = (script[4 * word.value].view(torch.bool) for word in (FINITE, FINITE_AFTER))  # of 0 or 1
        if seat.detected:
            held.detection = self._corrections.found.of(seat.slot)
            held.finite_after = after if min(step, seat.closes) > held.plan.t_c else None
        else:
            before = before & after if seat.row.config.record == "run" else before
        held.finite = before if recorded > 0 else None
        return held.report()

    def discard(self, row: int) -> None:
        self._settle()
        self._free.append(self._seats.pop(row).slot)
        if row in self._now.members:
            self._now = Stepped([], [])

    def _named(self, rows: Sequence[int]) -> Stepped:
        """These rows as those that are stepped; their slots go to the device where others were stepped before."""
        if not self.knows(rows):
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(UNPREPARED)  # before the copy below, which a graph cannot hold
            self._settle()
            self._now = Stepped(rows, [self._seats[row] for row in rows])
            index = torch.tensor([seat.slot for seat in self._now.seats], dtype=torch.int32)
            self._slots.index[: len(index)].copy_(index, non_blocking=True)
        return self._now

    def _settle(self) -> None:
        """Write how far the rows are, and go on counting from there."""
        now = self._now
        for seat in now.seats:
            seat.row.step += now.ahead
        self._now = Stepped(now.ids, now.seats)
