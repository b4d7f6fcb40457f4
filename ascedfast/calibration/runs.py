# SPDX-License-Identifier: MIT
"""Sound runs of a pipeline, each reduced to the largest scores of its dynamics; stops and goes on between batches."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascedfast.adapters.diffusers import enable_asced
from ascedfast.calibration.fit import fit
from ascedfast.calibration.scores import temporal_scores
from ascedfast.calibration.table import Null
from ascedfast.calibration.windows import window_of
from ascedfast.config import AscedConfig
from ascedfast.report import RowReport

WATCHED = AscedConfig(correct=False, window_start=0)
"""From the first step on, left as it is."""
PROFILE_RUNS = 200
"""Runs that the profile is taken from, or as many as PROFILE_BYTES hold."""
PROFILE_BYTES = 256 << 20

Draw = Callable[[Sequence[int]], Any]
"""Calls the pipeline once for these seeds."""


class _Enough(Exception):
    """The window is over; nothing after it is needed."""


@dataclass
class StepRuns:
    """What was gathered for one step count: JSON between calls.

    logsnr: of the K + 1 predictions. profile: K mean changes, empty before the first PROFILE_RUNS runs. still, jump:
    the largest scores of each run, by seed from the first on.
    """

    steps: int
    logsnr: list[float] = field(default_factory=list)
    profile: list[float] = field(default_factory=list)
    still: list[float] = field(default_factory=list)
    jump: list[float] = field(default_factory=list)

    def null(self) -> Null:
        """Raises: ValueError, see ``fit``."""
        try:
            return fit(self.logsnr, self.profile, np.array(self.still), np.array(self.jump))
        except ValueError as error:
            raise ValueError(f"{self.steps} steps: {error}") from error


def watch(pipe: Any, draw: Draw, seeds: Sequence[int]) -> list[RowReport]:
    """One run up to its T_c, observed only. The pipeline's output is not made."""

    def stop(step: int, timestep: Any, x0: Tensor) -> None:
        plan = handle.report[0].plan
        if plan.reason is not None or step >= plan.t_c:
            raise _Enough

    handle = enable_asced(pipe, WATCHED, seeds=list(seeds), on_x0=stop)
    try:
        with contextlib.suppress(_Enough):
            draw(seeds)
    finally:
        handle.disable()
    return list(handle.report)


def gather(pipe: Any, draw: Draw, so_far: StepRuns, runs: int, batch: int, seed: int) -> Iterator[StepRuns]:
    """Make ``so_far`` complete, in place: yields it after every batch that it has grown by.

    Runs of seeds ``seed``, ``seed + 1`` .. Those that the profile is taken from are held in memory until there are
    enough, and lost when it stops before.
    Raises: ValueError for runs that cannot be watched.
    """
    held: list[Tensor] = []
    while len(so_far.still) < runs:
        start = len(so_far.still) + len(held)
        count = min(batch, runs - start)
        rows = watch(pipe, draw, range(seed + start, seed + start + count))
        maps = [window_of(row) for row in rows]
        if len(maps) != count:
            raise ValueError(f"asked for {count} samples, the pipeline steps {len(maps)}: one image a prompt is needed")
        if not so_far.profile:
            held += maps
            so_far.logsnr = list(rows[0].logsnr[: len(maps[0]) + 1])
            room = PROFILE_BYTES // (maps[0].numel() * 4)
            if len(held) < min(runs, PROFILE_RUNS, max(batch, room)):
                continue
            so_far.profile = torch.stack([one.double().flatten(1).mean(1) for one in held]).mean(0).tolist()
            maps, held = held, []
        for one in maps:
            scores = temporal_scores(one[:, None], so_far.profile)
            so_far.still.append(float(scores.still.max()))
            so_far.jump.append(float(scores.jump.max()))
        yield so_far


def load_runs(path: Path, key: dict[str, Any]) -> dict[int, StepRuns]:
    """What an earlier call gathered under the same key, by step count; empty where there is none, or another key's."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["key"] != key:
            return {}
        return {entry["steps"]: StepRuns(**entry) for entry in saved["runs"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def save_runs(path: Path, key: dict[str, Any], gathered: Sequence[StepRuns]) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.new")
    part.write_text(json.dumps({"key": key, "runs": [asdict(one) for one in gathered]}), encoding="utf-8")
    part.replace(path)
