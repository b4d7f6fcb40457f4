# SPDX-License-Identifier: MIT
"""What cannot work with diffusers is refused before the first step; nothing has changed, and a good run follows."""

import copy
import re

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    AmusedScheduler,
    ConfigMixin,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    RFD4ProteinaScheduler,
    SchedulerMixin,
    VQDiffusionScheduler,
)

from ascedfast import AscedConfig, asced, enable_asced, is_asced_enabled
from ascedfast.adapters.support import REFUSED, SUPPORT

GRID = (32, 24)
X = torch.zeros(2, 3, 12, 10)
MAKE = {
    "AmusedScheduler": lambda: AmusedScheduler(mask_token_id=1),
    "RFD4ProteinaScheduler": lambda: RFD4ProteinaScheduler("log", "tan", 1.0, 1.0),
    "VQDiffusionScheduler": lambda: VQDiffusionScheduler(num_vec_classes=4),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_schedulers_are_refused_with_their_reason(name):
    scheduler = MAKE.get(name, lambda: getattr(diffusers.schedulers, name)())()
    kept = type(scheduler), dict(scheduler.__dict__)
    with pytest.raises(ValueError, match=f"{name} is not supported: {re.escape(REFUSED[name])}"):
        enable_asced(scheduler)
    assert (type(scheduler), scheduler.__dict__) == kept


def test_every_scheduler_of_diffusers_is_supported_or_refused():
    """The names that diffusers exports, with or without the packages that some need."""
    names = {name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")}
    names |= {"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler", "LMSDiscreteScheduler"}
    assert names == set(SUPPORT) | set(REFUSED)
    assert not set(SUPPORT) & set(REFUSED)
    assert (len(SUPPORT), len(REFUSED)) == (40, 11)


def test_a_scheduler_that_nobody_knows_is_refused_with_the_names_of_those_supported():
    class Other(SchedulerMixin, ConfigMixin):
        def step(self):
            pass

    with pytest.raises(ValueError, match=r"Other is not supported.*DDIMScheduler.*DPMSolverMultistepScheduler"):
        enable_asced(Other())


def test_a_subclass_with_its_own_step_is_refused():
    class Own(DDIMScheduler):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    with pytest.raises(ValueError, match="overrides step"):
        enable_asced(Own())
    assert is_asced_enabled(enable_asced(type("Named", (DDIMScheduler,), {})()).scheduler)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDIMScheduler(rescale_betas_zero_snr=True),
        lambda: DDPMScheduler(rescale_betas_zero_snr=True),
        lambda: tiny.quietly(
            lambda: DPMSolverMultistepScheduler(
                algorithm_type="dpmsolver", thresholding=True, final_sigmas_type="sigma_min"
            )
        ),
        lambda: tiny.quietly(
            lambda: DPMSolverSinglestepScheduler(
                algorithm_type="dpmsolver", thresholding=True, final_sigmas_type="sigma_min"
            )
        ),
    ],
    ids=["eps at zero snr", "ddpm at zero snr", "thresholding of dpmsolver", "thresholding of singlestep"],
)
def test_configurations_that_cannot_work(make):
    scheduler = make()
    with pytest.raises(ValueError, match=r"use|supported"):
        enable_asced(scheduler)
    assert not is_asced_enabled(scheduler)


ENABLE = {
    "no scheduler": (TypeError, lambda: (object(),), {}),
    "a tensor": (TypeError, lambda: (X,), {}),
    "the class": (TypeError, lambda: (DDIMScheduler,), {}),
    "config": (TypeError, lambda: (DDIMScheduler(), {"mad_scale": 2}), {}),
    "no seeds": (ValueError, lambda: (DDIMScheduler(),), {"seeds": []}),
    "float seeds": (TypeError, lambda: (DDIMScheduler(),), {"seeds": [1.0]}),
    "numpy seeds": (TypeError, lambda: (DDIMScheduler(),), {"seeds": np.arange(2)}),
    "large seed": (ValueError, lambda: (DDIMScheduler(),), {"seeds": 2**64}),
    "bool seed": (TypeError, lambda: (DDIMScheduler(),), {"seeds": True}),
    "grid of one": (ValueError, lambda: (DDIMScheduler(),), {"grid": (4,)}),
    "negative grid": (ValueError, lambda: (DDIMScheduler(),), {"grid": (4, -1)}),
    "float grid": (ValueError, lambda: (DDIMScheduler(),), {"grid": (4, 4.0)}),
    "unknown option": (TypeError, lambda: (DDIMScheduler(),), {"seed": 1}),
}


