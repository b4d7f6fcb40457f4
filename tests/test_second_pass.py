# SPDX-License-Identifier: MIT
"""A second pass against a plain loop that recomputes what should happen: what is scored, drawn, kept, and for how much.

The denoiser is location by location and called row by row: the same bits in any batch.
"""

import math

import numpy as np
import pytest
import tiny
import torch
from row_loop import CHANNELS, GRID, Request, bits, eps_schedule, flow_schedule
from scipy.ndimage import gaussian_filter

from ascedfast import AscedConfig, Engine, SecondPass, begin
from ascedfast.noise import Purpose, normal, seed_to_int64
from ascedfast.schedule import plan_run
from ascedfast.second_pass import severity_inside

STEPS, AFTER = 20, 5
SEEDS = [1, 2, 3, 2**63 + 5, 4, 6]
SCHEDULE = flow_schedule(STEPS)
T_C = plan_run(SCHEDULE, AscedConfig()).t_c
NAN = float("nan")


class Noisy(Request):
    """After T_c its predictions go up and down with the state: which draw is the less severe is the noise's to say."""

    def model(self, x, step):
        if step < T_C:
            m, x = super().model(x, step)
            x[0, 0, 0, 0] += m[0, 0, 0, 0] * 0  # a spoilt output spoils the state
            return m, x
        level, (alpha, sigma) = self.schedule.before[step], self.schedule.after[step]
        mean = 0.25 + 0.125 * tiny.randn(1, CHANNELS, *GRID, seed=self.seed % 2**32 + 1)
        x0 = mean + x.clamp(-2, 2) * (0.125, -0.0625, 0.25, 0.03125)[step % 4]
        m = (x0 - x * level.a) * (1 / level.b)
        if self.spoil is not None and self.spoil[0] == step:
            m[0, 0, 0, 0] = x0[0, 0, 0, 0] = self.spoil[1]
        e = (x - x0 * level.alpha) * (1 / max(level.sigma, 1e-6))
        return m, x0 * alpha + e * sigma


def requests_of(seeds, **options):
    return [Noisy(schedule=SCHEDULE, seed=seed, **options) for seed in seeds]


def start(requests):
    return torch.cat([request.start() for request in requests])


def step(requests, x, k):
    """Model output and next state, row by row."""
    pairs = [request.model(x[i : i + 1], k) for i, request in enumerate(requests)]
    return (torch.cat(part) for part in zip(*pairs, strict=True))


class Run:
    """A loop with a second pass, and what it did. calls: the step of each evaluation, starts: the state
    before it."""

    def __init__(self, requests, config=None, *, after=AFTER, threshold=None, draws=None):
        engine = Engine()
        for request, draw in zip(requests, draws or [0] * len(requests), strict=True):
            engine.add(SCHEDULE, config or request.config, seed=request.seed, draw=draw, enabled=request.enabled)
        self.second = SecondPass(engine, after=after, threshold=threshold)
        self.calls, self.starts, k = [], [], 0
        self.x = start(requests)
        while k < STEPS:
            self.calls.append(k)
            self.starts.append(self.x.clone())
            m, after_step = step(requests, self.x, k)
            self.second.observe(self.x, m)
            self.x = after_step
            k = self.second.next_step_(k, self.x)
        self.report = engine.report

    def at_t_c(self):
        """The states at T_c that the loop went on from: one, or with a second pass two."""
        return [x for k, x in zip(self.calls, self.starts, strict=True) if k == T_C]


def plain(requests, config=None, draws=None):
    """Without a second pass: the states before each step and the last one, and x0 and mask at T_c."""
    engine, x, states = Engine(), start(requests), []
    for request, draw in zip(requests, draws or [0] * len(requests), strict=True):
        engine.add(SCHEDULE, config or request.config, seed=request.seed, draw=draw, enabled=request.enabled)
    for k in range(STEPS):
        states.append(x.clone())
        m, after_step = step(requests, x, k)
        x0 = engine.observe(x, m).clone()
        x = after_step
        if engine.correct_(x) is not None:
            at_t_c = x0
    return [*states, x], at_t_c, engine.report


def expected_severity(frames, mask):
    """Of predictions [K + 1, C, H, W] and bool [H, W], in numpy and float64."""
    frames = frames.numpy().astype(np.float64)
    sigma = math.sqrt(GRID[0] * GRID[1]) / 32
    d = np.stack([gaussian_filter(one, sigma) for one in np.abs(np.diff(frames, axis=0)).mean(1)])
    r = d / d.mean((1, 2), keepdims=True)
    count = len(r)
    assert count == 4
    still = (r[:3].mean(0) + 0.05) / (r[3] + 0.05)
    jump = np.zeros(GRID)
    for k in range(3):
        others = (r.sum(0) - r[k] - r[k + 1]) / (count - 2)
        jump = np.maximum(jump, np.minimum(r[k], r[k + 1]) / (others + 0.5))
    return math.log1p(still[mask.numpy()].max()) + math.log1p(jump[mask.numpy()].max())


