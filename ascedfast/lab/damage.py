# SPDX-License-Identifier: MIT
"""Synthetic damage on real images, to measure a judge by: no detector and no extractor is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

KINDS = ("paste", "blur", "noise", "shift", "erase")
VISIBLE = 16.0  # grey levels, RMS over the box
TRIES = 30


class Damaged(NamedTuple):
    """images: float32 [n, C, S, S]. boxes: bool [n, S, S]. strength: float64 [n], RMS over the box, grey levels."""

    images: Tensor
    boxes: Tensor
    strength: np.ndarray


def damage(images: Tensor, kind: str, donors: Tensor, seeds: Sequence[int]) -> Damaged:
    """Each image damaged in one square box, a quarter to half of its side, by its own seed.

    paste: a box of a donor, from anywhere in it. blur: Gaussian, deviation a sixteenth of the side. noise: normal,
    deviation 64 grey levels. shift: each channel up or down by 64 grey levels. erase: the box's border, averaged. Boxes
    are drawn anew until the change is VISIBLE; after TRIES the strongest one is taken.

    Args: images: [n, C, S, S] in [-1, 1], CPU, not modified. donors: [m, C, S, S], real images.
    Raises: ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown damage {kind!r}: choose one of {', '.join(KINDS)}")
    made = images.clone()
    size = images.shape[-1]
    boxes = torch.zeros(len(images), size, size, dtype=torch.bool)
    strengths = np.zeros(len(images))
    for i, seed in enumerate(seeds):
        random = np.random.default_rng((seed, KINDS.index(kind)))
        for _ in range(TRIES):
            side = int(random.integers(size // 4, size // 2 + 1))
            top, left = (int(v) for v in random.integers(0, size - side + 1, 2))
            box = (slice(None), slice(top, top + side), slice(left, left + side))
            content = _content(images[i], kind, box, donors, random)
            strength = float((content - images[i][box]).square().mean().sqrt()) * 127.5
            if strength > strengths[i]:
                strengths[i] = strength
                made[i] = images[i]
                made[i][box] = content
                boxes[i] = False
                boxes[i][box[1:]] = True
            if strengths[i] >= VISIBLE:
                break
    return Damaged(made, boxes, strengths)


def _content(image: Tensor, kind: str, box: tuple[slice, ...], donors: Tensor, random: np.random.Generator) -> Tensor:
    inside = image[box]
    channels, side, _ = inside.shape
    if kind == "paste":
        donor = donors[int(random.integers(len(donors)))]
        top, left = (int(v) for v in random.integers(0, image.shape[-1] - side + 1, 2))
        return donor[:, top : top + side, left : left + side]
    if kind == "blur":
        deviation = image.shape[-1] / 16
        return torch.from_numpy(ndimage.gaussian_filter(image.numpy(), (0, deviation, deviation), mode="nearest"))[box]
    if kind == "noise":
        return (inside + torch.from_numpy(random.normal(0, 64 / 127.5, inside.shape)).float()).clamp(-1, 1)
    if kind == "shift":
        signs = torch.from_numpy(random.choice([-1.0, 1.0], (channels, 1, 1))).float()
        return (inside + signs * 64 / 127.5).clamp(-1, 1)
    border = torch.cat([inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]], 1)
    return border.mean(1)[:, None, None].expand_as(inside)
