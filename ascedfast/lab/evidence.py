# SPDX-License-Identifier: MIT
"""From the cells of the detector's suites to the parts that its bars are decided by. Formulas: ``docs/measures.md``."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ascedfast.lab.bars import Part
from ascedfast.lab.faint import CONTRASTS
from ascedfast.lab.figures import difference_of, joined_flags
from ascedfast.lab.flags import flags_of
from ascedfast.lab.found import RATES, two_sample_auroc
from ascedfast.lab.plan import Cell
from ascedfast.lab.statistics import (
    Estimate,
    less_share,
    paired_bootstrap,
    ratio_of,
    ratio_of_proportions,
    seed_set_interval,
    wilson,
)
from ascedfast.lab.suites import Result

Results = Mapping[Cell, Result]
Pairs = list[tuple[Cell, Result]]
GAIN_SHARE = 0.25
LEAST_JUMPS = 20
"""Persisting jumps of a family without which it has no part in D5: one image more or less decides nothing."""
NOTHING = Estimate(0.0, 0.0, 0.0, 0)
UNMEASURED = Estimate(math.nan, math.nan, math.nan, 0)
"""Lies inside no limits: what a bar needs and no cell measured."""
UNDECIDED_SIDE = "50 %"
"""Reported, but no bin of D6."""


class Dropped(NamedTuple):
    """What was measured and is no part of an id, and why."""

    id: str
    words: str


Found = Iterator[Part | Dropped]


def weighed(results: Results) -> tuple[list[Part], list[Dropped]]:
    """Every part that the results hold, and what counts for none."""
    makers = (_rates, _traps, _sides, _auroc, _faint, _leaps, _mend, _instant, _redraw, _noising)
    found = [one for make in makers for one in make(results)]
    return [one for one in found if isinstance(one, Part)], [one for one in found if isinstance(one, Dropped)]


def left_out(results: Results, suites: Sequence[str]) -> list[str]:
    """What cells of these suites did not measure, and why."""
    lines = []
    for cell, result in results.items():
        if cell.suite not in suites:
            continue
        reasons = [result["absent"]] if "absent" in result else []
        reasons += [f"{name}: {why}" for name, why in result.get("series", {}).get("left out", {}).items()]
        lines += [f"{cell.suite}, {cell.family}, {cell.part}: {why}" for why in reasons]
    return sorted(set(lines))


def _of(results: Results, suite: str) -> dict[str, Pairs]:
    """The cells of a suite that measured something, by family, in the order of their seeds."""
    found: dict[str, Pairs] = {}
    for cell, result in sorted(results.items(), key=lambda pair: pair[0].start):
        if cell.suite == suite and "absent" not in result:
            found.setdefault(cell.family, []).append((cell, result))
    return found


def _none_of(bar: str, results: Results, suite: str) -> Iterator[Part]:
    """A bar on how many there were, of families whose cells measured nothing."""
    families = {cell.family for cell in results if cell.suite == suite} - _of(results, suite).keys()
    yield from (Part(bar, family, NOTHING) for family in sorted(families))


def _figures(result: Result, measure: str) -> dict[str, Estimate]:
    """By run."""
    return {
        one["run"]: Estimate(*(float(one[name]) for name in ("value", "low", "high")), int(one["n"]))
        for one in result.get("figures", ())
        if one["measure"] == measure
    }


def _share(flags: np.ndarray) -> Estimate:
    return wilson(int(flags.sum()), len(flags))


def _over(one: Estimate, by: float) -> Estimate:
    return Estimate(one.value / by, one.low / by, one.high / by, one.n)


def _unserved(results: Results) -> Iterator[Part]:
    """Of families to be held against the package's table, those of which it served no cell."""
    asked, served = set(), set()
    for cell, result in results.items():
        if cell.suite == "rates" and cell["packaged"]:
            asked.add(cell.family)
            runs = {one["run"] for one in result.get("figures", ())}
            served |= {cell.family} if "packaged table" in runs else set()
    yield from (Part("D1a", f"{family}, no window served", UNMEASURED) for family in sorted(asked - served))


