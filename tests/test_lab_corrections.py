# SPDX-License-Identifier: MIT
"""The runs compared: their shared prefix, their masks, their bits; on the toy, whose denoiser is exact."""

import dataclasses

import pytest
import torch

import ascedfast
from ascedfast.lab import detectors
from ascedfast.lab.corrections import (
    CONFIGS,
    RUNS,
    Prefix,
    clip_score,
    compare,
    finish,
    permuted,
    renoise,
    rolled,
    t_c_of,
    watch,
)
from ascedfast.lab.sampling import sample
from ascedfast.lab.subject import MissingAbility, Subject, Toy, ability, load

SEEDS = range(12)


@pytest.fixture(scope="module")
def toy():
    return Toy(haze=1.5)


@pytest.fixture(scope="module")
def prefix(toy):
    return watch(toy, SEEDS)


def bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_the_toy_is_a_subject_with_every_ability_but_a_last_layer(toy):
    assert isinstance(toy, Subject)
    assert ability(load("toy"), "features")(toy.real(3)).shape == (3, 8)
    with pytest.raises(MissingAbility, match="last_conv"):
        ability(toy, "last_conv")


def test_the_exact_toy_draws_its_own_distribution_and_the_blend_does_not(toy):
    exact = Toy()
    images = sample(exact.denoise, exact.schedule, exact.start(range(60)))
    score, marks = exact.defects(images)
    assert float((score > 0).double().mean()) < 0.1
    assert marks.shape == (60, 16, 16)
    assert float((exact.defects(exact.real(60))[0] > 0).double().mean()) == 0
    blended = sample(toy.denoise, toy.schedule, toy.start(range(60)))
    assert float((toy.defects(blended)[0] > 0).double().mean()) > 0.3


def test_rows_of_the_toy_do_not_depend_on_the_batch(toy, prefix):
    alone = watch(toy, [7])
    torch.testing.assert_close(alone.x[0], prefix.x[7], rtol=0, atol=1e-5)


@pytest.mark.parametrize("t_c", [None, 5, 20])
def test_the_shared_prefix_gives_the_bits_of_a_whole_run(toy, t_c):
    whole = sample(toy.denoise, toy.schedule, toy.start(SEEDS))
    assert bits(finish(toy, watch(toy, SEEDS, t_c=t_c)), whole)


def test_an_empty_mask_gives_the_bits_of_the_original(toy, prefix):
    empty = torch.zeros(len(SEEDS), 16, 16, dtype=torch.bool)
    whole = sample(toy.denoise, toy.schedule, toy.start(SEEDS))
    for x in (renoise(toy, prefix, empty, 0.1), clip_score(toy, prefix, empty)):
        assert bits(x, prefix.x)
        assert bits(finish(toy, prefix, x), whole)
        assert bits(finish(toy, prefix, x, mask=empty, original=whole), whole)


@pytest.mark.parametrize("mode", CONFIGS)
def test_detection_and_correction_are_the_engines(toy, prefix, mode):
    config = CONFIGS[mode]
    run = ascedfast.begin(toy.schedule, config, seeds=list(SEEDS))
    x = toy.start(SEEDS)
    for step in range(prefix.t_c):
        m = toy.denoise(x, step)
        run.observe(x, m)
        x0 = toy.schedule.x0_hat(step, x, m)
        now, (alpha, sigma) = toy.schedule.before[step], toy.schedule.after[step]
        x = alpha * x0 + (sigma / now.sigma) * (x - now.alpha * x0)
    assert bits(x, prefix.x)
    run.correct_(x)
    found = detectors.by_mode(toy.schedule, prefix, config)
    assert torch.equal(torch.stack([row.mask for row in run.report]), found.mask)
    assert found.grown.any()
    assert not found.grown.all()
    for row, severity in zip(run.report, found.severity, strict=True):
        assert row.severity == pytest.approx(float(severity))
    assert torch.equal(torch.stack([row.mask_grown for row in run.report]), found.grown)
    torch.testing.assert_close(renoise(toy, prefix, found.grown, config.x0_noise), x, rtol=0, atol=2e-6)


