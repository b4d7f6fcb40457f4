# SPDX-License-Identifier: MIT
"""The Triton label_regions against scipy.ndimage, exactly, by both of its ways: a row a program, and bands of lines."""

import math

import pytest
import torch
from ascedfast.kernels import label_regions as kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import DEVICES
from scipy import ndimage
from test_label_regions import SHAPES, VIEWS, arches, each_connectivity, oracle, random_mask, spiral
from test_label_regions_levels import ACROSS_WORDS, levels_of, oracle_of_levels, random_levels

from ascedfast import ops

ON_GPU = DEVICES == ["cuda"]
DEVICE = DEVICES[0]
pytestmark = [pytest.mark.gpu] if ON_GPU else []
gpu_only = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")

PATHS = ["row", "bands"]


def take(path, monkeypatch):
    """Small masks take the first way by themselves; ``in_bands`` gives them bands for the second."""
    if path == "bands":
        monkeypatch.setattr(kernel, "WHOLE_ROW", 0)
        for size in ("BAND", "LARGEST_BAND"):
            monkeypatch.setattr(kernel, size, 1)


def in_bands(mask, count=3):
    """About ``count`` bands to a row: Triton's interpreter takes some 50 ms for a program of any size."""
    if kernel.WHOLE_ROW == 0:
        kernel.BAND = kernel.LARGEST_BAND = max(1, mask.shape[1:].numel() // count)
    return mask


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    take(request.param, monkeypatch)
    return request.param


@pytest.fixture(autouse=True)
def garbage_in_empty(monkeypatch):
    """Memory as a caching allocator hands it out: what a kernel does not write itself shows."""
    empty = torch.empty

    def filled(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(True if made.dtype == torch.bool else 1_000_000_007)

    monkeypatch.setattr(torch, "empty", filled)


def check(mask, connectivity, *, min_area=0, max_area=math.inf, core_width=1):
    """Equal to the oracle in value, type and shape; the mask untouched. Returns how many regions there were."""
    rules = {"connectivity": connectivity, "min_area": min_area, "max_area": max_area, "core_width": core_width}
    before = mask.clone()
    labels, kept, overflow = ops.label_regions(in_bands(mask), backend="triton", **rules)
    expected_labels, expected_kept = (oracle if mask.dtype == torch.bool else oracle_of_levels)(before.cpu(), **rules)
    assert torch.equal(mask, before), "the mask was written to"
    assert (labels.dtype, kept.dtype, overflow.dtype) == (torch.int32, torch.bool, torch.bool)
    assert {t.device.type for t in (labels, kept, overflow)} == {DEVICE}
    assert torch.equal(labels.cpu(), expected_labels)
    assert torch.equal(kept.cpu(), expected_kept)
    assert overflow.tolist() == [False] * len(mask)
    return int(labels.max()) if labels.numel() else 0


# Percolation thresholds lie near .59 (4), .41 (8), .31 (6) and .10 (26): regions are largest and most tangled there.
@pytest.mark.parametrize("density", [0.1, 0.41, 0.59])
@pytest.mark.parametrize("shape", [(2, 41, 67), (1, 3, 200), (2, 7, 13, 19)], ids=str)
def test_random_densities(path, shape, density):
    mask = random_mask(*shape, density=density).to(DEVICE)
    for connectivity in each_connectivity(mask):
        assert check(mask, connectivity, min_area=2, max_area=40.5, core_width=2) > 0


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 1, 1), (1, 1, 50), (1, 50, 1), (1, 1, 9, 9), (1, 9, 1, 1), (2, 3, 1, 17)], ids=str
)
def test_degenerate_sizes(shape, monkeypatch):
    for way in PATHS:
        take(way, monkeypatch)
        masks = random_mask(*shape), torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for mask in masks:
            check(mask.to(DEVICE), each_connectivity(mask)[0])


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 5), (2, 5, 0), (0, 2, 5, 5), (2, 3, 5, 0)], ids=str)
def test_empty(shape):
    mask = torch.zeros(shape, dtype=torch.bool, device=DEVICE)
    for connectivity in each_connectivity(mask):
        labels, kept, overflow = ops.label_regions(mask, connectivity=connectivity, core_width=3, backend="triton")
        assert labels.shape == kept.shape == mask.shape
        assert (labels.dtype, kept.dtype) == (torch.int32, torch.bool)
        assert overflow.tolist() == [False] * len(mask)


@pytest.mark.parametrize("shape", [(2, 20, 70), (1, 5, 7, 13)], ids=str)
def test_all_set_and_none_set(path, shape):
    for connectivity in each_connectivity(torch.ones(shape)):
        assert check(torch.ones(shape, dtype=torch.bool, device=DEVICE), connectivity, core_width=7) == 1
        assert check(torch.zeros(shape, dtype=torch.bool, device=DEVICE), connectivity) == 0


