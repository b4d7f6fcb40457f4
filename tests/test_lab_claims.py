# SPDX-License-Identifier: MIT
"""The rules of the verdicts, both ways, on results made by hand."""

import json

import numpy as np
import pytest

from ascedfast.lab import claims
from ascedfast.lab.claims import CLAIMS, Case, MissingResults, above, both, c10, c17, decide, verdict
from ascedfast.lab.figures import Figures, MissingFigure
from ascedfast.lab.parity import NoCheckout, count, read
from ascedfast.lab.sources import source_of
from ascedfast.lab.statistics import Estimate
from ascedfast.lab.suites import Cell, cells_of


def cell(suite, part="x", start=1_000_000, family="F1", n=100, settings=()):
    return Cell(suite, family, part, "full", start, n, settings)


def entry(measure, run, low, high, value=None):
    return {
        "measure": measure,
        "run": run,
        "value": (low + high) / 2 if value is None else value,
        "low": low,
        "high": high,
        "n": 100,
    }


def figures(*pairs):
    return Figures(dict(pairs), "source")


def detection(low):
    made = []
    for kind, suffix in (("trap", " persisting"), ("jump", ""), ("stroke", "")):
        found = [
            entry("pixel auroc" + suffix, "official", low, low + 0.1),
            entry("pixel auroc less final variance" + suffix, "official", low - 0.5, low - 0.4),
        ]
        made.append((cell("detection", kind, settings=(("side", "mixed"),)), {"figures": found}))
    return figures(*made)


def acceleration(low, p=0.001, quiet=1.0):
    found = [entry(f"images whose A {name}", "jump", low, low + 0.1) for name in ("rises up to k*", "falls after k*")]
    found += [entry(f"sign test, A {name}", "jump", p, p) for name in ("rises up to k*", "falls after k*")]
    found.append(entry("steps at which a outside includes 0", "jump", quiet, quiet))
    return figures((cell("acceleration", "jump"), {"figures": found}))


def natural(family="F1", **entries):
    known = {
        "peak": ("peak of abnormal locations, t/T", "fast"),
        "more": ("further maxima of half the height", "fast"),
        "area": ("pixel auroc for defects at t_c", "official"),
        "lead": ("steps from the first auroc above .5 to the last", "d"),
    }
    found = [entry(*known[name], *interval) for name, interval in entries.items() if name in known]
    for name in ("s", "x0_hat", "s'*v"):
        if "scale" in entries:
            found.append(entry("variation of w*s less", name, *entries["scale"]))
    return figures((cell("natural", family=family), {"figures": found}))


def sets(suite, run, measure, difference, bases, defects=0.0, parts=("x",), family="F1"):
    """Ten seed sets in which a run differs from its bases by a known number, and defects by a known share."""
    generator = np.random.default_rng(0)
    made = []
    for part in parts:
        for i in range(10):
            base = 20 + generator.normal()
            values = {one: {measure: base} for one in bases}
            values[run] = {measure: base + difference + 0.1 * generator.normal()}
            flags = dict.fromkeys(bases, "10" * 50)
            flags[run] = "1" * int(50 + 100 * defects) + "0" * int(50 - 100 * defects)
            made.append((cell(suite, part, 1_000_000 + 100 * i, family), {"values": values, "flags": flags}))
    return figures(*made)


def t_c(good):
    """Defects by share of the run; the rate leaps after the knee."""
    made = []
    for share in (0.2, 0.35, 0.5, 0.65, 0.8):
        late = share > (0.5 if good else 0.35)
        flags = {"official": "1" * (60 if late else 20) + "0" * (40 if late else 80)}
        result = {"values": {"official": {}}, "flags": flags, "series": {"share": share, "logsnr": 0.0}}
        made.append((cell("t_c", f"{share:g}"), result))
    return figures(*made)


def diversity(low, recall):
    one = sets("corrections", "official", "recall", recall, ["state replacement"])
    found = [entry("diversity inside less replacement's", "official", low, low + 1)]
    return Figures(one.results | {cell("diversity"): {"figures": found}}, "source")


def evaluations(falls):
    made = []
    generator = np.random.default_rng(1)
    for i, steps in enumerate((10, 15, 25, 50)):
        rate = 0.5 - 0.15 * i * falls
        flags = {"original": "".join("01"[int(v)] for v in generator.random(200) < rate)}
        made.append((cell("evaluations", str(steps), family="F1-W4", n=200), {"figures": [], "flags": flags}))
    return figures(*made)