def go_on(request, x, t_c):
    """One row [1, C, H, W] from T_c: its predictions in the look, the state after it, and the last one."""
    frames = []
    for k in range(t_c, STEPS):
        if k == t_c + AFTER:
            later = x
        m, after_step = request.model(x, k)
        frames.append(SCHEDULE.before[k].a * x + SCHEDULE.before[k].b * m)
        x = after_step
    return torch.cat(frames[:AFTER]), later, x


def redrawn(request, x, x0, mask, t_c, draw=0):
    """The state at T_c with other noise inside the mask."""
    seed = torch.tensor([seed_to_int64(request.seed)])
    e = normal(seed, CHANNELS, GRID, step=t_c + 2**31, purpose=Purpose.RENOISE, draw=draw)
    alpha, sigma = SCHEDULE.after[t_c - 1]
    return torch.where(mask, np.float32(alpha) * x0 + np.float32(sigma) * e, x)


@pytest.fixture(scope="module")
def runs():
    """A run with a second pass of every row, and the same without."""
    requests = requests_of(SEEDS)
    return Run(requests), *plain(requests)


def test_the_less_severe_of_two_draws_goes_on(runs):
    run, states, x0, report = runs
    requests, t_c = requests_of(SEEDS), T_C
    for i, request in enumerate(requests):
        one = slice(i, i + 1)
        mask = report[i].mask_grown
        first = states[t_c][one]
        second = redrawn(request, first, x0[one], mask, t_c)
        looks = [go_on(request, x, t_c) for x in (first, second)]
        severity = [expected_severity(frames, mask) for frames, *_ in looks]
        assert run.second.severity[i] == pytest.approx(severity, rel=1e-4)
        assert abs(severity[0] - severity[1]) > 1e-3, "too near to tell which is kept"
        assert run.second.kept_second[i] == (severity[1] < severity[0])
        torch.testing.assert_close(run.at_t_c()[1][one], second, rtol=0, atol=1e-6)
        # The states' bits: the first draw's by the run without, the second's by the loop from where it was put.
        from_second = go_on(request, run.at_t_c()[1][one], t_c)[2]
        final = from_second if run.second.kept_second[i] else states[-1][one]
        assert torch.equal(bits(run.x[one]), bits(final))
    assert {True, False} == set(run.second.kept_second)


def test_the_evaluations_are_counted_and_capped(runs):
    run, t_c = runs[0], T_C
    assert run.calls == [*range(t_c + AFTER), *range(t_c, STEPS)]
    assert run.second.evaluations == AFTER == len(run.calls) - STEPS


def test_at_t_c_only_the_mask_differs_and_every_channel_of_it(runs):
    first, second = runs[0].at_t_c()
    assert torch.equal(bits(first), bits(runs[1][T_C]))
    mask = torch.stack([row.mask_grown for row in runs[3]])[:, None].expand_as(first)
    assert 0 < mask.sum() < mask.numel()
    assert torch.equal(first[~mask], second[~mask])
    assert (first[mask] != second[mask]).double().mean() > 0.999


def test_the_noise_is_no_other_draw_of_the_request():
    """Images of one request are told apart by their draw: the second pass of one is not the first of another."""
    requests, draws = requests_of([1, 1, 1]), [0, 1, 2]
    first, second = Run(requests, draws=draws).at_t_c()
    drawn = [x[i] for x in (first, second) for i in range(3)]
    inside = plain(requests, draws=draws)[2][0].mask_grown
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (one[:, inside] != other[:, inside]).double().mean() > 0.999


@pytest.mark.parametrize("config", [AscedConfig(), AscedConfig(x0_noise=0.25, window_start=2)], ids=["", "perturbed"])
def test_a_row_alone_is_its_row_in_a_batch(config):
    together = Run(requests_of(SEEDS), config)
    for i, request in enumerate(requests_of(SEEDS)):
        alone = Run([request], config)
        assert torch.equal(bits(alone.x), bits(together.x[i : i + 1]))
        assert (alone.second.severity, alone.second.kept_second) == (
            [together.second.severity[i]],
            [together.second.kept_second[i]],
        )


def test_rows_in_lockstep_give_what_rows_one_by_one_give():
    ours, theirs = (Run(requests_of(SEEDS[:3]), AscedConfig(backend=name)) for name in ("triton", "reference"))
    assert ours.second.run._lockstep is not None
    assert ours.second.severity == [pytest.approx(severity, rel=1e-5) for severity in theirs.second.severity]
    assert ours.second.kept_second == theirs.second.kept_second
    assert torch.equal(bits(ours.x), bits(theirs.x))


