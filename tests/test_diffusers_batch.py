# SPDX-License-Identifier: MIT
"""Seeds, and the same bits for a sample alone and in any batch (the denoiser is called row by row)."""

import pytest
import tiny
import torch
from row_loop import bits
from test_diffusers import SENSITIVE

from ascedfast import AscedConfig, asced, enable_asced
from ascedfast.adapters.row_seeds import row_seeds

GRID = (32, 24)
SEEDS = [11, 2**64 - 1, 13]
DETERMINISTIC = [name for name in tiny.SCHEDULERS if name not in tiny.STOCHASTIC]


def run(name, rows, **options):
    """The given samples of a batch of three through one scheduler; their final states and the report."""
    scheduler = tiny.SCHEDULERS[name]()
    handle = enable_asced(scheduler, **options)
    x = torch.cat([tiny.randn(1, 3, *GRID, seed=20 + row) for row in rows])
    states = tiny.sample(scheduler, x, tiny.spot(GRID, 3)[list(rows)])
    return states[-1], handle.report


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_sample_alone_equals_itself_in_a_batch(name):
    together, report = run(name, (0, 1, 2), seeds=SEEDS)
    assert {row.status for row in report} == {"corrected"}
    for rows in ((0,), (1,), (2,), (2, 0), (1, 2, 0)):
        part, other = run(name, rows, seeds=[SEEDS[row] for row in rows])
        for i, row in enumerate(rows):
            assert torch.equal(bits(part[i]), bits(together[row]))
            assert torch.equal(other[i].mask_grown, report[row].mask_grown)
            assert other[i].severity == report[row].severity


def test_an_int_seed_is_one_request_of_many_images():
    together, report = run("flow-shift", (0, 1, 2), seeds=7)
    assert [(row.seed, row.draw) for row in report] == [(7, 0), (7, 1), (7, 2)]
    first, _ = run("flow-shift", (0,), seeds=7)
    pair, _ = run("flow-shift", (0, 1), seeds=7)
    assert torch.equal(first[0], together[0])
    assert torch.equal(pair, together[:2])


def test_another_seed_changes_the_inside_only():
    one, report = run("dpm2", (0, 1), seeds=[1, 2])
    two, other = run("dpm2", (0, 1), seeds=[3, 2])
    assert torch.equal(report.masks, other.masks)
    inside = report.masks_grown.expand_as(one)
    assert torch.equal(one[1], two[1])
    assert torch.equal(one[0][~inside[0]], two[0][~inside[0]])
    assert (one[0][inside[0]] != two[0][inside[0]]).any()


def test_fresh_seeds_are_stated_and_repeat_the_run():
    one, report = run("flow", (0, 1))
    two, other = run("flow", (0, 1))
    assert report[0].seed == report[1].seed
    assert [row.draw for row in report] == [0, 1]
    assert report.seeds != other.seeds
    assert not torch.equal(one, two)
    again, _ = run("flow", (0, 1), seeds=report[0].seed)
    assert torch.equal(again, one)


def generators(*seeds):
    return [tiny.generator(seed) for seed in seeds]


@pytest.mark.parametrize("name", ["ddim-eps", "euler-eps", "flow", "dpm2-sde"])
def test_generators_given_to_step(name):
    """The seeds are theirs; their state after the run is the stock's."""
    final = {}
    for watched in (False, True):
        scheduler = tiny.SCHEDULERS[name]()
        handle = enable_asced(scheduler) if watched else None
        own = generators(4, 5)
        x = tiny.randn(2, 3, *GRID, seed=0)
        tiny.sample(scheduler, x, tiny.spot(GRID, 2), generator=own)
        final[watched] = [one.get_state() for one in own]
    assert handle.report.seeds == [4, 5]
    assert [row.draw for row in handle.report] == [0, 0]
    assert all(torch.equal(a, b) for a, b in zip(final[False], final[True], strict=True))


