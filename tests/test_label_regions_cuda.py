# SPDX-License-Identifier: MIT
"""The CUDA kernels of label_regions against scipy.ndimage, exactly: on a GPU, and emulated on the CPU elsewhere."""

import math

import emulation
import pytest
import torch
from layouts import DEVICES
from test_label_regions import SHAPES, VIEWS, each_connectivity, oracle, random_mask
from test_label_regions_levels import ACROSS_WORDS, levels_of, oracle_of_levels, random_levels

from ascedfast import _backend, ops

ON_GPU = DEVICES == ["cuda"]
WHY_NOT = (
    "; ".join(_backend.why_not("native", "label_regions", torch.device("cuda"))) if ON_GPU else emulation.why_not()
)
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), *([pytest.mark.gpu] if ON_GPU else [])]
gpu_only = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")

PATHS = ["row"] if ON_GPU else ["row", "tiles"]
TILES_BELOW = "20000"  # bytes of shared memory: a tile fits, few rows do


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Emulated, each mask takes both ways; on a GPU its size decides, see test_large."""
    if request.param == "tiles":
        monkeypatch.setenv("EMULATED_SHARED_BYTES", TILES_BELOW)
    return request.param


def label(mask, **rules):
    if not ON_GPU:
        return emulation.label_regions(mask, **rules)
    labels, kept, overflow = ops.label_regions(mask.to("cuda"), backend="native", **rules)
    assert overflow.tolist() == [False] * mask.shape[0]
    assert (labels.dtype, kept.dtype) == (torch.int32, torch.bool)
    assert labels.is_contiguous()
    return labels.cpu(), kept.cpu()


def check(mask, connectivity, *, min_area=0, max_area=math.inf, core_width=1):
    rules = {"connectivity": connectivity, "min_area": min_area, "max_area": max_area, "core_width": core_width}
    before = mask.clone()
    labels, kept = label(mask, **rules)
    expected_labels, expected_kept = (oracle if mask.dtype == torch.bool else oracle_of_levels)(before, **rules)
    assert torch.equal(mask, before), "the mask was written to"
    assert torch.equal(labels, expected_labels)
    assert torch.equal(kept, expected_kept)
    return int(labels.max()) if labels.numel() else 0


# Longer than 1024 words with few locations in each; across tiles (32 lines of 256) both ways; frames.
@pytest.mark.parametrize("shape", [(2, 41, 67), (1, 70, 290), (3, 1, 200), (1, 100, 1), (2, 7, 13, 19)], ids=str)
@pytest.mark.parametrize("density", [0.1, 0.41, 0.59, 0.9])
def test_random(path, shape, density):
    mask = random_mask(*shape, density=density)
    for connectivity in each_connectivity(mask):
        assert check(mask, connectivity) > 0
        check(mask, connectivity, min_area=2, max_area=40, core_width=2)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_hard_for_union_find(path, name):
    mask = SHAPES[name]
    for flipped in (mask, mask.flip(0, 1)):
        for connectivity in (4, 8):
            check(torch.stack([flipped, ~flipped]), connectivity, core_width=2)
    check(torch.stack([mask, ~mask, mask])[None], 6)
    check(torch.stack([mask, ~mask]).permute(1, 0, 2)[None], 26)


def test_full_empty_and_checkerboard(path):
    for shape in ((1, 70, 300), (1, 3, 33, 65)):
        mask = torch.ones(shape, dtype=torch.bool)
        board = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).sum(0) % 2 == 0
        few, many = each_connectivity(mask)
        assert check(mask, few, core_width=33) == 1
        assert check(~mask, many) == 0
        assert check(board, few) == int(board.sum())
        assert check(board, many) == 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 1, 50), (1, 50, 1), (1, 9, 1, 1), (2, 3, 1, 17)], ids=str)
def test_degenerate_sizes(path, shape):
    for mask in (random_mask(*shape), torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)):
        for connectivity in each_connectivity(mask):
            check(mask, connectivity)


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 5), (2, 5, 0), (2, 0, 5, 5)], ids=str)
def test_empty(shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    assert label(mask, connectivity=each_connectivity(mask)[0], min_area=0, max_area=9, core_width=1)[0].shape == shape


@pytest.mark.parametrize("view", VIEWS)
def test_strides(path, view):
    mask = VIEWS[view](random_mask(4, 40, 75, density=0.5))
    if ON_GPU:
        base = random_mask(4, 40, 75, density=0.5).cuda()
        rules = {"connectivity": 8, "min_area": 1, "max_area": math.inf, "core_width": 2}
        found = ops.label_regions(VIEWS[view](base), backend="native", **rules)[:2]
        expected = oracle(mask, **rules)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found[:2], expected, strict=True))
        return
    check(mask, 8, min_area=1, core_width=2)


@pytest.mark.parametrize("core_width", [1, 2, 5, 32, 33, 34, 65, 91])
def test_core_widths(path, core_width):
    mask = torch.ones(3, 95, 130, dtype=torch.bool)
    mask[0, 40, 17] = mask[0, 91, 90] = mask[1, ::34, :] = mask[1, 3, 3] = mask[2, :, ::66] = False
    mask[2, 90:, :] = False
    for connectivity in (4, 8):
        check(mask, connectivity, core_width=core_width)
    frames = mask[0, :66].reshape(1, 2, 33, 130)
    check(frames, 6, core_width=core_width)


@pytest.mark.parametrize(
    ("min_area", "max_area"), [(0, math.inf), (4, 16), (3.999, 9.001), (4.0, 9.0), (15.5, 1e300), (1e300, math.inf)]
)
def test_area_bounds_are_strict(path, min_area, max_area):
    mask = torch.zeros(1, 8, 24, dtype=torch.bool)
    for x, side in ((0, 1), (3, 2), (8, 3), (14, 4)):
        mask[0, 1 : 1 + side, x : x + side] = True
    assert check(mask, 4, min_area=min_area, max_area=max_area) == 4


def test_row_by_row_and_every_time_the_same(path):
    rows = random_mask(20, 37, 33, density=0.55)
    rules = {"connectivity": 8, "min_area": 2, "max_area": 300, "core_width": 2}
    labels, kept = label(rows, **rules)
    for row in (0, 7, 19):
        alone = label(rows[row : row + 1], **rules)
        assert torch.equal(alone[0][0], labels[row])
        assert torch.equal(alone[1][0], kept[row])


# Vector loads need lines of a multiple of 16; tails of lines, several rows, tiles both ways and frames.
@pytest.mark.parametrize(
    "shape", [(2, 41, 67), (2, 70, 290), (1, 40, 288), (3, 1, 200), (2, 1, 7, 13), (2, 3, 33, 70)], ids=str
)
@pytest.mark.parametrize("density", [0.3, 0.59])
def test_random_levels(path, shape, density):
    for seeds in (0.0, 0.02, 0.3, 1.0):
        levels = random_levels(*shape, density=density, seeds=seeds)
        for connectivity in each_connectivity(levels):
            assert check(levels, connectivity) > 0
            check(levels, connectivity, min_area=2, max_area=40)


@pytest.mark.parametrize("view", VIEWS)
def test_strides_of_levels(path, view):
    check(VIEWS[view](random_levels(4, 110, 100, density=0.45, seeds=0.02))[:3], 8, min_area=1)


def test_levels_of_volumes_in_any_strides(path):
    base = random_levels(6, 17, 33, 21, density=0.1, seeds=0.1)
    for levels in (base[1::2, 2:9, ::2, 3:], base.permute(2, 0, 3, 1)[:2], base[:1].expand(2, -1, -1, -1)):
        for connectivity in (6, 26):
            check(levels, connectivity)


@pytest.mark.parametrize("seed_at", ACROSS_WORDS)
def test_one_seed_in_a_run_across_words(path, seed_at):
    levels = levels_of((1, 3, 300), line=slice(15, 290), seed_at=seed_at)
    assert check(levels, 4) == 1
    assert int(label(levels, connectivity=4, min_area=0, max_area=math.inf, core_width=1)[1].sum()) == 275


def test_levels_without_a_seed_and_with_nothing_else(path):
    for shape in ((2, 37, 70), (1, 3, 33, 65)):
        mask = random_mask(*shape, density=0.5)
        for connectivity in each_connectivity(mask):
            rules = {"connectivity": connectivity, "min_area": 1, "max_area": 50, "core_width": 1}
            plain, bare, full = (label(m, **rules) for m in (mask, mask.byte(), mask.byte() * 2))
            assert torch.equal(bare[0], plain[0])
            assert not bare[1].any()
            assert all(torch.equal(a, b) for a, b in zip(full, plain, strict=True))


LARGE = {
    "129x129": (2, 129, 129),
    "256x256": (3, 256, 256),
    "odd": (1, 700, 333),
    "narrow": (1, 20000, 3),
    "wide": (2, 3, 90001),
    "1024x1024": (2, 1024, 1024),
    "2048x2048": (1, 2048, 2048),
    "video": (1, 17, 240, 417),
}


@gpu_only
@pytest.mark.parametrize("density", [0.05, 0.41, 0.593, 1.0])
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_large(shape, density):
    mask = random_mask(*shape, density=density)
    for connectivity in each_connectivity(mask):
        check(mask, connectivity, min_area=25, max_area=2500, core_width=3)


@gpu_only
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_large_levels(shape):
    levels = random_levels(*shape, density=0.41, seeds=0.01)
    for connectivity in each_connectivity(levels):
        check(levels, connectivity, min_area=2, max_area=2500)


@gpu_only
@pytest.mark.parametrize("turned", [False, True], ids=["lines", "columns"])
def test_large_stripes_and_spirals(turned):
    from test_label_regions import arches, comb, spiral

    for mask in (spiral(253), comb(600, 601, 300), arches(1001)):
        check((mask.T if turned else mask)[None], 4, core_width=1)


@gpu_only
def test_captured_in_a_graph_on_a_side_stream():
    rules = {"connectivity": 4, "min_area": 2, "max_area": 500, "core_width": 2, "backend": "native"}
    for shape in ((1, 128, 128), (1, 512, 512)):
        mask = torch.zeros(shape, dtype=torch.bool, device="cuda")
        ops.label_regions(mask, **rules)
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
            labels, kept, _ = ops.label_regions(mask, **rules)
        for seed in (1, 2):
            mask.copy_(random_mask(*shape, density=0.55, seed=seed))
            graph.replay()
            expected = oracle(mask.cpu(), **{name: rules[name] for name in rules if name != "backend"})
            assert torch.equal(labels.cpu(), expected[0])
            assert torch.equal(kept.cpu(), expected[1])


@gpu_only
def test_a_caller_without_torch():
    cupy = pytest.importorskip("cupy", reason="pip install cupy-cuda13x")
    native = _backend.native()
    for shape in ((2, 1, 60, 70), (1, 1, 600, 610)):
        mask = cupy.random.RandomState(0).rand(*shape) < 0.55
        labels, kept = cupy.empty(shape, cupy.int32), cupy.empty(shape, cupy.bool_)
        overflow = cupy.ones(shape[0], cupy.bool_)
        scratch = cupy.empty(native.label_regions_scratch_bytes(shape), cupy.uint8)
        pointers = mask.data.ptr, mask.strides, shape, labels.data.ptr, kept.data.ptr, overflow.data.ptr
        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.get_current_stream().synchronize()
        memory = scratch.data.ptr, scratch.nbytes, mask.device.id, stream.ptr
        native.label_regions_cuda(*pointers, 8, 4.0, math.inf, 3, *memory)
        stream.synchronize()
        expected = oracle(torch.from_numpy(cupy.asnumpy(mask[:, 0])), 8, 4.0, math.inf, 3)
        assert torch.equal(torch.from_numpy(cupy.asnumpy(labels[:, 0])), expected[0])
        assert torch.equal(torch.from_numpy(cupy.asnumpy(kept[:, 0])), expected[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"connectivity": 5}, ["4, 8, 6 or 26", "got 5"]),
        ({"connectivity": 8, "shape": (1, 2, 2, 2)}, ["6 or 26", "got 8 with depth 2"]),
        ({"shape": (1, 1, -2, 2)}, ["at least 0", "got -2"]),
        ({"core_width": -1}, ["core_width", "got -1"]),
        ({"min_area": math.nan}, ["min_area", "got nan"]),
        ({"labels": 0}, ["labels", "null pointer"]),
        ({"shape": (1, 1, 1 << 15, 1 << 15)}, ["1073741823 locations", "1073741824"]),
        ({"shape": (1, 1, 1 << 28, 1)}, ["134217727 stretches"]),
        ({"shape": (1, 1, 4096, 4096), "scratch_bytes": 100}, ["label_regions_scratch_bytes", "got 100"]),
    ],
)
def test_extension_checks_its_arguments(changes, words):
    native = _backend.native() if ON_GPU else emulation.extension()
    arguments = {
        "mask": 16,
        "strides": (8, 4, 2, 1),
        "shape": (1, 1, 2, 2),
        "labels": 16,
        "kept": 16,
        "overflow": 16,
        "connectivity": 4,
        "min_area": 0.0,
        "max_area": 9.0,
        "core_width": 1,
        "scratch": 16,
        "scratch_bytes": 0,
        "device": 0,
        "stream": 0,
    }
    with pytest.raises(ValueError, match="expected") as raised:
        native.label_regions_cuda(**{**arguments, **changes})
    for word in words:
        assert word in str(raised.value)
