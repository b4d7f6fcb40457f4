# SPDX-License-Identifier: MIT
"""ASCED in a diffusers pipeline, or on a scheduler used alone.

handle = enable_asced(pipe)
image = pipe(prompt, generator=generator).images[0]
handle.report
"""

import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor

from ascedfast import _backend
from ascedfast.adapters import caches, class_swap
from ascedfast.adapters.layout import PipelineContext, checked_axes
from ascedfast.adapters.pipeline_context import told_by_call, told_by_latents
from ascedfast.adapters.run import OnX0, SchedulerRun
from ascedfast.adapters.run_settings import checked_grid, checked_seeds
from ascedfast.adapters.schedules import refusal
from ascedfast.adapters.told import OFF
from ascedfast.config import AscedConfig
from ascedfast.protected import checked_keep_mask
from ascedfast.report import Report
from ascedfast.schedule import Schedule


@dataclass(frozen=True)
class Handle:
    """What ``enable_asced`` returns."""

    target: DiffusionPipeline | SchedulerMixin = field(repr=False)
    scheduler: SchedulerMixin = field(repr=False)
    _run: SchedulerRun = field(repr=False, compare=False)

    def __repr__(self) -> str:
        state = f"mode {self.config.mode!r}, {'enabled' if self.enabled else 'disabled'}"
        return f"<ascedfast handle of a {type(self.target).__name__}: {state}>"

    @property
    def enabled(self) -> bool:
        """Whether the scheduler is watched, and by what this handle was returned for."""
        return self.scheduler.__dict__.get(class_swap.STATE) is self._run

    @property
    def config(self) -> AscedConfig:
        return self._run.config

    @property
    def report(self) -> Report:
        """The last run: masks at latent and image resolution, severity, regions, curves, seeds, mode. Empty before the
        first step. A copy of the scheduler has a report of its own. Stays when ASCED is disabled."""
        return self._run.report

    @property
    def x0(self) -> Tensor | None:
        """The last watched prediction of the clean sample in the sampler's layout, fp32. Do not write into it. None
        once the correction is done; with ``on_x0`` or ``AscedConfig(record="run")`` there is one at every step."""
        return self._run.x0

    @property
    def sample(self) -> Tensor | None:
        """Within ``on_x0`` the state that x0_hat was predicted from, to be read only. Else None."""
        return self._run.sample

    @property
    def schedule(self) -> Schedule | None:
        """The levels of the last run, all steps of its timesteps; None before the first."""
        return self._run.schedule

    def warm_up(self, sample: Tensor, model_output: Tensor | None = None) -> None:
        """Allocate, compile and check all that the coming run needs: once before a CUDA graph is captured of it.

        Call it after ``set_timesteps``; the captured loop then makes the run's first step. Replays correct with the
        seeds of ``reseed``; ``report`` tells of the last replay.

        Args: sample, model_output: like those of the run (shape, strides, type, device); not modified. Default: the
            model output is like the sample.
        Raises: ValueError where the run cannot be captured.
        """
        self._enabled_run().warm_up(self.scheduler, sample, sample.clone() if model_output is None else model_output)

    def reseed(self, seeds: Sequence[int]) -> None:
        """New seeds for the corrections of the run under way or captured, one a sample."""
        self._enabled_run().reseed(seeds)

    def disable(self) -> None:
        """End what this handle was returned for; another scheduler that the pipeline has by now stays as it is."""
        if self.enabled:
            _end(self.scheduler)
            if not is_asced_enabled(self.target):
                class_swap.restore(self.target)

    def __reduce__(self) -> tuple:
        # A copy of the scheduler has a run of its own.
        return _handle_of, (self.target, self.scheduler, None if self.enabled else self._run)

    def _enabled_run(self) -> SchedulerRun:
        if not self.enabled:
            raise ValueError("ASCED was disabled: call enable_asced again")
        return self._run


def _handle_of(target: Any, scheduler: SchedulerMixin, run: SchedulerRun | None) -> Handle:
    return Handle(target, scheduler, scheduler.__dict__[class_swap.STATE] if run is None else run)


