# SPDX-License-Identifier: MIT
"""The engine: watches the rows of a batch step by step and corrects each once, at its own T_c.

Every row is a request with its own schedule, step, seed, settings and on/off; a pipeline is the case where all rows
agree. The engine knows tensors and schedules, no sampler:

    run = ascedfast.begin(schedule, config, seeds=[0, 1])
    for k, t in enumerate(timesteps):
        m = denoiser(x, t)
        run.observe(x, m)          # x0_hat = a*x + b*m, and what changed since the last step
        x = solver_step(m, t, x)
        run.correct_(x)            # in place, at T_c only
    run.report
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ascedfast import _backend
from ascedfast.config import AscedConfig
from ascedfast.dlpack import as_tensor
from ascedfast.lockstep import WITHOUT_GRADIENTS, Lockstep, LockstepPlan, WindowRefusedError, agree
from ascedfast.mixed_rows import (
    check_batch,
    coefficients_of,
    detect_rows,
    dynamics_of,
    groups_of,
    judged,
    previous_of,
    renoise_rows_,
    signal_of,
)
from ascedfast.noise import seed_to_int64
from ascedfast.protected import keep_by_row
from ascedfast.report import Report, RowReport
from ascedfast.rows import Row
from ascedfast.schedule import Plan, Schedule, plan_run

logger = logging.getLogger("ascedfast")

PlanMaker = Callable[[list[Row], Tensor, Tensor], LockstepPlan]
"""Makes what rows in lockstep have in common, from them and the first observed step's x and m [R, C, *grid]."""


def new_plan(rows: list[Row], x: Tensor, m: Tensor) -> LockstepPlan:
    return LockstepPlan(rows[0], len(rows), x, m, lambda t: t)


