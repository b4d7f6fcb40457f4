# SPDX-License-Identifier: MIT
"""Random sequences of predicted clean images, [K, C, H, W] float32, for the tests of the detector.

Each kind aims at one thing that can go wrong: `KINDS[name].why` says which.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

KINDS = {}


class Kind(NamedTuple):
    make: Callable  # (rng, k, c, h, w) -> float32 [k, c, h, w]
    why: str
    channels: tuple = (1, 3)


def kind(why, **attributes):
    def register(make):
        KINDS[make.__name__] = Kind(make, why, **attributes)
        return make

    return register


def smooth_fields(rng, count, c, h, w, length):
    """Gaussian fields of unit variance with the given correlation length in pixels."""
    fields = ndimage.gaussian_filter(rng.standard_normal((count, c, h, w)), (0, 0, length, length))
    return fields / (fields.std(axis=(1, 2, 3), keepdims=True) + 1e-12)


def wandering(rng, k, c, h, w, strength):
    """A sampler's usual output: smooth, moving less from step to step."""
    fields = smooth_fields(rng, k, c, h, w, rng.uniform(1.5, 8))
    decay = strength * 0.8 ** np.arange(k).reshape(-1, 1, 1, 1)
    return np.cumsum(fields * decay, axis=0)


def random_box(rng, h, w, low=0.1, high=0.5):
    """(rows, columns) of a box whose sides are low..high of the frame's."""
    rows = max(3, int(h * rng.uniform(low, high)))
    columns = max(3, int(w * rng.uniform(low, high)))
    top, left = rng.integers(0, max(1, h - rows + 1)), rng.integers(0, max(1, w - columns + 1))
    return slice(top, top + rows), slice(left, left + columns)


def level(value):
    """The middle of a grey level's interval, far from both edges."""
    return (np.asarray(value) + 0.5) / 127.5 - 1


def finish(frames):
    return np.clip(frames, -1, 1).astype(np.float32)


@kind("generic values: rounding of the blur, medians without ties")
def smooth_noise(rng, k, c, h, w):
    return finish(wandering(rng, k, c, h, w, rng.uniform(0.05, 0.5)))


@kind("median and MAD are 0: whatever the blur touches is flagged, however faintly")
def flashing_boxes(rng, k, c, h, w):
    frames = np.full((k, c, h, w), rng.uniform(-0.9, 0.9))
    for _ in range(rng.integers(1, 4)):
        rows, columns = random_box(rng, h, w, 0.05, 0.35)
        for step in np.flatnonzero(rng.random(k) < 0.5):
            frames[step, :, rows, columns] = rng.uniform(-1, 1, (c, 1, 1))
    return finish(frames)


@kind("MAD is 0, the median is not: every ground pixel ties with the threshold and must stay unflagged")
def shifting_ground(rng, k, c, h, w):
    ground = 60 + np.cumsum(rng.integers(1, 9, k))
    frames = np.broadcast_to(level(ground).reshape(-1, 1, 1, 1), (k, c, h, w)).copy()
    rows, columns = random_box(rng, h, w, 0.05, 0.25)
    frames[rng.integers(0, k) :, :, rows, columns] = level(rng.integers(180, 250))
    return finish(frames)


@kind("clamping to 0 and 255, half of the sequences beyond [-1, 1]; large areas stand still at the ends")
def saturated(rng, k, c, h, w):
    frames = 8 * smooth_fields(rng, 1, c, h, w, 15) + wandering(rng, k, c, h, w, rng.uniform(0.1, 0.4))
    return frames.astype(np.float32) if rng.random() < 0.5 else finish(frames)


@kind("the usual emoji: white stands still and the figure changes, from nothing flagged to oversize")
def sprite_on_white(rng, k, c, h, w):
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    inside = (y / rng.uniform(0.2, 0.9)) ** 2 + (x / rng.uniform(0.2, 0.9)) ** 2 < 1
    return finish(np.where(inside, wandering(rng, k, c, h, w, rng.uniform(0.1, 0.5)), 1.0))