def test_given_seeds_win_over_generators():
    scheduler = tiny.SCHEDULERS["flow"]()
    handle = enable_asced(scheduler, seeds=[1, 2])
    tiny.sample(scheduler, tiny.randn(2, 3, *GRID), tiny.spot(GRID, 2), generator=generators(8, 9))
    assert handle.report.seeds == [1, 2]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "pixart"])
def test_pipelines_show_their_generators(name):
    """Many pass none to ``step``; all take it for their latents."""
    pipe, kwargs = tiny.PIPELINES[name]()
    steps = {"num_inference_steps": 8}
    with asced(pipe) as handle:
        tiny.run(pipe, kwargs, generator=tiny.generator(77), **steps)
        assert [(row.seed, row.draw) for row in handle.report] == [(77, 0)]
        tiny.run(pipe, kwargs, generator=generators(5), **steps)
        assert handle.report.seeds == [5]
        tiny.run(pipe, kwargs, generator=generators(5, 6), num_images_per_prompt=2, **steps)
        assert [(row.seed, row.draw) for row in handle.report] == [(5, 0), (6, 0)]
        tiny.run(pipe, kwargs, generator=tiny.generator(78), num_images_per_prompt=2, **steps)
        assert [(row.seed, row.draw) for row in handle.report] == [(78, 0), (78, 1)]
        tiny.run(pipe, kwargs, generator=None, **steps)
        fresh = handle.report.seeds
        tiny.run(pipe, kwargs, generator=None, **steps)
        assert handle.report.seeds != fresh


def row_by_row(pipe):
    """Make the network compute each sample on its own, so that its bits do not depend on the batch."""
    network = pipe.transformer
    whole = network.forward

    def forward(hidden_states, timestep, class_labels):
        parts = [
            whole(hidden_states[i : i + 1], timestep=timestep[i : i + 1], class_labels=class_labels[i : i + 1]).sample
            for i in range(len(hidden_states))
        ]
        return type("Output", (), {"sample": torch.cat(parts)})()

    network.forward = forward
    decode = pipe.vae.decode
    pipe.vae.decode = lambda z: type("Output", (), {"sample": torch.cat([decode(one[None]).sample for one in z])})()


@pytest.mark.parametrize("seeds", [None, [31, 32, 33]], ids=["generators", "seeds"])
def test_dit_steps_every_sample_twice(seeds):
    """DiTPipeline hands 2B rows to step, the guided half and its copy; a sample is the same in any batch."""

    def images(rows):
        pipe, kwargs = tiny.dit(labels=[3 + row for row in rows])
        row_by_row(pipe)
        given = None if seeds is None else [seeds[row] for row in rows]
        with asced(pipe, AscedConfig(**SENSITIVE), seeds=given) as handle:
            out = tiny.run(pipe, kwargs, generator=generators(*(40 + row for row in rows)))
            return out, handle.report

    together, report = images((0, 1, 2))
    own = seeds or [40, 41, 42]
    assert report.seeds == own * 2
    assert [row.draw for row in report] == [0] * 6
    assert {row.status for row in report} == {"corrected"}
    assert torch.equal(report.masks[:3], report.masks[3:])
    for rows in ((0,), (1,), (2, 1)):
        part, other = images(rows)
        for i, row in enumerate(rows):
            assert torch.equal(part[i], together[row])
            assert torch.equal(other[i].mask, report[row].mask)


@pytest.mark.parametrize("classes", [(1, 2), (1, 2, 3)])
def test_dit_with_a_single_generator(classes):
    pipe, kwargs = tiny.dit(labels=classes)
    with asced(pipe, AscedConfig(**SENSITIVE)) as handle:
        tiny.run(pipe, kwargs, generator=tiny.generator(6))
        assert set(handle.report.seeds) == {6}
        assert [row.draw for row in handle.report][: len(classes)] == list(range(len(classes)))


def test_a_list_with_a_generator_missing_draws_a_seed_for_its_row():
    (first, _), (second, _) = row_seeds(torch.zeros(2, 3, 4, 4), None, [torch.Generator().manual_seed(7), None])
    assert first == 7
    assert 0 <= second < 1 << 64
