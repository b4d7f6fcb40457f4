# SPDX-License-Identifier: MIT
"""The truth of ``temporal_scores`` and ``temporal_severity``, as ``reference`` is of the other ops and by its rules;
found there by their names."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

STILL_FLOOR = 0.05
"""C: changes below 5 % of a sample's own are not told apart."""
JUMP_FLOOR = 0.5
"""J: half of a sample's usual change; a leap is measured against no less."""
STILL_FROM = 3
"""Changes that precede the first one that can be still; fewer where a window has no more."""
LEAST_CHANGES = 2
"""Changes without which nothing is scored."""
SCALE_FLOOR = 0.01
"""A sample's scale is at least this share of its mean, where most of its steps change nothing."""
LEAST_SCORE = 1e-3
"""Lower scores are taken for it: the logarithm stays finite."""


@dataclass(frozen=True)
class Gumbel:
    """Location and scale of an extreme value distribution, here that of the logarithm of a sample's largest score."""

    location: float
    scale: float


class Scores(NamedTuple):
    """still, jump: float32 [R, *grid], 0 or more; see ``temporal_scores``."""

    still: Tensor
    jump: Tensor


def relative_changes(d: Tensor, profile: Sequence[float]) -> Tensor:
    """Changes by the measure of the sample and of the step: r_k = d_k / (s * profile_k).

    s = median_k(mean over the grid of d_k / profile_k), one number a row: of K steps a leap inflates two at most.

    Args:
        d: float [K, R, *grid], smoothed non-negative changes of consecutive steps. profile: K positive numbers,
            what a sound sample changes on average at each; only their ratios count.
    Returns: float32 [K, R, *grid]; 0 where a sample never changes, NaN where its d is.
    """
    by_step = torch.tensor(profile, dtype=torch.float64, device=d.device).view(-1, 1)
    # A row at a time: torch adds up in another order where there are other rows.
    sums = [row.double().flatten(1).contiguous().sum(1) for row in d.unbind(1)]
    shares = (torch.stack(sums, 1) if sums else by_step.new_empty(len(d), 0)) / math.prod(d.shape[2:]) / by_step
    middle = shares.sort(0).values
    count = len(middle)
    scale = (middle[(count - 1) // 2] + middle[count // 2]) / 2
    scale = torch.maximum(scale, SCALE_FLOOR * shares.mean(0))
    units = (by_step * scale).reshape(count, -1, *([1] * (d.dim() - 2)))
    r = d.double() / units.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(units == 0, 0.0, r).float()


def temporal_scores(d: Tensor, profile: Sequence[float]) -> Scores:
    """Two scores of the temporal dynamics that tell artifacts from content under construction.

    The changes d_k of x0_hat follow one profile over the noise levels, whatever is drawn. r_k is what a location
    changes at step k by that measure (``relative_changes``), near 1 where it does as the rest of its sample. Two
    things are rare in a sound run:

        still = max_k  (mean_{j<k} r_j + C) / (r_k + C)                what was in motion stands still: a trapped region
        jump  = max_k  min(r_k, r_{k+1}) / (mean_{j!=k,k+1} r_j + J)   there and back: a prediction that leapt

    Neither asks how much a place moves, so edges and subjects, which always move more than the ground, score no higher.
    Both depend on a sample by ratios alone: units and contrast cancel.

    Args: d, profile: as for ``relative_changes``, K >= 2.
    Returns: still and jump; a window of two changes has no jump: 0.
    """
    r = relative_changes(d, profile)
    first = min(STILL_FROM, len(r) - 1)
    total = sum(r[1:first], r[0])
    still, jump = torch.zeros_like(total), torch.zeros_like(total)
    for k in range(first, len(r)):
        still = torch.maximum(still, (total * (1 / k) + STILL_FLOOR) / (r[k] + STILL_FLOOR))
        total = total + r[k]
    if len(r) > LEAST_CHANGES:
        for there, back in itertools.pairwise(r):
            # Not below 0: a sum less its two terms may round there.
            others = (total - there - back).clamp(min=0) * (1 / (len(r) - 2))
            jump = torch.maximum(jump, torch.minimum(there, back) / (others + JUMP_FLOOR))
    return Scores(still, jump)


def severity_of(scores: Scores, still: Gumbel, jump: Gumbel | None) -> Tensor:
    """Of every location, float32 [R, *grid]: how far its rarer score lies beyond a sound sample's largest, in scales of
    it. jump: None where a window is too short for one."""
    found = _in_scales(scores.still, still)
    return found if jump is None else torch.maximum(found, _in_scales(scores.jump, jump))


def _in_scales(score: Tensor, by: Gumbel) -> Tensor:
    # In float64: a vectorised logarithm of float32 differs in its last bit between places in memory.
    return ((score.double().clamp(min=LEAST_SCORE).log() - by.location) / by.scale).float()


def temporal_severity(
    d: Tensor, profile: Sequence[float], still: Gumbel, jump: Gumbel | None, *, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """How rare the changes of a window are among sound runs, and the levels from which regions grow.

    Args: d, profile: as for ``temporal_scores``. still, jump: of sound samples' largest scores. low <= high.
    Returns: severity float32 [R, *grid] (``severity_of``), NaN throughout a row with NaN or Inf; levels uint8 of its
        shape: 0, 1 above low, 2 above high (``label_regions``: a seed).
    """
    severity = severity_of(temporal_scores(d, profile), still, jump)
    finite = d.isfinite().flatten(2).all(2).all(0).view(-1, *([1] * (d.dim() - 2)))
    severity = torch.where(finite, severity, torch.nan)
    return severity, (severity > low).to(torch.uint8) + (severity > high).to(torch.uint8)
