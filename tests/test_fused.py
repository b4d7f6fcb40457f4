# SPDX-License-Identifier: MIT
"""Runs whose steps are fused: the stock's bits, the unfused run's masks, and the stock's bookkeeping."""

import copy
from functools import partial

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from layouts import DEVICES, same_bits
from linear_cases import LINEAR
from null_tables import calibrated

from ascedfast import AscedConfig, enable_asced, ops
from ascedfast.adapters.schedules import schedule_of

pytestmark = [pytest.mark.gpu] if DEVICES == ["cuda"] else []
DEVICE = DEVICES[0]
STEPS = 12
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(clip_sample=False),
    "ddim-v": lambda: DDIMScheduler(prediction_type="v_prediction", clip_sample=True),
    "euler": lambda: EulerDiscreteScheduler(),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dpm": lambda: DPMSolverMultistepScheduler(),
    "dpm-1": lambda: DPMSolverMultistepScheduler(solver_order=1),
}
TYPES = [torch.float32, torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float32, torch.float16]


def outputs(scheduler, shape, dtype):
    """Model outputs of a run in which one region changes late: it gets masked."""
    g = torch.Generator().manual_seed(5)
    quiet = torch.randn(shape, generator=g)
    for k in range(len(scheduler.timesteps)):
        m = quiet + 0.01 * torch.randn(shape, generator=g)
        m[..., 4:12, 6:14] += 0.4 * (-1) ** k
        yield m.to(DEVICE, dtype)


def run(make, config=None, dtype=torch.float32, shape=(2, 4, 24, 24), watch=lambda scheduler, k, out: None):
    scheduler = make()
    scheduler.set_timesteps(STEPS, device=DEVICE)
    handle = None if config is None else enable_asced(scheduler, config, seeds=[3, 4])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(6)).to(DEVICE, dtype)
    states = []
    for k, (t, m) in enumerate(zip(scheduler.timesteps, outputs(scheduler, shape, dtype), strict=True)):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        out = scheduler.step(m, t, x, return_dict=False)
        watch(scheduler, k, out)
        x = out[0]
        states.append(x.clone())
    return scheduler, handle, states


@pytest.mark.parametrize("name", ["ddim", "flow"])
def test_calibrated_runs_are_fused(name):
    """Up to T_c the stock's bits; the mask of the run that is watched row by row."""
    make = SCHEDULERS[name]
    scheduler = make()
    scheduler.set_timesteps(STEPS)
    config = partial(calibrated, schedule_of(scheduler), 6, (24, 24), above=0.4)
    _, handle, states = run(make, config(backend="triton"))
    _, other, expected = run(make, config(backend="reference"))
    _, _, stock = run(make)
    assert handle._run._fused is not None
    assert other._run._fused is None
    assert all(same_bits(a, b) for a, b in zip(states[:5], stock[:5], strict=True))
    for ours, theirs in zip(handle.report, other.report, strict=True):
        assert ours.status == "corrected"
        assert torch.equal(ours.mask_grown, theirs.mask_grown)
    assert all(same_bits(a, b) for a, b in zip(states, expected, strict=True))


def settings(**changes):
    return AscedConfig.fast(t_c=6, window_start=2, reference_size=None, min_area=3, core_width=2, grow=1, **changes)


