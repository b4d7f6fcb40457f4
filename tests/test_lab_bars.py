# SPDX-License-Identifier: MIT
"""The detector's bars: every one met, missed and open, on made-up figures; and the figures from made-up cells."""

import json
import math

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from ascedfast.cli import app
from ascedfast.lab import sources
from ascedfast.lab.bar_page import BEGIN, END, SUITES, bars_table, suites_of, write_bars
from ascedfast.lab.bars import BARS, IDS, Part, decide
from ascedfast.lab.evidence import left_out, weighed
from ascedfast.lab.plan import Cell
from ascedfast.lab.statistics import Estimate, less_share, ratio_of, ratio_of_proportions, wilson
from ascedfast.lab.suites import SUITES as ALL
from ascedfast.lab.suites import cells_of

FAMILIES = ("F1", "F2", "F3", "F4", "F5")
COMMANDS = dict.fromkeys(IDS, "ascedfast lab run")


def inside(bar):
    """An estimate within the bar's limits, of some width."""
    low = bar.high - 2 if bar.low is None else bar.low
    high = low + 2 if bar.high is None else bar.high
    if bar.of == "D8":
        low, high = -2.0, -1.0
    return Estimate((low + high) / 2, low + (high - low) / 4, high - (high - low) / 4, 1000)


def outside(bar):
    """A value within the limits, the interval beyond them: the limit counts."""
    one = inside(bar)
    low = one.low if bar.low is None else bar.low - 0.01 * max(1, abs(bar.low))
    high = one.high if bar.high is None else bar.high + 0.01 * max(1, abs(bar.high))
    return Estimate(one.value, low, high, one.n)


LIMITED = [bar for bar in BARS if bar.low is not None or bar.high is not None]


def parts(**changed):
    """Every bar met by every family, but those named."""
    free = Estimate(0.2, 0.1, 0.3, 1000)
    made = []
    for bar in BARS:
        for family in FAMILIES:
            good = inside(bar) if bar in LIMITED else free
            made.append(Part(bar.id, family, changed.get(bar.id, {}).get(family, good)))
    return made


def rows_of(found, missing=()):
    return {row["id"]: row for row in decide(found, dict.fromkeys(missing, "cells"), COMMANDS)}


def test_every_bar_met():
    rows = rows_of(parts())
    assert {id for id, row in rows.items() if not row["met"]} == set()
    assert set(IDS) <= rows.keys()
    assert len(rows) == len(BARS) + sum(len([bar for bar in BARS if bar.of == id]) > 1 for id in IDS)
    for row in rows.values():
        assert {"id", "value", "low", "high", "bar", "met", "n", "command"} <= row.keys()
    json.dumps(list(rows.values()), allow_nan=False)


@pytest.mark.parametrize("bar", [bar for bar in LIMITED if bar.of != "D8"], ids=lambda bar: bar.id)
def test_each_bar_missed_by_the_limit_of_one_family(bar):
    rows = rows_of(parts(**{bar.id: {"F3": outside(bar)}}))
    assert rows[bar.of]["met"] is False
    assert rows[bar.id]["met"] is False
    assert rows[bar.of]["where"] == rows[bar.id]["where"] == "F3"
    assert rows[bar.of]["low"] == outside(bar).low
    assert {id for id, row in rows.items() if not row["met"]} == {bar.id, bar.of}


@pytest.mark.parametrize("id", IDS)
def test_each_id_open_where_cells_are_missing(id):
    rows = rows_of(parts(), [id])
    assert rows[id]["met"] is None
    assert rows[id]["value"] is None
    assert all(row["met"] for key, row in rows.items() if key.rstrip("abcdef") != id)


@pytest.mark.parametrize("id", IDS)
def test_what_nothing_measured_is_not_met(id):
    rows = rows_of([part for part in parts() if part.bar.rstrip("abcdef") != id])
    assert rows[id]["met"] is False


def test_nineteen_cells_of_twenty_are_enough_for_d1b():
    bar = next(bar for bar in BARS if bar.id == "D1b")
    others = [part for part in parts() if part.bar != "D1b"]

    def met(bad):
        cells = [Part("D1b", f"F{i}", outside(bar) if i < bad else inside(bar)) for i in range(40)]
        return rows_of(others + cells)["D1"]["met"]

    assert [met(bad) for bad in (0, 2, 3)] == [True, True, False]