def _rates(results: Results) -> Iterator[Part]:
    yield from _unserved(results)
    for family, pairs in _of(results, "rates").items():
        for rate in RATES:
            own: dict[int, Estimate] = {}
            for cell, result in pairs:
                found = _figures(result, f"flagged, nominal {rate:.0%}")
                label = f"{family}, {cell['steps']} steps, {rate:.0%}"
                for bar, run in (("D1a", "packaged table"), ("D1b", "own table")):
                    if run in found:
                        yield Part(bar, label, _over(found[run], rate))
                if "own table" in found:
                    own[cell["steps"]] = found["own table"]
            if len(own) > 1 and 50 in own:
                least = min(own)
                ratio = ratio_of_proportions(own[50], own[least])
                yield Part("D1c", f"{family}, 50 over {least} steps, {rate:.0%}", ratio)
        for cell, result in pairs:
            if not cell["judged"]:
                continue
            for bar, measure, run in (
                ("D2", "clean area flagged", "calibrated"),
                ("D7b", "p-values from uniform, KS", "own table"),
            ):
                if (one := _figures(result, measure).get(run)) is not None:
                    yield Part(bar, f"{family}, {cell['steps']} steps", one)


def _traps(results: Results) -> Iterator[Part]:
    yield from _none_of("D3d", results, "recall")
    for family, pairs in _of(results, "recall").items():
        quarter = [(cell, result["rows"]) for cell, result in pairs if result["rows"]["quarter"]]
        for bar, ground in (("D3a", "plain"), ("D3b", "textured")):
            hits = [flags_of(rows["hit"]) for cell, rows in quarter if cell["ground"] == ground]
            if hits:
                yield Part(bar, f"{family}, {ground}", _share(np.concatenate(hits)))
        if not quarter:
            yield Part("D3d", family, NOTHING)
        else:
            missed, rival = (
                np.concatenate([~flags_of(rows[name]) for _, rows in quarter]) for name in ("hit", "rival")
            )
            yield Part("D3c", family, paired_bootstrap(np.mean, missed - 0.5 * rival))
            yield Part("D3d", family, Estimate(*[float(len(missed))] * 3, len(missed)))


def _sides(results: Results) -> Found:
    """A part a side and family; where too few of them could be measured, one that lies outside."""
    planned: dict[tuple[str, str], bool] = {}
    for cell, result in results.items():
        if cell.suite == "recall" and cell["ground"] == "plain" and cell["side"] != UNDECIDED_SIDE:
            planned[cell.family, cell["side"]] = "absent" not in result
            if "absent" not in result:
                yield Part("D6", f"{cell.family}, {cell['side']}", _share(flags_of(result["rows"]["hit"])))
    sides = {side for (_, side), measured in planned.items() if measured}
    if len(sides) < len({side for _, side in planned}) or 2 * sum(planned.values()) < len(planned):
        yield Part("D6", "too few sides and families", UNMEASURED)
        names = sorted(f"{family} {side}" for (family, side), measured in planned.items() if not measured)
        yield Dropped("D6", f"{len(names)} of {len(planned)} not measured, too many: {', '.join(names)}")


def _auroc(results: Results) -> Iterator[Part]:
    nulls = {
        family: result["rows"]["severity"]
        for family, pairs in _of(results, "rates").items()
        for _, result in pairs
        if "rows" in result
    }
    for family, pairs in _of(results, "recall").items():
        traps = [one for _, result in pairs if result["rows"]["quarter"] for one in result["rows"]["severity"]]
        if traps and family in nulls:
            yield Part("D7a", family, two_sample_auroc(np.array(traps), np.array(nulls[family])))


def _faint(results: Results) -> Found:
    for family, pairs in _of(results, "faint").items():
        for cell, result in pairs:
            found = _figures(result, "contrast at half recall, 1%")
            if cell["ground"] == "plain":
                yield Part("D4a", f"{family}, plain", found["calibrated"])
                continue
            rival, hits = found["rival"], flags_of(result["rows"]["rival"])
            if never_half(rival, hits):
                largest = max(CONTRASTS)
                rival = Estimate(math.inf, largest, math.inf, rival.n)
                words = f"the rival hits {hits.sum()} of {len(hits)}, half at no contrast tried: taken as {largest:g}"
                yield Dropped("D4", f"{family}: {words} levels, its least")
            yield Part("D4b", f"{family}, textured", ratio_of(found["calibrated"], rival))


