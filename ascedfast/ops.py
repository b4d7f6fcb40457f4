# SPDX-License-Identifier: MIT
"""The ops: what each promises, its checks, and the choice of who computes it.

One function an op; its truth is the function of the same name in ``reference``. R rows (requests), C channels,
``*grid`` the location axes: (H, W) or (D, H, W). Inputs are not modified unless the name ends in ``_``. Results of a
row do not depend on the other rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ascedfast import _backend, _native_cuda, reference
from ascedfast.device_guard import on_device_of
from ascedfast.op_checks import (
    by_triton,
    check,
    check_a_row,
    check_changes,
    check_mask,
    check_scale,
    check_states,
    check_writable,
    is_whole,
)
from ascedfast.reference_scores import Gumbel, Scores


def step_dynamics(
    x: Tensor,
    m: Tensor,
    a: Tensor,
    b: Tensor,
    x0_prev: Tensor | None = None,
    *,
    clip: float | None = None,
    reduce: str = "mean",
    patch: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """x0_hat = a*x + b*m of one solver step, and the dynamics d = reduce_c |x0_hat - x0_prev|, by location or by patch.

    Args:
        x, m: state and model output, [R, C, *grid], fp32, bf16, fp16 or fp64.
        a, b: float32 [R] or 0-dim, on x's device (``process.Coefficients``).
        x0_prev: the previous step's x0_hat, or None at the first step.
        clip: clamp of x0_hat, above 0; NaN is kept.
        reduce: "mean" or "max" over channels.
        patch: side in locations of the (H, W) plane, 1, 2, 4, 8 or 16; above 1 d is the mean over patch x patch squares
            of the dynamics of their locations, one cut off by the border over the locations that it has.
    Returns: x0_hat [R, C, *grid] and d (None without x0_prev), fp32 (fp64 for fp64 x). d is in units of x0_hat,
        [R, *grid], by patch with ceil(H/patch) and ceil(W/patch) for H and W; NaN where a location is.
    Error of x0_hat in fp32: at most 4*eps*(|a*x| + |b*m|). Source: arXiv 2503.16218, Eq. 4, without the schedule's own
    drift; by patch, its per-patch temporal score statistics. Raises: ValueError, TypeError, BackendError.
    """
    if torch.compiler.is_compiling():
        x0, d = torch.ops.ascedfast.step_dynamics(x, m, a, b, x0_prev, clip, reduce, backend, patch)
        return x0, None if x0_prev is None else d
    check_states(x, ("m", m), *([("x0_prev", x0_prev)] if x0_prev is not None else []))
    check(reduce in ("mean", "max"), f"reduce must be 'mean' or 'max', got {reduce!r}")
    check(clip is None or clip > 0, f"clip must be above 0, got {clip}")
    check(x0_prev is None or x.shape[1] > 0, f"x has no channels: {tuple(x.shape)}")
    for name, value in (("a", a), ("b", b)):
        if value.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {value.dtype}")
        check(value.shape in ((), x.shape[:1]), f"{name} must be [{len(x)}] or 0-dim, got {tuple(value.shape)}")
        check(value.device == x.device, f"{name} is on {value.device}, x on {x.device}")
    check(isinstance(patch, int) and patch in (1, 2, 4, 8, 16), f"patch must be 1, 2, 4, 8 or 16, got {patch!r}")
    if by_triton("step_dynamics", backend, x, m, *([x0_prev] if x0_prev is not None else [])):
        from ascedfast.kernels import patch_dynamics
        from ascedfast.kernels import step_dynamics as kernel

        with on_device_of(x):
            if patch > 1 and x0_prev is not None:
                return patch_dynamics.patch_dynamics(x, m, a, b, x0_prev, clip, reduce, patch)
            return kernel.step_dynamics(x, m, a, b, x0_prev, clip, reduce)[:2]
    return reference.step_dynamics(x, m, a, b, x0_prev, clip, reduce, patch)


def robust_threshold(
    maps: Tensor,
    *,
    mad_scale: float | Tensor,
    mad_floor: float,
    blur_sigma: float,
    z_floor: float,
    count: bool = False,
    by_frame: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Locations above median + mad_scale*1.4826*max(MAD, mad_floor) in any map of the window, after smoothing.

    Args:
        maps: non-negative fp32 [K, R, C, *grid], K >= 1, any strides; statistics pool C and the grid of one map of one
            row. The sign is dropped. fp64 is computed by the reference alone.
        mad_scale: a float, or a tensor on maps' device, float32 [R] (one a row) or [R, *grid] (a plane of thresholds);
            0 or more, unchecked in a tensor. Order of the product: mad_scale*1.4826 (a float: in float64, rounded
            once to fp32; a tensor: the rounded product of two fp32 factors), times the MAD, plus the median.
        blur_sigma: Gaussian smoothing in locations along the grid (and the channels where C > 1); 0: none.
        z_floor: lower bound (> 0) of the MAD in the returned z. mad_floor, z_floor: units of maps.
        count: return in how many maps a location is above, instead of whether it is in any.
        by_frame: statistics pool C and the plane (H, W) of one frame D instead of the volume, and the smoothing leaves
            out D: a frame has the bits that it would have as a row. No effect on grids of two axes.
        backend: "auto" on CUDA takes the medians of planes of more than 64x64 and up to 512x512 values from the
            extension, if that holds CUDA, and the rest from Triton; "triton" is Triton alone. The bits are the same.
    Returns: flags bool [R, *grid] (count: int32); z fp32 [R, *grid], the largest (value - median) / (1.4826*MAD) over
        the window. A row with NaN or Inf in any of its maps has no flag (0), and its z is NaN everywhere.
    Source: the released detector of arXiv 2503.16218. Raises: ValueError, TypeError, BackendError.
    """
    if torch.compiler.is_compiling():
        scale, scales = (0.0, mad_scale) if isinstance(mad_scale, Tensor) else (mad_scale, None)
        rest = (mad_floor, blur_sigma, z_floor, count, backend, by_frame)
        return torch.ops.ascedfast.robust_threshold(maps, scale, scales, *rest)
    if maps.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"maps must be float32 or float64, got {maps.dtype}")
    check(maps.dim() in (5, 6), f"maps must be [K, R, C, H, W] or [K, R, C, D, H, W], got {tuple(maps.shape)}")
    check(maps.shape[0] >= 1, "maps holds no map: K must be at least 1")
    check(maps[0, :1].numel() > 0 or maps.shape[1] == 0, f"maps has an empty axis: {tuple(maps.shape)}")
    check(z_floor > 0, f"z_floor must be above 0, got {z_floor}")
    if isinstance(mad_scale, Tensor):
        check_scale(mad_scale, maps)
    else:
        check(mad_scale >= 0, f"mad_scale must be 0 or more, got {mad_scale}")
    for name, value in (("mad_floor", mad_floor), ("blur_sigma", blur_sigma)):
        check(0 <= value < float("inf"), f"{name} must be 0 or more and finite, got {value}")
    settings = {"mad_scale": mad_scale, "mad_floor": mad_floor, "blur_sigma": blur_sigma, "z_floor": z_floor}
    settings |= {"count": count, "by_frame": by_frame}
    if by_triton("robust_threshold", backend, maps):
        from ascedfast.kernels import robust_threshold as kernel

        faster = _native_cuda.medians if backend == "auto" and _backend.has_cuda() else None
        with on_device_of(maps):
            return kernel.robust_threshold(maps, **settings, faster=faster)
    return reference.robust_threshold(maps, **settings)


