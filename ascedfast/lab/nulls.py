# SPDX-License-Identifier: MIT
"""What sound runs of a subject score: the tables that mode "calibrated" is tried with, from tuning seeds alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ascedfast.calibration.fit import fit
from ascedfast.calibration.runs import PROFILE_RUNS
from ascedfast.calibration.scores import temporal_scores
from ascedfast.calibration.table import Null, NullTable
from ascedfast.calibration.windows import smoothed
from ascedfast.config import AscedConfig
from ascedfast.detect import maps_of
from ascedfast.lab.corrections import CONFIGS, t_c_of, watch
from ascedfast.lab.seeds import TuningSeeds
from ascedfast.lab.subject import Subject, ability


def table_of(subject: Subject, seeds: TuningSeeds, steps: Sequence[int] = (), chunk: int = 100) -> NullTable:
    """The table of a subject's runs of these seeds.

    Args: steps: numbers of steps, for subjects that have ``with_steps``; default: the subject's own.
    Raises: ValueError, see ``fit``; MissingAbility.
    """
    runs = [ability(subject, "with_steps")(count) for count in steps] or [subject]
    nulls = sorted((null_of(one, seeds, chunk) for one in runs), key=lambda null: len(null.profile))
    return NullTable(tuple(nulls), "", f"{subject.name}, {len(seeds)} runs each")


def null_of(subject: Subject, seeds: TuningSeeds, chunk: int = 100) -> Null:
    """Of one number of steps; the profile is that of the first PROFILE_RUNS runs. Raises: ValueError, TypeError."""
    if not isinstance(seeds, TuningSeeds):
        raise TypeError(f"tables are made of tuning seeds, got {type(seeds).__name__}")
    schedule = subject.schedule
    t_c = t_c_of(schedule, CONFIGS["official"])
    profile: list[float] = []
    held: list[Tensor] = []
    largest: list[Tensor] = []
    grid: Sequence[int] = ()
    for start in range(seeds.start, seeds.stop, chunk):
        held.append(smoothed(changes(watch(subject, range(start, min(start + chunk, seeds.stop)), t_c=t_c).x0)))
        grid = held[0].shape[2:]
        gathered = sum(one.shape[1] for one in held)
        if not profile and gathered < min(PROFILE_RUNS, len(seeds)):
            continue
        if not profile:
            profile = torch.cat(held, 1).double().flatten(2).mean((1, 2)).tolist()
        for d in held:
            largest.append(torch.stack([one.flatten(1).amax(1) for one in temporal_scores(d, profile)]).cpu())
        held = []
    still, jump = torch.cat(largest, 1).double().numpy()
    return fit([level.logsnr for level in schedule.before[:t_c]], grid, profile, still, jump)


def changes(x0: Tensor) -> Tensor:
    """Of predictions [K + 1, R, C, H, W]: float32 [K, R, H, W], as mode "calibrated" banks them."""
    return maps_of(x0.float(), AscedConfig.fast())[:, :, 0]
