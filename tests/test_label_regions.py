# SPDX-License-Identifier: MIT
"""label_regions: each backend against scipy.ndimage, exactly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from ascedfast import _backend, ops

NATIVE_MISSING = _backend.why_not("native", "label_regions", torch.device("cpu"))
BACKENDS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(bool(NATIVE_MISSING), reason="; ".join(NATIVE_MISSING))),
]
CONNECTIVITIES = {2: (4, 8), 3: (6, 26)}
ANY_AREA = {"min_area": 0, "max_area": math.inf}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def scipy_row(mask, connectivity, min_area, max_area, core_width):
    rank = mask.ndim
    structure = ndimage.generate_binary_structure(rank, 1 if connectivity in (4, 6) else rank)
    found, count = ndimage.label(mask, structure)
    # scipy does not promise an order of its labels, so they are renamed in raster order of first location.
    first = ndimage.minimum(np.arange(mask.size).reshape(mask.shape), found, np.arange(1, count + 1))
    name = np.zeros(count + 1, dtype=np.int32)
    name[1 + np.argsort(first)] = np.arange(1, count + 1)
    labels = name[found]
    size = ndimage.sum_labels(mask, labels, np.arange(count + 1))
    block = np.ones((1,) * (rank - 2) + (core_width, core_width))
    full = ndimage.binary_erosion(mask, block, border_value=0)
    keep = (size > min_area) & (size < max_area) & np.isin(np.arange(count + 1), labels[full])
    keep[0] = False
    return labels, keep[labels]


def oracle(mask, connectivity, min_area, max_area, core_width):
    labels = np.zeros(mask.shape, dtype=np.int32)
    kept = np.zeros(mask.shape, dtype=bool)
    for row in range(mask.shape[0]):
        labels[row], kept[row] = scipy_row(mask[row].numpy(), connectivity, min_area, max_area, core_width)
    return torch.from_numpy(labels), torch.from_numpy(kept)


def check(backend, mask, connectivity, *, min_area=0, max_area=math.inf, core_width=1):
    """Equal to the oracle in value, type and shape; the mask untouched. Returns how many regions there were."""
    before = mask.clone()
    rules = {"connectivity": connectivity, "min_area": min_area, "max_area": max_area, "core_width": core_width}
    labels, kept, overflow = ops.label_regions(mask, backend=backend, **rules)
    expected_labels, expected_kept = oracle(before, **rules)
    assert torch.equal(mask, before), "the mask was written to"
    assert (labels.dtype, kept.dtype) == (torch.int32, torch.bool)
    assert torch.equal(labels, expected_labels)
    assert torch.equal(kept, expected_kept)
    assert overflow.tolist() == [False] * len(mask)
    return int(labels.max()) if labels.numel() else 0


def random_mask(*shape, density=0.5, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def each_connectivity(mask):
    return CONNECTIVITIES[mask.dim() - 1]


# Percolation thresholds lie near .59 (4), .41 (8), .31 (6) and .10 (26): regions are largest and most tangled there.
@pytest.mark.parametrize("density", [0.02, 0.1, 0.31, 0.41, 0.5, 0.59, 0.9])
@pytest.mark.parametrize("shape", [(2, 41, 67), (1, 3, 200), (2, 7, 13, 19)], ids=str)
def test_random_densities(backend, shape, density):
    mask = random_mask(*shape, density=density)
    for connectivity in each_connectivity(mask):
        assert check(backend, mask, connectivity) > 0
        check(backend, mask, connectivity, min_area=2, max_area=40, core_width=2)


# Widths around 64 and 128: the native path works on 64 locations at a time.
@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129])
def test_widths(backend, width):
    for density in (0.3, 0.7):
        mask = random_mask(2, 9, width, density=density, seed=width)
        for core_width in (1, 3):
            check(backend, mask, 4, core_width=core_width)
            check(backend, mask, 8, core_width=core_width)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 1, 1), (1, 1, 50), (1, 50, 1), (1, 1, 9, 9), (1, 9, 1, 1), (2, 3, 1, 17)], ids=str
)
def test_degenerate_sizes(backend, shape):
    for mask in (random_mask(*shape), torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)):
        for connectivity in each_connectivity(mask):
            check(backend, mask, connectivity)


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 5), (2, 5, 0), (0, 2, 5, 5), (2, 0, 5, 5), (2, 3, 5, 0)], ids=str)
def test_empty(backend, shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    for connectivity in each_connectivity(mask):
        found = ops.label_regions(mask, connectivity=connectivity, core_width=3, backend=backend, **ANY_AREA)
        labels, kept, _ = found
        assert labels.shape == kept.shape == mask.shape
        assert (labels.dtype, kept.dtype) == (torch.int32, torch.bool)


def test_all_set_and_none_set(backend):
    for shape, connectivity in (((2, 30, 70), 4), ((2, 30, 70), 8), ((2, 5, 11, 13), 6), ((2, 5, 11, 13), 26)):
        assert check(backend, torch.ones(shape, dtype=torch.bool), connectivity, core_width=7) == 1
        assert check(backend, torch.zeros(shape, dtype=torch.bool), connectivity) == 0


def spiral(size):
    """One corridor, one location wide, that winds inwards: set, with a gap of one between its turns."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    y, x, dy, dx = 0, -1, 0, 1
    lengths = [size, *(length for step in range(size - 1, 0, -2) for length in (step, step))]
    for length in lengths:
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask


