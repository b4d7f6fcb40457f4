# SPDX-License-Identifier: MIT
"""Runs on a CPU as users have it: no GPU, and none of the variables that this test session sets for Triton."""

import importlib.util
import os
import subprocess
import sys

import pytest

LOOP = """
import sys
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

import ascedfast

backend = sys.argv[1]
for scheduler in (DDIMScheduler(), EulerDiscreteScheduler()):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 16, 16, generator=g)
    try:
        handle = ascedfast.enable_asced(scheduler, config=ascedfast.AscedConfig(backend=backend), seeds=[1, 2])
        scheduler.set_timesteps(12)
        x = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            model_input = scheduler.scale_model_input(x, t)
            x = scheduler.step(torch.randn(x.shape, generator=g) + 0 * model_input, t, x).prev_sample
        assert x.isfinite().all()
        print("ran", [row.status for row in handle.report])
    except Exception as error:
        print(type(error).__name__, error)
"""


def lines_of(backend):
    """What the loop printed for each scheduler, in a process of its own without TRITON_INTERPRET and without a GPU."""
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", LOOP, backend],
        env=settings | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_scheduler_loop_runs(backend):
    lines = lines_of(backend)
    assert len(lines) == 2
    assert all(line.startswith("ran [") and "unavailable" not in line for line in lines), lines


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_on_request_says_why_it_cannot():
    lines = lines_of("triton")
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("BackendError"), line
        assert "triton kernels run on CUDA (or with TRITON_INTERPRET=1), the tensor is on cpu" in line
