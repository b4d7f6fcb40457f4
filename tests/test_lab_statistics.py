# SPDX-License-Identifier: MIT
"""Figures of single images and their intervals, against brute force, scipy and simulation."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ascedfast.lab.statistics import (
    Estimate,
    auroc,
    auroc_of_counts,
    bootstrap_of_means,
    count_scores,
    iou,
    paired_bootstrap,
    pooled_auroc,
    recall_at_rate,
    recall_interval,
    seed_set_interval,
    threshold_at_rate,
    wilson,
)


def random(seed=0):
    return np.random.default_rng(seed)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_auroc_counts_pairs_and_halves_of_ties(pairs):
    scores, positive = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    if positive.all() or not positive.any():
        with pytest.raises(ValueError, match="positives and negatives"):
            auroc(scores, positive)
        return
    wins = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(wins), abs=1e-12)


def test_auroc_is_the_mann_whitney_statistic():
    scores, positive = np.round(random().normal(size=500), 1), random(1).random(500) < 0.3
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert auroc(scores, positive) == pytest.approx(u / (positive.sum() * (~positive).sum()), abs=1e-12)


def test_auroc_orders_infinities_and_refuses_nan():
    assert auroc([-math.inf, 0.0, math.inf], np.array([False, False, True])) == 1.0
    with pytest.raises(ValueError, match="NaN"):
        auroc([math.nan, 0.0], np.array([True, False]))
    with pytest.raises(ValueError, match="bool"):
        auroc([1.0, 0.0], np.array([1, 0]))


def test_a_perfect_detector_scores_one_and_a_random_one_half():
    positive = random().random((200, 8, 8)) < 0.2
    perfect = count_scores(positive.astype(float), positive)
    assert auroc(positive.astype(float), positive) == 1.0
    assert pooled_auroc(perfect)[:3] == (1.0, 1.0, 1.0)
    guess = pooled_auroc(count_scores(random(1).normal(size=positive.shape), positive))
    assert guess.low < 0.5 < guess.high
    assert guess.high - guess.low < 0.04
    assert guess.n == 200


def test_counted_scores_lose_nothing_where_every_score_has_its_level():
    scores, positive = random().integers(0, 50, (30, 20)).astype(float), random(1).random((30, 20)) < 0.4
    counts = count_scores(scores, positive, levels=64)
    assert auroc_of_counts(counts.positive.sum(0), counts.negative.sum(0)) == pytest.approx(auroc(scores, positive))
    assert pooled_auroc(counts).value == pytest.approx(auroc(scores, positive), abs=1e-12)


@pytest.mark.parametrize("scores", [random().normal(size=(50, 400)), random().exponential(size=(50, 400)) ** 4])
def test_counted_scores_are_close_with_fewer_levels(scores):
    positive = random(1).random(scores.shape) < 1 / (1 + np.exp(-scores))
    assert pooled_auroc(count_scores(scores, positive), draws=10).value == pytest.approx(
        auroc(scores, positive), abs=1e-4
    )


def test_pooled_auroc_resamples_images_like_the_plain_bootstrap():
    scores, positive = random().integers(0, 9, (40, 30)).astype(float), random(1).random((40, 30)) < 0.4
    fast = pooled_auroc(count_scores(scores, positive), draws=200, seed=5)
    plain = paired_bootstrap(auroc, scores, positive, draws=200, seed=5)
    assert fast == pytest.approx(plain, abs=1e-9)


def test_comparing_a_detector_with_itself_gives_exactly_nothing():
    scores, positive = random().normal(size=(40, 30)), random(1).random((40, 30)) < 0.4
    counts = count_scores(scores, positive)
    assert pooled_auroc(counts, counts)[:3] == (0.0, 0.0, 0.0)
    better = count_scores(scores + positive, positive)
    gain = pooled_auroc(better, counts)
    assert 0 < gain.low < gain.value < gain.high


def test_threshold_lets_at_most_the_rate_pass():
    null = np.arange(100.0)
    for rate, passing in ((0.0, 0), (0.01, 1), (0.05, 5), (0.07, 7), (0.29, 29), (0.055, 5)):
        assert (null > threshold_at_rate(null, rate)).sum() == passing
    tied = np.array([0.0] * 90 + [1.0] * 10)
    assert (tied > threshold_at_rate(tied, 0.05)).mean() == 0  # ten equal scores cannot be parted
    with pytest.raises(ValueError, match="rate"):
        threshold_at_rate(null, 1.0)


def test_a_score_at_the_threshold_is_not_flagged():
    null = np.arange(100.0)
    assert recall_at_rate(null, [94.0, 94.5, 95.0, 200.0], 0.05) == (0.75, 0.05, 94.0)


def test_recall_at_rate_of_two_gaussians():
    null, planted = random().normal(size=40000), random(1).normal(2, size=40000)
    found = recall_at_rate(null, planted, 0.05)
    assert found.rate == 0.05
    assert found.recall == pytest.approx(stats.norm.sf(stats.norm.isf(0.05) - 2), abs=0.01)


def test_recall_interval_holds_the_truth():
    truth, held = stats.norm.sf(stats.norm.isf(0.05) - 2), 0
    for seed in range(60):
        null, planted = random(seed).normal(size=400), random(seed + 1000).normal(2, size=300)
        found = recall_interval(null, planted, 0.05, draws=200, seed=seed)
        held += found.low <= truth <= found.high
    assert held >= 52  # 95 % of 60 is 57; 51 or fewer has a chance of .002


def test_iou():
    masks = random().random((20, 6, 5)) < 0.3
    truth = random(1).random((20, 6, 5)) < 0.3
    masks[0] = truth[0] = truth[1] = False
    expected = []
    for a, b in zip(masks, truth, strict=True):
        a, b = set(zip(*a.nonzero(), strict=True)), set(zip(*b.nonzero(), strict=True))
        expected.append(len(a & b) / len(a | b) if a | b else 1.0)
    np.testing.assert_allclose(iou(masks, truth), expected, rtol=1e-12)
    assert iou(masks, truth)[0] == 1
    assert iou(masks, truth)[1] == 0
    with pytest.raises(ValueError, match="bool"):
        iou(masks.astype(int), truth.astype(int))


def test_both_bootstraps_resample_the_same_images():
    rows = random().normal(size=(50, 2))
    a = paired_bootstrap(lambda x, y: (x - y).mean(), rows[:, 0], rows[:, 1], draws=300, seed=7)
    b = bootstrap_of_means(lambda means: means[..., 0] - means[..., 1], rows, draws=300, seed=7)
    assert a == pytest.approx(b, abs=1e-12)
    assert a == paired_bootstrap(lambda x, y: (x - y).mean(), rows[:, 0], rows[:, 1], draws=300, seed=7)


def test_bootstrap_agrees_with_scipy_and_uses_the_pairs():
    noise = random().normal(size=300)
    before, after = noise + random(1).normal(size=300) * 0.1, noise + 0.05
    ours = paired_bootstrap(lambda x, y: (y - x).mean(), before, after)
    theirs = stats.bootstrap(
        (before, after), lambda x, y: (y - x).mean(), paired=True, method="percentile", rng=3, vectorized=False
    ).confidence_interval
    assert ours[1:3] == pytest.approx(theirs, abs=1e-3)
    # An effect of a twentieth of the spread shows in pairs only.
    assert ours.low > 0
    assert stats.ttest_ind(after, before).pvalue > 0.1
    with pytest.raises(ValueError, match="same images"):
        paired_bootstrap(lambda x, y: 0.0, before, after[:-1])
    with pytest.raises(ValueError, match="at least two"):
        paired_bootstrap(np.mean, [1.0])


def test_bootstrap_interval_holds_a_planted_effect_as_often_as_it_says():
    held = 0
    for seed in range(200):
        difference = random(seed).exponential(size=60) - 1 + 0.3
        found = bootstrap_of_means(lambda means: means[..., 0], difference[:, None], draws=400, seed=seed)
        held += found.low <= 0.3 <= found.high
    assert 180 <= held <= 198  # percentile intervals of skewed samples of 60 hold a little less than 95 %


def test_seed_set_interval_is_students():
    values = random().normal(3, 0.2, 10)
    ours = seed_set_interval(values)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert ours[:3] == pytest.approx((values.mean(), theirs.low, theirs.high))
    assert ours.n == 10
    with pytest.raises(ValueError, match="two seed sets"):
        seed_set_interval([1.0])


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (57, 100), (1999, 2000)])
def test_wilson(k, n):
    z = stats.norm.isf(0.025)
    p, low, high, size = wilson(k, n)
    assert (p, size) == (k / n, n)
    # Wilson's limits are where the score test just does not reject.
    for limit in (low, high):
        if 0 < limit < 1:
            assert abs(p - limit) / math.sqrt(limit * (1 - limit) / n) == pytest.approx(z, rel=1e-9)
    with pytest.raises(ValueError, match="successes"):
        wilson(n + 1, n)


def test_estimates_go_into_json():
    assert json.loads(json.dumps(Estimate(math.nan, 0.0, math.inf, 3).to_dict(), allow_nan=False)) == {
        "value": "nan",
        "low": 0.0,
        "high": "inf",
        "n": 3,
    }
