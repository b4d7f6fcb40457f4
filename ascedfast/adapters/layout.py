# SPDX-License-Identifier: MIT
"""Views between a pipeline's latents and the engine's [R, C, *grid]."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

LIKELY_BLOCKS = (16, 32, 8, 64, 4, 2, 1)
"""Sides in pixels of a packed location, the usual ones first."""
LARGEST_BLOCK = 128


@dataclass(frozen=True)
class PipelineContext:
    """What a pipeline call tells about itself. height, width: image pixels. scale: pixels a latent location.
    frames: of a video, None for images; latent_frames: how many its latents may have, empty where the pipeline does not
    tell; channels: of its latents, None where the pipeline does not tell."""

    generator: object = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    latent_frames: tuple[int, ...] = ()
    channels: int | None = None
    scale: int = 1


class Layout(NamedTuple):
    """view: sees tensors of the latents' shape as [R, C, *grid] without a copy; writing into the view writes into its
    source. image_size: (height, width) in pixels of what the latents decode to."""

    view: Callable[[Tensor], Tensor]
    image_size: tuple[int, int]


def layout_of(x: Tensor, context: PipelineContext, grid: tuple[int, int] | None) -> Layout:
    """The layout of latents [B, C, H, W], packed [B, S, C], or [B, C, F, H, W] of a pipeline that tells its frames.

    Args: grid: (H, W) of packed latents, where the user gave it. Raises: ValueError.
    """
    if x.dim() == 5 and not _is_volume(x, context):
        raise ValueError(
            f"latents must be [B, C, H, W] or packed [B, S, C], got {tuple(x.shape)}; of a video [B, C, frames, H, W], "
            "within a pipeline that tells how many frames a latent one stands for (vae_scale_factor_temporal): for any "
            "other call disable_asced first"
        )
    if x.dim() in (4, 5):
        height, width = x.shape[-2:]
        size = (height * context.scale, width * context.scale)
        return Layout(_as_is, (context.height, context.width) if context.height and context.width else size)
    if x.dim() != 3:
        raise ValueError(f"latents must be [B, C, H, W] or packed [B, S, C], got {tuple(x.shape)}")
    if grid is None:
        height, width, block = _packed_grid(x.shape[1], context)
        size = (height * block, width * block)
    else:
        height, width = grid
        size = (context.height, context.width) if context.height and context.width else grid
    if height * width != x.shape[1]:
        raise ValueError(f"grid {height} x {width} does not hold the {x.shape[1]} packed locations of {tuple(x.shape)}")
    return Layout(lambda t: t.unflatten(1, (height, width)).permute(0, 3, 1, 2), size)


def _as_is(latents: Tensor) -> Tensor:
    return latents


def _is_volume(x: Tensor, context: PipelineContext) -> bool:
    """Whether the axes of a video's latents are [B, C, frames, H, W]: other orders have as many."""
    return x.shape[2] in context.latent_frames and context.channels in (None, x.shape[1])


def _packed_grid(locations: int, context: PipelineContext) -> tuple[int, int, int]:
    """(H, W, side of a location in pixels): the pipeline divides both sides of the image by one block and rounds
    down."""
    if context.frames is not None:
        raise ValueError("packed video latents are not supported yet: call disable_asced first")
    if context.height and context.width:
        others = (block for block in range(1, LARGEST_BLOCK + 1) if block not in LIKELY_BLOCKS)
        for block in (*LIKELY_BLOCKS, *others):
            height, width = context.height // block, context.width // block
            if height * width == locations:
                return height, width, block
    raise ValueError(
        f"the grid of {locations} packed locations is not known: pass grid=(height, width) in locations to "
        "enable_asced, or enable ASCED on the pipeline if it was enabled on its scheduler"
    )
