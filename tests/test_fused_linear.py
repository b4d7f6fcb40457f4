# SPDX-License-Identifier: MIT
"""Whole runs in linear form: close to the stock's, repaired like them, and never half of one and half of the other."""

import logging

import pytest
import torch
from diffusers import DDIMScheduler, SASolverScheduler
from layouts import DEVICES, same_bits
from linear_cases import LINEAR
from test_fused import is_fused, outputs, run, settings

from ascedfast import enable_asced

pytestmark = [pytest.mark.gpu] if DEVICES == ["cuda"] else []
DEVICE = DEVICES[0]
NAMES = ("ddim-epsilon-True", "euler-v_prediction", "flow", "dpm3-epsilon", "unipc2-epsilon", "unipc3-epsilon")
MORE = ("unipc-flow", "deis2-flow", "lms-epsilon", "ipndm", "sa22-epsilon", "sa34-v_prediction", "pndm-epsilon")
REPAIRED = ("ddim-epsilon-True", "dpm3-epsilon", "unipc3-epsilon", "deis2-flow", "lms-epsilon", "sa34-v_prediction")
RUNS = {name: LINEAR[name] for name in (*NAMES, *MORE)}
# Share of the largest value after 12 steps: what stock's float32 scalars are off by where its coefficients cancel
# (DEIS with flow sigmas 3e-5).
CLOSE = 1e-4


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
def test_a_run_is_close_to_the_stocks(make):
    _, _, stock = run(make)
    _, handle, ours = run(make, settings(correct=False, backend="triton", form="linear"))
    assert is_fused(handle)
    assert handle.report.rows[0].status == "observed"
    for a, b in zip(ours, stock, strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - b.float()).abs().max() <= CLOSE * b.float().abs().max()


@pytest.mark.parametrize("make", [LINEAR[name] for name in REPAIRED], ids=REPAIRED)
def test_a_correction_is_the_unfused_runs(make):
    """The same mask, and inside it the same state to the end: the solver's memory is repaired as the stock's is."""
    _, plain, reference = run(make, settings(backend="reference"))
    _, handle, ours = run(make, settings(backend="triton", form="linear"))
    mask = handle.report.rows[0].mask_grown
    assert handle.report.rows[0].status == "corrected"
    assert 0 < mask.sum() < mask.numel()
    assert torch.equal(mask, plain.report.rows[0].mask_grown)
    _, _, uncorrected = run(make, settings(backend="triton", form="linear", correct=False))
    for a, b, c in zip(ours, reference, uncorrected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
        assert same_bits(a[0][:, ~mask], c[0][:, ~mask])
    assert (ours[-1][0][:, mask] - uncorrected[-1][0][:, mask]).abs().mean() > 1e-3


def test_the_scheduler_counts_on_and_keeps_no_memory():
    scheduler, _, _ = run(LINEAR["unipc2-epsilon"], settings(backend="triton", form="linear"))
    assert scheduler.step_index == 12
    assert scheduler.lower_order_nums == 2
    assert scheduler.model_outputs == [None, None]
    scheduler, _, _ = run(LINEAR["pndm-epsilon"], settings(backend="triton", form="linear"))
    assert scheduler.counter == 13


@pytest.mark.parametrize("name", ["ddim-epsilon-True", "lms-epsilon"])
def test_the_solvers_own_prediction_is_returned(name):
    stock, ours = [], []
    make = LINEAR[name]
    run(make, watch=lambda scheduler, k, out: stock.append(out[1]))
    config = settings(correct=False, backend="triton", form="linear")
    run(make, config, watch=lambda scheduler, k, out: ours.append(out[1]))
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_a_step_with_noise_goes_to_stock_from_the_start():
    def last(config):
        scheduler = DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(12)
        enable_asced(scheduler, config, seeds=[3, 4])
        x = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(6)).to(DEVICE)
        for t, m in zip(scheduler.timesteps, outputs(scheduler, x.shape, x.dtype), strict=True):
            x = scheduler.step(m, t, x, eta=0.5, variance_noise=torch.ones_like(x)).prev_sample
        return x

    assert same_bits(last(settings(backend="triton", form="linear")), last(settings(backend="reference")))


CHANGES = {
    "unipc2-epsilon": ("disable_corrector", list(range(12))),
    "unipc-bh1": ("predict_x0", False),
    "sa22-epsilon": ("tau_func", lambda timestep: 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_solver_changed_between_runs_is_another_plan(name):
    scheduler = LINEAR[name]()
    handle = enable_asced(scheduler, settings(backend="triton", form="linear", correct=False), seeds=[3, 4])
    plans = []
    for _ in range(2):
        scheduler.set_timesteps(12)
        x = torch.zeros(2, 4, 24, 24, device=DEVICE)
        scheduler.step(x, scheduler.timesteps[0], x)
        fused = handle._run._fused
        plans.append(None if fused is None else fused.lockstep._linear)
        setattr(scheduler, *CHANGES[name])
    assert plans[0] is not None
    assert plans[0] != plans[1]


@pytest.mark.parametrize("name", ["euler-epsilon", "flow", "ddim-epsilon-False", "dpm2-epsilon"])
def test_states_have_the_stocks_types(name):
    def types(config):
        scheduler = LINEAR[name]()
        scheduler.set_timesteps(12)
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True
        if config is not None:
            enable_asced(scheduler, config, seeds=0)
        x, m = torch.zeros(1, 4, 24, 24, device=DEVICE), torch.zeros(1, 4, 24, 24, device=DEVICE).half()
        return [out.dtype for out in scheduler.step(m, scheduler.timesteps[0], x, return_dict=False)]

    assert types(settings(backend="triton", form="linear")) == types(None)


def test_a_run_changed_under_way_says_so():
    scheduler = LINEAR["unipc2-epsilon"]()
    scheduler.set_timesteps(12)
    enable_asced(scheduler, settings(backend="triton", form="linear"), seeds=0)
    x = torch.zeros(1, 4, 24, 24, device=DEVICE)
    x = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    with pytest.raises(RuntimeError, match="set_timesteps"):
        scheduler.step(x[..., :8, :8], scheduler.timesteps[1], x[..., :8, :8])
    scheduler.set_timesteps(12)
    scheduler.step(x[..., :8, :8], scheduler.timesteps[0], x[..., :8, :8])


@pytest.mark.parametrize("make", [lambda: DDIMScheduler(thresholding=True), lambda: SASolverScheduler()])
def test_what_has_no_linear_form_is_observed_and_said(make, caplog):
    with caplog.at_level(logging.WARNING, logger="ascedfast"):
        _, handle, _ = run(make, settings(backend="triton", form="linear"))
    assert not is_fused(handle)
    assert handle.report.rows[0].status in ("corrected", "clean")
    assert sum("form='linear'" in line for line in caplog.messages) == 1
