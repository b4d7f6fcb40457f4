# SPDX-License-Identifier: MIT
"""25 steps of a scheduler without a network, stock and with ASCED on, for the measurements of P1, P2, P5 and P6."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

import ascedfast
from ascedfast import AscedConfig
from ascedfast.adapters.schedules import schedule_of
from ascedfast.calibration.table import EARLIEST, SURVIVAL, Null, NullTable
from ascedfast.reference_scores import Gumbel
from ascedfast.schedule import Plan, plan_run
from benchmarks import trace
from benchmarks.trace import Launch

STEPS = 25
LATENTS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS: dict[str, Callable[[], SchedulerMixin]] = {
    "DDIM": lambda: DDIMScheduler(**LATENTS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "DDIM pixels": lambda: DDIMScheduler(),  # the paper's setting: linear betas, clipped predictions
    "Euler": lambda: EulerDiscreteScheduler(**LATENTS, steps_offset=1, timestep_spacing="leading"),
    "DPM++1M": lambda: DPMSolverMultistepScheduler(**LATENTS, steps_offset=1, solver_order=1),
    "DPM++2M": lambda: DPMSolverMultistepScheduler(**LATENTS, steps_offset=1, solver_order=2),
    "DPM++3M": lambda: DPMSolverMultistepScheduler(**LATENTS, steps_offset=1, solver_order=3),
    "FlowMatchEuler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "UniPC": lambda: UniPCMultistepScheduler(**LATENTS),
    "DEIS": lambda: DEISMultistepScheduler(**LATENTS),
    "LMS": lambda: LMSDiscreteScheduler(**LATENTS),
    "PNDM": lambda: PNDMScheduler(**LATENTS, skip_prk_steps=True, steps_offset=1),
}


@dataclass(frozen=True)
class Loop:
    """One setting of a loop. config: None for the stock scheduler."""

    scheduler: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def make(self, config: AscedConfig | None = None) -> tuple[SchedulerMixin, Any]:
        """A scheduler of this loop, and the handle where ASCED is enabled on it with ``config``."""
        scheduler = SCHEDULERS[self.scheduler]()
        handle = None if config is None else ascedfast.enable_asced(scheduler, config, seeds=0)
        return scheduler, handle

    @property
    def calibrated(self) -> AscedConfig:
        """Mode "calibrated" against made-up sound runs, which change alike at every step: only sizes matter here."""
        scheduler, config = SCHEDULERS[self.scheduler](), AscedConfig()
        scheduler.set_timesteps(STEPS)
        schedule = schedule_of(scheduler)
        logsnr = tuple(max(EARLIEST, level.logsnr) for level in schedule.before[: plan_run(schedule, config).t_c])
        levels = tuple(0.1 * k for k in range(len(SURVIVAL)))
        profile = (1.0,) * (len(logsnr) - 1)
        null = Null(logsnr, (), profile, Gumbel(0.0, 0.5), Gumbel(0.0, 0.5), levels, 0.1, 1000, 0.2)
        return AscedConfig.calibrated(NullTable((null,)))

    def begin(self, scheduler: SchedulerMixin) -> list[Tensor]:
        """Set the timesteps, as a pipeline does before its loop; they come back one by one."""
        scheduler.set_timesteps(STEPS, device=self.device)
        timesteps = list(scheduler.timesteps)
        if hasattr(scheduler, "scale_model_input"):  # some warn at every step without
            scheduler.scale_model_input(self.start(), timesteps[0])
        return timesteps

    def start(self) -> Tensor:
        """The state that a run begins with."""
        return randn(self.shape, 0, self.device).to(self.dtype)

    def outputs(self, count: int) -> list[Tensor]:
        """Made-up model outputs: noise, since only their size matters to a wall clock."""
        return [randn(self.shape, 1 + k % 4, self.device).to(self.dtype) for k in range(count)]


def step_all(scheduler: SchedulerMixin, timesteps: Sequence[Tensor], outputs: Sequence[Tensor], x: Tensor) -> Tensor:
    """The scheduler's part of a sampling loop."""
    for t, m in zip(timesteps, outputs, strict=True):
        x = scheduler.step(m, t, x, return_dict=False)[0]
    return x


Around = Callable[[], AbstractContextManager[None]]


def step_guided(
    loop: Loop,
    scheduler: SchedulerMixin,
    around: Around = nullcontext,
    after: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """A loop whose model outputs lead to ``frames``, so that there are regions to find.

    Args: around: entered for the length of each ``step``. after: called with the step's index when it has returned and
        nothing of the loop but x and the model output is alive.
    """
    timesteps = loop.begin(scheduler)
    levels = schedule_of(scheduler).before
    wanted = frames(loop.shape, len(timesteps), loop.device)
    x = loop.start() * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for k, (t, level) in enumerate(zip(timesteps, levels, strict=True)):
        m = ((wanted[k] - level.a * x.float()) / level.b).to(loop.dtype) if level.b else torch.zeros_like(x)
        with around():
            x = scheduler.step(m, t, x, return_dict=False)[0]
        after(k)
    return x


@functools.lru_cache(maxsize=2)
def frames(shape: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """Predictions [count, *shape] in [-1, 1]: slow smooth fields, and a square that jumps from step to step."""
    g = torch.Generator().manual_seed(3)
    height, width = shape[-2:]
    coarse = torch.randn(count, shape[1], 8, 8, generator=g).cumsum(0) / 24
    fields = F.interpolate(coarse, size=(height, width), mode="bicubic")[:, None].to(device)
    fields[1::2, ..., height // 4 : height // 2, width // 4 : width // 2] += 0.5
    return fields.clamp(-1, 1).expand(count, *shape).contiguous()


def randn(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Normal deviates, the same in every run."""
    return torch.randn(shape, generator=torch.Generator(device=device).manual_seed(seed), device=device)


@dataclass(frozen=True)
class Traces:
    """Launches of both runs, [repeat][step][launch], and when ASCED watched and corrected."""

    stock: list[list[list[Launch]]]
    ours: list[list[list[Launch]]]
    plan: Plan

    @property
    def window(self) -> range:
        """Steps whose prediction is watched, but for the last of them, in which T_c falls."""
        return range(self.plan.start + 1, self.plan.t_c - 1)

    @property
    def correcting(self) -> int:
        """The step that ends with detection and correction."""
        return self.plan.t_c - 1


@functools.lru_cache(maxsize=8)
def traces(loop: Loop, repeats: int, config: AscedConfig = AscedConfig()) -> Traces:  # noqa: B008 - it is frozen
    """Both runs of a loop under the profiler, in turn, after a run of each that pays for compilation."""
    stock, (enabled, handle) = loop.make()[0], loop.make(config)
    step_guided(loop, stock)
    step_guided(loop, enabled)
    plan = handle.report.rows[0].plan
    if plan.reason is not None:
        raise ValueError(f"this run is left alone: {plan.reason}")
    found = Traces([], [], plan)
    for _ in range(repeats):
        for scheduler, launches in ((stock, found.stock), (enabled, found.ours)):
            launches.append(
                trace.trace(lambda mark, scheduler=scheduler: step_guided(loop, scheduler, mark), loop.device)
            )
    return found
