# SPDX-License-Identifier: MIT
"""ASCED beside what else speeds up or changes a denoiser: the stock's bits where nothing is found, the planted region
corrected where it is, the same bits each time; a step after a correction is computed in full."""

import functools
import logging
import subprocess
import sys
from pathlib import Path

import company
import pytest
import tiny
import torch
from row_loop import bits

from ascedfast import AscedConfig, Schedule, begin, disable_asced, enable_asced, process

NOTHING = AscedConfig.official(mad_scale=1e9, max_area=101)


@functools.cache
def stock(name):
    """States, and steps that were computed in full."""
    made = company.COMPANY[name]()
    made()
    return made.states, made.full


def same(states, others):
    return [torch.equal(bits(one), bits(other)) for one, other in zip(states, others, strict=True)]


@pytest.mark.parametrize("name", company.COMPANY)
def test_off_or_nothing_found_is_the_stock_run(name):
    made = company.COMPANY[name]()
    enable_asced(made.pipe)
    disable_asced(made.pipe)
    made()
    assert all(same(made.states, stock(name)[0]))
    handle = enable_asced(made.pipe, NOTHING)
    made()
    assert all(same(made.states, stock(name)[0]))
    assert handle.report[0].status == "clean"


@pytest.mark.parametrize("name", company.COMPANY)
def test_the_planted_region_is_corrected_and_a_second_run_gives_the_same_bits(name):
    made = company.COMPANY[name]()
    handle = enable_asced(made.pipe)
    made()
    first, row, mask = list(made.states), handle.report[0], handle.report.masks_grown[0, 0]
    assert row.status == "corrected"
    assert mask[company.SQUARE].float().mean() > 0.9
    assert mask.float().mean() < 0.35
    t_c = row.plan.t_c
    assert all(same(first[: t_c - 1], stock(name)[0][: t_c - 1]))
    moved = (bits(first[t_c - 1]) != bits(stock(name)[0][t_c - 1])).flatten(2)
    moved = moved.any(2 if first[0].dim() == 3 else 1).view(company.GRID)
    assert torch.equal(moved, mask)
    made()
    assert all(same(made.states, first))


@pytest.mark.parametrize("name", company.CACHED)
def test_the_step_after_a_correction_is_computed_in_full(name, questions):
    made = company.COMPANY[name]()
    handle = enable_asced(made.pipe, NOTHING)
    made()
    t_c, before = handle.report[0].plan.t_c, list(questions)
    disable_asced(made.pipe)
    questions.clear()
    handle = enable_asced(made.pipe)
    made()
    assert any(before)
    assert questions[:t_c] == before[:t_c]
    assert not questions[t_c]
    assert any(questions[t_c + 1 :])


def test_a_cache_that_would_skip_the_step_after_a_correction_may_not():
    name = "first-block-cache"
    made = company.COMPANY[name]()
    handle = enable_asced(made.pipe)
    made()
    t_c = handle.report[0].plan.t_c
    assert t_c not in stock(name)[1]
    assert t_c in made.full


def test_a_skipped_step_has_no_change_and_the_next_is_taken_against_the_last_computed():
    made = company.COMPANY["first-block-cache"]()
    handle = enable_asced(made.pipe, AscedConfig(record="run", correct=False))
    made()
    assert [step for step, _ in handle.report[0].dynamics] == made.full[1:]


def test_on_x0_sees_skipped_steps_too():
    made, seen = company.COMPANY["first-block-cache"](), []
    enable_asced(made.pipe, NOTHING, on_x0=lambda step, t, x0: seen.append((step, x0.clone())))
    made()
    assert [step for step, _ in seen] == list(range(company.STEPS))
    assert len({tuple(x0.flatten().tolist()) for _, x0 in seen}) == company.STEPS


def test_a_run_of_which_too_much_was_skipped_is_left_alone_with_a_warning(caplog):
    made, twin = (company._cached(company.flux(), company.FirstBlockCacheConfig(threshold=0.6)) for _ in range(2))
    twin()
    handle = enable_asced(made.pipe)
    with caplog.at_level(logging.WARNING, "ascedfast"):
        made()
        made()
    assert all(same(made.states, twin.states))
    assert handle.report[0].status == "unavailable"
    assert "a cache skipped" in handle.report[0].reason
    assert sum("let the cache begin after T_c" in text for text in caplog.messages) == 1


