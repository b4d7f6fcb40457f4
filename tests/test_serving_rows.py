# SPDX-License-Identifier: MIT
"""Rows for servers give each request the bits of an engine of its own."""

import pytest
import torch
from batch_loop import SHAPE, add, batch_for, by, serve_batch
from row_loop import CHANNELS, GRID, Request, eps_schedule, flow_schedule, mixed, same, serve

from ascedfast import AscedConfig, BatchFullError, RowBatch
from ascedfast._backend import BackendError

BACKENDS = ["reference", "triton"]


def requests():
    """Those of the engine's own test that do without ``set_enabled``."""
    return [request for request in mixed() if not request.toggles]


@pytest.fixture(scope="module")
def alone():
    """By seed: each request in an engine of its own, by the reference."""
    return {request.seed: serve([by(request, "reference")])[0] for request in requests()}


def assert_as_alone(pool, alone, **options):
    for request, result in zip(pool, serve_batch(pool, **options), strict=True):
        same(result, alone[request.seed])
        corrected = result.report.status in ("corrected", "clean", "observed", "not finite")
        assert result.masks == [result.report.plan.t_c] * corrected


@pytest.mark.parametrize(("backend", "order"), [("reference", None), ("reference", 0), ("triton", 1)])
def test_a_mixture_in_one_batch(alone, backend, order):
    pool = [by(request, backend) for request in requests() if request.config.backend in ("auto", backend)]
    assert len({result.report.status for result in alone.values()}) == 6
    assert_as_alone(pool, alone, order=order, backend=backend)


@pytest.mark.parametrize(("backend", "rows"), [("reference", 1), ("reference", 5), ("triton", 3)])
def test_joining_and_leaving_a_small_batch(alone, backend, rows):
    """Rows wait for a place that another row leaves, and what that row left there does not show."""
    pool = [by(request, backend) for request in requests() if request.config.backend in ("auto", backend)]
    for tick, request in enumerate(reversed(pool)):
        request.joins = tick % 7
    assert_as_alone(pool, alone, order=rows, max_rows=rows, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cancelled_request_leaves_no_trace(alone, backend):
    pool = [by(request, backend) for request in requests()[: 6 if backend == "reference" else 3]]
    batch = batch_for(pool, backend=backend, max_rows=6)
    strangers = [add(batch, by(Request(seed=100 + k), backend)) for k in range(3)]
    for step in range(7):
        x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(step))
        batch.observe(strangers, x, 2 * x)
        batch.correct_(strangers, x)
    batch.select([strangers[1]])
    assert batch.rows == (strangers[1],)
    assert batch.free == 5
    with pytest.raises(ValueError, match=f"no row {strangers[0]}"):
        batch.observe(strangers, x, x)
    batch.select([])
    assert batch.rows == ()
    assert_as_alone(pool, alone, batch=batch)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_report_in_the_middle_is_a_snapshot(alone, backend):
    request = by(Request(seed=1), backend)
    batch = batch_for([request], backend=backend)
    row, x = add(batch, request), request.start()
    seen = []
    for step in range(batch.steps_of(row)):
        m, after = request.model(x, step)
        batch.observe([row], x, m)
        x = after
        batch.correct_([row], x)
        seen.append(batch.report(row))
    t_c = seen[0].plan.t_c
    assert [report.executed for report in seen] == list(range(1, len(seen) + 1))
    assert [report.status for report in seen] == ["pending"] * (t_c - 1) + ["corrected"] * (len(seen) - t_c + 1)
    assert [len(report.dynamics) for report in seen[:t_c]] == [max(0, k - seen[0].plan.start) for k in range(t_c)]
    assert torch.equal(seen[t_c].mask, batch.remove(row).mask)


def test_float64_goes_to_the_reference():
    RowBatch(1, SHAPE, dtype=torch.float64)
    with pytest.raises(BackendError, match="float64"):
        RowBatch(1, SHAPE, dtype=torch.float64, backend="triton")


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [*(("reference", dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)), ("triton", torch.bfloat16)],
)
def test_other_dtypes(backend, dtype):
    pool = [by(Request(seed=seed, dtype=dtype), backend) for seed in (1, 2, 3)]
    for request, result in zip(pool, serve_batch(pool, backend=backend, order=3), strict=True):
        same(result, serve([by(Request(seed=request.seed, dtype=dtype), "reference")])[0])
        assert result.report.status == "corrected"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [flow_schedule, eps_schedule])
