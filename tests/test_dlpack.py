# SPDX-License-Identifier: MIT
"""Arrays of other libraries are observed and corrected where they lie."""

import warnings

import numpy as np
import pytest
import torch
from layouts import DEVICES

import ascedfast
from ascedfast import AscedConfig, ops, process
from ascedfast.dlpack import as_tensor
from ascedfast.schedule import Schedule


class Foreign:
    """A library that speaks DLPack and nothing else."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **kwargs):
        return self.tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def corrected(x):
    """renoise_ of [1, 2, 4, 4] inside a square; where x must have changed."""
    mask = torch.zeros(1, 4, 4, dtype=torch.bool, device=x.device)
    mask[:, 1:3, 1:3] = True
    one, zero = torch.ones(1, device=x.device), torch.zeros(1, dtype=torch.int64, device=x.device)
    ops.renoise_(x, mask, torch.zeros_like(x, dtype=torch.float32), one, one, seeds=zero, steps=zero, draws=zero)
    return mask[:, None].expand_as(x).cpu().numpy()


def test_a_tensor_is_itself():
    x = torch.zeros(2, 3, requires_grad=True)
    assert as_tensor(x) is x
    assert as_tensor(x, write=True) is x


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[:, ::2], lambda x: x.transpose(0, 1, 3, 2)], ids="csT")
def test_numpy_is_corrected_in_place(view, dtype):
    base = np.ones((1, 4, 4, 4), dtype)
    x = view(base)[:, :2]
    before, address = x.copy(), x.ctypes.data
    tensor = as_tensor(x, write=True)
    assert tensor.data_ptr() == address == x.ctypes.data
    assert tuple(tensor.stride()) == tuple(stride // x.itemsize for stride in x.strides)
    changed = corrected(tensor)
    assert np.array_equal(x != before, changed)
    assert (base != 1).sum() == (x != 1).sum() > 0


def test_a_read_only_array_may_be_read():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor(x)
    assert tensor.data_ptr() == x.ctypes.data
    assert tensor.tolist() == x.tolist()
    with pytest.raises(ValueError, match=r"latents is written in place.*read-only"):
        as_tensor(x, "latents", write=True)


@pytest.mark.parametrize("device", DEVICES)
def test_any_object_that_speaks_dlpack(device):
    owner = torch.ones(1, 2, 4, 4, device=device)
    tensor = as_tensor(Foreign(owner), write=True)
    assert tensor.data_ptr() == owner.data_ptr()
    changed = corrected(tensor)
    assert np.array_equal((owner != 1).cpu().numpy(), changed)


class Broken(Foreign):
    def __dlpack__(self, **kwargs):
        raise BufferError("not today")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([1.0, 2.0], "must be a tensor or an array that speaks DLPack, got list"),
        (None, "got NoneType"),
        (1.5, "got float"),
        (np.arange(4.0)[::-1], "negative stride"),
        (np.arange(4).astype(">f4"), "ndarray, cannot be taken as a tensor without a copy"),
        (np.array(["text"]), "ndarray, cannot be taken"),
        (Broken(torch.ones(1)), "Broken, cannot be taken.*not today"),
    ],
    ids=["list", "none", "number", "reversed", "big endian", "text", "broken"],
)
@pytest.mark.parametrize("write", [False, True])
def test_what_cannot_be_shared(x, words, write):
    with pytest.raises(TypeError, match=f"^state.*{words}"):
        as_tensor(x, "state", write=write)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICES != ["cuda"], reason="needs a CUDA device")
@pytest.mark.parametrize("stream", ["default", "side"])
def test_cupy_is_corrected_in_place(stream):
    cupy = pytest.importorskip("cupy", reason="pip install cupy-cuda13x")
    x = cupy.ones((1, 4, 4, 4), dtype=cupy.float32)[:, 1:3]
    address = x.data.ptr
    with torch.cuda.stream(torch.cuda.Stream() if stream == "side" else torch.cuda.current_stream()):
        tensor = as_tensor(x, write=True)
        assert tensor.data_ptr() == address == x.data.ptr
        changed = corrected(tensor)
        torch.cuda.current_stream().synchronize()
    assert np.array_equal(cupy.asnumpy(x) != 1, changed)
    with pytest.raises(TypeError, match="negative stride"):
        as_tensor(x[:, ::-1])


def arrays_of(library):
    if library == "numpy":
        return np.asarray, np.asarray
    cupy = pytest.importorskip("cupy", reason="pip install cupy-cuda13x")
    return cupy.asarray, cupy.asnumpy


@pytest.mark.parametrize("library", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_the_engine_corrects_arrays_in_place(library):
    if library == "cupy" and DEVICES != ["cuda"]:
        pytest.skip("needs a CUDA device")
    array, host = arrays_of(library)
    schedule = Schedule.from_levels([process.flow(1 - k / 8) for k in range(8)])
    config = AscedConfig.fast(t_c=5, window_start=1, mad_scale=0.5, min_area=0, core_width=1, reference_size=None)
    runs = [ascedfast.begin(schedule, config, seeds=[1]) for _ in range(2)]
    g = np.random.default_rng(0)
    start = g.standard_normal((1, 3, 16, 16), np.float32)
    device = "cpu" if library == "numpy" else "cuda"
    x, y = array(start), torch.from_numpy(start.copy()).to(device)
    for _ in range(8):
        m = g.standard_normal(start.shape, np.float32)
        runs[0].observe(x, array(m))
        runs[1].observe(y, torch.from_numpy(m).to(device))
        x, y = x - array(m) * np.float32(0.125), y - torch.from_numpy(m).to(device) * 0.125
        address = x.ctypes.data if library == "numpy" else x.data.ptr
        runs[0].correct_(x)
        runs[1].correct_(y)
        assert address == (x.ctypes.data if library == "numpy" else x.data.ptr)
    assert runs[0].report[0].status == "corrected"
    assert np.array_equal(host(x), y.cpu().numpy())