def test_nothing_found_changes_nothing_and_costs_nothing():
    requests = requests_of(SEEDS[:2], unsteady=False)
    run, x = Run(requests), start(requests)
    for k in range(STEPS):
        _, x = step(requests, x, k)
    assert torch.equal(bits(run.x), bits(x))
    assert run.calls == [*range(STEPS)]
    assert (run.second.evaluations, run.second.severity, run.second._kept) == (0, [(), ()], None)


def test_rows_below_the_threshold_keep_every_bit(runs):
    whole, states, *_ = runs
    first = sorted(severity[0] for severity in whole.second.severity)
    threshold = (first[2] + first[3]) / 2
    run = Run(requests_of(SEEDS), threshold=threshold)
    assert run.second.evaluations == AFTER
    for i, severity in enumerate(whole.second.severity):
        fails = severity[0] > threshold
        drawn = [bits(x[i]) for x in run.at_t_c()]
        assert torch.equal(*drawn) == (not fails)
        assert run.second.severity[i] == (severity if fails else severity[:1])
        assert torch.equal(bits(run.x[i]), bits((whole.x if fails else states[-1])[i]))
    again = Run(requests_of(SEEDS), threshold=first[-1])
    assert (again.second.evaluations, again.calls) == (0, [*range(STEPS)])
    assert torch.equal(bits(again.x), bits(states[-1]))


def test_verified_rows_get_their_state_back_from_a_denoiser_that_never_repeats_itself():
    """As a large batch's kernels or a stochastic step may: what was verified is not computed anew."""
    requests = requests_of(SEEDS[:2])
    engine = begin(SCHEDULE, seeds=SEEDS[:2])
    second, k, x, calls, later = SecondPass(engine, after=AFTER), 0, start(requests), 0, None
    while k < STEPS:
        m, after_step = step(requests, x, k)
        second.observe(x, m)
        x, calls = after_step + 1e-5 * calls, calls + 1
        before = x.clone()
        if k == T_C + AFTER - 1 and later is None:
            later = before
        k = second.next_step_(k, x)
        if k == T_C + AFTER:
            for i, kept in enumerate(second.kept_second):
                assert torch.equal(bits(x[i]), bits((before if kept else later)[i]))
    assert calls == STEPS + AFTER


def test_what_was_left_alone_is_left_alone():
    """NaN in one row, one switched off, one that only observes: beside a row that is drawn again."""
    requests = [
        *requests_of([1]),
        *requests_of([2], spoil=(7, NAN)),
        *requests_of([3], config=AscedConfig(correct=False)),
        *requests_of([4], enabled=False),
    ]
    run, (states, *_) = Run(requests), plain(requests)
    assert [len(severity) for severity in run.second.severity] == [2, 0, 0, 0]
    assert torch.equal(bits(run.x[1:]), bits(states[-1][1:]))
    assert bool(run.x[1].isnan().any())
    assert run.second.kept_second[1:] == [False] * 3


def test_nan_after_t_c_is_the_worst_severity():
    requests = requests_of([1, 2])
    requests[1].spoil = (T_C + 2, NAN)
    run, (states, *_) = Run(requests), plain(requests)
    assert run.second.severity[1] == (math.inf, math.inf)
    assert run.second.kept_second[1] is False
    assert torch.equal(bits(run.x[1]), bits(states[-1][1]))
    assert all(map(math.isfinite, run.second.severity[0]))


def test_severity_knows_what_stood_still_and_what_leapt():
    torch.manual_seed(0)
    d, mask = 0.1 + 0.02 * torch.rand(4, *GRID), torch.zeros(GRID, dtype=torch.bool)
    mask[6:14, 6:14] = True
    usual = severity_inside(d, mask)
    stands, leaps = d.clone(), d.clone()
    stands[3][mask] = 0
    leaps[1:3, mask] *= 8
    assert severity_inside(stands, mask) > usual + 1
    assert severity_inside(leaps, mask) > usual + 1
    assert severity_inside(stands, ~torch.nn.functional.max_pool2d(mask[None].float(), 9, 1, 4)[0].bool()) < usual + 0.1
    assert severity_inside(torch.zeros(4, *GRID), mask) == pytest.approx(math.log(2))
    assert severity_inside(1000 * d, mask) == pytest.approx(usual)  # no unit


