# SPDX-License-Identifier: MIT
"""Device functions of label_regions, one for each step of it (see there): all take flat locations i of one row.

Remainders are written as differences: ``%`` beside a ``//`` of the same lanes aborts the compiler of Triton 3.6
("Node is not in map", from 16 locations a lane on).
"""

import triton
import triton.language as tl
from ascedfast.kernels.forest import root_of, shorten, unite
from ascedfast.kernels.grid import offset_of

CORE = tl.constexpr(1 << 30)  # marks, in the area of a root, that its region holds a core
SEED = tl.constexpr(2)  # the bit of a level that makes its location a seed, a core where CORE_WIDTH is 0


@triton.jit
def _touching(forest, i, ok, height, width, first, k: tl.constexpr, REACH: tl.constexpr, INSIDE: tl.constexpr):
    """Where locations i touch runs of an earlier line: the line above (k = 0) or one of the frame before.

    Returns the entry of i; a mask and the entry of the location touched; with REACH, both of a second one at a corner.
    Of a pair of runs that touch in several places, one place is enough. INSIDE: lines of the band from ``first`` on;
    otherwise those before it.
    """
    line = i // width
    x = i - line * width
    y = line - line // height * height
    if k == 0:
        back = line * 0 + 1
        ok = ok & (y > 0)
    else:
        back = line * 0 + height + (1 + REACH - k)
        ok = ok & (line >= height) & (y + (k - 1 - REACH) >= 0) & (y + (k - 1 - REACH) < height)
    inside = (line - back) * width >= first
    ok = ok & (inside if INSIDE else ~inside)
    here = tl.load(forest + i, ok, other=-1)
    ok = ok & (here >= 0)
    over = i - back * width
    left = tl.load(forest + i - 1, ok & (x > 0), other=-1) >= 0
    up = tl.load(forest + over, ok, other=-1)
    up_left = tl.load(forest + over - 1, ok & (x > 0), other=-1)
    touches = ok & (up >= 0) & ~(left & (up_left >= 0))
    touches_too, up_right = touches, up
    if REACH:
        right = tl.load(forest + i + 1, ok & (x + 1 < width), other=-1) >= 0
        up_right = tl.load(forest + over + 1, ok & (x + 1 < width), other=-1)
        corners = ok & (up < 0)
        touches_too = corners & (up_right >= 0) & ~right
        corner = corners & (up_left >= 0) & ~left
        touches = touches | corner
        up = tl.where(corner, up_left, up)
    return here, touches, up, touches_too, up_right


