# SPDX-License-Identifier: MIT
"""Locations that are never re-noised: a first frame, the known part of an inpainting, measured data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ascedfast import ops
from ascedfast.config import AscedConfig
from ascedfast.detect import Detection
from ascedfast.upload import upload


def checked_keep_mask(keep: Tensor | None) -> Tensor | None:
    """Raises: TypeError, ValueError for what is no bool [R, 1, *grid]."""
    if keep is None:
        return None
    wanted = "keep_mask must be a bool torch.Tensor, True where nothing is re-noised"
    if not isinstance(keep, Tensor):
        got = f"{type(keep).__module__}.{type(keep).__name__}".removeprefix("builtins.")
        raise TypeError(f"{wanted}, got {got}" + (": give torch.from_numpy(mask)" if got == "numpy.ndarray" else ""))
    if keep.dtype != torch.bool:
        raise TypeError(f"{wanted}, got {keep.dtype}: of a mask of numbers give mask.bool(), or mask > threshold")
    if keep.dim() not in (4, 5) or keep.shape[1] != 1 or 0 in keep.shape:
        raise ValueError(
            f"keep_mask must be [R, 1, H, W] or [R, 1, F, H, W], axes of 1 fit any, got {tuple(keep.shape)}"
        )
    return keep


def keep_by_row(keep: Tensor | None, rows: int) -> list[Tensor | None]:
    """Of each of so many rows: bool, broadcasts against [*grid]. Raises: as ``checked_keep_mask``, and ValueError where
    the mask has another number of rows."""
    keep = checked_keep_mask(keep)
    if keep is None:
        return [None] * rows
    if keep.shape[0] not in (1, rows):
        raise ValueError(f"keep_mask has {keep.shape[0]} rows, the run has {rows}: give one a row, or one for all")
    return [keep[row if keep.shape[0] > 1 else 0, 0] for row in range(rows)]


def check_keep(keeps: Sequence[Tensor | None], grid: Sequence[int]) -> None:
    """Raises: ValueError where one of the rows' masks does not fit the grid."""
    for keep in keeps:
        if keep is None:
            continue
        if keep.dim() != len(grid) or any(side not in (1, full) for side, full in zip(keep.shape, grid, strict=True)):
            text = " x ".join(str(side) for side in keep.shape)
            raise ValueError(
                f"keep_mask is of a grid {text}, the latents' is {' x '.join(str(side) for side in grid)} "
                "(frames first; of a slice, where the pipeline steps one): give it in latent locations"
            )


def keep_of_all(keeps: Sequence[Tensor | None], grid: Sequence[int], device: torch.device) -> Tensor | None:
    """bool [R, *grid] of all rows, None where none has a mask. Copies to the device; the host waits for masks that lie
    on another one only."""
    if all(keep is None for keep in keeps):
        return None
    nothing = torch.zeros((), dtype=torch.bool, device=device)
    there = [nothing if keep is None else upload(keep, device) if keep.is_cpu else keep.to(device) for keep in keeps]
    return torch.stack([keep.expand(*grid) for keep in there])


def joined(keep: Tensor | None, more: Tensor) -> Tensor:
    """What either protects, bool [R, 1, *grid] like ``more`` and on its device. Raises: as ``keep_by_row``."""
    both = keep_of_all(keep_by_row(keep, len(more)), more.shape[2:], more.device)
    return more if both is None else more | both[:, None]


def unprotected(found: Detection, keep: Tensor, config: AscedConfig) -> Detection:
    """What was found outside ``keep``, bool [R, *grid]; nothing grows from within, nor into it. z and labels stay."""
    mask = found.mask & ~keep
    grown = ops.dilate_mask(mask, config.sizes(tuple(mask.shape[1:])).grow, backend=config.backend)
    return found._replace(mask=mask, grown=grown & ~keep)