def single(suite, measure, run, interval):
    return figures((cell(suite), {"figures": [entry(measure, run, *interval)]}))


REPLACED = ["original", "state replacement", "score clipping"]
PROBE = "probe accuracy less original's"
TRAPS = "traps less strokes, mean square"
CALLS = "calls more than the plain run"
ACCURACY = ("accuracy", "balanced accuracy", "official")
BOTH_WAYS = [
    ("C1", detection(0.6), detection(0.3)),
    ("C2", acceleration(0.6), acceleration(0.2, p=0.9)),
    ("C3", natural("F5", area=(0.6, 0.7), lead=(9, 9)), natural("F5", area=(0.3, 0.4), lead=(0, 0))),
    ("C4", natural(peak=(0.4, 0.5), more=(0, 0)), natural(peak=(0.92, 0.96), more=(0, 0))),
    ("C5", t_c(True), t_c(False)),
    ("C6", *(sets("corrections", "official", "fd_local", d, REPLACED) for d in (-3, 3))),
    ("C7", diversity(1.0, 3.0), diversity(-3.0, -3.0)),
    ("C9", single(*ACCURACY, (0.66, 0.7)), single(*ACCURACY, (0.5, 0.6))),
    ("C11", single("calls", CALLS, "fast", (0, 0)), single("calls", CALLS, "fast", (1, 1))),
    ("C12", *(sets("harm", "forced", "fd_local", d, ["original"], d / 10) for d in (0.0, 3.0))),
    ("C13", evaluations(False), evaluations(True)),
    ("C14", single("probe", PROBE, "official", (0.01, 0.02)), single("probe", PROBE, "official", (-0.02, -0.01))),
    ("C15", natural(scale=(-0.3, -0.2)), natural(scale=(0.2, 0.3))),
    ("C16", single("strokes", TRAPS, "original", (5, 9)), single("strokes", TRAPS, "original", (-9, -5))),
]


@pytest.mark.parametrize(("id", "good", "bad"), BOTH_WAYS, ids=[row[0] for row in BOTH_WAYS])
def test_each_claim_both_ways(id, good, bad):
    judge = {claim.id: claim.judge for claim in CLAIMS}[id]
    family = {"C3": "F5", "C13": "F1-W4"}.get(id, "F1")
    held, failed = judge(good, family), judge(bad, family)
    assert held.holds
    assert not held.opposite
    assert not failed.holds
    assert failed.opposite
    assert verdict([held]) == "reproduced"
    assert verdict([held, held, held, failed]) == "not reproduced"


def test_every_claim_is_decided_by_a_rule_or_known_to_need_none():
    assert [claim.id for claim in CLAIMS] == [f"C{i}" for i in range(1, 18)]
    assert {claim.id for claim in CLAIMS if claim.judge is None} == {"C8", "C10", "C17"}
    assert {row[0] for row in BOTH_WAYS} == {claim.id for claim in CLAIMS if claim.judge is not None}


def test_a_majority_without_an_opposite_reproduces():
    holds, opens, fails = (
        Case("F", h, o, Estimate(0, 0, 0, 1), 0) for h, o in ((True, False), (False, False), (False, True))
    )
    assert verdict([holds, holds, opens]) == "reproduced"
    assert verdict([holds, opens]) == "not reproduced"
    assert verdict([holds, holds, fails]) == "not reproduced"
    with pytest.raises(ValueError, match="no family"):
        verdict([])


def test_the_limit_counts_and_not_the_point():
    assert not above("F1", 0.5, Estimate(0.6, 0.49, 0.7, 9)).holds
    assert not above("F1", 0.5, Estimate(0.6, 0.49, 0.7, 9)).opposite
    one, two = above("F1", 0.5, Estimate(0.9, 0.8, 1, 9)), above("F1", 0, Estimate(0.1, -0.1, 0.3, 9))
    assert both(one, two).estimate == two.estimate
    assert not both(one, two).holds


