# SPDX-License-Identifier: MIT
"""What cannot work is refused with an error that says why; nothing has changed then, and a correct run follows."""

import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from row_loop import Request, flow_schedule, serve

from ascedfast import AscedConfig, Engine, begin

STEPS, SHAPE = 20, (2, 3, 12, 10)
GRID = (32, 24)
X = torch.zeros(*SHAPE)


def snapshot(engine):
    """All that an engine holds, in values."""
    return [
        (row.id, row.step, row.seed, row.enabled, row.plan, len(row.bank), len(row.dynamics), row.finite is None)
        for row in engine._rows.values()
    ]


def finishes(engine):
    """The engine still runs to its end, and corrects what there is."""
    t_c = engine.report[0].plan.t_c
    spot = torch.zeros(1, 1, *SHAPE[2:])
    spot[..., 3:7, 3:7] = 1
    while engine.step_of(0) < t_c:
        k = engine.step_of(0)
        x = 0.1 * tiny.randn(*SHAPE, seed=k)
        engine.observe(x, x0=0.1 * tiny.randn(*SHAPE, seed=99) + spot * (k % 2))
        mask = engine.correct_(x)
    return mask is not None and bool((mask & spot.bool()).any())


OBSERVE = {
    "rank 3": (ValueError, "x must be", lambda: (X[0], X[0])),
    "rank 6": (ValueError, "x must be", lambda: (X[None, None], X[None, None])),
    "too few rows": (ValueError, "2 rows", lambda: (X[:1], X[:1])),
    "too many rows": (ValueError, "2 rows", lambda: (torch.zeros(3, 3, 12, 10),) * 2),
    "integer state": (TypeError, "float dtype", lambda: (X.long(), X)),
    "complex state": (TypeError, "float dtype", lambda: (X.cfloat(), X)),
    "integer output": (TypeError, "float dtype", lambda: (X, X.int())),
    "other shape": (ValueError, "shape", lambda: (X, X[..., :-1])),
    "broadcast shape": (ValueError, "shape", lambda: (X, X[:, :1])),
    "more output rows": (ValueError, "shape", lambda: (X, torch.zeros(4, *SHAPE[1:]))),
    "other device": (ValueError, "meta", lambda: (X, X.to("meta"))),
    "list": (TypeError, "tensor", lambda: (X.tolist(), X.tolist())),
    "list output": (TypeError, "tensor", lambda: (X, X.tolist())),
    "no output": (TypeError, "either", lambda: (X,)),
    "empty grid": (ValueError, "empty axis", lambda: (X[..., :0], X[..., :0])),
    "no channels": (ValueError, "empty axis", lambda: (X[:, :0], X[:, :0])),
}


@pytest.mark.parametrize("clips", [(None, None), (None, 1.0)], ids=["one clip", "mixed clips"])
@pytest.mark.parametrize("when", [0, 6])
@pytest.mark.parametrize("name", OBSERVE)
def test_observe_refuses(name, when, clips):
    error, words, arguments = OBSERVE[name]
    engine = Engine()
    for row, clip in enumerate(clips):
        engine.add(flow_schedule(STEPS, clip=clip), seed=row)
    for k in range(when):
        engine.observe(X, 0.1 * tiny.randn(*SHAPE, seed=k))
    before = snapshot(engine)
    with pytest.raises(error, match=words):
        engine.observe(*arguments())
    assert snapshot(engine) == before
    assert finishes(engine)


def test_observe_takes_the_output_or_the_prediction():
    engine = begin(flow_schedule(STEPS), seeds=[1, 2])
    with pytest.raises(TypeError, match="either"):
        engine.observe(X, X, x0=X)


@pytest.mark.parametrize(
    ("x", "words"),
    [(X[:, :2], "row 0"), (X[..., :-1], "row 0"), (X.to("meta"), "meta")],
    ids=["channels", "width", "device"],
)
def test_shape_and_device_stay_through_a_run(x, words):
    engine = begin(flow_schedule(STEPS), AscedConfig(record="run"), seeds=[1, 2])
    engine.observe(X, X)
    before = snapshot(engine)
    for call in (lambda: engine.observe(x, x), lambda: engine.correct_(x)):
        with pytest.raises(ValueError, match=words):
            call()
    assert snapshot(engine) == before
    assert finishes(engine)


CORRECT = {
    "rank": (ValueError, lambda x: x[0]),
    "rows": (ValueError, lambda x: x[:1]),
    "dtype": (TypeError, lambda x: x.long()),
    "device": (ValueError, lambda x: x.to("meta")),
    "list": (TypeError, lambda x: x.tolist()),
    "grid": (ValueError, lambda x: x[..., 1:]),
}


