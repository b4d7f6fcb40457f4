# SPDX-License-Identifier: MIT
"""label_regions: connected regions by union-find on runs, without a read-back (``reference.label_regions``).

A run is a stretch of set locations of one line, known by its first location. Its entry in ``forest`` is its parent;
the other locations of a run point to its first one and stay so. Steps, one launch each, or one launch for all where a
row is small enough for one program:

1. a band of whole lines a program (a part of a line, where that is long): its runs, each run hangs itself under one
   that touches it from above, paths are shortened, and what is still apart is united;
2. runs that touch across the borders of bands are united, and so are the parts of a run that a border cuts;
3. each location's root; areas and cores are gathered at the roots, and the roots counted: raster order, because a
   region's root is its first location;
4. labels and kept.

Bound: a union takes at most ROUNDS rounds. A region of at most ROUNDS runs always needs fewer, and so does every plane
of 128 x 128. A row in which a union ran out of rounds has ``overflow`` set and nothing kept: its labels may split a
region in several. Every other loop follows paths that only fall, and ends by itself.
"""

import math

import torch
import triton
import triton.language as tl
from ascedfast.kernels.grid import grid_of, strides_of
from ascedfast.kernels.regions import CORE, gather_regions, label_band, unite_lines, unite_parts, write_regions
from torch import Tensor

ROUNDS = 8192
WHOLE_ROW = 8192  # locations that one program takes on by itself
BAND = 4096  # locations of a band, where lines are not so long that it would hold fewer than 8
LARGEST_BAND = 8192  # a longer line is cut. Twice as much would need 128 KiB of shared memory, which few cards have

_COUNTED = tl.constexpr(1024)  # bands that the last program of a row counts at a time