def test_conditions_that_stand_beside_the_interval():
    two_peaks = natural(peak=(0.4, 0.5), more=(1, 1))
    assert not claims.c4(two_peaks, "F1").holds
    last = natural("F5", area=(0.6, 0.7), lead=(0, 0))
    assert not claims.c3(last, "F5").holds
    assert claims.c3(natural("F1", area=(0.6, 0.7), lead=(9, 9)), "F1") is None
    assert not claims.c2(acceleration(0.6, quiet=0.5), "F1").holds
    assert claims.c5(t_c(True), "F2") is None
    assert claims.c5(t_c(True), "F1").estimate == Estimate(0.5, 0.2, 0.5, 100)


def test_a_knee_that_could_be_anywhere_is_open():
    """Every point is equal to the best: the latest is late, but the interval holds the claimed range."""
    made = []
    for share in (0.2, 0.5, 0.8):
        result = {"flags": {"official": "10" * 50}, "series": {"share": share, "logsnr": 0.0}}
        made.append((cell("t_c", f"{share:g}"), {"values": {"official": {}}, **result}))
    found = claims.c5(figures(*made), "F1")
    assert found.estimate == Estimate(0.8, 0.2, 0.8, 100)
    assert not found.holds
    assert not found.opposite


def test_seed_sets_recover_a_difference_of_known_size():
    found = sets("corrections", "official", "fd_local", -3, REPLACED, defects=-0.1)
    less = found.find("corrections", "F1", "fd_local less original's", "official")
    assert less.low < -3 < less.high
    assert less.high - less.low < 0.5
    assert (less.n, less.seeds) == (10, (1_000_000, 1_001_000))
    assert less.source == source_of("F1", "source") != source_of("F5", "source")
    assert less.command == "ascedfast lab run --suite corrections --family F1 --size full"
    rate = found.find("corrections", "F1", "defect rate less original's", "official")
    assert rate.value == pytest.approx(-0.1)
    assert rate.low < -0.1 < rate.high
    assert rate.n == 1000
    with pytest.raises(MissingFigure, match="0 figures"):
        found.find("corrections", "F1", "fd_local", "nobody")


def test_missing_results_name_cells_and_command(tmp_path):
    with pytest.raises(MissingResults, match=r"cells have no result.*acceleration/F1/.*lab run --suite.*--size full$"):
        decide(figures((cell("detection"), {"figures": []})), "full")
    with pytest.raises(MissingResults, match="python -m benchmarks --save"):
        c10(tmp_path)
    with pytest.raises(MissingResults, match="claims --parity"):
        c17(None)
    wanted = cells_of(["calls"], ["F1", "F2"], "full")
    with pytest.raises(MissingResults, match=r"1 of 2 cells.*--suite calls --family F2 --size full"):
        claims.check_complete({wanted[0]: {}}, wanted)


@pytest.mark.parametrize(("us", "ratio", "expected"), [(140, 1.001, True), (95_000, 1.001, False), (140, 1.02, False)])
def test_speed_is_read_from_benchmarks(tmp_path, us, ratio, expected):
    (tmp_path / "other.json").write_text(json.dumps({"no": "list"}))
    record = {"id": "P2/256x256x3", "ours_us": us, "p20": us, "p80": us, "command": "python -m benchmarks"}
    (tmp_path / "gpu.json").write_text(json.dumps([record, {"id": "P4/SDXL", "value": ratio}]))
    row = c10(tmp_path)
    assert (row["verdict"] == "reproduced") == expected
    assert row["value"] == pytest.approx(us / 1e6 if us > 90_000 else ratio - 1)  # what is nearer to its limit


def test_parity_is_counted_from_the_summary(tmp_path):
    source = "SEQUENCES_A_KIND = 80  # a comment\n"
    name = "tests/test_artifact_mask.py::test_official_mask_equals_oracle"
    output = "\n".join(f"PASSED {name}[{i}]" for i in range(13)) + "\nPASSED tests/test_renoise.py::test_x\n"
    assert read(output, source, 0) == {"sequences": 1040, "passed": 14, "failed": 0}
    assert c17(read(output, source, 0))["verdict"] == "reproduced"
    failed = read(output + f"FAILED {name}[13] - AssertionError\n", source, 1)
    assert failed["failed"] == 1
    assert c17(failed)["verdict"] == "not reproduced"
    assert c17(read("", source, 2))["verdict"] == "not reproduced"
    with pytest.raises(NoCheckout, match="checkout"):
        count(tmp_path)
