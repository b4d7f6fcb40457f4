# SPDX-License-Identifier: MIT
"""The deviation that x0_hat lacks: exact for Gaussian data, and what a correction in mode "calibrated" adds."""

import dataclasses
import math

import pytest
import torch
from null_tables import calibrated
from row_loop import flow_schedule

import ascedfast
from ascedfast.calibration.moments import StateMoments

ALPHA, SIGMA = 0.6, 0.8


def deviation(x, x0_hat):
    moments = StateMoments()
    for part in (slice(30), slice(30, None)):
        moments.add(x[part], x0_hat[part])
    return moments.missing_deviation(ALPHA, SIGMA)


@pytest.mark.parametrize("spread", [0.25, 1.0])
def test_it_is_the_posterior_deviation_of_gaussian_data(spread):
    """x0 ~ N(0, spread^2): x0_hat is linear in x, and Var(x0 | x) is in closed form."""
    generator = torch.Generator().manual_seed(0)
    x0 = 0.7 + spread * torch.randn(100, 3, 32, 32, generator=generator)  # what is common to all does not count
    x = ALPHA * x0 + SIGMA * torch.randn(x0.shape, generator=generator)
    total = ALPHA**2 * spread**2 + SIGMA**2
    x0_hat = 0.7 + spread**2 * ALPHA / total * (x - ALPHA * 0.7) + 0.05  # nor does a bias
    expected = spread * SIGMA / math.sqrt(total)
    found = deviation(x, x0_hat)
    assert abs(found - expected) < 0.02
    noised = ALPHA * (x0_hat + found * torch.randn(x.shape, generator=generator))
    noised += SIGMA * torch.randn(x.shape, generator=generator)
    assert abs(float(noised.var() / x.var()) - 1) < 0.01
    plain = ALPHA * x0_hat + SIGMA * torch.randn(x.shape, generator=generator)
    assert float(plain.var() / x.var()) < 0.98  # what it repairs


def test_what_is_no_gap_is_none():
    x = torch.zeros(4, 1, 8, 8)
    broken = x.clone()
    broken[1] = torch.inf
    assert deviation(broken, x) == 0
    assert deviation(x, x) == deviation(x[:1], x[:1]) == StateMoments().missing_deviation(ALPHA, SIGMA) == 0


@pytest.mark.parametrize("rows", [None, [0, 1]], ids=["lockstep", "row by row"])
def test_a_correction_adds_what_the_table_says(rows):
    """The same bits as with the number written out, and others than without."""
    schedule, grid = flow_schedule(10), (8, 8)
    config = calibrated(schedule, 5, grid, above=-2.0, spread=0.0)
    null = dataclasses.replace(config.table.nulls[0], x0_noise=0.4)
    table = dataclasses.replace(config.table, nulls=(null,))
    states = {}
    for name, value in (("table", None), ("written", 0.4), ("none", 0.0)):
        run = ascedfast.begin(schedule, dataclasses.replace(config, table=table, x0_noise=value), seeds=[3, 4])
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, *grid, generator=generator)
        for _ in range(5):
            run.observe(x, torch.randn(x.shape, generator=generator), rows=rows)
            x = 0.9 * x
            run.correct_(x, rows=rows)
        states[name] = x
    assert bool(run.report[0].mask.any())
    assert torch.equal(states["table"], states["written"])
    assert not torch.equal(states["table"], states["none"])


def test_other_modes_have_no_table():
    with pytest.raises(ValueError, match="x0_noise must be a number"):
        ascedfast.AscedConfig(x0_noise=None)
