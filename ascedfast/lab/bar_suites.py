# SPDX-License-Identifier: MIT
"""The cells that measure mode "calibrated" by the detector's bars (``docs/measures.md``)."""

from collections.abc import Callable

from ascedfast.lab.plan import Cell
from ascedfast.lab.seeds import REPORTING_START

SOUND = ("F1", "F2", "F3", "F4", "F5")
WEAKEST = ("F1-P30", "F2-W4", "F3-W4", "F4-W4", "F5")
"""Of F1 to F4 the twin whose uncorrected defect rate on tuning seeds is nearest to 20 % (F4's judge finds a defect in
none); F5 as it is."""
PACKAGED = ("F2", "F4", "F5")
"""Families that the package's table was not made of."""
STEPS = (8, 12, 25, 37, 50)
TABLE = ("12 25", "8 12 25 50")
"""Numbers of steps of a family's own table, small and full; those that leave it no window are skipped."""
PACKAGE_TABLE = ("12 25", "6 8 10 12 25 50 100")
"""Those of the package's table: windows of 2 to 47 changes."""
JUDGED_STEPS = 25
"""Whose images are judged for the area flagged, and whose severities stand against the plants'."""
GROUNDS = ("plain", "textured")
SIDES = ("8 px", "10 %", "20 %", "30 %", "40 %", "50 %")

Cells = Callable[[str, str], list[Cell]]


def _runs(size: str) -> dict[str, int]:
    """Of the tables, of the rivals' thresholds, and the plants by which the best rival is chosen."""
    if size == "small":
        return {"runs": 120, "nulls": 60, "tuning": 24}
    return {"runs": 2000, "nulls": 2000, "tuning": 400}


def _cell(suite: str, family: str, part: str, size: str, count: int, place: int = 0, **settings) -> Cell:
    start = REPORTING_START + place * count
    return Cell(suite, family, part, size, start, count, tuple(sorted(settings.items())))


def rates(family: str, size: str) -> list[Cell]:
    toy = family.startswith("toy")
    steps, count = ((12, 25), 60) if size == "small" else (STEPS, 10_000)
    common = {name: _runs(size)[name] for name in ("runs", "nulls")} | {"table": TABLE[size == "full"]}
    common["packaged"] = PACKAGE_TABLE[size == "full"] if toy or family in PACKAGED else ""
    return [
        _cell("rates", family, f"{k} steps", size, count, steps=k, judged=int(k == JUDGED_STEPS), **common)
        for k in steps
    ]


def recall(family: str, size: str) -> list[Cell]:
    strata = [("textured", "40 %")] if size == "small" else [(ground, side) for ground in GROUNDS for side in SIDES]
    counts = dict.fromkeys(GROUNDS, 64) if size == "small" else {"plain": 4000, "textured": 1000}
    # Below 35 plants, not even a recall of 1 has a lower limit of .9.
    settings = ({"most": 20, "least": 8} if size == "small" else {"most": 240, "least": 40}) | _runs(size)
    cells = []
    for k, (ground, side) in enumerate(strata):
        # Seeds of their own: what is pooled over sides must be of different images.
        start = REPORTING_START + k * max(counts.values())
        chosen = tuple(sorted((settings | {"ground": ground, "side": side}).items()))
        cells.append(Cell("recall", family, f"{ground} {side}", size, start, counts[ground], chosen))
    return cells


def faint(family: str, size: str) -> list[Cell]:
    counts = {"textured": 32} if size == "small" else {"plain": 9600, "textured": 4800}
    settings = ({"each": 4, "least": 8} if size == "small" else {"each": 300, "least": 100}) | _runs(size)
    return [_cell("faint", family, ground, size, count, ground=ground, **settings) for ground, count in counts.items()]


def leaps(family: str, size: str) -> list[Cell]:
    count, sets = (48, 1) if size == "small" else (1000, 4)
    return [_cell("leaps", family, "jumps", size, count, i, **_runs(size)) for i in range(sets)]


def mend(family: str, size: str) -> list[Cell]:
    count, sets = (24, 3) if size == "small" else (5000, 10)
    runs = _runs(size)["runs"]
    return [_cell("mend", family, "set" if i else "controls", size, count, i, runs=runs) for i in range(sets)]


def instant(family: str, size: str) -> list[Cell]:
    count, sets, tuning = (24, 2, 24) if size == "small" else (2000, 10, 2000)
    runs = _runs(size)["runs"]
    return [_cell("instant", family, "pairs", size, count, i, runs=runs, tuning=tuning) for i in range(sets)]


def redraw(family: str, size: str) -> list[Cell]:
    count, sets = (24, 2) if size == "small" else (500, 4)
    return [_cell("redraw", family, "outputs", size, count, i, runs=_runs(size)["runs"]) for i in range(sets)]


def noising(family: str, size: str) -> list[Cell]:
    count, sets = (40, 3) if size == "small" else (1000, 10)
    return [_cell("noising", family, "set", size, count, i, runs=_runs(size)["runs"]) for i in range(sets)]


BAR_SUITES: tuple[tuple[str, str, str, Cells, tuple[str, ...]], ...] = (
    ("rates", "Calibrated: sound runs flagged (D1, D2, D7)", "rates:rates", rates, SOUND),
    ("recall", "Calibrated: traps found, by ground and size (D3, D6, D7)", "recall:traps", recall, SOUND),
    ("faint", "Calibrated: the contrast at half recall (D4)", "faint:faint", faint, SOUND),
    ("leaps", "Calibrated: jumps absorbed and persisting (D5)", "recall:jumps", leaps, SOUND),
    ("mend", "Calibrated: weak models corrected (D8, D9)", "mend:mend", mend, WEAKEST),
    ("instant", "Calibrated: the rule of T_c (D10)", "instant:instant", instant, WEAKEST),
    ("redraw", "Calibrated: defects against evaluations (D11)", "redraw:redraw", redraw, WEAKEST),
    ("noising", "Calibrated: what re-noising writes (D12)", "noising:noising", noising, SOUND),
)
"""Name, title, "module:function", cells, families of the full size."""
