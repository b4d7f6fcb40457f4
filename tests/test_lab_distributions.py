# SPDX-License-Identifier: MIT
"""Distances between sets of images in feature space, against scipy, double loops and closed forms."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from ascedfast.lab.distributions import fd_floor, fd_local, kid_local, precision_recall
from ascedfast.lab.statistics import seed_set_interval


def features(n, d, seed, scale=1.0, shift=0.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(n, d, seed):
    """Correlated and not centred, as features are."""
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / math.sqrt(d)
    return features(n, d, seed) @ mix + 5


def fd_by_scipy(a, b):
    a, b = a.numpy(), b.numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 200, 8), (300, 150, 16), (90, 90, 64)])
def test_fd_local_against_scipy(n, m, d):
    real, drawn = mixed(n, d, 0), 1.2 * mixed(m, d, 1)
    assert fd_local(real, drawn) == pytest.approx(fd_by_scipy(real, drawn), rel=1e-8)
    assert fd_local(drawn, real) == pytest.approx(fd_local(real, drawn), rel=1e-9)


def test_fd_local_of_normal_sets_of_known_moments():
    whitened = features(500, 4, 0)
    whitened = whitened - whitened.mean(0)
    whitened = whitened @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(whitened.T))).T
    assert fd_local(whitened, whitened * 3 + 2) == pytest.approx(4 * 2**2 + 4 * (3 - 1) ** 2, rel=1e-9)
    assert fd_local(whitened, whitened) == pytest.approx(0, abs=1e-9)


def test_fd_local_far_from_zero_keeps_its_digits():
    real, drawn = mixed(200, 8, 0), mixed(200, 8, 1)
    assert fd_local(real + 1e6, drawn + 1e6) == pytest.approx(fd_local(real, drawn), rel=1e-6)


def test_features_of_fewer_samples_than_dimensions():
    # The product of two singular covariances: scipy's square root fails there, the eigenvalues do not.
    value = fd_local(features(20, 64, 0), features(20, 64, 1))
    assert math.isfinite(value)
    assert value > 0


@pytest.mark.parametrize("spectrum", [np.ones(16), np.geomspace(4, 0.05, 16)], ids=["round", "long"])
def test_real_against_real_gives_the_known_floor(spectrum):
    scale = torch.tensor(spectrum) ** 0.5
    n = 400
    values = [fd_local(features(n, 16, 2 * i) * scale, features(n, 16, 2 * i + 1) * scale) for i in range(100)]
    found = seed_set_interval(values)
    floor = fd_floor(torch.diag(scale**2), n)
    # The floor is of first order in 1/n; the next is about d/n of it.
    assert found.low * 0.96 < floor < found.high * 1.04
    assert found.high - found.low < 0.12 * floor


def test_floor_of_a_round_distribution_in_closed_form():
    d, n = 16, 1000
    assert fd_floor(torch.eye(d), n) == pytest.approx(2 * d / n + d * (d + 1) / 2 / (n - 1), rel=1e-12)
    assert fd_floor(torch.diag(torch.tensor([1.0, 0.0])), n) == pytest.approx(2 / n + 1 / (n - 1), rel=1e-12)


def test_a_planted_shift_is_recovered_above_the_floor():
    """Ten disjoint sets, as in every table: the shift's square is what lies above real against real."""
    shift = 0.5
    above = []
    for i in range(10):
        real, other, drawn = features(500, 8, 3 * i), features(500, 8, 3 * i + 1), features(500, 8, 3 * i + 2)
        drawn[:, 0] += shift
        above.append(fd_local(real, drawn) - fd_local(real, other))
    found = seed_set_interval(above)
    assert found.low < shift**2 < found.high
    assert found.low > 0


def kid_by_loops(a, b):
    n, d = a.shape
    kernel = lambda x, y: (float(x @ y) / d + 1) ** 3  # noqa: E731
    same = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(n) for j in range(n) if i != j)
    return same / (n * (n - 1)) - 2 * sum(kernel(x, y) for x in a for y in b) / n**2


def test_kid_local_against_loops():
    real, drawn = mixed(25, 6, 0), mixed(25, 6, 1) + 0.3
    assert kid_local(real, drawn) == pytest.approx(kid_by_loops(real, drawn), rel=1e-9)


def test_kid_local_is_unbiased():
    found = seed_set_interval([kid_local(features(100, 8, 2 * i), features(100, 8, 2 * i + 1)) for i in range(60)])
    assert found.low < 0 < found.high


def test_kid_local_draws_nothing_from_the_callers_generator():
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = kid_local(mixed(30, 4, 0), mixed(30, 4, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert kid_local(mixed(30, 4, 0), mixed(30, 4, 1)) == first


def covered_by_loops(points, centres, k):
    radius = [
        sorted(math.dist(c, other) for j, other in enumerate(centres) if j != i)[k - 1] for i, c in enumerate(centres)
    ]
    return sum(any(math.dist(p, c) <= r for c, r in zip(centres, radius, strict=True)) for p in points) / len(points)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_precision_recall_against_loops(k, chunk):
    real, drawn = features(40, 3, 0), features(30, 3, 1, scale=0.6, shift=0.5)
    expected = [covered_by_loops(drawn.tolist(), real.tolist(), k), covered_by_loops(real.tolist(), drawn.tolist(), k)]
    assert precision_recall(real, drawn, k, chunk) == pytest.approx(expected)


def test_precision_recall_of_repeated_points_and_of_the_same_set():
    # On a coarse lattice many distances are equal: a point on the border belongs to the ball.
    real, drawn = (features(60, 2, seed).mul(2).round() for seed in (0, 1))
    expected = [covered_by_loops(drawn.tolist(), real.tolist(), 3), covered_by_loops(real.tolist(), drawn.tolist(), 3)]
    assert precision_recall(real, drawn) == pytest.approx(expected)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 100) == (0.0, 0.0)


def test_what_drops_out_shows_as_recall_and_what_is_added_as_precision():
    modes = torch.arange(400) % 2
    real = features(400, 4, 0) + 20.0 * modes[:, None]
    precision, recall = precision_recall(real, features(400, 4, 1))
    assert precision > 0.9
    assert 0.4 < recall < 0.5
    precision, recall = precision_recall(features(400, 4, 1), real)
    assert 0.4 < precision < 0.5
    assert recall > 0.9


@pytest.mark.parametrize("measure", [fd_local, kid_local, precision_recall])
def test_bad_features(measure):
    good = features(10, 3, 0)
    with pytest.raises(ValueError, match="NaN"):
        measure(good, good * math.nan)
    with pytest.raises(ValueError, match="float"):
        measure(good.long(), good)
    with pytest.raises(ValueError, match="differ"):
        measure(good, features(10, 4, 0))
    if measure is not fd_local:
        with pytest.raises(ValueError, match=r"one size|k must lie"):
            measure(good, good[:3])


def test_torchvision_is_not_needed():
    code = """
import sys
sys.modules["torchvision"] = sys.modules["torch_fidelity"] = None
import torch
from ascedfast.lab.distributions import fd_local, kid_local
x = torch.eye(4).repeat(3, 1)
print(fd_local(x, x) < 1e-9, kid_local(x, x) < 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True True", done.stderr