@pytest.mark.parametrize("shape", [(2, 3, 50), (1, 2, 3, 40)], ids=str)
@pytest.mark.parametrize("part", [1, 16, 23])
def test_lines_that_are_cut_in_parts(shape, part, monkeypatch):
    """Parts of a line that end anywhere in it, runs and cores across their borders."""
    if part == 1:
        shape = (1, *(2 for _ in shape[1:-1]), 9)
    monkeypatch.setattr(kernel, "WHOLE_ROW", 0)
    for name in ("BAND", "LARGEST_BAND"):
        monkeypatch.setattr(kernel, name, part)
    for density in (0.6, 0.9):
        mask = random_mask(*shape, density=density).to(DEVICE)
        rules = {"connectivity": each_connectivity(mask)[density > 0.7], "min_area": 1, "max_area": 60, "core_width": 2}
        labels, kept, overflow = ops.label_regions(mask, backend="triton", **rules)
        expected = oracle(mask.cpu(), **rules)
        assert torch.equal(labels.cpu(), expected[0])
        assert torch.equal(kept.cpu(), expected[1])
        assert not overflow.any()
        assert labels.max() > 0


def serpentine(size):
    """One corridor, one location wide, to and fro: the longest way through a plane."""
    mask = torch.ones(size, size, dtype=torch.bool)
    mask[1::2] = False
    mask[1::4, -1] = True
    mask[3::4, 0] = True
    return mask


@pytest.mark.parametrize("name", [*SHAPES, "serpentine"])
def test_shapes_hard_for_union_find(path, name):
    mask = (serpentine(31) if name == "serpentine" else SHAPES[name]).to(DEVICE)
    check(torch.stack([mask, ~mask]), 4, core_width=2)
    mask = mask.T.flip(0)
    check(torch.stack([mask, ~mask]), 8, core_width=2)


@pytest.mark.parametrize("name", ["spiral", "arches"])
def test_winding_through_frames(path, name):
    mask = {"spiral": spiral(15), "arches": arches(15)}[name].to(DEVICE)
    for connectivity in (6, 26):
        check(torch.stack([mask, ~mask, mask])[None], connectivity)
        check(torch.stack([mask, ~mask]).permute(1, 0, 2)[None], connectivity)


def test_checkerboard(path):
    y, x = torch.meshgrid(torch.arange(20), torch.arange(37), indexing="ij")
    board = ((x + y) % 2 == 0)[None].to(DEVICE)
    assert check(board, 4) == 20 * 37 // 2
    assert check(board, 8) == 1
    boards = ((x + y + torch.arange(4).view(4, 1, 1)) % 2 == 0)[None, :, :9].to(DEVICE)
    assert check(boards, 6) == 4 * 9 * 37 // 2
    assert check(boards, 26) == 1


@pytest.mark.parametrize(
    "offset", [(1, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1), (1, -1, 1), (1, 1, -1)], ids=str
)
def test_two_voxels_touch(path, offset):
    mask = torch.zeros(1, 3, 3, 3, dtype=torch.bool, device=DEVICE)
    mask[0, 1, 1, 1] = True
    mask[(0, *(1 + step for step in offset))] = True
    assert check(mask, 26) == 1
    assert check(mask, 6) == (1 if sum(map(abs, offset)) == 1 else 2)


@pytest.mark.parametrize("view", VIEWS)
def test_strides(path, view):
    mask = VIEWS[view](random_mask(4, 40, 75, density=0.55).to(DEVICE))[:5]
    check(mask, 8, min_area=1, core_width=2)


def test_strides_3d(path):
    base = random_mask(6, 12, 17, 21, density=0.3).to(DEVICE)
    for mask in (base[1::2, 2:9, ::2, 3:], base.permute(2, 0, 3, 1)[:2], base[:1, :5].expand(2, -1, -1, -1)):
        check(mask, 26, core_width=2)


@pytest.mark.parametrize(
    ("min_area", "max_area"), [(4, 16), (3.999, 9.001), (4.0, 9.0), (0.5, 1.5), (15.5, 1e300), (1e200, math.inf)]
)
def test_area_bounds_are_strict(path, min_area, max_area):
    mask = torch.zeros(1, 8, 24, dtype=torch.bool, device=DEVICE)
    for x, side in ((0, 1), (3, 2), (8, 3), (14, 4)):
        mask[0, 1 : 1 + side, x : x + side] = True
    assert check(mask, 4, min_area=min_area, max_area=max_area) == 4


@pytest.mark.parametrize("core_width", [1, 2, 5, 12, 13])
def test_core_widths(path, core_width):
    mask = random_mask(2, 12, 60, density=0.93)
    mask[1, :, :40] = True
    check(mask.to(DEVICE), 4, core_width=core_width)
    check(random_mask(1, 3, 12, 20, density=0.9).to(DEVICE), 26, core_width=core_width)


