# SPDX-License-Identifier: MIT
"""A second pass of rows in mode "calibrated": one that its table refuses does not stop the others."""

import torch
from null_tables import calibrated
from row_loop import CHANNELS, GRID, flow_schedule
from tiny import randn

from ascedfast import AscedConfig, Engine, SecondPass
from ascedfast.schedule import plan_run

STEPS = 20
SCHEDULE, OTHER = flow_schedule(STEPS), flow_schedule(STEPS, shift=30.0)
T_C = plan_run(SCHEDULE, AscedConfig()).t_c


def states(seeds_and_configs):
    engine = Engine()
    for seed, config in seeds_and_configs:
        engine.add(SCHEDULE, config, seed=seed)
    second = SecondPass(engine)
    x = torch.cat([randn(1, CHANNELS, *GRID, seed=seed) for seed, _ in seeds_and_configs])
    k = 0
    while k < STEPS:
        m = torch.cat([randn(1, CHANNELS, *GRID, seed=100 * seed + k) for seed, _ in seeds_and_configs])
        second.observe(x, m)
        x = 0.9 * x + 0.05 * m
        k = second.next_step_(k, x)
    return x, second


def test_a_refused_row_does_not_stop_the_others():
    # Everything above a severity that all rows have is flagged; the other table is of other levels.
    known, refused = calibrated(SCHEDULE, T_C, GRID, above=-9.0), calibrated(OTHER, T_C, GRID)
    alone, _ = states([(1, known)])
    x, second = states([(1, known), (2, refused)])
    assert second.evaluations == 5
    assert torch.equal(x[:1], alone)
    off, _ = states([(2, AscedConfig(correct=False))])
    assert torch.equal(x[1:], off)
