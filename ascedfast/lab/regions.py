# SPDX-License-Identifier: MIT
"""Regions of an image: where plants go, and what is measured inside, outside and along the border of a mask.

Images are float [R, C, H, W] in [-1, 1]; grey levels are 127.5 times that. Formulas: ``docs/measures.md``.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Ground = Literal["plain", "textured"]
GREY_LEVEL = 1 / 127.5
"""One grey level, in units of images in [-1, 1]."""
PLAIN_LEVELS = 4.0
WINDOW = 5


class Box(NamedTuple):
    """A rectangle of locations."""

    top: int
    left: int
    height: int
    width: int

    @property
    def index(self) -> tuple:
        """Indexes the box in [..., H, W]."""
        return (..., slice(self.top, self.top + self.height), slice(self.left, self.left + self.width))

    def mask(self, grid: tuple[int, int]) -> Tensor:
        """bool [H, W]. Raises: ValueError where the box is empty or leaves the grid."""
        inside = self.top >= 0 and self.left >= 0 and self.top + self.height <= grid[0]
        if not inside or self.left + self.width > grid[1] or self.height < 1 or self.width < 1:
            raise ValueError(f"{self} does not lie in a grid of {grid[0]}x{grid[1]}")
        mask = torch.zeros(grid, dtype=torch.bool)
        mask[self.index] = True
        return mask


def largest_side(grid: tuple[int, int]) -> int:
    """Side of the largest square of at most half the area."""
    return min(math.isqrt(grid[0] * grid[1] // 2), *grid)


def draw_box(seed: int, side: int, grid: tuple[int, int]) -> Box:
    """A square of that side, uniform over its places in the grid, from the row's seed alone.

    Raises: ValueError where it does not fit."""
    places = _places(side, grid)
    return _box(seed, side, torch.ones(places, dtype=torch.bool))


def draw_boxes_on(
    seeds: Sequence[int],
    sides: Sequence[int],
    twins: Tensor,
    ground: Ground,
    grid: tuple[int, int] | None = None,
    margin: float = 0.0,
) -> list[Box | None]:
    """``draw_box`` of each row, uniform over the places whose ground in the twin's final image is as wanted; None
    without one.

    Args: twins: float [R, C, H, W]. ground: "plain" or "textured", see ``ground_of``. grid: of the box and its side,
    where the image is a whole number of times as large; default: the image's. margin: grey levels by which every value
    of the twin in the box lies within the clip.
    Raises: ValueError.
    """
    grid, scale = _scale(twins, grid)
    variance, size = local_variance(twins)[:, None], twins.abs().amax(1, keepdim=True).double()
    boxes: list[Box | None] = [None] * len(seeds)
    for side in set(sides):
        _places(side, grid)
        rows = [i for i, one in enumerate(sides) if one == side]
        plain = F.avg_pool2d(variance[rows], side * scale, stride=scale)[:, 0].sqrt() < PLAIN_LEVELS
        fits = plain if ground == "plain" else ~plain
        if margin > 0:
            largest = F.max_pool2d(size[rows], side * scale, stride=scale)[:, 0]
            fits &= (1 - largest) / GREY_LEVEL >= margin
        for i, one in zip(rows, fits.cpu(), strict=True):
            boxes[i] = _box(seeds[i], side, one) if bool(one.any()) else None
    return boxes


def _scale(image: Tensor, grid: tuple[int, int] | None) -> tuple[tuple[int, int], int]:
    """The grid, and how many pixels a side of its locations has."""
    size = tuple(image.shape[-2:])
    grid = size if grid is None else tuple(grid)
    scale = size[0] // grid[0]
    if size != (grid[0] * scale, grid[1] * scale):
        raise ValueError(f"an image of {size} is no multiple of a grid of {grid}")
    return grid, scale


def _places(side: int, grid: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= side <= min(grid):
        raise ValueError(f"a square of side {side} does not fit into {grid[0]}x{grid[1]}")
    return grid[0] - side + 1, grid[1] - side + 1


def _box(seed: int, side: int, fits: Tensor) -> Box:
    places = fits.nonzero()
    top, left = places[int(np.random.default_rng((seed, 0xB0)).integers(len(places)))].tolist()
    return Box(top, left, side, side)


def local_variance(images: Tensor) -> Tensor:
    """Variance in the 5x5 window around each location, mean over channels, in grey levels squared.

    [R, C, H, W] -> float64 [R, H, W]. Images are clipped to [-1, 1]; the border is mirrored without its last row.
    """
    levels = images.double().clamp(-1, 1) / GREY_LEVEL
    # Centred before squaring: a difference of large squares loses the small variances.
    levels = levels - levels.mean((-2, -1), keepdim=True)
    padded = F.pad(levels, (WINDOW // 2,) * 4, mode="reflect")
    mean = F.avg_pool2d(padded, WINDOW, stride=1)
    return (F.avg_pool2d(padded * padded, WINDOW, stride=1) - mean * mean).clamp(min=0).mean(1)


def ground_of(twin: Tensor, box: Box) -> Ground:
    """Plain where the root of ``local_variance``'s mean over the box is below 4 grey levels. twin: [C, H, W], final."""
    deviation = float(local_variance(twin[None])[0][box.index].mean().sqrt())
    return "plain" if deviation < PLAIN_LEVELS else "textured"


