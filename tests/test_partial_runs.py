# SPDX-License-Identifier: MIT
"""Pipelines that begin late, end early, keep known parts or guide in other ways: the prediction that is stepped with is
watched, at the noise levels of the steps that are executed."""

import math

import partial_runs
import pytest
import tiny
import torch
from matrix import Cell, Watch, spot, view_of
from row_loop import bits

from ascedfast import AscedConfig, asced, disable_asced, enable_asced

NOTHING = AscedConfig.official(mad_scale=1e9, max_area=101, core_width=1)
FOUND = AscedConfig(min_area=0, max_area=math.inf, core_width=1)
GRIDS = {"sdxl": (24, 32), "sd15": (32, 24), "sd3": (16, 16), "flux": (16, 8), "ledits": (32, 32)}
EXECUTED = {"sdxl-base": 28, "sdxl-img2img": 23, "sdxl-inpaint": 23, "sd15-unipc-img2img": 23, "sd15-timesteps": 29}
EXECUTED |= dict.fromkeys(("sd3-img2img", "flux-img2img"), 24)
KNOWN = ("sdxl-inpaint", "sd15-inpaint", "flux-inpaint")


def cell_of(name):
    family = name.split("-")[0]
    return Cell("BSC" if family == "flux" else "BCHW", GRIDS[family])


def redrawn(cell):
    """Columns that ``partial_runs.known_half`` has drawn anew."""
    return slice(0, cell.grid[1] // 2)


@pytest.mark.parametrize("name", partial_runs.RUNS)
def test_off_and_with_nothing_found_are_the_stock_run(name):
    pipe, kwargs = partial_runs.RUNS[name]()
    stock = tiny.run(pipe, kwargs, seed=3)
    enable_asced(pipe)
    disable_asced(pipe)
    assert torch.equal(tiny.run(pipe, kwargs, seed=3), stock)
    with asced(pipe, NOTHING) as handle:
        assert torch.equal(tiny.run(pipe, kwargs, seed=3), stock)
        assert {row.status for row in handle.report} == {"clean"}
        assert handle.report.masks.shape[2:] == cell_of(name).grid


@pytest.mark.parametrize("name", partial_runs.RUNS)
def test_a_trap_is_found_at_the_noise_level_and_only_it_changes(name):
    cell = cell_of(name)
    pipe, kwargs = partial_runs.RUNS[name]()
    with Watch(pipe, cell, trap=4.0) as stock:
        ended = tiny.run(pipe, kwargs)
    with asced(pipe, FOUND) as handle, Watch(pipe, cell, trap=4.0) as watched:
        corrected = tiny.run(pipe, kwargs)
        report = handle.report
    assert {row.status for row in report} == {"corrected"}
    plan = report[0].plan
    assert plan.t_c - plan.start >= 3
    assert report[0].executed == len(watched.states) == EXECUTED.get(name, 25)
    level = report[0].logsnr[plan.t_c]
    assert abs(level + 2.26) == min(abs(other + 2.26) for other in report[0].logsnr)
    mask = report.masks_grown
    where = torch.zeros_like(mask)
    where[spot(cell)] = True
    assert (mask & where).sum() > 0.8 * where.sum()
    assert mask.float().mean() < 0.75
    writable = torch.zeros_like(mask)
    writable[..., redrawn(cell) if name in KNOWN else slice(None)] = True
    view = view_of(cell)
    assert all(map(torch.equal, stock.states[: plan.t_c], watched.states[: plan.t_c]))
    at, end = (
        (bits(view(stock.states[k]).contiguous()) != bits(view(watched.states[k]).contiguous())).any(1, True)
        for k in (plan.t_c, -1)
    )
    assert torch.equal(at, mask & writable)  # a known part is written over by the pipeline, as always
    assert (end & mask & writable).sum() > 0.9 * (mask & writable).sum()
    assert not torch.equal(ended, corrected)
    assert corrected.isfinite().all()


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_part_can_be_protected(name):
    cell = cell_of(name)
    keep = torch.ones(1, 1, *cell.grid, dtype=torch.bool)
    keep[..., redrawn(cell)] = False
    pipe, kwargs = partial_runs.RUNS[name]()
    handle = enable_asced(pipe, FOUND, keep_mask=keep)
    with Watch(pipe, cell, trap=4.0):
        tiny.run(pipe, kwargs)
    assert handle.report.masks_grown.any()
    assert not (handle.report.masks_grown & keep).any()


def test_a_refiner_begins_below_the_level_and_is_left_alone(asced_warnings):
    pipe, kwargs = partial_runs.sdxl_refiner()
    stock = tiny.run(pipe, kwargs)
    with asced(pipe) as handle:
        assert torch.equal(tiny.run(pipe, kwargs), stock)
        assert handle.report.severity == ["unavailable"]
        assert handle.report[0].executed == 12
    assert len(asced_warnings()) == 1
    assert "starts at less noise" in asced_warnings()[0]


def test_a_strength_too_small_for_the_level_is_left_alone(asced_warnings):
    pipe, kwargs = partial_runs.sdxl_img2img()
    stock = tiny.run(pipe, kwargs, strength=0.5)
    with asced(pipe, FOUND) as handle:
        assert torch.equal(tiny.run(pipe, kwargs, strength=0.5), stock)
        assert handle.report.severity == ["unavailable"]
    assert ["starts at less noise" in text for text in asced_warnings()] == [True]


def test_executed_steps_before_t_c_are_counted_from_where_the_run_starts():
    pipe, kwargs = partial_runs.sdxl_img2img()
    with asced(pipe, FOUND) as handle:
        found = []
        for strength in (0.95, 1.0):
            tiny.run(pipe, kwargs, strength=strength)
            found.append((handle.report[0].executed, handle.report[0].plan.t_c))
    assert found == [(23, 5), (25, 7)]


def test_a_base_that_ends_before_t_c_is_not_judged():
    pipe, kwargs = partial_runs.sdxl_base()
    stock = tiny.run(pipe, kwargs, denoising_end=0.2)
    with asced(pipe, FOUND) as handle:
        assert torch.equal(tiny.run(pipe, kwargs, denoising_end=0.2), stock)
        row = handle.report[0]
        assert (row.steps, row.executed, row.plan.t_c) == (40, 8, 12)
        assert row.status == "pending"
        assert handle.report.severity == ["unavailable"]
        assert handle.report.masks is None
