# SPDX-License-Identifier: MIT
"""vllm-omni's registry contract, and SGLang's packed solver: the stock's bits, and corrections of an engine alone."""

import copy
import importlib.metadata
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import server_stubs
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from layouts import same_bits

from ascedfast import AscedConfig, Engine, RowBatch
from ascedfast.adapters import sglang
from ascedfast.adapters.vllm_omni import AscedFlowMatchEuler

ROOT = Path(__file__).parent.parent
SHAPE, STEPS = (4, 16, 16), 20
RULES = {"reference_size": None, "min_area": 3, "core_width": 2, "grow": 1}


def velocity(x, mean, step, unsteady=True):
    """Of a sample at ``mean`` whose corner is in motion; any sigma of a flow."""
    m = 0.3 * x.float() - mean
    m[..., 4:9, 4:9] += 0.8 * (-1) ** step * unsteady
    return m.to(x.dtype)


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def entry_points(tmp_path_factory):
    """Those that an installation of this checkout has, whatever is installed here."""
    folder = tmp_path_factory.mktemp("metadata")
    code = f"import sys; sys.argv = ['setup.py', '-q', 'egg_info', '--egg-base', {str(folder)!r}]; import runpy; "
    code += "runpy.run_path('setup.py', run_name='__main__')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (found,) = importlib.metadata.distributions(path=[str(folder)])
    return found.entry_points.select(group="vllm_omni.schedulers")


@pytest.fixture
def registry(entry_points):
    return server_stubs.Registry(entry_points)


@pytest.fixture
def model(tmp_path):
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "scheduler")
    return str(tmp_path)


def test_the_entry_point_names_the_class(entry_points):
    assert [(point.name, point.load()) for point in entry_points] == [("asced_flow_match_euler", AscedFlowMatchEuler)]


def test_the_contract_of_an_injected_class(registry, model):
    scheduler = registry.build(model, "asced_flow_match_euler", {"shift": 2.0, "asced": {"mad_scale": 2.5}})
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    assert (scheduler.config.shift, scheduler.config.num_train_timesteps) == (2.0, 1000)
    assert "asced" not in scheduler.config
    assert scheduler.asced_report.rows == ()
    assert {"sigmas", "timesteps"} <= inspect.signature(scheduler.set_timesteps).parameters.keys()
    assert "generator" in inspect.signature(scheduler.step).parameters
    scheduler.set_timesteps(sigmas=[1.0, 0.5], device="cpu")
    scheduler.set_begin_index(1)
    x = torch.zeros(1, *SHAPE)
    out = scheduler.step(x, scheduler.timesteps[1], x, return_dict=False, generator=None)
    assert isinstance(out, tuple)
    assert out[0].shape == x.shape


def stock_run(seed, steps=STEPS):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    x, states = randn(1, *SHAPE, seed=seed), []
    for step, t in enumerate(scheduler.timesteps):
        x = scheduler.step(velocity(x, randn(*SHAPE, seed=seed), step), t, x, return_dict=False)[0]
        states.append(x)
    return states


def requests_in_turn(registry, base, settings, steps):
    """Stepped for each request, as the step mode does: one step of each, by a copy of its own."""
    under_way = []
    for seed, (extra, count) in enumerate(zip(settings, steps, strict=True)):
        own = registry.for_request(base, extra)
        own.set_timesteps(count)
        own.set_begin_index(0)
        under_way.append([own, randn(1, *SHAPE, seed=seed), torch.Generator().manual_seed(seed)])
    for step in range(max(steps)):
        for seed, request in enumerate(under_way):
            own, x, generator = request
            if step < steps[seed]:
                m = velocity(x, randn(*SHAPE, seed=seed), step)
                request[1] = own.step(m, own.timesteps[step], x, return_dict=False, generator=generator)[0]
    return under_way


def test_requests_that_are_stepped_in_turn_have_runs_of_their_own(registry, model):
    base = registry.build(model, "asced_flow_match_euler", {"asced": RULES})
    settings = [
        {},
        {"scheduler_configure": {"enabled": False}},
        {"scheduler_configure": {"correct": False, "mad_scale": 2.0}},
        {"scheduler_configure": {"seed": 77}},
    ]
    together = requests_in_turn(registry, base, settings, (20, 20, 24, 20))
    reports = [own.asced_report for own, _, _ in together]
    assert [report[0].status if len(report) else "none" for report in reports] == [
        "corrected",
        "none",
        "observed",
        "corrected",
    ]
    assert [report.seeds for report in reports if len(report)] == [
        [0],
        [2],
        [77],
    ]  # the generators' own, where not told
    assert same_bits(together[1][1], stock_run(1)[-1])
    assert same_bits(together[2][1], stock_run(2, 24)[-1])
    for seed, (own, x, generator) in enumerate(together):
        alone = requests_in_turn(registry, base, [{}] * seed + [settings[seed]], [0] * seed + [(20, 20, 24, 20)[seed]])
        assert same_bits(alone[seed][1], x)
        assert torch.equal(generator.get_state(), torch.Generator().manual_seed(seed).get_state())  # never drawn from
        assert own.asced_report.severity == alone[seed][0].asced_report.severity
    assert base.asced_report.rows == ()
    corrected = reports[0]
    t_c, inside = corrected[0].plan.t_c, corrected.masks_grown.expand(1, *SHAPE)
    scheduler = registry.for_request(base, {})
    scheduler.set_timesteps(20)
    x = randn(1, *SHAPE, seed=0)
    for step in range(t_c):
        m = velocity(x, randn(*SHAPE, seed=0), step)
        x = scheduler.step(m, scheduler.timesteps[step], x, return_dict=False)[0]
    assert same_bits(x[~inside], stock_run(0)[t_c - 1][~inside])
    assert not torch.equal(x[inside], stock_run(0)[t_c - 1][inside])


