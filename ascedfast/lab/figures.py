# SPDX-License-Identifier: MIT
"""From the results of cells to figures, each with n, interval, seeds, source hash and command."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ascedfast.lab.flags import flags_of
from ascedfast.lab.sources import source_of
from ascedfast.lab.statistics import Estimate, paired_bootstrap, seed_set_interval, wilson
from ascedfast.lab.suites import Cell, Result, command_of

BASES = ("original", "state replacement", "score clipping", "permuted", "rolled")
"""Runs that the others of a seed set are compared with, where they are there."""


class MissingFigure(LookupError):
    """A figure that a claim or a page needs is not there."""


@dataclass(frozen=True)
class Figure:
    """One published number. seeds: (first, past the last). settings: what else tells it from others."""

    suite: str
    family: str
    part: str
    measure: str
    run: str
    value: float
    low: float
    high: float
    n: int
    seeds: tuple[int, int]
    settings: tuple[tuple[str, Any], ...]
    source: str
    command: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON; infinities and NaN as words."""
        plain = dict(self.__dict__) | Estimate(self.value, self.low, self.high, self.n).to_dict()
        return plain | {"seeds": list(self.seeds), "settings": dict(self.settings)}

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self.low, self.high, self.n)


class Figures:
    """All figures of some results, and the results themselves."""

    def __init__(self, results: Mapping[Cell, Result], source: str) -> None:
        self.results, self.source = dict(results), source
        self._sources: dict[str, str] = {}
        self.all = [*self._own(), *self._combined()]

    def find(self, suite: str, family: str, measure: str, run: str, part: str | None = None, **settings) -> Figure:
        """Raises: MissingFigure where there is none, or more than one."""
        found = [
            one
            for one in self.all
            if (one.suite, one.family, one.measure, one.run) == (suite, family, measure, run)
            and part in (None, one.part)
            and settings.items() <= dict(one.settings).items()
        ]
        if len(found) != 1:
            raise MissingFigure(f"{len(found)} figures: {suite}, {family}, {part or 'any part'}, {measure}, {run}")
        return found[0]

    def sets(self, suite: str, family: str) -> dict[str, list[tuple[Cell, Result]]]:
        """The seed sets of each part that has ``values``, in order."""
        parts: dict[str, list[tuple[Cell, Result]]] = {}
        for cell, result in sorted(self.results.items(), key=lambda pair: pair[0].start):
            if (cell.suite, cell.family) == (suite, family) and "absent" not in result:
                parts.setdefault(cell.part, []).append((cell, result))
        return parts

    def save(self, path: Path) -> None:
        """JSON, one figure a line."""
        lines = [json.dumps(one.to_dict()) for one in self.all]
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n")

    def _make(self, cells: Sequence[Cell], measure: str, run: str, estimate: Estimate, settings=()) -> Figure:
        one = cells[0]
        seeds = (min(cell.start for cell in cells), max(cell.start + cell.count for cell in cells))
        command = command_of([one.suite], [one.family], one.size)
        where = (one.suite, one.family, one.part)
        source = self._sources.get(one.family) or self._sources.setdefault(
            one.family, source_of(one.family, self.source)
        )
        return Figure(*where, measure, run, *estimate, seeds, tuple(settings), source, command)

    def _own(self) -> Iterator[Figure]:
        for cell, result in self.results.items():
            for entry in result.get("figures", ()):
                numbers = [float(entry[name]) for name in ("value", "low", "high")]
                estimate = Estimate(*numbers, int(entry["n"]))
                yield self._make([cell], entry["measure"], entry["run"], estimate, cell.settings)

    def _combined(self) -> Iterator[Figure]:
        for suite, family in {(cell.suite, cell.family) for cell in self.results}:
            for sets in self.sets(suite, family).values():
                yield from self._of_sets(sets)

    def _of_sets(self, sets: list[tuple[Cell, Result]]) -> Iterator[Figure]:
        cells = [cell for cell, _ in sets]
        values = [result["values"] for _, result in sets if "values" in result]
        if len(values) == len(sets) and len(sets) > 1:
            for run in values[0]:
                for measure in values[0][run]:
                    column = _column(values, run, measure)
                    if column is None or measure == "defect rate":
                        continue
                    yield self._make(cells, measure, run, seed_set_interval(column))
                    for base in BASES:
                        other = _column(values, base, measure)
                        if other is not None and run not in (base, "real against real"):
                            difference = [a - b for a, b in zip(column, other, strict=True)]
                            name = f"{measure} less {base}'s"
                            yield self._make(cells, name, run, seed_set_interval(difference))
        if all("values" in result and "flags" in result for _, result in sets):
            yield from self._of_flags(cells, joined_flags(sets))

    def _of_flags(self, cells: list[Cell], flags: dict[str, np.ndarray]) -> Iterator[Figure]:
        for run, one in flags.items():
            yield self._make(cells, "defect rate", run, wilson(int(one.sum()), len(one)))
            for base in BASES:
                if base in flags and run != base:
                    yield self._make(cells, f"defect rate less {base}'s", run, difference_of(one, flags[base]))


def difference_of(one: np.ndarray, base: np.ndarray) -> Estimate:
    """Rate of flags bool [n] less that of the same images' others; paired bootstrap.

    Where no image differs, a bootstrap would give no width: then Wilson's limit for 0 of n, both ways."""
    difference = one.astype(float) - base
    if difference.any():
        return paired_bootstrap(np.mean, difference)
    most = wilson(0, len(one)).high
    return Estimate(0.0, -most, most, len(one))


def joined_flags(sets: list[tuple[Cell, Result]]) -> dict[str, np.ndarray]:
    """bool [n] of each run, over all seed sets in order."""
    runs = sets[0][1]["flags"]
    text = {run: "".join(result["flags"].get(run, "") for _, result in sets) for run in runs}
    return {run: flags_of(one) for run, one in text.items() if one}


def _column(values: list[dict[str, dict[str, float]]], run: str, measure: str) -> list[float] | None:
    """One measure of a run over the seed sets; None where a set has none."""
    column = [one.get(run, {}).get(measure) for one in values]
    return None if any(v is None or not math.isfinite(v) for v in column) else column
