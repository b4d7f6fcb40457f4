# SPDX-License-Identifier: MIT
"""Rows that agree run as one; what comes out is what they give one by one (the reference backend's rows)."""

import copy
from types import SimpleNamespace

import pytest
import torch
from layouts import DEVICES, same_bits
from null_tables import calibrated

import ascedfast
from ascedfast import AscedConfig, process
from ascedfast._backend import BackendError
from ascedfast.engine import Engine
from ascedfast.lockstep import HostKeys, LockstepPlan
from ascedfast.schedule import Schedule

pytestmark = [pytest.mark.gpu] if DEVICES == ["cuda"] else []
DEVICE = DEVICES[0]
STEPS, T_C = 10, 6
SHAPE = (3, 4, 20, 20)
SCHEDULE = Schedule.from_levels([process.flow(1 - k / STEPS) for k in range(STEPS)])


def settings(**changes):
    return AscedConfig.fast(t_c=T_C, window_start=2, reference_size=None, min_area=3, core_width=2, grow=1, **changes)


def outputs(shape=SHAPE):
    g = torch.Generator().manual_seed(5)
    quiet = torch.randn(shape, generator=g)
    for k in range(STEPS):
        m = quiet + 0.01 * torch.randn(shape, generator=g)
        m[..., 4:12, 6:14] += 0.4 * (-1) ** k
        yield m.to(DEVICE)


def loop(config, rows_of=lambda k: None, between=lambda run, k: None, shape=SHAPE, seeds=(1, 2, 3)):
    run = ascedfast.begin(SCHEDULE, config, seeds=list(seeds))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    for k, m in enumerate(outputs(shape)):
        run.observe(x, m, rows_of(k))
        x = x - m / STEPS
        run.correct_(x, rows_of(k))
        between(run, k)
    return x, run


def same_reports(ours, theirs):
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        assert (a.status, a.severity, a.executed, a.seed) == (b.status, b.severity, b.executed, b.seed)
        assert torch.equal(a.mask_grown, b.mask_grown)
        assert [k for k, _ in a.dynamics] == [k for k, _ in b.dynamics]
        assert all(same_bits(p, q) for (_, p), (_, q) in zip(a.dynamics, b.dynamics, strict=True))


def test_equals_the_rows_one_by_one():
    x, run = loop(settings(backend="triton"))
    expected, other = loop(settings(backend="reference"))
    assert run._lockstep is not None
    assert other._lockstep is None
    assert same_bits(x, expected)
    assert run.report.rows[0].status == "corrected"
    same_reports(run.report, other.report)


def test_calibrated_rows_equal_the_rows_one_by_one():
    """Severities differ in their last bits (test_temporal_severity); no location here lies so near to a threshold."""
    x, run = loop(calibrated(SCHEDULE, T_C, SHAPE[2:], above=0.55, backend="triton"))
    expected, other = loop(calibrated(SCHEDULE, T_C, SHAPE[2:], above=0.55, backend="reference"))
    assert run._lockstep is not None
    assert other._lockstep is None
    assert same_bits(x, expected)
    for ours, theirs in zip(run.report.rows, other.report.rows, strict=True):
        assert ours.status == theirs.status == "corrected"
        assert 0 < int(ours.mask.sum()) < ours.mask.numel() / 2
        assert torch.equal(ours.mask_grown, theirs.mask_grown)
        assert ours.severity == pytest.approx(theirs.severity, rel=1e-5)
        assert ours.p_value == pytest.approx(theirs.p_value, rel=1e-4)
        assert all(same_bits(p, q) for (_, p), (_, q) in zip(ours.dynamics, theirs.dynamics, strict=True))


def test_calibrated_rows_of_another_grid_say_why_they_are_left_alone():
    x, run = loop(calibrated(SCHEDULE, T_C, (12, 12), backend="triton"))
    assert run._lockstep is None
    assert {row.status for row in run.report.rows} == {"unavailable"}
    assert "calibrate at its size" in run.report.rows[0].plan.reason
    assert same_bits(x, loop(settings(correct=False))[0])


@pytest.mark.parametrize("named_from", [0, 3, T_C - 1, T_C, T_C + 1])
def test_naming_rows_ends_it_and_changes_nothing(named_from):
    x, run = loop(settings(backend="triton"), rows_of=lambda k: [0, 1, 2] if k >= named_from else None)
    expected, other = loop(settings(backend="reference"))
    assert run._lockstep is None
    assert same_bits(x, expected)
    same_reports(run.report, other.report)


def test_a_report_in_the_middle_changes_nothing():
    seen = []
    x, run = loop(settings(backend="triton"), between=lambda run, k: seen.append(run.report.rows[0]))
    expected, other = loop(settings(backend="reference"))
    assert run._lockstep is not None
    assert same_bits(x, expected)
    assert [row.status for row in seen] == ["pending"] * (T_C - 1) + ["corrected"] * (STEPS - T_C + 1)
    assert [len(row.dynamics) for row in seen[:T_C]] == [0, 0, 0, 1, 2, 3]
    same_reports(run.report, other.report)


def test_switching_a_row_off_leaves_the_others():
    def off(run, k):
        if k == 4:
            run.set_enabled(1, False)

    x, run = loop(settings(backend="triton"), between=off)
    expected, other = loop(settings(backend="reference"), between=off)
    assert same_bits(x, expected)
    assert [row.status for row in run.report.rows] == [row.status for row in other.report.rows]