@pytest.mark.parametrize("name", CORRECT)
def test_correct_refuses_and_may_be_called_again(name):
    error, change = CORRECT[name]
    results = []
    for refused in (False, True):
        engine = begin(flow_schedule(STEPS), seeds=[1, 2])
        t_c = engine.report[0].plan.t_c
        spot = torch.zeros(1, 1, *SHAPE[2:])
        spot[..., 3:7, 3:7] = 1
        for k in range(t_c):
            engine.observe(X, x0=spot * (k % 2) + 0.1 * tiny.randn(*SHAPE, seed=99))
        x = tiny.randn(*SHAPE, seed=5)
        if refused:
            before, kept = snapshot(engine), x.clone()
            with pytest.raises(error):
                engine.correct_(change(x))
            assert torch.equal(x, kept)
            assert snapshot(engine) == before
        assert engine.correct_(x).any()
        results.append(x)
    assert torch.equal(*results)


def test_past_the_end_of_the_schedule():
    engine = begin(flow_schedule(6), seeds=[1, 2])
    for _ in range(6):
        engine.observe(X, X)
    before = snapshot(engine)
    with pytest.raises(ValueError, match="every step"):
        engine.observe(X, X)
    assert snapshot(engine) == before


@pytest.mark.parametrize("rows", [[0, 0], [0, 7], [-1, 0]])
def test_rows_that_are_not_there_or_twice(rows):
    engine = begin(flow_schedule(STEPS), seeds=[1, 2])
    before = snapshot(engine)
    for call in (engine.observe, lambda x, m, r: engine.correct_(x, r), lambda x, m, r: engine.skip(r)):
        with pytest.raises(ValueError, match="row"):
            call(X, X, rows)
    for call in (engine.remove, engine.step_of, lambda row: engine.set_enabled(row, False)):
        with pytest.raises(ValueError, match="no row 9"):
            call(9)
    assert snapshot(engine) == before
    assert finishes(engine)


ADD = {
    "config": (TypeError, {"config": {"mad_scale": 3}}),
    "seed past 64 bits": (ValueError, {"seed": 2**64}),
    "float seed": (TypeError, {"seed": 1.5}),
    "bool seed": (TypeError, {"seed": True}),
    "negative draw": (ValueError, {"draw": -1}),
    "large draw": (ValueError, {"draw": 65536}),
    "negative first": (ValueError, {"first": -1}),
    "first past the end": (ValueError, {"first": STEPS}),
    "t_c past the end": (ValueError, {"config": AscedConfig(t_c=STEPS)}),
    "empty window": (ValueError, {"config": AscedConfig(t_c=5, window_start=0.5)}),
}


@pytest.mark.parametrize("name", ADD)
def test_add_refuses_and_adds_nothing(name):
    error, changes = ADD[name]
    engine = begin(flow_schedule(STEPS), seeds=[1, 2])
    before = snapshot(engine)
    with pytest.raises(error):
        engine.add(flow_schedule(STEPS), **({"seed": 1} | changes))
    assert snapshot(engine) == before
    assert finishes(engine)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"seeds": [1, 2], "rows": 3}, ValueError),
        ({"seeds": 1, "rows": -1}, ValueError),
        ({"rows": -2}, ValueError),
        ({"seeds": [1, 2.0]}, TypeError),
        ({"seeds": "ab"}, TypeError),
        ({"seeds": np.array([1, 2])}, TypeError),
        ({"seeds": [2**64]}, ValueError),
    ],
    ids=str,
)
def test_begin_refuses(options, error):
    with pytest.raises(error):
        begin(flow_schedule(STEPS), **options)


@pytest.mark.parametrize("caches", ["no", 1, None, [True]], ids=str)
def test_caches_is_true_or_false(caches):
    with pytest.raises(TypeError, match="caches must be True or False"):
        begin(flow_schedule(STEPS), seeds=1, caches=caches)


def test_a_huge_prediction_is_not_finite_only_where_it_overflows():
    results = serve([Request(seed=1, spoil=(8, 1e30)), Request(seed=2)])
    assert results[1].report.status == "corrected"
    assert results[0].report.status in ("corrected", "clean")
    assert results[0].x.isfinite().all()


def test_the_core_needs_no_diffusers():
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import ascedfast; ascedfast.begin; ascedfast.AscedConfig()\n"
        "try: ascedfast.enable_asced\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ascedfast[diffusers]" in done.stdout
