# SPDX-License-Identifier: MIT
"""A batch's rows by Triton: what they launch, and that it is the reference's bits whatever the tensors look like."""

from types import SimpleNamespace

import pytest
import torch
from layouts import DEVICES, channels_last, same_bits, sliced
from null_tables import calibrated

from ascedfast import AscedConfig, Engine, RowBatch, Schedule, process
from ascedfast._backend import BackendError
from ascedfast.row_sequences import RowSequences

DEVICE = DEVICES[0]
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
STEPS, T_C = 7, 4  # three maps in the window
SCHEDULE = Schedule.from_levels([process.flow(1 - k / STEPS) for k in range(STEPS)])
SHAPE = (3, 12, 13)
VIDEO = (1, 2, 12, 13)


def settings(**changes):
    changes = {"window_start": 0, "reference_size": None, "min_area": 3, "core_width": 2, "grow": 1} | changes
    return AscedConfig.fast(t_c=T_C, **changes)


def outputs(rows, shape=SHAPE, seed=5):
    g = torch.Generator().manual_seed(seed)
    quiet = torch.randn(rows, *shape, generator=g)
    for k in range(STEPS):
        m = quiet + 0.01 * torch.randn(rows, *shape, generator=g)
        m[..., 4:8, 5:9] += 0.4 * (-1) ** k
        yield m.to(DEVICE)


def start(rows, shape=SHAPE):
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(6)).to(DEVICE)


def run(batch, config, rows=3, shape=SHAPE, like=lambda x: x, keep=None):
    """States and reports of rows that run together."""
    ids = [batch.add(config, seed, SCHEDULE, keep_mask=keep) for seed in range(rows)]
    x = like(start(rows, shape))
    for m in outputs(rows, shape):
        batch.observe(ids, x, like(m))
        x = like((x - m / STEPS).contiguous())
        batch.correct_(ids, x)
    return x, [batch.remove(row) for row in ids]


def alone(config, rows=3, shape=SHAPE, keep=None):
    """The same rows, each in an engine of its own."""
    states, reports = [], []
    for seed in range(rows):
        engine = Engine()
        row = engine.add(SCHEDULE, config, seed=seed, keep_mask=keep)
        x = start(rows, shape)[seed : seed + 1]
        for m in outputs(rows, shape):
            engine.observe(x, m[seed : seed + 1])
            x = x - m[seed : seed + 1] / STEPS
            engine.correct_(x)
        states.append(x)
        reports.append(engine.remove(row))
    return torch.cat(states), reports


def assert_same(ours, theirs, status="corrected"):
    assert same_bits(ours[0], theirs[0])
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert a.status == b.status == status
        assert (a.severity, a.plan, a.executed) == (b.severity, b.plan, b.executed)
        for name in ("mask", "mask_grown", "labels", "z"):
            assert same_bits(getattr(a, name), getattr(b, name)), name
        assert all(same_bits(p, q) for (_, p), (_, q) in zip(a.dynamics, b.dynamics, strict=True))


def batch_of(rows=3, shape=SHAPE, **options):
    return RowBatch(rows, shape, DEVICE, backend="triton", max_maps=6, **options)


@pytest.mark.parametrize(
    ("shape", "like"),
    [((18, 12, 13), channels_last), (VIDEO, sliced), ((17, 12, 13), sliced)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_any_layout(shape, like):
    def lay(x):
        return like(x.shape, torch.Generator(), x.dtype).to(DEVICE).copy_(x)

    ours = run(batch_of(shape=shape), settings(backend="triton"), shape=shape, like=lay)
    assert_same(ours, alone(settings(backend="reference"), shape=shape))


def test_a_model_output_of_another_type():
    batch = batch_of()
    ids = [batch.add(settings(backend="triton"), seed, SCHEDULE) for seed in range(3)]
    engine = Engine()
    rows = [engine.add(SCHEDULE, settings(backend="reference"), seed=seed) for seed in range(3)]
    x = start(3)
    y = x.clone()
    for m in outputs(3):
        batch.observe(ids, x, m.bfloat16())
        engine.observe(y, m.bfloat16(), rows)
        x, y = x - m / STEPS, y - m / STEPS
        batch.correct_(ids, x)
        engine.correct_(y, rows)
    assert same_bits(x, y)
    assert batch.remove(ids[1]).status == "corrected"


def test_protected_locations():
    keep = torch.zeros(1, 1, *SHAPE[1:], dtype=torch.bool)
    keep[..., 6:] = True
    ours = run(batch_of(), settings(backend="triton"), keep=keep)
    assert_same(ours, alone(settings(backend="reference"), keep=keep))
    assert not ours[1][0].mask_grown[..., 6:].any()


def test_protected_rows_beside_others():
    keep = torch.zeros(1, 1, *SHAPE[1:], dtype=torch.bool)
    keep[..., 6:] = True
    batch = batch_of()
    ids = [
        batch.add(settings(backend="triton"), seed, SCHEDULE, keep_mask=keep if seed == 1 else None) for seed in (0, 1)
    ]
    x = start(3)[:2]
    for m in outputs(3):
        batch.observe(ids, x, m[:2])
        x = x - m[:2] / STEPS
        batch.correct_(ids, x)
    for seed, mask in enumerate((None, keep)):
        expected, reports = alone(settings(backend="reference"), keep=mask)
        assert same_bits(x[seed], expected[seed])
        assert torch.equal(batch.report(ids[seed]).mask_grown, reports[seed].mask_grown)


def test_calibrated_rows():
    """By Triton alone, too: severities differ from the reference's in their last bits (test_temporal_severity)."""
    config = calibrated(SCHEDULE, T_C, SHAPE[1:], above=0.3, backend="triton")
    assert_same(run(batch_of(), config), alone(config))


def test_calibrated_rows_of_another_grid_say_why_they_are_left_alone():
    config = calibrated(SCHEDULE, T_C, (5, 5), backend="triton")
    x, reports = run(batch_of(), config)
    assert {report.status for report in reports} == {"unavailable"}
    assert "calibrate at its size" in reports[0].reason
    assert len(reports[0].dynamics) == T_C - 1
    assert same_bits(x, alone(settings(correct=False, backend="reference"))[0])


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        (SHAPE, {"x0_noise": 0.1}),
        (SHAPE, "calibrated"),
        (SHAPE, {"correct": False}),
        (VIDEO, {}),
        ((1, 66, 64), {}),  # medians by csrc
    ],
    ids=str,
)
def test_at_once_by_csrc(by_csrc, monkeypatch, shape, change):
    """The first time by the ops, from then on by sequences of launches: the same bits, also in other slots."""
    config = calibrated(SCHEDULE, T_C, shape[1:], above=0.3) if change == "calibrated" else settings(**change)
    batch, calls = batch_of(rows=4, shape=shape), []
    by_ops = run(batch, config, shape=shape)
    at_once = RowSequences.__call__
    monkeypatch.setattr(RowSequences, "__call__", lambda *args: calls.append(1) or at_once(*args))
    batch.add(config, 9, SCHEDULE)  # takes the slot that was first before
    assert_same(run(batch, config, shape=shape), by_ops, "observed" if change == {"correct": False} else "corrected")
    assert len(calls) == 1


