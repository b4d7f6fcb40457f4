# SPDX-License-Identifier: MIT
"""label_regions: each backend on the CPU with scipy's labelling alone (no area or core rule) as the yardstick, and the
CUDA and Triton kernels in a graph."""

import pytest
import torch
from scipy import ndimage

from ascedfast import _backend, ops

NATIVE_MISSING = _backend.why_not("native", "label_regions", torch.device("cpu"))
BACKENDS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(bool(NATIVE_MISSING), reason="; ".join(NATIVE_MISSING))),
]


def noise(*shape, density):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density


def blobs(*shape):
    """About what a detector flags: some 4 % of the locations, in smooth patches."""
    smooth = ndimage.gaussian_filter(torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy(), (0, 4, 4))
    return torch.from_numpy(smooth > 1.75 * smooth.std())


# Noise near half density has the most runs; patches are the usual case; many small rows show the cost of a call.
CASES = {
    "patches-1x1024x1024": (lambda: blobs(1, 1024, 1024), 4),
    "patches-64x64x64": (lambda: blobs(64, 64, 64), 4),
    "noise-1x2048x2048": (lambda: noise(1, 2048, 2048, density=0.4), 4),
    "noise-64x64x64": (lambda: noise(64, 64, 64, density=0.4), 4),
    "video-1x16x128x128": (lambda: noise(1, 16, 128, 128, density=0.4), 26),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_label_regions(benchmark, case, backend):
    make, connectivity = CASES[case]
    mask = make()
    benchmark.group = case
    benchmark.extra_info |= {"shape": list(mask.shape), "connectivity": connectivity, "torch": torch.__version__}
    rules = {"connectivity": connectivity, "min_area": 100, "max_area": 1e4, "core_width": 5}
    # Few rounds: the reference takes seconds on the largest masks.
    labels, _, _ = benchmark.pedantic(
        ops.label_regions,
        args=(mask,),
        kwargs={**rules, "backend": backend},
        rounds=5,
        warmup_rounds=1,
    )
    assert labels.max() > 0


@pytest.mark.parametrize("case", CASES)
def test_scipy_label(benchmark, case):
    make, connectivity = CASES[case]
    rows = make().numpy()
    benchmark.group = case
    structure = ndimage.generate_binary_structure(rows.ndim - 1, 1 if connectivity in (4, 6) else rows.ndim - 1)
    benchmark.pedantic(lambda: [ndimage.label(row, structure) for row in rows], rounds=5, warmup_rounds=1)


ON_CUDA = {
    "patches-1x128x128": (lambda: blobs(1, 128, 128), 4),
    "patches-1x256x256": (lambda: blobs(1, 256, 256), 4),
    "noise-1x256x256": (lambda: noise(1, 256, 256, density=0.59), 4),
    "full-1x256x256": (lambda: torch.ones(1, 256, 256, dtype=torch.bool), 4),
    **CASES,
}
CUDA_MISSING = (
    _backend.why_not("native", "label_regions", torch.device("cuda"))
    if torch.cuda.is_available()
    else ["no CUDA device"]
)
REPLAYS = 50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "backend",
    ["triton", pytest.param("native", marks=pytest.mark.skipif(bool(CUDA_MISSING), reason="; ".join(CUDA_MISSING)))],
)
@pytest.mark.parametrize("case", ON_CUDA)
def test_label_regions_cuda(benchmark, case, backend):
    """Time of REPLAYS replays of one captured call."""
    make, connectivity = ON_CUDA[case]
    mask = make().cuda()
    rules = {"connectivity": connectivity, "min_area": 100, "max_area": 1e4, "core_width": 5, "backend": backend}
    ops.label_regions(mask, **rules)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        labels = ops.label_regions(mask, **rules)[0]
    benchmark.group = case
    benchmark.extra_info |= {"shape": list(mask.shape), "replays": REPLAYS, "gpu": torch.cuda.get_device_name()}

    def replay():
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()

    benchmark.pedantic(replay, rounds=20, warmup_rounds=2)
    assert labels.max() > 0