def test_a_cache_that_does_not_tell_is_named(caplog):
    made, twin = company.flux(), company.flux()
    twin()
    made.pipe.transformer._is_cached = True  # as cache-dit marks what it serves
    handle = enable_asced(made.pipe)
    with caplog.at_level(logging.WARNING, "ascedfast"):
        made()
    assert all(same(made.states, twin.states))
    assert handle.report[0].status == "unavailable"
    assert any("cache-dit" in text for text in caplog.messages)


def test_after_a_call_the_hooks_are_as_they_were():
    made = company.COMPANY["first-block-cache"]()
    blocks = [*made.pipe.transformer.transformer_blocks, *made.pipe.transformer.single_transformer_blocks]
    refs = [hook.fn_ref for block in blocks for hook in block._diffusers_hook.hooks.values()]
    kept = [(ref.forward, ref.original_forward) for ref in refs]
    enable_asced(made.pipe)
    made()
    assert refs
    assert [(ref.forward, ref.original_forward) for ref in refs] == kept
    made.pipe.transformer.disable_cache()
    made()
    assert made.full == list(range(company.STEPS))


def test_a_window_without_skips_is_that_of_a_run_without_a_cache():
    plain = company.flux()
    cached = company._cached(company.flux(), company.FirstBlockCacheConfig(threshold=0.0))
    handles = [enable_asced(made.pipe) for made in (plain, cached)]
    plain()
    cached()
    assert all(same(plain.states, cached.states))
    assert torch.equal(*(handle.report.masks_grown for handle in handles))


def test_processes_that_share_a_denoiser_correct_alike(tmp_path):
    script = Path(__file__).parent / "context_parallel.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True, timeout=300)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(bits(one[k]), bits(other[k])) for k in ("stock", "clean", "first", "again"))
    assert torch.equal(bits(one["clean"]), bits(one["stock"]))
    assert torch.equal(bits(one["first"]), bits(one["again"]))
    mask, t_c = one["first mask"], one["first t_c"]
    assert torch.equal(mask, other["first mask"])
    assert mask[0, 0][company.SQUARE].float().mean() > 0.9
    moved = (bits(one["first"][:t_c]) != bits(one["stock"][:t_c])).any(3).view(t_c, *company.GRID)
    assert not moved[:-1].any()
    assert torch.equal(moved[-1], mask[0, 0])


LEVELS = [process.flow(0.98 - k * 0.048) for k in range(20)]
TEXTURE = {"min_area": 0, "max_area": 1e9, "core_width": 1}
MOVES = tiny.randn(20, seed=5)


def corrected_after(run, steps, answered=()):
    """Watch steps of a loop of one's own, a cache answering for some of them; what is corrected after the last."""
    x = tiny.randn(1, 3, 16, 16)
    for k in steps:
        m = tiny.randn(1, 3, 16, 16, seed=k)
        m[..., 3:9, 5:12] += 20.0 * MOVES[k]
        run.skip(repeated=True) if k in answered else run.observe(x, m)
    return run.correct_(x.clone())


@pytest.mark.parametrize("answered", [(7,), (3, 6, 7), (8,)])
def test_in_a_loop_of_ones_own_the_window_reaches_back_over_answered_steps(answered):
    """As in the run of the computed steps alone, with a window as long."""
    run = begin(Schedule.from_levels(LEVELS), AscedConfig(t_c=9, **TEXTURE), seeds=[1], caches=True)
    mask, (t_c, start) = corrected_after(run, range(9), answered), (9, run.report[0].plan.start)
    assert start >= len(answered)
    computed = [k for k in range(20) if k not in answered]
    config = AscedConfig(t_c=t_c - len(answered), window_start=start - len(answered), **TEXTURE)
    twin = begin(Schedule.from_levels([LEVELS[k] for k in computed]), config, seeds=[1])
    expected = corrected_after(twin, computed[: t_c - len(answered)])
    assert expected.any()
    assert not expected.all()
    assert torch.equal(mask, expected)
    assert run.report.severity == twin.report.severity
    fixed = AscedConfig(t_c=9, window_start=start, **TEXTURE)
    fixed = begin(Schedule.from_levels(LEVELS), fixed, seeds=[1], caches=True)
    corrected_after(fixed, range(9), answered)
    assert fixed.report.severity != twin.report.severity


def test_an_engine_that_was_not_told_of_a_cache_says_what_to_do():
    run = begin(Schedule.from_levels(LEVELS), AscedConfig(t_c=9), seeds=[1])
    with pytest.raises(ValueError, match=r"begin\(\.\.\., caches=True\)"):
        run.skip(repeated=True)
    assert run.step_of(0) == 0