def test_the_step_is_the_solvers_own(backend, make):
    """One call does what observing and stepping do: x0_hat and what is left, put together at the next level."""
    schedules = [make(12), make(20)]
    config = AscedConfig(backend=backend)
    batch = RowBatch(2, SHAPE, backend=backend)
    rows = [batch.add(config, seed, schedule) for seed, schedule in enumerate(schedules)]
    apart = RowBatch(2, SHAPE, backend=backend)
    others = [apart.add(config, seed, schedule) for seed, schedule in enumerate(schedules)]
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    exact, y = x.double(), x.clone()
    for step in range(12):
        m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(step))
        for i, schedule in enumerate(schedules):
            level, (alpha, sigma) = schedule.before[step], schedule.after[step]
            x0 = level.a * exact[i] + level.b * m[i].double()
            exact[i] = alpha * x0 + sigma * (exact[i] - level.alpha * x0) / level.sigma
        apart.observe(others, y, m)
        assert batch.step_(rows, x, m) is x
        torch.testing.assert_close(x.double(), exact, rtol=2e-5, atol=2e-5 * float(exact.abs().max()))
        due = batch.correct_(rows, x)
        y.copy_(x)
        exact = x.double()
        assert apart.correct_(others, y) == due
    for one, other in zip(rows, others, strict=True):
        a, b = batch.report(one), apart.report(other)
        assert a.executed == 12
        assert all(torch.equal(p, q) for (_, p), (_, q) in zip(a.dynamics, b.dynamics, strict=True))


def test_updates_of_ones_own():
    batch = RowBatch(1, (1, 4, 4))
    row = batch.add(None, 0, flow_schedule(4), updates=[(2.0, 3.0)] * 4)
    x = torch.ones(1, 1, 4, 4)
    batch.step_([row], x, torch.full_like(x, 5.0))
    assert torch.equal(x, torch.full_like(x, 17.0))
    with pytest.raises(ValueError, match="one a step"):
        batch.add(None, 0, flow_schedule(4), updates=[(2.0, 3.0)] * 3)


@pytest.mark.parametrize("updates", [[(1, 2, 3)] * 4, [(None, 1.0)] * 4, [1.0] * 4, 4])
def test_updates_that_are_no_pairs_add_nothing(updates):
    batch = RowBatch(1, (1, 4, 4))
    with pytest.raises(ValueError, match="pairs of numbers"):
        batch.add(None, 0, flow_schedule(4), updates=updates)
    assert batch.rows == ()


def test_a_state_that_cannot_be_written_moves_no_row():
    batch = RowBatch(1, (1, 4, 4))
    row = batch.add(None, 0, flow_schedule(4))
    with torch.inference_mode():
        x = torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match="inference_mode"):
        batch.step_([row], x, x.clone())
    assert batch.step_of(row) == 0
    with torch.inference_mode():
        batch.step_([row], x, x.clone())
    assert batch.step_of(row) == 1


def test_steps_beyond_all_bounds_are_refused():
    with pytest.raises(ValueError, match="raise max_steps"):
        RowBatch(1, SHAPE, schedule_of=flow_schedule).add(None, 0, 10**30)


def test_a_row_whose_schedule_clips_has_no_step():
    batch = RowBatch(2, SHAPE)
    row = batch.add(None, 0, eps_schedule(20, clip=1.0))
    x = torch.ones(1, *SHAPE)
    with pytest.raises(ValueError, match="no linear update"):
        batch.step_([row], x, x)
    assert batch.step_of(row) == 0
    batch.observe([row], x, x)


def test_a_number_of_steps_asks_for_the_schedule_once():
    asked = []

    def schedule_of(steps):
        asked.append(steps)
        return flow_schedule(steps)

    batch = RowBatch(4, SHAPE, schedule_of=schedule_of, max_steps=50)
    rows = [batch.add(None, seed, steps) for seed, steps in enumerate((20, 8, 20))]
    assert asked == [20, 8]
    assert [batch.steps_of(row) for row in rows] == [20, 8, 20]
    with pytest.raises(ValueError, match="max_steps"):
        batch.add(None, 0, 51)
    assert asked == [20, 8]
    with pytest.raises(ValueError, match="schedule_of"):
        RowBatch(1, SHAPE).add(None, 0, 20)