def test_d8_takes_three_families_below_and_none_above():
    open_, above = Estimate(-0.1, -0.3, 0.1, 5000), Estimate(0.2, 0.1, 0.3, 5000)
    assert rows_of(parts(D8a={"F1": open_, "F2": open_}))["D8"]["met"]
    assert not rows_of(parts(D8a={"F1": open_, "F2": open_, "F3": open_}))["D8"]["met"]
    # Three families each, but not the same three.
    mixed = {"D8a": {"F1": open_, "F2": open_}, "D8b": {"F4": open_, "F5": open_}}
    rows = rows_of(parts(**mixed))
    assert rows["D8a"]["met"]
    assert rows["D8b"]["met"]
    assert not rows["D8"]["met"]
    assert not rows_of(parts(D8b={"F5": above}))["D8"]["met"]


def test_what_is_no_number_is_outside():
    assert not rows_of(parts(D4b={"F2": Estimate(math.nan, math.nan, math.nan, 9)}))["D4"]["met"]
    assert not rows_of(parts(D4a={"F2": Estimate(math.nan, 0.0, math.inf, 9)}))["D4"]["met"]
    assert rows_of(parts(D4a={"F2": Estimate(0.0, 0.0, 2.0, 9)}))["D4"]["met"]


def test_katz_against_the_formula():
    a, b = wilson(120, 10_000), wilson(100, 9_000)
    found = ratio_of_proportions(a, b)
    error = math.sqrt(1 / 120 - 1 / 10_000 + 1 / 100 - 1 / 9_000)
    assert found.value == pytest.approx(1.2 * 0.9)
    assert found.high == pytest.approx(1.08 * math.exp(1.959964 * error), rel=1e-6)
    assert found.low == pytest.approx(1.08 / math.exp(1.959964 * error), rel=1e-6)
    assert math.isfinite(ratio_of_proportions(wilson(0, 100), b).high)


def test_the_interval_of_a_difference_covers():
    """A - P/3 of two independent proportions, 1,000 times: 95 % within three standard errors."""
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        a, p = random.binomial(400, 0.2), random.binomial(150, 0.7)
        found = less_share(wilson(a, 400), wilson(p, 150), 1 / 3)
        inside += found.low <= 0.2 - 0.7 / 3 <= found.high
    assert abs(inside / 1000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 1000)


def test_ratios_of_bounds_are_bounds():
    one, never = Estimate(4.0, 3.0, 5.0, 300), Estimate(math.inf, 32.0, math.inf, 300)
    found = ratio_of(one, never)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(5 / 32)
    assert ratio_of(Estimate(0.0, 0.0, 2.0, 9), one)[:3] == pytest.approx((0.0, 0.0, 2 / 3))
    plain = ratio_of(one, Estimate(8.0, 6.0, 10.0, 300))
    assert plain.value == pytest.approx(0.5)
    assert plain.low < 0.5 < plain.high
    assert math.isnan(ratio_of(never, never).value)


def cell(suite, family, part="x", start=1_000_000, count=100, **settings):
    return Cell(suite, family, part, "full", start, count, tuple(sorted(settings.items())))


def entry(measure, run, *numbers):
    return {"measure": measure, "run": run, **dict(zip(("value", "low", "high", "n"), numbers, strict=True))}


def by_bar(results):
    found = {}
    for part in weighed(results)[0]:
        found.setdefault(part.bar, []).append(part)
    return found


def test_rates_become_shares_of_the_nominal():
    results = {}
    for steps, hits in ((12, 100), (50, 130)):
        made = wilson(hits, 10_000)
        figures = [entry("flagged, nominal 1%", "own table", *made), entry("flagged, nominal 5%", "own table", *made)]
        results[cell("rates", "F1", steps=steps, judged=0, packaged="")] = {"figures": figures}
    results[cell("rates", "F1", "8 steps", steps=8, judged=0, packaged="")] = {"absent": "2 predictions precede step 2"}
    found = by_bar(results)
    assert [part.estimate.value for part in found["D1b"]] == pytest.approx([1, 1.3, 0.2, 0.26])
    assert found["D1c"][0].estimate.value == pytest.approx(1.3)
    assert found["D1c"][0].label == "F1, 50 over 12 steps, 1%"
    assert left_out(results, ["rates"]) == ["rates, F1, 8 steps: 2 predictions precede step 2"]