def enable_asced(
    pipe_or_scheduler: DiffusionPipeline | SchedulerMixin,
    config: AscedConfig | None = None,
    *,
    seeds: Sequence[int] | int | None = None,
    grid: tuple[int, ...] | None = None,
    axes: str | None = None,
    keep_mask: Tensor | None = None,
    on_x0: OnX0 | None = None,
) -> Handle:
    """Watch every run of a pipeline, or of a scheduler, and repair it at T_c.

    Args:
        pipe_or_scheduler: a pipeline, or a scheduler of ``adapters.support.SUPPORT`` (docs/schedulers.md).
        config: default ``AscedConfig.fast()``.
        seeds: one 64-bit seed a sample of the batch, for the noise of the correction; an int for all images of one
            request. Default: the seeds of the generators that the pipeline was called with, else a fresh one, stated
            in the report. The generators themselves are never drawn from.
        grid: (height, width), or (frames, height, width), in locations of packed latents [B, S, C], where the pipeline
            cannot tell.
        axes: of the latents, where the pipeline cannot tell: B, C and one of HW, TM, FHW, L or S (packed), in the order
            of the tensor's axes, as "BFCHW". Default: by what the pipeline tells (docs/layouts.md); a run whose layout
            stays unknown is left alone, with one warning.
        keep_mask: bool [B, 1, *grid] in latent locations, axes of 1 fit any: True where nothing is an artifact and
            nothing is re-noised (a first frame, the known part of an inpainting, measured data). The grid is (H, W),
            (frames, H, W), or (1, L) of a line; of a slice, where the pipeline steps one. Of n rows for 2n only where
            these are n rows twice (DiT's), which is looked up once, in the first step. Referred to, not modified.
        on_x0: called as on_x0(step, timestep, x0_hat) where a step of the solver begins: at every call of ``step``, but
            for solvers that make two or three calls a step; x0_hat in the sampler's layout, fp32.
    Returns: a handle with the report. Mutates: the object's class, until ``disable_asced``.
    Raises: TypeError for an object without a scheduler or a wrong config; ValueError for an unsupported scheduler or
        one that is enabled already; BackendError for a backend that cannot serve a run. Then nothing is changed.
    """
    config = AscedConfig() if config is None else config
    if not isinstance(config, AscedConfig):
        raise TypeError(f"config must be an AscedConfig, got {type(config).__name__}")
    scheduler = _scheduler_of(pipe_or_scheduler)
    if class_swap.STATE in scheduler.__dict__:
        raise ValueError("ASCED is already enabled here; call disable_asced first")
    grid, axes, keep_mask = checked_grid(grid, axes), checked_axes(axes), checked_keep_mask(keep_mask)
    seeds = checked_seeds(seeds)
    why = refusal(scheduler)
    if why is not None:
        raise ValueError(why)
    _backend.check_all(config.backend)
    within_pipeline = scheduler is not pipe_or_scheduler
    run = scheduler.__dict__[class_swap.STATE] = SchedulerRun(
        config, seeds, grid, on_x0, within_pipeline, axes=axes, keep_mask=keep_mask
    )
    _swap_scheduler(scheduler)
    if within_pipeline:
        _swap_pipeline(pipe_or_scheduler)
    return Handle(pipe_or_scheduler, scheduler, run)


def disable_asced(pipe_or_scheduler: DiffusionPipeline | SchedulerMixin) -> None:
    """Give the scheduler (and the pipeline) its own class back. Does nothing where ASCED is not enabled."""
    scheduler = _scheduler_of(pipe_or_scheduler)
    _end(scheduler)
    if scheduler is not pipe_or_scheduler:
        class_swap.restore(pipe_or_scheduler)


def is_asced_enabled(pipe_or_scheduler: DiffusionPipeline | SchedulerMixin) -> bool:
    """Whether the next run is watched."""
    return class_swap.STATE in _scheduler_of(pipe_or_scheduler).__dict__


@contextlib.contextmanager
def asced(
    pipe_or_scheduler: DiffusionPipeline | SchedulerMixin, config: AscedConfig | None = None, **options: Any
) -> Iterator[Handle]:
    """``enable_asced`` for the length of a ``with`` block; the handle keeps the report of its last run."""
    handle = enable_asced(pipe_or_scheduler, config, **options)
    try:
        yield handle
    finally:
        handle.disable()


def _end(scheduler: Any) -> None:
    run = scheduler.__dict__.get(class_swap.STATE)
    if run is not None:
        run.leave_pipeline()  # it may be within a call
    class_swap.restore(scheduler)


def _scheduler_of(obj: Any) -> SchedulerMixin:
    scheduler = obj if isinstance(obj, SchedulerMixin) else getattr(obj, "scheduler", None)
    if not isinstance(scheduler, SchedulerMixin):
        raise TypeError(f"expected a diffusers pipeline or scheduler, got {type(obj).__name__}")
    return scheduler


def _swap_scheduler(scheduler: Any) -> Any:
    if not class_swap.is_swapped(scheduler):
        scheduler.__class__ = _scheduler_class(type(scheduler))
    return scheduler


def _swap_pipeline(pipe: Any) -> Any:
    if not class_swap.is_swapped(pipe):
        pipe.__class__ = _pipeline_class(type(pipe))
    return pipe


@functools.cache
def _scheduler_class(base: type) -> type:
    @functools.wraps(base.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = self.__dict__.get(class_swap.STATE)
        return base.step(self, *args, **kwargs) if run is None else run.step(self, base.step, args, kwargs)

    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.set_timesteps(self, *args, **kwargs)
        if class_swap.STATE in self.__dict__:
            self.__dict__[class_swap.STATE].new_timesteps(self, base.set_timesteps, args, kwargs)
        return result

    return class_swap.make_subclass(base, {"step": step, "set_timesteps": set_timesteps}, _swap_scheduler)


@functools.cache
def _pipeline_class(base: type) -> type:
    """The pipeline tells its scheduler's run the generators and the image size; it computes as before."""
    call_signature = inspect.signature(base.__call__)

    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = self.scheduler.__dict__.get(class_swap.STATE)
        if run is None:
            warnings.warn(OFF, RuntimeWarning, stacklevel=2)
            return base.__call__(self, *args, **kwargs)
        call = call_signature.bind_partial(self, *args, **kwargs)
        if not run.enter_pipeline(told_by_call(self, base, call)):
            return base.__call__(self, *args, **kwargs)
        try:
            with caches.watched(self) as run.caches:
                return base.__call__(self, *args, **kwargs)
        finally:
            run.leave_pipeline()

    methods = {"__call__": __call__}
    if hasattr(base, "prepare_latents"):
        latents_signature = inspect.signature(base.prepare_latents)

        @functools.wraps(base.prepare_latents)
        def prepare_latents(self: Any, *args: Any, **kwargs: Any) -> Any:
            run = self.scheduler.__dict__.get(class_swap.STATE)
            if run is not None and not run.interrupted:
                given = latents_signature.bind_partial(self, *args, **kwargs).arguments
                run.context = told_by_latents(self, run.context or PipelineContext(), given)
            return base.prepare_latents(self, *args, **kwargs)

        methods["prepare_latents"] = prepare_latents
    return class_swap.make_subclass(base, methods, _swap_pipeline)
