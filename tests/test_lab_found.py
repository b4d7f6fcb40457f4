# SPDX-License-Identifier: MIT
"""The instruments of detection: a perfect detector scores 1, a random one .5, a known effect lies in its interval."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import special, stats

from ascedfast.lab import detectors
from ascedfast.lab.corrections import CONFIGS, watch
from ascedfast.lab.found import Rows, detected, plant_rows, two_sample_auroc
from ascedfast.lab.planting import outcome
from ascedfast.lab.steps import natural_figures, phase_figures, variation
from ascedfast.lab.subject import Toy
from ascedfast.schedule import plan_run

N = 120


def rows_of(z, severity, overlap, boxes, contrast=None):
    names = {"fast": z, "final variance": torch.rand(z.shape, generator=torch.Generator().manual_seed(9))}
    contrast = np.full(N, 20.0) if contrast is None else contrast
    return Rows(names, dict.fromkeys(names, severity), dict.fromkeys(names, overlap), boxes, contrast, contrast)


def figures_of(rows, nulls):
    nulls = dict.fromkeys(rows.z, nulls)
    found = detected(rows, nulls, np.ones(N, bool), "", draws=200)
    return {one["measure"]: one for one in found if one["run"] == "fast"}


@pytest.fixture
def boxes():
    boxes = torch.zeros(N, 8, 8, dtype=torch.bool)
    for i in range(N):
        boxes[i, i % 5 : i % 5 + 3, i % 4 : i % 4 + 4] = True
    return boxes


def test_a_perfect_detector_scores_1(boxes):
    found = figures_of(rows_of(boxes.float(), np.ones(N), np.ones(N), boxes), np.zeros(50))
    for measure in ("pixel auroc", "image auroc", "recall at 1%", "recall at 5%", "iou"):
        interval = [found[measure][name] for name in ("value", "low", "high")]
        assert interval == pytest.approx([1, 1, 1], abs=1e-12), measure
    assert found["pixel auroc less final variance"]["low"] > 0.3
    assert found["pixel auroc, boxes permuted"]["high"] < 0.9


def test_a_random_detector_scores_one_half(boxes):
    generator = np.random.default_rng(3)
    z = torch.rand(boxes.shape, generator=torch.Generator().manual_seed(0))
    found = figures_of(rows_of(z, generator.random(N), np.ones(N), boxes), generator.random(2000))
    for measure, value in (("pixel auroc", 0.5), ("image auroc", 0.5), ("recall at 5%", 0.05)):
        assert found[measure]["low"] <= value <= found[measure]["high"], measure
        assert found[measure]["high"] - found[measure]["low"] < 0.15


def test_effects_of_known_size_lie_in_their_intervals(boxes):
    generator = np.random.default_rng(5)
    shift = 0.8
    z = torch.from_numpy(generator.standard_normal(boxes.shape)) + shift * boxes
    contrast = np.exp(generator.uniform(0, 4, N))
    hit = generator.random(N) < special.expit(3 * (np.log(contrast) - math.log(12)))
    found = figures_of(rows_of(z, np.ones(N), hit.astype(float), boxes, contrast), np.zeros(50))
    area = stats.norm.cdf(shift / math.sqrt(2))
    assert found["pixel auroc"]["low"] < area < found["pixel auroc"]["high"]
    assert found["pixel auroc"]["high"] - found["pixel auroc"]["low"] < 0.05
    half = found["contrast at half recall, 5%"]
    assert half["low"] < 12 < half["high"] < 20
    planted, null = generator.normal(1, 1, 400), generator.normal(0, 1, 300)
    one = two_sample_auroc(planted, null)
    assert one.low < stats.norm.cdf(1 / math.sqrt(2)) < one.high
    assert one.n == 300


@pytest.mark.parametrize("kind", ["trap-before", "trap-after", "jump", "stroke"])
def test_plants_show_in_their_boxes_and_belong_to_their_seed(kind):
    toy = Toy()
    planted = plant_rows(toy, range(40, 64), kind)
    assert len(planted.kept) == 24
    # The toy takes a jump back at once, and a stroke before its first prediction: that is what contrast then says.
    assert float(planted.contrast.median()) > (2 if kind.startswith("trap") else 0.01)
    assert 0.05 < float(planted.boxes.double().mean()) < 0.5
    plain, same = plant_rows(toy, range(40, 44), kind), planted
    assert torch.equal(plain.boxes, same.boxes[:4])
    if kind == "trap-after":
        outcomes = [outcome(float(level)) for level in planted.levels]
        assert "persisting" in outcomes
    before = plant_rows(toy, range(40, 64), "trap-before")
    if kind == "trap-after":
        assert float(planted.levels.mean()) > float(before.levels.mean())


@dataclass(frozen=True, eq=False)
class Latent(Toy):
    """The toy's image as a latent, of half the size and two thirds of the contrast."""

    latent: bool = True

    def decode(self, x0):
        return 1.5 * x0.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_what_became_of_a_plant_in_latents_is_told_in_grey_levels_of_the_images():
    plain, latent = (plant_rows(kind(), range(40, 52), "trap-after") for kind in (Toy, Latent))
    assert latent.images.shape[-2:] == (32, 32)
    assert latent.boxes.shape[-2:] == (16, 16)
    shown = latent.boxes.repeat_interleave(2, -1).repeat_interleave(2, -2)
    difference = (latent.images.clamp(-1, 1) - latent.twins.clamp(-1, 1)).double().square().mean(1) * 127.5**2
    expected = ((difference * shown).flatten(1).sum(1) / shown.flatten(1).sum(1)).sqrt()
    torch.testing.assert_close(latent.levels, expected)
    assert "persisting" in {outcome(float(level)) for level in latent.levels}
    assert float(latent.contrast.max()) < 10 < float(plain.contrast.max())  # deviations, not levels


