# SPDX-License-Identifier: MIT
"""When a run is watched and corrected, and the noise levels that are read from diffusers' schedulers."""

import math

import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from ascedfast import AscedConfig, Coefficients, Schedule, process
from ascedfast.adapters.schedules import schedule_of
from ascedfast.schedule import MIN_PREDICTIONS, PAPER_T_C_LOGSNR, Plan, plan_run

FAST = AscedConfig()


def flow_levels(steps, shift=1.0):
    sigmas = [1 - k / steps for k in range(steps)]
    return Schedule.from_levels([process.flow(shift * s / (1 + (shift - 1) * s)) for s in sigmas])


def diffusers_schedule(scheduler, steps):
    return schedule_of(tiny.set_steps(scheduler, steps))


def linear(steps, **options):
    return diffusers_schedule(DDIMScheduler(clip_sample=False, **options), steps)


def nearest(schedule):
    levels = schedule.before
    return min(range(1, len(levels)), key=lambda k: abs(levels[k].logsnr + 2.26))


def test_the_papers_setting_corrects_at_12_of_25():
    plan = plan_run(linear(25), FAST)
    assert plan == Plan(6, 12)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("make", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_linear_betas_take_a_share_of_the_steps(make, spacing):
    for steps in range(8, 101):
        schedule = diffusers_schedule(make(beta_schedule="linear", timestep_spacing=spacing), steps)
        steps = len(schedule)  # stock's trailing spacing makes 62 of 61
        plan = plan_run(schedule, FAST)
        assert plan.t_c == math.floor(0.48 * steps + 0.5), steps
        assert plan.start == max(0, min(math.floor(0.24 * steps + 0.5), plan.t_c - 3))
        assert plan.reason is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDIMScheduler(**tiny.SCALED),
        lambda: DDIMScheduler(prediction_type="v_prediction"),
        lambda: DDIMScheduler(prediction_type="sample"),
        lambda: DDIMScheduler(trained_betas=torch.linspace(1e-4, 0.02, 1000).tolist()),
        lambda: EulerDiscreteScheduler(use_karras_sigmas=True),
        lambda: EulerDiscreteScheduler(use_exponential_sigmas=True),
        lambda: DPMSolverMultistepScheduler(use_lu_lambdas=True),
        lambda: EulerDiscreteScheduler(**tiny.SCALED),
        lambda: FlowMatchEulerDiscreteScheduler(),
        lambda: FlowMatchEulerDiscreteScheduler(shift=5.0),
        lambda: FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        lambda: DPMSolverMultistepScheduler(**tiny.FLOW),
    ],
    ids=[
        "scaled",
        "v",
        "sample",
        "trained betas",
        "karras",
        "exponential",
        "lu",
        "euler",
        "flow",
        "flow-5",
        "inverted",
        "dpm-flow",
    ],
)
def test_other_schedules_take_the_noise_level(make):
    schedule = diffusers_schedule(make(), 40)
    plan = plan_run(schedule, FAST)
    assert not schedule.linear_beta
    assert plan.reason is None
    assert plan.t_c == nearest(schedule)
    here = abs(schedule.before[plan.t_c].logsnr - PAPER_T_C_LOGSNR)
    assert all(here <= abs(schedule.before[k].logsnr - PAPER_T_C_LOGSNR) for k in range(1, 40))


def test_the_noise_level_is_the_papers():
    """The sample is at t = 480 of 1000 linear betas when the paper corrects it: there both rules agree."""
    abar = float(DDIMScheduler().alphas_cumprod[480])
    assert math.log(abar / (1 - abar)) == pytest.approx(PAPER_T_C_LOGSNR, abs=0.01)


@pytest.mark.parametrize("steps", [12, 25, 50])
@pytest.mark.parametrize("make", [AscedConfig.fast, AscedConfig.official, AscedConfig.paper])
def test_window_starts(make, steps):
    plan = plan_run(flow_levels(steps, shift=3.0), make())
    expected = {
        "official": 0,
        "fast": min(math.floor(0.24 * steps + 0.5), plan.t_c - 3),
        "paper": min(math.floor(0.24 * steps + 0.5), plan.t_c - 3),
    }
    assert plan.start == expected[make().mode]


def test_paper_does_not_start_at_pure_noise():
    config = AscedConfig.paper(window_start=0)
    assert plan_run(flow_levels(25), config).start == 1  # alpha is 0 at step 0
    assert plan_run(flow_levels(25), AscedConfig(window_start=0)).start == 0


@pytest.mark.parametrize("first", [1, 5, 9])
def test_later_starts_take_the_noise_level(first):
    schedule = linear(25)
    plan = plan_run(schedule, AscedConfig.official(), first)
    levels = schedule.before[first:]
    if plan.reason is None:
        assert plan.t_c == min(range(1, len(levels)), key=lambda k: abs(levels[k].logsnr + 2.26))
    assert plan.t_c + first in (0 + first, nearest(schedule))


