# SPDX-License-Identifier: MIT
"""Stub of the C++ extension (csrc/bindings.cpp); each function's contract is its docstring there."""

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
