# SPDX-License-Identifier: MIT
"""Figures of one number a sample, and their intervals. Formulas: ``docs/measures.md``.

Arrays are numpy arrays or CPU tensors; computed in float64. Nothing is random but the bootstrap, which is seeded.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 2000


class Estimate(NamedTuple):
    """A figure with its interval. n: the independent samples behind it: images, seed sets or trials."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON, which has no infinity: "inf", "-inf" and "nan" are written as words."""
        return {
            name: v if isinstance(v, int) or math.isfinite(v) else str(float(v)) for name, v in self._asdict().items()
        }


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative) + P(equal) / 2.

    The Mann-Whitney statistic U / (n_pos * n_neg) of Hanley and McNeil, Radiology 143 (1982). High means positive.

    Args:
        scores: any shape; infinities are ordered, NaN is refused.
        positive: bool, the same shape.
    Raises: ValueError for NaN, shapes that differ, or a class without a member.
    """
    scores, positive = _scores_and_labels(scores, positive)
    ranks = stats.rankdata(scores.ravel())
    positives = int(positive.sum())
    negatives = positive.size - positives
    u = ranks[positive.ravel()].sum() - positives * (positives + 1) / 2
    return float(u / (positives * negatives))


class PooledScores(NamedTuple):
    """Scores of many images as counts a level, for intervals of a pooled AUROC: see ``pooled_auroc``."""

    positive: NDArray[np.float64]
    negative: NDArray[np.float64]


def count_scores(scores: ArrayLike, positive: ArrayLike, levels: int = 1024) -> PooledScores:
    """Count each image's positives and negatives in levels of equal size of all scores.

    Args:
        scores: [n, ...]; one image a row, NaN is refused. positive: bool, the same shape. Both may be tensors, the
            scores on any device: what is heavy is done there.
        levels: at most so many; scores in one level count as equal. Where there are no more distinct scores than
            levels, each has its own and nothing is lost.
    Returns: counts, both float64 [n, levels], lowest scores first.
    Raises: ValueError as ``auroc``.
    """
    scores, positive = torch.as_tensor(scores), torch.as_tensor(positive)
    if positive.dtype != torch.bool or scores.shape != positive.shape:
        raise ValueError(
            f"positive must be bool of the scores' shape {tuple(scores.shape)}, got {positive.dtype} "
            f"{tuple(positive.shape)}"
        )
    if bool(scores.isnan().any()):
        raise ValueError("a score is NaN")
    if bool(positive.all()) or not bool(positive.any()):
        raise ValueError("an AUROC needs positives and negatives")
    scores, positive = scores.flatten(1), positive.to(scores.device).flatten(1)
    ordered = _sorted(scores)
    starts = ordered.unique_consecutive()
    if len(starts) > levels:
        at = np.floor((len(ordered) - 1) * (np.arange(levels) / levels)).astype(np.int64)
        starts = ordered[torch.from_numpy(at).to(ordered.device)].unique_consecutive()
    level = torch.bucketize(scores, starts, right=True) - 1
    level += torch.arange(len(scores), device=scores.device)[:, None] * len(starts)
    shape = (len(scores), len(starts))

    def count(which: Tensor) -> NDArray[np.float64]:
        return torch.bincount(level[which], minlength=shape[0] * shape[1]).reshape(shape).double().cpu().numpy()

    return PooledScores(count(positive), count(~positive))


def _sorted(scores: Tensor) -> Tensor:
    """All scores in ascending order, [n]. On a CPU by numpy, which is faster."""
    if scores.device.type == "cpu":
        return torch.from_numpy(np.sort(scores.numpy(), axis=None))
    return scores.flatten().sort().values


def auroc_of_counts(positive: NDArray, negative: NDArray) -> NDArray:
    """``auroc`` from counts a level, [..., levels], lowest first; [...]. NaN where a class has no member."""
    below = np.cumsum(negative, -1) - negative
    wins = (positive * (below + negative / 2)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins / (positive.sum(-1) * negative.sum(-1))


def pooled_auroc(*pools: PooledScores, draws: int = BOOTSTRAP_DRAWS, seed: int = 0) -> Estimate:
    """AUROC over the locations of all images, the images resampled; of two pools of the same images, first - second."""
    if not 1 <= len(pools) <= 2:
        raise ValueError(f"one pool, or two to compare: got {len(pools)}")
    widths = [part.shape[1] for pool in pools for part in pool]
    edges = np.cumsum(widths)[:-1]

    def statistic(means: NDArray) -> NDArray:
        parts = np.split(means, edges, axis=-1)
        values = [auroc_of_counts(parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]
        return values[0] if len(values) == 1 else values[0] - values[1]

    return bootstrap_of_means(statistic, np.concatenate([part for pool in pools for part in pool], 1), draws, seed)


class Recall(NamedTuple):
    """recall: share of the planted scores above the threshold. rate: share of the null scores above it."""

    recall: float
    rate: float
    threshold: float


def threshold_at_rate(null: ArrayLike, rate: float) -> float:
    """The lowest of the null scores above which at most ``rate`` of them lie; "flagged" means score > threshold.

    Args:
        null: [n], one score a null image (its largest location, or its severity). NaN is refused.
        rate: allowed share of flagged null images, in [0, 1).
    Raises: ValueError.
    """
    null = np.sort(_vector(null, "null"))
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), got {rate}")
    return float(null[null.size - 1 - _allowed(null.size, rate)])


def _allowed(n: int, rate: float) -> int:
    """How many of n may be flagged."""
    return math.floor(rate * n + 1e-9)  # 0.07 * 100 is 7.000000000000001, 0.29 * 100 is 28.999999999999996


def recall_at_rate(null: ArrayLike, planted: ArrayLike, rate: float) -> Recall:
    """Share of plants found at a fixed share of flagged null images.

    Args: null, rate: as ``threshold_at_rate``. planted: [m], one score a planted image.
    Raises: ValueError.
    """
    threshold = threshold_at_rate(null, rate)
    null, planted = _vector(null, "null"), _vector(planted, "planted")
    return Recall(float((planted > threshold).mean()), float((null > threshold).mean()), threshold)


def recall_interval(
    null: ArrayLike, planted: ArrayLike, rate: float, draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> Estimate:
    """``recall_at_rate`` with the uncertainty of its threshold: nulls and plants are resampled, each on its own.

    n of the result: the number of plants.
    """
    null, planted = _vector(null, "null"), _vector(planted, "planted")
    generator = np.random.default_rng(seed)
    nulls = np.sort(null[generator.integers(0, null.size, (draws, null.size))], axis=1)
    plants = planted[generator.integers(0, planted.size, (draws, planted.size))]
    thresholds = nulls[:, null.size - 1 - _allowed(null.size, rate)]
    low, high = _percentiles((plants > thresholds[:, None]).mean(1))
    return Estimate(recall_at_rate(null, planted, rate).recall, low, high, planted.size)


def iou(found: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each image: bool [n, ...] twice -> [n]. 1 where both are empty."""
    found, truth = np.asarray(found), np.asarray(truth)
    if found.dtype != bool or truth.dtype != bool or found.shape != truth.shape or found.ndim < 2:
        raise ValueError(
            f"iou takes two bool arrays [n, ...], got {found.dtype} {found.shape}, {truth.dtype} {truth.shape}"
        )
    axes = tuple(range(1, found.ndim))
    union = (found | truth).sum(axes)
    return np.where(union == 0, 1.0, (found & truth).sum(axes) / np.maximum(union, 1))


