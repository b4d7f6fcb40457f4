# SPDX-License-Identifier: MIT
"""Timesteps by token: what is at another level than the step is protected, the rest is watched from its own level."""

import dataclasses

import pytest
import tiny
import tiny_given
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from row_loop import bits

from ascedfast import AscedConfig, asced, enable_asced

GRID, CHANNELS, STEPS = (12, 10), 4, 25
SENSITIVE = AscedConfig(mad_scale=1.0, min_area=0, core_width=1)
NOTHING = AscedConfig(mad_scale=1e9)
X0 = tiny.randn(2, GRID[0] * GRID[1], CHANNELS, seed=6)
GIVEN = (torch.arange(GRID[0]) < 4).float()[:, None].expand(GRID).reshape(-1)
"""The first rows of the grid."""
STRENGTHS = {"nothing": 0.0 * GIVEN, "given": GIVEN, "half given": 0.5 * GIVEN}


def run(scheduler, strength, config=None, dtype=torch.float32, by_token=True, rounded=None, sigmas=None, **options):
    """A loop as LTXCondition's, with a model that knows the clean sample but jumps to and fro around it: its states,
    and the handle."""
    handle = None if config is None else enable_asced(scheduler, config, seeds=[1, 2], grid=GRID, **options)
    scheduler.set_timesteps(STEPS, sigmas=sigmas)
    generator = tiny.generator(3)
    noise = tiny.randn(*X0.shape, seed=5)
    sigma = (1 - strength)[None, :, None]
    x = (sigma * noise + (1 - sigma) * X0).to(dtype)
    states = [x.clone()]
    for k, t in enumerate(scheduler.timesteps):
        tokens = torch.minimum(t.expand(2, 1), (1000 * (1 - strength)).expand(2, -1))
        tokens = tokens if rounded is None else tokens.to(rounded).float()
        level = (tokens / 1000)[..., None]
        x0 = X0 + (0.3 if k % 2 else -0.3) * tiny.randn(*X0.shape, seed=7).abs()
        v = ((x.float() - x0) / level.clamp(min=1e-4)).to(dtype)
        if by_token:
            sign = 1 if scheduler.config.stochastic_sampling else -1
            given = {"per_token_timesteps": tokens, "generator": generator}
            out = scheduler.step(sign * v, t, x, return_dict=False, **given)[0]
            x = torch.where((t / 1000 - 1e-6 < 1 - strength)[:, None], out, x).to(dtype)
        else:
            x = scheduler.step(v, t, x, return_dict=False)[0]
        states.append(x.clone())
    return states, handle


def assert_same(states, others):
    assert all(torch.equal(bits(one), bits(other)) for one, other in zip(states, others, strict=True))


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_found_is_the_stock_run(strength, dtype):
    stock, _ = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS[strength], dtype=dtype)
    watched, handle = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS[strength], NOTHING, dtype=dtype)
    assert_same(watched, stock)
    assert {row.status for row in handle.report} == {"clean"}


@pytest.mark.parametrize("strength", STRENGTHS)
def test_only_tokens_of_the_steps_level_are_corrected(strength):
    stock, _ = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS[strength])
    watched, handle = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS[strength], SENSITIVE)
    report = handle.report
    assert [row.status for row in report] == ["corrected"] * 2
    t_c, mask = report[0].plan.t_c, report.masks_grown
    assert_same(watched[:t_c], stock[:t_c])
    moved = (bits(watched[t_c]) != bits(stock[t_c])).any(2).view(2, 1, *GRID)
    assert torch.equal(moved, mask)
    at_rest = (STRENGTHS[strength] > 0).view(GRID)
    assert not (mask & at_rest).any()
    assert mask[:, :, ~at_rest].any()
    assert (bits(watched[-1]) != bits(stock[-1])).any()


def test_a_users_mask_protects_more():
    keep = torch.zeros(1, 1, 1, GRID[1], dtype=torch.bool)
    keep[..., :5] = True
    _, free = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS["given"], SENSITIVE)
    _, handle = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS["given"], SENSITIVE, keep_mask=keep)
    assert (free.report.masks & keep).any()
    assert torch.equal(handle.report.masks, free.report.masks & ~keep)


