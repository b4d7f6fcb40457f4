# SPDX-License-Identifier: MIT
"""What sound runs score: by step count, and between step counts by interpolation; from it, p-values and thresholds."""

import bisect
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from ascedfast.reference_scores import Gumbel, Scores, severity_of

VERSION = 2
EARLIEST = -12.0
"""logSNR that stands for everything noisier, pure noise included."""
SURVIVAL = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
"""Shares of sound runs whose severities a table knows; rarer ones follow the exponential tail."""
TAIL_FROM = SURVIVAL[-1]
LEAST_RUNS = 100
MOST_NOISE = 1e12
LEAST_INTERPOLATED = 4
"""Changes of a window from which on it may be interpolated: shorter ones score by fewer terms."""
END_TOLERANCE, START_TOLERANCE = 0.5, 1.5
"""Units of logSNR by which a window may end and begin beside those of its neighbours in the table."""


@dataclass(frozen=True)
class Null:
    """Sound runs of one number of steps.

    Attributes:
        logsnr: of the K + 1 predictions of the window, not below EARLIEST.
        grid: sizes of the location axes; () for runs of several sizes, whose table serves any.
        profile: K mean changes, by step; only their ratios count.
        still, jump: of the logarithm of a sample's largest score; ``jump`` is None where a window is too short for one.
        levels: severities that the shares SURVIVAL of the runs exceed. tail: mean of what a run exceeds the last of
            them by, if it does. runs: how many there were.
        x0_noise: standard deviation that x0_hat lacks, so that a state noised from it has too small a variance (see
            ``moments.StateMoments``); units of x0_hat.
    """

    logsnr: tuple[float, ...]
    grid: tuple[int, ...]
    profile: tuple[float, ...]
    still: Gumbel
    jump: Gumbel | None
    levels: tuple[float, ...]
    tail: float
    runs: int
    x0_noise: float

    def __post_init__(self) -> None:
        if len(self.logsnr) != len(self.profile) + 1 or len(self.levels) != len(SURVIVAL):
            raise ValueError(
                f"{len(self.logsnr)} levels of noise, {len(self.profile)} changes, {len(self.levels)} levels"
            )
        if not isinstance(self.still, Gumbel) or not isinstance(self.jump, Gumbel | None):
            raise ValueError("still and jump of a table are a location and a scale each")
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in (*self.grid, self.runs)):
            raise ValueError("sizes and numbers of runs are ints of at least 1")
        if (self.jump is None) != (len(self.profile) < 3):
            raise ValueError("windows of three changes and more have a jump, shorter ones have none")
        numbers = [*self.logsnr, *self.profile, *self.levels, self.tail, self.runs, self.x0_noise]
        numbers += [number for one in (self.still, self.jump) if one for number in dataclasses.astuple(one)]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a number of the table is not finite")
        scales = [one.scale for one in (self.still, self.jump) if one]
        if min(self.profile, default=0) <= 0 or min(self.tail, *scales) <= 0:
            raise ValueError("profile, tail and scales of a table are positive")
        if isinstance(self.x0_noise, bool) or not 0 <= self.x0_noise <= MOST_NOISE:
            raise ValueError(f"x0_noise of a table lies in 0..{MOST_NOISE:g}, got {self.x0_noise}")
        if list(self.levels) != sorted(self.levels) or list(self.logsnr) != sorted(self.logsnr):
            raise ValueError("the severities and the logsnr of a table rise")

    def severity(self, scores: Scores) -> Tensor:
        """Of every location, float32 [R, *grid]: how far its rarer score lies beyond a sound sample's largest, in
        scales of it. A sample's severity is the largest of its locations."""
        return severity_of(scores, self.still, self.jump)

    def p_value(self, severity: float) -> float:
        """Share of sound samples that are at least as severe, from 1/(runs + 1) to 1; NaN for NaN."""
        if severity != severity:
            return math.nan
        if severity >= self.levels[-1]:
            return max(1 / (self.runs + 1), TAIL_FROM * math.exp(-(severity - self.levels[-1]) / self.tail))
        if severity <= self.levels[0]:
            return 1.0
        i = bisect.bisect_right(self.levels, severity)
        low, high = self.levels[i - 1], self.levels[i]
        share = (severity - low) / (high - low)
        return math.exp((1 - share) * math.log(SURVIVAL[i - 1]) + share * math.log(SURVIVAL[i]))

    def threshold(self, rate: float) -> float:
        """The severity that a share ``rate`` of sound samples exceeds. Raises: ValueError outside (0, SURVIVAL[0]], and
        for a rate below that of one run."""
        if not 0 < rate <= SURVIVAL[0]:
            raise ValueError(f"a rate of false alarms lies between 0 and {SURVIVAL[0]}, got {rate}")
        if rate < 1 / (self.runs + 1):
            raise ValueError(
                f"a rate of {rate} needs at least {math.ceil(1 / rate)} sound runs, the table has {self.runs}"
            )
        if rate <= TAIL_FROM:
            return self.levels[-1] + self.tail * math.log(TAIL_FROM / rate)
        i = next(i for i, share in enumerate(SURVIVAL) if share <= rate)
        if SURVIVAL[i] == rate:
            return self.levels[i]
        share = math.log(rate / SURVIVAL[i - 1]) / math.log(SURVIVAL[i] / SURVIVAL[i - 1])
        return (1 - share) * self.levels[i - 1] + share * self.levels[i]


