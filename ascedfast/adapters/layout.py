# SPDX-License-Identifier: MIT
"""Views between a sampler's latents and the engine's [R, C, *grid].

Axes are written as letters: B rows, C channels, S packed locations, L length, T and M time and mel bands, F frames, H
and W. A grid is (H, W), (T, M), (F, H, W), or (1, L) of a line.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

LIKELY_BLOCKS = (16, 32, 8, 64, 4, 2, 1)
"""Sides in pixels of a packed location where the pipeline does not tell, the usual ones first."""
VIDEO_AXES = ("BCFHW", "BFCHW", "BFHWC")
GRIDS = ("FHW", "HW", "TM", "L", "S")
"""Location axes, in the order that the grid has them."""
AXES = "B, C and one of HW, TM, FHW, L or S (packed), in the order of the tensor's axes, as 'BFCHW'"


class UnknownLayoutError(ValueError):
    """Nobody told which axis is what; the message says who can."""


@dataclass(frozen=True)
class PipelineContext:
    """What a pipeline call tells about itself. height, width: image pixels. scale: pixels a latent location, 1 where it
    does not tell. frames: of a video, or images of a stack, None for one image; latent_frames: how many its latents may
    have, channels: how many channels, both empty where the pipeline does not tell; order: of the axes of its video
    latents, where known. audio: it makes sound. rehearses: it steps twice, and keeps of the first call the prediction
    alone."""

    generator: object = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    latent_frames: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    scale: int = 1
    order: str | None = None
    audio: bool = False
    rehearses: bool = False

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) where both are known."""
        return (self.height, self.width) if self.height and self.width else None


class Layout(NamedTuple):
    """view: sees tensors of the latents' shape as [R, C, *grid] without a copy; writing into the view writes into its
    source. latents: the way back. image_size: (height, width) in pixels of what the latents decode to. line: the grid
    is (1, L)."""

    view: Callable[[Tensor], Tensor]
    latents: Callable[[Tensor], Tensor]
    image_size: tuple[int, int]
    line: bool = False


def layout_of(
    x: Tensor, context: PipelineContext, grid: tuple[int, ...] | None = None, axes: str | None = None
) -> Layout:
    """The layout of a sampler's latents.

    Args: grid: of packed latents (of others it must be their own), axes: of any, where the user gave them.
    Raises: UnknownLayoutError; ValueError where what the user gave does not fit.
    """
    if axes is None:
        axes = _axes_of(x, context)
    elif len(axes) != x.dim():
        raise ValueError(f"axes={axes!r} has {len(axes)} axes, the latents are {tuple(x.shape)}: write {AXES}")
    if "S" not in axes:
        plain = _plain(x, axes, context)
        own = tuple(plain.view(x).shape[2:])
        if grid is not None and tuple(grid) != own:
            raise ValueError(
                f"grid {_times(grid)} is not that of the latents {tuple(x.shape)}, {_times(own)}: leave grid out, it "
                "is for packed latents; axes= tells the order of others"
            )
        return plain
    locations = x.shape[axes.index("S")]
    if grid is None:
        grid, block = _packed_grid(locations, context)
        size = (grid[-2] * block, grid[-1] * block)
    else:
        size = context.image_size or tuple(grid[-2:])
    held = 1
    for side in grid:
        held *= side
    if held != locations:
        raise ValueError(f"grid {_times(grid)} does not hold the {locations} packed locations of {tuple(x.shape)}")
    view, latents = _permuted(axes, "BCS")
    return Layout(lambda t: view(t).unflatten(2, grid), lambda seen: latents(seen.flatten(2)), size)


def _times(grid: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in grid)


def opaque(x: Tensor) -> Layout:
    """Of latents of which nothing is known but that rows come first: good for reading x0_hat, not for correcting."""
    shape = x.shape[1:]
    return Layout(lambda t: t.reshape(len(t), 1, 1, -1), lambda seen: seen.reshape(len(seen), *shape), (1, 1))


def checked_axes(axes: str | None) -> str | None:
    """Raises: ValueError for axes that are none of ``AXES``."""
    if axes is None:
        return None
    rest = {"".join(sorted(letters)) for letters in GRIDS}
    letters = sorted(axes) if isinstance(axes, str) else []
    if "B" in letters and "C" in letters and "".join(letters).replace("B", "", 1).replace("C", "", 1) in rest:
        return axes
    raise ValueError(f"axes must be {AXES}; got {axes!r}")


