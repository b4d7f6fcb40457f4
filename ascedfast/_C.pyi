# SPDX-License-Identifier: MIT
"""Stub of the compiled extension (csrc/bindings.cpp); each function's contract is its docstring there."""

from collections.abc import Sequence

def label_regions(
    mask: int,
    strides: tuple[int, int, int, int],
    shape: tuple[int, int, int, int],
    labels: int,
    kept: int,
    connectivity: int,
    min_area: float,
    max_area: float,
    core_width: int,
) -> None: ...

has_cuda: bool
"""Whether the functions below are there: built with nvcc."""

def label_regions_cuda(
    mask: int,
    strides: tuple[int, int, int, int],
    shape: tuple[int, int, int, int],
    labels: int,
    kept: int,
    overflow: int,
    connectivity: int,
    min_area: float,
    max_area: float,
    core_width: int,
    scratch: int,
    scratch_bytes: int,
    device: int,
    stream: int,
) -> None: ...
def label_regions_scratch_bytes(shape: tuple[int, int, int, int]) -> int: ...
def medians_cuda(
    values: int,
    stride: int,
    planes: int,
    count: int,
    statistics: int,
    scratch: int,
    scratch_bytes: int,
    device: int,
    stream: int,
) -> None: ...
def medians_scratch_bytes(planes: int) -> int: ...

class KernelLaunch:
    def __init__(
        self,
        function: int,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        kinds: str,
        varying: int,
        fixed: list[int],
    ) -> None: ...
    def __call__(self, stream: int, *varying: int) -> None: ...

class LaunchSequence:
    def __init__(self, bases: int) -> None: ...
    def kernel(self, launch: KernelLaunch, arguments: Sequence[tuple[int, int]]) -> None: ...
    def medians(
        self,
        values: tuple[int, int],
        stride: int,
        planes: int,
        count: int,
        statistics: tuple[int, int],
        scratch: tuple[int, int],
        scratch_bytes: int,
    ) -> None: ...
    def label_regions(
        self,
        mask: tuple[int, int],
        strides: Sequence[int],
        shape: Sequence[int],
        labels: tuple[int, int],
        kept: tuple[int, int],
        overflow: tuple[int, int],
        connectivity: int,
        min_area: float,
        max_area: float,
        core_width: int,
        scratch: tuple[int, int],
        scratch_bytes: int,
    ) -> None: ...
    def __call__(self, device: int, stream: int, *bases: int) -> None: ...
