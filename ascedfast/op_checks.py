# SPDX-License-Identifier: MIT
"""What ``ops`` refuses: checks that several ops share, and whether Triton takes an op's tensors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ascedfast import _backend
from ascedfast.reference_scores import LEAST_CHANGES


def check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def check_states(x: Tensor, *others: tuple[str, Tensor], name: str = "x") -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name} must be of a float dtype, got {x.dtype}")
    check(x.dim() in (4, 5), f"{name} must be [R, C, H, W] or [R, C, D, H, W], got {tuple(x.shape)}")
    for label, other in others:
        check(other.shape == x.shape, f"{label} must have {name}'s shape {tuple(x.shape)}, got {tuple(other.shape)}")
        check(other.device == x.device, f"{label} is on {other.device}, {name} on {x.device}")
        if not other.is_floating_point():
            raise TypeError(f"{label} must be of a float dtype, got {other.dtype}")


def check_mask(mask: Tensor, levels: bool = False) -> None:
    if mask.dtype != torch.bool and not (levels and mask.dtype == torch.uint8):
        raise TypeError(f"mask must be bool{' or uint8 levels' if levels else ''}, got {mask.dtype}")
    check(mask.dim() in (3, 4), f"mask must be [R, H, W] or [R, D, H, W], got {tuple(mask.shape)}")


def check_a_row(x: Tensor, dtype: torch.dtype, **values: Tensor | None) -> None:
    """Each of the values is one number a row of x."""
    for name, value in values.items():
        if value is None:
            continue
        if value.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
        check(tuple(value.shape) == (len(x),), f"{name} must be [{len(x)}], one a row, got {tuple(value.shape)}")
        check(value.device == x.device, f"{name} is on {value.device}, x on {x.device}")


def check_writable(name: str, x: Tensor) -> None:
    """x may be written to, each element on its own."""
    asks = x.requires_grad and x.is_leaf and torch.is_grad_enabled()
    check(not asks, f"{name} is a leaf that requires gradients: it cannot be written to")
    shared = any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True))
    check(not shared, f"{name} is expanded, so that one element stands for many: write to a clone of it")


def is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def by_triton(op: str, backend: str, *tensors: Tensor) -> bool:
    """Whether Triton computes the op of these tensors. It knows no float64: "auto" leaves that to the reference."""
    if _backend.pick(op, tensors[0].device, backend) != "triton":
        return False
    if all(tensor.dtype != torch.float64 for tensor in tensors):
        return True
    if backend == "auto":
        return False
    raise _backend.BackendError(f"backend {backend!r} computes in float32; float64 needs backend='reference'")


def check_scale(mad_scale: Tensor, maps: Tensor) -> None:
    if mad_scale.dtype != torch.float32:
        raise TypeError(f"a mad_scale tensor must be float32, got {mad_scale.dtype}")
    shapes = ((maps.shape[1],), (maps.shape[1], *maps.shape[3:]))
    check(tuple(mad_scale.shape) in shapes, f"mad_scale must be one of {shapes}, got {tuple(mad_scale.shape)}")
    check(mad_scale.device == maps.device, f"mad_scale is on {mad_scale.device}, maps on {maps.device}")


def check_changes(d: Tensor, profile: Sequence[float]) -> None:
    if not d.is_floating_point():
        raise TypeError(f"d must be of a float dtype, got {d.dtype}")
    check(
        d.dim() in (4, 5) and len(profile) == len(d),
        f"d must be [K, R, *grid] with a grid of 2 or 3 axes, the profile K numbers, got {tuple(d.shape)} and "
        f"{len(profile)}",
    )
    check(len(d) >= LEAST_CHANGES, f"{len(d)} changes tell nothing: at least {LEAST_CHANGES} are needed")
    good = all(0 < value < math.inf for value in profile)
    check(good, f"a profile is positive and finite at every step, got {list(profile)}")
