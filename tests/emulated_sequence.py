# SPDX-License-Identifier: MIT
"""csrc's ``LaunchSequence`` on a CPU: it reads and writes memory by address as the real one does, through Triton's
interpreter and the C++ ops, so that what is put together can be checked without a GPU."""

import ctypes
import functools
from typing import Any

import torch
from ascedfast.kernels import dilate_mask, prepared, renoise, robust_threshold
from torch import Tensor

from ascedfast import _backend, _native_cuda, reference


def at(address: int, like: Tensor) -> Tensor:
    """A tensor over foreign memory, with the shape, strides and dtype of ``like``."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    raw = (ctypes.c_uint8 * (span * like.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=torch.uint8).view(like.dtype).as_strided(like.shape, like.stride())


class KernelLaunch:
    """A prepared launch and the tensors it was first made for."""

    def __init__(self, launch: prepared.PreparedLaunch, examples: tuple[Tensor, ...]) -> None:
        self.launch, self.examples = launch, examples

    def __call__(self, stream: int, *addresses: int) -> None:
        tensors = [at(address, like) for address, like in zip(addresses, self.examples, strict=True)]
        launch_by_triton(self.launch, *tensors)


def launch_by_triton(launch: prepared.PreparedLaunch, *tensors: Tensor) -> None:
    seen = [tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor for tensor in tensors]
    launch._kernel[launch._grid](*seen, *launch._fixed, **launch._options)


def first_launch(launch: prepared.PreparedLaunch, *tensors: Tensor) -> None:
    """``PreparedLaunch.__call__``, which keeps what csrc would launch the next time."""
    launch_by_triton(launch, *tensors)
    pattern = prepared.misaligned(*(tensor.data_ptr() for tensor in tensors))
    launch._launches.setdefault(pattern, KernelLaunch(launch, tensors))


class LaunchSequence:
    def __init__(self, bases: int) -> None:
        self.bases, self.launches = bases, []

    def kernel(self, launch: KernelLaunch, places: tuple) -> None:
        assert len(places) == len(launch.examples)
        self.launches.append(lambda bases: launch(0, *(bases[base] + offset for base, offset in places)))

    def medians(self, values, stride, planes, count, statistics, scratch, scratch_bytes) -> None:
        def launch(bases: tuple[int, ...]) -> None:
            read = at(bases[values[0]] + values[1], torch.empty_strided((planes, count), (stride, 1)))
            at(bases[statistics[0]] + statistics[1], torch.empty(planes, 2)).copy_(medians(read))

        self.launches.append(launch)

    def label_regions(self, mask, strides, shape, labels, kept, overflow, scratch, scratch_bytes, **rules: Any) -> None:
        def launch(bases: tuple[int, ...]) -> None:
            addresses = (bases[base] + offset for base, offset in (labels, kept))
            native.label_regions(bases[mask[0]] + mask[1], strides, shape, *addresses, *rules.values())
            at(bases[overflow[0]] + overflow[1], torch.empty(shape[0], dtype=torch.bool)).fill_(False)

        native = _backend.native().real
        self.launches.append(launch)

    def __call__(self, device: int, stream: int, *bases: int) -> None:
        assert len(bases) == self.bases
        for launch in self.launches:
            launch(bases)


def medians(values: Tensor) -> Tensor:
    """As ``_native_cuda.medians``."""
    center = reference.median(values)
    mad = reference.median((values - center[:, None]).abs())
    return torch.stack((center, mad), -1)


def label_regions(mask: Tensor, **rules: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_native_cuda.label_regions``."""
    labels, kept = torch.empty(mask.shape, dtype=torch.int32), torch.empty(mask.shape, dtype=torch.bool)
    addresses = (labels.data_ptr(), kept.data_ptr())
    _backend.native().real.label_regions(mask.data_ptr(), mask.stride(), mask.shape, *addresses, *rules.values())
    return labels, kept, torch.zeros(len(mask), dtype=torch.bool)


class Native:
    """The extension as if it held the CUDA ops."""

    has_cuda = True
    KernelLaunch, LaunchSequence = KernelLaunch, LaunchSequence

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    @staticmethod
    def medians_scratch_bytes(planes: int) -> int:
        return 64 * planes

    @staticmethod
    def label_regions_scratch_bytes(shape: tuple[int, ...]) -> int:
        return 48


def emulate(monkeypatch: Any) -> None:
    """What csrc and the driver do, for the length of a test; launches that are kept beyond it are not touched."""
    native = Native(_backend.native())
    monkeypatch.setattr(_backend, "native", lambda: native)
    monkeypatch.setattr(_backend, "pick", lambda op, *_: "native" if op == "label_regions" else "triton")
    monkeypatch.setattr(_native_cuda, "medians", medians)
    monkeypatch.setattr(_native_cuda, "label_regions", label_regions)
    monkeypatch.setattr(prepared.PreparedLaunch, "__call__", first_launch)
    monkeypatch.setattr(prepared, "stream_getter", lambda: lambda device: 0)
    for module, kept in (
        (robust_threshold, "_prepared_statistics"),
        (robust_threshold, "_kept"),
        (renoise, "_prepared"),
    ):
        monkeypatch.setattr(module, kept, functools.cache(getattr(module, kept).__wrapped__))
    monkeypatch.setattr(dilate_mask, "_kept", functools.cache(dilate_mask._kept.__wrapped__))
