# SPDX-License-Identifier: MIT
"""Rows whose latents are cut along one axis of their grid, a slice on each rank of a process group.

    run = ShardedEngine(process_group, shard_axis=0)       # slices of H, or of the frames
    run.add(schedule, config, seed=seed)                   # the same on every rank
    run.observe(x, m); x = solver_step(m, t, x); run.correct_(x)     # of this rank's slice

Steps are watched without a word between ranks. At T_c they gather what they kept, one channel of each location; every
rank finds what there is in the whole and corrects its own slice, with the noise of the slice's places in the whole.
Latents that every rank holds whole need none of this: ranks with the same model outputs have the same bits.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ascedfast.config import AscedConfig
from ascedfast.engine import Engine
from ascedfast.lockstep import WITHOUT_GRADIENTS
from ascedfast.mixed_rows import check_batch, detect_rows, groups_of, judged, renoise_rows_
from ascedfast.rows import Row
from ascedfast.schedule import Schedule


class ShardsDifferError(ValueError):
    """The ranks do not hold equal slices of the same rows; the message says what each has."""


class ShardedEngine(Engine):
    """An ``Engine`` of slices. Ranks hold equal slices, in the order of their ranks in the group.

    Reports are of the whole and equal on every rank. At the first step of a set of rows and at T_c the ranks compare
    what they hold, which waits for the device; at T_c one collective gathers [changes of the window, *grid] of the rows
    that are due, and the correction takes memory for whole states of these for a moment.

    Args: process_group: None for the default one. shard_axis: of the grid, 0 the first: H of images, frames of videos.
    Raises: ValueError for an axis that no grid has; RuntimeError where torch.distributed is not initialised.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None, *, shard_axis: int) -> None:
        super().__init__()
        if isinstance(shard_axis, bool) or not isinstance(shard_axis, int) or not 0 <= shard_axis <= 2:
            raise ValueError(f"shard_axis must be 0, 1 or 2, an axis of the grid, got {shard_axis!r}")
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError("sharded rows need torch.distributed: call init_process_group first")
        self._group, self._axis = process_group, shard_axis
        self._ranks, self._rank = dist.get_world_size(process_group), dist.get_rank(process_group)
        if self._rank < 0:
            raise ValueError("this process is not in process_group: only its ranks hold slices")
        self._compared: tuple | None = None

    def add_all(
        self, schedule: Schedule, config: AscedConfig, seeds: Sequence[tuple[int, int]], **options: Any
    ) -> list[int]:
        """As ``Engine.add_all``, on every rank with the same arguments. Raises: ValueError too for what keeps more than
        the window's changes (modes "official" and "paper", ``record="run"``), and for a ``keep_mask``."""
        if isinstance(config, AscedConfig) and config.mode not in ("fast", "calibrated"):
            raise ValueError(f"mode {config.mode!r} keeps all channels, which are not gathered: use fast or calibrated")
        if isinstance(config, AscedConfig) and config.record == "run":
            raise ValueError("record='run' keeps changes after T_c, which are not gathered: use record='window'")
        if options.get("keep_mask") is not None:
            raise ValueError("keep_mask is not known for slices: leave it out, or gather the latents")
        self._compared = None
        return super().add_all(schedule, config, seeds, **options)

    def remove(self, row: int) -> Any:
        self._compared = None
        return super().remove(row)

    def observe(
        self, x: Tensor, m: Tensor | None = None, rows: Sequence[int] | None = None, *, x0: Tensor | None = None
    ) -> Tensor:
        """As ``Engine.observe``, of this rank's slice. Raises: ShardsDifferError; then no row has moved."""
        rows = self.rows if rows is None else rows
        self._compare(x, rows)
        return super().observe(x, m, rows, x0=x0)

    def correct_(self, x: Tensor, rows: Sequence[int] | None = None) -> Tensor | None:
        """As ``Engine.correct_``, on every rank after the same step; the mask is of this rank's slice. Raises:
        ShardsDifferError at T_c."""
        return super().correct_(x, self.rows if rows is None else rows)

    def _compare(self, x: Tensor, rows: Sequence[int]) -> None:
        """See that all ranks hold such slices of the same rows, once for each set of rows. Waits for the device."""
        known = (tuple(x.shape), x.dtype, tuple(rows))
        if known == self._compared:
            return
        if x.dim() - 2 <= self._axis:
            raise ShardsDifferError(f"shard_axis {self._axis} of a grid {tuple(x.shape[2:])}: it has no such axis")
        self._agree(x, self._select(rows))
        self._compared = known

    def _agree(self, x: Tensor, batch: Sequence[Row]) -> None:
        """See that all ranks hold such slices of the same rows, at the same step. A collective; waits for the device.

        Raises: ShardsDifferError on every rank that speaks, also where one is at a step and another at its T_c.
        """
        told = [(row.seed, row.draw, row.first, row.step, row.config, row.schedule) for row in batch]
        mine = (tuple(x.shape), str(x.dtype), hashlib.sha256(repr(told).encode()).hexdigest())
        everyone: list[Any] = [None] * self._ranks
        dist.all_gather_object(everyone, mine, group=self._group)
        if any(one[:2] != mine[:2] for one in everyone):
            held = ", ".join(f"rank {rank}: {shape} {dtype}" for rank, (shape, dtype, _) in enumerate(everyone))
            raise ShardsDifferError(f"slices must be equal on every rank ({held}): pad them or gather the latents")
        if any(one != mine for one in everyone):
            raise ShardsDifferError(
                "the ranks hold rows of other seeds, steps, settings or schedules: add the same ones"
            )

    def _correct_rows_(self, x: Tensor, rows: Sequence[int] | None) -> Tensor | None:
        batch = self._select(rows)
        check_batch(x, batch)
        if x.requires_grad and any(row.due and row.config.correct for row in batch):
            raise ValueError(WITHOUT_GRADIENTS)
        due = judged(batch, self._whole(x.shape[2:]))
        if not due:
            return None
        self._agree(x, due)
        self._gather(due)
        found = [pair for group in groups_of(due) for pair in detect_rows(group)]
        masks = {row.id: detection.grown for row, detection in found if row.config.correct}
        mask = self._renoise_(x, batch, masks) if masks else None
        for row, detection in found:
            row.detection = detection
            row.bank.clear()
        return mask

    def _whole(self, grid: Sequence[int]) -> tuple[int, ...]:
        return tuple(size * (self._ranks if axis == self._axis else 1) for axis, size in enumerate(grid))

    def _gather(self, due: list[Row]) -> None:
        """The windows' changes of these rows become those of the whole grid."""
        mine = torch.cat([torch.stack(row.bank) for row in due]).contiguous()
        every = torch.empty((self._ranks, *mine.shape), dtype=mine.dtype, device=mine.device)
        dist.all_gather_into_tensor(every.flatten(0, 1), mine, group=self._group)
        whole = torch.cat(every.unbind(0), 1 + self._axis)
        for row, maps in zip(due, whole.split([len(row.bank) for row in due]), strict=True):
            row.bank = list(maps.unbind(0))
            row.dynamics = [(step, d) for (step, _), d in zip(row.dynamics, row.bank, strict=True)]
            row.finite = maps.isfinite().all()

    def _renoise_(self, x: Tensor, batch: list[Row], masks: dict[int, Tensor]) -> Tensor:
        """By the op on whole states, of which this rank has its own slice: noise is counted by a location's place."""
        size = x.shape[2 + self._axis]
        start, axis = self._rank * size, self._axis
        grid = self._whole(x.shape[2:])
        chosen = [i for i, row in enumerate(batch) if row.id in masks]
        rows = [batch[i] for i in chosen]
        state = torch.zeros((len(rows), x.shape[1], *grid), dtype=x.dtype, device=x.device)
        state.narrow(2 + axis, start, size).copy_(x[chosen])
        predictions = []
        for row in rows:
            whole = torch.zeros((x.shape[1], *grid), dtype=row.x0.dtype, device=x.device)
            whole.narrow(1 + axis, start, size).copy_(row.x0)
            predictions.append(whole)
        own = {}
        for row in rows:  # nothing is drawn for the slices of others
            own[row.id] = torch.zeros_like(masks[row.id])
            own[row.id].narrow(axis, start, size).copy_(masks[row.id].narrow(axis, start, size))
        renoise_rows_(state, rows, own, predictions)
        mask = torch.zeros((len(batch), 1, *x.shape[2:]), dtype=torch.bool, device=x.device)
        for place, (i, row) in enumerate(zip(chosen, rows, strict=True)):
            x[i].copy_(state[place].narrow(1 + axis, start, size))
            mask[i, 0] = masks[row.id].narrow(axis, start, size)
        return mask
