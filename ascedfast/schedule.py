# SPDX-License-Identifier: MIT
"""What is known of a run before its first step: the noise levels, and when to watch and to correct."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ascedfast.config import AscedConfig
from ascedfast.process import Coefficients

PAPER_T_C = 0.48
"""Share of the run at which the paper corrects (linear betas, arXiv 2503.16218, Fig. 8)."""
PAPER_T_C_LOGSNR = -2.26
"""log(alpha^2/sigma^2) of the linear-beta process there (t = 480 of 1000)."""
WINDOW_START = 0.24
"""Share of the run before which nothing is banked, outside "official". The paper gives none."""
MIN_PREDICTIONS = 3
"""Predictions of x0 that must precede the correction."""
MORE_STEPS = "take more steps, or a later t_c"
LATE_START = (
    "the run starts at less noise than the level at which artifacts can be repaired: start it with more (as a higher "
    "strength), or choose a t_c"
)


@dataclass(frozen=True)
class Schedule:
    """Levels of a sampler run, step by step, in float64 on the host.

    Attributes:
        before: level at which step k calls the model, and its linear form of x0_hat.
        after: (alpha, sigma) of the state that step k returns.
        clip: the sampler clamps x0_hat to [-clip, clip], or None.
        linear_beta: a noise-predicting model with linear betas, sampled at even timesteps over the whole process:
            the paper's setting, in which T_c is a share of the steps.
    """

    before: tuple[Coefficients, ...]
    after: tuple[tuple[float, float], ...]
    clip: float | None = None
    linear_beta: bool = False

    def __post_init__(self) -> None:
        if not self.before or len(self.before) != len(self.after):
            raise ValueError(f"a schedule needs one level after each step: {len(self.before)} and {len(self.after)}")
        for step, level in enumerate(self.before):
            if not all(map(math.isfinite, level)):
                raise ValueError(f"step {step} of the schedule has a coefficient that is not finite: {level}")

    @classmethod
    def from_levels(
        cls,
        levels: Sequence[Coefficients],
        *,
        end: tuple[float, float] = (1.0, 0.0),
        clip: float | None = None,
        linear_beta: bool = False,
    ) -> Self:
        """Every step ends at the next step's level, the last at ``end`` = (alpha, sigma).

        Args: levels: of ``ascedfast.process``, one a step, as ``process.eps(alpha, sigma)``. linear_beta: see above;
            without it T_c is the step nearest to a noise level. Raises: TypeError for numbers in their place.
        """
        for level in levels:
            if not isinstance(level, Coefficients):
                raise TypeError(f"a level is made by ascedfast.process, as process.eps(alpha, sigma), got {level!r}")
        after = [(level.alpha, level.sigma) for level in levels[1:]]
        return cls(tuple(levels), (*after, end), clip, linear_beta)

    def __len__(self) -> int:
        return len(self.before)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.before, self.after, self.clip, self.linear_beta))

    def x0_hat(self, step: int, x: Tensor, m: Tensor) -> Tensor:
        """The clean sample that the model output m of ``step`` predicts from x, in x's dtype."""
        x0 = self.before[step].a * x + self.before[step].b * m
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def table(self, device: torch.device) -> Tensor:
        """float32 [steps, 2] of (a, b) on ``device``."""
        return torch.tensor([(level.a, level.b) for level in self.before], dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Plan:
    """Which executed steps are watched and when the correction falls. Executed step 0 is the run's first.

    start: first step that is banked. t_c: the state returned by step t_c - 1 is corrected. reason: None, or why this
    run is left alone; then start and t_c say nothing.
    """

    start: int
    t_c: int
    reason: str | None = None


@functools.lru_cache(maxsize=64)
def plan_run(schedule: Schedule, config: AscedConfig, first: int = 0) -> Plan:
    """When to watch and when to correct.

    T_c is the configured one; else, for the paper's setting (``Schedule.linear_beta``) from full noise,
    floor(.48*steps + .5); else the step nearest to logSNR -2.26. The window starts where configured; "official" and
    "calibrated" at the first step; else at .24 of the steps or three predictions before T_c, whichever is earlier.

    Args:
        first: index in the schedule of the first executed step (image-to-image starts later than 0).
    Raises: ValueError for a configured T_c past the end of the run or a window that is empty.
    """
    levels = schedule.before[first:]
    steps = len(levels)
    t_c = _step_of(config.t_c, steps)
    if t_c is None:
        if schedule.linear_beta and first == 0:
            t_c = math.floor(PAPER_T_C * steps + 0.5)
        elif levels[0].logsnr > PAPER_T_C_LOGSNR:
            return Plan(0, 0, LATE_START)
        else:
            t_c = min(range(1, steps), key=lambda k: abs(levels[k].logsnr - PAPER_T_C_LOGSNR), default=0)
    elif not 1 <= t_c < steps:
        raise ValueError(f"t_c = {config.t_c} is past the end of a run of {steps} steps: it must lie in 1..{steps - 1}")
    start = _step_of(config.window_start, steps)
    if start is None:
        latest = math.floor(WINDOW_START * steps + 0.5)
        from_first = config.mode in ("official", "calibrated")
        start = 0 if from_first else max(0, min(latest, t_c - MIN_PREDICTIONS))
    elif start >= t_c:
        raise ValueError(f"the window is empty: it starts at step {start}, the correction falls at step {t_c}")
    if config.mode == "paper":  # w(t)*s_t has no value at pure noise
        start = next((k for k in range(start, steps) if levels[k].alpha > 0), steps)
    if t_c - start < MIN_PREDICTIONS:
        return Plan(
            0, 0, f"{max(0, t_c - start)} predictions precede step {t_c}, {MIN_PREDICTIONS} are needed: {MORE_STEPS}"
        )
    if config.mode == "calibrated" and (why := config.table.refusal([level.logsnr for level in levels[:t_c]])):
        return Plan(0, 0, why)
    return Plan(start, t_c)


def _step_of(value: int | float | None, steps: int) -> int | None:
    return math.floor(value * steps + 0.5) if isinstance(value, float) else value
