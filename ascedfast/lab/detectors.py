# SPDX-License-Identifier: MIT
"""From the shared part of a run to masks: the modes under test, and rivals that give one score a location."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ascedfast import detect, ops
from ascedfast.config import AscedConfig
from ascedfast.lab.regions import local_variance
from ascedfast.schedule import Schedule, plan_run

if TYPE_CHECKING:
    from ascedfast.lab.corrections import Prefix

Detector = Callable[["Prefix", Tensor], Tensor]
"""(the run up to T_c, final images of the uncorrected run) -> scores float [R, H, W] at the grid of the state."""


class Found(NamedTuple):
    """mask, grown: bool [R, H, W]. z: float32 [R, H, W], finite. severity: float64 [R], mean of z*mask."""

    mask: Tensor
    grown: Tensor
    z: Tensor
    severity: Tensor


def by_mode(schedule: Schedule, prefix: "Prefix", config: AscedConfig) -> Found:
    """What the engine finds in this run with this configuration, all rows at once.

    Raises: ValueError where the run has too few predictions before T_c."""
    config = dataclasses.replace(config, t_c=prefix.t_c)
    plan = plan_run(schedule, config, prefix.first)
    if plan.reason is not None:
        raise ValueError(plan.reason)
    if config.mode == "calibrated":
        return _calibrated(schedule, prefix, config)
    frames = (prefix.scores if config.mode == "paper" else prefix.x0)[plan.start :].float()
    finite = frames.isfinite().flatten(2).all(2).all(0)
    if config.mode == "official":
        frames = detect.grey_levels(frames)
    return _found(detect.detect(detect.maps_of(frames, config), config, finite))


def _calibrated(schedule: Schedule, prefix: "Prefix", config: AscedConfig) -> Found:
    logsnr = [level.logsnr for level in schedule.before[prefix.first : prefix.step]]
    finite = prefix.x0.isfinite().flatten(2).all(2).all(0)
    return _found(detect.detect_calibrated(changes(prefix.x0), logsnr, config, finite))


def changes(x0: Tensor) -> Tensor:
    """Of predictions [K + 1, R, C, H, W]: float32 [K, R, H, W], as mode "calibrated" banks them."""
    return detect.maps_of(x0.float(), AscedConfig.fast())[:, :, 0]


def by_map(scores: Tensor, config: AscedConfig) -> Found:
    """One map of scores through the same threshold, regions and growth.

    Args: scores: non-negative float [R, H, W], in any unit: the floor of the MAD does not hold for them."""
    config = dataclasses.replace(config, mad_floor=0.0)
    scale = scores.flatten(1).amax(1).clamp(min=1e-30).view(-1, 1, 1)
    return _found(detect.detect((scores / scale).float()[None, :, None], config))


def _found(found: detect.Detection) -> Found:
    z = found.z.nan_to_num(0.0)
    severity = (z.double() * found.mask).flatten(1).mean(1)
    return Found(found.mask, found.grown, z, severity)


def abnormal(d: Tensor, config: AscedConfig) -> Tensor:
    """Share of abnormal locations of each map on its own: d float [K, R, H, W] -> float64 [K, R]."""
    shares = [
        ops.robust_threshold(
            one.float()[None, :, None],
            mad_scale=config.mad_scale,
            mad_floor=config.mad_floor,
            blur_sigma=config.sizes(tuple(one.shape[1:])).blur_sigma,
            z_floor=max(config.mad_floor, 1e-12),
            backend=config.backend,
        )[0]
        for one in d
    ]
    return torch.stack(shares).double().flatten(2).mean(2)


def final_variance(prefix: "Prefix", images: Tensor) -> Tensor:
    """Variance in the 5x5 window of the final image, grey levels squared; of a latent run, at the latents' grid."""
    return F.adaptive_avg_pool2d(local_variance(images)[:, None], tuple(prefix.x.shape[2:]))[:, 0]


def trajectory_variance(prefix: "Prefix", images: Tensor) -> Tensor:
    """Variance of x0_hat over the second half of the steps before T_c, mean over channels (after arXiv 2406.09358)."""
    return prefix.x0[min(prefix.t_c // 2, prefix.t_c - 2) :].double().var(0).mean(1)