def paired_bootstrap(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Percentile bootstrap of any statistic; all arrays are resampled by the same images (Efron, 1979).

    For figures of single images only: distribution figures are biased by n and take ``seed_set_interval``.

    Args:
        statistic: takes the resampled arrays, returns a number. samples: arrays whose first axis is the image.
        seed: of the resampling; the same n, draws and seed resample the same images.
    Raises: ValueError where the arrays differ in length or hold fewer than 2 images.
    """
    arrays = [np.asarray(sample) for sample in samples]
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ValueError(f"paired arrays must hold the same images, got lengths {[len(array) for array in arrays]}")
    (n,) = lengths
    values = np.array([statistic(*(array[index] for array in arrays)) for index in _resamples(n, draws, seed)])
    low, high = _percentiles(values, confidence)
    return Estimate(float(statistic(*arrays)), low, high, n)


def bootstrap_of_means(
    statistic: Callable[[NDArray], NDArray],
    rows: ArrayLike,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """``paired_bootstrap`` for a statistic of column means, many draws at once: the same resamples, faster.

    Args:
        statistic: from means [..., k] to values [...]; must not depend on a common factor of counts.
        rows: [n, k], one row an image.
    """
    rows = np.asarray(rows, dtype=float)
    if rows.ndim != 2:
        raise ValueError(f"rows must be [n, k], got {rows.shape}")
    n = len(rows)
    weights = _weights(n, draws, seed)
    low, high = _percentiles(np.asarray(statistic(weights @ rows)), confidence)
    return Estimate(float(statistic(rows.mean(0))), low, high, n)


def seed_set_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Mean of one figure a disjoint seed set, all sets of the same size, with Student's t-interval.

    For a comparison of two runs give the differences set by set. n of the result: the number of sets.
    """
    values = _vector(values, "values")
    if values.size < 2:
        raise ValueError("a t-interval needs at least two seed sets")
    half = stats.t.ppf((1 + confidence) / 2, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size)
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half), values.size)


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """A proportion with Wilson's score interval (E. B. Wilson, JASA 22, 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), int(n))


@functools.lru_cache(maxsize=4)
def _weights(n: int, draws: int, seed: int) -> NDArray[np.float64]:
    """How often each image stands in each resample, over n: [draws, n]."""
    weights = np.stack([np.bincount(index, minlength=n) for index in _resamples(n, draws, seed)]) / n
    weights.setflags(write=False)
    return weights


def _resamples(n: int, draws: int, seed: int):
    if n < 2:
        raise ValueError(f"a bootstrap needs at least two images, got {n}")
    generator = np.random.default_rng(seed)
    return (generator.integers(0, n, n) for _ in range(draws))


def _percentiles(values: NDArray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    # A resample without a positive (or a negative) has no AUROC; the others speak for it.
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0 or np.isnan(values).any():
        raise ValueError(f"{name} must be [n], n >= 1, without NaN; got shape {values.shape}")
    return values


def _scores_and_labels(scores: ArrayLike, positive: ArrayLike) -> tuple[NDArray, NDArray[np.bool_]]:
    scores, positive = np.asarray(scores), np.asarray(positive)
    if positive.dtype != bool or scores.shape != positive.shape:
        raise ValueError(
            f"positive must be bool of the scores' shape {scores.shape}, got {positive.dtype} {positive.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    if positive.all() or not positive.any():
        raise ValueError("an AUROC needs positives and negatives")
    return scores, positive


def ratio_of_proportions(a: Estimate, b: Estimate) -> Estimate:
    """a over b of two independent samples' proportions, with Katz's interval of its logarithm (Biometrika 65, 1978).

    Half a success is added to both where one has none. n: the smaller of the two."""
    hits = [one.value * one.n for one in (a, b)]
    if min(hits) == 0:
        hits = [count + 0.5 for count in hits]
    value = (hits[0] / a.n) / (hits[1] / b.n)
    error = math.sqrt(max(0.0, 1 / hits[0] - 1 / a.n + 1 / hits[1] - 1 / b.n))
    half = math.exp(stats.norm.ppf((1 + CONFIDENCE) / 2) * error)
    return Estimate(value, value / half, value * half, min(a.n, b.n))


def less_share(a: Estimate, b: Estimate, share: float) -> Estimate:
    """a - share*b of independent figures, from the limits of both (the method of variance estimates recovery: Newcombe,
    Statistics in Medicine 17, 1998; Zou and Donner, ibid. 27, 2008). n: the smaller of the two."""
    value = a.value - share * b.value
    low = value - math.hypot(a.value - a.low, share * (b.high - b.value))
    high = value + math.hypot(a.high - a.value, share * (b.value - b.low))
    return Estimate(value, low, high, min(a.n, b.n))


def ratio_of(a: Estimate, b: Estimate) -> Estimate:
    """a over b of positive figures, by ``less_share`` of their logarithms; where one is a bound, 0 or inf, from the
    limits alone. n: the smaller of the two."""
    numbers = (a.value, a.low, a.high, b.value, b.low, b.high)
    n = min(a.n, b.n)
    if all(math.isfinite(one) and one > 0 for one in numbers):
        logs = [Estimate(*(math.log(one) for one in each[:3]), each.n) for each in (a, b)]
        found = less_share(*logs, 1.0)
        return Estimate(*(math.exp(one) for one in found[:3]), n)
    low, high = (_quotient(*pair) for pair in ((a.low, b.high), (a.high, b.low)))
    return Estimate(_quotient(a.value, b.value), low, high, n)


def _quotient(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b) or (a == 0 and b == 0) or (math.isinf(a) and math.isinf(b)):
        return math.nan
    return math.inf if b == 0 else a / b