def test_rows_do_not_see_each_other(path):
    rows = random_mask(9, 6, 50, density=0.55).to(DEVICE)
    rules = {"connectivity": 8, "min_area": 2, "max_area": 30, "core_width": 2, "backend": "triton"}
    found = ops.label_regions(in_bands(rows), **rules)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    shuffled = ops.label_regions(rows[order], **rules)
    assert all(torch.equal(a[order], b) for a, b in zip(found, shuffled, strict=True))


@pytest.mark.parametrize("shape", [(2, 20, 67), (1, 3, 200), (2, 5, 7, 13)], ids=str)
@pytest.mark.parametrize("density", [0.3, 0.59])
def test_random_levels(path, shape, density):
    for connectivity in each_connectivity(torch.ones(shape)):
        for seeds, bounds in ((0.02, {}), (0.3, {"min_area": 2, "max_area": 40}), (0.0, {})):
            check(random_levels(*shape, density=density, seeds=seeds).to(DEVICE), connectivity, **bounds)


@pytest.mark.parametrize("view", VIEWS)
def test_strides_of_levels(path, view):
    check(VIEWS[view](random_levels(4, 40, 75, density=0.5, seeds=0.05).to(DEVICE))[:5], 8, min_area=1)


@pytest.mark.parametrize("seed_at", ACROSS_WORDS[::2])
@pytest.mark.parametrize("part", [0, 57, 900])
def test_one_seed_in_a_run(seed_at, part, monkeypatch):
    """In one program, in a run that borders cut in parts, and in a band of a line."""
    if part:
        for name, size in {"WHOLE_ROW": 0, "BAND": part, "LARGEST_BAND": part}.items():
            monkeypatch.setattr(kernel, name, size)
    levels = levels_of((2, 3, 300), line=slice(15, 290), seed_at=seed_at)
    levels[1] *= levels[1] < 2
    kept = ops.label_regions(levels.to(DEVICE), connectivity=4, backend="triton")[1].cpu()
    assert torch.equal(kept, oracle_of_levels(levels, 4, 0, math.inf)[1])
    assert kept.sum((1, 2)).tolist() == [275, 0]


def test_all_seeds_are_a_mask(path):
    mask = random_mask(2, 20, 67, density=0.45).to(DEVICE)
    rules = {"connectivity": 4, "min_area": 1, "max_area": 50, "backend": "triton"}
    plain, full = (ops.label_regions(in_bands(m), **rules) for m in (mask, mask.byte() * 2))
    assert plain[1].any()
    assert all(torch.equal(a, b) for a, b in zip(full, plain, strict=True))
    assert ops.label_regions(mask.byte()[:0], **rules)[1].dtype == torch.bool


def pieces_of(mask, connectivity):
    """Number of pieces of each row; and how many runs, stretches of a line, the region with most of them has."""
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    count, runs = [], []
    for row in mask.cpu():
        found, pieces = ndimage.label(row, structure)
        begins = torch.from_numpy(found)[row & ~row.roll(1, 1).index_fill(1, torch.tensor([0]), False)]
        count.append(pieces)
        runs.append(int(begins.bincount().max()) if begins.numel() else 0)
    return count, runs


def test_too_few_rounds_set_the_flag(path):
    """The flag is set, nothing is kept, and no label joins what is apart; other rows do not notice.

    A label need not be one piece: a union given up may part a run from paths that were shortened through it, or not,
    as the programs of a GPU happen to meet."""
    tangle = random_mask(2, 41, 67, density=0.55)
    rows = torch.stack([tangle[0], torch.ones(41, 67, dtype=torch.bool), tangle[1]]).to(DEVICE)
    rules = {"connectivity": 4, "min_area": 0, "max_area": math.inf, "core_width": 1}
    labels, kept, overflow = (part.cpu() for part in kernel.label_regions(in_bands(rows), rounds=1, **rules))
    assert overflow.tolist() == [True, False, True]
    by_seeds = kernel.label_regions(in_bands(rows.to(torch.uint8) * 2), rounds=1, **rules | {"core_width": 0})
    assert by_seeds[2].tolist() == [True, False, True]
    assert by_seeds[1].flatten(1).any(1).tolist() == [False, True, False]
    expected = oracle(rows.cpu(), **rules)
    assert torch.equal(labels[1], expected[0][1])
    assert torch.equal(kept[1], expected[1][1])
    for row in (0, 2):
        assert not kept[row].any()
        assert torch.equal(labels[row] > 0, rows[row].cpu())
        assert labels[row].max() > expected[0][row].max()
        for label in range(1, int(labels[row].max()) + 1):
            assert expected[0][row][labels[row] == label].unique().numel() == 1