def is_fused(handle):
    return handle._run._fused is not None


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_observing_gives_the_stock_run(make, dtype):
    _, _, stock = run(make, dtype=dtype)
    _, handle, fused = run(make, settings(correct=False, backend="triton"), dtype)
    assert is_fused(handle)
    assert all(same_bits(a, b) for a, b in zip(fused, stock, strict=True))
    assert handle.report.rows[0].status == "observed"


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_correcting_gives_the_unfused_run(make):
    _, plain, reference = run(make, settings(backend="reference"))
    _, handle, fused = run(make, settings(backend="triton"))
    assert is_fused(handle)
    assert not is_fused(plain)
    assert handle.report.rows[0].status == "corrected"
    for ours, theirs in zip(handle.report.rows, plain.report.rows, strict=True):
        assert torch.equal(ours.mask_grown, theirs.mask_grown)
        assert torch.equal(ours.labels, theirs.labels)
        assert same_bits(ours.z, theirs.z)
        assert ours.severity == theirs.severity
        assert bool(ours.finite) is bool(theirs.finite) is True
        assert [k for k, _ in ours.dynamics] == [k for k, _ in theirs.dynamics]
        assert all(same_bits(a, b) for (_, a), (_, b) in zip(ours.dynamics, theirs.dynamics, strict=True))
    assert all(same_bits(a, b) for a, b in zip(fused, reference, strict=True))


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_the_scheduler_is_left_as_stock_leaves_it(make):
    def state(scheduler):
        kept = {k: v for k, v in scheduler.__dict__.items() if not k.startswith("_asced") and k != "_internal_dict"}
        return copy.deepcopy(kept)

    theirs, ours = [], []
    run(make, watch=lambda scheduler, k, out: theirs.append((state(scheduler), out)))
    run(
        make,
        settings(correct=False, backend="triton"),
        watch=lambda scheduler, k, out: ours.append((state(scheduler), out)),
    )
    for (a, out_a), (b, out_b) in zip(ours, theirs, strict=True):
        assert len(out_a) == len(out_b)
        assert all(same_bits(p, q) for p, q in zip(out_a, out_b, strict=True))
        assert a.keys() == b.keys()
        for name in a:
            pairs = zip(a[name], b[name], strict=True) if isinstance(a[name], list) else [(a[name], b[name])]
            for p, q in pairs:
                assert same_bits(p, q) if isinstance(p, torch.Tensor) and p.is_floating_point() else _equal(p, q), name


def _equal(a, b):
    same = a == b
    return bool(same.all()) if hasattr(same, "all") else same


def test_a_step_with_noise_goes_to_stock_and_the_run_goes_on():
    def changed(config):
        scheduler = DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(STEPS)
        handle = enable_asced(scheduler, config, seeds=[3, 4])
        x = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(6)).to(DEVICE)
        for k, (t, m) in enumerate(zip(scheduler.timesteps, outputs(scheduler, x.shape, x.dtype), strict=True)):
            noise = {"eta": 0.5, "variance_noise": torch.ones_like(x)} if k == 4 else {}
            x = scheduler.step(m, t, x, **noise).prev_sample
        return x, handle

    fused, handle = changed(settings(backend="triton"))
    plain, other = changed(settings(backend="reference"))
    assert same_bits(fused, plain)
    assert handle.report.rows[0].severity == other.report.rows[0].severity


def test_nan_in_one_row_touches_no_other():
    def spoiled(backend):
        scheduler = DDIMScheduler(clip_sample=True)
        scheduler.set_timesteps(STEPS)
        handle = enable_asced(scheduler, settings(backend=backend), seeds=[3, 4])
        x = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(6)).to(DEVICE)
        for k, (t, m) in enumerate(zip(scheduler.timesteps, outputs(scheduler, x.shape, x.dtype), strict=True)):
            if k == 3:
                m[0, 1, 2, 2] = float("inf")
            x = scheduler.step(m, t, x, return_dict=False)[0]
        return x, handle.report.rows

    x, rows = spoiled("triton")
    expected, theirs = spoiled("reference")
    assert [row.status for row in rows] == [row.status for row in theirs] == ["not finite", "corrected"]
    assert same_bits(x, expected)
    assert not bool(rows[0].mask.any())


def test_packed_latents_are_fused_as_they_lie():
    def packed(config):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(STEPS)
        handle = enable_asced(scheduler, config, seeds=[3, 4], grid=(24, 24))
        x = torch.randn(2, 24 * 24, 4, generator=torch.Generator().manual_seed(6)).to(DEVICE)
        for t, m in zip(scheduler.timesteps, outputs(scheduler, (2, 4, 24, 24), x.dtype), strict=True):
            x = scheduler.step(m.flatten(2).transpose(1, 2).contiguous(), t, x, return_dict=False)[0]
        return x, handle

    x, handle = packed(settings(backend="triton"))
    expected, other = packed(settings(backend="reference"))
    assert is_fused(handle)
    assert same_bits(x, expected)
    assert handle.report.rows[0].status == "corrected"
    assert torch.equal(handle.report.rows[1].mask, other.report.rows[1].mask)
    assert handle.x0 is None  # given back at T_c