@pytest.mark.parametrize("first", [15, 20, 24])
def test_image_to_image_past_the_level_is_left_alone(first):
    plan = plan_run(linear(25), FAST, first)
    assert "less noise" in plan.reason


def test_a_configured_t_c_counts_executed_steps():
    assert plan_run(linear(25), AscedConfig(t_c=5), 15) == Plan(2, 5)
    assert plan_run(linear(25), AscedConfig(t_c=0.5), 15) == Plan(2, 5)
    assert plan_run(linear(25), AscedConfig(t_c=20), 0) == Plan(6, 20)


@pytest.mark.parametrize(
    ("settings", "plan"),
    [
        ({"t_c": 10, "window_start": 2}, Plan(2, 10)),
        ({"t_c": 10, "window_start": 0.2}, Plan(4, 10)),
        ({"t_c": 0.5, "window_start": 0.2}, Plan(4, 10)),
        ({"t_c": 0.5, "window_start": 0.0}, Plan(0, 10)),
        ({"t_c": 0.525, "window_start": 3}, Plan(3, 11)),
        ({"t_c": 19}, Plan(5, 19)),
        ({"t_c": 4}, Plan(1, 4)),
        ({"t_c": 3}, Plan(0, 3)),
    ],
    ids=lambda value: str(value),
)
def test_configured_windows(settings, plan):
    assert plan_run(flow_levels(20), AscedConfig(**settings)) == plan


@pytest.mark.parametrize("t_c", [20, 25, 0.99])
def test_t_c_past_the_end(t_c):
    with pytest.raises(ValueError, match="past the end"):
        plan_run(flow_levels(20), AscedConfig(t_c=t_c))


@pytest.mark.parametrize("settings", [{"t_c": 5, "window_start": 0.5}, {"t_c": 0.25, "window_start": 5}])
def test_a_window_that_is_empty_in_this_run(settings):
    with pytest.raises(ValueError, match="window is empty"):
        plan_run(flow_levels(20), AscedConfig(**settings))


@pytest.mark.parametrize("settings", [{"t_c": 2}, {"t_c": 1}, {"t_c": 10, "window_start": 8}])
def test_fewer_than_three_predictions(settings):
    reason = plan_run(flow_levels(20), AscedConfig(**settings)).reason
    assert f"{MIN_PREDICTIONS} are needed" in reason


@pytest.mark.parametrize("steps", range(1, 8))
def test_few_step_runs(steps):
    for schedule in (linear(steps), flow_levels(steps), flow_levels(steps, 3.0)):
        plan = plan_run(schedule, FAST)
        if plan.reason is None:
            assert plan.t_c - plan.start >= MIN_PREDICTIONS
            assert plan.t_c < steps
    assert (plan_run(linear(steps), FAST).reason is None) == (steps >= 6)


@given(st.integers(1, 120), st.floats(0.5, 12), st.sampled_from(["fast", "official", "paper"]), st.data())
def test_any_plan_lies_inside_its_run(steps, shift, mode, data):
    first = data.draw(st.integers(0, steps - 1))
    plan = plan_run(flow_levels(steps, shift), AscedConfig.for_mode(mode), first)
    if plan.reason is None:
        assert 0 <= plan.start <= plan.t_c - MIN_PREDICTIONS
        assert plan.t_c < steps - first


def test_schedules_that_do_not_fit():
    level = process.flow(0.5)
    with pytest.raises(ValueError, match="one level after each step"):
        Schedule((level, level), ((1.0, 0.0),))
    with pytest.raises(ValueError, match="one level after each step"):
        Schedule((), ())
    for broken in (Coefficients(math.nan, 0, 1, 0), Coefficients(1, math.inf, 1, 0)):
        with pytest.raises(ValueError, match="step 1 of the schedule"):
            Schedule.from_levels([level, broken])


def test_levels_are_no_numbers():
    with pytest.raises(TypeError, match=r"process\.eps\(alpha, sigma\), got 1\.0"):
        Schedule.from_levels([1.0, 0.5])


def test_from_levels_ends_each_step_at_the_next():
    schedule = flow_levels(4)
    assert schedule.after == ((0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0))
    table = schedule.table(torch.device("cpu"))
    assert table.dtype == torch.float32
    assert table.tolist() == [[1.0, -1.0], [1.0, -0.75], [1.0, -0.5], [1.0, -0.25]]


