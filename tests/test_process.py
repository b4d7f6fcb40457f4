# SPDX-License-Identifier: MIT
"""The two linear forms: each parameterisation against diffusers' own x0, and against its own forward process."""

import math

import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    SCMScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from ascedfast import Coefficients, process
from ascedfast.adapters.schedules import schedule_of

EPS32 = torch.finfo(torch.float32).eps
DATA = st.floats(-4, 4)
LEVEL = st.floats(0.01, 0.99)


def own_x0(scheduler, m, t, x):
    """What the scheduler itself takes for the clean sample in this step."""
    if hasattr(scheduler, "convert_model_output"):
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        if getattr(scheduler, "predict_x0", scheduler.config.get("algorithm_type", "").endswith("++")):
            return scheduler.convert_model_output(m, sample=x)
        if isinstance(scheduler, DEISMultistepScheduler):
            seen = []  # what it would threshold
            scheduler.register_to_config(thresholding=True)
            scheduler._threshold_sample = lambda x0: seen.append(x0) or x0
            scheduler.convert_model_output(m, sample=x)
            return seen[0]
        eps = scheduler.convert_model_output(m, sample=x)
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index])
        return (x - sigma * eps) / alpha
    # A step to the clean sample; in float64, since they take a detour over the noise.
    if isinstance(scheduler, PNDMScheduler):
        scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = scheduler.alphas_cumprod.double(), torch.tensor(1.0)
        return scheduler._get_prev_sample(x.double(), t, -1, m.double())
    if isinstance(scheduler, IPNDMScheduler):
        index = scheduler.index_for_timestep(t)
        noise = x.double() * scheduler.betas[index] + m.double() * scheduler.alphas[index]
        return scheduler._get_prev_sample(x.double(), index, len(scheduler.timesteps), noise)
    out = scheduler.step(m, t, x)
    if "pred_original_sample" in out:
        return out.pred_original_sample
    # FlowMatchEuler returns the next state alone; a run of this one step ends at the clean sample.
    s, inverted = float(scheduler.sigmas[scheduler.step_index - 1]), scheduler.config.invert_sigmas
    one = FlowMatchEulerDiscreteScheduler(invert_sigmas=inverted)
    one.set_timesteps(sigmas=[1 - s if inverted else s])
    return one.step(m, one.timesteps[0], x).prev_sample


LINEAR = [name for name in tiny.SCHEDULERS if name not in (*tiny.THRESHOLDING, "ddim-eps-clip")]


CASES = [(name, step) for name in LINEAR for step in (0, 7, 18, 24)]
CASES.remove(("ipndm", 0))  # at alpha 0 the scheduler divides by 1e-8 and has no x0 to compare with


@pytest.mark.parametrize(("name", "step"), CASES)
def test_x0_equals_the_schedulers_own(name, step):
    scheduler = tiny.set_steps(tiny.SCHEDULERS[name](), 25)
    a, b, _, _ = schedule_of(scheduler).before[step]
    x, m = tiny.randn(2, 3, 8, 8, seed=step), tiny.randn(2, 3, 8, 8, seed=100 + step)
    t = scheduler.timesteps[step]
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(x, t)
    got = a * x.double() + b * m.double()
    bound = 4 * EPS32 * (abs(a) * x.abs() + abs(b) * m.abs()).double()
    error = (got - own_x0(scheduler, m, t, x).double()).abs()
    assert (error <= bound).all(), (error / bound).max()


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.002, 0.3, 5.0, 80.0])
def test_edm_equals_precondition_outputs(sigma, sigma_data):
    scheduler = EDMEulerScheduler(sigma_data=sigma_data)
    x, m = tiny.randn(2, 3, 8, 8, seed=1).double(), tiny.randn(2, 3, 8, 8, seed=2).double()
    a, b, alpha, level = process.edm(sigma, sigma_data)
    torch.testing.assert_close(a * x + b * m, scheduler.precondition_outputs(x, m, sigma), rtol=1e-13, atol=1e-13)
    assert (alpha, level) == (1.0, sigma)


@pytest.mark.parametrize("step", [0, 1])
def test_trigflow_equals_scm(step):
    scheduler = SCMScheduler(sigma_data=0.5)
    scheduler.set_timesteps(2, intermediate_timesteps=1.3)
    x, m = tiny.randn(1, 3, 8, 8, seed=1), tiny.randn(1, 3, 8, 8, seed=2)
    for index in range(step + 1):
        own = scheduler.step(m, scheduler.timesteps[index], x, generator=tiny.generator()).pred_original_sample
    a, b, _, _ = process.trigflow(float(scheduler.timesteps[step]), 0.5)
    torch.testing.assert_close(a * x + b * m, own, rtol=1e-6, atol=1e-6)