def comb(height, width, joined_at):
    """Teeth in every other column, joined by one line: regions that learn late that they are one."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, ::2] = True
    mask[joined_at] = True
    return mask


def arches(size):
    """Nested arches: each arm starts a provisional region, and all pairs join on the way down."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.maximum((x - size // 2).abs(), size - 1 - y) % 2 == 0


SHAPES = {
    "spiral": spiral(41),
    "comb joined below": comb(25, 131, -1),
    "comb joined above": comb(25, 131, 0),
    "comb joined in the middle": comb(25, 131, 12),
    "arches": arches(45),
    "diagonal": torch.eye(40, dtype=torch.bool),
    "antidiagonal": torch.eye(40, dtype=torch.bool).flip(0),
    "zigzag": torch.eye(24, dtype=torch.bool).repeat(3, 1) | torch.eye(24, dtype=torch.bool).flip(0).repeat(3, 1),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("flips", [(), (0,), (1,), (0, 1)], ids=["", "y", "x", "yx"])
def test_shapes_hard_for_union_find(backend, name, flips):
    mask = SHAPES[name].flip(flips)
    rows = torch.stack([mask, ~mask])
    for connectivity in (4, 8):
        check(backend, rows, connectivity, core_width=2)
    for connectivity in (6, 26):
        check(backend, torch.stack([mask, ~mask, mask], dim=0)[None], connectivity)
        check(backend, rows.permute(1, 0, 2)[None], connectivity)  # the winding now runs through the frames


def test_spiral_is_one_region():
    assert check("reference", spiral(41)[None], 4) == 1  # guards the generator: a broken spiral is an easy one


def test_checkerboard(backend):
    y, x = torch.meshgrid(torch.arange(30), torch.arange(67), indexing="ij")
    board = ((x + y) % 2 == 0)[None]
    assert check(backend, board, 4) == 30 * 67 // 2
    assert check(backend, board, 8) == 1
    z = torch.arange(5).view(5, 1, 1)
    boards = ((x + y + z) % 2 == 0)[None]
    assert check(backend, boards, 6) == 5 * 30 * 67 // 2
    assert check(backend, boards, 26) == 1


@pytest.mark.parametrize(
    "offset", [(1, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1), (1, -1, 1), (1, 1, -1)], ids=str
)
def test_two_voxels_touch(backend, offset):
    mask = torch.zeros(1, 3, 3, 3, dtype=torch.bool)
    mask[0, 1, 1, 1] = True
    mask[(0, *(1 + step for step in offset))] = True
    assert check(backend, mask, 26) == 1
    assert check(backend, mask, 6) == (1 if sum(map(abs, offset)) == 1 else 2)


VIEWS = {
    "slice": lambda base: base[1:3, 4:35, 5:70],
    "steps": lambda base: base[::2, ::3, 1::2],
    "transposed": lambda base: base.transpose(1, 2),
    "rows last": lambda base: base.permute(1, 2, 0),
    "expanded rows": lambda base: base[:1].expand(3, -1, -1),
    "expanded line": lambda base: base[:, :1].expand(-1, 20, -1),
    "expanded column": lambda base: base[:, :, :1].expand(-1, -1, 70),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("density", [0.45, 0.65])
def test_strides_2d(backend, view, density):
    mask = VIEWS[view](random_mask(4, 40, 75, density=density))
    for connectivity in (4, 8):
        check(backend, mask, connectivity, min_area=1, core_width=2)


def test_strides_3d(backend):
    base = random_mask(6, 12, 17, 21, density=0.3)
    for mask in (base[1::2, 2:9, ::2, 3:], base.permute(2, 0, 3, 1), base[:1].expand(2, -1, -1, -1)):
        for connectivity in (6, 26):
            check(backend, mask, connectivity, core_width=2)


@pytest.mark.parametrize(
    ("min_area", "max_area", "kept"),
    [
        (0, math.inf, {1, 4, 9, 16}),
        (4, 16, {9}),
        (3, 17, {4, 9, 16}),
        (3.999, 9.001, {4, 9}),
        (4.0, 9.0, set()),
        (0.5, 1.5, {1}),
        (16, math.inf, set()),
        (15.5, 1e300, {16}),
    ],
)
def test_area_bounds_are_strict(backend, min_area, max_area, kept):
    mask = torch.zeros(1, 8, 24, dtype=torch.bool)
    for x, side in ((0, 1), (3, 2), (8, 3), (14, 4)):
        mask[0, 1 : 1 + side, x : x + side] = True
    assert check(backend, mask, 4, min_area=min_area, max_area=max_area) == 4
    flags = ops.label_regions(mask, connectivity=4, min_area=min_area, max_area=max_area, backend=backend)[1]
    assert int(flags.sum()) == sum(kept)


@pytest.mark.parametrize("core_width", [1, 2, 3, 5, 7, 12, 13, 65, 91])
def test_core_widths(backend, core_width):
    mask = random_mask(3, 12, 90, density=0.93)
    mask[1, :, :70] = True
    for connectivity in (4, 8):
        check(backend, mask, connectivity, core_width=core_width)
    frames = random_mask(2, 4, 12, 30, density=0.9)
    for connectivity in (6, 26):
        check(backend, frames, connectivity, core_width=core_width)


def kept_count(mask, backend, **rules):
    return int(ops.label_regions(mask, backend=backend, **ANY_AREA, **rules)[1].sum())


def test_core_lies_inside_the_image_and_one_frame(backend):
    corner = torch.zeros(1, 20, 70, dtype=torch.bool)
    corner[0, -5:, -5:] = True
    assert kept_count(corner, backend, connectivity=4, core_width=5) == 25
    assert kept_count(corner, backend, connectivity=4, core_width=6) == 0
    beam = torch.zeros(1, 9, 300, dtype=torch.bool)
    beam[0, 2] = True
    beam[0, 2:7, 150:155] = True  # far from both ends of the run that it thickens
    assert kept_count(beam, backend, connectivity=4, core_width=5) == 320
    bar = torch.zeros(1, 3, 9, 9, dtype=torch.bool)
    bar[0, :, 4, 2:5] = True  # 3 x 3 across frames, 1 x 3 inside each
    assert kept_count(bar, backend, connectivity=6, core_width=3) == 0
    bar[0, 1, 3:6, 2:5] = True
    assert kept_count(bar, backend, connectivity=6, core_width=3) == 15


def test_one_core_keeps_only_its_own_region(backend):
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[0, 1:6, 1:6] = True
    mask[0, 6:9, 6:9] = True  # touches the first at a corner only
    assert kept_count(mask, backend, connectivity=4, core_width=5) == 25
    assert kept_count(mask, backend, connectivity=8, core_width=5) == 34


def test_rows_do_not_see_each_other(backend):
    rows = random_mask(200, 6, 9, density=0.55)
    labels, kept, _ = ops.label_regions(rows, connectivity=8, min_area=2, max_area=30, core_width=2, backend=backend)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    shuffled = ops.label_regions(rows[order], connectivity=8, min_area=2, max_area=30, core_width=2, backend=backend)
    assert torch.equal(shuffled[0], labels[order])
    assert torch.equal(shuffled[1], kept[order])
    check(backend, rows, 8, min_area=2, max_area=30, core_width=2)


def test_same_result_every_time(backend):
    mask = random_mask(4, 50, 60, density=0.58)
    first, *others = (ops.label_regions(mask, connectivity=4, core_width=3, backend=backend) for _ in range(4))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_single_frame_equals_the_image(backend):
    mask = random_mask(2, 25, 40, density=0.5)
    for flat, deep in ((4, 6), (8, 26)):
        image = ops.label_regions(mask, connectivity=flat, core_width=2, backend=backend)
        frame = ops.label_regions(mask[:, None], connectivity=deep, core_width=2, backend=backend)
        assert torch.equal(image[0], frame[0][:, 0])
        assert torch.equal(image[1], frame[1][:, 0])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_mask(backend, data):
    rank = data.draw(st.sampled_from([2, 3]))
    longest = (9, 70) if rank == 2 else (4, 5, 10)
    shape = (data.draw(st.integers(1, 3)), *(data.draw(st.integers(1, size)) for size in longest))
    mask = torch.from_numpy(data.draw(arrays(np.bool_, shape)))
    min_area = data.draw(st.sampled_from([0, 0.5, 1, 2, 3.5]))
    check(
        backend,
        mask,
        data.draw(st.sampled_from(CONNECTIVITIES[rank])),
        min_area=min_area,
        max_area=min_area + data.draw(st.sampled_from([0.5, 1, 1.5, 4, math.inf])),
        core_width=data.draw(st.integers(1, 4)),
    )


@pytest.mark.parametrize(
    ("mask", "rules", "error", "words"),
    [
        (torch.ones(4, 4), {}, TypeError, ["bool", "float32"]),
        (torch.ones(1, 4, 4, dtype=torch.int8), {}, TypeError, ["bool or uint8 levels", "int8"]),
        (torch.ones(4, 4, dtype=torch.bool), {}, ValueError, ["[R, H, W]", "(4, 4)"]),
        (torch.ones(1, 1, 1, 4, 4, dtype=torch.bool), {}, ValueError, ["[R, D, H, W]", "(1, 1, 1, 4, 4)"]),
        (torch.ones(1, 4, 4, dtype=torch.bool), {"connectivity": 6}, ValueError, ["(4, 8)", "6"]),
        (torch.ones(1, 2, 4, 4, dtype=torch.bool), {"connectivity": 8}, ValueError, ["(6, 26)", "8"]),
        (torch.ones(1, 4, 4, dtype=torch.bool), {"connectivity": 5}, ValueError, ["(4, 8)", "5"]),
        (torch.ones(1, 4, 4, dtype=torch.bool), {"core_width": 0}, ValueError, ["core_width", "0"]),
        (torch.ones(1, 4, 4, dtype=torch.bool), {"min_area": 5, "max_area": 5}, ValueError, ["min_area", "5"]),
        (torch.ones(1, 4, 4, dtype=torch.bool), {"min_area": math.nan}, ValueError, ["min_area", "nan"]),
    ],
)
def test_errors_name_expected_and_got(backend, mask, rules, error, words):
    with pytest.raises(error) as raised:
        ops.label_regions(mask, backend=backend, **{"connectivity": 4, **rules})
    for word in words:
        assert word in str(raised.value)


@pytest.mark.skipif(bool(NATIVE_MISSING), reason="; ".join(NATIVE_MISSING))
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"connectivity": 5}, ["4, 8, 6 or 26", "got 5"]),
        ({"connectivity": 8, "shape": (1, 2, 2, 2)}, ["6 or 26", "got 8 with depth 2"]),
        ({"shape": (1, 1, -2, 2)}, ["at least 0", "got -2"]),
        ({"core_width": -1}, ["core_width", "got -1"]),
        ({"min_area": math.nan}, ["min_area", "got nan"]),
        ({"labels": 0}, ["labels", "null pointer"]),
    ],
)
def test_extension_checks_its_arguments(changes, words):
    mask = torch.ones(8, dtype=torch.uint8)
    labels = torch.full((8,), -1, dtype=torch.int32)
    kept = torch.full((8,), 9, dtype=torch.uint8)
    arguments = {
        "mask": mask.data_ptr(),
        "strides": (8, 4, 2, 1),
        "shape": (1, 1, 2, 2),
        "labels": labels.data_ptr(),
        "kept": kept.data_ptr(),
        "connectivity": 4,
        "core_width": 1,
        **ANY_AREA,
    }
    with pytest.raises(ValueError, match="expected") as raised:
        _backend.native().label_regions(**{**arguments, **changes})
    for word in words:
        assert word in str(raised.value)
    assert (labels == -1).all()
    assert (kept == 9).all()
    _backend.native().label_regions(**arguments)
    assert labels.tolist() == [1] * 4 + [-1] * 4, "wrote outside the shape"
    assert kept.tolist() == [1] * 4 + [9] * 4, "wrote outside the shape"


@pytest.mark.skipif(bool(NATIVE_MISSING), reason="; ".join(NATIVE_MISSING))
def test_extension_reads_any_nonzero_byte():
    values = torch.arange(256, dtype=torch.uint8).repeat_interleave(2)
    values[1::2] = 0
    labels = torch.empty(512, dtype=torch.int32)
    kept = torch.empty(512, dtype=torch.uint8)
    shape, strides = (1, 1, 1, 512), (512, 512, 512, 1)
    pointers = values.data_ptr(), strides, shape, labels.data_ptr(), kept.data_ptr()
    _backend.native().label_regions(*pointers, 4, 0.0, math.inf, 1)
    assert labels[::2].tolist() == list(range(256))
    assert not labels[1::2].any()
    assert torch.equal(kept != 0, values != 0)
