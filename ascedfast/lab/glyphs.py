# SPDX-License-Identifier: MIT
"""Family F5: 4x4 grids of glyphs with one rule, no glyph twice in a row, and a judge that can count what breaks it.

A grid is one channel in [-1, 1], ink on a ground of -1. Each glyph is a bitmap of 6x6 squares in a cell of 8 (or a
multiple of 8) pixels, displaced by up to half a square in eighths and anti-aliased by exact areas.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

SIDE = 4
CELL = 8
FINE = 8  # places a square of the bitmap is divided in
INK = (0.8, 1.0)
LIMIT = 0.25
BREAK_DISTANCE = 0.4
Break = Literal["repeat", "malformed"]

BITMAPS = (
    (".####.", "##..##", "#....#", "#....#", "##..##", ".####."),
    ("..##..", "..##..", "######", "######", "..##..", "..##.."),
    ("##..##", "######", ".####.", ".####.", "######", "##..##"),
    ("#.....", "##....", "###...", "####..", "#####.", "######"),
    ("######", "######", "......", "......", "######", "######"),
    ("##..##", "##..##", "##..##", "##..##", "##..##", "##..##"),
    ("######", "######", "....##", "....##", "....##", "....##"),
    ("##..##", "##..##", "......", "......", "....##", "....##"),
)
"""The 8 glyphs: ring, plus, cross, triangle, rows, columns, corner, three dots."""


class Grids(NamedTuple):
    """images: float32 [n, 1, H, W]. glyphs: int64 [n, 4, 4], -1 for a malformed one. broken: bool [n, 4, 4], the cells
    that break the rule or are malformed."""

    images: Tensor
    glyphs: Tensor
    broken: Tensor


class Verdict(NamedTuple):
    """glyphs: int64 [n, 4, 4], the nearest glyph, -1 where none is near. residual: float32 [n, 4, 4], RMS distance to
    the nearest template, in half the range of grey. cells: bool [n, 4, 4], unreadable, or equal to another of its row.
    defective: bool [n]. locations: bool [n, 1, H, W], the defective cells as a map."""

    glyphs: Tensor
    residual: Tensor
    cells: Tensor
    defective: Tensor
    locations: Tensor


@functools.cache
def templates(cell: int = CELL) -> Tensor:
    """Coverage of each glyph at each displacement: float32 [8, 9, 9, cell, cell] in [0, 1]; displacement (i, j) moves
    it down by (i - 4)/8 and right by (j - 4)/8 of a square. Raises: ValueError unless cell is a multiple of 8."""
    if cell < 8 or cell % 8:
        raise ValueError(f"a cell is a multiple of 8 pixels wide, got {cell}")
    bits = torch.tensor([[[mark == "#" for mark in row] for row in glyph] for glyph in BITMAPS], dtype=torch.float32)
    fine = bits.repeat_interleave(FINE, 1).repeat_interleave(FINE, 2)
    area, half = FINE * 8 // cell, FINE // 2
    made = torch.zeros(len(BITMAPS), FINE + 1, FINE + 1, cell, cell)
    for i in range(FINE + 1):
        for j in range(FINE + 1):
            canvas = torch.zeros(len(BITMAPS), FINE * 8, FINE * 8)
            top, left = FINE + i - half, FINE + j - half
            canvas[:, top : top + FINE * 6, left : left + FINE * 6] = fine
            made[:, i, j] = torch.nn.functional.avg_pool2d(canvas[:, None], area)[:, 0]
    return made


@functools.cache
def malformed(cell: int = CELL) -> Tensor:
    """Coverages that are no glyph: halves of two, means of two, glyphs displaced by 2 squares, nothing. float32
    [k, cell, cell], each at least .4 (RMS, half ranges) from every template at full ink."""
    centred = templates(cell)[:, FINE // 2, FINE // 2]
    found = [torch.zeros(cell, cell)]
    for a in centred:
        for shift in ((2, 2), (-2, 2), (2, -2), (-2, -2)):
            moved = torch.roll(a, [s * cell // 8 for s in shift], (0, 1))
            found.append(moved)
        for b in centred:
            found.append(torch.cat([a[: cell // 2], b[cell // 2 :]], 0))
            found.append(torch.cat([a[:, : cell // 2], b[:, cell // 2 :]], 1))
            found.append((a + b) / 2)
    candidates = torch.stack(found)
    residual = _nearest(2 * candidates.flatten(1), cell)[1]
    return candidates[residual >= BREAK_DISTANCE]


def draw_grids(seeds: Sequence[int], breaks: Break | None = None, cell: int = CELL) -> Grids:
    """Grids, each from its own seed alone: without ``breaks`` real ones; else with one row broken.

    Args:
        breaks: "repeat": a glyph of one row stands there twice. "malformed": one cell holds what is no glyph.
        cell: pixels a cell, a multiple of 8.
    """
    bank, bad = templates(cell), malformed(cell)
    n = len(seeds)
    glyphs = np.empty((n, SIDE, SIDE), dtype=np.int64)
    places = np.empty((n, SIDE, SIDE, 2), dtype=np.int64)
    ink = np.empty((n, SIDE, SIDE))
    broken = np.zeros((n, SIDE, SIDE), dtype=bool)
    swap: dict[int, tuple[int, int, int]] = {}
    for i, seed in enumerate(seeds):
        random = np.random.default_rng((seed, 0xF5))
        glyphs[i] = random.permuted(np.tile(np.arange(len(BITMAPS)), (SIDE, 1)), axis=1)[:, :SIDE]
        places[i] = random.integers(0, FINE + 1, (SIDE, SIDE, 2))
        ink[i] = random.uniform(*INK, (SIDE, SIDE))
        row, (at, other) = int(random.integers(SIDE)), random.permutation(SIDE)[:2]
        if breaks == "repeat":
            glyphs[i, row, at] = glyphs[i, row, other]
            broken[i, row, [at, other]] = True
        elif breaks == "malformed":
            swap[i] = (row, int(at), int(random.integers(len(bad))))
            broken[i, row, at] = True
    cover = bank[torch.from_numpy(glyphs), torch.from_numpy(places[..., 0]), torch.from_numpy(places[..., 1])]
    for i, (row, at, which) in swap.items():
        cover[i, row, at] = bad[which]
        glyphs[i, row, at] = -1
    tiles = 2 * cover * torch.from_numpy(ink).float()[..., None, None] - 1
    images = tiles.permute(0, 1, 3, 2, 4).reshape(n, 1, SIDE * cell, SIDE * cell)
    return Grids(images, torch.from_numpy(glyphs), torch.from_numpy(broken))


@torch.no_grad()
def judge(images: Tensor, limit: float = LIMIT, chunk: int = 256) -> Verdict:
    """Read each cell by its nearest template, ink fitted, and hold the rule.

    Args:
        images: float [n, 1, H, H], H = 4 cells; any device. Clipped to [-1, 1].
        limit: RMS distance, in half the range of grey, beyond which a cell is no glyph.
        chunk: images at once.
    Raises: ValueError for another shape or NaN.
    """
    if images.dim() != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3] or images.shape[2] % (8 * SIDE):
        raise ValueError(f"grids are [n, 1, H, H], H a multiple of {8 * SIDE}, got {tuple(images.shape)}")
    if bool(images.isnan().any()):
        raise ValueError("an image holds NaN")
    n, cell = len(images), images.shape[2] // SIDE
    above = images.float().clamp(-1, 1) + 1
    tiles = above.reshape(n, SIDE, cell, SIDE, cell).permute(0, 1, 3, 2, 4).reshape(n, SIDE * SIDE, cell * cell)
    parts = [_nearest(part.flatten(0, 1), cell) for part in tiles.split(chunk)]
    nearest, residual = (torch.cat(one).reshape(n, SIDE, SIDE) for one in zip(*parts, strict=True))
    readable = residual <= limit
    glyphs = torch.where(readable, nearest, -1)
    cells = ~readable | ((glyphs[..., :, None] == glyphs[..., None, :]).sum(-1) > 1)
    locations = cells.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, None]
    return Verdict(glyphs, residual, cells, cells.flatten(1).any(1), locations)


def _nearest(above: Tensor, cell: int) -> tuple[Tensor, Tensor]:
    """(glyph, RMS distance) of the nearest template g*t, g within the inks; above: [k, cell*cell], ground 0, ink 2."""
    bank = templates(cell).to(above.device).reshape(-1, cell * cell)
    energy = bank.square().sum(1)
    inner = above @ bank.T
    gain = (inner / energy).clamp(2 * (INK[0] - 0.1), 2 * INK[1])
    square = above.square().sum(1, keepdim=True) - 2 * gain * inner + gain.square() * energy
    best, at = square.min(1)
    return at // (FINE + 1) ** 2, (best.clamp(min=0) / cell**2).sqrt()
