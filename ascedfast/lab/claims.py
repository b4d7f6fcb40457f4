# SPDX-License-Identifier: MIT
"""The verdicts on the 17 claims, from figures, by the rules of ``docs/measures.md``.

A claim holds in a family when all of its conditions hold there; it fails outright when one interval lies wholly on the
other side. Reproduced: it holds in more than half of the families and fails outright in none.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from ascedfast.lab.figures import Figures, MissingFigure, joined_flags
from ascedfast.lab.plan import role_of
from ascedfast.lab.statistics import Estimate, paired_bootstrap
from ascedfast.lab.suites import SUITES, Cell, cells_of, command_of

Verdict = Literal["reproduced", "not reproduced", "not testable here"]
KNEE = (0.40, 0.56)
ACCURACY = 0.65
SECONDS = 0.09
SHARE = 0.01


class MissingResults(LookupError):
    """Cells that a claim needs are not there; the message names some and the command that makes them."""


class Case(NamedTuple):
    """A claim in one family. holds, opposite: as above. estimate: of the weakest condition. margin: how far inside the
    rule that is, below 0 where it does not hold; the smallest margin is the weakest case."""

    family: str
    holds: bool
    opposite: bool
    estimate: Estimate
    margin: float


@dataclass(frozen=True)
class Claim:
    """id, words, the suites it needs and how it is judged in one family; None: no such measurement there. unit: of the
    value, and what n counts."""

    id: str
    words: str
    suites: tuple[str, ...]
    judge: Callable[[Figures, str], Case | None] | None
    unit: str


def above(family: str, limit: float, *estimates: Estimate) -> Case:
    """Every estimate above the limit: its lower end."""
    weakest = min(estimates, key=lambda one: one.low)
    holds, opposite = weakest.low > limit, any(one.high < limit for one in estimates)
    return Case(family, holds, opposite, weakest, weakest.low - limit)


def below(family: str, limit: float, *estimates: Estimate) -> Case:
    """Every estimate below the limit: its upper end."""
    weakest = max(estimates, key=lambda one: one.high)
    holds, opposite = weakest.high < limit, any(one.low > limit for one in estimates)
    return Case(family, holds, opposite, weakest, limit - weakest.high)


def not_above(family: str, limit: float, *estimates: Estimate) -> Case:
    """Every estimate includes the limit or lies below it."""
    weakest = max(estimates, key=lambda one: one.low)
    return Case(family, weakest.low <= limit, weakest.low > limit, weakest, limit - weakest.low)


def includes(family: str, limit: float, one: Estimate) -> Case:
    inside = one.low <= limit <= one.high
    return Case(family, inside, not inside, one, min(limit - one.low, one.high - limit))


def both(*cases: Case) -> Case:
    """All conditions of one family together."""
    weakest = min(cases, key=lambda case: (case.holds, case.margin))
    return weakest._replace(holds=all(case.holds for case in cases), opposite=any(case.opposite for case in cases))


def verdict(cases: Sequence[Case]) -> Verdict:
    """Reproduced when it holds in more than half of the families and the opposite in none. Raises: ValueError for []"""
    if not cases:
        raise ValueError("no family speaks about this claim")
    holding = sum(case.holds for case in cases)
    fails = any(case.opposite for case in cases)
    return "reproduced" if 2 * holding > len(cases) and not fails else "not reproduced"


def c1(figures: Figures, family: str) -> Case:
    cases = []
    for kind, suffix in (("trap", " persisting"), ("jump", ""), ("stroke", "")):
        for measure, limit in (("pixel auroc", 0.5), ("pixel auroc less final variance", 0.0)):
            found = figures.find("detection", family, measure + suffix, "official", kind, side="mixed").estimate
            cases.append(above(family, limit, found))
    return both(*cases)


def c2(figures: Figures, family: str) -> Case | None:
    cases = []
    for kind in ("jump", "stroke", "natural"):
        if kind not in {one.part for one in figures.all if (one.suite, one.family) == ("acceleration", family)}:
            continue
        for name in ("rises up to k*", "falls after k*"):
            share = figures.find("acceleration", family, f"images whose A {name}", kind).estimate
            p = figures.find("acceleration", family, f"sign test, A {name}", kind).value
            holds = share.value > 0.5 and p < 0.025
            cases.append(Case(family, holds, share.high < 0.5, share, share.low - 0.5))
        quiet = figures.find("acceleration", family, "steps at which a outside includes 0", kind).estimate
        cases.append(Case(family, quiet.value >= 0.9, quiet.high < 0.9, quiet, quiet.value - 0.9))
    return both(*cases) if cases else None


def c3(figures: Figures, family: str) -> Case | None:
    if family != "F5" and role_of(family).of is None:
        return None
    try:
        area = figures.find("natural", family, "pixel auroc for defects at t_c", "official").estimate
    except MissingFigure:
        return None
    lead = figures.find("natural", family, "steps from the first auroc above .5 to the last", "d").value
    case = above(family, 0.5, area)
    return case._replace(holds=case.holds and lead > 0)


def c4(figures: Figures, family: str) -> Case:
    peak = figures.find("natural", family, "peak of abnormal locations, t/T", "fast").estimate
    more = figures.find("natural", family, "further maxima of half the height", "fast").value
    holds = peak.low > 0.1 and peak.high < 0.9 and more == 0
    margin = min(peak.low - 0.1, 0.9 - peak.high) if more == 0 else -more
    return Case(family, holds, peak.high <= 0.1 or peak.low >= 0.9, peak, margin)


def c5(figures: Figures, family: str) -> Case | None:
    """value: the knee; low, high: the earliest and the latest point whose paired difference to the best includes 0."""
    if not role_of(family).linear:
        return None
    points = []
    for sets in figures.sets("t_c", family).values():
        points.append((sets[0][1]["series"]["share"], joined_flags(sets)["official"].astype(float)))
    if not points or not any(flags.any() for _, flags in points):  # no defect at any T_c: no knee either
        return None
    points.sort(key=lambda point: point[0])
    best = min(points, key=lambda point: point[1].mean())[1]
    equal = [share for share, flags in points if paired_bootstrap(np.mean, flags - best).low <= 0]
    knee = equal[-1]
    margin = min(knee - KNEE[0], KNEE[1] - knee)
    outside = knee < KNEE[0] or equal[0] > KNEE[1]
    return Case(family, margin >= 0, outside, Estimate(knee, equal[0], knee, len(best)), margin)


def c6(figures: Figures, family: str) -> Case | None:
    bases = ("original", "state replacement", "score clipping")
    found = [_find(figures, "corrections", family, f"fd_local less {base}'s", "official") for base in bases]
    return None if None in found else below(family, 0.0, *found)


def c7(figures: Figures, family: str) -> Case | None:
    inside = _find(figures, "diversity", family, "diversity inside less replacement's", "official")
    measure = "less state replacement's"
    recall = _find(figures, "corrections", family, f"recall of 500 {measure}", "official")
    recall = recall or _find(figures, "corrections", family, f"recall {measure}", "official")
    if inside is None or recall is None:
        return None
    defects = _find(figures, "corrections", family, f"defect rate {measure}", "official")
    case = above(family, 0.0, recall, inside)
    return case if defects is None else case._replace(holds=case.holds and defects.low <= 0)


def c9(figures: Figures, family: str) -> Case | None:
    found = _find(figures, "accuracy", family, "balanced accuracy", "official")
    return None if found is None else above(family, ACCURACY, found)


def c11(figures: Figures, family: str) -> Case:
    more = [one for one in figures.all if (one.suite, one.family) == ("calls", family)]
    worst = max(more, key=lambda one: abs(one.value)).estimate
    return Case(family, worst.value == 0, worst.value != 0, worst, -abs(worst.value))


def c12(figures: Figures, family: str) -> Case | None:
    measures = ("defect rate less original's", "fd_local less original's")
    found = [_find(figures, "harm", family, measure, "forced") for measure in measures]
    return None if None in found else not_above(family, 0.0, *found)


def c13(figures: Figures, family: str) -> Case | None:
    if role_of(family).of is None:
        return None
    sets = figures.sets("evaluations", family)
    if not sets:
        return None
    steps = sorted(sets, key=int)
    flags = np.stack([joined_flags(sets[k])["original"] for k in steps], 1).astype(float)
    if flags.min() == flags.max():  # nothing that could follow the number of steps
        return None

    def trend(rows: np.ndarray) -> float:
        if rows.min() == rows.max():
            return 0.0
        return float(stats.spearmanr(np.tile(np.arange(len(steps)), len(rows)), rows.ravel()).statistic)

    return includes(family, 0.0, paired_bootstrap(trend, flags, draws=1000))


def c14(figures: Figures, family: str) -> Case | None:
    found = _find(figures, "probe", family, "probe accuracy less original's", "official")
    return None if found is None else above(family, 0.0, found)


def c15(figures: Figures, family: str) -> Case:
    found = [
        figures.find("natural", family, "variation of w*s less", name).estimate for name in ("s", "x0_hat", "s'*v")
    ]
    return below(family, 0.0, *found)


def c16(figures: Figures, family: str) -> Case | None:
    found = _find(figures, "strokes", family, "traps less strokes, mean square", "original")
    return None if found is None else above(family, 0.0, found)


def _find(figures: Figures, suite: str, family: str, measure: str, run: str) -> Estimate | None:
    try:
        return figures.find(suite, family, measure, run).estimate
    except MissingFigure:
        return None


CLAIMS: tuple[Claim, ...] = (
    Claim("C1", "artifacts show intense dynamics", ("detection",), c1, "AUROC, or less the final variance's; plants"),
    Claim("C2", "acceleration, then deceleration", ("acceleration",), c2, "share of steps or images; of these"),
    Claim("C3", "dynamics at T_c predict what is visible at the end", ("natural",), c3, "AUROC; images"),
    Claim("C4", "stable phase, middle peak, long tail", ("natural",), c4, "t/T of the peak; runs"),
    Claim("C5", "T_c of .48 is the latest that repairs", ("t_c",), c5, "share of the run; seeds"),
    Claim(
        "C6", "beats state replacement, score clipping and the original", ("corrections",), c6, "fd_local; seed sets"
    ),
    Claim(
        "C7",
        "keeps diversity better than replacement",
        ("corrections", "diversity"),
        c7,
        "recall or grey levels; sets or states",
    ),
    Claim("C8", "beats a supervised detector off its domain", (), None, ""),
    Claim("C9", "image-level accuracy of 57-70 % without supervision", ("accuracy",), c9, "accuracy; images"),
    Claim("C10", ".09 s an image", (), None, "share of the time; pipelines"),
    Claim("C11", "no delay, no further evaluation", ("calls",), c11, "calls more; runs"),
    Claim("C12", "false positives do no harm", ("harm",), c12, "fd_local or defect rate; sets or images"),
    Claim(
        "C13", "number of evaluations and artifacts are uncorrelated", ("evaluations",), c13, "Spearman's rho; seeds"
    ),
    Claim("C14", "a linear probe is more accurate after correction", ("probe",), c14, "accuracy; images"),
    Claim("C15", "w(t) evens out the scale over t", ("natural",), c15, "coefficient of variation; runs"),
    Claim(
        "C16",
        "a stroke is refined where generation keeps its artifacts",
        ("strokes",),
        c16,
        "grey levels^2 or sd^2; pairs",
    ),
    Claim("C17", "parity with the released code", (), None, "share of equal masks; sequences"),
)


def decide(
    figures: Figures,
    size: str,
    families: Sequence[str] | None = None,
    *,
    benchmarks: Path | None = None,
    parity: Mapping[str, Any] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, list[Case]]]:
    """Every verdict, and the cases behind it, claim by claim.

    Args:
        families: None: those of each suite. benchmarks: folder of saved benchmark results, for C10. parity: what
            ``lab.parity.count`` gave, for C17.
    Returns: rows for ``claims.json``, in order; {id: cases}.
    Raises: MissingResults, naming cells and command; nothing is decided then.
    """
    needed = sorted({suite for claim in CLAIMS for suite in claim.suites})
    check_complete(figures.results, cells_of(needed, families, size))
    rows, cases = [], {}
    for claim in CLAIMS:
        if claim.judge is None:
            row = {"C8": lambda: _untestable(), "C10": lambda: c10(benchmarks), "C17": lambda: c17(parity)}[claim.id]()
            rows.append({"id": claim.id, **row})
            continue
        names = [name for name in _families(figures.results) if _speaks(figures, claim, name)]
        found = [case for name in names if (case := _case(claim, figures, name)) is not None]
        command = command_of(claim.suites, [] if families is None else families, size)
        cases[claim.id] = found
        if not found:
            rows.append({"id": claim.id, **_row("not testable here", None, command)})
            continue
        decided = verdict(found)
        if claim.id == "C1" and decided == "reproduced" and size == "full":
            holding = {role_of(case.family).net for case in found if case.holds}
            decided = "reproduced" if holding == {"unet", "dit"} else "not reproduced"
        weakest = min(found, key=lambda case: (case.holds, case.margin))
        rows.append({"id": claim.id, **_row(decided, weakest.estimate, command)})
    return rows, cases


def _case(claim: Claim, figures: Figures, family: str) -> Case | None:
    """None too where a complete cell has no such figure: too few plants persisted, or no mask was found."""
    try:
        return claim.judge(figures, family)
    except MissingFigure:
        return None


def _speaks(figures: Figures, claim: Claim, family: str) -> bool:
    """Results of each suite of the claim are there for this family, and not all are absent."""
    for suite in claim.suites:
        own = [result for cell, result in figures.results.items() if (cell.suite, cell.family) == (suite, family)]
        if not any("absent" not in result for result in own):
            return False
    # Weak twins are for natural defects; a claim on plants or scales is about models as they are.
    return role_of(family).of is None or claim.id in ("C3", "C4", "C5", "C6", "C13") or family.startswith("toy")


def _families(cells: Iterable[Cell]) -> list[str]:
    """In the order in which they first stand there."""
    return list(dict.fromkeys(cell.family for cell in cells))


def check_complete(results: Mapping[Cell, Any], wanted: Sequence[Cell]) -> None:
    """Raises: MissingResults for cells without a result."""
    missing = [cell for cell in wanted if cell not in results]
    if not missing:
        return
    suites = [name for name in SUITES if name in {cell.suite for cell in missing}]
    families = _families(missing)
    some = ", ".join(f"{cell.suite}/{cell.family}/{cell.part} from seed {cell.start}" for cell in missing[:5])
    # Of many families none is named: a suite's own are its default, and what is there is not computed again.
    command = command_of(suites, families if len(families) <= 3 else [], missing[0].size)
    raise MissingResults(f"{len(missing)} of {len(wanted)} cells have no result: {some}. Make them with: {command}")


def c10(folder: Path | None) -> dict[str, Any]:
    """Detection and correction of one 256x256 image, and the share of a pipeline's time, from saved benchmarks."""
    command = "python -m benchmarks --save"
    files = [] if folder is None else sorted(folder.glob("*.json"))
    for path in files:
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON ({error}): move it away, or save the benchmarks again") from error
        if not isinstance(loaded, list):
            continue
        records = {entry["id"]: entry for entry in loaded if isinstance(entry, dict) and "id" in entry}
        one = records.get("P2/256x256x3")
        shares = [entry for key, entry in records.items() if key.startswith("P4/") and entry.get("value")]
        if one is None or one.get("ours_us") is None or not shares:
            continue
        ends = [(one.get(end) or one["ours_us"]) / 1e6 for end in ("p20", "p80")]
        seconds = Estimate(one["ours_us"] / 1e6, *ends, len(shares))
        worst = max(shares, key=lambda entry: entry["value"])
        ends = [(worst.get(end) or worst["value"]) - 1 for end in ("p20", "p80")]
        share = Estimate(worst["value"] - 1, *ends, len(shares))
        good = seconds.high < SECONDS and share.value < SHARE
        weakest = share if share.value / SHARE > seconds.high / SECONDS else seconds
        made = dict.fromkeys(entry.get("command") or command for entry in (one, worst))
        return _row("reproduced" if good else "not reproduced", weakest, "; ".join(made))
    raise MissingResults(f"C10 needs the benchmarks P2/256x256x3 and P4 in {folder}. Make them with: {command}")


def c17(parity: Mapping[str, Any] | None) -> dict[str, Any]:
    """value: share of the sequences whose masks are equal in every bit."""
    command = "ascedfast lab claims --parity"
    if parity is None:
        raise MissingResults(f"C17 needs a run of the parity tests. Make it with: {command}")
    good = parity["failed"] == 0 and parity["sequences"] >= 1000
    share = float(good) if parity["failed"] == 0 else 0.0
    return _row("reproduced" if good else "not reproduced", Estimate(share, share, share, parity["sequences"]), command)


def _untestable() -> dict[str, Any]:
    return _row("not testable here", None, command_of(["detection", "corrections"], [], "full"))


def _row(decided: Verdict, estimate: Estimate | None, command: str) -> dict[str, Any]:
    numbers = {"value": None, "low": None, "high": None, "n": 0} if estimate is None else estimate.to_dict()
    return {"verdict": decided, **numbers, "command": command}