@pytest.mark.parametrize("name", ENABLE)
def test_enable_refuses_and_changes_nothing(name):
    error, arguments, options = ENABLE[name]
    arguments = arguments()
    kind = type(arguments[0])
    with pytest.raises(error):
        enable_asced(*arguments, **options)
    assert type(arguments[0]) is kind
    if isinstance(arguments[0], DDIMScheduler):
        assert not is_asced_enabled(arguments[0])
        assert is_asced_enabled(enable_asced(arguments[0]).scheduler)


RUNS = {
    "t_c past the end": ({"config": AscedConfig(t_c=30)}, "past the end"),
    "empty window": ({"config": AscedConfig(t_c=5, window_start=0.5)}, "window is empty"),
    "too few seeds": ({"seeds": [1]}, "1 seeds.*2 rows"),
    "too many seeds": ({"seeds": [1, 2, 3]}, "3 seeds.*2 rows"),
}


@pytest.mark.parametrize("scheduler_name", ["ddim-eps", "euler-eps", "flow", "dpm3"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_refuses_before_its_first_step(name, scheduler_name):
    options, words = RUNS[name]
    scheduler = tiny.SCHEDULERS[scheduler_name]()
    stock = tiny.sample(copy.deepcopy(scheduler), tiny.randn(2, 3, *GRID), tiny.spot(GRID, 2))
    x = tiny.randn(2, 3, *GRID)
    kept = x.clone()
    with asced(scheduler, **options):
        with pytest.raises(ValueError, match=words):
            tiny.sample(scheduler, x, tiny.spot(GRID, 2))
        assert torch.equal(x, kept)
        assert not getattr(scheduler, "step_index", None)  # the stock step did not run
    states = tiny.sample(scheduler, x, tiny.spot(GRID, 2))
    assert all(torch.equal(one, two) for one, two in zip(states, stock, strict=True))
    handle = enable_asced(scheduler, seeds=[1, 2])
    tiny.sample(scheduler, x, tiny.spot(GRID, 2))
    assert [row.status for row in handle.report] == ["corrected"] * 2


def test_wrong_generators_of_a_pipeline():
    pipe, kwargs = tiny.dit()
    with asced(pipe, seeds=[1, 2, 3]) as handle:
        with pytest.raises(ValueError, match="3 seeds"):
            tiny.run(pipe, kwargs)
        tiny.run(pipe, {**kwargs, "class_labels": [1, 2, 3]})
        assert handle.report.seeds == [1, 2, 3] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": (5, 5)}, "does not hold the 48"),
        ({"grid": (48, 2)}, "does not hold the 48"),
        ({"grid": (2, 4, 5)}, "2 x 4 x 5 does not hold the 48"),
        ({"axes": "BCHW"}, "has 4 axes"),
    ],
    ids=["wrong", "twice", "volume", "axes"],
)
def test_packed_latents_of_another_geometry(options, words):
    scheduler = tiny.set_steps(tiny.SCHEDULERS["flow"](), 10)
    x = tiny.randn(1, 48, 4)
    with asced(scheduler, **options), pytest.raises(ValueError, match=words):
        scheduler.step(x, scheduler.timesteps[0], x)
    assert scheduler.step_index is None
    with asced(scheduler, grid=(8, 6)) as handle:
        scheduler.step(x, scheduler.timesteps[0], x)
        assert handle.report[0].executed == 1


@pytest.mark.parametrize("shape", [(48,), (4, 48), (1, 48, 4), (1, 2, 3, 8, 6), (1, 2, 3, 4, 5, 6)], ids=str)
def test_latents_that_nobody_can_read_are_left_alone(shape, asced_warnings):
    x = tiny.randn(*shape)
    stock, scheduler = (tiny.set_steps(tiny.SCHEDULERS["flow"](), 10) for _ in range(2))
    with asced(scheduler) as handle:
        for t in scheduler.timesteps:
            assert torch.equal(scheduler.step(x, t, x)[0], stock.step(x, t, x)[0])
        assert {row.status for row in handle.report} == {"unavailable"}
    assert len(asced_warnings()) == 1
    assert "pass" in asced_warnings()[0]


