# SPDX-License-Identifier: MIT
"""The solver's memory after a correction: repaired inside the mask, untouched outside."""

import pytest
import tiny
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from row_loop import bits
from test_diffusers import SENSITIVE

from ascedfast import AscedConfig, asced, enable_asced
from ascedfast.adapters import run as adapter_run
from ascedfast.adapters.schedules import schedule_of
from ascedfast.adapters.solver_probe import LISTS, memory_of

GRID = (32, 24)
SOLVERS = ["unipc2", "unipc2-flow", "unipc2-eps-space", "unipc3", "deis3-flow", "lms", "plms", "plms-v", "ipndm"]
SOLVERS += ["sa2", "sa3-flow", "sa-sde"]
MULTISTEP = ["dpm2", "dpm2-karras", "dpm2-v", "dpm2-flow", "dpm3", "dpm2-sde", "dpm2-eps-space"]


def corrected_run(name, monkeypatch=None, dtype=torch.float32):
    """States, the scheduler's memory after each step, and the report; ``monkeypatch`` leaves out the repair."""
    if monkeypatch is not None:
        monkeypatch.setattr(adapter_run, "fill_history", lambda *args: None)
    scheduler = tiny.SCHEDULERS[name]()
    memory = []
    handle = enable_asced(
        scheduler, seeds=[1, 2], on_x0=lambda *_: memory.append([t if t is None else t.clone() for t in own(scheduler)])
    )
    x = tiny.randn(2, 3, *GRID, seed=4)
    states = tiny.sample(scheduler, x, tiny.spot(GRID, 2), dtype=dtype, generator=tiny.generator(1))
    assert [row.status for row in handle.report] == ["corrected"] * 2
    return states, memory, handle.report


def own(scheduler):
    """The list, oldest entry first."""
    return list(next(getattr(scheduler, name) for name in LISTS if hasattr(scheduler, name)))


def stock_memory(name, dtype=torch.float32):
    scheduler = tiny.SCHEDULERS[name]()
    memory, states = [], []
    step = scheduler.step

    def watch(*args, **kwargs):
        out = step(*args, **kwargs)
        memory.append([t if t is None else t.clone() for t in own(scheduler)])
        return out

    scheduler.step = watch
    x = tiny.randn(2, 3, *GRID, seed=4)
    states = tiny.sample(scheduler, x, tiny.spot(GRID, 2), dtype=dtype, generator=tiny.generator(1))
    return states, memory


