# SPDX-License-Identifier: MIT
"""Each scheduler of diffusers on each layout, in a plain loop of 25 steps with a denoiser that works location by
location; ``docs/matrix.md`` is written from these cells."""

import dataclasses

import matrix_page
import pytest
import scheduler_cells as cells
import torch
from row_loop import bits
from test_pipelines_matrix import FOUND, NOTHING
from test_solvers import call_before_which

from ascedfast import disable_asced, enable_asced
from ascedfast.adapters.support import REFUSED, SUPPORT

pytestmark = pytest.mark.filterwarnings("ignore:Should have:UserWarning")
SEEDS = [5, 6]
CELLS = [(name, axes) for name in SUPPORT for axes in cells.LAYOUTS]
OF_KIND = {
    kind: [cell for cell in CELLS if cells.kind_of(*cell) == kind] for kind in ("tested", "observed only", "cannot")
}


def ids(cell):
    return f"{cell[0].removesuffix('Scheduler')}-{cell[1]}"


def enabled(case, axes, config, rows=slice(None)):
    scheduler = cells.make(case, rows)
    grid = cells.LAYOUTS[axes] if "S" in axes else None
    handle = enable_asced(scheduler, config, seeds=SEEDS[rows], axes=axes, grid=grid)
    return scheduler, handle


def differing(one, other, axes):
    """bool [R, 1, *grid]: locations of two states with other bits in a channel."""
    return cells.seen(bits(one) != bits(other), axes).any(1, keepdim=True)


def same(states, others):
    return len(states) == len(others) and all(
        torch.equal(bits(one), bits(other)) for one, other in zip(states, others, strict=True)
    )


def states_of(generators):
    return [generator.get_state().tolist() for generator in generators]


def test_the_page_is_what_is_generated():
    assert matrix_page.PAGE.read_text() == matrix_page.page(), "run python tests/matrix_page.py"


def test_every_name_has_a_row_without_an_empty_cell():
    """51 names; which they are is held by test_every_scheduler_of_diffusers_is_supported_or_refused."""
    lines = [line for line in matrix_page.page().splitlines() if line.startswith("|")]
    lines = lines[2 : 2 + len(SUPPORT) + len(REFUSED)]
    assert len({line.split("|")[1] for line in lines}) == 51
    assert all(cell.strip() for line in lines for cell in line.strip("|").split("|"))


@pytest.mark.parametrize("cell", OF_KIND["tested"], ids=ids)
def test_a_cell(cell):
    case, axes = cells.CASES[cell[0]], cell[1]
    drawn = cells.generators()
    stock = cells.run(cells.make(case), axes, drawn)
    assert stock[-1].isfinite().all()
    used = states_of(drawn)

    scheduler, handle = enabled(case, axes, NOTHING)
    drawn = cells.generators()
    assert same(cells.run(scheduler, axes, drawn), stock)
    assert states_of(drawn) == used
    assert {row.status for row in handle.report} == {"clean"}
    disable_asced(scheduler)
    assert same(cells.run(scheduler, axes, cells.generators()), stock)

    scheduler, handle = enabled(case, axes, FOUND)
    drawn = cells.generators()
    states = cells.run(scheduler, axes, drawn)
    assert states_of(drawn) == used
    check_the_correction(case, axes, scheduler, handle.report, states, stock)

    last = slice(1, 2)
    scheduler, alone = enabled(case, axes, FOUND, last)
    assert same(cells.run(scheduler, axes, cells.generators(), rows=last), [x[last] for x in states])
    assert torch.equal(alone.report.masks_grown, handle.report.masks_grown[last])
    assert alone.report.severity == handle.report.severity[last]


def check_the_correction(case, axes, scheduler, report, states, stock):
    mask, plan, where = report.masks_grown, report[0].plan, cells.spot(axes)
    assert [row.status for row in report] == ["corrected"] * cells.ROWS
    assert mask.shape[2:] == cells.LAYOUTS[axes]
    assert plan.t_c - plan.start >= 3
    assert all((mask & where)[row].sum() > 0.8 * where[row].sum() for row in range(cells.ROWS))
    assert mask.float().mean() < 0.5
    at = call_before_which(scheduler, plan.t_c)
    assert same(states[:at], stock[:at])
    moved = [differing(one, other, axes) for one, other in zip(states[at:], stock[at:], strict=True)]
    assert torch.equal(moved[0], mask)
    assert not any((where & ~mask).any() for where in moved)
    unknown = mask & ~cells.known(case, axes)
    last = moved[1 if case in cells.FORGET else -1]
    assert (last & unknown).sum() > 0.9 * unknown.sum()


@pytest.mark.parametrize("axes", ["BSC", "BCFHW", "BCL"])
@pytest.mark.parametrize("case", cells.THRESHOLD)
def test_dynamic_thresholding(case, axes):
    stock = cells.run(cells.make(case), axes, cells.generators())
    assert stock[-1].isfinite().all()
    scheduler, handle = enabled(case, axes, NOTHING)
    assert same(cells.run(scheduler, axes, cells.generators()), stock)
    scheduler, handle = enabled(case, axes, FOUND)
    states = cells.run(scheduler, axes, cells.generators())
    at = call_before_which(scheduler, handle.report[0].plan.t_c)
    assert same(states[:at], stock[:at])
    assert torch.equal(differing(states[at], stock[at], axes), handle.report.masks_grown)
    assert (handle.report.masks_grown & cells.spot(axes)).sum() > 0.8 * cells.spot(axes).sum()


@pytest.mark.parametrize("cell", OF_KIND["observed only"], ids=ids)
def test_a_cell_that_is_observed_only(cell):
    case, axes = cells.CASES[cell[0]], cell[1]
    stock = cells.run(cells.make(case), axes, cells.generators())
    for record in ("window", "run"):
        scheduler, handle = enabled(case, axes, dataclasses.replace(FOUND, record=record))
        assert same(cells.run(scheduler, axes, cells.generators()), stock)
        assert {row.status for row in handle.report} == {"unavailable"}
        assert "never corrected" in handle.report[0].reason
    assert handle.x0.shape == stock[-1].shape


@pytest.mark.parametrize("cell", OF_KIND["cannot"], ids=ids)
def test_a_cell_that_the_stock_cannot_run(cell):
    """The stock's own step returns another shape, and goes on so."""
    case, axes = cells.CASES[cell[0]], cell[1]
    stock = cells.run(cells.make(case), axes, cells.generators())
    assert stock[1].dim() == 5 > stock[0].dim()
