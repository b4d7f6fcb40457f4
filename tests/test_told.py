# SPDX-License-Identifier: MIT
"""What a user is told of a scheduler that is enabled, disabled or stepped from elsewhere: what happened, what to do."""

import warnings

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from test_diffusers import SENSITIVE

from ascedfast import AscedConfig, disable_asced, enable_asced


def status(handle):
    return {row.status for row in handle.report}


def other_of(pipe):
    """Another pipeline with the same scheduler."""
    return StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)


def test_one_that_was_disabled_by_way_of_another_pipeline_says_so():
    pipe, kwargs = tiny.sd15()
    other, stock = other_of(pipe), tiny.run(pipe, kwargs)
    handle = enable_asced(pipe, AscedConfig(**SENSITIVE))
    disable_asced(other)
    assert not handle.enabled
    with pytest.warns(
        RuntimeWarning, match=r"disabled on .* another pipeline that shares it; call enable_asced\(pipe\)"
    ):
        assert torch.equal(tiny.run(pipe, kwargs), stock)
    disable_asced(pipe)
    assert type(pipe) is StableDiffusionPipeline
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        tiny.run(pipe, kwargs)
    again = enable_asced(pipe, AscedConfig(**SENSITIVE))
    tiny.run(pipe, kwargs)
    assert status(again) == {"corrected"}


@pytest.mark.parametrize("anew", [False, True])
def test_one_that_is_enabled_within_a_call_watches_the_next(anew, asced_warnings):
    pipe, kwargs = tiny.sd15()
    stock, handles = tiny.run(pipe, kwargs), []

    def enable(pipe, step, timestep, tensors):
        if step == 3 and not handles:
            disable_asced(pipe)
            handles.append(enable_asced(pipe, AscedConfig(**SENSITIVE)))
        return tensors

    if anew:
        enable_asced(pipe)
    assert torch.equal(tiny.run(pipe, kwargs, callback_on_step_end=enable), stock)
    (warning,) = asced_warnings()
    assert "after set_timesteps of this run, as within its call: this run is left alone" in warning
    assert len(handles[0].report) == 0
    assert not torch.equal(tiny.run(pipe, kwargs), stock)
    assert status(handles[0]) == {"corrected"}
    assert len(asced_warnings()) == 1


@pytest.mark.parametrize("by", ["pipeline", "loop"])
def test_what_else_steps_the_scheduler_is_told_what_to_do(by, asced_warnings):
    pipe, kwargs = tiny.sd15()
    other = other_of(pipe)
    enable_asced(pipe, AscedConfig(**SENSITIVE))
    if by == "pipeline":
        tiny.run(other, kwargs)
    else:
        tiny.sample(pipe.scheduler, tiny.randn(1, 4, 8, 8), tiny.spot((12, 12))[..., :8, :8])
    (warning,) = asced_warnings()
    assert "pipe.scheduler.from_config(pipe.scheduler.config), and call enable_asced on it" in warning
    assert "call enable_asced(scheduler) in place of enable_asced(pipe)" in warning