def rms_difference(
    a: Tensor, b: Tensor, masks: Tensor, *, clip: float | None = 1.0, unit: float | Tensor = GREY_LEVEL
) -> Tensor:
    """Root mean square of a - b over the locations of each mask and all channels.

    Args:
        a, b: [R, C, H, W]. masks: bool [R, H, W].
        clip: both are clamped to [-clip, clip] first; None for latents.
        unit: of the answer; grey levels by default. For latents the null standard deviation, [C, 1, 1] for one a
            channel.
    Returns: float64 [R]; NaN where the mask is empty.
    """
    a, b = a.double(), b.double()
    if clip is not None:
        a, b = a.clamp(-clip, clip), b.clamp(-clip, clip)
    squares = ((a - b) / unit).square().mean(1)
    return ((squares * masks).flatten(1).sum(1) / masks.flatten(1).sum(1)).sqrt()


def change_outside(corrected: Tensor, original: Tensor, masks: Tensor) -> Tensor:
    """``rms_difference`` of the final images over the locations that were not re-noised; grey levels, [R]."""
    return rms_difference(corrected, original, ~masks)


def seam_energy(images: Tensor, masks: Tensor) -> Tensor:
    """Mean square difference of neighbours (4-connected) on the two sides of the mask's border, all channels.

    Images [R, C, H, W] are clipped; masks: bool [R, H, W]. Returns: grey levels squared, float64 [R]; NaN without a
    border.
    """
    levels = images.double().clamp(-1, 1) / GREY_LEVEL
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    pairs = torch.zeros_like(total)
    for axis in (-2, -1):
        crossed = masks.diff(dim=axis)  # of bool, torch's diff is exclusive or
        total += (levels.diff(dim=axis).square().mean(1) * crossed).flatten(1).sum(1)
        pairs += crossed.flatten(1).sum(1)
    return total / pairs


def diversity_inside(draws: Tensor, masks: Tensor) -> Tensor:
    """Mean over all pairs of noise draws of the RMS difference inside the mask.

    Args: draws: [N, R, C, H, W], N >= 2 final images of the same states re-noised with other noise. masks: [R, H, W].
    Returns: grey levels, float64 [R].
    """
    if draws.dim() != 5 or len(draws) < 2:
        raise ValueError(f"draws must be [N, R, C, H, W], N >= 2, got {tuple(draws.shape)}")
    pairs = torch.combinations(torch.arange(len(draws)))
    return torch.stack([rms_difference(draws[i], draws[j], masks) for i, j in pairs.tolist()]).mean(0)


def mean_pairwise_distance(features: Tensor) -> float:
    """Mean Euclidean distance over all pairs: features [N, d], N >= 2, of the same region in N draws."""
    return float(F.pdist(features.double()).mean())
