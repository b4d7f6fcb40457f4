# SPDX-License-Identifier: MIT
"""Detection and re-noising of the rows of a batch that have just reached T_c, wherever in it they lie.

Rows of equal settings are done together: their windows are gathered, and one set of launches finds and corrects. Lists
of rows are filled up to a power of two, so that a batch has few kinds of launches; the first of each kind is slow
(``RowBatch.warm_up``).
"""

import math
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ascedfast import detect
from ascedfast.calibration.table import Null
from ascedfast.config import AscedConfig
from ascedfast.detect import Detection
from ascedfast.prepared_calibration import PreparedCalibration
from ascedfast.prepared_detection import PreparedDetection
from ascedfast.prepared_memory import ALIGNED
from ascedfast.protected import keep_of_all, unprotected
from ascedfast.row_sequences import RowSequences
from ascedfast.rows import Row

if TYPE_CHECKING:  # importing ascedfast needs no Triton
    from ascedfast.kernels.prepared import PreparedLaunch
    from ascedfast.kernels.row_step import Slots

KINDS = 64
"""Settings whose launches a batch keeps."""


class FoundBySlot:
    """What was found of the row in each slot: a record of bytes (``kernels.row_correction.record_bytes``)."""

    def __init__(self, slots: int, grid: tuple[int, ...], device: torch.device) -> None:
        from ascedfast.kernels.row_correction import record_bytes

        self._n, self._grid = math.prod(grid), grid
        self.records = torch.empty(slots, record_bytes(self._n), dtype=torch.uint8, device=device)

    def of(self, slot: int) -> Detection:
        """A copy, in memory of its own."""
        record, n = self.records[slot].clone(), self._n
        labels, z = record[: 4 * n].view(torch.int32), record[4 * n : 8 * n].view(torch.float32)
        grown, mask = (record[start * n : (start + 1) * n].view(torch.bool) for start in (8, 9))
        labels, z, grown, mask = (part.view(self._grid) for part in (labels, z, grown, mask))
        return Detection(mask, grown, z, labels, record[10 * n].view(torch.bool))


class Space:
    """Scratch of a batch's corrections, which are done one after the other: as much as the largest needed so far."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._memory = device, None

    def of(self, size: int) -> Tensor:
        """At least so many bytes."""
        if self._memory is None or self._memory.numel() < size:
            with torch.inference_mode(False):
                self._memory = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._memory


class RowCorrections:
    """Of one batch's slots."""

    def __init__(self, slots: "Slots", channels: int, grid: tuple[int, ...], device: torch.device) -> None:
        self.slots, self.channels, self.grid, self.device = slots, channels, grid, device
        self.found, self.space = FoundBySlot(len(slots.x0), grid, device), Space(device)
        self.due = torch.empty(2 * lengths(len(slots.x0))[-1], dtype=torch.int32, device=device)
        self._kinds: OrderedDict[tuple, CorrectedTogether] = OrderedDict()

    def kind(self, config: AscedConfig, row: Row) -> "CorrectedTogether | None":
        """What rows like this one have in common; None where T_c will not come, or its table does not know the grid."""
        if not row.enabled or row.plan.reason is not None:
            return None
        null = None
        if config.mode == "calibrated":
            if config.table.refusal(row.window_logsnr, self.grid) is not None:
                return None
            null = config.table.at(row.window_logsnr, self.grid)
        key = (config, row.plan.t_c - row.plan.start - 1, null)
        made = self._kinds.pop(key, None) or CorrectedTogether(*key, row.x0_noise > 0, self)
        self._kinds[key] = made
        if len(self._kinds) > KINDS:
            self._kinds.popitem(last=False)
        return made

    def __call__(self, due: Sequence[tuple[int, int, Row, "CorrectedTogether"]], x: Tensor) -> None:
        """Detect, and re-noise x in place. due: of each row its place in x, slot, itself and its kind."""
        groups: dict[tuple, list[tuple[int, int, Row]]] = {}
        for place, slot, row, kind in due:
            groups.setdefault((id(kind), row.keep is None), []).append((place, slot, row, kind))
        for group in groups.values():
            group[0][3](group, x)

    def put(self, slots: Sequence[int], places: Sequence[int], length: int) -> Tensor:
        """The list of due rows on the device, int32 [2, length]: slots, -1 for none, and places in x."""
        spare = [-1] * (length - len(slots))
        listed = torch.frombuffer(array("i", [*slots, *spare, *places, *spare]), dtype=torch.int32)
        return self.due[: 2 * length].copy_(listed, non_blocking=True)


def lengths(rows: int) -> list[int]:
    """Of lists of due rows: powers of two, the last one holds all rows."""
    return [1 << i for i in range((rows - 1).bit_length() + 1)]