@pytest.mark.parametrize("twin", [copy.deepcopy, copy.copy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_that_is_made_after_set_timesteps_runs_by_itself(twin):
    scheduler = AscedFlowMatchEuler(shift=3.0, asced=RULES)
    scheduler.set_timesteps(STEPS)
    other = twin(scheduler)
    x = randn(1, *SHAPE, seed=3)
    for step, t in enumerate(other.timesteps):
        x = other.step(velocity(x, randn(*SHAPE, seed=3), step), t, x, return_dict=False)[0]
    assert other.asced_report[0].status == "corrected"
    assert scheduler.asced_report.rows == ()
    other.configure(enabled=False)
    assert scheduler.asced_report.rows == ()
    assert scheduler.__dict__.keys() - other.__dict__.keys() == {"_asced"}


def test_settings_that_are_none_are_refused_and_nothing_changes():
    with pytest.raises(TypeError, match="did you mean 'mad_scale'"):
        AscedFlowMatchEuler(asced={"mad_scal": 2.0})
    scheduler = AscedFlowMatchEuler(asced={"mad_scale": 2.0})
    for settings, error in (({"mode": "slow"}, ValueError), ({"grid": [0, 4]}, ValueError), ({"seed": "x"}, TypeError)):
        with pytest.raises(error):
            scheduler.configure(**settings)
        assert scheduler.__dict__["_asced"].config.mad_scale == 2.0
    run = scheduler.__dict__["_asced"]
    with pytest.raises(ValueError, match="axes"):
        scheduler.configure(axes="zz")
    assert scheduler.__dict__["_asced"] is run  # with its report
    scheduler.configure(mad_scale=4.0)
    scheduler.reset()
    assert scheduler.__dict__["_asced"].config.mad_scale == 2.0
    assert scheduler.get_trajectory() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_packed_rows_have_the_bits_of_the_packed_solver(dtype, packed, wide):
    """Observed rows of other schedules, sizes and places; latents of the batch's dtype, and narrower ones."""
    tables = [FlowMatchEulerDiscreteScheduler(shift=shift) for shift in (1.0, 3.0)]
    for table, steps in zip(tables, (12, 20), strict=True):
        table.set_timesteps(steps)
    sigmas = [tables[0].sigmas, tables[1].sigmas, tables[1].sigmas]
    batch = RowBatch(3, SHAPE, dtype=torch.float32 if wide else dtype)
    observing = AscedConfig(correct=False)
    rows = sglang.join(batch, sigmas[0].tolist(), seed=1, config=observing)
    rows += sglang.join(batch, sigmas[1].tolist(), seed=2, rows=2, config=observing, first=4)
    shape = (3, 256, 4) if packed else (3, *SHAPE)
    x, grid = randn(*shape, seed=1).to(dtype), (16, 16) if packed else None
    expected = x.clone()
    for step in range(12):
        m = randn(*shape, seed=step).to(dtype)
        expected = server_stubs.packed_euler(sigmas, (step, step + 4, step + 4), m, expected)
        x = sglang.step_rows(batch, rows, m, x, grid=grid)
        assert x.dtype == dtype
        assert same_bits(x, expected)
    assert batch.report(rows[1]).dynamics


def test_packed_rows_are_corrected_as_alone():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    sigmas, config = scheduler.sigmas.tolist(), AscedConfig(**RULES)
    batch = RowBatch(4, SHAPE)
    rows = sglang.join(batch, sigmas, seed=5, rows=2, config=config)
    rows += sglang.join(batch, sigmas, seed=6, enabled=False)
    x = randn(3, *SHAPE, seed=1)
    states = [x.clone()[i : i + 1] for i in range(3)]
    means = [randn(*SHAPE, seed=10 + i) for i in range(3)]
    for step in range(STEPS):
        m = torch.cat([velocity(x[i : i + 1], means[i], step) for i in range(3)])
        x = sglang.step_rows(batch, rows, m, x)
    for i, (seed, draw) in enumerate(((5, 0), (5, 1), (6, 0))):
        engine = Engine()
        row = engine.add(sglang.flow_schedule(tuple(sigmas)), config, seed=seed, draw=draw, enabled=i < 2)
        for step in range(STEPS):
            m = velocity(states[i], means[i], step)
            engine.observe(states[i], m)
            states[i] = server_stubs.packed_euler([scheduler.sigmas], [step], m, states[i])
            engine.correct_(states[i])
        assert same_bits(x[i : i + 1], states[i])
        report = batch.remove(rows[i])
        assert report.status == engine.remove(row).status == ("corrected" if i < 2 else "off")


def test_a_request_that_does_not_fit_adds_no_row():
    batch = RowBatch(2, SHAPE)
    with pytest.raises(ValueError, match="3 rows"):
        sglang.join(batch, [1.0, 0.5, 0.0], seed=1, rows=3)
    with pytest.raises(ValueError, match="at least two"):
        sglang.join(batch, [1.0], seed=1)
    assert batch.rows == ()
    rows = sglang.join(batch, [1.0, 0.5, 0.0], seed=1)
    with pytest.raises(ValueError, match="packed latents of a grid"):
        sglang.step_rows(batch, rows, torch.zeros(1, 255, 4), torch.zeros(1, 255, 4), grid=(16, 16))
    assert batch.step_of(rows[0]) == 0
