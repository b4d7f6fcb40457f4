# SPDX-License-Identifier: MIT
"""history_fill_ against numpy, bit pattern by bit pattern: the conversion inside the mask, nothing outside it."""

import numpy as np
import pytest
import torch
from ascedfast.kernels import history_fill
from layouts import DEVICES, LAYOUTS, SHAPES, channels_last, sliced, turned

from ascedfast import ops
from ascedfast._backend import BackendError

ON_GPU = DEVICES == ["cuda"]
pytestmark = [pytest.mark.gpu] if ON_GPU else []
WORDS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
BACKENDS = ["reference", "triton"]
FP32, FP16, FP64, BF16 = torch.float32, torch.float16, torch.float64, torch.bfloat16
MIXES = [(FP32, [FP32]), (FP16, [FP16, FP32]), (FP32, [FP16, FP32, FP64]), (FP64, [FP32, FP64, FP16])]
# Triton's interpreter truncates bf16 and misreads its subnormals: bf16 goes through the kernel on a GPU only.
WITH_BF16 = [(BF16, [BF16, FP32, FP16]), (FP32, [BF16, FP64, BF16]), (FP64, [BF16]), (FP16, [BF16])]


def words(x):
    """Bit patterns as a numpy array of integers."""
    return x.view(WORDS[x.dtype]).cpu().numpy()


def converted(current, dtype):
    """Bit patterns of current rounded to dtype, to nearest and even, by numpy alone."""
    if current.dtype == dtype:
        return words(current)
    if current.dtype == BF16:
        wide = (words(current).astype(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        wide = current.cpu().numpy()
    if dtype == FP64:
        return wide.astype(np.float64).view(np.int64)
    wide = wide.astype(np.float32)  # 16-bit formats by way of float32, as torch does
    if dtype == FP32:
        return wide.view(np.int32)
    if dtype == FP16:
        with np.errstate(over="ignore"):
            return wide.astype(np.float16).view(np.int16)
    pattern = wide.view(np.uint32)
    return ((pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)


def check(backend, current, mask, entries):
    """Right in every bit; what surrounds the entries in memory, mask and current are untouched."""
    storages = [t.untyped_storage() for t in entries]
    kept = [storage.clone() for storage in storages]
    inside = mask[:, None].expand_as(current).cpu().numpy()
    expected = [np.where(inside, converted(current, entry.dtype), words(entry)) for entry in entries]
    others = [(t, words(t) if t.is_floating_point() else t.cpu().numpy()) for t in (current, mask)]
    others = [(t, copy.copy()) for t, copy in others]
    assert ops.history_fill_(entries, mask, current, backend=backend) is None
    for entry, storage, before, bits in zip(entries, storages, kept, expected, strict=True):
        assert np.array_equal(words(entry), bits)
        # Put back what was there: the rest of the memory must be as it was.
        original = torch.empty(0, dtype=entry.dtype, device=entry.device)
        original.set_(before, entry.storage_offset(), entry.shape, entry.stride())
        entry.view(WORDS[entry.dtype]).copy_(original.view(WORDS[entry.dtype]))
        assert storage.tolist() == before.tolist()
        entry.view(WORDS[entry.dtype]).copy_(torch.from_numpy(bits.copy()))
    for t, copy in others:
        assert np.array_equal(words(t) if t.is_floating_point() else t.cpu().numpy(), copy)


def arguments(shape, layout, current_dtype, dtypes, device, density=0.3):
    g = torch.Generator().manual_seed(8)
    current = channels_last(shape, g, current_dtype).to(device)
    mask = (torch.rand(shape[0], shape[-1], *shape[2:-1], generator=g) < density).movedim(1, -1).to(device)
    return current, mask, [layout(shape, g, dtype).to(device) for dtype in dtypes]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_layout(backend, shape, layout, device):
    check(backend, *arguments(shape, layout, FP32, [FP32, FP16, FP32], device))


@pytest.fixture(params=[0, history_fill.SMALL], ids=["large", "small"])
def kernel(request, monkeypatch):
    """The kernel as it does large tensors, then as it does small ones."""
    monkeypatch.setattr(history_fill, "SMALL", request.param)
    history_fill._prepared.cache_clear()
    yield
    history_fill._prepared.cache_clear()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [*LAYOUTS, None], ids=lambda f: f.__name__ if f else "dense")
@pytest.mark.parametrize("shape", [(2, 3, 17, 23), (2, 5, 3, 9, 7), (1, 19, 1, 257), (1, 1, 1, 1)], ids=str)
@pytest.mark.usefixtures("kernel")
def test_large_and_small(shape, layout, device):
    current, mask, entries = arguments(shape, layout or sliced, FP32, [FP32, FP16], device)
    if layout is None:
        current, mask, entries = current.contiguous(), mask.contiguous(), [e.contiguous() for e in entries]
    check("triton", current, mask, entries)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["mask", "current", "entry"])
@pytest.mark.usefixtures("kernel")
def test_one_that_is_not_dense_among_dense_ones(name, device):
    current, mask, entries = arguments((2, 3, 8, 8), turned, FP32, [FP32], device)
    dense = {"current": current.contiguous(), "mask": mask.contiguous(), "entry": entries[0].contiguous()}
    strided = {"current": current, "mask": mask.mT.contiguous().mT, "entry": entries[0]}
    one = {**dense, name: strided[name]}
    assert not one[name].is_contiguous()
    check("triton", one["current"], one["mask"], [one["entry"]])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("backend", "mix"),
    [
        *[(backend, mix) for backend in BACKENDS for mix in MIXES],
        *[(backend, mix) for backend in (BACKENDS if ON_GPU else ["reference"]) for mix in WITH_BF16],
    ],
    ids=str,
)
def test_every_dtype(backend, mix, device):
    current, mask, entries = arguments(SHAPES["image"], sliced, *mix, device)
    current[..., :4] *= 1e-5  # subnormal in fp16
    current[..., 4:6] *= 1e7  # beyond fp16
    check(backend, current, mask, entries)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [FP32, FP16, FP64, *([BF16] if ON_GPU else [])], ids=str)
