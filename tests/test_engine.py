# SPDX-License-Identifier: MIT
"""What the engine promises for a run: what it sees, what it writes and when, and that it touches nothing else."""

import pytest
import tiny
import torch
from row_loop import CHANNELS, GRID, Request, bits, eps_schedule, flow_schedule
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ascedfast import AscedConfig, begin
from ascedfast.noise import Purpose, normal, seed_to_int64

STEPS = 20
SEEDS = [1, 2, 2**63 + 5]
EPS32 = torch.finfo(torch.float32).eps


class Run:
    """A batch of requests stepped together, with what the engine saw and returned at every step."""

    def __init__(self, config=None, seeds=SEEDS, schedule=None, dtype=torch.float32, unsteady=True, layout=None):
        self.schedule = schedule or flow_schedule(STEPS)
        self.requests = [Request(schedule=self.schedule, seed=s, dtype=dtype, unsteady=unsteady) for s in seeds]
        self.engine = begin(self.schedule, config, seeds=seeds)
        self.x = torch.cat([request.start() for request in self.requests])
        self.layout = layout or (lambda t: t)
        self.before, self.after, self.x0, self.masks = [], [], [], {}

    def step(self):
        k = len(self.after)
        pairs = [request.model(self.x[i : i + 1], k) for i, request in enumerate(self.requests)]
        m, x = (torch.cat(part) for part in zip(*pairs, strict=True))
        self.x0.append(self.engine.observe(self.layout(self.x), self.layout(m)).clone())
        self.before.append(x.clone())
        x = self.layout(x)
        mask = self.engine.correct_(x)
        if mask is not None:
            self.masks[k + 1] = mask
        self.x = x.contiguous()
        self.after.append(self.x.clone())

    def finish(self):
        while len(self.after) < len(self.schedule):
            self.step()
        return self

    @property
    def t_c(self):
        return self.engine.report[0].plan.t_c


@pytest.fixture(scope="module")
def run():
    return Run().finish()


def changed(one, other):
    return (bits(one) != bits(other)).any(1, keepdim=True)


def test_each_row_is_corrected_once_at_t_c_inside_its_mask(run):
    assert [row.status for row in run.engine.report] == ["corrected"] * 3
    assert list(run.masks) == [run.t_c]
    mask = run.masks[run.t_c]
    assert torch.equal(mask, run.engine.report.masks_grown)
    assert all(0 < row.float().mean() < 0.5 for row in mask)
    assert not torch.equal(mask[0], mask[1])
    for k, (before, after) in enumerate(zip(run.before, run.after, strict=True)):
        if k + 1 == run.t_c:
            assert torch.equal(changed(before, after), mask)
        else:
            assert torch.equal(bits(before), bits(after))


def test_the_mask_covers_what_is_unsteady(run):
    for request, row in zip(run.requests, run.engine.report, strict=True):
        unsteady = tiny.spot(GRID, 1 + request.seed % 4)[-1, 0]
        assert torch.equal(row.mask_grown & unsteady, unsteady)
        assert row.mask_grown.sum() < 3 * unsteady.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gamma", [0.0, 0.25])
