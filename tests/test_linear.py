# SPDX-License-Identifier: MIT
"""The linear form of the solvers: its coefficients against diffusers' own steps in float64, the kernel against both."""

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from layouts import DEVICES, same_bits
from linear_cases import FIRST_ORDER, LINEAR, MULTISTEP

from ascedfast.adapters.host_copy import on_host
from ascedfast.adapters.linear import linear_plan
from ascedfast.adapters.schedules import schedule_of
from ascedfast.adapters.solver_probe import _Exact, memory_of, probe, probe_copy
from ascedfast.linear import LinearPlan, LinearStep, linear_update

pytestmark = [pytest.mark.gpu] if DEVICES == ["cuda"] else []
DEVICE = DEVICES[0]
STEPS = 11


def set_up(make, steps=STEPS):
    scheduler = make()
    scheduler.set_timesteps(steps)
    return scheduler, linear_plan(on_host(scheduler), schedule_of(scheduler), 0)


def float64_twin(scheduler):
    """The same scheduler, all of whose arithmetic is float64 on its float32 schedule."""
    twin = probe_copy(scheduler, exact=True)
    if hasattr(twin, "_step_index"):
        twin._step_index = 0
    return twin


def exact_step(twin, m, timestep, x):
    generator = {"generator": torch.Generator()} if hasattr(twin, "tau_func") else {}
    m, x = m.as_subclass(_Exact), x.as_subclass(_Exact)
    return twin.step(m, timestep, x, return_dict=False, **generator)[0].as_subclass(torch.Tensor)


def normal(g, shape=(1, 2, 3, 4), dtype=torch.float64):
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("steps", [STEPS, 25])
@pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR)
def test_a_whole_run_is_the_solvers_in_float64(make, steps):
    """Carried tensors in float64 here: what is tested are the coefficients and what is carried."""
    scheduler, plan = set_up(make, steps)
    twin = float64_twin(scheduler)
    g = torch.Generator().manual_seed(1)
    x = ours = normal(g)
    slots = {}
    for step, timestep in zip(plan.steps, twin.timesteps, strict=True):
        m = normal(g)
        x = exact_step(twin, m, timestep, x)
        inputs = [ours, m, *(slots[slot] for slot in step.reads)]
        own = (step.own[0] * ours + step.own[1] * m).clamp(*((-plan.clip, plan.clip) if plan.clip else (-1e9, 1e9)))
        total = [sum(c * t for c, t in zip(row, inputs, strict=True)) for row in (step.state, *step.carried)]
        ours = total[0] + step.clipped * own
        slots.update(zip(step.writes, total[1:], strict=True))
        # A float32 clip range that is no power of two, and DDIM's float32 alphas, are all that may differ.
        torch.testing.assert_close(
            ours, x, rtol=0, atol=(3e-7 if plan.clip == pytest.approx(0.7) else 1e-12) * x.abs().max()
        )


CARRIED = {
    **{"euler-epsilon": 0, "dpm2-epsilon": 1, "dpm3-epsilon": 2, "deis1-epsilon": 0, "deis3-v_prediction": 2},
    **{"unipc1-epsilon": 1, "unipc2-epsilon": 2, "unipc3-epsilon": 3, "lms-epsilon": 3, "pndm-v_prediction": 3},
    **{"sa11-epsilon": 1, "sa22-epsilon": 2, "sa34-v_prediction": 3, "ipndm": 3},
}


@pytest.mark.parametrize("name", CARRIED)
def test_no_more_is_carried_than_a_solver_needs(name):
    """The rank of what earlier steps tell later ones, measured on each solver."""
    assert set_up(LINEAR[name], 25)[1].slots == CARRIED[name]


