# SPDX-License-Identifier: MIT
"""csrc's launch of kernels that Triton compiled: the same results, and no launch of a kernel with other parameters."""

import threading

import pytest
import torch
from ascedfast.kernels import prepared
from ascedfast.kernels.dilate_mask import Dilation

from ascedfast import _backend, reference

KernelLaunch = _backend.native().KernelLaunch if _backend.has_cuda() else None
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_cuda_build = pytest.mark.skipif(not _backend.has_cuda(), reason="the extension holds no CUDA: nvcc builds it")


@needs_cuda_build
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grid": (1, 1)}, "three sizes"),
        ({"kinds": "px"}, "pilf-"),
        ({"kinds": "p"}, "a kind for each"),
        ({"kinds": "p" * 97, "fixed": [0] * 96}, "at most 96"),
    ],
)
def test_what_is_no_launch_is_refused(changed, message):
    asked = {"function": 0, "grid": (1, 1, 1), "threads": 32, "shared_bytes": 0, "kinds": "pi", "varying": 1}
    with pytest.raises(ValueError, match=message):
        KernelLaunch(**{**asked, "fixed": [0], **changed})


def mask(seed=0):
    return torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(seed)).cuda() > 0.99


@pytest.fixture
def made(monkeypatch):
    """Names of the launches that ``launch_of`` gave."""
    kinds = []

    def launch_of(*args):
        found = prepared_launch_of(*args)
        kinds.append(type(found).__name__)
        return found

    prepared_launch_of = prepared.launch_of
    monkeypatch.setattr(prepared, "launch_of", launch_of)
    return kinds


@pytest.mark.gpu
@needs_gpu
@needs_cuda_build
def test_a_launch_by_csrc_gives_the_same_bits(made):
    dilation = Dilation((2, 40, 50), (2000, 50, 1), 2)
    for seed in range(3):  # the first one is Triton's own
        assert torch.equal(dilation(mask(seed)), reference.dilate_mask(mask(seed), 2))
    assert made == ["KernelLaunch"]


@pytest.mark.gpu
@needs_gpu
def test_without_csrc_tritons_launcher_serves(made, monkeypatch):
    monkeypatch.setattr(_backend, "native", lambda: ImportError("not built"))
    dilation = Dilation((2, 40, 50), (2000, 50, 1), 2)
    for seed in range(3):
        assert torch.equal(dilation(mask(seed)), reference.dilate_mask(mask(seed), 2))
    assert made == ["function"]


@pytest.mark.gpu
@needs_gpu
@needs_cuda_build
def test_each_alignment_has_a_launch_of_its_own(made):
    dilation = Dilation((2, 40, 50), (2000, 50, 1), 2)
    buffer = torch.zeros(4001, dtype=torch.bool, device="cuda")
    for start in (0, 1, 0, 1):
        view = buffer[start : start + 4000].view(2, 40, 50).copy_(mask(start))
        assert torch.equal(dilation(view), reference.dilate_mask(mask(start), 2))
    assert made == ["KernelLaunch", "KernelLaunch"]


@pytest.mark.gpu
@needs_gpu
@needs_cuda_build
def test_a_kernel_with_other_parameters_is_refused(monkeypatch):
    refusals = []

    def make(function, grid, threads, shared_bytes, kinds, varying, fixed):
        with pytest.raises(ValueError, match="parameter"):
            KernelLaunch(function, grid, threads, shared_bytes, "i" + kinds[1:], varying, fixed)
        with pytest.raises(ValueError, match="parameters, expected"):
            KernelLaunch(function, grid, threads, shared_bytes, kinds + "p" * 9, varying, [*fixed, *[0] * 9])
        refusals.append(kinds)
        return KernelLaunch(function, grid, threads, shared_bytes, kinds, varying, fixed)

    monkeypatch.setattr(_backend, "native", lambda: type("Native", (), {"KernelLaunch": staticmethod(make)}))
    Dilation((2, 40, 50), (2000, 50, 1), 2)(mask())
    assert len(refusals) == 1


@pytest.mark.gpu
@needs_gpu
@needs_cuda_build
def test_a_thread_that_has_done_nothing_with_cuda_launches():
    dilation, given = Dilation((2, 40, 50), (2000, 50, 1), 2), mask()
    expected = dilation(given)
    for _ in range(3):
        dilation(given)  # the allocator has memory for the other thread
    torch.cuda.synchronize()
    found = []
    thread = threading.Thread(target=lambda: found.append(dilation(given)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], expected)