def never_half(half: Estimate, hits: np.ndarray) -> bool:
    """Whether half recall lies beyond the contrasts tried; few hits that do not rise with contrast have no fit."""
    return math.isinf(half.value) or (math.isnan(half.value) and hits.mean() < 0.5)


def _leaps(results: Results) -> Found:
    for family, pairs in _of(results, "leaps").items():
        rows = {
            name: np.concatenate([flags_of(result["rows"][name]) for _, result in pairs])
            for name in ("persisting", "absorbed", "persisting, rival")
        }
        if (count := len(rows["persisting"])) < LEAST_JUMPS:
            yield Dropped("D5", f"{family}: {count} jumps persist, {LEAST_JUMPS} are needed")
            continue
        if len(rows["absorbed"]):
            yield Part("D5a", family, less_share(_share(rows["absorbed"]), _share(rows["persisting"]), 1 / 3))
        yield Part("D5b", family, difference_of(rows["persisting"], rows["persisting, rival"]))


def _mend(results: Results) -> Iterator[Part]:
    for family, pairs in _of(results, "mend").items():
        for cell, result in pairs:
            if cell.part == "controls" and "flags" in result:
                flags = joined_flags([(cell, result)])
                for bar, base in (("D8a", "original"), ("D8b", "permuted")):
                    yield Part(bar, family, difference_of(flags["corrected"], flags[base]))
        values = [result["values"] for _, result in pairs]
        if len(values) < 2:
            continue
        worse = [one["corrected"]["fd_local"] / one["original"]["fd_local"] - 1 for one in values]
        yield Part("D9a", family, seed_set_interval(worse))
        for bar, measure, base in (
            ("D9b", "precision", "original"),
            ("D9c", "recall", "original"),
            ("D9d", "recall", "state replacement"),
        ):
            less = [one["corrected"][measure] - one[base][measure] for one in values]
            yield Part(bar, family, seed_set_interval(less))


def _instant(results: Results) -> Found:
    """Of families whose gain excludes 0."""
    for family, pairs in _of(results, "instant").items():
        flags = {name: one.astype(float) for name, one in joined_flags(pairs).items()}
        gained = difference_of(flags["best"], flags["original"])
        if gained.high >= 0:
            limits = f"{gained.low:.3g} to {gained.high:.3g}"
            yield Dropped("D10", f"{family}: no gain at the best T_c, defect rate less none's is {limits}")
            continue
        regret, gain = flags["rule"] - flags["best"], flags["original"] - flags["best"]
        yield Part("D10", family, paired_bootstrap(np.mean, regret - GAIN_SHARE * gain))


def _redraw(results: Results) -> Iterator[Part]:
    for family, pairs in _of(results, "redraw").items():
        flags = joined_flags(pairs)
        for name, one in flags.items():
            each = [result["values"][name]["evaluations"] for _, result in pairs]
            spent = np.average(each, weights=[cell.count for cell, _ in pairs])
            yield Part("D11", f"{family}, {name}, {spent:.1f} evaluations", _share(one))


def _noising(results: Results) -> Iterator[Part]:
    yield from _none_of("D12d", results, "noising")
    for family, pairs in _of(results, "noising").items():
        found = [result["values"]["corrected"] for _, result in pairs]
        for bar, measure in (
            ("D12a", "variance over the original's"),
            ("D12b", "kurtosis less that of the original"),
            ("D12c", "seam over the original's"),
        ):
            column = [one[measure] for one in found if measure in one]
            if len(column) > 1:
                yield Part(bar, family, seed_set_interval(column))
        total = sum(one["values"] for one in found)
        yield Part("D12d", family, Estimate(total, total, total, int(total)))
