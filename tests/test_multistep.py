# SPDX-License-Identifier: MIT
"""The multistep solvers beside DPM-Solver++: their index, arguments, memory, copies, and what stock makes NaN of."""

import copy
import json
import pickle

import multistep
import pytest
import tiny
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from row_loop import bits
from test_diffusers import NOTHING, SENSITIVE

from ascedfast import AscedConfig, asced, enable_asced, is_asced_enabled
from ascedfast.adapters.schedules import schedule_of

GRID = (32, 24)


def sample(scheduler, **options):
    options.setdefault("generator", tiny.generator(9))
    return tiny.sample(scheduler, tiny.randn(2, 3, *GRID, seed=4), tiny.spot(GRID, 2), **options)


def assert_same(states, others):
    assert all(torch.equal(bits(one), bits(other)) for one, other in zip(states, others, strict=True))


# ---------------------------------------------------------------------------------------------- PNDM


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [25, 30])
def test_plms_is_corrected_at_the_level_that_follows(spacing, steps):
    """Like DDIM it steps to t - T//N; its second step, which does the first one over, to its own timestep."""
    scheduler = PNDMScheduler(skip_prk_steps=True, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    schedule = schedule_of(scheduler)
    timesteps = scheduler.timesteps.tolist()
    assert len(schedule) == len(timesteps) == steps + 1
    assert timesteps[1] == timesteps[2]
    assert not schedule.linear_beta
    for k, t in enumerate(timesteps):
        to = t if k == 1 else t - 1000 // steps
        abar = float(scheduler.alphas_cumprod[to] if to >= 0 else scheduler.final_alpha_cumprod)
        assert schedule.after[k] == pytest.approx((abar**0.5, (1 - abar) ** 0.5), abs=1e-12)


def test_plms_steps_are_counted_though_a_timestep_comes_twice():
    scheduler, seen = tiny.SCHEDULERS["plms"](), []
    handle = enable_asced(scheduler, seeds=[1, 2], on_x0=lambda step, t, x0: seen.append((step, int(t))))
    sample(scheduler)
    timesteps = scheduler.timesteps.tolist()
    assert timesteps[:4] == [961, 921, 921, 881]
    assert seen == list(enumerate(timesteps))
    row = handle.report[0]
    assert (row.steps, row.executed, row.status) == (26, 26, "corrected")
    assert row.logsnr[row.plan.t_c] == pytest.approx(-2.26, abs=0.15)


def plms_run(scheduler, first, x):
    """A loop that begins at ``first``, as image-to-image pipelines have it."""
    tiny.set_steps(scheduler, 25)
    states = []
    for k in range(first, len(scheduler.timesteps)):
        m = tiny.pointwise(x, tiny.output_of(scheduler, k), k, torch.full((1, 3, *GRID), 0.5), tiny.spot(GRID, 2))
        x = scheduler.step(m, scheduler.timesteps[k], x, return_dict=False)[0]
        states.append(x)
    return states


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_plms_run_that_begins_later_is_left_alone(first, asced_warnings):
    x = tiny.randn(2, 3, *GRID)
    stock = plms_run(tiny.SCHEDULERS["plms"](), first, x)
    scheduler = tiny.SCHEDULERS["plms"]()
    handle = enable_asced(scheduler, seeds=[1, 2])
    assert_same(plms_run(scheduler, first, x), stock)
    assert [row.status for row in handle.report] == ["unavailable"] * 2
    assert handle.report.severity == ["unavailable"] * 2
    assert "from the first timestep" in handle.report[0].reason
    assert len(asced_warnings()) == 1
    assert "left alone: PNDMScheduler" in asced_warnings()[0]
    plms_run(scheduler, 0, x)
    assert [row.status for row in handle.report] == ["corrected"] * 2
    assert len(asced_warnings()) == 1


def test_a_second_plms_run_without_setting_the_timesteps_is_left_alone(asced_warnings):
    """Its counter goes on, so that stock's own second run does not begin as the first did."""
    scheduler, x = tiny.SCHEDULERS["plms"](), tiny.randn(2, 3, *GRID)
    handle = enable_asced(scheduler, seeds=[1, 2])
    plms_run(scheduler, 0, x)
    scheduler.step(x, scheduler.timesteps[0], x)
    assert [row.status for row in handle.report] == ["unavailable"] * 2
    assert len(asced_warnings()) == 1


def test_the_runge_kutta_start_is_refused():
    with pytest.raises(ValueError, match="skip_prk_steps=True"):
        enable_asced(PNDMScheduler())


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_lms_of_another_order(order):
    stock = sample(LMSDiscreteScheduler(**tiny.SCALED), order=order)
    scheduler = LMSDiscreteScheduler(**tiny.SCALED)
    handle = enable_asced(scheduler, NOTHING, seeds=[1, 2])
    assert_same(sample(scheduler, order=order), stock)
    assert handle.report[0].status == "clean"
    handle.disable()
    handle = enable_asced(scheduler, seeds=[1, 2])
    states = sample(scheduler, order=order)
    outside = ~handle.report.masks_grown.expand_as(states[0])
    assert handle.report[0].status == "corrected"
    assert all(torch.equal(one[outside], other[outside]) for one, other in zip(states, stock, strict=True))


def test_a_predictor_of_its_own_is_refused():
    scheduler = UniPCMultistepScheduler(solver_p=DPMSolverMultistepScheduler())
    with pytest.raises(ValueError, match="solver_p"):
        enable_asced(scheduler)


def test_thresholding_in_noise_space_is_refused():
    scheduler = SASolverScheduler(thresholding=True, algorithm_type="noise_prediction")
    with pytest.raises(ValueError, match="data_prediction"):
        enable_asced(scheduler)


@pytest.mark.parametrize("name", ["deis2-threshold", "unipc2-threshold", "sa-threshold"])
def test_x0_under_thresholding_is_the_schedulers(name):
    """DEIS remembers noise: what it thresholds is seen on the way."""
    scheduler, seen, own = tiny.SCHEDULERS[name](), [], []
    threshold = scheduler._threshold_sample
    enable_asced(scheduler, AscedConfig(correct=False), seeds=[1, 2], on_x0=lambda k, t, x0: seen.append(x0.clone()))
    scheduler._threshold_sample = lambda x0: own.append(threshold(x0)) or own[-1]
    stock = sample(tiny.SCHEDULERS[name]())
    assert_same(sample(scheduler), stock)
    own = own[::2] if name.startswith("deis") else own
    assert len(own) == len(seen) == 25
    for one, other in zip(own, seen, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)  # x is divided by alpha 0.07


def test_unipc_in_noise_space_ignores_thresholding():
    """As stock does: its x0 is the plain one."""
    runs = []
    for settings in ({}, {"thresholding": True}):
        scheduler = UniPCMultistepScheduler(predict_x0=False, final_sigmas_type="sigma_min", **settings)
        handle = enable_asced(scheduler, seeds=[1, 2])
        runs.append((sample(scheduler), handle.report))
    assert_same(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1].masks, runs[1][1].masks)
    assert runs[0][1][0].status == "corrected"