def test_probing_leaves_the_scheduler_and_the_random_numbers_alone():
    scheduler = SASolverScheduler()
    scheduler.set_timesteps(6)
    g = torch.Generator().manual_seed(0)
    x = normal(g, dtype=torch.float32)
    for timestep in scheduler.timesteps[:3]:
        x = scheduler.step(x, timestep, x, generator=g, return_dict=False)[0]
    before, memory = copy.deepcopy(scheduler.__dict__), memory_of(scheduler)
    random = torch.get_rng_state()
    row = probe(probe_copy(scheduler, exact=False), scheduler.timesteps[3], exact=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert row.memory["last_sample", 0]["last_sample", 0] != 0
    assert {entry: tensor.data_ptr() for entry, tensor in memory_of(scheduler).items()} == {
        entry: tensor.data_ptr() for entry, tensor in memory.items()
    }
    assert before.keys() == scheduler.__dict__.keys()
    assert before["_step_index"] == scheduler._step_index


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDIMScheduler(thresholding=True),
        lambda: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        lambda: DPMSolverMultistepScheduler(variance_type="learned"),
        lambda: SASolverScheduler(),
        lambda: SASolverScheduler(tau_func=lambda t: t < 100),  # noise that only the last step adds
        lambda: UniPCMultistepScheduler(solver_type="bh1", final_sigmas_type="zero"),  # NaN in stock
    ],
)
def test_what_is_not_linear_has_no_plan(make):
    assert set_up(make)[1] is None


def test_a_run_that_begins_later_is_the_rest_of_the_schedule():
    scheduler, whole = set_up(MULTISTEP["unipc2-epsilon"])
    rest = linear_plan(on_host(scheduler), schedule_of(scheduler), 4)
    assert len(rest.steps) == len(whole.steps) - 4
    assert rest.steps[0].reads == ()
    assert rest.steps[-1].state[:2] == pytest.approx(whole.steps[-1].state[:2])
    scheduler = PNDMScheduler(skip_prk_steps=True)
    scheduler.set_timesteps(STEPS)
    assert linear_plan(on_host(scheduler), schedule_of(scheduler), 4) is None


def bound(step, x, m, carried, own, dtype):
    """2 * eps(output) * sum |c_j h_j|."""
    inputs = [x, m, *carried]
    total = sum((c * t.double()).abs() for c, t in zip(step.state, inputs, strict=True))
    return 2 * torch.finfo(dtype).eps * (total + abs(step.clipped) * own.abs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR)
def test_error_of_a_step(make, dtype):
    """Against float64 on the same inputs, by the solver's own float64 step where it remembers nothing."""
    scheduler, plan = set_up(make)
    g = torch.Generator().manual_seed(2)
    for k, step in enumerate(plan.steps):
        x, m = normal(g, (2, 4, 9, 7), dtype), normal(g, (2, 4, 9, 7), dtype)
        carried = [normal(g, (2, 4, 9, 7), torch.float32) for _ in step.reads]
        state, written, own = linear_update(step, x, m, carried, plan.clip, dtype)
        inputs = [x.double(), m.double(), *(c.double() for c in carried)]
        exact = sum(c * t for c, t in zip(step.state, inputs, strict=True)) + step.clipped * own
        if k == 0:
            twin = float64_twin(scheduler)
            truth = exact_step(twin, m.double(), twin.timesteps[0], x.double())
            assert ((state.double() - truth).abs() <= bound(step, x, m, carried, own, dtype)).all()
        assert ((state.double() - exact).abs() <= bound(step, x, m, carried, own, dtype)).all()
        assert [t.dtype for t in written] == [torch.float32] * len(step.writes)


def whole_run(make, dtype, step):
    """The last state of a run in ``dtype``, with model outputs that float16 holds exactly."""
    scheduler, plan = set_up(make, 25)
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True
    g = torch.Generator().manual_seed(4)
    shape = (2, 4, 16, 16)
    x, quiet = (normal(g, shape, torch.float16) for _ in range(2))
    x = x.to(dtype)
    for k, timestep in enumerate(scheduler.timesteps):
        m = (quiet + 0.01 * normal(g, shape)).half().to(dtype)
        x = step(scheduler, plan, k, timestep, m, x)
    return x.double()


@pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR)
def test_low_precision_runs_are_no_less_accurate_than_the_stocks(make):
    """Against the stock run in float32 on the same outputs. One rounding a step where stock makes several."""
    kept = {}

    def stock(scheduler, plan, k, timestep, m, x):
        generator = {"generator": torch.Generator()} if hasattr(scheduler, "tau_func") else {}
        return scheduler.step(m, timestep, x, return_dict=False, **generator)[0]

    def linear(scheduler, plan, k, timestep, m, x):
        step = plan.steps[k]
        state, written, _ = linear_update(step, x, m, [kept[slot] for slot in step.reads], plan.clip, x.dtype)
        kept.update(zip(step.writes, written, strict=True))
        return state

    truth = whole_run(make, torch.float32, stock)
    theirs = (whole_run(make, torch.float16, stock) - truth).square().mean().sqrt()
    ours = (whole_run(make, torch.float16, linear) - truth).square().mean().sqrt()
    assert ours <= 1.15 * theirs