def test_every_bit_pattern_stays(backend, dtype, device):
    """Of the entry outside the mask, of a current of the same dtype inside: NaN payloads, infinities, subnormals."""
    size = {2: 2**16, 4: 2**12, 8: 2**12}[dtype.itemsize]
    patterns = torch.randint(-(2**62), 2**62, (2, size), generator=torch.Generator().manual_seed(1))
    if dtype.itemsize == 2:
        patterns = torch.arange(size).expand(2, size)
    patterns = patterns.to(WORDS[dtype])
    patterns[:, :2] = -1  # a NaN with a full payload
    current, entry = patterns.view(dtype).reshape(2, 1, 1, 16, -1).to(device).unbind(0)
    mask = (torch.arange(current[0, 0].numel()) % 2 == 0).reshape(1, *current.shape[2:]).to(device)
    check(backend, current, mask, [entry.clone()])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("density", [0.0, 2.0], ids=["nowhere", "everywhere"])
def test_whole_masks(backend, density, device):
    check(backend, *arguments(SHAPES["two-blocks"], sliced, FP32, [FP32, FP32], device, density))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_entries_that_are_current_or_each_other(backend, device):
    current, mask, (entry,) = arguments(SHAPES["image"], sliced, FP32, [FP32], device)
    expected = np.where(mask[:, None].expand_as(current).cpu().numpy(), words(current), words(entry))
    same = words(current).copy()
    ops.history_fill_([entry, current, entry], mask, current, backend=backend)
    assert np.array_equal(words(entry), expected)
    assert np.array_equal(words(current), same)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_fill(backend):
    x = torch.zeros(1, 2, 3, 4, device=DEVICES[0])
    ops.history_fill_([], x[:, 0] == 0, x, backend=backend)


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_in_a_graph():
    current, mask, entries = arguments(SHAPES["image"], sliced, FP32, [FP32, BF16], "cuda")
    ops.history_fill_([e.clone() for e in entries], mask, current, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.history_fill_(entries, mask, current, backend="triton")
    mask.logical_not_()
    current.neg_()
    inside = mask[:, None].expand_as(current).cpu().numpy()
    expected = [np.where(inside, converted(current, entry.dtype), words(entry)) for entry in entries]
    graph.replay()
    for entry, bits in zip(entries, expected, strict=True):
        assert np.array_equal(words(entry), bits)


X = torch.zeros(2, 3, 6, 5)
MASK = torch.zeros(2, 6, 5, dtype=torch.bool)
REFUSED = {
    "four entries": (([X] * 4, MASK, X), ValueError, "at most 3"),
    "shape": (([X, X[:, :2]], MASK, X), ValueError, r"entries\[1\] must have current's shape"),
    "device": (([X.to("meta")], MASK, X), ValueError, "meta"),
    "integers": (([X.int()], MASK, X), TypeError, r"entries\[0\] must be of a float"),
    "current's dtype": (([X], MASK, X.int()), TypeError, "current must be of a float"),
    "current's rank": (([X[0]], MASK, X[0]), ValueError, "current must be"),
    "mask's dtype": (([X], MASK.int(), X), TypeError, "bool"),
    "mask's shape": (([X], MASK[:1], X), ValueError, "mask must be"),
    "mask's device": (([X], MASK.to("meta"), X), ValueError, "mask is on meta"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    arguments, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        ops.history_fill_(*arguments)
    with pytest.raises(BackendError, match="history_fill_"):
        ops.history_fill_([X], MASK, X, backend="native")
