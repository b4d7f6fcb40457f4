# SPDX-License-Identifier: MIT
"""Settings that every test runs under. Tests seed their own generators; the global one is never seeded here."""

import importlib.util
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU then; read when a kernel is defined

torch.set_num_threads(1)  # tensors here are small: waiting for a second thread costs more than its work
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same of the programs that tests start

# Where kernels are tested and measured, on a GPU, the extra ``serve`` may be missing. Elsewhere its absence fails.
measures_only = torch.cuda.is_available() and importlib.util.find_spec("ray") is None
collect_ignore_glob = ["test_batch*.py", "test_server_*.py"] if measures_only else []

hypothesis.settings.register_profile("ascedfast", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ascedfast")


@pytest.fixture
def asced_warnings(caplog):
    """Messages of the library's logger at WARNING or above, as a function to call after the run."""
    caplog.set_level("WARNING", logger="ascedfast")

    def read():
        return [record.getMessage() for record in caplog.records if record.name.startswith("ascedfast")]

    return read


@pytest.fixture
def questions(monkeypatch):
    """What the run was told at each step: whether anything was taken from a cache."""
    from ascedfast.adapters import caches  # needs diffusers

    told, ask = [], caches.CacheWatch.skipped
    monkeypatch.setattr(caches.CacheWatch, "skipped", lambda self: told.append(ask(self)) or told[-1])
    return told


@pytest.fixture
def poisoned_empty(monkeypatch):
    """torch.empty full of NaN: an output that a kernel leaves unwritten shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def by_csrc(monkeypatch):
    """csrc's launches; on a CPU emulated. Where the extension was built without CUDA a GPU has none."""
    from ascedfast import _backend

    if torch.cuda.is_available():
        if not _backend.has_cuda():
            pytest.skip("the extension holds no CUDA: nvcc builds it")
        return
    if isinstance(_backend.native(), ImportError):
        pytest.skip("the extension is not built: a C++ compiler builds it")
    import emulated_sequence

    emulated_sequence.emulate(monkeypatch)


@pytest.fixture
def few_grids(monkeypatch):
    """Spares the laboratory's tests the drawing of 50,000 grids."""
    from ascedfast.lab import data

    monkeypatch.setattr(data, "GLYPH_TRAIN", data.GLYPH_TRAIN[:50])
    monkeypatch.setattr(data, "GLYPH_HELD_OUT", data.GLYPH_HELD_OUT[:100])
    data.load.cache_clear()
    yield
    data.load.cache_clear()
