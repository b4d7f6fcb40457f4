# SPDX-License-Identifier: MIT
"""Artifacts of known place, time and size, planted through the model output of any parameterisation.

    x0' = (1 - R)*x0_hat + R*v        m' = (x0' - a*x) / b

with the linear form x0_hat = a*x + b*m of the step (``ascedfast.process``). The sampler steps with m'; everything that
reads x0_hat, the detector included, sees the plant. Every plant has a twin: the same seed, nothing planted.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from ascedfast.lab.regions import Box
from ascedfast.lab.sampling import Denoiser
from ascedfast.process import Coefficients
from ascedfast.schedule import Schedule

Kind = Literal["trap", "jump", "stroke", "null"]
Outcome = Literal["persisting", "absorbed", "between"]
PERSISTING_LEVELS = 8.0
ABSORBED_LEVELS = 2.0


@dataclass(frozen=True, eq=False)
class Plant:
    """What is planted in one row. Make it with ``trap``, ``jump``, ``stroke`` or ``null``.

    Attributes:
        box: R. start: first step whose prediction is changed; of a stroke, the first step of the run.
        steps: how many steps are changed in a row.
        content: [C, H, W] or what broadcasts to it, in units of x0: v of a trap, h*u of a jump, the paint of a stroke.
            A sampler that clips x0_hat clips it too.
        source: step whose x0_hat a trap holds instead of content.
    """

    kind: Kind
    box: Box
    start: int = 0
    steps: int = 0
    content: Tensor | None = None
    source: int | None = None

    @classmethod
    def trap(
        cls, box: Box, start: int, steps: int, *, content: Tensor | None = None, source: int | None = None
    ) -> Self:
        """Hold R at foreign content, or at the prediction of the earlier step ``source``, for ``steps`` steps.

        Raises: ValueError unless one of the two is given, steps >= 1, and source lies in 0..start - 1."""
        if (content is None) == (source is None):
            raise ValueError("a trap holds either foreign content or the prediction of an earlier step")
        if source is not None and not 0 <= source < start:
            raise ValueError(f"source must be a step before {start}, got {source}")
        return cls("trap", box, *_checked(start, steps), content, source)

    @classmethod
    def jump(cls, box: Box, start: int, direction: Tensor, height: float) -> Self:
        """Add height*direction to the prediction inside R at one step.

        direction: [C, H, W] or broadcasting; an RMS of 1 makes ``height`` the RMS of the jump, in units of x0."""
        return cls("jump", box, *_checked(start, 1), height * direction)

    @classmethod
    def stroke(cls, box: Box, first: int, paint: Tensor) -> Self:
        """Paint R of a held-out image with ``paint``; the run starts from it at step ``first``: ``stroke_start``."""
        return cls("stroke", box, _checked(first, 1)[0], 0, paint)

    @classmethod
    def null(cls, box: Box, start: int = 0) -> Self:
        """Nothing. The box and the step say where a twin is measured."""
        return cls("null", box, start)

    @property
    def release(self) -> int:
        """First step that is the model's own again."""
        return self.start + self.steps

    @property
    def read_at(self) -> int:
        """Step whose x0_hat gives the contrast, one after planting began: the plant as a detector sees it. A stroke is
        in the state before its first step, so it is read there."""
        return self.start if self.kind == "stroke" else self.start + 1

    def released_before(self, t_c: int) -> bool:
        """No step from t_c on is changed, so a correction of the state after step t_c - 1 is not overwritten."""
        return self.release <= t_c

    def twin(self) -> "Plant":
        """The same place and time, nothing planted."""
        return dataclasses.replace(self, kind="null", steps=0, content=None, source=None)


def _checked(start: int, steps: int) -> tuple[int, int]:
    if start < 0 or steps < 1:
        raise ValueError(f"a plant needs start >= 0 and steps >= 1, got {start} and {steps}")
    return start, steps