def test_a_band_alone_sets_the_flag(path):
    rows = torch.zeros(3, 42, 67, dtype=torch.bool)
    for band in range(3):  # of 14 lines; one round is too few inside it, and enough everywhere else
        rows[band, 14 * band : 14 * band + 13] = random_mask(13, 67, density=0.45, seed=band)
    rules = {"connectivity": 8, "min_area": 0, "max_area": math.inf, "core_width": 1}
    assert kernel.label_regions(in_bands(rows).to(DEVICE), rounds=1, **rules)[2].tolist() == [True] * 3


@pytest.mark.parametrize("connectivity", [4, 8])
def test_the_stated_bound(path, connectivity):
    """As many rounds as the largest region has runs are always enough."""
    for mask in (random_mask(1, 30, 41, density=0.57), SHAPES["zigzag"][None], ~SHAPES["zigzag"][None]):
        (count,), (runs,) = pieces_of(mask, connectivity)
        rules = {"connectivity": connectivity, "min_area": 0, "max_area": math.inf, "core_width": 1}
        labels, _, overflow = kernel.label_regions(in_bands(mask).to(DEVICE), rounds=runs, **rules)
        assert not overflow.any()
        assert labels.max() == count


def test_the_default_bound_holds_for_every_small_plane():
    assert kernel.ROUNDS >= 128 * 128 // 2


def test_a_row_that_is_too_large_is_refused():
    mask = torch.zeros(1, 1, 1, dtype=torch.bool, device=DEVICE).expand(1, 2**15, 2**15)
    with pytest.raises(ValueError, match="1073741824 locations"):
        ops.label_regions(mask, connectivity=4, backend="triton")


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_mask(data):
    rank = data.draw(st.sampled_from([2, 3]))
    longest = (9, 40) if rank == 2 else (4, 5, 10)
    shape = (data.draw(st.integers(1, 2)), *(data.draw(st.integers(1, size)) for size in longest))
    mask = random_mask(*shape, density=data.draw(st.floats(0.05, 0.95)), seed=data.draw(st.integers(0, 2**31)))
    min_area = data.draw(st.sampled_from([0, 0.5, 1, 2, 3.5]))
    with pytest.MonkeyPatch.context() as patch:
        take(data.draw(st.sampled_from(PATHS)), patch)
        check(
            mask.to(DEVICE),
            data.draw(st.sampled_from(each_connectivity(mask))),
            min_area=min_area,
            max_area=min_area + data.draw(st.sampled_from([0.5, 1, 1.5, 4, math.inf])),
            core_width=data.draw(st.integers(1, 4)),
        )


LARGE = {
    "128x128": (3, 128, 128),
    "129x129": (3, 129, 129),
    "256x256": (2, 256, 256),
    "1000x1500": (1, 1000, 1500),
    "2048x2048": (1, 2048, 2048),
    "long lines": (1, 3, 40000),
    "the longest line of a band": (2, 3, 8192),
    "long lines of a volume": (1, 2, 3, 20000),
    "many rows": (512, 64, 64),
    "volume": (1, 16, 128, 128),
}


@gpu_only
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("density", [0.05, 0.41, 0.59])
def test_large(shape, density):
    mask = random_mask(*shape, density=density).to(DEVICE)
    for connectivity in each_connectivity(mask):
        check(mask, connectivity, min_area=3, max_area=500, core_width=2)
        check(mask, connectivity)


@gpu_only
@pytest.mark.parametrize("size", [128, 255, 256, 1023])
def test_large_and_winding(size):
    for mask in (spiral(size), serpentine(size), arches(size)):
        for rows in (mask[None], ~mask.T[None]):
            check(rows.to(DEVICE), 4)
            check(rows.to(DEVICE), 8)


@gpu_only
def test_more_bands_than_are_counted_at_a_time(monkeypatch):
    monkeypatch.setattr(kernel, "BAND", 1)
    monkeypatch.setattr(kernel, "LARGEST_BAND", 1)
    check(random_mask(2, 9000, 2, density=0.6).to(DEVICE), 4)


@gpu_only
@pytest.mark.parametrize("size", [128, 256])
def test_captured_and_without_a_sync(size):
    rules = {"connectivity": 4, "min_area": 2, "max_area": 500, "core_width": 2}
    mask = torch.zeros(2, size, size, dtype=torch.bool, device=DEVICE)
    ops.label_regions(mask, backend="triton", **rules)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.label_regions(mask, backend="triton", **rules)
    for seed in range(3):
        mask.copy_(random_mask(2, size, size, density=0.55, seed=seed))
        graph.replay()
        expected = oracle(mask.cpu(), **rules)
        assert torch.equal(found[0].cpu(), expected[0])
        assert torch.equal(found[1].cpu(), expected[1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.label_regions(mask, backend="triton", **rules)
    finally:
        torch.cuda.set_sync_debug_mode("default")