def perfect_output(scheduler, level):
    """The output of a network that knows x0 = (1, 0) and e = (0, 1) at the two locations."""
    x0, e = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    fixed = "v_prediction" if isinstance(scheduler, IPNDMScheduler) else "flow_prediction"
    kind = scheduler.config.get("prediction_type", fixed)
    if kind == "epsilon":
        return e
    if kind == "sample":
        return x0
    if kind == "v_prediction":
        norm = math.hypot(level.alpha, level.sigma)  # Euler's levels are not normalised
        return (level.alpha * e - level.sigma * x0) / norm
    return x0 - e if scheduler.config.get("invert_sigmas") else e - x0


MORE_SCHEDULERS = {
    "ddim-linspace": lambda: DDIMScheduler(timestep_spacing="linspace", clip_sample=False),
    "ddim-trailing": lambda: DDIMScheduler(timestep_spacing="trailing", clip_sample=False),
    "ddim-offset": lambda: DDIMScheduler(**tiny.SCALED, steps_offset=1, clip_sample=False, set_alpha_to_one=False),
    "ddim-1003": lambda: DDIMScheduler(num_train_timesteps=1003, clip_sample=False),
    "dpm-lu": lambda: DPMSolverMultistepScheduler(use_lu_lambdas=True, final_sigmas_type="sigma_min"),
}
# Steps of the others are not deterministic, or not location-wise; PNDM extrapolates velocities of different levels.
OTHERS = (*tiny.STOCHASTIC, *tiny.THRESHOLDING, "plms-v")
DETERMINISTIC = [name for name in tiny.SCHEDULERS if name not in OTHERS]


@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, steps) for name in [*DETERMINISTIC, *MORE_SCHEDULERS] for steps in (7, 25, 30)]
    + [(name, 999) for name in [*DETERMINISTIC, *MORE_SCHEDULERS] if name.startswith("ddim")],
)
def test_levels_are_the_schedulers_own(name, steps):
    """A stock run with a perfect network stays on alpha*x0 + sigma*e: its states show every level."""
    scheduler = tiny.set_steps((tiny.SCHEDULERS | MORE_SCHEDULERS)[name](), steps)
    schedule = schedule_of(scheduler)
    assert len(schedule) == len(scheduler.timesteps) == steps + name.startswith("plms")
    for k, t in enumerate(scheduler.timesteps):
        level = schedule.before[k]
        x = torch.tensor([level.alpha, level.sigma], dtype=torch.float64)
        m = perfect_output(scheduler, level)
        scale = max(1.0, level.sigma)
        # IPNDM's tables hold alpha and sigma each rounded to float32: their squares sum to 1 as nearly as that.
        exact = (3e-7 if name == "ipndm" else 1e-9) * scale
        assert torch.allclose(level.a * x + level.b * m, torch.tensor([1.0, 0.0]).double(), rtol=0, atol=exact)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        after = scheduler.step(m.view(1, 1, 1, 2), t, x.view(1, 1, 1, 2)).prev_sample.flatten().double()
        if name == "ipndm" and k == 0:
            continue  # at alpha 0 it divides by 1e-8, and x0 is lost
        tolerance = 3e-6 * scale / max(level.alpha, 1e-3)
        tolerance *= 5 if name == "deis3-flow" else 1  # its third-order coefficients cancel in the stock's float32
        torch.testing.assert_close(
            after, torch.tensor(schedule.after[k], dtype=torch.float64), rtol=1e-5, atol=tolerance
        )


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [25, 30, 45])
def test_ddim_corrects_at_the_level_that_follows(spacing, steps):
    """DDIM steps to t - T//N, which is not always the next timestep; the correction is at the level stepped to."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    schedule = schedule_of(scheduler)
    for k, t in enumerate(scheduler.timesteps.tolist()):
        to = t - 1000 // steps
        abar = float(scheduler.alphas_cumprod[to] if to >= 0 else scheduler.final_alpha_cumprod)
        assert schedule.after[k] == pytest.approx((abar**0.5, (1 - abar) ** 0.5), abs=1e-12)


def test_levels_are_read_late():
    """Some pipelines write into sigmas between set_timesteps and the first step."""
    scheduler = tiny.set_steps(FlowMatchEulerDiscreteScheduler(), 10)
    scheduler.sigmas[-1] = 0.25
    assert schedule_of(scheduler).after[-1] == (0.75, 0.25)


def test_a_schedule_needs_timesteps():
    with pytest.raises(ValueError, match="set_timesteps"):
        schedule_of(DDIMScheduler())


def test_clip_is_the_schedulers():
    assert linear(25).clip is None
    assert diffusers_schedule(DDIMScheduler(), 25).clip == 1.0
    assert diffusers_schedule(DDIMScheduler(clip_sample_range=2.5), 25).clip == 2.5
    assert diffusers_schedule(DDIMScheduler(thresholding=True), 25).clip is None