@triton.jit
def _row(
    mask,  # [R, D, H, W] bool as uint8, or levels
    forest,  # [R, n] int32
    area,  # [R, n] int32
    kept,  # [R, n] uint8
    labels,  # [R, n] int32
    tallies,  # [R, 1] int32
    overflow,  # [R] uint8
    height,
    width,
    locations,
    mask_row,
    mask_d,
    mask_h,
    mask_w,
    low,
    high,
    CORE_WIDTH: tl.constexpr,
    LINES: tl.constexpr,
    REACH: tl.constexpr,
    ROUNDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """All steps for one row."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, TILE)
    ok = i < locations
    mask += row * mask_row
    forest += row * locations
    area += row * locations
    kept += row * locations
    labels += row * locations
    lost = label_band(
        mask,
        forest,
        area,
        kept,
        i,
        ok,
        height,
        width,
        mask_d,
        mask_h,
        mask_w,
        0,
        CORE_WIDTH,
        LINES,
        REACH,
        False,
        ROUNDS,
    )
    tl.store(overflow + row, lost.to(tl.uint8))
    tl.store(tallies + row, 0)
    tl.debug_barrier()
    gather_regions(forest, area, kept, labels, i, ok, 0, locations, height, width, CORE_WIDTH)
    tl.debug_barrier()
    write_regions(forest, area, kept, labels, tallies + row, overflow + row, i, ok, locations, low, high, CORE_WIDTH)


@triton.jit
def _bands(
    mask,  # [R, D, H, W] bool as uint8, or levels
    forest,  # [R, n] int32
    area,  # [R, n] int32
    kept,  # [R, n] uint8
    tallies,  # [R, 2*BANDS + 1] int32: roots of each band, unions given up in each, bands done
    height,
    width,
    locations,
    band,
    mask_row,
    mask_d,
    mask_h,
    mask_w,
    BANDS: tl.constexpr,
    CORE_WIDTH: tl.constexpr,
    LINES: tl.constexpr,
    REACH: tl.constexpr,
    PARTS: tl.constexpr,
    ROUNDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Step 1."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * band
    i = first + tl.arange(0, TILE)
    ok = i < tl.minimum(first + band, locations)
    mask += row * mask_row
    forest += row * locations
    area += row * locations
    kept += row * locations
    lost = label_band(
        mask,
        forest,
        area,
        kept,
        i,
        ok,
        height,
        width,
        mask_d,
        mask_h,
        mask_w,
        first,
        CORE_WIDTH,
        LINES,
        REACH,
        PARTS,
        ROUNDS,
    )
    tallies += row * (2 * BANDS + 1)
    tl.store(tallies + BANDS + tl.program_id(0), lost.to(tl.int32))
    tl.store(tallies + 2 * BANDS, 0, tl.program_id(0) == 0)


@triton.jit
def _borders(
    forest,  # [R, n] int32
    tallies,  # [R, 2*BANDS + 1] int32
    height,
    width,
    locations,
    band,
    edge,  # locations at the beginning of a band that can touch an earlier one
    BANDS: tl.constexpr,
    LINES: tl.constexpr,
    REACH: tl.constexpr,
    PARTS: tl.constexpr,
    ROUNDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Step 2: a program for each band but the first."""
    row = tl.program_id(1).to(tl.int64)
    own = tl.program_id(0) + 1
    i = own * band + tl.arange(0, TILE)
    ok = i < tl.minimum(own * band + edge, locations)
    forest += row * locations
    lost = unite_lines(forest, i, ok, height, width, own * band, LINES, REACH, False, ROUNDS)
    if PARTS:
        lost = lost | unite_parts(forest, i, own * band, ok, width, ROUNDS)
    tallies += row * (2 * BANDS + 1) + BANDS + own
    tl.store(tallies, tl.maximum(tl.load(tallies), lost.to(tl.int32)))


@triton.jit
def _roots(
    forest,  # [R, n] int32
    area,  # [R, n] int32
    kept,  # [R, n] uint8
    labels,  # [R, n] int32
    tallies,  # [R, 2*BANDS + 1] int32
    overflow,  # [R] uint8
    height,
    width,
    locations,
    band,
    BANDS: tl.constexpr,
    CORE_WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """Step 3. The program that is done last turns the counts of its row into sums over the bands before."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * band
    i = first + tl.arange(0, TILE)
    ok = i < tl.minimum(first + band, locations)
    forest += row * locations
    area += row * locations
    kept += row * locations
    labels += row * locations
    tallies += row * (2 * BANDS + 1)
    roots = gather_regions(forest, area, kept, labels, i, ok, first, first + band, height, width, CORE_WIDTH)
    tl.store(tallies + tl.program_id(0), roots)
    tl.debug_barrier()
    if tl.atomic_add(tallies + 2 * BANDS, 1, sem="acq_rel") == BANDS - 1:
        roots = 0
        lost = 0
        for start in range(0, BANDS, _COUNTED):
            k = start + tl.arange(0, _COUNTED)
            count = tl.load(tallies + k, k < BANDS, other=0, volatile=True)
            lost = tl.maximum(lost, tl.max(tl.load(tallies + BANDS + k, k < BANDS, other=0), 0))
            tl.store(tallies + k, roots + tl.cumsum(count, 0) - count, k < BANDS)
            roots += tl.sum(count, 0)
        tl.store(overflow + row, lost.to(tl.uint8))


@triton.jit
def _labels(
    forest,  # [R, n] int32
    area,  # [R, n] int32
    kept,  # [R, n] uint8
    labels,  # [R, n] int32
    tallies,  # [R, 2*BANDS + 1] int32
    overflow,  # [R] uint8
    locations,
    band,
    low,
    high,
    BANDS: tl.constexpr,
    CORE_WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """Step 4."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * band
    i = first + tl.arange(0, TILE)
    ok = i < tl.minimum(first + band, locations)
    forest += row * locations
    area += row * locations
    kept += row * locations
    labels += row * locations
    tallies += row * (2 * BANDS + 1)
    write_regions(forest, area, kept, labels, tallies, overflow + row, i, ok, band, low, high, CORE_WIDTH)


def _bounds(min_area: float, max_area: float) -> tuple[int, int]:
    """The smallest and the largest whole area strictly between two bounds; no area reaches CORE."""
    low = math.floor(min_area) + 1 if min_area < CORE.value else CORE.value
    return low, math.ceil(max_area) - 1 if max_area < CORE.value else CORE.value - 1


def _band(width: int) -> int:
    """Locations of a band: of whole lines, where one fits."""
    return max(BAND // width, min(8, LARGEST_BAND // width)) * width or LARGEST_BAND


def _tile(locations: int) -> dict[str, int]:
    """Lanes of a program, and its warps: no lane is held twice, as atomics would then run twice."""
    tile = max(128, triton.next_power_of_2(locations))
    return {"TILE": tile, "num_warps": max(4, min(32, tile // 128))}


def label_regions(
    mask: Tensor,
    *,
    connectivity: int,
    min_area: float,
    max_area: float,
    core_width: int,
    rounds: int = ROUNDS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch on checked arguments, see ``ops.label_regions``. rounds: the bound of a union, at least 1.

    Scratch: 8 bytes a location, and 8 a band. Raises: ValueError for a row of 2^30 locations or more.
    """
    rows, *grid = mask.shape
    depth, height, width = grid_of(tuple(grid))
    locations = depth * height * width
    if locations >= CORE.value:
        raise ValueError(f"a row of {locations} locations: at most {CORE.value - 1} can be labelled")
    labels = torch.empty(mask.shape, dtype=torch.int32, device=mask.device)
    kept = torch.empty(mask.shape, dtype=torch.bool, device=mask.device)
    if mask.numel() == 0:
        return labels, kept, torch.zeros(rows, dtype=torch.bool, device=mask.device)
    overflow = torch.empty(rows, dtype=torch.bool, device=mask.device)
    forest, area = torch.empty((2, rows, locations), dtype=torch.int32, device=mask.device)
    low, high = _bounds(min_area, max_area)
    reach = int(connectivity in (8, 26))
    lines = {"LINES": 1 if depth == 1 else 2 + 2 * reach, "REACH": reach, "ROUNDS": rounds}
    core = {"CORE_WIDTH": 0 if mask.dtype == torch.uint8 else core_width}  # 0: the seeds are the cores
    sizes = (height, width, locations)
    strides = strides_of(mask, 1)
    bits, flags = kept.view(torch.uint8), overflow.view(torch.uint8)
    seen = mask.view(torch.uint8)
    if locations <= WHOLE_ROW:
        tallies = torch.empty((rows, 1), dtype=torch.int32, device=mask.device)
        buffers = (forest, area, bits, labels, tallies, flags)
        _row[(rows,)](seen, *buffers, *sizes, *strides, low, high, **core, **lines, **_tile(locations))
        return labels, kept, overflow
    band = _band(width)
    parts = {"PARTS": band < width}
    edge = width if depth == 1 and band >= width else band
    bands = triton.cdiv(locations, band)
    tallies = torch.empty((rows, 2 * bands + 1), dtype=torch.int32, device=mask.device)
    core["BANDS"] = bands
    every = (bands, rows)
    _bands[every](seen, forest, area, bits, tallies, *sizes, band, *strides, **core, **lines, **parts, **_tile(band))
    if bands > 1:
        _borders[(bands - 1, rows)](forest, tallies, *sizes, band, edge, BANDS=bands, **lines, **parts, **_tile(edge))
    _roots[every](forest, area, bits, labels, tallies, flags, *sizes, band, **core, **_tile(band))
    _labels[every](forest, area, bits, labels, tallies, flags, locations, band, low, high, **core, **_tile(band))
    return labels, kept, overflow