def test_a_family_that_the_package_table_never_serves_misses_d1a():
    made = wilson(100, 10_000)
    results = {}
    for family, run in (("F2", "own table"), ("F4", "packaged table"), ("F1", "own table")):
        settings = {"steps": 25, "judged": 0, "packaged": "" if family == "F1" else "10 12"}
        results[cell("rates", family, **settings)] = {"figures": [entry("flagged, nominal 1%", run, *made)]}
    results[cell("rates", "F5", "12 steps", steps=12, judged=0, packaged="10 12")] = {"absent": "refused"}
    found = {part.family: part for part in by_bar(results)["D1a"]}
    assert set(found) == {"F2", "F4", "F5"}
    bar = next(bar for bar in BARS if bar.id == "D1a")
    assert [bar.margin(found[family].estimate) >= 0 for family in ("F2", "F4", "F5")] == [False, True, False]
    row = rows_of(weighed(results)[0])["D1a"]
    assert row["met"] is False
    assert row["where"] == "F2, no window served"
    json.dumps(row, allow_nan=False)


def test_traps_pool_the_cells_of_a_quarter_side_and_more():
    def trap(side, hit, rival, quarter=True):
        rows = {"hit": hit, "rival": rival, "severity": [1.0] * len(hit), "quarter": quarter}
        return {cell("recall", "F1", f"plain {side}", ground="plain", side=side): {"figures": [], "rows": rows}}

    results = trap("8 px", "0000", "0000", False) | trap("20 %", "1110", "0000") | trap("50 %", "111111", "100000")
    nulls = {"figures": [], "rows": {"severity": [0.0, 0.5, 2.0, 0.1]}}
    results[cell("rates", "F1", steps=25, judged=1, packaged="")] = nulls
    found = by_bar(results)
    assert found["D3a"][0].estimate[:1] + found["D3a"][0].estimate[3:] == (0.9, 10)
    assert found["D3c"][0].estimate.value == pytest.approx(0.1 - 0.45)
    assert found["D3d"][0].estimate.value == 10
    assert {part.label: part.estimate.value for part in found["D6"]} == {"F1, 8 px": 0.0, "F1, 20 %": 0.75}
    assert found["D7a"][0].estimate.value == 0.75  # three of four nulls lie below
    assert "D3b" not in found


def test_mended_families_and_seed_sets():
    random = np.random.default_rng(1)
    results = {}
    for i in range(10):
        defects = random.random(100) < 0.5
        fewer = defects & (random.random(100) < 0.5)
        text = {name: "".join("01"[int(v)] for v in one) for name, one in (("original", defects), ("corrected", fewer))}
        flags = text | ({"permuted": text["original"]} if i == 0 else {})
        base = {"fd_local": 2.0, "precision": 0.5, "recall": 0.4}
        values = {"original": base, "corrected": base | {"fd_local": 2.2, "recall": 0.35}, "state replacement": base}
        part = "set" if i else "controls"
        results[cell("mend", "F5", part, 1_000_000 + 100 * i)] = {"values": values, "flags": flags}
    found = by_bar(results)
    assert found["D8a"][0].estimate == found["D8b"][0].estimate
    assert found["D8a"][0].estimate.high < 0
    assert found["D8a"][0].estimate.n == 100
    assert found["D9a"][0].estimate.value == pytest.approx(0.1)
    assert [found[bar][0].estimate.value for bar in ("D9b", "D9c", "D9d")] == pytest.approx([0, -0.05, -0.05])


def test_regret_counts_where_there_is_a_gain():
    def pairs(original, rule, best):
        return {"flags": {"original": original, "rule": rule, "best": best}}

    results = {
        cell("instant", "F1-P30"): pairs("1" * 80 + "0" * 20, "1" * 50 + "0" * 50, "1" * 40 + "0" * 60),
        cell("instant", "F3-W4"): pairs("1" * 20 + "0" * 80, "1" * 20 + "0" * 80, "1" * 20 + "0" * 80),
    }
    (part,) = by_bar(results)["D10"]
    assert part.family == "F1-P30"
    assert weighed(results)[1] == [
        ("D10", "F3-W4: no gain at the best T_c, defect rate less none's is -0.037 to 0.037")
    ]
    assert part.estimate.value == pytest.approx(0.1 - 0.25 * 0.4)


def test_jumps_and_noise_and_ways():
    rows = {"persisting": "1" * 30, "persisting, rival": "1" * 20 + "0" * 10, "absorbed": "1" * 5 + "0" * 95}
    rows["absorbed, rival"] = rows["absorbed"]
    results = {cell("leaps", "F1"): {"figures": [], "rows": rows}}
    for i in range(4):
        one = {"variance over the original's": 1 + 0.001 * i, "kurtosis less that of the original": 0.0, "values": 4e5}
        results[cell("noising", "F1", start=1_000_000 + 100 * i)] = {"values": {"corrected": one}}
    ways = {"values": {"original": {"evaluations": 25.0}}, "flags": {"original": "1" * 10 + "0" * 90}}
    results[cell("redraw", "F5")] = ways
    found = by_bar(results)
    assert found["D5a"][0].estimate.value == pytest.approx(0.05 - 1 / 3)
    assert found["D5b"][0].estimate.value == pytest.approx(1 / 3)
    column = [1, 1.001, 1.002, 1.003]
    half = stats.t.ppf(0.975, 3) * np.std(column, ddof=1) / 2
    assert found["D12a"][0].estimate.high == pytest.approx(1.0015 + half)
    assert found["D12d"][0].estimate.value == 1.6e6
    assert "D12c" not in found
    assert found["D11"][0].label == "F5, original, 25.0 evaluations"


