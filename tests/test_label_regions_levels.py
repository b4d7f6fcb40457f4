# SPDX-License-Identifier: MIT
"""label_regions of levels (0 ground, 1 set, 2 set and a seed): the backends of a CPU against scipy.ndimage, exactly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_label_regions import BACKENDS, CONNECTIVITIES, SHAPES, VIEWS, each_connectivity, oracle, random_mask

from ascedfast import _backend, ops, reference

ACROSS_WORDS = [15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 289]
"""Where a run of 15 to 289 may have its seed: at its ends, and beside borders of 16, 32, 64, 256 locations."""


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def oracle_of_levels(levels, connectivity, min_area, max_area, core_width=1):
    """The regions of what is set, without those that hold no location of value 2."""
    labels, kept = oracle(levels > 0, connectivity, min_area, max_area, 1)
    for row in range(len(levels)):
        kept[row] &= torch.isin(labels[row], labels[row][levels[row] == 2])
    return labels, kept


def random_levels(*shape, density=0.5, seeds=0.1, seed=0):
    """Set with one probability, and a seed of these with another."""
    set_, seeded = random_mask(*shape, density=density, seed=seed), random_mask(*shape, density=seeds, seed=seed + 1)
    return set_.byte() + (set_ & seeded).byte()


def levels_of(shape, line, seed_at):
    """One run in the second line, with one seed."""
    levels = torch.zeros(shape, dtype=torch.uint8)
    levels[..., 1, line] = 1
    levels[..., 1, seed_at] = 2
    return levels


def check(backend, levels, connectivity, *, min_area=0, max_area=math.inf):
    """Equal to the oracle in value, type and shape; the levels untouched. Returns how many locations are kept."""
    before = levels.clone()
    rules = {"connectivity": connectivity, "min_area": min_area, "max_area": max_area}
    labels, kept, overflow = ops.label_regions(levels, backend=backend, **rules)
    expected_labels, expected_kept = oracle_of_levels(before, **rules)
    assert torch.equal(levels, before), "the levels were written to"
    assert (labels.dtype, kept.dtype, overflow.dtype) == (torch.int32, torch.bool, torch.bool)
    assert torch.equal(labels, expected_labels)
    assert torch.equal(kept, expected_kept)
    assert overflow.tolist() == [False] * len(levels)
    return int(kept.sum())


@pytest.mark.parametrize("seeds", [0.005, 0.1, 0.5])
@pytest.mark.parametrize("density", [0.1, 0.31, 0.59, 0.9])
@pytest.mark.parametrize("shape", [(2, 41, 67), (1, 3, 200), (2, 7, 13, 19), (1, 20, 128)], ids=str)
def test_random_levels(backend, shape, density, seeds):
    levels = random_levels(*shape, density=density, seeds=seeds)
    for connectivity in each_connectivity(levels):
        check(backend, levels, connectivity)
        check(backend, levels, connectivity, min_area=2, max_area=40)


def test_the_larger_seeded_regions_are_kept(backend):
    """By hand: an area in range and a seed are both needed, and each region's own seed."""
    levels = torch.zeros(1, 5, 20, dtype=torch.uint8)
    levels[0, 1:4, 0:3] = 1  # 9, no seed
    levels[0, 1:4, 5:8] = 1  # 9, a seed in its midst
    levels[0, 2, 6] = 2
    levels[0, 1, 10] = 2  # 1, all of it
    levels[0, 1:3, 13:15] = 2  # 4, all seeds
    levels[0, 3, 15] = 2  # touches the last one at a corner
    sums = {
        (4, 0, math.inf): 9 + 1 + 4 + 1,
        (4, 1, math.inf): 9 + 4,
        (4, 4, math.inf): 9,
        (8, 4, math.inf): 9 + 5,
        (4, 0, 9): 1 + 4 + 1,
        (4, 9, math.inf): 0,
    }
    for (connectivity, min_area, max_area), kept in sums.items():
        assert check(backend, levels, connectivity, min_area=min_area, max_area=max_area) == kept


@pytest.mark.parametrize("seed_at", ACROSS_WORDS)
def test_one_seed_in_a_run_across_words(backend, seed_at):
    levels = levels_of((2, 3, 300), line=slice(15, 290), seed_at=seed_at)
    levels[1] *= levels[1] < 2  # the other row has no seed, and where it was the run is cut
    assert check(backend, levels, 4) == 275
    levels = levels_of((1, 2, 3, 300), line=slice(15, 290), seed_at=seed_at)
    assert check(backend, levels, 6) == 550


def test_a_seed_on_the_far_side_keeps_all_of_its_region(backend):
    for mask in SHAPES.values():
        levels = mask.byte()[None]
        levels[0].view(-1)[mask.flatten().nonzero()[-1]] = 2
        for connectivity in (4, 8):
            assert check(backend, levels, connectivity) > 0


def test_no_seeds_and_all_seeds(backend):
    for shape in ((2, 41, 67), (2, 7, 13, 19)):
        mask = random_mask(*shape, density=0.15)
        for connectivity in each_connectivity(mask):
            rules = {"connectivity": connectivity, "min_area": 1, "max_area": 50, "backend": backend}
            plain, bare, full = (ops.label_regions(m, **rules) for m in (mask, mask.byte(), mask.byte() * 2))
            assert plain[1].any()
            assert not bare[1].any()
            assert torch.equal(bare[0], plain[0])
            assert all(torch.equal(a, b) for a, b in zip(full, plain, strict=True))


