# SPDX-License-Identifier: MIT
"""From what was seen of a run to the mask of its artifacts: signal, threshold, regions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ascedfast import ops, reference
from ascedfast.calibration.regions import RULES, thresholds
from ascedfast.calibration.windows import smoothed
from ascedfast.config import HALF_GREY_LEVEL, AscedConfig


class Detection(NamedTuple):
    """What was found in R rows.

    mask: bool [R, *grid], the kept regions before growth. grown: the mask that is corrected.
    z: float32 [R, *grid], the largest robust z of the window. labels: int32 [R, *grid], all regions, also dropped.
    overflow: bool [R], a row's regions were more tangled than its backend can follow, and nothing was kept.
    """

    mask: Tensor
    grown: Tensor
    z: Tensor
    labels: Tensor
    overflow: Tensor


def grey_levels(x0: Tensor) -> Tensor:
    """Predictions in [-1, 1] as the released code's images: uint8, truncated. NaN gives an undefined level."""
    # Not x*127.5 + 127.5: it rounds differently at the edges of a level.
    return ((x0 + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def weighted_score(x: Tensor, x0: Tensor, alpha: Tensor) -> Tensor:
    """w(t)*s_t = -(sigma/alpha)*e = x0 - x/alpha (arXiv 2503.16218, Eqs 3 and 4). [R, C, *grid]; alpha [R] or 0-dim."""
    return x0 - x.to(x0.dtype) / alpha.to(x0.dtype).reshape(-1, *([1] * (x.dim() - 1)))


def maps_of(frames: Tensor, config: AscedConfig) -> Tensor:
    """Changes between adjacent frames, the non-negative maps that are thresholded.

    Args: frames: [K, R, C, *grid]; uint8 grey levels in mode "official", floats otherwise.
    Returns: float32 [K-1, R, C, *grid], with one channel in mode "fast".
    """
    if config.mode == "official":
        return (frames[1:].to(torch.int16) - frames[:-1].to(torch.int16)).abs().float()
    if config.mode == "paper":
        return (frames[1:] - frames[:-1]).abs()
    pairs = zip(frames[1:], frames[:-1], strict=True)
    return torch.stack([reference.dynamics(new, old, config.channels) for new, old in pairs])[:, :, None]


def connectivity_of(config: AscedConfig, grid: tuple[int, ...]) -> int:
    """The configured connectivity, or its counterpart in a volume."""
    return config.connectivity if len(grid) == 2 else {4: 6, 8: 26}[config.connectivity]


def detect(maps: Tensor, config: AscedConfig, finite: Tensor | None = None) -> Detection:
    """Threshold the maps of a window and keep the regions that pass the area and width rules.

    Args:
        maps: float32 [K, R, C, *grid].
        finite: bool [R]; a row that saw NaN or Inf gets an empty mask. None: the maps themselves tell.
    """
    grid = tuple(maps.shape[3:])
    sizes = config.sizes(grid)
    unit = 0.5 if config.mode == "official" else HALF_GREY_LEVEL
    flags, z = ops.robust_threshold(
        maps,
        mad_scale=config.mad_scale,
        mad_floor=config.mad_floor,
        blur_sigma=sizes.blur_sigma,
        z_floor=max(config.mad_floor, unit),
        by_frame=config.statistics == "frame",
        backend=config.backend,
    )
    if finite is not None:
        flags = flags & finite.view(-1, *([1] * len(grid)))
    labels, mask, overflow = ops.label_regions(
        flags,
        connectivity=connectivity_of(config, grid),
        min_area=sizes.min_area,
        max_area=sizes.max_area,
        core_width=sizes.core_width,
        backend=config.backend,
    )
    grown = ops.dilate_mask(mask, sizes.grow, backend=config.backend)
    return Detection(mask, grown, z, labels, overflow)


def detect_calibrated(
    d: Tensor, logsnr: Sequence[float], config: AscedConfig, finite: Tensor | None = None
) -> Detection:
    """Regions that a share ``config.rate`` of sound runs has any of; z is the severity (``calibration.table``).

    Args:
        d: float32 [K, R, *grid], changes of x0_hat, not smoothed, from the first step of the run on.
        logsnr: of the K + 1 predictions. finite: bool [R], as in ``detect``; None: the changes tell.
    """
    grid = tuple(d.shape[2:])
    null = config.table.at(logsnr)
    smooth, (low, high) = smoothed(d, backend=config.backend), thresholds(null, config.rate)
    severity, levels = ops.temporal_severity(
        smooth, null.profile, null.still, null.jump, low=low, high=high, backend=config.backend
    )
    if finite is not None:
        seen = finite.view(-1, *([1] * len(grid)))
        severity, levels = torch.where(seen, severity, torch.nan), levels * seen
    connectivity = connectivity_of(config, grid)
    labels, mask, overflow = ops.label_regions(levels, connectivity=connectivity, **RULES, backend=config.backend)
    grown = ops.dilate_mask(mask, config.sizes(grid).grow, backend=config.backend)
    return Detection(mask, grown, severity, labels, overflow)


def artifact_mask(frames: Tensor, config: AscedConfig | None = None) -> Tensor:
    """The artifact regions of a window of predictions, before the growth that the correction adds.

    Args:
        frames: float [K, B, C, H, W], K >= 2, the predictions x0_hat of consecutive steps in [-1, 1]; all K are the
            window. In mode "paper" the weighted scores w(t)*s_t instead (any values). Computed in float32.
        config: ``AscedConfig.official()`` gives the released mask function with its defaults, bit for bit (C of 1 or
            3; numpy >= 2 on x86-64). Default: ``AscedConfig.fast()``.
    Returns: bool [B, 1, H, W]. A sample with NaN or Inf in a frame has an empty mask and touches no other.
    Raises: TypeError for a wrong dtype or config, ValueError for a wrong shape.
    """
    config = AscedConfig() if config is None else config
    if not isinstance(config, AscedConfig):
        raise TypeError(f"config must be an AscedConfig, got {type(config).__name__}")
    if not isinstance(frames, Tensor) or not frames.is_floating_point():
        raise TypeError(f"frames must be a float tensor, got {getattr(frames, 'dtype', type(frames).__name__)}")
    if config.mode == "calibrated":
        raise ValueError("mode 'calibrated' needs the noise levels of a run: watch it, or call detect_calibrated")
    if frames.dim() != 5:
        raise ValueError(f"frames must be [K, B, C, H, W], got {tuple(frames.shape)}")
    if frames.shape[0] < 2:
        raise ValueError(f"a window needs at least two frames, got {frames.shape[0]}")
    if 0 in frames.shape[2:]:
        raise ValueError(f"frames has an empty axis: {tuple(frames.shape)}")
    if frames.shape[1] == 0:
        return torch.zeros(0, 1, *frames.shape[3:], dtype=torch.bool, device=frames.device)
    with torch.no_grad():
        frames = frames.float()
        finite = frames.isfinite().flatten(2).all(2).all(0)
        if config.mode == "official":
            frames = grey_levels(frames)
        return detect(maps_of(frames, config), config, finite).mask[:, None]
