# SPDX-License-Identifier: MIT
"""Runs of the schedulers beside the first ten that are out of the ordinary: in a pipeline, begun late, broken off,
grown under way, or off their schedule."""

import copy

import diffusers
import pytest
import solvers
import tiny
import torch
from row_loop import bits
from test_solvers import GRID, NOTHING, ROWS, assert_same, enabled, noise, run

from ascedfast import AscedConfig, asced, enable_asced, is_asced_enabled
from ascedfast.adapters.schedules import begins_of, schedule_of

pytestmark = pytest.mark.filterwarnings("ignore:Should have:UserWarning")


IN_A_PIPELINE = ["ddpm-v", "euler-a", "heun", "kdpm2", "dpm-single2", "lcm", "tcd", "ddim-parallel"]


@pytest.mark.parametrize("name", IN_A_PIPELINE)
def test_in_stable_diffusion(name):
    pipe, kwargs = tiny.sd15(solvers.make(name))
    stock = tiny.run(pipe, kwargs)
    with asced(pipe, NOTHING) as handle:
        assert torch.equal(tiny.run(pipe, kwargs), stock)
        assert handle.report[0].status == "clean"
    with asced(pipe, AscedConfig(mad_scale=1.0, min_area=20)) as handle:
        corrected = tiny.run(pipe, kwargs)
        assert handle.report[0].status == "corrected"
        assert corrected.isfinite().all()
        assert not torch.equal(corrected, stock)


