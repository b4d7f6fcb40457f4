# SPDX-License-Identifier: MIT
"""What is protected is never re-noised, by whichever path; nothing else changes."""

import copy

import numpy as np
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from null_tables import calibrated
from row_loop import GRID, Request, bits, flow_schedule
from torch.utils._python_dispatch import TorchDispatchMode

import ascedfast
from ascedfast import AscedConfig, Engine, asced, enable_asced
from ascedfast.calibration.judge import judge
from ascedfast.protected import keep_of_all

SEEDS = [1, 2, 3]
STEPS = 20


def keep_left(columns, rows=1):
    keep = torch.zeros(rows, 1, *GRID, dtype=torch.bool)
    keep[..., :columns] = True
    return keep


def run_rows(keep_mask, *, one_by_one=False, **settings):
    """States of all steps of three requests, their report, and the mask that the correction returned."""
    schedule = flow_schedule(STEPS)
    requests = [Request(schedule=schedule, seed=seed) for seed in SEEDS]
    engine = ascedfast.begin(schedule, AscedConfig(**settings), seeds=SEEDS, keep_mask=keep_mask)
    x, states, found = torch.cat([request.start() for request in requests]), [], None
    for k in range(STEPS):
        pairs = [request.model(x[i : i + 1], k) for i, request in enumerate(requests)]
        m, following = (torch.cat(part) for part in zip(*pairs, strict=True))
        engine.observe(x, m, rows=engine.rows if one_by_one else None)
        mask = engine.correct_(following)
        found = mask if mask is not None else found
        x = following
        states.append(x.clone())
    return states, engine.report, found


@pytest.fixture(scope="module")
def free():
    return run_rows(None, backend="reference")


PATHS = {
    "rows": {"backend": "reference"},
    "lockstep": {"backend": "triton"},
    "rows by Triton": {"backend": "triton", "one_by_one": True},
}


