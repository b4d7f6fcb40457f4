# SPDX-License-Identifier: MIT
"""The ops: what each promises, its checks, and the choice of who computes it.

One function an op; its truth is the function of the same name in ``reference``. R rows (requests), C channels,
``*grid`` the location axes: (H, W) or (D, H, W). Inputs are not modified unless the name ends in ``_``. Results of a
row do not depend on the other rows.
"""

import torch
from torch import Tensor

from ascedfast import _backend, reference
from ascedfast.noise import Purpose


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _check_states(x: Tensor, *others: tuple[str, Tensor]) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x must be of a float dtype, got {x.dtype}")
    _check(x.dim() in (4, 5), f"x must be [R, C, H, W] or [R, C, D, H, W], got {tuple(x.shape)}")
    for name, other in others:
        _check(other.shape == x.shape, f"{name} must have x's shape {tuple(x.shape)}, got {tuple(other.shape)}")
        _check(other.device == x.device, f"{name} is on {other.device}, x on {x.device}")
        if not other.is_floating_point():
            raise TypeError(f"{name} must be of a float dtype, got {other.dtype}")


def _check_mask(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    _check(mask.dim() in (3, 4), f"mask must be [R, H, W] or [R, D, H, W], got {tuple(mask.shape)}")


def _check_fp32(backend: str, *tensors: Tensor) -> None:
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        raise _backend.BackendError(f"backend {backend!r} computes in float32; float64 needs backend='reference'")


def step_dynamics(
    x: Tensor,
    m: Tensor,
    a: Tensor,
    b: Tensor,
    x0_prev: Tensor | None = None,
    *,
    clip: float | None = None,
    reduce: str = "mean",
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """x0_hat = a*x + b*m of one solver step, and the dynamics d = reduce_c |x0_hat - x0_prev|.

    Args:
        x, m: state and model output, [R, C, *grid], fp32, bf16, fp16 or fp64.
        a, b: float32 [R] or 0-dim, on x's device (``process.Coefficients``).
        x0_prev: the previous step's x0_hat, or None at the first step.
        clip: clamp of x0_hat, NaN kept.
        reduce: "mean" or "max" over channels.
    Returns: x0_hat [R, C, *grid] and d [R, *grid] (None without x0_prev), fp32 (fp64 for fp64 x).
    Error of x0_hat in fp32: at most 4*eps*(|a*x| + |b*m|). Raises: ValueError, TypeError.
    """
    _check_states(x, ("m", m), *([("x0_prev", x0_prev)] if x0_prev is not None else []))
    _check(reduce in ("mean", "max"), f"reduce must be 'mean' or 'max', got {reduce!r}")
    if _backend.pick("step_dynamics", x.device, backend) == "triton":
        from ascedfast.kernels import step_dynamics as kernel

        _check_fp32(backend, x, m, *([x0_prev] if x0_prev is not None else []))
        return kernel.step_dynamics(x, m, a, b, x0_prev, clip, reduce)
    return reference.step_dynamics(x, m, a, b, x0_prev, clip, reduce)


def robust_threshold(
    maps: Tensor,
    *,
    mad_scale: float,
    mad_floor: float,
    blur_sigma: float,
    z_floor: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Locations above median + mad_scale*1.4826*max(MAD, mad_floor) in any map of the window, after smoothing.

    Args:
        maps: non-negative fp32 [K, R, C, *grid], K >= 1; statistics pool C and the grid of one map of one row.
        blur_sigma: Gaussian smoothing in locations along the grid (and the channels where C > 1); 0: none.
        z_floor: lower bound (> 0) of the MAD in the returned z. mad_floor, z_floor: units of maps.
    Returns: flags bool [R, *grid]; z fp32 [R, *grid], the largest (value - median) / (1.4826*MAD) over the window.
    Source: the released detector of arXiv 2503.16218. Raises: ValueError, TypeError.
    """
    if maps.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"maps must be float32 or float64, got {maps.dtype}")
    _check(maps.dim() in (5, 6), f"maps must be [K, R, C, H, W] or [K, R, C, D, H, W], got {tuple(maps.shape)}")
    _check(maps.shape[0] >= 1, "maps holds no map: K must be at least 1")
    _check(maps[0, :1].numel() > 0 or maps.shape[1] == 0, f"maps has an empty axis: {tuple(maps.shape)}")
    _check(z_floor > 0, f"z_floor must be above 0, got {z_floor}")
    _check(min(mad_scale, mad_floor, blur_sigma) >= 0, "mad_scale, mad_floor and blur_sigma must be 0 or more")
    _backend.pick("robust_threshold", maps.device, backend)
    return reference.robust_threshold(
        maps, mad_scale=mad_scale, mad_floor=mad_floor, blur_sigma=blur_sigma, z_floor=z_floor
    )


def label_regions(
    mask: Tensor,
    *,
    connectivity: int,
    min_area: float = 0,
    max_area: float = float("inf"),
    core_width: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Connected regions of each row, and which of them are kept.

    Args:
        mask: bool [R, H, W] or [R, D, H, W], any strides.
        connectivity: 4 or 8 in 2D, 6 or 26 in 3D.
        min_area, max_area: kept where min_area < locations < max_area, both strict.
        core_width: and where the region holds a full core_width x core_width block of one (H, W) plane.
    Returns: labels int32 (0 ground; regions 1.. of each row in raster order of their first location, dropped ones
        too) and kept bool, both of mask's shape. Equal to scipy.ndimage.label. Raises: ValueError, TypeError.
    """
    _check_mask(mask)
    allowed = (4, 8) if mask.dim() == 3 else (6, 26)
    _check(connectivity in allowed, f"connectivity of a {mask.dim() - 1}D grid must be in {allowed}: {connectivity}")
    _check(core_width >= 1, f"core_width must be at least 1, got {core_width}")
    _check(max_area > min_area >= 0, f"0 <= min_area < max_area must hold, got {min_area} and {max_area}")
    if _backend.pick("label_regions", mask.device, backend) == "reference":
        return reference.label_regions(
            mask, connectivity=connectivity, min_area=min_area, max_area=max_area, core_width=core_width
        )
    labels = torch.empty(mask.shape, dtype=torch.int32)
    kept = torch.empty(mask.shape, dtype=torch.bool)
    planes = mask if mask.dim() == 4 else mask[:, None]
    _backend.native().label_regions(
        planes.data_ptr(),
        tuple(planes.stride()),
        tuple(planes.shape),
        labels.data_ptr(),
        kept.data_ptr(),
        connectivity,
        float(min_area),
        float(max_area),
        core_width,
    )
    return labels, kept


def dilate_mask(mask: Tensor, radius: int, *, backend: str = "auto") -> Tensor:
    """Grow a mask by ``radius`` locations in the (H, W) plane, a square of side 2*radius + 1 (Chebyshev distance).

    Args: mask: bool [R, H, W] or [R, D, H, W]. Returns: a new mask of the same shape. Raises: ValueError, TypeError.
    """
    _check_mask(mask)
    _check(radius >= 0, f"radius must be 0 or more, got {radius}")
    _backend.pick("dilate_mask", mask.device, backend)
    return reference.dilate_mask(mask, radius)


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
        seeds, steps, draws: int64 [R]; the noise depends on them and on the location alone (``noise.normal``).
    Returns: x. Source: arXiv 2503.16218, Eq. 6, noise added to x0 as in the released code. Raises: ValueError,
        TypeError.
    """
    _check_states(x, ("x0", x0))
    _check_mask(mask)
    expected = (x.shape[0], *x.shape[2:])
    _check(tuple(mask.shape) == expected, f"mask must be {expected}, got {tuple(mask.shape)}")
    if _backend.pick("renoise_", x.device, backend) == "triton":
        from ascedfast.kernels import renoise as kernel

        _check_fp32(backend, x, x0)
        purposes = (int(Purpose.RENOISE), int(Purpose.PERTURB_X0))
        noise = {"seeds": seeds, "steps": steps, "draws": draws, "x0_noise": x0_noise}
        return kernel.renoise_(x, mask, x0, alpha, sigma, **noise, purposes=purposes)
    corrected = reference.renoise(x, mask, x0, alpha, sigma, seeds=seeds, steps=steps, draws=draws, x0_noise=x0_noise)
    return x.copy_(corrected)