def temporal_scores(d: Tensor, profile: Sequence[float], *, backend: str = "auto") -> Scores:
    """How still a location stands where it was in motion, and how far it leapt there and back, in a window's changes.

    Args:
        d: smoothed, non-negative changes of consecutive steps, [K, R, *grid], K >= 2, any strides, fp32, bf16, fp16 or
            fp64, in any unit. fp64 is computed by the reference alone.
        profile: K positive, finite numbers, what a sound sample changes on average at each step; only their ratios
            count.
    Returns: still and jump, fp32 [R, *grid] each: ratios, 0 or more; jump is 0 throughout in a window of two changes. A
        row with NaN is NaN everywhere. One with Inf is NaN at that location, and 1 and 0 elsewhere.
    Error by Triton, next to the reference: 2^-22 of a score, where a float64 sum rounds otherwise. Source: this project
    (``docs/calibration.md``). Raises: ValueError, TypeError, BackendError.
    """
    if torch.compiler.is_compiling():
        return Scores(*torch.ops.ascedfast.temporal_scores(d, [float(value) for value in profile], backend))
    check_changes(d, profile)
    if by_triton("temporal_scores", backend, d):
        from ascedfast.kernels import temporal_scores as kernel

        with on_device_of(d):
            return Scores(*kernel.temporal_scores(d, profile))
    return reference.temporal_scores(d, profile)