class Engine:
    """Rows of one shape [C, *grid] on one device. Not thread-safe: one engine a thread.

    Args: plan: a caller with many engines may keep the plans of equal runs; default: made anew. None: no lockstep, a
        cache may answer for steps (``skip``).
    """

    def __init__(self, plan: PlanMaker | None = new_plan) -> None:
        self._make_plan = plan
        self._rows: dict[int, Row] = {}
        self._next_id = 0
        self._tables: dict[tuple[int, torch.device], Tensor] = {}
        self._last: tuple[tuple[int, ...], Tensor | None] = ((), None)
        self._lockstep: Lockstep | None = None
        self._warned = False

    def add(
        self,
        schedule: Schedule,
        config: AscedConfig | None = None,
        *,
        seed: int,
        draw: int = 0,
        first: int = 0,
        enabled: bool = True,
        left_alone: str | None = None,
        keep_mask: Tensor | None = None,
    ) -> int:
        """Add a row and return its id.

        Args:
            seed: the request's 64-bit seed. draw: tells rows of one seed apart (images of one request).
            first: index in the schedule of the first step that will be executed.
            enabled: False leaves the row alone. left_alone: does so too, for this reason, which the report
                gives; to warn of it is the caller's.
            keep_mask: bool [1, 1, *grid] (of many rows [R, 1, *grid]; axes of 1 fit any): True where nothing is an
                artifact and nothing is re-noised. Statistics see these locations. Referred to, not modified.
        Raises: TypeError, ValueError or BackendError for bad settings; then nothing is added.
        """
        config = AscedConfig() if config is None else config
        options = {"first": first, "enabled": enabled, "left_alone": left_alone, "keep_mask": keep_mask}
        return self.add_all(schedule, config, [(seed, draw)], **options)[0]

    def add_all(
        self,
        schedule: Schedule,
        config: AscedConfig,
        seeds: Sequence[tuple[int, int]],
        *,
        first: int = 0,
        enabled: bool = True,
        left_alone: str | None = None,
        keep_mask: Tensor | None = None,
    ) -> list[int]:
        """``add`` a row for each (seed, draw), all or none; their ids. Args, raises: as there."""
        if not seeds:
            return []
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be an ascedfast.Schedule (see from_levels), got {type(schedule).__name__}")
        if not isinstance(config, AscedConfig):
            raise TypeError(f"config must be an AscedConfig, got {type(config).__name__}")
        if not 0 <= first < len(schedule):
            raise ValueError(f"first must lie in 0..{len(schedule) - 1}, got {first}")
        for seed, draw in seeds:
            if not 0 <= draw < 1 << 16:
                raise ValueError(f"draw must lie in 0..65535, got {draw}")
            seed_to_int64(seed)
        keeps = keep_by_row(keep_mask, len(seeds))
        _backend.check_all(config.backend)
        self.end_lockstep()
        plan = plan_run(schedule, config, first) if left_alone is None else Plan(0, 0, left_alone)
        if enabled and left_alone is None and plan.reason is not None and not self._warned:
            self._warned = True
            logger.warning("this run is left alone: %s", plan.reason)
        ids = list(range(self._next_id, self._next_id + len(seeds)))
        for id, (seed, draw), keep in zip(ids, seeds, keeps, strict=True):
            self._rows[id] = Row(id, schedule, config, seed, draw, first, plan, enabled, keep, self._make_plan is None)
        self._next_id += len(seeds)
        return ids

    def remove(self, row: int) -> RowReport:
        """Take a row out and return its report."""
        self.end_lockstep()
        report = self.report_of(row)
        del self._rows[row]
        if row in self._last[0]:
            self._last = ((), None)
        # A table is found by its schedule's id, which is another's once the schedule is gone.
        alive = {id(other.schedule) for other in self._rows.values()}
        self._tables = {key: table for key, table in self._tables.items() if key[0] in alive}
        return report

    def report_of(self, row: int) -> RowReport:
        """A row's report so far, in memory of its own."""
        found = self._row(row)
        found.detach()
        return found.report()

    def set_enabled(self, row: int, enabled: bool) -> None:
        """Switch a row on or off. What was banked before stays; a gap in the window leaves the row alone."""
        self.end_lockstep()
        self._row(row).enabled = enabled

    def leave_alone(self, reason: str) -> bool:
        """Judge no row that was to be judged still: the report gives the reason. Whether there was one."""
        self._settle()
        coming = [row for row in self._rows.values() if row.plan.reason is None and row.detection is None]
        for row in coming:
            row.plan = Plan(0, 0, reason)
        return bool(coming)

    @property
    def rows(self) -> tuple[int, ...]:
        """Ids in the order they were added."""
        return tuple(self._rows)

    def step_of(self, row: int) -> int:
        """Steps executed by a row so far."""
        return self._row(row).step

    def schedule_of(self, row: int) -> tuple[Schedule, int]:
        """A row's schedule, and the index in it of the first executed step."""
        return self._row(row).schedule, self._row(row).first

    def wants_step(self, rows: Sequence[int] | None = None) -> bool:
        """Whether any of the rows needs ``observe`` for its coming step; otherwise ``skip`` is enough."""
        if rows is None and self._lockstep is not None:
            return self._lockstep.wanted
        return any(row.wanted for row in self._select(rows))

    def is_due(self, row: int) -> bool:
        """Whether a row has reached T_c, and ``correct_`` has not been called since."""
        return self._row(row).due

    @property
    def due(self) -> bool:
        """Whether ``correct_`` has anything to do for any row."""
        if self._lockstep is not None:
            return self._lockstep.due
        return any(row.due for row in self._rows.values())

    @property
    def is_done(self) -> bool:
        """Whether every row that is watched at all has had its T_c."""
        self._settle()
        watched = [row for row in self._rows.values() if row.enabled and row.plan.reason is None]
        return bool(watched) and all(row.detection is not None for row in watched)

    def skip(self, rows: Sequence[int] | None = None, *, repeated: bool = False) -> None:
        """Count a step that nobody watches; ``repeated``: a cache answered (ValueError if ``begin`` was not told)."""
        if repeated and self._make_plan is not None:
            raise ValueError("a cache answers for steps: say so at the start, by begin(..., caches=True)")
        if rows is None and self._lockstep is not None and not repeated:
            self._lockstep.skip()
            return
        self.end_lockstep()
        for row in self._select(rows):
            row.pass_by(repeated)

    def observe(
        self, x: Tensor, m: Tensor | None = None, rows: Sequence[int] | None = None, *, x0: Tensor | None = None
    ) -> Tensor:
        """Watch one solver step of some rows: call it with the state the model saw, once a step.

        Args:
            x: [R, C, *grid], the state before the step, a tensor or an array that speaks DLPack; m: the (guided) model
                output that is stepped with, same shape.
            rows: the R ids in the order of the batch; default: all, in the order they were added.
            x0: the sampler's own x0_hat where it is not a*x + b*m (dynamic thresholding); replaces m.
        Returns: x0_hat, [R, C, *grid], fp32 (fp64 for fp64 x), owned by the engine until the next step: do not write
            into it. x, m are not modified and not referred to later.
        Raises: ValueError, TypeError; then no row has moved.
        """
        x = as_tensor(x)
        m = None if m is None else as_tensor(m, "the model output")
        x0 = None if x0 is None else as_tensor(x0, "x0")
        if rows is None and x0 is None and m is not None:
            lockstep = self._lockstep or self._together(x, m)
            if lockstep is not None and lockstep.fits(x, m):
                return lockstep.observe(x, m)
        with torch.no_grad():
            return self._observe_rows(x, m, rows, x0)

    def _observe_rows(self, x: Tensor, m: Tensor | None, rows: Sequence[int] | None, x0: Tensor | None) -> Tensor:
        self.end_lockstep()
        batch = self._select(rows)
        if (m is None) == (x0 is None):
            raise TypeError("observe takes either the model output m or x0")
        check_batch(x, batch)
        given = m if x0 is None else x0
        if given.shape != x.shape:
            raise ValueError(f"the model output must have x's shape {tuple(x.shape)}, got {tuple(given.shape)}")
        if any(row.first + row.step >= len(row.schedule) for row in batch):
            raise ValueError("a row has executed every step of its schedule; begin a new run")
        previous = previous_of(batch, x, self._last)
        a, b = coefficients_of(batch, self._tables, x.device)
        if x0 is not None:
            a, b, m = torch.zeros_like(a), torch.ones_like(b), x0
        new, d = dynamics_of(batch, x, m, a, b, previous)
        finite = new.isfinite().flatten(1).all(1)
        kept = {mode: signal_of(mode, batch, x, m, new) for mode in {row.config.mode for row in batch if row.watched}}
        for i, row in enumerate(batch):
            first_seen = d is None or row.x0 is None  # d of a row without a previous prediction says nothing
            signal = kept.get(row.config.mode)
            row.take(new[i], None if first_seen else d[i], None if signal is None else signal[i], finite[i])
        self._last = (tuple(row.id for row in batch), new)
        return new

    def correct_(self, x: Tensor, rows: Sequence[int] | None = None) -> Tensor | None:
        """Re-noise, in place, the abnormal regions of the rows that have just reached T_c.

        Args:
            x: [R, C, *grid], the state that the solver step has just returned; modified inside the mask only.
            rows: as for ``observe``.
        Returns: the corrected locations, bool [R, 1, *grid], or None when no row was due (or all only observe).
        Raises: ValueError, TypeError; then x and the rows are as they were. Gradients cannot pass a correction in
            place: an x that requires them is refused.
        """
        x = as_tensor(x, write=True)
        lockstep = self._lockstep if rows is None else None
        if lockstep is not None and not lockstep.due:
            return None
        with torch.no_grad():
            return self._correct_rows_(x, rows) if lockstep is None else lockstep.correct_(x)

    def _correct_rows_(self, x: Tensor, rows: Sequence[int] | None) -> Tensor | None:
        self.end_lockstep()
        batch = self._select(rows)
        check_batch(x, batch)
        if x.requires_grad and any(row.due and row.config.correct for row in batch):
            raise ValueError(WITHOUT_GRADIENTS)
        due = judged(batch, x.shape[2:])
        found = [pair for group in groups_of(due) for pair in detect_rows(group)]
        masks = {row.id: detection.grown for row, detection in found if row.config.correct}
        mask = renoise_rows_(x, batch, masks) if masks else None
        for row, detection in found:  # last: a failure above leaves the rows as they were
            row.detection = detection
            row.bank.clear()
        return mask

    @property
    def report(self) -> Report:
        """What happened to every row so far. Reads nothing back from the device until it is asked for values."""
        self._settle()
        return Report([row.report() for row in self._rows.values()])

    def lockstep(self, x: Tensor, make: Callable[[list[Row]], LockstepPlan | None]) -> Lockstep | None:
        """Run all rows as one from the coming step on, with the plan that ``make`` gives. None where they cannot, or
        it gives none. While it lasts, a call that names, adds or removes rows ends it; they go on one by one."""
        rows = list(self._rows.values())
        if not agree(rows) or x.dtype == torch.float64:
            return None
        if _backend.pick("step_dynamics", x.device, rows[0].config.backend) != "triton":
            return None
        try:
            plan = make(rows)
        except WindowRefusedError:  # at T_c each row says why it is left alone
            return None
        self._lockstep = None if plan is None else plan.begin(rows, x)
        return self._lockstep

    @torch.no_grad()
    def warm_up(self, x: Tensor, m: Tensor) -> None:
        """Allocate and compile everything that the coming run will use, before a CUDA graph is captured of it.

        Args: x, m: like the states and model outputs of the run (shape, strides, type, device); not modified.
        Raises: ValueError where the rows cannot run as one (they differ, or no kernel serves them).
        """
        lockstep = self._lockstep or self._together(x, m)
        if lockstep is None:
            raise ValueError("these rows differ, or no Triton kernel serves them: their loop cannot be captured")
        lockstep.warm_up(x, m)

    def reseed(self, seeds: Sequence[int]) -> None:
        """New seeds, one a row in the order they were added; a captured graph takes them at its next replay."""
        if len(seeds) != len(self._rows):
            raise ValueError(f"{len(seeds)} seeds were given for {len(self._rows)} rows: give one a row")
        for seed in seeds:
            seed_to_int64(seed)
        for row, seed in zip(self._rows.values(), seeds, strict=True):
            row.seed = seed
        if self._lockstep is not None:
            self._lockstep.reseed()

    def end_lockstep(self) -> None:
        """The rows go on one by one."""
        if self._lockstep is not None:
            self._lockstep.settle()
            self._lockstep = None

    def _together(self, x: Tensor, m: Tensor) -> Lockstep | None:
        rows = list(self._rows.values())
        if not agree(rows):
            return None
        check_batch(x, rows)
        if m.shape != x.shape or not m.is_floating_point() or m.dtype == torch.float64:
            return None
        return self.lockstep(x, lambda rows: self._make_plan(rows, x, m))

    def _settle(self) -> None:
        if self._lockstep is not None:
            self._lockstep.settle()

    def _row(self, row: int) -> Row:
        self._settle()
        if row not in self._rows:
            raise ValueError(f"no row {row}; the rows are {list(self._rows)}")
        return self._rows[row]

    def _select(self, rows: Sequence[int] | None) -> list[Row]:
        self._settle()
        if rows is None:
            return list(self._rows.values())
        if len(set(rows)) != len(rows):
            raise ValueError(f"a row stands twice in {list(rows)}")
        return [self._row(row) for row in rows]