# Each entry: the coefficients, and the model output that a perfect network would give for (x, x0, e).
def vp(angle):
    return math.cos(angle * math.pi / 2), math.sin(angle * math.pi / 2)


PERFECT = {
    "eps": lambda u: (process.eps(*vp(u)), lambda x, x0, e: e),
    "v": lambda u: (process.v(*vp(u)), lambda x, x0, e: vp(u)[0] * e - vp(u)[1] * x0),
    "sample": lambda u: (process.sample(*vp(u)), lambda x, x0, e: x0),
    "flow": lambda u: (process.flow(u), lambda x, x0, e: e - x0),
    "inverted flow": lambda u: (process.inverted_flow(u), lambda x, x0, e: x0 - e),
    "ve eps": lambda u: (process.ve_eps(20 * u), lambda x, x0, e: e),
    "ve v": lambda u: (
        process.ve_v(20 * u),
        lambda x, x0, e: (e - 20 * u * x0) / math.hypot(20 * u, 1),
    ),
    "ve sample": lambda u: (process.ve_sample(20 * u), lambda x, x0, e: x0),
    "edm": lambda u: (
        process.edm(20 * u, 0.7),
        lambda x, x0, e: (x0 - 0.49 * x / ((20 * u) ** 2 + 0.49)) * math.sqrt((20 * u) ** 2 + 0.49) / (20 * u * 0.7),
    ),
    "ve score": lambda u: (process.ve_score(20 * u), lambda x, x0, e: -e / (20 * u)),
    "pfgm++": lambda u: (
        process.pfgmpp(20 * u * math.sqrt(128), 128, 0.7),
        lambda x, x0, e: (x0 - 0.49 * x / ((20 * u) ** 2 + 0.49)) * math.sqrt((20 * u) ** 2 + 0.49) / (20 * u * 0.7),
    ),
    # SiT's and the cosine path, and the data-ward velocity of a straight one, each with the derivatives of its own t.
    "interpolant": lambda u: (process.interpolant(1 - u * u, u, -2 * u, 1), lambda x, x0, e: e - 2 * u * x0),
    "cosine path": lambda u: (
        process.interpolant(*vp(u), -math.pi / 2 * vp(u)[1], math.pi / 2 * vp(u)[0]),
        lambda x, x0, e: math.pi / 2 * (vp(u)[0] * e - vp(u)[1] * x0),
    ),
    "data-ward": lambda u: (process.interpolant(1 - u, u, 1, -1), lambda x, x0, e: x0 - e),
    # dx/ds, "times sigma_data" as the network's raw output is taken (arXiv 2410.11081).
    "trigflow": lambda u: (
        process.trigflow(u * math.pi / 2, 0.5),
        lambda x, x0, e: 0.5 * e * math.cos(u * math.pi / 2) - x0 * math.sin(u * math.pi / 2),
    ),
}


@pytest.mark.parametrize("name", PERFECT)
@given(u=LEVEL, x0=DATA, e=DATA)
def test_a_perfect_output_gives_x0_back(name, u, x0, e):
    level, perfect = PERFECT[name](u)
    x = level.alpha * x0 + level.sigma * e
    m = perfect(x, x0, e)
    size = abs(level.a * x) + abs(level.b * m) + 1
    assert abs(level.a * x + level.b * m - x0) <= 1e-13 * size


@pytest.mark.parametrize("name", PERFECT)
@given(u=LEVEL, x=DATA, mean=DATA, deviation=st.floats(0.1, 2))
def test_the_best_output_gives_the_posterior_mean(name, u, x, mean, deviation):
    """For Gaussian data, N(mean, deviation^2), the closed form of E[x0 | x]; x0_hat of the best output is that mean."""
    level, perfect = PERFECT[name](u)
    gain = level.alpha * deviation**2 / (level.alpha**2 * deviation**2 + level.sigma**2)
    x0 = mean + gain * (x - level.alpha * mean)
    m = perfect(x, x0, (x - level.alpha * x0) / level.sigma)  # every target is linear, so its mean is that of the means
    size = abs(level.a * x) + abs(level.b * m) + 1
    assert abs(level.a * x + level.b * m - x0) <= 1e-12 * size