def test_warming_up_leaves_no_trace(by_csrc, monkeypatch):
    calls, at_once = [], RowSequences.__call__
    monkeypatch.setattr(RowSequences, "__call__", lambda *args: calls.append(1) or at_once(*args))
    batch = batch_of()
    batch.warm_up(settings(), SCHEDULE)
    assert batch.rows == ()
    assert len(calls) == 3  # lists of one, two and four
    ours = run(batch, settings())
    assert len(calls) == 4
    assert_same(ours, run(batch_of(), settings()))
    for seed in range(3):
        batch.add(settings(), seed, SCHEDULE)
    with pytest.raises(ValueError, match="all 3 rows"):
        batch.warm_up(settings(), SCHEDULE)


def test_a_replayed_step_moves_the_rows_it_is_told():
    """A captured launch is the same at every step, and of other rows: where they stand is read on the device."""
    batch = batch_of(rows=4)
    config = settings(backend="triton")
    x, m = torch.empty(2, *SHAPE, device=DEVICE), torch.empty(2, *SHAPE, device=DEVICE)
    graph = SimpleNamespace(replay=lambda: batch._work._step(x, m, True))
    states = start(4)
    ids = [batch.add(config, seed, SCHEDULE) for seed in range(4)]
    for pair in ((0, 1), (2, 3)):
        for out in outputs(4):
            x.copy_(states[list(pair)])
            m.copy_(out[list(pair)])
            rows = [ids[i] for i in pair]
            batch.replay(graph, rows)
            batch.correct_(rows, x)
            states[list(pair)] = x
        with pytest.raises(ValueError, match="has executed all"):
            batch.replay(graph, rows)
    other = batch_of(rows=4)
    expected, ids_ = start(4), [other.add(config, seed, SCHEDULE) for seed in range(4)]
    for out in outputs(4):
        other.step_(ids_, expected, out)
        other.correct_(ids_, expected)
    assert_same((states, map(batch.remove, ids)), (expected, map(other.remove, ids_)))
    with pytest.raises(ValueError, match="no row"):
        batch.replay(graph, ids[:2])


def test_nothing_is_copied_while_the_same_rows_go_on(monkeypatch):
    batch = batch_of()
    ids = [batch.add(settings(backend="triton"), seed, SCHEDULE) for seed in range(3)]
    x, given = start(3), list(outputs(3))
    batch.observe(ids, x, given[0])
    batch.correct_(ids, x)
    copied = []
    for name in ("copy_", "to", "clone", "fill_", "cpu", "item"):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *_, name=name, **__: copied.append(name))
    for m in given[1 : T_C - 1]:
        batch.observe(ids, x, m)
        batch.correct_(ids, x)
    monkeypatch.undo()
    assert copied == []


@pytest.mark.parametrize("modes", [("fast",), ("official",), ("paper",)])
def test_what_modes_cost(modes):
    """Frames of all channels lie there only where rows may need them."""
    slots = batch_of(modes=modes)._work._slots
    assert (slots.grey.numel() > 0, slots.scores.numel() > 0) == ("official" in modes, "paper" in modes)


def test_a_configuration_for_another_backend_is_refused():
    batch = batch_of()
    with pytest.raises(BackendError, match="run by Triton"):
        batch.add(settings(backend="reference"), 0, SCHEDULE)
    assert batch.rows == ()
    assert batch.free == 3