# ---------------------------------------------------------------------------------------------- NaN in stock

ZERO = {"final_sigmas_type": "zero"}
NAN = {
    "bh1": (lambda: UniPCMultistepScheduler(solver_type="bh1"), "solver_type='bh2'"),
    "noise space": (lambda: UniPCMultistepScheduler(predict_x0=False), "predict_x0=True"),
    "full order": (lambda: UniPCMultistepScheduler(lower_order_final=False), "lower_order_final=True"),
    "deis": (lambda: DEISMultistepScheduler(), "leave sigmas"),
    "sa": (lambda: SASolverScheduler(tau_func=multistep.never), "leave sigmas"),
}
FINE = {
    "bh1": lambda: UniPCMultistepScheduler(solver_type="bh1", final_sigmas_type="sigma_min"),
    "bh2": lambda: UniPCMultistepScheduler(),
    "noise space": lambda: UniPCMultistepScheduler(predict_x0=False, final_sigmas_type="sigma_min"),
    "order 1": lambda: UniPCMultistepScheduler(solver_order=1, lower_order_final=False),
    "full order": lambda: UniPCMultistepScheduler(lower_order_final=False, final_sigmas_type="sigma_min"),
    "deis": lambda: DEISMultistepScheduler(),
    "sa": lambda: SASolverScheduler(tau_func=multistep.never),
    "lms": lambda: LMSDiscreteScheduler(),
}


