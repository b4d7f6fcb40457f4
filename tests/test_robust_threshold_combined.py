# SPDX-License-Identifier: MIT
"""robust_threshold with the extension's medians between the Triton launches: the reference's bits, and Triton's alone.
On a CPU the medians are emulated and the kernels interpreted."""

import emulation
import pytest
import torch
from ascedfast.kernels import robust_threshold as kernel
from layouts import DEVICES, same_bits

from ascedfast import _backend, _native_cuda, ops

ON_GPU = DEVICES == ["cuda"]
DEVICE = DEVICES[0]
WHY_NOT = "" if ON_GPU and _backend.has_cuda() else "built without CUDA" if ON_GPU else emulation.why_not()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), *([pytest.mark.gpu] if ON_GPU else [])]
gpu_only = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
SETTINGS = {"mad_scale": 2.0, "mad_floor": 0.01, "z_floor": 0.02, "count": True}

SMALL = {"even": (3, 2, 1, 8, 8), "odd": (2, 2, 1, 17, 23), "channels": (2, 1, 3, 9, 12), "volume": (2, 2, 1, 3, 9, 7)}
LARGE = {
    "65x63": (2, 2, 1, 65, 63),
    "65x64": (3, 2, 1, 65, 64),
    "128x128": (12, 1, 1, 128, 128),
    "257x129": (3, 2, 1, 257, 129),
    "256x256": (12, 2, 1, 256, 256),
    "official": (3, 1, 3, 256, 256),
    "512x512": (3, 1, 1, 512, 512),
    "513x512": (2, 1, 1, 513, 512),
}


def maps_of(shape, kind):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).square()
    if kind == "ties":
        maps = maps.mul(4).floor()
    if kind == "not finite":
        maps[0, -1, 0, ..., 2, 3] = torch.inf
        maps[-1, 0, 0, ..., 0, 0] = torch.nan
    return maps.to(DEVICE)


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the planes that went to the extension."""
    medians = _native_cuda.medians if ON_GPU else emulation.medians
    seen = []

    def counted(values):
        seen.append(values.shape[1])
        return medians(values)

    monkeypatch.setattr(_native_cuda, "medians", counted)
    return seen


@pytest.mark.parametrize("kind", ["float", "ties", "not finite"])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
def test_bits_are_the_references(shape, sigma, kind, calls, monkeypatch, poisoned_empty):
    monkeypatch.setattr(kernel, "FASTER_FROM", 1)
    maps = maps_of(shape, kind)
    counts, z = kernel.robust_threshold(maps, **SETTINGS, blur_sigma=sigma, faster=_native_cuda.medians)
    expected, expected_z = ops.robust_threshold(maps, **SETTINGS, blur_sigma=sigma, backend="reference")
    assert len(calls) == 1
    assert torch.equal(counts, expected)
    assert same_bits(z, expected_z)
    wild = maps.isfinite().logical_not().transpose(0, 1).flatten(1).any(1)
    assert torch.equal(z.flatten(1).isnan().all(1), wild)
    assert not counts[wild].any()


def test_small_and_huge_planes_stay_with_triton():
    for count in (1, kernel.FASTER_FROM - 1, kernel.FASTER_UPTO + 1):
        statistics = kernel.statistics_of(torch.full((1, count), 0.5, device=DEVICE), faster=None)
        assert torch.equal(statistics, kernel.statistics_of(torch.full((1, count), 0.5, device=DEVICE), faster=refused))
        assert statistics.tolist() == [[0.5, 0.0]]


def refused(values):
    raise AssertionError(f"planes of {values.shape[1]} values")


@gpu_only
@pytest.mark.parametrize("kind", ["float", "ties", "not finite"])
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_auto_and_triton_give_equal_bits(shape, kind, calls):
    maps = maps_of(shape, kind)
    settings = SETTINGS | {"blur_sigma": 2.0}
    alone = ops.robust_threshold(maps, **settings, backend="triton")
    assert not calls, "an explicit choice of Triton is Triton alone"
    combined = ops.robust_threshold(maps, **settings)
    count = maps[0, 0].numel()
    assert calls == [count] * (kernel.FASTER_FROM <= count <= kernel.FASTER_UPTO)
    for ours, other in ((combined, alone), (combined, ops.robust_threshold(maps, **settings, backend="reference"))):
        assert torch.equal(ours[0], other[0])
        assert same_bits(ours[1], other[1])


@gpu_only
@pytest.mark.parametrize("side", [128, 256, 512])
def test_captured_and_without_a_sync(side, calls):
    settings = SETTINGS | {"blur_sigma": 2.0}
    maps = torch.zeros(4, 2, 1, side, side, device=DEVICE)
    ops.robust_threshold(maps, **settings)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.robust_threshold(maps, **settings)
    assert calls == [side * side] * 2
    for kind in ("float", "not finite"):
        maps.copy_(maps_of(maps.shape, kind))
        graph.replay()
        expected = ops.robust_threshold(maps, **settings, backend="reference")
        assert torch.equal(found[0], expected[0])
        assert same_bits(found[1], expected[1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.robust_threshold(maps, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