@pytest.mark.parametrize("stochastic", [False, True])
def test_x0_is_read_from_the_level_of_each_token(stochastic):
    """Closed form: the model's own x0, wherever its token is."""
    told = []
    config = AscedConfig(correct=False, record="run")
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    run(scheduler, STRENGTHS["half given"], config, on_x0=lambda k, t, x0: told.append(x0.clone()))
    assert len(told) == STEPS
    for k, x0 in enumerate(told):
        expected = X0 + (0.3 if k % 2 else -0.3) * tiny.randn(*X0.shape, seed=7).abs()
        torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-4)


def test_one_timestep_for_all_tokens_is_the_usual_run():
    """What is seen and what is written: the same but for the rounding of a step that is done with the other sign."""
    usual, reference = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS["nothing"], SENSITIVE, by_token=False)
    states, handle = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS["nothing"], SENSITIVE)
    assert torch.equal(handle.report.masks, reference.report.masks)
    for one, other in zip(states, usual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_fused_form_leaves_such_runs_alone(asced_warnings):
    config = AscedConfig(mad_scale=1.0, min_area=0, core_width=1, backend="triton", form="linear")
    stock, _ = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS["given"])
    watched, handle = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS["given"], config)
    t_c = handle.report[0].plan.t_c
    assert_same(watched[:t_c], stock[:t_c])
    assert [row.status for row in handle.report] == ["corrected"] * 2
    assert ["no per_token_timesteps" in text for text in asced_warnings()] == [True]


LATE = [0.9637 - 0.038 * k for k in range(STEPS)]
"""The first level is no number of 16 bits."""


@pytest.mark.parametrize("strength", ["nothing", "given", "half given"])
@pytest.mark.parametrize("sigmas", [None, LATE], ids=["from 1", "late"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_rounded_timesteps_leave_the_run_alone(kind, sigmas, strength, asced_warnings):
    """A scheduler whose next lower level may then be the step's own."""
    stock, _ = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS[strength], rounded=kind, sigmas=sigmas)
    scheduler = FlowMatchEulerDiscreteScheduler()
    watched, handle = run(scheduler, STRENGTHS[strength], SENSITIVE, rounded=kind, sigmas=sigmas)
    assert_same(watched, stock)
    assert [row.status for row in handle.report] == ["unavailable"] * 2
    (warning,) = asced_warnings()
    assert "give them in float32" in warning
    assert handle.report[0].reason in warning


def test_a_given_level_that_rounding_meets_is_none(asced_warnings):
    """500 is 500.4 in bfloat16, but the rest is at 500.4."""
    sigmas = [0.9, 0.8, 0.7, 0.6, 0.5004, *(0.48 - 0.02 * k for k in range(STEPS - 5))]
    config = dataclasses.replace(SENSITIVE, t_c=8, window_start=0)
    _, handle = run(FlowMatchEulerDiscreteScheduler(), STRENGTHS["half given"], config, sigmas=sigmas)
    assert [row.status for row in handle.report] == ["corrected"] * 2
    assert not asced_warnings()


IMAGE = tiny.randn(1, 3, 64, 64, seed=3).sigmoid()


def test_ltx_conditioned():
    """Its first frame is given; without one all tokens are of the step's level."""
    for given, first in (({}, 0), ({"image": IMAGE, "strength": 1.0, "frame_index": 0}, 1)):
        pipe, kwargs = tiny_given.ltx_condition(**given)
        stock = tiny.run(pipe, kwargs)
        with asced(pipe, NOTHING) as handle:
            assert torch.equal(tiny.run(pipe, kwargs), stock)
            assert handle.report[0].status == "clean"
        with asced(pipe, dataclasses.replace(SENSITIVE, max_area=1e9)) as handle:
            watched = tiny.run(pipe, kwargs)
            masks = handle.report.masks_grown
            assert handle.report[0].status == "corrected"
            assert masks.shape == (1, 1, 3, 16, 16)
            assert not masks[:, :, :first].any()
            assert masks[:, :, first:].any()
        assert not torch.equal(watched, stock)
        assert torch.equal(watched[:, :, :first], stock[:, :, :first])


def test_ltx_with_tokens_beside_its_video_is_left_alone(asced_warnings):
    """An image for a later frame is stepped in front of the video: no grid."""
    pipe, kwargs = tiny_given.ltx_condition(image=IMAGE, strength=1.0, frame_index=4)
    stock = tiny.run(pipe, kwargs)
    with asced(pipe, SENSITIVE) as handle:
        assert torch.equal(tiny.run(pipe, kwargs), stock)
        assert handle.report.severity == ["unavailable"]
    assert ["pass grid=" in text for text in asced_warnings()] == [True]
