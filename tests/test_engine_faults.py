# SPDX-License-Identifier: MIT
"""What goes wrong in or around the engine leaves its rows and their reports truthful."""

import pytest
import torch

import ascedfast
from ascedfast import AscedConfig, Schedule, _backend, ops, process
from ascedfast._backend import BackendError

STEPS, T_C, SIDE = 12, 6, 32
CONFIG = {"t_c": T_C, "window_start": 1}


def schedule(clip=None):
    levels = [process.eps((1 - s) ** 0.5, s**0.5) for s in (0.98 - 0.08 * k for k in range(STEPS))]
    return Schedule.from_levels(levels, clip=clip)


def drive(run, steps, *, jump=True, x=None):
    """States whose predictions jump in a square at step 4, until after ``steps``; returns the last state."""
    g = torch.Generator().manual_seed(0)
    rows = len(run.rows)
    x = torch.zeros(rows, 3, SIDE, SIDE) if x is None else x
    for k in range(steps):
        x0 = 0.02 * torch.randn(rows, 3, SIDE, SIDE, generator=g)
        if k >= 4 and jump:
            x0[:, :, 8:20, 8:20] += 0.8
        run.observe(x, x0=x0)
        if k + 1 != T_C:
            run.correct_(x)
    return x


def test_a_failing_write_can_be_tried_again(monkeypatch):
    run = ascedfast.begin(schedule(), AscedConfig.fast(**CONFIG), seeds=[1, 2])
    x = drive(run, T_C)
    before, real = x.clone(), ops.renoise_

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(ops, "renoise_", fail)
    with pytest.raises(torch.OutOfMemoryError):
        run.correct_(x)
    assert torch.equal(x, before)
    assert [row.status for row in run.report] == ["pending"] * 2
    monkeypatch.setattr(ops, "renoise_", real)
    assert run.correct_(x).any()
    assert [row.status for row in run.report] == ["corrected"] * 2


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_a_backend_that_cannot_serve_a_run_is_refused_at_once(backend, monkeypatch):
    monkeypatch.setattr(_backend, "_TRITON_OPS", ("renoise_",))
    engine = ascedfast.Engine()
    with pytest.raises(BackendError, match="whole run"):
        engine.add(schedule(), AscedConfig.fast(backend=backend), seed=1)
    assert engine.rows == ()


def test_a_run_does_not_need_the_op_that_judges_it(monkeypatch):
    others = [op for op in _backend.OPS if op != "temporal_scores"]
    assert len(others) == len(_backend.OPS) - 1
    monkeypatch.setattr(_backend, "_TRITON_OPS", others)
    ascedfast.Engine().add(schedule(), AscedConfig.fast(backend="triton"), seed=1)


def test_infinity_is_seen_through_the_clip():
    run = ascedfast.begin(schedule(clip=1.0), AscedConfig.fast(**CONFIG), seeds=[1, 2])
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, SIDE, SIDE, generator=g)
    for k in range(T_C):
        m = torch.randn(2, 3, SIDE, SIDE, generator=g)
        if k == 3:
            m[0, 0, 0, 0] = torch.inf
        run.observe(x, m)
        run.correct_(x)
    assert run.report[0].status == "not finite"
    assert run.report[1].status != "not finite"


def test_nan_after_the_correction_does_not_deny_it():
    run = ascedfast.begin(schedule(), AscedConfig.fast(**CONFIG, record="run"), seeds=[1])
    x = drive(run, T_C)
    run.correct_(x)
    run.observe(x, x0=torch.full_like(x, torch.nan))
    row = run.report[0]
    assert row.status == "corrected"
    assert row.severity > 0
    assert not bool(row.finite_after)