def _plain(x: Tensor, axes: str, context: PipelineContext) -> Layout:
    """Of latents that are no packed locations."""
    view, latents = _permuted(axes, "BC" + next(letters for letters in GRIDS if letters[0] in axes))
    if "L" in axes:
        length = x.shape[axes.index("L")]
        size = (1, length * context.scale)
        return Layout(lambda t: view(t)[:, :, None], lambda seen: latents(seen.squeeze(2)), size, line=True)
    height, width = view(x).shape[-2:]
    return Layout(view, latents, context.image_size or (height * context.scale, width * context.scale))


def _permuted(axes: str, wanted: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Views from one order of axes to another, and back."""
    if axes == wanted:
        return _as_is, _as_is
    there, back = [axes.index(letter) for letter in wanted], [wanted.index(letter) for letter in axes]
    return lambda t: t.permute(there), lambda t: t.permute(back)


def _as_is(latents: Tensor) -> Tensor:
    return latents


def _axes_of(x: Tensor, context: PipelineContext) -> str:
    if x.dim() == 4:
        return "BCHW"
    if x.dim() == 5:
        return _video_axes(x, context)
    if x.dim() != 3:
        raise UnknownLayoutError(f"latents {tuple(x.shape)} have no grid that ASCED knows: pass axes={AXES}")
    if not context.audio:
        return "BSC"
    fitting = [axes for axes in ("BCL", "BLC") if x.shape[axes.index("C")] in context.channels]
    if len(fitting) != 1:
        raise UnknownLayoutError(
            f"which axis of the audio latents {tuple(x.shape)} is the channels' is not known: pass axes='BCL' or 'BLC'"
        )
    return fitting[0]


def _video_axes(x: Tensor, context: PipelineContext) -> str:
    """The order in which the axes fit what the pipeline tells; its family's order where several do."""
    fitting = [axes for axes in VIDEO_AXES if _fits(x, axes, context)]
    if context.order in fitting:
        return context.order
    if len(fitting) == 1 and context.order is None:
        return fitting[0]
    raise UnknownLayoutError(
        f"the order of the axes of the video latents {tuple(x.shape)} is not known (the pipeline does not tell how "
        "many frames and channels its latents have, or several orders fit): pass axes='BCFHW', 'BFCHW' or 'BFHWC'"
    )


def _fits(x: Tensor, axes: str, context: PipelineContext) -> bool:
    channels, frames = x.shape[axes.index("C")], x.shape[axes.index("F")]
    # Pipelines that are given their first frame step the others.
    known = {at for count in context.latent_frames for at in (count, count - 1)}
    return frames in known and (not context.channels or channels in context.channels)


def _packed_grid(locations: int, context: PipelineContext) -> tuple[tuple[int, ...], int]:
    """(grid, side of a location in pixels): the pipeline divides both sides of the image by one block and rounds
    down."""
    if context.image_size and context.frames is None:
        for block, grid in _images_of(locations, context):
            return grid, block
    if context.image_size:
        for frames in context.latent_frames:
            if locations % frames == 0:
                for block, grid in _images_of(locations // frames, context):
                    return (frames, *grid), block
    what = "of video" if context.frames is not None else ""
    raise UnknownLayoutError(
        f"the grid of {locations} packed locations {what}".rstrip() + " is not known: pass grid=(height, width), or "
        "(frames, height, width), in locations to enable_asced, or enable ASCED on the pipeline if it was enabled on "
        "its scheduler; axes='BCL' or 'BLC' for a line. A set of tokens without a grid has no regions"
    )


def _images_of(locations: int, context: PipelineContext) -> Iterator[tuple[int, tuple[int, int]]]:
    """(side of a block, (H, W)) of the images of that many blocks. Blocks of other sides would fit many a number by
    chance, and hold no whole latent location."""
    for block in dict.fromkeys((context.scale, 2 * context.scale, *LIKELY_BLOCKS)):
        height, width = context.height // block, context.width // block
        if height * width == locations and block % context.scale == 0:
            yield block, (height, width)