@dataclass(frozen=True)
class NullTable:
    """Nulls of several step counts, fewest changes first.

    pipeline: fingerprint of the pipeline whose runs they are; empty for a table of several. note: how it was made.
    prompts: hash of the prompts of its runs; empty without any.
    """

    nulls: tuple[Null, ...]
    pipeline: str = ""
    note: str = ""
    prompts: str = ""

    def __post_init__(self) -> None:
        counts = [len(null.profile) for null in self.nulls]
        if not counts or counts != sorted(set(counts)):
            raise ValueError(f"a table has one null for each number of changes, fewest first, got {counts}")
        if len({null.grid for null in self.nulls}) > 1:
            raise ValueError("the nulls of a table are of one grid")

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of the location axes that the runs had; () for runs of several sizes."""
        return self.nulls[0].grid

    def refusal(self, logsnr: Sequence[float], grid: Sequence[int] | None = None) -> str | None:
        """Why a window of these levels, on this grid, cannot be compared with the table; None where it can."""
        try:
            self.at(logsnr, grid)
        except ValueError as error:
            return str(error)
        return None

    def at(self, logsnr: Sequence[float], grid: Sequence[int] | None = None) -> Null:
        """The null of a window whose predictions have these logSNR, in the order of the run.

        Between two entries by the logarithm of the number of changes; the profile by the place in the window.
        A table of several sizes serves any grid, and windows that begin anywhere.
        Raises: ValueError for a window that begins or ends elsewhere (another T_c), has fewer or more changes than the
            table knows, or lies on another grid; the message says what to do.
        """
        if grid is not None and self.grid and tuple(grid) != self.grid:
            raise ValueError(f"the table is of a grid of {self.grid}, the run has {tuple(grid)}: calibrate at its size")
        levels = tuple(max(EARLIEST, value) for value in logsnr)
        for null in self.nulls:
            if len(null.logsnr) == len(levels) and np.allclose(null.logsnr, levels, rtol=0, atol=1e-6):
                return null
        count = len(levels) - 1
        near = [null for null in self.nulls if len(null.profile) >= LEAST_INTERPOLATED or len(null.profile) == count]
        counts = [len(null.profile) for null in near]
        known = ", ".join(str(len(null.profile)) for null in self.nulls)
        if not counts or not counts[0] <= count <= counts[-1]:
            raise ValueError(
                f"{count} changes before T_c, the table knows windows of {known}, and what lies between those of "
                f"{LEAST_INTERPOLATED} and more: calibrate this number of steps"
            )
        i = bisect.bisect_left(counts, count)
        low, high = near[i if counts[i] == count else i - 1], near[i]
        places = (0, START_TOLERANCE), (-1, END_TOLERANCE)
        if not self.grid:  # runs of several processes begin anywhere, and end a step before one level
            places = ((-1, max(END_TOLERANCE, levels[-1] - levels[-2])),)
        for place, tolerance in places:
            ends = low.logsnr[place], high.logsnr[place]
            if not min(ends) - tolerance <= levels[place] <= max(ends) + tolerance:
                raise ValueError(
                    f"the window reaches from logSNR {levels[0]:.2f} to {levels[-1]:.2f}, the table's to "
                    f"{min(ends):.2f}..{max(ends):.2f} there: it is of runs with another T_c or other noise levels"
                )
        if low is high:
            return _between(low, low, 0.0, levels)
        share = math.log(count / len(low.profile)) / math.log(len(high.profile) / len(low.profile))
        return _between(low, high, share, levels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        entries = [{**dataclasses.asdict(null), "survival": SURVIVAL} for null in self.nulls]
        return {
            "version": VERSION,
            "pipeline": self.pipeline,
            "note": self.note,
            "prompts": self.prompts,
            "nulls": entries,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of ``to_dict``. Raises: ValueError, KeyError, TypeError for what is no table."""
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}, this is version {VERSION}: calibrate again")
        nulls = tuple(_null(entry) for entry in values["nulls"])
        return cls(nulls, *(str(values[name]) for name in ("pipeline", "note", "prompts")))

    def save(self, path: Path) -> None:
        """Write JSON; a file that is there is replaced whole or not at all."""
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote. Raises: OSError; ValueError for what is no such table, saying which file."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (UnicodeDecodeError, RecursionError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} holds no table of sound runs: {error}") from error


def _null(entry: dict[str, Any]) -> Null:
    entry = dict(entry)
    if tuple(entry.pop("survival")) != SURVIVAL:
        raise ValueError("its severities are of other shares of runs")
    for name in ("still", "jump"):
        entry[name] = entry[name] and Gumbel(**entry[name])
    entry["grid"] = tuple(entry["grid"])
    for name in ("logsnr", "profile", "levels"):
        entry[name] = tuple(float(value) for value in entry[name])
    return Null(**entry)


def _between(low: Null, high: Null, share: float, levels: tuple[float, ...]) -> Null:
    def mix(a: float, b: float) -> float:
        return (1 - share) * a + share * b

    def gumbel(a: Gumbel | None, b: Gumbel | None) -> Gumbel | None:
        if a is None or b is None:  # of windows too short for one, which are no two
            return None
        return Gumbel(mix(a.location, b.location), mix(a.scale, b.scale))

    count = len(levels) - 1
    profiles = (_resampled(one.profile, count) for one in (low, high))
    return Null(
        levels,
        low.grid,
        tuple(mix(a, b) for a, b in zip(*profiles, strict=True)),
        gumbel(low.still, high.still),
        gumbel(low.jump, high.jump),
        tuple(mix(a, b) for a, b in zip(low.levels, high.levels, strict=True)),
        mix(low.tail, high.tail),
        min(low.runs, high.runs),
        mix(low.x0_noise, high.x0_noise),
    )


def _resampled(profile: tuple[float, ...], count: int) -> list[float]:
    """The profile of a window of ``count`` changes, by place in the window, scaled to a mean of 1."""
    places = [(k + 0.5) / count for k in range(count)]
    known = [(k + 0.5) / len(profile) for k in range(len(profile))]
    values = np.interp(places, known, profile)
    return (values / values.mean()).tolist()