def test_paper_mode_watches_the_score_before_clipping():
    """w(t)*s_t = -(sigma/alpha)*eps whatever the sampler clips: masks with and without a clip agree."""
    masks = []
    for clip in (None, 0.05):
        run = ascedfast.begin(schedule(clip), AscedConfig.paper(**CONFIG), seeds=[1])
        g = torch.Generator().manual_seed(3)
        x = torch.randn(1, 3, SIDE, SIDE, generator=g)
        for _ in range(T_C):
            run.observe(x, torch.randn(1, 3, SIDE, SIDE, generator=g))
        run.correct_(x.clone())
        masks.append(run.report[0].mask)
    assert masks[0].any()
    assert torch.equal(*masks)


def test_a_state_that_wants_gradients_is_refused():
    run = ascedfast.begin(schedule(), AscedConfig.fast(**CONFIG), seeds=[1])
    x = drive(run, T_C)
    tracked = (x.requires_grad_() * 1.0).clone()
    with pytest.raises(ValueError, match="gradients"):
        run.correct_(tracked)
    assert run.correct_(tracked.detach()).any()
    watching = ascedfast.begin(schedule(), AscedConfig.fast(**CONFIG, correct=False), seeds=[1])
    drive(watching, T_C)
    watching.correct_(tracked)  # writes nothing
    assert watching.report[0].status == "observed"


def test_a_row_that_leaves_takes_only_its_own_memory():
    engine = ascedfast.begin(schedule(), AscedConfig.fast(**CONFIG), seeds=list(range(8)))
    engine.correct_(drive(engine, T_C))
    left = engine.remove(engine.rows[0])
    kept = [left.mask, left.z, left.labels, *(d for _, d in left.dynamics)]
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in kept)


def test_abnormal_shares_respect_the_floor():
    shares = []
    for floor in (0.0, 5.0):
        run = ascedfast.begin(schedule(), AscedConfig.fast(**CONFIG, mad_floor=floor), seeds=[1])
        drive(run, T_C)
        shares.append(dict(run.report[0].abnormal)[4])
    assert shares[0] > 0.05
    assert shares[1] == 0


def test_what_is_no_schedule_is_refused():
    with pytest.raises(TypeError, match="from_levels"):
        ascedfast.begin([1, 2, 3], seeds=[0])


def test_regions_of_many():
    """One pass over the grid whatever their number: sums, boxes and peaks against one look at each label."""
    run = ascedfast.begin(schedule(), AscedConfig.paper(**CONFIG), seeds=[1])
    g = torch.Generator().manual_seed(5)
    x = torch.randn(1, 3, SIDE, SIDE, generator=g)
    for _ in range(T_C):
        run.observe(x, torch.randn(1, 3, SIDE, SIDE, generator=g))
    run.correct_(x)
    row = run.report[0]
    assert len(row.regions) > 20
    for region in row.regions:
        inside = row.labels == region.label
        where = inside.nonzero()
        assert region.area == int(inside.sum())
        assert region.box == (*where.amin(0).tolist(), *(where.amax(0) + 1).tolist())
        assert region.peak_z == pytest.approx(float(row.z[inside].max()))
        assert region.severity == pytest.approx(float(row.z[inside].double().sum()) / SIDE**2)
        assert region.kept == bool(row.mask[inside].all())
    assert sum(region.severity for region in row.regions if region.kept) == pytest.approx(row.severity)


def test_regions_beyond_the_bound_are_told(monkeypatch):
    real = ops.label_regions

    def tangled(mask, **rules):
        labels, kept, overflow = real(mask, **rules)
        overflow[0] = True
        kept[0] = False
        return labels, kept, overflow

    monkeypatch.setattr(ops, "label_regions", tangled)
    run = ascedfast.begin(schedule(), AscedConfig.fast(**CONFIG), seeds=[1, 2])
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, SIDE, SIDE, generator=g)
    for _ in range(T_C):
        run.observe(x, torch.randn(2, 3, SIDE, SIDE, generator=g))
        run.correct_(x)
    assert run.report[0].status == run.report[0].severity == "unavailable"
    assert "bound" in run.report[0].reason
    assert run.report[1].status == "corrected"