def test_a_step_without_timesteps():
    for make in (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        scheduler = make()
        with asced(scheduler), pytest.raises(ValueError, match="timesteps"):
            scheduler.step(X, torch.tensor(999), X)


def test_a_timestep_that_is_not_of_the_run():
    scheduler = tiny.set_steps(DDIMScheduler(), 10)
    with asced(scheduler), pytest.raises(ValueError, match=r"not one of scheduler\.timesteps"):
        scheduler.step(X, torch.tensor(123), X)


def test_the_stocks_own_errors_stay():
    scheduler = tiny.set_steps(DDIMScheduler(), 10)
    with asced(scheduler):
        for call in (lambda: scheduler.step(X), lambda: scheduler.step(X, 900, X, wrong=1), lambda: scheduler.step()):
            with pytest.raises(TypeError, match="step"):
                call()


@pytest.mark.parametrize("name", ["euler-eps", "flow"])
def test_integer_timesteps_get_the_stocks_own_error(name):
    scheduler = tiny.set_steps(tiny.SCHEDULERS[name](), 10)
    with asced(scheduler) as handle:
        with pytest.raises(ValueError, match="integer indices"):
            scheduler.step(X, 5, X)
        assert len(handle.report) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["ddim-eps", "euler-v", "flow", "dpm3", "ddim-sample"])
def test_a_sample_that_is_not_finite_touches_no_other(name, value):
    def run(rows, spoiled, **options):
        scheduler = tiny.SCHEDULERS[name]()
        handle = enable_asced(scheduler, **options) if options else None

        def edit(k, m):
            if k == 7 and spoiled:
                m[rows.index(1), 0, 3, 3] = value
            return m

        x = torch.cat([tiny.randn(1, 3, *GRID, seed=row) for row in rows])
        return tiny.sample(scheduler, x, tiny.spot(GRID, 3)[rows], edit=edit)[-1], handle

    stock, _ = run([0, 1, 2], True)
    watched, handle = run([0, 1, 2], True, seeds=[5, 6, 7], config=AscedConfig(t_c=12))
    assert [row.status for row in handle.report] == ["corrected", "not finite", "corrected"]
    assert torch.equal(watched[1].view(torch.int32), stock[1].view(torch.int32))
    for row in (0, 2):
        alone, _ = run([row], False, seeds=[5 + row], config=AscedConfig(t_c=12))
        assert torch.equal(alone[0], watched[row])


def test_few_predictions_warn_once_and_change_nothing(asced_warnings):
    stock = tiny.sample(tiny.SCHEDULERS["flow"](), tiny.randn(3, 3, *GRID), tiny.spot(GRID, 3), steps=4)
    scheduler = tiny.SCHEDULERS["flow"]()
    handle = enable_asced(scheduler, seeds=[1, 2, 3])
    watched = tiny.sample(scheduler, tiny.randn(3, 3, *GRID), tiny.spot(GRID, 3), steps=4)
    assert all(torch.equal(one, two) for one, two in zip(stock, watched, strict=True))
    assert [row.status for row in handle.report] == ["unavailable"] * 3
    assert handle.report.severity == ["unavailable"] * 3
    assert len(asced_warnings()) == 1
    assert "3 are needed" in asced_warnings()[0]


def test_other_timesteps_between_two_runs():
    """Without set_timesteps: stock takes what stands in the scheduler."""

    def watched(scheduler):
        seen = []
        enable_asced(scheduler, seeds=0, on_x0=lambda k, t, x0: seen.append((k, int(t), float(x0.sum()))))
        return seen

    def loop(scheduler):
        x = X
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * X, t, x).prev_sample

    scheduler, fresh = DDIMScheduler(), DDIMScheduler()
    seen = watched(scheduler)
    scheduler.set_timesteps(20)
    loop(scheduler)
    scheduler.timesteps = scheduler.timesteps[5:]
    seen.clear()
    loop(scheduler)
    assert [(k, t) for k, t, _ in seen] == list(enumerate(scheduler.timesteps.tolist()))
    expected = watched(fresh)
    fresh.set_timesteps(20)
    fresh.timesteps = fresh.timesteps[5:]
    loop(fresh)
    assert seen == expected
    scheduler.timesteps = torch.tensor([990, 900, 500, 50])
    seen.clear()
    loop(scheduler)
    assert [t for _, t, _ in seen] == [990, 900, 500, 50]


def test_levels_of_any_type():
    scheduler = EulerDiscreteScheduler()
    handle = enable_asced(scheduler, seeds=0)
    scheduler.set_timesteps(10)
    scheduler.sigmas = scheduler.sigmas.to(torch.bfloat16).requires_grad_()
    scheduler.scale_model_input(X, scheduler.timesteps[0])
    scheduler.step(0.1 * X, scheduler.timesteps[0], X)
    assert handle.report[0].executed == 1
