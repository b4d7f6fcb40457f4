# SPDX-License-Identifier: MIT
"""The seeds of a run's rows, for the noise of its correction."""

import secrets
from collections.abc import Sequence

import torch
from torch import Tensor


def row_seeds(x: Tensor, given: Sequence[int] | int | None, generator: object) -> list[tuple[int, int]]:
    """(seed, draw) of each row of x [R, ..]. Rows of one request share its seed and are told apart by the draw.

    Args: given: to enable_asced. generator: of the pipeline's call, or a list of them; its seed is read, nothing drawn.
    Raises: ValueError where as many seeds were given as there are no rows.
    """
    seeds = given
    if seeds is None and isinstance(generator, list | tuple) and generator:
        seeds = [_seed_of(one) for one in generator]
        seeds = seeds if len(seeds) > 1 else seeds[0]  # diffusers draws every row from a list's only generator
    if seeds is None:
        seeds = _seed_of(generator)
    if isinstance(seeds, int):
        return [(seeds, draw) for draw in range(x.shape[0])]
    n = len(seeds)
    doubled = stand_twice(x, n)
    if len(x) != n and not doubled:
        if given is None:  # never stop a run over generators that stock was content with
            return [(seeds[0], draw) for draw in range(len(x))]
        raise ValueError(f"{n} seeds were given to enable_asced, the run has {len(x)} rows: give one a row")
    return [(seed, 0) for seed in seeds] * (2 if doubled else 1)


def stand_twice(x: Tensor, n: int) -> bool:
    """Whether the 2n rows of x [R, ..] are n rows twice: DiT's pipeline steps every sample as its guided and its
    unguided half. Waits for the device where their number allows it."""
    return len(x) == 2 * n and torch.equal(x[:n], x[n:])


def _seed_of(generator: object) -> int:
    return generator.initial_seed() if isinstance(generator, torch.Generator) else secrets.randbits(64)
