# SPDX-License-Identifier: MIT
"""Packed rows with sigmas of their own, as SGLang's continuous batches step them, on a ``RowBatch``.

SGLang's packed solver calls no ``scheduler.step``; these functions stand where its ``step_rows`` does and give its
bits where nothing is corrected. Written from ``batched_solver.py`` of its multimodal_gen runtime, never run inside it;
nothing of SGLang is imported.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ascedfast import process
from ascedfast.config import AscedConfig
from ascedfast.linear_update import euler_updates
from ascedfast.schedule import Schedule
from ascedfast.serving_rows import RowBatch


@functools.lru_cache(maxsize=64)
def flow_schedule(sigmas: tuple[float, ...]) -> Schedule:
    """Of a flow's sigmas: one a step, and the one at which the run ends. Raises: ValueError for fewer than two."""
    if len(sigmas) < 2:
        raise ValueError(f"sigmas are those of the steps and the one at the end: at least two, got {len(sigmas)}")
    end = 1 - sigmas[-1], sigmas[-1]
    return Schedule.from_levels([process.flow(sigma) for sigma in sigmas[:-1]], end=end)


def join(
    batch: RowBatch,
    sigmas: Sequence[float],
    *,
    seed: int,
    rows: int = 1,
    first: int = 0,
    config: AscedConfig | None = None,
    enabled: bool = True,
) -> list[int]:
    """The rows of a request; ids for ``step_rows``, in the order of its latents.

    Args: batch: of float32 or of the latents' dtype, see ``step_rows``. sigmas: as the request's scheduler has them, on
        the host: the one at the end too. rows: images of the request, which share its seed. first: index of the first
        step that is packed.
    Raises: as ``RowBatch.add``; then no row is added.
    """
    if rows > batch.free:
        raise ValueError(f"a request of {rows} rows joins a batch with {batch.free} free ones")
    levels = tuple(float(sigma) for sigma in sigmas)
    updates = euler_updates(levels)[first:]
    options = {"first": first, "enabled": enabled, "updates": updates}
    return [batch.add(config, seed, flow_schedule(levels), draw=draw, **options) for draw in range(rows)]


def step_rows(
    batch: RowBatch, rows: Sequence[int], model_output: Tensor, sample: Tensor, *, grid: Sequence[int] | None = None
) -> Tensor:
    """Advance packed rows by one step, watch it, and correct the rows that have reached their T_c.

    Args:
        rows: ids in the order of the packed rows. model_output, sample: [R, C, *grid]; with ``grid``, of the batch,
            [R, S, C]: tokens in raster order of the grid.
        sample: float32, or of the dtype of the batch, which may then be narrower; modified where it is of the batch's
            dtype and ``model_output``'s.
    Returns: the next states in ``model_output``'s dtype, sample + (sigma' - sigma)*model_output in float32, rounded
        once.
    Raises: as ``RowBatch.step_``; then no row has moved.
    """
    x = sample if sample.dtype == batch.dtype == model_output.dtype else sample.to(batch.dtype, copy=True)
    seen, output = (_as_grid(x, grid), _as_grid(model_output, grid))
    batch.step_(rows, seen, output)
    batch.correct_(rows, seen)
    return x.to(model_output.dtype)


def _as_grid(packed: Tensor, grid: Sequence[int] | None) -> Tensor:
    """A view [R, C, *grid]."""
    if grid is None:
        return packed
    if packed.dim() != 3 or packed.shape[1] != torch.Size(grid).numel():
        raise ValueError(f"packed latents of a grid {tuple(grid)} are [R, S, C] with S its size, got {packed.shape}")
    return packed.unflatten(1, tuple(grid)).movedim(-1, 1)
