# SPDX-License-Identifier: MIT
"""Seeds for tuning and seeds for reporting: two types that do not mix, and a log of every look at the second."""

import datetime
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

TUNING_STOP = 100_000
REPORTING_START = 1_000_000
REPORTING_STOP = 1 << 63


@dataclass(frozen=True)
class SeedRange:
    """Seeds start .. stop - 1. Use ``TuningSeeds`` or ``ReportingSeeds``."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if type(self) is SeedRange:
            raise TypeError("choose TuningSeeds or ReportingSeeds")
        for name in ("start", "stop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
        least, most = self._limits()
        if not least <= self.start < self.stop <= most:
            kind, got = type(self).__name__, f"{self.start}..{self.stop - 1}"
            raise ValueError(f"{kind} lie in {least}..{most - 1} and hold at least one, got {got}")

    @classmethod
    def _limits(cls) -> tuple[int, int]:
        raise NotImplementedError

    @classmethod
    def of(cls, start: int, count: int) -> Self:
        """``count`` seeds from ``start``."""
        return cls(start, start + count)

    def __len__(self) -> int:
        return self.stop - self.start

    def split(self, parts: int) -> tuple[Self, ...]:
        """``parts`` disjoint ranges of equal size, in order: the seed sets of a t-interval.

        Raises: ValueError where they cannot be equal."""
        if parts < 1 or len(self) % parts:
            raise ValueError(f"{len(self)} seeds do not make {parts} equal sets")
        size = len(self) // parts
        return tuple(type(self)(self.start + i * size, self.start + (i + 1) * size) for i in range(parts))


@dataclass(frozen=True)
class TuningSeeds(SeedRange):
    """Seeds 0 .. 99,999: for choosing thresholds and anything else that is chosen."""

    @classmethod
    def _limits(cls) -> tuple[int, int]:
        return 0, TUNING_STOP

    @property
    def seeds(self) -> range:
        return range(self.start, self.stop)


@dataclass(frozen=True)
class ReportingSeeds(SeedRange):
    """Seeds from 1,000,000: for figures that are published. They are handed out by ``look`` only."""

    @classmethod
    def _limits(cls) -> tuple[int, int]:
        return REPORTING_START, REPORTING_STOP

    def look(self, log: str | os.PathLike, *, suite: str, cell: str, source: str) -> range:
        """The seeds, after a line about it in the log: no look without a trace.

        Args:
            log: file of JSON lines, appended to, made with its folder where missing.
            suite, cell: what the seeds are used for. source: hash of the code that uses them.
        Raises: ValueError where one of the three is empty; OSError where the log cannot be written.
        """
        entry = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "suite": suite,
            "cell": cell,
            "start": self.start,
            "stop": self.stop,
            "source": source,
        }
        for name in ("suite", "cell", "source"):
            if not isinstance(entry[name], str) or not entry[name]:
                raise ValueError(f"a look at the reporting seeds must name its {name}")
        path = Path(log)
        path.parent.mkdir(parents=True, exist_ok=True)
        # One write to a file opened for appending: lines of several processes do not mix.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(entry) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return range(self.start, self.stop)


def read_looks(log: str | os.PathLike) -> list[dict[str, Any]]:
    """Every look so far, oldest first; [] where there is no log. stop is exclusive."""
    path = Path(log)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_apart(ranges: Iterable[SeedRange]) -> None:
    """Raises: TypeError where tuning and reporting seeds stand together, ValueError where two ranges share a seed."""
    ranges = list(ranges)
    kinds = {type(one).__name__ for one in ranges}
    if len(kinds) > 1:
        raise TypeError(f"{' and '.join(sorted(kinds))} must not be mixed")
    ordered = sorted(ranges, key=lambda one: one.start)
    for before, after in itertools.pairwise(ordered):
        if after.start < before.stop:
            raise ValueError(f"{before} and {after} share seeds")
