# SPDX-License-Identifier: MIT
"""What `ascedfast.artifact_mask` must return, from numpy and scipy.ndimage alone.

Nothing of ascedfast and no torch is imported, so a slip in the package cannot repeat itself here. One sample at a time,
frames as float32 arrays [K, C, H, W]. numpy >= 2 is assumed: a Python float times a float32 scalar is float32.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy import ndimage

MAD_TO_SIGMA = 1.4826
GREY_HALF_RANGE = 127.5


@dataclass
class Trace:
    """The mask [H, W] and what led to it."""

    mask: np.ndarray
    flags: np.ndarray  # before the region rules
    within: np.ndarray | None = None  # after the area rule, before the core rule
    medians: list = field(default_factory=list)  # one entry a pair of frames, as the next three
    mads: list = field(default_factory=list)
    thresholds: list = field(default_factory=list)
    ties: int = 0  # values that equal their threshold: the comparison is strict
    areas: np.ndarray | None = None  # of the regions before the area rule
    band: np.ndarray | None = None  # fast only: pixels whose flag float32 rounding may turn


def grey_levels(frames):
    """[K, C, H, W] in [-1, 1] to 8-bit images [K, H, W, C]: add, multiply, clamp, cut off the fraction, in float32."""
    scaled = (frames.astype(np.float32) + np.float32(1)) * np.float32(GREY_HALF_RANGE)
    return np.clip(scaled, np.float32(0), np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1)


def median_and_mad(values):
    """Both in float32, the mean of the two middle values where the count is even."""
    centre = np.median(values)
    spread = np.median(np.abs(values - centre))
    assert centre.dtype == spread.dtype == np.float32
    return centre, spread


def threshold(centre, spread, mad_scale):
    """centre + mad_scale * 1.4826 * spread: the first product is a double, rounded once to float32."""
    level = centre + mad_scale * MAD_TO_SIGMA * spread
    assert level.dtype == np.float32, "numpy 1 would compare in float64"
    return level


def regions_within(flags, min_area, max_area):
    """4-connected regions with min_area < pixels < max_area, and the areas of all regions."""
    labels, count = ndimage.label(flags)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    wanted = np.concatenate(([False], (areas > min_area) & (areas < max_area)))
    return wanted[labels], areas


def regions_with_core(flags, width):
    """Regions that hold a width x width block: each is eroded by itself, and kept if anything is left.

    A region is eroded inside its bounding box. No pixel of it lies outside, and beyond the array counts as empty, so
    the answer is that of the whole plane at a fraction of the time.
    """
    kept = np.zeros_like(flags)
    block = np.ones((width, width), bool)
    labels, _ = ndimage.label(flags)
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        region = labels[box] == index
        if ndimage.binary_erosion(region, structure=block).any():
            kept[box] |= region
    return kept


def official(frames, *, mad_scale=3.0, blur_sigma=2.0, min_area=100, max_area=10000, core_width=5):
    """The released detector, before the correction grows the mask."""
    images = grey_levels(frames).astype(np.float32)
    flags = np.zeros(images.shape[1:3], bool)
    trace = Trace(flags, flags)
    for before, after in pairwise(images):
        change = ndimage.gaussian_filter(np.abs(after - before), sigma=blur_sigma)  # rows, columns and channels
        centre, spread = median_and_mad(change)
        level = threshold(centre, spread, mad_scale)
        flags |= change.max(axis=2) > level
        trace.medians.append(centre)
        trace.mads.append(spread)
        trace.thresholds.append(level)
        trace.ties += int((change == level).sum())
    trace.within, trace.areas = regions_within(flags, min_area, max_area)
    trace.mask = regions_with_core(trace.within, core_width)
    return trace


def paper(frames, *, mad_scale=3.0):
    """Differences of weighted scores [K, C, H, W], as they are: no blur, no region rule."""
    flags = np.zeros(frames.shape[2:], bool)
    trace = Trace(flags, flags)
    for before, after in pairwise(frames):
        change = np.abs(after - before)
        centre, spread = median_and_mad(change)
        level = threshold(centre, spread, mad_scale)
        flags |= (change > level).any(axis=0)
        trace.medians.append(centre)
        trace.mads.append(spread)
        trace.thresholds.append(level)
        trace.ties += int((change == level).sum())
    return trace


def fast_regions(flags):
    """The region rules of `official` in units of scale = sqrt(H*W)/256: bounds stay fractions, widths are rounded."""
    scale = np.sqrt(float(flags.size)) / 256
    within, _ = regions_within(flags, 100 * scale**2, 10000 * scale**2)
    return regions_with_core(within, max(1, int(np.floor(5 * scale + 0.5))))


def fast(frames, *, mad_scale=3.0):
    """One-channel float maps, sizes in units of sqrt(H*W)/256, MAD floored at half a grey level.

    `band` marks the pixels where some map lies within 1e-6 * (1 + threshold) of its threshold: there the order of a
    float32 sum decides, and no order is prescribed.
    """
    channels, height, width = frames.shape[1:]
    scale = np.sqrt(float(height * width)) / 256
    flags, band = np.zeros((height, width), bool), np.zeros((height, width), bool)
    trace = Trace(flags, flags, band=band)
    for before, after in pairwise(frames):
        total = np.zeros((height, width), np.float32)
        for channel in range(channels):
            total += np.abs(after[channel] - before[channel])
        change = ndimage.gaussian_filter(total / np.float32(channels), sigma=2 * scale)
        centre, spread = median_and_mad(change)
        level = threshold(centre, np.maximum(spread, np.float32(0.5 / GREY_HALF_RANGE)), mad_scale)
        flags |= change > level
        band |= np.abs(change - level) <= 1e-6 * (1 + level)
        trace.medians.append(centre)
        trace.mads.append(spread)
        trace.thresholds.append(level)
    trace.mask = fast_regions(flags)
    return trace
