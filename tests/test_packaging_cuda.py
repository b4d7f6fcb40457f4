# SPDX-License-Identifier: MIT
"""The extension with and without nvcc; with it, import still needs no driver and no GPU."""

import shutil
import zipfile

import pytest
import torch
from test_packaging import build, copy_checkout, has_extension, names_in, needs_build, needs_compiler, python

from ascedfast import _backend

BARE = {"PATH": "/usr/bin:/bin", "CUDA_HOME": "", "ASCEDFAST_BUILD": "require"}
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
needs_none = pytest.mark.skipif(
    bool(shutil.which("nvcc", path=BARE["PATH"])) or shutil.which("c++", path=BARE["PATH"]) is None,
    reason="/usr/bin has nvcc, or no C++ compiler",
)


def ask(wheel, tmp_path, question):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    return python(f"import ascedfast._C as c\nprint({question})", tmp_path, tmp_path / "installed")


@needs_build
@needs_compiler
@needs_nvcc
def test_nvcc_builds_an_extension_that_imports_without_a_gpu(tmp_path):
    source = copy_checkout(tmp_path / "source")
    status, output, wheel = build(source, "wheel", ASCEDFAST_BUILD="require", ASCEDFAST_CUDA="require")
    assert status == 0, output
    question = "c.has_cuda, c.label_regions_cuda.__name__, c.label_regions_scratch_bytes((1, 1, 128, 128))"
    assert ask(wheel, tmp_path, question) == "True label_regions_cuda 0"


@needs_build
@needs_none
def test_without_nvcc_one_line_says_who_serves(tmp_path):
    status, output, wheel = build(copy_checkout(tmp_path / "source"), "wheel", **BARE)
    assert status == 0, output
    said = [line for line in output.splitlines() if "on a GPU Triton and torch will serve" in line]
    assert len(said) == 1, output
    assert "no nvcc" in said[0]
    assert ask(wheel, tmp_path, "c.has_cuda, hasattr(c, 'label_regions_cuda')") == "False False"


@needs_build
@needs_none
def test_cuda_on_request_fails_without_nvcc(tmp_path):
    status, output, _ = build(copy_checkout(tmp_path), "wheel", **BARE, ASCEDFAST_CUDA="require")
    assert status != 0
    assert "no nvcc in CUDA_HOME or on the PATH" in output


@needs_build
@needs_compiler
def test_a_broken_nvcc_leaves_the_c_plus_plus_ops(tmp_path):
    nvcc = tmp_path / "home" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho some complaint; exit 1\n")
    nvcc.chmod(0o755)
    environment = {"ASCEDFAST_BUILD": "require", "CUDA_HOME": str(tmp_path / "home")}
    status, output, wheel = build(copy_checkout(tmp_path / "source"), "wheel", **environment)
    assert status == 0, output
    assert "nvcc failed: some complaint" in output
    assert has_extension(names_in(wheel))


@needs_build
def test_unknown_mode_is_refused(tmp_path):
    status, output, _ = build(copy_checkout(tmp_path), "wheel", ASCEDFAST_CUDA="yes")
    assert status != 0
    assert "ASCEDFAST_CUDA: expected one of auto, require, skip, got 'yes'" in output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@needs_nvcc
def test_a_machine_with_a_gpu_and_nvcc_has_the_cuda_ops():
    """Else the tests of csrc's CUDA would be skipped there, and nobody would see that its build had failed."""
    assert _backend.has_cuda(), "pip install -e . again and read what it says of CUDA"