def test_volumes_and_half_precision():
    """[B, C, F, H, W] in bfloat16: the state keeps its dtype, and one frame's mask is redrawn in that frame."""
    schedule = eps_schedule(STEPS)
    second = SecondPass(begin(schedule, AscedConfig(reference_size=None, min_area=4, core_width=1, grow=1), seeds=[1]))
    x = torch.randn(1, 2, 3, 16, 12, generator=torch.Generator().manual_seed(1)).bfloat16()
    spot = torch.zeros(3, 16, 12)
    spot[1, 4:10, 3:9] = 1
    k, calls = 0, 0
    while k < STEPS:
        second.observe(x, x0=0.1 * x + spot * (k % 2))
        x, calls = x * 0.95, calls + 1
        k = second.next_step_(k, x)
    assert (calls, second.evaluations, len(second.severity[0])) == (STEPS + 5, 5, 2)
    assert x.dtype == torch.bfloat16


def begun(**options):
    """A SecondPass of two rows, and its states, before the step that ends the first look."""
    requests = requests_of(SEEDS[:2])
    second, x, k = SecondPass(begin(SCHEDULE, seeds=SEEDS[:2]), after=AFTER, **options), start(requests), 0
    while k < T_C + AFTER - 1:
        m, after_step = step(requests, x, k)
        second.observe(x, m)
        x = after_step
        k = second.next_step_(k, x)
    m, after_step = step(requests, x, k)
    return second, k, x, m, after_step


MISUSE = {
    "no prediction": (ValueError, "call second.observe", lambda s, k, x, m, after: s.next_step_(k, after)),
    "twice": (ValueError, "next_step_", lambda s, k, x, m, after: (s.observe(x, m), s.observe(x, m))),
    "other step": (
        ValueError,
        "step that next_step_",
        lambda s, k, x, m, after: (s.observe(x, m), s.next_step_(k + 1, x)),
    ),
    "shape": (ValueError, "x must be", lambda s, k, x, m, after: (s.observe(x, m), s.next_step_(k, after[:1]))),
    "dtype": (ValueError, "x must be", lambda s, k, x, m, after: (s.observe(x, m), s.next_step_(k, after.double()))),
    "seen shape": (ValueError, "x must be", lambda s, k, x, m, after: s.observe(x[..., :-1], m[..., :-1])),
    "gradient": (
        ValueError,
        "without gradients",
        lambda s, k, x, m, after: (s.observe(x, m), s.next_step_(k, after.clone().requires_grad_())),
    ),
    "rows": (ValueError, "added or removed", lambda s, k, x, m, after: (s.run.remove(1), s.observe(x, m))),
    "no array": (TypeError, "x must be", lambda s, k, x, m, after: (s.observe(x, m), s.next_step_(k, [1.0]))),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_refused_and_changes_nothing(name):
    error, words, misuse = MISUSE[name]
    second, k, x, m, after = begun()
    given = after.clone()
    with pytest.raises(error, match=words):
        misuse(second, k, x, m, after)
    assert torch.equal(after, given)
    assert (second.step, second.evaluations) == (k, 0)
    if name != "rows":  # and the right calls go on
        if second._observed is None:
            second.observe(x, m)
        assert second.next_step_(k, after) == T_C


def mixed():
    engine = Engine()
    engine.add(SCHEDULE, seed=1)
    engine.add(flow_schedule(12), seed=2)
    return engine


def moved():
    engine = begin(SCHEDULE, seeds=[1])
    engine.skip()
    return engine


MADE = {
    "no engine": (TypeError, "ascedfast.begin", lambda: SecondPass(SCHEDULE)),
    "no rows": (ValueError, "no rows", lambda: SecondPass(begin(SCHEDULE, rows=0))),
    "mixed": (ValueError, "an engine", lambda: SecondPass(mixed())),
    "begun": (ValueError, "before the first step", lambda: SecondPass(moved())),
    "too short": (ValueError, "earlier t_c", lambda: SecondPass(begin(SCHEDULE, seeds=[1]), after=11)),
    "too few": (ValueError, "3 or more", lambda: SecondPass(begin(SCHEDULE, seeds=[1]), after=2)),
    "no int": (TypeError, "after must", lambda: SecondPass(begin(SCHEDULE, seeds=[1]), after=4.0)),
    "NaN": (ValueError, "threshold", lambda: SecondPass(begin(SCHEDULE, seeds=[1]), threshold=NAN)),
}


@pytest.mark.parametrize("name", MADE)
def test_what_cannot_work_is_refused_at_once(name):
    error, words, make = MADE[name]
    with pytest.raises(error, match=words):
        make()


def test_a_run_that_is_left_alone_is_one():
    """Too few steps before T_c: no correction, and no second pass either."""
    schedule = flow_schedule(4)
    second, x = SecondPass(begin(schedule, seeds=[1])), torch.zeros(1, CHANNELS, *GRID)
    for k in range(4):
        second.observe(x, x)
        assert second.next_step_(k, x) == k + 1
    assert second.evaluations == 0