def test_another_dtype_in_the_middle_ends_it():
    run = ascedfast.begin(SCHEDULE, settings(backend="triton"), seeds=[1, 2, 3])
    x = torch.randn(SHAPE).to(DEVICE)
    for k, m in enumerate(outputs()):
        run.observe(x, m.half() if k == 4 else m)
        x = x - m / STEPS
        run.correct_(x)
    assert run._lockstep is None
    assert run.report.rows[0].status == "corrected"


def test_runs_with_one_plan_have_keys_of_their_own():
    kept = []

    def plan(rows, x, m):
        kept[:] = kept or [LockstepPlan(rows[0], len(rows), x, m, lambda t: t)]
        return kept[0]

    x, m = torch.zeros(SHAPE, device=DEVICE), torch.ones(SHAPE, device=DEVICE)
    runs = [Engine(plan) for _ in range(2)]
    for seed, run in enumerate(runs):
        for draw in range(SHAPE[0]):
            run.add(SCHEDULE, settings(backend="triton"), seed=2**64 - 1 - seed, draw=draw)
        run.observe(x, m)
    runs[0].reseed([4, 5, 6])
    draws = list(range(SHAPE[0]))
    assert runs[0]._lockstep._keys.tolist() == [[4, 5, 6], [T_C] * 3, draws]
    assert runs[1]._lockstep._keys.tolist() == [[-2] * 3, [T_C] * 3, draws]


def test_copied_keys_take_seeds_of_their_own():
    keys = HostKeys(2, T_C)
    twin = copy.deepcopy(keys)
    for one, seeds in ((keys, (1, 2)), (twin, (3, 4))):
        rows = [SimpleNamespace(seed=seed, draw=7) for seed in seeds]
        assert one.upload(rows, torch.device(DEVICE)).tolist() == [list(seeds), [T_C] * 2, [7, 7]]


def test_one_step_too_many_is_refused():
    _, run = loop(settings(backend="triton"))
    with pytest.raises(ValueError, match="every step"):
        run.observe(torch.zeros(SHAPE, device=DEVICE), torch.zeros(SHAPE, device=DEVICE))


def test_warming_up_leaves_no_trace():
    run = ascedfast.begin(SCHEDULE, settings(backend="triton"), seeds=[1, 2, 3])
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    before = x.clone()
    run.warm_up(x, x.clone())
    assert same_bits(x, before)
    for m in outputs():
        run.observe(x, m)
        x = x - m / STEPS
        run.correct_(x)
    expected, other = loop(settings(backend="reference"))
    assert same_bits(x, expected)
    same_reports(run.report, other.report)


def test_warming_up_rows_that_differ_is_refused():
    run = ascedfast.begin(SCHEDULE, settings(backend="triton"), seeds=[1, 2])
    run.add(SCHEDULE, settings(backend="triton", mad_scale=4.0), seed=3)
    with pytest.raises(ValueError, match="cannot be captured"):
        run.warm_up(torch.zeros(SHAPE, device=DEVICE), torch.zeros(SHAPE, device=DEVICE))


def test_new_seeds_draw_other_noise():
    x, _ = loop(settings(backend="triton"))
    reseeded, run = loop(
        settings(backend="triton"), between=lambda run, k: run.reseed([7, 2, 3]) if k == T_C - 2 else None
    )
    expected, _ = loop(settings(backend="reference"), seeds=(7, 2, 3))
    assert same_bits(reseeded, expected)
    assert not torch.equal(reseeded[0], x[0])
    assert run.report.rows[0].seed == 7
    with pytest.raises(ValueError, match="one a row"):
        run.reseed([1])


def test_nothing_of_the_caller_is_kept_or_written():
    run = ascedfast.begin(SCHEDULE, settings(backend="triton"), seeds=[1, 2, 3])
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    for m in outputs():
        before = x.clone(), m.clone()
        run.observe(x, m)
        assert same_bits(x, before[0])
        assert same_bits(m, before[1])
        following = x - m / STEPS
        m.fill_(float("nan"))  # a CUDA graph would write its next output here
        x.fill_(float("nan"))
        x, address = following, following.data_ptr()
        run.correct_(x)
        assert x.data_ptr() == address
    expected, _ = loop(settings(backend="reference"))
    assert same_bits(x, expected)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (torch.zeros(3, 8, 16, 16), ValueError),
        (torch.zeros(2, 4, 16, 16), ValueError),
        (torch.zeros(3, 4, 16, 15), ValueError),
        (torch.zeros(3, 4, 16 * 16), ValueError),
        (torch.zeros(3, 4, 16, 16, dtype=torch.int64), TypeError),
        (torch.zeros(3, 4, 16, 16, dtype=torch.float64), BackendError),
        (torch.zeros(3, 4, 16, 16, requires_grad=True), ValueError),
    ],
    ids=lambda value: f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else value.__name__,
)
def test_what_is_no_state_of_the_rows_is_not_corrected(bad, error):
    levels = [process.eps((1 - s) ** 0.5, s**0.5) for s in (0.98 - 0.08 * k for k in range(12))]
    run = ascedfast.begin(Schedule.from_levels(levels), AscedConfig(backend="triton", t_c=6), seeds=[1, 2, 3])
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 16, 16, generator=g).to(DEVICES[0])
    for _ in range(6):
        run.observe(x, torch.randn(3, 4, 16, 16, generator=g).to(DEVICES[0]))
    with pytest.raises(error):
        run.correct_(bad.detach().to(DEVICES[0]).requires_grad_(bad.requires_grad))
    assert run.due
    run.correct_(x)
    assert not run.due
