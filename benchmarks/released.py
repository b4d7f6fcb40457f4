# SPDX-License-Identifier: MIT
"""Baseline (a): the detector of the released ASCED code, composed from numpy and scipy after its description.

One image at a time on one CPU core, as released: 8-bit frames, a Gaussian over all three axes, the median and MAD of
each difference, the union of what lies above, area and width rules. Where the description leaves freedom the faster way
is taken (areas by one bincount, erosions inside bounding boxes), so that ratios do not flatter us.
"""

import numpy as np
from scipy import ndimage


def detect(
    predictions: np.ndarray,
    *,
    mad_scale: float = 3.0,
    sigma: float = 2.0,
    min_area: int = 100,
    max_area: int = 10000,
    min_width: int = 5,
) -> np.ndarray:
    """The artifact mask, bool [H, W], of float32 predictions [K, C, H, W] in [-1, 1]; numpy >= 2."""
    frames = np.clip((predictions + 1) * 127.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1).astype(np.float32)
    abnormal = np.zeros(frames.shape[1:3], bool)
    for k in range(1, len(frames)):
        smooth = ndimage.gaussian_filter(np.abs(frames[k] - frames[k - 1]), sigma=sigma)
        middle = np.median(smooth)
        deviation = np.median(np.abs(smooth - middle))
        abnormal |= smooth.max(axis=2) > middle + mad_scale * 1.4826 * deviation
    labels, count = ndimage.label(abnormal)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    wide = np.zeros_like(abnormal)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if min_area < areas[label] < max_area:
            region = labels[box] == label
            if ndimage.binary_erosion(region, np.ones((min_width, min_width), bool)).any():
                wide[box] |= region
    return wide