OPTIONS = {
    "ddim-parallel": {"eta": 0.7},
    "tcd": {"eta": 0.0},
    "edm-euler": {"s_churn": 2.0},
    "flow-heun": {"s_churn": 0.5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_arguments_of_step(name):
    generators = tiny.generator(9), tiny.generator(9)
    stock = run(solvers.make(name), name, generator=generators[0], **OPTIONS[name])
    scheduler, handle = enabled(name)
    watched = run(scheduler, name, generator=generators[1], **OPTIONS[name])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert [row.status for row in handle.report] == ["corrected"] * ROWS
    outside = ~handle.report.masks_grown.expand_as(stock[0])
    assert all(torch.equal(bits(one)[outside], bits(other)[outside]) for one, other in zip(watched, stock, strict=True))
    assert not torch.equal(watched[-1], stock[-1])


@pytest.mark.parametrize(
    "options",
    [{"s_churn": 3.0}, {"pred_original_sample": torch.ones(ROWS, 3, *GRID)}],
    ids=lambda given: next(iter(given)),
)
def test_x0_of_edm_euler_is_what_it_returns(options):
    scheduler, handle = enabled("edm-euler", AscedConfig(record="run"))
    solvers.set_steps(scheduler)
    x, t = noise("edm-euler") * 80, scheduler.timesteps[0]
    scheduler.scale_model_input(x, t)
    out = scheduler.step(noise("edm-euler", seed=5), t, x, generator=tiny.generator(), **options)
    assert torch.equal(handle.x0, out.pred_original_sample)


@pytest.mark.parametrize("name", ["ddpm-learned", "unclip-learned"])
def test_learned_variance_is_left_out(name):
    seen = []
    scheduler, _ = enabled(name, AscedConfig(correct=False), on_x0=lambda step, t, x0: seen.append(x0.clone()))
    run(scheduler, name, edit=lambda call, m: torch.cat([m[:, :3], torch.full_like(m[:, 3:], 0.5)], 1))
    assert seen[0].shape == (ROWS, 3, *GRID)
    plain = []
    scheduler, _ = enabled("ddpm", AscedConfig(correct=False), on_x0=lambda step, t, x0: plain.append(x0.clone()))
    run(scheduler, "ddpm")
    if name == "ddpm-learned":
        assert torch.equal(seen[0], plain[0])


def begin_at(scheduler, first, x):
    """A loop from a call on, as image-to-image pipelines have it."""
    solvers.set_steps(scheduler)
    scheduler.set_begin_index(first)
    levels, begins = solvers.levels_at(scheduler), begins_of(scheduler, schedule_of(scheduler))
    predict, states = solvers.jumping(tiny.spot(GRID, ROWS)), []
    for call in range(first, len(levels)):
        step = sum(begin <= call for begin in begins)
        m = solvers.output_of(levels[call], x, predict(step, levels[call], x))
        x = scheduler.step(m, scheduler.timesteps[call], x, return_dict=False)[0]
        states.append(x.clone())
    return states


@pytest.mark.parametrize("name", ["heun", "kdpm2", "flow-heun", "dpm-single2"])
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_may_begin_where_a_step_of_the_solver_does(name, first, asced_warnings):
    scheduler, handle = enabled(name)
    states = begin_at(scheduler, first, noise(name) * 5)
    stock = begin_at(solvers.make(name), first, noise(name) * 5)
    row = handle.report[0]
    assert row.executed == row.steps
    if first % 2:
        assert_same(states, stock)
        assert "in the middle of a step" in row.reason
        assert len(asced_warnings()) == 1
        return
    assert row.status == "corrected"
    outside = ~handle.report.masks_grown.expand_as(states[0])
    assert all(torch.equal(bits(one)[outside], bits(other)[outside]) for one, other in zip(states, stock, strict=True))
    assert torch.equal(states[2 * row.plan.t_c - 2], stock[2 * row.plan.t_c - 2])  # between two evaluations
    assert not torch.equal(states[2 * row.plan.t_c - 1], stock[2 * row.plan.t_c - 1])


@pytest.mark.parametrize("first", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["heun", "kdpm2", "kdpm2-a", "dpm-sde", "dpm-single2"])
def test_x0_of_a_late_run_is_the_schedulers_own_or_is_not_told(name, first):
    told = []
    config = AscedConfig(correct=False, record="run")
    scheduler, handle = enabled(name, config, on_x0=lambda step, t, x0: told.append(x0.clone()))
    solvers.set_steps(scheduler)
    scheduler.set_begin_index(first)
    x = noise(name) * 5
    for call in range(first, len(scheduler.timesteps)):
        before = len(told)
        out = scheduler.step(tiny.randn(*x.shape, seed=call), scheduler.timesteps[call], x, return_dict=False)
        own, x = out[1] if len(out) > 1 else scheduler.model_outputs[-1], out[0]
        if len(told) > before:
            torch.testing.assert_close(told[-1], own, rtol=1e-4, atol=1e-4)
    assert bool(told) == (first % 2 == 0)
    assert bool(handle.report[0].dynamics) == bool(told)
    assert (handle.x0 is not None) == bool(told)
    reason = handle.report[0].reason
    assert told or f"set_begin_index({first - 1})" in reason


@pytest.mark.parametrize("name", ["heun", "ddpm", "cosine-dpm2", "repaint", "edm-dpm2"])
def test_a_run_that_broke_off_is_followed_by_a_whole_one(name):
    scheduler, handle = enabled(name)
    whole = run(scheduler, name)

    def stop(call, m):
        if call == 9:
            raise InterruptedError
        return m

    with pytest.raises(InterruptedError):
        run(scheduler, name, edit=stop)
    assert_same(run(scheduler, name), whole)
    assert {row.status for row in handle.report} == {"corrected"}


@pytest.mark.parametrize(
    ("name", "argument", "aside"), [("unclip", "prev_timestep", None), ("flow-map", "r_timestep", 1.0)]
)
def test_a_step_to_another_level_leaves_the_run_alone(name, argument, aside, asced_warnings):
    ran = []
    for watched in (False, True):
        scheduler = solvers.set_steps(solvers.make(name))
        handle = enable_asced(scheduler, seeds=[1]) if watched else None
        x, states, generator = tiny.randn(1, 3, *GRID), [], tiny.generator()
        given = {"generator": generator} if name == "unclip" else {}
        for t in scheduler.timesteps:
            target = None if aside is None else float(t) - aside
            x = scheduler.step(0.1 * x, t, x, return_dict=False, **{argument: target}, **given)[0]
            states.append(x.clone())
        ran.append(states)
    assert_same(*ran)
    assert handle.report.masks is None or not handle.report.masks.any()
    assert f"pass {argument}=" in asced_warnings()[0]
    assert len(asced_warnings()) == 1


def test_a_timestep_between_those_of_a_flow_map_is_refused():
    scheduler, _ = enabled("flow-map")
    solvers.set_steps(scheduler)
    with pytest.raises(ValueError, match=r"not one of scheduler\.timesteps"):
        scheduler.step(noise("flow-map"), 123.4, noise("flow-map"), r_timestep=100.0)


@pytest.mark.parametrize("name", ["heun", "dpm-single2", "repaint", "edm-dpm2", "helios-unipc"])
def test_a_copy_in_the_middle_of_a_run_starts_afresh(name):
    """Between two evaluations of a step, too; the original goes on as if there were no copy."""
    scheduler, _ = enabled(name)
    whole, copies = run(scheduler, name), []

    def look(call, m):
        if call == 9:
            copies.append(copy.deepcopy(scheduler))
        return m

    assert_same(run(scheduler, name, edit=look), whole)
    assert is_asced_enabled(copies[0])
    assert_same(run(copies[0], name), whole)


def test_latents_that_grow_under_way_are_left_alone(asced_warnings):
    x, run_of = tiny.randn(1, 3, 16, 16), []
    for watched in (False, True):
        scheduler = solvers.make("flow-lcm")
        scheduler.set_scale_factors([1.0] * 10 + [2.0] * 14, "nearest")
        if watched:
            handle = enable_asced(scheduler, seeds=[1])
        scheduler.set_timesteps(25)
        state, states = x, []
        generator = tiny.generator(1)
        for t in scheduler.timesteps:
            state = scheduler.step(0.1 * state, t, state, generator=generator, return_dict=False)[0]
            states.append(state)
        run_of.append(states)
    assert_same(*run_of)
    assert states[-1].shape == (1, 3, 32, 32)
    assert handle.report.severity == ["unavailable"]
    assert "changes the size" in asced_warnings()[0]


def test_the_extra_step_of_ltx_gives_its_state_back():
    scheduler, handle = enabled("ltx-euler-a", AscedConfig(record="run"))
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 26).tolist())
    assert len(scheduler.timesteps) == 26
    x = noise("ltx-euler-a")
    for t in scheduler.timesteps:
        before, x = x, scheduler.step(x * 0.1, t, x, generator=tiny.generator(), return_dict=False)[0]
    assert x is before
    assert handle.report[0].executed == 25


