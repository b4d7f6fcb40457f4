# SPDX-License-Identifier: MIT
"""The small server of ``row_loop`` on a ``RowBatch``: each tick steps the rows in another order."""

import random
from dataclasses import replace

import torch
from row_loop import CHANNELS, GRID, Result

from ascedfast import RowBatch

SHAPE = (CHANNELS, *GRID)


def by(request, backend):
    """The request with its configuration computed by that backend, where its own asks for none."""
    config = replace(request.config, backend=backend) if request.config.backend == "auto" else request.config
    return replace(request, config=config)


def batch_for(requests, **options):
    options = {"max_rows": len(requests), "max_maps": 24, "dtype": requests[0].dtype, **options}
    return RowBatch(options.pop("max_rows"), SHAPE, modes=("fast", "calibrated", "official", "paper"), **options)


def add(batch, request):
    placed = {"draw": request.draw, "first": request.first, "enabled": request.enabled}
    return batch.add(request.config, request.seed, request.schedule, **placed)


def serve_batch(requests, *, batch=None, order=None, ticks=500, **options):
    """Run the requests in one batch; a ``Result`` for each, in their order. order: seed of the rows' order."""
    batch = batch or batch_for(requests, **options)
    shuffled = random.Random(order)
    active, results, waiting = {}, {}, list(requests)
    for tick in range(ticks):
        for request in [r for r in waiting if r.joins <= tick][: batch.free]:
            waiting.remove(request)
            active[add(batch, request)] = (request, request.start(), [])
        if not active and not waiting:
            break
        if active:
            _tick(batch, active, None if order is None else shuffled)
        for row in [row for row in active if batch.is_finished(row)]:
            request, x, due = active.pop(row)
            results[id(request)] = Result(x, batch.remove(row), due)
    assert not waiting
    assert not active
    return [results[id(request)] for request in requests]


def _tick(batch, active, shuffled):
    rows = list(active)
    if shuffled is not None:
        shuffled.shuffle(rows)
    outputs = []
    for row in rows:
        request, x, _ = active[row]
        outputs.append(request.model(x, request.first + batch.step_of(row)))
    x, m = torch.cat([active[row][1] for row in rows]), torch.cat([m for m, _ in outputs])
    before = x.clone(), m.clone()
    batch.observe(rows, x, m)
    for kept, given in zip(before, (x, m), strict=True):
        torch.testing.assert_close(given, kept, rtol=0, atol=0, equal_nan=True)
    x = torch.cat([after for _, after in outputs])
    m.fill_(float("nan"))  # a CUDA graph would write its next output there
    due = batch.correct_(rows, x)
    for i, row in enumerate(rows):
        request, _, seen = active[row]
        seen += [batch.step_of(row)] * (row in due)
        active[row] = (request, x[i : i + 1].clone(), seen)
