# SPDX-License-Identifier: MIT
"""The ops as torch custom ops, ``torch.ops.ascedfast.*``, so that ``torch.compile(fullgraph=True)`` can hold them.

``ops`` calls these while torch traces, and not otherwise: in eager code the dispatcher costs more than a small kernel.
Each runs the function of the same name in ``ops``, which checks and chooses the backend; a fake gives shapes and types.
"""

import torch
from torch import Tensor

from ascedfast import ops
from ascedfast.reference import patch_grid
from ascedfast.reference_scores import Gumbel


@torch.library.custom_op("ascedfast::step_dynamics", mutates_args=())
def step_dynamics(
    x: Tensor,
    m: Tensor,
    a: Tensor,
    b: Tensor,
    x0_prev: Tensor | None,
    clip: float | None,
    reduce: str,
    backend: str,
    patch: int = 1,
) -> tuple[Tensor, Tensor]:
    """``ops.step_dynamics``; d is empty where there is no x0_prev."""
    x0, d = ops.step_dynamics(x, m, a, b, x0_prev, clip=clip, reduce=reduce, patch=patch, backend=backend)
    # The fake promises dense results; the reference keeps the order in which x lies.
    return x0.contiguous(), x0.new_empty(0) if d is None else d.contiguous()


@step_dynamics.register_fake
def _(x, m, a, b, x0_prev, clip, reduce, backend, patch=1):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x0 = x.new_empty(x.shape, dtype=dtype)
    return x0, x0.new_empty(0 if x0_prev is None else (x.shape[0], *patch_grid(x.shape[2:], patch)))


@torch.library.custom_op("ascedfast::robust_threshold", mutates_args=())
def robust_threshold(
    maps: Tensor,
    mad_scale: float,
    mad_scales: Tensor | None,
    mad_floor: float,
    blur_sigma: float,
    z_floor: float,
    count: bool,
    backend: str,
    by_frame: bool = False,
) -> tuple[Tensor, Tensor]:
    """``ops.robust_threshold``; mad_scales stands for a mad_scale that is a tensor."""
    return ops.robust_threshold(
        maps,
        mad_scale=mad_scale if mad_scales is None else mad_scales,
        mad_floor=mad_floor,
        blur_sigma=blur_sigma,
        z_floor=z_floor,
        count=count,
        by_frame=by_frame,
        backend=backend,
    )


@robust_threshold.register_fake
def _(maps, mad_scale, mad_scales, mad_floor, blur_sigma, z_floor, count, backend, by_frame=False):
    shape = (maps.shape[1], *maps.shape[3:])
    return maps.new_empty(shape, dtype=torch.int32 if count else torch.bool), maps.new_empty(shape)


@torch.library.custom_op("ascedfast::temporal_scores", mutates_args=())
def temporal_scores(d: Tensor, profile: list[float], backend: str) -> tuple[Tensor, Tensor]:
    """``ops.temporal_scores``."""
    still, jump = ops.temporal_scores(d, profile, backend=backend)
    # The fake promises dense results; the reference keeps the order in which d lies.
    return still.contiguous(), jump.contiguous()


@temporal_scores.register_fake
def _(d, profile, backend):
    still, jump = (d.new_empty(d.shape[1:], dtype=torch.float32) for _ in range(2))
    return still, jump


@torch.library.custom_op("ascedfast::temporal_severity", mutates_args=())
def temporal_severity(
    d: Tensor, profile: list[float], extremes: list[float], low: float, high: float, backend: str
) -> tuple[Tensor, Tensor]:
    """``ops.temporal_severity``; extremes: location and scale of still, and of jump where there is one."""
    still, *jump = (Gumbel(*pair) for pair in zip(extremes[::2], extremes[1::2], strict=True))
    found = ops.temporal_severity(d, profile, still, *(jump or [None]), low=low, high=high, backend=backend)
    severity, levels = (part.contiguous() for part in found)
    return severity, levels


@temporal_severity.register_fake
def _(d, profile, extremes, low, high, backend):
    shape = d.shape[1:]
    return d.new_empty(shape, dtype=torch.float32), d.new_empty(shape, dtype=torch.uint8)


@torch.library.custom_op("ascedfast::label_regions", mutates_args=())
def label_regions(
    mask: Tensor, connectivity: int, min_area: float, max_area: float, core_width: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``ops.label_regions``."""
    found = ops.label_regions(
        mask,
        connectivity=connectivity,
        min_area=min_area,
        max_area=max_area,
        core_width=core_width,
        backend=backend,
    )
    # The fake promises dense results; the reference keeps the order in which the mask lies.
    labels, kept, overflow = found
    return labels.contiguous(), kept.contiguous(), overflow


@label_regions.register_fake
def _(mask, connectivity, min_area, max_area, core_width, backend):
    labels, kept = (mask.new_empty(mask.shape, dtype=dtype) for dtype in (torch.int32, torch.bool))
    return labels, kept, mask.new_empty(mask.shape[0], dtype=torch.bool)


@torch.library.custom_op("ascedfast::dilate_mask", mutates_args=())
def dilate_mask(mask: Tensor, radius: int, backend: str) -> Tensor:
    """``ops.dilate_mask``."""
    return ops.dilate_mask(mask, radius, backend=backend).contiguous()


@dilate_mask.register_fake
def _(mask, radius, backend):
    return mask.new_empty(mask.shape)


@torch.library.custom_op("ascedfast::renoise_", mutates_args=("x",))
def renoise_(
    x: Tensor,
    mask: Tensor,
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    seeds: Tensor,
    steps: Tensor,
    draws: Tensor,
    x0_noise: Tensor | None,
    backend: str,
) -> None:
    """``ops.renoise_``."""
    ops.renoise_(x, mask, x0, alpha, sigma, seeds=seeds, steps=steps, draws=draws, x0_noise=x0_noise, backend=backend)


@renoise_.register_fake
def _(x, mask, x0, alpha, sigma, seeds, steps, draws, x0_noise, backend):
    return None


@torch.library.custom_op("ascedfast::history_fill_", mutates_args=("entries",))
def history_fill_(entries: list[Tensor], mask: Tensor, current: Tensor, backend: str) -> None:
    """``ops.history_fill_``."""
    ops.history_fill_(entries, mask, current, backend=backend)


@history_fill_.register_fake
def _(entries, mask, current, backend):
    return None
