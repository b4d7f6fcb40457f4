# SPDX-License-Identifier: MIT
"""A whole run on a side stream while the default stream sleeps: what went to the wrong stream would come too late."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from layouts import same_bits

from ascedfast import AscedConfig, enable_asced

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
STEPS, T_C = 25, 12
SHAPE = (2, 3, 64, 64)
SCHEDULERS = {"ddim": DDIMScheduler, "flow": FlowMatchEulerDiscreteScheduler}
ASLEEP = 2 * 10**9
"""Cycles: a second and more, longer than a run takes to be queued."""


def outputs():
    """Model outputs of every step: steady, but for a square that jumps. No library computes them, so that only our
    kernels and the scheduler's own could differ."""
    g = torch.Generator().manual_seed(2)
    steady = torch.randn(SHAPE, generator=g)
    made = (steady + 0.05 * torch.randn(STEPS, *SHAPE, generator=g)).clone()
    made[1::2, ..., 8:24, 8:24] += 2.0
    return made.cuda()


def whole_run(make, models, x):
    """The last state and the report of an enabled loop, on the current stream."""
    scheduler = make()
    handle = enable_asced(scheduler, AscedConfig.fast(t_c=T_C, min_area=0, core_width=1, mad_scale=2.0), seeds=[3, 4])
    scheduler.set_timesteps(STEPS)  # on the host: a loop that waits for its timesteps would wake the default stream
    for t, m in zip(scheduler.timesteps, models, strict=True):
        x = scheduler.step(m, t, x, return_dict=False)[0]
    return x, handle


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_side_stream_gives_the_same_bits(make):
    models = outputs()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).cuda()
    expected, handle = whole_run(make, models, x)  # compiles, too: that would outlast the sleep
    report = handle.report
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        whole_run(make, models, x)  # gives the stream memory of its own: a first allocation may wait for the device
        side.synchronize()
    torch.cuda._sleep(ASLEEP)
    woken = torch.cuda.Event()
    woken.record()
    with torch.cuda.stream(side):
        got, other = whole_run(make, models, x)
        side.synchronize()
        early = not woken.query()
        beside = other.report
    torch.cuda.synchronize()
    assert early, "the run waited for the default stream, or took longer than its sleep"
    assert [row.status for row in beside.rows] == [row.status for row in report.rows] == ["corrected"] * 2
    assert same_bits(got, expected)
    for row, same in zip(beside.rows, report.rows, strict=True):
        assert torch.equal(row.mask, same.mask)