@pytest.mark.parametrize("path", PATHS)
def test_only_what_is_free_changes(free, path):
    keep = keep_left(8)
    states, report, mask = run_rows(keep, **PATHS[path])
    stock, _, _ = run_rows(None, correct=False, backend="reference")
    t_c = report[0].plan.t_c
    assert torch.equal(mask, report.masks_grown)
    assert not (mask & keep).any()
    assert not (report.masks & keep).any()
    moved = (bits(states[t_c - 1]) != bits(stock[t_c - 1])).any(1, keepdim=True)
    assert torch.equal(moved, mask)
    assert mask.flatten(1).any(1).all()
    assert (free[1].masks & keep).any()  # else the mask that protects would be of no use
    assert torch.equal(report.masks, free[1].masks & ~keep)
    assert torch.equal(report[0].z, free[1][0].z)  # statistics see everything
    others, _, _ = run_rows(keep, backend="reference")
    assert all(torch.equal(one, other) for one, other in zip(states, others, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_all_of_a_region_protected_is_a_clean_run(free, path):
    keep = free[1].masks
    states, report, mask = run_rows(keep, **PATHS[path])
    stock, _, _ = run_rows(None, correct=False, backend="reference")
    assert [row.status for row in report] == ["clean"] * 3
    assert report.severity == [0.0] * 3
    assert not mask.any()  # nothing grows from within
    assert all(torch.equal(one, other) for one, other in zip(states, stock, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_a_mask_a_row(free, path):
    keep = torch.cat([keep_left(0), keep_left(GRID[1]), keep_left(8)])
    states, report, _ = run_rows(keep, **PATHS[path])
    assert [row.status for row in report] == ["corrected", "clean", "corrected"]
    assert torch.equal(states[-1][0], free[0][-1][0])
    assert torch.equal(report.masks[2], free[1].masks[2] & ~keep[2])


def test_axes_of_one_fit_any_grid(free):
    keep = torch.zeros(1, 1, 1, GRID[1], dtype=torch.bool)
    keep[..., :8] = True
    states, _, _ = run_rows(keep, backend="reference")
    assert torch.equal(states[-1], run_rows(keep_left(8), backend="reference")[0][-1])


def test_rows_of_an_engine_with_and_without():
    engine, schedule = Engine(), flow_schedule(STEPS)
    engine.add(schedule, seed=1, keep_mask=keep_left(8))
    engine.add(schedule, seed=2)
    x, m = torch.zeros(2, 3, *GRID), torch.zeros(2, 3, *GRID)
    engine.observe(x, m)
    with pytest.raises(ValueError, match="grid 24 x 20, the latents' is 12 x 20"):
        engine_with(keep_left(8)).observe(x[:1, :, :12], m[:1, :, :12])


def engine_with(keep):
    return ascedfast.begin(flow_schedule(STEPS), seeds=[1], keep_mask=keep)


WRONG = [
    (torch.zeros(1, 1, *GRID), TypeError, "bool"),
    (torch.full((1, 1, *GRID), float("nan")), TypeError, "bool"),
    (torch.full((1, 1, *GRID), float("inf")), TypeError, "bool"),
    (torch.zeros(1, 1, *GRID, dtype=torch.uint8), TypeError, r"mask\.bool"),
    ([[True]], TypeError, "bool"),
    (np.zeros((1, 1, *GRID), dtype=bool), TypeError, r"numpy\.ndarray: give torch\.from_numpy\(mask\)"),
    (torch.zeros(GRID, dtype=torch.bool), ValueError, "must be"),
    (torch.zeros(1, 3, *GRID, dtype=torch.bool), ValueError, "must be"),
    (torch.zeros(0, 1, *GRID, dtype=torch.bool), ValueError, "must be"),
]


@pytest.mark.parametrize(("keep", "error", "words"), WRONG)
def test_wrong_masks(keep, error, words):
    with pytest.raises(error, match=words):
        engine_with(keep)
    scheduler = tiny.SCHEDULERS["flow"]()
    with pytest.raises(error, match=words):
        enable_asced(scheduler, keep_mask=keep)
    assert not ascedfast.is_asced_enabled(scheduler)


def test_a_mask_for_another_number_of_rows():
    with pytest.raises(ValueError, match="2 rows, the run has 3"):
        run_rows(keep_left(8, rows=2))


SENSITIVE = AscedConfig(mad_scale=1.0, min_area=0, core_width=1)


def test_the_first_frame_of_a_video():
    pipe, kwargs = tiny.wan()
    keep = torch.zeros(1, 1, 3, 1, 1, dtype=torch.bool)
    keep[:, :, 0] = True
    stock = tiny.run(pipe, kwargs)
    with asced(pipe, SENSITIVE) as handle:
        tiny.run(pipe, kwargs)
        assert handle.report.masks_grown[:, :, 0].any()
    with asced(pipe, SENSITIVE, keep_mask=keep) as handle:
        assert not torch.equal(tiny.run(pipe, kwargs), stock)
        assert handle.report[0].status == "corrected"
        assert not handle.report.masks_grown[:, :, 0].any()
        assert handle.report.masks_grown[:, :, 1:].any()


def test_packed_and_doubled_rows():
    pipe, kwargs = tiny.flux()
    keep = torch.ones(1, 1, 16, 1, dtype=torch.bool)
    keep[:, :, 8:] = False
    with asced(pipe, SENSITIVE, keep_mask=keep) as handle:
        tiny.run(pipe, kwargs)
        assert handle.report.masks_grown.any()
        assert not handle.report.masks_grown[:, :, :8].any()
    pipe, kwargs = tiny.dit()
    keep = torch.tensor([True, False]).view(2, 1, 1, 1)
    with asced(pipe, SENSITIVE, keep_mask=keep) as handle:
        tiny.run(pipe, kwargs)
        assert [row.status for row in handle.report] == ["clean", "corrected"] * 2


def test_a_mask_that_does_not_fit_stops_the_first_step():
    pipe, kwargs = tiny.flux()
    words = "grid 8 x 8, the latents' is 16 x 8"
    with asced(pipe, keep_mask=torch.ones(1, 1, 8, 8, dtype=torch.bool)), pytest.raises(ValueError, match=words):
        tiny.run(pipe, kwargs)


def test_copies_protect_the_same():
    pipe, kwargs = tiny.flux()
    stock = tiny.run(pipe, kwargs)
    enable_asced(pipe, SENSITIVE, keep_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool))
    twin = copy.deepcopy(pipe)
    assert torch.equal(tiny.run(twin, kwargs), stock)
    assert twin.scheduler.__dict__["_asced"].report[0].status == "clean"


@pytest.mark.parametrize("name", ["flow", "dpm2", "unipc2-flow"])
def test_fused_steps(name):
    """Where a GPU, or the interpreter in its place, does the solver's steps too."""
    states = {}
    for backend in ("reference", "triton"):
        scheduler = tiny.SCHEDULERS[name]()
        keep = torch.zeros(1, 1, 32, 24, dtype=torch.bool)
        keep[..., 8:, :] = True
        form = "linear" if backend == "triton" else "parity"
        handle = enable_asced(scheduler, AscedConfig(backend=backend, form=form), seeds=[5, 6], keep_mask=keep)
        states[backend] = tiny.sample(scheduler, tiny.randn(2, 3, 32, 24, seed=4), tiny.spot((32, 24), 2))
        assert "corrected" in [row.status for row in handle.report]
        assert not (handle.report.masks_grown & keep).any()
    assert torch.allclose(states["reference"][-1], states["triton"][-1], atol=1e-3)


class Operations(TorchDispatchMode):
    """Counts the operations that compare whole tensors on the host, and the copies that the host waits for."""

    def __init__(self):
        super().__init__()
        self.equal = self.waiting = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.equal += func.overloadpacket.__name__ == "equal"
        self.waiting += func.overloadpacket.__name__ == "_to_copy" and not (kwargs or {}).get("non_blocking")
        return func(*args, **(kwargs or {}))


def flow_run(x, **options):
    """A loop whose output does not depend on the state: (the handle, whole-tensor comparisons before each step)."""
    scheduler, compared = FlowMatchEulerDiscreteScheduler(), []
    handle = enable_asced(scheduler, AscedConfig(mad_scale=1.0, min_area=0, core_width=1), seeds=5, **options)
    scheduler.set_timesteps(STEPS)
    steady = tiny.randn(*x.shape, seed=8).to(x.device)
    with Operations() as seen:
        for k, t in enumerate(scheduler.timesteps):
            compared.append(seen.equal)
            x = scheduler.step(steady * (1 if k % 2 else -1), t, x)[0]
    return handle, compared


def test_a_mask_of_half_the_rows_is_for_rows_that_stand_twice():
    """As DiT steps them. Told by the first step's state, in the only look at values there is."""
    keep = torch.tensor([True, False]).view(2, 1, 1, 1)
    twice = tiny.randn(2, 3, *GRID, seed=4).repeat(2, 1, 1, 1)
    handle, compared = flow_run(twice, keep_mask=keep)
    assert [row.status for row in handle.report] == ["clean", "corrected"] * 2
    assert compared == [0] + [1] * (STEPS - 1)
    assert flow_run(twice, keep_mask=keep[:1])[1] == flow_run(twice)[1] == [0] * STEPS
    words = "2 rows, the run has 4.*one a row, or one for all"
    with pytest.raises(ValueError, match=words):
        flow_run(tiny.randn(4, 3, *GRID, seed=4), keep_mask=keep)


def test_rows_are_counted_where_they_lie():
    """Whichever axis the user says is theirs."""
    keep = torch.tensor([True, False]).view(2, 1, 1, 1)
    handle, _ = flow_run(tiny.randn(*GRID, 2, 3, seed=4), axes="HWBC", keep_mask=keep)
    assert [row.status for row in handle.report] == ["clean", "corrected"]


@pytest.mark.parametrize("path", PATHS)
def test_all_protected_is_clean_of_severity_0(free, path):
    """Nothing was judged, so nothing is abnormal: the stock's bits."""
    states, report, mask = run_rows(torch.ones(1, 1, 1, 1, dtype=torch.bool), **PATHS[path])
    stock, _, _ = run_rows(None, correct=False, backend="reference")
    assert [(row.status, row.severity, row.area, row.regions) for row in report] == [("clean", 0.0, 0.0, ())] * 3
    assert not mask.any()
    assert all(torch.equal(one, other) for one, other in zip(states, stock, strict=True))


@pytest.mark.parametrize("path", ["rows", "lockstep"])
def test_regions_are_what_is_outside(free, path):
    keep = keep_left(8)
    _, report, _ = run_rows(keep, **PATHS[path])
    for row, other in zip(report, free[1], strict=True):
        kept = [region for region in row.regions if region.kept]
        assert row.severity == pytest.approx(sum(region.severity for region in kept))
        assert row.mask.sum() == sum(region.area for region in kept)
        assert all(region.box[1] >= 8 for region in row.regions)
        assert len(row.regions) <= len(other.regions)
    assert any(region.box[1] < 8 for row in free[1] for region in row.regions)


@pytest.mark.parametrize("path", ["rows", "lockstep"])
def test_p_values_are_those_of_the_locations_outside(path):
    schedule = flow_schedule(STEPS)
    config = calibrated(schedule, 9, GRID, above=0.02, spread=0.1)
    settings = {name: getattr(config, name) for name in ("mode", "table", "t_c", "reference_size", "grow")}
    _, free, _ = run_rows(None, **settings, **PATHS[path])
    z = torch.stack([row.z for row in free])
    keep = z[:1, None] > z[0].median()
    _, report, _ = run_rows(keep, **settings, **PATHS[path])
    null = config.table.at(free[0].logsnr[: free[0].plan.t_c])
    expected = [null.p_value(float(one[~keep[0, 0]].max())) for one in z]
    assert [row.p_value for row in report] == expected
    assert report[0].p_value > 10 * free[0].p_value
    _, report, _ = run_rows(torch.ones(1, 1, 1, 1, dtype=torch.bool), **settings, **PATHS[path])
    assert [row.p_value for row in report] == [1.0] * 3


def test_a_run_of_another_mode_is_judged_outside_too():
    schedule = flow_schedule(STEPS)
    table = calibrated(schedule, 9, GRID, above=0.02, spread=0.1).table
    _, free, _ = run_rows(None, record="run", t_c=9, backend="reference")
    severity = judge(free[0], table).severity
    keep = (severity > severity.median())[None, None]
    _, report, _ = run_rows(keep, record="run", t_c=9, backend="reference")
    judged = judge(report[0], table)
    assert torch.equal(judged.severity, severity)
    assert judged.p_value == judged.null.p_value(float(severity[~keep[0, 0]].max()))
    assert judged.p_value > 10 * judge(free[0], table).p_value


def test_a_mask_on_the_host_is_taken_to_the_device_without_waiting():
    """The "meta" device stands in for an accelerator."""
    meta = torch.device("meta")
    with Operations() as seen:
        found = keep_of_all([keep_left(8)[0, 0], None], GRID, meta)
    assert (found.shape, found.dtype, found.device) == ((2, *GRID), torch.bool, meta)
    assert seen.waiting == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("mask", "latents"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_mask_on_another_device(mask, latents):
    keep = keep_left(8)
    x = tiny.randn(2, 3, *GRID, seed=4).to(latents)
    handle, _ = flow_run(x, keep_mask=keep.to(mask))
    same, _ = flow_run(x, keep_mask=keep.to(latents))
    assert torch.equal(handle.report.masks_grown, same.report.masks_grown)
    assert not (handle.report.masks_grown.cpu() & keep).any()
