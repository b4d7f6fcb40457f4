# SPDX-License-Identifier: MIT
"""The real images: Fashion-MNIST at 32x32, emoji at 64x64, glyph grids; each with a part that no model here may see.

    fashion32   70,000 garments (MIT licence; Xiao, Rasul, Vollgraf, arXiv 1708.07747), 28x28 with a black border of 2;
                labels: the 10 kinds; held out: the 10,000 images of the data set's own test part
    emoji64     3,926 bitmaps of Noto Color Emoji (Apache-2.0; font OFL-1.1) on white; labels: the 7 categories of
                ``emoji``; held out: a tenth of the bitmaps. The two packaged models were trained on all of them
    glyphs32    4x4 grids of ``glyphs``, as many as wanted; labels: the glyph of each of the 16 cells

Order and split are those of SPLIT_SEED.
"""

from __future__ import annotations

import functools
import gzip
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ascedfast.lab import emoji, glyphs

SPLIT_SEED = 5
FASHION_PACKAGE = "dataset-fashion-mnist"
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HELD_OUT_EMOJI = 0.1
# Between tuning and reporting seeds of the runs, so that no grid is drawn from a seed that a run starts from.
GLYPH_TRAIN, GLYPH_HELD_OUT = range(200_000, 240_000), range(600_000, 610_000)


class ImageSet(NamedTuple):
    """images: float32 [n, C, S, S] in [-1, 1]. labels: int64 [n], or [n, 16] of grids. weights: float64 [n], sum 1, how
    often each is drawn in training; None: equally often."""

    images: Tensor
    labels: Tensor
    weights: Tensor | None = None

    def first(self, count: int | None) -> ImageSet:
        """The first of them; all for None."""
        weights = None if self.weights is None else self.weights[:count] / self.weights[:count].sum()
        return ImageSet(self.images[:count], self.labels[:count], weights)


class Split(NamedTuple):
    train: ImageSet
    held_out: ImageSet


@functools.lru_cache(maxsize=3)
def load(name: str, limit: int | None = None) -> Split:
    """A data set. The tensors are shared by all who ask for it: do not write into them.

    Args:
        name: one of ``NAMES``. limit: at most so many images for training, and a quarter of it held out.
    Raises: ValueError for another name; FileNotFoundError that names the Debian package where the source is missing.
    """
    if name not in _LOADERS:
        raise ValueError(f"unknown data {name!r}: choose one of {', '.join(_LOADERS)}")
    if limit is not None and limit < 8:
        raise ValueError(f"limit must be 8 or more, got {limit}")
    train, held_out = _LOADERS[name](limit)
    return Split(train.first(limit), held_out.first(None if limit is None else math.ceil(limit / 4)))


def fashion(limit: int | None = None, folder: Path = FASHION_FOLDER) -> Split:
    """Fashion-MNIST from its four files (idx, gzip). Raises: FileNotFoundError, ValueError for a damaged file."""
    parts = []
    for prefix in ("train", "t10k"):
        images = _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 3)
        labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 1)
        if len(images) != len(labels) or images.shape[1:] != (28, 28):
            raise ValueError(f"{folder}: {images.shape} images and {labels.shape} labels do not fit")
        keep = _shuffled(len(images))[:limit]
        pixels = torch.nn.functional.pad(torch.from_numpy(images)[keep][:, None], [2] * 4)
        parts.append(ImageSet(pixels.float() / 127.5 - 1, torch.from_numpy(labels)[keep].long()))
    return Split(*parts)


def emoji64(limit: int | None = None) -> Split:
    """The emoji bitmaps; weights are those of ``emoji.sampling_weights``. Raises: FileNotFoundError."""
    found = emoji.load_emoji(size=64, limit=None if limit is None else math.ceil(1.25 * limit))
    images = torch.from_numpy(found.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    order = _shuffled(len(images))
    cut = round(len(images) * (HELD_OUT_EMOJI if limit is None else 0.2))
    weights, labels = torch.from_numpy(found.weights), torch.from_numpy(found.categories)
    train, held_out = (
        ImageSet(images[part].contiguous(), labels[part], weights[part] / weights[part].sum())
        for part in (order[cut:], order[:cut])
    )
    return Split(train, held_out)


def glyph_grids(limit: int | None = None) -> Split:
    """Grids that keep the rule, each from a seed of its own."""
    parts = []
    for seeds in (GLYPH_TRAIN, GLYPH_HELD_OUT):
        drawn = glyphs.draw_grids(seeds[:limit])
        parts.append(ImageSet(drawn.images, drawn.glyphs.flatten(1)))
    return Split(*parts)


_LOADERS = {"fashion32": fashion, "emoji64": emoji64, "glyphs32": glyph_grids}
NAMES = tuple(_LOADERS)


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """uint8, of the format at yann.lecun.com/exdb/mnist: two zero bytes, type, number of sizes, sizes, values."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no Fashion-MNIST at {path}: install the Debian package {FASHION_PACKAGE} "
            f"(apt-get install {FASHION_PACKAGE})"
        )
    raw = gzip.decompress(path.read_bytes())
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{path} is no idx file of {dimensions} dimensions")
    shape = tuple(np.frombuffer(raw, ">u4", dimensions, 4).tolist())
    if len(raw) != start + math.prod(shape):
        raise ValueError(f"{path} holds {len(raw) - start} values, its header says {shape}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()