def test_a_full_batch_takes_no_row():
    batch = RowBatch(2, SHAPE)
    rows = [batch.add(None, seed, flow_schedule(20)) for seed in (1, 2)]
    with pytest.raises(BatchFullError, match="all 2 rows"):
        batch.add(None, 3, flow_schedule(20))
    batch.remove(rows[0])
    assert batch.add(None, 3, flow_schedule(20)) not in rows
    assert batch.free == 0


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (({}, 0, 20), {}, TypeError, "AscedConfig"),
        ((None, 1 << 64, 20), {}, ValueError, "64 bits"),
        ((None, 1.5, 20), {}, TypeError, "int"),
        ((None, 0, 0), {}, ValueError, "steps"),
        ((None, 0, True), {}, ValueError, "steps"),
        ((None, 0, "20"), {}, ValueError, "steps"),
        ((None, 0, 20), {"first": 20}, ValueError, "first"),
        ((None, 0, 20), {"draw": 1 << 16}, ValueError, "draw"),
        ((None, 0, 20), {"keep_mask": torch.ones(1, 1, 3, 3, dtype=torch.bool)}, ValueError, "keep_mask"),
        ((AscedConfig.official(), 0, 20), {}, ValueError, "modes"),
        ((AscedConfig(t_c=30), 0, 20), {}, ValueError, "past the end"),
        ((AscedConfig(record="run"), 0, 40), {}, ValueError, "max_maps"),
        ((AscedConfig(t_c=39, window_start=1), 0, 40), {}, ValueError, "max_maps"),
    ],
)
def test_what_cannot_be_added_is_told(arguments, options, error, message):
    batch = RowBatch(2, SHAPE, schedule_of=flow_schedule)
    with pytest.raises(error, match=message):
        batch.add(*arguments, **options)
    assert batch.rows == ()
    assert batch.add(None, 0, 20) == 0


X = torch.zeros(2, CHANNELS, *GRID)


@pytest.mark.parametrize(
    ("rows", "x", "m", "error", "message"),
    [
        ((0, 7), X, X, ValueError, "no row 7"),
        ((0, 0), X, X, ValueError, "twice"),
        ((0,), X, X, ValueError, "for these 1 rows"),
        ((0, 1), X[:, :2], X[:, :2], ValueError, "x must be"),
        ((0, 1), X, X[..., :-1], ValueError, "m must be"),
        ((0, 1), X[..., None], X, ValueError, "x must be"),
        ((0, 1), X.half(), X, TypeError, "float32"),
        ((0, 1), X, X.long(), TypeError, "float dtype"),
        ((0, 1), X, X.double(), TypeError, "goes with"),
        ((0, 1), X.to("meta"), X, ValueError, "on meta"),
        ((0, 1), X, X.to("meta"), ValueError, "on meta"),
        ((0, 1), X.numpy(), X, TypeError, "tensor"),
    ],
)
def test_what_is_no_step_of_the_rows_moves_none(rows, x, m, error, message):
    batch = RowBatch(2, SHAPE)
    both = [batch.add(None, seed, flow_schedule(20)) for seed in (0, 1)]
    for step in (batch.observe, batch.step_):
        with pytest.raises(error, match=message):
            step(rows, x, m)
    assert [batch.step_of(row) for row in both] == [0, 0]
    batch.observe(both, X, X)


@pytest.mark.parametrize(
    ("x", "message"),
    [(X.clone().requires_grad_(), "gradients"), (X[:1].expand(2, -1, -1, -1), "expanded")],
)
def test_what_cannot_be_written_is_refused(x, message):
    batch = RowBatch(2, SHAPE)
    rows = [batch.add(None, seed, flow_schedule(20)) for seed in (0, 1)]
    for write in (lambda: batch.step_(rows, x, X), lambda: batch.correct_(rows, x)):
        with pytest.raises(ValueError, match=message):
            write()
    assert batch.step_of(rows[0]) == 0


def test_a_finished_row_takes_no_step():
    batch = RowBatch(2, SHAPE)
    short, long = batch.add(None, 0, flow_schedule(1)), batch.add(None, 0, flow_schedule(20))
    batch.observe([short, long], X, X)
    assert batch.is_finished(short)
    with pytest.raises(ValueError, match=f"row {short} has executed all its 1 steps"):
        batch.observe([long, short], X, X)
    assert batch.step_of(long) == 1


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"shape": (3, 8)}, {"shape": (3, 0, 8)}, {"modes": ("slow",)}])
def test_what_is_no_batch_is_told(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RowBatch(**{"max_rows": 2, "shape": SHAPE, **options})


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_is_a_batch_too(backend):
    batch = RowBatch(2, SHAPE, backend=backend)
    batch.observe([], X[:0], X[:0])
    assert batch.step_([], X[:0], X[:0]).shape[0] == 0
    assert batch.correct_([], X[:0].clone()) == ()