def temporal_severity(
    d: Tensor,
    profile: Sequence[float],
    still: Gumbel,
    jump: Gumbel | None,
    *,
    low: float,
    high: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """How rare the changes of a window are among sound runs, and the levels from which regions grow.

    Args:
        d, profile: as for ``temporal_scores``.
        still, jump: of the logarithms of sound samples' largest scores (``calibration.table.Null``); scales above 0.
            jump: None in a window of two changes.
        low, high: severities from which a region spreads, and from one of which it grows; low <= high.
    Returns: severity fp32 [R, *grid]: how far a location's rarer score lies beyond a sound sample's largest, in scales
        of it; NaN throughout a row with NaN or Inf. levels uint8 of its shape: 0, 1 above low, 2 above high, as
        ``label_regions`` takes them.
    Error by Triton, next to the reference: 2^-20 * (1 + |location| + |severity|*scale) / scale, as its logarithms and
    float64 sums round otherwise. Source: this project (``docs/calibration.md``). Raises: ValueError, TypeError,
    BackendError.
    """
    if torch.compiler.is_compiling():
        numbers = [still.location, still.scale, *(() if jump is None else (jump.location, jump.scale))]
        return torch.ops.ascedfast.temporal_severity(
            d, [float(value) for value in profile], numbers, float(low), float(high), backend
        )
    check_changes(d, profile)
    for one in (still, jump):
        check(one is None or one.scale > 0, f"a scale must be above 0, got {one}")
    check(low <= high, f"low must not lie above high, got {low} and {high}")
    if by_triton("temporal_severity", backend, d):
        from ascedfast.kernels import temporal_severity as kernel

        with on_device_of(d):
            return kernel.temporal_severity(d, profile, still, jump, low=low, high=high)
    return reference.temporal_severity(d, profile, still, jump, low=low, high=high)


def label_regions(
    mask: Tensor,
    *,
    connectivity: int,
    min_area: float = 0,
    max_area: float = float("inf"),
    core_width: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Connected regions of each row, which of them are kept, and whether a row overflowed.

    Args:
        mask: bool [R, H, W] or [R, D, H, W], any strides; or uint8 levels: 0 ground, 1 set, 2 set and a seed (other
            values unchecked).
        connectivity: 4 or 8 in 2D, 6 or 26 in 3D.
        min_area, max_area: kept where min_area < locations < max_area, both strict.
        core_width: and where the region holds a full core_width x core_width block of one (H, W) plane. With levels
            it must be 1, and a region is kept where it holds a seed.
    Returns: labels int32 (0 ground; regions 1.. of each row in raster order of their first location, dropped ones
        too) and kept bool, both of mask's shape. Equal to scipy.ndimage.label.
        overflow bool [R], on mask's device: the row needs more rounds than the triton kernel does (see its bound);
        nothing of it is kept then, and its labels may split a region. False from every other backend.
    Raises: ValueError, TypeError.
    """
    if torch.compiler.is_compiling():
        rules = (connectivity, float(min_area), float(max_area), core_width)
        return torch.ops.ascedfast.label_regions(mask, *rules, backend)
    check_mask(mask, levels=True)
    allowed = (4, 8) if mask.dim() == 3 else (6, 26)
    check(connectivity in allowed, f"connectivity of a {mask.dim() - 1}D grid must be in {allowed}: {connectivity}")
    check(is_whole(core_width, 1), f"core_width must be an int of at least 1, got {core_width!r}")
    levels = mask.dtype == torch.uint8
    check(not levels or core_width == 1, f"core_width must be 1 with uint8 levels, got {core_width}")
    check(max_area > min_area >= 0, f"0 <= min_area < max_area must hold, got {min_area} and {max_area}")
    rules = {"connectivity": connectivity, "min_area": min_area, "max_area": max_area, "core_width": core_width}
    picked = _backend.pick("label_regions", mask.device, backend)
    if picked == "triton":
        from ascedfast.kernels import label_regions as kernel

        with on_device_of(mask):
            return kernel.label_regions(mask, **rules)
    if picked == "reference":
        return reference.label_regions(mask, **rules)
    planes = mask if mask.dim() == 4 else mask[:, None]
    if mask.device.type == "cuda":
        labels, kept, overflow = _native_cuda.label_regions(planes, connectivity, min_area, max_area, core_width)
        return labels.view(mask.shape), kept.view(mask.shape), overflow
    overflow = torch.zeros(mask.shape[0], dtype=torch.bool)
    labels = torch.empty(mask.shape, dtype=torch.int32)
    kept = torch.empty(mask.shape, dtype=torch.bool)
    _backend.native().label_regions(
        planes.data_ptr(),
        tuple(planes.stride()),
        tuple(planes.shape),
        labels.data_ptr(),
        kept.data_ptr(),
        connectivity,
        float(min_area),
        float(max_area),
        0 if levels else core_width,  # 0: the seeds are the cores
    )
    return labels, kept, overflow


def dilate_mask(mask: Tensor, radius: int, *, backend: str = "auto") -> Tensor:
    """Grow a mask by ``radius`` locations in the (H, W) plane, a square of side 2*radius + 1 (Chebyshev distance).

    Args: mask: bool [R, H, W] or [R, D, H, W], any strides. Returns: a new, contiguous mask of the same shape.
    Raises: ValueError, TypeError, BackendError.
    """
    if torch.compiler.is_compiling():
        return torch.ops.ascedfast.dilate_mask(mask, radius, backend)
    check_mask(mask)
    check(is_whole(radius, 0), f"radius must be an int of 0 or more, got {radius!r}")
    radius = min(radius, max(mask.shape[-2:]))  # more is no larger
    if _backend.pick("dilate_mask", mask.device, backend) == "triton":
        from ascedfast.kernels import dilate_mask as kernel

        with on_device_of(mask):
            return kernel.dilate_mask(mask, radius)
    return reference.dilate_mask(mask, radius).contiguous()


def renoise_(
    x: Tensor,
    mask: Tensor,
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    seeds: Tensor,
    steps: Tensor,
    draws: Tensor,
    x0_noise: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """In place: x = alpha*(x0 + x0_noise*xi) + sigma*e inside the mask. Outside it x keeps its bits.

    Args:
        x: [R, C, *grid], modified; mask: bool [R, *grid]; x0: [R, C, *grid] fp32 or fp64.
        alpha, sigma: the level of x, float32 [R]; x0_noise: float32 [R], None for 0.
        seeds, steps, draws: int64 [R]; the noise depends on them and on the location alone (``noise.normal``). Steps
            in 0..2^32 - 1, draws in 0..65535, unchecked: reading them back would stall the device.
    Returns: x. Source: arXiv 2503.16218, Eq. 6, noise added to x0 as in the released code. Raises: ValueError,
        TypeError.
    """
    if torch.compiler.is_compiling():
        torch.ops.ascedfast.renoise_(x, mask, x0, alpha, sigma, seeds, steps, draws, x0_noise, backend)
        return x
    check_states(x, ("x0", x0))
    check_mask(mask)
    expected = (x.shape[0], *x.shape[2:])
    check(tuple(mask.shape) == expected, f"mask must be {expected}, got {tuple(mask.shape)}")
    check(mask.device == x.device, f"mask is on {mask.device}, x on {x.device}")
    if x0.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x0 must be float32 or float64, got {x0.dtype}")
    check_a_row(x, torch.float32, alpha=alpha, sigma=sigma, x0_noise=x0_noise)
    check_a_row(x, torch.int64, seeds=seeds, steps=steps, draws=draws)
    check_writable("x", x)
    if by_triton("renoise_", backend, x, x0):
        from ascedfast.kernels import renoise as kernel

        noise = {"seeds": seeds, "steps": steps, "draws": draws, "x0_noise": x0_noise}
        with on_device_of(x):
            return kernel.renoise_(x, mask, x0, alpha, sigma, **noise)
    corrected = reference.renoise(x, mask, x0, alpha, sigma, seeds=seeds, steps=steps, draws=draws, x0_noise=x0_noise)
    return x.copy_(corrected)


def history_fill_(entries: Sequence[Tensor], mask: Tensor, current: Tensor, *, backend: str = "auto") -> None:
    """In place: every entry = current inside the mask. Outside it every bit stays, NaN payloads too.

    What a multistep solver remembers, after its state was corrected inside the mask: filled with the current step's
    own value there, it says that the sample has always been on the new trajectory; elsewhere nothing changes.

    Args:
        entries: at most three tensors [R, C, *grid], fp32, bf16, fp16 or fp64, any strides, modified. They are the
            caller's to write: none may share memory with a tensor that others read, or with ``current`` in part.
        mask: bool [R, *grid]; current: [R, C, *grid], any of these dtypes, converted to each entry's.
    Raises: ValueError, TypeError, BackendError; then no entry has changed.
    """
    if torch.compiler.is_compiling():
        torch.ops.ascedfast.history_fill_(list(entries), mask, current, backend)
        return
    check(len(entries) <= 3, f"a solver keeps at most 3 tensors, got {len(entries)} entries")
    check_states(current, *((f"entries[{i}]", entry) for i, entry in enumerate(entries)), name="current")
    check_mask(mask)
    expected = (current.shape[0], *current.shape[2:])
    check(tuple(mask.shape) == expected, f"mask must be {expected}, got {tuple(mask.shape)}")
    check(mask.device == current.device, f"mask is on {mask.device}, current on {current.device}")
    for i, entry in enumerate(entries):
        check_writable(f"entries[{i}]", entry)
    picked = _backend.pick("history_fill_", current.device, backend)
    if not entries:
        return
    if picked == "triton":
        from ascedfast.kernels import history_fill as kernel

        with on_device_of(current):
            kernel.history_fill_(entries, mask, current)
        return
    for entry, filled in zip(entries, reference.history_fill(entries, mask, current), strict=True):
        entry.copy_(filled)