@kind("the defect itself: patches that jump once and stay, on a moving ground")
def patches_appearing(rng, k, c, h, w):
    frames = wandering(rng, k, c, h, w, rng.uniform(0.01, 0.1))
    for _ in range(rng.integers(1, 4)):
        rows, columns = random_box(rng, h, w, 0.1, 0.4)
        frames[rng.integers(1, k) :, :, rows, columns] += rng.choice([-1, 1]) * rng.uniform(0.1, 0.9, (c, 1, 1))
    return finish(frames)


@kind("many ragged regions of every size: connectivity, area bounds, cores")
def white_noise(rng, k, c, h, w):
    speckles = rng.random((k, c, h, w)) < rng.choice([0.01, 0.05, 1])
    return finish(rng.uniform(-1, 1, (k, c, h, w)) * rng.choice([0.02, 0.3, 1]) * speckles)


@kind("values a few float32 steps around a grey level's edge: (x + 1) * 127.5 must not be contracted or reordered")
def grey_level_edges(rng, k, c, h, w):
    levels = rng.integers(60, 200, (1, c, h, w)) + np.cumsum(rng.integers(0, 2, (k, 1, h, w)), axis=0)
    rows, columns = random_box(rng, h, w, 0.1, 0.4)
    levels[rng.integers(1, k) :, :, rows, columns] += rng.integers(1, 6)
    frames = (levels / 127.5 - 1).astype(np.float32)
    return frames + rng.integers(-2, 3, frames.shape).astype(np.float32) * np.spacing(frames)


@kind("nothing changes: every statistic is 0 and the mask is empty")
def identical_frames(rng, k, c, h, w):
    return finish(np.broadcast_to(smooth_fields(rng, 1, c, h, w, 3) * 0.4, (k, c, h, w)))


@kind("equal channels: the blur over channels must return them unchanged", channels=(3,))
def grey_in_three_channels(rng, k, c, h, w):
    return np.repeat(patches_appearing(rng, k, 1, h, w), c, axis=1)


@kind("regions narrower than the core, or just as wide")
def thin_lines(rng, k, c, h, w):
    frames = wandering(rng, k, c, h, w, rng.uniform(0.02, 0.1))
    for _ in range(rng.integers(1, 6)):
        thickness, step = rng.integers(1, 5), rng.integers(1, k)
        change = rng.choice([-1, 1]) * rng.uniform(0.2, 1)
        if rng.random() < 0.5:
            top = rng.integers(0, h - thickness)
            frames[step:, :, top : top + thickness, :] += change
        else:
            left = rng.integers(0, w - thickness)
            frames[step:, :, :, left : left + thickness] += change
    return finish(frames)


@kind("regions cut by the frame: the blur reflects there, the erosion sees emptiness beyond it")
def touching_the_border(rng, k, c, h, w):
    frames = wandering(rng, k, c, h, w, rng.choice([0.0, 0.05]))
    for _ in range(rng.integers(1, 3)):
        rows, columns = random_box(rng, h, w, 0.1, 0.3)
        deep, long = rows.stop - rows.start, columns.stop - columns.start
        if rng.random() < 0.5:
            rows = slice(0, deep) if rng.random() < 0.5 else slice(h - deep, h)
        else:
            columns = slice(0, long) if rng.random() < 0.5 else slice(w - long, w)
        frames[rng.integers(1, k) :, :, rows, columns] += rng.choice([-0.6, 0.6])
    return finish(frames)


@kind("regions of max_area and more: dropped as a whole, while a smaller one beside them stays")
def oversize(rng, k, c, h, w):
    frames = np.full((k, c, h, w), rng.uniform(-0.3, 0.3))
    rows = int(h * rng.uniform(0.6, 0.75))
    columns = int(w * rng.uniform(0.4, 0.55))
    frames[rng.integers(1, k) :, :, :rows, :columns] += rng.choice([-0.5, 0.5])
    top, left = int(h * 0.3), int(w * 0.85)
    frames[rng.integers(1, k) :, :, top : top + max(3, h // 16), left : left + max(3, w // 16)] += 0.4
    return finish(frames)