def launch(plan, x, m, view, dtype, own_dtype=None, **options):
    from ascedfast.kernels.linear_launch import LinearLauncher

    levels = torch.tensor([[0.9 - 0.1 * k, -0.3] for k in range(len(plan.steps))], device=DEVICE)
    settings = {"clip": None, "reduce": "mean"} | options
    sums = plan.table().to(DEVICE)
    return levels, LinearLauncher(
        x, m, view, levels=levels, plan=plan, sums=sums, state_dtype=dtype, own_dtype=own_dtype, **settings
    )


TYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
VIEWS = {
    "planes": ((2, 4, 9, 7), lambda t: t, lambda t: t),
    "channels-last": ((2, 4, 9, 7), lambda t: t, lambda t: t.to(memory_format=torch.channels_last)),
    "sliced": ((2, 4, 9, 7), lambda t: t, lambda t: torch.cat([t, t], 3)[..., ::2]),
    "packed": ((2, 63, 20), lambda t: t.transpose(1, 2).unflatten(2, (9, 7)), lambda t: t),
    "video": ((1, 3, 2, 5, 6), lambda t: t, lambda t: t),
    "one": ((1, 1, 1, 1), lambda t: t, lambda t: t),
}


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("name", ["ddim-epsilon-True", "lms-epsilon", "unipc3-v_prediction", "pndm-epsilon"])
def test_the_kernel_has_the_references_bits(name, layout, dtype):
    _, plan = set_up(LINEAR[name], 7)
    shape, view, place = VIEWS[layout]
    g = torch.Generator().manual_seed(3)

    def draw():
        return place(normal(g, shape, dtype).to(DEVICE))

    x = draw()
    own_dtype = torch.float32 if plan.clip else None
    levels, launcher = launch(plan, x, draw(), view, dtype, own_dtype)
    x0, carried = launcher.new_x0(x), launcher.new_carried(x)
    bank = torch.full((len(plan.steps), shape[0], *view(x).shape[2:]), float("nan"), device=DEVICE)
    slots, before = {}, None
    for k, step in enumerate(plan.steps):
        x, m = draw(), draw()
        got, own = launcher(x, m, carried, x0, bank, k, k, 2 if k else 1)
        expected, written, prediction = linear_update(
            step, view(x), view(m), [slots[slot] for slot in step.reads], plan.clip, dtype
        )
        slots.update(zip(step.writes, written, strict=True))
        assert same_bits(view(got), expected)
        assert all(same_bits(carried[slot], slots[slot]) for slot in step.writes)
        clean = levels[k, 0] * view(x).float() + levels[k, 1] * view(m).float()
        assert same_bits(x0, clean)
        if own_dtype:
            assert same_bits(view(own), prediction.float())
        if before is not None:
            torch.testing.assert_close(bank[k], (clean - before).abs().mean(1), rtol=1e-5, atol=1e-7)
        before = clean


@pytest.mark.parametrize("device", DEVICES)
def test_nan_stays_where_it_is(device):
    plan = LinearPlan((LinearStep((0.5, 0.25), clipped=0.25, own=(1.0, 1.0)),), 0, 1.0)
    x = torch.ones(2, 3, 4, 4, device=device)
    m = torch.ones_like(x)
    m[0, 1, 2, 3] = float("nan")
    _, launcher = launch(plan, x, m, lambda t: t, torch.float32)
    x0, bank = launcher.new_x0(x).zero_(), torch.zeros(1, 2, 4, 4, device=device)
    state, _ = launcher(x, m, [], x0, bank, 0, 0, 2)
    assert state.isnan().sum() == x0.isnan().sum() == bank.isnan().sum() == 1
    assert state[0, 1, 2, 3].isnan()


def test_first_order_solvers_carry_nothing():
    assert all(set_up(make)[1].slots == 0 for make in FIRST_ORDER.values())
