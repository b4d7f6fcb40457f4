# SPDX-License-Identifier: MIT
"""Maps and masks as images: what reports are made of. Needs pillow and matplotlib (``ascedfast[demo]``)."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

OUTLINE = (255, 0, 110)
"""Colour of a mask's border, RGB; far from the colours of most images and told apart in every kind of colour blindness
by the white line around it."""


def to_images(images: Tensor | Sequence[Image.Image]) -> list[Image.Image]:
    """A batch as RGB images: float [R, 1 or 3, H, W] in [0, 1], or PIL images. Raises: TypeError, ValueError."""
    if not isinstance(images, Tensor):
        if not all(isinstance(image, Image.Image) for image in images):
            raise TypeError("images must be a tensor [R, 3, H, W] in [0, 1] or a list of PIL images")
        return [image.convert("RGB") for image in images]
    if not images.is_floating_point():
        raise TypeError(f"images must be float in [0, 1], got {images.dtype}")
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [R, 1 or 3, H, W], got {tuple(images.shape)}")
    pixels = images.detach().float().nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(one)) for one in pixels]


def heat_map(values: Tensor, low: float, high: float) -> Image.Image:
    """[H, W] values as colours from low to high (viridis: ordered in grey print too); NaN is grey."""
    values = values.detach().float().cpu()
    shares = ((values - low) / max(high - low, 1e-12)).clamp(0, 1)
    rgb = (colormaps["viridis"](shares.nan_to_num().numpy())[..., :3] * 255).astype(np.uint8)
    rgb[values.isnan().numpy()] = 128
    return Image.fromarray(rgb)


def enlarge(image: Image.Image, side: int = 192) -> Image.Image:
    """At least ``side`` pixels on the short side, by whole factors so that every pixel stays a square."""
    factor = max(1, math.ceil(side / min(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def draw_mask(image: Image.Image, mask: Tensor, grown: Tensor) -> Image.Image:
    """The image with the corrected mask tinted and outlined, and the regions before growth outlined inside it.

    mask, grown: bool [h, w], stretched over the image.
    """
    image = enlarge(image)
    size = (image.height, image.width)
    inner, outer = (F.interpolate(one[None, None].float().cpu(), size=size)[0, 0] > 0 for one in (mask, grown))
    pixels = np.asarray(image, dtype=np.float32).copy()
    tint = np.asarray(OUTLINE, dtype=np.float32)
    pixels[outer.numpy()] = 0.7 * pixels[outer.numpy()] + 0.3 * tint
    pixels[_border(outer, 2).numpy()] = 255
    pixels[_border(outer, 1).numpy()] = tint
    pixels[_border(inner, 1).numpy()] = tint
    return Image.fromarray(pixels.round().astype(np.uint8))


def _border(mask: Tensor, width: int) -> Tensor:
    """Locations of the mask within ``width`` of its outside."""
    hollow = F.max_pool2d((~mask)[None, None].float(), 2 * width + 1, stride=1, padding=width)[0, 0] > 0
    return mask & hollow


def grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """Images of one size side by side on white."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return sheet


def strip(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size in one row without gaps: a film for a slider."""
    return grid(images, columns=len(images), gap=0)


def data_uri(image: Image.Image, format: str = "PNG") -> str:
    """The image as a ``data:`` address for self-contained pages."""
    buffer = io.BytesIO()
    image.save(buffer, format, **({"optimize": True} if format == "PNG" else {"quality": 90}))
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
