# SPDX-License-Identifier: MIT
"""Places, grounds and measures of regions, against loops and scipy."""

import collections
import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from ascedfast.lab import regions
from ascedfast.lab.regions import Box, draw_box, draw_boxes_on, ground_of, largest_side


def images(rows=3, channels=3, height=10, width=8, seed=0):
    return torch.randn(rows, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 0.7


def some_masks(rows=3, height=10, width=8, seed=1):
    return torch.rand(rows, height, width, generator=torch.Generator().manual_seed(seed)) < 0.4


def levels_of(image):
    return image.double().clamp(-1, 1).numpy() * 127.5


def test_box_mask():
    mask = Box(1, 2, 3, 4).mask((6, 7))
    assert mask.sum() == 12
    assert mask[1, 2]
    assert mask[3, 5]
    for bad in (Box(4, 0, 3, 1), Box(0, 5, 1, 3), Box(-1, 0, 1, 1), Box(0, 0, 0, 1)):
        with pytest.raises(ValueError, match="does not lie"):
            bad.mask((6, 7))


@pytest.mark.parametrize("grid", [(32, 32), (64, 64), (16, 40), (5, 200)])
def test_largest_side_is_half_the_area(grid):
    side = largest_side(grid)
    assert 2 * side**2 <= grid[0] * grid[1]
    assert 2 * (side + 1) ** 2 > grid[0] * grid[1] or side == min(grid)
    draw_box(0, side, grid).mask(grid)


def draw_box_on(seed, side, twin, *more):
    return draw_boxes_on([seed], [side], twin[None], *more)[0]


def test_rows_of_several_sides_are_drawn_as_each_alone():
    twins = torch.stack([half_textured(), half_textured().flip(-1), torch.zeros(1, 32, 32), half_textured().mT])
    for ground, margin in (("plain", 0.0), ("plain", 115.0), ("textured", 0.0)):
        alone = [draw_box_on(*one, ground, None, margin) for one in zip(range(4), (8, 5, 8, 16), twins, strict=True)]
        assert draw_boxes_on(range(4), (8, 5, 8, 16), twins, ground, None, margin) == alone
        assert len(set(alone)) > 1


def test_places_on_a_coarser_grid_are_of_whole_locations():
    """Of four locations a side, each of 4x4 pixels, the right upper quarter is plain."""
    image = 0.8 * (torch.arange(256).reshape(1, 16, 16) % 2 * 2 - 1).float()
    image[:, :10, 6:] = 0.3
    drawn = {draw_box_on(seed, 2, image, "plain", (4, 4)) for seed in range(20)}
    assert drawn == {Box(0, 2, 2, 2)}
    with pytest.raises(ValueError, match="no multiple"):
        draw_box_on(0, 2, image, "plain", (5, 4))


def test_boxes_are_uniform_and_belong_to_the_seed():
    counts = collections.Counter(draw_box(seed, 4, (6, 7))[:2] for seed in range(2400))
    assert len(counts) == 3 * 4
    assert min(counts.values()) > 140  # 200 each are expected, 4.4 standard deviations
    assert draw_box(5, 4, (6, 7)) == draw_box(5, 4, (6, 7))
    with pytest.raises(ValueError, match="does not fit"):
        draw_box(0, 7, (6, 7))


def test_local_variance_against_scipy():
    given = images()
    expected = [
        np.mean([scipy.ndimage.generic_filter(c, np.var, size=5, mode="mirror") for c in levels_of(image)], 0)
        for image in given
    ]
    np.testing.assert_allclose(regions.local_variance(given), expected, rtol=1e-9)


def half_textured():
    """Left half: a slope of one grey level a pixel. Right half: a checkerboard of +-8 levels."""
    height, width = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    board = 8 * (1 - 2 * ((height + width) % 2))
    return (torch.where(width < 16, width, board) * regions.GREY_LEVEL)[None].float()


def test_ground():
    image = half_textured()
    assert ground_of(image, Box(4, 2, 8, 8)) == "plain"
    assert ground_of(image, Box(4, 20, 8, 8)) == "textured"
    assert ground_of(torch.ones(3, 32, 32), Box(0, 0, 32, 32)) == "plain"


@pytest.mark.parametrize("ground", ["plain", "textured"])
def test_boxes_drawn_on_a_ground_lie_on_it(ground):
    image = half_textured()
    fitting = {
        (top, left)
        for top, left in itertools.product(range(25), range(25))
        if ground_of(image, Box(top, left, 8, 8)) == ground
    }
    drawn = {draw_box_on(seed, 8, image, ground)[:2] for seed in range(1500)}
    assert drawn <= fitting
    assert len(drawn) > 0.8 * len(fitting)
    assert draw_box_on(0, 8, torch.zeros(1, 16, 16), "textured") is None


def test_rms_difference_against_loops():
    a, b, masks = images(seed=0), images(seed=1), some_masks()
    masks[2] = False
    found = regions.rms_difference(a, b, masks)
    for row in range(2):
        squares = (levels_of(a[row]) - levels_of(b[row]))[:, masks[row].numpy()] ** 2
        assert float(found[row]) == pytest.approx(math.sqrt(squares.mean()), rel=1e-12)
    assert math.isnan(found[2])


def test_rms_difference_of_latents_in_null_standard_deviations():
    spread = torch.tensor([2.0, 0.5, 1.0]).view(3, 1, 1)
    latents, masks = 5 * images(), some_masks()
    found = regions.rms_difference(latents + 3 * spread, latents, masks, clip=None, unit=spread)
    np.testing.assert_allclose(found, 3.0, rtol=1e-6)


def test_change_outside():
    a, masks = images(), some_masks()
    changed = torch.where(masks[:, None], a + 0.5, a)
    assert torch.equal(regions.change_outside(changed, a, masks), torch.zeros(3, dtype=torch.float64))
    assert (regions.change_outside(a * 0.9, a, masks) > 0).all()


def test_seam_energy_against_loops():
    given, masks = images(), some_masks()
    masks[2] = True
    found = regions.seam_energy(given, masks)
    for row in range(2):
        image, mask, squares = levels_of(given[row]), masks[row], []
        for y, x in itertools.product(range(10), range(8)):
            for v, u in ((y + 1, x), (y, x + 1)):
                if v < 10 and u < 8 and mask[y, x] != mask[v, u]:
                    squares.append(((image[:, y, x] - image[:, v, u]) ** 2).mean())
        assert float(found[row]) == pytest.approx(np.mean(squares), rel=1e-12)
    assert math.isnan(found[2])


def test_a_planted_seam_is_recovered():
    flat, mask = torch.zeros(1, 3, 16, 16), Box(4, 4, 8, 8).mask((16, 16))[None]
    step = torch.where(mask[:, None], 10 * regions.GREY_LEVEL, 0.0).expand(1, 3, 16, 16)
    assert float(regions.seam_energy(flat, mask)) == 0
    assert float(regions.seam_energy(step, mask)) == pytest.approx(100, rel=1e-6)


def test_diversity_inside():
    draws = torch.stack([images(seed=s) for s in range(5)])
    masks = some_masks()
    pairs = [regions.rms_difference(a, b, masks) for a, b in itertools.combinations(draws, 2)]
    torch.testing.assert_close(regions.diversity_inside(draws, masks), torch.stack(pairs).mean(0))
    with pytest.raises(ValueError, match="N >= 2"):
        regions.diversity_inside(draws[:1], masks)


def test_diversity_of_noise_of_known_size():
    noise = torch.randn(16, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 10 * regions.GREY_LEVEL
    found = float(regions.diversity_inside(noise, torch.ones(1, 32, 32, dtype=torch.bool)))
    assert found == pytest.approx(10 * math.sqrt(2), rel=0.02)


def test_mean_pairwise_distance():
    features = torch.randn(16, 7, generator=torch.Generator().manual_seed(0))
    expected = np.mean([math.dist(a, b) for a, b in itertools.combinations(features.double().tolist(), 2)])
    assert regions.mean_pairwise_distance(features) == pytest.approx(expected, rel=1e-12)