def run_to_a_last_sigma(scheduler, last):
    """States of a plain loop; ``last``: what a pipeline writes into the last sigma."""
    scheduler.set_timesteps(12)
    if last is not None:
        scheduler.sigmas[-1] = last
    x = tiny.randn(1, 3, *GRID)
    states = []
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(tiny.randn(1, 3, *GRID, seed=k), t, x, return_dict=False)[0]
        states.append(x)
    return states


@pytest.mark.parametrize("name", NAN)
def test_schedules_that_are_nan_in_stock_are_warned_of(name, asced_warnings):
    make, cure = NAN[name]
    last = 0.0 if name in ("deis", "sa") else None
    stock = run_to_a_last_sigma(make(), last)
    assert not stock[-1].isfinite().any()
    assert stock[-2].isfinite().all()
    scheduler = make()
    with asced(scheduler, NOTHING) as handle:
        for _ in range(2):
            assert_same(run_to_a_last_sigma(scheduler, last), stock)
        assert handle.report[0].executed == 12
        assert len(asced_warnings()) == 1
        assert "NaN" in asced_warnings()[0]
        assert cure in asced_warnings()[0]


@pytest.mark.parametrize("name", FINE)
def test_schedules_that_are_finite_are_not(name, asced_warnings):
    scheduler = FINE[name]()
    with asced(scheduler, NOTHING):
        assert run_to_a_last_sigma(scheduler, None)[-1].isfinite().all()
    assert asced_warnings() == []


# ---------------------------------------------------------------------------------------------- objects


@pytest.mark.parametrize("name", ["unipc2", "sa-sde"])
@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda obj: pickle.loads(pickle.dumps(obj))], ids=["deepcopy", "pickle"]
)
def test_copies_after_a_correction(name, how):
    """The memory is copied with the scheduler, repaired or not; the original goes on as if there were no copy."""
    scheduler, copies = tiny.SCHEDULERS[name](), []
    handle = enable_asced(scheduler, seeds=[1, 2])
    whole = sample(scheduler)
    t_c = handle.report[0].plan.t_c

    def edit(k, m):
        if k == t_c:
            copies.append(how(scheduler))
        return m

    assert_same(sample(scheduler, edit=edit), whole)
    assert is_asced_enabled(copies[0])
    assert copies[0].last_sample is not scheduler.last_sample
    assert_same(sample(copies[0]), whole)


def test_save_pretrained_writes_the_stock_class(tmp_path):
    scheduler = tiny.SCHEDULERS["unipc2-flow"]()
    stock = sample(tiny.SCHEDULERS["unipc2-flow"]())
    enable_asced(scheduler, seeds=[1, 2])
    sample(scheduler)
    scheduler.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert config["_class_name"] == "UniPCMultistepScheduler"
    assert not any("asced" in key for key in config)
    again = UniPCMultistepScheduler.from_pretrained(tmp_path)
    assert type(again) is UniPCMultistepScheduler
    assert_same(sample(again), stock)


@pytest.mark.parametrize("name", ["unipc2", "deis2", "sa2", "lms", "plms", "ipndm"])
def test_the_callers_tensors_are_not_written(name):
    """PNDM remembers the model outputs themselves, UniPC and SASolver the states."""
    scheduler = tiny.SCHEDULERS[name]()
    handle = enable_asced(scheduler, seeds=[1, 2])
    kept = []

    def keep(k, m):
        last = getattr(scheduler, "last_sample", None)
        kept.extend((t, t.clone()) for t in (m, last) if t is not None)
        return m

    sample(scheduler, edit=keep)
    assert handle.report[0].status == "corrected"
    assert all(torch.equal(bits(t), bits(before)) for t, before in kept)


@pytest.mark.parametrize("name", ["unipc2", "deis2", "lms", "plms"])
def test_stable_diffusion_with_another_solver(name):
    pipe, kwargs = tiny.sd15(tiny.SCHEDULERS[name]())
    stock = tiny.run(pipe, kwargs)
    with asced(pipe, NOTHING) as handle:
        assert torch.equal(tiny.run(pipe, kwargs), stock)
        assert handle.report[0].status == "clean"
    with asced(pipe, AscedConfig(**SENSITIVE)) as handle:
        corrected = tiny.run(pipe, kwargs)
        assert handle.report[0].status == "corrected"
        assert corrected.isfinite().all()
        assert not torch.equal(corrected, stock)
