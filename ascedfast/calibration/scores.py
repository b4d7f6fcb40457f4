# SPDX-License-Identifier: MIT
"""Two scores of the temporal dynamics that tell artifacts from content under construction.

The changes d_k of x0_hat follow one profile over the noise levels, whatever is drawn. r_k is what a location changes at
step k by that measure, near 1 where it does as the rest of its sample. Two things are rare in a sound run:

    still = max_k  log((mean_{j<k} r_j + C) / (r_k + C))       what was in motion stands still: a trapped region
    jump  = max_k  log(min(r_k, r_{k+1}) / (mean_{j!=k,k+1} r_j + J) + E)      there and back: a prediction that leapt

Neither asks how much a place moves, so edges and subjects, which always move more than the ground, score no higher.
Both depend on a sample by ratios alone: units and contrast cancel.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STILL_FLOOR = 0.05
"""C: changes below 5 % of a sample's own are not told apart."""
JUMP_FLOOR = 0.5
"""J: half of a sample's usual change; a leap is measured against no less."""
JUMP_LEAST = 1e-3
"""E: keeps the logarithm finite."""
STILL_FROM = 3
"""Changes that precede the first one that can be still; fewer where a window has no more."""
LEAST_CHANGES = 2
"""Changes without which nothing is scored."""
SCALE_FLOOR = 0.01
"""A sample's scale is at least this share of its mean, where most of its steps change nothing."""


class Scores(NamedTuple):
    """still, jump: float32 [R, *grid]; see the module. A window of fewer than three changes has no jump: -inf."""

    still: Tensor
    jump: Tensor


def relative_changes(d: Tensor, profile: Sequence[float]) -> Tensor:
    """Changes by the measure of the sample and of the step: r_k = d_k / (s * profile_k).

    s = median_k(mean over the grid of d_k / profile_k), one number a row: of K steps a leap inflates two at most.

    Args:
        d: float [K, R, *grid], smoothed non-negative changes of consecutive steps. profile: K positive numbers,
            what a sound sample changes on average at each; only their ratios count.
    Returns: float32 [K, R, *grid]; 0 where a sample never changes, NaN where its d is.
    Raises: ValueError.
    """
    if d.dim() < 3 or len(profile) != len(d):
        raise ValueError(f"d must be [K, R, *grid], the profile K numbers, got {tuple(d.shape)} and {len(profile)}")
    if not all(0 < value < math.inf for value in profile):
        raise ValueError(f"a profile is positive and finite at every step, got {list(profile)}")
    by_step = torch.tensor(profile, dtype=torch.float64, device=d.device).view(-1, 1)
    # A row at a time: torch adds up in another order where there are other rows.
    means = [row.double().flatten(1).contiguous().mean(1) for row in d.unbind(1)]
    shares = (torch.stack(means, 1) if means else by_step.new_empty(len(d), 0)) / by_step
    middle = shares.sort(0).values
    count = len(middle)
    scale = (middle[(count - 1) // 2] + middle[count // 2]) / 2
    scale = torch.maximum(scale, SCALE_FLOOR * shares.mean(0))
    units = (by_step * scale).reshape(count, -1, *([1] * (d.dim() - 2)))
    return torch.where(units == 0, 0.0, d / units.clamp(min=torch.finfo(torch.float64).tiny)).float()


def temporal_scores(d: Tensor, profile: Sequence[float]) -> Scores:
    """The scores of every location from the changes of a window.

    Args: d, profile: as for ``relative_changes``; K >= 2. Not modified.
    Raises: ValueError.
    """
    if len(d) < LEAST_CHANGES:
        raise ValueError(f"{len(d)} changes tell nothing: at least {LEAST_CHANGES} are needed")
    r = relative_changes(d, profile)
    first = min(STILL_FROM, len(r) - 1)
    past = sum(r[1:first], r[0])
    still = torch.zeros_like(past)
    for k in range(first, len(r)):
        still = torch.maximum(still, (past / k + STILL_FLOOR) / (r[k] + STILL_FLOOR))
        past = past + r[k]
    # In float64: a vectorised logarithm of float32 differs in its last bit between places in memory.
    still = still.double().log().float()
    if len(r) == LEAST_CHANGES:
        return Scores(still, torch.full_like(still, -torch.inf))
    jump = torch.zeros_like(past)
    for there, back in itertools.pairwise(r):
        # Not below 0: a sum less its two terms may round there.
        others = (past - there - back).clamp(min=0) / (len(r) - 2)
        jump = torch.maximum(jump, torch.minimum(there, back) / (others + JUMP_FLOOR))
    return Scores(still, (jump.double() + JUMP_LEAST).log().float())
