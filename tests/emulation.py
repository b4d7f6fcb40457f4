# SPDX-License-Identifier: MIT
"""csrc's CUDA kernels as C++, against tests/emulated_device.h: an extension whose device memory is the host's."""

import functools
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "-std=c++20 -O1 -g0 -fPIC -shared -fno-strict-aliasing -ffp-contract=off -U_FORTIFY_SOURCE -DASCEDFAST_CUDA"
POISON = -559038737  # an output or a scratch word that nobody wrote shows


def why_not() -> str:
    if shutil.which("c++") is None:
        return "no C++ compiler"
    return "" if importlib.util.find_spec("pybind11") else "pybind11 is not installed"


@functools.cache
def extension():
    """Built once a process (some 20 s); the folder goes away at once, the loaded library stays."""
    import pybind11

    with tempfile.TemporaryDirectory() as folder:
        for source in (ROOT / "csrc").iterdir():
            shutil.copy(source, folder)
        shutil.copy(ROOT / "tests" / "emulated_device.h", Path(folder, "device.cuh"))
        includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
        sources = ["bindings.cpp", "label_regions.cpp", "-x", "c++", "label_regions.cu", "medians.cu"]
        command = ["c++", *FLAGS.split(), *includes, *sources, "-o", "_C.so"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        spec = importlib.util.spec_from_file_location("_C", Path(folder, "_C.so"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def _scratch(count):
    return torch.full((count // 4 + 4,), POISON, dtype=torch.int32)


def label_regions(mask, *, connectivity, min_area, max_area, core_width):
    """labels and kept of bool or levels, [R, H, W] or [R, D, H, W]."""
    planes = mask if mask.dim() == 4 else mask[:, None]
    labels = torch.full(mask.shape, POISON, dtype=torch.int32)
    kept = torch.full(mask.shape, 9, dtype=torch.uint8)
    overflow = torch.ones(planes.shape[0], dtype=torch.uint8)
    # As on a device where nothing fits in shared memory: the paths with scratch are taken on request of a test.
    scratch = _scratch(140 * planes.shape[:3].numel() * (planes.shape[3] // 32 + 1) + 64 * planes.shape[0])
    memory = scratch.data_ptr(), 4 * scratch.numel(), 0, 0
    rules = connectivity, float(min_area), float(max_area), 0 if mask.dtype == torch.uint8 else core_width
    pointers = (
        planes.data_ptr(),
        planes.stride(),
        tuple(planes.shape),
        labels.data_ptr(),
        kept.data_ptr(),
        overflow.data_ptr(),
    )
    extension().label_regions_cuda(*pointers, *rules, *memory)
    if kept.numel():
        assert kept.max() <= 1
        assert not overflow.any()
    return labels, kept.bool()


def medians(values):
    planes, count = values.shape
    statistics = torch.full((planes, 2), float(POISON))
    scratch = _scratch(extension().medians_scratch_bytes(planes))
    memory = scratch.data_ptr(), 4 * scratch.numel(), 0, 0
    extension().medians_cuda(values.data_ptr(), values.stride(0), planes, count, statistics.data_ptr(), *memory)
    return statistics