@pytest.mark.parametrize("order", [2, 3])
def test_helios_of_order_3_is_nan_in_stock(order, asced_warnings):
    ran = []
    for watched in (False, True):
        scheduler = diffusers.HeliosScheduler(**solvers.STAGES, solver_order=order)
        if watched:
            enable_asced(scheduler, NOTHING, seeds=[5, 6])
        ran.append(run(scheduler, "helios-unipc"))
    assert_same(*ran)
    assert ran[0][-1].isnan().any() == (order == 3)
    assert [("order 3" in text) for text in asced_warnings()] == [True] * (order == 3)


def test_stages_of_helios_are_left_alone(asced_warnings):
    ran = []
    for watched in (False, True):
        scheduler = diffusers.HeliosScheduler()
        handle = enable_asced(scheduler, seeds=[1]) if watched else None
        scheduler.set_timesteps(12, stage_index=0)
        states, x = [], tiny.randn(1, 3, 16, 16)
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * x, t, x, return_dict=False)[0]
            states.append(x.clone())
        ran.append(states)
    assert_same(*ran)
    assert handle.report.severity == ["unavailable"]
    assert "stages=1" in asced_warnings()[0]


FLOW_OR_NOT = ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep", "SASolver"]
MEAN, DEVIATION = 0.5, 0.3


def gaussian_samples(scheduler):
    """(mean, standard deviation) of what a stock scheduler draws with the exact model of white Gaussian data, at the
    levels that the solver itself goes through."""
    flow, kind = scheduler.config.use_flow_sigmas, scheduler.config.prediction_type
    scheduler.set_timesteps(50)
    x = tiny.randn(1, 4, 64, 64, dtype=torch.float64)
    for k, t in enumerate(scheduler.timesteps):
        s = float(scheduler.sigmas[k])
        alpha, sigma = (1 - s, s) if flow else (1 / (1 + s * s) ** 0.5, s / (1 + s * s) ** 0.5)
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        x0 = MEAN + gain * (x - alpha * MEAN)
        e = (x - alpha * x0) / sigma
        m = {"epsilon": e, "v_prediction": alpha * e - sigma * x0, "flow_prediction": e - x0}[kind]
        x = scheduler.step(m, t, x, return_dict=False)[0]
    return float(x.mean()), float(x.std())


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("name", FLOW_OR_NOT)
def test_a_scheduler_that_is_wrong_itself_is_refused(name, kind, flow):
    """Two processes in one configuration: the exact model does not give its data."""
    options = {"tau_func": lambda t: 0} if name == "SASolver" else {}
    scheduler = getattr(diffusers, f"{name}Scheduler")(prediction_type=kind, use_flow_sigmas=flow, **options)
    off = max(abs(one - other) for one, other in zip(gaussian_samples(scheduler), (MEAN, DEVIATION), strict=True))
    if off < 0.02:
        assert enable_asced(scheduler).enabled
        return
    assert off > 0.25
    cure = f"use {name}Scheduler.from_config(scheduler.config, use_flow_sigmas=True)"
    with pytest.raises(ValueError, match=r"its own samples are wrong too\): use .*use_flow_sigmas=") as raised:
        enable_asced(scheduler)
    assert (cure in str(raised.value)) == (kind == "flow_prediction")
    assert not is_asced_enabled(scheduler)
    cured = {"use_flow_sigmas": not flow}
    assert enable_asced(type(scheduler).from_config(scheduler.config, **cured)).enabled
