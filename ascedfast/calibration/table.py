# SPDX-License-Identifier: MIT
"""What sound runs score: by step count, and between step counts by interpolation; from it, p-values and thresholds."""

import bisect
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ascedfast.calibration.scores import Scores

VERSION = 1
EARLIEST = -12.0
"""logSNR that stands for everything noisier, pure noise included."""
SURVIVAL = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
"""Shares of sound runs whose severities a table knows; rarer ones follow the exponential tail."""
TAIL_FROM = SURVIVAL[-1]
LEAST_RUNS = 100
LEAST_SCORE = 1e-3
"""Lower scores are taken for it: the logarithm stays finite."""


@dataclass(frozen=True)
class Gumbel:
    """Location and scale of an extreme value distribution, here that of the logarithm of a sample's largest score."""

    location: float
    scale: float


@dataclass(frozen=True)
class Null:
    """Sound runs of one number of steps.

    Attributes:
        logsnr: of the K + 1 predictions of the window, not below EARLIEST.
        profile: K mean changes, by step; only their ratios count.
        still, jump: of the logarithm of a sample's largest score; ``jump`` is None where a window is too short for one.
        levels: severities that the shares SURVIVAL of the runs exceed. tail: mean of what a run exceeds the last of
            them by, if it does. runs: how many there were.
    """

    logsnr: tuple[float, ...]
    profile: tuple[float, ...]
    still: Gumbel
    jump: Gumbel | None
    levels: tuple[float, ...]
    tail: float
    runs: int

    def __post_init__(self) -> None:
        if len(self.logsnr) != len(self.profile) + 1 or len(self.levels) != len(SURVIVAL):
            raise ValueError(
                f"{len(self.logsnr)} levels of noise, {len(self.profile)} changes, {len(self.levels)} levels"
            )
        if not isinstance(self.still, Gumbel):
            raise ValueError("a table without the distribution of stillness")
        numbers = [*self.logsnr, *self.profile, *self.levels, self.tail, self.runs]
        numbers += [number for one in (self.still, self.jump) if one for number in dataclasses.astuple(one)]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a number of the table is not finite")
        scales = [one.scale for one in (self.still, self.jump) if one]
        if min(self.profile, default=0) <= 0 or min(self.tail, *scales) <= 0:
            raise ValueError("profile, tail and scales of a table are positive")
        if list(self.levels) != sorted(self.levels):
            raise ValueError("the severities of a table rise as fewer runs exceed them")

    def severity(self, scores: Scores) -> Tensor:
        """Of every location, float32 [R, *grid]: how far its rarer score lies beyond a sound sample's largest, in
        scales of it. A sample's severity is the largest of its locations."""
        found = _scales(scores.still, self.still)
        return found if self.jump is None else torch.maximum(found, _scales(scores.jump, self.jump))

    def p_value(self, severity: float) -> float:
        """Share of sound samples that are at least as severe, in (0, 1]; NaN for NaN."""
        if severity != severity:
            return math.nan
        if severity >= self.levels[-1]:
            return TAIL_FROM * math.exp(-(severity - self.levels[-1]) / self.tail)
        if severity <= self.levels[0]:
            return 1.0
        i = bisect.bisect_right(self.levels, severity)
        low, high = self.levels[i - 1], self.levels[i]
        share = (severity - low) / (high - low)
        return math.exp((1 - share) * math.log(SURVIVAL[i - 1]) + share * math.log(SURVIVAL[i]))

    def threshold(self, rate: float) -> float:
        """The severity that a share ``rate`` of sound samples exceeds. Raises: ValueError outside (0, SURVIVAL[0]]."""
        if not 0 < rate <= SURVIVAL[0]:
            raise ValueError(f"a rate of false alarms lies between 0 and {SURVIVAL[0]}, got {rate}")
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
    """

    nulls: tuple[Null, ...]
    pipeline: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        counts = [len(null.profile) for null in self.nulls]
        if not counts or counts != sorted(set(counts)):
            raise ValueError(f"a table has one null for each number of changes, fewest first, got {counts}")

    def at(self, logsnr: Sequence[float]) -> Null:
        """The null of a window whose predictions have these logSNR, in the order of the run.

        Between two entries by the logarithm of the number of changes; the profile by change per unit of logSNR.
        Outside of them the nearest entry stands.
        Raises: ValueError for fewer than two predictions.
        """
        levels = tuple(max(EARLIEST, value) for value in logsnr)
        count = len(levels) - 1
        if count < 1:
            raise ValueError(f"{len(levels)} predictions have no change between them")
        for null in self.nulls:
            if null.logsnr == levels:
                return null
        counts = [len(null.profile) for null in self.nulls]
        i = bisect.bisect_left(counts, count)
        low, high = self.nulls[max(0, i - 1)], self.nulls[min(i, len(counts) - 1)]
        share = 0.0
        if low is not high and len(low.profile) < count:
            share = math.log(count / len(low.profile)) / math.log(len(high.profile) / len(low.profile))
        share = min(1.0, share)
        return _between(low, high, share, levels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        entries = [{**dataclasses.asdict(null), "survival": SURVIVAL} for null in self.nulls]
        return {"version": VERSION, "pipeline": self.pipeline, "note": self.note, "nulls": entries}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of ``to_dict``. Raises: ValueError, KeyError, TypeError for what is no table."""
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}, this is version {VERSION}: calibrate again")
        nulls = tuple(_null(entry) for entry in values["nulls"])
        return cls(nulls, str(values["pipeline"]), str(values["note"]))

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
        except (UnicodeDecodeError, RecursionError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no table of sound runs: {error}") from error


def _scales(score: Tensor, by: Gumbel) -> Tensor:
    # In float64: a vectorised logarithm of float32 differs in its last bit between places in memory.
    return ((score.double().clamp(min=LEAST_SCORE).log() - by.location) / by.scale).float()


def _null(entry: dict[str, Any]) -> Null:
    entry = dict(entry)
    if tuple(entry.pop("survival")) != SURVIVAL:
        raise ValueError("its severities are of other shares of runs")
    for name in ("still", "jump"):
        entry[name] = entry[name] and Gumbel(**entry[name])
    for name in ("logsnr", "profile", "levels"):
        entry[name] = tuple(float(value) for value in entry[name])
    return Null(**entry)


def _between(low: Null, high: Null, share: float, levels: tuple[float, ...]) -> Null:
    def mix(a: float, b: float) -> float:
        return (1 - share) * a + share * b

    def gumbel(a: Gumbel | None, b: Gumbel | None) -> Gumbel | None:
        if a is None or b is None:
            return b if a is None else a
        return Gumbel(mix(a.location, b.location), mix(a.scale, b.scale))

    still = gumbel(low.still, high.still)
    assert still is not None
    steps = itertools.pairwise(levels)
    profile = tuple(
        mix(_density(low, (a + b) / 2), _density(high, (a + b) / 2)) * max(abs(b - a), 1e-6) for a, b in steps
    )
    return Null(
        levels,
        profile,
        still,
        gumbel(low.jump, high.jump) if len(profile) > 2 else None,
        tuple(mix(a, b) for a, b in zip(low.levels, high.levels, strict=True)),
        mix(low.tail, high.tail),
        min(low.runs, high.runs),
    )


def _density(null: Null, logsnr: float) -> float:
    """Change for each unit of logSNR, scaled to a mean profile of 1: linear between the middles of its steps."""
    unit = sum(null.profile) / len(null.profile)
    steps = list(itertools.pairwise(null.logsnr))
    middles = [(a + b) / 2 for a, b in steps]
    values = [change / unit / max(abs(b - a), 1e-6) for change, (a, b) in zip(null.profile, steps, strict=True)]
    i = bisect.bisect_left(middles, logsnr)
    if i in (0, len(middles)):
        return values[min(i, len(values) - 1)]
    share = (logsnr - middles[i - 1]) / (middles[i] - middles[i - 1])
    return (1 - share) * values[i - 1] + share * values[i]