class Planter:
    """A denoiser ``m = f(x, step)`` with plants in its rows. Row i of the batch carries plants[i].

    One object serves one run at a time: it remembers the predictions that its traps will hold, of their boxes only.
    Raises: ValueError where a plant is planted or read after the last step of the schedule.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, plants: Sequence[Plant]) -> None:
        self.denoiser = denoiser
        self.schedule = schedule
        self.plants = tuple(plants)
        self._held: dict[int, Tensor] = {}
        for i, plant in enumerate(self.plants):
            if max(plant.read_at, plant.release - 1) >= len(schedule):
                raise ValueError(f"the plant of row {i} reaches beyond the {len(schedule)} steps of the schedule")

    def __call__(self, x: Tensor, step: int) -> Tensor:
        """The denoiser's output, planted."""
        return self.plant(x, self.denoiser(x, step), step)

    @torch.no_grad()
    def plant(self, x: Tensor, m: Tensor, step: int) -> Tensor:
        """Plant into an output that is there already.

        Args: x, m: [R, C, H, W], state and model output of ``step``, an index in the schedule; not modified.
        Returns: m itself where nothing is planted at this step; else a new tensor with m's bits outside the boxes.
        Raises: ValueError where the batch has another number of rows, the output has no say in x0_hat (b = 0), or the
            step that a trap holds was not seen.
        """
        if x.shape[0] != len(self.plants) or m.shape != x.shape:
            raise ValueError(f"{len(self.plants)} plants for x {tuple(x.shape)} and m {tuple(m.shape)}")
        planted = m
        for i, plant in enumerate(self.plants):
            if plant.source == step:
                self._held[i] = self._x0(x[i], m[i], step, plant.box)
            if plant.start <= step < plant.release:
                if planted is m:
                    planted = m.clone()
                planted[i][plant.box.index] = self._output(i, plant, x[i], m[i], step)
        return planted

    def _output(self, row: int, plant: Plant, x: Tensor, m: Tensor, step: int) -> Tensor:
        level = self.schedule.before[step]
        if level.b == 0:
            raise ValueError(f"x0_hat of step {step} does not depend on the model output: nothing can be planted")
        if plant.source is not None:
            if row not in self._held:
                raise ValueError(f"row {row} holds the prediction of step {plant.source}, which was not run")
            value = self._held[row]
        else:
            value = plant.content.to(m.device, torch.float64).expand(m.shape)[plant.box.index]
            if plant.kind == "jump":
                value = value + self._x0(x, m, step, plant.box)
        return ((value - level.a * x[plant.box.index].double()) / level.b).to(m.dtype)

    def _x0(self, x: Tensor, m: Tensor, step: int, box: Box) -> Tensor:
        return self.schedule.x0_hat(step, x[box.index].double(), m[box.index].double())


def stroke_start(images: Tensor, plants: Sequence[Plant], level: Coefficients, noise: Tensor) -> Tensor:
    """States of runs that start from painted images: alpha*painted + sigma*noise. A null plant's row stays unpainted.

    Args:
        images: [R, C, H, W], held-out, in units of x0. plants: one a row, strokes or nulls.
        level: of the first step of the run. noise: [R, C, H, W]; a twin takes its plant's.
    Returns: [R, C, H, W] in the images' dtype; nothing is modified.
    Raises: ValueError.
    """
    if len(plants) != images.shape[0] or noise.shape != images.shape:
        raise ValueError(f"{len(plants)} plants, images {tuple(images.shape)}, noise {tuple(noise.shape)}")
    painted = images.clone()
    for i, plant in enumerate(plants):
        if plant.kind not in ("stroke", "null"):
            raise ValueError(f"row {i} is a {plant.kind}: it is planted by a Planter")
        if plant.kind == "stroke":
            paint = plant.content.to(images.device, images.dtype).expand(images.shape[1:])
            painted[i][plant.box.index] = paint[plant.box.index]
    return level.alpha * painted + level.sigma * noise


def colour_direction(seed: int, channels: int) -> Tensor:
    """A colour of RMS 1, uniform on the sphere, from the row's seed: float64 [C, 1, 1], for jumps."""
    values = np.random.default_rng((seed, 0xC0)).standard_normal(channels)
    return torch.from_numpy(values / np.sqrt(np.mean(values**2))).reshape(-1, 1, 1)


def hold_steps(seed: int, start: int, t_c: int, total: int, *, before: bool) -> int:
    """How many steps a trap that starts at ``start`` is held: uniform, from the row's seed, over what releases it
    before t_c (``Plant.released_before``) or after.

    Args: total: steps of the run; at least its last step is the model's own.
    Raises: ValueError where no number of steps does.
    """
    first, last = (start + 1, t_c) if before else (max(start, t_c) + 1, total - 1)
    if first > last:
        side = "before" if before else "after"
        raise ValueError(f"a trap from step {start} of {total} cannot be released {side} t_c = {t_c}")
    return int(np.random.default_rng((seed, 0x7A)).integers(first, last + 1)) - start


def outcome(levels: float) -> Outcome:
    """What became of a plant, from ``regions.rms_difference`` of the final images: persisting from 8 grey levels on,
    absorbed below 2. Raises: ValueError for NaN."""
    if levels != levels:
        raise ValueError("the difference to the twin is NaN")
    if levels >= PERSISTING_LEVELS:
        return "persisting"
    return "absorbed" if levels < ABSORBED_LEVELS else "between"