@pytest.mark.parametrize("name", [*MULTISTEP, *SOLVERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_outside_the_mask_is_the_stocks(name, dtype):
    stock, before = stock_memory(name, dtype)
    states, after, report = corrected_run(name, dtype=dtype)
    outside = ~report.masks_grown.expand_as(states[0])
    for k in range(25):
        assert torch.equal(bits(states[k + 1])[outside], bits(stock[k + 1])[outside]), k
        for old, new in zip(before[k], after[k], strict=True):
            assert (old is None) == (new is None)
            assert old is None or torch.equal(bits(old)[outside], bits(new)[outside]), k


@pytest.mark.parametrize("name", [*MULTISTEP, *SOLVERS])
def test_memory_inside_the_mask_is_of_the_new_trajectory(name):
    """On the step after the correction every entry inside the mask is that step's own prediction."""
    _, memory, report = corrected_run(name)
    t_c = report[0].plan.t_c
    inside = report.masks_grown.expand_as(memory[t_c][0])
    for entry in memory[t_c]:
        assert torch.equal(entry[inside], memory[t_c][-1][inside])
    newest, last = memory[t_c + 1][-1], memory[t_c + 1][-2]  # once: the steps that follow remember as the stock's
    assert not torch.equal(newest[inside], last[inside])
    assert torch.equal(last[inside], memory[t_c][-1][inside])


@pytest.mark.parametrize("name", [name for name in MULTISTEP if name != "dpm2-sde"])
def test_the_step_after_the_correction_is_first_order_inside(name):
    """With equal entries a multistep update has no slope: inside the mask it is the one-step solver's, which keeps
    what was injected, instead of an extrapolation from predictions of the state before."""
    states, _, report = corrected_run(name)
    t_c = report[0].plan.t_c
    inside = report.masks_grown.expand_as(states[0])
    config = dict(tiny.SCHEDULERS[name]().config) | {"solver_order": 1}
    one_step = tiny.quietly(lambda: DPMSolverMultistepScheduler.from_config(config))
    tiny.set_steps(one_step, 25)
    one_step.set_begin_index(t_c)
    m = torch.cat(
        [
            tiny.pointwise(
                states[t_c][i : i + 1],
                tiny.output_of(one_step, t_c),
                t_c,
                0.5 * torch.ones(1, 3, *GRID),
                tiny.spot(GRID, 2)[i : i + 1],
            )
            for i in range(2)
        ]
    )
    expected = one_step.step(m, one_step.timesteps[t_c], states[t_c]).prev_sample
    torch.testing.assert_close(states[t_c + 1][inside], expected[inside], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MULTISTEP if name != "dpm2-sde"])
def test_without_the_repair_the_next_step_goes_astray(name, monkeypatch):
    repaired, _, report = corrected_run(name)
    naive, _, _ = corrected_run(name, monkeypatch)
    t_c = report[0].plan.t_c
    mask = report.masks_grown
    assert torch.equal(repaired[t_c], naive[t_c])
    inside = mask.expand_as(naive[0])
    assert torch.equal(bits(repaired[t_c + 1])[~inside], bits(naive[t_c + 1])[~inside])
    moved = (repaired[t_c + 1] - naive[t_c + 1])[inside].abs()
    assert moved.mean() > 1e-3


@pytest.mark.parametrize("repaired", [True, False], ids=["repaired", "left as it was"])
@pytest.mark.parametrize("name", ["dpm2", "dpm2-flow", "dpm3"])
def test_a_perfect_network_keeps_what_was_injected(name, repaired, monkeypatch):
    """From T_c on the network knows the clean sample: the state stays on alpha*x0 + sigma*e with the injected e, but
    only where the solver no longer remembers the predictions of the state before."""
    if not repaired:
        monkeypatch.setattr(adapter_run, "fill_history", lambda *args: None)
    scheduler = tiny.set_steps(tiny.SCHEDULERS[name](), 25)
    handle = enable_asced(scheduler, seeds=[3])
    levels = schedule_of(scheduler)
    where, mean = tiny.spot(GRID), torch.full((1, 3, *GRID), 0.5)
    x, errors = tiny.randn(1, 3, *GRID, seed=2), []
    for k, t in enumerate(scheduler.timesteps):
        output = tiny.output_of(scheduler, k)
        corrected = k > 0 and handle.report[0].mask is not None
        m = output(x, torch.full_like(x, 0.25)) if corrected else tiny.pointwise(x, output, k, mean, where)
        x = scheduler.step(m, t, x, return_dict=False)[0]
        mask = handle.report.masks_grown
        if mask is not None:
            alpha, sigma = levels.after[k]
            inside = x[mask.expand_as(x)]
            if not corrected:
                e = (inside - alpha * 0.25) / sigma
            errors.append(float((inside - (alpha * 0.25 + sigma * e)).abs().max()))
    assert len(errors) == 26 - handle.report[0].plan.t_c
    assert (max(errors) < 1e-4) if repaired else (max(errors) > 1e-2)


def test_nothing_is_filled_when_nothing_was_found():
    stock, before = stock_memory("dpm3")
    scheduler = tiny.SCHEDULERS["dpm3"]()
    enable_asced(scheduler, AscedConfig.official(mad_scale=1e9, max_area=101), seeds=[1, 2])
    states = tiny.sample(scheduler, tiny.randn(2, 3, *GRID, seed=4), tiny.spot(GRID, 2), generator=tiny.generator(1))
    assert all(torch.equal(bits(one), bits(other)) for one, other in zip(states, stock, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[-1], own(scheduler), strict=True))


def test_the_callers_tensors_are_not_written():
    """Entries of the memory may be tensors of the caller: with prediction_type 'sample' they are the model outputs."""
    scheduler = DPMSolverMultistepScheduler(prediction_type="sample", solver_order=3)
    handle = enable_asced(scheduler, seeds=[1])
    outputs = []

    def keep(k, m):
        outputs.append((m, m.clone()))
        return m

    tiny.sample(scheduler, tiny.randn(1, 3, *GRID, seed=4), tiny.spot(GRID), edit=keep)
    assert handle.report[0].status == "corrected"
    assert all(torch.equal(m, copy) for m, copy in outputs)


@pytest.mark.parametrize("make", [DDIMScheduler, tiny.SCHEDULERS["dpm1"]], ids=["ddim", "dpm1"])
def test_one_step_solvers_have_no_memory_to_repair(make, monkeypatch):
    base = tiny.SCHEDULERS["dpm1"]() if make is not DDIMScheduler else DDIMScheduler()
    enable_asced(base, seeds=[1])
    states = tiny.sample(base, tiny.randn(1, 3, *GRID, seed=4), tiny.spot(GRID))
    monkeypatch.setattr(adapter_run, "fill_history", lambda *args: None)
    other = make()
    enable_asced(other, seeds=[1])
    naive = tiny.sample(other, tiny.randn(1, 3, *GRID, seed=4), tiny.spot(GRID))
    assert all(torch.equal(one, two) for one, two in zip(states, naive, strict=True))


def test_a_repair_is_not_carried_into_the_next_run():
    """A run that stops right after its correction leaves no pending repair."""
    scheduler = tiny.SCHEDULERS["dpm2"]()
    x, where = tiny.randn(2, 3, *GRID, seed=4), tiny.spot(GRID, 2)
    enable_asced(scheduler, seeds=[1, 2])
    whole = tiny.sample(scheduler, x, where)
    t_c = scheduler.__dict__["_asced"].report[0].plan.t_c

    def stop(k, m):
        if k == t_c:
            raise InterruptedError
        return m

    with pytest.raises(InterruptedError):
        tiny.sample(scheduler, x, where, edit=stop)
    again = tiny.sample(scheduler, x, where)
    assert all(torch.equal(one, two) for one, two in zip(whole, again, strict=True))


def test_pixart_with_dpm_solver():
    pipe, kwargs = tiny.pixart()
    with asced(pipe, AscedConfig(**SENSITIVE)) as handle:
        out = tiny.run(pipe, kwargs)
        assert handle.report[0].status == "corrected"
        assert out.isfinite().all()


class Elsewhere(DPMSolverMultistepScheduler):
    """Keeps its history in another place."""

    @property
    def model_outputs(self):
        return self.__dict__["_outputs"]

    @model_outputs.setter
    def model_outputs(self, outputs):
        self.__dict__["_outputs"] = outputs


def test_a_subclass_may_keep_its_history_behind_a_property():
    states = []
    for kind in (DPMSolverMultistepScheduler, Elsewhere):
        scheduler = kind()
        enable_asced(scheduler, seeds=[1, 2])
        states.append(tiny.sample(scheduler, tiny.randn(2, 3, *GRID, seed=4), tiny.spot(GRID, 2)))
        assert memory_of(scheduler)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*states, strict=True))
