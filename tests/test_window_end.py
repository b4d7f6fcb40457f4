# SPDX-License-Identifier: MIT
"""Calibration measures the very state that a correction is given, of solvers of one and of two evaluations a step."""

import diffusers
import pytest
import torch

from ascedfast import AscedConfig, Engine, enable_asced
from ascedfast.adapters.diffusers import disable_asced
from ascedfast.calibration import runs

SEEDS = [5, 6]


def loop(scheduler, stop=None):
    """A denoiser that pulls to a fixed image, stepped as pipelines do."""
    scheduler.set_timesteps(15)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        m = torch.tanh(scheduler.scale_model_input(x, t)) * 0.9
        x = scheduler.step(m, t, x, return_dict=False)[0]


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "HeunDiscrete", "KDPM2Discrete", "DPMSolverSinglestep"])
def test_it_is_the_state_that_is_corrected(name, monkeypatch):
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    rows, end = runs.watch(scheduler, lambda seeds: loop(scheduler), SEEDS)
    assert rows[0].plan.reason is None
    given = []
    correct = Engine.correct_

    def noted(self, x, *args, **kwargs):
        if self.due:
            given.append(x.clone())
        return correct(self, x, *args, **kwargs)

    monkeypatch.setattr(Engine, "correct_", noted)
    enable_asced(scheduler, AscedConfig(window_start=0), seeds=SEEDS)
    loop(scheduler)
    disable_asced(scheduler)
    assert torch.equal(end.x, given[0])
    assert (end.alpha, end.sigma) != (1.0, 0.0)
