# SPDX-License-Identifier: MIT
"""Tiny pipelines of every family and layout, as a user runs them: off, on with nothing to find, on with a trap, saved,
copied, and in two threads. ``docs/layouts.md`` is written from these cells."""

import copy
import math
import threading

import layouts_page
import pytest
import tiny
import tiny_layouts
import torch
from diffusers import DiffusionPipeline
from matrix import CELLS, FEW_STEPS, Watch, made, spot, view_of
from row_loop import bits

from ascedfast import AscedConfig, asced, disable_asced, enable_asced
from ascedfast.adapters.class_swap import STATE, is_swapped

NOTHING = AscedConfig.official(mad_scale=1e9, max_area=101, core_width=1)
SENSITIVE = AscedConfig(mad_scale=1.0, min_area=0, core_width=1)
FOUND = AscedConfig(min_area=0, max_area=math.inf, core_width=1)


def test_the_matrix_holds_every_pipeline():
    assert set(CELLS) == set(tiny_layouts.PIPELINES)
    assert len(CELLS) >= 25


def test_the_page_is_what_is_generated():
    assert layouts_page.PAGE.read_text() == layouts_page.page(), "run python tests/layouts_page.py"


@pytest.mark.parametrize("name", CELLS)
def test_off_and_with_nothing_found_are_the_stock_run(name):
    pipe, kwargs = made(name)
    generators = [tiny.generator(3) for _ in range(3)]
    stock = tiny.run(pipe, kwargs, generator=generators[0])
    enable_asced(pipe)
    disable_asced(pipe)
    assert torch.equal(tiny.run(pipe, kwargs, generator=generators[1]), stock)
    with asced(pipe, NOTHING) as handle:
        assert torch.equal(tiny.run(pipe, kwargs, generator=generators[2]), stock)
        assert {row.status for row in handle.report} == {"clean"}
        assert handle.report.masks.shape[2:] == CELLS[name].grid
        assert {row.seed for row in handle.report} == {3}
    assert all(torch.equal(one.get_state(), generators[0].get_state()) for one in generators)


@pytest.mark.parametrize("name", CELLS)
def test_a_trap_is_found_and_only_it_changes_and_to_the_end(name):
    cell = CELLS[name]
    pipe, kwargs = made(name)
    with Watch(pipe, cell, trap=4.0) as stock:
        ended = tiny.run(pipe, kwargs)
    with asced(pipe, FOUND) as handle, Watch(pipe, cell, trap=4.0) as watched:
        corrected = tiny.run(pipe, kwargs)
        report = handle.report
    assert {row.status for row in report} == {"corrected"}
    plan, rows = report[0].plan, len(report) // (1 + cell.halves)
    assert plan.t_c - plan.start >= 3
    assert report[0].executed == 25
    mask = report.masks_grown[:rows]
    where = torch.zeros_like(mask)
    where[spot(cell)] = True
    assert (mask & where).sum() > 0.8 * where.sum()
    assert mask.float().mean() < 0.75
    view, at = view_of(cell), plan.t_c * cell.calls
    assert all(torch.equal(one, other) for one, other in zip(stock.states[:at], watched.states[:at], strict=True))
    for k in (at, -1):
        moved = (bits(view(stock.states[k]).contiguous()) != bits(view(watched.states[k]).contiguous())).any(1, True)
        assert (moved[:rows] & mask).sum() > 0.9 * mask.sum()  # the solver did not undo it
        assert k == -1 or torch.equal(moved[:rows], mask)
    assert not torch.equal(ended, corrected)
    assert corrected.isfinite().all()


@pytest.mark.parametrize("name", FEW_STEPS)
def test_few_steps_are_left_alone(name, asced_warnings):
    pipe, kwargs = made(name)
    stock = tiny.run(pipe, kwargs)
    with asced(pipe, SENSITIVE) as handle:
        assert torch.equal(tiny.run(pipe, kwargs), stock)
        assert handle.report.severity == ["unavailable"]
    assert len(asced_warnings()) == 1


@pytest.mark.parametrize("name", CELLS)
def test_saved_and_copied(name, tmp_path):
    pipe, kwargs = made(name)
    stock = tiny.run(pipe, kwargs)
    handle = enable_asced(pipe, SENSITIVE)
    expected = tiny.run(pipe, kwargs)
    before = [row.status for row in handle.report]
    assert torch.equal(tiny.run(copy.copy(pipe), kwargs), expected)
    twin = copy.deepcopy(pipe)
    assert torch.equal(tiny.run(twin, kwargs), expected)
    assert [row.status for row in twin.scheduler.__dict__[STATE].report] == before
    if name == "cosmos":  # its checker here is none that diffusers could load
        pipe.scheduler.save_pretrained(tmp_path)
        loaded = copy.copy(made(name)[0])
        loaded.scheduler = type(loaded.scheduler).from_pretrained(tmp_path)
    else:
        pipe.save_pretrained(tmp_path)
        absent = {part: None for part, value in pipe.components.items() if value is None}
        loaded = DiffusionPipeline.from_pretrained(tmp_path, **absent)
    assert not is_swapped(loaded)
    assert not is_swapped(loaded.scheduler)
    # Loaded weights lie at other addresses, and some CPU kernels round by alignment, without ASCED too.
    torch.testing.assert_close(tiny.run(loaded, kwargs), stock, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CELLS)
def test_two_threads_with_a_copy_each(name):
    pipe, kwargs = made(name)
    enable_asced(pipe, SENSITIVE)
    twins = [copy.deepcopy(pipe), copy.deepcopy(pipe)]
    expected = [tiny.run(pipe, kwargs, seed=seed) for seed in (1, 2)]
    found = [None, None]

    def work(i):
        found[i] = tiny.run(twins[i], kwargs, seed=i + 1)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not torch.equal(*expected)
