# SPDX-License-Identifier: MIT
"""Checks of what a user says of the runs of a scheduler."""

from collections.abc import Sequence

from ascedfast.noise import seed_to_int64


def checked_seeds(seeds: Sequence[int] | int | None) -> tuple[int, ...] | int | None:
    """Raises: ValueError, TypeError."""
    if seeds is None:
        return None
    many = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    if not many:
        raise ValueError("seeds is empty: give one seed a sample, or None")
    for seed in many:
        seed_to_int64(seed)
    return seeds if isinstance(seeds, int) else many


def checked_grid(grid: tuple[int, ...] | None, axes: str | None) -> tuple[int, ...] | None:
    """Of packed latents whose axes may be given too. Raises: ValueError."""
    if grid is not None and (len(grid) not in (2, 3) or any(not isinstance(side, int) or side < 1 for side in grid)):
        raise ValueError(f"grid must be (height, width) or (frames, height, width) in locations, got {grid!r}")
    if grid is not None and axes is not None and "S" not in axes:
        raise ValueError(f"grid is of packed latents, but axes={axes!r} has no S: give one of the two")
    return grid