class CorrectedTogether:
    """Rows of equal settings whose windows have equally many changes, and equal tables of sound runs."""

    def __init__(
        self, config: AscedConfig, maps: int, null: Null | None, perturbs: bool, batch: RowCorrections
    ) -> None:
        self._config, self._maps, self._null, self._perturbs, self._batch = config, maps, null, perturbs, batch
        self._applied: dict[tuple, PreparedLaunch] = {}
        self._lists: dict[int, ListOfRows] = {}

    def __call__(self, group: Sequence[tuple[int, int, Row, Any]], x: Tensor) -> None:
        places, slots, rows, _ = zip(*group, strict=True)
        if self._config.mode in ("official", "paper"):
            due, found = self._batch.put(slots, places, len(slots)), self._by_frames(slots, rows)
        else:
            length = next(length for length in lengths(len(self._batch.slots.x0)) if length >= len(slots))
            windows = self._list(length)
            due = self._batch.put(slots, places, length)
            if rows[0].keep is None and windows.at_once(due, x, self._apply(length, x)):
                return
            found = windows.by_ops(due)
        if any(row.keep is not None for row in rows):
            nothing = [None] * (len(found.mask) - len(rows))
            keep = keep_of_all([*(row.keep for row in rows), *nothing], self._batch.grid, self._batch.device)
            found = unprotected(found, keep, self._config)
        self._apply(len(found.mask), x)(*self._tensors(due, x, found))

    def warm_up(self, x: Tensor) -> None:
        """Compile and put together the launches of lists of every length; writes nothing. x: like the states."""
        if self._config.mode in ("official", "paper"):
            return
        for length in lengths(len(self._batch.slots.x0)):
            for _ in range(2):  # the second is put together from the launches of the first
                due, windows = self._batch.put([], [], length), self._list(length)
                if not windows.at_once(due, x, self._apply(length, x)):
                    self._apply(length, x)(*self._tensors(due, x, windows.by_ops(due)))

    def _list(self, length: int) -> "ListOfRows":
        if length not in self._lists:
            self._lists[length] = ListOfRows(self._config, self._maps, self._null, length, self._batch)
        return self._lists[length]

    def _by_frames(self, slots: Sequence[int], rows: Sequence[Row]) -> Detection:
        """By what these modes keep: all channels, in memory of its own."""
        frames = self._batch.slots.grey if self._config.mode == "official" else self._batch.slots.scores
        shape = (self._batch.channels, *self._batch.grid)
        seen = torch.stack([frames[slot, : self._maps + 1].view(-1, *shape) for slot in slots], 1)
        return detect.detect(detect.maps_of(seen, self._config).float(), self._config)

    def _tensors(self, due: Tensor, x: Tensor, found: Detection) -> tuple[Tensor, ...]:
        slots = self._batch.slots
        given = (found.grown, found.mask, found.labels, found.z, found.overflow)
        return x, due, *(part.contiguous() for part in given), slots.script, slots.x0, self._batch.found.records

    def _apply(self, length: int, x: Tensor) -> "PreparedLaunch":
        """The launch that corrects such states and writes what was found to the slots."""
        key = (length, x.dtype, x.stride())
        if key not in self._applied:
            from ascedfast.kernels.row_correction import applying

            rules = (self._config.correct, self._config.mode == "calibrated", self._perturbs)
            self._applied[key] = applying(length, x, *rules)
        return self._applied[key]


class ListOfRows:
    """The detection in so many windows at once, of which some may be none."""

    def __init__(self, config: AscedConfig, maps: int, null: Null | None, length: int, batch: RowCorrections) -> None:
        from ascedfast.kernels.row_correction import gathering

        self._batch, self._shape = batch, (maps, length, *batch.grid)
        self._size = 4 * math.prod(self._shape)
        n = math.prod(batch.grid)
        self._gather = gathering(maps, length, n, batch.slots.bank.shape[1])
        if null is None:
            self._detect = PreparedDetection(self._shape, batch.device, config)
        else:
            self._detect = PreparedCalibration(self._shape, batch.device, config, null)
        self._sequences: dict[tuple, RowSequences | None] = {}
        self._without_csrc = False

    def by_ops(self, due: Tensor) -> Detection:
        windows = self._batch.space.of(self._size)[: self._size].view(torch.float32).view(self._shape)
        self._gather(self._batch.slots.bank, self._batch.slots.script, due, windows)
        return self._detect(windows)

    def at_once(self, due: Tensor, x: Tensor, apply: "PreparedLaunch") -> bool:
        """All of it by csrc; False, and nothing done, where its launches were not made yet or csrc does not do them."""
        from ascedfast.kernels.prepared import NoSequence

        key = (x.dtype, x.stride())
        if key not in self._sequences:
            self._sequences[key] = None
            return False
        if x.data_ptr() % ALIGNED or self._without_csrc:
            return False
        if self._sequences[key] is None:
            try:
                made = RowSequences(self._detect, self._gather, apply, self._shape, self._batch)
            except NoSequence:
                self._without_csrc = True
                return False
            self._sequences[key] = made
        self._sequences[key](due, x)
        return True
