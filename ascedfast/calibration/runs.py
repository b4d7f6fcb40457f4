# SPDX-License-Identifier: MIT
"""Sound runs of a pipeline, each reduced to the largest scores of its dynamics; stops and goes on between batches."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ascedfast import ops
from ascedfast.adapters.diffusers import enable_asced
from ascedfast.calibration.fit import fit
from ascedfast.calibration.moments import StateMoments
from ascedfast.calibration.table import Null
from ascedfast.calibration.windows import window_of
from ascedfast.config import AscedConfig
from ascedfast.report import RowReport

WATCHED = AscedConfig(correct=False, window_start=0)
"""From the first step on, left as it is."""
PROFILE_RUNS = 200
"""Runs that the profile is taken from, or as many as PROFILE_BYTES hold."""
PROFILE_BYTES = 256 << 20
MOST_SKIPPED = 0.01
"""Share of runs that may hold NaN or Inf."""

Draw = Callable[[Sequence[int]], Any]
"""Calls the pipeline once for these seeds."""


class _Enough(Exception):
    """The window is over; nothing after it is needed."""


class WindowEnd(NamedTuple):
    """Of some runs: x, the state at T_c, x0, the last prediction before it, [R, ...] in any layout; alpha, sigma: the
    level of x."""

    x: Tensor
    x0: Tensor
    alpha: float
    sigma: float


@dataclass
class StepRuns:
    """What was gathered for one step count: JSON between calls.

    logsnr: of the K + 1 predictions. grid: sizes of the location axes. profile: K mean changes, empty before the first
    PROFILE_RUNS runs; x0_noise: what x0_hat lacks in these (``moments``). still, jump: the largest scores of each run,
    by seed from the first on. skipped: runs that held NaN or Inf.
    """

    steps: int
    logsnr: list[float] = field(default_factory=list)
    grid: list[int] = field(default_factory=list)
    profile: list[float] = field(default_factory=list)
    still: list[float] = field(default_factory=list)
    jump: list[float] = field(default_factory=list)
    x0_noise: float = 0.0
    skipped: int = 0

    def __post_init__(self) -> None:
        self._held: list[Tensor] = []
        self._moments = StateMoments()

    @property
    def whole(self) -> bool:
        """What a file holds can be gone on from."""
        lists = (self.logsnr, self.grid, self.profile, self.still, self.jump)
        if not all(isinstance(one, list) and all(isinstance(v, int | float) for v in one) for one in lists):
            return False
        matching = len(self.still) == len(self.jump) and len(self.logsnr) == len(self.profile) + 1
        finite = np.isfinite([*self.still, *self.jump, *self.profile, self.x0_noise]).all()
        return matching and bool(finite) and bool(self.grid)

    @property
    def runs(self) -> int:
        """How many there are, those that wait for the profile too."""
        return len(self.still) + sum(d.shape[1] for d in self._held)

    def take(self, d: Tensor, end: WindowEnd, profile_runs: int) -> None:
        """Add runs; they wait until there are ``profile_runs``, which give the profile.

        Args: d: float32 [K, R, *grid], smoothed changes. end: of these runs.
        Raises: ValueError where a step changes nothing in any run."""
        self.grid = list(d.shape[2:])
        self._held.append(d)
        if not self.profile:
            self._moments.add(end.x, end.x0)
            if self.runs < profile_runs:
                return
            profile = torch.cat(self._held, 1).double().flatten(2).mean((1, 2)).tolist()
            if not all(value > 0 for value in profile):
                raise ValueError("a step changes nothing in any run: does this pipeline's network do anything?")
            self.profile, self.x0_noise = profile, self._moments.missing_deviation(end.alpha, end.sigma)
        for one in self._held:
            scores = ops.temporal_scores(one, self.profile)
            self.still += scores.still.flatten(1).amax(1).tolist()
            self.jump += scores.jump.flatten(1).amax(1).tolist()
        self._held = []

    def null(self, count: int) -> Null:
        """Of the first ``count`` runs. Raises: ValueError, see ``fit``."""
        try:
            scores = (np.array(one[:count]) for one in (self.still, self.jump))
            return fit(self.logsnr, self.grid, self.profile, *scores, self.x0_noise)
        except ValueError as error:
            raise ValueError(f"{self.steps} steps: {error}") from error


def watch(pipe: Any, draw: Draw, seeds: Sequence[int]) -> tuple[list[RowReport], WindowEnd | None]:
    """One run up to its T_c, observed only: a report of each row, and the end of their window, None for a run that is
    left alone. The pipeline's output is not made; it stops where the network has seen the state at T_c."""
    end: WindowEnd | None = None
    last: Tensor | None = None

    def stop(step: int, timestep: Any, x0: Tensor) -> None:
        nonlocal end, last
        plan = handle.report[0].plan
        if plan.reason is not None:
            raise _Enough
        if step >= plan.t_c:
            end = WindowEnd(handle.sample, last, *handle.schedule.after[step - 1])
            raise _Enough
        last = x0

    handle = enable_asced(pipe, WATCHED, seeds=list(seeds), on_x0=stop)
    try:
        with contextlib.suppress(_Enough):
            draw(seeds)
    finally:
        handle.disable()
    return list(handle.report), end


def gather(pipe: Any, draw: Draw, so_far: StepRuns, runs: int, batch: int, seed: int) -> Iterator[int]:
    """Make ``so_far`` complete, in place: yields how many runs there are after every batch.

    Runs of seeds ``seed``, ``seed + 1`` .. Those that the profile is taken from are held in memory until there are
    enough, and lost when it stops before. Runs with NaN or Inf are left out.
    Raises: ValueError for runs that cannot be watched, or too many that are not finite.
    """
    while len(so_far.still) < runs:
        done = so_far.runs
        count = min(batch, runs - done)
        start = seed + done + so_far.skipped
        rows, end = watch(pipe, draw, range(start, start + count))
        if len(rows) != count:
            raise ValueError(
                f"for {count} samples the pipeline steps {len(rows)} rows (several images a prompt, or guided and "
                "unguided rows in one batch): such pipelines cannot be calibrated yet"
            )
        kept = [i for i, row in enumerate(rows) if row.plan.reason is not None or bool(row.finite)]
        sound = [rows[i] for i in kept]
        so_far.skipped += count - len(sound)
        if so_far.skipped > max(3, runs * MOST_SKIPPED):
            raise ValueError(f"{so_far.skipped} of {done + count} runs hold NaN or Inf: this pipeline is not sound")
        if not sound:
            continue
        d = torch.stack([window_of(row) for row in sound], 1)
        so_far.logsnr = list(sound[0].logsnr[: len(d) + 1])
        room = PROFILE_BYTES // (d[:, 0].numel() * 4)
        of_sound = end._replace(x=end.x[kept], x0=end.x0[kept])
        so_far.take(d, of_sound, min(runs, PROFILE_RUNS, max(batch, room)))
        yield so_far.runs


def load_runs(path: Path, key: dict[str, Any]) -> dict[int, StepRuns]:
    """What an earlier call gathered under the same key, by step count; empty where there is none, or another key's."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["key"] != key:
            return {}
        found = [StepRuns(**entry) for entry in saved["runs"]]
        return {one.steps: one for one in found if one.whole}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def save_runs(path: Path, key: dict[str, Any], gathered: Sequence[StepRuns]) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.new")
    part.write_text(json.dumps({"key": key, "runs": [asdict(one) for one in gathered]}), encoding="utf-8")
    part.replace(path)
