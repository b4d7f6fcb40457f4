# SPDX-License-Identifier: MIT
"""Rows do not know of each other: what the engine does to a request is the same alone and in any batch."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from row_loop import Request, flow_schedule, mixed, same, serve

from ascedfast import AscedConfig, Engine

NAN, INF = float("nan"), float("inf")


WINDOW = range(5, 10)  # of Request()'s schedule: the steps that are watched


class Alone(dict):
    """Results of the requests served one by one, by seed."""

    def __repr__(self):  # hypothesis prints it
        return "Alone()"


@pytest.fixture(scope="module")
def alone():
    return Alone({request.seed: serve([request])[0] for request in mixed()})


def test_the_mixture_shows_every_status(alone):
    statuses = [result.report.status for result in alone.values()]
    assert set(statuses) == {"corrected", "off", "observed", "clean", "not finite", "unavailable"}
    assert statuses.count("corrected") >= 8


def assert_as_alone(requests, alone):
    for request, result in zip(requests, serve(requests), strict=True):
        same(result, alone[request.seed])


def test_all_in_one_batch(alone):
    assert_as_alone(mixed(), alone)


def test_reversed(alone):
    assert_as_alone(mixed()[::-1], alone)


def test_every_pair(alone):
    for left, right in itertools.permutations(range(0, len(mixed()), 3), 2):
        requests = mixed()
        assert_as_alone([requests[left], requests[right]], alone)


@settings(max_examples=25)
@given(
    chosen=st.lists(st.tuples(st.integers(0, 17), st.integers(0, 12)), min_size=1, max_size=6, unique_by=lambda p: p[0])
)
def test_joining_and_leaving(alone, chosen):
    pool = mixed()
    requests = []
    for index, tick in chosen:
        pool[index].joins = tick
        requests.append(pool[index])
    assert_as_alone(requests, alone)


def test_the_order_of_the_rows_may_change_from_step_to_step():
    requests = [Request(seed=seed) for seed in (1, 2, 3)]
    engine = Engine()
    rows = [engine.add(request.schedule, seed=request.seed) for request in requests]
    states = [request.start() for request in requests]
    for step in range(len(requests[0].schedule)):
        order = [(i + step) % 3 for i in range(3)][:: 1 if step % 2 else -1]
        pairs = [requests[i].model(states[i], step) for i in order]
        ids = [rows[i] for i in order]
        engine.observe(torch.cat([states[i] for i in order]), torch.cat([m for m, _ in pairs]), ids)
        x = torch.cat([after for _, after in pairs])
        engine.correct_(x, ids)
        for position, i in enumerate(order):
            states[i] = x[position : position + 1].clone()
    for request, row, x in zip(requests, rows, states, strict=True):
        alone = serve([request])[0]
        assert torch.equal(x, alone.x)
        assert engine.remove(row).severity == alone.report.severity


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    requests = [Request(seed=seed, dtype=dtype) for seed in (1, 2, 3)]
    for request, together in zip(requests, serve(requests), strict=True):
        assert together.report.status == "corrected"
        assert together.x.dtype == dtype
        same(together, serve([request])[0])


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("make", [AscedConfig.fast, AscedConfig.official, AscedConfig.paper])
def test_a_row_that_is_not_finite_is_flagged_alone(value, make):
    config = make() if make is not AscedConfig.official else make(min_area=5, blur_sigma=0.5)
    spoiled = Request(seed=1, config=config, spoil=(9, value))
    others = [Request(seed=2, config=config), Request(seed=3, config=config)]
    results = serve([others[0], spoiled, others[1]])
    assert [result.report.status for result in results] == ["corrected", "not finite", "corrected"]
    bad = results[1].report
    assert bad.severity == "unavailable"
    assert "NaN" in bad.reason
    assert not bad.mask.any()
    assert not bad.mask_grown.any()
    clean = serve([Request(seed=1, config=AscedConfig(correct=False))])[0]
    assert torch.equal(results[1].x, clean.x)  # its state is left as the solver made it
    for request, result in zip(others, (results[0], results[2]), strict=True):
        same(result, serve([request])[0])


@pytest.mark.parametrize("gap", WINDOW)
def test_a_row_that_was_off_in_its_window_is_left_alone(gap):
    """Whatever the step that was missed, also where another row with the same settings missed none."""
    whole, gapped = Request(seed=1), Request(seed=2, toggles={gap: False, gap + 1: True})
    untouched = serve([Request(seed=2, enabled=False)])[0].x
    for requests in ([whole, gapped], [gapped, whole], [gapped]):
        results = dict(zip([r.seed for r in requests], serve(requests), strict=True))
        report = results[2].report
        assert report.status == "unavailable"
        assert "off" in report.reason
        assert report.severity == "unavailable"
        assert torch.equal(results[2].x, untouched)
        if 1 in results:
            same(results[1], serve([Request(seed=1)])[0])


def test_a_row_that_was_off_before_its_window_is_corrected():
    base = serve([Request(seed=2)])[0]
    assert (base.report.plan.start, base.report.plan.t_c) == (WINDOW.start, WINDOW.stop)
    toggled = serve([Request(seed=2, toggles={0: False, 3: True})])[0]
    same(toggled, base)


def test_skipped_steps_count_as_gaps():
    engine = Engine()
    schedule = flow_schedule(20)
    whole, gapped = (engine.add(schedule, seed=seed) for seed in (1, 2))
    plan = engine.report[0].plan
    for step in range(plan.t_c):
        x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        engine.observe(x, x, [whole])
        if step == plan.start:
            engine.skip([gapped])
        else:
            engine.observe(x, x, [gapped])
    x = torch.zeros(2, 3, 16, 16)
    engine.correct_(x)
    statuses = [row.status for row in engine.report]
    assert statuses[1] == "unavailable"
    assert statuses[0] != "unavailable"
    assert not x[1].any()


def test_a_row_that_was_off_at_t_c_says_so():
    request = Request(seed=2)
    engine = Engine()
    row = engine.add(request.schedule, request.config, seed=2)
    x = request.start()
    for step in range(len(request.schedule)):
        m, x = request.model(x, step)
        engine.observe(x, m)
        engine.set_enabled(row, step != WINDOW.stop - 1)
        engine.correct_(x)
        engine.set_enabled(row, True)
    report = engine.report[0]
    assert report.status == "unavailable"
    assert "off" in report.reason
    assert report.severity == "unavailable"


def test_tables_of_rows_that_left_are_not_taken_for_others():
    """A new schedule may lie at the address of one that is gone; its coefficients are its own all the same."""
    engine = Engine()
    x, m = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    for steps in range(4, 24):
        schedule = flow_schedule(steps)
        row = engine.add(schedule, seed=0)
        engine.observe(x, m, [row])
        got = engine.observe(x, m, [row])
        level = schedule.before[1]
        assert torch.equal(got, torch.full_like(x, level.a) + torch.full_like(x, level.b) * m), steps
        engine.remove(row)
        del schedule


def test_rows_of_one_seed_are_told_apart_by_the_draw():
    first, again, other = serve([Request(seed=3), Request(seed=3), Request(seed=3, draw=1)])
    same(first, again)
    inside = first.report.mask_grown.expand_as(first.x[0])
    assert inside.any()
    assert not torch.equal(first.x[0][inside], other.x[0][inside])
    assert torch.equal(first.x[0][~inside], other.x[0][~inside])


def test_the_seed_decides_the_noise_and_nothing_else():
    one = serve([Request(seed=3)])[0]
    engine_seed = Request(seed=3)
    engine_seed.start, engine_seed.model = Request(seed=3).start, Request(seed=3).model
    engine_seed.seed = 4
    other = serve([engine_seed])[0]
    assert torch.equal(one.report.mask, other.report.mask)
    inside = one.report.mask_grown.expand_as(one.x[0])
    assert not torch.equal(one.x[0][inside], other.x[0][inside])
    assert torch.equal(one.x[0][~inside], other.x[0][~inside])


def test_ids_are_not_used_again():
    engine = Engine()
    schedule = flow_schedule(20)
    rows = [engine.add(schedule, seed=0) for _ in range(3)]
    engine.remove(rows[1])
    assert engine.add(schedule, seed=0) not in rows
    assert engine.rows == (rows[0], rows[2], 3)
    with pytest.raises(ValueError, match="no row 1"):
        engine.step_of(rows[1])


def test_no_rows_is_a_batch_too():
    engine = Engine()
    x = torch.zeros(0, 3, 8, 8)
    assert engine.observe(x, x).shape == x.shape
    assert engine.correct_(x) is None
    assert not engine.wants_step()
    engine.skip()
    assert len(engine.report) == 0
