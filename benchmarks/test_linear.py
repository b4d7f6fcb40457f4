# SPDX-License-Identifier: MIT
"""One step in linear form, UniPC of order 3: the reference everywhere, the Triton kernel where there is a GPU."""

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from ascedfast.adapters.host_copy import on_host
from ascedfast.adapters.linear import linear_plan
from ascedfast.adapters.schedules import schedule_of
from ascedfast.linear import linear_update

CUDA = torch.cuda.is_available()
SHAPES = {"latents": (1, 4, 128, 128), "pixels": (8, 3, 256, 256)}
STEP = 5
"""By then the solver carries all that it ever does."""


def plan_of():
    scheduler = UniPCMultistepScheduler(solver_order=3)
    scheduler.set_timesteps(25)
    return linear_plan(on_host(scheduler), schedule_of(scheduler), 0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_linear_update(benchmark, shape):
    plan = plan_of()
    step = plan.steps[STEP]
    tensors = torch.randn(2 + len(step.reads), *shape, generator=torch.Generator().manual_seed(0))
    benchmark.group = f"linear_update {list(shape)}"
    state, written, _ = benchmark(linear_update, step, *tensors[:2], list(tensors[2:]), plan.clip, torch.float32)
    assert state.shape == shape
    assert len(written) == len(step.writes) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_linear_step(benchmark, shape):
    from ascedfast.kernels.linear_launch import LinearLauncher

    plan = plan_of()
    x, m = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).cuda()
    launch = LinearLauncher(
        x,
        m,
        lambda t: t,
        levels=torch.ones(len(plan.steps), 2).cuda(),
        plan=plan,
        sums=plan.table().cuda(),
        state_dtype=torch.float32,
        own_dtype=None,
        clip=None,
        reduce="mean",
    )
    x0, carried = launch.new_x0(x).zero_(), [tensor.zero_() for tensor in launch.new_carried(x)]
    bank = torch.zeros(1, shape[0], *shape[2:]).cuda()

    def step():
        out = launch(x, m, carried, x0, bank, STEP, 0, 2)
        torch.cuda.synchronize()
        return out

    benchmark.group = f"linear_step {list(shape)}"
    assert benchmark(step)[0].shape == shape