def test_every_run_changes_the_state_inside_its_mask_only(toy, prefix):
    results = dict(compare(toy, prefix))
    assert tuple(results) == RUNS
    original = results["original"]
    assert not original.mask.any()
    for name, result in results.items():
        assert result.images.shape == (12, 1, 16, 16), name
        untouched = ~result.mask.flatten(1).any(1)
        if name != "other seeds":
            assert bits(result.images[untouched], original.images[untouched]), name
        if result.mask.any():
            assert not torch.equal(result.images, original.images), name
    assert results["whole image"].mask.all()
    assert not torch.equal(results["other seeds"].images, original.images)
    assert not torch.equal(results["state replacement"].images, results["official"].images)


def test_permuted_and_rolled_masks_keep_their_areas(toy, prefix):
    masks = detectors.by_mode(toy.schedule, prefix, CONFIGS["official"]).grown
    areas = masks.flatten(1).sum(1)
    assert sorted(permuted(masks).flatten(1).sum(1).tolist()) == sorted(areas.tolist())
    assert torch.equal(rolled(masks).flatten(1).sum(1), areas)
    single = torch.zeros(3, 4, 4, dtype=torch.bool)
    single[0, 0, 0] = True
    assert permuted(single).nonzero().tolist() == [[1, 0, 0]]
    assert rolled(single).nonzero().tolist() == [[0, 2, 2]]


def test_another_draw_gives_other_noise_and_the_same_draw_the_same(toy, prefix):
    mask = torch.ones(len(SEEDS), 16, 16, dtype=torch.bool)
    first, second = (renoise(toy, prefix, mask, draw=draw) for draw in (0, 1))
    assert bits(first, renoise(toy, prefix, mask))
    assert not torch.equal(first, second)
    some = Prefix(
        prefix.seeds[3:5],
        0,
        prefix.t_c,
        prefix.x[3:5],
        prefix.before[3:5],
        prefix.x0[:, 3:5],
        prefix.scores,
        toy.denoise,
    )
    assert bits(renoise(toy, some, mask[3:5]), first[3:5])


def test_a_clipped_score_moves_the_prediction_by_the_threshold_at_most(toy, prefix):
    mask = torch.ones(len(SEEDS), 16, 16, dtype=torch.bool)
    clipped = clip_score(toy, prefix, mask, mad_scale=0.0)
    level, (alpha, sigma) = toy.schedule.before[prefix.step - 1], toy.schedule.after[prefix.step - 1]
    ratio = sigma / level.sigma
    x0 = (clipped - ratio * prefix.before) / (alpha - ratio * level.alpha)
    change = (x0 - prefix.x0[-2]).abs().flatten(1)
    median = (prefix.x0[-1] - prefix.x0[-2]).abs().flatten(1).quantile(0.5, 1)
    assert bool((change.amax(1) <= median * 1.01 + 1e-5).all())
    torch.testing.assert_close(clip_score(toy, prefix, mask, mad_scale=1e9), prefix.x, rtol=0, atol=1e-5)


def test_masks_of_other_detectors_are_renoised_the_same_way(toy, prefix):
    def left(prefix, images):
        score = torch.rand(len(images), 16, 16, generator=torch.Generator().manual_seed(0))
        score[:, :, :2] += 20
        return score

    (name, result), *_ = compare(toy, prefix, ["left"], more={"left": left})
    assert name == "left"
    assert result.mask[:, :, :2].all()
    assert not result.mask[:, :, 8:].any()
    with pytest.raises(ValueError, match="unknown runs"):
        list(compare(toy, prefix, ["nobody"]))


def test_a_run_that_is_left_alone_is_refused(toy):
    short = dataclasses.replace(toy, steps=4)
    with pytest.raises(ValueError, match="predictions precede"):
        t_c_of(short.schedule, CONFIGS["fast"])
    with pytest.raises(ValueError, match="t_c must lie"):
        watch(toy, SEEDS, t_c=21)
