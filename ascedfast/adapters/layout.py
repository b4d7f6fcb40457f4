# SPDX-License-Identifier: MIT
"""Views between a pipeline's latents and the engine's [R, C, H, W]."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PipelineContext:
    """What a pipeline call tells about itself. height, width: image pixels. scale: pixels a latent location."""

    generator: object = None
    height: int | None = None
    width: int | None = None
    scale: int = 1


def to_grid(
    x: Tensor, context: PipelineContext, grid: tuple[int, int] | None
) -> tuple[Callable[[Tensor], Tensor], tuple[int, int]]:
    """How to see tensors of x's shape as [R, C, H, W] without a copy.

    Args: x: [B, C, H, W], or packed [B, S, C]. grid: (H, W) of packed latents, where the user gave it.
    Returns: the view (writing into it writes into its source) and (H, W). Raises: ValueError.
    """
    if x.dim() == 4:
        return (lambda t: t), (x.shape[2], x.shape[3])
    if x.dim() != 3:
        raise ValueError(f"latents must be [B, C, H, W] or packed [B, S, C], got {tuple(x.shape)}")
    height, width = grid or _packed_grid(x.shape[1], context)
    if height * width != x.shape[1]:
        raise ValueError(f"grid {height} x {width} does not hold the {x.shape[1]} packed locations of {tuple(x.shape)}")
    return (lambda t: t.unflatten(1, (height, width)).permute(0, 3, 1, 2)), (height, width)


def _packed_grid(locations: int, context: PipelineContext) -> tuple[int, int]:
    """(H, W) of packed latents from the image's aspect ratio."""
    if context.height and context.width:
        height = round(math.sqrt(locations * context.height / context.width))
        if height and locations % height == 0:
            return height, locations // height
    raise ValueError(
        f"the grid of {locations} packed locations is not known: enable ASCED on the pipeline rather than on its "
        "scheduler, or pass grid=(height, width) in locations to enable_asced"
    )


def image_size(context: PipelineContext, grid: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of the image that the latents decode to."""
    if context.height and context.width:
        return context.height, context.width
    return grid[0] * context.scale, grid[1] * context.scale
