# SPDX-License-Identifier: MIT
"""Rows for servers on a GPU: no sync, no memory asked for, a step in a CUDA graph, the bits of an engine alone."""

import pytest
import torch
from layouts import same_bits

from ascedfast import AscedConfig, Engine, RowBatch, Schedule, _backend, process

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SHAPE, STEPS = (3, 64, 64), 25
CONFIG = AscedConfig.fast(min_area=0, core_width=1, mad_scale=2.0)


def flow_schedule(steps):
    return Schedule.from_levels([process.flow(1 - k / steps) for k in range(steps)])


def model(x, seed, step):
    """A location-wise denoiser that is in motion in one corner; of one row."""
    g = torch.Generator().manual_seed(seed)
    mean = 0.5 * torch.randn(SHAPE, generator=g).cuda()
    mean[:, 8:24, 8:24] += (-1) ** step
    return (x - mean) * 0.9


def begin(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + seed)).cuda()


def alone(seed, steps):
    """By an engine; the update is RowBatch's own, by its reference."""
    schedule, engine = flow_schedule(steps), Engine()
    batch = RowBatch(1, SHAPE, "cuda", backend="reference")
    update = batch.add(AscedConfig(correct=False), seed, schedule)
    engine.add(schedule, CONFIG, seed=seed)
    x = begin(seed)[None]
    for step in range(steps):
        m = model(x, seed, step)
        engine.observe(x, m)
        batch.step_([update], x, m)
        engine.correct_(x)
    return x[0], engine.report[0]


def test_rows_that_come_and_go_have_the_bits_of_an_engine_alone():
    lengths = (25, 13, 25, 40, 20, 31)
    expected = [alone(seed, steps) for seed, steps in enumerate(lengths)]
    batch = RowBatch(4, SHAPE, "cuda", schedule_of=flow_schedule)
    waiting, active, done = list(enumerate(lengths)), {}, {}
    while waiting or active:
        while waiting and batch.free:
            seed, steps = waiting.pop(0)
            active[batch.add(CONFIG, seed, steps)] = [seed, begin(seed)]
        rows = sorted(active, reverse=len(active) % 2 == 0)
        x = torch.stack([active[row][1] for row in rows])
        m = torch.stack([model(x[i], active[row][0], batch.step_of(row)) for i, row in enumerate(rows)])
        batch.step_(rows, x, m)
        batch.correct_(rows, x)
        for i, row in enumerate(rows):
            active[row][1] = x[i].clone()
        for row in batch.finished:
            seed, state = active.pop(row)
            done[seed] = (state, batch.remove(row))
    for seed, (state, report) in enumerate(expected):
        assert same_bits(done[seed][0], state)
        assert done[seed][1].status == report.status == "corrected"
        assert torch.equal(done[seed][1].mask_grown, report.mask_grown)
        assert done[seed][1].severity == report.severity


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_loop_asks_for_no_memory_and_waits_for_nothing(mode):
    if not _backend.has_cuda():
        pytest.skip("the extension holds no CUDA: what it does at T_c takes memory then")
    batch = RowBatch(8, SHAPE, "cuda", schedule_of=flow_schedule)
    batch.warm_up(CONFIG, STEPS)
    rows = [batch.add(CONFIG, seed, STEPS) for seed in range(8)]
    x = torch.stack([begin(seed) for seed in range(8)])
    m = torch.stack([model(x[seed], seed, 0) for seed in range(8)])
    batch.observe(rows, x, m)
    batch.correct_(rows, x)
    torch.cuda.synchronize()
    plan = batch.report(rows[0]).plan
    asked = torch.cuda.memory_stats()["allocation.all.allocated"]
    with mode():
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(1, STEPS):
                batch.observe(rows, x, m)
                due = batch.correct_(rows, x)
                assert bool(due) == (step + 1 == plan.t_c)
                x.mul_(0.97)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == asked
    assert {batch.remove(row).status for row in rows} <= {"corrected", "clean"}


def test_a_captured_step_is_replayed_for_other_rows():
    lengths = (25, 13, 25, 40)
    expected = [alone(seed, steps) for seed, steps in enumerate(lengths)]
    batch = RowBatch(4, SHAPE, "cuda", schedule_of=flow_schedule)
    x, m = torch.zeros(2, *SHAPE, device="cuda"), torch.zeros(2, *SHAPE, device="cuda")
    first = [batch.add(CONFIG, seed, 25) for seed in range(2)]
    batch.step_(first, x, m)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch.step_(first, x, m)
    assert batch.step_of(first[0]) == 1
    with pytest.raises(RuntimeError, match="cannot be captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        batch.correct_(first, x)
    batch.select([])
    ids = [batch.add(CONFIG, seed, steps) for seed, steps in enumerate(lengths)]
    states = [begin(seed) for seed in range(4)]
    while len(batch.finished) < 4:
        left = sorted((row for row in ids if not batch.is_finished(row)), key=batch.step_of)
        pair = (left * 2)[:2]
        if pair[0] == pair[1]:  # the last one, alone: not what was captured
            one = ids.index(pair[0])
            y = states[one][None].clone()
            batch.step_([pair[0]], y, model(y, one, batch.step_of(pair[0])))
            batch.correct_([pair[0]], y)
            states[one] = y[0]
            continue
        seeds = [ids.index(row) for row in pair]
        x.copy_(torch.stack([states[seed] for seed in seeds]))
        m.copy_(torch.stack([model(x[i], seeds[i], batch.step_of(pair[i])) for i in range(2)]))
        batch.replay(graph, pair)
        batch.correct_(pair, x)
        for i, seed in enumerate(seeds):
            states[seed] = x[i].clone()
    for seed, (state, report) in enumerate(expected):
        assert same_bits(states[seed], state)
        assert batch.remove(ids[seed]).severity == report.severity


def test_capturing_an_unknown_step_names_what_to_do():
    batch = RowBatch(4, SHAPE, "cuda", schedule_of=flow_schedule)
    rows = [batch.add(CONFIG, seed, 25) for seed in range(2)]
    x = torch.zeros(2, *SHAPE, device="cuda")
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="before a CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        batch.step_(rows, x, x.clone())
