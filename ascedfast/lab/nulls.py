# SPDX-License-Identifier: MIT
"""What sound runs of a subject score: the tables that mode "calibrated" is tried with, from tuning seeds alone."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ascedfast.calibration.runs import PROFILE_RUNS, StepRuns, WindowEnd
from ascedfast.calibration.table import Null, NullTable
from ascedfast.calibration.windows import smoothed
from ascedfast.lab.corrections import CONFIGS, prefix_at, t_c_of, watch
from ascedfast.lab.detectors import changes
from ascedfast.lab.seeds import TuningSeeds
from ascedfast.lab.subject import Subject, ability

CHUNK = 100
"""Runs at once; what is held for the profile is of so many and PROFILE_RUNS together."""


def table_of(subject: Subject, seeds: TuningSeeds, steps: Sequence[int] = (), chunk: int = CHUNK) -> NullTable:
    """The table of a subject's runs of these seeds.

    Args: steps: numbers of steps, for subjects that have ``with_steps``; default: the subject's own.
    Raises: ValueError, see ``fit``; MissingAbility.
    """
    runs = [ability(subject, "with_steps")(count) for count in steps] or [subject]
    nulls = sorted((null_of(one, seeds, chunk) for one in runs), key=lambda null: len(null.profile))
    return NullTable(tuple(nulls), "", f"{subject.name}, {len(seeds)} runs each")


def null_of(subject: Subject, seeds: TuningSeeds, chunk: int = CHUNK) -> Null:
    """Of one number of steps; the profile is that of the first PROFILE_RUNS runs. Raises: ValueError, TypeError."""
    t_c = t_c_of(subject.schedule, CONFIGS["official"])
    return nulls_at(subject, seeds, (t_c,), chunk)[t_c]


def nulls_at(subject: Subject, seeds: TuningSeeds, times: Sequence[int], chunk: int = CHUNK) -> dict[int, Null]:
    """Of several T_c, all from the same runs. Raises: ValueError, TypeError."""
    gathered = {t_c: _empty(subject, t_c) for t_c in times}
    _gather(subject, seeds, gathered, chunk)
    return {t_c: runs.null(len(seeds)) for t_c, runs in gathered.items()}


def pooled_table(sources: Sequence[Subject], seeds: TuningSeeds, steps: Sequence[int]) -> NullTable:
    """A table for grids of any size: the scores of all sources pooled, by a profile that is the mean of theirs.

    Args: seeds, steps: of the sources' runs. Raises: ValueError, TypeError, MissingAbility.
    """
    nulls = []
    for count in steps:
        runs = [ability(source, "with_steps")(count) for source in sources]
        nulls.append(dataclasses.replace(_pooled(runs, seeds), grid=()))  # serves any
    nulls.sort(key=lambda null: len(null.profile))
    return NullTable(tuple(nulls), "", f"{' and '.join(one.name for one in sources)}, {len(seeds)} runs each")


def _pooled(sources: Sequence[Subject], seeds: TuningSeeds) -> Null:
    """Raises: ValueError where the sources' windows differ."""
    times = {t_c_of(source.schedule, CONFIGS["official"]) for source in sources}
    if len(times) > 1:
        raise ValueError(f"windows of several lengths cannot be pooled: T_c at {sorted(times)}")
    (t_c,) = times
    first = TuningSeeds(seeds.start, min(seeds.stop, seeds.start + PROFILE_RUNS))
    profiles, squares = [], []
    for source in sources:
        one = {t_c: _empty(source, t_c)}
        _gather(source, first, one, CHUNK)
        profiles.append(np.array(one[t_c].profile) / np.mean(one[t_c].profile))
        squares.append(one[t_c].x0_noise ** 2)
    pooled = _empty(sources[0], t_c)
    pooled.profile, pooled.x0_noise = np.mean(profiles, 0).tolist(), float(np.mean(squares)) ** 0.5
    for source in sources:
        _gather(source, seeds, {t_c: pooled}, CHUNK)
    return pooled.null(len(pooled.still))


def _empty(subject: Subject, t_c: int) -> StepRuns:
    return StepRuns(len(subject.schedule), [level.logsnr for level in subject.schedule.before[:t_c]])


def _gather(subject: Subject, seeds: TuningSeeds, gathered: dict[int, StepRuns], chunk: int) -> None:
    """Add the subject's runs of these seeds, in place, to what is gathered for each T_c."""
    if not isinstance(seeds, TuningSeeds):
        raise TypeError(f"tables are made of tuning seeds, got {type(seeds).__name__}")
    for start in range(seeds.start, seeds.stop, chunk):
        prefix = watch(subject, range(start, min(start + chunk, seeds.stop)), t_c=min(gathered))
        for t_c in sorted(gathered):
            prefix = prefix_at(subject, prefix, t_c)
            end = WindowEnd(prefix.x, prefix.x0[-1], *subject.schedule.after[t_c - 1])
            gathered[t_c].take(smoothed(changes(prefix.x0)), end, min(PROFILE_RUNS, len(seeds)))
