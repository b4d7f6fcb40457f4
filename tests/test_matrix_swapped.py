# SPDX-License-Identifier: MIT
"""Tiny pipelines whose scheduler is swapped for another that they can call: off, on with nothing to find, and on with a
trap; ``docs/matrix.md`` lists them."""

import pytest
import scheduler_cells as cells
import tiny
import torch
from matrix import CELLS, Watch, made, spot, view_of
from row_loop import bits
from test_pipelines_matrix import FOUND, NOTHING
from test_solvers import call_before_which

from ascedfast import asced, disable_asced, enable_asced
from ascedfast.adapters.support import facts_of

pytestmark = pytest.mark.filterwarnings("ignore:Should have:UserWarning")
SWAPS = [(name, case) for name, cases in cells.SWAPPED.items() for case in cases]


def swapped(name, case):
    """The pipeline, its arguments, and its cell."""
    pipe, kwargs = made(name)
    pipe.scheduler = cells.make(case, slice(0, 1))
    calls = 2 if facts_of(pipe.scheduler).inner else 1
    return pipe, kwargs, CELLS[name]._replace(calls=calls)


def run(pipe, kwargs, cell):
    """States before each call of ``step``, and the end, of a run with a trap."""
    torch.manual_seed(3)  # the pipelines of flow models give ``step`` no generator, so that its noise comes from there
    with Watch(pipe, cell, trap=4.0) as watch:
        end = tiny.run(pipe, kwargs)
    return [*watch.states, end.to(watch.states[0].dtype)] if end.shape == watch.states[0].shape else watch.states


def same(states, others):
    return len(states) == len(others) and all(
        torch.equal(bits(one), bits(other)) for one, other in zip(states, others, strict=True)
    )


@pytest.mark.parametrize(("name", "case"), SWAPS)
def test_a_swapped_scheduler(name, case):
    pipe, kwargs, cell = swapped(name, case)
    stock = run(pipe, kwargs, cell)
    assert stock[-1].isfinite().all()
    enable_asced(pipe)
    disable_asced(pipe)
    assert same(run(pipe, kwargs, cell), stock)
    with asced(pipe, NOTHING) as handle:
        assert same(run(pipe, kwargs, cell), stock)
        assert handle.report[0].status == ("unavailable" if facts_of(pipe.scheduler).inverse else "clean")
    with asced(pipe, FOUND) as handle:
        states = run(pipe, kwargs, cell)
        report, facts = handle.report, facts_of(pipe.scheduler)
        at = None if facts.inverse else call_before_which(pipe.scheduler, report[0].plan.t_c)
    if facts.inverse:
        assert report[0].status == "unavailable"
        assert same(states, stock)
        return
    assert report[0].status == "corrected"
    assert report[0].plan.t_c - report[0].plan.start >= 3
    mask, view = report.masks_grown, view_of(cell)
    where = torch.zeros_like(mask)
    where[spot(cell)] = True
    assert (mask & where).sum() > 0.8 * where.sum()
    assert mask.float().mean() < 0.75
    assert same(states[:at], stock[:at])
    for k in (at, at + 1 if case in cells.FORGET else -1):
        moved = (bits(view(states[k]).contiguous()) != bits(view(stock[k]).contiguous())).any(1, True)
        assert (moved & mask).sum() > 0.9 * mask.sum()
        assert k != at or torch.equal(moved, mask)


@pytest.mark.parametrize("case", cells.NOT_IN)
def test_what_stable_diffusion_cannot_call(case):
    """The stock's own, as ``docs/matrix.md`` says."""
    pipe, kwargs, _ = swapped("sd15", case)
    words = {cells.NO_ORDER: "order", cells.NO_SCALE: "init_noise_sigma"}.get(cells.NOT_IN[case], "")
    with pytest.raises((AttributeError, TypeError, ValueError), match=words):
        tiny.run(pipe, kwargs)


def test_all_that_diffusers_calls_compatible_are_run():
    compatible = {cls.__name__ for cls in made("sd15")[0].scheduler.compatibles}
    assert compatible <= {name for name, case in cells.CASES.items() if case in cells.SWAPPED["sd15"]}
