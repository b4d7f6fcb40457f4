# SPDX-License-Identifier: MIT
"""``begin``: a run whose rows have the same schedule and settings, as a pipeline's or a plain loop's do."""

import secrets
from collections.abc import Sequence

from torch import Tensor

from ascedfast.config import AscedConfig
from ascedfast.engine import Engine, new_plan
from ascedfast.schedule import Schedule


def begin(
    schedule: Schedule,
    config: AscedConfig | None = None,
    *,
    seeds: Sequence[int] | int | None = None,
    rows: int | None = None,
    first: int = 0,
    keep_mask: Tensor | None = None,
    caches: bool = False,
) -> Engine:
    """An engine whose rows all run the same schedule: the usual case.

    Args:
        seeds: one 64-bit seed a row; an int for one request of ``rows`` images; None: a fresh seed, see the report.
        rows: number of rows; default: as many as seeds. first: index in the schedule of the first executed step.
        keep_mask: as for ``Engine.add``, [R, 1, *grid]. caches: one may answer for steps, see ``Engine.skip``.
    Raises: ValueError, TypeError, BackendError for bad settings, ``caches`` that is no bool, or a number of seeds that
        is not the number of rows.
    """
    if not isinstance(caches, bool):
        raise TypeError(f"caches must be True or False, whether a cache may answer for steps, got {caches!r}")
    if rows is not None and rows < 0:
        raise ValueError(f"rows must be 0 or more, got {rows}")
    if isinstance(seeds, Sequence):
        if rows is not None and rows != len(seeds):
            raise ValueError(f"{len(seeds)} seeds were given for {rows} rows: give one a row")
        pairs = [(seed, 0) for seed in seeds]
    else:
        seed = secrets.randbits(64) if seeds is None else seeds
        pairs = [(seed, draw) for draw in range(1 if rows is None else rows)]
    engine = Engine(None if caches else new_plan)
    engine.add_all(schedule, AscedConfig() if config is None else config, pairs, first=first, keep_mask=keep_mask)
    return engine
