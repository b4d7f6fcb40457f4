# SPDX-License-Identifier: MIT
"""The scores of the dynamics against loops over single locations, and what they must not depend on."""

import math

import numpy as np
import pytest
import torch

from ascedfast import ops
from ascedfast.reference_scores import relative_changes

PROFILE = [5.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.2]


def changes(rows=3, shape=(6, 7), steps=7, seed=0):
    d = 0.5 + torch.rand(steps, rows, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (d * torch.tensor(PROFILE[:steps], dtype=torch.float64).view(-1, 1, *[1] * len(shape))).float()


def by_hand(d, profile):
    """still and jump of one row, [K, H, W] in float64, location by location."""
    shares = np.array([one.mean() / share for one, share in zip(d, profile, strict=True)])
    scale = max(np.median(shares), 0.01 * shares.mean())
    r = np.array([one / (scale * share) for one, share in zip(d, profile, strict=True)])
    still, jump = np.empty(d.shape[1:]), np.empty(d.shape[1:])
    for at in np.ndindex(*d.shape[1:]):
        series = [one[at] for one in r]
        first = min(3, len(series) - 1)
        still[at] = max((sum(series[:k]) / k + 0.05) / (series[k] + 0.05) for k in range(first, len(series)))
        leaps = []
        for k in range(len(series) - 1):
            others = series[:k] + series[k + 2 :]
            if others:
                leaps.append(min(series[k], series[k + 1]) / (sum(others) / len(others) + 0.5))
        jump[at] = max(leaps, default=0.0)
    return still, jump


@pytest.mark.parametrize("steps", [2, 3, 4, 7])
def test_against_loops_over_locations(steps):
    d = changes(steps=steps)
    found = ops.temporal_scores(d, PROFILE[:steps])
    for row in range(d.shape[1]):
        still, jump = by_hand(d[:, row].double().numpy(), PROFILE[:steps])
        np.testing.assert_allclose(found.still[row], still, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.jump[row], jump, rtol=1e-5, atol=1e-5)
    assert found.still.dtype == found.jump.dtype == torch.float32


def test_volumes_are_scored_as_planes_are():
    d = changes(shape=(4, 15))
    flat, volume = ops.temporal_scores(d, PROFILE), ops.temporal_scores(d.view(7, 3, 2, 6, 5), PROFILE)
    assert torch.equal(flat.still.flatten(), volume.still.flatten())
    assert torch.equal(flat.jump.flatten(), volume.jump.flatten())


def test_units_of_the_changes_and_of_the_profile_cancel():
    d = changes()
    ours, other = ops.temporal_scores(d, PROFILE), ops.temporal_scores(64 * d, [value / 8 for value in PROFILE])
    assert torch.equal(ours.still, other.still)
    assert torch.equal(ours.jump, other.jump)


def test_a_region_that_stands_still_scores_highest():
    d = changes()
    d[4:, 1, 2:4, 3:5] = 0
    found = ops.temporal_scores(d, PROFILE)
    region = torch.zeros(6, 7, dtype=torch.bool)
    region[2:4, 3:5] = True
    assert found.still[1][region].min() > found.still[1][~region].max()


def test_a_leap_there_and_back_scores_highest():
    d = changes()
    d[3:5, 2, 1:3, 1:3] += 40
    found = ops.temporal_scores(d, PROFILE)
    region = torch.zeros(6, 7, dtype=torch.bool)
    region[1:3, 1:3] = True
    assert found.jump[2][region].min() > 3 * found.jump[2][~region].max()


def test_a_leap_over_half_of_the_sample_does_not_move_its_scale():
    """Of seven steps two are inflated: the median of the steps' means is another step's."""
    d = changes(shape=(32, 32))
    leapt = d.clone()
    leapt[3:5, :, :16] += 200
    shares = relative_changes(leapt, PROFILE)[0] / relative_changes(d, PROFILE)[0]
    assert (shares - 1).abs().max() < 0.1


def test_rows_do_not_see_each_other_and_nan_stays_in_its_row():
    d = changes()
    whole = ops.temporal_scores(d, PROFILE)
    for row in range(3):
        alone = ops.temporal_scores(d[:, row : row + 1], PROFILE)
        assert torch.equal(alone.still[0], whole.still[row])
        assert torch.equal(alone.jump[0], whole.jump[row])
    broken = d.clone()
    broken[2, 1, 0, 0] = math.nan
    found = ops.temporal_scores(broken, PROFILE)
    assert found.still[1].isnan().all()
    assert found.jump[1].isnan().all()
    assert torch.equal(found.still[[0, 2]], whole.still[[0, 2]])


def test_a_sample_that_never_changes_has_no_still_region():
    found = ops.temporal_scores(torch.zeros(7, 1, 4, 4), PROFILE)
    assert torch.equal(found.still, torch.ones(1, 4, 4))


@pytest.mark.parametrize(
    ("shape", "profile", "said"),
    [
        ((1, 2, 4, 4), [1.0], "at least 2"),
        ((3, 2, 4, 4), [1.0, 2.0], "the profile K numbers"),
        ((3, 2), [1.0, 2.0, 3.0], r"\[K, R, \*grid\]"),
        ((3, 2, 16), [1.0, 2.0, 3.0], "2 or 3 axes"),
        ((3, 2, 2, 2, 4, 4), [1.0, 2.0, 3.0], "2 or 3 axes"),
        ((), [], "2 or 3 axes"),
        ((0, 2, 4, 4), [], "at least 2"),
        ((3, 2, 4, 4), [1.0, 0.0, 3.0], "positive"),
        ((3, 2, 4, 4), [1.0, math.nan, 3.0], "positive"),
        ((3, 2, 4, 4), [1.0, math.inf, 3.0], "finite"),
    ],
)
def test_bad_input(shape, profile, said):
    with pytest.raises(ValueError, match=said):
        ops.temporal_scores(torch.rand(shape), profile)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_changes_are_floats(dtype):
    with pytest.raises(TypeError, match="float dtype"):
        ops.temporal_scores(torch.ones(3, 2, 4, 4).to(dtype), [1.0, 2.0, 3.0])


def test_inf_takes_the_scale_of_its_row():
    d = changes()
    whole = ops.temporal_scores(d, PROFILE)
    d[2, 1, 3, 4] = math.inf
    found = ops.temporal_scores(d, PROFILE)
    here = torch.zeros(6, 7, dtype=torch.bool)
    here[3, 4] = True
    for one, elsewhere, before in zip(found, (1.0, 0.0), whole, strict=True):
        assert torch.equal(one[1].isnan(), here)
        assert (one[1][~here] == elsewhere).all()
        assert torch.equal(one[[0, 2]], before[[0, 2]])