def test_a_second_run_uses_what_the_first_one_made():
    scheduler = DDIMScheduler(clip_sample=False)
    handle = enable_asced(scheduler, settings(backend="triton"), seeds=[3, 4])
    results, reports, launches = [], [], []
    for _ in range(2):
        scheduler.set_timesteps(STEPS)
        x = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(6)).to(DEVICE)
        for t, m in zip(scheduler.timesteps, outputs(scheduler, x.shape, x.dtype), strict=True):
            x = scheduler.step(m, t, x, return_dict=False)[0]
        results.append(x)
        reports.append(handle.report)
        launches.append(handle._run._fused.lockstep._launch)
    assert launches[0] is launches[1]
    assert same_bits(*results)
    # The first report still tells of the first run.
    assert reports[0].rows[0].dynamics[0][1].data_ptr() != reports[1].rows[0].dynamics[0][1].data_ptr()
    assert reports[0].rows[0].severity == reports[1].rows[0].severity


def test_other_levels_are_another_kind_of_run():
    def run_with(first):
        scheduler = EulerDiscreteScheduler()
        handle = enable_asced(scheduler, settings(correct=False, backend="triton"), seeds=[3, 4])
        for edited in first:
            scheduler.set_timesteps(STEPS)
            if edited:  # as some pipelines do
                scheduler.sigmas[2:5] *= 1.05
            x = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(6)).to(DEVICE)
            for t, m in zip(scheduler.timesteps, outputs(scheduler, x.shape, x.dtype), strict=True):
                scheduler.scale_model_input(x, t)
                x = scheduler.step(m, t, x, return_dict=False)[0]
            assert is_fused(handle)
        return x

    assert same_bits(run_with([False, True]), run_with([True]))
    assert not torch.equal(run_with([False]), run_with([True]))


def test_betas_moved_by_add_noise_are_read_where_they_lie():
    scheduler = DDIMScheduler(clip_sample=False)
    handle = enable_asced(scheduler, settings(correct=False, backend="triton"), seeds=[3, 4])
    stock = DDIMScheduler(clip_sample=False)
    for add_noise in (False, True):
        states = []
        for one in (scheduler, stock):
            one.set_timesteps(STEPS)
            x = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(6)).to(DEVICE)
            if add_noise:
                one.add_noise(x, x, torch.tensor([10], device=DEVICE))
            for t, m in zip(one.timesteps, outputs(one, x.shape, x.dtype), strict=True):
                x = one.step(m, t, x, return_dict=False)[0]
            states.append(x)
        assert is_fused(handle)
        assert same_bits(*states)


@pytest.mark.parametrize(
    ("make", "form"), [(SCHEDULERS["dpm"], "parity"), (LINEAR["unipc2-epsilon"], "linear")], ids=["dpm", "unipc-linear"]
)
def test_warming_up_compiles_the_repair_too(make, form, monkeypatch):
    """A captured loop must compile nothing, and the step after T_c launches what no other step does."""
    scheduler = make()
    scheduler.set_timesteps(STEPS, device=DEVICE)
    handle = enable_asced(scheduler, settings(backend="triton", form=form), seeds=[3, 4])
    launched, stock = [], ops.history_fill_
    monkeypatch.setattr(ops, "history_fill_", lambda *a, **k: (launched.append(a[2].dtype), stock(*a, **k)))
    handle.warm_up(torch.zeros(2, 4, 24, 24, device=DEVICE))
    assert is_fused(handle)
    warm = set(launched)
    launched.clear()
    x = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    for t, m in zip(scheduler.timesteps, outputs(scheduler, x.shape, x.dtype), strict=True):
        x = scheduler.step(m, t, x, return_dict=False)[0]
    assert handle.report.rows[0].status == "corrected"
    assert launched
    assert set(launched) <= warm
