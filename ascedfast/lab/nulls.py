# SPDX-License-Identifier: MIT
"""What sound runs of a subject score: the tables that mode "calibrated" is tried with, from tuning seeds alone."""

from collections.abc import Sequence

from ascedfast.calibration.runs import PROFILE_RUNS, StepRuns
from ascedfast.calibration.table import Null, NullTable
from ascedfast.calibration.windows import smoothed
from ascedfast.lab.corrections import CONFIGS, t_c_of, watch
from ascedfast.lab.detectors import changes
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
    levels = subject.schedule.before[: t_c_of(subject.schedule, CONFIGS["official"])]
    gathered = StepRuns(len(subject.schedule), [level.logsnr for level in levels])
    for start in range(seeds.start, seeds.stop, chunk):
        prefix = watch(subject, range(start, min(start + chunk, seeds.stop)), t_c=len(levels))
        gathered.take(smoothed(changes(prefix.x0)), min(PROFILE_RUNS, len(seeds)))
    return gathered.null(len(seeds))
