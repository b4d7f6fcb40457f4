# SPDX-License-Identifier: MIT
"""The detector's bars: from measured parts to verdicts, by the table of ``docs/measures.md``.

A part is inside its bar when its interval is, not its value. An id is met when all of its bars are.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ascedfast.lab.statistics import Estimate


class Part(NamedTuple):
    """One measured case of a bar. label: where it was measured, the family first."""

    bar: str
    label: str
    estimate: Estimate

    @property
    def family(self) -> str:
        return self.label.partition(",")[0]


@dataclass(frozen=True)
class Bar:
    """id: "D1a". low, high: limits of the interval, None for none. share: of the parts that must lie within. suites:
    what is measured by."""

    id: str
    words: str
    suites: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    share: float = 1.0

    @property
    def of(self) -> str:
        return self.id.rstrip("abcdef")

    def margin(self, one: Estimate) -> float:
        """How far the interval lies inside; below 0 outside, minus infinity for what is no number."""
        ends = [one.low - self.low] if self.low is not None else []
        ends += [self.high - one.high] if self.high is not None else []
        return -math.inf if any(map(math.isnan, ends)) else min(ends, default=0.0)

    @property
    def limits(self) -> str:
        """In words."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f">= {self.low:g}"
        return "stands" if self.high is None else f"<= {self.high:g}"


BARS: tuple[Bar, ...] = (
    Bar("D1a", "false-flag rate over the nominal one, the package's table", ("rates",), 0.5, 2.0),
    Bar("D1b", "false-flag rate over the nominal one, own table, 95 % of cells", ("rates",), 0.5, 1.5, 0.95),
    Bar("D1c", "false-flag rate at 50 steps over that at the fewest", ("rates",), 0.67, 1.5),
    Bar("D2", "area flagged of clean null images", ("rates",), None, 0.01),
    Bar("D3a", "recall of traps at 1 %, plain ground", ("recall",), 0.9),
    Bar("D3b", "recall of traps at 1 %, textured ground", ("recall",), 0.75),
    Bar("D3c", "misses less half of the rival's", ("recall",), None, 0.0),
    Bar("D3d", "traps a family", ("recall",), 1000),
    Bar("D4a", "contrast at half recall, plain ground, grey levels", ("faint",), None, 8.0),
    Bar("D4b", "contrast at half recall over the rival's, textured ground", ("faint",), None, 0.6),
    Bar("D5a", "absorbed jumps flagged less a third of the persisting", ("leaps",), None, 0.0),
    Bar("D5b", "persisting jumps flagged less the rival's", ("leaps",), 0.0),
    Bar("D6", "recall of traps at 1 % by size, plain ground", ("recall",), 0.9),
    Bar("D7a", "AUROC of severity, traps against null runs", ("recall", "rates"), 0.95),
    Bar("D7b", "distance of p-values from uniform", ("rates",), None, 0.05),
    Bar("D8a", "defect rate, corrected less none", ("mend",), None, 0.0),
    Bar("D8b", "defect rate, corrected less permuted masks", ("mend",), None, 0.0),
    Bar("D9a", "fd_local, corrected over uncorrected less 1", ("mend",), None, 0.02),
    Bar("D9b", "precision, corrected less uncorrected", ("mend",), -0.01),
    Bar("D9c", "recall, corrected less uncorrected", ("mend",), -0.01),
    Bar("D9d", "recall, corrected less state replacement", ("mend",), -0.01),
    Bar("D10", "regret less a quarter of the gain", ("instant",), None, 0.0),
    Bar("D11", "defect rate against evaluations", ("redraw",)),
    Bar("D12a", "variance of the noised state over the original's", ("noising",), 0.99, 1.01),
    Bar("D12b", "kurtosis of the noised state less the original's", ("noising",), -0.1, 0.1),
    Bar("D12c", "seam energy over the original's", ("noising",), None, 1.05),
    Bar("D12d", "values a family", ("noising",), 1e6),
)
IDS = tuple(dict.fromkeys(bar.of for bar in BARS))
D8_LEAST = 3
"""Families of the five in which both differences of D8 must lie below 0."""


def decide(parts: Iterable[Part], missing: Mapping[str, str], commands: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows {id, value, low, high, bar, met, n, command, where}: the bars of each id, then the id.

    Args: missing: ids whose cells are not all there; they are open (met None). commands: by id, what makes its cells.
    An id's numbers are those of its first bar that is not met, or of its first; a bar's those of its weakest part.
    A bar without any part is not met.
    """
    by_bar: dict[str, list[Part]] = {bar.id: [] for bar in BARS}
    for part in parts:
        by_bar[part.bar].append(part)
    rows = []
    for id in IDS:
        bars = [bar for bar in BARS if bar.of == id]
        found = [_row(bar, by_bar[bar.id], id in missing, commands[id]) for bar in bars]
        if len(bars) > 1:
            rows += found
        first = next((row for row in found if not row["met"]), found[0])
        met = None if id in missing else all(row["met"] for row in found)
        if id == "D8" and id not in missing:
            met = mended(by_bar["D8a"], by_bar["D8b"])
        rows.append(first | {"id": id, "met": met, "bar": "; ".join(row["bar"] for row in found)})
    return rows


def _row(bar: Bar, parts: Sequence[Part], open_: bool, command: str) -> dict[str, Any]:
    words = f"{bar.words}: {bar.limits}"
    row: dict[str, Any] = {"id": bar.id, "value": None, "low": None, "high": None, "bar": words, "met": None, "n": 0}
    row |= {"command": command, "where": ""}
    if open_ or not parts:
        return row | {"met": None if open_ else False}
    weakest = min(parts, key=lambda part: bar.margin(part.estimate))
    return row | weakest.estimate.to_dict() | {"met": met_by(bar, parts), "where": weakest.label}


def met_by(bar: Bar, parts: Sequence[Part]) -> bool:
    """Whether enough of the parts lie within; of D8 by the rule of ``mended`` for one of the two."""
    if bar.of == "D8":
        return mended(parts, parts)
    return sum(bar.margin(part.estimate) >= 0 for part in parts) >= bar.share * len(parts)


def mended(less_none: Sequence[Part], less_permuted: Sequence[Part]) -> bool:
    """Both differences lie below 0 in D8_LEAST families or more, and none lies above 0 in any."""
    below = [{part.family for part in parts if part.estimate.high < 0} for parts in (less_none, less_permuted)]
    above = [part for part in (*less_none, *less_permuted) if part.estimate.low > 0]
    return len(below[0] & below[1]) >= D8_LEAST and not above