def test_few_jumps_decide_nothing_and_families_without_a_trap_count():
    rows = dict.fromkeys(("persisting", "persisting, rival", "absorbed", "absorbed, rival"), "1")
    results = {cell("leaps", "F1"): {"figures": [], "rows": rows | {"persisting, rival": "0"}}}
    results |= {cell(suite, "F5", ground="textured"): {"absent": "no place"} for suite in ("recall", "noising")}
    found = by_bar(results)
    assert "D5b" not in found
    assert weighed(results)[1] == [("D5", "F1: 1 jumps persist, 20 are needed")]
    assert [(part.family, part.estimate.value) for bar in ("D3d", "D12d") for part in found[bar]] == [("F5", 0.0)] * 2


def test_a_limit_that_is_no_number_is_outside():
    bar = next(bar for bar in BARS if bar.id == "D1a")
    assert bar.margin(Estimate(1.0, 0.9, math.nan, 9)) == bar.margin(Estimate(1.0, math.nan, 1.1, 9)) == -math.inf


def test_the_full_cells_are_as_large_as_the_table_asks():
    cells = cells_of(SUITES, None, "full")
    assert len(set(cells)) == len(cells)

    def counts(suite, family, **settings):
        chosen = [c for c in cells if (c.suite, c.family) == (suite, family)]
        return [c.count for c in chosen if settings.items() <= dict(c.settings).items()]

    assert counts("rates", "F1", steps=37) == [10_000]
    assert counts("mend", "F3-W4") == [5000] * 10
    assert sum(counts("instant", "F1-P30")) == 20_000
    assert counts("noising", "F4") == [1000] * 10
    assert {c.family for c in cells if c.suite == "rates" and c["packaged"]} == {"F2", "F4", "F5"}
    assert {c["packaged"] for c in cells if c.family == "F4" and c.suite == "rates"} == {"6 8 10 12 25 50 100"}
    assert {c["table"] for c in cells if c.suite == "rates"} == {"8 12 25 50"}
    assert all(c["runs"] == 2000 for c in cells)
    assert {suite for id in IDS for suite in suites_of(id)} == set(SUITES) <= set(ALL)


def test_the_command_writes_json_and_a_table_and_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "source_hash", lambda: "two")
    page = tmp_path / "page.md"
    page.write_text(f"# Kept\n\n{BEGIN}\n{END}\nThe end.\n")
    words = ["lab", "detector", "--family", "toy", "--out", str(tmp_path)]  # small, as every command
    done = CliRunner().invoke(app, [*words, "--table", str(page)])
    assert done.exit_code == 0, done.output
    expected = "D5 is open: 1 cells. Make them with: ascedfast lab run --suite leaps --family toy --size small"
    assert expected in done.stdout
    rows = json.loads((tmp_path / "detector.json").read_text())
    assert [row["id"] for row in rows if row["id"] in IDS] == list(IDS)
    assert all(row["met"] is None for row in rows)
    assert page.read_text().startswith("# Kept")
    assert page.read_text().endswith("The end.\n")
    assert "| D12 |" in page.read_text()
    done = CliRunner().invoke(app, ["lab", "run", "--suite", "leaps", *words[2:]])
    assert done.exit_code == 0, done.output
    (row,) = (row for row in json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout) if row["id"] == "D5")
    assert row["met"] is not None
    page.write_text("no marks")
    done = CliRunner().invoke(app, [*words, "--table", str(page)])
    assert done.exit_code == 2
    assert "marks" in done.output


def test_the_table_says_open_yes_and_no(tmp_path):
    rows = list(rows_of(parts(D2={"F1": Estimate(0.5, 0.4, 0.6, 9)}), ["D7"]).values())
    text = bars_table(rows)
    assert "| D2 | area flagged of clean null images: <= 0.01 | no | 0.5 | 0.4 to 0.6 | 9 | F1 |" in text
    assert text.count("| open |") == 3
    page = write_bars(tmp_path / "new.md", rows, parts())
    assert page.read_text().count("D11: way") == 1
