# SPDX-License-Identifier: MIT
"""A kernel launched again and again with other addresses and nothing else changed.

A launch through ``JITFunction`` looks at every argument anew, 30 us and more for the kernels of a correction, which run
for 3 to 10 us each; one through the compiled kernel's own launcher parses them, some 12 us; one through csrc costs what
the driver costs.
"""

import struct
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from ascedfast import _backend

ALIGNED = 16
"""Bytes; addresses that are a multiple of it allow wide loads."""
KEPT = 256
"""Launches an op keeps, by the shapes, strides and settings they were prepared for."""
_KINDS = {"i32": "i", "u32": "i", "i64": "l", "u64": "l", "fp32": "f", "constexpr": "-"}
"""``KernelLaunch``'s letters for Triton's types; the types of addresses begin with a star."""

Launch = Callable[..., None]
"""Takes the current stream's address, then the varying arguments: addresses as ints, and ints."""
Place = tuple[int, int]
"""Of a ``LaunchSequence``: one of its addresses, and how many bytes after it."""


class NoSequence(LookupError):
    """These launches cannot be put into a ``LaunchSequence``: csrc does not do all of them, or not yet."""


def stream_getter() -> Callable[[int], int]:
    """What gives the address of a device's current stream."""
    return triton.runtime.driver.active.get_current_stream


def launch_of(compiled: Any, grid: tuple[int, int, int], varying: int, fixed: tuple) -> Launch:
    """Launches of a compiled kernel whose first ``varying`` arguments change and whose others are ``fixed``.

    By csrc where it can: where it is there, the kernel needs nothing but a plain launch, and the kernel's parameters,
    as the driver tells them, are those that Triton's signature says.
    """
    runner = compiled[grid]
    meta, kinds = compiled.metadata, [_kind(entry) for entry in compiled.src.signature.values()]
    plain = getattr(meta, "num_ctas", 1) == 1 and not any(
        getattr(meta, name, 0)
        for name in ("launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size")
    )
    known = None not in kinds and len(kinds) == varying + len(fixed) and "-" not in kinds[:varying]
    make = getattr(_backend.native(), "KernelLaunch", None)
    if plain and known and make is not None and meta.target.backend == "cuda":
        threads = meta.num_warps * meta.target.warp_size
        try:
            bits = [_bits(value, kind) for value, kind in zip(fixed, kinds[varying:], strict=True)]
            return make(compiled.function, grid, threads, meta.shared, "".join(kinds), varying, bits)
        except (ValueError, RuntimeError, OverflowError):  # an older driver, or another Triton: its own launcher knows
            pass
    return lambda stream, *values: runner(*values, *fixed, stream=stream)


def _kind(entry: Any) -> str | None:
    if not isinstance(entry, str):
        return None
    return "p" if entry.startswith("*") else _KINDS.get(entry)


def _bits(value: Any, kind: str) -> int:
    if kind == "-":
        return 0
    if kind == "f":
        return int.from_bytes(struct.pack("<f", value), "little")
    return int(value) & (1 << 64) - 1


def misaligned(*addresses: int) -> tuple[bool, ...]:
    """Which addresses are not aligned, empty where all are: Triton compiles a kernel for each such pattern."""
    joined = 0
    for address in addresses:
        joined |= address
    return tuple(address % ALIGNED != 0 for address in addresses) if joined % ALIGNED else ()


class PreparedLaunch:
    """One launch of ``kernel`` on tensors of fixed types, on one device.

    Args: grid: of programs, one to three sizes. fixed: every argument after the tensors, in the kernel's order,
        constants too. options: Triton's (``num_warps``).
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], *fixed: Any, **options: Any) -> None:
        self._kernel, self._fixed, self._options = kernel, fixed, options
        self._grid = (*grid, 1, 1)[:3]
        self._launches: dict[tuple[bool, ...], Launch] = {}
        self._stream_of = self._device = None

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on the current stream of the tensors' device, which must be the current one; bool is seen as uint8."""
        addresses = [tensor.data_ptr() for tensor in tensors]
        pattern = misaligned(*addresses)
        launch = self._launches.get(pattern)
        if launch is not None:
            launch(self._stream_of(self._device), *addresses)
            return
        seen = [tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor for tensor in tensors]
        compiled = self._kernel[self._grid](*seen, *self._fixed, **self._options)
        if tensors[0].is_cuda:
            self._device = tensors[0].device.index
            self._stream_of = stream_getter()
            self._launches[pattern] = launch_of(compiled, self._grid, len(tensors), self._fixed)

    def add_to(self, sequence: Any, *places: Place) -> None:
        """Append it to csrc's ``LaunchSequence``, whose addresses are aligned. Raises: NoSequence where it has not been
        launched so aligned before, or csrc does not launch it."""
        launch = self._launches.get(misaligned(*(offset for _, offset in places)))
        if not isinstance(launch, getattr(_backend.native(), "KernelLaunch", ())):
            raise NoSequence
        sequence.kernel(launch, places)
