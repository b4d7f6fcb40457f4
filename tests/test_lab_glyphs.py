# SPDX-License-Identifier: MIT
"""Family F5 and its judge: right on at least 99.5 % of real and of broken grids."""

import functools

import numpy as np
import pytest
import torch

from ascedfast.lab import glyphs
from ascedfast.lab.glyphs import BITMAPS, draw_grids, judge, malformed, templates

N = 2000


@functools.cache
def grids(kind, cell=8):
    return draw_grids(range(N), kind, cell)


def noisy(images, std, seed=0):
    return images + std * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def test_templates_are_exact_areas():
    bits = np.array([[[mark == "#" for mark in row] for row in glyph] for glyph in BITMAPS], float)
    assert len({tuple(glyph) for glyph in BITMAPS}) == 8
    found = templates()
    np.testing.assert_allclose(found.sum((-2, -1))[:, 4, 4], bits.sum((1, 2)), rtol=1e-6)
    # Displaced by (i-4)/8: the share of each pixel that falls on the neighbour below or to the right.
    padded = np.pad(bits, ((0, 0), (1, 1), (1, 1)))
    for i, j in ((4, 4), (6, 4), (8, 2), (1, 7)):
        down, right = (i - 4) / 8, (j - 4) / 8
        expected = padded
        for axis, shift in ((1, down), (2, right)):
            moved = np.roll(expected, int(np.sign(shift)), axis)
            expected = (1 - abs(shift)) * expected + abs(shift) * moved
        np.testing.assert_allclose(found[:, i, j], expected, atol=1e-6)


def test_larger_cells_are_finer_pictures_of_the_same():
    for cell in (16, 32):
        averaged = torch.nn.functional.avg_pool2d(templates(cell).flatten(0, 2)[:, None], cell // 8)[:, 0]
        torch.testing.assert_close(averaged, templates().flatten(0, 2))
    with pytest.raises(ValueError, match="multiple of 8"):
        templates(12)


def test_no_two_glyphs_are_alike():
    bank = templates().reshape(8, 81, 64)
    for a in range(8):
        for b in range(a):
            distance = 2 * torch.cdist(bank[a], bank[b]) / 8
            assert distance.min() > 0.48


def test_real_grids_keep_the_rule_and_broken_ones_break_it_in_one_row():
    real, repeat, bad = grids(None), grids("repeat"), grids("malformed")
    assert real.images.shape == (N, 1, 32, 32)
    assert real.images.dtype == torch.float32
    assert real.images.min() == -1
    assert real.images.max() <= 1
    distinct = lambda rows: torch.tensor([[len(set(row)) for row in grid] for grid in rows.tolist()])  # noqa: E731
    assert (distinct(real.glyphs) == 4).all()
    assert not real.broken.any()
    assert sorted(distinct(repeat.glyphs).flatten().unique().tolist()) == [3, 4]
    assert ((distinct(repeat.glyphs) == 3).sum(1) == 1).all()
    assert (repeat.broken.flatten(1).sum(1) == 2).all()
    at = repeat.broken.flatten(1).nonzero()[:, 1].reshape(N, 2)
    assert (repeat.glyphs.flatten(1).gather(1, at).diff(dim=1) == 0).all()
    assert torch.equal(bad.broken, bad.glyphs == -1)
    assert (bad.broken.flatten(1).sum(1) == 1).all()


def test_every_glyph_comes_equally_often_everywhere():
    counts = torch.stack([(grids(None).glyphs == glyph).sum(0) for glyph in range(8)])
    assert (counts - N / 8).abs().max() < 4.5 * (N * 7 / 64) ** 0.5


def test_a_grid_belongs_to_its_seed():
    for kind in (None, "repeat", "malformed"):
        assert torch.equal(draw_grids([17, 4], kind).images, grids(kind).images[[17, 4]])
    assert not torch.equal(grids(None).images[0], grids(None).images[1])
    assert draw_grids([]).images.shape == (0, 1, 32, 32)


def test_malformed_cells_are_of_every_sort():
    bad = malformed()
    assert len(bad) > 100
    assert (bad.flatten(1).sum(1) == 0).any()
    full = torch.stack([2 * cover for cover in bad]).flatten(1)
    bank = templates().reshape(-1, 64)
    for ink in (1.4, 1.6, 1.8, 2.0):
        assert (torch.cdist(full, ink * bank) / 8).min() > glyphs.BREAK_DISTANCE - 1e-5


@pytest.mark.parametrize("std", [0.0, 0.05, 0.1], ids=["clean", "6 levels", "13 levels"])
def test_judge_is_right(std):
    """At least 99.5 % of 2,000 real and of 2,000 broken grids, half of these of each sort."""
    real = judge(noisy(grids(None).images, std))
    assert real.defective.float().mean() <= 0.005
    assert (real.glyphs == grids(None).glyphs).all(-1).all(-1).float().mean() >= 0.995
    halves = [grids("repeat"), grids("malformed")]
    verdicts = [judge(noisy(half.images[: N // 2], std, seed=1)) for half in halves]
    found = torch.cat([verdict.defective for verdict in verdicts])
    assert len(found) == N
    assert found.float().mean() >= 0.995
    for half, verdict in zip(halves, verdicts, strict=True):
        right = (verdict.cells == half.broken[: N // 2]).flatten(1).all(1)
        assert right.float().mean() >= 0.99  # and it says where


def test_judge_of_larger_cells_and_blurred_ink():
    real, repeat = grids(None, 16), draw_grids(range(300), "repeat", 16)
    assert not judge(noisy(real.images[:300], 0.1)).defective.any()
    assert judge(noisy(repeat.images, 0.1)).defective.all()


def test_judge_against_brute_force():
    images = noisy(draw_grids(range(6), "malformed").images, 0.1)
    verdict = judge(images)
    bank = templates().double()
    above = images.double().clamp(-1, 1) + 1
    for n, row, col in [(n, r, c) for n in range(6) for r in range(4) for c in range(4)]:
        tile = above[n, 0, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
        best = min(
            (
                float(((tile - min(max(float((tile * t).sum() / (t * t).sum()), 1.4), 2.0) * t) ** 2).mean()) ** 0.5,
                glyph,
            )
            for glyph in range(8)
            for t in bank[glyph].flatten(0, 1)
        )
        assert float(verdict.residual[n, row, col]) == pytest.approx(best[0], abs=1e-4)
        assert int(verdict.glyphs[n, row, col]) == (best[1] if best[0] <= glyphs.LIMIT else -1)


def test_map_of_the_defective_cells():
    verdict = judge(grids("repeat").images[:20])
    assert torch.equal(verdict.locations[:, 0, ::8, ::8], verdict.cells)
    assert verdict.locations.float().mean() == pytest.approx(2 / 16)
    assert verdict.locations.shape == (20, 1, 32, 32)


def test_chunks_do_not_matter():
    images = grids("malformed").images[:30]
    for a, b in zip(judge(images), judge(images, chunk=7), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-6)
    assert judge(images[:0]).defective.shape == (0,)


def test_noise_and_blank_images_are_defective():
    assert judge(noisy(torch.zeros(20, 1, 32, 32), 1.0)).defective.all()
    assert judge(torch.full((2, 1, 32, 32), -1.0)).defective.all()


def test_bad_images():
    for shape in ((1, 3, 32, 32), (1, 1, 32, 40), (1, 1, 28, 28)):
        with pytest.raises(ValueError, match="grids are"):
            judge(torch.zeros(shape))
    with pytest.raises(ValueError, match="NaN"):
        judge(torch.full((1, 1, 32, 32), float("nan")))
