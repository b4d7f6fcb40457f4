# SPDX-License-Identifier: MIT
"""Tables of sound runs: rates they promise and keep, interpolation, and files that are none."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from ascedfast.calibration.fit import fit, gumbel
from ascedfast.calibration.table import SURVIVAL, Gumbel, NullTable
from ascedfast.reference_scores import Scores

GRID = (16, 16)
LOGSNR = {
    2: [-8.0, -5.0, -2.8],
    4: [-9.0, -7.0, -5.0, -4.0, -2.5],
    7: list(np.linspace(-9, -2.4, 8)),
    12: list(np.linspace(-9.3, -2.3, 13)),
}


def draws(n, seed, still=(2.0, 0.2), jump=(0.7, 0.15)):
    random = np.random.default_rng(seed)
    return [np.exp(stats.gumbel_r.rvs(*one, size=n, random_state=random)) for one in (still, jump)]


def null(changes=7, n=2000, seed=0, **kinds):
    profile = [1.0 + 0.1 * k for k in range(changes)]
    return fit(LOGSNR[changes], GRID, profile, *draws(n, seed, **kinds))


def scores(still, jump):
    return Scores(torch.tensor(still).view(-1, 1, 1), torch.tensor(jump).view(-1, 1, 1))


def test_moments_give_the_distribution_back():
    found = gumbel(np.log(draws(200_000, 1)[0]))
    assert found.location == pytest.approx(2.0, abs=0.005)
    assert found.scale == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.05, 0.1, 0.37, 0.8])
def test_the_promised_share_of_sound_runs_is_flagged(rate):
    """200,000 runs that the table has not seen; the bound is three standard errors of its own 2000 runs."""
    table = null()
    still, jump = draws(200_000, 7)
    severity = table.severity(scores(still, jump)).flatten().numpy()
    flagged = float((severity > table.threshold(rate)).mean())
    assert abs(flagged - rate) < 3 * math.sqrt(rate * (1 - rate) / 2000) + 0.15 * rate


def test_p_values_are_uniform_over_sound_runs():
    table = null()
    severity = table.severity(scores(*draws(20_000, 3))).flatten().tolist()
    values = [table.p_value(one) for one in severity]
    assert stats.kstest(values, "uniform").statistic < 0.05


def test_threshold_and_p_value_are_inverse():
    table = null()
    for rate in (0.001, 0.01, 0.05, 0.1, 0.12, 0.3, 0.5, 0.98):
        assert table.p_value(table.threshold(rate)) == pytest.approx(rate, rel=1e-9)
    values = [table.p_value(s) for s in np.linspace(-5, 30, 500)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0
    assert values[-1] == 1 / 2001  # no rarer than one run of those seen
    with pytest.raises(ValueError, match="needs at least 10000 sound runs"):
        table.threshold(1e-4)
    assert math.isnan(table.p_value(math.nan))
    for rate in (0, -0.1, 0.999, 1.5):
        with pytest.raises(ValueError, match="rate of false alarms"):
            table.threshold(rate)


def test_without_a_jump_only_stillness_counts():
    still, _ = draws(500, 0)
    table = fit(LOGSNR[2], GRID, [1.0, 2.0], still, np.zeros(500))
    assert table.jump is None
    assert table.severity(scores([12.0], [99.0])).item() == pytest.approx(
        (math.log(12) - table.still.location) / table.still.scale
    )


def test_between_two_step_counts():
    low, high = null(4, still=(2.0, 0.2)), null(12, still=(2.4, 0.3), seed=5)
    table = NullTable((low, high))
    assert table.at(LOGSNR[4]) is low
    assert table.at(LOGSNR[12]) is high
    middle = table.at(LOGSNR[7])
    share = math.log(7 / 4) / math.log(12 / 4)
    assert middle.still.location == pytest.approx((1 - share) * low.still.location + share * high.still.location)
    assert middle.logsnr == tuple(LOGSNR[7])
    assert len(middle.profile) == 7
    assert low.levels[-1] < middle.levels[-1] < high.levels[-1] or high.levels[-1] < middle.levels[-1] < low.levels[-1]


def test_the_profile_follows_the_place_in_the_window():
    """A profile that falls along a line does so with any number of changes; equal levels (PNDM) do no harm."""
    line = [13.0 - k for k in range(12)]
    twice = [LOGSNR[12][0], LOGSNR[12][1], LOGSNR[12][1], *LOGSNR[12][2:-1]]
    low, high = null(4), fit(twice, GRID, line, *draws(200, 0))
    found = NullTable((low, high)).at(list(np.linspace(-9, -2.7, 10))).profile
    assert all(0.2 < a / b < 1 for a, b in zip(found[1:], found[:-1], strict=True) if a < b)
    one = NullTable((high,)).at(list(np.linspace(-9.2, -2.4, 13))).profile
    assert [value / one[0] for value in one] == pytest.approx([value / line[0] for value in line])


def test_pure_noise_counts_as_the_noisiest_level():
    levels = [-math.inf, *LOGSNR[12][1:]]
    table = NullTable((fit(levels, GRID, [1.0] * 12, *draws(200, 0)),))
    assert table.at(levels) is table.nulls[0]
    assert table.nulls[0].logsnr[0] == -12


@pytest.mark.parametrize(
    ("logsnr", "grid", "said"),
    [
        ([-5.0], None, "calibrate this number of steps"),
        (list(np.linspace(-9, -2.5, 4)), None, "calibrate this number of steps"),
        (list(np.linspace(-9, -2.5, 30)), None, "calibrate this number of steps"),
        (list(np.linspace(-9, 0, 8)), None, "another T_c"),
        (list(np.linspace(-9, -4, 8)), None, "another T_c"),
        (list(np.linspace(-5, -2.5, 8)), None, "another T_c"),
        (LOGSNR[7], (32, 32), "calibrate at its size"),
    ],
)
def test_windows_that_the_table_does_not_know(logsnr, grid, said):
    table = NullTable((fit(LOGSNR[2], GRID, [1.0, 2.0], draws(200, 0)[0], np.zeros(200)), null(4), null(12)))
    with pytest.raises(ValueError, match=said):
        table.at(logsnr, grid)
    assert said in table.refusal(logsnr, grid)
    assert table.refusal(LOGSNR[7], GRID) is None
    assert table.refusal(LOGSNR[2]) is None


def test_saved_and_read_again(tmp_path):
    table = NullTable((null(4), null(7)), "abc", "made so")
    table.save(tmp_path / "t.json")
    assert NullTable.load(tmp_path / "t.json") == table
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def broken(tmp_path, change):
    path = tmp_path / "t.json"
    NullTable((null(4), null(7)), "abc", "").save(path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.pop("nulls"),
        lambda v: v.update(version=99),
        lambda v: v.update(nulls=[]),
        lambda v: v["nulls"].reverse(),
        lambda v: v["nulls"][0].update(tail=0),
        lambda v: v["nulls"][0].update(tail=float("nan")),
        lambda v: v["nulls"][0]["profile"].pop(),
        lambda v: v["nulls"][0].update(profile=[1, -1, 1]),
        lambda v: v["nulls"][0].update(levels=v["nulls"][0]["levels"][::-1]),
        lambda v: v["nulls"][0].update(survival=[0.5]),
        lambda v: v["nulls"][0].update(jump=[]),
        lambda v: v["nulls"][0].update(jump=None),
        lambda v: v["nulls"][0].update(runs=-5),
        lambda v: v["nulls"][0].update(grid=[16, 32]),
        lambda v: v["nulls"][0].update(grid=[16, 0]),
        lambda v: v["nulls"][0]["logsnr"].reverse(),
        lambda v: v["nulls"][0]["still"].update(scale=0),
        lambda v: v["nulls"][0].update(surprise=1),
        lambda v: v["nulls"][0].update(still=None),
        lambda v: v["nulls"][0].update(runs="many"),
        lambda v: v["nulls"][0].update(runs=10**400),
        lambda v: v["nulls"][0].update(x0_noise=-0.1),
        lambda v: v["nulls"][0].update(x0_noise=1e39),
        lambda v: v["nulls"][0].update(x0_noise=True),
    ],
)
def test_damaged_tables_are_refused(tmp_path, change):
    path = broken(tmp_path, change)
    with pytest.raises(ValueError, match=r"t\.json holds no table of sound runs"):
        NullTable.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"version": 1}', "\xff"])
def test_files_that_are_no_tables(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="holds no table"):
        NullTable.load(path)


def test_too_few_runs_and_runs_that_are_not_sound():
    still, jump = draws(99, 0)
    with pytest.raises(ValueError, match="at least 100"):
        fit(LOGSNR[4], GRID, [1.0] * 4, still, jump)
    still, jump = draws(200, 0)
    still[3] = math.nan
    with pytest.raises(ValueError, match="1 of 200 runs hold NaN"):
        fit(LOGSNR[4], GRID, [1.0] * 4, still, jump)
    with pytest.raises(ValueError, match="all of one seed"):
        fit(LOGSNR[4], GRID, [1.0] * 4, np.ones(200), jump)


def test_runs_that_tie_at_the_top():
    still, _ = draws(200, 0)
    still[np.argsort(still)[-40:]] = still.max()
    with pytest.raises(ValueError, match="share their largest score"):
        fit(LOGSNR[2], GRID, [1.0, 1.0], still, np.zeros(200))


def test_a_null_is_checked_when_made():
    good = null(4)
    assert len(good.levels) == len(SURVIVAL)
    with pytest.raises(ValueError, match="positive"):
        dataclasses.replace(good, jump=Gumbel(0.0, -1.0))
