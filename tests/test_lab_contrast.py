# SPDX-License-Identifier: MIT
"""The contrast at 50 % recall, against scipy's optimiser and planted values."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, special, stats

from ascedfast.lab.contrast import contrast50, firth_logistic

LEVELS = np.array([2.0, 4, 6, 8, 12, 16, 24, 40])


def experiment(c50, slope, seed, each=300, levels=LEVELS):
    contrast = np.repeat(levels, each)
    chance = special.expit(slope * np.log(contrast / c50))
    return contrast, np.random.default_rng(seed).random(contrast.size) < chance


@pytest.mark.parametrize("seed", range(5))
def test_fit_maximises_the_penalised_likelihood(seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=30)
    found = random.random(30) < special.expit(1 + 2 * x)
    design = np.stack([np.ones(30), x], 1)

    def loss(beta):
        p = special.expit(design @ beta)
        information = design.T @ (design * (p * (1 - p))[:, None])
        return -(np.log(np.where(found, p, 1 - p)).sum() + 0.5 * np.log(np.linalg.det(information)))

    best = optimize.minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    beta, covariance = firth_logistic(x, found)
    np.testing.assert_allclose(beta, best.x, atol=1e-5)
    p = special.expit(design @ beta)
    np.testing.assert_allclose(np.linalg.inv(covariance), design.T @ (design * (p * (1 - p))[:, None]), rtol=1e-6)


def test_fit_exists_where_found_and_missed_do_not_overlap():
    contrast = np.array([2.0, 4, 8, 16, 32, 64])
    fitted = contrast50(contrast, contrast > 10)
    assert 8 < fitted.value < 16  # symmetric about their geometric mean
    assert fitted.value == pytest.approx(math.sqrt(8 * 16), rel=1e-6)
    beta, _ = firth_logistic(np.log(contrast), contrast > 10)
    assert np.isfinite(beta).all()


def test_interval_holds_a_planted_contrast_as_often_as_it_says():
    held = widths = 0
    for seed in range(200):
        found = contrast50(*experiment(9.0, 2.5, seed, each=20))
        held += found.low <= 9.0 <= found.high
        widths += found.high - found.low
    assert 181 <= held <= 199
    assert widths / 200 < 4


def test_a_planted_contrast_is_recovered_at_full_size():
    found = contrast50(*experiment(9.0, 2.5, 0))
    assert found.n == 2400
    assert found.low < 9.0 < found.high
    assert found.high - found.low < 1.2


def test_interval_is_fiellers():
    contrast, hit = experiment(9.0, 1.0, 3, each=30)
    fitted = contrast50(contrast, hit)
    (b0, b1), v = firth_logistic(np.log(contrast), hit)
    assert fitted.value == pytest.approx(math.exp(-b0 / b1), rel=1e-6)
    for limit in map(math.log, fitted[1:3]):
        deviation = (b0 + b1 * limit) / math.sqrt(v[0, 0] + 2 * limit * v[0, 1] + limit**2 * v[1, 1])
        assert abs(deviation) == pytest.approx(stats.norm.isf(0.025), rel=1e-5)


def test_units_do_not_matter():
    contrast, hit = experiment(9.0, 2.5, 1)
    assert contrast50(contrast / 100, hit).value * 100 == pytest.approx(contrast50(contrast, hit).value, rel=1e-6)


def test_figures_beyond_the_contrasts_tried_say_so():
    contrast = np.repeat(LEVELS, 5)
    assert contrast50(contrast, np.zeros(40, bool)) == (math.inf, 40.0, math.inf, 40)
    assert contrast50(contrast, np.ones(40, bool)) == (0.0, 0.0, 2.0, 40)
    falling = contrast50(contrast, contrast < 10)
    assert math.isnan(falling.value)
    assert falling[1:3] == (0.0, math.inf)


def test_a_slope_that_may_be_zero_leaves_every_contrast_possible():
    contrast = np.repeat(LEVELS, 5)
    found = np.arange(40) % 2 == 0
    found[-1] = True
    fitted = contrast50(contrast, found)
    assert fitted[:3] == (0.0, 0.0, math.inf)


def test_what_the_fit_says_beyond_the_contrasts_tried_is_a_bound():
    contrast, hit = experiment(9.0, 2.5, 0)
    weak, strong = contrast < 7, contrast > 11
    assert contrast50(contrast[weak], hit[weak]) == (math.inf, 6.0, math.inf, 900)
    assert contrast50(contrast[strong], hit[strong])[:3] == (0.0, 0.0, pytest.approx(12, rel=0.4))
    few = contrast50([2.0, 4, 6, 8, 12, 16], np.array([False, True, False, True, True, False]))
    assert few[1:3] == (0.0, math.inf)


@given(
    st.lists(st.tuples(st.floats(-12, 12), st.booleans()), min_size=3, max_size=30, unique_by=lambda pair: pair[0]),
)
def test_few_and_odd_data_give_an_answer(pairs):
    contrast, found = np.exp([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    assume(np.ptp(np.log(contrast)) > 0)
    fitted = contrast50(contrast, found)
    assert math.isnan(fitted.value) or fitted.low <= fitted.value <= fitted.high


def test_bad_input():
    with pytest.raises(ValueError, match="null plant"):
        contrast50([0.0, 1, 2], np.array([False, True, True]))
    with pytest.raises(ValueError, match="equal"):
        contrast50([2.0, 2, 2], np.array([False, True, True]))
    with pytest.raises(ValueError, match="bool"):
        contrast50([1.0, 2, 3], np.array([0, 1, 1]))
