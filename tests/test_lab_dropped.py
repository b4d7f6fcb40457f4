# SPDX-License-Identifier: MIT
"""Bars that too little was measured for, bounds instead of figures, and the words about both."""

import math

import pytest

from ascedfast.lab import bar_page
from ascedfast.lab.bars import IDS, decide
from ascedfast.lab.evidence import weighed
from ascedfast.lab.faint import CONTRASTS
from ascedfast.lab.plan import Cell
from ascedfast.lab.suites import cells_of


def cell(suite, family, part="x", **settings):
    return Cell(suite, family, part, "full", 1_000_000, 100, tuple(sorted(settings.items())))


def rows_of(parts):
    return {row["id"]: row for row in decide(parts, {}, dict.fromkeys(IDS, ""))}


def sized(measured, families=("F1", "F2", "F3", "F4"), sides=("8 px", "40 %")):
    """Traps on plain ground of these sides, all found, of the named (family, side)."""
    rows = {"hit": "1" * 100, "rival": "0" * 100, "severity": [1.0] * 100, "quarter": True}
    some, none = {"figures": [], "rows": rows}, {"absent": "no place"}
    return {
        cell("recall", family, side, ground="plain", side=side): some if (family, side) in measured else none
        for family in families
        for side in sides
    }


def test_d6_needs_every_side_and_half_of_all():
    def d6(measured):
        found, dropped = weighed(sized(measured))
        return rows_of(found)["D6"]["met"], [one.words for one in dropped]

    enough = {("F1", "8 px"), ("F1", "40 %"), ("F2", "40 %"), ("F3", "40 %")}
    assert d6(enough) == (True, [])
    few = "5 of 8 not measured, too many: F2 40 %, F2 8 px, F3 8 px, F4 40 %, F4 8 px"
    assert d6(enough - {("F2", "40 %")}) == (False, [few])
    one_side = {(family, "40 %") for family in ("F1", "F2", "F3", "F4")}
    met, (words,) = d6(one_side)
    assert not met
    assert words == "4 of 8 not measured, too many: F1 8 px, F2 8 px, F3 8 px, F4 8 px"
    assert d6(set())[0] is False


def test_the_note_says_what_counts_for_nothing(tmp_path, monkeypatch):
    rows = dict.fromkeys(("persisting", "persisting, rival", "absorbed", "absorbed, rival"), "1")
    (one,) = cells_of(["leaps"], ["toy"], "small")
    monkeypatch.setattr(bar_page, "read_results", lambda *_: {one: {"figures": [], "rows": rows}})
    found = {row["id"]: row for row in bar_page.decided(tmp_path, ["toy"], "small", "one")[0]}
    assert found["D5"]["note"] == "toy: 1 jumps persist, 20 are needed"


def halves(ours, rival, hits):
    """A cell of 2,400 faint traps: contrasts at half recall, and the rival's hits."""
    numbers = ("value", "low", "high", "n")
    figures = [
        {"measure": "contrast at half recall, 1%", "run": run, **dict(zip(numbers, (*limits, 2400), strict=True))}
        for run, limits in (("calibrated", ours), ("rival", rival))
    ]
    return {cell("faint", "F2", ground="textured"): {"figures": figures, "rows": {"rival": hits}}}


@pytest.mark.parametrize("rival", [("inf", 0.0, "inf"), ("inf", 32.0, "inf"), ("nan", 0.0, "inf")])
def test_a_rival_that_never_hits_half_is_taken_as_the_largest_contrast(rival):
    (part,), (note,) = weighed(halves((10.0, 8.0, 12.0), rival, "1" * 20 + "0" * 2380))
    assert part.estimate.high == pytest.approx(12 / max(CONTRASTS))
    assert rows_of([part])["D4b"]["met"]
    assert note == ("D4", "F2: the rival hits 20 of 2400, half at no contrast tried: taken as 32 levels, its least")
    (part,), _ = weighed(halves((22.0, 18.0, 28.0), rival, "1" * 20 + "0" * 2380))
    assert not rows_of([part])["D4b"]["met"]


def test_a_rival_with_a_fit_keeps_it():
    (part,), dropped = weighed(halves((10.0, 8.0, 12.0), (20.0, 16.0, 24.0), "10" * 1200))
    assert part.estimate.value == pytest.approx(0.5)
    assert dropped == []
    # Most are hit at any contrast: that is no bound, and no figure.
    (part,), dropped = weighed(halves((10.0, 8.0, 12.0), ("nan", 0.0, "inf"), "1110" * 600))
    assert math.isnan(part.estimate.value)
    assert dropped == []
