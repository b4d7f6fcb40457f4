# SPDX-License-Identifier: MIT
"""Rows for servers: requests that join and leave one batch between its steps, in buffers made once.

    batch = RowBatch(64, (3, 64, 64), "cuda", schedule_of=schedule_of)
    row = batch.add(config, seed, steps)
    while True:
        m = model(x, t)                   # rows at other steps, of other settings
        batch.step_(rows, x, m)           # the solver's update and what changed since the last step, one launch
        batch.correct_(rows, x)           # in place, the rows that have just reached their T_c
    report = batch.remove(row)

Bits of a row are those of ``Engine`` for that request alone, whatever else is in the batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ascedfast import _backend
from ascedfast.config import MODES, AscedConfig, Mode
from ascedfast.device_rows import DeviceRows
from ascedfast.engine_rows import EngineRows
from ascedfast.linear_update import deterministic_updates
from ascedfast.lockstep import WITHOUT_GRADIENTS
from ascedfast.noise import seed_to_int64
from ascedfast.op_checks import check_writable, is_whole
from ascedfast.protected import check_keep, keep_by_row
from ascedfast.report import RowReport
from ascedfast.row_request import RowRequest
from ascedfast.schedule import Plan, Schedule, plan_run


class BatchFullError(ValueError):
    """Every row of the batch is taken: remove one first."""


class RowBatch:
    """At most ``max_rows`` requests of one shape, device and dtype. Not thread-safe: one loop, one thread, one stream.

    Args:
        max_rows: most rows at once. shape: (C, *grid) of one row. dtype: of the states.
        schedule_of: the schedule of a run of so many steps, for callers of ``add`` that give a number; called once a
            number.
        max_steps: longest run. max_maps: most changes that a row keeps: its window's predictions less one, or, with
            ``record="run"``, its steps less one.
        modes: of the rows to come; "official" and "paper" keep all channels, so that each costs as much memory as
            ``max_maps + 1`` states of the whole batch (of uint8 and of float32).
        backend: "auto", "triton" or "reference". Triton's rows live in buffers made here, and their steps allocate
            nothing; those of the reference are an ``Engine``'s.
    Raises: ValueError, TypeError, BackendError.
    """

    def __init__(
        self,
        max_rows: int,
        shape: Sequence[int],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        schedule_of: Callable[[int], Schedule] | None = None,
        max_steps: int = 1000,
        max_maps: int = 32,
        modes: Sequence[Mode] = ("fast", "calibrated"),
        backend: str = "auto",
    ) -> None:
        for name, value in (("max_rows", max_rows), ("max_steps", max_steps), ("max_maps", max_maps)):
            if not is_whole(value, 1):
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if len(shape) not in (3, 4) or not all(is_whole(size, 1) for size in shape):
            raise ValueError(f"shape must be (C, H, W) or (C, D, H, W), each at least 1, got {tuple(shape)}")
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a float dtype, got {dtype}")
        if not set(modes) <= set(MODES):
            raise ValueError(f"modes must be among {', '.join(MODES)}, got {', '.join(map(str, modes))}")
        if backend == "native":
            raise ValueError("backend must be 'auto', 'triton' or 'reference', got 'native'")
        self.max_rows, self.shape, self.dtype = max_rows, tuple(shape), dtype
        self.device = torch.empty(0, device=device).device  # "cuda" has no index, tensors on it do
        self.max_steps, self.max_maps, self.modes = max_steps, max_maps, tuple(modes)
        self._schedule_of, self._schedules = schedule_of, {}
        self._work = self._worker(backend)

    def _worker(self, backend: str) -> EngineRows | DeviceRows:
        if backend == "auto" and self.dtype == torch.float64:
            return EngineRows()  # Triton computes in float32
        if _backend.pick("step_dynamics", self.device, backend) != "triton":
            return EngineRows()
        sizes = (self.max_steps, self.max_maps, self.modes)
        return DeviceRows(self.max_rows, self.shape, self.device, self.dtype, *sizes)

    def add(
        self,
        config: AscedConfig | None,
        seed: int,
        steps: int | Schedule,
        *,
        draw: int = 0,
        first: int = 0,
        enabled: bool = True,
        left_alone: str | None = None,
        keep_mask: Tensor | None = None,
        updates: Sequence[tuple[float, float]] | None = None,
    ) -> int:
        """Add a row and return its id, which no other row of this batch will have.

        Args:
            config: None for the defaults. steps: of the whole schedule (see ``schedule_of``), or the schedule itself.
            seed, draw, first, enabled, left_alone, keep_mask: as for ``Engine.add``; keep_mask [1, 1, *grid].
            updates: (c0, c1) of each executed step, for ``step_``; default: the deterministic step to the next level.
        Raises: BatchFullError, ValueError, TypeError, BackendError; then nothing is added.
        """
        config = AscedConfig() if config is None else config
        if not isinstance(config, AscedConfig):
            raise TypeError(f"config must be an AscedConfig, got {type(config).__name__}")
        if config.mode not in self.modes:
            raise ValueError(
                f"a row of mode {config.mode!r} was added to a batch for {', '.join(self.modes)}: "
                f"make it with modes=(..., {config.mode!r})"
            )
        if not is_whole(draw, 0) or draw >= 1 << 16:
            raise ValueError(f"draw must be an int in 0..65535, got {draw!r}")
        seed_to_int64(seed)
        schedule = self._schedule(steps)
        if not is_whole(first, 0) or first >= len(schedule):
            raise ValueError(f"first must be an int in 0..{len(schedule) - 1}, got {first!r}")
        (keep,) = keep_by_row(keep_mask, 1)
        check_keep([keep], self.shape[1:])
        plan = Plan(0, 0, left_alone) if left_alone is not None else plan_run(schedule, config, first)
        executed = len(schedule) - first
        self._check_room(config, plan, enabled, executed)
        if updates is None:
            updates = deterministic_updates(schedule, first)
        else:
            updates = _pairs(updates)
            if len(updates) != executed:
                raise ValueError(f"{len(updates)} updates were given for {executed} executed steps: give one a step")
        if self.free == 0:
            raise BatchFullError(f"all {self.max_rows} rows are taken: remove one first")
        request = RowRequest(schedule, config, seed, draw, first, enabled, left_alone, keep_mask, plan, updates)
        return self._work.add(request)

    def _schedule(self, steps: int | Schedule) -> Schedule:
        if isinstance(steps, Schedule):
            schedule = steps
        elif not is_whole(steps, 1):
            raise ValueError(f"steps must be an int of at least 1 or an ascedfast.Schedule, got {steps!r}")
        elif self._schedule_of is None:
            raise ValueError("a number of steps needs schedule_of: give it to RowBatch, or a Schedule to add")
        elif steps > self.max_steps:
            raise ValueError(f"a run of {steps} steps in a batch for {self.max_steps}: raise max_steps")
        else:
            schedule = self._schedules.get(steps)
            if schedule is None:
                schedule = self._schedules[steps] = self._schedule_of(steps)
        if len(schedule) > self.max_steps:
            raise ValueError(f"a run of {len(schedule)} steps in a batch for {self.max_steps}: raise max_steps")
        return schedule

    def _check_room(self, config: AscedConfig, plan: Plan, enabled: bool, executed: int) -> None:
        maps = 0 if plan.reason is not None else plan.t_c - plan.start - 1
        if config.record == "run":
            maps = executed - 1
        if enabled and maps > self.max_maps:
            raise ValueError(f"a row that keeps {maps} changes in a batch for {self.max_maps}: raise max_maps")

    def observe(self, rows: Sequence[int], x: Tensor, m: Tensor) -> None:
        """Watch one solver step of some rows, once a step.

        Args: rows: ids in the order of x. x: [R, *shape], the state before the step. m: the (guided) model output that
            is stepped with, same shape, any float dtype but float64 (that for a float64 x).
        Raises: ValueError, TypeError; then no row has moved. x, m are not modified and not referred to later.
        """
        self._check_step(rows, x, m)
        if rows:
            with torch.no_grad():
                self._work.observe(rows, x, m, solve=False)

    def step_(self, rows: Sequence[int], x: Tensor, m: Tensor) -> Tensor:
        """``observe``, and the solver's update in place: x = c0*x + c1*m, in float32 (float64 for float64 x), each
        product and the sum rounded once and the result to x's dtype.

        Args, raises: as for ``observe``; ValueError too for a row without updates. Returns: x.
        """
        self._check_step(rows, x, m)
        self._check_written(x)
        if not self._work.are_linear(rows):
            row = next(row for row in rows if self._work.request(row).updates is None)
            raise ValueError(f"row {row} has no linear update (its schedule clips, or has no noise): give updates")
        if rows:
            with torch.no_grad():
                self._work.observe(rows, x, m, solve=True)
        return x

    def correct_(self, rows: Sequence[int], x: Tensor) -> tuple[int, ...]:
        """Re-noise, in place, the abnormal regions of the rows that have just reached T_c. Call it after every step.

        Args: rows: ids in the order of x. x: [R, *shape], the states that the solver's step has returned.
        Returns: the ids of the rows whose T_c this was: mostly none.
        Raises: ValueError, TypeError; then x and the rows are as they were. RuntimeError while a CUDA graph is
            captured: which rows are due is the host's to know.
        """
        self._check_rows(rows, x)
        self._check_written(x)
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("correct_ cannot be captured: replay the step, then call it (see RowBatch.replay)")
        if not rows:
            return ()
        with torch.no_grad():
            return self._work.correct_(rows, x)

    def replay(self, graph: Any, rows: Sequence[int]) -> None:
        """Do a step of these rows by a captured CUDA graph that holds one ``observe`` or ``step_`` of as many rows.

        What the graph reads of them lies on the device, so that they need not be the rows it was captured with. It must
        be captured after a step of as many rows, or ``warm_up``; ``correct_`` is not captured: call it next, as always.

        Args: graph: its ``replay`` is called. Raises: ValueError where a row has no step left; then nothing was done.
        """
        if not self._work.knows(rows):
            self._check_ids(rows)
        self._check_left(rows)
        self._work.replay(graph, rows)

    def warm_up(
        self, config: AscedConfig | None, steps: int | Schedule, *, first: int = 0, like: Tensor | None = None
    ) -> None:
        """Compile and put together what rows of these settings will launch, so that none of it falls into the loop.

        Needs a free row, for a moment. Rows move not. Args: config, steps, first: as for ``add``. like: states to come,
        [R, *shape], if they are not contiguous; not modified.
        """
        like = torch.empty((1, *self.shape), dtype=self.dtype, device=self.device) if like is None else like
        row = self.add(config, 0, steps, first=first)
        try:
            self._check_state("like", like, len(like))
            with torch.no_grad():
                self._work.warm_up(row, torch.zeros_like(like[:1]))
        finally:
            self._work.discard(row)

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, the others leave without a report. Raises: ValueError; then all are still there."""
        self._check_ids(rows)
        kept = set(rows)
        for row in self.rows:
            if row not in kept:
                self._work.discard(row)

    def remove(self, row: int) -> RowReport:
        """Take a row out and return its report, which owns its tensors; reads nothing back from the device."""
        report = self.report(row)
        self._work.discard(row)
        return report

    def report(self, row: int) -> RowReport:
        """What happened to a row so far; owns its tensors, reads nothing back from the device."""
        self._check_ids([row])
        return self._work.report(row)

    @property
    def rows(self) -> tuple[int, ...]:
        """Ids in the order they were added."""
        return self._work.rows

    @property
    def free(self) -> int:
        """How many rows can still be added."""
        return self.max_rows - len(self.rows)

    def step_of(self, row: int) -> int:
        """Steps executed by a row so far."""
        self._check_ids([row])
        return self._work.step_of(row)

    def steps_of(self, row: int) -> int:
        """Steps that a row executes in all."""
        self._check_ids([row])
        request = self._work.request(row)
        return len(request.schedule) - request.first

    @property
    def finished(self) -> tuple[int, ...]:
        """Rows that have executed every step of their schedules."""
        return self._work.finished

    def is_finished(self, row: int) -> bool:
        """Whether a row has executed every step of its schedule."""
        return self.step_of(row) == self.steps_of(row)

    def _check_ids(self, rows: Sequence[int]) -> None:
        for row in rows:
            if row not in self._work:
                raise ValueError(f"no row {row!r} (removed, or of another batch); the rows are {list(self.rows)}")
        if len(set(rows)) != len(rows):
            raise ValueError(f"a row stands twice in {list(rows)}")

    def _check_rows(self, rows: Sequence[int], x: Tensor) -> None:
        if not self._work.knows(rows):
            self._check_ids(rows)
        self._check_state("x", x, len(rows))
        if x.dtype != self.dtype:
            raise TypeError(f"x must be {self.dtype}, as this batch's states, got {x.dtype}")

    def _check_state(self, name: str, value: Tensor, rows: int) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if tuple(value.shape) != (rows, *self.shape):
            raise ValueError(f"{name} must be {(rows, *self.shape)} for these {rows} rows, got {tuple(value.shape)}")
        if value.device != self.device:
            raise ValueError(f"{name} is on {value.device}, the batch on {self.device}")

    def _check_step(self, rows: Sequence[int], x: Tensor, m: Tensor) -> None:
        self._check_rows(rows, x)
        self._check_state("m", m, len(rows))
        wide = torch.float64
        if not m.dtype.is_floating_point or (m.dtype == wide) != (x.dtype == wide):
            raise TypeError(f"m must be of a float dtype that goes with {x.dtype}, got {m.dtype}")
        self._check_left(rows)

    def _check_left(self, rows: Sequence[int]) -> None:
        if self._work.left(rows) <= 0:
            row = next(row for row in rows if self.is_finished(row))
            raise ValueError(f"row {row} has executed all its {self.steps_of(row)} steps: remove it")

    @staticmethod
    def _check_written(x: Tensor) -> None:
        if x.requires_grad:
            raise ValueError(WITHOUT_GRADIENTS)
        if x.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                "x was made in torch.inference_mode, outside of which it cannot be written: call this inside"
            )
        check_writable("x", x)


def _pairs(updates: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    try:
        return [(float(c0), float(c1)) for c0, c1 in updates]
    except (TypeError, ValueError):
        raise ValueError("updates are pairs of numbers (c0, c1), one an executed step: x = c0*x + c1*m") from None
