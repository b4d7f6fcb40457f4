# SPDX-License-Identifier: MIT
"""One scheduler's ASCED state: binds each ``step`` call to the engine and repairs the solver's history."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ascedfast.adapters import layout, parity
from ascedfast.adapters.arguments import on_accelerator, parameters
from ascedfast.adapters.caches import LATE, CacheWatch
from ascedfast.adapters.fused import FusedSteps, LinearSteps, fused_steps
from ascedfast.adapters.history import fill_argument, fill_history
from ascedfast.adapters.host_copy import HostCopy, on_host
from ascedfast.adapters.known_runs import Kind, KnownRuns
from ascedfast.adapters.own_x0 import own_x0, prediction_of
from ascedfast.adapters.per_token import ROUNDED, TOKENS, off_level, rounded
from ascedfast.adapters.row_seeds import row_seeds, stand_twice
from ascedfast.adapters.schedules import begins_within_a_step, why_left_alone
from ascedfast.adapters.step_index import index_of
from ascedfast.adapters.targets import strays
from ascedfast.adapters.told import COPIED, LATE_ENABLED, NESTED, SHARED, SWAPPED, TURNS, Told
from ascedfast.config import AscedConfig
from ascedfast.engine import Engine
from ascedfast.lockstep import WARM_UP, LockstepPlan
from ascedfast.protected import check_keep, joined, keep_by_row
from ascedfast.report import Report
from ascedfast.rows import Row
from ascedfast.schedule import Schedule

OnX0 = Callable[[int, Any, Tensor], None]
NAMED = ("model_output", "timestep", "sample")


class SchedulerRun:
    """State of an enabled scheduler; lives in its ``__dict__`` and is replaced by a fresh one in copies."""

    def __init__(
        self,
        config: AscedConfig,
        seeds: Sequence[int] | int | None = None,
        grid: tuple[int, ...] | None = None,
        on_x0: OnX0 | None = None,
        within_pipeline: bool = False,
        *,
        axes: str | None = None,
        keep_mask: Tensor | None = None,
        told: Told | None = None,
    ) -> None:
        self.config = config
        self.seeds = seeds
        self.grid = grid
        self.axes = axes
        self.keep_mask = keep_mask
        self.on_x0 = on_x0
        self.within_pipeline = within_pipeline
        self.caches: CacheWatch | None = None
        self._told, self._begun_within = Told() if told is None else told, told is not None
        self._x0: Tensor | None = None
        self.sample: Tensor | None = None
        self._host: HostCopy | None = None
        self._kind: Kind | None = None
        self._known = KnownRuns()
        self._engine: Engine | None = None
        self._reset()
        self.leave_pipeline()

    def _reset(self) -> None:
        self._shape: torch.Size | None = None
        self._index = -1
        self._edited: Tensor | None = None
        self._fused: FusedSteps | None = None

    def __deepcopy__(self, memo: dict) -> "SchedulerRun":
        """Itself: somebody copies the scheduler's ``__dict__``, to put it back later. A copy of the scheduler has the
        ``fresh`` one."""
        if self._in_call or self._shape is not None:
            self._mixed = SWAPPED
        return self

    def fresh(self) -> "SchedulerRun":
        """The same settings without a run: what a copy of the scheduler starts with. The callback stays behind, since
        it belongs to the original's caller."""
        within = self.within_pipeline
        told = self._told if within and self.context is not None else None
        options = {"axes": self.axes, "keep_mask": self.keep_mask, "told": told}
        return SchedulerRun(self.config, self.seeds, self.grid, within_pipeline=within, **options)

    def enter_pipeline(self, context: layout.PipelineContext) -> bool:
        """A call of a pipeline begins; False where one is under way already: then both are left alone."""
        if self._in_call:
            self._interrupt()
            return False
        self.context, self._in_call, self._shape = context, True, None
        return True

    def leave_pipeline(self) -> None:
        """No call of a pipeline is under way: what it told is forgotten."""
        self.context = None if self.within_pipeline else layout.PipelineContext()
        self._in_call = self.interrupted = self._passes = False
        self._mixed: str | None = None
        if self.caches is not None:
            self.caches.full, self.caches = False, None

    def _interrupt(self) -> None:
        """Another pipeline steps the scheduler within the call under way."""
        self._told.warn(NESTED)
        self._leave_alone(NESTED)
        self.context, self.interrupted = None, True

    def _leave_alone(self, reason: str) -> bool:
        """Whether the run under way was still to be judged; it is not any more."""
        if self._shape is None or not self._engine.leave_alone(reason):
            return False
        if self._fused is None:
            self._engine.end_lockstep()
        else:
            self._fused.leave_alone()
        return True

    @property
    def report(self) -> Report:
        """The last run's report."""
        rows = [] if self._engine is None else self._engine.report.rows
        return Report(rows, None if self._engine is None else self._layout.image_size)

    @property
    def schedule(self) -> Schedule | None:
        """Of the last run."""
        return None if self._kind is None else self._kind.schedule

    def new_timesteps(self, scheduler: Any, stock: Callable, args: tuple, kwargs: dict) -> None:
        """``set_timesteps`` was called: the next step begins a run. The last report stays until then."""
        if self._in_call and self._leave_alone(NESTED):  # a run is cut off before its T_c
            self._interrupt()
        self._reset()
        self._mixed, self._passes = None, False
        self._host = HostCopy(scheduler, stock, args, kwargs)

    def step(self, scheduler: Any, stock: Callable, args: tuple, kwargs: dict) -> Any:
        """Run the step, watch it, and correct what it returns when T_c has come."""
        if self.context is not None and self.context.rehearses and kwargs.get("pred_original_sample") is None:
            return stock(scheduler, *args, **kwargs)  # only to learn its prediction, then the pipeline rewinds
        if self._mixed is SWAPPED and not self._passes and self._leave_alone(SWAPPED):
            self._told.warn(f"this run is left alone: {SWAPPED}")
            self._passes = not isinstance(self._fused, LinearSteps)  # which cannot go on by the stock's steps
        if self._passes:
            return stock(scheduler, *args, **kwargs)
        self._repeats = self.caches is not None and self.caches.skipped()
        if self.caches is not None and self.caches.began_late() and self._leave_alone(LATE):
            self._told.warn(f"this run is left alone: {LATE}")
        fused = self._fused
        if fused is not None and len(args) == 3 and self.context is not None:
            out = fused.step(scheduler, *args, kwargs)
            if out is not None:
                return out
        if self._coasts(scheduler, args, kwargs):
            out = stock(scheduler, *args, **kwargs)
            self._index += 1
            if self._kind.step_at(self._index) is not None:
                self._engine.skip()
            return out
        call = dict(zip(parameters(stock), args, strict=False)) | kwargs
        if not {"model_output", "timestep", "sample"} <= call.keys():
            return stock(scheduler, *args, **kwargs)  # raises the stock's own error
        if self.context is None:
            why = COPIED if self._begun_within else LATE_ENABLED if self._host is None else SHARED
            self._told.warn(NESTED if self.interrupted else why)
            return stock(scheduler, *args, **kwargs)
        m, timestep, x = call["model_output"], call["timestep"], call["sample"]
        if self._shape is None and x.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(WARM_UP)
        try:
            due = None if self._shape is None else (self._kind, self._last_index + 1)
            index, kind = index_of(scheduler, timestep, due, self._known, self._host)
        except IndexError:  # not a timestep of this run
            return stock(scheduler, *args, **kwargs)  # raises the stock's own error
        if kind is None and self._shape is not None and index >= len(self._kind.timesteps):
            return stock(scheduler, *args, **kwargs)  # LTX's returns what it is given there, others raise
        if self._is_cut(index, x):
            self._index, self._fused, self._edited = index, None, None
            self._engine.skip()
            return stock(scheduler, *args, **kwargs)
        if self._shape != x.shape or index != self._last_index + 1:
            self._kind = self._known.kind(scheduler, self._host) if kind is None else kind
            if self._shape == x.shape and index <= self._last_index and self._leave_alone(TURNS):
                self._mixed = TURNS
            self._begin(scheduler, index, x, call)
            self._passes = self._mixed is SWAPPED
            if self._passes:
                return stock(scheduler, *args, **kwargs)
            self._fuse(scheduler, index, m, x)
        if self._fused is not None:
            out = self._fused.step(scheduler, m, timestep, x, {k: v for k, v in call.items() if k not in NAMED})
            if out is not None:
                return out
            # The stock's steps from here on.
            if isinstance(self._fused, LinearSteps) or self._fused.t_c is None:
                self._engine.end_lockstep()  # linear steps, not begun yet, observe nothing
            self._x0, self._edited, self._index, self._fused = self.x0, self._fused.edited, self._last_index, None
        stray = strays(self._kind, index, call)
        if stray is not None and self._engine.wants_step():
            self._told.warn(f"this run is left alone: {stray}")
            for row in self._engine.rows:
                self._engine.set_enabled(row, False)
        if self._edited is not None:
            call, args, kwargs = self._repaired(scheduler, index, call, args, kwargs)
            self._edited = None
        out = stock(scheduler, *args, **kwargs)
        self._index = index
        self._watch(scheduler, call, out)
        # One read of the device a run.
        if self._rounded is not None and self._engine.due and bool(self._rounded) and self._leave_alone(ROUNDED):
            self._told.warn(f"this run is left alone: {ROUNDED}")
        if self._engine.due and self._kind.may_edit_before(index + 1):
            previous = out[0] if isinstance(out, tuple) else out.prev_sample
            self._edited = self._engine.correct_(self._layout.view(previous))
            if self._cached:
                self.caches.settle(self._edited, self._engine.report, self._told.warn)
            if not self.on_x0 and self.config.record == "window":
                self._x0 = None  # nothing is watched any more
        return out

    def _is_cut(self, index: int, x: Tensor) -> bool:
        """Frames were dropped, or the sample was enlarged, after T_c: nothing is left to do, and the report stays."""
        if self._shape in (None, x.shape) or index != self._last_index + 1 or isinstance(self._fused, LinearSteps):
            return False
        return self._engine.is_done

    def _repaired(
        self, scheduler: Any, index: int, call: dict[str, Any], args: tuple, kwargs: dict
    ) -> tuple[dict[str, Any], tuple, dict]:
        """Make what is remembered fit the corrected state; the arguments of the coming step, by name and as given."""
        mask, repair = self._layout.latents(self._edited), self._kind.facts.repair
        if repair == "argument":
            call = fill_argument(call, self._kind.schedule.before[self._kind.step_at(index)], mask)
            return call, (), call
        if repair:
            m, x = call["model_output"], call["sample"]
            fill_history(scheduler, self._on_host(scheduler), index, m, x, mask)
        return call, args, kwargs

    def _coasts(self, scheduler: Any, args: tuple, kwargs: dict) -> bool:
        """The stock's step, called the usual way, is the next one of a run under way, and nobody watches it."""
        if self._shape is None or self._fused is not None or self._edited is not None or self.on_x0:
            return False
        if self.context is None or self.context.rehearses or len(args) != 3 or TOKENS in kwargs:
            return False
        _, timestep, x = args
        if not isinstance(x, Tensor) or x.shape != self._shape or self._engine.wants_step() or self._engine.due:
            return False
        following = self._index + 1
        if self._counted_by_timestep:
            return on_accelerator(timestep) and following < len(self._kind.timesteps)
        return scheduler.__dict__.get("_step_index") == following

    @property
    def _cached(self) -> bool:
        """A cache may answer for steps."""
        return self.caches is not None and self.caches.serves

    def _fuse(self, scheduler: Any, index: int, m: Any, x: Tensor) -> None:
        """Let the run's steps be done by one launch each, where that gives the stock's bits or was asked for."""
        has_form = self._kind.base in parity.BUILDERS or self.config.form == "linear"
        if has_form and not self._cached and not (self.on_x0 or self._by_token) and isinstance(m, Tensor):
            host, view = self._on_host(scheduler), self._layout.view
            self._fused = fused_steps(scheduler, host, self._kind, self._known, self._engine, index, x, m, view)
        if self._fused is None and self.config.form == "linear":
            self._told.warn(
                "form='linear' cannot serve this run (it needs a GPU, a deterministic solver without thresholding, "
                "mode 'fast' or 'calibrated', no on_x0, no per_token_timesteps, no cache that skips steps): the stock "
                "step runs and is watched"
            )
        held = scheduler.__dict__  # not getattr: a scheduler looks in its configuration for what it lacks
        if self._fused is not None and held.get("_step_index", 0) is None:
            held["_step_index"] = index  # as the stock step would set it

    def warm_up(self, scheduler: Any, x: Tensor, m: Tensor) -> None:
        """Begin the run that ``set_timesteps`` has set up, compile and check all that it needs, and rewind."""
        index = scheduler.begin_index if getattr(scheduler, "begin_index", None) is not None else 0
        if self.context is None:
            self.context = layout.PipelineContext()
        self._kind = self._known.kind(scheduler, self._host)
        self._begin(scheduler, index, x, {})
        self._index = index - 1
        self._fuse(scheduler, index, m, x)
        if self._fused is not None:
            self._fused.warm_up(scheduler, x, m)
            return
        view = self._layout.view
        self._engine.warm_up(view(x), view(m))

    def reseed(self, seeds: Sequence[int]) -> None:
        """New seeds for the rows of the run."""
        if self._engine is None:
            raise ValueError("no run has begun; give the seeds to enable_asced")
        self._engine.reseed(seeds)

    @property
    def _last_index(self) -> int:
        """In the schedule, of the step done last; -1 before the first."""
        return self._index if self._fused is None else self._fused.index

    @property
    def x0(self) -> Tensor | None:
        """The last watched prediction in the latents' layout."""
        if self._fused is not None and self._fused.lockstep.has_x0:
            return self._layout.latents(self._fused.lockstep.x0)
        return self._x0

    def _begin(self, scheduler: Any, index: int, x: Tensor, call: dict[str, Any]) -> None:
        """Add one row a sample to a new engine. call: the arguments of the run's first step by name, where known."""
        kind, reason = self._kind, why_left_alone(scheduler, index) or self._mixed
        try:
            seen = layout.layout_of(x, self.context, self.grid, self.axes)
        except layout.UnknownLayoutError as error:
            seen, reason = layout.opaque(x), reason or str(error)
        # A line holds no square.
        config = replace(self.config, core_width=1) if seen.line else self.config
        engine = Engine(None if self._cached else self._observing_plan)
        reason = reason or (self.caches and self.caches.untold)
        generator = self.context.generator if call.get("generator") is None else call["generator"]
        seeds = row_seeds(seen.view(x), self.seeds, generator)
        keep = None if reason is not None else self._keep_mask_of(seen.view(x))
        by_token = call.get(TOKENS) is not None
        if by_token and reason is None:
            keep = joined(keep, off_level(call, seen.view))
        first = kind.step_from(index)
        engine.add_all(kind.schedule, config, seeds, first=first, left_alone=reason, keep_mask=keep)
        self._reset()
        self._layout, self._engine, self._shape, self._x0 = seen, engine, x.shape, None
        self._by_token, self._rounded = by_token, None
        self._tells = not begins_within_a_step(scheduler, index)
        self._counted_by_timestep = kind.facts.counts == "timestep"
        if reason is not None:
            self._told.warn(f"this run is left alone: {reason}")
        if kind.nan is not None:
            self._told.warn(kind.nan)

    def _keep_mask_of(self, seen: Tensor) -> Tensor | None:
        """Of rows [R, C, *grid]. Raises: ValueError."""
        keep = self.keep_mask
        if keep is not None and len(keep) > 1 and stand_twice(seen, len(keep)):
            keep = torch.cat([keep, keep])
        check_keep(keep_by_row(keep, len(seen)), seen.shape[2:])
        return keep

    def _observing_plan(self, rows: list[Row], x: Tensor, m: Tensor) -> LockstepPlan:
        """Of steps that are watched beside the stock's; kept for the next run of the kind."""
        row = rows[0]
        return self._known.plan(
            "observed",
            self._kind,
            row.first,
            x,
            m,
            tuple(x.shape),
            lambda: LockstepPlan(row, len(rows), x, m, _as_is),
        )

    def _on_host(self, scheduler: Any) -> Callable[[], SchedulerMixin]:
        """Makes what ``host_copy`` describes."""
        return functools.partial(on_host if self._host is None else self._host.of, scheduler)

    def _watch(self, scheduler: Any, call: dict[str, Any], out: Any) -> None:
        step = self._kind.step_at(self._index)
        if step is None:
            return  # an evaluation within a step, or one that will be done over
        if not self._tells or not (self.on_x0 or self._engine.wants_step()):
            self._engine.skip()
            return
        if self._by_token and call.get(TOKENS) is not None:
            now = rounded(call, self._kind.timesteps[self._index])
            self._rounded = now if self._rounded is None else self._rounded if now is None else self._rounded | now
        x, view, level = call["sample"], self._layout.view, self._kind.schedule.before[step]
        own = own_x0(scheduler, self._kind.base, call, out, level)
        if self._repeats:
            self._engine.skip(repeated=True)
            m = prediction_of(call["model_output"], x) if own is None else None
            x0 = view(self._kind.schedule.x0_hat(step, x.float(), m.float()) if own is None else own.float())
        elif own is None:
            x0 = self._engine.observe(view(x), view(prediction_of(call["model_output"], x)))
        else:
            x0 = self._engine.observe(view(x), x0=view(own))
        self._x0 = self._layout.latents(x0)
        if self.on_x0:
            self.sample = call["sample"]
            try:
                self.on_x0(step, call["timestep"], self._x0)
            finally:
                self.sample = None


def _as_is(seen: Tensor) -> Tensor:
    return seen