@triton.jit
def unite_lines(
    forest,
    i,
    ok,
    height,
    width,
    first,
    LINES: tl.constexpr,
    REACH: tl.constexpr,
    INSIDE: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """Unite the runs of locations i with the runs that they touch in earlier lines. True if a union was given up."""
    lost = width < 0  # no
    for k in tl.static_range(LINES):
        here, touches, up, too, up_right = _touching(forest, i, ok, height, width, first, k, REACH, INSIDE)
        # One step up at once: behind a run's first location there is a short path by now.
        node = tl.load(forest + here, touches | too, other=0)
        lost = lost | unite(forest, node, tl.load(forest + up, touches, other=0), touches, ROUNDS)
        if REACH:
            lost = lost | unite(forest, node, tl.load(forest + up_right, too, other=0), too, ROUNDS)
    return lost


@triton.jit
def unite_parts(forest, i, first, ok, width, ROUNDS: tl.constexpr):
    """Unite a run that a band's border cuts. True if the union was given up."""
    ok = ok & (i == first) & (i // width * width < i)
    here = tl.load(forest + i, ok, other=-1)
    before = tl.load(forest + i - 1, ok, other=-1)
    ok = (here >= 0) & (before >= 0)
    return unite(forest, tl.where(ok, here, 0), tl.where(ok, before, 0), ok, ROUNDS)


@triton.jit
def label_band(
    mask,  # of the row, [D, H, W] bool as uint8, or levels
    forest,  # of the row, [n] int32, written
    area,  # of the row, [n] int32, set to 0 in the end
    kept,  # of the row, [n] uint8, written: the last `core_width` locations of the line are set; 0: this one is a seed
    i,
    ok,
    height,
    width,
    mask_d,
    mask_h,
    mask_w,
    first,
    CORE_WIDTH: tl.constexpr,
    LINES: tl.constexpr,
    REACH: tl.constexpr,
    PARTS: tl.constexpr,  # a band is less than a line, and begins anywhere in one
    ROUNDS: tl.constexpr,
):
    """Step 1: the trees of one band. True if a union was given up."""
    at = mask + offset_of(i, height, width, mask_d, mask_h, mask_w)
    x = i - i // width * width
    level = tl.load(at, ok, other=0)
    is_set = level != 0
    begins = is_set & (tl.load(at - mask_w, ok & (x > 0) & (i > first), other=0) == 0)
    # The area's memory lists the runs first: a running count finds a location's run in the list.
    listed = area + first + tl.cumsum(begins.to(tl.int32), 0) - 1
    tl.store(listed, i, begins)
    tl.debug_barrier()
    run = tl.load(listed, is_set, other=-1)
    tl.debug_barrier()
    tl.store(area + i, i * 0, ok)
    tl.store(forest + i, run, ok)
    if CORE_WIDTH == 0:
        tl.store(kept + i, ((level & SEED) != 0).to(tl.uint8), ok)
    else:
        long = is_set & (i - run + 1 >= CORE_WIDTH)
        if PARTS:
            long = is_set
            for back in range(CORE_WIDTH):
                long = long & (tl.load(at - back * mask_w, long & (x >= back), other=0) != 0)
        tl.store(kept + i, long.to(tl.uint8), ok)
    tl.debug_barrier()
    lost = width < 0  # no
    if not PARTS:
        for k in tl.static_range(LINES):
            _, touches, up, _, _ = _touching(forest, i, ok, height, width, first, k, REACH, True)
            tl.atomic_min(forest + run, up, mask=touches, sem="relaxed")
        tl.debug_barrier()
        shorten(forest, i, begins)
        lost = unite_lines(forest, i, ok, height, width, first, LINES, REACH, True, ROUNDS)
        tl.debug_barrier()
        shorten(forest, i, begins)
    return lost


@triton.jit
def gather_regions(forest, area, kept, labels, i, ok, first, end, height, width, CORE_WIDTH: tl.constexpr):
    """Step 3, of the band from first to end - 1: roots into labels, areas and cores to the roots, whose entries become
    -1 - their number in the band.

    Returns how many roots the band has.
    """
    line = i // width
    x = i - line * width
    entry = tl.load(forest + i, ok, other=-1)
    is_set = entry != -1
    before = tl.load(forest + i - 1, ok & (x > 0) & (i > first), other=-1) != -1
    after = tl.load(forest + i + 1, ok & (x + 1 < width) & (i + 1 < end), other=-1) != -1
    root = root_of(forest, entry, is_set)
    tl.store(labels + i, root, ok)
    size = i - tl.where(before, entry, i) + 1
    tl.atomic_add(area + root, size, mask=is_set & ~after, sem="relaxed")
    if CORE_WIDTH == 0:
        seed = tl.load(kept + i, is_set, other=0) != 0
        also = tl.load(kept + i - 1, seed & (x > 0), other=0) != 0
        # The first one of a stretch speaks for all of it.
        tl.atomic_or(area + root, i * 0 + CORE, mask=seed & ~also, sem="relaxed")
    if CORE_WIDTH > 1:
        # A location is the last corner of a block if the CORE_WIDTH lines up to its own end runs of that length there.
        inner = is_set & (line - line // height * height >= CORE_WIDTH - 1)
        also = inner & (x > 0)
        for back in range(CORE_WIDTH):
            inner = inner & (tl.load(kept + i - back * width, inner, other=0) != 0)
            also = also & (tl.load(kept + i - back * width - 1, also, other=0) != 0)
        # The first one of a stretch speaks for all of it.
        tl.atomic_or(area + root, i * 0 + CORE, mask=inner & ~also, sem="relaxed")
    is_root = is_set & (root == i)
    number = tl.cumsum(is_root.to(tl.int32), 0)
    tl.debug_barrier()  # all entries have been read
    tl.store(forest + i, -1 - number, is_root)
    return tl.sum(is_root.to(tl.int32), 0)


@triton.jit
def write_regions(forest, area, kept, labels, roots, overflow, i, ok, band, low, high, CORE_WIDTH: tl.constexpr):
    """Step 4: ``roots`` counts those of the bands before each band."""
    root = tl.load(labels + i, ok, other=-1)
    is_set = root >= 0
    number = tl.load(roots + root // band, is_set, other=0) - 1 - tl.load(forest + root, is_set, other=0)
    tl.store(labels + i, tl.where(is_set, number, 0), ok)
    size = tl.load(area + root, is_set, other=0)
    keep = is_set & (tl.load(overflow) == 0)
    if CORE_WIDTH != 1:
        keep = keep & (size >= CORE)
        size = size & (CORE - 1)
    tl.store(kept + i, (keep & (size >= low) & (size <= high)).to(tl.uint8), ok)