@pytest.mark.parametrize("view", VIEWS)
def test_strides_2d(backend, view):
    levels = VIEWS[view](random_levels(4, 40, 75, density=0.45, seeds=0.05))
    for connectivity in (4, 8):
        assert check(backend, levels, connectivity, min_area=1) > 0


def test_strides_3d(backend):
    base = random_levels(6, 12, 17, 21, density=0.3, seeds=0.05)
    for levels in (base[1::2, 2:9, ::2, 3:], base.permute(2, 0, 3, 1), base[:1].expand(2, -1, -1, -1)):
        for connectivity in (6, 26):
            assert check(backend, levels, connectivity) > 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 1, 50), (1, 50, 1), (1, 1, 9, 9), (2, 3, 1, 17)], ids=str)
def test_degenerate_sizes(backend, shape):
    for levels in (
        random_levels(*shape, seeds=0.3),
        *(torch.full(shape, level, dtype=torch.uint8) for level in range(3)),
    ):
        for connectivity in each_connectivity(levels):
            check(backend, levels, connectivity)


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 5), (2, 5, 0), (0, 2, 5, 5), (2, 3, 5, 0)], ids=str)
def test_empty(backend, shape):
    levels = torch.zeros(shape, dtype=torch.uint8)
    for connectivity in each_connectivity(levels):
        labels, kept, _ = ops.label_regions(levels, connectivity=connectivity, backend=backend)
        assert labels.shape == kept.shape == levels.shape
        assert (labels.dtype, kept.dtype) == (torch.int32, torch.bool)


def test_rows_do_not_see_each_others_seeds(backend):
    rows = random_levels(60, 6, 9, density=0.55, seeds=0.05)
    labels, kept, _ = ops.label_regions(rows, connectivity=8, backend=backend)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    shuffled = ops.label_regions(rows[order], connectivity=8, backend=backend)
    assert torch.equal(shuffled[0], labels[order])
    assert torch.equal(shuffled[1], kept[order])
    check(backend, rows, 8)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_levels(backend, data):
    rank = data.draw(st.sampled_from([2, 3]))
    longest = (9, 70) if rank == 2 else (4, 5, 10)
    shape = (data.draw(st.integers(1, 3)), *(data.draw(st.integers(1, size)) for size in longest))
    levels = torch.from_numpy(data.draw(arrays("uint8", shape, elements=st.integers(0, 2))))
    min_area = data.draw(st.sampled_from([0, 0.5, 1, 2, 3.5]))
    max_area = min_area + data.draw(st.sampled_from([0.5, 1, 4, math.inf]))
    connectivity = data.draw(st.sampled_from(CONNECTIVITIES[rank]))
    check(backend, levels, connectivity, min_area=min_area, max_area=max_area)


@pytest.mark.parametrize("core_width", [0, 2, 5, True])
def test_levels_know_no_core_width(core_width):
    levels = random_levels(1, 5, 5)
    for backend in ("reference", "auto", "triton"):
        with pytest.raises(ValueError, match=f"core_width must be .*got {core_width}"):
            ops.label_regions(levels, connectivity=4, core_width=core_width, backend=backend)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.float32])
def test_only_uint8_says_levels(dtype):
    for backend in ("reference", "auto", "triton"):
        with pytest.raises(TypeError, match=f"bool or uint8 levels, got {dtype}"):
            ops.label_regions(random_levels(1, 5, 5).to(dtype), connectivity=4, backend=backend)


def test_the_other_ops_take_no_levels():
    with pytest.raises(TypeError, match=r"mask must be bool, got torch\.uint8"):
        ops.dilate_mask(random_levels(1, 5, 5), 1)


def test_the_reference_alone_reads_levels_too():
    levels = random_levels(2, 9, 21, seeds=0.05)
    rules = {"connectivity": 4, "min_area": 1, "max_area": math.inf, "core_width": 1}
    labels, kept, _ = reference.label_regions(levels, **rules)
    expected = oracle_of_levels(levels, **rules)
    assert torch.equal(labels, expected[0])
    assert torch.equal(kept, expected[1])


@pytest.mark.skipif(
    bool(_backend.why_not("native", "label_regions", torch.device("cpu"))), reason="the extension is missing"
)
def test_extension_reads_bit_one_of_a_byte():
    """core_width 0, with every byte: whatever is not 0 is set, and a seed where its bit of value 2 is."""
    values = torch.arange(256, dtype=torch.uint8).repeat_interleave(2)
    values[1::2] = 0
    labels, kept = torch.empty(512, dtype=torch.int32), torch.empty(512, dtype=torch.uint8)
    pointers = values.data_ptr(), (512, 512, 512, 1), (1, 1, 1, 512), labels.data_ptr(), kept.data_ptr()
    _backend.native().label_regions(*pointers, 4, 0.0, math.inf, 0)
    assert labels[::2].tolist() == list(range(256))
    assert torch.equal(kept != 0, values & 2 != 0)