@given(u=LEVEL)
def test_the_general_path_holds_the_known_ones(u):
    for known, path in [
        (process.flow(u), (1 - u, u, -1, 1)),
        (process.inverted_flow(u), (u, 1 - u, 1, -1)),
        (process.ve_eps(u), (1, u, 0, 1)),
        (process.v(*vp(u)), (*vp(u), -vp(u)[1], vp(u)[0])),
        (process.trigflow(u), (math.cos(u), math.sin(u), -math.sin(u), math.cos(u))),
    ]:
        assert process.interpolant(*path) == pytest.approx(known, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("steps", [100, 200])
def test_a_path_of_ones_own_leads_to_the_closed_form(steps):
    """Midpoint steps along the velocity of x = (1-t^2)*x0 + t*e, data N(.3, .5^2): quantiles stay quantiles."""
    mean, deviation, x = 0.3, 0.5, torch.linspace(-2, 2, 9, dtype=torch.float64)

    def velocity(x, t):
        level = process.interpolant(1 - t * t, t, -2 * t, 1)
        gain = level.alpha * deviation**2 / (level.alpha**2 * deviation**2 + level.sigma**2)
        x0 = mean + gain * (x - level.alpha * mean)
        m = -2 * t * x0 + (x - level.alpha * x0) / level.sigma
        torch.testing.assert_close(level.a * x + level.b * m, x0)
        return m

    expected = mean + deviation * x
    for k in range(steps):
        high, low = 1 - k / steps, 1 - (k + 1) / steps
        middle = (high + low) / 2
        half = x - (high - middle) * velocity(x, high)
        x = x - (high - low) * velocity(half, middle)
    torch.testing.assert_close(x, expected, rtol=0, atol=4 / steps**2)


def test_the_noise_of_pfgmpp_is_stretched_by_as_much_as_it_says():
    """Radii of the kernel R^(N-1) / (R^2 + r^2)^((N+D)/2): R^2/(R^2 + r^2) is Beta(N/2, D/2)."""
    rng, pixels = np.random.default_rng(0), 3 * 64 * 64
    for dim, spread in [(128, 0.06), (2048, 0.016)]:
        share = rng.beta(pixels / 2, dim / 2, size=20_000)
        level = np.sqrt(share / (1 - share) * dim / pixels)  # over sigma = r/sqrt(D)
        assert level.mean() == pytest.approx(1, abs=0.01)
        assert level.std() == pytest.approx(spread, rel=0.1)


def test_what_has_no_level_is_refused():
    with pytest.raises(ValueError, match="stands still"):
        process.interpolant(0.5, 0.5, -1, -1)
    with pytest.raises(ValueError, match="D > 0"):
        process.pfgmpp(1.0, 0)


@given(u=LEVEL, x0=DATA, e=DATA)
def test_v_is_the_rotation_of_eps(u, x0, e):
    alpha, sigma = vp(u)
    x, v = alpha * x0 + sigma * e, alpha * e - sigma * x0
    eps_of_v = alpha * v + sigma * x
    a, b, *_ = process.eps(alpha, sigma)
    c, d, *_ = process.v(alpha, sigma)
    assert a * x + b * eps_of_v == pytest.approx(c * x + d * v, abs=1e-11 / alpha)


def test_ddim_dynamics_are_the_weighted_change_of_eps():
    """|x0_k - x0_{k-1}| == (sigma'/alpha') * |eps_k - eps_{k-1}| for DDIM with eta 0 and no clip, (sigma', alpha') of
    the level in between."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(25)
    schedule = schedule_of(scheduler)
    x = tiny.randn(2, 3, 8, 8, seed=0, dtype=torch.float64)
    last = None
    for k, t in enumerate(scheduler.timesteps):
        m = tiny.randn(2, 3, 8, 8, seed=k + 1, dtype=torch.float64)
        level = schedule.before[k]
        x0 = level.a * x + level.b * m
        if last is not None:
            expected = level.sigma / level.alpha * (m - last[1]).abs()
            torch.testing.assert_close((x0 - last[0]).abs(), expected, rtol=1e-9, atol=1e-9)
        last = x0, m
        x = scheduler.step(m, t, x).prev_sample


@pytest.mark.parametrize(
    ("level", "logsnr"),
    [
        (process.flow(0.5), 0.0),
        (process.flow(1.0), -math.inf),
        (process.flow(0.0), math.inf),
        (process.inverted_flow(0.0), -math.inf),
        (process.ve_eps(math.e), -2.0),
        (process.v(0.0, 1.0), -math.inf),
        (Coefficients(1, 0, -1.0, math.e), -2.0),
    ],
    ids=["middle", "noise", "clean", "inverted noise", "ve", "zero snr", "negative alpha"],
)
def test_logsnr(level, logsnr):
    assert level.logsnr == pytest.approx(logsnr, abs=1e-12)


@given(u=LEVEL)
def test_logsnr_is_the_ratio(u):
    assert process.flow(u).logsnr == pytest.approx(2 * math.log((1 - u) / u), abs=1e-9)


def test_a_noise_prediction_has_no_x0_at_pure_noise():
    with pytest.raises(ValueError, match="alpha = 0"):
        process.eps(0.0, 1.0)