def test_plants_on_a_ground_that_is_not_there_are_none():
    assert plant_rows(Toy(), range(4), "jump", "large", "plain") is None
    assert len(plant_rows(Toy(), range(4), "jump", "large", "textured").kept) == 4


@pytest.mark.parametrize("steps", [9, 12, 20, 25, 50])
@pytest.mark.parametrize("kind", ["trap-before", "trap-after", "jump"])
def test_a_plant_begins_within_every_window(kind, steps):
    toy = Toy(steps=steps)
    planted = plant_rows(toy, range(40, 64), kind)
    t_c, plants = planted.prefix.t_c, planted.prefix.denoiser.plants
    starts = {plant.start for plant in plants}
    assert max(starts) <= (t_c - 3 if kind == "jump" else t_c - 2)
    windows = [plan_run(toy.schedule, config).start for config in CONFIGS.values()]
    latest = max(*windows, t_c // 2)  # the second half: trajectory variance
    if t_c - latest > 3:
        assert min(starts) > latest
        assert len(starts) > 1
    else:  # nothing is early enough for all
        assert len(starts) == 1


def test_the_ground_of_a_latent_is_that_of_its_image():
    """The image is plain on its right half alone, the latent nowhere."""

    @dataclass(frozen=True, eq=False)
    class HalfGrey(Latent):
        def decode(self, x0):
            image = super().decode(x0)
            image[..., 16:] = 0.25
            return image

    planted = plant_rows(HalfGrey(), range(24), "trap-after", "small", "plain")
    assert len(planted.kept) == 24
    assert not bool(planted.boxes[..., :8].any())
    assert plant_rows(Latent(), range(4), "trap-after", "small", "plain") is None


def test_a_map_finds_the_region_that_stands_out():
    scores = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0))
    scores[0, 4:12, 6:14] += 30
    found = detectors.by_map(scores, CONFIGS["fast"])
    assert found.mask[0, 6:10, 8:12].all()
    assert found.mask[0, :, 20:].sum() == 0
    assert float(found.severity[0]) > float(found.severity[1])
    scaled = detectors.by_map(scores * 1e6, CONFIGS["fast"])
    assert torch.equal(found.mask, scaled.mask)


def test_phases_find_one_peak_and_tell_two():
    generator = np.random.default_rng(0)
    at = np.arange(24)
    one = np.exp(-(((at - 11) / 3.0) ** 2)) + 0.02 * generator.standard_normal((80, 24))
    two = one + 0.8 * np.exp(-(((at - 20) / 1.5) ** 2))
    for share, further in ((one, 0), (two, 1)):
        found = {entry["measure"]: entry for entry in phase_figures(share)}
        peak = found["peak of abnormal locations, t/T"]
        assert peak["low"] <= 12.5 / 25 <= peak["high"] < 0.6
        assert found["further maxima of half the height"]["value"] == further


def test_natural_figures_of_a_seer_and_of_the_blind():
    generator = torch.Generator().manual_seed(4)
    marks = torch.zeros(60, 8, 8, dtype=torch.bool)
    marks[:30, :4, :4] = True
    noise = torch.rand(5, 60, 8, 8, generator=generator)
    noise[3] += marks
    found, curve = natural_figures(marks.float(), noise, marks)
    named = {one["measure"]: one for one in found}
    assert named["pixel auroc for defects at t_c"]["value"] == 1
    assert named["defect rate"]["value"] == 0.5
    assert named["steps from the first auroc above .5 to the last"]["value"] == 1
    assert [one["low"] > 0.5 for one in curve] == [False, False, False, True, False]
    assert natural_figures(marks.float(), noise, torch.zeros_like(marks))[1] == []


def test_the_scale_of_the_score_falls_and_that_of_the_prediction_does_not():
    toy = Toy()
    whole = watch(toy, range(6), t_c=toy.steps)
    found = variation(toy, whole)
    assert found.shape == (6, 4)
    assert np.isfinite(found).all()
    assert (found > 0).all()


def test_mixed_traps_are_released_on_both_sides_of_t_c():
    planted = plant_rows(Toy(), range(40, 64), "trap", "mixed")
    t_c, plants = planted.prefix.t_c, planted.prefix.denoiser.plants
    sides = {seed // 2 % 2 == 0: plant.released_before(t_c) for seed, plant in zip(range(40, 64), plants, strict=True)}
    assert sides == {True: True, False: False}
    assert len({plant.box.height for plant in plants}) == 3
    assert {plant.source is None for plant in plants} == {True, False}