@pytest.mark.parametrize("schedule", [flow_schedule(STEPS), eps_schedule(25)], ids=["flow", "eps"])
def test_what_is_written(schedule, dtype, gamma):
    """alpha*(x0 + gamma*xi) + sigma*e with the previous step's x0, the level after the step, and the stated noise."""
    run = Run(AscedConfig(x0_noise=gamma), schedule=schedule, dtype=dtype).finish()
    t_c, mask = run.t_c, run.masks[run.t_c]
    seeds = torch.tensor([seed_to_int64(seed) for seed in SEEDS])
    e = normal(seeds, CHANNELS, GRID, step=t_c, purpose=Purpose.RENOISE).double()
    xi = normal(seeds, CHANNELS, GRID, step=t_c, purpose=Purpose.PERTURB_X0).double()
    alpha, sigma = schedule.after[t_c - 1]
    expected = alpha * (run.x0[t_c - 1].double() + gamma * xi) + sigma * e
    inside = mask.expand_as(expected)
    got = run.after[t_c - 1].double()[inside]
    rounding = torch.finfo(dtype).eps if dtype.itemsize < 4 else 4 * EPS32
    torch.testing.assert_close(got, expected[inside], rtol=rounding, atol=8 * EPS32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_x0_is_the_linear_form(dtype, clip):
    schedule = eps_schedule(STEPS, clip=clip)
    engine = begin(schedule, seeds=[1, 2])
    for k in range(4):
        x, m = tiny.randn(2, 3, 9, 7, seed=k).to(dtype), tiny.randn(2, 3, 9, 7, seed=50 + k).to(dtype)
        got = engine.observe(x, m)
        a, b = schedule.before[k].a, schedule.before[k].b
        exact = a * x.double() + b * m.double()
        if clip is not None:
            exact = exact.clamp(-clip, clip)
        bound = 4 * EPS32 * (abs(a) * x.abs() + abs(b) * m.abs()).double()
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert ((got.double() - exact).abs() <= bound).all()
        got.zero_()  # nobody else's tensor
        assert x.abs().sum() > 0
        assert m.abs().sum() > 0


def test_a_later_start_is_corrected_at_its_own_level():
    schedule, first = flow_schedule(STEPS), 3
    engine = begin(schedule, AscedConfig(t_c=5), seeds=[1], first=first)
    spot = torch.zeros(1, 1, *GRID)
    spot[..., 4:9, 4:9] = 1
    for k in range(5):
        x0 = engine.observe(torch.zeros(1, 1, *GRID), x0=spot * (k % 2) + 0.25)
    x = torch.zeros(1, 1, *GRID)
    mask = engine.correct_(x)
    assert mask.any()
    alpha, sigma = schedule.after[first + 4]
    e = normal(torch.tensor([1]), 1, GRID, step=5, purpose=Purpose.RENOISE)
    torch.testing.assert_close(x[mask], (alpha * x0 + sigma * e)[mask])


def test_clipping_keeps_nan():
    engine = begin(eps_schedule(STEPS, clip=1.0), seeds=[1])
    m = torch.zeros(1, 1, 4, 4)
    m[0, 0, 1, 1] = float("nan")
    assert engine.observe(torch.zeros(1, 1, 4, 4), m).isnan().sum() == 1


def test_inputs_are_not_written():
    run = Run()
    for k in range(STEPS):
        x, m = run.x, tiny.randn(3, CHANNELS, *GRID, seed=k)
        copies = x.clone(), m.clone()
        run.engine.observe(x, m)
        assert torch.equal(x, copies[0])
        assert torch.equal(m, copies[1])
        run.engine.correct_(run.x)


def test_no_model_output_outlives_its_step():
    run = Run(AscedConfig(record="run"))
    for config in (AscedConfig(record="run"), AscedConfig.official(), AscedConfig.paper()):
        run = Run(config)
        for k in range(STEPS):
            x, m = run.x.clone(), tiny.randn(3, CHANNELS, *GRID, seed=k)
            storages = StorageWeakRef(x.untyped_storage()), StorageWeakRef(m.untyped_storage())
            if k % 5 == 4:
                run.engine.observe(x, x0=m)
            else:
                run.engine.observe(x, m)
            run.engine.correct_(x)
            report = run.engine.report
            del x, m
            assert all(storage.expired() for storage in storages)
            assert len(report) == 3


def test_nothing_found_leaves_every_bit():
    run = Run(unsteady=False).finish()
    assert [row.status for row in run.engine.report] == ["clean"] * 3
    assert run.engine.report.severity == [0.0] * 3
    for before, after in zip(run.before, run.after, strict=True):
        assert torch.equal(bits(before), bits(after))


def test_bits_outside_survive_whatever_they_are():
    """Negative zeros, NaN payloads and denormals of the state outside the mask are not normalised."""
    run = Run(seeds=[1])
    while len(run.after) < run.t_c - 1:
        run.step()
    m, x = run.requests[0].model(run.x, run.t_c - 1)
    run.engine.observe(run.x, m)
    odd = torch.tensor([-(2**31), 0x7FC12345, 0xFFC00001 - 2**32, 1, 0x7F800000], dtype=torch.int32).view(torch.float32)
    x[0, :, -1, :5] = odd
    before = x.clone()
    mask = run.engine.correct_(x)
    assert not mask[..., -1, :5].any()
    assert mask.any()
    outside = ~mask.expand_as(x)
    assert torch.equal(bits(x)[outside], bits(before)[outside])


def test_correct_acts_once():
    run = Run()
    while len(run.after) < run.t_c:
        run.step()
    again = run.x.clone()
    assert run.engine.correct_(again) is None
    assert torch.equal(again, run.x)


def test_correct_false_observes():
    run = Run(AscedConfig(correct=False)).finish()
    base = Run().finish()
    assert run.masks == {}
    assert [row.status for row in run.engine.report] == ["observed"] * 3
    assert torch.equal(run.engine.report.masks, base.engine.report.masks)
    assert run.engine.report.severity == base.engine.report.severity
    assert torch.equal(run.before[run.t_c - 1], base.before[run.t_c - 1])
    for before, after in zip(run.before, run.after, strict=True):
        assert torch.equal(before, after)


LAYOUTS = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "packed": lambda t: t.flatten(2).transpose(1, 2).contiguous().unflatten(1, GRID).permute(0, 3, 1, 2),
    "part of a wider tensor": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 4, 1, 1))[:, 1:-1, 3:-4, 1:-2],
    "every other row": lambda t: t.repeat_interleave(2, 0)[::2],
    "backwards channels": lambda t: t.flip(1).contiguous().flip(1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strides_do_not_matter(run, layout):
    other = Run(layout=layout).finish()
    assert torch.equal(bits(other.x), bits(run.x))
    assert torch.equal(other.engine.report.masks, run.engine.report.masks)


def test_correct_writes_through_a_view():
    run = Run()
    while len(run.after) < run.t_c - 1:
        run.step()
    pairs = [request.model(run.x[i : i + 1], run.t_c - 1) for i, request in enumerate(run.requests)]
    m, x = (torch.cat(part) for part in zip(*pairs, strict=True))
    run.engine.observe(run.x, m)
    packed = x.flatten(2).transpose(1, 2).contiguous()
    wide = torch.full((3, GRID[0] * GRID[1], 2 * CHANNELS), 7.0)
    wide[..., :CHANNELS] = packed
    mask = run.engine.correct_(wide[..., :CHANNELS].unflatten(1, GRID).permute(0, 3, 1, 2))
    inside = mask.flatten(2).transpose(1, 2)
    moved = (wide[..., :CHANNELS] != packed).any(-1, keepdim=True)
    assert torch.equal(moved, inside)
    assert (wide[..., CHANNELS:] == 7.0).all()


@pytest.mark.parametrize("make", [AscedConfig.fast, AscedConfig.official, AscedConfig.paper])
def test_volumes(make):
    config = make(mad_scale=8, min_area=2, max_area=1e6, blur_sigma=0.0, grow=1, core_width=1, reference_size=None)
    schedule = flow_schedule(STEPS)
    engine = begin(schedule, config, seeds=[1, 2])
    spot = torch.zeros(1, 1, 4, 10, 9)
    spot[..., 1:3, 3:6, 2:6] = 1
    t_c = engine.report[0].plan.t_c
    mean = 0.3 * tiny.randn(2, 3, 4, 10, 9, seed=99)
    for k in range(t_c):
        x = schedule.before[k].alpha * mean
        x0 = mean + 0.02 * tiny.randn(2, 3, 4, 10, 9, seed=k) + (0.4 if k % 2 else -0.4) * spot
        engine.observe(x, x0=x0)
    before = x.clone()
    mask = engine.correct_(x)
    assert mask.shape == (2, 1, 4, 10, 9)
    assert (mask & spot.bool()).sum() == 2 * spot.sum()
    assert torch.equal(changed(before, x), mask)
    assert not mask[:, :, [0, 3]].any()  # grown in the plane, not in depth


def test_steps_are_asked_for_in_the_window_only():
    for record, config in (("window", AscedConfig()), ("run", AscedConfig(record="run"))):
        engine = begin(flow_schedule(STEPS), config, seeds=[1])
        plan = engine.report[0].plan
        x = torch.zeros(1, 1, 8, 8)
        for k in range(STEPS):
            assert engine.wants_step() == (record == "run" or plan.start <= k < plan.t_c)
            engine.skip() if record == "window" and not engine.wants_step() else engine.observe(x, x)
            engine.correct_(x)
        assert engine.step_of(0) == STEPS


def test_unwatched_steps_may_be_skipped(run):
    other = Run()
    observe = other.engine.observe

    def sparing(x, m):
        if other.engine.wants_step():
            return observe(x, m)
        other.engine.skip()
        return x

    other.engine.observe = sparing
    other.finish()
    assert torch.equal(other.x, run.x)
    assert torch.equal(other.engine.report.masks, run.engine.report.masks)
    assert other.engine.report.severity == run.engine.report.severity


class Syncs(TorchDispatchMode):
    """Counts the operations that read a value back to the host."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.NAMES:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [AscedConfig.fast, AscedConfig.official, AscedConfig.paper])
def test_watching_reads_nothing_back(make):
    run = Run(make(record="run"))
    while len(run.after) < run.t_c - 1:
        m = tiny.randn(3, CHANNELS, *GRID, seed=len(run.after))
        with Syncs() as syncs:
            run.engine.wants_step()
            run.engine.observe(run.x, m)
            run.engine.correct_(run.x)
            report = run.engine.report
        run.after.append(None)
        assert syncs.seen == []
    with Syncs() as syncs:
        assert [row.status for row in report] == ["pending"] * 3
    assert syncs.seen != []  # now it was asked


def test_begin():
    schedule = flow_schedule(STEPS)
    many = begin(schedule, seeds=7, rows=3).report
    assert [(row.seed, row.draw) for row in many] == [(7, 0), (7, 1), (7, 2)]
    assert [(row.seed, row.draw) for row in begin(schedule, seeds=[7, 9]).report] == [(7, 0), (9, 0)]
    assert len(begin(schedule).report) == 1
    fresh = begin(schedule, rows=2).report
    assert fresh.seeds[0] == fresh.seeds[1]
    assert fresh.seeds != begin(schedule, rows=2).report.seeds
    assert begin(schedule, seeds=[1], first=3).report[0].steps == STEPS - 3


def test_a_stated_seed_repeats_the_run():
    engine = begin(flow_schedule(STEPS))
    assert Run(seeds=engine.report.seeds).finish().x.equal(Run(seeds=engine.report.seeds).finish().x)


def test_grad_mode_is_no_obstacle():
    run = Run()
    run.x.requires_grad_(True)
    with torch.enable_grad():
        x0 = run.engine.observe(run.x, run.x.detach())
    assert not x0.requires_grad
    with torch.inference_mode():
        other = Run().finish()
    assert torch.equal(other.engine.report.masks, Run().finish().engine.report.masks)
